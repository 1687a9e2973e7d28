//! The eBPF linker, and the object file that weft-dataplane embeds (`target/ebpf/weft.o`).
//!
//! Both are built again only when their inputs have changed, which a stamp file beside them records.

use std::{
    fs,
    hash::{DefaultHasher, Hash, Hasher},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};

use super::toolchain::{Toolchain, llvm_prefix};
use crate::run;

const TARGET: &str = "bpfel-unknown-none";

/// The directory of bpf-linker, which is installed there if need be, against the toolchain's LLVM.
pub(crate) fn linker(toolchain: &Toolchain) -> Result<PathBuf> {
    let tools = run::target().join("tools");
    let bin = tools.join("bin");
    let stamp = tools.join("bpf-linker.stamp");
    let wanted = format!("llvm-{}\n", toolchain.llvm);
    if bin.join("bpf-linker").exists() && is_current(&stamp, &wanted) {
        return Ok(bin);
    }
    eprintln!(
        "set-up: installing bpf-linker for LLVM {} into {}",
        toolchain.llvm,
        tools.display()
    );
    run::step(
        "bpf-linker",
        run::cargo()
            .args([
                "install",
                "bpf-linker",
                "--quiet",
                "--force",
                "--no-default-features",
            ])
            .arg("--features")
            .arg(format!("llvm-{}", toolchain.llvm))
            .arg("--root")
            .arg(&tools)
            .env("LLVM_PREFIX", llvm_prefix(toolchain.llvm)),
    )?;
    write(&stamp, &wanted)?;
    Ok(bin)
}

/// Builds `target/ebpf/weft.o` if its sources, the compiler or the linker changed.
pub(crate) fn build(toolchain: &Toolchain, linker: &Path) -> Result<()> {
    let out = run::target().join("ebpf");
    let object = out.join("weft.o");
    let stamp = out.join("weft.stamp");
    let wanted = format!("{:016x}\n", fingerprint(toolchain)?);
    if object.exists() && is_current(&stamp, &wanted) {
        return Ok(());
    }
    eprintln!(
        "set-up: building the XDP programs with {}",
        toolchain.name()
    );
    let build = out.join("build");
    let mut path = linker.as_os_str().to_owned();
    path.push(":");
    path.push(std::env::var_os("PATH").unwrap_or_default());
    run::step(
        "XDP programs",
        toolchain
            .cargo()
            .args([
                "build",
                "--quiet",
                "--release",
                "--locked",
                "-Zbuild-std=core",
                "--target",
                TARGET,
            ])
            .current_dir(run::root().join("ebpf/programs"))
            .env("PATH", path)
            .env("CARGO_TARGET_DIR", &build)
            .env(
                "CARGO_ENCODED_RUSTFLAGS",
                "-Clinker=bpf-linker\u{1f}-Clink-arg=--btf\u{1f}-Cdebuginfo=2",
            ),
    )?;
    let built = build.join(TARGET).join("release/weft");
    fs::copy(&built, &object)
        .with_context(|| format!("cannot copy {} to {}", built.display(), object.display()))?;
    write(&stamp, &wanted)
}

fn is_current(stamp: &Path, wanted: &str) -> bool {
    fs::read_to_string(stamp).is_ok_and(|found| found == wanted)
}

fn write(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}

/// Of everything that the object is made from.
fn fingerprint(toolchain: &Toolchain) -> Result<u64> {
    let mut hasher = DefaultHasher::new();
    toolchain.version.hash(&mut hasher);
    include_str!("ebpf.rs").hash(&mut hasher);
    let mut files = Vec::new();
    for part in ["ebpf/programs/src", "ebpf/types/src"] {
        collect(&run::root().join(part), &mut files)?;
    }
    for file in [
        "ebpf/programs/Cargo.toml",
        "ebpf/programs/Cargo.lock",
        "ebpf/types/Cargo.toml",
    ] {
        files.push(run::root().join(file));
    }
    files.sort();
    for file in files {
        let text = fs::read(&file).with_context(|| format!("cannot read {}", file.display()))?;
        (file.file_name(), text).hash(&mut hasher);
    }
    Ok(hasher.finish())
}

fn collect(dir: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(dir).with_context(|| format!("cannot list {}", dir.display()))? {
        let path = entry?.path();
        if path.is_dir() {
            collect(&path, files)?;
        } else {
            files.push(path);
        }
    }
    Ok(())
}
