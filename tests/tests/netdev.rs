//! Ports on kernel interfaces: whole segments from a tap's guest, to it, and to the far end of a veth, none of which reach the host's
//! stack; and many ports on one packet memory.

#![allow(clippy::unwrap_used)]

#[expect(dead_code, reason = "other tests open queues one by one")]
mod common;

use std::sync::Arc;
use std::time::Instant;

use common::{SOON, frame, pair, small_umem};
use weft_dataplane::packet::{FrameMemory, Offload, Packet, Segments};
use weft_dataplane::port::{
    self, Device, FrameCache, Opening, PortError, Programs, Queue, Umem, UmemOptions,
};
use weft_proto::v1;
use weft_tests::tap_end::{ALL_OFFLOADS, HEADER};
use weft_tests::{Lab, LinkOptions, Namespace, RawSocket, TapEnd, load, wait_until};

const GUEST: load::Station = ([2, 0, 0, 0, 0, 0xaa], [10, 0, 0, 1]);
const OTHER: load::Station = ([2, 0, 0, 0, 0, 0xbb], [10, 0, 0, 2]);
/// Bytes of payload of each piece.
const PIECE: usize = 1400;

struct Port {
    device: Box<dyn Device>,
    queues: Vec<Box<dyn Queue>>,
    cache: FrameCache,
    umem: Arc<Umem>,
}

/// Opens an interface of the namespace as weftd does.
fn open(umem: &Arc<Umem>, namespace: &Namespace, name: &str) -> Port {
    open_when_free(&Arc::default(), umem, namespace, name)
}

/// What was just closed may be open in a program that is being started meanwhile.
fn open_when_free(
    programs: &Arc<Programs>,
    umem: &Arc<Umem>,
    namespace: &Namespace,
    name: &str,
) -> Port {
    let mut opened = None;
    wait_until("the interface to be free", SOON, || {
        let result = open_beside(programs, umem, namespace, name);
        if matches!(result, Err(PortError::ProgramBusy { .. })) {
            return false;
        }
        opened = Some(result.unwrap());
        true
    })
    .unwrap();
    opened.unwrap()
}

/// Opens it once, with the programs that others of the namespace have.
fn open_beside(
    programs: &Arc<Programs>,
    umem: &Arc<Umem>,
    namespace: &Namespace,
    name: &str,
) -> Result<Port, PortError> {
    let opening = Opening {
        umem: Arc::clone(umem),
        programs: Arc::clone(programs),
        ring_size: 2048,
        busy_poll: None,
        threaded_napi: false,
        headroom: 50,
    };
    let spec = v1::Device {
        kind: "netdev".into(),
        name: name.into(),
        ..v1::Device::default()
    };
    let mut device = namespace.enter(|| port::open(&opening, &spec)).unwrap()?;
    device.set_mtu(1450);
    let mut port = Port {
        queues: device.take_queues(),
        device,
        cache: FrameCache::new(umem),
        umem: Arc::clone(umem),
    };
    // The kernel is given frames to receive into.
    for queue in &mut port.queues {
        queue.receive(&mut port.cache, &mut Vec::new(), 1);
    }
    Ok(port)
}

impl Port {
    /// Waits for this very frame; what else arrives goes.
    fn hears(&mut self, frame: &[u8]) -> bool {
        while let Some((_, packet)) = self.next() {
            let found = packet.bytes(&self.cache) == frame;
            self.cache.free(packet.frame);
            if found {
                return true;
            }
        }
        false
    }

    /// The next packet, and the queue that it came by.
    fn next(&mut self) -> Option<(u32, Packet)> {
        let deadline = Instant::now() + SOON;
        let mut packets = Vec::with_capacity(64);
        while Instant::now() < deadline {
            for queue in &mut self.queues {
                if queue.receive(&mut self.cache, &mut packets, 1) == 1 {
                    return Some((queue.number(), packets.remove(0)));
                }
            }
        }
        None
    }

    fn send(&mut self, frames: &[Vec<u8>]) -> usize {
        let mut packets = Vec::new();
        for bytes in frames {
            let mut packet = Packet {
                frame: self.cache.alloc().unwrap(),
                start: 256,
                len: bytes.len() as u16,
            };
            packet.bytes_mut(&mut self.cache).copy_from_slice(bytes);
            packets.push(packet);
        }
        let sent = self.queues[0].send(&mut self.cache, &mut packets);
        self.queues[0].kick();
        assert!(packets.is_empty());
        sent
    }

    /// Nothing is lost but what was said to be, and every frame is somewhere.
    fn balances(mut self, lost: u64) {
        assert_eq!(
            self.queues.iter().map(|queue| queue.lost()).sum::<u64>(),
            lost
        );
        let Self {
            queues,
            cache,
            umem,
            ..
        } = &mut self;
        wait_until("the books to balance", SOON, || {
            queues.iter_mut().for_each(|queue| queue.reap(cache));
            umem.accounting().balances()
        })
        .unwrap_or_else(|error| panic!("{error}: {:?}", umem.accounting()));
        drop(self.device);
    }
}

/// A TCP segment over IPv4 of the guest's that is left to be split, and the header that says so.
fn large(payload: usize) -> ([u8; HEADER], Vec<u8>) {
    let mut bytes = load::tcp_segment((GUEST, OTHER), 1, payload);
    // As a guest's kernel does: the sum of the pseudo-header, the rest is the card's.
    bytes[50..52].copy_from_slice(&[0x12, 0x34]);
    let mut header = [1, 1, 54, 0, 0, 0, 34, 0, 16, 0];
    header[4..6].copy_from_slice(&(PIECE as u16).to_le_bytes());
    (header, bytes)
}

fn host() -> (Lab, Namespace) {
    let mut lab = Lab::new().unwrap();
    let host = lab.host("dut").unwrap();
    let line = ["sysctl", "-qw", "net.ipv6.conf.default.disable_ipv6=1"];
    host.run(&line).unwrap();
    (lab, host)
}

/// IPv4 packets that the namespace's stack has received.
fn seen_by_the_stack(namespace: &Namespace) -> u64 {
    let table = namespace.run(&["cat", "/proc/net/snmp"]).unwrap();
    let line = table.lines().filter(|line| line.starts_with("Ip:")).nth(1);
    let received = line.and_then(|line| line.split_whitespace().nth(3));
    received.unwrap().parse().unwrap()
}

#[test]
fn a_guests_segments_arrive_whole_by_the_queue_they_left_by() {
    for queues in [1, 2, 3] {
        let (_lab, host) = host();
        let mut ends = TapEnd::make(&host, "t0", queues, ALL_OFFLOADS).unwrap();
        // To whom the guest writes is the host itself, as far as the host's stack can tell.
        host.run(&["ip", "link", "set", "t0", "address", "02:00:00:00:00:bb"])
            .unwrap();
        host.run(&["ip", "address", "add", "10.0.0.2/24", "dev", "t0"])
            .unwrap();
        let mut port = open(&small_umem(), &host, "t0");
        assert_eq!(port.queues.len(), queues);
        let before = seen_by_the_stack(&host);
        for (number, end) in ends.iter_mut().enumerate() {
            for payload in [1412, 3000, 30_000, 65_000] {
                let (header, sent) = large(payload);
                end.send(header, &sent).unwrap();
                let (queue, packet) = port.next().unwrap();
                assert_eq!(queue as usize, number, "{payload}");
                assert_eq!(packet.bytes(&port.cache), sent);
                let expected = Offload {
                    segments: Segments::Tcp4,
                    size: PIECE as u16,
                };
                assert_eq!(Offload::read(&port.cache, &packet.frame), expected);
                port.cache.free(packet.frame);
            }
            // What needs no splitting is no segment, however long.
            let sent = frame(3, 1465);
            end.send([0; HEADER], &sent).unwrap();
            let (_, packet) = port.next().unwrap();
            assert_eq!(packet.bytes(&port.cache), sent);
            assert!(!packet.frame.is_large());
            port.cache.free(packet.frame);
        }
        assert_eq!(seen_by_the_stack(&host), before);
        port.balances(0);
    }
}

/// The kernel takes a tag out of a frame before a packet socket sees it. It is put back: it may be a subport's.
#[test]
fn a_tag_comes_with_its_frame_whichever_way_that_goes() {
    let (_lab, host) = host();
    let mut end = TapEnd::make(&host, "t0", 1, ALL_OFFLOADS)
        .unwrap()
        .remove(0);
    let mut port = open(&small_umem(), &host, "t0");
    let tagged = |mut frame: Vec<u8>| {
        frame.splice(12..12, [0x81, 0x00, 0xa0, 0x05]);
        frame
    };
    for size in [60, 1465, 2000] {
        let sent = tagged(frame(1, size));
        end.send([0; HEADER], &sent).unwrap();
        let (_, packet) = port.next().unwrap();
        assert_eq!(packet.bytes(&port.cache), sent, "{size}");
        port.cache.free(packet.frame);
    }
    // A segment: its headers are longer by the tag (virtio 1.2, §5.1.6.2).
    let (mut header, sent) = large(5000);
    for at in [2, 6] {
        let place = u16::from_le_bytes([header[at], header[at + 1]]) + 4;
        header[at..at + 2].copy_from_slice(&place.to_le_bytes());
    }
    let sent = tagged(sent);
    end.send(header, &sent).unwrap();
    let (_, packet) = port.next().unwrap();
    assert_eq!(packet.bytes(&port.cache), sent);
    let offload = Offload::read(&port.cache, &packet.frame);
    assert_eq!(offload.segments, Segments::Tcp4);
    port.cache.free(packet.frame);
    port.balances(0);
}

/// Small, many in a row, small.
fn stream() -> Vec<Vec<u8>> {
    let mut frames = vec![load::tcp_segment((OTHER, GUEST), u32::MAX, 2)];
    for number in 0..20u32 {
        let sequence = 1 + number * PIECE as u32;
        frames.push(load::tcp_segment((OTHER, GUEST), sequence, PIECE));
    }
    frames.push(frame(1, 60));
    frames
}

#[test]
fn many_small_ones_go_to_a_guest_as_one_and_in_order() {
    let (_lab, host) = host();
    let mut end = TapEnd::make(&host, "t0", 1, ALL_OFFLOADS)
        .unwrap()
        .remove(0);
    let mut port = open(&small_umem(), &host, "t0");
    assert_eq!(port.send(&stream()), 22);
    let mut next = || end.receive(SOON, |_| true).unwrap();
    assert_eq!(next().1, stream()[0]);
    let (header, whole) = next();
    assert_eq!(whole.len(), 54 + 20 * PIECE);
    let size = u16::from_le_bytes([header[4], header[5]]);
    assert_eq!((header[0], header[1], usize::from(size)), (1, 1, PIECE));
    assert_eq!(next().1, stream()[21]);
    port.balances(0);
}

#[test]
fn a_guest_that_takes_no_segments_gets_them_split() {
    let (_lab, host) = host();
    let mut end = TapEnd::make(&host, "t0", 1, 0).unwrap().remove(0);
    let mut port = open(&small_umem(), &host, "t0");
    assert_eq!(port.send(&stream()), 22);
    for expected in stream() {
        let (header, mut got) = end.receive(SOON, |_| true).unwrap();
        assert_eq!(header[1], 0);
        if got.len() > 100 {
            // Each piece has another identification (RFC 6864 lets it), and so another checksum of the header.
            got[18..20].copy_from_slice(&expected[18..20]);
            got[24..26].copy_from_slice(&expected[24..26]);
        }
        assert_eq!(got, expected);
    }
    port.balances(0);
}

/// Whether the port has to be opened again.
fn stale(namespace: &Namespace, port: &mut Port) -> bool {
    let device = &mut port.device;
    namespace.enter(move || device.is_stale()).unwrap()
}

#[test]
fn a_tap_that_gets_or_loses_a_queue_has_to_be_opened_again() {
    let (_lab, host) = host();
    let mut ends = TapEnd::make(&host, "t0", 2, 0).unwrap();
    let mut port = open(&small_umem(), &host, "t0");
    assert_eq!((port.queues.len(), stale(&host, &mut port)), (2, false));
    let third = TapEnd::join(&host, "t0").unwrap();
    assert!(stale(&host, &mut port));
    // A program that is being started has what was just closed open until it runs.
    drop(third);
    wait_until("as many as before", SOON, || !stale(&host, &mut port)).unwrap();
    ends.pop();
    wait_until("one less", SOON, || stale(&host, &mut port)).unwrap();
    drop(port);
    let mut port = open(&small_umem(), &host, "t0");
    assert_eq!((port.queues.len(), stale(&host, &mut port)), (1, false));
}

#[test]
fn a_veth_that_gets_a_queue_has_to_be_opened_again_and_cannot_lose_one() {
    let mut lab = Lab::new().unwrap();
    let (dut, peer) = (lab.host("dut").unwrap(), lab.host("peer").unwrap());
    let options = LinkOptions {
        queues: 2,
        ..LinkOptions::default()
    };
    lab.link((&dut, "n0"), (&peer, "f0"), options).unwrap();
    peer.run(&["ethtool", "-L", "f0", "tx", "1"]).unwrap();
    let set_queues = |count| dut.run(&["ethtool", "-L", "n0", "rx", count]);
    set_queues("1").unwrap();
    let mut port = open(&small_umem(), &dut, "n0");
    assert_eq!((port.queues.len(), stale(&dut, &mut port)), (1, false));
    set_queues("2").unwrap();
    assert!(stale(&dut, &mut port));
    drop(port);
    let mut port = open(&small_umem(), &dut, "n0");
    assert_eq!((port.queues.len(), stale(&dut, &mut port)), (2, false));
    // The kernel does not take a queue away that an AF_XDP socket has.
    assert!(set_queues("1").is_err());
    assert!(!stale(&dut, &mut port));
}

#[test]
fn what_a_guest_does_not_read_is_lost_and_counted() {
    let (_lab, host) = host();
    let mut end = TapEnd::make(&host, "t0", 1, 0).unwrap().remove(0);
    let mut port = open(&small_umem(), &host, "t0");
    // More than the tap holds.
    let mut sent = 0;
    for batch in 0..100 {
        let frames: Vec<_> = (0..32).map(|at| frame(batch * 32 + at, 60)).collect();
        sent += port.send(&frames);
        port.queues[0].reap(&mut port.cache);
    }
    assert_eq!(sent, 3200);
    let lost = port.queues[0].lost();
    let is_ours = |got: &[u8]| got[12..14] == [0x88, 0xb5];
    let mut read = 0;
    while read + lost < sent as u64 {
        end.receive(SOON, is_ours).unwrap();
        read += 1;
    }
    assert!(lost > 0, "{lost}");
    // It reads again: nothing is lost, nothing comes twice.
    let last = frame(9999, 60);
    assert_eq!(port.send(std::slice::from_ref(&last)), 1);
    assert_eq!(end.receive(SOON, is_ours).unwrap().1, last);
    port.balances(lost);
}

#[test]
fn ports_whose_link_is_down_leave_frames_for_others() {
    let mut lab = Lab::new().unwrap();
    let (dut, peer) = (lab.host("dut").unwrap(), lab.host("peer").unwrap());
    let umem = small_umem();
    let mut cache = FrameCache::new(&umem);
    let mut ports = Vec::new();
    for number in 0..8 {
        let (near, far) = (format!("n{number}"), format!("f{number}"));
        lab.link((&dut, &near), (&peer, &far), LinkOptions::default())
            .unwrap();
        ports.push(open(&umem, &dut, &near));
    }
    for number in 1..8 {
        dut.ip(&format!("link set n{number} down")).unwrap();
    }
    // As much as each takes, again and again.
    for round in 0..100 {
        for port in &mut ports[1..] {
            let mut packets: Vec<_> = (0..32)
                .map(|_| {
                    let frame = cache.alloc();
                    let frame = frame.unwrap_or_else(|| panic!("no frame left in round {round}"));
                    Packet {
                        frame,
                        start: 256,
                        len: 60,
                    }
                })
                .collect();
            port.queues[0].send(&mut cache, &mut packets);
            port.queues[0].kick();
            packets
                .drain(..)
                .for_each(|packet| cache.free(packet.frame));
        }
    }
    let books = umem.accounting();
    assert!(books.transmit >= 7 * 64, "{books:?}");
    // One that is up sends and receives.
    let sent = frame(1, 100);
    let far = RawSocket::open(&peer, "f0").unwrap();
    assert_eq!(ports[0].send(std::slice::from_ref(&sent)), 1);
    assert!(far.receive(SOON, |got| got == sent).is_some());
    far.send(&sent).unwrap();
    while let Some((_, packet)) = ports[0].next() {
        let found = packet.bytes(&cache) == sent;
        cache.free(packet.frame);
        if found {
            break;
        }
    }
    // Those that are up again send what waited.
    for number in 1..8 {
        dut.ip(&format!("link set n{number} up")).unwrap();
    }
    wait_until("the rings to be empty", SOON, || {
        for port in &mut ports {
            port.queues[0].kick();
            port.queues[0].reap(&mut cache);
        }
        umem.accounting().transmit == 0
    })
    .unwrap_or_else(|error| panic!("{error}: {:?}", umem.accounting()));
    assert!(umem.accounting().balances(), "{:?}", umem.accounting());
}

#[test]
fn a_container_gets_a_stream_in_order_and_whole() {
    let lab = pair();
    let mut port = open(&small_umem(), &lab.dut, "under0");
    let receiver = RawSocket::open(&lab.peer, "peer0").unwrap();
    assert_eq!(port.send(&stream()), 22);
    let mut lengths = Vec::new();
    receiver.receive(SOON, |got| {
        lengths.push(got.len());
        lengths.len() == 3
    });
    assert_eq!(lengths, [56, 54 + 20 * PIECE, 60]);
    port.balances(0);
}

#[test]
fn a_port_receives_however_many_there_are() {
    let mut lab = Lab::new().unwrap();
    let (dut, peer) = (lab.host("dut").unwrap(), lab.host("peer").unwrap());
    // Fewer frames than forty queues would keep with the kernel.
    let umem = Umem::new(UmemOptions::default()).unwrap();
    assert!(umem.frame_count() < 40 * 1024);
    let programs = Arc::default();
    let mut ports = Vec::new();
    for number in 0..40 {
        let (near, far) = (format!("n{number}"), format!("f{number}"));
        lab.link((&dut, &near), (&peer, &far), LinkOptions::default())
            .unwrap();
        ports.push((open_beside(&programs, &umem, &dut, &near).unwrap(), far));
    }
    for (number, (port, far)) in (0..).zip(&mut ports) {
        let sent = frame(number, 100);
        RawSocket::open(&peer, far).unwrap().send(&sent).unwrap();
        assert!(port.hears(&sent), "{far}: nothing");
    }
}

#[test]
fn ports_that_share_a_program_come_and_go_and_do_not_mix() {
    let mut lab = Lab::new().unwrap();
    let (dut, peer) = (lab.host("dut").unwrap(), lab.host("peer").unwrap());
    for namespace in [&dut, &peer] {
        let line = ["sysctl", "-qw", "net.ipv6.conf.default.disable_ipv6=1"];
        namespace.run(&line).unwrap();
    }
    for number in 0..4 {
        let options = LinkOptions {
            queues: 1 + number % 3,
            ..LinkOptions::default()
        };
        let (near, far) = (format!("n{number}"), format!("f{number}"));
        lab.link((&dut, &near), (&peer, &far), options).unwrap();
    }
    let (programs, umem) = (Arc::default(), small_umem());
    let open = |number: u32| open_when_free(&programs, &umem, &dut, &format!("n{number}"));
    let mut sent = 0;
    let mut each_hears_its_own = |ports: &mut [(u32, Port)]| {
        for (number, port) in &mut *ports {
            sent += 1;
            let socket = RawSocket::open(&peer, &format!("f{number}")).unwrap();
            let frame = frame(sent, 100);
            socket.send(&frame).unwrap();
            assert!(port.hears(&frame), "n{number}");
        }
        // What was sent to one has come to no other.
        for (number, port) in ports {
            let mut heard = Vec::with_capacity(64);
            for queue in &mut port.queues {
                queue.receive(&mut port.cache, &mut heard, 64);
            }
            assert!(heard.is_empty(), "n{number}");
        }
    };
    let mut ports: Vec<_> = (0..3).map(|number| (number, open(number))).collect();
    each_hears_its_own(&mut ports);
    let again = open_beside(&programs, &umem, &dut, "n1").map(|_| ());
    assert!(
        matches!(again, Err(PortError::ProgramBusy { .. })),
        "{again:?}"
    );
    each_hears_its_own(&mut ports);
    // One goes, another comes in its place, and the first comes again elsewhere.
    ports.remove(1);
    each_hears_its_own(&mut ports);
    for number in [3, 1] {
        ports.push((number, open(number)));
        each_hears_its_own(&mut ports);
    }
}
