//! Packets in a vector are treated as they would be alone, and packets of a flow stay in order. Fast and slow path alternate here.

use proptest::prelude::*;
use weft_dataplane::packet::{DropReason, FrameMemory};
use weft_dataplane::pipeline::{Destination, Source, VECTOR};
use weft_fabric::{Fabric, MemoryIo};

use crate::frames::{A1, A2, A3, B1, B2, End, arp, echo, tcp, udp, udp_ttl, udp6};
use crate::topology::{ROUTER, fabric};

/// What a1 sends: flows of both families to all places, a connection, and what has to be dropped or answered.
fn frames() -> Vec<Vec<u8>> {
    let mut frames = Vec::new();
    for port in 0..4 {
        frames.push(udp(A1, A2, A2.mac, (1000 + port, 53), b"far"));
        frames.push(udp(A1, A3, A3.mac, (1000 + port, 53), b"near"));
        frames.push(udp(A1, B1, ROUTER, (1000 + port, 53), b"near, routed"));
        frames.push(udp(A1, B2, ROUTER, (1000 + port, 53), b"far, routed"));
        frames.push(udp6(A1, B2, ROUTER, (1000 + port, 53), b"far, routed"));
    }
    for (flags, seq, ack, len) in [
        ("S", 100, 0, 0),
        ("A", 101, 501, 0),
        ("A", 101, 501, 90),
        ("A", 191, 501, 90),
        ("A", 9, 501, 9),
        ("FA", 281, 501, 0),
    ] {
        frames.push(tcp(A1, A2, A2.mac, (2000, 80), flags, (seq, ack), len));
    }
    frames.push(udp_ttl(A1, B2, ROUTER, (1000, 53), b"at its end", 1));
    frames.push(udp(A1, A2, A2.mac, (1000, 53), &[7; 1800]));
    frames.push(udp(A3, A2, A2.mac, (1000, 53), b"spoofed"));
    frames.push(udp(A1, A2, [2, 9, 9, 9, 9, 9], (1000, 53), b"to nobody"));
    frames.push(echo(A1, A2, A2.mac, 5, b"ping"));
    frames.push(arp(A1.mac, 1, (A1.mac, A1.v4), ([0; 6], [10, 0, 1, 1])));
    frames.push(vec![0xff; 40]);
    let mut unsummed = udp(A1, B2, ROUTER, (1001, 53), b"left to the device");
    let pseudo: u32 = [0x0a00, 0x010b, 0x0a00, 0x020c, 17, 8 + 18].iter().sum();
    unsummed[40..42].copy_from_slice(&(pseudo as u16).to_be_bytes());
    frames.push(unsummed);
    frames
}

/// What leaves a host, in order, and what it dropped.
type Fate = (Vec<(Destination, Vec<u8>)>, Vec<(DropReason, u64)>);

/// Hands a host packets in vectors of the given sizes.
fn run(
    fabric: &mut Fabric,
    host: &str,
    source: Source,
    frames: &[&Vec<u8>],
    sizes: &[usize],
) -> Fate {
    let now = fabric.now;
    let mut sent = Vec::new();
    {
        let host = fabric.hosts.get_mut(host).unwrap();
        let mut io = MemoryIo::new(1024, 4096);
        let (mut left, mut sizes) = (frames, sizes.iter().cycle());
        while !left.is_empty() {
            let (now_in, later) = left.split_at((*sizes.next().unwrap()).min(left.len()));
            left = later;
            let mut vector = now_in
                .iter()
                .map(|frame| io.memory.packet(256, frame).unwrap())
                .collect();
            host.pipeline.process(&mut io, source, &mut vector, now);
            for (to, packet) in std::mem::take(&mut io.sent) {
                let mut frame = packet.bytes(&io).to_vec();
                io.free(packet.frame);
                if matches!(to, Destination::Uplink(_)) {
                    // Entropy is each table's own.
                    frame[34..36].fill(0);
                }
                sent.push((to, frame));
            }
        }
    }
    let drops = DropReason::ALL
        .iter()
        .map(|reason| (*reason, fabric.drops(host, *reason)));
    (sent, drops.filter(|(_, count)| *count > 0).collect())
}

#[test]
fn an_ipv6_packet_with_mapped_addresses_does_not_pass_for_one_of_an_ipv4_flow() {
    let mut fabric = fabric(|_| {});
    let known = udp(A1, A2, A2.mac, (1000, 53), b"known");
    assert_eq!(fabric.send("a1", &known).len(), 1);
    let mapped = |end: End| {
        let mut v6 = [0; 16];
        v6[10..12].fill(0xff);
        v6[12..].copy_from_slice(&end.v4);
        End { v6, ..end }
    };
    // One mapped address is one too many: the quick parse must leave both to the parser.
    for (number, (from, to)) in
        (1..).zip([(mapped(A1), mapped(A2)), (mapped(A1), A2), (A1, mapped(A2))])
    {
        let alias = udp6(from, to, A2.mac, (1000, 53), b"alias");
        assert!(fabric.send("a1", &alias).is_empty());
        assert_eq!(fabric.drops("h1", DropReason::Martian), number);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn packets_fare_in_a_vector_as_they_do_alone(
        order in proptest::collection::vec(any::<proptest::sample::Index>(), 1..300),
        sizes in proptest::collection::vec(1..VECTOR + 9, 1..6),
    ) {
        let all = frames();
        let frames: Vec<&Vec<u8>> = order.iter().map(|index| index.get(&all)).collect();
        let mut fabrics = [fabric(|_| {}), fabric(|_| {})];
        let port = Source::Port(fabrics[0].find_port("a1").unwrap().1);
        let [together, alone] = &mut fabrics;
        let one = run(together, "h1", port, &frames, &sizes);
        let other = run(alone, "h1", port, &frames, &[1]);
        prop_assert_eq!(&one, &other);
        // And what reaches the far host.
        let tunnelled: Vec<&Vec<u8>> =
            one.0.iter().filter(|(to, _)| matches!(to, Destination::Uplink(_))).map(|(_, frame)| frame).collect();
        let one = run(together, "h2", Source::Uplink(0), &tunnelled, &sizes);
        let other = run(alone, "h2", Source::Uplink(0), &tunnelled, &[1]);
        prop_assert_eq!(one, other);
    }
}
