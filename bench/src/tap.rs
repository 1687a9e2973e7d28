//! AF_XDP compared with a packet socket with virtio headers, over a tap. One core is the guest's side, one ours.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context;
use weft_dataplane::packet::{FrameMemory, Packet};
use weft_dataplane::port::{
    self, Attachment, DATA_OFFSET, Device, FrameCache, Opening, Programs, Queue, QueueOptions,
    Role, Umem, UmemOptions, XskQueue,
};
use weft_proto::v1;
use weft_tests::tap_end::{ALL_OFFLOADS, HEADER};
use weft_tests::{Lab, Namespace, RawSocket, TapEnd, load};

use crate::{Row, clock, dpdk};

const SAMPLES: usize = 5;
const TIME: Duration = Duration::from_millis(500);
/// Payload of a full-sized frame of 1450 bytes of IP.
const PIECE: usize = 1410;
const A: load::Station = ([2, 0, 0, 0, 0, 0xaa], [10, 0, 0, 1]);
const B: load::Station = ([2, 0, 0, 0, 0, 0xbb], [10, 0, 0, 2]);

/// A tap whose far end is ours too.
struct Tap {
    _lab: Lab,
    host: Namespace,
    end: TapEnd,
    umem: Arc<Umem>,
}

impl Tap {
    fn new() -> anyhow::Result<Self> {
        let mut lab = Lab::new()?;
        let host = lab.host("host")?;
        let line = ["sysctl", "-qw", "net.ipv6.conf.default.disable_ipv6=1"];
        host.run(&line)?;
        let end = TapEnd::make(&host, "t0", 1, ALL_OFFLOADS)?.remove(0);
        let umem = Umem::new(UmemOptions::default())?;
        Ok(Self {
            _lab: lab,
            host,
            end,
            umem,
        })
    }

    /// The near end as weftd opens it. Frames of more IP bytes than `mtu` go by the packet socket.
    fn open(&self, mtu: u16) -> anyhow::Result<(Box<dyn Device>, Box<dyn Queue>)> {
        let opening = Opening {
            umem: Arc::clone(&self.umem),
            programs: Arc::default(),
            ring_size: 2048,
            busy_poll: None,
            threaded_napi: false,
            headroom: 50,
        };
        let spec = v1::Device {
            kind: "netdev".into(),
            name: "t0".into(),
            ..v1::Device::default()
        };
        let mut device = self.host.enter(|| port::open(&opening, &spec))??;
        device.set_mtu(mtu);
        let queue = device.take_queues().pop().context("a tap has a queue")?;
        Ok((device, queue))
    }

    /// Bytes of frames that a guest brings us in a second, when all it sends is `frame` with this header.
    fn inward(&mut self, mtu: u16, header: [u8; HEADER], frame: &[u8]) -> anyhow::Result<f64> {
        let (device, mut queue) = self.open(mtu)?;
        let mut cache = FrameCache::new(&self.umem);
        let mut packets = Vec::with_capacity(64);
        queue.receive(&mut cache, &mut packets, 64);
        let stop = AtomicBool::new(false);
        let (end, raw) = (&mut self.end, [&header, frame].concat());
        let rate = std::thread::scope(|scope| {
            scope.spawn(|| {
                let _ = clock::pin(1);
                while !stop.load(Ordering::Relaxed) {
                    if end.send_raw(&raw).is_err() {
                        break;
                    }
                }
            });
            let (begun, mut bytes) = (Instant::now(), 0u64);
            while begun.elapsed() < TIME {
                queue.receive(&mut cache, &mut packets, 64);
                for packet in packets.drain(..) {
                    bytes += u64::from(packet.len);
                    cache.free(packet.frame);
                }
            }
            stop.store(true, Ordering::Relaxed);
            bytes as f64 / begun.elapsed().as_secs_f64()
        });
        drop((queue, device));
        Ok(rate)
    }

    /// Bytes of frames that reach the guest in a second, while `send` is called again and again.
    fn outward(&mut self, mut send: impl FnMut() -> anyhow::Result<()>) -> anyhow::Result<f64> {
        let (stop, bytes) = (AtomicBool::new(false), AtomicU64::new(0));
        let end = &mut self.end;
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let _ = clock::pin(1);
                while !stop.load(Ordering::Relaxed) {
                    end.receive(Duration::from_millis(10), |frame| {
                        bytes.fetch_add(frame.len() as u64, Ordering::Relaxed);
                        stop.load(Ordering::Relaxed)
                    });
                }
            });
            let begun = Instant::now();
            let mut result = Ok(());
            while begun.elapsed() < TIME && result.is_ok() {
                result = send();
            }
            stop.store(true, Ordering::Relaxed);
            result.map(|()| bytes.load(Ordering::Relaxed) as f64 / begun.elapsed().as_secs_f64())
        })
    }

    /// The same by a queue, in batches of 44 frames.
    fn by_queue(&mut self, queue: &mut dyn Queue, frames: &[Vec<u8>]) -> anyhow::Result<f64> {
        let mut cache = FrameCache::new(&self.umem);
        let mut packets = Vec::with_capacity(64);
        self.outward(|| {
            queue.reap(&mut cache);
            for bytes in frames {
                let frame = cache.alloc().context("frames")?;
                let (start, len) = (DATA_OFFSET, bytes.len() as u16);
                let mut packet = Packet { frame, start, len };
                packet.bytes_mut(&mut cache).copy_from_slice(bytes);
                packets.push(packet);
            }
            queue.send(&mut cache, &mut packets);
            queue.kick();
            for packet in packets.drain(..) {
                cache.free(packet.frame);
            }
            Ok(())
        })
    }

    /// A queue without the packet socket.
    fn ring(&self) -> anyhow::Result<(Attachment, XskQueue)> {
        let role = Role::Port { headroom: 0 };
        self.host.enter(|| {
            let queue = XskQueue::open(&self.umem, "t0", 0, QueueOptions::default())?;
            let mut attachment = Attachment::attach(&Programs::default(), "t0", &role, None)?;
            attachment.register(&queue)?;
            anyhow::Ok((attachment, queue))
        })?
    }
}

/// What a guest leaves to be split: as many pieces as fit.
fn large() -> ([u8; HEADER], Vec<u8>) {
    let mut header = [1, 1, 54, 0, 0, 0, 34, 0, 16, 0];
    header[4..6].copy_from_slice(&(PIECE as u16).to_le_bytes());
    (header, load::tcp_segment((A, B), 1, 46 * PIECE))
}

pub(crate) fn rows() -> anyhow::Result<Vec<Row>> {
    dpdk::pinned_to(0, measure)
}

fn measure() -> anyhow::Result<Vec<Row>> {
    let mut tap = Tap::new()?;
    let small = load::udp((A.0, B.0), (A.1, B.1), (1000, 9), 18);
    let plain = [0; HEADER];
    let full = load::tcp_segment((A, B), 1, PIECE);
    let (header, whole) = large();
    let stream: Vec<_> = (0..44)
        .map(|n| load::tcp_segment((B, A), 1 + n * PIECE as u32, PIECE))
        .collect();
    let smalls = vec![small.clone(); 44];
    let mut all: [(Vec<f64>, Vec<f64>); 4] = Default::default();
    for _ in 0..SAMPLES {
        let millions = small.len() as f64 * 1e6;
        let gigabits = 1e9 / 8.0;
        let [small_in, large_in, small_out, large_out] = &mut all;
        small_in.0.push(tap.inward(1450, plain, &small)? / millions);
        small_in.1.push(tap.inward(0, plain, &small)? / millions);
        large_in
            .0
            .push(tap.inward(1450, header, &whole)? / gigabits);
        large_in.1.push(tap.inward(1450, plain, &full)? / gigabits);
        let (attachment, mut ring) = tap.ring()?;
        small_out
            .0
            .push(tap.by_queue(&mut ring, &smalls)? / millions);
        large_out
            .1
            .push(tap.by_queue(&mut ring, &stream)? / gigabits);
        drop((ring, attachment));
        let socket = RawSocket::open(&tap.host, "t0")?;
        // A full tap drops, which is not of interest here.
        let send = || {
            let _ = socket.send(&small);
            Ok(())
        };
        small_out.1.push(tap.outward(send)? / millions);
        let (device, mut queue) = tap.open(1450)?;
        large_out
            .0
            .push(tap.by_queue(&mut *queue, &stream)? / gigabits);
        drop((queue, device));
    }
    let names = [
        (
            "60 bytes from the guest, by AF_XDP",
            "million packets/s",
            "by a packet socket",
        ),
        (
            "TCP from the guest, segments of 64 KiB by a packet socket",
            "Gbit/s",
            "frames by AF_XDP",
        ),
        (
            "60 bytes to the guest, by AF_XDP",
            "million packets/s",
            "by a packet socket",
        ),
        (
            "TCP to the guest, merged by a packet socket",
            "Gbit/s",
            "frames by AF_XDP",
        ),
    ];
    let rows = names.into_iter().zip(all);
    Ok(rows
        .map(|((name, unit, other), (samples, others))| Row {
            name: format!("tap: {name}"),
            unit,
            samples,
            goal: None,
            peer: Some((other, others)),
        })
        .collect())
}
