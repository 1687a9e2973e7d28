//! Ports that are learned on demand (decision 018): what packets ask for goes to the controller, and what they no longer use is given back.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::Notify;
use weft_dataplane::numbers::Vni;
use weft_dataplane::packet::Mac;
use weft_dataplane::packet::parse::{address_word, word_address};
use weft_dataplane::pipeline::guard::link_local;
use weft_dataplane::pipeline::learning::{Asks, Wanted};
use weft_dataplane::session::SessionTable;
use weft_dataplane::snapshot::{Asked, Learned, Snapshot};
use weft_dataplane::worker::Common;
use weft_proto::state::{Kind, Object, State};
use weft_proto::v1::{Learn, LearnedAddress, VpcAddresses};

use super::host::Host;
use crate::agent::AgentHandle;

/// How often it is looked for what is no longer used.
const SWEEP: Duration = Duration::from_secs(30);
/// What no session has used for so long is given back, and only now and then: whatever is decided in the VPC is decided again then. Where nobody has the
/// address, and where room is short, it is given back after a sweep.
const IDLE: Duration = Duration::from_secs(600);
/// Sweeps from one such time to the next.
const SWEEPS: u64 = 20;
/// What one VPC may have asked for on this host, so that one whose guests try every address takes nothing from others.
const OF_VPC: usize = 16_384;
/// MACs among it: those who send multicasts are asked for by theirs, and take no room from those who are spoken to.
const MACS: usize = OF_VPC / 4;
/// With more than so much of it, a VPC's room is short.
const SHORT_OF_VPC: usize = OF_VPC / 4 * 3;
/// Above so much of all that the controller keeps for a host, room is short, and a VPC has less.
const SHORT: usize = 49_152;

/// Follows what packets ask for, until the daemon stops.
pub(super) async fn follow(host: Arc<Host>, agent: Arc<AgentHandle>) {
    let notify = Arc::<Notify>::default();
    let woken = Arc::clone(&notify);
    let asks = Arc::clone(&host.shared.asks);
    asks.set_waker(move || woken.notify_one());
    let common = Arc::clone(host.inner().workers.common());
    let asking = async {
        loop {
            notify.notified().await;
            ask(&asks, &common, &agent);
        }
    };
    tokio::join!(asking, sweep(&host, &common, &agent));
}

/// Gives back what is no longer used.
async fn sweep(host: &Host, common: &Arc<Common>, agent: &AgentHandle) {
    let mut used = Used::default();
    let mut interval = tokio::time::interval(SWEEP);
    for count in 0u64.. {
        interval.tick().await;
        let Some(state) = agent.status().in_force.map(|known| known.state) else {
            continue;
        };
        let sessions = Arc::clone(&host.shared.sessions);
        let common = Arc::clone(common);
        let swept = tokio::task::spawn_blocking(move || {
            let snapshot = common.snapshot.load_full();
            let sessions = (&*sessions, common.now());
            let all = count % SWEEPS == 0;
            let unwanted = used.sweep(&state, &snapshot, sessions, (Instant::now(), all));
            (used, unwanted)
        });
        let Ok((kept, unwanted)) = swept.await else {
            return;
        };
        used = kept;
        if !unwanted.is_empty() {
            agent.learn(Learn {
                unwanted,
                ..Learn::default()
            });
        }
    }
}

/// Asks the controller for what packets wait for.
fn ask(asks: &Asks, common: &Common, agent: &AgentHandle) {
    let wanted = asks.take(common.now());
    let held = agent.status().in_force.map(|known| known.held_back);
    let held = held.iter().flat_map(|held| held.iter());
    // What is said of a VPC that is held back does not come into force.
    let held: HashSet<&str> = held
        .filter_map(|held| held.object.as_ref())
        .filter(|key| key.kind == Kind::Vpc.name())
        .map(|key| &*key.id)
        .collect();
    let mut wanted = by_vpc(&common.snapshot.load(), wanted);
    wanted.retain(|of_vpc| !held.contains(&*of_vpc.vpc));
    if !wanted.is_empty() {
        agent.learn(Learn {
            wanted,
            ..Learn::default()
        });
    }
}

/// What is wanted, by the ids of VPCs. Of one that has asked for as much as it may nothing more is.
fn by_vpc(snapshot: &Snapshot, wanted: Vec<Wanted>) -> Vec<VpcAddresses> {
    let learned = snapshot.vpcs.iter().filter_map(|vpc| vpc.learned.as_ref());
    let total: usize = learned.map(Learned::len).sum();
    let most = if total > SHORT { OF_VPC / 4 } else { OF_VPC };
    let mut all: BTreeMap<Vni, Vec<String>> = BTreeMap::new();
    for (vni, asked) in wanted {
        let place = snapshot.vpc_by_vni.get(&vni);
        let vpc = place.and_then(|place| snapshot.vpcs.get(*place));
        let Some(learned) = vpc.and_then(|vpc| vpc.learned.as_ref()) else {
            continue;
        };
        let new = all.entry(vni).or_default();
        let (text, has_room) = match asked {
            Asked::Address(address) => (word_address(address).to_string(), true),
            Asked::Mac(mac) => (mac.to_string(), learned.macs() + new.len() < MACS),
        };
        if has_room && learned.len() + new.len() < most {
            new.push(text);
        }
    }
    let all = all.into_iter().filter_map(|(vni, addresses)| {
        let place = snapshot.vpc_by_vni.get(&vni)?;
        let vpc = snapshot.vpcs.get(*place)?.id.clone();
        (!addresses.is_empty()).then_some(VpcAddresses { vpc, addresses })
    });
    all.collect()
}

/// When what was asked for was used last, or was told.
#[derive(Debug, Default)]
struct Used(HashMap<(String, String), Instant>);

impl Used {
    /// What of all that was asked for is no longer used; unless it is `all`, only of what is given back soon.
    fn sweep(
        &mut self,
        state: &State,
        snapshot: &Snapshot,
        (sessions, at): (&SessionTable, u32),
        (now, all): (Instant, bool),
    ) -> Vec<VpcAddresses> {
        let learned = state.of_kind(Kind::LearnedAddress);
        let learned: Vec<_> = learned
            .filter_map(|object| match object {
                Object::LearnedAddress(learned) => Some(learned),
                _ => None,
            })
            .collect();
        let place = |(i, learned): (usize, &&LearnedAddress)| {
            let vpc = snapshot.vpcs.iter().find(|vpc| vpc.id == learned.vpc)?;
            Some(((vpc.vni, named(&learned.address)?), i))
        };
        let by_name: HashMap<(Vni, Asked), usize> =
            learned.iter().enumerate().filter_map(place).collect();
        // Which of them uses of an address are uses of: that address, and the MAC of the port that has it.
        let mut places: HashMap<(Vni, u128), Vec<usize>> = HashMap::new();
        for ((vni, asked), place) in &by_name {
            let address = match asked {
                Asked::Address(address) => *address,
                Asked::Mac(mac) => link_local(*mac),
            };
            places.entry((*vni, address)).or_default().push(*place);
        }
        for vpc in snapshot.vpcs.iter().filter(|vpc| vpc.learned.is_some()) {
            for (address, endpoint) in vpc.by_address.iter() {
                if let Some(place) = by_name.get(&(vpc.vni, Asked::Mac(endpoint.mac))) {
                    places.entry((vpc.vni, *address)).or_default().push(*place);
                }
            }
        }
        let mut is_used = vec![false; learned.len()];
        if !places.is_empty() {
            let mut see = |vni, address| {
                for place in places.get(&(vni, address)).into_iter().flatten() {
                    is_used[*place] = true;
                }
            };
            sessions.each(at, |session| {
                let sides = [Some((session.vni, session.flow)), session.translated];
                for (vni, flow) in sides.into_iter().flatten() {
                    see(vni, flow.source);
                    see(vni, flow.destination);
                }
            });
            // A mapping that has no session now may get one.
            for (mapping, _) in sessions.mappings().list(usize::MAX) {
                for vpc in snapshot.vpcs.iter().filter(|vpc| vpc.learned.is_some()) {
                    see(vpc.vni, mapping.inside.address);
                }
            }
        }
        let is_short = learned.len() > SHORT;
        let before = std::mem::take(&mut self.0);
        let mut unwanted: BTreeMap<&str, Vec<String>> = BTreeMap::new();
        for (learned, is_used) in learned.iter().zip(is_used) {
            let key = (learned.vpc.clone(), learned.address.clone());
            let last = before.get(&key).filter(|_| !is_used).copied();
            let vpc = snapshot.vpcs.iter().find(|vpc| vpc.id == learned.vpc);
            let is_short = is_short
                || vpc.is_some_and(|vpc| {
                    let known = vpc.learned.as_ref();
                    known.is_some_and(|it| it.len() > SHORT_OF_VPC || it.macs() > MACS / 4 * 3)
                });
            let is_kept = !is_short && is_somebodys(snapshot, learned);
            let patience = if is_kept { IDLE } else { SWEEP };
            let is_idle = last.is_some_and(|last| now.duration_since(last) >= patience);
            if is_idle && (all || !is_kept) {
                let addresses = unwanted.entry(&learned.vpc).or_default();
                addresses.push(learned.address.clone());
            }
            // One that the controller does not take back for now is looked at again.
            self.0.insert(key, last.unwrap_or(now));
        }
        let unwanted = unwanted.into_iter();
        unwanted
            .map(|(vpc, addresses)| VpcAddresses {
                vpc: vpc.to_owned(),
                addresses,
            })
            .collect()
    }
}

/// An address or a MAC.
fn named(text: &str) -> Option<Asked> {
    let address = text.parse::<IpAddr>().ok();
    let address = address.map(|address| Asked::Address(address_word(address)));
    address.or_else(|| text.parse::<Mac>().ok().map(Asked::Mac))
}

/// Whether a port has it.
fn is_somebodys(snapshot: &Snapshot, learned: &LearnedAddress) -> bool {
    let mut vpcs = snapshot.vpcs.iter();
    let vpc = vpcs.find(|vpc| vpc.id == learned.vpc);
    match named(&learned.address) {
        Some(Asked::Address(address)) => vpc.is_some_and(|it| it.by_address.contains_key(&address)),
        Some(Asked::Mac(mac)) => vpc.is_some_and(|it| it.by_mac.contains_key(&mac)),
        None => false,
    }
}
