//! Traffic that a guest passes on for others, what must not cross a router, and frames with a priority tag.

use weft_dataplane::packet::DropReason;
use weft_fabric::Fabric;
use weft_proto::v1::{self, AddressPair, Objects};

use crate::frames::{A1, A2, B1, End, arp, end, read, tcp, udp, udp6};
use crate::topology::{ROUTER, fabric, port, route};

const FW: End = end(3, 2);

/// A firewall in a subnet of its own on h2, through which the subnets a and b reach each other.
fn through_firewall(change: impl FnOnce(&mut v1::Port)) -> Fabric {
    fabric(|objects: &mut Objects| {
        objects.subnets.push(v1::Subnet {
            id: "blue-c".into(),
            vpc: "blue".into(),
            cidrs: vec!["10.0.3.0/24".into(), "fd00:3::/64".into()],
            ..v1::Subnet::default()
        });
        let mut fw = port(objects, "a2").clone();
        fw.id = "fw".into();
        fw.subnet = "blue-c".into();
        fw.mac = "02:00:00:00:03:02".into();
        fw.addresses = vec!["10.0.3.12".into(), "fd00:3::12".into()];
        change(&mut fw);
        objects.ports.push(fw);
        let through = |prefix: &str| v1::Route {
            port: "fw".into(),
            ..route(prefix)
        };
        objects.route_tables[0].routes = vec![through("10.0.2.0/24"), through("fd00:2::/64")];
        objects.route_tables.push(v1::RouteTable {
            id: "blue-b".into(),
            vpc: "blue".into(),
            routes: vec![through("10.0.1.0/24"), through("fd00:1::/64")],
            ..v1::RouteTable::default()
        });
        objects.subnets[1].route_table = "blue-b".into();
    })
}

fn any() -> Vec<AddressPair> {
    ["0.0.0.0/0", "::/0"]
        .map(|cidr| AddressPair {
            cidr: cidr.into(),
            mac: String::new(),
        })
        .to_vec()
}

/// What the firewall does with a frame that it got.
fn passed_on(frame: &[u8]) -> Vec<u8> {
    let mut frame = frame.to_vec();
    frame[..6].copy_from_slice(&ROUTER);
    frame[6..12].copy_from_slice(&FW.mac);
    frame
}

#[test]
fn b007_what_an_appliance_elsewhere_passes_on_comes_back_to_the_host_of_its_sender() {
    type Datagram = fn(End, End, [u8; 6], (u16, u16), &[u8]) -> Vec<u8>;
    for make in [udp as Datagram, udp6] {
        let mut fabric = through_firewall(|fw| fw.allowed_pairs = any());
        // Question and answer, several times: the sessions on h1 and h2 each see the flow twice.
        for _ in 0..3 {
            for (from, sender, to, receiver) in [(B1, "b1", A1, "a1"), (A1, "a1", B1, "b1")] {
                let ports = if sender == "b1" { (9, 53) } else { (53, 9) };
                let out = fabric.send(sender, &make(from, to, ROUTER, ports, b"x"));
                assert_eq!(out[0].port, "fw", "{:?}", fabric.all_drops());
                let out = fabric.send("fw", &passed_on(&out[0].frame));
                assert_eq!(out.len(), 1, "{:?}", fabric.all_drops());
                assert_eq!(out[0].port, receiver);
                assert_eq!(read(&out[0].frame).payload, b"x");
            }
        }
    }
}

#[test]
fn b009_only_what_the_pairs_of_the_peers_port_allow_comes_back() {
    // A pair for another prefix, or none: its own host refuses it, and so would ours if its host did not.
    let narrow = AddressPair {
        cidr: "10.0.2.0/28".into(),
        mac: String::new(),
    };
    let mut allowed = through_firewall(|fw| fw.allowed_pairs = vec![narrow.clone()]);
    let spoof = |source: End| {
        udp(
            End {
                mac: FW.mac,
                ..source
            },
            A1,
            ROUTER,
            (9, 53),
            b"x",
        )
    };
    assert_eq!(allowed.send("fw", &spoof(B1)).len(), 1);
    let crossed = allowed.crossed.pop().unwrap();
    let mut refused = through_firewall(|_| {});
    assert!(refused.send("fw", &spoof(B1)).is_empty());
    assert_eq!(refused.drops("h2", DropReason::SpoofedAddress), 1);
    assert!(refused.send_from_underlay("h1", &crossed).is_empty());
    assert_eq!(refused.drops("h1", DropReason::SpoofedInner), 1);
    // Another port behind the same peer has no such pair; but a peer is trusted with what any port of it may do.
    assert_eq!(allowed.send_from_underlay("h1", &crossed).len(), 1);
}

#[test]
fn what_is_of_the_link_does_not_cross_the_router() {
    let mut fabric = fabric(|objects| {
        port(objects, "a1").unguarded = true;
        let mut all = [route("0.0.0.0/0"), route("::/0")];
        for route in &mut all {
            route.port = "a3".into();
        }
        objects.route_tables[0].routes = all.to_vec();
    });
    let v6 = |first: [u8; 2], last: u8| {
        let mut address = [0; 16];
        address[..2].copy_from_slice(&first);
        address[15] = last;
        address
    };
    let mut dropped = 0;
    for v4 in [
        [169, 254, 1, 1],
        [0, 1, 2, 3],
        [240, 0, 0, 9],
        [255, 255, 255, 254],
    ] {
        let strange = End { v4, ..A1 };
        assert!(
            fabric
                .send("a1", &udp(A1, strange, ROUTER, (9, 9), b"x"))
                .is_empty()
        );
        dropped += 1;
        if v4[0] < 224 {
            assert!(
                fabric
                    .send("a1", &udp(strange, B1, ROUTER, (9, 9), b"x"))
                    .is_empty()
            );
            dropped += 1;
        }
        assert_eq!(fabric.drops("h1", DropReason::Martian), dropped, "{v4:?}");
    }
    for address in [v6([0xfe, 0x80], 9), v6([0xfe, 0xbf], 9)] {
        let strange = End { v6: address, ..A1 };
        assert!(
            fabric
                .send("a1", &udp6(A1, strange, ROUTER, (9, 9), b"x"))
                .is_empty()
        );
        assert!(
            fabric
                .send("a1", &udp6(strange, B1, ROUTER, (9, 9), b"x"))
                .is_empty()
        );
        dropped += 2;
        assert_eq!(fabric.drops("h1", DropReason::Martian), dropped);
    }
    // Within the subnet they pass.
    let link = End {
        v4: [169, 254, 1, 1],
        ..A1
    };
    let other = End {
        v4: [169, 254, 1, 2],
        ..A2
    };
    assert_eq!(
        fabric
            .send("a1", &udp(link, other, A2.mac, (9, 9), b"x"))
            .len(),
        1
    );
    let ordinary = End {
        v4: [198, 51, 100, 1],
        ..A1
    };
    assert_eq!(
        fabric
            .send("a1", &udp(A1, ordinary, ROUTER, (9, 9), b"x"))
            .len(),
        1
    );
}

#[test]
fn a_priority_tag_is_as_none() {
    let tagged = |frame: &[u8], tag: u16| {
        let mut frame = frame.to_vec();
        let [high, low] = tag.to_be_bytes();
        frame.splice(12..12, [0x81, 0, high, low]);
        frame
    };
    let mut fabric = fabric(|_| {});
    for frame in [
        udp(A1, A2, A2.mac, (9, 9), b"x"),
        udp6(A1, A2, A2.mac, (9, 9), b"x"),
        tcp(A1, A2, A2.mac, (9, 9), "S", (7, 0), 0),
    ] {
        // The second finds a session.
        for _ in 0..2 {
            let out = fabric.send("a1", &tagged(&frame, 0xe000));
            assert_eq!(out[0].frame, frame);
        }
        assert!(fabric.send("a1", &tagged(&frame, 0xe007)).is_empty());
        assert!(
            fabric
                .send("a1", &tagged(&tagged(&frame, 0), 0xe000))
                .is_empty()
        );
    }
    assert_eq!(fabric.drops("h1", DropReason::EtherType), 6);
    let question = arp(A1.mac, 1, (A1.mac, A1.v4), ([0; 6], A2.v4));
    let out = fabric.send("a1", &tagged(&question, 0));
    assert_eq!(out[0].frame[12..14], [8, 6]);
    // Off a tunnel too: of IP, and of ARP by equipment behind it.
    fabric.crossed.clear();
    let frame = udp(A1, A2, A2.mac, (9, 10), b"x");
    fabric.send("a1", &frame);
    let crossed = fabric.crossed[0].clone();
    let inner = crossed.len() - frame.len();
    let grown = |frame: &[u8]| {
        let mut wire = [&crossed[..inner], frame].concat();
        // IPv4 and UDP around VXLAN.
        let (ip, udp) = ((wire.len() - 14) as u16, (wire.len() - 34) as u16);
        wire[16..18].copy_from_slice(&ip.to_be_bytes());
        wire[38..40].copy_from_slice(&udp.to_be_bytes());
        wire[24..26].fill(0);
        let sum: u32 = wire[14..34]
            .chunks(2)
            .map(|word| u32::from(word[0]) << 8 | u32::from(word[1]))
            .sum();
        let sum = !(((sum & 0xffff) + (sum >> 16)) as u16);
        wire[24..26].copy_from_slice(&sum.to_be_bytes());
        wire
    };
    let out = fabric.send_from_underlay("h2", &grown(&tagged(&frame, 0xe000)));
    assert_eq!(
        (out.len(), &out[0].frame),
        (1, &frame),
        "{:?}",
        fabric.all_drops()
    );
    assert!(
        fabric
            .send_from_underlay("h2", &grown(&tagged(&frame, 0xe007)))
            .is_empty()
    );
    let stranger = [2, 0, 0, 0, 9, 9];
    let question = arp(stranger, 1, (stranger, [10, 0, 1, 99]), ([0; 6], A2.v4));
    fabric.crossed.clear();
    fabric.send_from_underlay("h2", &grown(&tagged(&question, 0)));
    assert_eq!(fabric.crossed.len(), 1, "{:?}", fabric.all_drops());
    assert_eq!(fabric.missing_frames(), 0);
}
