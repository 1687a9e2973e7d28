//! What agents and a controller do for multicast: each host's querier hears reports, and hosts are told at once what others listen to.

use weft_dataplane::multicast::listeners::{Heard, elsewhere, reach};
use weft_dataplane::multicast::{Answer, Merged};

use crate::{Fabric, MemoryHost};

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
        let mut heard: Vec<(String, Merged)> = Vec::new();
        for host in self.hosts.values_mut() {
            let mut table = host.shared.listeners.copy();
            host.querier.update(&mut table);
            host.shared.listeners.publish(table);
            let merged = host.querier.merged(host.pipeline.snapshot());
            heard.push((host.id.clone(), merged));
        }
        for host in self.hosts.values_mut() {
            let of_others = heard.iter().filter(|(id, _)| *id != host.id);
            let of_others = of_others.flat_map(|(id, merged)| {
                merged.iter().map(|((vpc, subnet, group), filter)| Heard {
                    host: id,
                    vpc,
                    subnet,
                    group: *group,
                    filter: filter.clone(),
                })
            });
            let mut table = host.shared.listeners.copy();
            let told = elsewhere(host.pipeline.snapshot(), of_others);
            table.reach = reach(host.pipeline.snapshot());
            table.elsewhere = self.tells_listeners.then_some(told);
            host.shared.listeners.publish(table);
        }
    }
}
