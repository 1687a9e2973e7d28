//! The controller's messages as a simulated host reads them: the states stay bytes, so that a host costs this process no more than its share
//! of them. What a host keeps of its state, and its checks, are here too; they share no code with the controller's own digest.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};

use prost::bytes::{Buf, Bytes};
use prost::encoding::decode_varint;
use sha2::{Digest, Sha256};
use weft_proto::v1::{ObjectKey, Welcome};

/// `ToHost` of the contract.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct ToHost {
    #[prost(message, optional, tag = "1")]
    pub(super) welcome: Option<Welcome>,
    #[prost(message, optional, tag = "2")]
    pub(super) full: Option<FullState>,
    #[prost(message, optional, tag = "3")]
    pub(super) delta: Option<Delta>,
}

/// `FullState` of the contract, with the objects in wire form.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct FullState {
    #[prost(uint64, tag = "1")]
    pub(super) revision: u64,
    #[prost(bytes = "vec", tag = "2")]
    pub(super) digest: Vec<u8>,
    #[prost(bytes = "bytes", tag = "3")]
    pub(super) state: Bytes,
}

/// `Delta` of the contract, with the objects in wire form.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Delta {
    #[prost(uint64, tag = "1")]
    pub(super) from_revision: u64,
    #[prost(uint64, tag = "2")]
    pub(super) revision: u64,
    #[prost(bytes = "vec", tag = "3")]
    pub(super) digest: Vec<u8>,
    #[prost(bytes = "bytes", tag = "4")]
    pub(super) upserts: Bytes,
    #[prost(message, repeated, tag = "5")]
    pub(super) deletes: Vec<ObjectKey>,
}

/// The kinds of objects by their field of `Objects`, which counts from 1.
const KINDS: [&str; 22] = [
    "host",
    "vpc",
    "subnet",
    "route_table",
    "network_acl",
    "prefix_list",
    "security_group",
    "port",
    "peering",
    "quota",
    "external_network",
    "elastic_ip",
    "nat_gateway",
    "group_members",
    "learned_address",
    "load_balancer",
    "member_health",
    "multicast_listener",
    "address_holder",
    "dns_zone",
    "port_name",
    "port_health",
];

/// What a host has in force, as far as it keeps that.
#[derive(Debug, Default)]
pub(super) struct Kept {
    pub(super) revision: u64,
    pub(super) digest: Vec<u8>,
    /// Of a host that checks digests.
    objects: Option<Digests>,
}

impl Kept {
    /// Of a host that has nothing yet, and may check digests later.
    pub(super) fn new(checks: bool) -> Self {
        Self {
            objects: checks.then(Digests::default),
            ..Self::default()
        }
    }

    /// Whether the host checks digests.
    pub(super) fn checks(&self) -> bool {
        self.objects.is_some()
    }

    /// Nothing is left of it.
    pub(super) fn forget(&mut self) {
        *self = Self::new(self.objects.is_some());
    }

    /// Takes a whole state.
    ///
    /// # Errors
    /// It is malformed, or its digest is another.
    pub(super) fn take_full(&mut self, full: FullState) -> Result<(), String> {
        if let Some(objects) = &mut self.objects {
            *objects = Digests::default();
            objects.add(full.state)?;
        }
        self.arrive(full.revision, full.digest)
    }

    /// Takes a difference.
    ///
    /// # Errors
    /// It starts or leads elsewhere, deletes what is not there, or its digest is another.
    pub(super) fn take_delta(&mut self, delta: Delta) -> Result<(), String> {
        if delta.from_revision != self.revision || delta.revision < self.revision {
            return Err(format!(
                "a delta from revision {} to {} for a host at {}",
                delta.from_revision, delta.revision, self.revision
            ));
        }
        if let Some(objects) = &mut self.objects {
            for key in &delta.deletes {
                objects.remove(key)?;
            }
            objects.add(delta.upserts)?;
        }
        self.arrive(delta.revision, delta.digest)
    }

    fn arrive(&mut self, revision: u64, digest: Vec<u8>) -> Result<(), String> {
        if let Some(objects) = &self.objects
            && objects.sum.to_bytes()[..] != digest[..]
        {
            return Err(format!("revision {revision} has another digest"));
        }
        (self.revision, self.digest) = (revision, digest);
        Ok(())
    }
}

/// The digests of the objects of a state, by a hash of their kind and id: 40 bytes each.
#[derive(Debug, Default)]
struct Digests {
    objects: HashMap<u64, Sum>,
    sum: Sum,
}

fn key(kind: &str, id: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    (kind, id).hash(&mut hasher);
    hasher.finish()
}

impl Digests {
    /// Adds or replaces the objects of a list in wire form.
    fn add(&mut self, mut list: Bytes) -> Result<(), String> {
        while list.has_remaining() {
            let (field, object) = part(&mut list)?;
            let kind = usize::try_from(field)
                .ok()
                .and_then(|field| KINDS.get(field.checked_sub(1)?))
                .ok_or_else(|| format!("objects of an unknown kind, field {field}"))?;
            let id = match object.first() {
                // The field of the id, as a string.
                Some(0x0a) => part(&mut object.clone())?.1,
                _ => Bytes::new(),
            };
            let mut hash = Sha256::new();
            for part in [kind.as_bytes(), &id, &object] {
                hash.update((part.len() as u64).to_be_bytes());
                hash.update(part);
            }
            let digest = Sum::from_bytes(hash.finalize().into());
            self.sum = self.sum.plus(digest);
            if let Some(before) = self.objects.insert(key(kind, &id), digest) {
                self.sum = self.sum.minus(before);
            }
        }
        Ok(())
    }

    fn remove(&mut self, wire: &ObjectKey) -> Result<(), String> {
        let gone = self.objects.remove(&key(&wire.kind, wire.id.as_bytes()));
        let gone = gone.ok_or_else(|| format!("{} {} is not there", wire.kind, wire.id))?;
        self.sum = self.sum.minus(gone);
        Ok(())
    }
}

/// Takes a field of a message off its front: its number, and its content if that has a length.
fn part(message: &mut Bytes) -> Result<(u64, Bytes), String> {
    let mut number = || decode_varint(message).map_err(|error| error.to_string());
    let (tag, length) = (number()?, number()?);
    if tag & 7 != 2 {
        return Err(format!("a field of wire type {}", tag & 7));
    }
    match usize::try_from(length) {
        Ok(length) if length <= message.len() => Ok((tag >> 3, message.split_to(length))),
        _ => Err("a field is longer than its message".to_owned()),
    }
}

/// A number modulo 2^256.
#[derive(Debug, Clone, Copy, Default)]
struct Sum([u64; 4]);

impl Sum {
    fn from_bytes(bytes: [u8; 32]) -> Self {
        let mut words = [0; 4];
        for (word, bytes) in words.iter_mut().rev().zip(bytes.chunks_exact(8)) {
            *word = bytes
                .iter()
                .fold(0, |word, byte| word << 8 | u64::from(*byte));
        }
        Self(words)
    }

    fn to_bytes(self) -> [u8; 32] {
        let mut bytes = [0; 32];
        for (word, bytes) in self.0.iter().rev().zip(bytes.chunks_exact_mut(8)) {
            bytes.copy_from_slice(&word.to_be_bytes());
        }
        bytes
    }

    fn plus(mut self, other: Self) -> Self {
        let mut carry = 0;
        for (word, other) in self.0.iter_mut().zip(other.0) {
            let sum = u128::from(*word) + u128::from(other) + carry;
            *word = sum as u64;
            carry = sum >> 64;
        }
        self
    }

    fn minus(self, other: Self) -> Self {
        // The negative of a number is its complement and one more.
        self.plus(Self(other.0.map(|word| !word)))
            .plus(Self([1, 0, 0, 0]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use prost::Message;
    use weft_proto::state::State;
    use weft_proto::v1::{self, Objects, to_host};

    /// One of each kind.
    fn objects() -> Objects {
        macro_rules! one_of_each {
            ($($list:ident: $kind:ident,)*) => {
                Objects {
                    $($list: vec![v1::$kind { id: stringify!($list).into(), ..v1::$kind::default() }],)*
                }
            };
        }
        one_of_each! {
            hosts: Host, vpcs: Vpc, subnets: Subnet, route_tables: RouteTable, network_acls: NetworkAcl,
            prefix_lists: PrefixList, security_groups: SecurityGroup, ports: Port, peerings: Peering, quotas: Quota,
            external_networks: ExternalNetwork, elastic_ips: ElasticIp, nat_gateways: NatGateway,
            group_members: GroupMembers, learned_addresses: LearnedAddress, load_balancers: LoadBalancer,
            member_health: MemberHealth, multicast_listeners: MulticastListener, address_holders: AddressHolder,
            dns_zones: DnsZone, port_names: PortName, port_health: PortHealth,
        }
    }

    fn read(message: to_host::Message) -> ToHost {
        let message = v1::ToHost {
            message: Some(message),
        };
        ToHost::decode(&*message.encode_to_vec()).unwrap()
    }

    fn full(state: &State, revision: u64) -> FullState {
        let message = to_host::Message::Full(v1::FullState {
            revision,
            digest: state.digest().to_vec(),
            state: Some(state.to_objects()),
        });
        read(message).full.unwrap()
    }

    fn delta(from: (&State, u64), to: (&State, u64)) -> Delta {
        let (upserts, deletes) = from.0.delta_to(to.0);
        let message = to_host::Message::Delta(v1::Delta {
            from_revision: from.1,
            revision: to.1,
            digest: to.0.digest().to_vec(),
            upserts: Some(upserts),
            deletes,
        });
        read(message).delta.unwrap()
    }

    #[test]
    fn the_digest_is_that_of_the_contract_whatever_the_kind_and_the_change() {
        let before = State::from_objects(objects()).unwrap();
        let mut changed = objects();
        changed.vpcs[0].vni = 7;
        changed.ports.clear();
        changed.peerings.push(v1::Peering {
            id: "more".into(),
            ..v1::Peering::default()
        });
        let after = State::from_objects(changed).unwrap();
        let mut kept = Kept::new(true);
        kept.take_full(full(&before, 3)).unwrap();
        kept.take_delta(delta((&before, 3), (&after, 5))).unwrap();
        kept.take_delta(delta((&after, 5), (&before, 6))).unwrap();
        assert_eq!((kept.revision, &kept.digest[..]), (6, &before.digest()[..]));
    }

    #[test]
    fn what_does_not_follow_is_refused() {
        let before = State::from_objects(objects()).unwrap();
        let after = State::from_objects(Objects::default()).unwrap();
        for checks in [false, true] {
            let mut kept = Kept::new(checks);
            kept.take_full(full(&before, 3)).unwrap();
            assert!(kept.take_delta(delta((&before, 2), (&after, 5))).is_err());
            assert!(kept.take_delta(delta((&before, 3), (&after, 2))).is_err());
        }
        let mut kept = Kept::new(true);
        let mut wrong = full(&before, 3);
        wrong.digest[31] ^= 1;
        assert!(kept.take_full(wrong).is_err());
        let mut kept = Kept::new(true);
        kept.take_full(full(&after, 3)).unwrap();
        let missing = kept.take_delta(delta((&before, 3), (&after, 4)));
        assert!(missing.unwrap_err().contains("is not there"));
    }
}
