//! Behaviour 4: DHCP. Messages are made and read by a library that is not ours (dhcproto).

use std::net::Ipv4Addr;

use dhcproto::v4::{DhcpOption, Flags, Message, MessageType, Opcode, OptionCode};
use dhcproto::{Decodable, Decoder, Encodable};
use weft_dataplane::packet::DropReason;
use weft_fabric::Fabric;
use weft_proto::v1::{self, Dhcp, DhcpRoute, Objects};

use crate::frames::{A1, A2, End, Seen, read, udp};
use crate::topology::{ROUTER, change, fabric, port};

pub const ANY: [u8; 4] = [0; 4];
pub const ALL: [u8; 4] = [255; 4];
const GATEWAY: [u8; 4] = [10, 0, 1, 1];
const BROADCAST: [u8; 6] = [0xff; 6];

fn at(end: End, v4: [u8; 4]) -> End {
    End { v4, ..end }
}

/// An option that a subnet or a port gives.
pub fn option(family: &str, name: &str, value: &str) -> v1::DhcpOption {
    v1::DhcpOption {
        name: name.into(),
        value: value.into(),
        family: family.into(),
        force: false,
    }
}

/// A message of a client, with the options that every one has.
pub fn message(from: End, kind: MessageType, options: &[DhcpOption]) -> Message {
    let mut message = Message::new_with_id(
        0x1234_5678,
        Ipv4Addr::UNSPECIFIED,
        Ipv4Addr::UNSPECIFIED,
        Ipv4Addr::UNSPECIFIED,
        Ipv4Addr::UNSPECIFIED,
        &from.mac,
    );
    message.opts_mut().insert(DhcpOption::MessageType(kind));
    for option in options {
        message.opts_mut().insert(option.clone());
    }
    message
}

/// As a client without an address sends it.
pub fn broadcast(from: End, message: &Message) -> Vec<u8> {
    let bytes = message.to_vec().unwrap();
    udp(at(from, ANY), at(from, ALL), BROADCAST, (68, 67), &bytes)
}

/// The one answer that a port gets: its frame, and the message in it.
#[track_caller]
fn answer(fabric: &mut Fabric, from: &str, frame: &[u8]) -> (Seen, Message) {
    let out = fabric.send(from, frame);
    assert_eq!(out.len(), 1, "{:?}", fabric.all_drops());
    assert_eq!(out[0].port, from);
    assert_eq!(out[0].frame[34..38], [0, 67, 0, 68], "UDP ports");
    assert_ne!(out[0].frame[40..42], [0, 0], "a checksum");
    let seen = read(&out[0].frame);
    assert_eq!(seen.src, ROUTER);
    assert_eq!(seen.source.to_string(), "10.0.1.1");
    assert!(seen.payload.len() >= 300, "as long as BOOTP's");
    let message = Message::decode(&mut Decoder::new(&seen.payload)).unwrap();
    assert_eq!(message.opcode(), Opcode::BootReply);
    assert_eq!((message.xid(), message.hops()), (0x1234_5678, 0));
    assert_eq!(message.chaddr(), A1.mac);
    assert_eq!(
        message.opts().get(OptionCode::ServerIdentifier),
        Some(&DhcpOption::ServerIdentifier(GATEWAY.into()))
    );
    (seen, message)
}

fn kind(message: &Message) -> MessageType {
    message.opts().msg_type().unwrap()
}

fn requested(address: [u8; 4]) -> DhcpOption {
    DhcpOption::RequestedIpAddress(address.into())
}

/// Codes of the options, in the order in which they stand behind the cookie.
fn codes(payload: &[u8]) -> Vec<u8> {
    let (mut at, mut codes) = (240, Vec::new());
    while payload[at] != 255 {
        codes.push(payload[at]);
        at += 2 + usize::from(payload[at + 1]);
    }
    codes
}

/// Everything that can be configured.
fn configured(objects: &mut Objects) {
    objects.subnets[0].mtu = 1400;
    objects.subnets[0].dhcp = Some(Dhcp {
        dns_servers: vec![
            "192.0.2.53".into(),
            "2001:db8::53".into(),
            "192.0.2.54".into(),
        ],
        domain: "blue.example".into(),
        lease_seconds: 1000,
        routes: vec![DhcpRoute {
            prefix: "172.16.0.0/12".into(),
            next_hop: "10.0.1.13".into(),
        }],
        ..Dhcp::default()
    });
    port(objects, "a1").hostname = "web-1".into();
}

/// What an offer and an acknowledgement tell when everything is configured.
#[track_caller]
fn assert_complete(message: &Message) {
    assert_eq!(message.yiaddr(), Ipv4Addr::from(A1.v4));
    let net = |text: &str| text.parse().unwrap();
    for option in [
        DhcpOption::SubnetMask([255, 255, 255, 0].into()),
        DhcpOption::Router(vec![GATEWAY.into()]),
        DhcpOption::DomainNameServer(vec![[192, 0, 2, 53].into(), [192, 0, 2, 54].into()]),
        DhcpOption::DomainName("blue.example".into()),
        DhcpOption::Hostname("web-1".into()),
        DhcpOption::InterfaceMtu(1400),
        DhcpOption::AddressLeaseTime(1000),
        DhcpOption::Renewal(500),
        DhcpOption::Rebinding(875),
        DhcpOption::ClasslessStaticRoute(vec![
            (net("0.0.0.0/0"), GATEWAY.into()),
            (net("172.16.0.0/12"), [10, 0, 1, 13].into()),
        ]),
    ] {
        let code = OptionCode::from(&option);
        assert_eq!(message.opts().get(code), Some(&option));
    }
}

#[test]
fn b004_discover_and_request_are_answered_with_all_that_is_configured() {
    let mut fabric = fabric(configured);
    let discover = message(A1, MessageType::Discover, &[]);
    let (seen, offer) = answer(&mut fabric, "a1", &broadcast(A1, &discover));
    assert_eq!(kind(&offer), MessageType::Offer);
    assert_complete(&offer);
    // To the address that it is to have: the client did not ask for a broadcast.
    assert_eq!((seen.dst, seen.destination), (A1.mac, A1.v4.into()));
    let request = message(
        A1,
        MessageType::Request,
        &[
            requested(A1.v4),
            DhcpOption::ServerIdentifier(GATEWAY.into()),
        ],
    );
    let (_, ack) = answer(&mut fabric, "a1", &broadcast(A1, &request));
    assert_eq!(kind(&ack), MessageType::Ack);
    assert_complete(&ack);
    assert!(fabric.crossed.is_empty(), "nothing is flooded");
    assert_eq!(fabric.missing_frames(), 0);
}

#[test]
fn b004_no_rule_is_needed() {
    let mut fabric = fabric(|objects| {
        objects.security_groups[0].rules.clear();
        objects.network_acls.push(weft_proto::v1::NetworkAcl {
            id: "shut".into(),
            vpc: "blue".into(),
            rules: vec![],
            ..weft_proto::v1::NetworkAcl::default()
        });
        objects.subnets[0].network_acl = "shut".into();
    });
    let discover = message(A1, MessageType::Discover, &[]);
    let (_, offer) = answer(&mut fabric, "a1", &broadcast(A1, &discover));
    // By default: a day, and what fits the tunnels of an underlay that speaks IPv6.
    let opts = offer.opts();
    assert_eq!(
        opts.get(OptionCode::AddressLeaseTime),
        Some(&DhcpOption::AddressLeaseTime(86400))
    );
    assert_eq!(
        opts.get(OptionCode::InterfaceMtu),
        Some(&DhcpOption::InterfaceMtu(1430))
    );
    assert_eq!(opts.get(OptionCode::DomainNameServer), None);
}

#[test]
fn b004_a_client_that_asks_for_a_broadcast_gets_one() {
    let mut fabric = fabric(|_| {});
    let mut discover = message(A1, MessageType::Discover, &[]);
    discover.set_flags(Flags::default().set_broadcast());
    let (seen, offer) = answer(&mut fabric, "a1", &broadcast(A1, &discover));
    assert_eq!((seen.dst, seen.destination), (BROADCAST, ALL.into()));
    assert!(offer.flags().broadcast());
}

#[test]
fn b004_a_request_for_another_address_is_refused() {
    let mut fabric = fabric(|_| {});
    let init_reboot = message(A1, MessageType::Request, &[requested([10, 0, 1, 99])]);
    let mut renewal = message(A1, MessageType::Request, &[]);
    renewal.set_ciaddr([10, 0, 1, 99]);
    let bytes = renewal.to_vec().unwrap();
    let old = at(A1, [10, 0, 1, 99]);
    for frame in [
        broadcast(A1, &init_reboot),
        broadcast(A1, &renewal),
        // From an address that was the port's once, to the server and to everybody.
        udp(old, at(A1, GATEWAY), ROUTER, (68, 67), &bytes),
        udp(old, at(A1, ALL), BROADCAST, (68, 67), &bytes),
    ] {
        let (seen, nak) = answer(&mut fabric, "a1", &frame);
        assert_eq!(kind(&nak), MessageType::Nak);
        assert_eq!((seen.dst, seen.destination), (BROADCAST, ALL.into()));
        assert_eq!(nak.yiaddr(), Ipv4Addr::UNSPECIFIED);
        assert_eq!(nak.ciaddr(), Ipv4Addr::UNSPECIFIED);
        assert_eq!(nak.opts().get(OptionCode::AddressLeaseTime), None);
        assert_eq!(codes(&seen.payload), [53, 54]);
    }
}

#[test]
fn b004_leases_are_renewed_rebound_and_taken_up_again() {
    let mut fabric = fabric(configured);
    let mut renewal = message(A1, MessageType::Request, &[]);
    renewal.set_ciaddr(A1.v4);
    let bytes = renewal.to_vec().unwrap();
    for frame in [
        udp(A1, at(A1, GATEWAY), ROUTER, (68, 67), &bytes),
        udp(A1, at(A1, ALL), BROADCAST, (68, 67), &bytes),
    ] {
        let (seen, ack) = answer(&mut fabric, "a1", &frame);
        assert_eq!(kind(&ack), MessageType::Ack);
        assert_complete(&ack);
        assert_eq!(ack.ciaddr(), Ipv4Addr::from(A1.v4));
        assert_eq!((seen.dst, seen.destination), (A1.mac, A1.v4.into()));
    }
    // Boot loaders name 0.0.0.0 in the option, beside the address that they have.
    let mut loader = message(A1, MessageType::Request, &[requested([0; 4])]);
    loader.set_ciaddr(A1.v4);
    let ask = |fabric: &mut Fabric, message: &Message| {
        let bytes = message.to_vec().unwrap();
        let frame = udp(A1, at(A1, GATEWAY), ROUTER, (68, 67), &bytes);
        answer(fabric, "a1", &frame).1
    };
    let ack = ask(&mut fabric, &loader);
    assert_eq!(kind(&ack), MessageType::Ack);
    assert_eq!(ack.yiaddr(), Ipv4Addr::from(A1.v4));
    // A client that was refused its old address still has it in the header when it asks for the one that it was offered.
    let gateway = DhcpOption::ServerIdentifier([10, 0, 1, 1].into());
    let mut refused = message(A1, MessageType::Request, &[requested(A1.v4), gateway]);
    refused.set_ciaddr([10, 0, 1, 77]);
    let (_, ack) = answer(&mut fabric, "a1", &broadcast(A1, &refused));
    assert_eq!(kind(&ack), MessageType::Ack);
    assert_eq!(ack.yiaddr(), Ipv4Addr::from(A1.v4));
    assert_eq!(ack.ciaddr(), Ipv4Addr::UNSPECIFIED);
    let reboot = message(A1, MessageType::Request, &[requested(A1.v4)]);
    let (_, ack) = answer(&mut fabric, "a1", &broadcast(A1, &reboot));
    assert_eq!(kind(&ack), MessageType::Ack);
}

#[test]
fn b004_who_has_an_address_is_informed() {
    let mut fabric = fabric(configured);
    let mut inform = message(A1, MessageType::Inform, &[]);
    inform.set_ciaddr(A1.v4);
    let bytes = inform.to_vec().unwrap();
    let frame = udp(A1, at(A1, ALL), BROADCAST, (68, 67), &bytes);
    let (seen, ack) = answer(&mut fabric, "a1", &frame);
    assert_eq!(kind(&ack), MessageType::Ack);
    assert_eq!(seen.destination, Ipv4Addr::from(A1.v4));
    assert_eq!(ack.yiaddr(), Ipv4Addr::UNSPECIFIED);
    let opts = ack.opts();
    assert!(opts.get(OptionCode::AddressLeaseTime).is_none());
    assert!(opts.get(OptionCode::Renewal).is_none());
    assert!(opts.get(OptionCode::DomainName).is_some());
}

#[test]
fn b004_rapid_commit_takes_two_messages() {
    let mut fabric = fabric(configured);
    let discover = message(A1, MessageType::Discover, &[DhcpOption::RapidCommit]);
    let (_, ack) = answer(&mut fabric, "a1", &broadcast(A1, &discover));
    assert_eq!(kind(&ack), MessageType::Ack);
    assert!(ack.opts().get(OptionCode::RapidCommit).is_some());
    assert_complete(&ack);
}

#[test]
fn b004_a_client_gets_what_it_wants_in_its_order() {
    let mut fabric = fabric(configured);
    let wanted = vec![
        OptionCode::ClasslessStaticRoute,
        OptionCode::Router,
        OptionCode::Hostname,
        OptionCode::NtpServers,
        OptionCode::Router,
    ];
    let id = DhcpOption::ClientIdentifier(vec![255, 1, 2, 3]);
    let options = [DhcpOption::ParameterRequestList(wanted), id.clone()];
    let discover = message(A1, MessageType::Discover, &options);
    let (seen, offer) = answer(&mut fabric, "a1", &broadcast(A1, &discover));
    // Kind, server, client, times and mask come whether wanted or not.
    assert_eq!(
        codes(&seen.payload),
        [53, 54, 61, 51, 58, 59, 1, 121, 3, 12]
    );
    assert_eq!(offer.opts().get(OptionCode::ClientIdentifier), Some(&id));
}

#[test]
fn b004_a_default_route_of_the_tenants_replaces_the_gateway() {
    let mut fabric = fabric(|objects| {
        objects.subnets[0].dhcp = Some(Dhcp {
            routes: vec![DhcpRoute {
                prefix: "0.0.0.0/0".into(),
                next_hop: "10.0.1.13".into(),
            }],
            ..Dhcp::default()
        });
    });
    let discover = message(A1, MessageType::Discover, &[]);
    let (_, offer) = answer(&mut fabric, "a1", &broadcast(A1, &discover));
    let opts = offer.opts();
    let next_hop = Ipv4Addr::new(10, 0, 1, 13);
    assert_eq!(
        opts.get(OptionCode::ClasslessStaticRoute),
        Some(&DhcpOption::ClasslessStaticRoute(vec![(
            "0.0.0.0/0".parse().unwrap(),
            next_hop
        )]))
    );
    assert_eq!(
        opts.get(OptionCode::Router),
        Some(&DhcpOption::Router(vec![next_hop]))
    );
}

/// The options of a field, as they stand there.
fn field(bytes: &[u8]) -> Vec<(u8, Vec<u8>)> {
    let (mut at, mut options) = (0, Vec::new());
    while at < bytes.len() && bytes[at] != 255 {
        let end = at + 2 + usize::from(bytes[at + 1]);
        options.push((bytes[at], bytes[at + 2..end].to_vec()));
        at = end;
    }
    assert_eq!(bytes[at], 255, "a field has an end");
    options
}

#[test]
fn b004_an_answer_is_as_long_as_the_client_takes_and_overflows_into_other_fields() {
    // Too long for what the servers leave of `file`, as long as `sname` holds.
    let domain = ["abcdefgh"; 7].join(".")[1..].to_owned();
    let mut fabric = fabric(|objects| {
        configured(objects);
        let dhcp = objects.subnets[0].dhcp.as_mut().unwrap();
        dhcp.dns_servers = (1..=16).map(|n| format!("192.0.2.{n}")).collect();
        dhcp.domain = domain.clone();
        dhcp.routes = (1..=24)
            .map(|n| DhcpRoute {
                prefix: format!("172.16.{n}.0/24"),
                next_hop: "10.0.1.13".into(),
            })
            .collect();
    });
    let discover = message(A1, MessageType::Discover, &[]);
    let out = fabric.send("a1", &broadcast(A1, &discover));
    let payload = read(&out[0].frame).payload;
    assert!(out[0].frame.len() <= 14 + 576);
    let options = field(&payload[240..]);
    let overload = options.last().unwrap();
    assert_eq!(*overload, (52, vec![3]), "both fields hold options");
    let servers = (1..=16).flat_map(|n| [192, 0, 2, n]).collect();
    assert_eq!(field(&payload[108..236]), [(6, servers)]);
    assert_eq!(
        field(&payload[44..108]),
        [(15, domain.clone().into_bytes())]
    );
    let codes: Vec<u8> = options.iter().map(|(code, _)| *code).collect();
    assert_eq!(codes, [53, 54, 51, 58, 59, 1, 3, 121, 26, 12, 52]);
    // A client that takes more gets it all in one place, but no more than its subnet's packets may be.
    let discover = message(
        A1,
        MessageType::Discover,
        &[DhcpOption::MaxMessageSize(9000)],
    );
    let (seen, offer) = answer(&mut fabric, "a1", &broadcast(A1, &discover));
    assert!(seen.payload.len() > 548);
    assert!(offer.opts().get(OptionCode::OptionOverload).is_none());
    let Some(DhcpOption::DomainNameServer(servers)) =
        offer.opts().get(OptionCode::DomainNameServer)
    else {
        panic!("{offer:?}");
    };
    assert_eq!(servers.len(), 16);
}

#[test]
fn b004_options_of_a_client_may_overflow_too() {
    let mut fabric = fabric(|_| {});
    let overload = DhcpOption::OptionOverload(3);
    let mut request = message(A1, MessageType::Request, &[overload]);
    request.set_fname(&[50, 4, 10, 0, 1, 11, 255]);
    request.set_sname(&[54, 4, 10, 0, 1, 1, 255]);
    let (_, ack) = answer(&mut fabric, "a1", &broadcast(A1, &request));
    assert_eq!(kind(&ack), MessageType::Ack);
}

#[test]
fn b004_what_needs_no_answer_gets_none() {
    let mut fabric = fabric(|_| {});
    let other = DhcpOption::ServerIdentifier([10, 0, 1, 2].into());
    let mut relayed = message(A1, MessageType::Discover, &[]);
    relayed.set_giaddr([10, 0, 1, 12]);
    let mut inform = message(A1, MessageType::Inform, &[]);
    inform.set_ciaddr([10, 0, 1, 99]);
    let swallowed = [
        message(A1, MessageType::Decline, &[requested(A1.v4)]),
        message(A1, MessageType::Release, &[]),
        message(A1, MessageType::Request, &[requested(A1.v4), other]),
        relayed,
        inform,
    ];
    for message in &swallowed {
        assert!(fabric.send("a1", &broadcast(A1, message)).is_empty());
    }
    let unanswered = fabric.drops("h1", DropReason::DhcpUnanswered);
    assert_eq!(unanswered, swallowed.len() as u64);
    // A port without an IPv4 address, and one that is to get no answers, hear nothing.
    crate::topology::change(&mut fabric, |objects| {
        port(objects, "a1").addresses.remove(0);
    });
    let discover = broadcast(A1, &message(A1, MessageType::Discover, &[]));
    assert!(fabric.send("a1", &discover).is_empty());
    assert_eq!(
        fabric.drops("h1", DropReason::DhcpUnanswered),
        unanswered + 1
    );
    crate::topology::change(&mut fabric, |objects| {
        objects.subnets[0].dhcp = Some(Dhcp {
            disabled: true,
            ..Dhcp::default()
        });
    });
    assert!(fabric.send("a1", &discover).is_empty());
    assert_eq!(fabric.drops("h1", DropReason::SpoofedAddress), 1);
    assert_eq!(fabric.missing_frames(), 0);
}

#[test]
fn b004_clients_that_are_not_the_port_are_refused() {
    let mut fabric = fabric(|objects| {
        port(objects, "a1").allowed_pairs = vec![weft_proto::v1::AddressPair {
            cidr: "10.0.1.77".into(),
            mac: "02:00:00:00:00:77".into(),
        }];
    });
    let discover = |from: End| message(from, MessageType::Discover, &[]);
    // Another's hardware address, another's MAC, another's source address.
    assert!(fabric.send("a1", &broadcast(A1, &discover(A2))).is_empty());
    assert!(fabric.send("a1", &broadcast(A2, &discover(A1))).is_empty());
    let bytes = discover(A1).to_vec().unwrap();
    let stolen = udp(at(A1, A2.v4), at(A1, ALL), BROADCAST, (68, 67), &bytes);
    assert!(fabric.send("a1", &stolen).is_empty());
    assert_eq!(fabric.drops("h1", DropReason::SpoofedDhcp), 3);
    // The MAC of an allowed pair is no lie, but it has no lease.
    let pair = End {
        mac: [2, 0, 0, 0, 0, 0x77],
        ..A1
    };
    assert!(
        fabric
            .send("a1", &broadcast(pair, &discover(pair)))
            .is_empty()
    );
    assert_eq!(fabric.drops("h1", DropReason::DhcpUnanswered), 1);
}

#[test]
fn b004_malformed_messages_are_dropped() {
    let mut fabric = fabric(|_| {});
    let good = message(A1, MessageType::Discover, &[]).to_vec().unwrap();
    let spoilt = |change: fn(&mut Vec<u8>)| {
        let mut bytes = good.clone();
        change(&mut bytes);
        udp(at(A1, ANY), at(A1, ALL), BROADCAST, (68, 67), &bytes)
    };
    let mut wrong_sum = broadcast(A1, &message(A1, MessageType::Discover, &[]));
    wrong_sum[60] ^= 1;
    let frames = [
        spoilt(|bytes| bytes[0] = 2),
        spoilt(|bytes| bytes[2] = 16),
        spoilt(|bytes| bytes[236] = 0),
        spoilt(|bytes| bytes.truncate(200)),
        spoilt(|bytes| bytes.truncate(20)),
        // Kind 0, of two bytes, none, and of a server.
        spoilt(|bytes| bytes[242] = 0),
        spoilt(|bytes| bytes[241] = 2),
        spoilt(|bytes| bytes[240] = 255),
        spoilt(|bytes| bytes[242] = 2),
        // An option longer than the message.
        spoilt(|bytes| bytes.splice(240..240, [43, 200]).for_each(drop)),
        wrong_sum,
    ];
    for frame in &frames {
        assert!(fabric.send("a1", frame).is_empty());
    }
    assert_eq!(
        fabric.drops("h1", DropReason::DhcpMalformed),
        frames.len() as u64
    );
}

#[test]
fn b004_answers_are_limited() {
    let mut fabric = fabric(|_| {});
    let discover = broadcast(A1, &message(A1, MessageType::Discover, &[]));
    let answered = (0..600).filter(|_| !fabric.send("a1", &discover).is_empty());
    assert_eq!(answered.count(), 500, "half a second's replies at once");
    assert_eq!(fabric.drops("h1", DropReason::ReplyLimit), 100);
}

#[test]
fn b004_the_trace_says_what_is_answered() {
    let fabric = fabric(|_| {});
    let (host, index) = fabric.find_port("a1").unwrap();
    let host = &fabric.hosts[&host];
    let trace = |frame: &[u8]| {
        let trace = weft_dataplane::pipeline::trace::trace(host.view(), index, frame);
        trace.outcome.text(host.pipeline.snapshot())
    };
    let discover = broadcast(A1, &message(A1, MessageType::Discover, &[]));
    assert_eq!(trace(&discover), "DHCP offer from the gateway");
    let release = broadcast(A1, &message(A1, MessageType::Release, &[]));
    assert!(trace(&release).starts_with("drop dhcp_unanswered"));
}

/// What a guest boots by: the subnet says where, its port what.
fn boots(objects: &mut Objects) {
    configured(objects);
    let dhcp = objects.subnets[0].dhcp.as_mut().unwrap();
    dhcp.options = vec![
        option("", "server-ip-address", "10.0.1.13"),
        option("", "tftp-server", "boot.example"),
        option("", "67", "default.0"),
        option("", "ntp-server", "192.0.2.1,192.0.2.2"),
        option("", "domain-search", "blue.example,example"),
    ];
    port(objects, "a1").dhcp_options = vec![
        option("", "bootfile-name", "pxelinux.0"),
        option("ipv4", "150", "10.0.1.13"),
        option("", "224", "hex:00ff"),
    ];
}

fn wants(codes: &[u8]) -> DhcpOption {
    DhcpOption::ParameterRequestList(codes.iter().map(|code| (*code).into()).collect())
}

/// The fields of BOOTP in which ROMs look for their server and file.
fn boot_fields(payload: &[u8]) -> (Ipv4Addr, &[u8], &[u8]) {
    let until_zero =
        |field: &'static str, bytes: &[u8]| bytes.iter().position(|byte| *byte == 0).expect(field);
    let (sname, file) = (&payload[44..108], &payload[108..236]);
    let siaddr: [u8; 4] = payload[20..24].try_into().unwrap();
    (
        siaddr.into(),
        &sname[..until_zero("sname", sname)],
        &file[..until_zero("file", file)],
    )
}

#[test]
fn b004_a_guest_is_told_the_options_of_its_subnet_and_its_port() {
    let mut fabric = fabric(boots);
    let discover = message(A1, MessageType::Discover, &[]);
    let (seen, offer) = answer(&mut fabric, "a1", &broadcast(A1, &discover));
    assert_complete(&offer);
    let told = field(&seen.payload[240..]);
    let value = |code: u8| told.iter().find(|it| it.0 == code).map(|it| &*it.1);
    assert_eq!(value(66), Some(&b"boot.example"[..]));
    assert_eq!(
        value(67),
        Some(&b"pxelinux.0"[..]),
        "the port's, not the subnet's"
    );
    assert_eq!(value(42), Some(&[192, 0, 2, 1, 192, 0, 2, 2][..]));
    assert_eq!(
        value(119),
        Some(&b"\x04blue\x07example\x00\x07example\x00"[..])
    );
    assert_eq!(value(150), Some(&[10, 0, 1, 13][..]));
    assert_eq!(value(224), Some(&[0, 255][..]));
    assert_eq!(offer.siaddr(), Ipv4Addr::new(10, 0, 1, 13));
}

#[test]
fn b004_boot_servers_and_files_stand_in_the_fields_of_bootp_too() {
    let mut fabric = fabric(boots);
    let next_server = Ipv4Addr::new(10, 0, 1, 13);
    // Who asks for the options, who asks for none of the two, and who does not say.
    for wanted in [Some(&[1, 3, 66, 67][..]), Some(&[1, 3][..]), None] {
        let options: Vec<DhcpOption> = wanted.iter().map(|codes| wants(codes)).collect();
        let discover = message(A1, MessageType::Discover, &options);
        let (seen, _) = answer(&mut fabric, "a1", &broadcast(A1, &discover));
        let fields = boot_fields(&seen.payload);
        assert_eq!(
            fields,
            (next_server, &b"boot.example"[..], &b"pxelinux.0"[..])
        );
        let has_option = codes(&seen.payload).contains(&67);
        assert_eq!(has_option, wanted.is_none_or(|wanted| wanted.contains(&67)));
    }
    // A refusal says nothing of the kind.
    let request = message(A1, MessageType::Request, &[requested([10, 0, 1, 99])]);
    let (seen, nak) = answer(&mut fabric, "a1", &broadcast(A1, &request));
    assert_eq!(kind(&nak), MessageType::Nak);
    assert_eq!(
        boot_fields(&seen.payload),
        (Ipv4Addr::UNSPECIFIED, &b""[..], &b""[..])
    );
}

#[test]
fn b004_names_that_no_field_holds_are_options_alone() {
    let (server, file) = ("s".repeat(64), "f".repeat(100));
    let mut fabric = fabric(|objects| {
        port(objects, "a1").dhcp_options = vec![
            option("", "tftp-server", &server),
            option("", "bootfile-name", &file),
        ];
    });
    let discover = message(A1, MessageType::Discover, &[]);
    let (seen, _) = answer(&mut fabric, "a1", &broadcast(A1, &discover));
    let fields = boot_fields(&seen.payload);
    assert_eq!(fields, (Ipv4Addr::UNSPECIFIED, &b""[..], file.as_bytes()));
    assert!(field(&seen.payload[240..]).contains(&(66, server.into_bytes())));
}

#[test]
fn b004_options_are_told_to_who_asks_unless_they_are_for_everybody() {
    let mut fabric = fabric(|objects| {
        boots(objects);
        let a1 = port(objects, "a1");
        a1.dhcp_options[2].force = true;
        // Of the network's own parameters one is another, and one is none.
        a1.dhcp_options.push(option("", "mtu", "1300"));
        a1.dhcp_options.push(option("", "dns-server", ""));
    });
    let discover = message(A1, MessageType::Discover, &[wants(&[26, 6, 15, 42, 12])]);
    let (seen, offer) = answer(&mut fabric, "a1", &broadcast(A1, &discover));
    assert_eq!(
        codes(&seen.payload),
        [53, 54, 51, 58, 59, 1, 26, 15, 42, 12, 224]
    );
    let mtu = offer.opts().get(OptionCode::InterfaceMtu);
    assert_eq!(mtu, Some(&DhcpOption::InterfaceMtu(1300)));
}

#[test]
fn b004_all_options_fit_into_the_answer_that_every_client_takes() {
    let long = "x".repeat(199);
    let mut fabric = fabric(|objects| {
        // With router, routes and MTU, all that may be; what the client identifies itself by is as long as may be, too.
        let options = vec![option("", "224", &long), option("", "225", "y")];
        port(objects, "a1").dhcp_options = options;
    });
    let id = DhcpOption::ClientIdentifier(vec![1; 37]);
    let options = [id, DhcpOption::RapidCommit, wants(&[225, 121, 3, 26, 224])];
    let discover = message(A1, MessageType::Discover, &options);
    let (seen, ack) = answer(&mut fabric, "a1", &broadcast(A1, &discover));
    assert_eq!(kind(&ack), MessageType::Ack);
    assert!(28 + seen.payload.len() <= 576);
    assert_eq!(
        codes(&seen.payload),
        [53, 54, 61, 80, 51, 58, 59, 1, 225, 121, 3, 26, 224]
    );
}

#[test]
fn b004_options_change_while_guests_run() {
    let mut fabric = fabric(boots);
    let discover = broadcast(A1, &message(A1, MessageType::Discover, &[wants(&[67, 42])]));
    let told = |fabric: &mut Fabric| {
        let (seen, _) = answer(fabric, "a1", &discover);
        let mut told = field(&seen.payload[240..]);
        told.retain(|(code, _)| matches!(code, 67 | 42));
        told
    };
    let ntp = (42, vec![192, 0, 2, 1, 192, 0, 2, 2]);
    assert_eq!(
        told(&mut fabric),
        [(67, b"pxelinux.0".to_vec()), ntp.clone()]
    );
    change(&mut fabric, |objects| {
        port(objects, "a1").dhcp_options = vec![option("", "67", "ipxe.efi")];
    });
    assert_eq!(told(&mut fabric), [(67, b"ipxe.efi".to_vec()), ntp.clone()]);
    change(&mut fabric, |objects| {
        let dhcp = objects.subnets[0].dhcp.as_mut().unwrap();
        dhcp.options = vec![option("", "42", "192.0.2.3")];
    });
    let other = (42, vec![192, 0, 2, 3]);
    assert_eq!(
        told(&mut fabric),
        [(67, b"ipxe.efi".to_vec()), other.clone()]
    );
    change(&mut fabric, |objects| {
        port(objects, "a1").dhcp_options.clear();
    });
    assert_eq!(told(&mut fabric), [other]);
}
