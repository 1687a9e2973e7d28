//! `cargo xtask test threads`: checks data that threads share with the model checker loom (`dataplane/src/sync.rs`).

use std::fs;

use anyhow::{Context, Result};

use crate::{run, setup};

/// The library of weft-dataplane, and the crate that its tests share with others, are built once more for this: quickly, since the checker and not the code under it takes the time.
const PROFILE: [&str; 3] = ["codegen-units=256", "opt-level=0", "debug=0"];

/// Runs every model in all orders with so many interruptions at most, or with as many as it asks for, as far as it comes within so many
/// seconds, and prints the figures as one line of JSON, also when a model failed.
pub(crate) fn threads(preemptions: Option<u32>, seconds: u64) -> Result<()> {
    setup::setup()?;
    let report = run::target().join("threads.jsonl");
    if report.exists() {
        fs::remove_file(&report).with_context(|| format!("cannot remove {}", report.display()))?;
    }
    let mut cargo = run::cargo();
    cargo
        .args(["test", "--release", "--package", "weft-dataplane", "--lib"])
        .args(["--features", "loom"]);
    for setting in PROFILE {
        for package in ["weft-dataplane", "weft-fabric"] {
            cargo.arg("--config");
            cargo.arg(format!("profile.release.package.{package}.{setting}"));
        }
    }
    cargo
        .args(["--", "::threads::"])
        .env("WEFT_THREADS_SECONDS", seconds.to_string())
        .env("WEFT_THREADS_REPORT", &report);
    if let Some(preemptions) = preemptions {
        cargo.env("WEFT_THREADS_PREEMPTIONS", preemptions.to_string());
    }
    let result = run::step("threads", &mut cargo);
    if let Ok(lines) = fs::read_to_string(&report) {
        let models: Vec<&str> = lines.lines().collect();
        println!(
            r#"{{"suite":"threads","passed":{},"models":[{}]}}"#,
            result.is_ok(),
            models.join(",")
        );
    }
    result
}
