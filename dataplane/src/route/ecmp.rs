//! Equal-cost next hops: weighted rendezvous hashing.
//!
//! Each member draws a number `u` in (0, 1) for the flow, by a hash of flow and member, and scores `-weight / ln(u)`; the highest score
//! wins. A member that leaves moves only its own flows, a new one takes only its share, and all hosts choose alike, since only the flow and
//! the members' names and weights count (Thaler and Ravishankar, "Using name-based mappings to increase hit rates", 1998; weighted form by
//! Schindelhauer and Schomaker, 2005). Among members of one weight the highest draw wins, so that a logarithm is taken once for each
//! weight, not for each member: a group of 256 alike costs 256 multiplications (bench suite `ecmp`). Called once per session.
//!
//! A table of slots would be cheaper still, but not exact: for a spread within 5 % over 256 members it needs a million slots for every
//! group, whatever its size, since a change of the number of slots moves flows of everybody.

use crate::packet::Flow;

/// One next hop of a group.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Member<T> {
    /// Hash of what names the member on every host.
    pub identity: u64,
    /// Share of flows, 1 or more.
    pub weight: u16,
    /// Where it leads.
    pub target: T,
}

/// Next hops, ready to be chosen from.
///
/// ```
/// use weft_dataplane::{packet::Flow, route::ecmp::{Group, Member, flow_hash, identity}};
///
/// let member = |name: &'static str, weight| Member { identity: identity(name.as_bytes()), weight, target: name };
/// let group = Group::new(vec![member("a", 1), member("b", 1), member("c", 2)]);
/// let without_b = Group::new(vec![member("a", 1), member("c", 2)]);
///
/// let mut share_of_c = 0;
/// for source_port in 0..8000 {
///     let flow = Flow { source_port, destination_port: 80, protocol: 6, ..Flow::default() };
///     let hash = flow_hash(&flow);
///     // Both directions of a flow take the same member.
///     assert_eq!(hash, flow_hash(&flow.reversed()));
///     let chosen = group.choose(hash).map(|member| member.target);
///     share_of_c += usize::from(chosen == Some("c"));
///     // A member that leaves moves its own flows and no others.
///     if chosen != Some("b") {
///         assert_eq!(without_b.choose(hash).map(|member| member.target), chosen);
///     }
/// }
/// // Half of the weight, half of the flows.
/// assert!((3800..4200).contains(&share_of_c), "{share_of_c}");
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Group<T> {
    /// By weight, then by identity.
    members: Box<[Member<T>]>,
    identities: Box<[u64]>,
    /// Each weight that occurs, and where its members end.
    weights: Box<[(u16, u16)]>,
}

/// A hash of bytes that is the same on every host and in every release.
pub fn identity(name: &[u8]) -> u64 {
    name.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        mix(hash ^ u64::from(*byte), 0x9e37_79b9_7f4a_7c15)
    })
}

/// The flow's hash for choosing next hops: the same on every host, and the same for both directions of a flow, so that a next hop that keeps
/// state (a firewall in a guest, say) sees both of them where the routes each way name the same members.
pub fn flow_hash(flow: &Flow) -> u64 {
    let end = |address: u128, port: u16| {
        mix(
            address as u64 ^ u64::from(port) << 48 ^ 0xa076_1d64_78bd_642f,
            (address >> 64) as u64 ^ u64::from(port) ^ 0xe703_7ed1_a0b4_28db,
        )
    };
    let (a, b) = (
        end(flow.source, flow.source_port),
        end(flow.destination, flow.destination_port),
    );
    mix(
        mix(a ^ b, 0x1d8e_4e27_c47d_124f) ^ a.wrapping_add(b) ^ u64::from(flow.protocol),
        0xeb44_acca_b455_d165,
    )
}

/// Folded 128-bit product.
#[inline(always)]
fn mix(a: u64, b: u64) -> u64 {
    let product = u128::from(a) * u128::from(b);
    (product as u64) ^ (product >> 64) as u64
}

/// What a member draws for a flow.
#[inline(always)]
fn draw(flow_hash: u64, identity: u64) -> u64 {
    mix(flow_hash ^ identity, 0x9e37_79b9_7f4a_7c15)
}

impl<T> Group<T> {
    /// A group of at most 65535 members, each identity once.
    pub fn new(mut members: Vec<Member<T>>) -> Self {
        members.sort_by_key(|member| (member.weight, member.identity));
        let mut weights: Vec<(u16, u16)> = Vec::new();
        for (end, member) in (1u16..).zip(&members) {
            match weights.last_mut() {
                Some((weight, last)) if *weight == member.weight => *last = end,
                _ => weights.push((member.weight, end)),
            }
        }
        Self {
            identities: members.iter().map(|member| member.identity).collect(),
            members: members.into(),
            weights: weights.into(),
        }
    }

    /// The members.
    pub fn members(&self) -> &[Member<T>] {
        &self.members
    }

    /// The member that the flow belongs to; none when there are no members.
    pub fn choose(&self, flow_hash: u64) -> Option<&Member<T>> {
        let mut best: Option<(f64, usize)> = None;
        let mut first = 0;
        for (weight, end) in &self.weights {
            let end = usize::from(*end);
            let (drawn, at) = highest(self.identities.get(first..end)?, flow_hash);
            let at = first + at;
            first = end;
            if self.weights.len() == 1 {
                return self.members.get(at);
            }
            // 53 bits, never 0 nor 1.
            let unit = ((drawn >> 11) as f64 + 0.5) / (1u64 << 53) as f64;
            let score = -f64::from(*weight) / unit.ln();
            if best.is_none_or(|(other, _)| score > other) {
                best = Some((score, at));
            }
        }
        self.members.get(best?.1)
    }
}

/// The highest draw, and whose it is.
#[inline]
fn highest(identities: &[u64], flow_hash: u64) -> (u64, usize) {
    let mut best = (0, 0);
    for (at, identity) in identities.iter().enumerate() {
        let drawn = draw(flow_hash, *identity);
        let higher = drawn > best.0;
        best.0 = std::hint::select_unpredictable(higher, drawn, best.0);
        best.1 = std::hint::select_unpredictable(higher, at, best.1);
    }
    best
}

#[cfg(test)]
mod tests {
    use super::*;

    fn members(weights: &[u16]) -> Vec<Member<usize>> {
        let name = |i: usize| identity(format!("host-{i}").as_bytes());
        let each = weights.iter().enumerate();
        each.map(|(i, weight)| Member {
            identity: name(i),
            weight: *weight,
            target: i,
        })
        .collect()
    }

    fn flows(count: u32) -> impl Iterator<Item = Flow> {
        (0..count).map(|i| Flow {
            source: 0xffff_0a00_0001 + u128::from(i >> 16),
            destination: 0xffff_0a00_0102,
            source_port: i as u16,
            destination_port: 80,
            protocol: 6,
        })
    }

    /// The definition, member by member.
    fn naive(members: &[Member<usize>], flow_hash: u64) -> Option<usize> {
        let score = |member: &Member<usize>| {
            let unit =
                ((draw(flow_hash, member.identity) >> 11) as f64 + 0.5) / (1u64 << 53) as f64;
            -f64::from(member.weight) / unit.ln()
        };
        let best = members
            .iter()
            .max_by(|a, b| score(a).total_cmp(&score(b)))?;
        Some(best.target)
    }

    fn assert_spread(weights: &[u16], count: u32, tolerance: f64) {
        let group = Group::new(members(weights));
        let mut counts = vec![0u32; weights.len()];
        for flow in flows(count) {
            counts[group.choose(flow_hash(&flow)).unwrap().target] += 1;
        }
        let total: f64 = weights.iter().map(|weight| f64::from(*weight)).sum();
        for (count_of, weight) in counts.iter().zip(weights) {
            let expected = f64::from(count) * f64::from(*weight) / total;
            let off = (f64::from(*count_of) - expected).abs() / expected;
            assert!(off < tolerance, "{off}: {counts:?}");
        }
    }

    #[test]
    fn spread_follows_the_weights() {
        assert_spread(&[1, 2, 1, 4], 60_000, 0.05);
        assert_spread(&[7; 16], 200_000, 0.05);
    }

    #[test]
    fn the_choice_is_that_of_the_definition() {
        for weights in [&[1, 2, 3, 2, 1][..], &[5; 40], &[65535, 1, 65535]] {
            let members = members(weights);
            let group = Group::new(members.clone());
            for flow in flows(5_000) {
                let hash = flow_hash(&flow);
                let chosen = group.choose(hash).map(|member| member.target);
                assert_eq!(chosen, naive(&members, hash));
            }
        }
    }

    #[test]
    fn a_member_gone_moves_only_its_own_flows_and_one_added_takes_only_its_share() {
        let all = members(&[1, 1, 3, 1, 2]);
        for gone in 0..all.len() {
            let mut fewer = all.clone();
            fewer.remove(gone);
            let (all, fewer) = (Group::new(all.clone()), Group::new(fewer));
            for flow in flows(10_000) {
                let hash = flow_hash(&flow);
                let with = all.choose(hash).unwrap().target;
                let without = fewer.choose(hash).unwrap().target;
                assert!(without != gone && (with == gone || with == without));
            }
        }
    }

    #[test]
    fn both_directions_of_a_flow_hash_alike_and_ends_are_not_mixed_up() {
        for flow in flows(1_000) {
            assert_eq!(flow_hash(&flow), flow_hash(&flow.reversed()));
            let crossed = Flow {
                source_port: flow.destination_port,
                destination_port: flow.source_port,
                ..flow
            };
            assert!(flow.source_port == 80 || flow_hash(&flow) != flow_hash(&crossed));
        }
    }

    #[test]
    fn no_members_no_choice() {
        assert!(Group::<()>::new(Vec::new()).choose(7).is_none());
    }
}
