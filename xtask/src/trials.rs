//! `cargo xtask test faults`, `overload`, `services` and `programs`: end-to-end tests of adjustable length that write figures. `machines`: those that
//! take too long for every run.

use std::{fmt::Display, fs, path::Path};

use anyhow::{Context, Result};

use crate::{binaries, run, setup};

/// Hosts as virtual machines.
pub(crate) fn machines() -> Result<()> {
    setup::setup()?;
    setup::machines()?;
    binaries::build(&[])?;
    run::step(
        "machines",
        run::cargo().args([
            "test",
            "--release",
            "--package",
            "weft-tests",
            "--test",
            "machines",
            "--",
            "--test-threads=1",
        ]),
    )
}

/// Runs a file of the end-to-end suite with a setting; it leaves figures where the variable `report` says.
fn run(test: &str, setting: (&str, &dyn Display), report: (&str, &Path)) -> Result<()> {
    run_with(test, &[setting], report)
}

/// The same with several settings.
fn run_with(test: &str, settings: &[(&str, &dyn Display)], report: (&str, &Path)) -> Result<()> {
    let mut cargo = run::cargo();
    cargo.args([
        "test",
        "--release",
        "--package",
        "weft-tests",
        "--test",
        test,
        "--",
        "--test-threads=1",
    ]);
    for (name, value) in settings {
        cargo.env(name, value.to_string());
    }
    run::step(test, cargo.env(report.0, report.1))
}

/// A JSON object's members, as they stand in a file.
fn members(file: &Path) -> Result<String> {
    let text = fs::read_to_string(file)
        .with_context(|| format!("there are no figures in {}", file.display()))?;
    let members = text
        .trim()
        .strip_prefix('{')
        .and_then(|text| text.strip_suffix('}'));
    members
        .map(str::to_owned)
        .with_context(|| format!("{} is not a JSON object", file.display()))
}

/// Those of all files in a directory.
fn members_of_all(directory: &Path) -> Result<Vec<String>> {
    let mut files: Vec<_> = fs::read_dir(directory)
        .with_context(|| format!("there are no figures in {}", directory.display()))?
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<Result<_, _>>()?;
    files.sort();
    files.iter().map(|file| members(file)).collect()
}

fn remove(path: &Path) -> Result<()> {
    let removed = if path.is_dir() {
        fs::remove_dir_all(path)
    } else if path.exists() {
        fs::remove_file(path)
    } else {
        Ok(())
    };
    removed.with_context(|| format!("cannot remove {}", path.display()))
}

/// Every process killed, and everything around them broken, so often. Prints the figures as one line of JSON.
pub(crate) fn faults(rounds: u64) -> Result<()> {
    setup::setup()?;
    binaries::build(&[])?;
    let setting = ("WEFT_FAULT_ROUNDS", &rounds as &dyn Display);
    let (kills, outages) = (
        run::target().join("faults.json"),
        run::target().join("outages"),
    );
    remove(&kills)?;
    remove(&outages)?;
    run("faults", setting, ("WEFT_FAULT_REPORT", &kills))?;
    run("outages", setting, ("WEFT_OUTAGE_REPORT", &outages))?;
    run("queues", setting, ("WEFT_OUTAGE_REPORT", &outages))?;
    let mut all = vec![members(&kills)?];
    all.extend(members_of_all(&outages)?);
    println!("{{{}}}", all.join(","));
    Ok(())
}

/// What guests expect of a VPC: a load balancer whose members die and come and go, addresses that keepalived moves, multicast, and programs that speak by
/// it. Members and holders of addresses are killed so often. Prints the figures as one line of JSON.
pub(crate) fn services(rounds: u64) -> Result<()> {
    /// By multicast.
    const PROGRAMS: &str = "keepalived mdns multicast ospf2 ospf3 rip2 ripng";
    setup::setup()?;
    binaries::build(&[])?;
    let (figures, programs) = (
        run::target().join("services"),
        run::target().join("programs.json"),
    );
    remove(&figures)?;
    remove(&programs)?;
    let settings: [(&str, &dyn Display); 4] = [
        ("WEFT_SERVICES_ROUNDS", &rounds),
        ("WEFT_SERVICES_RATE", &1000),
        ("WEFT_SERVICES_CONNECTIONS", &10_000),
        ("WEFT_SERVICES_SECONDS", &30),
    ];
    let report = ("WEFT_SERVICES_REPORT", figures.as_path());
    for test in ["balancer_load", "virtual_addresses", "multicast"] {
        run_with(test, &settings, report)?;
    }
    let only: [(&str, &dyn Display); 2] =
        [("WEFT_PROGRAMS", &"all"), ("WEFT_PROGRAMS_ONLY", &PROGRAMS)];
    run_with("programs", &only, ("WEFT_PROGRAMS_REPORT", &programs))?;
    let mut all = members_of_all(&figures)?;
    all.push(members(&programs)?);
    println!("{{{}}}", all.join(","));
    Ok(())
}

/// Controllers and members of etcd killed in turn under changes, so often. Prints the figures as one line of JSON.
pub(crate) fn controllers(rounds: u64) -> Result<()> {
    setup::setup()?;
    let file = run::target().join("controllers.json");
    remove(&file)?;
    run::step(
        "controllers",
        run::cargo()
            .args(["test", "--release", "--package", "weft-controller"])
            .args(["--test", "controllers", "--", "killed"])
            .env("WEFT_CONTROLLER_ROUNDS", rounds.to_string())
            .env("WEFT_CONTROLLER_REPORT", &file),
    )?;
    println!("{{{}}}", members(&file)?);
    Ok(())
}

/// One tenant floods for so many seconds a flood. Prints the figures as one line of JSON.
pub(crate) fn overload(seconds: u64) -> Result<()> {
    setup::setup()?;
    binaries::build(&[])?;
    let file = run::target().join("overload.json");
    remove(&file)?;
    let setting = ("WEFT_OVERLOAD_SECONDS", &seconds as &dyn Display);
    run("overload", setting, ("WEFT_OVERLOAD_REPORT", &file))?;
    println!("{{{}}}", members(&file)?);
    Ok(())
}

/// The gateway host in use killed, cut off, without a link on the segment and frozen, so often each, under 1,000 TCP connections. Prints the figures as one line of JSON.
pub(crate) fn gateways(rounds: u64) -> Result<()> {
    setup::setup()?;
    binaries::build(&[])?;
    let file = run::target().join("gateways.json");
    remove(&file)?;
    let setting = ("WEFT_GATEWAY_ROUNDS", &rounds as &dyn Display);
    run("gateways", setting, ("WEFT_GATEWAY_REPORT", &file))?;
    println!("{{{}}}", members(&file)?);
    Ok(())
}

/// Real programs, each in every way, and the captures of them. Prints the figures as one line of JSON.
pub(crate) fn programs() -> Result<()> {
    setup::setup()?;
    binaries::build(&[])?;
    let (file, played) = (
        run::target().join("programs.json"),
        run::target().join("replay.json"),
    );
    remove(&file)?;
    remove(&played)?;
    let setting = ("WEFT_PROGRAMS", &"all" as &dyn Display);
    run("replay", setting, ("WEFT_REPLAY_REPORT", &played))?;
    run("programs", setting, ("WEFT_PROGRAMS_REPORT", &file))?;
    println!("{{{},{}}}", members(&played)?, members(&file)?);
    Ok(())
}
