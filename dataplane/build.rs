//! Embeds the eBPF object: finds `target/ebpf/weft.o`, which `cargo xtask setup` builds with a toolchain of its own, or the file
//! that `WEFT_EBPF_OBJECT` names, and passes its path on to `port/program.rs`.

use std::{env, fs, path::PathBuf, process::ExitCode};

fn main() -> ExitCode {
    println!("cargo::rerun-if-env-changed=WEFT_EBPF_OBJECT");
    let here = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").unwrap_or_default());
    let object = env::var_os("WEFT_EBPF_OBJECT")
        .map_or_else(|| here.join("../target/ebpf/weft.o"), PathBuf::from);
    println!("cargo::rerun-if-changed={}", object.display());
    match fs::canonicalize(&object) {
        Ok(found) => {
            println!("cargo::rustc-env=WEFT_EBPF_OBJECT={}", found.display());
            ExitCode::SUCCESS
        }
        Err(error) => {
            println!(
                "cargo::error=the eBPF object {} is missing ({error}); build it with `cargo xtask setup`",
                object.display()
            );
            ExitCode::FAILURE
        }
    }
}
