//! Checks of dependencies (licences, sources, duplicates, advisories, unused ones), of the minimum Rust version, and of names in the
//! documentation.

use std::{fs, path::Path};

use anyhow::{Context, Result, bail};

use crate::{names, run, setup::tools};

/// Workspaces of their own, which cannot inherit from the root's.
const OTHERS: [&str; 2] = ["ebpf/programs", "fuzz"];

/// All of it, cheapest first.
pub(crate) fn check() -> Result<()> {
    names::check()?;
    minimum_version()?;
    run::step(
        "unused dependencies",
        run::command(tools::MACHETE.program()?).arg("."),
    )?;
    let deny = tools::DENY.program()?;
    run::step(
        "licences, sources, duplicates",
        deny_command(&deny)
            .arg("check")
            .args(["--allow", "license-exception-not-encountered"])
            .args(["licenses", "bans", "sources"]),
    )?;
    for workspace in OTHERS {
        run::step(
            &format!("licences and sources of {workspace}"),
            deny_command(&deny)
                .arg(format!("--manifest-path={workspace}/Cargo.toml"))
                .args(["--config", "deny.toml", "check"])
                .args(["--allow", "license-not-encountered"])
                .args(["--allow", "license-exception-not-encountered"])
                .args(["licenses", "sources"]),
        )?;
    }
    advisories(&deny)
}

fn deny_command(deny: &Path) -> std::process::Command {
    let mut command = run::command(deny);
    command.args(["--log-level", "error"]);
    command
}

/// Known vulnerabilities (RustSec). If the database cannot be fetched, a warning is printed and nothing is checked: a machine without a way there is
/// to be able to run the other tests.
fn advisories(deny: &Path) -> Result<()> {
    let fetched = run::command(deny).args(["fetch", "db"]).output();
    let fetched = fetched.context("cannot start cargo-deny")?;
    if !fetched.status.success() {
        let text = String::from_utf8_lossy(&fetched.stderr);
        let why = text.lines().map(str::trim).rfind(|line| !line.is_empty());
        eprintln!(
            "── advisories: NOT CHECKED, for RustSec's database cannot be fetched: {}",
            why.unwrap_or("no reason given")
        );
        return Ok(());
    }
    run::step(
        "advisories",
        run::command(deny).args(["check", "--disable-fetch", "advisories"]),
    )
}

/// `rust-version` is set once, and every package inherits it. That the code keeps to it is checked by clippy (`incompatible_msrv`), and by the
/// build where the compiler is of that version.
fn minimum_version() -> Result<()> {
    let wanted = stated(Path::new("Cargo.toml"))?
        .context("Cargo.toml says no rust-version of the workspace")?;
    let members = run::output(run::command("git").args(["ls-files", "--", "*Cargo.toml"]))?;
    for manifest in members.lines().filter(|manifest| *manifest != "Cargo.toml") {
        let apart = OTHERS.iter().any(|other| manifest.starts_with(other));
        let stated = stated(Path::new(manifest))?;
        let right = if apart {
            stated.as_deref() == Some(&wanted)
        } else {
            stated.is_none() && inherits(manifest)?
        };
        if !right {
            bail!("{manifest}: its rust-version is not the workspace's, {wanted}");
        }
    }
    let version = run::output(run::command("rustc").arg("--version"))?;
    let here = version.split_whitespace().nth(1).unwrap_or_default();
    if here.starts_with(&format!("{wanted}.")) {
        eprintln!("── minimum Rust version: {wanted}, which is the compiler of this run");
    } else {
        eprintln!(
            "── minimum Rust version: {wanted}; this run compiles with {here}, and lints alone see to it"
        );
    }
    Ok(())
}

/// The `rust-version` in a manifest.
fn stated(manifest: &Path) -> Result<Option<String>> {
    let path = run::root().join(manifest);
    let text =
        fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let value = |line: &str| {
        let (name, value) = line.split_once('=')?;
        (name.trim() == "rust-version").then(|| value.trim().trim_matches('"').to_owned())
    };
    Ok(text.lines().find_map(value))
}

fn inherits(manifest: &str) -> Result<bool> {
    let text = fs::read_to_string(run::root().join(manifest))?;
    Ok(text
        .lines()
        .any(|line| line.trim() == "rust-version.workspace = true"))
}
