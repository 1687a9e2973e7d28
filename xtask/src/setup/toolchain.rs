//! The compiler for the XDP programs: one that can build `core` for the kernel's virtual machine.
//!
//! That is rustup's nightly with the component rust-src where a machine has it, and otherwise Debian's rustc-web, a recent
//! compiler whose library source is packaged. The LLVM libraries for bpf-linker must be of the compiler's own major version.

use std::{path::Path, process::Command};

use anyhow::{Context, Result};

use super::apt;
use crate::run;

/// A compiler with library source.
pub(crate) struct Toolchain {
    /// What `rustc -vV` says: the identity for stamps.
    pub(crate) version: String,
    /// Major version of its LLVM.
    pub(crate) llvm: u32,
    kind: Kind,
}

enum Kind {
    RustupNightly,
    Debian,
}

const DEBIAN_RUSTC: &str = "/usr/bin/rustc";
const DEBIAN_CARGO: &str = "/usr/bin/cargo";

impl Toolchain {
    /// For people.
    pub(crate) fn name(&self) -> String {
        let release = self.version.lines().next().unwrap_or("rustc");
        match self.kind {
            Kind::RustupNightly => format!("rustup's nightly, {release}"),
            Kind::Debian => format!("Debian's rustc-web, {release}"),
        }
    }

    /// Its cargo, able to use unstable flags.
    pub(crate) fn cargo(&self) -> Command {
        let mut cargo = match self.kind {
            Kind::RustupNightly => {
                let mut cargo = run::command("rustup");
                cargo.args(["run", "nightly", "cargo"]);
                cargo.env_remove("RUSTC");
                cargo
            }
            Kind::Debian => {
                let mut cargo = run::command(DEBIAN_CARGO);
                cargo.env("RUSTC", DEBIAN_RUSTC).env("RUSTC_BOOTSTRAP", "1");
                cargo
            }
        };
        // We run under cargo ourselves: nothing of that build's settings may leak into this one.
        for name in [
            "RUSTUP_TOOLCHAIN",
            "RUSTFLAGS",
            "CARGO",
            "RUSTC_WRAPPER",
            "RUSTDOC",
        ] {
            cargo.env_remove(name);
        }
        cargo
    }
}

/// The toolchain to use, installed if it must be, with the LLVM libraries that bpf-linker needs for it.
pub(crate) fn find_or_install() -> Result<Toolchain> {
    let toolchain = match nightly() {
        Some(toolchain) if has_llvm(toolchain.llvm) => toolchain,
        _ => debian()?,
    };
    let llvm = toolchain.llvm;
    let packages = [
        format!("llvm-{llvm}-dev"),
        format!("libpolly-{llvm}-dev"),
        "libzstd-dev".to_owned(),
        "libxml2-dev".to_owned(),
        "zlib1g-dev".to_owned(),
    ];
    apt::install("the eBPF linker", &packages.each_ref().map(String::as_str))?;
    Ok(toolchain)
}

/// Where Debian puts LLVM's development files.
pub(crate) fn llvm_prefix(llvm: u32) -> String {
    format!("/usr/lib/llvm-{llvm}")
}

fn has_llvm(llvm: u32) -> bool {
    Path::new(&llvm_prefix(llvm)).join("include").is_dir()
        || run::output(run::command("apt-cache").args(["show", &format!("llvm-{llvm}-dev")]))
            .is_ok()
}

fn nightly() -> Option<Toolchain> {
    let ask = |what: &[&str]| {
        let mut rustc = run::command("rustup");
        rustc.args(["run", "nightly", "rustc"]).args(what);
        run::output(
            rustc
                .env_remove("RUSTUP_TOOLCHAIN")
                .env("RUSTUP_AUTO_INSTALL", "0"),
        )
        .ok()
    };
    let sysroot = ask(&["--print", "sysroot"])?;
    Path::new(sysroot.trim())
        .join("lib/rustlib/src/rust/library/core")
        .is_dir()
        .then_some(())?;
    with_version(ask(&["-vV"])?, Kind::RustupNightly).ok()
}

fn debian() -> Result<Toolchain> {
    apt::install("building eBPF", &["rustc-web", "cargo-web", "rust-web-src"])?;
    let version = run::output(run::command(DEBIAN_RUSTC).arg("-vV"))?;
    with_version(version, Kind::Debian)
}

fn with_version(version: String, kind: Kind) -> Result<Toolchain> {
    let llvm = llvm_of(&version)?;
    Ok(Toolchain {
        version,
        llvm,
        kind,
    })
}

/// The major version of LLVM that `rustc -vV` names.
pub(super) fn llvm_of(version: &str) -> Result<u32> {
    version
        .lines()
        .find_map(|line| {
            line.strip_prefix("LLVM version: ")?
                .split('.')
                .next()?
                .parse()
                .ok()
        })
        .context("rustc -vV names no LLVM version")
}
