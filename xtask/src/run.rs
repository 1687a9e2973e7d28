//! Runs commands, and prints progress and failures.
//!
//! Progress goes to standard error, so that standard output has only the output of `--json`.

use std::{
    ffi::OsStr,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Instant,
};

use anyhow::{Context, Result, bail};

/// The root of the workspace.
pub(crate) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .map_or_else(|| PathBuf::from("."), Path::to_path_buf)
}

/// Where tools and the eBPF object go, whatever the target directory of the workspace's own builds.
pub(crate) fn target() -> PathBuf {
    root().join("target")
}

/// A command that starts in the workspace's root.
pub(crate) fn command(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program);
    command.current_dir(root());
    command
}

/// The cargo that runs us.
pub(crate) fn cargo() -> Command {
    let mut cargo = command(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    // What it told us of our own package would reach build scripts, some of which run again for it: then a build by hand and one of ours would
    // each undo the other.
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("CARGO_PKG_") {
            cargo.env_remove(name);
        }
    }
    for name in ["CARGO_MANIFEST_DIR", "CARGO_MANIFEST_PATH"] {
        cargo.env_remove(name);
    }
    cargo
}

fn shown(command: &Command) -> String {
    let mut line = command.get_program().to_string_lossy().into_owned();
    for arg in command.get_args() {
        line.push(' ');
        line.push_str(&arg.to_string_lossy());
    }
    line
}

/// Runs a step to its end, with its output shown, and prints how long it took.
pub(crate) fn step(what: &str, command: &mut Command) -> Result<()> {
    eprintln!("── {what}");
    let begun = Instant::now();
    command.stdin(Stdio::null());
    let status = command
        .status()
        .with_context(|| format!("cannot start `{}`", shown(command)))?;
    let seconds = begun.elapsed().as_secs_f64();
    if !status.success() {
        bail!(
            "{what}: `{}` failed after {seconds:.1} s ({status})",
            shown(command)
        );
    }
    eprintln!("   {what}: {seconds:.1} s");
    Ok(())
}

/// The standard output of a command that must succeed.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    let out = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot start `{}`", shown(command)))?;
    if !out.status.success() {
        bail!(
            "`{}` failed: {}",
            shown(command),
            String::from_utf8_lossy(&out.stderr).trim()
        );
    }
    Ok(String::from_utf8_lossy(&out.stdout).into_owned())
}
