//! The one message that monitors send and the library refuses. Each time a guest's driver starts, qemu enables rings
//! (`VHOST_USER_SET_VRING_ENABLE`) before it acknowledges the feature that allows it. This module takes the message off the connection before
//! the library sees it.

#![allow(unsafe_code)]

use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;

/// The message's number, and the bits of a header's flags (vhost-user protocol, "Header").
const SET_VRING_ENABLE: u32 = 18;
const VERSION: u32 = 1;
const REPLY: u32 = 4;
const NEED_REPLY: u32 = 8;
/// Number, flags and size of the payload, four bytes each in the machine's order; then ring and state.
const HEADER: usize = 12;
const PAYLOAD: usize = 8;

/// Waits for a message. If it enables or disables a ring, takes it, calls `enable` with the ring and the state, and answers true; any other
/// message is left where it is.
///
/// # Errors
/// The connection has ended, or breaks.
pub(super) fn take(
    stream: &mut UnixStream,
    enable: impl FnOnce(u32, bool) -> bool,
) -> io::Result<bool> {
    let mut header = [0u8; HEADER];
    let seen = peek(stream, &mut header)?;
    if seen == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    if seen < HEADER || word(&header, 0) != SET_VRING_ENABLE || word(&header, 2) as usize != PAYLOAD
    {
        return Ok(false);
    }
    let mut message = [0u8; HEADER + PAYLOAD];
    stream.read_exact(&mut message)?;
    let (ring, state) = (word(&message, 3), word(&message, 4));
    let done = state <= 1 && enable(ring, state == 1);
    if word(&message, 1) & NEED_REPLY != 0 {
        let mut reply = Vec::with_capacity(HEADER + PAYLOAD);
        for field in [SET_VRING_ENABLE, VERSION | REPLY, PAYLOAD as u32] {
            reply.extend_from_slice(&field.to_ne_bytes());
        }
        reply.extend_from_slice(&u64::from(!done).to_ne_bytes());
        stream.write_all(&reply)?;
    }
    Ok(true)
}

fn word(bytes: &[u8], number: usize) -> u32 {
    let at = 4 * number;
    bytes
        .get(at..at + 4)
        .and_then(|bytes| bytes.try_into().ok())
        .map_or(0, u32::from_ne_bytes)
}

/// What comes next, which stays in the socket: it blocks until there is something, and answers 0 at the end.
fn peek(stream: &UnixStream, buffer: &mut [u8]) -> io::Result<usize> {
    loop {
        // SAFETY: the descriptor is open as long as the stream lives, and the kernel writes at most the buffer's length into it.
        let seen = unsafe {
            libc::recv(
                stream.as_raw_fd(),
                buffer.as_mut_ptr().cast(),
                buffer.len(),
                libc::MSG_PEEK,
            )
        };
        match usize::try_from(seen) {
            Ok(seen) => return Ok(seen),
            Err(_) => {
                let error = io::Error::last_os_error();
                if error.kind() != io::ErrorKind::Interrupted {
                    return Err(error);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(fields: [u32; 5]) -> Vec<u8> {
        fields
            .iter()
            .flat_map(|field| field.to_ne_bytes())
            .collect()
    }

    #[test]
    fn a_ring_is_enabled_and_the_answer_sent_if_asked_for() {
        let (mut ours, mut theirs) = UnixStream::pair().unwrap();
        for (flags, state, answer) in [
            (VERSION, 1, None),
            (VERSION | NEED_REPLY, 0, Some(0)),
            (VERSION | NEED_REPLY, 7, Some(1)),
        ] {
            let sent = message([SET_VRING_ENABLE, flags, 8, 3, state]);
            theirs.write_all(&sent).unwrap();
            let mut told = None;
            let taken = take(&mut ours, |ring, on| {
                told = Some((ring, on));
                true
            });
            assert!(taken.unwrap());
            assert_eq!(told, (state < 2).then_some((3, state == 1)));
            if let Some(answer) = answer {
                let mut reply = [0; HEADER + PAYLOAD];
                theirs.read_exact(&mut reply).unwrap();
                let wanted = [SET_VRING_ENABLE, VERSION | REPLY, 8, answer, 0];
                assert_eq!(reply[..], message(wanted));
            }
        }
    }

    #[test]
    fn other_messages_stay_and_the_end_is_an_error() {
        let (mut ours, mut theirs) = UnixStream::pair().unwrap();
        let sent = message([1, VERSION, 8, 3, 1]);
        theirs.write_all(&sent).unwrap();
        assert!(!take(&mut ours, |_, _| true).unwrap());
        let mut left = [0; HEADER + PAYLOAD];
        ours.read_exact(&mut left).unwrap();
        assert_eq!(left[..], sent);
        drop(theirs);
        assert!(take(&mut ours, |_, _| true).is_err());
    }
}
