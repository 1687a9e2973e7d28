//! Policy: rules of security groups and network ACLs, and the judgement over them. Evaluated on session misses only.

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
    /// Members of an address set, by its place in [`crate::snapshot::Snapshot::sets`].
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

impl Rule {
    /// Whether the rule is about the subject.
    pub fn matches(&self, subject: &Subject, sets: &[AddressSet]) -> bool {
        if self.family.is_some_and(|family| family != subject.family) {
            return false;
        }
        let service = match &self.service {
            Service::Any => true,
            Service::Protocol(number) => *number == subject.protocol,
            Service::Ports(number, range) => {
                *number == subject.protocol && range.contains(&subject.port)
            }
            Service::Icmp(number, kind, code) => {
                let [subject_kind, subject_code] = subject.icmp.to_be_bytes();
                *number == subject.protocol
                    && *kind == subject_kind
                    && code.is_none_or(|code| code == subject_code)
            }
        };
        service
            && match &self.remote {
                Remote::Any => true,
                Remote::Prefix(prefix) => prefix.contains(subject.remote),
                Remote::Set(index) => sets
                    .get(*index)
                    .is_some_and(|set| set.prefixes.lookup(subject.remote).is_some()),
            }
    }
}

/// The rules of a port's groups for one direction; allow only.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum GroupRules {
    /// No rule in this direction and the default is to let pass.
    Open,
    /// What any of the rules matches passes.
    Allow(Vec<Rule>),
}

impl GroupRules {
    /// Whether the subject may pass.
    pub fn allow(&self, subject: &Subject, sets: &[AddressSet]) -> bool {
        match self {
            Self::Open => true,
            Self::Allow(rules) => rules.iter().any(|rule| rule.matches(subject, sets)),
        }
    }
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

/// A network ACL: stateless, ordered, deny at the end.
#[derive(Debug, Clone, Default)]
pub struct Acl {
    /// Its id.
    pub id: String,
    /// Towards the ports, ascending by number.
    pub ingress: Vec<AclEntry>,
    /// From the ports, ascending by number.
    pub egress: Vec<AclEntry>,
}

/// The verdict of a list of ACL entries: the number that decided, and what it said; no number when none matched.
pub fn acl_verdict(
    entries: &[AclEntry],
    subject: &Subject,
    sets: &[AddressSet],
) -> (Option<u16>, bool) {
    entries
        .iter()
        .find(|entry| entry.rule.matches(subject, sets))
        .map_or((None, false), |entry| (Some(entry.number), entry.allow))
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
