//! `cargo xtask test fuzz`: the targets of `fuzz/`, built with coverage feedback for libFuzzer on the stable compiler, and run.
//!
//! Only weft's own crates are instrumented, by this program as cargo's wrapper around rustc; the builds of all others are shared with the
//! main build. Each target starts from the seeds in `fuzz/corpus/TARGET`, among them every input that once broke something. New inputs of a
//! run are stored in `target/fuzz/corpus/TARGET` for the next one, and an input that fails in `target/fuzz/failures`.

use std::{
    fs,
    process::{Command, ExitCode, Stdio},
    thread,
    time::Instant,
};

use anyhow::{Context, Result, bail};

use crate::{run, setup};

const TARGETS: [&str; 9] = [
    "config",
    "gateway_channel",
    "node_state",
    "outside_packets",
    "port_packets",
    "topology",
    "uplink_packets",
    "vhost_messages",
    "vhost_ring",
];
/// Set in the environment of the cargo for which we are rustc: `PLAIN`, or `ADDRESS` for LLVM's address sanitizer besides.
const STAND_IN: &str = "WEFT_FUZZ_STAND_IN";
const PLAIN: &str = "plain";
const ADDRESS: &str = "address";
/// LLVM's coverage pass as libFuzzer wants it (clang.llvm.org/docs/SanitizerCoverage.html).
const INSTRUMENTATION: [&str; 6] = [
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
    "-Ccodegen-units=16",
];
/// Bytes of an input at most, and megabytes that a target may take.
const MAX_INPUT: u32 = 4096;
const MAX_MEMORY: u32 = 1024;
/// Seconds after which an input counts as one that hangs.
const MAX_TIME: u32 = 10;

/// As cargo's wrapper around rustc: runs it, with the instrumentation where the crate is ours. None: this program was started as itself.
pub(crate) fn stand_in_for_rustc() -> Option<ExitCode> {
    let kind = std::env::var_os(STAND_IN)?;
    let mut args = std::env::args_os().skip(1);
    let mut rustc = Command::new(args.next()?);
    let args: Vec<_> = args.collect();
    let ours = args
        .windows(2)
        .any(|pair| pair[0] == "--crate-name" && is_ours(&pair[1].to_string_lossy()));
    rustc.args(&args);
    if ours {
        rustc.args(INSTRUMENTATION);
    }
    if ours && kind == ADDRESS {
        // The flag is not stable, what it does has been for long: the runtime comes with the stable compiler.
        rustc.env("RUSTC_BOOTSTRAP", "1").arg("-Zsanitizer=address");
    }
    let status = rustc.status();
    Some(match status {
        Ok(status) if status.success() => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    })
}

fn is_ours(name: &str) -> bool {
    name.starts_with("weft_") || name == "weftd" || TARGETS.contains(&name)
}

/// What came of a target.
struct Outcome {
    target: &'static str,
    passed: bool,
    executions: u64,
    seconds: f64,
    edges: u64,
    peak_megabytes: u64,
}

/// Runs the named targets, or all, for so many seconds each, with the address sanitizer or without, and prints the figures as one line of JSON.
pub(crate) fn fuzz(seconds: u64, address: bool, names: &[String]) -> Result<()> {
    setup::setup()?;
    let unknown = names.iter().find(|name| !TARGETS.contains(&name.as_str()));
    if let Some(name) = unknown {
        bail!(
            "there is no target {name}; there are {}",
            TARGETS.join(", ")
        );
    }
    build(address)?;
    let chosen = TARGETS.into_iter();
    let chosen: Vec<&'static str> = chosen
        .filter(|target| names.is_empty() || names.iter().any(|name| name == target))
        .collect();
    let lanes = thread::available_parallelism().map_or(1, usize::from);
    let mut outcomes = Vec::new();
    for targets in chosen.chunks(lanes) {
        let running = thread::scope(|scope| {
            let start = |target: &&'static str| {
                let target = *target;
                scope.spawn(move || one(target, seconds, address))
            };
            let running: Vec<_> = targets.iter().map(start).collect();
            let ends = running.into_iter().map(thread::ScopedJoinHandle::join);
            ends.collect::<Vec<_>>()
        });
        for end in running {
            let Ok(outcome) = end else {
                bail!("a thread that ran a target panicked");
            };
            outcomes.push(outcome?);
        }
    }
    let failed: Vec<&str> = outcomes
        .iter()
        .filter(|o| !o.passed)
        .map(|o| o.target)
        .collect();
    println!("{}", json(&outcomes, address));
    if !failed.is_empty() {
        bail!(
            "failed: {}; the inputs are in target/fuzz/failures",
            failed.join(", ")
        );
    }
    Ok(())
}

fn json(outcomes: &[Outcome], address: bool) -> String {
    let one = |outcome: &Outcome| {
        let Outcome {
            target,
            passed,
            executions,
            seconds,
            edges,
            peak_megabytes,
        } = outcome;
        format!(
            r#"{{"target":"{target}","passed":{passed},"executions":{executions},"seconds":{seconds:.0},"edges":{edges},"peak_megabytes":{peak_megabytes}}}"#
        )
    };
    let all: Vec<String> = outcomes.iter().map(one).collect();
    let failures = outcomes.iter().filter(|outcome| !outcome.passed).count();
    format!(
        r#"{{"suite":"fuzz","address_sanitizer":{address},"failures":{failures},"targets":[{}]}}"#,
        all.join(",")
    )
}

/// The cargo profile of a build, which is also the name of its folder. Without the sanitizer it is the one of the programs that users run, so that what
/// is not ours is shared with them.
fn profile(address: bool) -> &'static str {
    if address { ADDRESS } else { "release" }
}

/// Builds all targets.
fn build(address: bool) -> Result<()> {
    let stand_in = std::env::current_exe().context("cannot find this program")?;
    run::step(
        "fuzz targets",
        run::cargo()
            .args(["build", "--bins", "--profile", profile(address)])
            .args(["--manifest-path", "fuzz/Cargo.toml"])
            .env("CARGO_TARGET_DIR", run::target())
            .env("RUSTC_WRAPPER", stand_in)
            .env(STAND_IN, if address { ADDRESS } else { PLAIN }),
    )
}

fn one(target: &'static str, seconds: u64, address: bool) -> Result<Outcome> {
    let kept = run::target().join("fuzz");
    let (finds, failures) = (kept.join("corpus").join(target), kept.join("failures"));
    for directory in [&finds, &failures] {
        fs::create_dir_all(directory)
            .with_context(|| format!("cannot make {}", directory.display()))?;
    }
    let log = kept.join(format!("{target}.log"));
    let file = fs::File::create(&log).with_context(|| format!("cannot make {}", log.display()))?;
    let begun = Instant::now();
    let status = run::command(run::target().join(profile(address)).join(target))
        .arg(&finds)
        .arg(run::root().join("fuzz/corpus").join(target))
        .arg(format!("-max_total_time={seconds}"))
        .arg(format!("-max_len={MAX_INPUT}"))
        .arg(format!("-rss_limit_mb={MAX_MEMORY}"))
        .arg(format!("-timeout={MAX_TIME}"))
        .arg(format!("-artifact_prefix={}/{target}-", failures.display()))
        .arg("-print_final_stats=1")
        // What was freed is kept from use for a while, to see who still uses it. Less of it than by default, which is a quarter of what a target may take.
        .env("ASAN_OPTIONS", "quarantine_size_mb=64")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(file)
        .status()
        .with_context(|| format!("cannot start {target}"))?;
    let text = fs::read(&log).with_context(|| format!("cannot read {}", log.display()))?;
    let text = String::from_utf8_lossy(&text);
    if !status.success() {
        let lines: Vec<&str> = text.lines().collect();
        let last = &lines[lines.len().saturating_sub(60)..];
        eprintln!("{}", last.join("\n"));
    }
    let outcome = Outcome {
        target,
        passed: status.success(),
        executions: last_number(&text, "stat::number_of_executed_units:"),
        seconds: begun.elapsed().as_secs_f64(),
        edges: last_number(&text, " cov: "),
        peak_megabytes: last_number(&text, "stat::peak_rss_mb:"),
    };
    eprintln!(
        "   {target}: {} executions, {} edges, {} MB at most, {}",
        outcome.executions,
        outcome.edges,
        outcome.peak_megabytes,
        if outcome.passed { "clean" } else { "FAILED" }
    );
    Ok(outcome)
}

/// The number behind the last occurrence of a label.
fn last_number(text: &str, label: &str) -> u64 {
    let found = text.rsplit_once(label).map(|(_, rest)| rest);
    let word = found.and_then(|rest| rest.split_whitespace().next());
    word.and_then(|word| word.parse().ok()).unwrap_or(0)
}
