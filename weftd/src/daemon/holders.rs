//! Which ports of this host hold virtual addresses (services, "Virtual addresses that move"): what ports announce that workers have left for it comes in, and other
//! hosts are told by way of the controller (decision 020), which tells this one, too: packets go by the state in force alone.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use weft_dataplane::packet::DropReason;
use weft_dataplane::packet::parse::word_address;
use weft_dataplane::pipeline::gateway;
use weft_dataplane::worker::service::PuntQueue;
use weft_proto::state::{Change, Kind, Object, State};
use weft_proto::v1::{AddressHolder, Port};

use super::host::Host;
use crate::agent::{AgentHandle, now_ms};

/// Announcements that may wait, of all ports together.
pub(super) const ANNOUNCEMENTS: usize = 1024;
/// Announcements that are taken in before others are told, and get a turn.
const BATCH: usize = 256;
/// Addresses that ports of this host may hold, and one port: a port that takes one over from another is not held up by what others hold here.
const HELD: usize = 4096;
const OF_PORT: usize = 256;
/// What a VPC's ports here may change at once of who holds what, and how long until one more may be: each change is work for every host of the VPC.
const BURST: u32 = 128;
const EACH: Duration = Duration::from_millis(500);
/// What was told and has not come back is told again after so long.
const AGAIN_MS: u64 = 1000;
/// An address may move so often within this time. Where it is then it stays until the first of these moves is longer ago.
const MOVES: usize = 6;
const WITHIN: Duration = Duration::from_secs(60);
/// Addresses whose moves are remembered.
const REMEMBERED: usize = 65_536;

/// Hears ports, until the daemon stops.
pub(super) async fn follow(host: Arc<Host>, agent: Arc<AgentHandle>) {
    let mut states = agent.watch();
    let mut holders = Holders::new(host.id.clone());
    // What is in force already, from a file or the last run.
    states.mark_changed();
    loop {
        let has_news = tokio::select! {
            () = host.announcements.arrival() => hear(&host, &host.announcements, &mut holders),
            changed = states.changed() => {
                if changed.is_err() {
                    return;
                }
                let in_force = states.borrow_and_update().in_force.clone();
                in_force.is_some_and(|it| holders.follow(&it.effective, Instant::now()))
            }
        };
        if has_news {
            let own = holders.own.values().cloned().map(Object::AddressHolder);
            agent.set_findings(Kind::AddressHolder, own);
        }
        tokio::task::yield_now().await;
    }
}

/// Takes in announcements that wait; whether other hosts are told something new.
fn hear(host: &Host, queue: &PuntQueue, holders: &mut Holders) -> bool {
    let snapshot = host.injector.snapshot();
    let mut has_news = false;
    for _ in 0..BATCH {
        let Some((index, packet)) = queue.take() else {
            break;
        };
        let frame = host.injector.read(packet);
        let port = snapshot.port(index);
        let Some((port, (address, mac))) = port.zip(gateway::announced(&frame)) else {
            continue;
        };
        let said = (word_address(address), mac.to_string());
        match holders.hear(&port.id, said, Instant::now()) {
            Ok(is_news) => has_news |= is_news,
            Err(reason) => host.injector.count_drop(index, reason),
        }
    }
    has_news
}

/// What ports of this host hold, and what is known of what others do.
#[derive(Debug, Default)]
struct Holders {
    host: String,
    /// The state in force.
    state: State,
    /// Whether there is one.
    is_started: bool,
    /// By the ids of what is told.
    own: BTreeMap<String, AddressHolder>,
    /// Of addresses that have moved lately.
    moves: HashMap<String, Moves>,
    /// Until when the changes of a VPC are paid for: each takes [`EACH`], up to [`BURST`] in advance.
    paid: HashMap<String, Instant>,
}

/// When an address has moved.
#[derive(Debug, Default)]
struct Moves {
    times: VecDeque<Instant>,
    /// When it was said last that this is too often.
    said: Option<Instant>,
}

fn is_recent(at: Instant, now: Instant) -> bool {
    now.duration_since(at) < WITHIN
}

fn holder<'s>(state: &'s State, id: &str) -> Option<&'s AddressHolder> {
    match state.find(Kind::AddressHolder, id) {
        Some(Object::AddressHolder(holder)) => Some(holder),
        _ => None,
    }
}

/// The port, if it may hold an address by a MAC that is no port's own.
fn may_hold<'s>(state: &'s State, port: &str, (address, mac): (IpAddr, &str)) -> Option<&'s Port> {
    let Some(Object::Port(port)) = state.find(Kind::Port, port) else {
        return None;
    };
    let Some(Object::Subnet(subnet)) = state.find(Kind::Subnet, &port.subnet) else {
        return None;
    };
    let is_free = state.port_with_address(&port.vpc, address).is_none();
    (is_free && port.may_hold(subnet, address, mac)).then_some(port)
}

impl Holders {
    fn new(host: String) -> Self {
        Self {
            host,
            ..Self::default()
        }
    }

    /// Follows a state; whether other hosts are told something else since. What the first one says of this host's ports they hold: a weftd that starts again
    /// has not heard their announcements.
    fn follow(&mut self, state: &State, now: Instant) -> bool {
        let before = std::mem::replace(&mut self.state, state.clone());
        let changes = before.changes_to(state);
        let is_first = !std::mem::replace(&mut self.is_started, true);
        let mut has_news = is_first;
        for change in &changes {
            match (change.old, change.new) {
                (_, Some(Object::AddressHolder(new))) => {
                    has_news |= self.heed(new, is_first, now);
                }
                (Some(Object::AddressHolder(gone)), None) => {
                    has_news |= self.miss(&gone.id);
                }
                _ => {}
            }
        }
        if is_first {
            let all = state.of_kind(Kind::AddressHolder);
            let own = all.filter_map(|object| match object {
                Object::AddressHolder(it) => Some(it),
                _ => None,
            });
            let own = own.filter(|it| is_right(state, &self.host, it));
            self.own = own.map(|it| (it.id.clone(), it.clone())).collect();
        }
        let concerned: HashSet<Cow<'_, str>> = changes.iter().flat_map(names).collect();
        let (host, count) = (&self.host, self.own.len());
        self.own.retain(|id, held| {
            let names = [&**id, &held.port, &held.subnet];
            let is_concerned = names.iter().any(|name| concerned.contains(*name));
            !is_concerned || is_right(state, host, held)
        });
        has_news || self.own.len() != count
    }

    /// What was told of an address is told no more, for whatever reason: if it is held here it is said again, or given up if it may not be. Whether it was held
    /// here.
    fn miss(&mut self, id: &str) -> bool {
        let Some(own) = self.own.get_mut(id) else {
            return false;
        };
        if is_right(&self.state, &self.host, own) {
            own.since_ms = now_ms().max(own.since_ms.saturating_add(1));
        } else {
            self.own.remove(id);
        }
        true
    }

    /// Whether a VPC may change once more who holds what.
    fn pay(&mut self, vpc: &str, now: Instant) -> Result<(), DropReason> {
        self.paid.retain(|_, until| *until > now);
        let until = self.paid.get(vpc).copied().unwrap_or(now).max(now);
        if until > now + EACH * BURST {
            return Err(DropReason::AnnouncementLimit);
        }
        self.paid.insert(vpc.to_owned(), until + EACH);
        Ok(())
    }

    /// Gives up an address that is somebody else's since; whether it had it. `is_first`: in the first state, of which nothing has moved.
    fn heed(&mut self, told: &AddressHolder, is_first: bool, now: Instant) -> bool {
        let own = self.own.get(&told.id);
        if told.host == self.host {
            return false;
        }
        let is_outdone = own.is_some_and(|own| !own.outdoes(told));
        if is_outdone {
            self.own.remove(&told.id);
        }
        if !is_first {
            self.note_move(&told.id, now);
        }
        is_outdone
    }

    /// Notes that an address moves.
    fn note_move(&mut self, id: &str, now: Instant) {
        if self.moves.len() >= REMEMBERED {
            self.moves
                .retain(|_, it| it.times.back().is_some_and(|at| is_recent(*at, now)));
        }
        if self.moves.len() >= REMEMBERED && !self.moves.contains_key(id) {
            return;
        }
        let moves = self.moves.entry(id.to_owned()).or_default();
        moves.times.retain(|at| is_recent(*at, now));
        moves.times.push_back(now);
    }

    fn is_contested(&self, id: &str, now: Instant) -> bool {
        let times = self.moves.get(id).map(|it| &it.times);
        let recent = times.into_iter().flatten();
        recent.filter(|at| is_recent(**at, now)).count() >= MOVES
    }

    /// Says that an address moves too often, unless it was said of it lately.
    fn say_contested(&mut self, known: &str, new: &AddressHolder, now: Instant) {
        let moves = self.moves.entry(new.id.clone()).or_default();
        if moves.said.is_some_and(|at| is_recent(at, now)) {
            return;
        }
        moves.said = Some(now);
        tracing::warn!(
            vpc = new.vpc,
            address = new.address,
            holder = known,
            claimant = new.port,
            "ports announce an address in turn, again and again: it stays where it is"
        );
    }

    /// Takes in what a port announces; whether other hosts are told something else since.
    ///
    /// # Errors
    /// The address moves too often, or too many are held here.
    fn hear(
        &mut self,
        port: &str,
        (address, mac): (IpAddr, String),
        now: Instant,
    ) -> Result<bool, DropReason> {
        // A worker judged by a snapshot that may be older than this.
        let Some(port) = may_hold(&self.state, port, (address, &mac)) else {
            return Ok(false);
        };
        let mut new = AddressHolder {
            vpc: port.vpc.clone(),
            address: address.to_string(),
            port: port.id.clone(),
            subnet: port.subnet.clone(),
            host: self.host.clone(),
            mac,
            moves: 1,
            since_ms: now_ms(),
            ..AddressHolder::default()
        };
        new.id = new.own_id();
        let told = holder(&self.state, &new.id);
        let own = self.own.get(&new.id);
        // What was announced last may not have come back yet.
        let known = match (own, told) {
            (Some(own), Some(told)) if told.outdoes(own) => Some(told),
            (own, told) => own.or(told),
        };
        if let Some(known) = known {
            let is_same =
                (&known.port, &known.mac, &known.host) == (&new.port, &new.mac, &new.host);
            let is_lost = told.is_none() && known.since_ms.saturating_add(AGAIN_MS) < new.since_ms;
            if is_same && !is_lost {
                return Ok(false);
            }
            if !is_same && self.is_contested(&new.id, now) {
                let known = known.port.clone();
                self.say_contested(&known, &new, now);
                return Err(DropReason::AddressContested);
            }
            new.moves = known.moves.saturating_add(u64::from(!is_same));
            new.since_ms = new.since_ms.max(known.since_ms.saturating_add(1));
        }
        let is_known = known.is_some();
        let of_port = self.own.values().filter(|it| it.port == new.port).count();
        if own.is_none() && (of_port >= OF_PORT || !is_known && self.own.len() >= HELD) {
            return Err(DropReason::AnnouncementLimit);
        }
        let vpc = new.vpc.clone();
        self.pay(&vpc, now)?;
        if new.moves > 1 {
            self.note_move(&new.id, now);
        }
        self.own.insert(new.id.clone(), new);
        Ok(true)
    }
}

/// What of a change may end that an address is held: the ids of a port and a subnet, and of the holders of addresses that a port has for itself.
fn names<'s>(change: &Change<'s>) -> Vec<Cow<'s, str>> {
    match (change.old, change.new) {
        (old, Some(Object::Port(new))) => {
            let own = new.addresses.iter();
            let own = own.map(|address| Cow::Owned(AddressHolder::id_of(&new.vpc, address)));
            let port = Cow::Borrowed(old.map_or(&*new.id, Object::id));
            std::iter::once(port).chain(own).collect()
        }
        (Some(Object::Port(_) | Object::Subnet(_)), _) => change
            .old
            .map(|it| Cow::Borrowed(it.id()))
            .into_iter()
            .collect(),
        _ => Vec::new(),
    }
}

/// Whether the port still may hold what it holds, on this host.
fn is_right(state: &State, host: &str, held: &AddressHolder) -> bool {
    let address = held.address.parse::<IpAddr>().ok();
    let port = address.and_then(|it| may_hold(state, &held.port, (it, &held.mac)));
    port.is_some_and(|port| port.host == host && port.vpc == held.vpc && port.subnet == held.subnet)
}

#[cfg(test)]
mod tests {
    use super::*;
    use weft_proto::v1::Objects;

    const INTENT: &str = r#"
hosts: [{id: h1, vteps: [192.0.2.1]}, {id: h2, vteps: [192.0.2.2]}]
vpcs: [{id: blue, vni: 1}]
subnets: [{id: s, vpc: blue, cidrs: [10.0.0.0/24]}]
ports:
- {id: p1, vpc: blue, subnet: s, mac: "02:00:00:00:00:01", addresses: [10.0.0.11], host: h1, allowed_pairs: [{cidr: 10.0.0.99/32}]}
- {id: p2, vpc: blue, subnet: s, mac: "02:00:00:00:00:02", addresses: [10.0.0.12], host: h1, allowed_pairs: [{cidr: 10.0.0.99/32}]}
- {id: p3, vpc: blue, subnet: s, mac: "02:00:00:00:00:03", addresses: [10.0.0.13], host: h2, allowed_pairs: [{cidr: 10.0.0.99/32}]}
- {id: p4, vpc: blue, subnet: s, mac: "02:00:00:00:00:04", addresses: [10.0.0.14], host: h1, allowed_pairs: [{cidr: 0.0.0.0/0}]}
"#;
    const ID: &str = "blue|10.0.0.99";

    fn objects() -> Objects {
        serde_yaml_ng::from_str(INTENT).unwrap()
    }

    fn state(change: impl FnOnce(&mut Objects)) -> State {
        let mut objects = objects();
        change(&mut objects);
        State::from_objects(objects).unwrap()
    }

    fn of(host: &str, port: usize, moves: u64) -> AddressHolder {
        AddressHolder {
            id: ID.into(),
            vpc: "blue".into(),
            address: "10.0.0.99".into(),
            port: format!("p{port}"),
            subnet: "s".into(),
            host: host.into(),
            mac: format!("02:00:00:00:00:0{port}"),
            moves,
            // Later than whatever the tests announce, or long ago.
            since_ms: if moves > 2 { u64::MAX / 2 + moves } else { 1 },
        }
    }

    fn started(state: &State) -> Holders {
        let mut holders = Holders::new("h1".into());
        assert!(holders.follow(state, Instant::now()));
        holders
    }

    fn announce(holders: &mut Holders, port: usize, now: Instant) -> Result<bool, DropReason> {
        let said = (
            "10.0.0.99".parse().unwrap(),
            format!("02:00:00:00:00:0{port}"),
        );
        holders.hear(&format!("p{port}"), said, now)
    }

    fn held_by(holders: &Holders) -> Option<(&str, u64)> {
        holders.own.get(ID).map(|it| (&*it.port, it.moves))
    }

    #[test]
    fn who_announces_an_address_last_holds_it_on_all_hosts() {
        let mut holders = started(&state(|_| {}));
        let now = Instant::now();
        assert_eq!(announce(&mut holders, 1, now), Ok(true));
        assert_eq!(announce(&mut holders, 1, now), Ok(false), "no news");
        assert_eq!(held_by(&holders), Some(("p1", 1)));
        assert_eq!(announce(&mut holders, 2, now), Ok(true));
        assert_eq!(held_by(&holders), Some(("p2", 2)));
        // Another host's port has it since; what it announced before that is no news.
        let stale = state(|o| o.address_holders.push(of("h2", 3, 1)));
        assert!(!holders.follow(&stale, now));
        assert_eq!(held_by(&holders), Some(("p2", 2)));
        let moved = state(|o| o.address_holders.push(of("h2", 3, 3)));
        assert!(holders.follow(&moved, now));
        assert_eq!(held_by(&holders), None);
        assert_eq!(announce(&mut holders, 1, now), Ok(true));
        assert_eq!(held_by(&holders), Some(("p1", 4)));
    }

    #[test]
    fn what_a_port_may_not_hold_it_does_not() {
        let mut holders = started(&state(|_| {}));
        let now = Instant::now();
        let mut hear = |port: &str, address: &str, mac: usize| {
            let said = (address.parse().unwrap(), format!("02:00:00:00:00:0{mac}"));
            holders.hear(port, said, now)
        };
        assert_eq!(hear("p1", "10.0.0.98", 1), Ok(false), "no pair of it");
        assert_eq!(hear("p1", "10.0.0.99", 2), Ok(false), "another MAC");
        assert_eq!(hear("p4", "10.0.0.11", 4), Ok(false), "a port's own");
        assert_eq!(hear("p4", "10.0.9.9", 4), Ok(false), "not in its subnet");
        assert_eq!(hear("p4", "10.0.0.50", 4), Ok(true));
    }

    #[test]
    fn it_is_held_until_the_port_may_hold_it_no_more_and_over_a_restart() {
        let mut holders = started(&state(|_| {}));
        let now = Instant::now();
        announce(&mut holders, 1, now).unwrap();
        // Another port changes.
        assert!(!holders.follow(&state(|o| o.ports[1].allowed_pairs.clear()), now));
        assert!(held_by(&holders).is_some());
        assert!(holders.follow(&state(|o| o.ports[0].allowed_pairs.clear()), now));
        assert_eq!(held_by(&holders), None);
        let known = state(|o| o.address_holders.push(of("h1", 1, 7)));
        assert_eq!(held_by(&started(&known)), Some(("p1", 7)));
        let past = state(|o| {
            o.address_holders.push(of("h1", 1, 7));
            o.ports.remove(0);
        });
        assert_eq!(held_by(&started(&past)), None);
    }

    #[test]
    fn what_is_told_no_more_is_said_again_or_given_up() {
        let mut holders = started(&state(|_| {}));
        let now = Instant::now();
        announce(&mut holders, 1, now).unwrap();
        let held = holders.own[ID].clone();
        let told = state(|o| o.address_holders.push(held.clone()));
        assert!(!holders.follow(&told, now));
        // The controller had reasons that have passed since.
        assert!(holders.follow(&state(|_| {}), now));
        assert!(holders.own[ID].outdoes(&held));
        // Another port has it for itself.
        assert!(!holders.follow(&told, now));
        let taken = state(|o| {
            o.address_holders.push(held.clone());
            o.ports[2].addresses = vec!["10.0.0.99".into()];
        });
        assert!(holders.follow(&taken, now));
        assert_eq!(held_by(&holders), None);
    }

    #[test]
    fn a_vpc_changes_only_so_much_so_often() {
        let wide = state(|o| {
            for port in &mut o.ports {
                port.allowed_pairs[0].cidr = "10.0.0.0/8".into();
            }
        });
        let mut holders = started(&wide);
        let now = Instant::now();
        let mut hear = |number: u32, now| {
            let said = (
                IpAddr::from([10, 0, 0, 100 + number as u8]),
                "02:00:00:00:00:01".to_owned(),
            );
            holders.hear("p1", said, now)
        };
        let known = (0..=BURST)
            .filter(|number| hear(*number, now).is_ok())
            .count();
        assert_eq!(known, BURST as usize + 1);
        assert_eq!(hear(BURST + 1, now), Err(DropReason::AnnouncementLimit));
        assert_eq!(hear(BURST + 1, now + EACH), Ok(true));
    }

    #[test]
    fn two_that_fight_are_limited() {
        let mut holders = started(&state(|_| {}));
        let begun = Instant::now();
        announce(&mut holders, 1, begun).unwrap();
        let mut moves = 0;
        for second in 1..=300 {
            let now = begun + Duration::from_secs(second);
            let port = if held_by(&holders).unwrap().0 == "p1" {
                2
            } else {
                1
            };
            match announce(&mut holders, port, now) {
                Ok(is_news) => moves += usize::from(is_news),
                Err(reason) => assert_eq!(reason, DropReason::AddressContested),
            }
        }
        assert!((5 * MOVES - 5..=5 * MOVES).contains(&moves), "{moves}");
        // Moves between other hosts count, too.
        let mut holders = started(&state(|_| {}));
        for number in 1..=MOVES as u64 {
            let told = state(|o| o.address_holders.push(of("h2", 3, number)));
            holders.follow(&told, begun);
        }
        let refused = announce(&mut holders, 1, begun);
        assert_eq!(refused, Err(DropReason::AddressContested));
    }
}
