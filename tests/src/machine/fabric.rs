//! A fabric of machines, as `vagrant/` has it: a controller and hosts, provisioned by `vagrant/provision.sh` with the units of `packaging/`, in two
//! networks that are bridges between the machines' taps.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    time::Duration,
};

use super::{Kernel, Machine};
use crate::guest::{Backend, GuestOptions, Nic, NicFeatures};
use crate::site::program;
use crate::{Lab, LabError, Namespace};

/// How long a part of the provisioning may take without hardware's help.
const PATIENCE: Duration = Duration::from_secs(240);
const CONTROLLER: &str = "controller";

/// A host to be made.
#[derive(Debug, Clone)]
pub struct HostPlan {
    /// Its kernel.
    pub kernel: Kernel,
    /// What its cards in the underlay are, `eth1` and on. `eth0` is in the network of management.
    pub cards: Vec<NicFeatures>,
}

/// The machines.
#[derive(Debug)]
pub struct Fabric {
    /// The hosts `h1` and on.
    pub hosts: Vec<Machine>,
    /// The machine of the controller.
    pub controller: Machine,
    /// Where the networks are: the bridge `under` is the underlay.
    pub namespace: Namespace,
    directory: PathBuf,
    // Last: its namespace goes when nothing runs there.
    _lab: Lab,
}

impl Fabric {
    /// Starts the machines, and waits until they can be reached. The first card of each host in the underlay has its tunnel address.
    pub fn start(mut lab: Lab, plans: &[HostPlan]) -> Result<Self, LabError> {
        let namespace = lab.host("machines")?;
        let directory = std::env::temp_dir().join(namespace.name());
        std::fs::create_dir_all(&directory)
            .map_err(LabError::io(directory.display().to_string()))?;
        for bridge in ["manage", "under"] {
            namespace.ip(&format!("link add {bridge} type bridge"))?;
            namespace.ip(&format!("link set {bridge} up"))?;
        }
        let mut cards = Cards {
            lab: &lab,
            namespace: &namespace,
            count: 0,
        };
        let managed = cards.plug("manage", &NicFeatures::default())?;
        let options = GuestOptions {
            memory: 256,
            processors: 1,
            nics: vec![managed],
        };
        let newest = Kernel::Linux6_12;
        let controller = Machine::start(&namespace, CONTROLLER, &directory, newest, &options)?;
        let mut hosts = Vec::new();
        for (place, plan) in plans.iter().enumerate() {
            let mut nics = vec![cards.plug("manage", &NicFeatures::default())?];
            for features in &plan.cards {
                nics.push(cards.plug("under", features)?);
            }
            let options = GuestOptions {
                memory: 512,
                processors: 2,
                nics,
            };
            let name = format!("h{}", place + 1);
            hosts.push(Machine::start(
                &namespace,
                &name,
                &directory,
                plan.kernel,
                &options,
            )?);
        }
        let fabric = Self {
            hosts,
            controller,
            namespace,
            directory,
            _lab: lab,
        };
        fabric.controller.wait_up()?;
        fabric
            .controller
            .succeed("ip link set eth0 up && ip address add 192.168.56.10/24 dev eth0")?;
        for (place, host) in fabric.hosts.iter().enumerate() {
            host.wait_up()?;
            let number = place + 11;
            host.succeed(&format!(
                "ip link set eth0 up && ip address add 192.168.56.{number}/24 dev eth0 && ip link set eth1 up && ip address add 192.168.57.{number}/24 dev eth1"
            ))?;
        }
        Ok(fabric)
    }

    /// The names of the hosts.
    pub fn names(&self) -> Vec<String> {
        (1..=self.hosts.len())
            .map(|number| format!("h{number}"))
            .collect()
    }

    /// Provisions the controller and then every host; returns what `provision.sh driver` says of each.
    pub fn provision(&self) -> Result<BTreeMap<String, String>, LabError> {
        let names = self.names();
        let all = format!("controller {}", names.join(" "));
        self.script(&self.controller, &all)?;
        let mut drivers = BTreeMap::new();
        for (name, host) in names.into_iter().zip(&self.hosts) {
            self.script(host, &format!("host {name}"))?;
            drivers.insert(name, self.script(host, "driver")?);
        }
        Ok(drivers)
    }

    /// Runs `vagrant/provision.sh` on a machine.
    pub fn script(&self, machine: &Machine, arguments: &str) -> Result<String, LabError> {
        let programs = program("weftd")?;
        let programs = programs.parent().unwrap_or(Path::new("/"));
        let programs = programs
            .canonicalize()
            .map_err(LabError::io(programs.display().to_string()))?;
        let repository = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let script = repository
            .canonicalize()
            .map_err(LabError::io(repository.display().to_string()))?
            .join("vagrant/provision.sh");
        let line = format!(
            "WEFT_PROGRAMS={} {} {arguments}",
            programs.display(),
            script.display()
        );
        machine.succeed_within(&line, PATIENCE)
    }

    /// The table that the last host makes of what crosses: a line for each thing shown, which begins with `pass` or `FAIL`.
    pub fn table(&self) -> Result<String, LabError> {
        let names = self.names().join(" ");
        let last = self.hosts.last().unwrap_or(&self.controller);
        match self.script(last, &format!("table {names}")) {
            // A line failed; the table says which.
            Err(LabError::Failed { output, .. }) if output.contains("FAIL ") => Ok(output),
            other => other,
        }
    }
}

impl Drop for Fabric {
    fn drop(&mut self) {
        // What is left in it are files of the machines, which are done with.
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

/// Makes cards, and the taps behind them.
struct Cards<'l> {
    lab: &'l Lab,
    namespace: &'l Namespace,
    count: u16,
}

impl Cards<'_> {
    fn plug(&mut self, bridge: &str, features: &NicFeatures) -> Result<Nic, LabError> {
        self.count += 1;
        let interface = format!("t{}", self.count);
        self.lab
            .tap(self.namespace, &interface, features.queues, 1500)?;
        self.namespace
            .ip(&format!("link set {interface} master {bridge}"))?;
        Ok(Nic {
            id: format!("nic{}", self.count),
            mac: format!("02:00:00:01:00:{:02x}", self.count),
            backend: Backend::Tap { interface },
            features: features.clone(),
        })
    }
}
