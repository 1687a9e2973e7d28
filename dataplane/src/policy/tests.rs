//! The classifier compared with a walk over all rules.

use ipnetwork::IpNetwork;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;

use super::*;
use crate::packet::parse::{IPV4_MAPPED, address_word};

impl Rule {
    fn matches(&self, subject: &Subject, sets: &[AddressSet]) -> bool {
        let service = match &self.service {
            Service::Any => true,
            Service::Protocol(number) => *number == subject.protocol,
            Service::Ports(number, range) => {
                *number == subject.protocol
                    && !matches!(*number, 1 | 58)
                    && range.contains(&subject.port)
            }
            Service::Icmp(number, kind, code) => {
                let [subject_kind, subject_code] = subject.icmp.to_be_bytes();
                *number == subject.protocol
                    && matches!(*number, 1 | 58)
                    && *kind == subject_kind
                    && code.is_none_or(|code| code == subject_code)
            }
        };
        let remote = match &self.remote {
            Remote::Any => true,
            Remote::Prefix(prefix) => prefix.contains(subject.remote),
            Remote::Set(index) => sets
                .get(*index)
                .is_some_and(|set| set.prefixes.lookup(subject.remote).is_some()),
        };
        service && remote && self.family.is_none_or(|family| family == subject.family)
    }
}

fn walk(entries: &[AclEntry], subject: &Subject, sets: &[AddressSet]) -> (Option<u16>, bool) {
    let matching = entries
        .iter()
        .filter(|entry| entry.rule.matches(subject, sets));
    matching
        .min_by_key(|entry| entry.number)
        .map_or((None, false), |entry| (Some(entry.number), entry.allow))
}

/// Few distinct addresses, so that prefixes nest and subjects hit them.
fn address() -> impl Strategy<Value = u128> {
    prop_oneof![
        (0u32..4, 0u32..4, 0u32..4).prop_map(|(a, b, c)| {
            IPV4_MAPPED | u128::from((10 << 24) | (a << 22) | (b << 12) | c)
        }),
        prop_oneof![Just(0u32), Just(u32::MAX), any::<u32>()]
            .prop_map(|word| IPV4_MAPPED | u128::from(word)),
        (0u128..4, 0u128..4).prop_map(|(a, b)| (0xfd << 120) | (a << 70) | b),
        prop_oneof![Just(1u128), Just(u128::MAX)],
    ]
}

fn prefix() -> impl Strategy<Value = Prefix> {
    (address(), any::<u8>()).prop_map(|(address, length)| {
        let address = crate::packet::parse::word_address(address);
        let longest = if address.is_ipv4() { 32 } else { 128 };
        let network = IpNetwork::new(address, length % (longest + 1)).unwrap();
        network.into()
    })
}

fn number() -> impl Strategy<Value = u8> {
    prop_oneof![
        Just(protocol::TCP),
        Just(protocol::UDP),
        Just(protocol::ICMP),
        Just(protocol::ICMPV6),
        Just(0),
        Just(255),
    ]
}

fn port() -> impl Strategy<Value = u16> {
    prop_oneof![0u16..6, Just(u16::MAX), Just(u16::MAX - 1), any::<u16>()]
}

fn service() -> impl Strategy<Value = Service> {
    prop_oneof![
        Just(Service::Any),
        number().prop_map(Service::Protocol),
        (number(), port(), port())
            .prop_map(|(number, a, b)| Service::Ports(number, a.min(b)..=a.max(b))),
        (number(), 0u8..3, proptest::option::of(0u8..3))
            .prop_map(|(number, kind, code)| Service::Icmp(number, kind, code)),
    ]
}

fn rule() -> impl Strategy<Value = Rule> {
    let family = prop_oneof![
        3 => Just(None),
        1 => Just(Some(Family::Ipv4)),
        1 => Just(Some(Family::Ipv6)),
    ];
    let remote = prop_oneof![
        Just(Remote::Any),
        prefix().prop_map(Remote::Prefix),
        prefix().prop_map(Remote::Prefix),
        (0usize..6).prop_map(Remote::Set),
    ];
    (family, service(), remote).prop_map(|(family, service, remote)| Rule {
        family,
        service,
        remote,
    })
}

fn subject() -> impl Strategy<Value = Subject> {
    let icmp = (0u8..3, 0u8..3).prop_map(|(kind, code)| u16::from_be_bytes([kind, code]));
    (address(), number(), port(), icmp).prop_map(|(remote, protocol, port, icmp)| {
        let family = if remote >> 32 == IPV4_MAPPED >> 32 {
            Family::Ipv4
        } else {
            Family::Ipv6
        };
        Subject {
            family,
            protocol,
            remote,
            port,
            icmp,
        }
    })
}

/// One set fewer than rules refer to.
fn sets() -> impl Strategy<Value = Vec<AddressSet>> {
    vec(vec(prefix(), 0..4), 5).prop_map(|sets| {
        let set = |prefixes: Vec<Prefix>| {
            let mut set = AddressSet::default();
            for prefix in prefixes {
                set.prefixes.insert(prefix, ());
            }
            set
        };
        sets.into_iter().map(set).collect()
    })
}

fn entries(rules: &[(Rule, bool)], order: &[Index]) -> Vec<AclEntry> {
    let mut numbers: Vec<u16> = (1..=rules.len() as u16).collect();
    for (i, with) in order.iter().enumerate().take(rules.len()) {
        numbers.swap(i, with.index(rules.len()));
    }
    numbers
        .into_iter()
        .zip(rules)
        .map(|(number, (rule, allow))| AclEntry {
            number,
            allow: *allow,
            rule: rule.clone(),
        })
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(600))]

    #[test]
    fn an_acl_decides_as_the_walk_over_its_entries_does(
        rules in vec((rule(), any::<bool>()), 0..80),
        order in vec(any::<Index>(), 80),
        sets in sets(),
        subjects in vec(subject(), 1..60),
    ) {
        let entries = entries(&rules, &order);
        let compiled = AclRules::new(&entries);
        for subject in &subjects {
            prop_assert_eq!(compiled.verdict(subject, &sets), walk(&entries, subject, &sets), "{:?}", subject);
        }
        // Batches of one family and of both, and what is left over.
        let (mut one, mut batch) = (Vec::new(), Vec::new());
        for family in [Family::Ipv4, Family::Ipv6] {
            let of_family: Vec<Subject> = subjects.iter().copied().filter(|subject| subject.family == family).collect();
            for subjects in [&of_family, &subjects] {
                one.extend(subjects.iter().map(|subject| compiled.0.decide(subject, &sets)));
                compiled.0.decide_batch(subjects, &sets, |outcome| batch.push(outcome));
            }
        }
        prop_assert_eq!(batch, one);
    }

    #[test]
    fn a_port_admits_what_any_rule_of_any_of_its_groups_does(
        groups in vec(vec(rule(), 0..20), 0..4),
        sets in sets(),
        subjects in vec(subject(), 1..60),
    ) {
        let compiled = GroupRules::Allow(groups.iter().map(|rules| group(rules).into()).collect());
        for subject in subjects {
            let any = groups.iter().flatten().any(|rule| rule.matches(&subject, &sets));
            prop_assert_eq!(compiled.allow(&subject, &sets), any, "{:?}", subject);
        }
    }
}

/// Prefixes within each other, each with services enough that they stay functions of their own.
#[test]
fn every_prefix_of_a_long_chain_has_its_say() {
    let address = address_word("10.255.255.255".parse().unwrap());
    let mut rules = Vec::new();
    for length in 1..=32u8 {
        for step in 0..20u16 {
            let port = u16::from(length) * 1000 + step * 2;
            rules.push(Rule {
                family: None,
                service: Service::Ports(protocol::TCP, port..=port),
                remote: Remote::Prefix(
                    IpNetwork::new("10.255.255.255".parse().unwrap(), length)
                        .unwrap()
                        .into(),
                ),
            });
        }
    }
    let compiled = group(&rules);
    let admitted = |remote: u128| {
        let subject = |port| Subject {
            family: Family::Ipv4,
            protocol: protocol::TCP,
            remote,
            port,
            icmp: 0,
        };
        let ports = 0..=u16::MAX;
        ports
            .filter(|port| compiled.decide(&subject(*port), &[]).is_some())
            .count()
    };
    assert_eq!(admitted(address), 32 * 20);
    assert_eq!(admitted(address ^ 1), 31 * 20);
    assert_eq!(admitted(address ^ (1 << 24)), 7 * 20);
    assert_eq!(admitted(address ^ (1 << 31)), 0);
}

/// The bound that `Classifier::bytes` documents.
#[test]
fn memory_is_linear_in_the_rules_whatever_they_are() {
    let any = |n: u16| (Service::Ports(protocol::TCP, n..=n + 20_000), Remote::Any);
    let nested = |n: u16| {
        let address = IPV4_MAPPED | (u128::from(n) << 4);
        let length = 8 + (n % 25) as u8;
        let network = IpNetwork::new(crate::packet::parse::word_address(address), length);
        (
            Service::Ports(protocol::TCP, n..=n),
            Remote::Prefix(network.unwrap().into()),
        )
    };
    let sets = |n: u16| {
        (
            Service::Ports(protocol::TCP, n..=40_000 - n),
            Remote::Set(n.into()),
        )
    };
    let rules = |kind: &dyn Fn(u16) -> (Service, Remote)| -> Vec<AclEntry> {
        (0..10_000u16)
            .map(|n| {
                let (service, remote) = kind(n);
                let rule = Rule {
                    family: Some(Family::Ipv4),
                    service,
                    remote,
                };
                AclEntry {
                    number: n,
                    allow: true,
                    rule,
                }
            })
            .collect()
    };
    let bytes =
        |kind: &dyn Fn(u16) -> (Service, Remote)| AclRules::new(&rules(kind)).0.bytes() / 10_000;
    assert!(bytes(&any) <= 32, "{}", bytes(&any));
    assert!(bytes(&nested) <= 256, "{}", bytes(&nested));
    assert!(bytes(&sets) <= 160, "{}", bytes(&sets));
}

#[test]
fn a_classifier_takes_lines_of_64_bytes_and_what_links_places_and_sets_do() {
    let on_prefix = |network: &str, ports: std::ops::Range<u16>| -> Vec<Rule> {
        let remote = Remote::Prefix(network.parse::<IpNetwork>().unwrap().into());
        let rule = |port| Rule {
            family: None,
            service: Service::Ports(protocol::TCP, port..=port),
            remote: remote.clone(),
        };
        ports.step_by(2).map(rule).collect()
    };
    let on_set = |set| Rule {
        family: None,
        service: Service::Any,
        remote: Remote::Set(set),
    };
    // Each has 41 steps, too many to be joined: six leaves and a node above them, and a link from one to the other. Places are a function
    // of the first word and one, with its number, of the second.
    let outer = on_prefix("fd00::/48", 100..140);
    let inner = on_prefix("fd00::/64", 200..240);
    let (prefixes, link, number) = ((7 + 7 + 2) * 64, 8, 4);
    // Both families have one leaf of a tree, whose function they share; three nodes, five entries.
    let (leaf, sets) = (64, 2 * (3 * 4 + 5 * 8));
    let rules = [outer, inner, (0..5).map(on_set).collect()].concat();
    assert_eq!(
        group(&rules).bytes() - size_of::<Classifier>(),
        prefixes + link + number + leaf + sets
    );
}

#[test]
fn a_protocol_is_a_word_or_a_number_of_8_bits() {
    for (word, number) in [
        ("", None),
        ("any", None),
        ("tcp", Some(6)),
        ("udp", Some(17)),
        ("icmp", Some(1)),
        ("icmpv6", Some(58)),
        ("sctp", Some(132)),
        ("0", Some(0)),
        ("47", Some(47)),
        ("255", Some(255)),
    ] {
        assert_eq!(protocol_number(word), Ok(number), "{word}");
    }
    for word in ["256", "-1", "TCP", "gre", " 6"] {
        assert!(protocol_number(word).is_err(), "{word}");
    }
}
