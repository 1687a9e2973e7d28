//! Policy routes: what comes before the longest prefix, by more than the destination. Asked in order, on a session miss alone.

use std::ops::RangeInclusive;
use std::sync::Arc;

use super::Prefix;
use super::prefix::mask;
use crate::packet::{Family, Flow};

/// Any port.
const ANY_PORT: RangeInclusive<u16> = 0..=u16::MAX;

/// What a policy route matches: all that is set.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Match {
    /// Prefix of the source.
    pub source: Option<Prefix>,
    /// Prefix of the destination.
    pub destination: Option<Prefix>,
    /// IP protocol.
    pub protocol: Option<u8>,
    /// Source ports. A flow of a protocol without ports has some too, so that only rules for one with ports may restrict them.
    pub source_ports: RangeInclusive<u16>,
    /// Destination ports.
    pub destination_ports: RangeInclusive<u16>,
    /// DSCP, 0 to 63.
    pub dscp: Option<u8>,
}

impl Default for Match {
    fn default() -> Self {
        Self {
            source: None,
            destination: None,
            protocol: None,
            source_ports: ANY_PORT,
            destination_ports: ANY_PORT,
            dscp: None,
        }
    }
}

/// A [`Match`] as it is compared: masks instead of options, so that one comparison takes few branches. 80 bytes; made by the agent, read by workers.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Test {
    source: (u128, u128),
    destination: (u128, u128),
    /// IPv4 in the first bit, IPv6 in the second.
    families: u8,
    /// Value and mask.
    protocol: (u8, u8),
    dscp: (u8, u8),
    /// The first port, and how many more.
    source_ports: (u16, u16),
    destination_ports: (u16, u16),
}

const FAMILIES: u8 = 3;

fn bit(family: Family) -> u8 {
    match family {
        Family::Ipv4 => 1,
        Family::Ipv6 => 2,
    }
}

impl Test {
    fn new(matches: &Match) -> Self {
        let masked = |prefix: Option<Prefix>| {
            prefix.map_or((0, 0), |prefix| (prefix.bits(), mask(prefix.length())))
        };
        let families = [matches.source, matches.destination].into_iter().flatten();
        let exactly = |value: Option<u8>| value.map_or((0, 0), |value| (value, u8::MAX));
        let span = |ports: &RangeInclusive<u16>| {
            (*ports.start(), ports.end().saturating_sub(*ports.start()))
        };
        Self {
            source: masked(matches.source),
            destination: masked(matches.destination),
            families: families.fold(FAMILIES, |all, prefix| all & bit(prefix.family())),
            protocol: exactly(matches.protocol),
            dscp: exactly(matches.dscp),
            source_ports: span(&matches.source_ports),
            destination_ports: span(&matches.destination_ports),
        }
    }

    #[inline]
    fn holds(&self, flow: &Flow, family: u8, dscp: u8) -> bool {
        let addresses = (flow.source ^ self.source.0) & self.source.1
            | (flow.destination ^ self.destination.0) & self.destination.1;
        let rest = (flow.protocol ^ self.protocol.0) & self.protocol.1
            | (dscp ^ self.dscp.0) & self.dscp.1;
        let within = |port: u16, (first, more): (u16, u16)| port.wrapping_sub(first) <= more;
        addresses == 0
            && rest == 0
            && self.families & family != 0
            && within(flow.source_port, self.source_ports)
            && within(flow.destination_port, self.destination_ports)
    }
}

/// A policy route.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Policy<T> {
    /// Of those that match, the lowest decides.
    pub priority: u16,
    /// What it matches.
    pub matches: Match,
    /// Where it leads; none leaves the packet to the routes.
    pub target: Option<T>,
}

/// The policy routes of a table, in order: linear, for there are at most 1000
/// ([`TABLE_POLICIES`](weft_proto::validate::limits::TABLE_POLICIES)) and most tables have none. What it costs is shown by the bench `services`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Policies<T> {
    /// In the order of the policies.
    tests: Arc<[Test]>,
    policies: Arc<[Policy<T>]>,
}

impl<T> Default for Policies<T> {
    fn default() -> Self {
        Self {
            tests: Arc::from([]),
            policies: Arc::from([]),
        }
    }
}

impl<T> Policies<T> {
    /// Of policy routes in any order, whose priorities differ. No range of ports is empty.
    pub fn new(mut policies: Vec<Policy<T>>) -> Self {
        policies.sort_by_key(|policy| policy.priority);
        let tests = policies.iter().map(|policy| Test::new(&policy.matches));
        Self {
            tests: tests.collect(),
            policies: policies.into(),
        }
    }

    /// The one that decides for a packet of a flow with a DSCP.
    #[inline]
    pub fn find(&self, flow: &Flow, dscp: u8) -> Option<&Policy<T>> {
        if self.tests.is_empty() {
            return None;
        }
        let family = bit(flow.family());
        let mut tests = self.tests.iter();
        let at = tests.position(|test| test.holds(flow, family, dscp))?;
        self.policies.get(at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::parse::address_word;

    impl Match {
        fn holds(&self, flow: &Flow, dscp: u8) -> bool {
            Test::new(self).holds(flow, bit(flow.family()), dscp)
        }
    }

    fn word(text: &str) -> u128 {
        address_word(text.parse().unwrap())
    }

    fn prefix(text: &str) -> Option<Prefix> {
        Some(text.parse::<ipnetwork::IpNetwork>().unwrap().into())
    }

    fn flow(source: &str, destination: &str) -> Flow {
        Flow {
            source: word(source),
            destination: word(destination),
            source_port: 4000,
            destination_port: 443,
            protocol: 6,
        }
    }

    #[test]
    fn a_match_holds_where_all_that_is_set_does() {
        let flow = flow("10.0.1.11", "192.0.2.1");
        let whole = Match {
            source: prefix("10.0.1.0/24"),
            destination: prefix("192.0.2.0/24"),
            protocol: Some(6),
            source_ports: 4000..=4000,
            destination_ports: 80..=443,
            dscp: Some(46),
        };
        assert!(Match::default().holds(&flow, 0) && whole.holds(&flow, 46));
        assert!(!whole.holds(&flow, 45));
        type Spoil = fn(&mut Match);
        let spoils: [Spoil; 5] = [
            |it| it.source = prefix("10.0.2.0/24"),
            |it| it.destination = prefix("192.0.2.2/32"),
            |it| it.protocol = Some(17),
            |it| it.source_ports = 0..=3999,
            |it| it.destination_ports = 444..=u16::MAX,
        ];
        for spoil in spoils {
            let mut spoilt = whole.clone();
            spoil(&mut spoilt);
            assert!(!spoilt.holds(&flow, 46), "{spoilt:?}");
        }
    }

    #[test]
    fn the_default_prefix_of_a_family_is_that_familys_alone() {
        let of = |text: &str| Match {
            source: prefix(text),
            ..Match::default()
        };
        let (four, six) = (flow("10.0.1.11", "10.0.2.1"), flow("fd00::1", "fd00::2"));
        assert!(of("0.0.0.0/0").holds(&four, 0) && !of("0.0.0.0/0").holds(&six, 0));
        assert!(of("::/0").holds(&six, 0) && !of("::/0").holds(&four, 0));
    }

    #[test]
    fn the_lowest_priority_that_matches_decides() {
        let policy = |priority, protocol| Policy {
            priority,
            matches: Match {
                protocol,
                ..Match::default()
            },
            target: Some(priority),
        };
        let policies = vec![policy(30, None), policy(20, Some(6)), policy(10, Some(17))];
        let policies = Policies::new(policies);
        let mut flow = flow("10.0.1.11", "10.0.2.1");
        let mut found = |protocol| {
            flow.protocol = protocol;
            policies.find(&flow, 0).and_then(|policy| policy.target)
        };
        assert_eq!([6, 17, 1].map(&mut found), [Some(20), Some(10), Some(30)]);
        assert_eq!(Policies::<u16>::default().find(&flow, 0), None);
    }
}
