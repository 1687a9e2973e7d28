//! Selects the guest's queue for a flow: a guest reads each of its queues on another processor.

use crate::packet::parse::{ETHERNET, ETHERTYPE_IPV4, ETHERTYPE_IPV6, protocol};

/// A hash of the flow that a frame to a port is of: of addresses and, in whole TCP and UDP packets without options, ports. Fragments go by
/// addresses alone, so that all of a packet go the same way. 0 for all that is not IP. Spreads what guests send each other; whoever wants
/// to send everything to one queue can.
#[inline]
pub(super) fn hash(frame: &[u8]) -> u32 {
    let Some(head) = frame.first_chunk::<38>() else {
        return 0;
    };
    let word = |at: usize| u64::from_be_bytes(std::array::from_fn(|i| head[at + i]));
    let ports_of = |protocol: u8| matches!(protocol, protocol::TCP | protocol::UDP);
    let (addresses, ports) = match u16::from_be_bytes([head[12], head[13]]) {
        ETHERTYPE_IPV4 => {
            let whole = head[ETHERNET + 6] & 0x3f == 0 && head[ETHERNET + 7] == 0;
            let with_ports = whole && head[ETHERNET] == 0x45 && ports_of(head[ETHERNET + 9]);
            (word(26), with_ports.then_some(34))
        }
        ETHERTYPE_IPV6 => {
            let Some(rest) = frame.get(38..54) else {
                return 0;
            };
            let rest = rest.chunks_exact(8).map(|word| {
                let word = word.first_chunk().copied().unwrap_or_default();
                u64::from_be_bytes(word)
            });
            let all = rest.fold(mix(word(22), word(30)), mix);
            (all, ports_of(head[ETHERNET + 6]).then_some(54))
        }
        _ => return 0,
    };
    let ports = ports
        .and_then(|at| frame.get(at..at + 4)?.first_chunk().copied())
        .map_or(0, u32::from_be_bytes);
    (mix(addresses, ports.into()) >> 32) as u32
}

/// Multiplication by an odd constant (Knuth, "The Art of Computer Programming", volume 3, 6.4), after which the high bits depend on all of both.
#[inline]
fn mix(a: u64, b: u64) -> u64 {
    let product = (a ^ b.rotate_left(32) ^ b).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    product ^ product >> 29
}

#[cfg(test)]
mod tests {
    use super::*;
    use etherparse::PacketBuilder;

    fn frame(ipv6: bool, ports: (u16, u16)) -> Vec<u8> {
        let builder = PacketBuilder::ethernet2([2; 6], [4; 6]);
        let builder = if ipv6 {
            builder.ipv6([0xfd; 16], [0xfe; 16], 64)
        } else {
            builder.ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64)
        };
        let mut frame = Vec::new();
        let builder = builder.udp(ports.0, ports.1);
        builder.write(&mut frame, b"payload").unwrap();
        frame
    }

    #[test]
    fn flows_spread_over_any_number_of_queues() {
        for ipv6 in [false, true] {
            for queues in 2..=16 {
                let mut counts = vec![0; queues];
                for port in 0..1600 {
                    let hash = hash(&frame(ipv6, (1024 + port, 443)));
                    counts[hash as usize % queues] += 1;
                }
                let share = 1600 / queues;
                let (least, most) = (counts.iter().min(), counts.iter().max());
                assert!(least > Some(&(share / 2)), "{counts:?}");
                assert!(most < Some(&(share * 2)), "{counts:?}");
            }
        }
    }

    #[test]
    fn what_is_of_one_flow_goes_one_way() {
        let whole = frame(false, (1, 2));
        let mut other = whole.clone();
        other[ETHERNET + 8] -= 1;
        assert_eq!(hash(&whole), hash(&other), "another TTL");
        // Fragments, whose bytes behind the header are not all ports.
        let mut first = whole.clone();
        first[ETHERNET + 6] = 0x20;
        let mut later = frame(false, (3, 4));
        later[ETHERNET + 7] = 9;
        assert_eq!(hash(&first), hash(&later));
        for len in 0..frame(true, (1, 2)).len() {
            // Whatever is cut off, something comes out.
            let _ = hash(&frame(true, (1, 2))[..len]);
            let _ = hash(&whole[..len.min(whole.len())]);
        }
    }
}
