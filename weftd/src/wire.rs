//! What smoltcp takes for its device: IP packets of one port that came in, and those that are to go out to it.

use std::collections::VecDeque;

use smoltcp::phy::{Device, DeviceCapabilities, Medium, RxToken, TxToken};
use weft_dataplane::packet::Mac;
use weft_dataplane::packet::parse::{ETHERTYPE_IPV4, ETHERTYPE_IPV6};

/// Packets that a stack sends in one turn, besides answers to what came in.
const BURST: usize = 64;

/// A wire of which this host has one end.
#[derive(Debug, Default)]
pub(crate) struct Wire {
    /// Packets that came in.
    pub(crate) received: VecDeque<Vec<u8>>,
    /// Packets that are to go out.
    pub(crate) sent: Vec<Vec<u8>>,
    /// Bytes of the longest packet.
    pub(crate) mtu: usize,
}

pub(crate) struct Received(Vec<u8>);

impl RxToken for Received {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(&self.0)
    }
}

pub(crate) struct Sending<'a>(&'a mut Vec<Vec<u8>>);

impl TxToken for Sending<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let mut packet = vec![0; len];
        let result = f(&mut packet);
        self.0.push(packet);
        result
    }
}

impl Device for Wire {
    type RxToken<'a> = Received;
    type TxToken<'a> = Sending<'a>;

    fn receive(&mut self, _now: smoltcp::time::Instant) -> Option<(Received, Sending<'_>)> {
        let packet = self.received.pop_front()?;
        Some((Received(packet), Sending(&mut self.sent)))
    }

    fn transmit(&mut self, _now: smoltcp::time::Instant) -> Option<Sending<'_>> {
        (self.sent.len() < BURST).then_some(Sending(&mut self.sent))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ip;
        capabilities.max_transmission_unit = self.mtu;
        capabilities
    }
}

/// The frame that carries an IP packet to a MAC.
pub(crate) fn frame(packet: &[u8], to: Mac, from: Mac) -> Vec<u8> {
    let is_ipv4 = packet.first().is_some_and(|first| first >> 4 == 4);
    let ether_type = if is_ipv4 {
        ETHERTYPE_IPV4
    } else {
        ETHERTYPE_IPV6
    };
    let ether_type = ether_type.to_be_bytes();
    [&to.bytes()[..], &from.bytes(), &ether_type, packet].concat()
}
