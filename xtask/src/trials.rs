//! `cargo xtask test faults` and `overload`: end-to-end tests that go on for as long as one likes, and leave figures.

use std::fs;

use anyhow::{Context, Result};

use crate::{binaries, run, setup};

/// Runs one test of the end-to-end suite with a setting, and prints the figures that it leaves as one line of JSON.
pub(crate) fn trial(test: &str, setting: (&str, u64), report: &str) -> Result<()> {
    setup::setup()?;
    binaries::build(&[])?;
    let file = run::target().join(format!("{test}.json"));
    if file.exists() {
        fs::remove_file(&file).with_context(|| format!("cannot remove {}", file.display()))?;
    }
    run::step(
        test,
        run::cargo()
            .args([
                "test",
                "--release",
                "--package",
                "weft-tests",
                "--test",
                test,
            ])
            .env(setting.0, setting.1.to_string())
            .env(report, &file),
    )?;
    let line = fs::read_to_string(&file).with_context(|| format!("{test} left no figures"))?;
    println!("{}", line.trim());
    Ok(())
}
