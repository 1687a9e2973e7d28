//! Ours: weftd with one worker, between two vhost-user sockets, its state from a file.

use std::fmt::Write;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::time::Duration;

use weft_tests::site::program;
use weft_tests::{Daemon, Lab, wait_until};

use super::{A, B, RULES, Setup, Switch, UNDERLAY_FAR, UNDERLAY_NEAR, VNI, mac};

const PATIENCE: Duration = Duration::from_secs(20);

/// The running daemon.
#[derive(Debug)]
pub(super) struct Weft {
    daemon: Daemon,
    sockets: [PathBuf; 2],
    _files: tempfile::TempDir,
    // Last, so that the daemon ends before its namespace goes.
    _lab: Lab,
}

impl Weft {
    pub(super) fn start(setup: Setup, core: usize) -> anyhow::Result<Self> {
        let mut lab = Lab::new()?;
        let namespace = lab.host("weft")?;
        let files = tempfile::tempdir()?;
        let at = |name: &str| files.path().join(name);
        let sockets = ["a", "b"].map(at);
        std::fs::write(at("state.yaml"), state(setup, &sockets))?;
        let (near, far) = (UNDERLAY_NEAR, UNDERLAY_FAR);
        // An uplink that is not used has a socket too.
        let uplink = match setup {
            Setup::SameHost => at("unused"),
            Setup::Tunnel => sockets[1].clone(),
        };
        let config = format!(
            "host = 'h1'\nstate_file = '{state}'\nsocket = '{control}'\nstate_directory = '{kept}'\n\
             workers = {{ cores = [{core}], spin = true }}\nmemory.frames = 32768\n\
             [[uplinks]]\nvhost_user = {{ socket = '{uplink}', mac = '{near}', next_hop_mac = '{far}' }}\n",
            state = at("state.yaml").display(),
            control = at("control").display(),
            kept = at("kept").display(),
            uplink = uplink.display(),
            near = mac(near.0),
            far = mac(far.0),
        );
        std::fs::write(at("weftd.toml"), config)?;
        let daemon = namespace.spawn(
            program("weftd")?,
            &["--config".as_ref(), at("weftd.toml").as_os_str()],
        )?;
        let listens = || sockets.iter().all(|socket| socket.exists());
        wait_until("weftd's sockets", PATIENCE, listens)
            .map_err(|error| anyhow::anyhow!("{error}\n{}", daemon.log()))?;
        Ok(Self {
            daemon,
            sockets,
            _files: files,
            _lab: lab,
        })
    }
}

impl Switch for Weft {
    fn sockets(&self) -> [PathBuf; 2] {
        self.sockets.clone()
    }

    fn process(&self) -> &Daemon {
        &self.daemon
    }
}

/// Two ports in a subnet with an ACL, in a group of so many rules ahead of the one that admits; the second is here or beyond the tunnel.
fn state(setup: Setup, sockets: &[PathBuf; 2]) -> String {
    let address = |bytes: [u8; 4]| Ipv4Addr::from(bytes);
    let (near, far) = (UNDERLAY_NEAR, UNDERLAY_FAR);
    let mut text = format!(
        "hosts: [{{id: h1, vteps: [{}]}}, {{id: h2, vteps: [{}]}}]\n\
         vpcs: [{{id: blue, vni: {VNI}}}]\n\
         subnets: [{{id: blue, vpc: blue, cidrs: [10.0.1.0/24], network_acl: blue}}]\n\
         network_acls:\n  - {{id: blue, vpc: blue, rules: [{{number: 1, direction: ingress, action: allow}}, {{number: 1, direction: egress, action: allow}}]}}\n\
         security_groups:\n  - id: blue\n    vpc: blue\n    rules:\n",
        address(near.1),
        address(far.1),
    );
    for port in (0..RULES).map(|number| 20_000 + number).chain([9]) {
        // Writing to a string does not fail.
        let _ = writeln!(
            text,
            "      - {{direction: ingress, protocol: udp, port_min: {port}, port_max: {port}}}"
        );
    }
    text.push_str("ports:\n");
    for (number, (id, end)) in [("a", A), ("b", B)].into_iter().enumerate() {
        let here = number == 0 || setup == Setup::SameHost;
        let place = if here {
            format!(
                "host: h1, device: {{kind: vhost-user, name: {}}}",
                sockets[number].display()
            )
        } else {
            "host: h2".to_owned()
        };
        let _ = writeln!(
            text,
            "  - {{id: {id}, vpc: blue, subnet: blue, mac: \"{}\", addresses: [{}], security_groups: [blue], {place}}}",
            mac(end.0),
            address(end.1)
        );
    }
    text
}
