//! Ports that are not known yet (decision 018). In a VPC whose ports are learned, a packet is judged only when this host knows whom it comes from and whom it
//! is for, or that nobody has the address: until then it waits (`waiting`), and the agent asks the controller (`asks`).

mod asks;
pub(super) mod waiting;

pub use self::asks::{Asks, Wanted};

use super::guard::{is_link_local, mac_of_link_local};
use super::tracer::Tracer;
use super::{Entry, gateway};
use crate::packet::DropReason;
use crate::packet::parse::word_address;
use crate::session::table::Ingress;
use crate::snapshot::{Asked, Snapshot, Vpc};

impl Vpc {
    /// Whether it has to be asked for: nobody is known to have it, nor that nobody does.
    fn lacks(&self, asked: Asked) -> bool {
        let Some(learned) = &self.learned else {
            return false;
        };
        let is_known = match asked {
            Asked::Address(address) => {
                self.by_address.contains_key(&address)
                    || self.gateways.contains_key(&address)
                    || self.balancers.contains_key(&address)
            }
            Asked::Mac(mac) => {
                mac.is_group()
                    || self.by_mac.contains_key(&mac)
                    || super::forwarding::is_router(self, mac)
            }
        };
        !is_known && !learned.has(asked)
    }
}

/// The VPC in which an address has to be asked for, by place, and what is asked: none if there is nothing to ask.
pub(super) fn lacking(snapshot: &Snapshot, vpc: usize, address: u128) -> Option<(usize, Asked)> {
    let known = &snapshot.vpcs[vpc];
    if is_link_local(address) {
        let asked = Asked::Mac(mac_of_link_local(address)?);
        return known.lacks(asked).then_some((vpc, asked));
    }
    let asked = Asked::Address(address);
    // A route may lead to a peered VPC also with an address that lies in this one, and what a peering does not let pass is told from what never was.
    let joined = known.peerings.iter().map(|peering| peering.vpc);
    let mut places = std::iter::once(vpc).chain(joined);
    let place = places.find(|place| {
        let vpc = &snapshot.vpcs[*place];
        vpc.subnets.lookup(address).is_some() && vpc.lacks(asked)
    });
    Some((place?, asked))
}

/// What has to be asked for before a packet can be judged.
fn unknown(snapshot: &Snapshot, entry: &Entry, area: &[u8]) -> Option<(usize, Asked)> {
    let (parsed, place) = (&entry.parsed, entry.vpc);
    let vpc = &snapshot.vpcs[place];
    if vpc.wire.is_some() {
        return None;
    }
    let flow = &parsed.flow;
    // What is said on a link the sender's host has judged: here it matters only behind whom the sender is.
    let is_of_port = matches!(entry.ingress, Ingress::Port(_));
    // And those for which these stand.
    let stands = |address| vpc.translations.destination(address);
    let addresses = [
        Some(flow.source),
        Some(flow.destination),
        stands(flow.source),
        stands(flow.destination),
        is_of_port.then(|| gateway::target(area, parsed)).flatten(),
    ];
    let addresses = addresses.into_iter().flatten();
    let mut addresses = addresses.filter(|address| is_of_port || !is_link_local(*address));
    let address = addresses.find_map(|address| lacking(snapshot, place, address));
    // A frame to a MAC stays in the subnet, and one from a MAC has come from whoever has it.
    let mac = match entry.ingress {
        Ingress::Port(_) => Asked::Mac(parsed.eth_dst),
        Ingress::Peer(_) => Asked::Mac(parsed.eth_src),
        Ingress::External(_) => return address,
    };
    address.or_else(|| vpc.lacks(mac).then_some((place, mac)))
}

/// Whether everybody whom a packet concerns is known.
///
/// # Errors
/// [`DropReason::AddressUnlearned`]: not yet. The tracer was told of what has to be asked for.
#[inline]
pub(super) fn check(
    snapshot: &Snapshot,
    entry: &Entry,
    area: &[u8],
    tracer: &mut impl Tracer,
) -> Result<(), DropReason> {
    if !snapshot.learns {
        return Ok(());
    }
    unknown(snapshot, entry, area).map_or(Ok(()), |lacking| Err(ask(snapshot, lacking, tracer)))
}

/// Whether it is known who has an address that a session makes of a packet's.
///
/// # Errors
/// As of [`check`].
pub(super) fn check_address(
    snapshot: &Snapshot,
    vpc: usize,
    address: u128,
    tracer: &mut impl Tracer,
) -> Result<(), DropReason> {
    if !snapshot.learns {
        return Ok(());
    }
    lacking(snapshot, vpc, address).map_or(Ok(()), |lacking| Err(ask(snapshot, lacking, tracer)))
}

/// Tells the tracer what has to be asked for; why the packet can't go on.
fn ask(snapshot: &Snapshot, (vpc, asked): (usize, Asked), tracer: &mut impl Tracer) -> DropReason {
    tracer.step("learn", || {
        let what = match asked {
            Asked::Address(address) => word_address(address).to_string(),
            Asked::Mac(mac) => mac.to_string(),
        };
        let vpc = &snapshot.vpcs[vpc].id;
        format!("who has {what} in VPC {vpc} is not known yet: the controller is asked")
    });
    tracer.unlearned(vpc, asked);
    DropReason::AddressUnlearned
}
