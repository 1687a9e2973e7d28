//! Behaviour 5: DHCPv6. Messages are made and read by a library that is not ours (dhcproto).

use std::net::Ipv6Addr;

use dhcproto::v6::{
    DhcpOption, DhcpOptions, IAAddr, IANA, IAPD, IATA, Message, MessageType, ORO, OptionCode,
    Status, StatusCode,
};
use dhcproto::{Decodable, Decoder, Encodable};
use weft_dataplane::packet::DropReason;
use weft_fabric::Fabric;
use weft_proto::v1::{Dhcp, Objects};

use crate::dhcp::option;
use crate::frames::{A1, End, read, udp6};
use crate::router_advertisement::{GATEWAY, LOCAL};
use crate::topology::{ROUTER, change, fabric, port};

/// All relay agents and servers.
const SERVERS: [u8; 16] = [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 2];
const SERVERS_MAC: [u8; 6] = [0x33, 0x33, 0, 1, 0, 2];
const CLIENT: [u8; 10] = [0, 3, 0, 1, 2, 0, 0, 0, 1, 1];
/// A DUID-LL of the gateway's MAC.
const SERVER: [u8; 10] = [0, 3, 0, 1, 2, 0x77, 0x65, 0x66, 0x74, 1];
const FAR: Ipv6Addr = Ipv6Addr::new(0xfd00, 9, 0, 0, 0, 0, 0, 9);

fn own() -> Ipv6Addr {
    A1.v6.into()
}

fn options(list: &[DhcpOption]) -> DhcpOptions {
    let mut options = DhcpOptions::new();
    // The library puts an option ahead of those of the same code.
    for option in list.iter().rev() {
        options.insert(option.clone());
    }
    options
}

fn address(addr: Ipv6Addr, life: u32) -> DhcpOption {
    DhcpOption::IAAddr(IAAddr {
        addr,
        preferred_life: life,
        valid_life: life,
        opts: DhcpOptions::new(),
    })
}

fn iana(id: u32, opts: &[DhcpOption]) -> DhcpOption {
    DhcpOption::IANA(IANA {
        id,
        t1: 0,
        t2: 0,
        opts: options(opts),
    })
}

fn status(status: Status) -> DhcpOption {
    DhcpOption::StatusCode(StatusCode {
        status,
        msg: String::new(),
    })
}

fn server() -> DhcpOption {
    DhcpOption::ServerId(SERVER.to_vec())
}

/// A client's message, with its DUID.
pub fn message(kind: MessageType, list: &[DhcpOption]) -> Message {
    let mut message = Message::new_with_id(kind, [1, 2, 3]);
    message
        .opts_mut()
        .insert(DhcpOption::ClientId(CLIENT.to_vec()));
    for option in list.iter().rev() {
        message.opts_mut().insert(option.clone());
    }
    message
}

pub fn multicast(bytes: &[u8]) -> Vec<u8> {
    let (from, to) = (End { v6: LOCAL, ..A1 }, End { v6: SERVERS, ..A1 });
    udp6(from, to, SERVERS_MAC, (546, 547), bytes)
}

/// The one answer to a message.
#[track_caller]
fn answer(fabric: &mut Fabric, message: &Message) -> Message {
    let out = fabric.send("a1", &multicast(&message.to_vec().unwrap()));
    assert_eq!(out.len(), 1, "{:?}", fabric.all_drops());
    assert_eq!(out[0].port, "a1");
    assert_eq!(out[0].frame[54..58], [2, 35, 2, 34], "UDP ports");
    let seen = read(&out[0].frame);
    assert_eq!((seen.src, seen.dst), (ROUTER, A1.mac));
    assert_eq!(
        (seen.source, seen.destination),
        (GATEWAY.into(), LOCAL.into())
    );
    let reply = Message::decode(&mut Decoder::new(&seen.payload)).unwrap();
    assert_eq!(reply.xid(), [1, 2, 3]);
    assert_eq!(reply.opts().get(OptionCode::ServerId), Some(&server()));
    assert_eq!(
        reply.opts().get(OptionCode::ClientId),
        message.opts().get(OptionCode::ClientId),
        "the client's DUID comes back"
    );
    reply
}

fn configured(objects: &mut Objects) {
    objects.subnets[0].dhcp = Some(Dhcp {
        dns_servers: vec!["192.0.2.53".into(), "2001:db8::53".into()],
        domain: "blue.example".into(),
        lease_seconds: 1000,
        ..Dhcp::default()
    });
}

/// The association that a guest is leased its address by.
fn leased(id: u32) -> DhcpOption {
    DhcpOption::IANA(IANA {
        id,
        t1: 500,
        t2: 800,
        opts: options(&[address(own(), 1000)]),
    })
}

#[track_caller]
fn assert_parameters(reply: &Message) {
    let servers = DhcpOption::DomainNameServers(vec!["2001:db8::53".parse().unwrap()]);
    let opts = reply.opts();
    assert_eq!(opts.get(OptionCode::DomainNameServers), Some(&servers));
    let Some(DhcpOption::DomainSearchList(names)) = opts.get(OptionCode::DomainSearchList) else {
        panic!("{reply:?}");
    };
    assert_eq!(names[0].to_string(), "blue.example.");
}

#[test]
fn b005_solicit_and_request_lease_the_address() {
    let mut fabric = fabric(configured);
    let solicit = message(MessageType::Solicit, &[iana(77, &[])]);
    let advertisement = answer(&mut fabric, &solicit);
    assert_eq!(advertisement.msg_type(), MessageType::Advertise);
    assert_eq!(
        advertisement.opts().get(OptionCode::IANA),
        Some(&leased(77))
    );
    assert_parameters(&advertisement);
    let request = message(MessageType::Request, &[server(), iana(77, &[])]);
    let reply = answer(&mut fabric, &request);
    assert_eq!(reply.msg_type(), MessageType::Reply);
    assert_eq!(reply.opts().get(OptionCode::IANA), Some(&leased(77)));
    assert_parameters(&reply);
    assert!(fabric.crossed.is_empty());
    assert_eq!(fabric.missing_frames(), 0);
}

#[test]
fn b005_rapid_commit_takes_two_messages() {
    let mut fabric = fabric(configured);
    let rapid = [DhcpOption::RapidCommit, iana(5, &[])];
    let reply = answer(&mut fabric, &message(MessageType::Solicit, &rapid));
    assert_eq!(reply.msg_type(), MessageType::Reply);
    assert!(reply.opts().get(OptionCode::RapidCommit).is_some());
    assert_eq!(reply.opts().get(OptionCode::IANA), Some(&leased(5)));
}

#[test]
fn b005_renew_and_rebind_lengthen_the_lease_and_end_others() {
    let mut fabric = fabric(configured);
    let held = iana(5, &[address(own(), 9), address(FAR, 9)]);
    let renewed = DhcpOption::IANA(IANA {
        id: 5,
        t1: 500,
        t2: 800,
        opts: options(&[address(own(), 1000), address(FAR, 0)]),
    });
    for message in [
        message(MessageType::Renew, &[server(), held.clone()]),
        message(MessageType::Rebind, &[held]),
    ] {
        let reply = answer(&mut fabric, &message);
        assert_eq!(reply.msg_type(), MessageType::Reply);
        assert_eq!(reply.opts().get(OptionCode::IANA), Some(&renewed));
    }
}

#[test]
fn b005_other_associations_get_nothing() {
    let mut fabric = fabric(configured);
    let prefix = |opts: &[DhcpOption]| {
        DhcpOption::IAPD(IAPD {
            id: 7,
            t1: 0,
            t2: 0,
            opts: options(opts),
        })
    };
    let temporary = |opts: &[DhcpOption]| {
        DhcpOption::IATA(IATA {
            id: 6,
            opts: options(opts),
        })
    };
    let solicit = message(
        MessageType::Solicit,
        &[iana(5, &[]), iana(6, &[]), temporary(&[]), prefix(&[])],
    );
    let reply = answer(&mut fabric, &solicit);
    let none = status(Status::NoAddrsAvail);
    assert_eq!(
        reply.opts().get_all(OptionCode::IANA),
        Some(&[leased(5), iana(6, std::slice::from_ref(&none))][..])
    );
    assert_eq!(
        reply.opts().get(OptionCode::IATA),
        Some(&temporary(&[none]))
    );
    assert_eq!(
        reply.opts().get(OptionCode::IAPD),
        Some(&prefix(&[status(Status::NoPrefixAvail)]))
    );
}

#[test]
fn b005_confirm_says_whether_the_address_is_right() {
    let mut fabric = fabric(|_| {});
    for (addr, expected) in [(own(), Status::Success), (FAR, Status::NotOnLink)] {
        let confirm = message(MessageType::Confirm, &[iana(5, &[address(addr, 0)])]);
        let reply = answer(&mut fabric, &confirm);
        assert_eq!(reply.msg_type(), MessageType::Reply);
        assert_eq!(
            reply.opts().get(OptionCode::StatusCode),
            Some(&status(expected))
        );
    }
    let empty = message(MessageType::Confirm, &[iana(5, &[])]);
    let frame = multicast(&empty.to_vec().unwrap());
    assert!(fabric.send("a1", &frame).is_empty());
    assert_eq!(fabric.drops("h1", DropReason::DhcpUnanswered), 1);
}

#[test]
fn b005_release_and_decline_are_taken_note_of() {
    let mut fabric = fabric(|_| {});
    for kind in [MessageType::Release, MessageType::Decline] {
        let given_up = message(kind, &[server(), iana(5, &[address(own(), 0)])]);
        let reply = answer(&mut fabric, &given_up);
        assert_eq!(reply.msg_type(), MessageType::Reply);
        assert_eq!(
            reply.opts().get(OptionCode::StatusCode),
            Some(&status(Status::Success))
        );
    }
}

#[test]
fn b005_information_is_given_without_an_address() {
    let mut fabric = fabric(configured);
    let mut request = message(MessageType::InformationRequest, &[]);
    assert_parameters(&answer(&mut fabric, &request));
    request.opts_mut().remove(OptionCode::ClientId);
    let reply = answer(&mut fabric, &request);
    assert_parameters(&reply);
    assert!(reply.opts().get(OptionCode::IANA).is_none());
    // Only what is wanted.
    request.opts_mut().insert(DhcpOption::ORO(ORO {
        opts: vec![OptionCode::SntpServers, OptionCode::DomainSearchList],
    }));
    let opts = answer(&mut fabric, &request);
    assert!(opts.opts().get(OptionCode::DomainSearchList).is_some());
    assert!(opts.opts().get(OptionCode::DomainNameServers).is_none());
}

#[test]
fn b005_a_port_without_ipv6_is_told_so_and_its_confirm_is_not_answered() {
    let mut fabric = fabric(|objects| {
        objects.subnets[0].cidrs.pop();
        for id in ["a1", "a2", "a3"] {
            port(objects, id).addresses.pop();
        }
    });
    let none = iana(5, &[status(Status::NoAddrsAvail)]);
    let solicit = message(
        MessageType::Solicit,
        &[DhcpOption::RapidCommit, iana(5, &[])],
    );
    let reply = answer(&mut fabric, &solicit);
    assert_eq!(
        reply.msg_type(),
        MessageType::Advertise,
        "nothing to commit"
    );
    assert_eq!(reply.opts().get(OptionCode::IANA), Some(&none));
    let request = message(MessageType::Request, &[server(), iana(5, &[])]);
    let reply = answer(&mut fabric, &request);
    assert_eq!(reply.opts().get(OptionCode::IANA), Some(&none));
    let renew = message(MessageType::Renew, &[server(), iana(5, &[])]);
    let reply = answer(&mut fabric, &renew);
    let unbound = iana(5, &[status(Status::NoBinding)]);
    assert_eq!(reply.opts().get(OptionCode::IANA), Some(&unbound));
    let confirm = message(MessageType::Confirm, &[iana(5, &[address(FAR, 0)])]);
    let frame = multicast(&confirm.to_vec().unwrap());
    assert!(fabric.send("a1", &frame).is_empty());
}

#[test]
fn b005_where_guests_make_their_own_address_none_is_leased() {
    for mode in ["dhcpv6-stateless", "slaac"] {
        let mut fabric = fabric(|objects| {
            configured(objects);
            objects.subnets[0].dhcp.as_mut().unwrap().ipv6_mode = mode.into();
        });
        let solicit = message(MessageType::Solicit, &[iana(5, &[])]);
        let reply = answer(&mut fabric, &solicit);
        let none = iana(5, &[status(Status::NoAddrsAvail)]);
        assert_eq!(reply.opts().get(OptionCode::IANA), Some(&none), "{mode}");
        assert_parameters(&reply);
    }
}

#[test]
fn b005_messages_that_break_the_rules_are_dropped() {
    let mut fabric = fabric(|_| {});
    let without_client = |kind, list: &[DhcpOption]| {
        let mut message = message(kind, list);
        message.opts_mut().remove(OptionCode::ClientId);
        message
    };
    let malformed = [
        without_client(MessageType::Solicit, &[iana(5, &[])]),
        without_client(MessageType::Request, &[server(), iana(5, &[])]),
        message(MessageType::Solicit, &[server(), iana(5, &[])]),
        message(MessageType::Rebind, &[server(), iana(5, &[])]),
        message(MessageType::Confirm, &[server(), iana(5, &[])]),
        message(MessageType::Renew, &[iana(5, &[])]),
        message(MessageType::InformationRequest, &[iana(5, &[])]),
        message(MessageType::Reply, &[]),
        message(MessageType::Advertise, &[]),
        message(MessageType::Solicit, &[DhcpOption::ServerId(vec![1])]),
        // More associations than an answer holds.
        message(
            MessageType::Solicit,
            &(0..80).map(|id| iana(id, &[])).collect::<Vec<_>>(),
        ),
    ];
    for message in &malformed {
        let frame = multicast(&message.to_vec().unwrap());
        assert!(fabric.send("a1", &frame).is_empty(), "{message:?}");
    }
    let mut cut = message(MessageType::Solicit, &[iana(5, &[])])
        .to_vec()
        .unwrap();
    cut.pop();
    for bytes in [&cut[..], &[1, 0], &[]] {
        assert!(fabric.send("a1", &multicast(bytes)).is_empty());
    }
    assert_eq!(
        fabric.drops("h1", DropReason::DhcpMalformed),
        malformed.len() as u64 + 3
    );
    // For another server, and from a relay.
    let other = message(
        MessageType::Request,
        &[DhcpOption::ServerId(CLIENT.to_vec()), iana(5, &[])],
    );
    let mut relayed = vec![12, 0];
    relayed.extend([0; 32]);
    for bytes in [other.to_vec().unwrap(), relayed] {
        assert!(fabric.send("a1", &multicast(&bytes)).is_empty());
    }
    assert_eq!(fabric.drops("h1", DropReason::DhcpUnanswered), 2);
    // From somebody else's address.
    let bytes = message(MessageType::Solicit, &[iana(5, &[])])
        .to_vec()
        .unwrap();
    let stranger = End {
        v6: FAR.octets(),
        ..A1
    };
    let to = End { v6: SERVERS, ..A1 };
    let frame = udp6(stranger, to, SERVERS_MAC, (546, 547), &bytes);
    assert!(fabric.send("a1", &frame).is_empty());
    assert_eq!(fabric.drops("h1", DropReason::SpoofedDhcp), 1);
    assert_eq!(fabric.missing_frames(), 0);
}

#[test]
fn b005_nothing_is_answered_where_dhcp_is_off() {
    let mut fabric = fabric(|_| {});
    change(&mut fabric, |objects| {
        objects.subnets[0].dhcp = Some(Dhcp {
            disabled: true,
            ..Dhcp::default()
        });
    });
    let solicit = message(MessageType::Solicit, &[iana(5, &[])]);
    let out = fabric.send("a1", &multicast(&solicit.to_vec().unwrap()));
    // It is a multicast like any other.
    assert!(out.iter().all(|out| out.port != "a1"));
}

#[test]
fn b005_a_guest_is_told_the_options_of_its_subnet_and_its_port() {
    let mut fabric = fabric(|objects| {
        configured(objects);
        objects.subnets[0].dhcp.as_mut().unwrap().options = vec![
            option("ipv6", "ntp-server", "2001:db8::123"),
            option("ipv6", "bootfile-url", "tftp://[2001:db8::9]/default.efi"),
            option("", "tftp-server", "not.for.dhcpv6"),
        ];
        port(objects, "a1").dhcp_options = vec![
            option("ipv6", "59", "tftp://[fd00:1::13]/a1.efi"),
            option("ipv6", "bootfile-param", "quiet,console=ttyS0"),
            option("ipv6", "domain-search", ""),
        ];
    });
    let value = |reply: &Message, code: u16| match reply.opts().get(code.into()) {
        Some(DhcpOption::Unknown(option)) => Some(option.data().to_vec()),
        Some(other) => Some(other.to_vec().unwrap()[4..].to_vec()),
        None => None,
    };
    let url = Some(b"tftp://[fd00:1::13]/a1.efi".to_vec());
    let params = Some(b"\x00\x05quiet\x00\x0dconsole=ttyS0".to_vec());
    let server: Ipv6Addr = "2001:db8::123".parse().unwrap();
    let ntp = [&[0, 1, 0, 16][..], &server.octets()].concat();
    let all = message(MessageType::InformationRequest, &[]);
    let reply = answer(&mut fabric, &all);
    assert_eq!(value(&reply, 59), url);
    assert_eq!(value(&reply, 60), params);
    assert_eq!(value(&reply, 56), Some(ntp.clone()));
    assert_eq!(value(&reply, 24), None, "the port's guest needs no domain");
    assert!(value(&reply, 23).is_some());
    let wanted = DhcpOption::ORO(ORO {
        opts: vec![59.into()],
    });
    let some = message(MessageType::InformationRequest, &[wanted]);
    let reply = answer(&mut fabric, &some);
    assert_eq!((value(&reply, 59), value(&reply, 56)), (url, None));
    // Until everybody is to know.
    change(&mut fabric, |objects| {
        objects.subnets[0].dhcp.as_mut().unwrap().options[0].force = true;
    });
    let reply = answer(&mut fabric, &some);
    assert_eq!(value(&reply, 56), Some(ntp));
}
