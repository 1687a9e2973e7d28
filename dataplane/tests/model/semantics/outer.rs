//! Outer headers as the RFCs have them: what came off the wire, from whom, for which VPC (RFC 7348 5, RFC 2784 2, RFC 2890 2). The underlay is
//! not trusted further than its source addresses are known.

use std::net::IpAddr;

use weft_dataplane::packet::DropReason;

use super::frame::{UDP, long, ones_sum, pseudo_header, v4_at, v6_at, word};

const GRE: u8 = 47;
/// C, and what RFC 1701 had besides: routing, strict source route, recursion; K and S of RFC 2890; the version.
const CHECKSUM: u16 = 0x8000;
const KEY: u16 = 0x2000;
const SEQUENCE: u16 = 0x1000;
const REFUSED: u16 = 0x4000 | 0x0800 | 0x0400 | 0x0007;

/// A tunnel packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outer {
    pub source: IpAddr,
    pub destination: IpAddr,
    pub vni: u32,
    pub class: u8,
    pub inner: Vec<u8>,
}

/// What lies behind an IP header.
struct Payload<'a> {
    source: IpAddr,
    destination: IpAddr,
    class: u8,
    bytes: &'a [u8],
}

pub fn decode(frame: &[u8]) -> Result<Outer, DropReason> {
    let wrong = DropReason::OuterHeader;
    let mut rest = frame.get(12..).ok_or(wrong)?;
    // A priority counts as no tag; what is of a VLAN is not ours (IEEE 802.1Q 8.6.2, 9.6).
    if let [0x81, 0, high, 0, untagged @ ..] = rest
        && high & 0x0f == 0
    {
        rest = untagged;
    }
    match rest {
        [8, 0, ip @ ..] => v4(ip),
        [0x86, 0xdd, ip @ ..] => v6(ip),
        _ => Err(wrong),
    }
}

fn v4(ip: &[u8]) -> Result<Outer, DropReason> {
    if ip.len() < 20 {
        return Err(DropReason::OuterHeader);
    }
    let (header, total) = (usize::from(ip[0] & 15) * 4, usize::from(word(ip, 2)));
    if ip[0] >> 4 != 4 || header < 20 || total < header || total > ip.len() {
        return Err(DropReason::OuterHeader);
    }
    if word(ip, 6) & 0x3fff != 0 {
        return Err(DropReason::OuterFragment);
    }
    if ones_sum(&[&ip[..header]]) != 0xffff {
        return Err(DropReason::OuterChecksum);
    }
    let payload = Payload {
        source: v4_at(ip, 12),
        destination: v4_at(ip, 16),
        class: ip[1],
        bytes: &ip[header..total],
    };
    payload.tunnel(ip[9])
}

fn v6(ip: &[u8]) -> Result<Outer, DropReason> {
    if ip.len() < 40 || ip[0] >> 4 != 6 {
        return Err(DropReason::OuterHeader);
    }
    let end = 40 + usize::from(word(ip, 4));
    let payload = Payload {
        source: v6_at(ip, 8),
        destination: v6_at(ip, 24),
        class: ip[0] << 4 | ip[1] >> 4,
        bytes: ip.get(40..end).ok_or(DropReason::OuterHeader)?,
    };
    payload.tunnel(ip[6])
}

impl Payload<'_> {
    fn tunnel(&self, protocol: u8) -> Result<Outer, DropReason> {
        match protocol {
            UDP => self.vxlan(),
            GRE => self.gre(),
            _ => Err(DropReason::OuterHeader),
        }
    }

    fn outer(&self, vni: u32, inner: &[u8]) -> Outer {
        Outer {
            source: self.source,
            destination: self.destination,
            vni,
            class: self.class,
            inner: inner.to_vec(),
        }
    }

    fn vxlan(&self) -> Result<Outer, DropReason> {
        let bytes = self.bytes;
        if bytes.len() < 16 || word(bytes, 2) != 4789 {
            return Err(DropReason::OuterHeader);
        }
        let length = usize::from(word(bytes, 4));
        if length < 16 || length > bytes.len() {
            return Err(DropReason::OuterHeader);
        }
        // None over IPv6 too (RFC 6935).
        if word(bytes, 6) != 0 {
            let pseudo = pseudo_header(self.source, self.destination, UDP, length);
            if ones_sum(&[&pseudo, &bytes[..length]]) != 0xffff {
                return Err(DropReason::OuterChecksum);
            }
        }
        if bytes[8] & 8 == 0 {
            return Err(DropReason::VxlanFlags);
        }
        Ok(self.outer(long(bytes, 12) >> 8, &bytes[16..length]))
    }

    fn gre(&self) -> Result<Outer, DropReason> {
        let bytes = self.bytes;
        if bytes.len() < 4 {
            return Err(DropReason::OuterHeader);
        }
        let flags = word(bytes, 0);
        if flags & REFUSED != 0 || word(bytes, 2) != 0x6558 {
            return Err(DropReason::GreVersion);
        }
        if flags & KEY == 0 {
            return Err(DropReason::GreNoKey);
        }
        let mut rest = &bytes[4..];
        let mut field = |there: bool| -> Result<&[u8], DropReason> {
            let (field, more) = match there {
                true => rest.split_at_checked(4).ok_or(DropReason::OuterHeader)?,
                false => rest.split_at(0),
            };
            rest = more;
            Ok(field)
        };
        let checked = flags & CHECKSUM != 0;
        if checked && ones_sum(&[bytes]) != 0xffff {
            return Err(DropReason::OuterChecksum);
        }
        field(checked)?;
        let key = long(field(true)?, 0);
        field(flags & SEQUENCE != 0)?;
        Ok(self.outer(key, rest))
    }
}
