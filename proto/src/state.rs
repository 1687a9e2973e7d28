//! A set of objects in canonical form: keyed by kind and id, so that two sets can be compared, digested and patched.
//!
//! Both ends of the host protocol keep their state in this form: the controller to compute a delta, the daemon to apply one. Copies share the
//! objects that they have in common, so that a copy with one object changed costs next to nothing, whatever the number of objects.
//! The digest is the sum, modulo 2^256, of the SHA-256 of each object as kind, id and encoded bytes, every part preceded by its length.

use std::cmp::Ordering;
use std::collections::HashSet;
use std::net::IpAddr;
use std::sync::Arc;

use prost::Message;
use sha2::{Digest, Sha256};

use crate::address::parse_mac;
use crate::shelf::Shelf;
use crate::v1::{self, ObjectKey, Objects, Port};

/// One table of all kinds: each with the name that `ObjectKey::kind`, topology files and the command line use, and the field of [`Objects`] that lists its objects.
macro_rules! kinds {
    ($($kind:ident: $name:literal in $list:ident;)*) => {
        /// The kinds of objects, in the order in which they depend on each other.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[allow(missing_docs)]
        pub enum Kind {
            $($kind,)*
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
    Port: "port" in ports;
    ElasticIp: "elastic_ip" in elastic_ips;
    NatGateway: "nat_gateway" in nat_gateways;
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
            Self::Vpc(o) => Some(&o.id),
            Self::Subnet(o) => Some(&o.vpc),
            Self::RouteTable(o) => Some(&o.vpc),
            Self::NetworkAcl(o) => Some(&o.vpc),
            // Those of a tenant are in none.
            Self::PrefixList(o) => Some(&*o.vpc).filter(|vpc| !vpc.is_empty()),
            Self::SecurityGroup(o) => Some(&*o.vpc).filter(|vpc| !vpc.is_empty()),
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
    /// The hosts that the routes point to, as often as they do.
    pub fn hosts(&self) -> impl Iterator<Item = &str> {
        self.routes
            .iter()
            .flat_map(|route| {
                let members = route.ecmp.iter().map(|hop| hop.host.as_str());
                members.chain([route.host.as_str()])
            })
            .filter(|host| !host.is_empty())
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

/// An object with cached properties.
#[derive(Debug)]
struct Entry {
    object: Object,
    /// Its part of the digest.
    digest: Sum,
}

impl Entry {
    fn new(object: Object) -> Arc<Self> {
        let mut hash = Sha256::new();
        let mut part = |bytes: &[u8]| {
            hash.update((bytes.len() as u64).to_be_bytes());
            hash.update(bytes);
        };
        part(object.kind().name().as_bytes());
        part(object.id().as_bytes());
        part(&object.encode());
        let digest = Sum::from_bytes(hash.finalize().into());
        Arc::new(Self { object, digest })
    }
}

/// A number modulo 2^256.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Sum {
    low: u128,
    high: u128,
}

impl Sum {
    fn from_bytes(bytes: [u8; 32]) -> Self {
        let (high, low) = bytes.split_at(16);
        let word = |half: &[u8]| {
            half.iter()
                .fold(0, |word, byte| word << 8 | u128::from(*byte))
        };
        Self {
            low: word(low),
            high: word(high),
        }
    }

    fn to_bytes(self) -> [u8; 32] {
        let mut bytes = [0; 32];
        bytes[..16].copy_from_slice(&self.high.to_be_bytes());
        bytes[16..].copy_from_slice(&self.low.to_be_bytes());
        bytes
    }

    fn plus(self, other: Self) -> Self {
        let (low, carry) = self.low.overflowing_add(other.low);
        let high = self.high.wrapping_add(other.high);
        Self {
            low,
            high: high.wrapping_add(carry.into()),
        }
    }

    fn minus(self, other: Self) -> Self {
        let (low, borrow) = self.low.overflowing_sub(other.low);
        let high = self.high.wrapping_sub(other.high);
        Self {
            low,
            high: high.wrapping_sub(borrow.into()),
        }
    }
}

/// Objects by key.
#[derive(Debug, Clone, Default)]
pub struct State {
    /// By kind and id.
    objects: Shelf<Entry>,
    /// By VPC, then by kind and id; hosts are in none.
    by_vpc: Shelf<Entry>,
    /// What ports have that others may want too.
    claims: Shelf<Claim>,
    digest: Sum,
}

/// Something that a port has, and where.
#[derive(Debug)]
struct Claim {
    /// The port.
    of: Arc<Entry>,
    what: Claimed,
}

/// What a port may have. Addresses and MACs are of a VPC; so is a host's share in it; devices are of a host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Claimed {
    Mac([u8; 6]),
    Address(IpAddr),
    Host,
    Device,
}

/// What claims are ordered by: what, where, the name of a host or a device, and the port.
type ClaimKey<'c> = (Claimed, &'c str, &'c str, &'c str);

impl Claim {
    fn key(&self) -> ClaimKey<'_> {
        let Object::Port(port) = &self.of.object else {
            return (self.what, "", "", "");
        };
        claim_key(port, self.what)
    }
}

fn claim_key(port: &Port, what: Claimed) -> ClaimKey<'_> {
    let (place, name) = match what {
        Claimed::Mac(_) | Claimed::Address(_) => (&port.vpc, ""),
        Claimed::Host => (&port.vpc, port.host.as_str()),
        Claimed::Device => (&port.host, port.device.as_ref().map_or("", |it| &it.name)),
    };
    (what, place, name, &port.id)
}

/// What a port has.
fn claims(port: &Port) -> impl Iterator<Item = Claimed> {
    let mac = parse_mac(&port.mac).ok().map(Claimed::Mac);
    let addresses = port.addresses.iter().filter_map(|text| text.parse().ok());
    let host = (!port.host.is_empty()).then_some(Claimed::Host);
    let device = host.and(port.device.as_ref()).map(|_| Claimed::Device);
    let addresses = addresses.map(Claimed::Address);
    addresses.chain(mac).chain(host).chain(device)
}

impl PartialEq for State {
    fn eq(&self, other: &Self) -> bool {
        let objects = self.objects.iter().zip(other.objects.iter());
        let same = |(a, b): (&Arc<Entry>, &Arc<Entry>)| Arc::ptr_eq(a, b) || a.object == b.object;
        self.len() == other.len() && self.digest == other.digest && objects.into_iter().all(same)
    }
}

/// How an object compares to a kind and an id.
fn by_key(kind: Kind, id: &str) -> impl Fn(&Entry) -> Ordering {
    move |entry| (entry.object.kind(), entry.object.id()).cmp(&(kind, id))
}

/// How an object compares to a kind and an id in a VPC.
fn by_vpc(vpc: &str, kind: Kind, id: &str) -> impl Fn(&Entry) -> Ordering {
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
        let mut entries: Vec<Arc<Entry>> = explode(objects).map(Entry::new).collect();
        let key = |entry: &Arc<Entry>| (entry.object.kind(), entry.object.id().to_owned());
        // Most lists are in order already.
        if !entries.is_sorted_by_key(key) {
            entries.sort_by_cached_key(key);
        }
        let mut state = Self::default();
        for entry in &entries {
            if let Some(twice) = state.put(entry) {
                return Err(StateError::Duplicate(twice.object.key()));
            }
        }
        Ok(state)
    }

    fn put(&mut self, entry: &Arc<Entry>) -> Option<Arc<Entry>> {
        let (kind, id) = (entry.object.kind(), entry.object.id());
        self.digest = self.digest.plus(entry.digest);
        let before = self.objects.insert(Arc::clone(entry), by_key(kind, id));
        if let Some(before) = &before {
            self.digest = self.digest.minus(before.digest);
            self.give_up_claims(&before.object);
            if before.object.vpc() != entry.object.vpc() {
                self.leave_vpc(&before.object);
            }
        }
        if let Some(vpc) = entry.object.vpc() {
            self.by_vpc.insert(Arc::clone(entry), by_vpc(vpc, kind, id));
        }
        if let Object::Port(port) = &entry.object {
            for what in claims(port) {
                let of = Arc::clone(entry);
                let key = claim_key(port, what);
                let order = |claim: &Claim| claim.key().cmp(&key);
                self.claims.insert(Arc::new(Claim { of, what }), order);
            }
        }
        before
    }

    fn give_up_claims(&mut self, object: &Object) {
        if let Object::Port(port) = object {
            for what in claims(port) {
                let key = claim_key(port, what);
                self.claims.remove(|claim| claim.key().cmp(&key));
            }
        }
    }

    /// The ports that have this; of a name, if it is of a host or a device. In order of their ids.
    fn claimants<'a>(
        &'a self,
        what: Claimed,
        place: &'a str,
        name: &'a str,
    ) -> impl Iterator<Item = &'a Port> {
        let from = (what, place, name, "");
        let claims = self.claims.iter_from(move |claim| claim.key().cmp(&from));
        let same = claims.take_while(move |claim| {
            let (of, at, named, _) = claim.key();
            (of, at, named) == (what, place, name)
        });
        same.filter_map(|claim| match &claim.of.object {
            Object::Port(port) => Some(port),
            _ => None,
        })
    }

    /// Whether another port has the MAC or an address of this one in its VPC, or its device; or it has an address twice.
    pub fn is_shared(&self, port: &Port) -> bool {
        let mut seen = HashSet::new();
        let mut addresses = port
            .addresses
            .iter()
            .filter_map(|text| text.parse::<IpAddr>().ok());
        let has_twice = addresses.any(|address| !seen.insert(address));
        has_twice
            || claims(port)
                .filter(|what| *what != Claimed::Host)
                .any(|what| {
                    let (_, place, name, _) = claim_key(port, what);
                    self.claimants(what, place, name).any(|it| it.id != port.id)
                })
    }

    /// Whether a host has a port of a VPC.
    pub fn has_port_on(&self, vpc: &str, host: &str) -> bool {
        self.claimants(Claimed::Host, vpc, host).next().is_some()
    }

    /// The ports with a device on a host, in order of their devices.
    pub fn ports_with_device<'a>(&'a self, host: &'a str) -> impl Iterator<Item = &'a Port> {
        let from = (Claimed::Device, host, "", "");
        let claims = self.claims.iter_from(move |claim| claim.key().cmp(&from));
        let same = claims.take_while(move |claim| {
            let (what, at, ..) = claim.key();
            (what, at) == (Claimed::Device, host)
        });
        same.filter_map(|claim| match &claim.of.object {
            Object::Port(port) => Some(port),
            _ => None,
        })
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
        Some(&self.objects.get(by_key(kind, id))?.object)
    }

    /// Adds or replaces; gives back what was there.
    pub fn insert(&mut self, object: Object) -> Option<Object> {
        let before = self.put(&Entry::new(object))?;
        Some(before.object.clone())
    }

    /// Takes out the object of that key.
    pub fn remove(&mut self, key: &Key) -> Option<Object> {
        let before = self.objects.remove(by_key(key.kind, &key.id))?;
        self.digest = self.digest.minus(before.digest);
        self.leave_vpc(&before.object);
        self.give_up_claims(&before.object);
        Some(before.object.clone())
    }

    /// Every object, in key order.
    pub fn iter(&self) -> impl Iterator<Item = &Object> {
        self.objects.iter().map(|entry| &entry.object)
    }

    /// Every object of a kind, in order of their ids.
    pub fn of_kind(&self, kind: Kind) -> impl Iterator<Item = &Object> {
        let from = self.objects.iter_from(by_key(kind, ""));
        from.map(|entry| &entry.object)
            .take_while(move |object| object.kind() == kind)
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
        self.digest.to_bytes()
    }

    /// What differs between two states, each object as it was and as it is. Takes as long as the difference is large when one was made from the
    /// other by changes.
    pub fn changes_to<'a>(&'a self, next: &'a Self) -> Vec<Change<'a>> {
        let (gone, come) = self.objects.difference(&next.objects);
        let mut changes: Vec<Change<'_>> = Vec::with_capacity(come.len());
        let (mut gone, mut come) = (gone.into_iter().peekable(), come.into_iter().peekable());
        loop {
            let key = |entry: &'a Arc<Entry>| (entry.object.kind(), entry.object.id());
            let order = match (gone.peek(), come.peek()) {
                (None, None) => return changes,
                (Some(_), None) => Ordering::Less,
                (None, Some(_)) => Ordering::Greater,
                (Some(old), Some(new)) => key(old).cmp(&key(new)),
            };
            let old = gone.next_if(|_| order.is_le()).map(|entry| &entry.object);
            let new = come.next_if(|_| order.is_ge()).map(|entry| &entry.object);
            if old != new {
                changes.push(Change { old, new });
            }
        }
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
