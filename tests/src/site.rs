//! A running site: a controller, hosts with their daemons, the underlay between them, and a workload for each port. It runs the programs
//! that users run, in namespaces of the [`Lab`]. A port's device says what its workload is: a namespace behind a veth, or a virtual
//! machine.
//!
//! Hosts are linked directly when there are two, and by a bridge in a namespace of its own when there are more. Foreign hosts get a
//! namespace with an uplink, and nothing else.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use weft_proto::v1::{Objects, Port};

use crate::guest::{Backend, Guest, GuestOptions, Nic, NicFeatures};
use crate::namespace::output;
use crate::topology::GUEST_TAP;
use crate::traffic::NumberedStream;
use crate::{Daemon, Lab, LabError, LinkOptions, Namespace, Workload, WorkloadOptions, wait_until};

/// The interface that leads from a host to the others.
pub const UPLINK: &str = "u0";
/// The bridge between the interfaces of several hosts on the physical network.
pub const SEGMENT: &str = "seg0";
/// The store's file, in its directory.
pub const DATABASE: &str = "intent.redb";
/// Where the controller listens when it is reached over a network.
const CONTROLLER_PORT: u16 = 7470;

/// How a site is made.
#[derive(Debug, Clone)]
pub struct SiteOptions {
    /// Lines added to each daemon's configuration.
    pub daemon: String,
    /// Lines of the controller's configuration.
    pub controller: String,
    /// Cores of each host's workers, by the host's place among the hosts; empty leaves them to the scheduler.
    pub cores: Vec<Vec<usize>>,
    /// Whether workloads and the outside leave checksums to their device, as kernels do by default.
    pub checksum_offload: bool,
    /// Bytes of IP packet that the underlay carries.
    pub underlay_mtu: u32,
    /// Bytes of IP packet that a workload's interface lets it send.
    pub workload_mtu: u32,
    /// What the cards of virtual machines offer.
    pub guest_nic: NicFeatures,
    /// What those of some ports offer instead.
    pub guest_nics: BTreeMap<String, NicFeatures>,
    /// Whether the controller is reached over a network, a link from each host (`m0`) to its namespace (`m-HOST`); else by its socket.
    pub remote_controller: bool,
    /// Hosts on the physical network `physnet1`, each with its interface there: the uplink, or one that leads to the namespace `outside`, where
    /// its other end is `e-HOST`. Several of these are ports of a bridge, [`SEGMENT`].
    pub externals: BTreeMap<String, String>,
    /// Whether virtual machines are given their addresses, routes and MTU by the site; else their cards are left down.
    pub configure_guests: bool,
}

impl Default for SiteOptions {
    fn default() -> Self {
        Self {
            daemon: String::new(),
            controller: String::new(),
            cores: Vec::new(),
            checksum_offload: true,
            underlay_mtu: 1500,
            workload_mtu: 1430,
            guest_nic: NicFeatures::default(),
            guest_nics: BTreeMap::new(),
            remote_controller: false,
            externals: BTreeMap::new(),
            configure_guests: true,
        }
    }
}

impl SiteOptions {
    /// What the card of a port's virtual machine offers.
    fn features(&self, port: &str) -> &NicFeatures {
        self.guest_nics.get(port).unwrap_or(&self.guest_nic)
    }
}

/// One host of the site.
#[derive(Debug)]
pub struct SiteHost {
    /// Where it runs.
    pub namespace: Namespace,
    /// Its weftd; none for foreign equipment, or while it is stopped.
    pub daemon: Option<Daemon>,
    /// The daemon's configuration file.
    pub config: PathBuf,
    /// Where the daemon answers weftctl.
    pub socket: PathBuf,
}

/// The site.
#[derive(Debug)]
pub struct Site {
    /// Hosts by id.
    pub hosts: BTreeMap<String, SiteHost>,
    /// Workloads that are namespaces, by port id.
    pub workloads: BTreeMap<String, Workload>,
    /// Workloads that are virtual machines, by port id.
    pub guests: BTreeMap<String, Guest>,
    /// The controller, while it runs.
    pub controller: Option<Daemon>,
    /// The bridge between the hosts, `br0` in a namespace of its own, when they are more than two: a capture there sees the tunnels.
    pub underlay: Option<Namespace>,
    /// The other end of interfaces on the physical network, where there are some.
    pub outside: Option<Namespace>,
    /// What was applied last.
    pub objects: Objects,
    directory: PathBuf,
    /// Where the controller runs.
    pub controller_namespace: Namespace,
    /// Whether it listens on the network.
    /// Lines of its configuration.
    controller_lines: String,
    remote_controller: bool,
    // Last, so that daemons are stopped before their namespaces go.
    lab: Lab,
}

/// Completes the device of a virtual machine: the path of a socket, and the number of queues.
fn place(port: &mut Port, directory: &Path, options: &SiteOptions) {
    let queues = options.features(&port.id).queues;
    if let Some(device) = port
        .device
        .as_mut()
        .filter(|device| device.kind != "netdev")
    {
        if device.kind == "vhost-user" {
            device.name = directory.join(&device.name).display().to_string();
        }
        device.queues = queues.into();
    }
}

/// How long weftd may take to make a device.
const BOOT: Duration = Duration::from_secs(20);

/// A workload's addresses, with prefix length, and its default gateways.
struct Plan {
    addresses: Vec<String>,
    gateways: Vec<String>,
}

/// The path of one of weft's programs, beside the running one.
pub fn program(name: &str) -> Result<PathBuf, LabError> {
    let own = std::env::current_exe().map_err(LabError::io("finding the running program"))?;
    let candidates = own
        .ancestors()
        .skip(1)
        .take(2)
        .map(|directory| directory.join(name));
    candidates
        .clone()
        .find(|path| path.exists())
        .ok_or_else(|| LabError::Start {
            command: format!("{name}, expected beside {}", own.display()),
            source: std::io::Error::from(std::io::ErrorKind::NotFound),
        })
}

fn write(path: &Path, text: &str) -> Result<(), LabError> {
    std::fs::write(path, text).map_err(LabError::io(path.display().to_string()))
}

impl Site {
    /// Makes everything that the objects name, starts it, and waits until every host has its state and every port is up.
    pub fn start(mut lab: Lab, objects: &Objects, options: &SiteOptions) -> Result<Self, LabError> {
        let controller_namespace = lab.host("control")?;
        let directory = std::env::temp_dir().join(controller_namespace.name());
        std::fs::create_dir_all(&directory).map_err(LabError::io("making the site's directory"))?;
        let mut site = Self {
            hosts: BTreeMap::new(),
            workloads: BTreeMap::new(),
            guests: BTreeMap::new(),
            controller: None,
            underlay: None,
            outside: None,
            objects: objects.clone(),
            directory,
            controller_namespace,
            controller_lines: options.controller.clone(),
            remote_controller: options.remote_controller,
            lab,
        };
        let store = site.store();
        std::fs::create_dir_all(&store).map_err(LabError::io(store.display().to_string()))?;
        for port in &mut site.objects.ports {
            place(port, &site.directory, options);
        }
        let objects = &site.objects.clone();
        site.make_hosts(objects, options)?;
        for port in &objects.ports {
            site.make_workload(port, options)?;
        }
        site.start_controller()?;
        site.apply_only(objects)?;
        for host in site.own_hosts() {
            site.start_daemon(&host)?;
        }
        site.wait_for_hosts()?;
        for port in &objects.ports {
            site.start_guest(port, options)?;
        }
        for port in &objects.ports {
            site.set_up_guest(port, options)?;
        }
        site.wait_for_ports()?;
        Ok(site)
    }

    fn make_hosts(&mut self, objects: &Objects, options: &SiteOptions) -> Result<(), LabError> {
        let link = LinkOptions {
            mtu: options.underlay_mtu,
            ..LinkOptions::default()
        };
        for (place, host) in objects.hosts.iter().enumerate() {
            let namespace = self.lab.host(&host.id)?;
            let socket = self.directory.join(format!("{}.sock", host.id));
            let config = self.directory.join(format!("{}.toml", host.id));
            let cores = options.cores.get(place).cloned().unwrap_or_default();
            let controller = if options.remote_controller {
                self.link_to_controller(place, &host.id, &namespace)?
            } else {
                format!("unix:{}/controller.sock", self.directory.display())
            };
            let external = self.make_external(&host.id, &namespace, options)?;
            let text = format!(
                "host = '{id}'\ncontroller = '{controller}'\nstate_directory = '{directory}/{id}'\nsocket = '{socket}'\nuplinks = [{{ interface = '{UPLINK}' }}]\nworkers.cores = {cores:?}\n{more}\n{external}",
                id = host.id,
                directory = self.directory.display(),
                socket = socket.display(),
                more = options.daemon,
            );
            write(&config, &text)?;
            self.hosts.insert(
                host.id.clone(),
                SiteHost {
                    namespace,
                    daemon: None,
                    socket,
                    config,
                },
            );
        }
        let namespaces: Vec<Namespace> = objects
            .hosts
            .iter()
            .map(|host| self.hosts[&host.id].namespace.clone())
            .collect();
        if let [a, b] = &namespaces[..] {
            self.lab.link((a, UPLINK), (b, UPLINK), link)?;
        } else {
            let bridge = self.lab.host("underlay")?;
            self.underlay = Some(bridge.clone());
            bridge.ip("link add br0 type bridge")?;
            bridge.ip("link set br0 up")?;
            for (number, namespace) in namespaces.iter().enumerate() {
                let end = format!("b{number}");
                self.lab.link((namespace, UPLINK), (&bridge, &end), link)?;
                bridge.ip(&format!("link set {end} master br0"))?;
            }
        }
        for (host, namespace) in objects.hosts.iter().zip(&namespaces) {
            for vtep in &host.vteps {
                let length = if vtep.contains(':') { "64 nodad" } else { "24" };
                namespace.ip(&format!("address add {vtep}/{length} dev {UPLINK}")
                    .replace("/64 nodad dev u0", "/64 dev u0 nodad"))?;
            }
        }
        Ok(())
    }

    /// The link from a host to the physical network; returns what the daemon's configuration says of it.
    fn make_external(
        &mut self,
        id: &str,
        host: &Namespace,
        options: &SiteOptions,
    ) -> Result<String, LabError> {
        let Some(interface) = options.externals.get(id) else {
            return Ok(String::new());
        };
        if interface != UPLINK {
            let outside = match &self.outside {
                Some(outside) => outside.clone(),
                None => self.lab.host("outside")?,
            };
            let end = format!("e-{id}");
            let link = LinkOptions::default();
            self.lab.link((host, interface), (&outside, &end), link)?;
            let own = options.externals.values();
            if own.filter(|interface| *interface != UPLINK).count() > 1 {
                if self.outside.is_none() {
                    outside.ip(&format!("link add {SEGMENT} type bridge"))?;
                    outside.ip(&format!("link set {SEGMENT} up"))?;
                }
                outside.ip(&format!("link set {end} master {SEGMENT}"))?;
            }
            if !options.checksum_offload {
                outside.offloads(&end, "tx off")?;
            }
            self.outside = Some(outside);
        }
        Ok(format!(
            "[[external]]\nphysical_network = 'physnet1'\ninterface = '{interface}'\n"
        ))
    }

    /// A link from a host to the controller's namespace; returns where the controller is for it.
    fn link_to_controller(
        &self,
        place: usize,
        id: &str,
        host: &Namespace,
    ) -> Result<String, LabError> {
        let near = (&self.controller_namespace, format!("m-{id}"));
        let options = LinkOptions::default();
        self.lab.link((near.0, &near.1), (host, "m0"), options)?;
        let (here, there) = (4 * place + 1, 4 * place + 2);
        near.0
            .ip(&format!("address add 198.51.100.{here}/30 dev {}", near.1))?;
        host.ip(&format!("address add 198.51.100.{there}/30 dev m0"))?;
        Ok(format!("http://198.51.100.{here}:{CONTROLLER_PORT}"))
    }

    fn make_workload(&mut self, port: &Port, options: &SiteOptions) -> Result<(), LabError> {
        let Some(host) = self.hosts.get(&port.host) else {
            return Ok(());
        };
        let Some(device) = &port.device else {
            return Ok(());
        };
        let namespace = host.namespace.clone();
        if device.kind == "netdev" && device.name.starts_with(GUEST_TAP) {
            let queues = options.features(&port.id).queues;
            return self
                .lab
                .tap(&namespace, &device.name, queues, options.workload_mtu);
        }
        if device.kind != "netdev" {
            return Ok(());
        }
        let plan = self.plan(port);
        let workload = self.lab.workload(
            &namespace,
            &port.id,
            &WorkloadOptions {
                mac: &port.mac,
                addresses: &plan
                    .addresses
                    .iter()
                    .map(String::as_str)
                    .collect::<Vec<_>>(),
                gateways: &plan.gateways.iter().map(String::as_str).collect::<Vec<_>>(),
                link: LinkOptions {
                    mtu: options.workload_mtu,
                    ..LinkOptions::default()
                },
                checksum_offload: options.checksum_offload,
            },
        )?;
        self.workloads.insert(port.id.clone(), workload);
        Ok(())
    }

    /// Completes the device of a port that is to be added, and makes what it needs on its host before weftd can open it.
    pub fn prepare(&mut self, port: &mut Port, options: &SiteOptions) -> Result<(), LabError> {
        place(port, &self.directory, options);
        self.make_workload(port, options)
    }

    /// Removes what [`Site::prepare`] made, when the port is gone.
    pub fn forget(&mut self, port: &Port) -> Result<(), LabError> {
        match (self.hosts.get(&port.host), &port.device) {
            (Some(host), Some(device))
                if device.kind == "netdev" && device.name.starts_with(GUEST_TAP) =>
            {
                host.namespace
                    .ip(&format!("link delete {}", device.name))
                    .map(drop)
            }
            _ => Ok(()),
        }
    }

    /// The card of a port's virtual machine, if its workload is one; `id` is its name at the machine's monitor. Waits for what weftd makes for it.
    pub fn nic(
        &self,
        id: &str,
        port: &Port,
        features: &NicFeatures,
    ) -> Result<Option<Nic>, LabError> {
        let (Some(device), Some(host)) = (&port.device, self.hosts.get(&port.host)) else {
            return Ok(None);
        };
        let backend = if device.kind == "vhost-user" {
            let socket = PathBuf::from(&device.name);
            let listen = device.mode == "client";
            if !listen {
                wait_until("weftd's socket", BOOT, || socket.exists())?;
            }
            Backend::VhostUser { socket, listen }
        } else if device.name.starts_with(GUEST_TAP) {
            let line = format!("link show {}", device.name);
            wait_until("the guest's tap", BOOT, || host.namespace.ip(&line).is_ok())?;
            Backend::Tap {
                interface: device.name.clone(),
            }
        } else {
            return Ok(None);
        };
        Ok(Some(Nic {
            id: id.to_owned(),
            mac: port.mac.clone(),
            backend,
            features: features.clone(),
        }))
    }

    /// Starts the virtual machine of a port, if its workload is one, and does not wait for its boot.
    pub fn start_guest(&mut self, port: &Port, options: &SiteOptions) -> Result<(), LabError> {
        let features = options.features(&port.id);
        let Some(nic) = self
            .nic("nic0", port, features)
            .map_err(|error| self.explain(error))?
        else {
            return Ok(());
        };
        let guest = Guest::start(
            &self.hosts[&port.host].namespace,
            &port.id,
            &self.directory,
            &GuestOptions {
                processors: features.queues,
                nics: vec![nic],
                ..GuestOptions::default()
            },
        );
        let guest = guest.map_err(|error| self.explain(error))?;
        self.guests.insert(port.id.clone(), guest);
        Ok(())
    }

    fn set_up_guest(&self, port: &Port, options: &SiteOptions) -> Result<(), LabError> {
        let Some(guest) = self.guests.get(&port.id) else {
            return Ok(());
        };
        guest.wait_up()?;
        if !options.configure_guests {
            return Ok(());
        }
        let queues = options.features(&port.id).queues;
        if queues > 1 {
            guest.succeed(&format!("/tools/ethtool -L eth0 combined {queues}"))?;
        }
        self.configure_guest(&port.id, options.workload_mtu)
    }

    /// Gives the first card of a port's virtual machine the port's addresses and routes.
    pub fn configure_guest(&self, port: &str, mtu: u32) -> Result<(), LabError> {
        let found = self.objects.ports.iter().find(|other| other.id == port);
        let (Some(port), Some(guest)) = (found, self.guests.get(port)) else {
            return Ok(());
        };
        let Plan {
            addresses,
            gateways,
        } = self.plan(port);
        let mut lines = vec![
            "cd /proc/sys/net/ipv6/conf/eth0 && echo 0 >accept_dad && echo 0 >accept_ra".to_owned(),
            format!("ip link set eth0 mtu {mtu} up"),
        ];
        lines.extend(
            addresses
                .iter()
                .map(|address| format!("ip address add {address} dev eth0")),
        );
        for gateway in gateways {
            let family = if gateway.contains(':') { "-6" } else { "-4" };
            lines.push(format!(
                "ip {family} route replace default via {gateway} dev eth0"
            ));
        }
        guest.succeed(&lines.join(" && ")).map(drop)
    }

    /// What a port's workload is to set up.
    fn plan(&self, port: &Port) -> Plan {
        let subnet = self
            .objects
            .subnets
            .iter()
            .find(|subnet| subnet.id == port.subnet);
        let cidrs: Vec<String> = subnet
            .map(|subnet| subnet.cidrs.clone())
            .unwrap_or_default();
        let within = |address: &str| {
            let length = cidrs
                .iter()
                .find(|cidr| cidr.contains(':') == address.contains(':'));
            let length = length
                .and_then(|cidr| cidr.split('/').nth(1))
                .unwrap_or("32");
            format!("{address}/{length}")
        };
        let addresses: Vec<String> = port
            .addresses
            .iter()
            .map(|address| within(address))
            .collect();
        let has = |ipv6: bool| {
            port.addresses
                .iter()
                .any(|address| address.contains(':') == ipv6)
        };
        let gateways: Vec<String> = cidrs
            .iter()
            .filter(|cidr| has(cidr.contains(':')))
            .filter_map(|cidr| weft_proto::address::parse_prefix(cidr).ok())
            .map(|prefix| weft_proto::address::first_address(prefix).to_string())
            .collect();
        Plan {
            addresses,
            gateways,
        }
    }

    fn own_hosts(&self) -> Vec<String> {
        self.objects
            .hosts
            .iter()
            .filter(|host| !host.foreign)
            .map(|host| host.id.clone())
            .collect()
    }

    /// Starts the controller, with what it has stored before, and waits until it answers.
    pub fn start_controller(&mut self) -> Result<(), LabError> {
        self.launch_controller()?;
        let deadline = Duration::from_secs(20);
        wait_until("the controller answers", deadline, || {
            self.ctl(&["hosts"]).is_ok()
        })
    }

    /// Starts the controller, and waits for nothing.
    pub fn launch_controller(&mut self) -> Result<(), LabError> {
        let config = self.directory.join("controller.toml");
        let listen = if self.remote_controller {
            format!("0.0.0.0:{CONTROLLER_PORT}")
        } else {
            format!("unix:{}/controller.sock", self.directory.display())
        };
        let store = self.store().join(DATABASE);
        write(
            &config,
            &format!(
                "listen = '{listen}'\nstore = {{ kind = 'embedded', path = '{}' }}\n{}\n",
                store.display(),
                self.controller_lines
            ),
        )?;
        let daemon = self.controller_namespace.spawn(
            program("weft-controller")?,
            &["--config".as_ref(), config.as_os_str()],
        )?;
        self.controller = Some(daemon);
        Ok(())
    }

    /// Starts the weftd of a host, with what it has kept before.
    pub fn start_daemon(&mut self, host: &str) -> Result<(), LabError> {
        let Some(entry) = self.hosts.get_mut(host) else {
            return Ok(());
        };
        entry.daemon = Some(entry.namespace.spawn(
            program("weftd")?,
            &["--config".as_ref(), entry.config.as_os_str()],
        )?);
        Ok(())
    }

    /// Restarts the weftd of a host without a controller: from a file of the state that it has now, which is named.
    pub fn restart_from_file(&mut self, host: &str) -> Result<PathBuf, LabError> {
        let file = self.directory.join(format!("{host}-state.yaml"));
        // YAML holds JSON.
        let state = &self.node_json(host, &["node", "state"])?["state"];
        write(&file, &state.to_string())?;
        let Some(entry) = self.hosts.get_mut(host) else {
            return Ok(file);
        };
        let text = std::fs::read_to_string(&entry.config)
            .map_err(LabError::io(entry.config.display().to_string()))?;
        let settings = text.lines().filter(|line| !line.starts_with("controller"));
        let lines: Vec<&str> = settings.collect();
        let text = format!("state_file = '{}'\n{}\n", file.display(), lines.join("\n"));
        write(&entry.config, &text)?;
        if let Some(mut daemon) = entry.daemon.take() {
            daemon.stop(BOOT)?;
        }
        self.start_daemon(host)?;
        Ok(file)
    }

    /// Runs weftctl against the controller.
    pub fn ctl(&self, arguments: &[&str]) -> Result<String, LabError> {
        let weftctl = program("weftctl")?;
        let (mut command, controller) = if self.remote_controller {
            (
                self.controller_namespace.command(weftctl),
                format!("http://127.0.0.1:{CONTROLLER_PORT}"),
            )
        } else {
            (
                Command::new(weftctl),
                format!("unix:{}/controller.sock", self.directory.display()),
            )
        };
        output(command.args(["--controller", &controller]).args(arguments))
    }

    /// Runs weftctl against the daemon of a host.
    pub fn node(&self, host: &str, arguments: &[&str]) -> Result<String, LabError> {
        let socket = self
            .hosts
            .get(host)
            .map(|host| format!("unix:{}", host.socket.display()))
            .unwrap_or_default();
        output(
            Command::new(program("weftctl")?)
                .args(["--node", &socket])
                .args(arguments),
        )
    }

    /// What a daemon answers, as JSON.
    pub fn node_json(&self, host: &str, arguments: &[&str]) -> Result<serde_json::Value, LabError> {
        let text = self.node(host, &[arguments, &["-o", "json"]].concat())?;
        serde_json::from_str(&text).map_err(|source| LabError::Io {
            what: format!("weftctl {arguments:?}"),
            source: source.into(),
        })
    }

    /// Applies the intent without waiting for hosts.
    pub fn apply_only(&self, objects: &Objects) -> Result<(), LabError> {
        let file = self.directory.join("topology.yaml");
        let text = serde_yaml_ng::to_string(objects).map_err(|source| LabError::Io {
            what: "writing the topology".to_owned(),
            source: std::io::Error::other(source),
        })?;
        write(&file, &text)?;
        self.ctl(&["apply", "--prune", "-f", &file.display().to_string()])
            .map(drop)
    }

    /// Changes the intent, waits until every host has it in force, and returns how long that took.
    pub fn change(&mut self, change: impl FnOnce(&mut Objects)) -> Result<Duration, LabError> {
        let mut objects = self.objects.clone();
        change(&mut objects);
        let begun = Instant::now();
        self.apply_only(&objects)?;
        self.objects = objects;
        self.wait_for_hosts()?;
        Ok(begun.elapsed())
    }

    /// Waits until every host has the present intent in force.
    pub fn wait_for_hosts(&self) -> Result<(), LabError> {
        let mut last = String::new();
        let hosts = self.own_hosts().len();
        let attached = |text: &str| {
            text.lines()
                .filter(|line| line.split_whitespace().nth(1) == Some("yes"))
                .count()
        };
        let done = wait_until("every host is attached", Duration::from_secs(20), || {
            last = self.ctl(&["hosts"]).unwrap_or_default();
            attached(&last) == hosts
        });
        done.and_then(|()| self.ctl(&["hosts", "--wait", "20"]).map(drop))
            .map_err(|error| self.explain(error))
    }

    /// Waits until every port that has a workload is up, and the next hop to every VTEP is known.
    pub fn wait_for_ports(&self) -> Result<(), LabError> {
        let up = || {
            self.own_hosts().iter().all(|host| {
                let Ok(status) = self.node_json(host, &["node", "status"]) else {
                    return false;
                };
                status["ports"]
                    .as_array()
                    .is_some_and(|ports| ports.iter().all(|port| port["up"] == true))
            })
        };
        wait_until("every port is up", Duration::from_secs(20), up)
            .map_err(|error| self.explain(error))
    }

    /// Adds what a person would look at first to an error: the ends of the daemons' logs, and the drops by reason.
    pub fn explain(&self, error: LabError) -> LabError {
        let mut text = String::new();
        let tail = |log: String| {
            log.lines()
                .rev()
                .take(12)
                .collect::<Vec<_>>()
                .into_iter()
                .rev()
                .collect::<Vec<_>>()
                .join("\n")
        };
        if let Some(controller) = &self.controller {
            text.push_str(&format!("\n--- controller\n{}", tail(controller.log())));
        }
        for (id, host) in &self.hosts {
            if let Some(daemon) = &host.daemon {
                let drops = self.node(id, &["drops"]).unwrap_or_default();
                text.push_str(&format!(
                    "\n--- weftd of {id}\n{}\n{drops}",
                    tail(daemon.log())
                ));
            }
        }
        for guest in self.guests.values() {
            text.push_str(&guest.last_words());
        }
        LabError::Explained {
            source: Box::new(error),
            text,
        }
    }

    /// Whether so many pings of a port's workload to an address are all answered.
    pub fn reaches(&self, from: &str, address: &str, count: u32) -> bool {
        match (self.guests.get(from), self.workloads.get(from)) {
            (Some(guest), _) => guest.pings(address, count),
            (None, Some(workload)) => workload.namespace.pings(address, count),
            (None, None) => false,
        }
    }

    /// Whether `from` can ping every address of `to`.
    pub fn pings(&self, from: &str, to: &str) -> bool {
        let Some(port) = self.objects.ports.iter().find(|port| port.id == to) else {
            return false;
        };
        port.addresses
            .iter()
            .all(|address| self.reaches(from, address, 2))
    }

    /// The address of a port, of the family asked for.
    pub fn address(&self, port: &str, ipv6: bool) -> Option<IpAddr> {
        let port = self
            .objects
            .ports
            .iter()
            .find(|candidate| candidate.id == port)?;
        port.addresses
            .iter()
            .filter_map(|text| text.parse::<IpAddr>().ok())
            .find(|address| address.is_ipv6() == ipv6)
    }

    /// A service of a port: its address of the family asked for, and the L4 port.
    pub fn service(&self, port: &str, ipv6: bool, l4_port: u16) -> Result<SocketAddr, LabError> {
        let address = self.address(port, ipv6).ok_or_else(|| LabError::Io {
            what: format!("the address of {port}"),
            source: std::io::Error::from(std::io::ErrorKind::NotFound),
        })?;
        Ok(SocketAddr::new(address, l4_port))
    }

    /// Starts a numbered stream from the workload of one port to that of another, by IPv4.
    pub fn stream(
        &self,
        from: &str,
        to: &str,
        l4_port: u16,
        per_second: u32,
    ) -> Result<NumberedStream, LabError> {
        NumberedStream::start(
            &self.workloads[from].namespace,
            &self.workloads[to].namespace,
            self.service(to, false, l4_port)?,
            per_second,
        )
        .map_err(|error| self.explain(error))
    }

    /// Waits until the books of every daemon's packet buffers are balanced: exact when nothing moves.
    pub fn wait_for_frames(&self) -> Result<(), LabError> {
        let mut last = String::new();
        let balanced = || {
            self.own_hosts().iter().all(|host| {
                let Ok(stats) = self.node_json(host, &["stats"]) else {
                    return false;
                };
                last = format!("{host}: {}", stats["frames"]);
                let count = |what: &str| stats["frames"][what].as_u64().unwrap_or(0);
                count("total") > 0
                    && count("total") == count("free") + count("fill") + count("transmit")
            })
        };
        let done = wait_until(
            "every packet buffer is accounted for",
            Duration::from_secs(5),
            balanced,
        );
        done.map_err(|error| LabError::Explained {
            source: Box::new(error),
            text: format!(" ({last})"),
        })
    }

    /// The lab, for more namespaces and links.
    pub fn lab(&mut self) -> &mut Lab {
        &mut self.lab
    }

    /// Where the site keeps its files.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The directory of the controller's store, which has nothing else in it.
    pub fn store(&self) -> PathBuf {
        self.directory.join("store")
    }

    /// Leaves everything running when the site is dropped.
    pub fn keep(mut self) {
        self.lab.keep();
        for host in self.hosts.values_mut() {
            std::mem::forget(host.daemon.take());
        }
        std::mem::forget(self.controller.take());
        std::mem::forget(std::mem::take(&mut self.guests));
        std::mem::forget(self);
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        self.guests.clear();
        for host in self.hosts.values_mut() {
            host.daemon = None;
        }
        self.controller = None;
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}
