//! A set of objects in canonical form: keyed by kind and id, so that two sets can be compared, digested and patched.
//!
//! Both ends of the host protocol keep their state in this form: the controller to compute a delta, the daemon to apply one. Copies share the
//! objects that they have in common, so that a copy with one object changed costs next to nothing, whatever the number of objects.
//! The digest is the sum, modulo 2^256, of the SHA-256 of each object as kind, id and encoded bytes, every part preceded by its length.

mod claims;
mod layer;

use std::cmp::Ordering;
use std::collections::HashSet;
use std::sync::Arc;

use prost::Message;

use crate::persistent::PersistentSet;
use crate::v1::{self, ObjectKey, Objects};
use claims::Claims;
pub use layer::{Entry, Layer, Sum};

/// One table of all kinds: each with the name that `ObjectKey::kind`, topology files and the command line use, and the field of [`Objects`] that lists its objects.
macro_rules! kinds {
    ($($kind:ident: $name:literal in $list:ident;)*) => {
        /// The kinds of objects, in the order in which they depend on each other.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[allow(missing_docs)]
        pub enum Kind {
            $($kind,)*
        }

        /// A list as several, in order, each of at most so many bytes but for one object that is larger; one at least.
pub fn split(objects: Objects, most: usize) -> Vec<Objects> {
    /// Bytes of a field's tag and length.
    const HEAD: usize = 8;
    if objects.encoded_len() <= most {
        return vec![objects];
    }
    let (mut all, mut part, mut bytes) = (Vec::new(), Vec::new(), 0);
    for object in explode(objects) {
        let own = object.encoded_len() + HEAD;
        if bytes + own > most && !part.is_empty() {
            all.push(collect(std::mem::take(&mut part).into_iter()));
            bytes = 0;
        }
        bytes += own;
        part.push(object);
    }
    all.push(collect(part.into_iter()));
    all
}

impl Kind {
            /// Every kind, in order.
            pub const ALL: [Self; [$($name),*].len()] = [$(Self::$kind),*];

            /// The kind's name in `ObjectKey::kind`, topology files and the command line.
            pub fn name(self) -> &'static str {
                match self {
                    $(Self::$kind => $name,)*
                }
            }
        }

        /// One object of any kind.
        #[derive(Debug, Clone, PartialEq)]
        #[allow(missing_docs)]
        pub enum Object {
            $($kind(v1::$kind),)*
        }

        impl Object {
            /// What kind of object this is.
            pub fn kind(&self) -> Kind {
                match self {
                    $(Self::$kind(_) => Kind::$kind,)*
                }
            }

            /// The object's id within its kind.
            pub fn id(&self) -> &str {
                match self {
                    $(Self::$kind(object) => &object.id,)*
                }
            }

            /// The object of that kind and wire form.
            ///
            /// # Errors
            /// The bytes are no such object.
            pub fn decode(kind: Kind, bytes: &[u8]) -> Result<Self, prost::DecodeError> {
                Ok(match kind {
                    $(Kind::$kind => Self::$kind(v1::$kind::decode(bytes)?),)*
                })
            }

            /// The length of the object's wire form, in bytes.
            pub fn encoded_len(&self) -> usize {
                match self {
                    $(Self::$kind(object) => object.encoded_len(),)*
                }
            }

            /// The object's wire form.
            pub fn encode(&self) -> Vec<u8> {
                match self {
                    $(Self::$kind(object) => object.encode_to_vec(),)*
                }
            }
        }

        /// A list of objects, one by one.
        pub fn explode(objects: Objects) -> impl Iterator<Item = Object> {
            let Objects { $($list,)* } = objects;
            std::iter::empty()$(.chain($list.into_iter().map(Object::$kind)))*
        }

        /// How many objects a list has.
        pub fn count(objects: &Objects) -> usize {
            0 $(+ objects.$list.len())*
        }

        /// Objects one by one, as a list.
        pub fn collect(objects: impl Iterator<Item = Object>) -> Objects {
            let mut list = Objects::default();
            for object in objects {
                match object {
                    $(Object::$kind(object) => list.$list.push(object),)*
                }
            }
            list
        }
    };
}

kinds! {
    Host: "host" in hosts;
    Vpc: "vpc" in vpcs;
    Quota: "quota" in quotas;
    Peering: "peering" in peerings;
    ExternalNetwork: "external_network" in external_networks;
    Subnet: "subnet" in subnets;
    RouteTable: "route_table" in route_tables;
    NetworkAcl: "network_acl" in network_acls;
    PrefixList: "prefix_list" in prefix_lists;
    SecurityGroup: "security_group" in security_groups;
    GroupMembers: "group_members" in group_members;
    LearnedAddress: "learned_address" in learned_addresses;
    Port: "port" in ports;
    ElasticIp: "elastic_ip" in elastic_ips;
    NatGateway: "nat_gateway" in nat_gateways;
    LoadBalancer: "load_balancer" in load_balancers;
    MemberHealth: "member_health" in member_health;
    MulticastListener: "multicast_listener" in multicast_listeners;
    AddressHolder: "address_holder" in address_holders;
    DnsZone: "dns_zone" in dns_zones;
    PortName: "port_name" in port_names;
    PortHealth: "port_health" in port_health;
}

impl Kind {
    /// The kind of that name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }
}

impl Object {
    /// The key that names the object.
    pub fn key(&self) -> Key {
        Key {
            kind: self.kind(),
            id: self.id().to_owned(),
        }
    }

    /// The VPC that the object is in, where its kind is in one.
    pub fn vpc(&self) -> Option<&str> {
        match self {
            Self::Host(_)
            | Self::Quota(_)
            | Self::Peering(_)
            | Self::ExternalNetwork(_)
            | Self::ElasticIp(_) => None,
            Self::NatGateway(o) => Some(&o.vpc),
            Self::LoadBalancer(o) => Some(&o.vpc),
            Self::MemberHealth(o) => Some(&o.vpc),
            Self::MulticastListener(o) => Some(&o.vpc),
            Self::AddressHolder(o) => Some(&o.vpc),
            Self::DnsZone(o) => Some(&o.vpc),
            Self::PortName(o) => Some(&o.vpc),
            Self::PortHealth(o) => Some(&o.vpc),
            Self::Vpc(o) => Some(&o.id),
            Self::Subnet(o) => Some(&o.vpc),
            Self::RouteTable(o) => Some(&o.vpc),
            Self::NetworkAcl(o) => Some(&o.vpc),
            // Those of a tenant are in none.
            Self::PrefixList(o) => Some(&*o.vpc).filter(|vpc| !vpc.is_empty()),
            Self::SecurityGroup(o) => Some(&*o.vpc).filter(|vpc| !vpc.is_empty()),
            Self::GroupMembers(o) => Some(&o.vpc),
            Self::LearnedAddress(o) => Some(&o.vpc),
            Self::Port(o) => Some(&o.vpc),
        }
    }

    /// The tenant whose VPCs may all use it: a security group or a prefix list that is in no VPC.
    pub fn tenant_wide(&self) -> Option<&str> {
        let (vpc, tenant) = match self {
            Self::PrefixList(o) => (&o.vpc, &o.tenant),
            Self::SecurityGroup(o) => (&o.vpc, &o.tenant),
            _ => return None,
        };
        (vpc.is_empty() && !tenant.is_empty()).then_some(tenant)
    }

    /// The VPCs that a change of the object concerns: the one that it is in, the two that it joins, or those that prefixes are routed to.
    pub fn vpcs(&self) -> impl Iterator<Item = &str> {
        let (joined, routed) = match self {
            Self::Peering(peering) => (Some(peering.vpcs()), &[][..]),
            Self::ExternalNetwork(network) => (None, &network.routed[..]),
            _ => (None, &[][..]),
        };
        let routed = routed.iter().map(|routed| &*routed.vpc);
        joined.into_iter().flatten().chain(routed).chain(self.vpc())
    }
}

impl v1::RouteTable {
    /// Where the table leads: its routes, and then those of its policy routes that have a target.
    pub fn targets(&self) -> impl Iterator<Item = &v1::Route> {
        let policies = self.policies.iter().filter_map(|policy| policy.to.as_ref());
        self.routes.iter().chain(policies)
    }

    /// The ports that the routes point to, as often as they do.
    pub fn ports(&self) -> impl Iterator<Item = &str> {
        self.targets()
            .flat_map(|route| {
                let members = route.ecmp.iter().map(|hop| hop.port.as_str());
                members.chain([route.port.as_str()])
            })
            .filter(|port| !port.is_empty())
    }

    /// The hosts that the routes point to, as often as they do.
    pub fn hosts(&self) -> impl Iterator<Item = &str> {
        self.targets()
            .flat_map(|route| {
                let members = route.ecmp.iter().map(|hop| hop.host.as_str());
                members.chain([route.host.as_str()])
            })
            .filter(|host| !host.is_empty())
    }
}

impl v1::GroupMembers {
    /// The id of a part of a group's members.
    pub fn id_of(group: &str, number: u32) -> String {
        format!("{group}/{number}")
    }
}

impl v1::LearnedAddress {
    /// That of an address in a VPC.
    pub fn new(vpc: &str, address: &str) -> Self {
        Self {
            id: format!("{vpc}/{address}"),
            vpc: vpc.to_owned(),
            address: address.to_owned(),
        }
    }
}

/// Names one object.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    /// The object's kind.
    pub kind: Kind,
    /// The object's id within its kind.
    pub id: String,
}

impl Key {
    /// The key of that wire form.
    ///
    /// # Errors
    /// An unknown kind.
    pub fn from_wire(wire: &ObjectKey) -> Result<Self, StateError> {
        let kind = Kind::from_name(&wire.kind)
            .ok_or_else(|| StateError::UnknownKind(wire.kind.clone()))?;
        Ok(Self {
            kind,
            id: wire.id.clone(),
        })
    }

    /// The key's wire form.
    pub fn to_wire(&self) -> ObjectKey {
        ObjectKey {
            kind: self.kind.name().to_owned(),
            id: self.id.clone(),
        }
    }
}

impl std::fmt::Display for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.kind.name(), self.id)
    }
}

/// Why a set of objects, or a change to one, has no canonical form.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum StateError {
    /// The same kind and id twice in one set.
    #[error("{0} is given twice")]
    Duplicate(Key),
    /// A key whose kind is not known.
    #[error("'{0}' is not a kind of object")]
    UnknownKind(String),
    /// A delta deletes what is not there.
    #[error("cannot delete {0}: it does not exist")]
    Missing(Key),
}

/// Objects by key.
#[derive(Debug, Clone, Default)]
pub struct State {
    objects: Layer,
    /// By VPC, then by kind and id; hosts are in none.
    by_vpc: PersistentSet<Arc<Entry>>,
    claims: Claims,
}

impl PartialEq for State {
    fn eq(&self, other: &Self) -> bool {
        self.objects == other.objects
    }
}

fn by_kind(entry: &Arc<Entry>) -> (Kind, &str) {
    (entry.object.kind(), entry.object.id())
}

/// How an object compares to a kind and an id in a VPC.
fn by_vpc(vpc: &str, kind: Kind, id: &str) -> impl Fn(&Arc<Entry>) -> Ordering {
    move |entry| {
        let object = &entry.object;
        (object.vpc().unwrap_or(""), object.kind(), object.id()).cmp(&(vpc, kind, id))
    }
}

impl State {
    /// The canonical form of a list of objects.
    ///
    /// # Errors
    /// An object given twice.
    pub fn from_objects(objects: Objects) -> Result<Self, StateError> {
        Self::from_list_at(explode(objects).map(|object| (object, 0)).collect())
    }

    /// The same of objects one by one, in any order, each with the revision at which it came to be so.
    ///
    /// # Errors
    /// An object given twice.
    pub fn from_list_at(objects: Vec<(Object, u64)>) -> Result<Self, StateError> {
        let mut entries = Entry::of_many(objects);
        let key = |entry: &Arc<Entry>| (entry.object.kind(), entry.object.id().to_owned());
        // Most lists are in order already.
        if !entries.is_sorted_by(|a, b| by_kind(a).cmp(&by_kind(b)).is_le()) {
            entries.sort_by_cached_key(key);
        }
        let twice = entries.windows(2).find(|pair| {
            let [a, b] = pair else { return false };
            by_kind(a) == by_kind(b)
        });
        if let Some([twice, ..]) = twice {
            return Err(StateError::Duplicate(twice.object.key()));
        }
        let in_vpcs = entries.iter().filter(|entry| entry.object.vpc().is_some());
        let mut in_vpcs: Vec<Arc<Entry>> = in_vpcs.cloned().collect();
        // In a VPC they stay in order.
        in_vpcs.sort_by(|a, b| a.object.vpc().cmp(&b.object.vpc()));
        Ok(Self {
            claims: Claims::of(&entries),
            by_vpc: PersistentSet::from_sorted(in_vpcs),
            objects: Layer::from_sorted(entries),
        })
    }

    fn put(&mut self, entry: &Arc<Entry>) -> Option<Arc<Entry>> {
        let (kind, id) = (entry.object.kind(), entry.object.id());
        let before = self.objects.insert(entry);
        if let Some(before) = &before {
            self.claims.remove(&before.object);
            if before.object.vpc() != entry.object.vpc() {
                self.leave_vpc(&before.object);
            }
        }
        if let Some(vpc) = entry.object.vpc() {
            self.by_vpc.insert(Arc::clone(entry), by_vpc(vpc, kind, id));
        }
        self.claims.add(entry);
        before
    }

    /// Every object of a kind in a VPC, in order of their ids.
    pub fn of_vpc_and_kind<'a>(
        &'a self,
        vpc: &'a str,
        kind: Kind,
    ) -> impl Iterator<Item = &'a Object> {
        let from = self.by_vpc.iter_from(by_vpc(vpc, kind, ""));
        from.map(|entry| &entry.object)
            .take_while(move |object| object.vpc() == Some(vpc) && object.kind() == kind)
    }

    fn leave_vpc(&mut self, object: &Object) {
        if let Some(vpc) = object.vpc() {
            self.by_vpc.remove(by_vpc(vpc, object.kind(), object.id()));
        }
    }

    /// The list form, each kind ordered by id.
    pub fn to_objects(&self) -> Objects {
        collect(self.iter().cloned())
    }

    /// The object of that key.
    pub fn get(&self, key: &Key) -> Option<&Object> {
        self.find(key.kind, &key.id)
    }

    /// The object of that kind and id.
    pub fn find(&self, kind: Kind, id: &str) -> Option<&Object> {
        Some(&self.objects.get(kind, id)?.object)
    }

    /// The same, as copies share it.
    pub fn entry(&self, kind: Kind, id: &str) -> Option<&Arc<Entry>> {
        self.objects.get(kind, id)
    }

    /// Adds or replaces; gives back what was there.
    pub fn insert(&mut self, object: Object) -> Option<Object> {
        let before = self.put(&Entry::new(object))?;
        Some(before.object.clone())
    }

    /// The same, with the revision at which it came to be so.
    pub fn insert_at(&mut self, object: Object, revision: u64) -> Option<Object> {
        let before = self.objects.get(object.kind(), object.id());
        let entry = Entry::after(before, object, revision);
        let before = self.put(&entry)?;
        Some(before.object.clone())
    }

    /// Takes out the object of that key.
    pub fn remove(&mut self, key: &Key) -> Option<Object> {
        let before = self.objects.remove(key.kind, &key.id)?;
        self.leave_vpc(&before.object);
        self.claims.remove(&before.object);
        Some(before.object.clone())
    }

    /// Every object, in key order.
    pub fn iter(&self) -> impl Iterator<Item = &Object> {
        self.objects.iter().map(|entry| &entry.object)
    }

    /// The same, as copies share them.
    pub fn entries(&self) -> impl Iterator<Item = &Arc<Entry>> {
        self.objects.iter()
    }

    /// The same, from a kind and an id on, that object itself included.
    pub fn entries_from<'a>(
        &'a self,
        kind: Kind,
        id: &'a str,
    ) -> impl Iterator<Item = &'a Arc<Entry>> {
        self.objects.iter_from(kind, id)
    }

    /// What was found of the members of a load balancer.
    pub fn health_of<'a>(
        &'a self,
        balancer: &'a str,
    ) -> impl Iterator<Item = &'a v1::MemberHealth> {
        // Their ids begin with that of the load balancer, and those of some others with the same text.
        let from = self.entries_from(Kind::MemberHealth, balancer);
        let all = from.map_while(move |entry| match &entry.object {
            Object::MemberHealth(health) if health.id.starts_with(balancer) => Some(health),
            _ => None,
        });
        all.filter(move |health| health.load_balancer == balancer)
    }

    /// Every object of a kind, in order of their ids.
    pub fn of_kind(&self, kind: Kind) -> impl Iterator<Item = &Object> {
        self.objects.of_kind(kind)
    }

    /// Every object in a VPC, the VPC itself among them, in key order.
    pub fn of_vpc<'a>(&'a self, vpc: &'a str) -> impl Iterator<Item = &'a Object> {
        let from = self.by_vpc.iter_from(by_vpc(vpc, Kind::Host, ""));
        from.map(|entry| &entry.object)
            .take_while(move |object| object.vpc() == Some(vpc))
    }

    /// How many objects.
    pub fn len(&self) -> usize {
        self.objects.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The digest of the canonical form.
    pub fn digest(&self) -> [u8; 32] {
        self.objects.digest().to_bytes()
    }

    /// What differs between two states, each object as it was and as it is. Takes as long as the difference is large when one was made from the
    /// other by changes.
    pub fn changes_to<'a>(&'a self, next: &'a Self) -> Vec<Change<'a>> {
        self.objects.changes_to(&next.objects)
    }

    /// What turns `self` into `next`: objects to add or replace, and keys to delete.
    pub fn delta_to(&self, next: &Self) -> (Objects, Vec<ObjectKey>) {
        let changes = self.changes_to(next);
        let upserts = changes.iter().filter_map(|change| change.new.cloned());
        let deletes = changes.iter().filter(|change| change.new.is_none());
        let deletes = deletes.filter_map(|change| Some(change.old?.key().to_wire()));
        (collect(upserts), deletes.collect())
    }

    /// `self` with a delta applied.
    ///
    /// # Errors
    /// A delete of what is not there, or of an unknown kind; an object given twice. `self` is left as it was.
    pub fn patched(&self, upserts: Objects, deletes: &[ObjectKey]) -> Result<Self, StateError> {
        let mut next = self.clone();
        for wire in deletes {
            let key = Key::from_wire(wire)?;
            if next.remove(&key).is_none() {
                return Err(StateError::Missing(key));
            }
        }
        let mut seen = HashSet::new();
        for object in explode(upserts) {
            let key = object.key();
            next.put(&Entry::new(object));
            if let Some(twice) = seen.replace(key) {
                return Err(StateError::Duplicate(twice));
            }
        }
        Ok(next)
    }
}

/// An object before and after a change; at least one is present, and they differ.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Change<'a> {
    /// None: it was not there.
    pub old: Option<&'a Object>,
    /// None: it is not there any more.
    pub new: Option<&'a Object>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vpc(id: &str, vni: u32) -> v1::Vpc {
        v1::Vpc {
            id: id.to_owned(),
            vni,
            ..v1::Vpc::default()
        }
    }

    fn state(vpcs: Vec<v1::Vpc>) -> State {
        State::from_objects(Objects {
            vpcs,
            ..Objects::default()
        })
        .unwrap()
    }

    #[test]
    fn a_list_is_split_by_bytes_and_loses_nothing() {
        let long = "x".repeat(500);
        let vpcs = (0..20).map(|n| vpc(&format!("v{n:02}"), n));
        let vpcs: Vec<_> = vpcs.chain([vpc(&long, 99), vpc("z", 100)]).collect();
        let objects = Objects {
            vpcs,
            ..Objects::default()
        };
        for most in [1, 100, 300, 1 << 20] {
            let parts = split(objects.clone(), most);
            let is_small = |part: &Objects| part.encoded_len() <= most || count(part) == 1;
            assert!(parts.iter().all(is_small), "{most}");
            assert_eq!(parts.len() == 1, most == 1 << 20);
            let all = collect(parts.into_iter().flat_map(explode));
            assert_eq!(all, objects);
        }
        assert_eq!(split(Objects::default(), 1), [Objects::default()]);
    }

    #[test]
    fn order_of_objects_does_not_change_the_digest() {
        assert_eq!(
            state(vec![vpc("a", 1), vpc("b", 2)]).digest(),
            state(vec![vpc("b", 2), vpc("a", 1)]).digest()
        );
        assert_ne!(
            state(vec![vpc("a", 1)]).digest(),
            state(vec![vpc("a", 2)]).digest()
        );
    }

    #[test]
    fn a_delta_leads_from_one_state_to_the_other() {
        let from = state(vec![vpc("a", 1), vpc("b", 2), vpc("c", 3)]);
        let to = state(vec![vpc("b", 2), vpc("c", 4), vpc("d", 5)]);
        let (upserts, deletes) = from.delta_to(&to);
        assert_eq!(upserts.vpcs.len(), 2, "only what changed is sent");
        assert_eq!(deletes.len(), 1);
        let patched = from.patched(upserts, &deletes).unwrap();
        assert_eq!(patched, to);
        assert_eq!(patched.digest(), to.digest());
    }

    #[test]
    fn objects_are_found_by_kind_and_by_vpc_whatever_way_they_came() {
        let subnet = |id: &str, vpc: &str| {
            Object::Subnet(v1::Subnet {
                id: id.to_owned(),
                vpc: vpc.to_owned(),
                ..v1::Subnet::default()
            })
        };
        let mut one = state(vec![vpc("a", 1), vpc("b", 2)]);
        one.insert(subnet("x", "a"));
        one.insert(subnet("y", "a"));
        one.insert(subnet("x", "b"));
        let ids = |state: &State, vpc: &str| -> Vec<String> {
            state
                .of_vpc(vpc)
                .map(|object| object.id().to_owned())
                .collect()
        };
        assert_eq!(ids(&one, "a"), ["a", "y"]);
        assert_eq!(ids(&one, "b"), ["b", "x"]);
        assert_eq!(one.of_kind(Kind::Subnet).count(), 2);
        let rebuilt = State::from_objects(one.to_objects()).unwrap();
        assert_eq!(rebuilt, one);
        assert_eq!(rebuilt.digest(), one.digest());
        one.remove(&subnet("x", "b").key());
        assert_eq!(ids(&one, "b"), ["b"]);
        assert_ne!(rebuilt.digest(), one.digest());
        one.insert(subnet("x", "b"));
        assert_eq!(rebuilt.digest(), one.digest());
    }

    #[test]
    fn an_object_given_twice_is_refused() {
        let twice = Objects {
            vpcs: vec![vpc("a", 1), vpc("a", 2)],
            ..Objects::default()
        };
        assert!(matches!(
            State::from_objects(twice),
            Err(StateError::Duplicate(_))
        ));
    }

    #[test]
    fn deleting_what_is_not_there_is_refused() {
        let gone = [ObjectKey {
            kind: "vpc".into(),
            id: "x".into(),
        }];
        assert!(matches!(
            state(vec![]).patched(Objects::default(), &gone),
            Err(StateError::Missing(_))
        ));
    }

    #[test]
    fn a_misspelt_field_is_an_error() {
        let text = "vpcs: [{id: a, vnj: 7}]";
        assert!(
            serde_yaml_ng::from_str::<Objects>(text)
                .unwrap_err()
                .to_string()
                .contains("vnj")
        );
    }
}
