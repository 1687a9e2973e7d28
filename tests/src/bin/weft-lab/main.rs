//! weft-lab: the demonstration, and a lab to play in. Run by `cargo xtask demo` and `cargo xtask lab`.

#![forbid(unsafe_code)]

mod demo;
mod guest_steps;
mod steps;
mod topology;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Hosts, tenants and workloads as network namespaces of this machine.
#[derive(Debug, Parser)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Two hosts, two tenants with the same addresses, real traffic: a table of what was proven, with figures
    Demo {
        /// End with one JSON document
        #[arg(long)]
        json: bool,
        /// Leave everything running
        #[arg(long)]
        keep: bool,
        /// Use virtual machines with a kernel of their own instead of namespaces
        #[arg(long)]
        guests: bool,
    },
    /// A lab to play in
    Lab {
        #[command(subcommand)]
        action: LabAction,
    },
}

#[derive(Debug, Subcommand)]
enum LabAction {
    /// Makes the demonstration's site and leaves it running
    Up,
    /// Removes it
    Down,
}

fn main() -> ExitCode {
    let result = match Arguments::parse().command {
        Command::Demo { json, keep, guests } => demo::demo(json, keep, guests),
        Command::Lab {
            action: LabAction::Up,
        } => demo::up(),
        Command::Lab {
            action: LabAction::Down,
        } => demo::down(),
    };
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("weft-lab: {error:#}");
            ExitCode::FAILURE
        }
    }
}
