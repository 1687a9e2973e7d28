//! weft-lab: the demonstration, and a lab to try things in. Run by `cargo xtask demo` and `cargo xtask lab`.

#![forbid(unsafe_code)]

mod balancer;
mod demo;
mod guest_steps;
mod inside;
mod outside;
mod steps;
mod topology;
mod vms;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Run hosts, tenants and workloads as network namespaces of this machine, or as virtual machines.
#[derive(Debug, Parser)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Show two hosts, tenants with the same addresses and an Internet, with real traffic; print a table of results
    Demo {
        /// Print one JSON document at the end
        #[arg(long)]
        json: bool,
        /// Leave everything running
        #[arg(long)]
        keep: bool,
        /// Use virtual machines with their own kernels instead of namespaces
        #[arg(long)]
        guests: bool,
    },
    /// Start or stop a lab to try things in
    Lab {
        #[command(subcommand)]
        action: LabAction,
    },
}

#[derive(Debug, Subcommand)]
enum LabAction {
    /// Start the demonstration's site and leave it running
    Up,
    /// Remove the site
    Down,
    /// Run two hosts as virtual machines, with real NIC drivers and systemd; print what works and what the drivers do
    Vms {
        /// Kernel of both hosts: 6.1 or 6.12 [default: one of each]
        #[arg(long)]
        kernel: Option<String>,
        /// Use VMware's NIC in the underlay instead of virtio's
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
