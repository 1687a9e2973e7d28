//! Open vSwitch's userspace datapath as a peer, on plain interfaces or with DPDK: its two programs run in a namespace, with every file of theirs
//! in a directory of their own.

use std::{
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    time::Duration,
};

use crate::{Daemon, LabError, Namespace, wait_until};

const PATIENCE: Duration = Duration::from_secs(20);
const SCHEMA: &str = "/usr/share/openvswitch/vswitch.ovsschema";
/// Debian's build with DPDK lies beside the plain one.
const WITH_DPDK: &str = "/usr/lib/openvswitch-switch-dpdk/ovs-vswitchd-dpdk";

/// What a switch with DPDK may have.
#[derive(Debug, Clone, Copy)]
pub struct DpdkOptions {
    /// The core of its control thread.
    pub control_core: usize,
    /// The core on which it forwards.
    pub core: usize,
    /// Mebibytes of huge pages.
    pub memory: u32,
}

/// A running switch. Dropping it ends it and removes its files.
#[derive(Debug)]
pub struct OpenVswitch {
    namespace: Namespace,
    directory: PathBuf,
    /// The switch itself.
    pub switch: Daemon,
    _database: Daemon,
}

impl OpenVswitch {
    /// A switch in a namespace, without a bridge yet.
    pub fn start(namespace: &Namespace) -> Result<Self, LabError> {
        Self::start_program(namespace, "ovs-vswitchd", &[])
    }

    /// The same with DPDK.
    pub fn start_with_dpdk(namespace: &Namespace, dpdk: DpdkOptions) -> Result<Self, LabError> {
        let settings = [
            "dpdk-init=true".to_owned(),
            format!("dpdk-socket-mem={}", dpdk.memory),
            format!("dpdk-lcore-mask={:#x}", 1 << dpdk.control_core),
            format!("pmd-cpu-mask={:#x}", 1 << dpdk.core),
            "dpdk-extra=\"--in-memory --no-pci --no-telemetry\"".to_owned(),
        ];
        Self::start_program(namespace, WITH_DPDK, &settings)
    }

    fn start_program(
        namespace: &Namespace,
        program: &str,
        settings: &[String],
    ) -> Result<Self, LabError> {
        let directory = std::env::temp_dir().join(format!("{}-ovs", namespace.name()));
        let at = |name: &str| directory.join(name).display().to_string();
        std::fs::create_dir_all(&directory).map_err(LabError::io(at("")))?;
        namespace.run(&["ovsdb-tool", "create", &at("conf.db"), SCHEMA])?;
        let database = namespace.spawn(
            "ovsdb-server",
            &[
                at("conf.db"),
                format!("--remote=punix:{}", at("db.sock")),
                format!("--unixctl={}", at("db.ctl")),
            ],
        )?;
        wait_until("the database listens", PATIENCE, || {
            // The file is there a little before.
            UnixStream::connect(directory.join("db.sock")).is_ok()
        })?;
        let socket = format!("unix:{}", at("db.sock"));
        let database_option = format!("--db={socket}");
        let tell = ["ovs-vsctl", &database_option, "--no-wait"];
        namespace.run(&[&tell[..], &["init"]].concat())?;
        for setting in settings {
            let setting = format!("other_config:{setting}");
            namespace.run(&[&tell[..], &["set", "Open_vSwitch", ".", &setting]].concat())?;
        }
        let run = format!("OVS_RUNDIR={}", directory.display());
        let control = format!("--unixctl={}", at("switch.ctl"));
        let switch = namespace.spawn(
            "env",
            &[&run, program, &socket, &control, "--disable-system"],
        )?;
        Ok(Self {
            namespace: namespace.clone(),
            directory,
            switch,
            _database: database,
        })
    }

    /// Where its sockets are.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// `ovs-vsctl`, its words separated by blanks; returns what it printed when the switch has taken the change up.
    pub fn set(&self, line: &str) -> Result<String, LabError> {
        let database = format!("--db=unix:{}/db.sock", self.directory.display());
        let mut command = vec!["ovs-vsctl", "--timeout=20", &database];
        command.extend(line.split_whitespace());
        self.namespace
            .run(&command)
            .map_err(|error| self.explain(error))
    }

    /// `ovs-appctl`, its words separated by blanks.
    pub fn control(&self, line: &str) -> Result<String, LabError> {
        let target = format!("{}/switch.ctl", self.directory.display());
        let mut command = vec!["ovs-appctl", "-t", &target];
        command.extend(line.split_whitespace());
        self.namespace
            .run(&command)
            .map_err(|error| self.explain(error))
    }

    /// Puts these flows, one a line, in the place of a bridge's.
    pub fn set_flows(&self, bridge: &str, flows: &str) -> Result<(), LabError> {
        let file = self.directory.join("flows").display().to_string();
        std::fs::write(&file, flows).map_err(LabError::io(file.clone()))?;
        let bridge = format!("unix:{}/{bridge}.mgmt", self.directory.display());
        self.namespace
            .run(&["ovs-ofctl", "--bundle", "replace-flows", &bridge, &file])
            .map(drop)
            .map_err(|error| self.explain(error))
    }

    /// Adds the end of the switch's log to an error.
    pub fn explain(&self, error: LabError) -> LabError {
        let log = self.switch.log();
        let lines: Vec<&str> = log.lines().collect();
        LabError::Explained {
            source: Box::new(error),
            text: format!(
                "\n--- ovs-vswitchd\n{}",
                lines[lines.len().saturating_sub(15)..].join("\n")
            ),
        }
    }
}

impl Drop for OpenVswitch {
    fn drop(&mut self) {
        // By itself it takes its devices with it; it may have been told to pause.
        self.switch.pause(false);
        let _ = self.switch.stop(Duration::from_secs(5));
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}
