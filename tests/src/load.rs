//! Load: frames sent as fast as one thread can, and counted where they arrive (AF_PACKET, many frames per call).

#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::{LabError, Namespace, RawSocket, wait_until};

/// Frames in one call.
const BATCH: usize = 64;

/// Frames that may be on their way at a time. A sender that does not wait for them would only measure how fast the first queue overflows,
/// and take the time for it from those who forward.
const WINDOW: u64 = 1024;
/// How long nothing may arrive before what is on its way is given up as lost.
const PATIENCE: Duration = Duration::from_millis(2);

/// What an interface has received, by the kernel's own count.
#[derive(Debug)]
pub struct Arrivals {
    counters: File,
    interface: String,
}

impl Arrivals {
    /// Opens the count of an interface of a namespace.
    pub fn open(namespace: &Namespace, interface: &str) -> Result<Self, LabError> {
        let path = "/proc/thread-self/net/dev";
        let counters = namespace
            .enter(|| File::open(path))?
            .map_err(LabError::io(path))?;
        Ok(Self {
            counters,
            interface: format!("{interface}:"),
        })
    }

    /// Packets so far.
    pub fn packets(&self) -> Result<u64, LabError> {
        let mut text = [0; 4096];
        let len = self
            .counters
            .read_at(&mut text, 0)
            .map_err(LabError::io("reading an interface's counters"))?;
        let text = String::from_utf8_lossy(&text[..len]);
        let line = text
            .lines()
            .find_map(|line| line.trim_start().strip_prefix(&self.interface));
        let packets = line.and_then(|line| line.split_whitespace().nth(1)?.parse().ok());
        packets.ok_or_else(|| {
            LabError::io("an interface's counters")(io::Error::from(io::ErrorKind::InvalidData))
        })
    }
}

/// Sends frames, over and over, until it is stopped, as fast as they arrive; returns how many were sent.
pub fn send_until(
    socket: &RawSocket,
    frames: &[Vec<u8>],
    arrivals: &Arrivals,
    stop: &AtomicBool,
) -> Result<u64, LabError> {
    let mut round = Round::new(frames);
    let mut sent = 0;
    let mut base = arrivals.packets()?;
    let mut last = (base, Instant::now());
    while !stop.load(Ordering::Relaxed) && !frames.is_empty() {
        let arrived = arrivals.packets()?;
        if arrived != last.0 {
            last = (arrived, Instant::now());
        } else if last.1.elapsed() > PATIENCE {
            // What has not come by now is lost, and leaves the window.
            base = arrived.wrapping_sub(sent);
            last.1 = Instant::now();
        }
        // What others send to the interface arrives too.
        if sent.saturating_sub(arrived.wrapping_sub(base)) + BATCH as u64 > WINDOW {
            std::thread::yield_now();
            continue;
        }
        sent += round.send(socket);
    }
    Ok(sent)
}

/// Frames that are sent one batch after the other, again from the first after the last.
#[derive(Debug)]
pub struct Round<'f> {
    frames: &'f [Vec<u8>],
    at: usize,
}

impl<'f> Round<'f> {
    /// Begins with the first.
    pub fn new(frames: &'f [Vec<u8>]) -> Self {
        Self { frames, at: 0 }
    }

    /// Sends a batch, as far as the interface takes it, and says how many; lets others run if it takes nothing.
    pub fn send(&mut self, socket: &RawSocket) -> u64 {
        let rest = &self.frames[self.at..];
        let batch = &rest[..BATCH.min(rest.len())];
        // SAFETY: all zeroes is a valid vector.
        let mut vectors: [libc::iovec; BATCH] = unsafe { std::mem::zeroed() };
        // SAFETY: all zeroes is a valid message header.
        let mut messages: [libc::mmsghdr; BATCH] = unsafe { std::mem::zeroed() };
        for ((message, vector), frame) in messages.iter_mut().zip(&mut vectors).zip(batch) {
            vector.iov_base = frame.as_ptr().cast_mut().cast();
            vector.iov_len = frame.len();
            message.msg_hdr.msg_iov = vector;
            message.msg_hdr.msg_iovlen = 1;
        }
        // SAFETY: the headers point to vectors, and these to frames, that outlive the call; the kernel only reads the frames.
        let taken = unsafe {
            libc::sendmmsg(
                socket.descriptor(),
                messages.as_mut_ptr(),
                batch.len() as u32,
                libc::MSG_DONTWAIT,
            )
        };
        if taken <= 0 {
            std::thread::yield_now();
            return 0;
        }
        self.at = (self.at + taken as usize) % self.frames.len();
        taken as u64
    }
}

/// Makes a workload's interface a sink: what arrives for UDP port 9 is counted by the device and dropped before the stack looks at it.
pub fn sink(namespace: &Namespace, interface: &str) -> Result<(), LabError> {
    namespace.run(&["nft", "add table netdev sink"])?;
    namespace.run(&[
        "nft",
        &format!(
            "add chain netdev sink in {{ type filter hook ingress device {interface} priority 0; }}"
        ),
    ])?;
    namespace
        .run(&["nft", "add rule netdev sink in udp dport 9 drop"])
        .map(drop)
}

/// A rate that was measured.
#[derive(Debug, Clone, Copy)]
pub struct Rate {
    /// Frames per second that the sender put in.
    pub offered: f64,
    /// Frames per second that arrived.
    pub arrived: f64,
}

/// Sends frames from one namespace for a while, with a bounded number on their way, and counts what arrives in another.
pub fn measure(
    from: (&Namespace, &str),
    to: (&Namespace, &str),
    frames: &[Vec<u8>],
    time: Duration,
) -> Result<Rate, LabError> {
    let socket = RawSocket::open_for_load(from.0, from.1)?;
    let (window, count) = (Arrivals::open(to.0, to.1)?, Arrivals::open(to.0, to.1)?);
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let begun = Instant::now();
        let sending = scope.spawn(|| send_until(&socket, frames, &window, &stop));
        // The first moments are not counted: neighbours resolve, sessions are made, caches fill.
        std::thread::sleep(Duration::from_millis(300));
        let counting = count.packets().and_then(|before| {
            let counted = Instant::now();
            std::thread::sleep(time);
            Ok((count.packets()? - before) as f64 / counted.elapsed().as_secs_f64())
        });
        stop.store(true, Ordering::Relaxed);
        let sent = match sending.join() {
            Ok(sent) => sent?,
            Err(panic) => std::panic::resume_unwind(panic),
        };
        Ok(Rate {
            offered: sent as f64 / begun.elapsed().as_secs_f64(),
            arrived: counting?,
        })
    })
}

/// Gbit/s that one TCP stream carries from a namespace to an address in another, or back, over so many seconds (iperf3).
pub fn tcp(
    from: &Namespace,
    to: (&Namespace, &str),
    reverse: bool,
    seconds: u32,
) -> Result<f64, LabError> {
    let mut server = to.0.spawn("iperf3", &["-s", "-1", "--forceflush"])?;
    wait_until("iperf3 listens", Duration::from_secs(5), || {
        server.log().contains("listening")
    })?;
    let seconds = seconds.to_string();
    let mut command = vec!["iperf3", "-J", "-t", &seconds, "-c", to.1];
    if reverse {
        command.push("-R");
    }
    let text = from.run(&command)?;
    server.wait(Duration::from_secs(5))?;
    gigabits(&text)
}

/// The received rate in iperf3's report, in Gbit/s.
pub(crate) fn gigabits(report: &str) -> Result<f64, LabError> {
    let report: serde_json::Value = serde_json::from_str(report).unwrap_or_default();
    let bits = report["end"]["sum_received"]["bits_per_second"].as_f64();
    let bits = bits.ok_or_else(|| {
        LabError::io("iperf3's report")(io::Error::from(io::ErrorKind::InvalidData))
    })?;
    Ok(bits / 1e9)
}

/// UDP frames of one sender to one receiver, in so many flows.
pub fn udp_flows(
    macs: ([u8; 6], [u8; 6]),
    addresses: ([u8; 4], [u8; 4]),
    flows: u16,
    payload: usize,
) -> Vec<Vec<u8>> {
    (0..flows)
        .map(|flow| udp(macs, addresses, (1024 + flow, 9), payload))
        .collect()
}

/// The Internet checksum of an even number of bytes (RFC 1071).
fn checksum(bytes: &[u8]) -> [u8; 2] {
    let words = bytes
        .chunks(2)
        .map(|word| u32::from(word[0]) << 8 | u32::from(word[1]));
    let sum = words.fold(0, |sum, word| {
        let sum = sum + word;
        (sum & 0xffff) + (sum >> 16)
    });
    (!(sum as u16)).to_be_bytes()
}

/// Ethernet and IPv4 headers: MACs as destination and source, addresses as source and destination.
fn ipv4(
    macs: ([u8; 6], [u8; 6]),
    addresses: ([u8; 4], [u8; 4]),
    protocol: u8,
    payload: usize,
) -> Vec<u8> {
    let mut frame = [&macs.0[..], &macs.1, &[8, 0, 0x45, 0]].concat();
    frame.extend_from_slice(&((20 + payload) as u16).to_be_bytes());
    frame.extend_from_slice(&[0, 0, 0x40, 0, 64, protocol, 0, 0]);
    frame.extend_from_slice(&addresses.0);
    frame.extend_from_slice(&addresses.1);
    let sum = checksum(&frame[14..]);
    frame[24..26].copy_from_slice(&sum);
    frame
}

/// A UDP frame over IPv4: MACs as destination and source, addresses and ports as source and destination. No UDP checksum.
pub fn udp(
    macs: ([u8; 6], [u8; 6]),
    addresses: ([u8; 4], [u8; 4]),
    ports: (u16, u16),
    payload: usize,
) -> Vec<u8> {
    let mut frame = ipv4(macs, addresses, 17, 8 + payload);
    for word in [ports.0, ports.1, (8 + payload) as u16, 0] {
        frame.extend_from_slice(&word.to_be_bytes());
    }
    frame.resize(42 + payload, 0x77);
    frame
}

/// A MAC and an address.
pub type Station = ([u8; 6], [u8; 4]);

/// A TCP segment over IPv4, all of whose checksums are right, with an even number of bytes of payload.
pub fn tcp_segment((from, to): (Station, Station), sequence: u32, payload: usize) -> Vec<u8> {
    let mut frame = ipv4((to.0, from.0), (from.1, to.1), 6, 20 + payload);
    for word in [4000u16, 80] {
        frame.extend_from_slice(&word.to_be_bytes());
    }
    for word in [sequence, 77] {
        frame.extend_from_slice(&word.to_be_bytes());
    }
    // Twenty bytes of header, ACK; window; checksum; urgent pointer.
    for word in [0x5010u16, 1000, 0, 0] {
        frame.extend_from_slice(&word.to_be_bytes());
    }
    frame.resize(54 + payload, 0x77);
    let mut summed = [&from.1[..], &to.1, &[0, 6]].concat();
    summed.extend_from_slice(&((20 + payload) as u16).to_be_bytes());
    summed.extend_from_slice(&frame[34..]);
    let sum = checksum(&summed);
    frame[50..52].copy_from_slice(&sum);
    frame
}
