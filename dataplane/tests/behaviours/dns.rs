//! Packets to the gateway's port of DNS in the pipeline, in VPCs whose gateways answer it and in others.

use dhcproto::v4::{DhcpOption, Message, MessageType, OptionCode};
use dhcproto::{Decodable, Decoder};
use weft_dataplane::packet::{DropReason, Offload, Segments};
use weft_dataplane::pipeline::{Settings, trace};
use weft_fabric::Fabric;
use weft_proto::state::State;
use weft_proto::v1::{Dhcp, Objects, PortName, SecurityRule, VpcDns};

use crate::dhcp::{broadcast, message};
use crate::frames::{A1, A2, End, echo, read, tcp, udp, udp6};
use crate::topology::{LIMITS, ROUTER, change, fabric, group, objects, port};

/// The gateway of a's subnet.
const GATEWAY: End = End {
    mac: ROUTER,
    v4: [10, 0, 1, 1],
    v6: [0xfd, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1],
};
/// By its link-local address.
const LOCAL: End = End {
    v6: [
        0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0x77, 0x65, 0xff, 0xfe, 0x66, 0x74, 1,
    ],
    ..GATEWAY
};

fn answering(objects: &mut Objects) {
    for vpc in objects.vpcs.iter_mut().filter(|it| it.id == "blue") {
        vpc.dns = Some(VpcDns {
            domain: "blue.example".into(),
        });
    }
}

fn asked(fabric: &mut Fabric) -> Vec<(String, Vec<u8>)> {
    std::mem::take(&mut fabric.asked)
}

fn question(from: End) -> Vec<u8> {
    udp(from, GATEWAY, ROUTER, (40_000, 53), b"a question of 16")
}

#[test]
fn without_dns_the_gateway_serves_no_such_port() {
    let mut fabric = fabric(|_| {});
    for frame in [
        question(A1),
        tcp(A1, GATEWAY, ROUTER, (40_000, 53), "S", (7, 0), 0),
        udp6(A1, LOCAL, ROUTER, (40_000, 53), b""),
    ] {
        assert!(fabric.send("a1", &frame).is_empty());
    }
    assert_eq!(fabric.drops("h1", DropReason::GatewayUnserved), 3);
    assert!(asked(&mut fabric).is_empty());
}

#[test]
fn questions_reach_the_service_untouched_and_no_policy_is_asked() {
    let mut fabric = fabric(|objects| {
        answering(objects);
        group(objects, "open").rules.push(SecurityRule {
            direction: "egress".into(),
            remote_cidr: "203.0.113.0/24".into(),
            ..SecurityRule::default()
        });
    });
    let frames = [
        question(A1),
        tcp(A1, GATEWAY, ROUTER, (40_000, 53), "S", (7, 0), 0),
        udp6(A1, GATEWAY, ROUTER, (40_000, 53), b"a question of 16"),
        udp6(A1, LOCAL, ROUTER, (40_000, 53), b"a question of 16"),
    ];
    for frame in &frames {
        assert!(fabric.send("a1", frame).is_empty());
    }
    let got = asked(&mut fabric);
    let wanted: Vec<_> = frames.map(|frame| ("a1".to_owned(), frame)).into();
    assert_eq!(got, wanted);
    assert!(fabric.all_drops().is_empty(), "{:?}", fabric.all_drops());
    let statistics = fabric.hosts["h1"].shared.sessions.statistics();
    assert_eq!(statistics.live, 0, "no session is kept of it");
    // Another VPC's gateway with the same address answers nothing.
    assert!(fabric.send("r1", &question(A1)).is_empty());
    assert!(asked(&mut fabric).is_empty());
    // Everything else is as it was.
    let out = fabric.send("a1", &echo(A1, GATEWAY, ROUTER, 7, b"there?"));
    assert_eq!(read(&out[0].frame).source.to_string(), "10.0.1.1");
    fabric.send("a1", &udp(A1, GATEWAY, ROUTER, (40_000, 5353), b""));
    assert_eq!(fabric.drops("h1", DropReason::GatewayUnserved), 2);
    assert_eq!(fabric.missing_frames(), 0);
}

#[test]
fn who_lies_about_its_address_is_told_no_names() {
    let mut fabric = fabric(answering);
    assert!(fabric.send("a1", &question(A2)).is_empty());
    assert_eq!(fabric.drops("h1", DropReason::SpoofedBoth), 1);
    let mut first = question(A1);
    first[20] = 0x20;
    let sum = etherparse::Ipv4Header::from_slice(&first[14..]).unwrap().0;
    first[24..26].copy_from_slice(&sum.calc_header_checksum().to_be_bytes());
    assert!(fabric.send("a1", &first).is_empty());
    assert_eq!(
        fabric.drops("h1", DropReason::GatewayUnserved),
        1,
        "in pieces"
    );
    assert!(asked(&mut fabric).is_empty());
}

#[test]
fn one_port_asks_no_more_than_its_rate() {
    let settings = Settings {
        dns_per_second: 100,
        ..Settings::default()
    };
    let mut objects = objects();
    answering(&mut objects);
    let state = State::from_objects(objects).unwrap();
    let mut fabric = Fabric::new(state, &settings, LIMITS).unwrap();
    for _ in 0..200 {
        fabric.send("a1", &question(A1));
    }
    assert_eq!(asked(&mut fabric).len(), 50, "the burst");
    assert_eq!(fabric.drops("h1", DropReason::DnsLimit), 150);
    fabric.send("a2", &question(A2));
    assert_eq!(asked(&mut fabric).len(), 1, "others have their own");
    fabric.now += 1000;
    fabric.send("a1", &question(A1));
    assert_eq!(asked(&mut fabric).len(), 1);
    assert_eq!(fabric.missing_frames(), 0);
}

#[test]
fn many_questions_are_not_sent_as_one_segment() {
    let mut fabric = fabric(answering);
    let payload = [0; 3000];
    let offload = |segments| Offload { segments, size: 12 };
    let of_udp = offload(Segments::Udp);
    for segment in [
        udp(A1, GATEWAY, ROUTER, (40_000, 53), &payload),
        udp6(A1, GATEWAY, ROUTER, (40_000, 53), &payload),
    ] {
        assert!(fabric.send_segment("a1", &segment, of_udp).is_empty());
    }
    assert_eq!(fabric.drops("h1", DropReason::DnsMalformed), 2);
    assert!(asked(&mut fabric).is_empty());
    // By TCP the stack takes what its window has room for.
    let segment = tcp(A1, GATEWAY, ROUTER, (40_000, 53), "A", (7, 1), 3000);
    let of_tcp = Offload {
        size: 1000,
        ..offload(Segments::Tcp4)
    };
    assert!(fabric.send_segment("a1", &segment, of_tcp).is_empty());
    assert_eq!(asked(&mut fabric).len(), 1);
    assert_eq!(fabric.missing_frames(), 0);
}

#[test]
fn a_trace_says_who_answers() {
    let fabric = fabric(answering);
    let host = &fabric.hosts["h1"];
    let (_, index) = fabric.find_port("a1").unwrap();
    let trace = trace::trace(host.view(), index, &question(A1));
    let text = trace.outcome.text(host.pipeline.snapshot());
    assert_eq!(text, "the DNS service of this host");
}

/// What DHCP tells a1 of DNS: servers and domain.
fn told(fabric: &mut Fabric) -> (Option<DhcpOption>, Option<DhcpOption>) {
    let request = message(A1, MessageType::Discover, &[]);
    let out = fabric.send("a1", &broadcast(A1, &request));
    let message = Message::decode(&mut Decoder::new(&read(&out[0].frame).payload)).unwrap();
    let given = |code| message.opts().get(code).cloned();
    (
        given(OptionCode::DomainNameServer),
        given(OptionCode::DomainName),
    )
}

#[test]
fn guests_are_told_of_the_gateway_where_the_subnet_names_no_servers() {
    let mut fabric = fabric(answering);
    let servers = |address: [u8; 4]| Some(DhcpOption::DomainNameServer(vec![address.into()]));
    let domain = |text: &str| Some(DhcpOption::DomainName(text.into()));
    assert_eq!(
        told(&mut fabric),
        (servers(GATEWAY.v4), domain("blue.example"))
    );
    change(&mut fabric, |objects| {
        for subnet in &mut objects.subnets {
            subnet.dhcp = Some(Dhcp {
                dns_servers: vec!["192.0.2.53".into()],
                domain: "other.example".into(),
                ..Dhcp::default()
            });
        }
    });
    assert_eq!(
        told(&mut fabric),
        (servers([192, 0, 2, 53]), domain("other.example"))
    );
    // Nothing of it is left when the VPC has no DNS.
    change(&mut fabric, |objects| {
        objects.subnets.iter_mut().for_each(|it| it.dhcp = None);
        objects.vpcs.iter_mut().for_each(|it| it.dns = None);
    });
    assert_eq!(told(&mut fabric), (None, None));
    assert!(fabric.send("a1", &question(A1)).is_empty());
    assert!(asked(&mut fabric).is_empty());
}

/// Names come and go with ports, and no packet is judged by them.
#[test]
fn a_name_more_ends_no_epoch() {
    let mut fabric = fabric(answering);
    let epoch = |fabric: &Fabric| {
        let snapshot = fabric.hosts["h1"].pipeline.snapshot();
        let mut vpcs = snapshot.vpcs.iter();
        vpcs.find(|vpc| vpc.id == "blue").unwrap().epoch
    };
    let before = epoch(&fabric);
    let generation = fabric.hosts["h1"].pipeline.snapshot().generation;
    change(&mut fabric, |objects| {
        objects.port_names.push(PortName {
            id: "x".into(),
            vpc: "blue".into(),
            name: "x".into(),
            addresses: vec!["10.0.1.77".into()],
        });
    });
    assert!(fabric.hosts["h1"].pipeline.snapshot().generation > generation);
    assert_eq!(epoch(&fabric), before);
    change(&mut fabric, |objects| port(objects, "a1").clamp_mss = true);
    assert_ne!(epoch(&fabric), before);
}
