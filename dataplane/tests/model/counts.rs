//! What hosts count of members of load balancers, and whom least connections chooses by it: told from the sessions that there are, one after the other.

use std::collections::BTreeMap;

use weft_dataplane::packet::parse::{address_word, word_address};
use weft_fabric::Fabric;

use crate::semantics::balancing::Target;
use crate::semantics::world::World;

/// A session that counts: its host, VNI and flow, and the counter, which is another if it goes to another member.
type Counting = (String, u32, [u128; 2], [u16; 2], u8, u32);

/// A member of a listener: the load balancer, protocol and first port of the listener, and where the member serves that.
type Name = (String, String, u32, Target);

/// The sessions that count, each with whom it counts for.
#[derive(Debug, Default)]
pub struct Counts(BTreeMap<Counting, Name>);

impl Counts {
    /// Whether any session counted when that was looked at last.
    pub fn is_any(&self) -> bool {
        !self.0.is_empty()
    }

    /// After a frame, or after several: each counter says how many sessions have it, and who was chosen for a new one had the fewest for its weight.
    ///
    /// # Errors
    /// What is wrong.
    pub fn check(&mut self, fabric: &Fabric, world: &World, frames: usize) -> Result<(), String> {
        let before = std::mem::take(&mut self.0);
        for (host, its) in &fabric.hosts {
            let mut by_counter: BTreeMap<u32, u32> = BTreeMap::new();
            let mut new = Vec::new();
            let snapshot = its.pipeline.snapshot();
            its.shared.sessions.each(fabric.now, |session| {
                let (Some(number), Some((_, after))) = (session.member, session.translated) else {
                    return;
                };
                *by_counter.entry(number).or_default() += 1;
                let flow = session.flow;
                let key = (
                    host.clone(),
                    session.vni.get(),
                    [flow.source, flow.destination],
                    [flow.source_port, flow.destination_port],
                    flow.protocol,
                    number,
                );
                if let Some(name) = before.get(&key) {
                    self.0.insert(key, name.clone());
                    return;
                }
                let to = (word_address(after.destination), after.destination_port);
                let vni = [
                    session.vni,
                    session.translated.map_or(session.vni, |it| it.0),
                ];
                let vpc = vni
                    .into_iter()
                    .find_map(|vni| snapshot.vpc_by_vni.get(&vni));
                let vpc = vpc.map(|place| &*snapshot.vpcs[*place].id);
                let at = (word_address(flow.destination), flow.destination_port);
                new.push((key, (vpc.map(str::to_owned), flow.protocol, at, to)));
            });
            let counts = its.shared.sessions.member_counts();
            let named: Vec<u32> = by_counter.keys().copied().collect();
            for number in (0..512).chain(named) {
                let wanted = by_counter.get(&number).copied().unwrap_or(0);
                let found = counts.sessions(number);
                if found != wanted {
                    return Err(format!(
                        "{host}: counter {number} says {found}, there are {wanted}"
                    ));
                }
            }
            let is_single = frames == 1 && new.len() == 1;
            for (key, (vpc, protocol, at, to)) in new {
                let known = vpc.and_then(|vpc| world.counted(&vpc, protocol, at, to));
                let Some((id, listener, taken)) = known else {
                    // Another gateway host has told of it, and it is of a time before.
                    continue;
                };
                let name = |target| {
                    (
                        id.clone(),
                        listener.protocol.clone(),
                        listener.port_min,
                        target,
                    )
                };
                let is_told =
                    key.1 == 0 && !snapshot.outside.held.contains_key(&address_word(at.0));
                // What another gateway host has told of was chosen there.
                if is_single && !is_told && listener.algorithm == "least-connections" {
                    let of = |target: Target| {
                        let own = before.iter().filter(|(key, _)| key.0 == *host);
                        let name = name(target);
                        own.filter(|(_, known)| **known == name).count() as u64 + 1
                    };
                    let takers = world.takers(&id, listener, at.0.is_ipv4());
                    let weight = takers.iter().find(|it| it.0 == taken).map(|it| it.1);
                    let weight = weight.ok_or_else(|| format!("{taken:?} takes no flows"))?;
                    for (other, its) in takers {
                        if of(other) * weight < of(taken) * its {
                            return Err(format!(
                                "{host}: {taken:?} was chosen, that will have {} for {weight}, not {other:?} with {} for {its}",
                                of(taken),
                                of(other)
                            ));
                        }
                    }
                }
                self.0.insert(key, name(taken));
            }
        }
        Ok(())
    }
}
