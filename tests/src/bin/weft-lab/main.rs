//! weft-lab: the demonstration, and a lab to try things in. Run by `cargo xtask demo` and `cargo xtask lab`.

#![forbid(unsafe_code)]

mod demo;
mod guest_steps;
mod steps;
mod topology;
mod vms;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Hosts, tenants and workloads as network namespaces of this machine, or as virtual machines.
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
    /// Two hosts that are virtual machines, with real drivers of network cards and systemd: what crosses, and what the driver does
    Vms {
        /// The kernel of both: 6.1 or 6.12; one of each if none is named
        #[arg(long)]
        kernel: Option<String>,
        /// With VMware's card in the underlay instead of virtio's
        #[arg(long)]
        vmxnet3: bool,
    },
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
        Command::Lab {
            action: LabAction::Vms { kernel, vmxnet3 },
        } => vms::vms(kernel.as_deref(), vmxnet3),
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
