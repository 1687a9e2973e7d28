//! What the ports of this host have joined, as other hosts are told it by way of the controller: by VPC, and of a VPC only so much, and so often.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use weft_dataplane::multicast::{Filter, Querier};
use weft_dataplane::numbers::Vni;
use weft_dataplane::packet::parse::word_address;
use weft_dataplane::snapshot::Snapshot;
use weft_proto::state::Object;
use weft_proto::v1::MulticastListener;

/// What is told of a VPC at most, and of all together. Of a VPC with more nothing is told, and this host gets a copy of all that is sent in it.
const OF_VPC: usize = 2048;
const OF_HOST: usize = 8192;
/// How long after a VPC is new here it is first told of, in milliseconds: until its ports have answered twice what they have joined.
const FIRST: u64 = 2600;
/// Changes of a VPC are told together that come within this time.
const TOGETHER: u64 = 20;
/// What changes of a VPC may be told at once, and how long until one more may be. Each is work for every host of the VPC.
const BURST: u64 = 16;
const EACH: u64 = 500;
/// As much as so many listeners more or less counts as one change.
const LISTENERS: usize = 32;
/// Of a VPC of which too much had to be told it is not tried again before this has passed.
const REST: u64 = 60_000;

#[derive(Debug)]
struct OfVpc {
    id: String,
    /// From when on it is told.
    starts: u64,
    /// Telling is paid for with time: a change takes [`EACH`] of it, up to [`BURST`] in advance.
    paid_until: u64,
    /// When what has changed is told.
    due: Option<u64>,
    /// By group.
    listeners: BTreeMap<u128, Vec<MulticastListener>>,
    /// As it was told last; none: it is not.
    told: Option<BTreeMap<u128, Vec<MulticastListener>>>,
}

impl OfVpc {
    fn new(id: &str, now: u64) -> Self {
        Self {
            id: id.to_owned(),
            starts: now + FIRST,
            paid_until: 0,
            due: Some(now + FIRST),
            listeners: BTreeMap::new(),
            told: None,
        }
    }

    fn count(&self) -> usize {
        self.told
            .as_ref()
            .map_or(0, |told| told.values().map(Vec::len).sum())
    }

    /// Has what has changed be told as soon as it may be.
    fn plan(&mut self, now: u64) {
        let affordable = self.paid_until.saturating_sub(BURST * EACH);
        let at = (now + TOGETHER).max(affordable).max(self.starts);
        self.due.get_or_insert(at);
    }

    fn set(&mut self, group: u128, told: &[MulticastListener], now: u64) {
        let before = match told.is_empty() {
            true => self.listeners.remove(&group),
            false => self.listeners.insert(group, told.to_vec()),
        };
        if before.unwrap_or_default() != told {
            self.plan(now);
        }
    }

    /// Pays for telling so many listeners more or less.
    fn pay(&mut self, listeners: usize, now: u64) {
        let changes = 1 + listeners / LISTENERS;
        self.paid_until = self.paid_until.max(now) + EACH * changes as u64;
    }
}

/// What is told.
#[derive(Debug, Default)]
pub(super) struct Telling {
    host: String,
    vpcs: BTreeMap<Vni, OfVpc>,
    /// Whether a VPC that was told of is gone.
    is_less: bool,
    /// Whether it was said that there is too much.
    is_said: bool,
}

fn listener(place: (&str, &str, &str), group: IpAddr, filter: &Filter) -> MulticastListener {
    let (exclude, sources) = match filter {
        Filter::Include(sources) => (false, sources),
        Filter::Exclude(sources) => (true, sources),
    };
    let sources: Vec<IpAddr> = sources.iter().map(|it| word_address(*it)).collect();
    MulticastListener::of(place, group, (exclude, &sources))
}

impl Telling {
    pub(super) fn new(host: String) -> Self {
        Self {
            host,
            // Whatever a weftd before this one told holds no more.
            is_less: true,
            ..Self::default()
        }
    }

    /// Follows which VPCs have ports here that are heard. Times are in milliseconds.
    pub(super) fn follow(&mut self, snapshot: &Snapshot, querier: &Querier, now: u64) {
        let snooping = snapshot.subnets.iter().filter(|subnet| subnet.snoops);
        let with_ports = snooping.filter(|subnet| !subnet.ports.is_empty());
        let places: BTreeSet<usize> = with_ports.map(|subnet| subnet.vpc).collect();
        let vpcs = places.into_iter().filter_map(|at| snapshot.vpcs.get(at));
        let vpcs: BTreeMap<Vni, &str> = vpcs.map(|vpc| (vpc.vni, &*vpc.id)).collect();
        let is_less = &mut self.is_less;
        self.vpcs.retain(|vni, of_vpc| {
            let stays = vpcs.get(vni).is_some_and(|id| *id == of_vpc.id);
            *is_less |= !stays && of_vpc.told.is_some();
            stays
        });
        let mut new = BTreeSet::new();
        for (vni, id) in vpcs {
            self.vpcs.entry(vni).or_insert_with(|| {
                new.insert(vni);
                OfVpc::new(id, now)
            });
        }
        if !new.is_empty() {
            let groups = querier.groups().filter(|(vni, _)| new.contains(vni));
            self.hear(groups.collect(), querier, now);
        }
    }

    /// Takes up what the querier knows of groups in which something has changed.
    pub(super) fn hear(&mut self, groups: BTreeSet<(Vni, u128)>, querier: &Querier, now: u64) {
        for key in groups {
            let Some(of_vpc) = self.vpcs.get_mut(&key.0) else {
                continue;
            };
            let wanted = querier.wanted(key).into_iter();
            let told = wanted.map(|(subnet, filter)| {
                let place = (&*of_vpc.id, &*self.host, subnet);
                listener(place, word_address(key.1), &filter)
            });
            let told: Vec<MulticastListener> = told.collect();
            of_vpc.set(key.1, &told, now);
        }
    }

    /// When something is told next.
    pub(super) fn next(&self) -> Option<u64> {
        if self.is_less {
            return Some(0);
        }
        self.vpcs.values().filter_map(|of_vpc| of_vpc.due).min()
    }

    /// All that is told from now on, if that is not what it was.
    pub(super) fn tick(&mut self, now: u64) -> Option<Vec<Object>> {
        let mut has_changed = std::mem::take(&mut self.is_less);
        let mut others: usize = self.vpcs.values().map(OfVpc::count).sum();
        for of_vpc in self.vpcs.values_mut() {
            if of_vpc.due.is_none_or(|due| due > now) {
                continue;
            }
            of_vpc.due = None;
            others -= of_vpc.count();
            let count: usize = of_vpc.listeners.values().map(Vec::len).sum();
            let fits = count <= OF_VPC && others + count <= OF_HOST;
            if !fits && !std::mem::replace(&mut self.is_said, true) {
                let (vpc, most) = (&of_vpc.id, OF_VPC);
                tracing::warn!(
                    vpc,
                    count,
                    most,
                    "ports have joined more than other hosts are told: they send this host all multicast of the VPC"
                );
            }
            let next = fits.then(|| of_vpc.listeners.clone());
            if of_vpc.told != next {
                let before = of_vpc.count();
                of_vpc.told = next;
                of_vpc.pay(before.abs_diff(of_vpc.count()), now);
                has_changed = true;
            }
            if !fits {
                of_vpc.paid_until = now + BURST * EACH + REST;
            }
            others += of_vpc.count();
        }
        has_changed.then(|| self.all())
    }

    /// All that is told.
    pub(super) fn all(&self) -> Vec<Object> {
        let told = self.vpcs.values();
        let told = told.filter_map(|of_vpc| Some((of_vpc, of_vpc.told.as_ref()?)));
        let listeners = told.flat_map(|(of_vpc, told)| {
            let tells = MulticastListener::tells(&of_vpc.id, &self.host);
            std::iter::once(tells).chain(told.values().flatten().cloned())
        });
        listeners.map(Object::MulticastListener).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const VNI: Vni = Vni::OUTSIDE;

    fn telling() -> Telling {
        let mut telling = Telling::new("h1".into());
        // Nothing is known of what ports have joined.
        assert_eq!(
            (telling.next(), telling.tick(0)),
            (Some(0), Some(Vec::new()))
        );
        telling.vpcs.insert(VNI, OfVpc::new("blue", 0));
        telling
    }

    fn set(telling: &mut Telling, group: u128, joined: bool, now: u64) {
        let filter = Filter::Exclude([].into());
        let place = ("blue", "h1", "blue-a");
        let told = listener(place, word_address(0xff05 << 112 | group), &filter);
        let of_vpc = telling.vpcs.get_mut(&VNI).unwrap();
        let told = joined.then_some(told);
        of_vpc.set(group, told.as_slice(), now);
    }

    #[test]
    fn a_vpc_is_told_of_once_its_ports_have_answered_and_then_what_changes() {
        let mut telling = telling();
        set(&mut telling, 1, true, 100);
        assert_eq!(telling.tick(FIRST - 1), None);
        assert_eq!(telling.next(), Some(FIRST));
        assert_eq!(telling.tick(FIRST).unwrap().len(), 2);
        assert_eq!((telling.next(), telling.tick(FIRST + 1)), (None, None));
        set(&mut telling, 1, true, 5000);
        assert_eq!(telling.next(), None);
        set(&mut telling, 1, false, 5000);
        assert_eq!(telling.tick(5000), None);
        // Without listeners it is still told that none are there.
        let told = telling.tick(5000 + TOGETHER).unwrap();
        let tells = MulticastListener::tells("blue", "h1");
        assert_eq!(told, [Object::MulticastListener(tells)]);
    }

    #[test]
    fn who_joins_and_leaves_all_the_time_is_told_of_less_often() {
        let mut telling = telling();
        let (mut times, start) = (Vec::new(), 60_000);
        for now in start..start + 20_000 {
            set(&mut telling, 1, now % 20 < 10, now);
            if telling.tick(now).is_some() {
                times.push(now - start);
            }
        }
        let early = times.iter().filter(|at| **at < 1000).count() as u64;
        assert!((BURST..=BURST + 4).contains(&early), "{early}");
        let all = times.len() as u64;
        assert!(
            (BURST + 20..=BURST + 20_000 / EACH + 1).contains(&all),
            "{all}"
        );
        // What is told in the end is what holds.
        set(&mut telling, 1, true, start + 20_000);
        let due = telling.next().unwrap();
        assert!(due <= start + 20_000 + EACH, "{due}");
        telling.tick(due);
        assert_eq!(telling.all().len(), 2);
    }

    #[test]
    fn of_a_vpc_with_too_much_nothing_is_told() {
        let mut telling = telling();
        for group in 0..=OF_VPC as u128 {
            set(&mut telling, group, true, 0);
        }
        assert_eq!(telling.tick(FIRST), None);
        set(&mut telling, 0, false, 10_000);
        // Not at once: back and forth would be much for all.
        let due = telling.next().unwrap();
        assert_eq!(due, FIRST + REST);
        let told = telling.tick(due).unwrap();
        assert_eq!(told.len(), OF_VPC + 1);
        set(&mut telling, 0, true, 200_000);
        let due = telling.next().unwrap();
        assert_eq!(telling.tick(due).unwrap(), []);
    }
}
