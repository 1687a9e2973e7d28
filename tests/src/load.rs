//! Load: frames sent as fast as one thread can, and counted where they arrive (AF_PACKET, many frames per call).

#![allow(unsafe_code)]

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::{LabError, Namespace, RawSocket};

/// Frames in one call.
const BATCH: usize = 64;

/// Sends frames, over and over, until told to stop; answers how many the kernel took.
pub fn send_until(socket: &RawSocket, frames: &[Vec<u8>], stop: &AtomicBool) -> u64 {
    let mut vectors: Vec<libc::iovec> = frames
        .iter()
        .map(|frame| libc::iovec {
            iov_base: frame.as_ptr().cast_mut().cast(),
            iov_len: frame.len(),
        })
        .collect();
    let mut sent = 0;
    let mut at = 0;
    while !stop.load(Ordering::Relaxed) && !vectors.is_empty() {
        let count = BATCH.min(vectors.len() - at);
        let first = vectors[at..].as_mut_ptr();
        let mut messages: Vec<libc::mmsghdr> = (0..count)
            .map(|i| {
                // SAFETY: all zeroes is a valid message header, and `at + i` lies within the vectors.
                unsafe {
                    let mut message: libc::mmsghdr = std::mem::zeroed();
                    message.msg_hdr.msg_iov = first.add(i);
                    message.msg_hdr.msg_iovlen = 1;
                    message
                }
            })
            .collect();
        // SAFETY: the headers point to vectors, and these to frames, that outlive the call; the kernel only reads the frames.
        let taken = unsafe {
            libc::sendmmsg(
                socket.descriptor(),
                messages.as_mut_ptr(),
                count as u32,
                libc::MSG_DONTWAIT,
            )
        };
        if taken > 0 {
            sent += taken as u64;
            at = (at + taken as usize) % vectors.len();
        } else {
            std::hint::spin_loop();
        }
    }
    sent
}

/// What an interface of a namespace has received, by the kernel's own count: packets and bytes.
pub fn received(namespace: &Namespace, interface: &str) -> Result<(u64, u64), LabError> {
    let read = |what: &str| -> Result<u64, LabError> {
        let path = format!("/sys/class/net/{interface}/statistics/{what}");
        let text = namespace.run(&["cat", &path])?;
        text.trim().parse().map_err(|_| LabError::Io {
            what: path,
            source: io::Error::from(io::ErrorKind::InvalidData),
        })
    };
    Ok((read("rx_packets")?, read("rx_bytes")?))
}

/// A rate that was measured.
#[derive(Debug, Clone, Copy)]
pub struct Rate {
    /// Frames per second that the sender put in.
    pub offered: f64,
    /// Frames per second that arrived.
    pub arrived: f64,
}

/// Sends frames from one namespace for a while and counts what arrives in another.
pub fn measure(
    from: (&Namespace, &str),
    to: (&Namespace, &str),
    frames: &[Vec<u8>],
    time: Duration,
) -> Result<Rate, LabError> {
    let socket = RawSocket::open_for_load(from.0, from.1)?;
    let stop = AtomicBool::new(false);
    let sent = AtomicU64::new(0);
    std::thread::scope(|scope| {
        scope.spawn(|| sent.store(send_until(&socket, frames, &stop), Ordering::Relaxed));
        // The first moments are not counted: neighbours resolve, sessions are made, caches fill.
        std::thread::sleep(Duration::from_millis(300));
        let result = received(to.0, to.1).and_then(|before| {
            let begun = Instant::now();
            std::thread::sleep(time);
            let after = received(to.0, to.1)?;
            Ok((after.0 - before.0) as f64 / begun.elapsed().as_secs_f64())
        });
        stop.store(true, Ordering::Relaxed);
        result
    })
    .map(|arrived| Rate {
        offered: sent.load(Ordering::Relaxed) as f64 / (time.as_secs_f64() + 0.3),
        arrived,
    })
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

/// A UDP frame over IPv4: MACs as destination and source, addresses and ports as source and destination. No UDP checksum.
pub fn udp(
    macs: ([u8; 6], [u8; 6]),
    addresses: ([u8; 4], [u8; 4]),
    ports: (u16, u16),
    payload: usize,
) -> Vec<u8> {
    let mut frame = [&macs.0[..], &macs.1, &[8, 0, 0x45, 0]].concat();
    frame.extend_from_slice(&((28 + payload) as u16).to_be_bytes());
    frame.extend_from_slice(&[0, 0, 0x40, 0, 64, 17, 0, 0]);
    frame.extend_from_slice(&addresses.0);
    frame.extend_from_slice(&addresses.1);
    let sum: u32 = frame[14..34]
        .chunks(2)
        .map(|word| u32::from(word[0]) << 8 | u32::from(word[1]))
        .sum();
    let sum = !(((sum & 0xffff) + (sum >> 16)) as u16);
    frame[24..26].copy_from_slice(&sum.to_be_bytes());
    for word in [ports.0, ports.1, (8 + payload) as u16, 0] {
        frame.extend_from_slice(&word.to_be_bytes());
    }
    frame.resize(42 + payload, 0x77);
    frame
}
