//! `cargo xtask test mutants`: cargo-mutants breaks what must not be wrong, one line at a time, and the tests are to notice (`.cargo/mutants.toml`).

use std::fs;

use anyhow::{Context, Result};

use crate::{run, setup, setup::tools};

/// Packets that the model compares for each mutant.
const MODEL_PACKETS: &str = "20000";

/// Tries the mutants of a shard (`k/n`), or all, and prints the figures as one line of JSON, also when some were missed.
pub(crate) fn mutants(shard: Option<&str>) -> Result<()> {
    setup::setup()?;
    let program = tools::MUTANTS.program()?;
    let out = run::target();
    let mut command = run::command(program);
    command
        .args([
            "mutants",
            "--sharding",
            "round-robin",
            "--no-shuffle",
            "--output",
        ])
        .arg(&out)
        // The copy that is mutated shares what is not ours with the main build, and has no eBPF object of its own.
        .env("CARGO_TARGET_DIR", &out)
        .env("CARGO_INCREMENTAL", "1")
        .env("WEFT_EBPF_OBJECT", out.join("ebpf/weft.o"))
        .env("WEFT_MODEL_PACKETS", MODEL_PACKETS);
    if let Some(shard) = shard {
        command.args(["--shard", shard]);
    }
    let result = run::step("mutants", &mut command);
    let count = |name: &str| -> Result<usize> {
        let path = out.join("mutants.out").join(format!("{name}.txt"));
        let text =
            fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        Ok(text.lines().count())
    };
    let (caught, missed, timeout) = (count("caught")?, count("missed")?, count("timeout")?);
    println!(
        r#"{{"suite":"mutants","caught":{},"missed":{missed},"viable":{},"unviable":{}}}"#,
        caught + timeout,
        caught + missed + timeout,
        count("unviable")?
    );
    result
}
