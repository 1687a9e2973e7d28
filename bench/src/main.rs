//! weft-bench: the benchmarks. Run by `cargo xtask bench [SUITE…] [--peers] [--json [FILE]] [--plots DIR]`.
//!
//! Each row has a name, a unit, the median of several samples and their spread, and the figure of a peer if one was measured in the same
//! run.

mod change;
mod classify;
mod clock;
mod dpdk;
mod ecmp;
mod forward;
mod fragments;
mod gateway;
mod lpm;
mod memory;
mod multicast;
mod parts;
mod plot;
mod region;
mod scale;
mod scenario;
mod services;
mod tap;
mod vhost;
mod workers;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use clap::builder::{PossibleValue, PossibleValuesParser};

/// Run benchmarks and print a table; write JSON on request.
#[derive(Debug, Parser)]
struct Arguments {
    /// Suites to run [default: all]
    #[arg(value_parser = PossibleValuesParser::new(SUITES.map(Suite::value)))]
    suites: Vec<String>,
    /// Also measure the peers, interleaved with weft
    #[arg(long)]
    peers: bool,
    /// Print the rows as one JSON document, or write it to this file; name suites before this
    #[arg(long, value_name = "FILE", num_args = 0..=1)]
    json: Option<Option<PathBuf>>,
    /// Draw charts of the rows into this directory, as SVG
    #[arg(long, value_name = "DIR")]
    plots: Option<PathBuf>,
    /// Measure nothing, and read the rows from a JSON document of an earlier run
    #[arg(long, value_name = "FILE", conflicts_with_all = ["suites", "peers"])]
    from: Option<PathBuf>,
}

/// One figure.
#[derive(Debug, Clone)]
pub(crate) struct Row {
    name: String,
    unit: &'static str,
    samples: Vec<f64>,
    /// The goal, and whether more is better.
    goal: Option<(f64, bool)>,
    peer: Option<(&'static str, Vec<f64>)>,
}

fn median(samples: &[f64]) -> f64 {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
}

/// The interquartile range as a share of the median.
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
    let (low, high) = (at(1), at(3));
    // Where all are 0, a share has no meaning.
    if low == high {
        return 0.0;
    }
    (high - low) / median(samples)
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

    /// One line for people.
    fn line(&self) -> String {
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
        format!(
            "{:60} {:>10.3} {:24} spread {:>3.0} %{goal}{peer}",
            self.name,
            median(&self.samples),
            self.unit,
            spread(&self.samples) * 100.0
        )
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

/// A benchmark suite.
#[derive(Clone, Copy)]
struct Suite {
    name: &'static str,
    /// Its line in the help.
    what: &'static str,
    /// Measures, with peers if requested.
    rows: fn(bool) -> anyhow::Result<Vec<Row>>,
}

impl Suite {
    const fn new(
        name: &'static str,
        what: &'static str,
        rows: fn(bool) -> anyhow::Result<Vec<Row>>,
    ) -> Self {
        Self { name, what, rows }
    }

    fn value(self) -> PossibleValue {
        PossibleValue::new(self.name).help(self.what)
    }
}

/// All suites, in the order in which they run.
const SUITES: [Suite; 16] = [
    Suite::new("memory", "the pipeline without sockets", |_| {
        dpdk::pinned(memory::rows)
    }),
    Suite::new(
        "fragments",
        "datagrams in pieces, beside a flood of them too",
        |_| dpdk::pinned(fragments::rows),
    ),
    Suite::new(
        "scale",
        "cost with ever more VPCs, routes, rules and ports",
        |_| dpdk::pinned(scale::rows),
    ),
    Suite::new(
        "gateway",
        "elastic IPs and NAT gateways without sockets",
        |_| dpdk::pinned(gateway::rows),
    ),
    Suite::new("services", "load balancers without sockets", |_| {
        dpdk::pinned(services::rows)
    }),
    Suite::new("workers", "several on one session table", |_| {
        workers::rows()
    }),
    Suite::new(
        "parts",
        "headers, sessions and tunnels by themselves",
        |peers| dpdk::pinned(|| parts::rows(peers)),
    ),
    Suite::new("lpm", "longest prefix match", |peers| {
        dpdk::pinned(|| lpm::rows(peers))
    }),
    Suite::new("ecmp", "choice of next hops", |_| dpdk::pinned(ecmp::rows)),
    Suite::new("classify", "rules of groups and ACLs", |peers| {
        dpdk::pinned(|| classify::rows(peers))
    }),
    Suite::new("change", "from a change to its effect", |_| {
        dpdk::pinned_to(0, change::rows)
    }),
    Suite::new(
        "region",
        "a controller with the ports and hosts of a region; WEFT_REGION_* are its sizes",
        region::rows,
    ),
    Suite::new("forward", "real sockets across two hosts", forward::rows),
    Suite::new("tcp", "one stream over the same", forward::tcp),
    Suite::new("tap", "a guest's tap, both ways over it", |_| tap::rows()),
    Suite::new("vhost", "rings shared with guests", vhost::rows),
];

fn run(arguments: &Arguments) -> anyhow::Result<()> {
    if let Some(Some(path)) = &arguments.json {
        let name = path.display().to_string();
        anyhow::ensure!(
            SUITES.iter().all(|suite| suite.name != name),
            "name suites before --json: --json {name} would be a file"
        );
    }
    let document = match &arguments.from {
        Some(path) => serde_json::from_str(&std::fs::read_to_string(path)?)?,
        None => measure(arguments)?,
    };
    match &arguments.json {
        None => {}
        Some(None) => println!("{document:#}"),
        Some(Some(path)) => std::fs::write(path, format!("{document:#}\n"))?,
    }
    if let Some(directory) = &arguments.plots {
        for path in plot::write(&document, directory)? {
            eprintln!("drawn: {}", path.display());
        }
    }
    Ok(())
}

/// Runs the selected suites. Progress goes to standard error, and so does the table where standard output is to have the document.
fn measure(arguments: &Arguments) -> anyhow::Result<serde_json::Value> {
    let asked = |suite: &str| {
        arguments.suites.is_empty() || arguments.suites.iter().any(|name| name == suite)
    };
    let mut all = Vec::new();
    for suite in SUITES.iter().filter(|suite| asked(suite.name)) {
        eprintln!("── {}: {}", suite.name, suite.what);
        for row in (suite.rows)(arguments.peers)? {
            if arguments.json == Some(None) {
                eprintln!("{}", row.line());
            } else {
                println!("{}", row.line());
            }
            all.push(row.json());
        }
    }
    Ok(serde_json::json!({ "machine": clock::machine(), "rows": all }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    fn parsed(words: &str) -> Result<Arguments, clap::Error> {
        Arguments::try_parse_from(words.split(' '))
    }

    #[test]
    fn arguments_are_read_as_documented() {
        Arguments::command().debug_assert();
        let printed = parsed("bench lpm ecmp --json").unwrap();
        assert_eq!((printed.json, printed.suites.len()), (Some(None), 2));
        let written = parsed("bench --json rows.json --plots charts").unwrap();
        assert_eq!(written.json, Some(Some("rows.json".into())));
        assert!(parsed("bench nothing").is_err());
        assert!(parsed("bench lpm --from rows.json").is_err());
    }

    #[test]
    fn a_suite_behind_json_is_not_taken_for_a_file() {
        let mistaken = run(&parsed("bench --json memory").unwrap());
        assert!(mistaken.unwrap_err().to_string().contains("before --json"));
    }

    #[test]
    fn a_row_has_every_field_of_the_document() {
        let row = Row {
            name: "suite: what".into(),
            unit: "ms",
            samples: vec![3.0, 1.0, 2.0],
            goal: Some((2.5, false)),
            peer: Some(("other", vec![4.0])),
        };
        let wanted = serde_json::json!({
            "name": "suite: what", "unit": "ms", "value": 2.0, "spread": 1.0, "goal": 2.5, "met": true, "peer": "other", "peer_value": 4.0,
        });
        assert_eq!(row.json(), wanted);
    }
}
