//! The pipelines against a model of what they should do: random fabrics, random traffic, changes in between.
//!
//! `semantics` is the model, a slow and plain reading of the design's packet path that shares no code with the pipeline. `generate` makes
//! plans, `traffic`, `questions`, `connection` and `craft` make frames of them, `compare` sends them through both. Every frame that a port gets, every
//! frame between hosts and every reason for a drop is compared; what disagrees is shrunk to its least.
//!
//! `WEFT_MODEL_CASES` says how many fabrics are tried, `WEFT_MODEL_SEED` which; the same seed tries the same ones.

#![allow(clippy::unwrap_used)]

mod compare;
mod connection;
mod craft;
mod generate;
mod questions;
mod semantics;
mod traffic;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::time::Instant;

use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

use compare::Run;

/// Without optimisation a case takes ten times as long.
const CASES: u32 = if cfg!(debug_assertions) { 500 } else { 6_000 };

fn setting(name: &str, default: u32) -> u32 {
    let value = std::env::var(name).ok().and_then(|text| text.parse().ok());
    value.unwrap_or(default)
}

#[test]
fn pipelines_do_what_the_model_says() {
    let (cases, seed) = (
        setting("WEFT_MODEL_CASES", CASES),
        setting("WEFT_MODEL_SEED", 0),
    );
    let config = Config {
        cases,
        failure_persistence: None,
        max_shrink_iters: 20_000,
        ..Config::default()
    };
    let mut bytes = [0; 32];
    bytes[..4].copy_from_slice(&seed.to_le_bytes());
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &bytes);
    let mut runner = TestRunner::new_with_rng(config, rng);
    let totals = RefCell::new((0, 0, BTreeMap::new(), 0));
    let start = Instant::now();
    let result = runner.run(
        &(generate::fabric(), generate::steps()),
        |(fabric, steps)| {
            let mut run = Run::new(fabric);
            for step in &steps {
                run.step(step)?;
            }
            run.finish()?;
            let mut totals = totals.borrow_mut();
            totals.0 += run.frames;
            totals.1 += run.delivered;
            totals.3 += run.asked;
            for (reason, count) in run.reasons {
                *totals.2.entry(reason.name()).or_insert(0) += count;
            }
            Ok(())
        },
    );
    let (frames, delivered, reasons, asked) = totals.into_inner();
    let seconds = start.elapsed().as_secs_f64();
    println!(
        "{frames} frames compared in {cases} fabrics (seed {seed}, {seconds:.1} s), {delivered} delivered, {asked} for metadata"
    );
    println!("dropped: {reasons:?}");
    if let Err(error) = result {
        panic!("{error}");
    }
}
