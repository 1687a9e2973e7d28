//! Several workers on one session table: what a second one adds. In memory, each on a core of its own.

use std::sync::Barrier;
use std::time::{Duration, Instant};

use weft_dataplane::pipeline::{Pipeline, Source};

use crate::scenario::{self, PACKETS, fabric, measure, settings, udp};
use crate::{Row, clock};

const SAMPLES: usize = 9;
const FLOWS: u32 = 100_000;
const TIME: Duration = Duration::from_millis(200);

/// What one worker forwards.
struct Job<'f> {
    pipeline: Pipeline,
    source: Source,
    frames: &'f [Vec<u8>],
}

/// Million packets per second of all jobs together, each in a thread of its own.
fn rate(jobs: &mut [Job<'_>]) -> anyhow::Result<f64> {
    let barrier = Barrier::new(jobs.len());
    let run = |core: usize, job: &mut Job<'_>| -> anyhow::Result<f64> {
        clock::pin(core)?;
        barrier.wait();
        let (begun, mut samples) = (Instant::now(), Vec::new());
        while begun.elapsed() < TIME {
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
    let worker = |host: &str| -> anyhow::Result<Pipeline> {
        let host = fabric
            .hosts
            .get(host)
            .ok_or_else(|| anyhow::anyhow!("no host"))?;
        let mut pipeline = Pipeline::new(host.shared.clone(), &settings());
        pipeline.set_snapshot(host.pipeline.snapshot().clone());
        Ok(pipeline)
    };
    let job = |host: &str, source, frames| {
        Ok::<_, anyhow::Error>(Job {
            pipeline: worker(host)?,
            source,
            frames,
        })
    };
    let (low, high) = frames.split_at(FLOWS as usize / 2);
    let mut samples = [Vec::new(), Vec::new(), Vec::new()];
    for _ in 0..SAMPLES {
        samples[0].push(rate(&mut [job("h1", port, low)?])?);
        samples[1].push(rate(&mut [job("h1", port, low)?, job("h1", port, high)?])?);
        samples[2].push(rate(&mut [
            job("h2", Source::Uplink(0), &tunnelled)?,
            job("h2", Source::Uplink(0), &tunnelled)?,
        ])?);
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
    Ok(vec![
        row("one, 50k flows", "million packets/s", one, None),
        row("two, 50k flows each", "million packets/s", two, None),
        row(
            "two, the same 100k flows in both, decapsulation",
            "million packets/s",
            shared,
            None,
        ),
        row("two over one", "times", ratio, Some((1.8, true))),
    ])
}
