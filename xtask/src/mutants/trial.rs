//! Runs the tests for each mutant, in as many processes as there are processors.

use std::{
    path::PathBuf,
    process::{Command, Stdio},
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};

use super::{list::Named, shared};

/// A test that takes so many times what it took of the code as it is, and so much more, goes round in circles.
const PATIENCE: u32 = 5;
const LEAST_PATIENCE: Duration = Duration::from_secs(10);

/// How tests of a mutant ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    Caught,
    TimedOut,
    Missed,
}

/// The test programs, where they run and with which arguments.
pub(super) struct Programs {
    folder: PathBuf,
    arguments: Vec<String>,
    /// Each with how long it may take.
    all: Vec<(Duration, PathBuf)>,
}

impl Programs {
    pub(super) fn new(folder: PathBuf, paths: Vec<PathBuf>, arguments: Vec<String>) -> Self {
        let all = paths
            .into_iter()
            .map(|path| (Duration::from_secs(600), path));
        Self {
            folder,
            arguments,
            all: all.collect(),
        }
    }

    /// Runs them without a mutant, and puts the quickest first.
    fn measure(&mut self) -> Result<()> {
        for at in 0..self.all.len() {
            let (patience, path) = &self.all[at];
            let begun = Instant::now();
            if self.one(path, 0, *patience)? != End::Missed {
                bail!("{} fails without a mutant", path.display());
            }
            let took = begun.elapsed();
            eprintln!(
                "   {}: {:.1} s without a mutant",
                path.display(),
                took.as_secs_f64()
            );
            self.all[at].0 = took * PATIENCE + LEAST_PATIENCE;
        }
        self.all.sort();
        Ok(())
    }

    /// Runs one as a mutant; 0 is none.
    fn one(&self, path: &PathBuf, mutant: u32, patience: Duration) -> Result<End> {
        let mut child = shared(&mut Command::new(path))
            .current_dir(&self.folder)
            .args(&self.arguments)
            .env("WEFT_MUTANT", mutant.to_string())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .with_context(|| format!("cannot start {}", path.display()))?;
        let begun = Instant::now();
        loop {
            if let Some(status) = child.try_wait()? {
                let caught = !status.success();
                return Ok(if caught { End::Caught } else { End::Missed });
            }
            if begun.elapsed() > patience {
                child.kill()?;
                child.wait()?;
                return Ok(End::TimedOut);
            }
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// Runs all until one notices the mutant.
    fn all(&self, mutant: u32) -> Result<End> {
        for (patience, path) in &self.all {
            let end = self.one(path, mutant, *patience)?;
            if end != End::Missed {
                return Ok(end);
            }
        }
        Ok(End::Missed)
    }
}

/// Tries mutants in order; what came of each.
pub(super) fn run(programs: &mut Programs, mutants: &[Named]) -> Result<Vec<End>> {
    programs.measure()?;
    let (begun, programs) = (Instant::now(), &*programs);
    let ends = Mutex::new(vec![None; mutants.len()]);
    let next = AtomicUsize::new(0);
    let lane = || -> Result<()> {
        loop {
            let at = next.fetch_add(1, Ordering::Relaxed);
            let Some(named) = mutants.get(at) else {
                return Ok(());
            };
            let end = programs.all(named.mutant.number)?;
            if end != End::Caught {
                eprintln!("   {end:?}: {}", named.name);
            }
            if at % 100 == 99 {
                let minutes = begun.elapsed().as_secs_f64() / 60.0;
                eprintln!("   {} of {} in {minutes:.1} min", at + 1, mutants.len());
            }
            ends.lock().expect("no lane panics")[at] = Some(end);
        }
    };
    let lanes = thread::available_parallelism().map_or(1, usize::from);
    thread::scope(|scope| -> Result<()> {
        let lanes: Vec<_> = (0..lanes).map(|_| scope.spawn(lane)).collect();
        for lane in lanes {
            let Ok(end) = lane.join() else {
                bail!("a thread that tried mutants panicked");
            };
            end?;
        }
        Ok(())
    })?;
    let ends = ends.into_inner().expect("no lane panics");
    ends.into_iter()
        .map(|end| end.context("a mutant was not tried"))
        .collect()
}
