//! Ports that move from host to host while others still send to where they were: of behaviour 42 what is there, the forwarding by the old host.

use weft_dataplane::packet::DropReason;
use weft_fabric::Fabric;
use weft_proto::state::State;
use weft_proto::v1::{self, Objects};

use crate::frames::{A1, A2, A3, End, end, read, tcp, udp, udp6};
use crate::overlay::mend_ipv4;
use crate::topology::{ROUTER, fabric, port};

const A4: End = end(1, 4);
const B4: End = end(2, 4);

/// The usual hosts and a third, on which a4 and b4 live, whose tunnels are GRE.
fn three_hosts() -> Fabric {
    fabric(|objects| {
        objects.hosts.push(v1::Host {
            id: "h3".into(),
            vteps: vec!["192.0.2.3".into(), "2001:db8:ffff::3".into()],
            encapsulation: "gre".into(),
            ..v1::Host::default()
        });
        for (id, subnet, like) in [("a4", "blue-a", "a1"), ("b4", "blue-b", "b1")] {
            let mut port = port(objects, like).clone();
            let at = |text: &str| text.replace("11", "14");
            port.id = id.into();
            port.subnet = subnet.into();
            port.mac = format!("{}4", &port.mac[..port.mac.len() - 1]);
            port.addresses = port.addresses.iter().map(|text| at(text)).collect();
            port.host = "h3".into();
            objects.ports.push(port);
        }
    })
}

/// a1 moves from h1 to h2; the hosts named hear of it.
fn move_a1(fabric: &mut Fabric, from: &str, hears: &[&str]) {
    let change = |objects: &mut Objects| {
        let a1 = port(objects, "a1");
        a1.host = "h2".into();
        a1.moved_from = from.into();
    };
    let mut objects = fabric.state().to_objects();
    change(&mut objects);
    let state = State::from_objects(objects).unwrap();
    fabric.set_at(state, |host| hears.contains(&host)).unwrap();
}

/// Sends, and expects exactly one frame, at a port.
#[track_caller]
fn arrives(fabric: &mut Fabric, from: &str, frame: &[u8], at: &str) -> Vec<u8> {
    let crossed = fabric.crossed.len();
    let mut out = fabric.send(from, frame);
    assert_eq!(out.len(), 1, "{:?}", fabric.all_drops());
    let one = out.remove(0);
    assert_eq!(one.port, at);
    fabric.crossed.drain(..crossed);
    one.frame
}

#[test]
fn b042_the_old_host_sends_on_what_still_comes_for_a_port_that_left() {
    let mut fabric = three_hosts();
    let before = udp(A4, A1, A1.mac, (1, 2), b"before");
    arrives(&mut fabric, "a4", &before, "a1");
    assert_eq!(fabric.crossed.len(), 1);
    let tracked = |fabric: &Fabric| fabric.hosts["h1"].shared.sessions.statistics().live;
    let before_move = tracked(&fabric);
    move_a1(&mut fabric, "h1", &["h1", "h2"]);
    // Within the subnet, unchanged, whatever it is: of a flow that was known, of a new one, of the middle of a connection.
    for frame in [
        before,
        udp(A4, A1, A1.mac, (3, 4), b"new"),
        udp6(A4, A1, A1.mac, (3, 4), b"new"),
        tcp(A4, A1, A1.mac, (5, 6), "A", (1000, 2000), 100),
    ] {
        assert_eq!(arrives(&mut fabric, "a4", &frame, "a1"), frame);
        assert_eq!(fabric.crossed.len(), 2, "over the old host");
    }
    // Routed once, where it is sent.
    let routed = arrives(&mut fabric, "b4", &udp(B4, A1, ROUTER, (1, 2), b"x"), "a1");
    let seen = read(&routed);
    assert_eq!((seen.dst, seen.src, seen.ttl), (A1.mac, ROUTER, 63));
    // The old host's own ports send straight to where it is now.
    arrives(&mut fabric, "a3", &udp(A3, A1, A1.mac, (1, 2), b"x"), "a1");
    assert_eq!(fabric.crossed.len(), 1);
    assert_eq!(tracked(&fabric), before_move + 1, "a3's alone");
    // Everybody has heard.
    let state = fabric.state().clone();
    fabric.set(state).unwrap();
    arrives(&mut fabric, "a4", &udp(A4, A1, A1.mac, (1, 2), b"x"), "a1");
    assert_eq!(fabric.crossed.len(), 1, "straight there");
    assert_eq!(fabric.all_drops().len(), 0, "{:?}", fabric.all_drops());
    assert_eq!(fabric.missing_frames(), 0);
}

#[test]
fn b042_a_connection_goes_on_at_the_new_host() {
    let mut fabric = three_hosts();
    let (there, back) = ((A4, A1, A1.mac, (5, 6)), (A1, A4, A4.mac, (6, 5)));
    let send = |fabric: &mut Fabric, way: (End, End, [u8; 6], (u16, u16)), from, flags, numbers| {
        let (source, destination, mac, ports) = way;
        let frame = tcp(source, destination, mac, ports, flags, numbers, 0);
        fabric.send(from, &frame).len()
    };
    assert_eq!(send(&mut fabric, there, "a4", "S", (1000, 0)), 1);
    assert_eq!(send(&mut fabric, back, "a1", "SA", (2000, 1001)), 1);
    assert_eq!(send(&mut fabric, there, "a4", "A", (1001, 2001)), 1);
    move_a1(&mut fabric, "h1", &["h1", "h2"]);
    assert_eq!(send(&mut fabric, there, "a4", "A", (1001, 2001)), 1);
    // Until h3 has heard, a1 must not speak from elsewhere there.
    assert_eq!(send(&mut fabric, back, "a1", "A", (2001, 1001)), 0);
    assert_eq!(fabric.drops("h3", DropReason::SpoofedInner), 1);
    let state = fabric.state().clone();
    fabric.set(state).unwrap();
    assert_eq!(send(&mut fabric, back, "a1", "A", (2001, 1001)), 1);
    assert_eq!(send(&mut fabric, there, "a4", "A", (1001, 2001)), 1);
}

#[test]
fn b042_a_move_opens_no_other_door() {
    let mut fabric = three_hosts();
    // Frames as they cross, to be sent again from where they do not belong.
    let mut outer = |from: &str, frame: &[u8]| {
        fabric.send(from, frame);
        fabric.crossed.pop().unwrap()
    };
    let to_a2 = outer("a3", &udp(A3, A2, A2.mac, (1, 2), b"x"));
    let from_h2 = outer("a2", &udp(A2, A1, A1.mac, (1, 2), b"x"));
    let from_h3 = outer("a4", &udp(A4, A1, A1.mac, (1, 2), b"x"));
    // Tunnels: VXLAN towards h1 and h2; 50 bytes of outer headers. Inner addresses at their places.
    let inner = |frame: &[u8], source: End| {
        let mut frame = frame.to_vec();
        frame[56..62].copy_from_slice(&source.mac);
        frame[76..80].copy_from_slice(&source.v4);
        let sum = etherparse::Ipv4HeaderSlice::from_slice(&frame[64..])
            .unwrap()
            .to_header()
            .calc_header_checksum();
        frame[74..76].copy_from_slice(&sum.to_be_bytes());
        frame[90..92].fill(0);
        frame
    };
    move_a1(&mut fabric, "h1", &["h1", "h2"]);
    let refused = |fabric: &mut Fabric, host: &str, frame: &[u8], reason| {
        let before = fabric.drops(host, reason);
        assert_eq!(fabric.send_from_underlay(host, frame), []);
        let drops = fabric.all_drops();
        assert_eq!(fabric.drops(host, reason), before + 1, "{drops:?}");
    };
    // From where the port is now: it would go round and round.
    refused(&mut fabric, "h1", &from_h2, DropReason::NotHere);
    // A source that does not live behind the sender, or lives here.
    refused(
        &mut fabric,
        "h1",
        &inner(&from_h3, A2),
        DropReason::SpoofedInner,
    );
    refused(
        &mut fabric,
        "h1",
        &inner(&from_h3, A3),
        DropReason::SpoofedInner,
    );
    // The old host may speak for others to the port that moved, to no other port.
    refused(
        &mut fabric,
        "h2",
        &inner(&to_a2, A4),
        DropReason::SpoofedInner,
    );
    // Without a word of a move, and after it, nothing is sent on.
    move_a1(&mut fabric, "", &["h1", "h2"]);
    refused(&mut fabric, "h1", &from_h3, DropReason::NotHere);
}

#[test]
fn b028_a_congestion_mark_goes_on_with_what_is_sent_on() {
    let mut fabric = three_hosts();
    let mut frame = udp(A4, A1, A1.mac, (9, 9), b"hello");
    frame[15] = 0x02;
    mend_ipv4(&mut frame, 14);
    assert_eq!(fabric.send("a4", &frame).len(), 1);
    let mut congested = fabric.crossed.pop().unwrap();
    move_a1(&mut fabric, "h1", &["h1", "h2"]);
    congested[15] = 0x03;
    mend_ipv4(&mut congested, 14);
    let out = fabric.send_from_underlay("h1", &congested);
    assert_eq!((out.len(), out[0].frame[15]), (1, 0x03));
    assert_eq!(
        fabric.crossed[0][15], 0x03,
        "outside of the second tunnel too"
    );
}
