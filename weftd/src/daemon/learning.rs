//! Ports that are learned on demand (decision 018): what packets ask for goes to the controller, and what they no longer use is given back.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::Notify;
use weft_dataplane::numbers::Vni;
use weft_dataplane::packet::Mac;
use weft_dataplane::packet::parse::{address_word, word_address};
use weft_dataplane::pipeline::learning::{Asks, Wanted};
use weft_dataplane::session::SessionTable;
use weft_dataplane::snapshot::{Asked, Snapshot};
use weft_dataplane::worker::Common;
use weft_proto::state::{Kind, Object, State};
use weft_proto::v1::{Learn, VpcAddresses};

use super::host::Host;
use crate::agent::AgentHandle;

/// How often it is looked for what is no longer used.
const SWEEP: Duration = Duration::from_secs(30);
/// What no session has used for so long is given back; where nobody has the address, or room is short, after a sweep.
const IDLE: Duration = Duration::from_secs(600);
/// What one VPC may have asked for on this host, so that one whose guests try every address takes nothing from others.
const OF_VPC: usize = 16_384;
/// Above so much of all that the controller keeps for a host, room is short.
const SHORT: usize = 49_152;

/// Follows what packets ask for, until the daemon stops.
pub(super) async fn follow(host: Arc<Host>, agent: Arc<AgentHandle>) {
    let notify = Arc::<Notify>::default();
    let woken = Arc::clone(&notify);
    let asks = Arc::clone(&host.shared.asks);
    asks.set_waker(move || woken.notify_one());
    let common = Arc::clone(host.inner().workers.common());
    let mut used = Used::default();
    let mut sweep = tokio::time::interval(SWEEP);
    loop {
        tokio::select! {
            () = notify.notified() => ask(&asks, &common, &agent),
            _ = sweep.tick() => {
                // Forgets wishes of long ago, too.
                ask(&asks, &common, &agent);
                let Some(state) = agent.status().in_force.map(|known| known.state) else {
                    continue;
                };
                let sessions = Arc::clone(&host.shared.sessions);
                let snapshot = common.snapshot.load_full();
                let now = common.now();
                let swept = tokio::task::spawn_blocking(move || {
                    let unwanted = used.sweep(&state, &snapshot, (&sessions, now), Instant::now());
                    (used, unwanted)
                });
                let Ok((kept, unwanted)) = swept.await else {
                    return;
                };
                used = kept;
                if !unwanted.is_empty() {
                    agent.learn(Learn { unwanted, ..Learn::default() });
                }
            }
        }
    }
}

/// Asks the controller for what packets wait for.
fn ask(asks: &Asks, common: &Common, agent: &AgentHandle) {
    let wanted = asks.take(common.now());
    if wanted.is_empty() {
        return;
    }
    let wanted = by_vpc(&common.snapshot.load(), wanted);
    agent.learn(Learn {
        wanted,
        ..Learn::default()
    });
}

/// What is wanted, by the ids of VPCs. Of one that has asked for as much as it may nothing more is.
fn by_vpc(snapshot: &Snapshot, wanted: Vec<Wanted>) -> Vec<VpcAddresses> {
    let mut all: BTreeMap<Vni, Vec<String>> = BTreeMap::new();
    for (vni, asked) in wanted {
        all.entry(vni).or_default().push(match asked {
            Asked::Address(address) => word_address(address).to_string(),
            Asked::Mac(mac) => mac.to_string(),
        });
    }
    let all = all.into_iter().filter_map(|(vni, mut addresses)| {
        let place = snapshot.vpc_by_vni.get(&vni)?;
        let vpc = snapshot.vpcs.get(*place)?;
        let known = vpc.learned.as_ref()?.len();
        addresses.truncate(OF_VPC.saturating_sub(known));
        (!addresses.is_empty()).then(|| VpcAddresses {
            vpc: vpc.id.clone(),
            addresses,
        })
    });
    all.collect()
}

/// When what was asked for was used last, or was told.
#[derive(Debug, Default)]
struct Used(HashMap<(String, String), Instant>);

impl Used {
    /// What of all that was asked for is no longer used.
    fn sweep(
        &mut self,
        state: &State,
        snapshot: &Snapshot,
        (sessions, at): (&SessionTable, u32),
        now: Instant,
    ) -> Vec<VpcAddresses> {
        let learned = state.of_kind(Kind::LearnedAddress);
        let learned: Vec<_> = learned
            .filter_map(|object| match object {
                Object::LearnedAddress(learned) => Some(learned),
                _ => None,
            })
            .collect();
        // Of those that are addresses, which they are.
        let mut places: HashMap<(Vni, u128), usize> = HashMap::new();
        for (i, learned) in learned.iter().enumerate() {
            let vpc = snapshot.vpcs.iter().find(|vpc| vpc.id == learned.vpc);
            if let (Some(vpc), Ok(address)) = (vpc, learned.address.parse::<IpAddr>()) {
                places.insert((vpc.vni, address_word(address)), i);
            }
        }
        let mut is_used = vec![false; learned.len()];
        if !places.is_empty() {
            let mut see = |vni, address| {
                if let Some(place) = places.get(&(vni, address)) {
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
            let patience = if is_short || !is_somebodys(snapshot, learned) {
                SWEEP
            } else {
                IDLE
            };
            if last.is_some_and(|last| now.duration_since(last) >= patience) {
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

/// Whether a port has what was asked for.
fn is_somebodys(snapshot: &Snapshot, learned: &weft_proto::v1::LearnedAddress) -> bool {
    let vpc = snapshot.vpcs.iter().find(|vpc| vpc.id == learned.vpc);
    vpc.is_some_and(|vpc| {
        let text = &learned.address;
        let address = text.parse::<IpAddr>().ok().map(address_word);
        let mac = text.parse::<Mac>().ok();
        address.is_some_and(|address| vpc.by_address.contains_key(&address))
            || mac.is_some_and(|mac| vpc.by_mac.contains_key(&mac))
    })
}
