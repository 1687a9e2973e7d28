//! The Internet checksum (RFC 1071) and its incremental update (RFC 1624).

use super::parse::Family;

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

/// The checksum field after one 16-bit word under it changed (RFC 1624, equation 3).
pub fn update(field: u16, old: u16, new: u16) -> u16 {
    finish(u64::from(!field) + u64::from(!old) + u64::from(new))
}

/// Completes the checksum at `at` of a segment when its sender's kernel left that to a device: it then holds the sum of the pseudo-header
/// alone. A right checksum that looks like this comes out unchanged, so nothing needs to be known of the sender.
#[inline]
pub fn complete(segment: &mut [u8], at: usize, pseudo: u64) {
    let field = u16::from_be_bytes([segment[at], segment[at + 1]]);
    if field == fold(pseudo) && field != 0 {
        fill(segment, at, pseudo);
    }
}

#[cold]
fn fill(segment: &mut [u8], at: usize, pseudo: u64) {
    segment[at..at + 2].fill(0);
    let checksum = match finish(pseudo + sum(segment)) {
        0 => 0xffff,
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
