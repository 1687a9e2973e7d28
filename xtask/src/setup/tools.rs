//! Cargo's helpers: programs that are built from crates, at pinned versions, into `target/tools`.

use std::{fs, path::PathBuf};

use anyhow::{Context, Result};

use crate::run;

/// A program and the crate that it comes from, which are of one name.
pub(crate) struct Tool {
    name: &'static str,
    version: &'static str,
    /// Whether it pays to optimize it: not what runs for seconds and builds for minutes.
    is_optimized: bool,
}

/// Licences, sources, duplicates and known faults of what comes in from outside.
pub(crate) const DENY: Tool = Tool {
    name: "cargo-deny",
    version: "0.20.2",
    is_optimized: false,
};
/// Dependencies that nothing uses.
pub(crate) const MACHETE: Tool = Tool {
    name: "cargo-machete",
    version: "0.9.2",
    is_optimized: true,
};
/// Mutation testing.
pub(crate) const MUTANTS: Tool = Tool {
    name: "cargo-mutants",
    version: "27.1.0",
    is_optimized: true,
};

impl Tool {
    /// The program, which is built if it is not there or of another version.
    pub(crate) fn program(&self) -> Result<PathBuf> {
        let Self {
            name,
            version,
            is_optimized,
        } = self;
        let tools = run::target().join("tools");
        let program = tools.join("bin").join(name);
        let stamp = tools.join(format!("{name}.stamp"));
        if program.exists() && fs::read_to_string(&stamp).is_ok_and(|found| found == *version) {
            return Ok(program);
        }
        eprintln!(
            "set-up: installing {name} {version} into {}",
            tools.display()
        );
        let mut install = run::cargo();
        install
            .args(["install", name, "--version", version, "--locked"])
            .args(["--quiet", "--force", "--root"])
            .arg(&tools);
        if !is_optimized {
            install.arg("--debug").env("CARGO_PROFILE_DEV_DEBUG", "0");
        }
        run::step(name, &mut install)?;
        fs::write(&stamp, version).with_context(|| format!("cannot write {}", stamp.display()))?;
        Ok(program)
    }
}
