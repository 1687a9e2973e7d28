//! `cargo xtask test`: what continuous integration runs, cheapest check first.

use std::time::Instant;

use anyhow::Result;

use crate::{binaries, coverage, fuzz, hygiene, openstack, run, setup, threads};

/// Of each target: enough to play the seeds, and to see that the targets work.
const SECONDS_OF_FUZZING: u64 = 4;
/// Of each model of threads.
const SECONDS_OF_A_MODEL: u64 = 6;

/// Everything that is not ours is built once.
pub(crate) fn test() -> Result<()> {
    let begun = Instant::now();
    setup::setup()?;
    run::step("formatting", run::cargo().args(["fmt", "--all", "--check"]))?;
    run::step(
        "formatting of the XDP programs",
        run::cargo()
            .args(["fmt", "--check"])
            .current_dir(run::root().join("ebpf/programs")),
    )?;
    run::step(
        "formatting of the fuzz targets",
        run::cargo()
            .args(["fmt", "--check"])
            .current_dir(run::root().join("fuzz")),
    )?;
    hygiene::check()?;
    run::step(
        "lints",
        run::cargo().args([
            "clippy",
            "--release",
            "--workspace",
            "--all-targets",
            "--features",
            "weft-dataplane/fuzzing",
            "--",
            "-D",
            "warnings",
        ]),
    )?;
    run::step(
        "documentation",
        run::cargo()
            .args(["doc", "--release", "--workspace", "--no-deps"])
            .env("RUSTDOCFLAGS", "-D warnings"),
    )?;
    binaries::build(&[])?;
    // What users run is compared with the model; all other tests run in a build that is quick to make, and that counts what they reach.
    run::step(
        "model",
        run::cargo().args([
            "test",
            "--release",
            "-p",
            "weft-dataplane",
            "--test",
            "model",
        ]),
    )?;
    coverage::coverage()?;
    // Coverage leaves them out.
    run::step(
        "examples in the documentation",
        run::cargo().args([
            "test",
            "--release",
            "--doc",
            "--workspace",
            "--exclude",
            "weft-tests",
        ]),
    )?;
    let mut rest = run::cargo();
    rest.args([
        "test",
        "--release",
        "--workspace",
        "--exclude",
        "weft-tests",
    ]);
    for package in coverage::packages() {
        rest.args(["--exclude", package]);
    }
    run::step("tests of the rest", &mut rest)?;
    threads::threads(None, SECONDS_OF_A_MODEL)?;
    fuzz::fuzz(SECONDS_OF_FUZZING, false, &[])?;
    openstack::unit_tests()?;
    // The end-to-end tests share the machine's network and cores: one at a time.
    run::step(
        "end-to-end tests",
        run::cargo().args([
            "test",
            "--release",
            "--package",
            "weft-tests",
            "--",
            "--test-threads=1",
        ]),
    )?;
    eprintln!("── all passed in {:.0} s", begun.elapsed().as_secs_f64());
    Ok(())
}
