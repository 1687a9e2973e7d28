//! Builds the programs that users run, and starts the lab and the benchmarks.

use std::{ffi::OsString, os::unix::process::CommandExt, path::PathBuf};

use anyhow::{Context, Result};

use crate::{run, setup};

/// The packages whose programs the user runs.
const PROGRAMS: [&str; 3] = ["weftd", "weft-controller", "weftctl"];

/// Release builds of weftd, weft-controller and weftctl, and of the programs of `also`.
pub(crate) fn build(also: &[&str]) -> Result<()> {
    let mut cargo = run::cargo();
    cargo.args(["build", "--release", "--bins"]);
    for package in PROGRAMS.iter().chain(also) {
        cargo.args(["--package", package]);
    }
    run::step("release build", &mut cargo)
}

fn release_dir() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR")
        .map_or_else(run::target, |dir| run::root().join(dir))
        .join("release")
}

/// Becomes `program` from the release directory.
fn become_program(program: &str, args: &[OsString]) -> Result<()> {
    let path = release_dir().join(program);
    let error = run::command(&path).args(args).exec();
    Err(error).with_context(|| format!("cannot start {}", path.display()))
}

/// `weft-lab COMMAND ARGS…`
pub(crate) fn lab(command: &str, args: &[OsString]) -> Result<()> {
    setup::setup()?;
    if args.first().is_some_and(|action| action == "vms") {
        setup::machines()?;
    }
    build(&["weft-tests"])?;
    let mut all = vec![OsString::from(command)];
    all.extend_from_slice(args);
    become_program("weft-lab", &all)
}

/// `weft-bench ARGS…`
pub(crate) fn bench(args: &[OsString]) -> Result<()> {
    setup::setup()?;
    if args.iter().any(|arg| arg == "--peers") {
        setup::peers()?;
    }
    build(&["weft-tests", "weft-bench"])?;
    become_program("weft-bench", args)
}
