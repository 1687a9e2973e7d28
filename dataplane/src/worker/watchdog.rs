//! The watchdog: a thread that reports workers which no longer poll.
//!
//! It reads the time that workers account for, which grows with every round; an idle worker does fifty rounds a second. Results are in each
//! worker's [`Gauge`]; nothing waits for a worker that is marked as stuck.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::shared::Gauge;

/// Checks per time that a worker may be stuck.
const LOOKS: u32 = 4;

/// The running watchdog. Dropping it stops it.
#[derive(Debug)]
pub(super) struct Watchdog {
    stop: Arc<(Mutex<bool>, Condvar)>,
    thread: Option<JoinHandle<()>>,
}

impl Watchdog {
    /// Starts to watch workers; one that does not poll for `patience` is reported.
    pub(super) fn start(gauges: Vec<Arc<Gauge>>, patience: Duration) -> std::io::Result<Self> {
        let stop = Arc::new((Mutex::new(false), Condvar::new()));
        let stopping = Arc::clone(&stop);
        let thread = std::thread::Builder::new()
            .name("watchdog".to_owned())
            .spawn(move || watch(&gauges, patience, &stopping))?;
        Ok(Self {
            stop,
            thread: Some(thread),
        })
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        *self.stop.0.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.stop.1.notify_all();
        if let Some(thread) = self.thread.take() {
            // It does not panic; if it did, that was logged.
            let _ = thread.join();
        }
    }
}

fn watch(gauges: &[Arc<Gauge>], patience: Duration, stop: &(Mutex<bool>, Condvar)) {
    let pause = patience / LOOKS;
    let begun = Instant::now();
    let mut watched: Vec<Watched> = gauges.iter().map(|_| Watched::new(begun)).collect();
    let mut stopped = stop.0.lock().unwrap_or_else(PoisonError::into_inner);
    while !*stopped {
        let before = Instant::now();
        stopped = stop
            .1
            .wait_timeout(stopped, pause)
            .unwrap_or_else(PoisonError::into_inner)
            .0;
        let now = Instant::now();
        // The whole process stood still, or the machine: that is no worker's doing.
        let late = now - before > 2 * pause;
        for (worker, (gauge, watched)) in gauges.iter().zip(&mut watched).enumerate() {
            match watched.look(gauge.rounds_time(), now, late, patience) {
                Some(News::Stuck) => {
                    gauge
                        .stalls
                        .store(gauge.stalls.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
                    tracing::error!(
                        worker,
                        milliseconds = patience.as_millis() as u64,
                        "a worker does not go round any more: its queues stand still"
                    );
                }
                Some(News::Moves(after)) => tracing::warn!(
                    worker,
                    milliseconds = after.as_millis() as u64,
                    "a worker goes round again"
                ),
                None => {}
            }
            let stuck = if watched.stuck {
                (now - watched.since).as_millis() as u64
            } else {
                0
            };
            gauge.stuck_milliseconds.store(stuck, Ordering::Relaxed);
        }
    }
}

/// What the watchdog knows of one worker.
#[derive(Debug)]
struct Watched {
    /// The time that it accounted for when last seen.
    seen: u64,
    /// Since when that has been so.
    since: Instant,
    stuck: bool,
}

#[derive(Debug, PartialEq, Eq)]
enum News {
    Stuck,
    Moves(Duration),
}

impl Watched {
    fn new(now: Instant) -> Self {
        Self {
            seen: 0,
            since: now,
            stuck: false,
        }
    }

    fn look(&mut self, seen: u64, now: Instant, late: bool, patience: Duration) -> Option<News> {
        if seen != self.seen {
            let stood = now - self.since;
            self.seen = seen;
            self.since = now;
            return std::mem::take(&mut self.stuck).then_some(News::Moves(stood));
        }
        if self.stuck {
            return None;
        }
        if late {
            self.since = now;
        }
        self.stuck = now - self.since >= patience;
        self.stuck.then_some(News::Stuck)
    }
}

/// Joins threads that end within a time. Returns whether all did.
pub(super) fn join_in_time(threads: impl Iterator<Item = JoinHandle<()>>, time: Duration) -> bool {
    let deadline = Instant::now() + time;
    let mut all = true;
    for thread in threads {
        while !thread.is_finished() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_micros(100));
        }
        if !thread.is_finished() {
            all = false;
        } else if thread.join().is_err() {
            tracing::error!("a worker had panicked");
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Duration = Duration::from_secs(1);

    /// What is said of a worker that is seen so, at these milliseconds; `true`: the watchdog itself was late.
    fn said(looks: &[(u64, u64, bool)]) -> Vec<Option<News>> {
        let begun = Instant::now();
        let mut watched = Watched::new(begun);
        let look = |&(at, seen, late): &(u64, u64, bool)| {
            watched.look(seen, begun + Duration::from_millis(at), late, PATIENCE)
        };
        looks.iter().map(look).collect()
    }

    #[test]
    fn a_worker_that_stands_still_is_told_of_once_and_again_when_it_moves() {
        let looks = [
            (250, 1, false),
            (500, 1, false),
            (1249, 1, false),
            (1250, 1, false),
        ];
        let more = [(9000, 1, false), (9250, 2, false), (9500, 3, false)];
        let moves = News::Moves(Duration::from_secs(9));
        assert_eq!(
            said(&[&looks[..], &more].concat()),
            [None, None, None, Some(News::Stuck), None, Some(moves), None]
        );
    }

    #[test]
    fn a_process_that_stood_still_as_a_whole_blames_no_worker() {
        let looks = [
            (250, 1, false),
            (9000, 1, true),
            (9900, 1, false),
            (9950, 2, false),
        ];
        assert_eq!(said(&looks), [None, None, None, None]);
        let stuck = [(250, 1, false), (9000, 1, true), (10_000, 1, false)];
        assert_eq!(said(&stuck), [None, None, Some(News::Stuck)]);
    }

    #[test]
    fn threads_that_do_not_end_are_not_waited_for() {
        let (hold, held) = std::sync::mpsc::channel::<()>();
        let stays = std::thread::spawn(move || {
            let _released = held.recv();
        });
        let ends = std::thread::spawn(|| ());
        assert!(!join_in_time(
            [stays, ends].into_iter(),
            Duration::from_millis(20)
        ));
        drop(hold);
        let ends = std::thread::spawn(|| ());
        assert!(join_in_time(std::iter::once(ends), Duration::from_secs(20)));
    }
}
