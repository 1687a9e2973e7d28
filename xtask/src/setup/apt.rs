//! Debian packages: installs those that are missing, with one query of dpkg's database when none is.

use std::{collections::HashSet, path::Path, process::Command};

use anyhow::{Context, Result, bail};

use crate::run;

/// What the build (libxdp, eBPF) and the tests (labs, peers, captures) need.
pub(crate) const PACKAGES: &[&str] = &[
    // libxdp and libbpf, which xsk-rs builds from source; libFuzzer
    "clang",
    "g++",
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
    // what checks and runs the units of packaging/systemd
    "systemd",
    // the profiles of traffic generators
    "lua5.4",
    "python3",
    // real guests
    "busybox-static",
    "isc-dhcp-client",
    "kmod",
    "qemu-system-x86",
    "xz-utils",
    // peers of the tests
    "isc-dhcp-client",
    "etcd-client",
    "etcd-server",
    "nftables",
    "openvswitch-switch",
    // real programs between workloads (tests/programs)
    "avahi-daemon",
    "bind9-dnsutils",
    "bird2",
    "bsdutils",
    "chrony",
    "coturn",
    "curl",
    "dnsmasq-base",
    "git",
    "haproxy",
    "keepalived",
    "libcharon-extra-plugins",
    "libnfs-utils",
    "libusrsctp-examples",
    "memcached",
    "mosquitto",
    "mosquitto-clients",
    "nfs-ganesha",
    "nfs-ganesha-vfs",
    "nginx-light",
    "ngtcp2-client",
    "ngtcp2-server",
    "openssh-client",
    "openssh-server",
    "openssl",
    "openvpn",
    "postgresql",
    "redis-server",
    "rsync",
    "samba",
    "sip-tester",
    "smbclient",
    "snmp",
    "snmpd",
    "socat",
    "strongswan-charon",
    "strongswan-swanctl",
    "tftp-hpa",
    "traceroute",
    "iputils-tracepath",
    "vsftpd",
    "wireguard-go",
    "wireguard-tools",
    "wrk",
];

/// What the benchmarks' peers need besides: DPDK's libraries for the programs in bench/peers, its testpmd as a guest that is nothing but
/// rings, Open vSwitch with DPDK, and OVN's databases and compiler.
pub(crate) const PEERS: &[&str] = &[
    "dpdk-dev",
    "libdpdk-dev",
    "openvswitch-switch-dpdk",
    "ovn-central",
];

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
    update()?;
    run::step(
        "packages",
        apt_get()
            .args(["install", "-y", "--no-install-recommends"])
            .args(&missing),
    )
}

fn apt_get() -> Command {
    let mut apt = run::command("apt-get");
    apt.env("DEBIAN_FRONTEND", "noninteractive").arg("-q");
    // Standard output is for what was asked for, such as a JSON document.
    apt.stdout(std::io::stderr());
    apt
}

/// Fetches the lists of packages.
fn update() -> Result<()> {
    run::step("package lists", apt_get().arg("update"))
}

/// Unpacks a package into `into` without installing it. A package that only stands for another (as `linux-image-cloud-amd64` for the kernel of the
/// day) is followed to that one. Answers with the name of what was unpacked.
pub(crate) fn unpack(package: &str, into: &Path) -> Result<String> {
    let find = || -> Result<String> {
        let text =
            run::output(run::command("apt-cache").args(["show", "--no-all-versions", package]))?;
        let depends = text
            .lines()
            .find_map(|line| line.strip_prefix("Depends: "))
            .unwrap_or_default();
        let first = depends
            .split([',', ' '])
            .next()
            .unwrap_or_default()
            .to_owned();
        if first.starts_with("linux-image-") {
            Ok(first)
        } else {
            Ok(package.to_owned())
        }
    };
    let name = match find() {
        Ok(name) => name,
        Err(_) => {
            update()?;
            find()?
        }
    };
    let fetch = || {
        let mut apt = apt_get();
        apt.args(["download", &name]).current_dir(into);
        run::step("download", &mut apt)
    };
    // The lists may name a version that is gone by now.
    fetch().or_else(|_| update().and_then(|()| fetch()))?;
    let file = std::fs::read_dir(into)?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|path| path.extension().is_some_and(|end| end == "deb"))
        .with_context(|| format!("apt-get left no package of {name} in {}", into.display()))?;
    run::step(
        "unpacking",
        run::command("dpkg-deb").arg("-x").arg(&file).arg(into),
    )?;
    Ok(name)
}
