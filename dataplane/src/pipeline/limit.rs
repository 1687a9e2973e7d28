//! Token buckets for what a port, or a VPC, may make us do: replies, copies, flows. One for each and worker.

/// A bucket that fills with time.
#[derive(Debug, Clone, Copy)]
struct Bucket {
    /// In parts of a token: as many as there are ticks in a second.
    tokens: u64,
    last: u32,
}

/// Buckets of one kind, for all ports or all VPCs.
#[derive(Debug)]
pub struct Limiter {
    rate: u32,
    burst: u32,
    ticks: u32,
    buckets: Box<[Bucket]>,
}

impl Limiter {
    /// `rate` a second, `burst` at once, for each of `holders`. The time is told in ticks, so many a second.
    pub fn new(rate: u32, burst: u32, holders: usize, ticks: u32) -> Self {
        let full = Bucket {
            tokens: u64::from(burst) * u64::from(ticks),
            last: 0,
        };
        Self {
            rate,
            burst,
            ticks,
            buckets: vec![full; holders.max(1)].into(),
        }
    }

    /// Takes a token of the holder of an index at the time `now`; answers whether there was one.
    pub fn take(&mut self, index: usize, now: u32) -> bool {
        let last = self.buckets.len() - 1;
        let bucket = &mut self.buckets[index.min(last)];
        let (elapsed, one) = (now.wrapping_sub(bucket.last), u64::from(self.ticks));
        let since = u64::from(elapsed) * u64::from(self.rate);
        bucket.tokens = bucket
            .tokens
            .saturating_add(since)
            .min(u64::from(self.burst) * one);
        bucket.last = now;
        let enough = bucket.tokens >= one;
        if enough {
            bucket.tokens -= one;
        }
        enough
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn burst_then_rate_and_holders_apart() {
        let mut limiter = Limiter::new(10, 5, 2, 1000);
        assert_eq!((0..20).filter(|_| limiter.take(0, 1)).count(), 5);
        assert!(limiter.take(1, 1));
        assert_eq!((0..20).filter(|_| limiter.take(0, 301)).count(), 3);
    }

    #[test]
    fn rate_by_the_microsecond_and_past_the_end_of_the_clock() {
        let mut limiter = Limiter::new(50_000, 1, 1, 1_000_000);
        let start = u32::MAX - 500;
        assert!(limiter.take(0, start));
        let taken = (1..=1000).filter(|ticks| limiter.take(0, start.wrapping_add(*ticks)));
        assert_eq!(taken.count(), 50);
    }

    #[test]
    fn the_highest_rate_is_no_limit() {
        let mut limiter = Limiter::new(u32::MAX, u32::MAX, 1, 1_000_000);
        assert!((0..1000).all(|_| limiter.take(0, u32::MAX)));
    }
}
