//! UDP between a guest and its gateway: what a frame carries, and the frame that answers it.

use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{IpAddress, IpProtocol, IpRepr, UdpPacket, UdpRepr};

use crate::guest::Identity;
use crate::wire;
use weft_dataplane::packet::parse::{Parsed, word_address};

/// Bytes of IP and UDP headers.
const HEADERS: [usize; 2] = [20 + 8, 40 + 8];

/// The payload of a frame's datagram, if its length and its checksum are right.
pub(super) fn payload<'f>(frame: &'f [u8], parsed: &Parsed) -> Option<&'f [u8]> {
    let datagram = frame.get(usize::from(parsed.l4)..usize::from(parsed.end))?;
    let packet = UdpPacket::new_checked(datagram).ok()?;
    let ends = [parsed.flow.source, parsed.flow.destination];
    let [source, destination] = ends.map(|word| IpAddress::from(word_address(word)));
    UdpRepr::parse(
        &packet,
        &source,
        &destination,
        &ChecksumCapabilities::default(),
    )
    .ok()?;
    Some(packet.payload())
}

/// Bytes of payload that fit into a packet of a port to who sent one.
pub(super) fn room(identity: &Identity, parsed: &Parsed) -> usize {
    let is_ipv6 = word_address(parsed.flow.source).is_ipv6();
    usize::from(identity.mtu).saturating_sub(HEADERS[usize::from(is_ipv6)])
}

/// The frame with which a gateway answers another.
pub(super) fn answer(identity: &Identity, parsed: &Parsed, payload: &[u8]) -> Vec<u8> {
    let ends = [parsed.flow.destination, parsed.flow.source];
    let [source, destination] = ends.map(|word| IpAddress::from(word_address(word)));
    let udp = UdpRepr {
        src_port: parsed.flow.destination_port,
        dst_port: parsed.flow.source_port,
    };
    let len = udp.header_len() + payload.len();
    let ip = IpRepr::new(source, destination, IpProtocol::Udp, len, 64);
    let checksums = ChecksumCapabilities::default();
    let mut packet = vec![0; ip.header_len() + len];
    let (header, datagram) = packet.split_at_mut(ip.header_len());
    ip.emit(&mut *header, &checksums);
    let mut datagram = UdpPacket::new_unchecked(datagram);
    let write = |to: &mut [u8]| to.copy_from_slice(payload);
    udp.emit(
        &mut datagram,
        &source,
        &destination,
        payload.len(),
        write,
        &checksums,
    );
    wire::frame(&packet, parsed.eth_src, identity.gateway_mac)
}
