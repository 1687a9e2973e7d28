//! Tests of rings: with a driver that shares no code with the device's side, and with drivers that break each rule.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering, fence};

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use vhost::vhost_user::VhostUserBackendReqHandlerMut;

use super::*;
use crate::packet::PlainMemory;
use crate::port::vhost::control::Control;
use crate::port::vhost::memory::tests::shared;
use crate::port::vhost::memory::{DirtyLog, GuestMemory};
use crate::port::virtio::header::feature;

const MONITOR: u64 = 1 << 40;
/// Where the twins keep the parts of a ring, and buffers from there on.
const DESCRIPTORS: u64 = 0;
const DRIVER: u64 = 0x8000;
const DEVICE: u64 = 0xa000;
const TABLES: u64 = 0x1_0000;
const BUFFERS: u64 = 0x4_0000;
const MEMORY: u64 = 1 << 20;

const SMALL: usize = 2048 - DATA_OFFSET as usize;

/// Guest memory as its owner sees it.
struct Ram<'a>(&'a GuestMemory);

impl Ram<'_> {
    fn write(&self, at: u64, bytes: &[u8]) {
        let place = self.0.translate(at, bytes.len()).unwrap();
        // SAFETY: inside the mapping, as was just checked.
        unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), place, bytes.len()) };
    }

    fn read(&self, at: u64, len: usize) -> Vec<u8> {
        let place = self.0.translate(at, len).unwrap();
        let mut bytes = vec![0; len];
        // SAFETY: inside the mapping, as was just checked.
        unsafe { ptr::copy_nonoverlapping(place, bytes.as_mut_ptr(), len) };
        bytes
    }

    fn u16(&self, at: u64) -> u16 {
        u16::from_le_bytes(self.read(at, 2).try_into().unwrap())
    }
}

/// One buffer of a chain.
type Buffer = (u64, u32);

/// What a driver does, for either kind of ring.
trait Driver {
    fn offer(&mut self, ram: &Ram<'_>, buffers: &[Buffer], write: bool, indirect: bool) -> u16;
    fn used(&mut self, ram: &Ram<'_>) -> Option<(u16, u32)>;
}

/// A split ring's driver: every chain has descriptors of its own, 16 apart.
struct SplitDriver {
    size: u16,
    available: u16,
    used: u16,
}

fn entry(guest: u64, len: u32, flags: u16, next: u16) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&guest.to_le_bytes());
    bytes[8..12].copy_from_slice(&len.to_le_bytes());
    bytes[12..14].copy_from_slice(&flags.to_le_bytes());
    bytes[14..16].copy_from_slice(&next.to_le_bytes());
    bytes
}

impl Driver for SplitDriver {
    fn offer(&mut self, ram: &Ram<'_>, buffers: &[Buffer], write: bool, indirect: bool) -> u16 {
        let chains = self.size / 16;
        let head = self.available % chains * 16;
        let write = if write { 2 } else { 0 };
        let (table, first) = if indirect {
            (TABLES + u64::from(head) * 256, 0)
        } else {
            (DESCRIPTORS, head)
        };
        for (i, (guest, len)) in (0u16..).zip(buffers) {
            let last = usize::from(i) + 1 == buffers.len();
            let flags = write | u16::from(!last);
            let bytes = entry(*guest, *len, flags, first + i + 1);
            ram.write(table + 16 * u64::from(first + i), &bytes);
        }
        if indirect {
            let bytes = entry(table, 16 * buffers.len() as u32, 4, 0);
            ram.write(DESCRIPTORS + 16 * u64::from(head), &bytes);
        }
        let slot = DRIVER + 4 + 2 * u64::from(self.available % self.size);
        ram.write(slot, &head.to_le_bytes());
        fence(Ordering::SeqCst);
        self.available = self.available.wrapping_add(1);
        ram.write(DRIVER + 2, &self.available.to_le_bytes());
        head
    }

    fn used(&mut self, ram: &Ram<'_>) -> Option<(u16, u32)> {
        if ram.u16(DEVICE + 2) == self.used {
            return None;
        }
        fence(Ordering::SeqCst);
        let bytes = ram.read(DEVICE + 4 + 8 * u64::from(self.used % self.size), 8);
        self.used = self.used.wrapping_add(1);
        let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
        Some((word(0) as u16, word(4)))
    }
}

/// A packed ring's driver.
struct PackedDriver {
    size: u16,
    next: (u16, bool),
    used: (u16, bool),
    number: u16,
    entries: Vec<u16>,
}

fn step((entry, wrap): (u16, bool), by: u16, size: u16) -> (u16, bool) {
    if entry + by >= size {
        (entry + by - size, !wrap)
    } else {
        (entry + by, wrap)
    }
}

impl Driver for PackedDriver {
    fn offer(&mut self, ram: &Ram<'_>, buffers: &[Buffer], write: bool, indirect: bool) -> u16 {
        let id = self.number % 64;
        self.number += 1;
        let write = if write { 2 } else { 0 };
        let mut list: Vec<(u64, u32, u16)> = buffers
            .iter()
            .map(|(guest, len)| (*guest, *len, write))
            .collect();
        if indirect {
            let table = TABLES + u64::from(id) * 256;
            for (i, (guest, len, flags)) in (0u64..).zip(&list) {
                ram.write(table + 16 * i, &packed_entry(*guest, *len, 0, *flags));
            }
            list = vec![(table, 16 * buffers.len() as u32, 4)];
        }
        let (first, mut place) = (self.next, self.next);
        let count = list.len();
        let mut shown = [0; 2];
        for (i, (guest, len, flags)) in list.into_iter().enumerate() {
            let marks = if place.1 { 1 << 7 } else { 1 << 15 };
            let flags = flags | marks | u16::from(i + 1 < count);
            let bytes = packed_entry(guest, len, id, flags);
            let at = DESCRIPTORS + 16 * u64::from(place.0);
            if i == 0 {
                ram.write(at, &bytes[..14]);
                shown = [bytes[14], bytes[15]];
            } else {
                ram.write(at, &bytes);
            }
            place = step(place, 1, self.size);
        }
        fence(Ordering::SeqCst);
        ram.write(DESCRIPTORS + 16 * u64::from(first.0) + 14, &shown);
        self.next = place;
        self.entries[usize::from(id)] = count as u16;
        id
    }

    fn used(&mut self, ram: &Ram<'_>) -> Option<(u16, u32)> {
        let at = DESCRIPTORS + 16 * u64::from(self.used.0);
        let flags = ram.u16(at + 14);
        let (available, used) = (flags & 1 << 7 != 0, flags & 1 << 15 != 0);
        if available != used || used != self.used.1 {
            return None;
        }
        fence(Ordering::SeqCst);
        let id = ram.u16(at + 12);
        let len = u32::from_le_bytes(ram.read(at + 8, 4).try_into().unwrap());
        self.used = step(self.used, self.entries[usize::from(id)], self.size);
        Some((id, len))
    }
}

fn packed_entry(guest: u64, len: u32, id: u16, flags: u16) -> [u8; 16] {
    let mut bytes = entry(guest, len, 0, 0);
    bytes[12..14].copy_from_slice(&id.to_le_bytes());
    bytes[14..16].copy_from_slice(&flags.to_le_bytes());
    bytes
}

fn setup(packed: bool, size: u16) -> Setup {
    Setup {
        size,
        descriptors: MONITOR + DESCRIPTORS,
        driver: MONITOR + DRIVER,
        device: MONITOR + DEVICE,
        log: None,
        base: if packed { 0x8000 } else { 0 },
        packed,
        event_index: false,
        indirect: true,
        call: None,
        kick: None,
        error: None,
    }
}

/// A guest with one ring.
struct Bench {
    active: Active,
    ring: AnyRing,
    driver: Box<dyn Driver>,
    chain: Box<Chain>,
    heads: Box<[(Head, u32); MAX_BUFFERS]>,
    frames: PlainMemory,
}

const FEATURES: u64 = feature::VERSION_1
    | feature::MRG_RXBUF
    | feature::INDIRECT_DESC
    | feature::CSUM
    | feature::HOST_TSO4
    | feature::GUEST_CSUM
    | feature::GUEST_TSO4;

fn active() -> Active {
    let (_file, memory) = shared(MEMORY);
    Active {
        memory,
        features: FEATURES,
        rings: [None, None],
    }
}

impl Bench {
    fn new(packed: bool, size: u16) -> Self {
        let active = active();
        let setup = setup(packed, size);
        let ring = Served::new(&active.memory, &setup).unwrap().ring;
        let driver: Box<dyn Driver> = if packed {
            let start = (0, true);
            Box::new(PackedDriver {
                size,
                next: start,
                used: start,
                number: 0,
                entries: vec![0; 64],
            })
        } else {
            Box::new(SplitDriver {
                size,
                available: 0,
                used: 0,
            })
        };
        Self {
            active,
            ring,
            driver,
            chain: Chain::new(),
            heads: Box::new([(Head::default(), 0); MAX_BUFFERS]),
            frames: PlainMemory::new(64, 2048).with_large(4),
        }
    }

    fn offer(&mut self, buffers: &[Buffer], write: bool, indirect: bool) -> u16 {
        let ram = Ram(&self.active.memory);
        self.driver.offer(&ram, buffers, write, indirect)
    }

    fn used(&mut self) -> Option<(u16, u32)> {
        self.driver.used(&Ram(&self.active.memory))
    }

    /// What the guest sent.
    fn take(&mut self) -> Result<Vec<(Vec<u8>, Offload)>, Fault> {
        let mut out = Vec::with_capacity(64);
        let guest = (&self.active, MAX_HEADER);
        let taken = with_ring!(&mut self.ring, ring => {
            take_from_guest(ring, guest, &mut self.chain, (&mut self.frames, SMALL), &mut out, 64)
        });
        let mut packets = Vec::new();
        for packet in out {
            let offload = Offload::read(&self.frames, &packet.frame);
            packets.push((packet.bytes(&self.frames).to_vec(), offload));
            self.frames.free(packet.frame);
        }
        taken.map(|_| packets)
    }

    fn put(&mut self, packet: &[u8], offload: Offload) -> Result<Put, Fault> {
        let guest = (&self.active, MAX_HEADER);
        let mut large = self.frames.alloc_large().unwrap();
        offload.write(&mut self.frames, &mut large);
        let mut packets = [Packet {
            frame: large,
            start: DATA_OFFSET,
            len: packet.len() as u16,
        }];
        packets[0]
            .bytes_mut(&mut self.frames)
            .copy_from_slice(packet);
        let parcel = Parcel::single(&self.frames, &packets);
        let put = with_ring!(&mut self.ring, ring => {
            ring.refresh()?;
            let put = put_to_guest(ring, guest, &mut self.chain, &mut self.heads, &parcel);
            ring.publish(&self.active.memory);
            put
        });
        let [packet] = packets;
        self.frames.free(packet.frame);
        put
    }

    fn assert_frames(&self) {
        assert_eq!(
            (self.frames.available(), self.frames.available_large()),
            (64, 4)
        );
    }
}

/// Cuts `len` bytes from `at` into buffers of these sizes, the last of which takes the rest.
fn cut(at: u64, len: usize, sizes: &[usize]) -> Vec<Buffer> {
    let (mut buffers, mut done) = (Vec::new(), 0);
    for size in sizes.iter().chain([&len]) {
        let part = (*size).min(len - done);
        if part > 0 {
            buffers.push((at + done as u64, part as u32));
            done += part;
        }
    }
    buffers
}

fn bytes(len: usize, seed: u8) -> Vec<u8> {
    (0..len)
        .map(|i| (i as u8).wrapping_mul(31) ^ seed)
        .collect()
}

#[test]
fn what_a_guest_sends_arrives_however_its_buffers_are_cut() {
    let sent = (
        any::<bool>(),
        proptest::collection::vec(
            (
                14usize..3000,
                proptest::collection::vec(1usize..200, 0..12),
                any::<bool>(),
            ),
            1..40,
        ),
    );
    run(256, &sent, |(packed, packets)| {
        let mut bench = Bench::new(packed, 256);
        for (number, (len, sizes, indirect)) in packets.into_iter().enumerate() {
            let packet = bytes(len, number as u8);
            let whole = [&[0; MAX_HEADER][..], &packet].concat();
            Ram(&bench.active.memory).write(BUFFERS, &whole);
            let id = bench.offer(&cut(BUFFERS, whole.len(), &sizes), false, indirect);
            let got = bench.take().unwrap();
            prop_assert_eq!(got, vec![(packet, Offload::default())]);
            prop_assert_eq!(bench.used(), Some((id, 0)));
            prop_assert_eq!(bench.used(), None);
        }
        bench.assert_frames();
        Ok(())
    });
}

#[test]
fn what_is_sent_to_a_guest_arrives_in_one_buffer_or_several() {
    let sent = (
        any::<bool>(),
        proptest::collection::vec((14usize..3000, 200usize..4000, any::<bool>()), 1..40),
    );
    run(256, &sent, |(packed, packets)| {
        let mut bench = Bench::new(packed, 256);
        for (number, (len, size, indirect)) in packets.into_iter().enumerate() {
            let packet = bytes(len, number as u8);
            prop_assert_eq!(bench.put(&packet, Offload::default()), Ok(Put::Full));
            let needed = (len + MAX_HEADER).div_ceil(size);
            let ids: Vec<u16> = (0..needed as u64)
                .map(|i| {
                    let at = BUFFERS + i * size as u64;
                    bench.offer(&cut(at, size, &[100]), true, indirect)
                })
                .collect();
            prop_assert_eq!(bench.put(&packet, Offload::default()), Ok(Put::Done));
            let mut whole = Vec::new();
            for (i, id) in (0u64..).zip(ids) {
                let (used, written) = bench.used().unwrap();
                prop_assert_eq!(used, id);
                let at = BUFFERS + i * size as u64;
                whole.extend(Ram(&bench.active.memory).read(at, written as usize));
            }
            prop_assert_eq!(bench.used(), None);
            prop_assert_eq!(u16::from_le_bytes([whole[10], whole[11]]), needed as u16);
            prop_assert_eq!(&whole[MAX_HEADER..], &packet[..]);
        }
        Ok(())
    });
}

fn run<S: Strategy>(
    cases: u32,
    strategy: &S,
    test: impl Fn(S::Value) -> Result<(), TestCaseError>,
) {
    let config = Config {
        cases,
        failure_persistence: None,
        ..Config::default()
    };
    TestRunner::new(config).run(strategy, test).unwrap();
}

#[test]
fn a_segment_travels_whole_with_what_is_to_be_made_of_it() {
    for packed in [false, true] {
        let mut bench = Bench::new(packed, 64);
        // Ethernet, IPv4 and TCP, so that the header towards a guest can be made.
        let mut packet = bytes(9000, 1);
        packet[12..14].copy_from_slice(&[8, 0]);
        packet[14..34].fill(0);
        packet[14] = 0x45;
        packet[16..18].copy_from_slice(&8986u16.to_be_bytes());
        (packet[22], packet[23]) = (64, 6);
        packet[26..34].copy_from_slice(&[10, 0, 0, 1, 10, 0, 0, 2]);
        let sum = crate::packet::checksum::finish(crate::packet::checksum::sum(&packet[14..34]));
        packet[24..26].copy_from_slice(&sum.to_be_bytes());
        packet[46] = 0x50;
        packet[47] = 0x10;
        let header = [1, 1, 54, 0, 0xa8, 5, 34, 0, 16, 0, 0, 0];
        let whole = [&header[..], &packet].concat();
        Ram(&bench.active.memory).write(BUFFERS, &whole);
        bench.offer(&[(BUFFERS, whole.len() as u32)], false, false);
        let offload = Offload {
            segments: Segments::Tcp4,
            size: 1448,
        };
        assert_eq!(bench.take().unwrap(), vec![(packet.clone(), offload)]);
        assert!(header::takes(FEATURES, &offload));
        assert!(!header::takes(FEATURES & !feature::GUEST_TSO4, &offload));
        bench.assert_frames();

        let mut other = Bench::new(packed, 64);
        other.offer(&[(BUFFERS, 12_000)], true, false);
        assert_eq!(other.put(&packet, offload), Ok(Put::Done));
        let got = Ram(&other.active.memory).read(BUFFERS, MAX_HEADER + packet.len());
        assert_eq!(got[..10], header[..10]);
        assert_eq!(got[MAX_HEADER..], packet);
    }
}

#[test]
fn runts_and_giants_are_lost_and_their_buffers_given_back() {
    for packed in [false, true] {
        let mut bench = Bench::new(packed, 64);
        for len in [0, 11, 25, 12 + 65536] {
            let id = bench.offer(&[(BUFFERS, len)], false, false);
            assert_eq!(bench.take(), Ok(vec![]));
            assert_eq!(bench.used(), Some((id, 0)), "{len}");
        }
        bench.assert_frames();
    }
}

#[test]
fn without_frames_the_packet_stays_with_its_guest() {
    for packed in [false, true] {
        let mut bench = Bench::new(packed, 64);
        let all: Vec<_> = std::iter::from_fn(|| bench.frames.alloc()).collect();
        let id = bench.offer(&[(BUFFERS, 100)], false, false);
        assert_eq!(bench.take(), Ok(vec![]));
        assert_eq!(bench.used(), None);
        all.into_iter().for_each(|frame| bench.frames.free(frame));
        assert_eq!(bench.take().unwrap().len(), 1);
        assert_eq!(bench.used(), Some((id, 0)));
    }
}

#[test]
fn what_breaks_the_rules_is_named() {
    use Fault::{Buffer, Direction};
    for packed in [false, true] {
        for (buffers, write, indirect, fault) in [
            (vec![(MEMORY - 10, 20)], false, false, Buffer),
            (vec![(u64::MAX - 5, 20)], false, false, Buffer),
            (vec![(BUFFERS, 100)], true, false, Direction),
            (vec![(BUFFERS, 100)], true, true, Direction),
            (vec![(MEMORY, 16)], false, true, Buffer),
        ] {
            let mut bench = Bench::new(packed, 64);
            bench.offer(&buffers, write, indirect);
            assert_eq!(bench.take(), Err(fault), "{packed} {buffers:?}");
            bench.assert_frames();
        }
        let mut bench = Bench::new(packed, 64);
        bench.offer(&[(BUFFERS, 100)], false, true);
        let table = bench.take().map(|packets| packets.len());
        assert_eq!(table, Ok(1));
    }
    let mut bench = Bench::new(false, 64);
    let ram = Ram(&bench.active.memory);
    ram.write(DRIVER + 2, &65u16.to_le_bytes());
    assert_eq!(bench.take(), Err(Fault::Index));
    let bench2 = &mut Bench::new(false, 64);
    let ram = Ram(&bench2.active.memory);
    // A chain that leads to itself.
    ram.write(DESCRIPTORS, &entry(BUFFERS, 1, 1, 0));
    ram.write(DRIVER + 2, &1u16.to_le_bytes());
    assert_eq!(bench2.take(), Err(Fault::Chain));
}

/// Random rings in random states: some valid, most not. `WEFT_FUZZ_RINGS` says how many descriptors.
#[test]
fn hostile_rings_cost_nobody_anything_but_their_guest() {
    let wanted = std::env::var("WEFT_FUZZ_RINGS")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(10_000_000u64);
    let mut random = SmallRng::seed_from_u64(7);
    let (_other_file, neighbour) = shared(MEMORY);
    Ram(&neighbour).write(0, &bytes(MEMORY as usize, 9));
    let active = active();
    let ram = Ram(&active.memory);
    let mut frames = PlainMemory::new(64, 2048).with_large(4);
    let (mut chain, mut heads) = (Chain::new(), Box::new([(Head::default(), 0); MAX_BUFFERS]));
    let (mut tried, mut faults, mut passed) = (0u64, 0u64, 0u64);
    while tried < wanted {
        let packed = random.random();
        let size = if packed {
            random.random_range(1..=64)
        } else {
            1 << random.random_range(0..7)
        };
        let write: bool = random.random();
        let entries = u64::from(size) + 16;
        for i in 0..entries {
            let guest = match random.random_range(0..8) {
                0 => random.random(),
                1 => MEMORY - random.random_range(0..64),
                2 => TABLES,
                3 => DESCRIPTORS + random.random_range(0..64) * 16,
                _ => random.random_range(0..MEMORY),
            };
            let len = match random.random_range(0..6) {
                0 => random.random(),
                1 => 0,
                2 => random.random_range(0..32) * 16,
                _ => random.random_range(0..2000),
            };
            let direction = if write { 2 } else { 0 };
            let flags = match random.random_range(0..4) {
                0 => random.random(),
                1 => direction | 1,
                _ => direction,
            };
            let last: u16 = random.random_range(0..size + 2);
            let bytes = if packed {
                let marks = if random.random_range(0..8) == 0 {
                    1 << 15
                } else {
                    1 << 7
                };
                packed_entry(guest, len, last, flags & 0x7f7f | marks)
            } else {
                entry(guest, len, flags, last)
            };
            ram.write(DESCRIPTORS + 16 * i, &bytes);
            ram.write(TABLES + 16 * i, &bytes);
        }
        if !packed {
            ram.write(DEVICE + 2, &0u16.to_le_bytes());
            let ahead = random.random_range(0..=size + size / 8);
            ram.write(DRIVER + 2, &ahead.to_le_bytes());
            for slot in 0..u64::from(size) {
                let head: u16 = random.random_range(0..size + size / 16);
                ram.write(DRIVER + 4 + 2 * slot, &head.to_le_bytes());
            }
        }
        let Ok(served) = Served::new(&active.memory, &setup(packed, size)) else {
            panic!("the ring itself is right");
        };
        let mut ring = served.ring;
        let guest = (&active, MAX_HEADER);
        tried += u64::from(size);
        let fault = if write {
            let packet = bytes(random.random_range(14..1700), 3);
            let packets = [frames.packet(DATA_OFFSET.into(), &packet).unwrap()];
            let parcel = Parcel::single(&frames, &packets);
            let put = with_ring!(&mut ring, ring => {
                ring.refresh().and_then(|()| {
                    for _ in 0..size {
                        match put_to_guest(ring, guest, &mut chain, &mut heads, &parcel)? {
                            Put::Done => passed += 1,
                            Put::Full | Put::TooLong => break,
                        }
                    }
                    ring.publish(&active.memory);
                    Ok(())
                })
            });
            let [packet] = packets;
            frames.free(packet.frame);
            put
        } else {
            let mut out = Vec::with_capacity(64);
            let taken = with_ring!(&mut ring, ring => {
                take_from_guest(ring, guest, &mut chain, (&mut frames, SMALL), &mut out, 64)
            });
            passed += out.len() as u64;
            for packet in out {
                frames.free(packet.frame);
            }
            taken.map(|_| ())
        };
        faults += u64::from(fault.is_err());
        assert_eq!((frames.available(), frames.available_large()), (64, 4));
    }
    assert_eq!(
        Ram(&neighbour).read(0, MEMORY as usize),
        bytes(MEMORY as usize, 9)
    );
    println!("{tried} descriptors tried, {faults} faults, {passed} packets");
    assert!(faults > tried / 1000 && passed > tried / 1000);
}

#[test]
fn the_driver_is_called_when_it_asked_to_be() {
    // Split, by flag and by index.
    for (event_index, wish, calls) in [
        (false, 0u16, [true, true]),
        (false, 1, [false, false]),
        (true, 0, [true, false]),
        (true, 1, [false, true]),
    ] {
        let mut bench = Bench::new(false, 64);
        let mut setup = setup(false, 64);
        setup.event_index = event_index;
        bench.ring = Served::new(&bench.active.memory, &setup).unwrap().ring;
        let at = if event_index {
            DRIVER + 4 + 128
        } else {
            DRIVER
        };
        Ram(&bench.active.memory).write(at, &wish.to_le_bytes());
        for call in calls {
            bench.offer(&[(BUFFERS, 100)], false, false);
            let mut out = Vec::new();
            let guest = (&bench.active, MAX_HEADER);
            let taken = with_ring!(&mut bench.ring, ring => {
                take_from_guest(ring, guest, &mut bench.chain, (&mut bench.frames, SMALL), &mut out, 64)
            });
            assert_eq!(taken.unwrap().call, call, "{event_index} {wish}");
        }
    }
    // Packed: never, always, at an entry of this round and of the next.
    for (wish, calls) in [
        ([0, 0, 1, 0], [false, false]),
        ([0, 0, 0, 0], [true, true]),
        ([0, 0x80, 2, 0], [true, false]),
        ([1, 0x80, 2, 0], [false, true]),
        ([0, 0, 2, 0], [false, false]),
    ] {
        let mut bench = Bench::new(true, 64);
        let mut setup = setup(true, 64);
        setup.event_index = true;
        bench.ring = Served::new(&bench.active.memory, &setup).unwrap().ring;
        Ram(&bench.active.memory).write(DRIVER, &wish);
        for call in calls {
            bench.offer(&[(BUFFERS, 100)], false, false);
            let mut out = Vec::new();
            let guest = (&bench.active, MAX_HEADER);
            let taken = with_ring!(&mut bench.ring, ring => {
                take_from_guest(ring, guest, &mut bench.chain, (&mut bench.frames, SMALL), &mut out, 64)
            });
            assert_eq!(taken.unwrap().call, call, "{wish:?}");
        }
    }
}

#[test]
fn kicks_are_asked_for_before_sleep_and_what_came_meanwhile_is_seen() {
    for packed in [false, true] {
        let mut bench = Bench::new(packed, 64);
        let off = |bench: &Bench| {
            let at = if packed { DEVICE + 2 } else { DEVICE };
            Ram(&bench.active.memory).u16(at)
        };
        assert_eq!(off(&bench), 1);
        let listen = |bench: &mut Bench| with_ring!(&mut bench.ring, ring => ring.listen());
        assert!(!listen(&mut bench));
        assert_eq!(off(&bench), 0);
        bench.offer(&[(BUFFERS, 100)], false, false);
        assert!(listen(&mut bench));
        with_ring!(&mut bench.ring, ring => ring.silence());
        assert_eq!(off(&bench), 1);
    }
}

#[test]
fn what_is_written_to_a_guest_that_moves_is_logged() {
    for packed in [false, true] {
        let mut bench = Bench::new(packed, 64);
        let file = crate::port::vhost::memory::tests::memfd(4096);
        bench.active.memory.log = Some(Arc::new(DirtyLog::map(&file, 0, 4096).unwrap()));
        let mut setup = setup(packed, 64);
        setup.log = Some(DEVICE);
        bench.ring = Served::new(&bench.active.memory, &setup).unwrap().ring;
        bench.offer(&[(BUFFERS + 0x1ff0, 100)], true, false);
        let put = bench.put(&bytes(60, 1), Offload::default());
        assert_eq!(put, Ok(Put::Done));
        let mut log = [0u8; 32];
        std::os::unix::fs::FileExt::read_exact_at(&file, &mut log, 0).unwrap();
        let ring = if packed { DESCRIPTORS } else { DEVICE };
        let pages: Vec<u64> = (0..256)
            .filter(|page| log[*page as usize / 8] >> (page % 8) & 1 != 0)
            .collect();
        let buffer = (BUFFERS + 0x1ff0) / 4096;
        assert_eq!(pages, [ring / 4096, buffer, buffer + 1]);
    }
}

/// The monitor's side, message by message, with a worker that echoes.
#[test]
fn rings_are_handed_over_and_taken_back_where_they_were() {
    for packed in [false, true] {
        let link = Arc::new(Link::new().unwrap());
        let mut queue = VhostQueue::new(0, Arc::clone(&link));
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let stop = &stop;
            // It lets go of what it should, and serves nothing else: the test looks at rings itself.
            scope.spawn(move || {
                while !stop.load(Ordering::Acquire) {
                    if queue.link.has_changed(queue.version) {
                        queue.switch();
                    }
                    std::thread::yield_now();
                }
            });
            let mut control = Control::new(vec![Arc::clone(&link)]);
            let (file, memory) = shared(MEMORY);
            let region =
                vhost::vhost_user::message::VhostUserMemoryRegion::new(0, MEMORY, MONITOR, 0);
            let kind = if packed { feature::RING_PACKED } else { 0 };
            control
                .set_features(FEATURES | feature::PROTOCOL_FEATURES | kind)
                .unwrap();
            control.set_mem_table(&[region], vec![file], None).unwrap();
            drop(memory);
            let base = if packed { 0x8007 } else { 0 };
            for ring in 0..2 {
                control.set_vring_num(ring, 64).unwrap();
                control.set_vring_base(ring, base).unwrap();
                let none = vhost::vhost_user::message::VhostUserVringAddrFlags::empty();
                control
                    .set_vring_addr(
                        ring,
                        none,
                        MONITOR + DESCRIPTORS,
                        MONITOR + DEVICE,
                        MONITOR + DRIVER,
                        0,
                    )
                    .unwrap();
                control.set_vring_kick(ring as u8, None).unwrap();
                control.set_vring_enable(ring, true).unwrap();
            }
            let deadline = std::time::Instant::now() + std::time::Duration::from_secs(5);
            while !link.is_running() {
                assert!(std::time::Instant::now() < deadline, "the rings never ran");
                std::thread::yield_now();
            }
            for ring in 0..2 {
                let state = control.get_vring_base(ring).unwrap();
                let expected = if packed { base | base << 16 } else { 0 };
                assert_eq!((state.index, state.num), (ring, expected));
            }
            assert!(!link.is_running());
            assert!(control.set_vring_num(2, 64).is_err());
            assert!(control.set_vring_num(0, 0).is_err());
            assert!(control.set_features(1 << 60).is_err());
            stop.store(true, Ordering::Release);
        });
    }
}

#[test]
fn a_worker_that_never_began_leaves_rings_where_they_were() {
    let link = Arc::new(Link::new().unwrap());
    link.abandon();
    let active = |base| {
        let setup = Setup {
            base,
            ..setup(true, 64)
        };
        Arc::new(Active {
            memory: GuestMemory::default(),
            features: FEATURES,
            rings: [Some(setup), None],
        })
    };
    for base in [0x8007, 0x8011] {
        link.set(Some(active(base)));
        link.set(None);
        assert_eq!(link.base(0), base);
    }
}
