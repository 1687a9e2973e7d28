//! What hosts count of members of load balancers, and whom least connections chooses by it: told from the sessions that there are, one after the other.

use std::collections::BTreeMap;

use weft_dataplane::packet::Flow;
use weft_dataplane::packet::parse::{address_word, word_address};
use weft_fabric::Fabric;

use weft_proto::v1::{Member, Objects};

use crate::case::{Case, Event};
use crate::craft::{self, Ends, Header};
use crate::differential::Differential;
use crate::rng::Rng;
use crate::semantics::balancing::Target;
use crate::semantics::frame::UDP;
use crate::semantics::world::World;
use crate::traffic::ROUTER;

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
                let chosen = session.chosen.map(|destination| Flow {
                    destination,
                    ..session.flow
                });
                let after = session.translated.map(|(_, after)| after).or(chosen);
                let (Some(number), Some(after)) = (session.member, after) else {
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

const OBJECTS: &str = r#"
hosts: [{id: h1, vteps: [192.0.2.1]}, {id: h2, vteps: [192.0.2.2]}]
vpcs: [{id: blue, vni: 100}]
subnets: [{id: a, vpc: blue, cidrs: [10.0.1.0/24]}]
security_groups: [{id: open, vpc: blue, rules: [{direction: ingress}]}]
ports:
  - {id: p1, vpc: blue, subnet: a, mac: "02:00:00:00:01:01", addresses: [10.0.1.11], security_groups: [open], host: h1}
  - {id: p2, vpc: blue, subnet: a, mac: "02:00:00:00:01:02", addresses: [10.0.1.12], security_groups: [open], host: h2}
  - {id: p3, vpc: blue, subnet: a, mac: "02:00:00:00:01:03", addresses: [10.0.1.13], security_groups: [open], host: h1}
  - {id: p4, vpc: blue, subnet: a, mac: "02:00:00:00:01:04", addresses: [10.0.1.14], security_groups: [open], host: h2}
load_balancers:
  - {id: lb, vpc: blue, addresses: [10.0.1.100], listeners: [{protocol: udp, port_min: 80, algorithm: least-connections, members: []}]}
"#;

/// Flows of few clients to a listener whose members change all the time: random configurations seldom have many flows to one listener.
#[test]
fn whoever_is_chosen_has_the_fewest_sessions() {
    for seed in 1..=4 {
        let mut rng = Rng::new(seed, 0);
        let mut objects: Objects = serde_yaml_ng::from_str(OBJECTS).unwrap();
        let case = Case {
            metadata: false,
            learns: false,
            translations: Vec::new(),
            device_mtus: BTreeMap::new(),
            objects: objects.clone(),
            events: Vec::new(),
        };
        let mut differential = Differential::new(&case).unwrap();
        for _ in 0..600 {
            let event = match rng.below(40) {
                0 => Event::Wait(61_000),
                1..=3 => {
                    let member = |port: u8, rng: &mut Rng| Member {
                        port: format!("p{port}"),
                        weight: u32::from(rng.below(4)),
                        draining: rng.percent(20),
                        ..Member::default()
                    };
                    let members = (1..=4).filter(|_| !rng.percent(20)).collect::<Vec<u8>>();
                    let members = members.into_iter().map(|port| member(port, &mut rng));
                    objects.load_balancers[0].listeners[0].members = members.collect();
                    Event::Configure(Box::new(objects.clone()))
                }
                _ => {
                    let number = 1 + rng.below(4);
                    let ends = Ends {
                        dst: ROUTER,
                        src: [2, 0, 0, 0, 1, number],
                        source: [10, 0, 1, 10 + number].into(),
                        destination: [10, 0, 1, 100].into(),
                    };
                    let datagram = craft::udp(ends, (1000 + u16::from(rng.byte()), 80), b"q");
                    Event::Send {
                        port: format!("p{number}"),
                        worker: 0,
                        frames: vec![craft::ip(ends, &Header::default(), UDP, &datagram)],
                    }
                }
            };
            let taken = differential.take(&event);
            assert!(taken.is_ok(), "seed {seed}: {}", taken.unwrap_err().text);
        }
    }
}
