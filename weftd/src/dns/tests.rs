//! Questions and answers, without packets.

use std::sync::Arc;

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::{DNSClass, Name, RData, RecordType};
use proptest::prelude::*;
use weft_proto::dns;
use weft_proto::state::{Kind, Object, State};
use weft_proto::v1::{DnsRecord, DnsZone, MemberHealth, Objects, Violation};
use weft_proto::validate::{Scope, validate};

use super::Asking;
use super::answer::{Pending, Transport, Verdict, answer};
use super::names::{Names, Zones};
use super::serving::idle;

const OBJECTS: &str = r#"
vpcs:
  - {id: blue, vni: 1, dns: {domain: Blue.example}}
  - {id: red, vni: 2, dns: {domain: blue.example}}
subnets:
  - {id: a, vpc: blue, cidrs: [10.0.1.0/24, "fd00:1::/64"]}
port_names:
  - {id: p1, vpc: blue, name: web-1, addresses: [10.0.1.11, "fd00:1::11"]}
  - {id: p2, vpc: blue, name: pool, addresses: [10.0.1.12]}
  - {id: p3, vpc: blue, name: pool, addresses: [10.0.1.13]}
  - {id: p4, vpc: blue, name: shadowed, addresses: [10.0.1.14]}
  - {id: r1, vpc: red, name: secret, addresses: [10.0.1.99]}
dns_zones:
  - id: apps
    vpc: blue
    domain: apps.Example.
    records:
      - {name: "", type: A, data: [10.0.1.50]}
      - {name: www, type: CNAME, ttl: 60, data: [web-1.blue.example]}
      - {name: out, type: CNAME, data: [www.example.net]}
      - {name: _http._tcp, type: SRV, data: [0 5 80 web-1.blue.example]}
      - {name: deep.er, type: TXT, data: [text with spaces]}
      - {name: "", type: MX, data: [10 mail.apps.example]}
      - {name: many, type: A, data: [10.0.2.1, 10.0.2.2, 10.0.2.3, 10.0.2.4, 10.0.2.5, 10.0.2.6, 10.0.2.7, 10.0.2.8, 10.0.2.9, 10.0.2.10,
          10.0.2.11, 10.0.2.12, 10.0.2.13, 10.0.2.14, 10.0.2.15, 10.0.2.16, 10.0.2.17, 10.0.2.18, 10.0.2.19, 10.0.2.20, 10.0.2.21, 10.0.2.22,
          10.0.2.23, 10.0.2.24, 10.0.2.25, 10.0.2.26, 10.0.2.27, 10.0.2.28, 10.0.2.29, 10.0.2.30, 10.0.2.31, 10.0.2.32]}
  - id: own
    vpc: blue
    domain: blue.example
    records: [{name: shadowed, type: A, data: [192.0.2.1]}]
  - id: reverse
    vpc: blue
    domain: 2.0.10.in-addr.arpa
    records: [{name: "1", type: PTR, data: [many.apps.example]}]
"#;

fn state() -> State {
    let objects: Objects = serde_yaml_ng::from_str(OBJECTS).unwrap();
    State::from_objects(objects).unwrap()
}

fn ask_with(bytes: &[u8], transport: Transport, recurses: bool) -> Verdict {
    ask_of(&state(), bytes, transport, recurses)
}

fn ask_of(state: &State, bytes: &[u8], transport: Transport, recurses: bool) -> Verdict {
    let zones = Zones::of(state, "blue", None);
    let Some(Object::Vpc(vpc)) = state.find(Kind::Vpc, "blue") else {
        panic!("there is a blue");
    };
    let domain = dns::name(&vpc.dns.as_ref().unwrap().domain).unwrap();
    let names = Names {
        state,
        vpc,
        domain: &domain,
        zones: &zones,
        idle: &idle(state, "blue", zones.checked()),
    };
    answer(Some(&names), bytes, transport, recurses)
}

fn question(name: &str, kind: RecordType) -> Message {
    let mut message = Message::new(7, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
    message
}

const UDP: Transport = Transport::Udp(1400);

#[track_caller]
fn answered(message: &Message, transport: Transport) -> Message {
    match ask_with(&message.to_vec().unwrap(), transport, true) {
        Verdict::Answer(bytes) => {
            let answer = Message::from_vec(&bytes).unwrap();
            assert_eq!(answer.metadata.id, message.metadata.id);
            assert_eq!(answer.metadata.message_type, MessageType::Response);
            answer
        }
        other => panic!("{other:?}"),
    }
}

/// The code, and what is answered, as text.
#[track_caller]
fn says(name: &str, kind: RecordType) -> (ResponseCode, Vec<String>) {
    let answer = answered(&question(name, kind), UDP);
    let texts = answer.answers.iter();
    let texts = texts.map(|it| format!("{} {}", it.name, it.data));
    (answer.metadata.response_code, texts.collect())
}

#[track_caller]
fn forwarded(name: &str, kind: RecordType) -> Box<Pending> {
    let bytes = question(name, kind).to_vec().unwrap();
    match ask_with(&bytes, UDP, true) {
        Verdict::Forward(pending) => pending,
        other => panic!("{other:?}"),
    }
}

use ResponseCode::{NXDomain, NoError, Refused};

#[test]
fn ports_have_names_and_their_addresses_have_them_too() {
    let one = |text: &str| (NoError, vec![text.to_owned()]);
    assert_eq!(
        says("web-1.blue.example.", RecordType::A),
        one("web-1.blue.example. 10.0.1.11")
    );
    assert_eq!(
        says("web-1.blue.example.", RecordType::AAAA),
        one("web-1.blue.example. fd00:1::11")
    );
    let (code, pool) = says("pool.blue.example.", RecordType::A);
    assert_eq!(
        (code, pool.len()),
        (NoError, 2),
        "ports of one name answer together"
    );
    assert_eq!(
        says("11.1.0.10.in-addr.arpa.", RecordType::PTR),
        one("11.1.0.10.in-addr.arpa. web-1.blue.example.")
    );
    let reverse = "1.1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.1.0.0.0.0.0.d.f.ip6.arpa.";
    assert_eq!(
        says(reverse, RecordType::PTR),
        one(&format!("{reverse} web-1.blue.example."))
    );
    // An address that nobody has, of the VPC's and thus nobody else's business.
    assert_eq!(
        says("77.1.0.10.in-addr.arpa.", RecordType::PTR),
        (NXDomain, vec![])
    );
    assert_eq!(
        says("x.11.1.0.10.in-addr.arpa.", RecordType::PTR),
        (NXDomain, vec![])
    );
    // A record comes before a port of its name.
    assert_eq!(
        says("shadowed.blue.example.", RecordType::A),
        one("shadowed.blue.example. 192.0.2.1")
    );
    // What belongs to another VPC of the same domain is not there.
    assert_eq!(
        says("secret.blue.example.", RecordType::A),
        (NXDomain, vec![])
    );
    assert_eq!(
        says("99.1.0.10.in-addr.arpa.", RecordType::PTR),
        (NXDomain, vec![])
    );
}

#[test]
fn zones_are_answered_as_they_are_written() {
    assert_eq!(
        says("apps.example.", RecordType::A),
        (NoError, vec!["apps.example. 10.0.1.50".into()])
    );
    assert_eq!(
        says("_http._tcp.apps.example.", RecordType::SRV).1,
        ["_http._tcp.apps.example. 0 5 80 web-1.blue.example."]
    );
    assert_eq!(
        says("apps.example.", RecordType::MX).1,
        ["apps.example. 10 mail.apps.example."]
    );
    assert_eq!(
        says("deep.er.apps.example.", RecordType::TXT).1,
        ["deep.er.apps.example. text with spaces"]
    );
    assert_eq!(
        says("1.2.0.10.in-addr.arpa.", RecordType::PTR).1,
        ["1.2.0.10.in-addr.arpa. many.apps.example."]
    );
    // CNAMEs lead from one zone to another.
    let (code, texts) = says("www.apps.example.", RecordType::A);
    assert_eq!(code, NoError);
    assert_eq!(
        texts,
        [
            "www.apps.example. web-1.blue.example.",
            "web-1.blue.example. 10.0.1.11"
        ]
    );
    assert_eq!(
        says("www.apps.example.", RecordType::CNAME).1,
        ["www.apps.example. web-1.blue.example."]
    );
}

#[test]
fn what_is_not_there_is_said_with_the_zones_start() {
    for (name, kind, code) in [
        ("nobody.blue.example.", RecordType::A, NXDomain),
        ("nobody.apps.example.", RecordType::A, NXDomain),
        ("web-1.blue.example.", RecordType::MX, NoError),
        ("web-1.blue.example.", RecordType::Unknown(4711), NoError),
        ("blue.example.", RecordType::A, NoError),
        // There is something below it.
        ("er.apps.example.", RecordType::A, NoError),
        ("a\\.b.blue.example.", RecordType::A, NXDomain),
    ] {
        let answer = answered(&question(name, kind), UDP);
        assert_eq!(answer.metadata.response_code, code, "{name}");
        assert!(answer.metadata.authoritative && answer.answers.is_empty());
        let soa = &answer.authorities[0];
        assert!(matches!(soa.data, RData::SOA(_)), "{name}: {soa}");
        assert!(soa.name.zone_of(answer.queries[0].name()), "{name}: {soa}");
    }
    let (_, soa) = says("apps.example.", RecordType::SOA);
    assert_eq!(soa.len(), 1);
}

#[test]
fn only_names_of_nobody_here_are_forwarded() {
    forwarded("www.example.net.", RecordType::A);
    forwarded("example.", RecordType::NS);
    forwarded("notblue.example.", RecordType::A);
    forwarded("1.0.0.127.in-addr.arpa.", RecordType::PTR);
    // Without resolvers, or if the guest does not want others to be asked.
    let bytes = question("www.example.net.", RecordType::A)
        .to_vec()
        .unwrap();
    let mut plain = question("www.example.net.", RecordType::A);
    plain.metadata.recursion_desired = false;
    for (bytes, recurses) in [(bytes, false), (plain.to_vec().unwrap(), true)] {
        let Verdict::Answer(answer) = ask_with(&bytes, UDP, recurses) else {
            panic!("it is forwarded");
        };
        let answer = Message::from_vec(&answer).unwrap();
        assert_eq!(answer.metadata.response_code, Refused);
        assert_eq!(answer.metadata.recursion_available, recurses);
    }
}

#[test]
fn a_cname_that_leads_out_is_answered_with_what_others_say() {
    let pending = forwarded("out.apps.example.", RecordType::A);
    assert_eq!(pending.query.name().to_ascii(), "www.example.net.");
    let mut from = Message::new(1, MessageType::Response, OpCode::Query);
    let name = Name::from_ascii("www.example.net.").unwrap();
    let data = RData::A("203.0.113.9".parse().unwrap());
    from.add_answer(hickory_proto::rr::Record::from_rdata(name, 5, data));
    let answer = Message::from_vec(&pending.answer(Some(from))).unwrap();
    let texts = answer.answers.iter();
    let texts: Vec<_> = texts.map(|it| format!("{} {}", it.name, it.data)).collect();
    assert_eq!(
        texts,
        [
            "out.apps.example. www.example.net.",
            "www.example.net. 203.0.113.9"
        ]
    );
    let pending = forwarded("out.apps.example.", RecordType::A);
    let answer = Message::from_vec(&pending.answer(None)).unwrap();
    assert_eq!(answer.metadata.response_code, ResponseCode::ServFail);
}

#[test]
fn the_question_comes_back_as_it_was_written() {
    let asked = question("wEb-1.BLUE.eXample.", RecordType::A);
    let bytes = asked.to_vec().unwrap();
    let Verdict::Answer(answer) = ask_with(&bytes, UDP, true) else {
        panic!("it is answered");
    };
    assert_eq!(answer[12..bytes.len()], bytes[12..]);
    assert_eq!(Message::from_vec(&answer).unwrap().answers.len(), 1);
}

#[test]
fn an_answer_that_is_too_long_is_cut_and_comes_whole_by_tcp() {
    let asked = question("many.apps.example.", RecordType::A);
    let cut = answered(&asked, UDP);
    assert!(cut.metadata.truncation && cut.answers.is_empty());
    let whole = answered(&asked, Transport::Tcp);
    assert!(!whole.metadata.truncation);
    assert_eq!(whole.answers.len(), 32);
    let mut asked = asked;
    let mut edns = Edns::new();
    edns.set_max_payload(4096);
    asked.set_edns(edns);
    let whole = answered(&asked, UDP);
    assert_eq!(whole.answers.len(), 32);
    assert_eq!(whole.edns.unwrap().max_payload(), 1232);
    // A path that carries less.
    assert!(answered(&asked, Transport::Udp(548)).metadata.truncation);
}

#[test]
fn other_versions_of_edns_are_told_so() {
    let mut asked = question("web-1.blue.example.", RecordType::A);
    let mut edns = Edns::new();
    edns.set_version(1);
    asked.set_edns(edns);
    let answer = answered(&asked, UDP);
    // BADVERS, whose number is that of TSIG's BADSIG, too.
    assert_eq!(u16::from(answer.metadata.response_code), 16);
    assert!(answer.answers.is_empty());
}

#[test]
fn zones_are_nobodys_to_copy() {
    for kind in [RecordType::ANY, RecordType::AXFR, RecordType::IXFR] {
        for name in ["blue.example.", "www.example.net."] {
            assert_eq!(says(name, kind), (Refused, vec![]));
        }
    }
    let mut chaos = question("version.bind.", RecordType::TXT);
    chaos.queries[0].set_query_class(DNSClass::CH);
    let answer = answered(&chaos, UDP);
    assert_eq!(answer.metadata.response_code, Refused);
}

/// The code of an answer that is a header alone.
#[track_caller]
fn bare(bytes: &[u8]) -> u8 {
    match ask_with(bytes, UDP, true) {
        Verdict::Answer(answer) => {
            assert_eq!((answer.len(), &answer[..2]), (12, &bytes[..2]));
            assert_eq!(answer[2] & 0x80, 0x80);
            answer[3] & 0xf
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_is_no_question_is_answered_shortly_or_not_at_all() {
    let good = question("web-1.blue.example.", RecordType::A)
        .to_vec()
        .unwrap();
    let with = |at: usize, byte: u8| {
        let mut bytes = good.clone();
        bytes[at] = byte;
        bytes
    };
    assert!(
        matches!(ask_with(&with(2, 0x81), UDP, true), Verdict::Silence),
        "an answer"
    );
    for len in 0..12 {
        assert!(matches!(
            ask_with(&good[..len], UDP, true),
            Verdict::Silence
        ));
    }
    for opcode in [1, 2, 4, 5, 15] {
        assert_eq!(bare(&with(2, opcode << 3)), 4, "not implemented");
    }
    assert_eq!(bare(&with(5, 0)), 1, "no question");
    assert_eq!(bare(&with(5, 2)), 1, "two of them");
    for len in 12..good.len() {
        assert_eq!(bare(&good[..len]), 1, "cut after {len}");
    }
    // A name that points to itself.
    let mut looped = good[..12].to_vec();
    looped.extend([0xc0, 12, 0, 1, 0, 1]);
    assert_eq!(bare(&looped), 1);
}

#[test]
fn without_names_nothing_is_said_or_forwarded() {
    let bytes = question("www.example.net.", RecordType::A)
        .to_vec()
        .unwrap();
    let Verdict::Answer(bytes) = answer(None, &bytes, UDP, true) else {
        panic!("it is answered");
    };
    let answer = Message::from_vec(&bytes).unwrap();
    assert_eq!(answer.metadata.response_code, ResponseCode::ServFail);
}

#[test]
fn zones_are_read_anew_when_one_changes() {
    let mut state = state();
    let zones = Zones::of(&state, "blue", None);
    let is_same = |state: &State, zones| Arc::ptr_eq(zones, &Zones::of(state, "blue", Some(zones)));
    assert!(is_same(&state, &zones));
    let mut changed = match state.find(Kind::DnsZone, "own") {
        Some(Object::DnsZone(zone)) => zone.clone(),
        _ => panic!("there is one"),
    };
    changed.records.clear();
    state.insert(Object::DnsZone(changed.clone()));
    assert!(!is_same(&state, &zones));
    let next = Zones::of(&state, "blue", Some(&zones));
    let read_again = |origin: &str| !zones.shares(&next, origin);
    assert!(read_again("blue.example"));
    assert!(!read_again("apps.example") && !read_again("2.0.10.in-addr.arpa"));
    state.remove(&Object::DnsZone(changed).key());
    assert!(!is_same(&state, &next));
}

/// A state with these zones in blue: domains, and names with what they stand for.
fn with_zones(zones: &[(&str, &[(&str, &str)])]) -> State {
    let mut objects: Objects = serde_yaml_ng::from_str(OBJECTS).unwrap();
    objects.dns_zones = zones
        .iter()
        .map(|(domain, aliases)| DnsZone {
            id: domain.replace('.', "-"),
            vpc: "blue".into(),
            domain: (*domain).into(),
            records: aliases
                .iter()
                .map(|(name, target)| DnsRecord {
                    name: (*name).into(),
                    r#type: "CNAME".into(),
                    data: vec![(*target).into()],
                    ..DnsRecord::default()
                })
                .collect(),
            ..DnsZone::default()
        })
        .collect();
    let state = State::from_objects(objects).unwrap();
    let found = validate(&state, Scope::Intent);
    let of_zone = |it: &&Violation| it.object.as_ref().is_some_and(|it| it.kind == "dns_zone");
    assert_eq!(found.iter().find(of_zone), None);
    state
}

#[track_caller]
fn code_of(state: &State, name: &str) -> ResponseCode {
    let bytes = question(name, RecordType::A).to_vec().unwrap();
    match ask_of(state, &bytes, UDP, true) {
        Verdict::Answer(bytes) => Message::from_vec(&bytes).unwrap().metadata.response_code,
        other => panic!("{other:?}"),
    }
}

#[test]
fn cnames_from_zone_to_zone_are_followed_so_far() {
    let state = with_zones(&[
        ("one.example", &[("loop", "loop.two.example")]),
        ("two.example", &[("loop", "loop.one.example")]),
    ]);
    assert_eq!(code_of(&state, "loop.one.example."), ResponseCode::ServFail);
    // n0 of one, n0 of two, n1 of one and so on, to a port in the end.
    let chain = |links: usize| {
        let names: Vec<String> = (0..links).map(|n| format!("n{}", n / 2)).collect();
        let target = |n: usize| match names.get(n + 1) {
            Some(name) if n.is_multiple_of(2) => format!("{name}.two.example"),
            Some(name) => format!("{name}.one.example"),
            None => "web-1.blue.example".into(),
        };
        let targets: Vec<String> = (0..links).map(target).collect();
        let of = |parity: usize| -> Vec<(&str, &str)> {
            let all = (0..links).filter(|n| n % 2 == parity);
            all.map(|n| (&*names[n], &*targets[n])).collect()
        };
        with_zones(&[("one.example", &of(0)), ("two.example", &of(1))])
    };
    assert_eq!(code_of(&chain(8), "n0.one.example."), NoError);
    assert_eq!(
        code_of(&chain(9), "n0.one.example."),
        ResponseCode::ServFail
    );
}

/// A load balancer with two members, a port and an address; one more port that is a member of none.
const SERVED: &str = r#"
vpcs: [{id: blue, vni: 1, dns: {domain: blue.example}}]
ports:
  - {id: p1, vpc: blue, addresses: [10.0.1.11, "fd00:1::11"]}
port_names:
  - {id: p1, vpc: blue, name: web-1, addresses: [10.0.1.11, "fd00:1::11"]}
load_balancers:
  - id: lb
    vpc: blue
    addresses: [10.0.1.200, "fd00:1::200"]
    listeners:
      - {protocol: tcp, port_min: 80, health: {protocol: tcp}, members: [{port: p1, to_port_min: 8080}, {address: 10.0.1.12, to_port_min: 8080}]}
dns_zones:
  - id: apps
    vpc: blue
    domain: apps.example
    records:
      - {name: www, type: A, serving_only: true, data: [10.0.1.200, 192.0.2.1]}
      - {name: www, type: AAAA, serving_only: true, data: ["fd00:1::200", "2001:db8::1"]}
      - {name: members, type: A, serving_only: true, data: [10.0.1.11, 10.0.1.12, 10.0.1.13]}
      - {name: one, type: A, serving_only: true, data: [10.0.1.200]}
      - {name: always, type: A, data: [10.0.1.200, 10.0.1.11]}
"#;

#[test]
fn addresses_that_do_not_serve_are_left_out_where_the_record_says_so() {
    let said = |down: &[&str], name: &str, kind: RecordType| {
        let mut objects: Objects = serde_yaml_ng::from_str(SERVED).unwrap();
        let balancer = &objects.load_balancers[0];
        let health = down.iter().map(|address| {
            let at = (address.parse().unwrap(), 8080);
            MemberHealth::of(balancer, &balancer.listeners[0], at)
        });
        objects.member_health = health.collect();
        let state = State::from_objects(objects).unwrap();
        let bytes = question(name, kind).to_vec().unwrap();
        let Verdict::Answer(bytes) = ask_of(&state, &bytes, UDP, true) else {
            panic!("{name} is answered");
        };
        let message = Message::from_vec(&bytes).unwrap();
        let data = message.answers.iter().map(|it| it.data.to_string());
        // Answers come in any order.
        let mut data: Vec<String> = data.collect();
        data.sort();
        data.join(" ")
    };
    let (a, aaaa) = (RecordType::A, RecordType::AAAA);
    let (www, members) = ("www.apps.example", "members.apps.example");
    assert_eq!(said(&[], www, a), "10.0.1.200 192.0.2.1");
    assert_eq!(said(&[], members, a), "10.0.1.11 10.0.1.12 10.0.1.13");
    // One of two members serves on; the other one is known by its own address, too.
    let one = ["10.0.1.11"];
    assert_eq!(said(&one, www, a), "10.0.1.200 192.0.2.1");
    assert_eq!(said(&one, members, a), "10.0.1.12 10.0.1.13");
    let both = ["10.0.1.11", "10.0.1.12"];
    assert_eq!(said(&both, www, a), "192.0.2.1");
    assert_eq!(said(&both, members, a), "10.0.1.13");
    assert_eq!(
        said(&both, "always.apps.example", a),
        "10.0.1.11 10.0.1.200"
    );
    // Nothing else is left.
    assert_eq!(said(&both, "one.apps.example", a), "10.0.1.200");
    // The one that is left takes no flows.
    let objects: Objects = serde_yaml_ng::from_str(SERVED).unwrap();
    let drains = |change: fn(&mut Objects)| {
        let mut objects = objects.clone();
        change(&mut objects);
        let state = State::from_objects(objects).unwrap();
        idle(&state, "blue", ["10.0.1.200".parse().unwrap()].into_iter()).len()
    };
    assert_eq!(drains(|_| {}), 0);
    assert_eq!(
        drains(|o| o.load_balancers[0].listeners[0].members[0].draining = true),
        0
    );
    assert_eq!(
        drains(|o| {
            let members = o.load_balancers[0].listeners[0].members.iter_mut();
            members.for_each(|member| member.draining = true);
        }),
        1
    );
    // The one member by IPv6.
    assert_eq!(said(&both, www, aaaa), "2001:db8::1 fd00:1::200");
    assert_eq!(said(&["fd00:1::11"], www, aaaa), "2001:db8::1");
    assert_eq!(said(&["fd00:1::11"], www, a), "10.0.1.200 192.0.2.1");
}

#[test]
fn what_lies_above_a_domain_of_the_vpc_exists() {
    let state = with_zones(&[
        ("example", &[]),
        ("a.b.example", &[]),
        ("home.arpa", &[]),
        ("10.in-addr.arpa", &[]),
    ]);
    for (name, code) in [
        ("b.example.", NoError),
        ("c.example.", NXDomain),
        ("bb.example.", NXDomain),
        ("home.arpa.", NoError),
        ("x.home.arpa.", NXDomain),
        ("0.10.in-addr.arpa.", NoError),
        ("x.10.in-addr.arpa.", NXDomain),
        ("9.9.9.10.in-addr.arpa.", NXDomain),
    ] {
        assert_eq!(code_of(&state, name), code, "{name}");
    }
}

#[test]
fn a_vpc_asks_resolvers_no_more_than_its_share() {
    let asking: Asking<&str> = Asking::new();
    let first = asking.turn("blue", 2);
    let second = asking.turn("blue", 2);
    assert!(first.is_some() && second.is_some());
    assert!(asking.turn("blue", 2).is_none());
    assert!(asking.turn("red", 2).is_some());
    drop(first);
    assert!(asking.turn("blue", 2).is_some());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// Whatever comes: an answer is one, to its asker, and fits.
    #[test]
    fn any_bytes_have_a_short_answer_or_none(
        start in 0usize..4,
        noise in proptest::collection::vec(any::<u8>(), 0..200),
        flips in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
        room in 512usize..1500,
    ) {
        let names = ["web-1.blue.example.", "many.apps.example.", "11.1.0.10.in-addr.arpa.", "www.example.net."];
        let mut asked = question(names[start], RecordType::A);
        asked.set_edns(Edns::new());
        let mut bytes = if noise.len() % 3 == 0 { noise } else { [asked.to_vec().unwrap(), noise].concat() };
        for (at, byte) in flips {
            if !bytes.is_empty() {
                let at = at.index(bytes.len());
                bytes[at] = byte;
            }
        }
        match ask_with(&bytes, Transport::Udp(room), true) {
            Verdict::Answer(answer) => {
                prop_assert!(answer.len() <= room && answer.len() >= 12);
                prop_assert_eq!(&answer[..2], &bytes[..2]);
                prop_assert_eq!(answer[2] & 0x80, 0x80);
                prop_assert!(answer.len() == 12 || Message::from_vec(&answer).is_ok());
            }
            Verdict::Forward(pending) => {
                let name = super::names::text(pending.query.name());
                prop_assert!(!dns::is_in(&name, "blue.example") && !dns::is_in(&name, "apps.example"));
            }
            Verdict::Silence => {}
        }
    }
}
