//! The packet trace beside what really became of the packet.

use weft_dataplane::packet::DropReason;
use weft_dataplane::pipeline::Service;
use weft_dataplane::pipeline::trace::{self, Outcome as Way, Trace};
use weft_fabric::{Fabric, MemoryHost};

use crate::semantics::Outcome;
use crate::semantics::frame::word;

/// What a trace said, before the packet was sent.
pub struct Traced {
    host: String,
    trace: Trace,
}

impl Traced {
    pub fn from_port(fabric: &Fabric, port: &str, frame: &[u8]) -> Option<Self> {
        let (host, index) = fabric.find_port(port)?;
        let trace = trace::trace(fabric.hosts[&host].view(), index, frame);
        Some(Self { host, trace })
    }

    pub fn from_wire(fabric: &Fabric, host: &str, frame: &[u8]) -> Option<Self> {
        let trace = trace::trace_from_uplink(fabric.hosts.get(host)?.view(), frame);
        Some(Self {
            host: host.to_owned(),
            trace,
        })
    }

    /// Whether the frame was taken for one out of a tunnel.
    pub fn is_of_tunnel(&self) -> bool {
        let mut steps = self.trace.steps.iter();
        steps.any(|(stage, _)| *stage == "tunnel")
    }

    /// What is wrong with it, if anything is.
    pub fn contradicts(&self, fabric: &Fabric, found: &Outcome) -> Option<String> {
        let host = fabric.hosts.get(&self.host)?;
        let mut drops = found.dropped.iter().filter(|(at, _)| *at == self.host);
        // What is known of the datagram's other pieces decides too; the trace knows this one alone.
        if drops.clone().any(|(_, reason)| is_of_fragments(*reason)) {
            return None;
        }
        // What becomes of the packet when the answer has come is not known yet.
        if matches!(self.trace.outcome, Way::Drop(DropReason::AddressUnlearned)) {
            return None;
        }
        let happened = match &self.trace.outcome {
            Way::Drop(reason) => drops.any(|(_, dropped)| dropped == reason),
            Way::Reply(_) => {
                let elsewhere = found.dropped.iter().any(|(at, _)| *at != self.host);
                let sent = found.delivered.len() + found.crossed.len() + found.left.len();
                drops.count() == 0 && (sent > 0 || elsewhere)
            }
            Way::Service(Service::Querier) => !found.reports.is_empty(),
            Way::Service(_) => !found.asked.is_empty(),
            Way::WithItsFirst => true,
            // A copy that is too big for one of many is dropped for that one.
            Way::To { .. } if drops.any(|(_, reason)| *reason == DropReason::TooBig) => true,
            Way::To {
                ports,
                peers,
                neighbor,
                // The model has no ports on external networks.
                wire: None,
                fragments,
            } => {
                let in_pieces = fragments.is_some();
                let leaves = neighbor.is_none_or(|index| leaves(host, index, in_pieces, found));
                leaves && self.arrives(host, (ports, peers, in_pieces), found)
            }
            Way::To { wire: Some(_), .. } => false,
        };
        (!happened).then(|| {
            let text = self.trace.outcome.text(host.pipeline.snapshot());
            format!(
                "the trace on {} says '{text}' after {:#?}",
                self.host, self.trace.steps
            )
        })
    }

    fn arrives(
        &self,
        host: &MemoryHost,
        (ports, peers, in_pieces): (&[u16], &[u16], bool),
        found: &Outcome,
    ) -> bool {
        let snapshot = host.pipeline.snapshot();
        let least = if in_pieces { 2 } else { 1 };
        let delivered = ports.iter().all(|port| {
            let device = snapshot.trunks.device(*port);
            let id = snapshot.port(device).map(|port| &port.id);
            let vlan = snapshot.trunks.subport(*port).map(|it| it.vlan);
            let is_of_vlan = |frame: &[u8]| {
                vlan.is_none_or(|vlan| frame[12..14] == [0x81, 0] && word(frame, 14) == vlan)
            };
            let to = found.delivered.iter();
            let to = to.filter(|(to, frame)| Some(to) == id && is_of_vlan(frame));
            to.count() >= least
        });
        let crossed = peers.iter().all(|peer| {
            let id = snapshot.peer(*peer).map(|peer| &peer.host);
            let to = found.crossed.iter();
            let to = to.filter(|crossing| crossing.from == self.host && Some(&crossing.to) == id);
            to.count() >= least
        });
        delivered && crossed
    }
}

/// Whether something has left for a neighbour: a station, whose frames are there, or another host, whatever that did with it.
fn leaves(host: &MemoryHost, index: u16, in_pieces: bool, found: &Outcome) -> bool {
    let Some(neighbor) = host.shared.neighbors.get(index) else {
        // An address of this host's own.
        return index == u16::MAX;
    };
    let mac = neighbor.mac.bytes();
    let left = found.left.iter();
    let left = left.filter(|(from, frame)| *from == host.id && frame[..6] == mac);
    let is_host = mac[0] == 6;
    is_host || left.count() >= if in_pieces { 2 } else { 1 }
}

fn is_of_fragments(reason: DropReason) -> bool {
    reason.name().starts_with("fragment_")
}
