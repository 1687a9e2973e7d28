//! `cargo xtask`: set-up, demo, test, bench and lab.
//!
//! Every command sets up first, so that a fresh machine needs only a Rust toolchain. Set-up skips what is installed: a second run takes a
//! fraction of a second.
#![forbid(unsafe_code)]

mod binaries;
mod coverage;
mod fuzz;
mod hygiene;
mod model;
mod mutants;
mod names;
mod openstack;
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
    about = "Set-up, demo, tests, benchmarks and lab of weft"
)]
struct Options {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Install what the build and the tests need, and build the XDP programs
    Setup,
    /// Run everything that CI runs; or one part alone, for longer
    Test {
        #[command(subcommand)]
        only: Option<Only>,
    },
    /// Show two hosts, tenants and an Internet with real traffic; `--json`, `--keep`, `--guests`
    Demo {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<OsString>,
    },
    /// Run benchmarks; `SUITE…`, `--peers`, `--json FILE`
    Bench {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<OsString>,
    },
    /// OpenStack's Neutron driving weft: `setup` installs it, `test` also tries it
    Openstack {
        #[command(subcommand)]
        what: Openstack,
    },
    /// Start or stop a lab to try things in: `up`, `down`; `vms` runs hosts as virtual machines
    Lab {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<OsString>,
    },
}

#[derive(Subcommand)]
enum Openstack {
    /// Install Neutron and weft's driver for it into target/openstack/venv
    Setup,
    /// Run the driver's unit tests, and a real Neutron with hosts in namespaces
    Test,
}

#[derive(Subcommand)]
enum Only {
    /// Compare the pipelines with a reference model, on random fabrics with random traffic; the last line is JSON
    Model {
        /// Least number of packets to compare
        #[arg(long, default_value_t = 10_000_000)]
        packets: u64,
        /// Seed of the random cases; the same seed makes the same cases
        #[arg(long, default_value_t = 0)]
        seed: u64,
    },
    /// Fuzz every input that untrusted parties control; the last line is JSON
    Fuzz {
        /// Seconds for each target
        #[arg(long, default_value_t = 60)]
        seconds: u64,
        /// Build with LLVM's address sanitizer (slower)
        #[arg(long)]
        address: bool,
        /// Targets [default: all]
        targets: Vec<String>,
    },
    /// Check what threads share with loom, a model checker; the last line is JSON
    Threads {
        /// Most preemptions in one execution; each more takes about ten times as long [default: each model's own]
        #[arg(long)]
        preemptions: Option<u32>,
        /// Most seconds for each model
        #[arg(long, default_value_t = 300)]
        seconds: u64,
    },
    /// Run the tests against mutants of the code, to find untested lines; the last line is JSON
    Mutants {
        /// Only part K of N of the mutants, counted from 0
        #[arg(long, value_name = "K/N")]
        shard: Option<String>,
        /// Files to mutate, relative to the workspace's root [default: those of `.cargo/mutants.toml`]
        files: Vec<String>,
    },
    /// Measure the line coverage of the unit and integration tests
    Coverage,
    /// Check dependencies (licences, sources, duplicates, advisories, unused ones), the minimum Rust version, and names in the documentation
    Hygiene,
    /// Kill processes, cut networks, fill disks and halt threads under traffic; the last line is JSON
    Faults {
        /// How often each process is killed; other faults happen a tenth as often
        #[arg(long, default_value_t = 100)]
        rounds: u64,
    },
    /// Kill controllers that share a store in etcd, and members of etcd, under changes; the last line is JSON
    Controllers {
        /// How many are killed, one after the other
        #[arg(long, default_value_t = 100)]
        rounds: u64,
    },
    /// Run real programs between workloads while weftd is killed, and replay captures of them; the last line is JSON
    Programs,
    /// Run hosts as virtual machines: real NIC drivers, systemd, bonds and VLANs as uplinks
    Machines,
    /// Kill, cut off and freeze the gateway host in use under TCP connections; the last line is JSON
    Gateways {
        /// How often each
        #[arg(long, default_value_t = 20)]
        rounds: u64,
    },
    /// Kill members of a load balancer under 1,000 requests a second and holders of virtual addresses, change members under 10,000 connections, and run
    /// multicast; the last line is JSON
    Services {
        /// How often members and holders are killed
        #[arg(long, default_value_t = 20)]
        rounds: u64,
    },
    /// Measure what a tenant's flood costs another tenant; the last line is JSON
    Overload {
        /// Seconds for each flood
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
            only: Some(Only::Controllers { rounds }),
        } => trials::controllers(rounds),
        Command::Test {
            only: Some(Only::Programs),
        } => trials::programs(),
        Command::Test {
            only: Some(Only::Machines),
        } => trials::machines(),
        Command::Test {
            only: Some(Only::Overload { seconds }),
        } => trials::overload(seconds),
        Command::Test {
            only: Some(Only::Gateways { rounds }),
        } => trials::gateways(rounds),
        Command::Test {
            only: Some(Only::Services { rounds }),
        } => trials::services(rounds),
        Command::Openstack {
            what: Openstack::Setup,
        } => openstack::install(),
        Command::Openstack {
            what: Openstack::Test,
        } => openstack::test(),
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
