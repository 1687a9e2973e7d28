//! VPCs whose ports a host learns on demand.

use super::*;
use crate::v1::{LearnedAddress, Learning};

const NODE: Scope<'_> = Scope::Node { host: "h1" };

/// What breaks rules where blue's ports are learned, and with such an address.
fn broken(change: impl FnOnce(&mut Objects, &mut LearnedAddress)) -> Vec<String> {
    violations(
        |o| {
            o.vpcs[0].learning = Some(Learning {
                hosts: vec!["h1".into(), "h2".into()],
            });
            let mut learned = LearnedAddress::new("blue", "10.0.1.200");
            change(o, &mut learned);
            o.learned_addresses.push(learned);
        },
        NODE,
    )
    .into_iter()
    .filter(|line| line.contains("learn"))
    .collect()
}

#[test]
fn an_address_is_one_and_of_a_vpc_that_learns() {
    assert_eq!(broken(|_, _| {}), Vec::<String>::new());
    let mac = |_: &mut Objects, learned: &mut LearnedAddress| {
        *learned = LearnedAddress::new("blue", "02:00:00:00:00:77");
    };
    assert_eq!(broken(mac), Vec::<String>::new());
    type Change = fn(&mut Objects, &mut LearnedAddress);
    let cases: [(&str, Change); 5] = [
        ("id: is that of its vpc and its address", |_, learned| {
            learned.id = "x".into();
        }),
        ("vpc: there is no vpc 'none'", |_, learned| {
            *learned = LearnedAddress::new("none", "10.0.1.200");
        }),
        ("vpc: the ports of vpc 'blue' are not learned", |o, _| {
            o.vpcs[0].learning = None;
        }),
        ("address: ", |_, learned| {
            *learned = LearnedAddress::new("blue", "10.0.1.0/24");
        }),
        ("learning.hosts[1]: there is no host 'none'", |o, _| {
            o.vpcs[0].learning = Some(Learning {
                hosts: vec!["h1".into(), "none".into()],
            });
        }),
    ];
    for (wanted, change) in cases {
        let found = broken(change);
        assert!(
            found.len() == 1 && found[0].contains(wanted),
            "{wanted}: {found:?}"
        );
    }
}

#[test]
fn neither_is_of_the_intent() {
    refused(
        "learned_address blue/10.0.1.200 id: made by the controller: hosts ask for addresses",
        |o| {
            let learned = LearnedAddress::new("blue", "10.0.1.200");
            o.learned_addresses.push(learned);
        },
    );
    refused(
        "vpc blue learning: made by the controller: whether hosts learn its ports is a setting of the controller",
        |o| o.vpcs[0].learning = Some(Learning::default()),
    );
}
