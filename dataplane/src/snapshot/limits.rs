//! Rate limits of ports: token buckets that every worker takes from.
//!
//! A port's queues may be served by several workers, and what is sent to it comes from all of them. The limit is to hold for all together, so that
//! a bucket is one atomic word, not a share for each worker: shares would let a port that happens to be served by one worker have a fraction of its
//! rate, or any port a multiple of it.
//!
//! The word says when the bucket will be full again (the "theoretical arrival time" of the generic cell rate algorithm, ITU-T I.371), so that neither filling it
//! nor taking from it needs a second word. `bench memory` shows what it costs.

use std::sync::Arc;

use crate::packet::DropReason;
use crate::sync::atomic::{AtomicU64, Ordering};

/// Fractions of a millisecond in which buckets count, as a power of two: the 32-bit clock of the pipeline then wraps where the word does.
const CLOCK_BITS: u32 = 32;
/// Bits that the time of one token has behind the point.
const FRACTION_BITS: u32 = 16;
/// How far the clocks of two workers may be apart, in milliseconds.
const SKEW: u64 = 1000;
/// Bits of a packet at most.
const MOST_BITS: u64 = u16::MAX as u64 * 8;

/// A rate and a burst, of bits or of packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Rate {
    /// Tokens a second; 0 for no limit.
    pub per_second: u64,
    /// Tokens that a full bucket holds; not 0 where there is a limit.
    pub burst: u64,
}

/// A bucket. A packet passes if there is anything in it; what the packet takes beyond that is owed, and filled up before the next passes.
/// So a packet larger than the burst passes too, and over any time no more than rate and burst and one packet together.
#[derive(Debug)]
struct Bucket {
    /// When it will be full again.
    full: AtomicU64,
    /// Time that one token takes to come back, with its fraction; 0 for no limit.
    token: u64,
    /// Time that an empty bucket takes to fill.
    burst: u64,
    /// Nothing is owed for longer: what seems to be so lies in the past.
    longest: u64,
}

impl Bucket {
    /// `most`: tokens that one packet takes at most.
    fn new(rate: Rate, most: u64) -> Self {
        let token = (1000u128 << (CLOCK_BITS + FRACTION_BITS))
            .checked_div(rate.per_second.into())
            .unwrap_or(0) as u64;
        let mut bucket = Self {
            full: AtomicU64::new(0),
            token,
            burst: 0,
            longest: 0,
        };
        bucket.burst = bucket.time(rate.burst);
        bucket.longest = bucket.burst + bucket.time(most) + (SKEW << CLOCK_BITS);
        bucket
    }

    /// How long so many tokens take to come back.
    fn time(&self, tokens: u64) -> u64 {
        ((u128::from(tokens) * u128::from(self.token)) >> FRACTION_BITS) as u64
    }

    /// The same for what is taken: rounded up, so that pieces of a burst are no more than it.
    #[inline]
    fn cost(&self, tokens: u64) -> u64 {
        const PART: u128 = (1 << FRACTION_BITS) - 1;
        ((u128::from(tokens) * u128::from(self.token) + PART) >> FRACTION_BITS) as u64
    }

    /// Takes tokens at the time `now` (milliseconds); false if the bucket is empty.
    #[inline]
    fn take(&self, tokens: u64, now: u32) -> bool {
        if self.token == 0 {
            return true;
        }
        let now = u64::from(now) << CLOCK_BITS;
        let cost = self.cost(tokens);
        let mut full = self.full.load(Ordering::Relaxed);
        loop {
            // A bucket that was full before now is as full as one can be. The clock wraps after 49 days: one that nobody took from for just as
            // long, but for the seconds that can be owed, is taken to owe them.
            let missing = match full.wrapping_sub(now) {
                missing if missing <= self.longest => missing,
                _ => 0,
            };
            if missing >= self.burst {
                return false;
            }
            let next = now.wrapping_add(missing + cost);
            let swap =
                self.full
                    .compare_exchange_weak(full, next, Ordering::Relaxed, Ordering::Relaxed);
            match swap {
                Ok(_) => return true,
                Err(other) => full = other,
            }
        }
    }

    /// Gives tokens back that were taken in vain.
    fn give_back(&self, tokens: u64) {
        self.full.fetch_sub(self.cost(tokens), Ordering::Relaxed);
    }
}

/// Which of the two limits a packet is beyond.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Beyond {
    /// Of packets.
    Packets,
    /// Of bits.
    Bits,
}

/// The limits of one direction of a port. One cache line, written by whoever takes.
#[derive(Debug)]
#[repr(align(64))]
pub struct RateLimit {
    packets: Bucket,
    bits: Bucket,
    rates: (Rate, Rate),
}

impl RateLimit {
    /// With these limits of packets and of bits.
    pub fn new(packets: Rate, bits: Rate) -> Self {
        Self {
            packets: Bucket::new(packets, 1),
            bits: Bucket::new(bits, MOST_BITS),
            rates: (packets, bits),
        }
    }

    /// Takes a packet of so many bytes at the time `now` (milliseconds).
    ///
    /// # Errors
    /// Which limit it is beyond; nothing is taken then.
    #[inline]
    pub fn take(&self, bytes: u16, now: u32) -> Result<(), Beyond> {
        if !self.packets.take(1, now) {
            return Err(Beyond::Packets);
        }
        if !self.bits.take(u64::from(bytes) * 8, now) {
            self.packets.give_back(1);
            return Err(Beyond::Bits);
        }
        Ok(())
    }
}

/// The limits of one port.
#[derive(Debug, Clone, Default)]
pub struct Limits {
    /// On what it sends.
    pub egress: Option<Arc<RateLimit>>,
    /// On what it is sent.
    pub ingress: Option<Arc<RateLimit>>,
}

impl Limits {
    /// The limit of a direction with these rates; the one before goes on if its rates are the same.
    pub fn renew(
        before: Option<&Arc<RateLimit>>,
        packets: Rate,
        bits: Rate,
    ) -> Option<Arc<RateLimit>> {
        if packets.per_second == 0 && bits.per_second == 0 {
            return None;
        }
        match before {
            Some(before) if before.rates == (packets, bits) => Some(Arc::clone(before)),
            _ => Some(Arc::new(RateLimit::new(packets, bits))),
        }
    }
}

impl Beyond {
    /// Why a packet from a port is dropped.
    pub fn egress(self) -> DropReason {
        match self {
            Self::Packets => DropReason::RateLimitEgressPackets,
            Self::Bits => DropReason::RateLimitEgressBits,
        }
    }

    /// Why a packet to a port is dropped.
    pub fn ingress(self) -> DropReason {
        match self {
            Self::Packets => DropReason::RateLimitIngressPackets,
            Self::Bits => DropReason::RateLimitIngressBits,
        }
    }
}

#[cfg(all(test, feature = "loom"))]
mod threads {
    use super::*;
    use crate::sync::model::check;

    #[test]
    fn threads_together_get_the_burst_and_no_more() {
        check("rate_limit", 4, || {
            let (rate, none) = (
                |burst| Rate {
                    per_second: 1000,
                    burst,
                },
                Rate::default(),
            );
            let limit = Arc::new(RateLimit::new(rate(3), none));
            let other = Arc::clone(&limit);
            let passed = |limit: &RateLimit| (0..2).filter(|_| limit.take(60, 1).is_ok()).count();
            let other = loom::thread::spawn(move || passed(&other));
            let passed = passed(&limit);
            assert_eq!(passed + other.join().unwrap(), 3);
        });
    }

    #[test]
    fn threads_that_are_refused_take_nothing_from_others() {
        check("rate_limit_given_back", 4, || {
            let rate = |burst| Rate {
                per_second: 1000,
                burst,
            };
            // One packet of bits, and two of packets: whoever comes second gives his packet back.
            let limit = Arc::new(RateLimit::new(rate(2), rate(1)));
            let other = Arc::clone(&limit);
            let other = loom::thread::spawn(move || other.take(60, 1).is_ok());
            let passed = limit.take(60, 1).is_ok();
            assert!(passed != other.join().unwrap());
            assert!(limit.packets.take(1, 1) && !limit.packets.take(1, 1));
        });
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn rate(per_second: u64, burst: u64) -> Rate {
        Rate { per_second, burst }
    }

    const NONE: Rate = Rate {
        per_second: 0,
        burst: 0,
    };

    fn passed(limit: &RateLimit, packets: usize, bytes: u16, now: u32) -> usize {
        (0..packets)
            .filter(|_| limit.take(bytes, now).is_ok())
            .count()
    }

    #[test]
    fn the_burst_passes_at_once_and_then_the_rate() {
        let limit = RateLimit::new(rate(1000, 50), NONE);
        assert_eq!(passed(&limit, 100, 64, 5), 50);
        assert_eq!(passed(&limit, 100, 64, 5), 0);
        // A millisecond brings one packet, thirty bring thirty, a long pause no more than the burst.
        assert_eq!(passed(&limit, 100, 64, 6), 1);
        assert_eq!(passed(&limit, 100, 64, 36), 30);
        assert_eq!(passed(&limit, 100, 64, 1_000_000), 50);
    }

    #[test]
    fn bits_are_those_of_the_frame_and_the_last_packet_may_owe_some() {
        // 1000 bytes a second, and three packets of 400 out of 1000: the third takes 200 more than there are.
        let limit = RateLimit::new(NONE, rate(8000, 8000));
        assert_eq!(passed(&limit, 10, 400, 1), 3);
        assert_eq!(limit.take(400, 200), Err(Beyond::Bits), "200 are owed");
        assert_eq!(limit.take(400, 202), Ok(()));
        assert_eq!(limit.take(400, 202), Err(Beyond::Bits));
    }

    #[test]
    fn what_one_limit_refuses_is_not_taken_from_the_other() {
        let limit = RateLimit::new(rate(1000, 3), rate(8000, 8000));
        assert_eq!(limit.take(1000, 1), Ok(()));
        for _ in 0..10 {
            assert_eq!(limit.take(1000, 1), Err(Beyond::Bits));
        }
        assert_eq!(limit.take(10, 1002), Ok(()));
        assert_eq!(passed(&limit, 10, 1, 1002), 2);
        assert_eq!(limit.take(1, 1002), Err(Beyond::Packets));
    }

    #[test]
    fn the_clock_may_wrap() {
        let limit = RateLimit::new(rate(1000, 10), NONE);
        assert_eq!(passed(&limit, 20, 64, u32::MAX - 60_000), 10);
        assert_eq!(passed(&limit, 20, 64, u32::MAX), 10);
        assert_eq!(passed(&limit, 20, 64, 4), 5);
    }

    #[test]
    fn clocks_of_workers_may_differ() {
        let limit = RateLimit::new(rate(1000, 10), NONE);
        assert_eq!(passed(&limit, 20, 64, 1005), 10);
        assert_eq!(passed(&limit, 20, 64, 1000), 0, "one that is behind");
        assert_eq!(passed(&limit, 20, 64, 1006), 1);
    }

    #[test]
    fn workers_together_get_no_more_than_one_alone() {
        let limit = RateLimit::new(rate(1000, 10_000), NONE);
        let total: usize = std::thread::scope(|scope| {
            let workers: Vec<_> = (0..4)
                .map(|_| scope.spawn(|| passed(&limit, 10_000, 64, 1)))
                .collect();
            workers.into_iter().map(|one| one.join().unwrap()).sum()
        });
        assert_eq!(total, 10_000);
    }

    #[test]
    fn a_limit_that_stays_goes_on_where_it_was() {
        let (packets, bits) = (rate(10, 5), rate(8000, 8000));
        let first = Limits::renew(None, packets, bits);
        let same = Limits::renew(first.as_ref(), packets, bits);
        let other = Limits::renew(first.as_ref(), rate(10, 6), bits);
        let is = |a: &Option<Arc<_>>, b: &Option<Arc<_>>| {
            Arc::ptr_eq(a.as_ref().unwrap(), b.as_ref().unwrap())
        };
        assert!(is(&first, &same) && !is(&first, &other));
        assert!(Limits::renew(first.as_ref(), NONE, NONE).is_none());
    }

    /// A bucket as it is drawn: tokens in thousandths, filled as time passes.
    struct Drawn {
        rate: Rate,
        tokens: i128,
        last: u32,
    }

    impl Drawn {
        fn take(&mut self, tokens: u64, now: u32) -> bool {
            let elapsed = i128::from(now - self.last) * i128::from(self.rate.per_second);
            let most = i128::from(self.rate.burst) * 1000;
            self.tokens = (self.tokens + elapsed).min(most);
            self.last = now;
            let passes = self.tokens > 0;
            if passes {
                self.tokens -= i128::from(tokens) * 1000;
            }
            passes
        }
    }

    proptest! {
        /// Rates whose token takes a whole number of the clock's fractions, so that nothing is rounded.
        #[test]
        fn a_bucket_is_what_is_drawn(
            exponent in 0u32..28,
            burst in 1u64..100_000,
            steps in prop::collection::vec((0u32..50, 1u64..20_000), 1..200),
        ) {
            let rate = rate(1000 << exponent, burst << exponent);
            let bucket = Bucket::new(rate, 20_000);
            let mut drawn = Drawn { rate, tokens: i128::from(rate.burst) * 1000, last: 0 };
            let mut now = 0;
            for (pause, tokens) in steps {
                now += pause;
                prop_assert_eq!(bucket.take(tokens, now), drawn.take(tokens, now));
            }
        }

        /// However it is tried, rate, burst and one packet together are never exceeded, and who always tries gets them.
        #[test]
        fn rate_and_burst_hold_over_any_time(
            per_second in 8000u64..1_000_000_000,
            milliseconds in 1u32..500,
            bytes in 600u16..9000,
        ) {
            let burst = per_second / 10;
            let limit = RateLimit::new(NONE, rate(per_second, burst));
            let mut taken = 0;
            for now in 1..=milliseconds {
                while limit.take(bytes, now).is_ok() {
                    taken += u64::from(bytes) * 8;
                }
            }
            let due = burst + per_second * u64::from(milliseconds - 1) / 1000;
            let rounding = due / 10_000 + 1;
            prop_assert!(taken <= due + rounding + u64::from(bytes) * 8);
            prop_assert!(taken >= due - rounding);
        }
    }
}
