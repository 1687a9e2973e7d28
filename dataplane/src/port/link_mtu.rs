//! How long a packet may be to pass a network interface: at most the interface's own MTU, and for a veth also at most its peer's.
//!
//! When a packet is longer than the receiving end of a veth accepts, the kernel drops it and only counts it. The peer may be in another
//! network namespace. The kernel knows that namespace by a number (`IFLA_LINK_NETNSID`) and describes the peer to a process that may
//! administer it.

use std::io::{self, Read, Write};
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};

/// `struct nlmsghdr` and `struct ifinfomsg` of `linux/netlink.h` and `linux/rtnetlink.h`.
const HEADER: usize = 16;
const INFO: usize = 16;
/// The kernel answers at once.
const PATIENCE: Duration = Duration::from_secs(1);
/// The longest description of a link that is read; what follows is of no interest here.
const ANSWER: usize = 16 * 1024;

/// The kernel's description of a link.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Link {
    mtu: Option<u32>,
    /// The number of the other end, and of its network namespace if that is another.
    peer: Option<u32>,
    namespace: Option<i32>,
}

/// Bytes of IP packet that pass through the interface of this number; none if the kernel does not tell.
pub(super) fn link_mtu(index: u32) -> Option<u32> {
    let mut socket = connect().ok()?;
    let own = ask(&mut socket, index, None)?;
    let peer = own.peer.filter(|peer| *peer != 0 && *peer != index);
    let peer = peer.and_then(|peer| ask(&mut socket, peer, own.namespace));
    // Not every link of a link is the other end of a veth; only that points back.
    let peer = peer.filter(|peer| peer.peer == Some(index));
    let mtus = [own.mtu, peer.and_then(|peer| peer.mtu)];
    mtus.into_iter().flatten().min()
}

fn connect() -> io::Result<Socket> {
    let (domain, protocol) = (libc::AF_NETLINK, libc::NETLINK_ROUTE);
    let socket = Socket::new(
        Domain::from(domain),
        Type::RAW,
        Some(Protocol::from(protocol)),
    )?;
    socket.set_read_timeout(Some(PATIENCE))?;
    Ok(socket)
}

fn ask(socket: &mut Socket, index: u32, namespace: Option<i32>) -> Option<Link> {
    socket.write_all(&question(index, namespace)).ok()?;
    let mut answer = vec![0; ANSWER];
    let len = socket.read(&mut answer).ok()?;
    read(answer.get(..len)?)
}

/// `RTM_GETLINK` for one link, in a namespace by number if one is given.
fn question(index: u32, namespace: Option<i32>) -> Vec<u8> {
    let mut message = vec![0; HEADER + INFO];
    if let Some(namespace) = namespace {
        message.extend(8u16.to_ne_bytes());
        message.extend(libc::IFLA_TARGET_NETNSID.to_ne_bytes());
        message.extend(namespace.to_ne_bytes());
    }
    let len = message.len() as u32;
    message[..4].copy_from_slice(&len.to_ne_bytes());
    message[4..6].copy_from_slice(&libc::RTM_GETLINK.to_ne_bytes());
    message[6..8].copy_from_slice(&(libc::NLM_F_REQUEST as u16).to_ne_bytes());
    message[HEADER + 4..HEADER + 8].copy_from_slice(&index.to_ne_bytes());
    message
}

/// Reads an answer; none where it is an error or cut short.
fn read(answer: &[u8]) -> Option<Link> {
    let kind = u16::from_ne_bytes(answer.get(4..6)?.try_into().ok()?);
    let len = u32::from_ne_bytes(answer.get(..4)?.try_into().ok()?) as usize;
    if kind != libc::RTM_NEWLINK {
        return None;
    }
    let mut attributes = answer.get(HEADER + INFO..len.min(answer.len()))?;
    let mut link = Link::default();
    while let Some(header) = attributes.get(..4) {
        let len = usize::from(u16::from_ne_bytes([header[0], header[1]]));
        let kind = u16::from_ne_bytes([header[2], header[3]]);
        let value = attributes.get(4..len)?;
        let word = <[u8; 4]>::try_from(value).ok();
        match kind {
            libc::IFLA_MTU => link.mtu = word.map(u32::from_ne_bytes),
            libc::IFLA_LINK => link.peer = word.map(u32::from_ne_bytes),
            libc::IFLA_LINK_NETNSID => link.namespace = word.map(i32::from_ne_bytes),
            _ => {}
        }
        attributes = attributes
            .get(len.next_multiple_of(4)..)
            .unwrap_or_default();
    }
    Some(link)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loopback_interface_passes_what_its_mtu_says() {
        let mtu = std::fs::read_to_string("/sys/class/net/lo/mtu").unwrap();
        assert_eq!(link_mtu(1), Some(mtu.trim().parse().unwrap()));
        assert_eq!(link_mtu(u32::MAX), None);
    }

    #[test]
    fn what_is_cut_short_is_no_answer() {
        let mut answer = vec![0; HEADER + INFO];
        answer[4..6].copy_from_slice(&libc::RTM_NEWLINK.to_ne_bytes());
        answer.extend(8u16.to_ne_bytes());
        answer.extend(libc::IFLA_MTU.to_ne_bytes());
        answer.extend(1400u32.to_ne_bytes());
        let len = answer.len();
        answer[..4].copy_from_slice(&(len as u32).to_ne_bytes());
        assert_eq!(read(&answer).unwrap().mtu, Some(1400));
        for len in 0..len {
            assert_eq!(read(&answer[..len]).and_then(|link| link.mtu), None);
        }
    }
}
