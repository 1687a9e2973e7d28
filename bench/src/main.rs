//! weft-bench: the benchmarks. Run by `cargo xtask bench [SUITE…] [--peers] [--json FILE]`.
//!
//! Each row has a name, a unit, the median of several samples and their spread, and, where one was measured in the same run, the figure of
//! a peer.

mod clock;
mod dpdk;
mod ecmp;
mod forward;
mod lpm;
mod memory;
mod scenario;
mod workers;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;

/// Measures, prints a table, and writes JSON if asked.
#[derive(Debug, Parser)]
struct Arguments {
    /// What to measure: memory (the pipeline without sockets), workers (several on one session table), forward (real sockets across two
    /// hosts), tcp (one stream over the same), lpm (longest prefix match), ecmp (choice of next hops); all by default
    suites: Vec<String>,
    /// Measure the peers too, interleaved with ours
    #[arg(long)]
    peers: bool,
    /// Write the rows to this file as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// One figure.
#[derive(Debug, Clone)]
pub(crate) struct Row {
    name: String,
    unit: &'static str,
    samples: Vec<f64>,
    /// What is aimed at, and whether more is better.
    goal: Option<(f64, bool)>,
    peer: Option<(&'static str, Vec<f64>)>,
}

fn median(samples: &[f64]) -> f64 {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
}

/// Between the quartiles, as a share of the median.
fn spread(samples: &[f64]) -> f64 {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    let at = |share: usize| {
        sorted
            .get(sorted.len() * share / 4)
            .or(sorted.last())
            .copied()
            .unwrap_or(f64::NAN)
    };
    (at(3) - at(1)) / median(samples)
}

impl Row {
    fn met(&self) -> Option<bool> {
        self.goal.map(|(goal, more)| {
            if more {
                median(&self.samples) >= goal
            } else {
                median(&self.samples) <= goal
            }
        })
    }

    fn print(&self) {
        let goal = self.goal.map_or(String::new(), |(goal, more)| {
            let verdict = if self.met() == Some(true) {
                "met"
            } else {
                "NOT MET"
            };
            format!(
                "  goal {} {goal:.2}: {verdict}",
                if more { "at least" } else { "at most" }
            )
        });
        let peer = self.peer.as_ref().map_or(String::new(), |(peer, samples)| {
            format!("  {peer}: {:.3}", median(samples))
        });
        println!(
            "{:60} {:>10.3} {:24} spread {:>3.0} %{goal}{peer}",
            self.name,
            median(&self.samples),
            self.unit,
            spread(&self.samples) * 100.0
        );
    }

    fn json(&self) -> serde_json::Value {
        serde_json::json!({
            "name": self.name, "unit": self.unit, "value": median(&self.samples), "spread": spread(&self.samples),
            "goal": self.goal.map(|(goal, _)| goal), "met": self.met(),
            "peer": self.peer.as_ref().map(|(peer, _)| peer), "peer_value": self.peer.as_ref().map(|(_, samples)| median(samples)),
        })
    }
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("weft-bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let all = ["memory", "workers", "lpm", "ecmp", "forward", "tcp"];
    if let Some(unknown) = arguments
        .suites
        .iter()
        .find(|suite| !all.contains(&suite.as_str()))
    {
        anyhow::bail!("'{unknown}' is no suite; there are {}", all.join(", "));
    }
    let wanted = |suite: &str| {
        arguments.suites.is_empty() || arguments.suites.iter().any(|name| name == suite)
    };
    let mut rows = Vec::new();
    if wanted("memory") {
        rows.extend(memory::rows()?);
    }
    if wanted("workers") {
        rows.extend(workers::rows()?);
    }
    if wanted("lpm") {
        rows.extend(dpdk::pinned(|| lpm::rows(arguments.peers))?);
    }
    if wanted("ecmp") {
        rows.extend(dpdk::pinned(ecmp::rows)?);
    }
    if wanted("forward") {
        rows.extend(forward::rows(arguments.peers)?);
    }
    if wanted("tcp") {
        rows.extend(forward::tcp(arguments.peers)?);
    }
    for row in &rows {
        row.print();
    }
    if let Some(path) = &arguments.json {
        let rows: Vec<_> = rows.iter().map(Row::json).collect();
        let document = serde_json::json!({ "machine": clock::machine(), "rows": rows });
        std::fs::write(path, format!("{document:#}\n"))?;
    }
    Ok(())
}
