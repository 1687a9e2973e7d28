//! Equal-cost next hops: weighted rendezvous hashing.
//!
//! Each member scores `-weight / ln(u)` with `u` a hash of flow and member in (0, 1); the highest score wins. A member that leaves
//! moves only its own flows, one that comes takes only its share, and two hosts choose alike, since the hash depends on nothing but
//! the flow and the member's name (Thaler and Ravishankar, "Using name-based mappings to increase hit rates", 1998; weighted form by
//! Schindelhauer and Schomaker, 2005). Called once per session, so its cost, linear in the members, is not the hot path's.

use crate::packet::Flow;

/// One next hop of a group.
#[derive(Debug, Clone)]
pub struct Member<T> {
    /// Hash of what names the member on every host.
    pub identity: u64,
    /// Share of flows.
    pub weight: u16,
    /// Where it leads.
    pub target: T,
}

/// A hash of bytes that is the same on every host and in every release.
pub fn identity(name: &[u8]) -> u64 {
    name.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        mix(hash ^ u64::from(*byte), 0x9e37_79b9_7f4a_7c15)
    })
}

/// The flow's hash for choosing next hops: the same on every host.
pub fn flow_hash(flow: &Flow) -> u64 {
    let ports = u64::from(flow.source_port) << 32
        | u64::from(flow.destination_port) << 16
        | u64::from(flow.protocol);
    let source = mix(
        flow.source as u64 ^ 0xa076_1d64_78bd_642f,
        (flow.source >> 64) as u64 ^ 0xe703_7ed1_a0b4_28db,
    );
    let destination = mix(
        flow.destination as u64 ^ 0x8ebc_6af0_9c88_c6e3,
        (flow.destination >> 64) as u64 ^ 0x5899_65cc_7537_4cc3,
    );
    mix(
        mix(source ^ ports, 0x1d8e_4e27_c47d_124f) ^ destination,
        0xeb44_acca_b455_d165,
    )
}

/// Folded 128-bit product.
fn mix(a: u64, b: u64) -> u64 {
    let product = u128::from(a) * u128::from(b);
    (product as u64) ^ (product >> 64) as u64
}

/// The member that the flow belongs to; none when there are no members.
pub fn choose<T>(members: &[Member<T>], flow_hash: u64) -> Option<&Member<T>> {
    let score = |member: &Member<T>| {
        let hash = mix(flow_hash ^ member.identity, 0x9e37_79b9_7f4a_7c15)
            ^ mix(member.identity, flow_hash | 1);
        // 53 bits, never 0 nor 1.
        let unit = ((hash >> 11) as f64 + 0.5) / (1u64 << 53) as f64;
        -f64::from(member.weight) / unit.ln()
    };
    members
        .iter()
        .map(|member| (score(member), member))
        .reduce(|best, next| if next.0 > best.0 { next } else { best })
        .map(|(_, member)| member)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn members(weights: &[u16]) -> Vec<Member<usize>> {
        let name = |i: usize| identity(format!("host-{i}").as_bytes());
        weights
            .iter()
            .enumerate()
            .map(|(i, weight)| Member {
                identity: name(i),
                weight: *weight,
                target: i,
            })
            .collect()
    }

    fn flows(count: u16) -> impl Iterator<Item = u64> {
        (0..count).map(|i| {
            flow_hash(&Flow {
                source: 0xffff_0a00_0001,
                destination: 0xffff_0a00_0102,
                source_port: i,
                destination_port: 80,
                protocol: 6,
            })
        })
    }

    #[test]
    fn spread_follows_the_weights() {
        let group = members(&[1, 2, 1, 4]);
        let mut counts = [0u32; 4];
        for flow in flows(60_000) {
            counts[choose(&group, flow).unwrap().target] += 1;
        }
        for (count, weight) in counts.iter().zip([1.0, 2.0, 1.0, 4.0]) {
            let expected = 60_000.0 * weight / 8.0;
            assert!(
                (f64::from(*count) - expected).abs() < expected * 0.05,
                "{counts:?}"
            );
        }
    }

    #[test]
    fn a_member_gone_moves_only_its_own_flows() {
        let all = members(&[1, 1, 1, 1, 1]);
        let fewer: Vec<_> = all
            .iter()
            .filter(|member| member.target != 2)
            .cloned()
            .collect();
        for flow in flows(20_000) {
            let before = choose(&all, flow).unwrap().target;
            let after = choose(&fewer, flow).unwrap().target;
            assert!(before == 2 || before == after);
        }
    }

    #[test]
    fn no_members_no_choice() {
        assert!(choose::<()>(&[], 7).is_none());
    }
}
