//! Which member of a load balancer a flow goes to: Maglev hashing (Eisenbud et al., "Maglev: A Fast and Reliable Software Network Load Balancer",
//! NSDI 2016, section 3.4).
//!
//! A table of slots, each of which belongs to a member; a flow's hash chooses a slot. Each member has an order of its own of all slots, and takes the first
//! free one whenever it is its turn. Of a member that goes nearly only the slots move, so that nearly all flows of others stay where they were, also those
//! that no session remembers. Members with a greater weight have more turns; each has one in the first round, so that none is left without a slot.
//!
//! The number of slots is a prime, at least a hundred times the number of members that there may be. It depends on how many members are configured, not on how many
//! take flows: a member that drains moves nobody else's. At 11, 82, 656 and 5243 members it grows, and flows that no session remembers are spread anew.

use super::ecmp;

/// The most members of a table.
pub const MOST_MEMBERS: usize = 10_000;

/// Numbers of slots: primes. Each serves a hundredth as many members.
const SIZES: [usize; 5] = [1_009, 8_191, 65_537, 524_287, 1_000_003];

/// A member that takes flows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Turn {
    /// What names the member on every host ([`ecmp::identity`]).
    pub identity: u64,
    /// Its share, 1 or more.
    pub weight: u16,
    /// What the table answers for it.
    pub member: u16,
}

/// Slots, each with the member that it belongs to.
///
/// ```
/// use weft_dataplane::route::{ecmp::identity, maglev::{Table, Turn}};
///
/// let turn = |member: u16, weight| Turn { identity: identity(&member.to_be_bytes()), weight, member };
/// let all = Table::new(3, &[turn(0, 1), turn(1, 1), turn(2, 2)]);
/// // The second one drains.
/// let fewer = Table::new(3, &[turn(0, 1), turn(2, 2)]);
///
/// let (mut moved, mut half) = (0, 0);
/// for flow in 0..10_000u64 {
///     let hash = flow.wrapping_mul(0x9e37_79b9_7f4a_7c15);
///     let (before, after) = (all.member(hash).unwrap(), fewer.member(hash).unwrap());
///     assert_ne!(after, 1);
///     moved += u32::from(before != 1 && before != after);
///     half += u32::from(before == 2);
/// }
/// assert!((4_800..5_200).contains(&half), "{half}");
/// assert!(moved < 1_000, "{moved}");
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Table {
    slots: Box<[u16]>,
}

impl Table {
    /// The table of those of `count` members that take flows. Takes time in proportion to the slots times the logarithm of their number: half a millisecond for
    /// a hundred members, tens of milliseconds for ten thousand.
    pub fn new(count: usize, turns: &[Turn]) -> Self {
        if turns.is_empty() {
            return Self {
                slots: Box::default(),
            };
        }
        let size = size(count.max(turns.len()));
        let mut slots = vec![0; size].into_boxed_slice();
        let mut taken = vec![0u64; size.div_ceil(64)];
        let mut walks: Vec<Walk> = turns.iter().map(|turn| Walk::new(turn, size)).collect();
        let mut left = size;
        for order in rounds(turns) {
            let slot = walks[order].next_free(&mut taken, size);
            slots[slot] = turns[order].member;
            left -= 1;
            if left == 0 {
                break;
            }
        }
        Self { slots }
    }

    /// The member that a flow with this hash goes to; none if none takes flows.
    #[inline]
    pub fn member(&self, hash: u64) -> Option<u16> {
        let slot = hash.checked_rem(self.slots.len() as u64)?;
        self.slots.get(slot as usize).copied()
    }

    /// How many slots there are.
    pub fn len(&self) -> usize {
        self.slots.len()
    }

    /// Whether no member takes flows.
    pub fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }
}

/// How many slots so many members need.
fn size(count: usize) -> usize {
    let enough = SIZES.into_iter().find(|size| size / 100 >= count);
    enough.unwrap_or(SIZES[SIZES.len() - 1])
}

/// Whose turn it is, by place, without end: round by round, each member as often as its weight is of the greatest one's, in the first round once.
pub fn rounds(turns: &[Turn]) -> impl Iterator<Item = usize> {
    let most = turns.iter().map(|turn| turn.weight).max().unwrap_or(1);
    let most = u32::from(most.max(1));
    // What is missing to the next turn.
    let mut credits: Vec<u32> = turns
        .iter()
        .map(|turn| most - u32::from(turn.weight))
        .collect();
    let mut at = turns.len().wrapping_sub(1);
    std::iter::from_fn(move || {
        if turns.is_empty() {
            return None;
        }
        loop {
            at = if at + 1 == turns.len() { 0 } else { at + 1 };
            credits[at] += u32::from(turns[at].weight);
            if credits[at] >= most {
                credits[at] -= most;
                return Some(at);
            }
        }
    })
}

/// A member's own order of the slots.
struct Walk {
    next: usize,
    skip: usize,
}

impl Walk {
    fn new(turn: &Turn, size: usize) -> Self {
        let size = size as u64;
        let other = ecmp::identity(&turn.identity.to_be_bytes());
        Self {
            next: (turn.identity % size) as usize,
            skip: (other % (size - 1)) as usize + 1,
        }
    }

    /// Takes the first slot that is free. There is one.
    fn next_free(&mut self, taken: &mut [u64], size: usize) -> usize {
        loop {
            let slot = self.next;
            self.next += self.skip;
            if self.next >= size {
                self.next -= size;
            }
            let (word, bit) = (&mut taken[slot / 64], 1 << (slot % 64));
            if *word & bit == 0 {
                *word |= bit;
                return slot;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn turns(weights: &[u16]) -> Vec<Turn> {
        let each = weights.iter().enumerate();
        each.map(|(i, weight)| Turn {
            identity: ecmp::identity(format!("member-{i}").as_bytes()),
            weight: *weight,
            member: i as u16,
        })
        .collect()
    }

    fn counts(table: &Table, members: usize) -> Vec<usize> {
        let mut counts = vec![0; members];
        for member in &table.slots {
            counts[usize::from(*member)] += 1;
        }
        counts
    }

    #[test]
    fn sizes_are_primes_of_a_hundred_slots_a_member() {
        for prime in SIZES {
            let divisors = 2..=(prime as f64).sqrt() as usize;
            assert!({ divisors }.all(|divisor| prime % divisor != 0), "{prime}");
        }
        for count in [1, 10, 11, 81, 82, 655, 656, 5242, 5243, MOST_MEMBERS] {
            assert!(size(count) >= 100 * count, "{count}");
        }
    }

    #[test]
    fn members_of_one_weight_have_as_many_slots() {
        for members in [1, 2, 7, 10, 81, 500] {
            let table = Table::new(members, &turns(&vec![3; members]));
            let counts = counts(&table, members);
            let (least, most) = (counts.iter().min().unwrap(), counts.iter().max().unwrap());
            assert!(most - least <= 1, "{counts:?}");
        }
    }

    #[test]
    fn slots_follow_the_weights_and_each_member_has_one() {
        let table = Table::new(4, &turns(&[1, 2, 3, 4]));
        for (count, weight) in counts(&table, 4).into_iter().zip(1..) {
            let expected = table.len() * weight / 10;
            assert!(count.abs_diff(expected) <= 2, "{count} for {expected}");
        }
        let mut weights = vec![256; 100];
        weights[50] = 1;
        assert!(counts(&Table::new(100, &turns(&weights)), 100)[50] >= 1);
    }

    #[test]
    fn a_member_that_drains_moves_few_others() {
        for members in [3usize, 10, 60] {
            let all = turns(&vec![1; members]);
            let before = Table::new(members, &all);
            for gone in [0, members / 2, members - 1] {
                let mut fewer = all.clone();
                fewer.remove(gone);
                let after = Table::new(members, &fewer);
                let pairs = before.slots.iter().zip(&after.slots);
                let moved = pairs.filter(|(a, b)| a != b).count();
                let most = before.len() / members + before.len() / 100 * 4;
                assert!(moved <= most, "{moved} of {} with {members}", before.len());
            }
        }
    }

    #[test]
    fn the_order_is_that_of_the_members_and_nothing_else() {
        let (a, b) = (turns(&[1, 5, 2]), turns(&[1, 5, 2]));
        assert_eq!(Table::new(3, &a), Table::new(3, &b));
        assert!(Table::new(3, &[]).member(7).is_none());
    }
}
