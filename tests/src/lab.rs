//! The lab: creates hosts, links and workloads, and removes them on drop.
//!
//! Names are `weft-<pid>-<number>-<label>`, so labs of several processes and threads do not collide. What a killed process left behind is
//! removed by the next lab.

use std::{
    path::Path,
    process::{self, Command},
    sync::atomic::{AtomicU32, Ordering},
};

use crate::{LabError, Namespace, namespace::output};

static NEXT: AtomicU32 = AtomicU32::new(0);

/// Namespaces that belong together.
#[derive(Debug)]
pub struct Lab {
    prefix: String,
    namespaces: Vec<Namespace>,
    keep: bool,
}

/// How a link is made.
#[derive(Debug, Clone, Copy)]
pub struct LinkOptions {
    /// Bytes of payload that a frame may carry.
    pub mtu: u32,
    /// Receive and transmit queues at each end.
    pub queues: u32,
}

impl Default for LinkOptions {
    fn default() -> Self {
        Self {
            mtu: 1500,
            queues: 1,
        }
    }
}

/// What a workload is to look like.
#[derive(Debug, Clone, Copy)]
pub struct WorkloadOptions<'a> {
    /// The MAC address of its interface.
    pub mac: &'a str,
    /// Its addresses, with prefix length, IPv4 and IPv6.
    pub addresses: &'a [&'a str],
    /// Its default gateways, IPv4 and IPv6.
    pub gateways: &'a [&'a str],
    /// The link to its host.
    pub link: LinkOptions,
    /// Whether its kernel leaves checksums to a device that never completes them (the default of veth), or computes them.
    pub checksum_offload: bool,
}

impl Default for WorkloadOptions<'_> {
    fn default() -> Self {
        Self {
            mac: "02:00:00:00:00:01",
            addresses: &[],
            gateways: &[],
            link: LinkOptions::default(),
            checksum_offload: false,
        }
    }
}

/// A workload: a namespace whose interface `eth0` is linked to its host.
#[derive(Debug, Clone)]
pub struct Workload {
    /// Where its programs run.
    pub namespace: Namespace,
    /// The other end of its link, an interface in the host's namespace.
    pub port: String,
}

impl Lab {
    /// An empty lab.
    pub fn new() -> Result<Self, LabError> {
        remove_orphans()?;
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        Ok(Self {
            prefix: format!("weft-{}-{number}", process::id()),
            namespaces: Vec::new(),
            keep: false,
        })
    }

    /// A lab with names that begin with `prefix`, which stays when it is dropped; [`Lab::remove_named`] removes it.
    pub fn kept(prefix: &str) -> Self {
        Self {
            prefix: prefix.to_owned(),
            namespaces: Vec::new(),
            keep: true,
        }
    }

    /// Removes the namespaces of a lab that was kept.
    pub fn remove_named(prefix: &str) -> Result<usize, LabError> {
        let prefix = format!("{prefix}-");
        let names = namespace_names()?;
        let ours: Vec<_> = names
            .iter()
            .filter(|name| name.starts_with(&prefix))
            .collect();
        ours.iter().for_each(|name| Namespace::remove(name));
        Ok(ours.len())
    }

    /// A new, empty host.
    pub fn host(&mut self, label: &str) -> Result<Namespace, LabError> {
        let namespace = Namespace::create(format!("{}-{label}", self.prefix), label)?;
        self.namespaces.push(namespace.clone());
        Ok(namespace)
    }

    /// Links an interface of one namespace to an interface of another; both are up.
    pub fn link(
        &self,
        a: (&Namespace, &str),
        b: (&Namespace, &str),
        options: LinkOptions,
    ) -> Result<(), LabError> {
        let LinkOptions { mtu, queues } = options;
        let end = |(namespace, name): (&Namespace, &str)| {
            format!(
                "name {name} netns {} mtu {mtu} numrxqueues {queues} numtxqueues {queues}",
                namespace.name()
            )
        };
        let line = format!("link add {} type veth peer {}", end(a), end(b));
        output(Command::new("ip").args(line.split_whitespace()))?;
        for (namespace, name) in [a, b] {
            namespace.ip(&format!("link set {name} up"))?;
        }
        Ok(())
    }

    /// A tap in a namespace: up, and for a program that opens it by name.
    pub fn tap(&self, host: &Namespace, name: &str, queues: u16, mtu: u32) -> Result<(), LabError> {
        let multiqueue = if queues > 1 { "multi_queue" } else { "" };
        host.ip(&format!("tuntap add {name} mode tap {multiqueue}"))?;
        host.run(&[
            "sysctl",
            "-qw",
            &format!("net.ipv6.conf.{name}.disable_ipv6=1"),
        ])?;
        host.ip(&format!("link set {name} mtu {mtu} up")).map(drop)
    }

    /// A workload on `host`: its `eth0` is linked to the host's interface `p-NAME`.
    pub fn workload(
        &mut self,
        host: &Namespace,
        name: &str,
        options: &WorkloadOptions<'_>,
    ) -> Result<Workload, LabError> {
        let namespace = self.host(name)?;
        let port = format!("p-{name}");
        self.link((host, &port), (&namespace, "eth0"), options.link)?;
        namespace.ip(&format!("link set eth0 address {}", options.mac))?;
        if !options.checksum_offload {
            namespace.offloads("eth0", "tx off")?;
        }
        for address in options.addresses {
            namespace.ip(&format!("address add {address} dev eth0"))?;
        }
        for gateway in options.gateways {
            let family = if gateway.contains(':') { "-6" } else { "-4" };
            namespace.ip(&format!(
                "{family} route add default via {gateway} dev eth0 onlink"
            ))?;
        }
        // The host's own stack has no business on the port.
        host.run(&[
            "sysctl",
            "-qw",
            &format!("net.ipv6.conf.{port}.disable_ipv6=1"),
        ])?;
        Ok(Workload { namespace, port })
    }

    /// Leaves everything as it is when the lab is dropped.
    pub fn keep(&mut self) {
        self.keep = true;
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if !self.keep {
            for namespace in &self.namespaces {
                Namespace::remove(namespace.name());
            }
        }
    }
}

fn namespace_names() -> Result<Vec<String>, LabError> {
    let list = output(Command::new("ip").args(["netns", "list"]))?;
    let names = list
        .lines()
        .filter_map(|line| line.split_whitespace().next());
    Ok(names.map(ToOwned::to_owned).collect())
}

/// Removes namespaces of labs whose process is gone.
fn remove_orphans() -> Result<(), LabError> {
    for name in namespace_names()? {
        let owner = name
            .strip_prefix("weft-")
            .and_then(|rest| rest.split('-').next()?.parse::<u32>().ok());
        if owner.is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists()) {
            Namespace::remove(&name);
        }
    }
    Ok(())
}
