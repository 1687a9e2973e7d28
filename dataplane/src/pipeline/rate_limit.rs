//! Token buckets for what a port, or a VPC, may make us do: replies, copies, flows. One for each and worker.

/// A bucket that fills with time.
#[derive(Debug, Clone, Copy)]
struct Bucket {
    /// Thousandths of a token.
    tokens: u64,
    last: u32,
}

/// Buckets of one kind, for all ports or all VPCs.
#[derive(Debug)]
pub struct Limiter {
    rate: u32,
    burst: u32,
    buckets: Box<[Bucket]>,
}

impl Limiter {
    /// `rate` a second, `burst` at once, for each of `holders`.
    pub fn new(rate: u32, burst: u32, holders: usize) -> Self {
        let full = Bucket {
            tokens: u64::from(burst) * 1000,
            last: 0,
        };
        Self {
            rate,
            burst,
            buckets: vec![full; holders.max(1)].into(),
        }
    }

    /// Takes a token of the holder of an index at the time `now` (milliseconds); answers whether there was one.
    pub fn take(&mut self, index: usize, now: u32) -> bool {
        let last = self.buckets.len() - 1;
        let bucket = &mut self.buckets[index.min(last)];
        let elapsed = u64::from(now.wrapping_sub(bucket.last));
        let since = elapsed * u64::from(self.rate);
        let most = u64::from(self.burst) * 1000;
        bucket.tokens = bucket.tokens.saturating_add(since).min(most);
        bucket.last = now;
        let enough = bucket.tokens >= 1000;
        if enough {
            bucket.tokens -= 1000;
        }
        enough
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn burst_then_rate_and_holders_apart() {
        let mut limiter = Limiter::new(10, 5, 2);
        assert_eq!((0..20).filter(|_| limiter.take(0, 1)).count(), 5);
        assert!(limiter.take(1, 1));
        assert_eq!((0..20).filter(|_| limiter.take(0, 301)).count(), 3);
    }

    #[test]
    fn the_highest_rate_is_no_limit() {
        let mut limiter = Limiter::new(u32::MAX, u32::MAX, 1);
        assert!((0..1000).all(|_| limiter.take(0, u32::MAX)));
    }
}
