//! The state of one host: a part for each VPC that concerns it, the external networks that these name, and the hosts that they lead to.
//!
//! A state is made from the one before by the parts that changes since may concern, and shares the others; what all hosts of a VPC are told alike is in
//! all their states but once. The difference between two states takes as long as it is large.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use weft_proto::labels::Labels;
use weft_proto::persistent::PersistentSet;
use weft_proto::state::{Entry, Key, Kind, Layer, Object, Sum, collect};
use weft_proto::v1::{ExternalNetwork, ObjectKey, Objects};
use weft_proto::{
    ADDRESS_HOLDERS, DHCP_OPTIONS, DNS, DSCP_MARKING, DSR, FINDINGS, LEAST_CONNECTIONS,
    LOAD_BALANCER, MULTICAST, MULTICAST_LISTENERS, POLICY_ROUTES, PORT_HEALTH, STATE_PARTS,
    TRUNK_PORTS,
};

use crate::compile::{Part, Recipient};
use crate::findings::Findings;
use crate::learning::Learned;
use crate::version::Version;

/// With more members, a group is told in parts to hosts that can be.
const MEMBERS_IN_ONE: usize = 256;

/// What a host can do that it might not, as it says when it attaches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Capabilities {
    /// With more members than these, a group is told in parts; none: the host takes no parts.
    pub members_in_one: Option<usize>,
    /// Whether it learns the ports of a VPC that has very many: it asks for those that it needs.
    pub learns: bool,
    /// Whether it takes load balancers. One that does not lacks them: what its ports send to their addresses reaches nobody.
    pub balances: bool,
    /// Whether it chooses members by least connections. One that does not chooses by a hash.
    pub least_connections: bool,
    /// Whether it takes listeners whose members answer by themselves. One that does not lacks them.
    pub dsr: bool,
    /// Whether it takes DHCP options of subnets and ports. The guests of one that does not get none of them.
    pub dhcp_options: bool,
    /// Whether it finds things out that others have to know, and takes what those found. One that does not checks no members' health, and heeds nobody's.
    pub finds: bool,
    /// Whether it marks what ports send. What the ports of one that does not send keeps its own DSCP.
    pub marks: bool,
    /// Whether it takes policy routes. The ports of one that does not go by routes alone.
    pub policy_routes: bool,
    /// Whether it snoops multicast. One that does not floods it.
    pub multicast: bool,
    /// Whether it takes what ports of other hosts have joined. One that does not has a copy of all multicast go to each.
    pub multicast_listeners: bool,
    /// Whether it takes which ports hold virtual addresses. Nobody reaches those from the ports of one that does not.
    pub address_holders: bool,
    /// Whether it takes subports. Those of one that does not are down.
    pub trunks: bool,
    /// Whether it checks appliances at its ports, and passes over those of others that do not live. One that does not spreads flows over all.
    pub port_health: bool,
    /// Whether it takes a state in several messages. One that does not is sent all of it in one, which it does not take if that is very large.
    pub state_parts: bool,
    /// Whether its gateways answer DNS. The guests of one that does not are told of other servers, or none.
    pub names: bool,
}

impl Capabilities {
    /// Whether it takes what was found that is of a kind, and says what it finds itself.
    pub(crate) fn takes(&self, kind: Kind) -> bool {
        match kind {
            Kind::MulticastListener => self.finds && self.multicast_listeners,
            Kind::AddressHolder => self.finds && self.address_holders,
            Kind::PortHealth => self.finds && self.port_health,
            _ => self.finds,
        }
    }

    /// Those of a host of this version.
    pub fn all() -> Self {
        Self {
            members_in_one: Some(MEMBERS_IN_ONE),
            learns: true,
            balances: true,
            least_connections: true,
            dsr: true,
            dhcp_options: true,
            finds: true,
            marks: true,
            policy_routes: true,
            multicast: true,
            multicast_listeners: true,
            address_holders: true,
            port_health: true,
            trunks: true,
            state_parts: true,
            names: true,
        }
    }

    /// Those that a host lists.
    pub fn of(listed: &[String]) -> Self {
        let all = Self::all();
        let is_listed = |wanted: &str| listed.iter().any(|name| name == wanted);
        Self {
            members_in_one: all.members_in_one.filter(|_| is_listed("group_members")),
            learns: is_listed("learning"),
            balances: is_listed(LOAD_BALANCER),
            least_connections: is_listed(LEAST_CONNECTIONS),
            dsr: is_listed(DSR),
            dhcp_options: is_listed(DHCP_OPTIONS),
            finds: is_listed(FINDINGS),
            marks: is_listed(DSCP_MARKING),
            policy_routes: is_listed(POLICY_ROUTES),
            multicast: is_listed(MULTICAST),
            multicast_listeners: is_listed(MULTICAST_LISTENERS),
            address_holders: is_listed(ADDRESS_HOLDERS),
            port_health: is_listed(PORT_HEALTH),
            trunks: is_listed(TRUNK_PORTS),
            state_parts: is_listed(STATE_PARTS),
            names: is_listed(DNS),
        }
    }
}

/// What a host is told at a revision.
#[derive(Debug, Clone, Default)]
pub struct NodeState {
    /// The revision of the intent of which this is what concerns the host.
    pub revision: u64,
    capabilities: Capabilities,
    /// What the host has asked for, where it learns ports.
    learned: Learned,
    /// What hosts had found by then.
    findings: Findings,
    parts: PersistentSet<Arc<Part>>,
    /// What of that is told.
    found: Layer,
    /// External networks.
    networks: Layer,
    hosts: Layer,
    /// How often parts lead to each host.
    led_to: PersistentSet<(Arc<str>, usize)>,
    digest: Sum,
}

impl NodeState {
    /// That of a host of which there is nothing any more.
    pub fn empty(revision: u64) -> Self {
        Self {
            revision,
            ..Self::default()
        }
    }

    /// The state of a host that has asked for nothing; nothing when the intent has no such host, or it runs no weftd. `before`: an earlier state of the
    /// same host.
    pub fn compile(
        version: &Version,
        host: &str,
        capabilities: Capabilities,
        before: Option<&Self>,
    ) -> Option<Self> {
        let nothing = (&Learned::default(), &Findings::default());
        Self::compile_with(version, (host, capabilities), nothing, before)
    }

    /// The same of a host that has asked for addresses, with what hosts have found. Addresses of VPCs that it is told whole, or not told, are passed over.
    pub fn compile_with(
        version: &Version,
        (host, capabilities): (&str, Capabilities),
        (learned, findings): (&Learned, &Findings),
        before: Option<&Self>,
    ) -> Option<Self> {
        let own = version.host(host)?;
        let before = before.filter(|before| {
            let was_there = before.hosts.get(Kind::Host, host).is_some();
            was_there
                && before.capabilities == capabilities
                && version.hosts_changed() <= before.revision
                && before.revision <= version.revision
        });
        let (mut next, vpcs) = match before {
            Some(before) => {
                let mut vpcs = before.to_look_at(version, host);
                vpcs.extend(before.asks_otherwise(version, learned));
                (before.clone(), vpcs)
            }
            None => {
                let mut next = Self {
                    capabilities,
                    ..Self::default()
                };
                let own = version.state.entry(Kind::Host, &own.id);
                next.hosts.extend(own.map(Entry::told));
                (next, version.vpcs_concerning(host))
            }
        };
        next.revision = version.revision;
        let recipient = Recipient {
            host,
            capabilities,
            learned,
        };
        let mut networks_change = false;
        for vpc in vpcs {
            let old = next.part(&vpc).cloned();
            let known = old.as_deref().zip(before);
            let known = known.map(|(part, before)| (before.revision, part));
            let new = Part::compile(version, &vpc, recipient, known).map(Arc::new);
            for part in [&old, &new].into_iter().flatten() {
                networks_change |= !part.networks.is_empty();
            }
            next.replace(version, (&vpc, host), (old, new));
        }
        if networks_change {
            next.find_networks(version);
        }
        next.tell_findings(findings, before);
        next.learned = learned.clone();
        for vpc in learned.vpcs() {
            if !next.part(vpc).is_some_and(|part| part.learns()) {
                next.learned.forget(vpc);
            }
        }
        Some(next)
    }

    /// Tells what was found in the host's own VPCs, and who holds addresses in those that peerings join to them. `before`: an earlier state, of which this one still has what was told.
    fn tell_findings(&mut self, findings: &Findings, before: Option<&Self>) {
        if !self.capabilities.finds {
            return;
        }
        let nothing = Self::default();
        let before = before.unwrap_or(&nothing);
        let [gone, come] = before.parts.difference(&self.parts);
        let parts = gone.into_iter().chain(come).map(|part| &*part.vpc);
        let mut vpcs: BTreeSet<&str> = before.findings.changes_to(findings);
        vpcs.extend(parts);
        let mut all_come = Vec::new();
        for vpc in vpcs {
            let told = |state: &Self, findings: &Findings| match state.part(vpc) {
                Some(part) if part.is_own => findings.told(vpc).clone(),
                // As of a peered VPC's ports: where its addresses are.
                Some(part) if part.is_seen() => findings.told_holders(vpc),
                _ => Layer::default(),
            };
            let [old, new] = [told(before, &before.findings), told(self, findings)];
            let [gone, come] = old.difference(&new);
            for entry in gone {
                self.found.remove(entry.object.kind(), entry.object.id());
            }
            let takes = |entry: &&Arc<Entry>| self.capabilities.takes(entry.object.kind());
            all_come.extend(come.into_iter().filter(takes).cloned());
        }
        // After all that is gone: the same may have come to another VPC.
        for entry in &all_come {
            self.found.insert(entry);
        }
        self.findings = findings.clone();
    }

    /// What of what the host has asked for it is told.
    pub fn learned(&self) -> &Learned {
        &self.learned
    }

    /// The VPCs in which the host asks for something else than before, and those that peerings join to them: a tenant's groups have members in several.
    fn asks_otherwise(&self, version: &Version, learned: &Learned) -> BTreeSet<String> {
        let mut all = BTreeSet::new();
        for (vpc, _) in self.learned.changes_to(learned) {
            let known = self.part(vpc);
            if let Some(part) = known.filter(|_| version.is_learned(vpc)) {
                all.insert(vpc.to_owned());
                all.extend(part.joined().map(str::to_owned));
            }
        }
        all
    }

    /// The VPCs that may concern the host otherwise than before.
    fn to_look_at(&self, version: &Version, host: &str) -> BTreeSet<String> {
        let changed: BTreeSet<String> = match version.touched_since(self.revision) {
            Some(touched) => {
                let is_near = |vpc: &&&str| {
                    let mut peerings = version.state.peerings_of(vpc);
                    self.part(vpc).is_some()
                        || version.is_own(vpc, host)
                        || peerings.any(|it| it.vpcs().iter().any(|vpc| self.part(vpc).is_some()))
                };
                let near = touched.iter().filter(is_near);
                near.map(|vpc| (*vpc).to_owned()).collect()
            }
            None => {
                let mut all = version.vpcs_concerning(host);
                all.extend(self.parts.iter().map(|part| part.vpc.to_string()));
                all.retain(|vpc| version.has_changed(vpc, self.revision));
                all
            }
        };
        let mut all = changed.clone();
        for vpc in &changed {
            let joined = version.state.peerings_of(vpc);
            all.extend(joined.flat_map(|peering| peering.vpcs().map(str::to_owned)));
            if let Some(part) = self.part(vpc) {
                all.extend(part.joined().map(str::to_owned));
            }
        }
        all
    }

    fn part(&self, vpc: &str) -> Option<&Arc<Part>> {
        self.parts.get(|part| (*part.vpc).cmp(vpc))
    }

    fn replace(
        &mut self,
        version: &Version,
        (vpc, host): (&str, &str),
        (old, new): (Option<Arc<Part>>, Option<Arc<Part>>),
    ) {
        let order = |part: &Arc<Part>| (*part.vpc).cmp(vpc);
        let mut shift = BTreeMap::new();
        let ends = old.as_ref().zip(new.as_ref());
        let hosts_stay = ends.is_some_and(|(old, new)| new.has_hosts_of(old));
        if let Some(new) = &new {
            self.digest = self.digest.plus(new.digest());
            if !hosts_stay {
                new.hosts()
                    .for_each(|id| *shift.entry(id).or_insert(0) += 1);
            }
            self.parts.insert(Arc::clone(new), order);
        } else {
            self.parts.remove(order);
        }
        if let Some(old) = &old {
            self.digest = self.digest.minus(old.digest());
            if !hosts_stay {
                old.hosts()
                    .for_each(|id| *shift.entry(id).or_insert(0) -= 1);
            }
        }
        for (id, by) in shift {
            if by == 0_isize || **id == *host {
                continue;
            }
            let order = |known: &(Arc<str>, usize)| known.0.cmp(id);
            let count = self.led_to.get(order).map_or(0, |known| known.1);
            let now = count.saturating_add_signed(by);
            match (count, now) {
                (_, 0) => {
                    self.led_to.remove(order);
                    self.hosts.remove(Kind::Host, id);
                }
                (0, _) => {
                    self.led_to.insert((Arc::clone(id), now), order);
                    let host = version.state.entry(Kind::Host, id);
                    self.hosts.extend(host.map(Entry::told));
                }
                (_, _) => drop(self.led_to.insert((Arc::clone(id), now), order)),
            }
        }
    }

    /// The external networks that the parts name, each with the prefixes that are routed to VPCs of this host.
    fn find_networks(&mut self, version: &Version) {
        let mut named: BTreeSet<&Arc<str>> = BTreeSet::new();
        for part in self.parts.iter() {
            named.extend(&*part.networks);
        }
        let mut networks = Layer::default();
        for id in named {
            if let Some(network) = version.state.external_network(id) {
                let is_here = |vpc: &str| self.part(vpc).is_some_and(|part| part.is_own);
                let routed = network.routed.iter().filter(|routed| is_here(&routed.vpc));
                let told = Object::ExternalNetwork(ExternalNetwork {
                    routed: routed.cloned().collect(),
                    labels: Labels::new(),
                    ..network.clone()
                });
                let known = self.networks.get(Kind::ExternalNetwork, id);
                networks.insert(&match known {
                    Some(known) if known.object == told => Arc::clone(known),
                    _ => Entry::new(told),
                });
            }
        }
        self.networks = networks;
    }

    /// Every object.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Entry>> {
        let parts = self.parts.iter().flat_map(|part| part.iter());
        let rest = [&self.networks, &self.hosts, &self.found];
        parts.chain(rest.into_iter().flat_map(Layer::iter))
    }

    /// The digest, as the host computes it.
    pub fn digest(&self) -> [u8; 32] {
        let rest = [&self.networks, &self.hosts, &self.found];
        let rest = rest.into_iter().map(Layer::digest);
        rest.fold(self.digest, Sum::plus).to_bytes()
    }

    /// About how many objects are told.
    fn len(&self) -> usize {
        self.found.len() + self.parts.iter().map(|part| part.len()).sum::<usize>()
    }

    /// Whether a state has many more objects than the one that a host has; nothing: it has none.
    pub(crate) fn is_far_from(&self, known: Option<&Self>, many: usize) -> bool {
        self.len() > known.map_or(0, Self::len) + many
    }

    /// All objects as a list.
    pub fn to_objects(&self) -> Objects {
        let mut all: Vec<&Arc<Entry>> = self.iter().collect();
        all.sort_unstable_by_key(|entry| (entry.object.kind(), entry.object.id()));
        collect(all.into_iter().map(|entry| entry.object.clone()))
    }

    /// What turns `self` into `next`: objects to add or replace, and keys to delete.
    pub fn delta_to(&self, next: &Self) -> (Objects, Vec<ObjectKey>) {
        type Ends<'a> = [Option<&'a Object>; 2];
        let mut found: BTreeMap<(Kind, &str), Ends<'_>> = BTreeMap::new();
        let [gone, come] = self.parts.difference(&next.parts);
        let of = |parts: &[&Arc<Part>]| -> BTreeSet<Arc<str>> {
            parts.iter().map(|part| Arc::clone(&part.vpc)).collect()
        };
        let vpcs: BTreeSet<Arc<str>> = of(&gone).union(&of(&come)).cloned().collect();
        for vpc in &vpcs {
            let ends = [self.part(vpc), next.part(vpc)].map(|part| part.map(|part| &**part));
            for entry in Part::difference(ends[0], ends[1]) {
                let (kind, id) = (entry.object.kind(), entry.object.id());
                let known = found.entry((kind, id)).or_default();
                for (known, part) in known.iter_mut().zip(ends) {
                    // An object may have gone from one VPC to another.
                    let told = part.and_then(|part| part.get(kind, id));
                    *known = known.or(told.map(|told| &told.object));
                }
            }
        }
        for (old, new) in [
            (&self.networks, &next.networks),
            (&self.hosts, &next.hosts),
            (&self.found, &next.found),
        ] {
            for change in old.changes_to(new) {
                if let Some(object) = change.old.or(change.new) {
                    found.insert((object.kind(), object.id()), [change.old, change.new]);
                }
            }
        }
        let is_changed = |ends: &&Ends<'_>| ends[0] != ends[1];
        let changed = || found.values().filter(is_changed);
        let upserts = changed().filter_map(|[_, new]| new.cloned());
        let deletes = changed().filter(|[_, new]| new.is_none());
        let deletes = deletes.filter_map(|[old, _]| old.map(Object::key));
        let deletes = deletes.map(|key: Key| key.to_wire()).collect();
        (collect(upserts), deletes)
    }
}
