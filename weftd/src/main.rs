//! weftd: the host daemon.

#![forbid(unsafe_code)]

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::{Parser, Subcommand};
use weft_dataplane::port::{self, Programs};
use weft_process::privileges::{DATAPLANE, keep_only};
use weftd::daemon::{self, Config, Resources};

/// Switches and routes the packets of this host's virtual machines into the overlay.
#[derive(Debug, Parser)]
#[command(
    version,
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true
)]
struct Arguments {
    /// Run with this configuration file (TOML).
    #[arg(long, value_name = "FILE", required = true)]
    config: Option<PathBuf>,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Check a configuration file and the uplinks that exist; start nothing.
    Check {
        /// The file.
        file: PathBuf,
    },
    /// Close interfaces: nothing passes between them and this host's own network stack, whether weftd runs or not.
    ///
    /// weftd closes the interface of every port as soon as it sees it. An interface that is closed before it is set up is never open.
    /// It stays closed until it is deleted or released.
    Guard {
        /// The interfaces.
        #[arg(value_name = "NAME", required = true)]
        names: Vec<String>,
    },
    /// Open interfaces that were closed and are no longer ports.
    Release {
        /// The interfaces.
        #[arg(value_name = "NAME", required = true)]
        names: Vec<String>,
    },
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let result = match (arguments.command, arguments.config) {
        (Some(Command::Check { file }), _) => Config::read(&file)
            .map_err(anyhow::Error::from)
            .and_then(|config| Ok(daemon::check_uplinks(&config)?))
            .map(|()| println!("{}: good", file.display())),
        (Some(Command::Guard { names }), _) => guard(&names),
        (Some(Command::Release { names }), _) => release(&names),
        (None, Some(path)) => serve(&path),
        (None, None) => unreachable!("clap asks for a configuration file"),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("weftd: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn guard(names: &[String]) -> anyhow::Result<()> {
    let programs = Programs::find();
    for name in names {
        programs.close(name)?;
        println!("{name}: closed");
    }
    Ok(())
}

fn release(names: &[String]) -> anyhow::Result<()> {
    for name in names {
        let was = if port::release(name)? {
            "released"
        } else {
            "was not closed"
        };
        println!("{name}: {was}");
    }
    Ok(())
}

fn serve(path: &std::path::Path) -> anyhow::Result<()> {
    let filter = tracing_subscriber::EnvFilter::try_from_env("WEFT_LOG")
        .unwrap_or_else(|_| "info,netlink_packet_route=error".into());
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .init();
    let config = Config::read(path)?;
    let resources = Resources::allocate(&config)?;
    // Before there is a second thread.
    keep_only(DATAPLANE).context("cannot drop capabilities")?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    runtime.block_on(daemon::run(path, config, resources))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_run_or_checked_and_one_of_both_is_asked_for() {
        let parse = |line: &str| Arguments::try_parse_from(line.split(' '));
        let run = parse("weftd --config a.toml").unwrap();
        assert_eq!(run.config, Some(PathBuf::from("a.toml")));
        assert!(run.command.is_none());
        let check = parse("weftd check a.toml").unwrap();
        assert!(matches!(check.command, Some(Command::Check { .. })));
        let guard = parse("weftd guard p1 p2").unwrap();
        assert!(matches!(guard.command, Some(Command::Guard { names }) if names == ["p1", "p2"]));
        for wrong in [
            "weftd",
            "weftd check",
            "weftd guard",
            "weftd release",
            "weftd --config a.toml check b.toml",
        ] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }
}
