//! Hostile requests to the gateway's services: no panic, no leak, and answers go only to the guest that sent the request, complete and
//! within its subnet's MTU.

use dhcproto::v4::{DhcpOption, MessageType, OptionCode};
use dhcproto::{Encodable, v6};
use proptest::prelude::*;
use weft_dataplane::packet::DropReason;
use weft_proto::v1::Dhcp;

use crate::frames::{A1, End, icmp6, read, udp};
use crate::router_advertisement::LOCAL;
use crate::topology::{fabric, port};
use crate::{dhcp, dhcp6};

/// Messages of every kind, and what a client may put into them.
fn seeds() -> Vec<(bool, Vec<u8>)> {
    let mut seeds = Vec::new();
    let options = [
        DhcpOption::ClientIdentifier(vec![7; 19]),
        DhcpOption::ParameterRequestList((0..=120).map(OptionCode::from).collect()),
        DhcpOption::MaxMessageSize(1500),
        DhcpOption::RequestedIpAddress(A1.v4.into()),
    ];
    for kind in [
        MessageType::Discover,
        MessageType::Request,
        MessageType::Inform,
    ] {
        let mut message = dhcp::message(A1, kind, &options);
        if kind == MessageType::Inform {
            message.set_ciaddr(A1.v4);
        }
        seeds.push((true, message.to_vec().unwrap()));
    }
    for kind in [1u8, 3, 4, 5, 6, 8, 9, 11] {
        let mut list = vec![v6::DhcpOption::RapidCommit];
        let address = v6::DhcpOption::IAAddr(v6::IAAddr {
            addr: A1.v6.into(),
            preferred_life: 1,
            valid_life: 1,
            opts: v6::DhcpOptions::new(),
        });
        let mut opts = v6::DhcpOptions::new();
        opts.insert(address);
        if kind != 11 {
            list.push(v6::DhcpOption::IANA(v6::IANA {
                id: 1,
                t1: 0,
                t2: 0,
                opts,
            }));
        }
        if matches!(kind, 3 | 5 | 8 | 9) {
            let duid = vec![0, 3, 0, 1, 2, 0x77, 0x65, 0x66, 0x74, 1];
            list.push(v6::DhcpOption::ServerId(duid));
        }
        seeds.push((false, dhcp6::message(kind.into(), &list).to_vec().unwrap()));
    }
    seeds
}

#[derive(Debug, Clone)]
enum Mutation {
    Set(u16, u8),
    Cut(u16),
    Insert(u16, Vec<u8>),
    Repeat(u16, u16),
}

fn mutation() -> impl Strategy<Value = Mutation> {
    prop_oneof![
        4 => (any::<u16>(), any::<u8>()).prop_map(|(at, byte)| Mutation::Set(at, byte)),
        1 => any::<u16>().prop_map(Mutation::Cut),
        2 => (any::<u16>(), prop::collection::vec(any::<u8>(), 1..80))
            .prop_map(|(at, bytes)| Mutation::Insert(at, bytes)),
        1 => (any::<u16>(), any::<u16>()).prop_map(|(at, len)| Mutation::Repeat(at, len)),
    ]
}

fn mutate(bytes: &mut Vec<u8>, mutations: &[Mutation], options: usize) {
    for mutation in mutations {
        // Mostly among the options, where there is the most to get wrong.
        let at = |at: &u16| {
            let at = usize::from(*at);
            let from = if at.is_multiple_of(8) { 0 } else { options };
            from.min(bytes.len()) + at % (bytes.len() - from.min(bytes.len())).max(1)
        };
        match mutation {
            Mutation::Set(i, byte) => {
                let i = at(i);
                if let Some(place) = bytes.get_mut(i) {
                    *place = *byte;
                }
            }
            Mutation::Cut(i) => bytes.truncate(at(i)),
            Mutation::Insert(i, inserted) => {
                let i = at(i).min(bytes.len());
                bytes.splice(i..i, inserted.iter().copied());
            }
            Mutation::Repeat(i, len) => {
                let i = at(i).min(bytes.len());
                let end = (i + usize::from(*len) % 400).min(bytes.len());
                let piece = bytes[i..end].to_vec();
                bytes.splice(i..i, piece);
            }
        }
        bytes.truncate(1400);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn b004_b005_hostile_messages_do_no_harm(
        seed in 0..11usize,
        rounds in prop::collection::vec(prop::collection::vec(mutation(), 0..6), 1..20),
    ) {
        let mut fabric = fabric(|objects| {
            objects.subnets[0].dhcp = Some(Dhcp {
                dns_servers: (1..=16).map(|n| format!("2001:db8::{n}")).collect(),
                domain: ["abcdefgh"; 27].join("."),
                options: vec![dhcp::option("ipv6", "bootfile-url", &"u".repeat(380))],
                ..Dhcp::default()
            });
            let a1 = port(objects, "a1");
            a1.hostname = "h".repeat(63);
            // What the subnet tells by itself takes all the room there is, but the guest needs no domain name.
            a1.dhcp_options = [("15", ""), ("66", "b"), ("67", &*"f".repeat(110))]
                .map(|(name, value)| dhcp::option("", name, value))
                .to_vec();
        });
        let (v4, good) = &seeds()[seed];
        let mut answered = 0;
        let count = rounds.len();
        for mutations in rounds {
            let mut bytes = good.clone();
            mutate(&mut bytes, &mutations, if *v4 { 240 } else { 4 });
            let frame = if *v4 {
                let (from, to) = (End { v4: dhcp::ANY, ..A1 }, End { v4: dhcp::ALL, ..A1 });
                udp(from, to, [0xff; 6], (68, 67), &bytes)
            } else {
                dhcp6::multicast(&bytes)
            };
            let out = fabric.send("a1", &frame);
            prop_assert!(out.len() <= 1);
            if let Some(out) = out.first() {
                prop_assert_eq!(&out.port, "a1");
                prop_assert!(out.frame.len() <= 14 + 1430);
                let least = if *v4 { 300 } else { 4 };
                prop_assert!(read(&out.frame).payload.len() >= least);
                answered += 1;
            }
        }
        let dropped: u64 = fabric.all_drops().values().sum();
        prop_assert_eq!(dropped + answered, count as u64);
        prop_assert_eq!(fabric.missing_frames(), 0);
        prop_assert!(fabric.crossed.is_empty());
    }

    #[test]
    fn b003_hostile_solicitations_do_no_harm(
        options in prop::collection::vec(any::<u8>(), 0..64),
        unspecified in any::<bool>(),
    ) {
        let mut fabric = fabric(|_| {});
        let source = if unspecified { [0; 16] } else { LOCAL };
        let mut routers = [0; 16];
        (routers[0], routers[1], routers[15]) = (0xff, 2, 2);
        let body = [&[0; 4][..], &options].concat();
        let frame = icmp6(A1.mac, [0x33, 0x33, 0, 0, 0, 2], source, routers, 133, &body);
        let out = fabric.send("a1", &frame);
        let refused = [DropReason::NeighborMalformed, DropReason::SpoofedNeighbor];
        let refused: u64 = refused.iter().map(|reason| fabric.drops("h1", *reason)).sum();
        prop_assert_eq!(out.len() as u64 + refused, 1);
        prop_assert_eq!(fabric.missing_frames(), 0);
    }
}
