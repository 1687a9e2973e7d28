//! A set of objects in canonical form: keyed by kind and id, so that two sets can be compared, digested and patched.
//!
//! Both ends of the host protocol keep their state in this form: the controller to compute a delta, the daemon to apply one.
//! The digest is SHA-256 over the objects in key order, each as kind, id and encoded bytes, every part preceded by its length.

use std::collections::BTreeMap;

use prost::Message;
use sha2::{Digest, Sha256};

use crate::v1::{self, ObjectKey, Objects};

/// The kinds of objects, in the order in which they depend on each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[allow(missing_docs)]
pub enum Kind {
    Host,
    Vpc,
    Subnet,
    RouteTable,
    NetworkAcl,
    PrefixList,
    SecurityGroup,
    Port,
}

impl Kind {
    /// Every kind, in order.
    pub const ALL: [Self; 8] = [
        Self::Host,
        Self::Vpc,
        Self::Subnet,
        Self::RouteTable,
        Self::NetworkAcl,
        Self::PrefixList,
        Self::SecurityGroup,
        Self::Port,
    ];

    /// The kind's name in `ObjectKey::kind`, topology files and the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Host => "host",
            Self::Vpc => "vpc",
            Self::Subnet => "subnet",
            Self::RouteTable => "route_table",
            Self::NetworkAcl => "network_acl",
            Self::PrefixList => "prefix_list",
            Self::SecurityGroup => "security_group",
            Self::Port => "port",
        }
    }

    /// The kind of that name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }
}

/// One object of any kind.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs)]
pub enum Object {
    Host(v1::Host),
    Vpc(v1::Vpc),
    Subnet(v1::Subnet),
    RouteTable(v1::RouteTable),
    NetworkAcl(v1::NetworkAcl),
    PrefixList(v1::PrefixList),
    SecurityGroup(v1::SecurityGroup),
    Port(v1::Port),
}

macro_rules! each {
    ($object:expr, $o:ident => $body:expr) => {
        match $object {
            Object::Host($o) => $body,
            Object::Vpc($o) => $body,
            Object::Subnet($o) => $body,
            Object::RouteTable($o) => $body,
            Object::NetworkAcl($o) => $body,
            Object::PrefixList($o) => $body,
            Object::SecurityGroup($o) => $body,
            Object::Port($o) => $body,
        }
    };
}

impl Object {
    /// What kind of object this is.
    pub fn kind(&self) -> Kind {
        match self {
            Self::Host(_) => Kind::Host,
            Self::Vpc(_) => Kind::Vpc,
            Self::Subnet(_) => Kind::Subnet,
            Self::RouteTable(_) => Kind::RouteTable,
            Self::NetworkAcl(_) => Kind::NetworkAcl,
            Self::PrefixList(_) => Kind::PrefixList,
            Self::SecurityGroup(_) => Kind::SecurityGroup,
            Self::Port(_) => Kind::Port,
        }
    }

    /// The object's id within its kind.
    pub fn id(&self) -> &str {
        each!(self, o => &o.id)
    }

    /// The key that names the object.
    pub fn key(&self) -> Key {
        Key {
            kind: self.kind(),
            id: self.id().to_owned(),
        }
    }

    /// The object's VPC, where its kind has one.
    pub fn vpc(&self) -> Option<&str> {
        match self {
            Self::Host(_) => None,
            Self::Vpc(o) => Some(&o.id),
            Self::Subnet(o) => Some(&o.vpc),
            Self::RouteTable(o) => Some(&o.vpc),
            Self::NetworkAcl(o) => Some(&o.vpc),
            Self::PrefixList(o) => Some(&o.vpc),
            Self::SecurityGroup(o) => Some(&o.vpc),
            Self::Port(o) => Some(&o.vpc),
        }
    }

    /// The object of that kind and wire form.
    ///
    /// # Errors
    /// The bytes are no such object.
    pub fn decode(kind: Kind, bytes: &[u8]) -> Result<Self, prost::DecodeError> {
        Ok(match kind {
            Kind::Host => Self::Host(v1::Host::decode(bytes)?),
            Kind::Vpc => Self::Vpc(v1::Vpc::decode(bytes)?),
            Kind::Subnet => Self::Subnet(v1::Subnet::decode(bytes)?),
            Kind::RouteTable => Self::RouteTable(v1::RouteTable::decode(bytes)?),
            Kind::NetworkAcl => Self::NetworkAcl(v1::NetworkAcl::decode(bytes)?),
            Kind::PrefixList => Self::PrefixList(v1::PrefixList::decode(bytes)?),
            Kind::SecurityGroup => Self::SecurityGroup(v1::SecurityGroup::decode(bytes)?),
            Kind::Port => Self::Port(v1::Port::decode(bytes)?),
        })
    }

    /// The object's wire form.
    pub fn encode(&self) -> Vec<u8> {
        each!(self, o => o.encode_to_vec())
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
    #[error("{0} is to be deleted but does not exist")]
    Missing(Key),
}

/// Objects by key.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct State {
    objects: BTreeMap<Key, Object>,
}

impl State {
    /// The canonical form of a list of objects.
    ///
    /// # Errors
    /// An object given twice.
    pub fn from_objects(objects: Objects) -> Result<Self, StateError> {
        let mut state = Self::default();
        for object in explode(objects) {
            let key = object.key();
            if state.objects.insert(key.clone(), object).is_some() {
                return Err(StateError::Duplicate(key));
            }
        }
        Ok(state)
    }

    /// The list form, each kind ordered by id.
    pub fn to_objects(&self) -> Objects {
        collect(self.objects.values().cloned())
    }

    /// The object of that key.
    pub fn get(&self, key: &Key) -> Option<&Object> {
        self.objects.get(key)
    }

    /// Adds or replaces; gives back what was there.
    pub fn insert(&mut self, object: Object) -> Option<Object> {
        self.objects.insert(object.key(), object)
    }

    /// Takes out the object of that key.
    pub fn remove(&mut self, key: &Key) -> Option<Object> {
        self.objects.remove(key)
    }

    /// Every object, in key order.
    pub fn iter(&self) -> impl Iterator<Item = &Object> {
        self.objects.values()
    }

    /// How many objects.
    pub fn len(&self) -> usize {
        self.objects.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.objects.is_empty()
    }

    /// SHA-256 of the canonical form.
    pub fn digest(&self) -> [u8; 32] {
        let mut hash = Sha256::new();
        let mut part = |bytes: &[u8]| {
            hash.update((bytes.len() as u64).to_be_bytes());
            hash.update(bytes);
        };
        for (key, object) in &self.objects {
            part(key.kind.name().as_bytes());
            part(key.id.as_bytes());
            part(&object.encode());
        }
        hash.finalize().into()
    }

    /// What turns `self` into `next`: objects to add or replace, and keys to delete.
    pub fn delta_to(&self, next: &Self) -> (Objects, Vec<ObjectKey>) {
        let upserts = next
            .objects
            .iter()
            .filter(|(key, object)| self.objects.get(key) != Some(object))
            .map(|(_, object)| object.clone());
        let deletes = self
            .objects
            .keys()
            .filter(|key| !next.objects.contains_key(key))
            .map(Key::to_wire)
            .collect();
        (collect(upserts), deletes)
    }

    /// `self` with a delta applied.
    ///
    /// # Errors
    /// A delete of what is not there, or of an unknown kind; an object given twice. `self` is left as it was.
    pub fn patched(&self, upserts: Objects, deletes: &[ObjectKey]) -> Result<Self, StateError> {
        let mut next = self.clone();
        for wire in deletes {
            let key = Key::from_wire(wire)?;
            if next.objects.remove(&key).is_none() {
                return Err(StateError::Missing(key));
            }
        }
        for (key, object) in Self::from_objects(upserts)?.objects {
            next.objects.insert(key, object);
        }
        Ok(next)
    }
}

/// A list of objects, one by one.
pub fn explode(objects: Objects) -> impl Iterator<Item = Object> {
    let Objects {
        hosts,
        vpcs,
        subnets,
        route_tables,
        network_acls,
        prefix_lists,
        security_groups,
        ports,
    } = objects;
    hosts
        .into_iter()
        .map(Object::Host)
        .chain(vpcs.into_iter().map(Object::Vpc))
        .chain(subnets.into_iter().map(Object::Subnet))
        .chain(route_tables.into_iter().map(Object::RouteTable))
        .chain(network_acls.into_iter().map(Object::NetworkAcl))
        .chain(prefix_lists.into_iter().map(Object::PrefixList))
        .chain(security_groups.into_iter().map(Object::SecurityGroup))
        .chain(ports.into_iter().map(Object::Port))
}

/// Objects one by one, as a list.
pub fn collect(objects: impl Iterator<Item = Object>) -> Objects {
    let mut list = Objects::default();
    for object in objects {
        match object {
            Object::Host(o) => list.hosts.push(o),
            Object::Vpc(o) => list.vpcs.push(o),
            Object::Subnet(o) => list.subnets.push(o),
            Object::RouteTable(o) => list.route_tables.push(o),
            Object::NetworkAcl(o) => list.network_acls.push(o),
            Object::PrefixList(o) => list.prefix_lists.push(o),
            Object::SecurityGroup(o) => list.security_groups.push(o),
            Object::Port(o) => list.ports.push(o),
        }
    }
    list
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vpc(id: &str, vni: u32) -> v1::Vpc {
        v1::Vpc {
            id: id.to_owned(),
            vni,
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
