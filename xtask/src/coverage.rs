//! Line coverage of the unit and integration tests, by crate.
//!
//! This program acts as cargo's wrapper around rustc and builds our own crates once more, instrumented and with little optimisation. Cargo
//! keeps these builds apart, and shares those of all other crates.

use std::{
    collections::BTreeMap,
    fs,
    path::Path,
    process::{Command, ExitCode, Stdio},
};

use anyhow::{Context, Result};

use crate::{binaries, run, setup};

/// Packages that are measured, each with the directory of its source.
const MEASURED: [(&str, &str); 7] = [
    ("weft-proto", "proto/src/"),
    ("weft-process", "process/src/"),
    ("weft-dataplane", "dataplane/src/"),
    ("weft-fabric", "fabric/src/"),
    ("weftd", "weftd/src/"),
    ("weft-controller", "controller-api/src/"),
    ("weftctl", "cli/src/"),
];
/// The packages whose tests [`coverage`] runs.
pub(crate) fn packages() -> impl Iterator<Item = &'static str> {
    MEASURED.into_iter().map(|(package, _)| package)
}

/// Set in the environment of the cargo for which we are rustc.
const STAND_IN: &str = "WEFT_COVERAGE_STAND_IN";
/// Packets that the model compares: code that it reaches, it reaches soon.
const MODEL_PACKETS: &str = "20000";

/// As cargo's wrapper around rustc for the workspace's own crates. None: this program was started as itself.
pub(crate) fn stand_in_for_rustc() -> Option<ExitCode> {
    std::env::var_os(STAND_IN)?;
    let mut args = std::env::args_os().skip(1);
    let status = Command::new(args.next()?)
        .args(args)
        .arg("-Cinstrument-coverage")
        .status();
    Some(match status {
        Ok(status) if status.success() => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    })
}

/// Lines that there are, and those that ran.
#[derive(Debug, Default, Clone, Copy)]
struct Lines {
    all: u64,
    missed: u64,
}

impl Lines {
    fn percent(self) -> f64 {
        100.0 * (self.all - self.missed) as f64 / self.all.max(1) as f64
    }
}

/// Runs the tests, and prints one line.
pub(crate) fn coverage() -> Result<()> {
    setup::setup()?;
    let llvm = setup::llvm_tools()?;
    let directory = run::target().join("coverage");
    if directory.exists() {
        fs::remove_dir_all(&directory)
            .with_context(|| format!("cannot remove {}", directory.display()))?;
    }
    fs::create_dir_all(&directory)?;
    let result = measure(&directory).and_then(|objects| report(&llvm, &directory, &objects));
    // The programs that users run take the place of the instrumented ones again, whatever came of these.
    binaries::build(&[])?;
    result
}

/// What the counters say.
fn report(llvm: &Path, directory: &Path, objects: &[String]) -> Result<()> {
    let profile = directory.join("all.profdata");
    let raw = fs::read_dir(directory)?.filter_map(|entry| Some(entry.ok()?.path()));
    run::output(
        run::command(llvm.join("llvm-profdata"))
            .args(["merge", "--sparse", "-o"])
            .arg(&profile)
            .args(raw.filter(|path| path.extension().is_some_and(|end| end == "profraw"))),
    )?;
    let mut report = run::command(llvm.join("llvm-cov"));
    report.arg("report").arg("--instr-profile").arg(&profile);
    for object in objects {
        report.arg("--object").arg(object);
    }
    let table = run::output(&mut report)?;
    fs::write(directory.join("report.txt"), &table)?;
    println!("{}", line(&table));
    Ok(())
}

/// Builds and runs the instrumented tests; returns the programs that hold the counters' places.
fn measure(directory: &Path) -> Result<Vec<String>> {
    let stand_in = std::env::current_exe().context("cannot find this program")?;
    let cargo = || {
        let mut cargo = run::cargo();
        cargo.args(["test", "--release", "--lib", "--bins", "--tests"]);
        for (package, _) in MEASURED {
            cargo.args(["--package", package]);
            for setting in ["codegen-units=256", "opt-level=0", "debug=0"] {
                cargo.arg("--config");
                cargo.arg(format!("profile.release.package.{package}.{setting}"));
            }
        }
        cargo
            .env("RUSTC_WORKSPACE_WRAPPER", &stand_in)
            .env(STAND_IN, "1")
            .env("WEFT_MODEL_PACKETS", MODEL_PACKETS)
            .env("LLVM_PROFILE_FILE", directory.join("%p-%4m.profraw"));
        cargo
    };
    let built = run::output(
        cargo()
            .args(["--no-run", "--message-format=json"])
            .stderr(Stdio::inherit()),
    )?;
    let mut objects: Vec<String> = built
        .split(r#""executable":""#)
        .skip(1)
        .filter_map(|rest| Some(rest.split_once('"')?.0.to_owned()))
        .collect();
    objects.sort();
    objects.dedup();
    run::step("unit and integration tests", &mut cargo())?;
    Ok(objects)
}

/// Sums LLVM's table up by crate. Its columns are a file, then regions, functions, lines and branches, each as all, missed, per cent.
fn line(table: &str) -> String {
    let mut crates = BTreeMap::<&str, Lines>::new();
    let mut total = Lines::default();
    let numbers = |row: &str| -> Option<Lines> {
        let mut columns = row.split_whitespace().skip(7);
        Some(Lines {
            all: columns.next()?.parse().ok()?,
            missed: columns.next()?.parse().ok()?,
        })
    };
    for row in table.lines() {
        let file = row.split_whitespace().next().unwrap_or_default();
        let found = MEASURED.iter().find(|(_, source)| file.contains(source));
        let (Some((package, _)), Some(lines)) = (found, numbers(row)) else {
            continue;
        };
        let sum = crates.entry(package).or_default();
        for sum in [sum, &mut total] {
            sum.all += lines.all;
            sum.missed += lines.missed;
        }
    }
    let parts: Vec<String> = crates
        .iter()
        .map(|(package, lines)| format!("{package} {:.1} %", lines.percent()))
        .collect();
    format!(
        "coverage of lines by unit and integration tests: {:.1} % ({}; target/coverage/report.txt)",
        total.percent(),
        parts.join(", ")
    )
}
