//! The pipelines against a model of what they should do: random fabrics, random traffic, changes in between.
//!
//! `semantics` is the model, a slow and plain reading of the design's packet path that shares no code with the pipeline. `generate` makes
//! plans, `traffic`, `questions`, `connection` and `craft` make frames of them, `run` sends these through `differential` comparison of model and pipelines.
//! Every frame that a port gets, every frame between hosts and every reason for a drop is compared. A case that disagrees is noted in bytes
//! (`case`), cut to its least (`reduce`), and kept in `kept/` once what it shows is repaired. `campaign` plays case after case.
//!
//! `cargo xtask test model` runs this for long. `WEFT_MODEL_PACKETS` says how many packets are compared, `WEFT_MODEL_SEED` which; the same seed
//! makes the same cases. `WEFT_MODEL_REPORT` names a file for the figures. With `WEFT_MODEL_CUT=0` a case that disagrees is shown as it was found.

#![allow(clippy::unwrap_used)]

mod campaign;
mod case;
mod connection;
mod counts;
mod craft;
mod differential;
mod generate;
mod multicast;
mod outside;
mod questions;
mod reduce;
mod rng;
mod run;
mod semantics;
mod traced;
mod traffic;
mod trunk;
mod wire;

use std::path::Path;

use case::Case;

/// Without optimisation a packet takes ten times as long.
const PACKETS: u64 = if cfg!(debug_assertions) {
    20_000
} else {
    300_000
};

fn setting(name: &str, default: u64) -> u64 {
    let value = std::env::var(name).ok().and_then(|text| text.parse().ok());
    value.unwrap_or(default)
}

#[test]
fn pipelines_do_what_the_model_says() {
    let report = campaign::run(
        setting("WEFT_MODEL_PACKETS", PACKETS),
        setting("WEFT_MODEL_SEED", 0),
        setting("WEFT_MODEL_CUT", 1) == 1,
    );
    println!("{}", report.json());
    println!("dropped: {:?}", report.totals.reasons);
    if let Ok(path) = std::env::var("WEFT_MODEL_REPORT") {
        std::fs::write(path, report.json()).unwrap();
    }
    if let Some((number, case, failure)) = &report.failure {
        let text = case.to_text();
        panic!(
            "case {number}: {}\nto keep as dataplane/tests/model/kept/NAME.yaml once it is repaired:\n{text}",
            failure.text
        );
    }
}

#[test]
fn kept_cases_agree() {
    let kept = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/model/kept");
    let mut files: Vec<_> = kept
        .read_dir()
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    files.sort();
    for file in files {
        if let Err(failure) = campaign::replay(&Case::read(&file)) {
            panic!("{}: {}", file.display(), failure.text);
        }
    }
}
