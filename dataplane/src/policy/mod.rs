//! Policy: rules of security groups and network ACLs, and their evaluation, on session misses only.
//!
//! [`Rule`] is one configured condition, [`Classifier`] many of them compiled, [`AddressSet`] what rules refer to by name. Sets change
//! without their rules being compiled again.

mod classifier;
mod places;
mod set_rules;
mod steps;
#[cfg(test)]
mod tests;

use std::sync::Arc;

pub use self::classifier::Classifier;
use crate::packet::parse::protocol;
use crate::packet::{Family, Flow};
use crate::route::{Lpm, Prefix};

/// Whom a rule is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Remote {
    /// Anyone.
    Any,
    /// Addresses under one prefix.
    Prefix(Prefix),
    /// Members of an address set, by its place in [`crate::snapshot::Vpc::sets`].
    Set(usize),
}

/// What of the transport a rule is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Service {
    /// Any protocol.
    Any,
    /// A protocol, whatever it carries.
    Protocol(u8),
    /// A protocol with ports, both bounds included.
    Ports(u8, std::ops::RangeInclusive<u16>),
    /// An ICMP type, and a code if one is named.
    Icmp(u8, u8, Option<u8>),
}

/// One condition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// Only this family, if set.
    pub family: Option<Family>,
    /// Protocol and ports.
    pub service: Service,
    /// The other end.
    pub remote: Remote,
}

/// What a rule is held against: the flow, seen from one end of it.
#[derive(Debug, Clone, Copy)]
pub struct Subject {
    /// Family of the packet.
    pub family: Family,
    /// IP protocol.
    pub protocol: u8,
    /// The far end's address.
    pub remote: u128,
    /// The destination port of the packet that opens the flow.
    pub port: u16,
    /// ICMP type and code.
    pub icmp: u16,
}

impl Subject {
    /// The subject of a flow in the direction in which it was opened, with its remote at the source (ingress) or at the destination.
    pub fn of(flow: &Flow, icmp: u16, remote: u128) -> Self {
        Self {
            family: flow.family(),
            protocol: flow.protocol,
            remote,
            port: flow.destination_port,
            icmp,
        }
    }
}

/// Addresses that rules refer to by name: a group's members, a prefix list.
#[derive(Debug, Clone, Default)]
pub struct AddressSet {
    /// For people: `group web`, `prefix list office`.
    pub name: String,
    /// The addresses.
    pub prefixes: Lpm<()>,
}

/// The key of a service: the protocol, then the destination port, or for ICMP type and code.
fn service_key(protocol: u8, low: u16) -> u32 {
    let [high, low] = low.to_be_bytes();
    u32::from_be_bytes([0, protocol, high, low])
}

fn is_icmp(number: u8) -> bool {
    matches!(number, protocol::ICMP | protocol::ICMPV6)
}

impl Subject {
    fn service(&self) -> u32 {
        let low = if is_icmp(self.protocol) {
            self.icmp
        } else {
            self.port
        };
        service_key(self.protocol, low)
    }
}

impl Service {
    /// First and last key of the subjects that it is about; none when there are no such subjects, as ICMP has no ports and TCP no types.
    fn keys(&self) -> Option<(u32, u32)> {
        match self {
            Self::Any => Some((0, u32::MAX)),
            Self::Protocol(number) => {
                Some((service_key(*number, 0), service_key(*number, u16::MAX)))
            }
            Self::Ports(number, range) => (!is_icmp(*number) && !range.is_empty()).then(|| {
                (
                    service_key(*number, *range.start()),
                    service_key(*number, *range.end()),
                )
            }),
            Self::Icmp(number, kind, code) => is_icmp(*number).then(|| {
                let (first, last) = code.map_or((0, u8::MAX), |code| (code, code));
                let low = |code| u16::from_be_bytes([*kind, code]);
                (
                    service_key(*number, low(first)),
                    service_key(*number, low(last)),
                )
            }),
        }
    }
}

/// What the security groups of a port say, for one direction; allow only.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum GroupRules {
    /// No rule in this direction and the default is to let pass.
    Open,
    /// What any rule of any of the groups matches passes. A group is compiled once, whatever the ports that are in it.
    Allow(Vec<Arc<Classifier>>),
}

impl GroupRules {
    /// Whether the subject may pass.
    pub fn allow(&self, subject: &Subject, sets: &[AddressSet]) -> bool {
        match self {
            Self::Open => true,
            Self::Allow(groups) => groups
                .iter()
                .any(|rules| rules.decide(subject, sets).is_some()),
        }
    }
}

/// Rules of a group for one direction, ready to be shared by its ports.
pub fn group<'a>(rules: impl IntoIterator<Item = &'a Rule>) -> Classifier {
    Classifier::new(rules.into_iter().map(|rule| (0, rule)))
}

/// One entry of a network ACL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AclEntry {
    /// Its number; the lowest that matches decides.
    pub number: u16,
    /// Allow or deny.
    pub allow: bool,
    /// The condition.
    pub rule: Rule,
}

/// The rules of a network ACL for one direction: stateless, ordered, deny at the end.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AclRules(Classifier);

impl AclRules {
    /// Compiles entries, in any order.
    pub fn new(entries: &[AclEntry]) -> Self {
        let outcome = |entry: &AclEntry| u32::from(entry.number) << 1 | u32::from(entry.allow);
        Self(Classifier::new(
            entries.iter().map(|entry| (outcome(entry), &entry.rule)),
        ))
    }

    /// The number of the entry that decides about the subject, and its action; no number when none matches.
    pub fn verdict(&self, subject: &Subject, sets: &[AddressSet]) -> (Option<u16>, bool) {
        self.0
            .decide(subject, sets)
            .map_or((None, false), |outcome| {
                (Some((outcome >> 1) as u16), outcome & 1 == 1)
            })
    }
}

/// A network ACL.
#[derive(Debug, Clone, Default)]
pub struct Acl {
    /// Its id.
    pub id: String,
    /// Towards the ports.
    pub ingress: AclRules,
    /// From the ports.
    pub egress: AclRules,
}

/// The protocol number of a word of the wire contract; none for "any".
///
/// # Errors
/// The word names no protocol.
pub fn protocol_number(word: &str) -> Result<Option<u8>, String> {
    match word {
        "" | "any" => Ok(None),
        "tcp" => Ok(Some(protocol::TCP)),
        "udp" => Ok(Some(protocol::UDP)),
        "icmp" => Ok(Some(protocol::ICMP)),
        "icmpv6" => Ok(Some(protocol::ICMPV6)),
        "sctp" => Ok(Some(protocol::SCTP)),
        number => number
            .parse()
            .map(Some)
            .map_err(|_| format!("'{number}' is not a protocol")),
    }
}
