//! `cargo xtask test model`: the differential test of `dataplane/tests/model`, for a given number of packets.

use std::fs;

use anyhow::{Context, Result};

use crate::{run, setup};

/// Compares so many packets, and prints the figures as one line of JSON, also when some did not agree.
pub(crate) fn model(packets: u64, seed: u64) -> Result<()> {
    setup::setup()?;
    let report = run::target().join("model.json");
    if report.exists() {
        fs::remove_file(&report).with_context(|| format!("cannot remove {}", report.display()))?;
    }
    let result = run::step(
        "model",
        run::cargo()
            .args(["test", "--release", "--package", "weft-dataplane"])
            .args(["--test", "model", "--", "pipelines_do_what_the_model_says"])
            .args(["--exact", "--nocapture"])
            .env("WEFT_MODEL_PACKETS", packets.to_string())
            .env("WEFT_MODEL_SEED", seed.to_string())
            .env("WEFT_MODEL_REPORT", &report),
    );
    if let Ok(line) = fs::read_to_string(&report) {
        println!("{}", line.trim());
    }
    result
}
