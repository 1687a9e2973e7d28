//! Rate limits of ports and of elastic IPs.

use weft_proto::v1;

use super::super::{Limits, Rate};
use super::Draft;

/// What a burst of 0 stands for: a tenth of a second, and these at least, so that a slow port may send a whole segment or a few packets.
const LEAST_BITS: u64 = 1 << 19;
const LEAST_PACKETS: u64 = 64;

impl Draft<'_> {
    /// Puts the limits of a port of this host at its index.
    pub(super) fn fill_limits(&mut self, port: &v1::Port, index: u16) {
        let index = usize::from(index);
        let Some(limits) = of(port.limits.as_ref(), self.limits_before.get(index)) else {
            return;
        };
        if self.limits.len() <= index {
            self.limits.resize_with(index + 1, Limits::default);
        }
        self.limits[index] = limits;
    }
}

/// Limits in force; those of `before` go on where their rates are the same. None: there are none.
pub(super) fn of(limits: Option<&v1::RateLimits>, before: Option<&Limits>) -> Option<Limits> {
    let limits = limits?;
    let renew = |limit: &Option<v1::RateLimit>, before| {
        let (packets, bits) = rates(limit.as_ref()?);
        Limits::renew(before, packets, bits)
    };
    let limits = Limits {
        egress: renew(&limits.egress, before.and_then(|b| b.egress.as_ref())),
        ingress: renew(&limits.ingress, before.and_then(|b| b.ingress.as_ref())),
    };
    (limits.egress.is_some() || limits.ingress.is_some()).then_some(limits)
}

fn rates(limit: &v1::RateLimit) -> (Rate, Rate) {
    let rate = |per_second: u64, burst: u64, least: u64| Rate {
        per_second,
        burst: match burst {
            0 => (per_second / 10).max(least),
            burst => burst,
        },
    };
    (
        rate(limit.packets_per_second, limit.burst_packets, LEAST_PACKETS),
        rate(limit.bits_per_second, limit.burst_bits, LEAST_BITS),
    )
}
