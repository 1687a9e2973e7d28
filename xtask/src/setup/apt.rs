//! Debian packages: installs those that are missing, with one look at dpkg's database when none is.

use std::collections::HashSet;

use anyhow::{Context, Result, bail};

use crate::run;

/// What the build (libxdp, eBPF) and the tests (labs, peers, captures) need.
pub(crate) const PACKAGES: &[&str] = &[
    // libxdp and libbpf, which xsk-rs builds from source
    "clang",
    "gcc",
    "gcc-multilib",
    "libelf-dev",
    "libpcap-dev",
    "m4",
    "make",
    "pkg-config",
    "zlib1g-dev",
    // labs: namespaces, links, traffic, captures
    "ethtool",
    "iperf3",
    "iproute2",
    "iputils-ping",
    "ncat",
    "procps",
    "tcpdump",
    "tshark",
    // the profiles of traffic generators
    "lua5.4",
    "python3",
    // peers of the tests
    "nftables",
    "openvswitch-switch",
];

/// What the benchmarks' peers need besides: DPDK's libraries, for the programs in bench/peers.
pub(crate) const PEERS: &[&str] = &["libdpdk-dev"];

/// Which of `packages` are not installed.
fn missing<'p>(packages: &[&'p str]) -> Result<Vec<&'p str>> {
    // dpkg-query fails when a package is unknown, and still prints the others.
    let out = run::command("dpkg-query")
        .args(["--show", "--showformat=${db:Status-Status} ${Package}\n"])
        .args(packages)
        .output()
        .context("cannot run dpkg-query: set-up knows Debian only; elsewhere install the packages of xtask/src/setup by hand")?;
    let listed = String::from_utf8_lossy(&out.stdout);
    let installed: HashSet<&str> = listed
        .lines()
        .filter_map(|line| line.strip_prefix("installed "))
        .collect();
    Ok(packages
        .iter()
        .copied()
        .filter(|package| !installed.contains(package))
        .collect())
}

/// Installs those of `packages` that are missing.
pub(crate) fn install(purpose: &str, packages: &[&str]) -> Result<()> {
    let missing = missing(packages)?;
    if missing.is_empty() {
        return Ok(());
    }
    let list = missing.join(" ");
    eprintln!("set-up: installing packages for {purpose}: {list}");
    let is_root = run::output(run::command("id").arg("-u"))?.trim() == "0";
    if !is_root {
        bail!(
            "packages are missing and only root can install them: run `sudo apt-get install {list}`"
        );
    }
    let apt = || {
        let mut apt = run::command("apt-get");
        apt.env("DEBIAN_FRONTEND", "noninteractive").arg("-q");
        // Standard output is for what was asked for, such as a JSON document.
        apt.stdout(std::io::stderr());
        apt
    };
    run::step("package lists", apt().arg("update"))?;
    run::step(
        "packages",
        apt()
            .args(["install", "-y", "--no-install-recommends"])
            .args(&missing),
    )
}
