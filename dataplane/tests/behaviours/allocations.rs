//! What a worker does again and again allocates nothing. The allocator of this program counts, for each thread by itself.

#![allow(unsafe_code)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use weft_dataplane::packet::Packet;
use weft_dataplane::pipeline::{Destination, Source};
use weft_fabric::Fabric;
use weft_proto::v1::Trunk;

use crate::external::{FAR, twofold};
use crate::frames::{A1, A2, A3, B1, End, udp};
use crate::multicast;
use crate::topology::{ROUTER, fabric, port};

thread_local! {
    static COUNT: Cell<u64> = const { Cell::new(0) };
}

struct Counting;

fn count() {
    // A thread that ends has no counter any more.
    let _ = COUNT.try_with(|count| count.set(count.get() + 1));
}

// SAFETY: every call goes on to the system's allocator with the arguments that it came with; counting allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller keeps the rules of `alloc`, which are the same there.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: the memory is of the system's allocator, as all is.
        unsafe { System.dealloc(memory, layout) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count();
        // SAFETY: the memory is of the system's allocator, as all is.
        unsafe { System.realloc(memory, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn allocations() -> u64 {
    COUNT.with(Cell::get)
}

/// What one vector of new flows of a1 makes its host allocate, and how many packets that sends to other hosts.
fn opens(fabric: &mut Fabric, first: u16) -> (u64, usize) {
    const FLOWS: u16 = 32;
    let (host, index) = fabric.find_port("a1").unwrap();
    let now = fabric.now;
    let host = fabric.hosts.get_mut(&host).unwrap();
    let frames = (first..first + FLOWS).map(|port| udp(A1, FAR, ROUTER, (port, 53), b"x"));
    let packets = frames.map(|frame| host.io.memory.packet(128, &frame));
    let mut packets: Vec<Packet> = packets.collect::<Option<_>>().unwrap();
    host.io.sent.reserve(256);
    let before = allocations();
    let source = Source::Port(index);
    host.pipeline
        .process(&mut host.io, source, &mut packets, now);
    let count = allocations() - before;
    let to = |uplink| {
        let sent = host.io.sent.iter();
        sent.filter(|(to, _)| *to == Destination::Uplink(uplink))
            .count()
    };
    assert_eq!(to(1), usize::from(FLOWS), "all leave");
    let told = to(0);
    fabric.carry();
    (count, told)
}

#[test]
fn a_gateway_host_tells_of_new_sessions_and_of_all_without_allocating() {
    let mut fabric = twofold();
    // What is kept grows to what is needed.
    for round in 0..3 {
        opens(&mut fabric, 10_000 + 32 * round);
        fabric.live(100).unwrap();
    }
    for round in 0..5 {
        let (count, told) = opens(&mut fabric, 20_000 + 32 * round);
        // 15 sessions in a datagram, to one other gateway host.
        assert_eq!((count, told), (0, 3));
        fabric.now += 100;
        let now = fabric.now;
        let host = fabric.hosts.get_mut("h1").unwrap();
        host.io.sent.reserve(256);
        let before = allocations();
        host.pipeline.tick(&mut host.io, now);
        assert_eq!(allocations() - before, 0, "in a turn");
        assert!(host.io.sent.len() > 10, "of all, and probes");
        fabric.carry();
    }
}

/// What vectors of a frame of a1 make its host allocate, each of which is sent on as so many packets.
fn copies(fabric: &mut Fabric, frame: &[u8], copies: usize) {
    const PACKETS: usize = 32;
    for round in 0..3 {
        let (host, index) = fabric.find_port("a1").unwrap();
        let now = fabric.now;
        let host = fabric.hosts.get_mut(&host).unwrap();
        let packets = std::iter::repeat_with(|| host.io.memory.packet(128, frame)).take(PACKETS);
        let mut packets: Vec<Packet> = packets.collect::<Option<_>>().unwrap();
        host.io.sent.reserve(256);
        let before = allocations();
        let source = Source::Port(index);
        host.pipeline
            .process(&mut host.io, source, &mut packets, now);
        let count = allocations() - before;
        assert_eq!(host.io.sent.len(), copies * PACKETS);
        if round > 0 {
            assert_eq!(count, 0);
        }
        fabric.carry();
    }
}

#[test]
fn a_broadcast_is_copied_to_ports_and_hosts_without_allocating() {
    let mut fabric = fabric(|_| {});
    let everybody = End {
        mac: [0xff; 6],
        v4: [255; 4],
        ..A1
    };
    let frame = udp(A1, everybody, [0xff; 6], (9, 9), b"all");
    // To a3, and to h2.
    copies(&mut fabric, &frame, 2);
}

#[test]
fn a_group_is_copied_to_those_who_have_joined_it_without_allocating() {
    let mut fabric = fabric(multicast::route);
    // On this host, on the other one, and in another subnet.
    for (port, end) in [("a3", A3), ("a2", A2), ("b1", B1)] {
        fabric.send(port, &multicast::igmp2(end, 0x16, multicast::GROUP));
    }
    copies(&mut fabric, &multicast::stream(A1), 3);
    // Nobody else has joined this one.
    let other = End {
        v4: [239, 9, 9, 9],
        ..A1
    };
    let frame = udp(A1, other, [1, 0, 0x5e, 9, 9, 9], (9, 9), b"none");
    copies(&mut fabric, &frame, 0);
}

#[test]
fn the_vlans_of_a_vector_are_taken_apart_without_allocating() {
    let mut fabric = fabric(|objects| {
        port(objects, "a3").trunk = Some(Trunk {
            parent: "a1".into(),
            vlan: 7,
        });
    });
    let mut frame = udp(A3, A2, A2.mac, (9, 9), b"x");
    frame.splice(12..12, [0x81, 0, 0, 7]);
    copies(&mut fabric, &frame, 1);
}
