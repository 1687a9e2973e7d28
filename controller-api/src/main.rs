//! weft-controller: stores the intent of all tenants and streams to each host the state that it needs.

#![forbid(unsafe_code)]

use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};
use tokio::signal::unix::{SignalKind, signal};
use weft_controller::backup::Backup;
use weft_controller::cluster::Membership;
use weft_controller::config::{Config, StoreConfig};
use weft_controller::intent::{Intent, Settings};
use weft_controller::server::Serving;
use weft_controller::store::Maintenance;
use weft_controller::{server, store};
use weft_process::privileges::{Capabilities, keep_only};
use weft_process::supervisor::Supervisor;
use weft_process::tls::ServerTls;
use weft_process::transport::Listener;

/// Stores the intent of all tenants and streams to each host the state that it needs.
#[derive(Debug, Parser)]
#[command(
    version,
    args_conflicts_with_subcommands = true,
    arg_required_else_help = true
)]
struct Arguments {
    /// Run with this configuration file (TOML).
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Check a configuration file and the store's path; start nothing.
    Check {
        /// The configuration file.
        file: PathBuf,
    },
    /// Write all that the store holds into a new file. With the embedded store the controller has to be stopped.
    Backup {
        /// The controller's configuration file.
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
        /// The file to write.
        out: PathBuf,
    },
    /// Fill the store from a backup. All its controllers have to be stopped.
    Restore {
        /// The controller's configuration file.
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
        /// Replace what the store holds.
        #[arg(long)]
        force: bool,
        /// The file to read.
        file: PathBuf,
    },
    /// Copy all from one store to another, which is empty. The controllers of both have to be stopped.
    Move {
        /// The configuration file that names the store to read.
        #[arg(long, value_name = "FILE")]
        from: PathBuf,
        /// The configuration file that names the store to fill.
        #[arg(long, value_name = "FILE")]
        to: PathBuf,
    },
    /// Give back the room of what the store does not hold any more. With the embedded store the controller has to be stopped.
    Compact {
        /// The controller's configuration file.
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
    },
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let filter = tracing_subscriber::EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .init();
    std::panic::set_hook(Box::new(|panic| {
        if store::is_guarded() {
            tracing::debug!("the store's library: {panic}");
        } else {
            tracing::error!("internal error: {panic}");
        }
    }));
    let result = match (arguments.config, arguments.command) {
        (_, Some(Command::Check { file })) => check(&file),
        (_, Some(Command::Backup { config, out })) => back_up(&config, &out),
        (
            _,
            Some(Command::Restore {
                config,
                force,
                file,
            }),
        ) => restore(&config, &file, force),
        (_, Some(Command::Move { from, to })) => move_all(&from, &to),
        (_, Some(Command::Compact { config })) => compact(&config),
        (Some(file), None) => run(&file),
        (None, None) => Err(anyhow::anyhow!("--config FILE is missing")),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("weft-controller: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn check(file: &Path) -> Result<()> {
    let config = Config::read(file)?;
    config.tls.clone().map(ServerTls::new).transpose()?;
    store::check(&config.store)?;
    println!("{}: good; listens at {}", file.display(), config.listen);
    Ok(())
}

fn open(file: &Path) -> Result<Box<dyn Maintenance>> {
    let config = Config::read(file)?;
    Ok(store::open(&config.store, config.history.bounds())?)
}

/// A store that is there already.
fn open_present(file: &Path) -> Result<Box<dyn Maintenance>> {
    if let StoreConfig::Embedded { path } = Config::read(file)?.store {
        std::fs::metadata(&path).with_context(|| format!("there is no {}", path.display()))?;
    }
    open(file)
}

fn back_up(config: &Path, out: &Path) -> Result<()> {
    let backup = Backup::of(&*open_present(config)?)?;
    backup.write(out)?;
    say(&backup, backup.revision, out);
    Ok(())
}

fn restore(config: &Path, file: &Path, force: bool) -> Result<()> {
    // Before the store is opened, which would make an embedded one.
    let backup = Backup::read(file)?;
    let store = open(config)?;
    store.check_unused()?;
    let revision = backup.restore(&*store, force)?;
    say(&backup, revision, config);
    Ok(())
}

fn move_all(from: &Path, to: &Path) -> Result<()> {
    let (source, target) = (open_present(from)?, open(to)?);
    source.check_unused()?;
    target.check_unused()?;
    let backup = Backup::of(&*source)?;
    let revision = backup.restore(&*target, false)?;
    say(&backup, revision, to);
    Ok(())
}

fn compact(config: &Path) -> Result<()> {
    open_present(config)?.compact()?;
    println!("{}: compacted", config.display());
    Ok(())
}

fn say(backup: &Backup, revision: u64, place: &Path) {
    let objects = backup.state.len();
    println!(
        "{}: {objects} objects, revision {revision}",
        place.display()
    );
}

fn run(file: &Path) -> Result<()> {
    let config = Config::read(file)?;
    // Before there is a second thread.
    keep_only(Capabilities::empty()).context("cannot drop capabilities")?;
    tokio::runtime::Runtime::new()
        .context("cannot start threads")?
        .block_on(serve(config))
}

async fn serve(config: Config) -> Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("cannot handle SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot handle SIGINT")?;
    let (intent, membership) = load(&config).await?;
    let version = intent.current();
    let listener = Listener::bind(&config.listen).await?;
    let tls = config.tls.map(ServerTls::new).transpose()?.map(Arc::new);
    if tls.is_none() && matches!(listener, Listener::Tcp(_)) {
        tracing::warn!("no [tls] section: anyone who can reach this port can change everything");
    }
    tracing::info!(
        address = listener.address()?,
        revision = version.revision,
        objects = version.state.len(),
        "serving"
    );
    let supervisor = Supervisor::from_environment();
    supervisor.ready();
    let serving = Serving {
        move_grace: Duration::from_secs(config.move_grace_seconds.into()),
        admission: config.admission,
    };
    let stop = async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tracing::info!("stopping");
        supervisor.stopping();
    };
    server::serve_shared(intent, membership, listener, tls, serving, stop).await?;
    Ok(())
}

/// The intent in the store that the configuration names, and how it is shared, if it is.
async fn load(config: &Config) -> Result<(Arc<Intent>, Option<Membership>)> {
    let settings = Settings {
        is_shared: false,
        learn_above: config.learn_above as usize,
    };
    let (membership, loaded) = match &config.store {
        StoreConfig::Embedded { .. } => {
            let store = store::open(&config.store, config.history.bounds())?;
            let load = move || Intent::load_with(store, settings);
            (None, tokio::task::spawn_blocking(load))
        }
        StoreConfig::Etcd(etcd) => {
            let store = Arc::new(etcd.open()?.with_history(config.history.bounds()));
            let membership = Membership {
                store: Arc::clone(&store),
                address: config.advertised().unwrap_or_default(),
            };
            let settings = Settings {
                is_shared: true,
                ..settings
            };
            let load = move || Intent::load_with(Box::new(store), settings);
            (Some(membership), tokio::task::spawn_blocking(load))
        }
    };
    let intent = loaded.await?.context("cannot read the store")?;
    Ok((Arc::new(intent), membership))
}
