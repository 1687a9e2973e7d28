//! A token bucket that may go into debt: a call of any size is admitted once, and paid for before the next.
//!
//! It keeps one instant, that at which it is full again. Whoever uses it says what time it is.

use std::time::{Duration, Instant};

/// What a bucket allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Rate {
    /// Tokens that come in each second; at least 1.
    pub(super) per_second: u64,
    /// Tokens in a full bucket; at least 1.
    pub(super) burst: u64,
}

impl Rate {
    /// How long so many tokens take to come in.
    fn time(self, tokens: u64) -> Duration {
        let nanoseconds = u128::from(tokens) * 1_000_000_000 / u128::from(self.per_second.max(1));
        Duration::from_nanos(u64::try_from(nanoseconds).unwrap_or(u64::MAX))
    }
}

/// A bucket, full at the start.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Bucket {
    /// When it is full again; none: it is.
    full_at: Option<Instant>,
}

impl Bucket {
    /// Whether so many tokens may be taken: if they are there, or the bucket is full.
    ///
    /// # Errors
    /// They may not; how long it takes until they may.
    pub(super) fn check(&self, rate: Rate, tokens: u64, now: Instant) -> Result<(), Duration> {
        let left = rate.burst.saturating_sub(tokens);
        match self.lag(now).checked_sub(rate.time(left)) {
            Some(early) if !early.is_zero() => Err(early),
            _ => Ok(()),
        }
    }

    /// Takes tokens whether they are there or not.
    pub(super) fn take(&mut self, rate: Rate, tokens: u64, now: Instant) {
        let lag = self.lag(now).saturating_add(rate.time(tokens));
        // Further away than the clock can say is as good as never.
        self.full_at = now.checked_add(lag).or(self.full_at);
    }

    /// Puts back tokens that were taken; it is no fuller for it than full.
    pub(super) fn give_back(&mut self, rate: Rate, tokens: u64, now: Instant) {
        let lag = self.lag(now).saturating_sub(rate.time(tokens));
        self.full_at = now.checked_add(lag).or(self.full_at);
    }

    /// How many tokens are missing to a full one.
    pub(super) fn used(&self, rate: Rate, now: Instant) -> u64 {
        let missing = self.lag(now).as_nanos() * u128::from(rate.per_second);
        u64::try_from(missing.div_ceil(1_000_000_000)).unwrap_or(u64::MAX)
    }

    /// Whether it is full.
    pub(super) fn is_full(&self, now: Instant) -> bool {
        self.lag(now).is_zero()
    }

    fn lag(&self, now: Instant) -> Duration {
        let until = |at: Instant| at.saturating_duration_since(now);
        self.full_at.map_or(Duration::ZERO, until)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RATE: Rate = Rate {
        per_second: 10,
        burst: 5,
    };

    fn take(bucket: &mut Bucket, tokens: u64, now: Instant) -> Result<(), Duration> {
        bucket.check(RATE, tokens, now)?;
        bucket.take(RATE, tokens, now);
        Ok(())
    }

    #[test]
    fn a_burst_is_admitted_and_then_one_by_one() {
        let (mut bucket, start) = (Bucket::default(), Instant::now());
        for _ in 0..5 {
            take(&mut bucket, 1, start).unwrap();
        }
        let wait = Duration::from_millis(100);
        assert_eq!(take(&mut bucket, 1, start), Err(wait));
        assert_eq!(bucket.used(RATE, start), 5);
        assert_eq!(bucket.used(RATE, start + 3 * wait), 2);
        let early = wait - Duration::from_nanos(1);
        assert!(take(&mut bucket, 1, start + early).is_err());
        take(&mut bucket, 1, start + wait).unwrap();
        assert_eq!(take(&mut bucket, 1, start + wait), Err(wait));
    }

    #[test]
    fn what_was_not_used_is_not_saved_beyond_the_burst() {
        let (mut bucket, start) = (Bucket::default(), Instant::now());
        take(&mut bucket, 5, start).unwrap();
        let later = start + Duration::from_secs(3600);
        assert!(bucket.is_full(later));
        take(&mut bucket, 5, later).unwrap();
        assert!(take(&mut bucket, 1, later).is_err());
    }

    #[test]
    fn a_call_larger_than_the_burst_is_admitted_when_full_and_paid_for_later() {
        let (mut bucket, start) = (Bucket::default(), Instant::now());
        take(&mut bucket, 1, start).unwrap();
        // It waits until the bucket is full, no longer.
        assert_eq!(
            take(&mut bucket, 25, start),
            Err(Duration::from_millis(100))
        );
        let full = start + Duration::from_millis(100);
        take(&mut bucket, 25, full).unwrap();
        // 20 in debt: 2 s, and 100 ms for the one.
        assert_eq!(take(&mut bucket, 1, full), Err(Duration::from_millis(2100)));
        take(&mut bucket, 1, full + Duration::from_millis(2100)).unwrap();
    }

    #[test]
    fn what_is_given_back_may_be_taken_again_and_no_more() {
        let (mut bucket, start) = (Bucket::default(), Instant::now());
        take(&mut bucket, 5, start).unwrap();
        bucket.give_back(RATE, 2, start);
        assert_eq!(bucket.used(RATE, start), 3);
        bucket.give_back(RATE, u64::MAX, start);
        assert!(bucket.is_full(start));
        take(&mut bucket, 5, start).unwrap();
        assert!(take(&mut bucket, 1, start).is_err());
    }

    #[test]
    fn numbers_at_their_ends_do_no_harm() {
        let (mut bucket, start) = (Bucket::default(), Instant::now());
        let slow = Rate {
            per_second: 0,
            burst: 0,
        };
        for _ in 0..3 {
            bucket.take(slow, u64::MAX, start);
        }
        assert!(bucket.check(slow, u64::MAX, start).is_err());
        // A clock that goes back finds it no fuller.
        assert!(!bucket.is_full(start.checked_sub(Duration::from_secs(1)).unwrap_or(start)));
    }
}
