//! `cargo xtask`: the one door to set-up, demo, test, bench and lab.
//!
//! Every command sets up first, so that a fresh machine needs nothing but a Rust toolchain. What is there is left alone: the
//! second run costs a fraction of a second.
#![forbid(unsafe_code)]

mod binaries;
mod run;
mod setup;
mod test;

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
    /// Formatting, lints, builds, all tests, documentation
    Test,
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
    /// A lab to play in: `up` or `down`
    Lab {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<OsString>,
    },
}

fn main() -> ExitCode {
    let outcome = match Options::parse().command {
        Command::Setup => setup::setup(),
        Command::Test => test::test(),
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
