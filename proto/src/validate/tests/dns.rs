//! DNS for the guests of a VPC: its domain, zones and their records.

use super::*;
use crate::v1::{DnsRecord, DnsZone, PortName, VpcDns};

fn record(name: &str, kind: &str, data: &[&str]) -> DnsRecord {
    DnsRecord {
        name: name.into(),
        r#type: kind.into(),
        ttl: 0,
        serving_only: false,
        data: data.iter().map(|it| (*it).to_owned()).collect(),
    }
}

/// One that is right.
fn zone() -> DnsZone {
    DnsZone {
        id: "db".into(),
        vpc: "blue".into(),
        domain: "db.example".into(),
        records: vec![
            record("", "A", &["10.0.0.5", "10.0.0.6"]),
            record("", "MX", &["10 mail.db.example."]),
            record("www", "CNAME", &["web.blue.example"]),
            record("_sql._tcp", "SRV", &["0 5 5432 a.db.example"]),
            record("a", "AAAA", &["fd00::5"]),
            record("a", "TXT", &["one and another"]),
        ],
        ..DnsZone::default()
    }
}

fn with(change: impl FnOnce(&mut DnsZone)) -> impl FnOnce(&mut Objects) {
    |objects| {
        let mut zone = zone();
        change(&mut zone);
        objects.dns_zones.push(zone);
    }
}

/// Something is wrong, and this is said of it.
#[track_caller]
fn broken(expected: &str, change: impl FnOnce(&mut Objects)) {
    let found = violations(change, Scope::Intent);
    assert!(
        found.iter().any(|it| it.contains(expected)),
        "expected '{expected}', found {found:#?}"
    );
}

#[test]
fn zones_have_records_of_the_types_that_there_are() {
    accepted(with(|_| {}));
    accepted(with(|zone| {
        zone.domain = "0.0.10.In-Addr.arpa.".into();
        zone.records = vec![record("5", "PTR", &["a.db.example"])];
    }));
    type Change = fn(&mut DnsZone);
    accepted(with(|zone| {
        zone.records = vec![record("five", "A", &["10.0.0.5"])];
        zone.records[0].serving_only = true;
    }));
    let cases: [(&str, Change); 18] = [
        ("records[0].serving_only: is for A and AAAA", |it| {
            it.records = vec![record("a", "CNAME", &["b.example"])];
            it.records[0].serving_only = true;
        }),
        ("vpc: there is no vpc 'none'", |it| it.vpc = "none".into()),
        ("vpc: a zone is in a VPC", |it| it.vpc.clear()),
        ("domain: '*.example' is not a domain name", |it| {
            it.domain = "*.example".into();
        }),
        ("domain: '' is not a domain name", |it| it.domain.clear()),
        ("records[0].name: 'a..b' is not a name in", |it| {
            it.records[0].name = "a..b".into();
        }),
        ("records[0].name: 'a.' is not a name in", |it| {
            it.records[0].name = "a.".into();
        }),
        ("records[0].name: '", |it| {
            it.records[0].name = "a".repeat(64);
        }),
        ("records[0].ttl: 604801 exceeds", |it| {
            it.records[0].ttl = 604_801;
        }),
        ("records[0].type: 'NS' is none of", |it| {
            it.records[0].r#type = "NS".into();
        }),
        ("records[0].data: a record needs at least one", |it| {
            it.records[0].data.clear();
        }),
        ("records[0].data[1]: is given twice", |it| {
            it.records[0].data[1] = "10.0.0.5".into();
        }),
        (
            "records[0].data[0]: 'fd00::1' is not an IPv4 address",
            |it| {
                it.records[0].data[0] = "fd00::1".into();
            },
        ),
        (
            "records[2].data: a record of type CNAME has at most 1 data",
            |it| {
                it.records[2].data.push("b.example".into());
            },
        ),
        (
            "records[6].name: records[0] has this name and type already",
            |it| {
                it.records.push(record("", "A", &["10.0.0.9"]));
            },
        ),
        (
            "records[2].type: 'www.db.example' has other records",
            |it| {
                it.records.push(record("WWW", "A", &["10.0.0.9"]));
            },
        ),
        (
            "records[0].data: a record of type A has at most 32 data",
            |it| {
                it.records[0].data = (0..33).map(|n| format!("10.0.1.{n}")).collect();
            },
        ),
        ("records: a zone has at most 1000 records", |it| {
            let many = (0..1001).map(|n| record(&format!("n{n}"), "A", &["10.0.0.9"]));
            it.records = many.collect();
        }),
    ];
    for (expected, change) in cases {
        broken(expected, with(change));
    }
}

#[test]
fn a_domain_is_one_zones_of_a_vpc() {
    let two = |vpc: &'static str| {
        move |objects: &mut Objects| {
            objects.dns_zones.push(zone());
            objects.dns_zones.push(DnsZone {
                id: "other".into(),
                vpc: vpc.into(),
                domain: "DB.example.".into(),
                ..DnsZone::default()
            });
        }
    };
    broken(
        "domain: 'db.example' is already the domain of dns_zone 'other'",
        two("blue"),
    );
    accepted(two("red"));
    broken("vpc: a VPC has at most 64 DNS zones", |objects| {
        objects.dns_zones = (0..65)
            .map(|n| DnsZone {
                id: format!("z{n}"),
                vpc: "blue".into(),
                domain: format!("z{n}.example"),
                ..DnsZone::default()
            })
            .collect();
    });
}

#[test]
fn cnames_come_to_an_end() {
    let chain = |records: Vec<DnsRecord>| with(move |zone| zone.records = records);
    broken(
        "records[0].data[0]: 'a.db.example' stands for itself in the end",
        chain(vec![
            record("a", "CNAME", &["b.db.example"]),
            record("b", "CNAME", &["A.db.example."]),
        ]),
    );
    broken(
        "records[0].data[0]: 'a.db.example' stands for itself in the end",
        chain(vec![record("a", "CNAME", &["a.db.example"])]),
    );
    // What leads into a loop is none itself, and is refused too.
    broken(
        "records[0].data[0]: 'x.db.example' leads to another CNAME more than 8 times",
        chain(vec![
            record("x", "CNAME", &["a.db.example"]),
            record("a", "CNAME", &["b.db.example"]),
            record("b", "CNAME", &["a.db.example"]),
        ]),
    );
    let long = |count: usize| {
        let link = |n| {
            record(
                &format!("n{n}"),
                "CNAME",
                &[&format!("n{}.db.example", n + 1)],
            )
        };
        chain((0..count).map(link).collect())
    };
    accepted(long(8));
    broken("leads to another CNAME more than 8 times", long(9));
    // Not by two zones: a change of the one would make the other wrong.
    accepted(|objects| {
        let mut other = DnsZone {
            id: "other".into(),
            domain: "other.example".into(),
            ..zone()
        };
        other.records = vec![record("b", "CNAME", &["a.db.example"])];
        objects.dns_zones = vec![zone(), other];
        objects.dns_zones[0].records = vec![record("a", "CNAME", &["b.other.example"])];
    });
}

#[test]
fn the_zones_of_a_vpc_have_so_much_data_together() {
    let full = |id: &str, records: usize| DnsZone {
        id: id.into(),
        domain: format!("{id}.example"),
        records: (0..records)
            .map(|n| DnsRecord {
                data: (0..32).map(|i| format!("10.0.0.{i}")).collect(),
                ..record(&format!("n{n}"), "A", &[])
            })
            .collect(),
        ..zone()
    };
    let zones = move |last: usize| {
        move |objects: &mut Objects| {
            objects.dns_zones = vec![full("a", 1000), full("b", 1000), full("c", last)];
        }
    };
    accepted(zones(48));
    broken(
        "records: the zones of a VPC have at most 65536 data together, and 65568 are given",
        zones(49),
    );
}

#[test]
fn a_change_of_a_zone_is_checked_against_the_others() {
    let mut objects = good();
    objects.dns_zones.push(zone());
    let before = State::from_objects(objects).unwrap();
    let mut next = before.clone();
    next.insert(Object::DnsZone(DnsZone {
        id: "other".into(),
        ..zone()
    }));
    let found = validate_next(&before, &next, Scope::Intent);
    assert_eq!(found.len(), 1, "{found:?}");
    let mut next = before.clone();
    next.remove(&Object::Vpc(objects_vpc(&before)).key());
    let found = validate_next(&before, &next, Scope::Intent);
    let of_zone = |it: &v1::Violation| it.object.as_ref().is_some_and(|it| it.kind == "dns_zone");
    assert!(found.iter().any(of_zone), "{found:?}");
}

fn objects_vpc(state: &State) -> Vpc {
    match state.find(Kind::Vpc, "blue") {
        Some(Object::Vpc(vpc)) => vpc.clone(),
        _ => panic!("there is a blue"),
    }
}

#[test]
fn the_domain_of_a_vpc_leaves_room_for_names() {
    let domain = |text: String| {
        move |objects: &mut Objects| objects.vpcs[0].dns = Some(VpcDns { domain: text })
    };
    accepted(domain("blue.example".into()));
    let label = "a".repeat(63);
    accepted(domain(format!("{label}.{label}.{}", &label[..61])));
    broken(
        "dns.domain: '",
        domain(format!("{label}.{label}.{}", &label[..62])),
    );
    for wrong in ["", "a_b.example", "blue.example.", "-a"] {
        broken(
            "is not a domain name of at most 189 characters",
            domain(wrong.into()),
        );
    }
}

#[test]
fn names_of_ports_are_for_hosts_alone() {
    let named = |change: fn(&mut PortName)| {
        move |objects: &mut Objects| {
            let mut name = PortName {
                id: "p1".into(),
                vpc: "blue".into(),
                name: "web-1".into(),
                addresses: vec!["10.0.0.1".into()],
            };
            change(&mut name);
            objects.port_names.push(name);
        }
    };
    broken("id: made by the controller", named(|_| {}));
    let node = Scope::Node { host: "h1" };
    let of_names = |change| {
        let found = violations(named(change), node);
        found
            .into_iter()
            .filter(|it| it.contains("port_name"))
            .collect::<Vec<_>>()
    };
    assert_eq!(of_names(|_| {}), Vec::<String>::new());
    assert_eq!(of_names(|it| it.name = "Web".into()).len(), 1);
    assert_eq!(of_names(|it| it.vpc = "none".into()).len(), 1);
    assert_eq!(of_names(|it| it.addresses[0] = "x".into()).len(), 1);
}
