//! Builds the Ethernet frame that a trace is about.

use std::net::IpAddr;

use anyhow::{Result, bail};
use etherparse::{IpHeaders, IpNumber, Ipv4Header, Ipv6Header, PacketBuilder};

use crate::Usage;

/// A packet as the command line's flags describe it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Packet {
    pub(crate) source_mac: [u8; 6],
    pub(crate) destination_mac: [u8; 6],
    pub(crate) source: IpAddr,
    pub(crate) destination: IpAddr,
    pub(crate) ttl: u8,
    /// DSCP, 0 to 63.
    pub(crate) dscp: u8,
    /// IP protocol number.
    pub(crate) protocol: u8,
    pub(crate) source_port: u16,
    pub(crate) destination_port: u16,
    /// Bytes after the last header.
    pub(crate) payload: usize,
}

/// The packet as a frame: TCP as a SYN, ICMP as an echo request.
pub(crate) fn build(packet: &Packet) -> Result<Vec<u8>> {
    let ethernet = PacketBuilder::ethernet2(packet.source_mac, packet.destination_mac);
    let headers = match (packet.source, packet.destination) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            let header = Ipv4Header {
                source: from.octets(),
                destination: to.octets(),
                time_to_live: packet.ttl,
                dscp: packet.dscp.try_into()?,
                ..Ipv4Header::default()
            };
            IpHeaders::Ipv4(header, Default::default())
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            let header = Ipv6Header {
                source: from.octets(),
                destination: to.octets(),
                hop_limit: packet.ttl,
                traffic_class: packet.dscp << 2,
                ..Ipv6Header::default()
            };
            IpHeaders::Ipv6(header, Default::default())
        }
        (from, to) => {
            return Err(Usage(format!("{from} and {to} are of different address families")).into());
        }
    };
    let ip = ethernet.ip(headers);
    let (from, to) = (packet.source_port, packet.destination_port);
    let payload = vec![0; packet.payload];
    let mut frame = Vec::new();
    match (packet.protocol, packet.source.is_ipv4()) {
        (6, _) => ip
            .tcp(from, to, 1, 65535)
            .syn()
            .write(&mut frame, &payload)?,
        (17, _) => ip.udp(from, to).write(&mut frame, &payload)?,
        (1, true) => ip.icmpv4_echo_request(1, 1).write(&mut frame, &payload)?,
        (58, false) => ip.icmpv6_echo_request(1, 1).write(&mut frame, &payload)?,
        (1, false) => bail!("icmp is for IPv4: use icmpv6 for {}", packet.source),
        (58, true) => bail!("icmpv6 is for IPv6: use icmp for {}", packet.source),
        (other, _) => ip.write(&mut frame, IpNumber(other), &payload)?,
    }
    Ok(frame)
}

/// The bytes of a hexadecimal text, in which spaces and colons are free.
pub(crate) fn from_hex(text: &str) -> Result<Vec<u8>> {
    let digits: Vec<u32> = text
        .chars()
        .filter(|c| !c.is_whitespace() && *c != ':')
        .map(|c| {
            c.to_digit(16)
                .ok_or_else(|| Usage(format!("'{c}' is not a hexadecimal digit")))
        })
        .collect::<Result<_, _>>()?;
    if digits.len() % 2 == 1 {
        return Err(Usage("--hex has an odd number of digits".to_owned()).into());
    }
    let byte = |pair: &[u32]| u8::try_from(pair[0] << 4 | pair[1]).unwrap_or_default();
    Ok(digits.chunks_exact(2).map(byte).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use etherparse::{NetSlice, SlicedPacket, TransportSlice};

    fn packet(protocol: u8, source: &str, destination: &str) -> Packet {
        Packet {
            source_mac: [2, 0, 0, 0, 0, 1],
            destination_mac: [2, 0, 0, 0, 0, 2],
            source: source.parse().unwrap(),
            destination: destination.parse().unwrap(),
            ttl: 17,
            dscp: 46,
            protocol,
            source_port: 1000,
            destination_port: 80,
            payload: 10,
        }
    }

    #[test]
    fn tcp_is_a_syn_with_the_ports_and_the_ttl_asked_for() {
        let frame = build(&packet(6, "10.0.0.1", "10.0.0.2")).unwrap();
        let sliced = SlicedPacket::from_ethernet(&frame).unwrap();
        let Some(NetSlice::Ipv4(ip)) = sliced.net else {
            panic!("{:?}", sliced.net)
        };
        assert_eq!((ip.header().ttl(), ip.header().dcp().value()), (17, 46));
        let Some(TransportSlice::Tcp(tcp)) = sliced.transport else {
            panic!("{:?}", sliced.transport)
        };
        assert!(tcp.syn() && !tcp.ack());
        assert_eq!((tcp.source_port(), tcp.destination_port()), (1000, 80));
    }

    #[test]
    fn every_protocol_parses_and_mixed_families_do_not_build() {
        for (protocol, from, to) in [
            (17, "fd00::1", "fd00::2"),
            (1, "10.0.0.1", "10.0.0.2"),
            (58, "fd00::1", "fd00::2"),
            (132, "10.0.0.1", "10.0.0.2"),
        ] {
            let frame = build(&packet(protocol, from, to)).unwrap();
            SlicedPacket::from_ethernet(&frame).unwrap();
            let class = match frame[14] >> 4 {
                4 => frame[15],
                _ => frame[14] << 4 | frame[15] >> 4,
            };
            assert_eq!(class, 46 << 2);
        }
        assert!(build(&packet(6, "10.0.0.1", "fd00::2")).is_err());
        assert!(build(&packet(1, "fd00::1", "fd00::2")).is_err());
    }

    #[test]
    fn hexadecimal_text_may_hold_spaces_and_colons() {
        assert_eq!(from_hex("02:00 ff").unwrap(), [2, 0, 255]);
        assert!(from_hex("0").is_err());
        assert!(from_hex("0g").is_err());
    }
}
