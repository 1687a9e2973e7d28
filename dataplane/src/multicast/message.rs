//! Messages of IGMP (RFC 2236, RFC 3376) and MLD (RFC 2710, RFC 3810), read in place. A worker reads each whole before it leaves it to the agent: what is
//! malformed goes no further, and every length is checked before what it covers is read.

use super::is_ipv4;
use crate::packet::checksum;
use crate::packet::parse::{Family, IPV4_MAPPED, Parsed, protocol};
use crate::packet::{DropReason, Mac};
use crate::pipeline::guard::{is_group, is_link_local};

/// A message.
#[derive(Debug, Clone, Copy)]
pub enum Message<'m> {
    /// A router asks who listens.
    Query,
    /// A listener says what it wants.
    Report(Report<'m>),
}

/// What a record of a report says (RFC 3376 §4.2.12, RFC 3810 §5.2.12).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Says {
    /// Everything, in a message of a version without sources.
    All,
    /// Nothing any more, in a message of a version without sources.
    Leaves,
    /// From these sources alone, as an answer to a query.
    IsInclude,
    /// From all but these sources, as an answer to a query.
    IsExclude,
    /// From these sources alone, from now on.
    ToInclude,
    /// From all but these sources, from now on.
    ToExclude,
    /// From these sources, too.
    Allow,
    /// Not from these sources any more.
    Block,
}

/// What a report says of one group.
#[derive(Debug, Clone, Copy)]
pub struct Record<'m> {
    /// What it says.
    pub says: Says,
    /// The group, as an address of [`crate::packet::Flow`] is.
    pub group: u128,
    sources: &'m [u8],
}

impl Record<'_> {
    /// The sources that it names.
    pub fn sources(&self) -> impl Iterator<Item = u128> + Clone {
        let size = address_size(is_ipv4(self.group));
        self.sources.chunks_exact(size).map(address)
    }
}

/// A report that was read whole.
#[derive(Debug, Clone, Copy)]
pub enum Report<'m> {
    /// Of IGMPv1, IGMPv2 or MLDv1: of one group.
    One(Record<'m>),
    /// Of IGMPv3 or MLDv2: so many records.
    Records(&'m [u8], Family, u16),
}

impl<'m> Report<'m> {
    /// Its records. Those of types that are not known are passed over.
    pub fn records(self) -> impl Iterator<Item = Record<'m>> {
        let (one, mut rest, v4, count) = match self {
            Self::One(record) => (Some(record), &[][..], true, 0),
            Self::Records(bytes, family, count) => (None, bytes, family == Family::Ipv4, count),
        };
        let all = (0..count).map_while(move |_| {
            let (record, after) = record(rest, v4)?;
            rest = after;
            Some(record)
        });
        one.into_iter().chain(all.flatten())
    }
}

const fn address_size(v4: bool) -> usize {
    if v4 { 4 } else { 16 }
}

/// An address of four bytes or sixteen.
fn address(bytes: &[u8]) -> u128 {
    let word = bytes
        .iter()
        .fold(0, |word, byte| word << 8 | u128::from(*byte));
    if bytes.len() == 4 {
        IPV4_MAPPED | word
    } else {
        word
    }
}

/// The first record, if its type is known, and what is behind it. None: it is cut short, or its group is none.
fn record(bytes: &[u8], v4: bool) -> Option<(Option<Record<'_>>, &[u8])> {
    let size = address_size(v4);
    let [kind, auxiliary, high, low] = *bytes.first_chunk::<4>()?;
    let count = usize::from(u16::from_be_bytes([high, low]));
    let sources = 4 + size;
    let end = sources + count * size;
    let group = address(bytes.get(4..sources)?);
    let named = bytes.get(sources..end)?;
    let rest = bytes.get(end + usize::from(auxiliary) * 4..)?;
    if !is_group(group) {
        return None;
    }
    let says = match kind {
        1 => Says::IsInclude,
        2 => Says::IsExclude,
        3 => Says::ToInclude,
        4 => Says::ToExclude,
        5 => Says::Allow,
        6 => Says::Block,
        _ => return Some((None, rest)),
    };
    let record = Record {
        says,
        group,
        sources: named,
    };
    Some((Some(record), rest))
}

/// Whether a packet is a message of IGMP or MLD that routers listen to.
pub fn is_membership(parsed: &Parsed) -> bool {
    match (parsed.family, parsed.flow.protocol) {
        (Family::Ipv4, protocol::IGMP) => true,
        (Family::Ipv6, protocol::ICMPV6) => {
            !parsed.is_later_fragment() && matches!(parsed.icmp >> 8, 130..=132 | 143)
        }
        _ => false,
    }
}

/// Reads a message for which [`is_membership`] holds. None: a message of another protocol that uses the number of IGMP, such as DVMRP.
///
/// # Errors
/// [`DropReason::MembershipMalformed`]: its standard refuses it.
pub fn read<'m>(frame: &'m [u8], parsed: &Parsed) -> Result<Option<Message<'m>>, DropReason> {
    let malformed = DropReason::MembershipMalformed;
    if parsed.fragment.is_some() {
        return Err(malformed);
    }
    let body = frame.get(usize::from(parsed.l4)..usize::from(parsed.end));
    let body = body.ok_or(malformed)?;
    let kind = *body.first().ok_or(malformed)?;
    let is_known = match parsed.family {
        Family::Ipv4 => matches!(kind, 0x11 | 0x12 | 0x16 | 0x17 | 0x22),
        Family::Ipv6 => true,
    };
    if !is_known {
        return Ok(None);
    }
    let is_sound = parsed.ttl == 1
        && has_right_sum(body, parsed)
        && parsed.eth_dst.is_group()
        && is_group(parsed.flow.destination);
    if !is_sound {
        return Err(malformed);
    }
    let message = match parsed.family {
        Family::Ipv4 => igmp(kind, body),
        Family::Ipv6 => mld(kind, body, parsed.flow.source),
    };
    message.map(Some).ok_or(malformed)
}

fn has_right_sum(body: &[u8], parsed: &Parsed) -> bool {
    let pseudo = match parsed.family {
        Family::Ipv4 => 0,
        Family::Ipv6 => {
            let flow = &parsed.flow;
            let length = body.len() as u32;
            let ends = (flow.source, flow.destination);
            checksum::pseudo_header(Family::Ipv6, ends.0, ends.1, protocol::ICMPV6, length)
        }
    };
    checksum::fold(pseudo + checksum::sum(body)) == 0xffff
}

fn igmp(kind: u8, body: &[u8]) -> Option<Message<'_>> {
    let one = |says| {
        let group = address(body.get(4..8)?);
        one_group(says, group)
    };
    match kind {
        0x11 => body.get(..8).map(|_| Message::Query),
        0x12 | 0x16 => one(Says::All),
        0x17 => one(Says::Leaves),
        _ => several(body, Family::Ipv4),
    }
}

/// Reports come from a link-local address, or from none yet (RFC 3810 §5.2.13, RFC 3590).
fn mld(kind: u8, body: &[u8], source: u128) -> Option<Message<'_>> {
    if source != 0 && !is_link_local(source) {
        return None;
    }
    let one = |says| {
        let group = address(body.get(8..24)?);
        one_group(says, group)
    };
    match kind {
        130 => body.get(..24).map(|_| Message::Query),
        131 => one(Says::All),
        132 => one(Says::Leaves),
        _ => several(body, Family::Ipv6),
    }
}

fn one_group<'m>(says: Says, group: u128) -> Option<Message<'m>> {
    let record = Record {
        says,
        group,
        sources: &[],
    };
    is_group(group).then_some(Message::Report(Report::One(record)))
}

fn several(body: &[u8], family: Family) -> Option<Message<'_>> {
    let (head, records) = body.split_first_chunk::<8>()?;
    let count = u16::from_be_bytes([head[6], head[7]]);
    let mut rest = records;
    for _ in 0..count {
        rest = record(rest, family == Family::Ipv4)?.1;
    }
    Some(Message::Report(Report::Records(records, family, count)))
}

/// The MAC that packets to a group are sent to (RFC 1112 §6.4, RFC 2464 §7).
pub fn mac_of(group: u128) -> Mac {
    let [.., a, b, c, d] = group.to_be_bytes();
    Mac::from_bytes(if is_ipv4(group) {
        [0x01, 0x00, 0x5e, b & 0x7f, c, d]
    } else {
        [0x33, 0x33, a, b, c, d]
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::parse::{self, Inner};

    /// A frame with a message of any bytes, whose checksums are right.
    fn frame(v4: bool, mut body: Vec<u8>) -> Vec<u8> {
        let mut frame = vec![1, 0, 0x5e, 0, 0, 22, 2, 0, 0, 0, 0, 1];
        let total = body.len() as u16;
        let sum = if v4 {
            frame.extend([8, 0, 0x45, 0]);
            frame.extend((20 + total).to_be_bytes());
            frame.extend([
                0,
                0,
                0,
                0,
                1,
                protocol::IGMP,
                0,
                0,
                10,
                0,
                0,
                1,
                224,
                0,
                0,
                22,
            ]);
            let sum = checksum::finish(checksum::sum(&frame[14..]));
            frame[24..26].copy_from_slice(&sum.to_be_bytes());
            checksum::sum(&body)
        } else {
            let (from, to) = (0xfe80 << 112 | 1, 0xff02 << 112 | 22);
            frame.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
            frame.extend(total.to_be_bytes());
            frame.extend([protocol::ICMPV6, 1]);
            frame.extend(u128::to_be_bytes(from));
            frame.extend(u128::to_be_bytes(to));
            let length = body.len() as u32;
            let pseudo = checksum::pseudo_header(Family::Ipv6, from, to, protocol::ICMPV6, length);
            pseudo + checksum::sum(&body)
        };
        if let Some(field) = body.get_mut(2..4) {
            field.copy_from_slice(&checksum::finish(sum).to_be_bytes());
        }
        frame.extend(body);
        frame
    }

    #[test]
    fn whatever_a_guest_sends_is_read_within_its_bounds_and_as_many_records_as_it_says() {
        let mut reports = 0;
        for seed in 0..60_000u64 {
            let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
            let mut next = || {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                (state >> 32) as u8
            };
            let v4 = seed % 2 == 0;
            let mut body: Vec<u8> = (0..next() % 96).map(|_| next()).collect();
            if body.len() >= 8 {
                let kinds = if v4 {
                    [0x22, 0x16, 0x17, 0x11]
                } else {
                    [143, 131, 132, 130]
                };
                body[0] = kinds[usize::from(next() / 32).saturating_sub(4)];
                (body[1], body[2], body[3]) = (0, 0, 0);
                (body[6], body[7]) = (0, next() % 3);
                for at in [8, 8 + 4 + if v4 { 4 } else { 16 }] {
                    // Few sources, and a group.
                    if let Some(head) = body.get_mut(at..at + 5) {
                        head[1..4].fill(0);
                        head[3] = seed as u8 % 4;
                        head[4] = if v4 { 239 } else { 0xff };
                    }
                }
            }
            let frame = frame(v4, body);
            let Ok(Inner::Ip(parsed)) = parse::inner(&frame) else {
                continue;
            };
            if !is_membership(&parsed) {
                continue;
            }
            if let Ok(Some(Message::Report(report))) = read(&frame, &parsed) {
                reports += 1;
                let most = match report {
                    Report::One(_) => 1,
                    Report::Records(_, _, count) => usize::from(count),
                };
                assert!(report.records().count() <= most);
                for record in report.records() {
                    assert!(is_group(record.group));
                    assert!(record.sources().count() * 4 <= frame.len());
                }
            }
        }
        assert!(reports > 5000, "{reports}");
    }
}
