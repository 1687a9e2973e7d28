//! Packets that wait until it is known whom they concern. Each worker has its own, in the order in which they came.

use std::sync::Arc;

use super::super::probes::since;
use super::super::{Core, Entry, Io, Pipeline, Source, Tables};
use super::Wanted;
use super::asks::RETRY;
use crate::numbers::Vni;
use crate::packet::{DropReason, Packet};
use crate::session::table::Ingress;
use crate::snapshot::{Asked, Snapshot};

/// Packets that may wait at one worker, of one VPC, and of one port, or of one peer in a VPC.
const CAPACITY: usize = 1024;
const OF_VPC: usize = 512;
const OF_ONE: usize = 256;
/// Of those, in large frames, of which there are few.
const LARGE: usize = 16;

/// How long one may wait, in milliseconds.
const PATIENCE: u32 = 100;

/// A packet of which more has to be known.
#[derive(Debug)]
struct Waiting {
    packet: Packet,
    what: What,
    ingress: Ingress,
    /// The VPC that is asked in.
    vni: Vni,
    asked: Asked,
    since: u32,
    /// When it was asked for last.
    asked_at: u32,
    /// By which indices are to be read.
    snapshot: Arc<Snapshot>,
}

/// What waits.
#[derive(Debug, Clone, Copy)]
pub(in crate::pipeline) enum What {
    /// An IP packet.
    Ip(Entry),
    /// An ARP question of a port of this host.
    Arp,
}

/// What waits at one worker.
#[derive(Debug)]
pub(in crate::pipeline) struct Waitings {
    all: Vec<Waiting>,
    /// Room for those that are looked at; empty between calls.
    spare: Vec<Waiting>,
    /// What the packets at hand are judged by.
    snapshot: Arc<Snapshot>,
    /// Since when the packet at hand has waited, if it has.
    resumed: Option<u32>,
}

impl Default for Waitings {
    fn default() -> Self {
        Self {
            all: Vec::with_capacity(CAPACITY),
            spare: Vec::with_capacity(CAPACITY),
            snapshot: Arc::default(),
            resumed: None,
        }
    }
}

impl Waitings {
    pub(in crate::pipeline) fn set_snapshot(&mut self, snapshot: &Arc<Snapshot>) {
        self.snapshot = Arc::clone(snapshot);
    }

    fn has_room_for(&self, packet: &Packet, ingress: Ingress, vni: Vni) -> bool {
        let of_vpc = || self.all.iter().filter(|it| it.vni == vni);
        let of_one = of_vpc().filter(|it| it.ingress == ingress).count();
        let large = || self.all.iter().filter(|it| it.packet.frame.is_large());
        self.all.len() < CAPACITY
            && of_one < OF_ONE
            && of_vpc().count() < OF_VPC
            && (!packet.frame.is_large() || large().count() < LARGE)
    }
}

impl Core {
    /// Asks for what has to be known of a packet, which waits for the answer; or drops it.
    pub(in crate::pipeline) fn ask_and_wait(
        &mut self,
        tables: Tables<'_>,
        io: &mut impl Io,
        packet: Packet,
        (what, ingress): (What, Ingress),
        asked: Result<(usize, Asked), DropReason>,
    ) {
        let since = self.waiting.resumed.unwrap_or(self.now);
        let asked = asked.and_then(|(vpc, asked)| {
            let vni = tables.snapshot.vpcs[vpc].vni;
            let has_room = self.waiting.has_room_for(&packet, ingress, vni);
            let asked = has_room.then_some((vpc, asked));
            self.ask(
                tables.snapshot,
                ingress,
                asked.ok_or(DropReason::LearnLimit)?,
            )
        });
        match asked {
            Ok((vni, asked)) => self.waiting.all.push(Waiting {
                packet,
                what,
                ingress,
                vni,
                asked,
                since,
                asked_at: self.now,
                snapshot: Arc::clone(&self.waiting.snapshot),
            }),
            Err(reason) => self.drop(tables, io, packet, ingress, reason),
        }
    }

    /// Asks for something on behalf of a packet.
    ///
    /// # Errors
    /// [`DropReason::LearnLimit`].
    pub(in crate::pipeline) fn ask(
        &mut self,
        snapshot: &Snapshot,
        ingress: Ingress,
        (vpc, asked): (usize, Asked),
    ) -> Result<Wanted, DropReason> {
        let vpc = &snapshot.vpcs[vpc];
        let may = match ingress {
            Ingress::Port(index) => self.learning.take(index.into(), self.now),
            Ingress::Peer(_) | Ingress::External(_) => {
                self.vpc_learning.take(vpc.index.get() as usize, self.now)
            }
        };
        if !may {
            return Err(DropReason::LearnLimit);
        }
        self.asks.ask((vpc.vni, asked), self.now);
        Ok((vpc.vni, asked))
    }
}

/// Where a packet that has waited came in, by another snapshot: none if that is there no longer.
fn ingress(before: &Snapshot, now: &Snapshot, ingress: Ingress) -> Option<Ingress> {
    let is_same = match ingress {
        Ingress::Port(index) => before.port(index)?.id == now.port(index)?.id,
        Ingress::Peer(index) => before.peer(index)?.host == now.peer(index)?.host,
        Ingress::External(index) => {
            before.outside.network(index)?.id == now.outside.network(index)?.id
        }
    };
    is_same.then_some(ingress)
}

/// A packet's entry by another snapshot.
fn renew(before: &Snapshot, now: &Snapshot, entry: &Entry) -> Option<Entry> {
    let vni = before.vpcs.get(entry.vpc)?.vni;
    Some(Entry {
        vpc: *now.vpc_by_vni.get(&vni)?,
        ingress: ingress(before, now, entry.ingress)?,
        ..*entry
    })
}

impl Pipeline {
    /// How many packets wait for answers.
    pub fn waiting(&self) -> usize {
        self.core.waiting.all.len()
    }

    /// Lets packets go on that waited for what is known now, and drops those that have waited for too long. To be called after
    /// [`Self::set_snapshot`], and every few milliseconds while any wait ([`Self::waiting`]).
    pub fn resume(&mut self, io: &mut impl Io, now: u32) {
        if self.waiting() == 0 {
            return;
        }
        self.core.now = now;
        let tables = Tables {
            snapshot: &self.snapshot,
            sessions: &self.sessions,
            neighbors: &self.neighbors,
            checks: &self.checks,
            listeners: &self.listeners,
        };
        let mut looked_at = std::mem::take(&mut self.core.waiting.spare);
        std::mem::swap(&mut looked_at, &mut self.core.waiting.all);
        for waiting in looked_at.drain(..) {
            self.core.look_at(tables, io, waiting);
        }
        self.core.waiting.spare = looked_at;
    }
}

impl Core {
    fn look_at(&mut self, tables: Tables<'_>, io: &mut impl Io, mut waiting: Waiting) {
        let snapshot = tables.snapshot;
        let place = snapshot.vpc_by_vni.get(&waiting.vni);
        let vpc = place.and_then(|place| snapshot.vpcs.get(*place));
        if vpc.is_some_and(|vpc| vpc.lacks(waiting.asked)) {
            if since(waiting.since, self.now) < PATIENCE {
                // The question may have been lost.
                if since(waiting.asked_at, self.now) >= RETRY {
                    waiting.asked_at = self.now;
                    self.asks.ask((waiting.vni, waiting.asked), self.now);
                }
                return self.waiting.all.push(waiting);
            }
            return self.give_up(tables, io, waiting);
        }
        self.waiting.resumed = Some(waiting.since);
        match (
            waiting.what,
            ingress(&waiting.snapshot, snapshot, waiting.ingress),
        ) {
            (What::Ip(entry), _) => match renew(&waiting.snapshot, snapshot, &entry) {
                Some(entry) => self.forward(tables, io, waiting.packet, &entry),
                None => self.give_up(tables, io, waiting),
            },
            (What::Arp, Some(Ingress::Port(index))) => {
                self.general(tables, io, Source::Port(index), waiting.packet);
            }
            (What::Arp, _) => self.give_up(tables, io, waiting),
        }
        self.waiting.resumed = None;
    }

    fn give_up(&self, tables: Tables<'_>, io: &mut impl Io, waiting: Waiting) {
        let reason = DropReason::AddressUnlearned;
        self.drop(tables, io, waiting.packet, waiting.ingress, reason);
    }
}
