//! What agents and a controller do for multicast: each host's querier hears reports, and hosts are told at once what others listen to.

use weft_dataplane::multicast::listeners::reach;
use weft_dataplane::multicast::{Answer, Filter, Others};

use crate::{Fabric, MemoryHost};

/// What of a VPC, by subnet and group, ports of a host want.
type Wanted = (String, String, u128, Filter);

impl MemoryHost {
    fn asked(&mut self, answer: Answer) -> Vec<(String, Vec<u8>)> {
        if let Some(reason) = answer.refused {
            self.refused[reason as usize] += 1;
        }
        let frames = answer.frames.into_iter();
        frames
            .map(|(port, frame)| (self.port_id(port), frame))
            .collect()
    }

    /// Hands the querier a report of a port; what it asks.
    pub(crate) fn hear(&mut self, index: u16, frame: &[u8], now: u32) -> Vec<(String, Vec<u8>)> {
        let snapshot = self.pipeline.snapshot();
        let answer = self.querier.hear(snapshot, index, frame, now.into());
        self.asked(answer)
    }

    /// Lets the querier do what is due; what it asks.
    pub(crate) fn query(&mut self, now: u32) -> Vec<(String, Vec<u8>)> {
        let snapshot = self.pipeline.snapshot();
        self.querier.follow(snapshot, now.into());
        let answer = self.querier.tick(snapshot, now.into());
        self.asked(answer)
    }
}

impl Fabric {
    /// Has every host know what its ports, and those of other hosts, have joined.
    pub(crate) fn share_listeners(&mut self) {
        let now = self.now.into();
        let mut has_changed = false;
        for host in self.hosts.values_mut() {
            let snapshot = host.pipeline.snapshot();
            if host.followed != snapshot.generation {
                host.followed = snapshot.generation;
                host.querier.follow(snapshot, now);
                has_changed |= snapshot.subnets.iter().any(|subnet| subnet.snoops);
            }
            has_changed |= host.querier.has_changed();
        }
        if !has_changed {
            return;
        }
        let mut heard: Vec<(String, Vec<Wanted>)> = Vec::new();
        for host in self.hosts.values_mut() {
            let mut table = host.shared.listeners.copy();
            host.querier.update(&mut table);
            host.shared.listeners.publish(table);
            let snapshot = host.pipeline.snapshot();
            let mut wanted = Vec::new();
            for key in host.querier.groups() {
                let vpc = snapshot.vpc_by_vni.get(&key.0);
                let Some(vpc) = vpc.and_then(|place| snapshot.vpcs.get(*place)) else {
                    continue;
                };
                let of_group = host.querier.wanted(key).into_iter();
                wanted
                    .extend(of_group.map(|(subnet, filter)| {
                        (vpc.id.clone(), subnet.to_owned(), key.1, filter)
                    }));
            }
            heard.push((host.id.clone(), wanted));
        }
        for host in self.hosts.values_mut() {
            let snapshot = host.pipeline.snapshot();
            let mut others = Others::default();
            let untold = &self.tell_no_listeners;
            for (id, wanted) in heard.iter().filter(|(id, _)| !untold.contains(id)) {
                for vpc in snapshot.vpcs.iter() {
                    others.tell(&vpc.id, id, true);
                }
                for (vpc, subnet, group, filter) in wanted {
                    others.want((vpc, id, subnet), *group, Some(filter));
                }
            }
            let mut table = host.shared.listeners.copy();
            (table.elsewhere, table.telling) = Default::default();
            others.follow(snapshot);
            others.update(&mut table);
            table.reach = reach(snapshot);
            host.shared.listeners.publish(table);
        }
    }
}
