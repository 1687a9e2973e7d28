//! Several workers on one session table: the gain of a second one. In memory, each on a core of its own.

use std::sync::Barrier;
use std::time::{Duration, Instant};

use weft_dataplane::pipeline::{Pipeline, Source};
use weft_dataplane::session::table::SHARDS;
use weft_fabric::MemoryHost;

use crate::scenario::{self, PACKETS, fabric, measure, settings, udp};
use crate::{Row, clock, median, parts};

const SAMPLES: usize = 9;
const MISSES: usize = 7;
/// New flows of a worker in a sample of misses; those of two fit into the memory that a table takes at the start.
const FRESH: u32 = 4 * PACKETS as u32;
const FLOWS: u32 = 100_000;
const TIME: Duration = Duration::from_millis(200);

/// What one worker forwards.
struct Job<'f> {
    pipeline: Pipeline,
    source: Source,
    frames: &'f [Vec<u8>],
}

/// Million packets per second of all jobs together, each in a thread of its own, by so many samples or for a while.
fn rate(jobs: &mut [Job<'_>], most: Option<usize>) -> anyhow::Result<f64> {
    let barrier = Barrier::new(jobs.len());
    let run = |core: usize, job: &mut Job<'_>| -> anyhow::Result<f64> {
        clock::pin(core)?;
        barrier.wait();
        let (begun, mut samples) = (Instant::now(), Vec::new());
        while most.map_or(begun.elapsed() < TIME, |most| samples.len() < most) {
            samples.push(measure(
                &mut job.pipeline,
                1,
                job.source,
                job.frames,
                samples.len() * PACKETS,
            )?);
        }
        // By the cycles that packets took; making them is not counted.
        Ok(clock::hertz() / (samples.iter().sum::<f64>() / samples.len() as f64) / 1e6)
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = jobs
            .iter_mut()
            .enumerate()
            .map(|(core, job)| scope.spawn(move || run(core, job)))
            .collect();
        threads
            .into_iter()
            .map(|thread| {
                thread
                    .join()
                    .map_err(|_| anyhow::anyhow!("a worker panicked"))?
            })
            .sum()
    })
}

/// Workers that wait for each other's locks while they install sessions: how many times the sessions of one worker they make. Each miss takes
/// `miss` cycles, of which it holds one of the table's locks, any of them alike, for `locked`.
fn simulated(workers: usize, miss: f64, locked: f64) -> f64 {
    const ROUNDS: usize = 200_000;
    let (mut clocks, mut locks) = (vec![0.0f64; workers], [0.0f64; SHARDS]);
    let mut random = 1u64;
    for _ in 0..ROUNDS {
        // Whoever is first asks next.
        let Some(clock) = clocks.iter_mut().min_by(|a, b| a.total_cmp(b)) else {
            return 0.0;
        };
        random = random.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
        let lock = &mut locks[(random >> 33) as usize % SHARDS];
        *clock = (*clock + miss - locked).max(*lock) + locked;
        *lock = *clock;
    }
    let time = clocks.iter().sum::<f64>() / workers as f64;
    ROUNDS as f64 * miss / time
}

/// What a second worker adds to new sessions, and by simulation a fourth to a thirty-second.
fn misses() -> anyhow::Result<Vec<Row>> {
    let fresh = |first: u32| -> Vec<Vec<u8>> { (first..first + FRESH).map(udp).collect() };
    let (low, high) = (fresh(0), fresh(FRESH));
    let (mut one, mut both) = (Vec::new(), Vec::new());
    for _ in 0..MISSES {
        for (jobs, rates) in [(1, &mut one), (2, &mut both)] {
            let fabric = fabric(4 * FRESH)?;
            let port = scenario::source(&fabric)?;
            let host = fabric
                .hosts
                .get("h1")
                .ok_or_else(|| anyhow::anyhow!("no host"))?;
            host.shared.sessions.prepare();
            let mut jobs: Vec<Job<'_>> = [&low, &high][..jobs]
                .iter()
                .map(|frames| Job {
                    pipeline: worker(host),
                    source: port,
                    frames,
                })
                .collect();
            rates.push(rate(&mut jobs, Some(FRESH as usize / PACKETS))?);
        }
    }
    let (miss, (_, install)) = (clock::hertz() / (median(&one) * 1e6), parts::fill(200_000)?);
    let ratio = both
        .iter()
        .zip(&one)
        .map(|(both, one)| both / one)
        .collect();
    let row = |name: String, unit, samples| Row {
        name: format!("workers: {name}"),
        unit,
        samples,
        goal: None,
        peer: None,
    };
    let mut rows = vec![
        row("new sessions, one".into(), "million/s", one),
        row("new sessions, two over one".into(), "times", ratio),
    ];
    // The whole of an install counts as locked, which is more than is.
    rows.extend([2, 4, 8, 16, 32].map(|workers| {
        let times = simulated(workers, miss, median(&install));
        row(
            format!("new sessions, {workers} over one, simulated"),
            "times",
            vec![times],
        )
    }));
    Ok(rows)
}

/// A pipeline more on a host's tables.
fn worker(host: &MemoryHost) -> Pipeline {
    let mut pipeline = Pipeline::new(host.shared.clone(), &settings());
    pipeline.set_snapshot(host.pipeline.snapshot().clone());
    pipeline
}

pub(crate) fn rows() -> anyhow::Result<Vec<Row>> {
    let cores = std::thread::available_parallelism()
        .map_or(1, usize::from)
        .min(2);
    anyhow::ensure!(
        cores == 2,
        "two cores are needed to see what a second worker adds"
    );
    let mut fabric = fabric(FLOWS * 2)?;
    let port = scenario::source(&fabric)?;
    let frames: Vec<Vec<u8>> = (0..FLOWS).map(udp).collect();
    let mut tunnelled = Vec::new();
    for frame in &frames {
        fabric.send("a1", frame);
        tunnelled.append(&mut fabric.crossed);
    }
    let of = |host: &str| {
        fabric
            .hosts
            .get(host)
            .ok_or_else(|| anyhow::anyhow!("no host"))
    };
    let job = |host: &str, source, frames| {
        Ok::<_, anyhow::Error>(Job {
            pipeline: worker(of(host)?),
            source,
            frames,
        })
    };
    let (low, high) = frames.split_at(FLOWS as usize / 2);
    let mut samples = [Vec::new(), Vec::new(), Vec::new()];
    for _ in 0..SAMPLES {
        samples[0].push(rate(&mut [job("h1", port, low)?], None)?);
        samples[1].push(rate(
            &mut [job("h1", port, low)?, job("h1", port, high)?],
            None,
        )?);
        samples[2].push(rate(
            &mut [
                job("h2", Source::Uplink(0), &tunnelled)?,
                job("h2", Source::Uplink(0), &tunnelled)?,
            ],
            None,
        )?);
    }
    let [one, two, shared] = samples;
    let ratio = two.iter().zip(&one).map(|(two, one)| two / one).collect();
    let row = |name: &str, unit, samples, goal| Row {
        name: format!("workers: {name}"),
        unit,
        samples,
        goal,
        peer: None,
    };
    let mut rows = vec![
        row("one, 50k flows", "million packets/s", one, None),
        row("two, 50k flows each", "million packets/s", two, None),
        row(
            "two, the same 100k flows in both, decapsulation",
            "million packets/s",
            shared,
            None,
        ),
        row("two over one", "times", ratio, Some((1.8, true))),
    ];
    rows.extend(misses()?);
    Ok(rows)
}
