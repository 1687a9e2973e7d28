//! `cargo xtask`: the one door to set-up, demo, test, bench and lab.
//!
//! Every command sets up first, so that a fresh machine needs nothing but a Rust toolchain. What is there is left alone: the
//! second run costs a fraction of a second.
#![forbid(unsafe_code)]

mod binaries;
mod coverage;
mod fuzz;
mod hygiene;
mod model;
mod mutants;
mod names;
mod run;
mod setup;
mod test;
mod threads;
mod trials;

use std::{ffi::OsString, process::ExitCode};

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(
    name = "cargo xtask",
    about = "set-up, demo, test, bench and lab of weft"
)]
struct Options {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Install what the build and the tests need, and build the XDP programs
    Setup,
    /// Formatting, lints, builds, all tests, documentation; or one kind of them alone, for long
    Test {
        #[command(subcommand)]
        only: Option<Only>,
    },
    /// Two hosts, two tenants, real packets; `--json`, `--keep`, `--guests`
    Demo {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<OsString>,
    },
    /// Benchmarks; `SUITE…`, `--peers`, `--json FILE`
    Bench {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<OsString>,
    },
    /// A lab to play in: `up` or `down`; `vms`: hosts as virtual machines
    Lab {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<OsString>,
    },
}

#[derive(Subcommand)]
enum Only {
    /// The pipelines beside the model of what they should do, on random fabrics with random traffic; the last line is JSON
    Model {
        /// How many packets to compare at least
        #[arg(long, default_value_t = 10_000_000)]
        packets: u64,
        /// Which packets: the same seed makes the same cases
        #[arg(long, default_value_t = 0)]
        seed: u64,
    },
    /// Fuzzers for everything that strangers may send; the last line is JSON
    Fuzz {
        /// How long each target runs
        #[arg(long, default_value_t = 60)]
        seconds: u64,
        /// With LLVM's address sanitizer: slower, and a read or write of memory that is not the target's own ends it
        #[arg(long)]
        address: bool,
        /// Which targets; all if none is named
        targets: Vec<String>,
    },
    /// What threads share, in every order that matters under the memory model; the last line is JSON
    Threads {
        /// How often a thread is interrupted at most in an order; each more takes about ten times as long. Each model has its own if none is given
        #[arg(long)]
        preemptions: Option<u32>,
        /// How long a model runs at most
        #[arg(long, default_value_t = 300)]
        seconds: u64,
    },
    /// The code broken one line at a time, to see whether the tests notice; the last line is JSON
    Mutants {
        /// Only the k-th of n parts of the mutants, counted from 0
        #[arg(long, value_name = "K/N")]
        shard: Option<String>,
        /// Of these files alone, named as from the workspace's root; all that `.cargo/mutants.toml` names if none is
        files: Vec<String>,
    },
    /// How many lines of code the unit and integration tests run
    Coverage,
    /// Licences, sources, duplicates and advisories of dependencies; which are unused; the minimum Rust version; names in the documentation
    Hygiene,
    /// Every process killed under traffic, again and again, networks cut, disks filled, threads halted; the last line is JSON
    Faults {
        /// How often each is killed; all else breaks a tenth as often
        #[arg(long, default_value_t = 100)]
        rounds: u64,
    },
    /// Real programs between workloads, weftd killed under each, and captures of them replayed; the last line is JSON
    Programs,
    /// Hosts as virtual machines: real drivers of network cards, systemd, uplinks of every kind
    Machines,
    /// One tenant floods, another works; the last line is JSON
    Overload {
        /// How long each flood goes on
        #[arg(long, default_value_t = 10)]
        seconds: u64,
    },
}

fn main() -> ExitCode {
    if let Some(code) = fuzz::stand_in_for_rustc().or_else(coverage::stand_in_for_rustc) {
        return code;
    }
    let outcome = match Options::parse().command {
        Command::Setup => setup::setup(),
        Command::Test { only: None } => test::test(),
        Command::Test {
            only: Some(Only::Model { packets, seed }),
        } => model::model(packets, seed),
        Command::Test {
            only:
                Some(Only::Fuzz {
                    seconds,
                    address,
                    targets,
                }),
        } => fuzz::fuzz(seconds, address, &targets),
        Command::Test {
            only:
                Some(Only::Threads {
                    preemptions,
                    seconds,
                }),
        } => threads::threads(preemptions, seconds),
        Command::Test {
            only: Some(Only::Mutants { shard, files }),
        } => mutants::mutants(shard.as_deref(), &files),
        Command::Test {
            only: Some(Only::Coverage),
        } => coverage::coverage(),
        Command::Test {
            only: Some(Only::Hygiene),
        } => setup::setup().and_then(|()| hygiene::check()),
        Command::Test {
            only: Some(Only::Faults { rounds }),
        } => trials::faults(rounds),
        Command::Test {
            only: Some(Only::Programs),
        } => trials::programs(),
        Command::Test {
            only: Some(Only::Machines),
        } => trials::machines(),
        Command::Test {
            only: Some(Only::Overload { seconds }),
        } => trials::overload(seconds),
        Command::Demo { args } => binaries::lab("demo", &args),
        Command::Bench { args } => binaries::bench(&args),
        Command::Lab { args } => binaries::lab("lab", &args),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}
