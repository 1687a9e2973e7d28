//! How many frames a queue may give to the kernel to receive into: as many as it wants while there are plenty, fewer as they become scarce. Ports
//! that open later can then receive too, and some frames are left for packets in flight.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::Umem;

/// The least that a queue gets, whatever others have.
const LEAST: u32 = 64;
/// A queue gets no more than this part of what is left.
const PART: u32 = 8;

/// Frames that are a queue's to keep with the kernel. Given back when it is dropped.
#[derive(Debug)]
pub(super) struct Share {
    umem: Arc<Umem>,
    frames: u32,
}

impl Share {
    /// Takes a share for a queue that would keep `wanted` frames.
    pub(super) fn take(umem: &Arc<Umem>, wanted: u32) -> Self {
        let all = umem.frame_count();
        let mut frames = 0;
        let grant = |promised| {
            frames = granted(all, promised, wanted);
            Some(promised + frames)
        };
        // It never refuses.
        let _ = umem
            .promised
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, grant);
        Self {
            umem: Arc::clone(umem),
            frames,
        }
    }

    /// How many frames it is.
    pub(super) fn frames(&self) -> u32 {
        self.frames
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.umem.promised.fetch_sub(self.frames, Ordering::Relaxed);
    }
}

/// What a queue gets of `all` frames, three quarters of which are for queues.
fn granted(all: u32, promised: u32, wanted: u32) -> u32 {
    let left = (all / 4 * 3).saturating_sub(promised);
    wanted.min((left / PART).max(LEAST))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_queues_get_less_each_and_none_gets_nothing() {
        let mut promised = 0;
        let mut shares = Vec::new();
        for _ in 0..100 {
            let share = granted(32_768, promised, 1024);
            promised += share;
            shares.push(share);
        }
        assert!(shares[..16].iter().all(|share| *share == 1024));
        assert!(shares.is_sorted_by(|before, after| before >= after));
        assert_eq!(shares[99], LEAST);
        // All of them, and a tenth of the frames besides.
        assert!(promised < 32_768 * 9 / 10, "{promised}");
        // A queue that wants less gets what it wants.
        assert_eq!(granted(1024, 5000, 32), 32);
    }
}
