//! A campaign: case after case on several threads until enough packets are compared or a case fails, which is then cut to its least.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use crate::case::Case;
use crate::differential::{Differential, Disagreement};
use crate::reduce::reduce;
use crate::rng::Rng;
use crate::run::{self, Totals};

/// What a campaign came to.
#[derive(Debug, Default)]
pub struct Report {
    pub seed: u64,
    pub totals: Totals,
    pub cases: u64,
    pub seconds: f64,
    /// The number of a case that failed, what is left of it, and how that fails.
    pub failure: Option<(u64, Case, Disagreement)>,
}

impl Report {
    /// One line of JSON.
    pub fn json(&self) -> String {
        let Totals {
            frames,
            delivered,
            asked,
            translated,
            outside,
            changes,
            ..
        } = &self.totals;
        let (seed, cases, seconds) = (self.seed, self.cases, self.seconds);
        let rate = *frames as f64 / seconds;
        let mismatches = u32::from(self.failure.is_some());
        format!(
            r#"{{"suite":"model","packets":{frames},"packets_per_second":{rate:.0},"mismatches":{mismatches},"seed":{seed},"seconds":{seconds:.1},"fabrics":{cases},"changes":{changes},"delivered":{delivered},"asked":{asked},"translated":{translated},"outside":{outside}}}"#
        )
    }
}

/// Compares at least `packets`, with as many threads as there are processors, and cuts a case that disagrees to its least if asked to.
pub fn run(packets: u64, seed: u64, cut: bool) -> Report {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let (next, compared, failed) = (AtomicU64::new(0), AtomicU64::new(0), AtomicBool::new(false));
    let report = Mutex::new(Report {
        seed,
        ..Report::default()
    });
    let start = Instant::now();
    let work = || {
        while compared.load(Ordering::Relaxed) < packets && !failed.load(Ordering::Relaxed) {
            let number = next.fetch_add(1, Ordering::Relaxed);
            let mut case = Case::default();
            let rng = Rng::new(seed, number);
            let result = calmly(|| run::play(rng, &mut case));
            let mut report = report.lock().unwrap();
            report.cases += 1;
            match result {
                Ok(totals) => {
                    compared.fetch_add(totals.frames, Ordering::Relaxed);
                    report.totals.add(&totals);
                }
                Err(failure) => {
                    failed.store(true, Ordering::Relaxed);
                    report.failure.get_or_insert((number, case, failure));
                }
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(work);
        }
    });
    let mut report = report.into_inner().unwrap();
    report.seconds = start.elapsed().as_secs_f64();
    if cut {
        report.failure = report.failure.map(|(number, case, failure)| {
            let (case, failure) = shortest(case, failure);
            (number, case, failure)
        });
    }
    report
}

/// Plays a case; a panic of the pipelines is a failure like another.
pub fn replay(case: &Case) -> Result<(), Disagreement> {
    calmly(|| Differential::play(case))
}

fn calmly<T>(play: impl FnOnce() -> Result<T, Disagreement>) -> Result<T, Disagreement> {
    catch_unwind(AssertUnwindSafe(play)).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(ToString::to_string));
        let kind = text.unwrap_or_else(|| "panic".to_owned());
        Err(Disagreement {
            text: format!("panic: {kind}"),
            kind,
        })
    })
}

fn shortest(case: Case, failure: Disagreement) -> (Case, Disagreement) {
    let quiet = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| {}));
    let same = |case: &Case| replay(case).is_err_and(|other| other.kind == failure.kind);
    let case = if same(&case) {
        reduce(case, same)
    } else {
        case
    };
    let failure = replay(&case).err().unwrap_or(failure);
    std::panic::set_hook(quiet);
    (case, failure)
}
