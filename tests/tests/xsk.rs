//! AF_XDP queues on veth: received frames have room ahead, frames are sent, and the accounting of frames is exact.

#![allow(clippy::unwrap_used)]

mod common;

use std::{
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use common::{SOON, collect, frame, open, pair, small_umem};
use weft_dataplane::{
    packet::buffer::{FrameMemory, Packet},
    port::{
        AttachMode, Attachment, BusyPoll, DATA_OFFSET, FrameCache, Interface, PortError, Programs,
        Queue, QueueOptions, Role, Umem, UmemOptions, XskQueue,
    },
};
use weft_tests::{Lab, LinkOptions, Namespace, RawSocket, wait_until};

const HEADROOM: u16 = 50;
const PORT: Role = Role::Port { headroom: HEADROOM };

fn settle(umem: &Umem) {
    wait_until("the books to balance", SOON, || {
        umem.accounting().balances()
    })
    .unwrap_or_else(|error| panic!("{error}: {:?}", umem.accounting()));
}

fn frames_arrive_with_room(only: AttachMode) {
    let lab = pair();
    let umem = small_umem();
    let mut cache = FrameCache::new(&umem);
    let (mut queue, attachment) = open(&lab.dut, &umem, "under0", &PORT, Some(only));
    assert_eq!(attachment.mode(), only);
    assert!(!queue.is_zero_copy());
    assert!(collect_nothing(&mut queue, &mut cache));
    let sender = RawSocket::open(&lab.peer, "peer0").unwrap();
    let sent: Vec<_> = [14, 60, 64, 1000, 1514]
        .iter()
        .zip(1..)
        .map(|(&len, n)| frame(n, len))
        .collect();
    sent.iter().for_each(|frame| sender.send(frame).unwrap());
    let packets = collect(&mut queue, &mut cache, sent.len());
    assert_eq!(packets.len(), sent.len(), "{:?}", queue.counters());
    for (packet, sent) in packets.into_iter().zip(&sent) {
        assert_eq!(packet.start, DATA_OFFSET + HEADROOM);
        assert_eq!(packet.bytes(&cache), sent);
        cache.free(packet.frame);
    }
    settle(&umem);
    assert_eq!(umem.accounting().held, 0);
}

fn collect_nothing(queue: &mut XskQueue, cache: &mut FrameCache) -> bool {
    let mut none = Vec::new();
    queue.receive(cache, &mut none, 64) == 0
}

#[test]
fn frames_of_a_port_arrive_with_room_ahead_native() {
    frames_arrive_with_room(AttachMode::Native);
}

#[test]
fn frames_of_a_port_arrive_with_room_ahead_generic() {
    frames_arrive_with_room(AttachMode::Generic);
}

#[test]
fn packets_leave_from_wherever_they_start_in_their_frame() {
    let lab = pair();
    let umem = small_umem();
    let mut cache = FrameCache::new(&umem);
    let (mut queue, _attachment) = open(&lab.dut, &umem, "under0", &PORT, None);
    let receiver = RawSocket::open(&lab.peer, "peer0").unwrap();
    for (number, start) in (0..).zip([0, 64, DATA_OFFSET - 50, DATA_OFFSET, DATA_OFFSET + 50]) {
        let wanted = frame(number, 1400);
        let mut packet = Packet {
            frame: cache.alloc().unwrap(),
            start,
            len: 1400,
        };
        packet.bytes_mut(&mut cache).copy_from_slice(&wanted);
        assert_eq!(queue.send(&mut cache, &mut vec![packet]), 1);
        queue.kick();
        let got = receiver.receive(SOON, |got| got == wanted);
        assert!(got.is_some(), "start {start}: {:?}", queue.counters());
    }
    assert_eq!(queue.counters().moved, 4);
    wait_until("completions", SOON, || {
        queue.reap(&mut cache);
        queue.frames().1 == 0
    })
    .unwrap();
    settle(&umem);
}

#[test]
fn a_kernel_that_takes_nothing_is_asked_ever_more_rarely() {
    let lab = pair();
    let umem = small_umem();
    let mut cache = FrameCache::new(&umem);
    let (mut queue, _attachment) = open(&lab.dut, &umem, "under0", &PORT, None);
    let receiver = RawSocket::open(&lab.peer, "peer0").unwrap();
    lab.dut.ip("link set under0 down").unwrap();
    let wanted = frame(1, 60);
    let mut packet = Packet {
        frame: cache.alloc().unwrap(),
        start: DATA_OFFSET,
        len: 60,
    };
    packet.bytes_mut(&mut cache).copy_from_slice(&wanted);
    assert_eq!(queue.send(&mut cache, &mut vec![packet]), 1);
    for _ in 0..3200 {
        queue.reap(&mut cache);
        queue.kick();
    }
    let counters = queue.counters();
    assert!((50..150).contains(&counters.doorbells), "{counters:?}");
    assert!(queue.has_unsent());
    // Who goes to sleep asks each time, and so the packet leaves soon after it can.
    lab.dut.ip("link set under0 up").unwrap();
    wait_until("the packet leaves", SOON, || {
        queue.before_sleep(&mut Vec::new());
        !queue.has_unsent()
    })
    .unwrap();
    assert!(receiver.receive(SOON, |got| got == wanted).is_some());
    wait_until("completions", SOON, || {
        queue.reap(&mut cache);
        queue.frames().1 == 0
    })
    .unwrap();
    settle(&umem);
}

#[test]
fn a_packet_too_long_for_its_frame_is_freed_and_counted() {
    let lab = pair();
    let umem = small_umem();
    let mut cache = FrameCache::new(&umem);
    let (mut queue, _attachment) = open(&lab.dut, &umem, "under0", &PORT, None);
    let packet = Packet {
        frame: cache.alloc().unwrap(),
        start: 0,
        len: 2048 - DATA_OFFSET + 1,
    };
    assert_eq!(queue.send(&mut cache, &mut vec![packet]), 0);
    assert_eq!(queue.counters().too_long, 1);
    assert_eq!(umem.accounting().held, 0);
    settle(&umem);
}

#[test]
fn what_does_not_fit_into_the_ring_stays_with_the_caller() {
    let lab = pair();
    let umem = small_umem();
    let mut cache = FrameCache::new(&umem);
    let options = QueueOptions {
        ring_size: 64,
        fill: 64,
        ..QueueOptions::default()
    };
    let open = || XskQueue::open(&umem, "under0", 0, options);
    let mut queue = lab.dut.enter(open).unwrap().unwrap();
    let mut packets: Vec<_> = (0..100).map(|n| packet(&mut cache, n)).collect();
    assert_eq!(queue.send(&mut cache, &mut packets), 64);
    assert_eq!(packets.len(), 36);
    assert_eq!(packets[0].bytes(&cache), frame(64, 60));
    packets
        .drain(..)
        .for_each(|packet| cache.free(packet.frame));
    settle(&umem);
    assert_eq!(umem.accounting().transmit, 64);
}

fn packet(cache: &mut FrameCache, number: u32) -> Packet {
    let mut packet = Packet {
        frame: cache.alloc().unwrap(),
        start: DATA_OFFSET,
        len: 60,
    };
    packet.bytes_mut(cache).copy_from_slice(&frame(number, 60));
    packet
}

/// A chain: one socket sends, the other receives and moves the frame on by address, into its own transmit ring.
#[test]
fn after_a_million_frames_every_frame_is_somewhere_once() {
    let lab = pair();
    let umem = small_umem();
    let mut left_cache = FrameCache::new(&umem);
    let mut right_cache = FrameCache::new(&umem);
    let (mut left, _left) = open(&lab.dut, &umem, "under0", &Role::Port { headroom: 0 }, None);
    let (mut right, _right) = open(&lab.peer, &umem, "peer0", &Role::Port { headroom: 0 }, None);
    assert!(
        collect_nothing(&mut left, &mut left_cache)
            && collect_nothing(&mut right, &mut right_cache)
    );

    let begun = Instant::now();
    let (mut sent, mut back, mut packets) = (0_u64, 0_u64, Vec::with_capacity(256));
    while back < 500_000 && begun.elapsed() < 12 * SOON {
        for number in 0..64 {
            packets.push(packet(&mut left_cache, number));
        }
        sent += left.send(&mut left_cache, &mut packets) as u64;
        packets
            .drain(..)
            .for_each(|packet| left_cache.free(packet.frame));
        left.kick();
        right.receive(&mut right_cache, &mut packets, 128);
        right.send(&mut right_cache, &mut packets);
        packets
            .drain(..)
            .for_each(|packet| right_cache.free(packet.frame));
        right.kick();
        back += left.receive(&mut left_cache, &mut packets, 128) as u64;
        packets
            .drain(..)
            .for_each(|packet| left_cache.free(packet.frame));
        left.reap(&mut left_cache);
        right.reap(&mut right_cache);
    }
    let seconds = begun.elapsed().as_secs_f64();
    println!("{back} frames there and back in {seconds:.2} s, {sent} sent");
    assert!(
        back >= 500_000,
        "{back} back: {:?} {:?}",
        left.counters(),
        right.counters()
    );
    for queue in [&left, &right] {
        assert_eq!(
            (queue.counters().unexpected, queue.counters().malformed),
            (0, 0)
        );
    }
    let books = umem.accounting();
    assert!(books.balances() && books.held == 0, "{books:?}");

    // Close with frames in every ring.
    let mut last: Vec<_> = (0..64).map(|n| packet(&mut left_cache, n)).collect();
    left.send(&mut left_cache, &mut last);
    drop((left, right));
    let books = umem.accounting();
    assert!(
        books.balances() && books.fill == 0 && books.transmit == 0,
        "{books:?}"
    );
    drop((left_cache, right_cache));
    let books = umem.accounting();
    assert_eq!(books.free, books.total, "{books:?}");
}

#[test]
fn frames_that_one_worker_receives_and_another_frees_stay_in_the_books() {
    let lab = pair();
    let umem = small_umem();
    let mut receiver = FrameCache::new(&umem);
    let mut other = FrameCache::new(&umem);
    let (mut queue, _attachment) = open(&lab.dut, &umem, "under0", &PORT, None);
    assert!(collect_nothing(&mut queue, &mut receiver));
    let sender = RawSocket::open(&lab.peer, "peer0").unwrap();
    (0..100).for_each(|n| sender.send(&frame(n, 60)).unwrap());
    let packets = collect(&mut queue, &mut receiver, 100);
    assert_eq!(umem.accounting().held, packets.len() as i64);
    drop(receiver);
    packets
        .into_iter()
        .for_each(|packet| other.free(packet.frame));
    drop(other);
    let books = umem.accounting();
    assert!(books.balances() && books.held == 0, "{books:?}");
}

#[test]
fn two_workers_exchange_frames_through_the_pool() {
    let umem = small_umem();
    let (give, take) = std::sync::mpsc::sync_channel(512);
    let giver = Arc::clone(&umem);
    thread::scope(|scope| {
        scope.spawn(move || {
            let mut cache = FrameCache::new(&giver);
            let mut given = 0_u32;
            while given < 1_000_000 {
                if let Some(mut frame) = cache.alloc() {
                    cache.bytes_mut(&mut frame)[..4].copy_from_slice(&given.to_be_bytes());
                    give.send(frame).unwrap();
                    given += 1;
                }
            }
        });
        let mut cache = FrameCache::new(&umem);
        for (number, frame) in (0_u32..).zip(take) {
            assert_eq!(cache.bytes(&frame)[..4], number.to_be_bytes());
            cache.free(frame);
        }
    });
    let books = umem.accounting();
    assert_eq!((books.free, books.held), (books.total, 0), "{books:?}");
}

#[test]
fn frames_run_out_and_come_back() {
    let lab = pair();
    let umem = small_umem();
    let mut cache = FrameCache::new(&umem);
    let (mut queue, _attachment) = open(&lab.dut, &umem, "under0", &PORT, None);
    let mut all: Vec<_> = std::iter::from_fn(|| cache.alloc()).collect();
    assert_eq!(all.len(), 4096);
    let sender = RawSocket::open(&lab.peer, "peer0").unwrap();
    assert!(collect_nothing(&mut queue, &mut cache));
    sender.send(&frame(1, 60)).unwrap();
    wait_until("the drop", SOON, || queue.counters().kernel_dropped > 0).unwrap();
    all.drain(..).for_each(|frame| cache.free(frame));
    assert!(collect_nothing(&mut queue, &mut cache));
    sender.send(&frame(2, 60)).unwrap();
    let packets = collect(&mut queue, &mut cache, 1);
    assert_eq!(packets[0].bytes(&cache), frame(2, 60));
    packets
        .into_iter()
        .for_each(|packet| cache.free(packet.frame));
    settle(&umem);
}

#[test]
fn a_queue_can_be_closed_and_opened_again() {
    let lab = pair();
    let umem = small_umem();
    let mut cache = FrameCache::new(&umem);
    let sender = RawSocket::open(&lab.peer, "peer0").unwrap();
    for round in 0..5 {
        let (mut queue, _attachment) = open(&lab.dut, &umem, "under0", &PORT, None);
        assert!(collect_nothing(&mut queue, &mut cache));
        sender.send(&frame(round, 60)).unwrap();
        let packets = collect(&mut queue, &mut cache, 1);
        assert_eq!(packets.len(), 1, "round {round}");
        packets
            .into_iter()
            .for_each(|packet| cache.free(packet.frame));
    }
    drop(cache);
    assert_eq!(umem.accounting().free, umem.accounting().total);
}

fn open_error(namespace: &Namespace, umem: &Arc<Umem>, interface: &str, queue: u32) -> PortError {
    let open = || XskQueue::open(umem, interface, queue, QueueOptions::default());
    namespace.enter(open).unwrap().unwrap_err()
}

#[test]
fn what_cannot_be_opened_is_named() {
    let lab = pair();
    let umem = small_umem();
    let (_queue, _attachment) = open(&lab.dut, &umem, "under0", &PORT, None);
    let error = open_error(&lab.dut, &umem, "none0", 0);
    assert!(matches!(error, PortError::NoInterface { .. }), "{error}");
    let error = open_error(&lab.peer, &umem, "peer0", 7);
    assert!(
        matches!(error, PortError::NoQueue { queue: 7, .. }),
        "{error}"
    );
    let error = open_error(&lab.dut, &small_umem(), "under0", 0);
    assert!(matches!(error, PortError::QueueBusy { .. }), "{error}");
    let bad = UmemOptions {
        frame_size: 3000,
        ..UmemOptions::default()
    };
    assert!(matches!(
        Umem::new(bad),
        Err(PortError::Setting {
            what: "frame size",
            ..
        })
    ));
}

#[test]
fn the_queues_of_an_interface_are_counted() {
    let mut lab = Lab::new().unwrap();
    let (dut, peer) = (lab.host("dut").unwrap(), lab.host("peer").unwrap());
    let options = LinkOptions {
        mtu: 1400,
        queues: 3,
    };
    lab.link((&dut, "q0"), (&peer, "q1"), options).unwrap();
    let interface = dut.enter(|| Interface::lookup("q0")).unwrap().unwrap();
    assert_eq!(
        (interface.receive_queues, interface.mtu, interface.up),
        (3, 1400, true)
    );
}

#[test]
fn an_idle_worker_can_wait_for_the_descriptor() {
    let lab = pair();
    let umem = small_umem();
    let mut cache = FrameCache::new(&umem);
    let (mut queue, _attachment) = open(&lab.dut, &umem, "under0", &PORT, None);
    assert!(collect_nothing(&mut queue, &mut cache));
    let sender = RawSocket::open(&lab.peer, "peer0").unwrap();
    assert!(!weft_tests::is_readable(
        queue.fd(),
        Duration::from_millis(50)
    ));
    sender.send(&frame(1, 60)).unwrap();
    assert!(weft_tests::is_readable(queue.fd(), SOON));
    let packets = collect(&mut queue, &mut cache, 1);
    packets
        .into_iter()
        .for_each(|packet| cache.free(packet.frame));
    assert!(!weft_tests::is_readable(queue.fd(), Duration::ZERO));
}

#[test]
fn a_queue_that_polls_busily_receives_too() {
    let lab = pair();
    let umem = small_umem();
    let mut cache = FrameCache::new(&umem);
    let options = QueueOptions {
        busy_poll: Some(BusyPoll {
            microseconds: 20,
            budget: 64,
        }),
        ..QueueOptions::default()
    };
    let open = || {
        let queue = XskQueue::open(&umem, "under0", 0, options).unwrap();
        let mut attachment = Attachment::attach(
            &Programs::default(),
            "under0",
            &Role::Port { headroom: 0 },
            None,
        )
        .unwrap();
        attachment.register(&queue).unwrap();
        (queue, attachment)
    };
    let (mut queue, _attachment) = lab.dut.enter(open).unwrap();
    assert!(collect_nothing(&mut queue, &mut cache));
    let sender = RawSocket::open(&lab.peer, "peer0").unwrap();
    (0..200).for_each(|n| sender.send(&frame(n, 60)).unwrap());
    let packets = collect(&mut queue, &mut cache, 200);
    assert_eq!(packets.len(), 200, "{:?}", queue.counters());
    packets
        .into_iter()
        .for_each(|packet| cache.free(packet.frame));
}

#[test]
fn memory_does_without_huge_pages_where_there_are_none() {
    let huge = |wanted| {
        let options = UmemOptions {
            frame_size: 4096,
            frames: 2048,
            huge_pages: wanted,
            ..UmemOptions::default()
        };
        Umem::new(options).unwrap()
    };
    assert!(!huge(false).has_huge_pages());
    // With or without, according to the machine.
    let umem = huge(true);
    assert_eq!((umem.frame_size(), umem.frame_count()), (4096, 2048));
    let mut cache = FrameCache::new(&umem);
    let mut frames: Vec<_> = std::iter::from_fn(|| cache.alloc()).collect();
    assert_eq!(frames.len(), 2048);
    for frame in &mut frames {
        let mark = frame.index() as u8;
        cache.bytes_mut(frame).fill(mark);
    }
    for frame in &frames {
        assert!(
            cache
                .bytes(frame)
                .iter()
                .all(|byte| *byte == frame.index() as u8)
        );
    }
    frames.into_iter().for_each(|frame| cache.free(frame));
}
