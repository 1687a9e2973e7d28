//! Path MTU to VTEPs, as routers report it (RFC 1191, RFC 8201, RFC 4459 §3.2).
//!
//! Tunnel packets may not be fragmented on their way, so that a router whose next link is narrower drops them and says so, by an ICMP error
//! to the tunnel's end. The kernel has no socket for these tunnels and ignores the errors. They are read from raw sockets here. An error
//! counts if it quotes a tunnel packet of ours to a peer, and never below what every link carries. It is forgotten after ten minutes, so
//! that a larger path MTU is found.
//!
//! Whoever can send such an error has to know both tunnel addresses, and can make the guests' packets shorter, down to 576 or 1280 bytes
//! less the tunnel's headers, but no shorter.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::{Duration, Instant};

use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::UdpSocket;
use tokio::sync::mpsc;
use weft_ebpf_types::{PROTOCOL_GRE, VXLAN_PORT};

use weft_dataplane::port::icmp_errors_only;

/// How long a router's word counts (RFC 1191 §6.3, RFC 8201 §4).
const AGE: Duration = Duration::from_secs(600);
/// What every link carries, or every host can put together (RFC 791 §3.2, RFC 8200 §5).
const LEAST_IPV4: u16 = 576;
const LEAST_IPV6: u16 = 1280;
/// Most errors that may wait; in a flood, one is enough.
const WAITING: usize = 64;
/// What of an error is looked at.
const ERROR: usize = 2048;

/// A router's report: the MTU to this address.
pub(super) type TooBig = (IpAddr, u16);

/// The reports of routers.
#[derive(Debug, Default)]
pub(super) struct PathMtus(BTreeMap<IpAddr, (u16, Instant)>);

impl PathMtus {
    /// Takes a router's word. True: it is news.
    pub(super) fn hear(&mut self, (peer, mtu): TooBig, now: Instant) -> bool {
        let known = self.0.get(&peer).map(|(mtu, _)| *mtu);
        if known.is_some_and(|known| known < mtu) {
            // What was sent before the narrower word was heard.
            return false;
        }
        self.0.insert(peer, (mtu, now));
        known != Some(mtu)
    }

    /// Waits for a new report of a router; for ever when there are no sockets.
    pub(super) async fn heard(&mut self, routers: &mut mpsc::Receiver<TooBig>) {
        while let Some(said) = routers.recv().await {
            let (peer, mtu) = said;
            if self.hear(said, Instant::now()) {
                tracing::info!(%peer, mtu, "path MTU to a VTEP learnt");
                return;
            }
        }
        std::future::pending::<()>().await;
    }

    /// Forgets what is too old, and peers that are none any more.
    pub(super) fn age(&mut self, now: Instant, is_peer: impl Fn(&IpAddr) -> bool) {
        self.0.retain(|peer, (_, heard)| {
            is_peer(peer) && now.saturating_duration_since(*heard) < AGE
        });
    }

    /// The path MTU to a peer.
    pub(super) fn of(&self, peer: IpAddr) -> u16 {
        self.0.get(&peer).map_or(u16::MAX, |(mtu, _)| *mtu)
    }
}

/// Starts to listen, in the network namespace of the calling thread. Needs a tokio runtime. A family that the system does not have is left out.
pub(super) fn listen() -> mpsc::Receiver<TooBig> {
    let (heard, news) = mpsc::channel(WAITING);
    for ipv6 in [false, true] {
        match socket(ipv6) {
            Ok(socket) => drop(tokio::spawn(hear(socket, ipv6, heard.clone()))),
            Err(error) => {
                tracing::warn!(%error, ipv6, "cannot receive ICMP errors of the underlay: path MTUs are not learnt");
            }
        }
    }
    news
}

/// A raw socket, as one that tokio can wait for: to receive, it is like one of UDP.
fn socket(ipv6: bool) -> io::Result<UdpSocket> {
    let (domain, protocol) = if ipv6 {
        (Domain::IPV6, Protocol::ICMPV6)
    } else {
        (Domain::IPV4, Protocol::ICMPV4)
    };
    let socket = Socket::new(domain, Type::RAW, Some(protocol))?;
    socket.set_nonblocking(true)?;
    icmp_errors_only(&socket, ipv6)?;
    UdpSocket::from_std(socket.into())
}

async fn hear(socket: UdpSocket, ipv6: bool, heard: mpsc::Sender<TooBig>) {
    let mut error = [0; ERROR];
    loop {
        let Ok(len) = socket.recv(&mut error).await else {
            return;
        };
        let said = if ipv6 {
            too_big_v6(&error[..len])
        } else {
            too_big_v4(&error[..len])
        };
        let Some(said) = said else { continue };
        if let Err(mpsc::error::TrySendError::Closed(_)) = heard.try_send(said) {
            return;
        }
    }
}

/// An IPv4 packet with "fragmentation needed" (RFC 792, RFC 1191 §4) about a tunnel packet that this address has sent.
fn too_big_v4(packet: &[u8]) -> Option<TooBig> {
    let (header, error) = ipv4(packet)?;
    let [3, 4, _, _, _, _, high, low] = error.first_chunk::<8>()? else {
        return None;
    };
    let (quoted, transport) = ipv4(error.get(8..)?)?;
    if address_v4(header, 16)? != address_v4(quoted, 12)? || !is_tunnel(quoted[9], transport)? {
        return None;
    }
    let length = u16::from_be_bytes([quoted[2], quoted[3]]);
    let mtu = match u16::from_be_bytes([*high, *low]) {
        // A router from before RFC 1191 does not say; the next lower of the usual sizes is tried (§7.1).
        0 => [1492, 1006].into_iter().find(|mtu| *mtu < length)?,
        mtu => mtu,
    };
    // What is not shorter than what was sent makes no sense.
    let mtu = Some(mtu).filter(|mtu| *mtu < length)?;
    Some((address_v4(quoted, 16)?.into(), mtu.max(LEAST_IPV4)))
}

/// An ICMPv6 message "packet too big" (RFC 4443 §3.2) about a tunnel packet.
fn too_big_v6(error: &[u8]) -> Option<TooBig> {
    let [2, 0, _, _, mtu @ ..] = error.first_chunk::<8>()? else {
        return None;
    };
    let mtu = u16::try_from(u32::from_be_bytes(*mtu)).ok()?;
    let quoted = error.get(8..)?;
    let header: &[u8; 40] = quoted.first_chunk()?;
    if header[0] >> 4 != 6 || !is_tunnel(header[6], &quoted[40..])? {
        return None;
    }
    let length = u16::from_be_bytes([header[4], header[5]]).saturating_add(40);
    let to: [u8; 16] = header[24..].try_into().ok()?;
    (mtu < length).then(|| (Ipv6Addr::from(to).into(), mtu.max(LEAST_IPV6)))
}

/// Header and what follows it.
fn ipv4(packet: &[u8]) -> Option<(&[u8], &[u8])> {
    let header_len = usize::from(packet.first()? & 0x0f) * 4;
    if packet[0] >> 4 != 4 || header_len < 20 {
        return None;
    }
    packet.split_at_checked(header_len)
}

fn address_v4(header: &[u8], at: usize) -> Option<Ipv4Addr> {
    let octets: [u8; 4] = header.get(at..at + 4)?.try_into().ok()?;
    Some(octets.into())
}

/// Whether a packet of this protocol that begins so is one of our tunnels'.
fn is_tunnel(protocol: u8, transport: &[u8]) -> Option<bool> {
    const UDP: u8 = 17;
    let ports: [u8; 4] = *transport.first_chunk()?;
    Some(match protocol {
        UDP => ports[2..] == VXLAN_PORT.to_be_bytes(),
        PROTOCOL_GRE => true,
        _ => false,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a router at 192.0.2.9 says of a VXLAN packet from 192.0.2.1 to 198.51.100.7.
    fn error_v4(mtu: u16) -> Vec<u8> {
        let header = |protocol: u8, from: [u8; 4], to: [u8; 4]| {
            let mut header = vec![0x45, 0, 5, 0xdc, 0, 0, 0x40, 0, 64, protocol, 0, 0];
            header.extend(from.into_iter().chain(to));
            header
        };
        let mut packet = header(1, [192, 0, 2, 9], [192, 0, 2, 1]);
        packet.extend([3, 4, 0, 0, 0, 0]);
        packet.extend(mtu.to_be_bytes());
        packet.extend(header(17, [192, 0, 2, 1], [198, 51, 100, 7]));
        packet.extend([0xc0, 0, 0x12, 0xb5, 0, 9, 0, 0]);
        packet
    }

    fn error_v6(mtu: u32) -> Vec<u8> {
        let mut error = vec![2, 0, 0, 0];
        error.extend(mtu.to_be_bytes());
        error.extend([0x60, 0, 0, 0, 5, 0xb4, PROTOCOL_GRE, 64]);
        error.extend(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1).octets());
        error.extend(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 7).octets());
        error.extend([0x20, 0, 0x65, 0x58]);
        error
    }

    #[test]
    fn a_router_says_what_fits() {
        let v4: IpAddr = [198, 51, 100, 7].into();
        for (said, counts) in [(1400, 1400), (576, 576), (68, 576), (0, 1492)] {
            assert_eq!(too_big_v4(&error_v4(said)), Some((v4, counts)));
        }
        // No shorter than what was sent.
        assert_eq!(too_big_v4(&error_v4(1500)), None);
        let v6: IpAddr = "2001:db8::7".parse().unwrap();
        for (said, counts) in [(1400, 1400), (1280, 1280), (700, 1280)] {
            assert_eq!(too_big_v6(&error_v6(said)), Some((v6, counts)));
        }
        assert_eq!(too_big_v6(&error_v6(1500)), None);
        assert_eq!(too_big_v6(&error_v6(70_000)), None);
    }

    #[test]
    fn errors_about_what_we_have_not_sent_do_not_count() {
        let wrong = |at: usize, value: u8| {
            let mut error = error_v4(1400);
            error[at] = value;
            too_big_v4(&error)
        };
        // Another code; another sender quoted; another port, another protocol.
        for (at, value) in [
            (21, 3),
            (20, 11),
            (28 + 15, 2),
            (48 + 3, 0xb6),
            (28 + 9, 6),
            (28, 0x65),
        ] {
            assert_eq!(wrong(at, value), None, "byte {at}");
        }
        let mut other = error_v6(1400);
        other[8 + 6] = 6;
        assert_eq!(too_big_v6(&other), None);
    }

    #[test]
    fn what_is_cut_short_is_no_error() {
        for len in 0..52 {
            assert_eq!(too_big_v4(&error_v4(1400)[..len]), None);
        }
        for len in 0..52 {
            assert_eq!(too_big_v6(&error_v6(1400)[..len]), None);
        }
    }

    #[test]
    fn a_word_counts_for_ten_minutes_and_the_narrowest_wins() {
        let peer: IpAddr = [198, 51, 100, 7].into();
        let (start, mut mtus) = (Instant::now(), PathMtus::default());
        assert!(mtus.hear((peer, 1400), start));
        assert!(!mtus.hear((peer, 1400), start));
        assert!(!mtus.hear((peer, 1450), start));
        assert!(mtus.hear((peer, 1300), start));
        assert_eq!(mtus.of(peer), 1300);
        mtus.age(start + AGE / 2, |_| true);
        assert_eq!(mtus.of(peer), 1300);
        mtus.age(start + AGE, |_| true);
        assert_eq!(mtus.of(peer), u16::MAX);
        assert!(mtus.hear((peer, 1400), start));
        mtus.age(start, |_| false);
        assert_eq!(mtus.of(peer), u16::MAX);
    }
}
