//! Virtual addresses: who holds one is reached by it as by its own.

use std::collections::BTreeSet;
use std::sync::Arc;

use weft_proto::state::{Change, Kind, Object, State};
use weft_proto::v1;

use super::{Done, Draft, Objects, Places};
use crate::packet::Mac;
use crate::packet::parse::address_word;

use crate::snapshot::{Endpoint, Place, Port, Subnet, VirtualAddresses};

/// What is known when it is found out who holds an address.
struct Known<'a> {
    places: &'a Places,
    host: &'a str,
    subnets: &'a dyn Fn(usize) -> Option<&'a Subnet>,
    port: &'a dyn Fn(u16) -> Option<&'a Port>,
}

impl Known<'_> {
    /// Who holds it in a VPC; none if that is not known here.
    fn holder(&self, vpc: usize, holder: &v1::AddressHolder) -> Option<(u128, Endpoint)> {
        let address = address_word(holder.address.parse().ok()?);
        let mac: Mac = holder.mac.parse().ok()?;
        let place = if holder.host == self.host {
            let endpoint = self.places.endpoints.get(&holder.port)?;
            let Place::Here(index) = endpoint.place else {
                return None;
            };
            (self.port)(index).filter(|port| port.owns(address, mac))?;
            endpoint.place
        } else {
            Place::There(*self.places.peers.get(&holder.host)?)
        };
        let subnet = *self.places.subnets.get(&holder.subnet)?;
        let is_in = |it: &Subnet| it.vpc == vpc && it.holds(address);
        (self.subnets)(subnet).filter(|it| is_in(it))?;
        let endpoint = Endpoint {
            mac,
            subnet,
            place,
            ipv6: false,
        };
        Some((address, endpoint))
    }
}

impl Draft<'_> {
    pub(super) fn fill_holders(&mut self, objects: &Objects<'_>) {
        let mut found: Vec<Vec<(u128, Endpoint)>> = vec![Vec::new(); self.vpcs.len()];
        let known = Known {
            places: &self.places,
            host: self.context.host,
            subnets: &|at| self.subnets.get(at),
            port: &|index| self.ports.get(usize::from(index))?.as_ref(),
        };
        for holder in &objects.holders {
            let Some(vpc) = self.places.vpcs.get(&holder.vpc).copied() else {
                continue;
            };
            let draft = &self.vpcs[vpc];
            let is_free = |address: &u128| {
                !draft.by_address.contains_key(address) && !draft.gateways.contains_key(address)
            };
            let held = known.holder(vpc, holder);
            found[vpc].extend(held.filter(|(address, _)| is_free(address)));
        }
        for (draft, held) in self.vpcs.iter_mut().zip(found) {
            draft.by_address.extend(held.iter().copied());
            draft.vpc.virtuals = Arc::new(VirtualAddresses::new(held));
        }
    }
}

/// The VPCs in which it has to be found out anew who holds what, by id.
pub(super) fn vpcs<'s>(done: &Done, changes: &[Change<'s>], state: &State) -> BTreeSet<&'s str> {
    let ends = changes.iter().flat_map(|change| [change.old, change.new]);
    let concerned = ends.flatten().filter(|object| match object.kind() {
        Kind::AddressHolder => true,
        // A port that comes may be a holder, and one that goes may have had an address that is held.
        Kind::Port => object.vpc().is_some_and(|vpc| {
            let known = [&done.state, state];
            let mut held = known.map(|it| it.of_vpc_and_kind(vpc, Kind::AddressHolder));
            held.iter_mut().any(|it| it.next().is_some())
        }),
        _ => false,
    });
    concerned.filter_map(Object::vpc).collect()
}

/// Finds out anew who holds what in VPCs.
pub(super) fn renew(done: &mut Done, vpcs: &BTreeSet<&str>, state: &State) {
    for id in vpcs {
        let Some(place) = done.places.vpcs.get(*id).copied() else {
            continue;
        };
        let snapshot = &done.snapshot;
        let Some(vpc) = snapshot.vpcs.get(place) else {
            continue;
        };
        let known = Known {
            places: &done.places,
            host: &done.host,
            subnets: &|at| snapshot.subnets.get(at),
            port: &|index| snapshot.port(index),
        };
        let is_free = |address: &u128| {
            let is_known = vpc.by_address.contains_key(address) && !vpc.virtuals.has(*address);
            !is_known && !vpc.gateways.contains_key(address)
        };
        let holders = state.of_vpc_and_kind(id, Kind::AddressHolder);
        let held = holders.filter_map(|object| match object {
            Object::AddressHolder(holder) => known.holder(place, holder),
            _ => None,
        });
        let held = VirtualAddresses::new(held.filter(|(address, _)| is_free(address)).collect());
        if held == *vpc.virtuals {
            continue;
        }
        let Some(vpc) = done.snapshot.vpcs.get_mut(place) else {
            continue;
        };
        let by_address = Arc::make_mut(&mut vpc.by_address);
        for (address, _) in vpc.virtuals.addresses() {
            by_address.remove(address);
        }
        for (address, endpoint) in held.addresses() {
            by_address.insert(*address, *endpoint);
        }
        vpc.virtuals = Arc::new(held);
    }
}
