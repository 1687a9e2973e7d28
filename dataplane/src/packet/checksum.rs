//! The Internet checksum (RFC 1071) and its incremental update (RFC 1624).

use super::parse::{Family, protocol};

/// Ones' complement sum of the bytes, as big-endian 16-bit words, not folded. An odd last byte counts as the high half of a word.
pub fn sum(bytes: &[u8]) -> u64 {
    let mut total = 0u64;
    let mut words = bytes.chunks_exact(8);
    for word in &mut words {
        // Two 32-bit halves: the fold at the end brings them back to 16 bits (RFC 1071 §2, parallel summation).
        let value = u64::from_be_bytes([
            word[0], word[1], word[2], word[3], word[4], word[5], word[6], word[7],
        ]);
        total += (value >> 32) + (value & 0xffff_ffff);
    }
    let mut pairs = words.remainder().chunks_exact(2);
    for pair in &mut pairs {
        total += u64::from(u16::from_be_bytes([pair[0], pair[1]]));
    }
    if let [last] = pairs.remainder() {
        total += u64::from(*last) << 8;
    }
    total
}

/// Folds a sum to 16 bits.
#[inline]
pub fn fold(sum: u64) -> u16 {
    let sum = (sum & 0xffff_ffff) + (sum >> 32);
    let sum = (sum & 0xffff) + (sum >> 16);
    // Now below 2^18: twice more takes every carry in.
    let sum = (sum & 0xffff) + (sum >> 16);
    ((sum & 0xffff) + (sum >> 16)) as u16
}

/// The checksum field for a sum: its folded complement.
pub fn finish(sum: u64) -> u16 {
    !fold(sum)
}

/// Sum of the pseudo-header (RFC 9293 §3.1, RFC 8200 §8.1).
pub fn pseudo_header(
    family: Family,
    source: u128,
    destination: u128,
    protocol: u8,
    length: u32,
) -> u64 {
    let addresses = match family {
        Family::Ipv4 => {
            sum(&(source as u32).to_be_bytes()) + sum(&(destination as u32).to_be_bytes())
        }
        Family::Ipv6 => sum(&source.to_be_bytes()) + sum(&destination.to_be_bytes()),
    };
    addresses + u64::from(protocol) + u64::from(length)
}

/// Whether a sum that is not 0 folds to all ones: what the bytes under a right checksum do, in either order of bytes.
#[inline(always)]
pub fn is_right(sum: u64) -> bool {
    // Folding keeps the remainder by 2^16 - 1.
    sum.is_multiple_of(0xffff)
}

/// The checksum field for a sum of up to four 16-bit words.
#[inline(always)]
pub fn finish_few(sum: u32) -> u16 {
    let sum = (sum & 0xffff) + (sum >> 16);
    !(((sum & 0xffff) + (sum >> 16)) as u16)
}

/// The checksum field after the words under it changed by a ones' complement sum (RFC 1624, equation 3).
#[inline(always)]
pub fn add(field: u16, delta: u16) -> u16 {
    // Where there is a carry, the sum is below all ones.
    let (sum, carry) = (!field).overflowing_add(delta);
    !(sum + u16::from(carry))
}

/// The checksum field after one 16-bit word under it changed (RFC 1624, equation 3).
#[inline(always)]
pub fn update(field: u16, old: u16, new: u16) -> u16 {
    finish_few(u32::from(!field) + u32::from(!old) + u32::from(new))
}

/// Where TCP's checksum stands in its header.
pub const TCP_AT: usize = 16;
/// Where UDP's checksum stands in its header.
pub const UDP_AT: usize = 6;

/// Where the checksum of a transport protocol stands in its header, if its sender's kernel may leave it to a device.
#[inline(always)]
pub fn place(number: u8) -> Option<usize> {
    match number {
        protocol::TCP => Some(TCP_AT),
        protocol::UDP => Some(UDP_AT),
        _ => None,
    }
}

/// Completes the checksum at `at` of a segment when its sender's kernel left that to a device: it then holds the sum of the pseudo-header
/// alone. A right checksum that looks like this comes out unchanged, so nothing needs to be known of the sender.
///
/// `pseudo` is the sum of the pseudo-header in the machine's order of bytes, not 0.
#[inline(always)]
pub fn complete(segment: &mut [u8], at: usize, pseudo: u64) {
    let field = u16::from_ne_bytes([segment[at], segment[at + 1]]);
    // Equal once folded.
    if is_right(pseudo + u64::from(!field)) && field != 0 {
        fill(segment, at, u16::from_be(fold(pseudo)));
    }
}

/// Bytes of an SCTP packet's own header, and where in it the checksum stands (RFC 9260 §3.1).
const SCTP: usize = 12;
const SCTP_AT: usize = 8;

/// Completes what its sender's kernel may have left to a device of a whole transport segment that was parsed. `pseudo` is the sum of the
/// pseudo-header. Of SCTP it is a CRC32c, which is 0 then.
pub fn complete_transport(segment: &mut [u8], number: u8, pseudo: u64) {
    let header_len = match number {
        protocol::TCP => 20,
        protocol::UDP => 8,
        protocol::SCTP => SCTP,
        _ => return,
    };
    if segment.len() < header_len {
        return;
    }
    match place(number) {
        Some(at) => complete(segment, at, fold(pseudo).to_be().into()),
        None if segment[SCTP_AT..SCTP] == [0; 4] => {
            let checksum = crc32c::crc32c(segment);
            // Least significant byte first (RFC 9260 appendix A).
            segment[SCTP_AT..SCTP].copy_from_slice(&checksum.to_le_bytes());
        }
        None => {}
    }
}

/// Writes the checksum at `at` of a segment. `pseudo` is the folded sum of the pseudo-header.
#[inline(never)]
pub fn fill(segment: &mut [u8], at: usize, pseudo: u16) {
    segment[at..at + 2].fill(0);
    let checksum = match finish(u64::from(pseudo) + sum(segment)) {
        // UDP sends all ones for 0, which says that there is none (RFC 768); TCP has no such rule.
        0 if at == UDP_AT => 0xffff,
        checksum => checksum,
    };
    segment[at..at + 2].copy_from_slice(&checksum.to_be_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn naive(bytes: &[u8]) -> u16 {
        let mut total = 0u32;
        for pair in bytes.chunks(2) {
            total += u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0));
            total = (total & 0xffff) + (total >> 16);
        }
        total as u16
    }

    proptest! {
        #[test]
        fn sum_is_that_of_the_naive_twin(bytes in proptest::collection::vec(any::<u8>(), 0..2000)) {
            let (ours, twin) = (fold(sum(&bytes)), naive(&bytes));
            prop_assert!(ours == twin || (ours % 0xffff == 0 && twin % 0xffff == 0));
        }

        #[test]
        fn right_is_what_folds_to_ones(sum in 1u64..1 << 40, few in 0u32..4 * 0xffff) {
            prop_assert_eq!(is_right(sum), fold(sum) == 0xffff);
            prop_assert!(is_right(u64::from(u32::MAX) * 0xffff));
            prop_assert_eq!(finish_few(few), finish(few.into()));
        }

        #[test]
        fn only_the_sum_of_the_pseudo_header_alone_is_completed(pseudo in 1u64..1 << 36, field: u16, payload: [u8; 6]) {
            for field in [field, fold(pseudo)] {
                let mut segment = [&payload[..], &field.to_be_bytes()].concat();
                complete(&mut segment, 6, u64::from(fold(pseudo).to_be()));
                let after = u16::from_be_bytes([segment[6], segment[7]]);
                if field != 0 && field == fold(pseudo) {
                    prop_assert!(is_right(pseudo + sum(&segment)));
                } else {
                    prop_assert_eq!(after, field);
                }
            }
        }

        #[test]
        fn a_sum_of_all_ones_is_sent_as_udp_and_tcp_want_it(pseudo in 1u64..1 << 36, mut segment: [u8; 24], even in 0usize..3) {
            for (number, field) in [(protocol::TCP, 0), (protocol::UDP, 0xffff)] {
                let at = place(number).unwrap();
                // One word makes the sum of all ones, under which the checksum is 0.
                let word = 10 + even * 2;
                segment[word..word + 2].fill(0);
                segment[at..at + 2].fill(0);
                let others = finish(pseudo + sum(&segment));
                segment[word..word + 2].copy_from_slice(&others.to_be_bytes());
                segment[at..at + 2].copy_from_slice(&fold(pseudo).to_be_bytes());
                complete(&mut segment, at, u64::from(fold(pseudo).to_be()));
                prop_assert_eq!(u16::from_be_bytes([segment[at], segment[at + 1]]), field);
            }
        }

        #[test]
        fn update_equals_summing_again(mut bytes in proptest::collection::vec(any::<u8>(), 20..40), new: u16) {
            bytes.truncate(bytes.len() & !1);
            bytes[0] = 0x45;
            let before = finish(sum(&bytes));
            let old = u16::from_be_bytes([bytes[8], bytes[9]]);
            bytes[8..10].copy_from_slice(&new.to_be_bytes());
            prop_assert_eq!(update(before, old, new), finish(sum(&bytes)));
        }
    }
}
