//! weftd's configuration file (TOML). All fields but `host`, `uplinks`, and `controller` or `state_file` have defaults; an unknown field is
//! an error.

use std::collections::HashSet;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;
use weft_process::tls::TlsFiles;
use weft_proto::v1::HostLimits;

use crate::metadata::Backend;
use weft_dataplane::packet::Mac;
use weft_dataplane::pipeline::Settings;
use weft_dataplane::port::{BusyPoll, PortError};
use weft_dataplane::session::{Limits, Timeouts};
use weft_dataplane::snapshot::compile::{NAT_GATEWAYS, NETWORKS};

/// The whole file.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// This host's id in the intent.
    pub host: String,
    /// The controller: `https://HOST:PORT`, `http://HOST:PORT` or `unix:/path`; or a list of several, of which any will do. Either this or `state_file`.
    pub controller: Option<Addresses>,
    /// The certificates that go with `https`: this host's has to name `weft://host/` and its id.
    pub tls: Option<TlsFiles>,
    /// A file of node state (YAML), read instead of following a controller.
    pub state_file: Option<PathBuf>,
    /// Where the last acknowledged state is kept.
    #[serde(default = "default_state_directory")]
    pub state_directory: PathBuf,
    /// The local socket that weftctl talks to.
    #[serde(default = "default_socket")]
    pub socket: PathBuf,
    /// Interfaces that lead to the other hosts.
    pub uplinks: Vec<Uplink>,
    /// Interfaces on physical networks, on which external networks are.
    #[serde(default)]
    pub external: Vec<External>,
    /// Worker threads.
    #[serde(default)]
    pub workers: WorkerSection,
    /// Packet memory.
    #[serde(default)]
    pub memory: MemorySection,
    /// The session table.
    #[serde(default)]
    pub sessions: SessionSection,
    /// Caps and rates.
    #[serde(default)]
    pub limits: LimitSection,
    /// The metadata service; absent: there is none.
    pub metadata: Option<MetadataSection>,
    /// DNS for guests.
    #[serde(default)]
    pub dns: DnsSection,
}

/// One address or a list of them.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(untagged)]
pub enum Addresses {
    /// The only one.
    One(String),
    /// Several.
    Several(Vec<String>),
}

impl Addresses {
    /// All of them.
    pub fn all(&self) -> &[String] {
        match self {
            Self::One(address) => std::slice::from_ref(address),
            Self::Several(addresses) => addresses,
        }
    }
}

/// Controllers that are named at most.
const MAX_CONTROLLERS: usize = 16;

/// Resolvers that are named at most.
const MAX_RESOLVERS: usize = 4;

/// DNS for guests.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DnsSection {
    /// Who answers what is no name of a guest's own VPC, in order of preference: addresses, or ADDRESS:PORT, which this host reaches by its own network. None:
    /// nobody does.
    pub resolvers: Vec<Resolver>,
}

impl DnsSection {
    /// The resolvers' sockets.
    pub fn resolvers(&self) -> Vec<SocketAddr> {
        self.resolvers.iter().map(|resolver| resolver.0).collect()
    }
}

/// The address and port of a resolver.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Resolver(pub SocketAddr);

impl TryFrom<String> for Resolver {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let alone = text.parse::<IpAddr>();
        let alone =
            alone.map(|address| SocketAddr::new(address, weft_dataplane::pipeline::dns::PORT));
        let resolver = alone.or_else(|_| text.parse::<SocketAddr>());
        match resolver {
            Ok(resolver) if resolver.port() != 0 && !resolver.ip().is_unspecified() => {
                Ok(Self(resolver))
            }
            _ => Err(format!(
                "'{text}' is neither ADDRESS nor ADDRESS:PORT of a resolver"
            )),
        }
    }
}

/// The metadata service.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MetadataSection {
    /// Who answers: `http://HOST:PORT`.
    #[serde(deserialize_with = "backend")]
    pub backend: Backend,
    /// The file of the secret that requests to the backend are signed with.
    pub secret_file: Option<PathBuf>,
}

impl MetadataSection {
    /// The backend, with the secret if there is one.
    ///
    /// # Errors
    /// The secret cannot be read.
    pub fn signed_backend(&self) -> Result<Backend, PortError> {
        let backend = self.backend.clone();
        match &self.secret_file {
            None => Ok(backend),
            Some(file) => backend.signing(file).map_err(|source| PortError::Io {
                what: format!("reading {}", file.display()),
                source,
            }),
        }
    }
}

fn backend<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Backend, D::Error> {
    let text = String::deserialize(deserializer)?;
    text.parse().map_err(serde::de::Error::custom)
}

/// One uplink.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Uplink {
    /// Its interface.
    #[serde(default)]
    pub interface: String,
    /// Receive queues to read; absent: all that the interface has.
    pub queues: Option<u32>,
    /// Instead of an interface: a vhost-user socket, such as another switch's.
    pub vhost_user: Option<VhostUplink>,
}

impl Uplink {
    /// What it is called.
    pub fn name(&self) -> &str {
        match &self.vhost_user {
            Some(way) => &way.socket,
            None => &self.interface,
        }
    }
}

/// An uplink that is not a kernel interface, so its next hop is configured: all tunnels use it.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VhostUplink {
    /// The socket's absolute path.
    pub socket: String,
    /// "server" (default: weftd listens) or "client".
    #[serde(default)]
    pub mode: String,
    /// Queue pairs; 0 means 1.
    #[serde(default)]
    pub queues: u32,
    /// The MAC that tunnel packets leave with.
    #[serde(deserialize_with = "mac")]
    pub mac: Mac,
    /// The MAC that they are sent to.
    #[serde(deserialize_with = "mac")]
    pub next_hop_mac: Mac,
    /// Bytes of IP packet that the way carries.
    #[serde(default = "ethernet_mtu")]
    pub mtu: u16,
}

fn mac<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Mac, D::Error> {
    let text = String::deserialize(deserializer)?;
    text.parse().map_err(|_| {
        let rule = format!("'{text}' is not a MAC such as 02:00:00:00:00:01");
        serde::de::Error::custom(rule)
    })
}

fn ethernet_mtu() -> u16 {
    1500
}

/// An interface on a physical network.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct External {
    /// What the intent calls the physical network.
    pub physical_network: String,
    /// The interface, which may be an uplink's.
    pub interface: String,
    /// Receive queues to read; absent: all that the interface has. An uplink says so itself.
    pub queues: Option<u32>,
}

/// Worker threads.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct WorkerSection {
    /// A worker on each of these cores; empty: one worker, not pinned.
    pub cores: Vec<usize>,
    /// Spin without work instead of sleeping.
    pub spin: bool,
    /// Have the driver polled by the workers' own calls, so long at most (microseconds); 0: by interrupts and threads alone.
    pub busy_poll_microseconds: u32,
    /// Packets of one busy poll at most.
    pub busy_poll_budget: u32,
    /// Let the kernel receive from virtual devices in a thread for each: faster by a third, but what comes while the thread waits for a core is
    /// lost beyond 256 packets. A device is as before in the end.
    pub threaded_napi: bool,
    /// Report a worker that has not polled for this long (milliseconds, at least 100); 0 turns this off.
    pub watchdog_milliseconds: u32,
}

impl Default for WorkerSection {
    fn default() -> Self {
        Self {
            cores: Vec::new(),
            spin: false,
            busy_poll_microseconds: 20,
            busy_poll_budget: 64,
            threaded_napi: false,
            watchdog_milliseconds: 1000,
        }
    }
}

/// Packet memory.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MemorySection {
    /// Packet buffers.
    pub frames: u32,
    /// Large frames (66 KiB each), for whole segments of guests; 0 turns this off.
    pub large_frames: u32,
    /// Bytes of a buffer, 2048 or 4096; a packet may measure 256 less.
    pub frame_size: u32,
    /// Use huge pages if there are any.
    pub huge_pages: bool,
    /// Entries of each ring, a power of two.
    pub ring_size: u32,
}

impl Default for MemorySection {
    fn default() -> Self {
        Self {
            frames: 32768,
            large_frames: 512,
            frame_size: 2048,
            huge_pages: true,
            ring_size: 2048,
        }
    }
}

/// The session table and its idle times, in seconds.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[allow(missing_docs)]
pub struct SessionSection {
    /// Sessions in all; about 220 bytes each, taken ahead of them.
    pub capacity: u32,
    /// Sessions of one port.
    pub per_port: u32,
    /// Sessions of one VPC.
    pub per_vpc: u32,
    pub tcp_opening: u64,
    pub tcp_established: u64,
    pub tcp_closing: u64,
    pub tcp_closed: u64,
    pub one_way: u64,
    pub both_ways: u64,
    pub icmp: u64,
}

impl Default for SessionSection {
    fn default() -> Self {
        let Timeouts {
            tcp_opening,
            tcp_established,
            tcp_closing,
            tcp_closed,
            one_way,
            both_ways,
            icmp,
        } = Timeouts::default();
        Self {
            capacity: 262_144,
            per_port: 65_536,
            per_vpc: 131_072,
            tcp_opening: tcp_opening.as_secs(),
            tcp_established: tcp_established.as_secs(),
            tcp_closing: tcp_closing.as_secs(),
            tcp_closed: tcp_closed.as_secs(),
            one_way: one_way.as_secs(),
            both_ways: both_ways.as_secs(),
            icmp: icmp.as_secs(),
        }
    }
}

/// Caps and rates.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LimitSection {
    /// Ports of this host, at most 32768.
    pub ports: u16,
    /// Other hosts, at most 32768. Each takes about half a KiB when it is known, and nothing before.
    pub peers: u16,
    /// VPCs on this host.
    pub vpcs: u32,
    /// ICMP errors that one port may cause, a second.
    pub errors_per_second: u32,
    /// Replies of the gateway that one port may cause, a second.
    pub replies_per_second: u32,
    /// Broadcast and multicast packets that one port may send, a second.
    pub broadcasts_per_second: u32,
    /// Packets to the metadata service that one port may send, a second.
    pub metadata_per_second: u32,
    /// Packets to the DNS service of the gateway that one port may send, a second.
    pub dns_per_second: u32,
    /// Flows that one port may open, a second.
    pub flows_per_second: u32,
    /// Flows that a VPC may open on this host, a second, those out of tunnels too.
    pub vpc_flows_per_second: u32,
    /// IPv4 packets too big for the tunnel that allow it are fragmented (true) or dropped.
    pub fragment: bool,
}

impl Default for LimitSection {
    fn default() -> Self {
        let Settings {
            errors_per_second,
            replies_per_second,
            broadcasts_per_second,
            metadata_per_second,
            dns_per_second,
            flows_per_second,
            vpc_flows_per_second,
            fragment,
            ..
        } = Settings::default();
        Self {
            ports: 1024,
            peers: 4096,
            vpcs: 4096,
            errors_per_second,
            replies_per_second,
            broadcasts_per_second,
            metadata_per_second,
            dns_per_second,
            flows_per_second,
            vpc_flows_per_second,
            fragment,
        }
    }
}

impl LimitSection {
    /// What of these the controller is told.
    pub fn told(&self) -> HostLimits {
        HostLimits {
            ports: self.ports.into(),
            peers: self.peers.into(),
            vpcs: self.vpcs,
            external_networks: NETWORKS,
            nat_gateways: NAT_GATEWAYS,
        }
    }
}

/// The most interfaces on physical networks.
const MOST_EXTERNAL: usize = 8;

fn all_differ<'a>(mut names: impl Iterator<Item = &'a String>) -> bool {
    let mut seen = HashSet::new();
    names.all(|name| seen.insert(name))
}

fn default_state_directory() -> PathBuf {
    "/var/lib/weft".into()
}

fn default_socket() -> PathBuf {
    "/run/weft/weftd.sock".into()
}

/// Why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("{path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// The file is no TOML, or has a field that is unknown, missing or of another type.
    #[error("{path}: {message}")]
    Parse {
        /// The file.
        path: PathBuf,
        /// What is wrong, and where.
        message: String,
    },
    /// A field breaks a rule.
    #[error("{path}: {field}: {rule}")]
    Rule {
        /// The file.
        path: PathBuf,
        /// The field.
        field: &'static str,
        /// What must hold.
        rule: String,
    },
}

impl Config {
    /// Reads and checks a file.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Read {
            path: path.into(),
            source,
        })?;
        Self::parse(&text, path)
    }

    /// Reads and checks a file's text; the path is for errors alone.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(text: &str, path: &Path) -> Result<Self, ConfigError> {
        let config: Self = toml::from_str(text).map_err(|error| ConfigError::Parse {
            path: path.into(),
            message: error.to_string().trim_end().to_owned(),
        })?;
        match config.broken_rule() {
            Some((field, rule)) => Err(ConfigError::Rule {
                path: path.into(),
                field,
                rule,
            }),
            None => Ok(config),
        }
    }

    fn broken_rule(&self) -> Option<(&'static str, String)> {
        let powers = self.memory.ring_size.is_power_of_two()
            && (64..=32768).contains(&self.memory.ring_size);
        let rules = [
            ("host", !self.host.is_empty(), "names this host"),
            (
                "controller",
                self.controller.is_some() != self.state_file.is_some(),
                "exactly one of controller and state_file is set",
            ),
            (
                "controller",
                self.controller
                    .as_ref()
                    .is_none_or(|it| (1..=MAX_CONTROLLERS).contains(&it.all().len())),
                "names 1 to 16 addresses",
            ),
            (
                "uplinks",
                !self.uplinks.is_empty(),
                "lists at least one interface",
            ),
            (
                "uplinks",
                self.uplinks
                    .iter()
                    .all(|uplink| uplink.interface.is_empty() == uplink.vhost_user.is_some()),
                "each has exactly one of interface and vhost_user",
            ),
            (
                "uplinks",
                self.uplinks.len() <= 16,
                "lists at most 16 interfaces",
            ),
            (
                "dns.resolvers",
                self.dns.resolvers.len() <= MAX_RESOLVERS,
                "names at most 4 resolvers",
            ),
            (
                "external",
                self.external.len() <= MOST_EXTERNAL,
                "lists at most 8 interfaces",
            ),
            (
                "external",
                self.external.iter().all(|external| {
                    !external.physical_network.is_empty() && !external.interface.is_empty()
                }),
                "each has a physical_network and an interface",
            ),
            (
                "external",
                all_differ(self.external.iter().map(|e| &e.physical_network)),
                "names each physical_network once",
            ),
            (
                "external",
                all_differ(self.external.iter().map(|e| &e.interface)),
                "names each interface once",
            ),
            (
                "external",
                (self.external.iter())
                    .all(|e| e.queues.is_none() || self.uplink_of(&e.interface).is_none()),
                "has queues where the interface is no uplink; one that is has them in uplinks",
            ),
            (
                "workers.watchdog_milliseconds",
                self.workers.watchdog_milliseconds == 0
                    || self.workers.watchdog_milliseconds >= 100,
                "is 0 or at least 100",
            ),
            (
                "memory.frame_size",
                matches!(self.memory.frame_size, 2048 | 4096),
                "is 2048 or 4096",
            ),
            (
                "memory.ring_size",
                powers,
                "is a power of two from 64 to 32768",
            ),
            (
                "memory.frames",
                self.memory.frames >= 1024,
                "is at least 1024",
            ),
            (
                "limits.ports",
                (1..=32768).contains(&self.limits.ports),
                "is 1 to 32768",
            ),
            (
                "limits.peers",
                (1..=32768).contains(&self.limits.peers),
                "is 1 to 32768",
            ),
            (
                "limits.vpcs",
                (1..=1 << 20).contains(&self.limits.vpcs),
                "is 1 to 1048576",
            ),
            (
                "sessions.capacity",
                (1024..=1 << 26).contains(&self.sessions.capacity),
                "is 1024 to 67108864",
            ),
            (
                "sessions.tcp_established",
                self.sessions.tcp_established >= 7440,
                "is at least 7440 (RFC 5382 REQ-5)",
            ),
            (
                "sessions.tcp_closing",
                self.sessions.tcp_closing >= 240,
                "is at least 240 (RFC 5382 REQ-5)",
            ),
            (
                "sessions.both_ways",
                self.sessions.both_ways >= 120,
                "is at least 120 (RFC 4787 REQ-5)",
            ),
            (
                "sessions.icmp",
                self.sessions.icmp >= 60,
                "is at least 60 (RFC 5508 REQ-2)",
            ),
        ];
        rules
            .into_iter()
            .find(|(_, holds, _)| !holds)
            .map(|(field, _, rule)| (field, rule.to_owned()))
    }

    /// All interfaces that packets of other hosts and of external networks come by, each in the place that is its index: the uplinks, and
    /// then those that are on a physical network alone.
    pub fn links(&self) -> Vec<Uplink> {
        let own = self.own_externals().map(|external| Uplink {
            interface: external.interface.clone(),
            queues: external.queues,
            vhost_user: None,
        });
        self.uplinks.iter().cloned().chain(own).collect()
    }

    /// The physical networks that this host is on, each with the index of the interface that leads there.
    pub fn physical_networks(&self) -> Vec<(String, u16)> {
        let own: Vec<&External> = self.own_externals().collect();
        let index = |external: &External| {
            self.uplink_of(&external.interface).or_else(|| {
                let is_it = |own: &&External| own.interface == external.interface;
                Some(self.uplinks.len() + own.iter().position(is_it)?)
            })
        };
        let networks = self.external.iter();
        let networks =
            networks.filter_map(|e| Some((e.physical_network.clone(), index(e)? as u16)));
        networks.collect()
    }

    /// Interfaces on physical networks that are no uplinks.
    fn own_externals(&self) -> impl Iterator<Item = &External> {
        let externals = self.external.iter();
        externals.filter(|external| self.uplink_of(&external.interface).is_none())
    }

    /// The place of the uplink with this interface.
    fn uplink_of(&self, interface: &str) -> Option<usize> {
        let is_it = |uplink: &Uplink| uplink.vhost_user.is_none() && uplink.interface == interface;
        self.uplinks.iter().position(is_it)
    }

    /// Idle times.
    pub fn timeouts(&self) -> Timeouts {
        let s = &self.sessions;
        Timeouts {
            tcp_opening: Duration::from_secs(s.tcp_opening),
            tcp_established: Duration::from_secs(s.tcp_established),
            tcp_closing: Duration::from_secs(s.tcp_closing),
            tcp_closed: Duration::from_secs(s.tcp_closed),
            one_way: Duration::from_secs(s.one_way),
            both_ways: Duration::from_secs(s.both_ways),
            icmp: Duration::from_secs(s.icmp),
        }
    }

    /// Caps of the session table.
    pub fn session_limits(&self) -> Limits {
        Limits {
            capacity: self.sessions.capacity,
            per_port: self.sessions.per_port,
            per_vpc: self.sessions.per_vpc,
            ports: self.limits.ports.into(),
            vpcs: self.limits.vpcs as usize,
        }
    }

    /// The settings of the pipelines.
    pub fn settings(&self) -> Settings {
        Settings {
            ports: self.limits.ports.into(),
            vpcs: self.limits.vpcs as usize,
            uplinks: self.links().len(),
            errors_per_second: self.limits.errors_per_second,
            replies_per_second: self.limits.replies_per_second,
            broadcasts_per_second: self.limits.broadcasts_per_second,
            metadata_per_second: self.limits.metadata_per_second,
            dns_per_second: self.limits.dns_per_second,
            reports_per_second: Settings::default().reports_per_second,
            flows_per_second: self.limits.flows_per_second,
            vpc_flows_per_second: self.limits.vpc_flows_per_second,
            fragment: self.limits.fragment,
        }
    }

    /// How long a worker may be stuck before it is reported, if that is enabled.
    pub fn watchdog(&self) -> Option<Duration> {
        let milliseconds = self.workers.watchdog_milliseconds;
        (milliseconds > 0).then_some(Duration::from_millis(milliseconds.into()))
    }

    /// Busy polling, if asked for.
    pub fn busy_poll(&self) -> Option<BusyPoll> {
        let WorkerSection {
            busy_poll_microseconds: microseconds,
            busy_poll_budget: budget,
            ..
        } = self.workers;
        (microseconds > 0).then_some(BusyPoll {
            microseconds,
            budget,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Config, ConfigError> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("weftd.toml");
        std::fs::write(&path, text).unwrap();
        Config::read(&path)
    }

    const GOOD: &str =
        "host = 'h1'\ncontroller = 'http://127.0.0.1:7470'\n[[uplinks]]\ninterface = 'eth0'\n";

    #[test]
    fn defaults_fill_what_is_left_out() {
        let config = read(GOOD).unwrap();
        assert_eq!(config.memory.frames, 32768);
        assert_eq!(config.timeouts(), Timeouts::default());
    }

    #[test]
    fn an_external_interface_comes_after_the_uplinks_or_is_one_of_them() {
        let external = |network: &str, interface: &str| {
            format!("[[external]]\nphysical_network = '{network}'\ninterface = '{interface}'\n")
        };
        let more = format!(
            "{}{}{}",
            external("a", "eth7"),
            external("b", "eth1"),
            external("c", "eth8")
        );
        let config = read(&format!("{GOOD}[[uplinks]]\ninterface = 'eth1'\n{more}")).unwrap();
        let names: Vec<String> = config.links().iter().map(|l| l.name().to_owned()).collect();
        assert_eq!(names, ["eth0", "eth1", "eth7", "eth8"]);
        assert_eq!(config.settings().uplinks, 4);
        let networks = config.physical_networks();
        let networks: Vec<_> = networks.iter().map(|(n, i)| (n.as_str(), *i)).collect();
        assert_eq!(networks, [("a", 2), ("b", 1), ("c", 3)]);
        let many: String = (0..9)
            .map(|n| external(&format!("p{n}"), &format!("x{n}")))
            .collect();
        let error = read(&format!("{GOOD}{many}")).unwrap_err().to_string();
        assert!(error.contains("external: lists at most 8"), "{error}");
    }

    #[test]
    fn errors_name_the_field_and_the_rule() {
        for (extra, expected) in [
            ("unknown = 1", "unknown field `unknown`"),
            (
                "state_file = 'x'",
                "exactly one of controller and state_file",
            ),
            (
                "[memory]\nframe_size = 1000",
                "memory.frame_size: is 2048 or 4096",
            ),
            ("[sessions]\ntcp_established = 60", "RFC 5382"),
            (
                "[metadata]\nbackend = 'https://127.0.0.1:8775'",
                "'https://127.0.0.1:8775' is not http://HOST:PORT",
            ),
            (
                "[[uplinks]]\nqueues = 1",
                "exactly one of interface and vhost_user",
            ),
            (
                "[[external]]\nphysical_network = 'p'",
                "missing field `interface`",
            ),
            (
                "[[external]]\nphysical_network = 'p'\ninterface = 'eth1'\nvlan = 7",
                "unknown field `vlan`",
            ),
            (
                "[[external]]\nphysical_network = ''\ninterface = 'eth1'",
                "external: each has a physical_network and an interface",
            ),
            (
                "[[external]]\nphysical_network = 'p'\ninterface = 'eth1'\n[[external]]\nphysical_network = 'p'\ninterface = 'eth2'",
                "external: names each physical_network once",
            ),
            (
                "[[external]]\nphysical_network = 'p'\ninterface = 'eth1'\n[[external]]\nphysical_network = 'q'\ninterface = 'eth1'",
                "external: names each interface once",
            ),
            (
                "[[external]]\nphysical_network = 'p'\ninterface = 'eth0'\nqueues = 2",
                "one that is has them in uplinks",
            ),
            (
                "[[uplinks]]\nvhost_user = { socket = '/x', mac = '02', next_hop_mac = '02:00:00:00:00:01' }",
                "'02' is not a MAC",
            ),
        ] {
            let text = if extra.starts_with('[') {
                format!("{GOOD}{extra}\n")
            } else {
                format!("{extra}\n{GOOD}")
            };
            let error = read(&text).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
    }
}
