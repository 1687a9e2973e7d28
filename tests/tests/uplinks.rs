//! Uplinks and ports that cannot work are refused with the reason and the remedy, before and while weftd runs.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use weft_tests::site::program;
use weft_tests::{
    Daemon, Lab, LabError, LinkOptions, Namespace, Site, SiteOptions, tenants, wait_until,
};

const SOON: Duration = Duration::from_secs(10);

/// A host with a weftd of its own and no state.
struct Bare {
    host: Namespace,
    peer: Namespace,
    directory: PathBuf,
    _lab: Lab,
}

impl Bare {
    fn new(mtu: u32) -> Self {
        let mut lab = Lab::new().unwrap();
        let (host, peer) = (lab.host("host").unwrap(), lab.host("peer").unwrap());
        let options = LinkOptions {
            mtu,
            ..LinkOptions::default()
        };
        lab.link((&host, "u0"), (&peer, "u0"), options).unwrap();
        let directory = std::env::temp_dir().join(host.name());
        fs::create_dir_all(&directory).unwrap();
        let bare = Self {
            host,
            peer,
            directory,
            _lab: lab,
        };
        bare.state("hosts: []");
        bare
    }

    fn state(&self, yaml: &str) {
        fs::write(self.directory.join("state.yaml"), yaml).unwrap();
    }

    fn config(&self, uplink: &str, more: &str) -> PathBuf {
        let directory = self.directory.display();
        let text = format!(
            "host = 'h1'\nstate_file = '{directory}/state.yaml'\nstate_directory = '{directory}'\nsocket = '{directory}/sock'\nuplinks = [{{ interface = '{uplink}' }}]\n{more}\n"
        );
        let file = self.directory.join("weftd.toml");
        fs::write(&file, text).unwrap();
        file
    }

    /// What `weftd check` says of a configuration, if it refuses.
    fn check(&self, uplink: &str, more: &str) -> Option<String> {
        let file = self.config(uplink, more);
        let weftd = program("weftd").unwrap();
        let line = [weftd.to_str().unwrap(), "check", file.to_str().unwrap()];
        self.host.run(&line).err().map(|error| error.to_string())
    }

    fn start(&self, uplink: &str, more: &str) -> Daemon {
        let file = self.config(uplink, more);
        let line = ["--config".as_ref(), file.as_os_str()];
        self.host.spawn(program("weftd").unwrap(), &line).unwrap()
    }

    /// Both the check and the start refuse, and say all of this.
    fn refused(&self, uplink: &str, more: &str, words: &[&str]) {
        let checked = self.check(uplink, more).expect("the check refuses");
        let mut daemon = self.start(uplink, more);
        assert_eq!(daemon.wait(SOON).unwrap().code(), Some(1));
        for said in [checked, daemon.log()] {
            for word in words {
                assert!(said.contains(word), "'{word}' in: {said}");
            }
        }
    }

    fn uplinks(&self) -> String {
        let weftctl = program("weftctl").unwrap();
        let socket = format!("unix:{}/sock", self.directory.display());
        let line = [
            weftctl.to_str().unwrap(),
            "--node",
            &socket,
            "node",
            "status",
            "-o",
            "json",
        ];
        let text = self.host.run(&line).unwrap_or_default();
        let status: serde_json::Value = serde_json::from_str(&text).unwrap_or_default();
        status["uplinks"].to_string()
    }

    fn says(&self, words: &[&str]) {
        let mut last = String::new();
        let done = wait_until("the status says so", SOON, || {
            last = self.uplinks();
            words.iter().all(|word| last.contains(word))
        });
        done.unwrap_or_else(|error| panic!("{error}: {last}"));
    }
}

impl Drop for Bare {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.directory);
    }
}

#[test]
fn a_port_of_a_bridge_is_refused_and_the_bridge_itself_is_taken() {
    let bare = Bare::new(1500);
    bare.host.ip("link add br0 type bridge").unwrap();
    bare.host.ip("link set br0 up").unwrap();
    bare.host.ip("link set u0 master br0").unwrap();
    bare.host.ip("address add 192.0.2.1/24 dev br0").unwrap();
    bare.refused(
        "u0",
        "",
        &["u0", "a port of the bridge br0", "name br0 in uplinks"],
    );
    assert_eq!(bare.check("br0", ""), None);
    let _daemon = bare.start("br0", "");
    bare.says(&["br0 (generic)"]);
}

#[test]
fn tunnels_pass_where_the_uplink_is_a_bridge() {
    let mut site = Site::start(
        Lab::new().unwrap(),
        &tenants(2).unwrap(),
        &SiteOptions::default(),
    )
    .unwrap();
    let body = |site: &mut Site| -> Result<(), LabError> {
        let host = site.hosts["h1"].namespace.clone();
        let mut daemon = site.hosts.get_mut("h1").unwrap().daemon.take().unwrap();
        daemon.stop(SOON)?;
        host.ip("address del 192.0.2.1/24 dev u0")?;
        host.ip("link add br0 type bridge")?;
        host.ip("link set u0 master br0")?;
        host.ip("link set br0 up")?;
        host.ip("address add 192.0.2.1/24 dev br0")?;
        let config = site.hosts["h1"].config.clone();
        let text = fs::read_to_string(&config).unwrap();
        fs::write(&config, text.replace("'u0'", "'br0'")).unwrap();
        site.start_daemon("h1")?;
        wait_until("tunnels pass", SOON, || site.pings("blue-1", "blue-2"))?;
        assert!(host.pings("192.0.2.2", 2), "the host's own traffic");
        Ok(())
    };
    if let Err(error) = body(&mut site) {
        panic!("{}", site.explain(error));
    }
}

#[test]
fn a_route_that_leads_over_another_interface_is_named_in_the_status() {
    let bare = Bare::new(1500);
    bare.host.ip("address add 192.0.2.1/24 dev u0").unwrap();
    let link = LinkOptions::default();
    bare._lab
        .link((&bare.host, "x0"), (&bare.peer, "x0"), link)
        .unwrap();
    bare.host.ip("address add 203.0.113.1/24 dev x0").unwrap();
    bare.peer.ip("address add 203.0.113.2/24 dev x0").unwrap();
    bare.state("hosts: [{id: h1, vteps: [192.0.2.1]}, {id: h2, vteps: [203.0.113.2]}]");
    let _daemon = bare.start("u0", "");
    bare.says(&[
        "u0 (native)",
        "x0 (no uplink, but the route to 203.0.113.2 leads over it",
    ]);
}

#[test]
fn an_uplink_whose_frames_do_not_fit_is_refused_with_the_largest_mtu_that_does() {
    for (mtu, size, words) in [
        (
            3450,
            2048,
            &["MTU of 3450", "an MTU of 1774", "4096 takes 3822"][..],
        ),
        (4000, 4096, &["MTU of 4000", "an MTU of 3822"]),
        (
            9000,
            2048,
            &["MTU of 9000", "an MTU of 1774", "4096 takes 3822"],
        ),
        (9000, 4096, &["MTU of 9000", "an MTU of 3822"]),
    ] {
        let bare = Bare::new(mtu);
        bare.refused("u0", &format!("memory.frame_size = {size}"), words);
    }
    // Raised while it is open: what fits goes on, and the status says that the rest is lost.
    let bare = Bare::new(1774);
    assert_eq!(bare.check("u0", ""), None);
    let daemon = bare.start("u0", "");
    bare.says(&["u0 (native)"]);
    bare.host.ip("link set u0 mtu 1775").unwrap();
    bare.says(&["u0 (native, MTU 1775 is more than 1774)"]);
    assert!(daemon.log().contains("longer tunnel packets are lost"));
    bare.host.ip("link set u0 mtu 1500").unwrap();
    bare.says(&["u0 (native)"]);
}

/// The longest packets that an underlay of this MTU carries, whole, both ways; and a port that takes longer ones is refused.
fn the_largest_works(frame_size: u32, underlay: u32) {
    let options = SiteOptions {
        daemon: format!("memory.frame_size = {frame_size}"),
        underlay_mtu: underlay,
        workload_mtu: underlay - 50,
        ..SiteOptions::default()
    };
    let mut site = Site::start(Lab::new().unwrap(), &tenants(2).unwrap(), &options).unwrap();
    let body = |site: &mut Site| -> Result<(), LabError> {
        let payload = (underlay - 50 - 28).to_string();
        let longest = |from: &str, to: &str| {
            let line = [
                "ping", "-q", "-c", "3", "-i", "0.05", "-W", "1", "-M", "do", "-s", &payload, to,
            ];
            site.workloads[from].namespace.run(&line)
        };
        longest("blue-1", "10.0.1.12")?;
        longest("blue-2", "10.0.1.11")?;
        // The port's interface takes longer frames than fit: down, with the reason; and back.
        let port = |site: &Site| {
            let status = site
                .node_json("h1", &["node", "status"])
                .unwrap_or_default();
            let ports = status["ports"].as_array().cloned().unwrap_or_default();
            let found = ports.into_iter().find(|port| port["port"] == "blue-1");
            found.unwrap_or_default()
        };
        let host = site.hosts["h1"].namespace.clone();
        host.ip(&format!("link set p-blue-1 mtu {}", underlay - 49))?;
        wait_until("the port is down and says why", SOON, || {
            let reason = port(site)["reason"].to_string();
            port(site)["up"] != true && reason.contains(&format!("an MTU of {}", underlay - 50))
        })?;
        host.ip(&format!("link set p-blue-1 mtu {}", underlay - 50))?;
        wait_until("the port is up", SOON, || port(site)["up"] == true)?;
        wait_until("and works", SOON, || site.pings("blue-1", "blue-2"))?;
        site.wait_for_frames()
    };
    if let Err(error) = body(&mut site) {
        panic!("{}", site.explain(error));
    }
}

#[test]
fn the_largest_mtu_of_buffers_of_2048_bytes_is_carried_whole() {
    the_largest_works(2048, 1774);
}

#[test]
fn the_largest_mtu_of_buffers_of_4096_bytes_is_carried_whole() {
    the_largest_works(4096, 3822);
}

#[test]
fn a_device_leaves_vlan_tags_in_frames_while_it_is_an_uplink() {
    let bare = Bare::new(1500);
    let strips = || {
        let shown = bare.host.run(&["ethtool", "-k", "u0"]).unwrap();
        shown.contains("rx-vlan-offload: on")
    };
    assert!(strips(), "as veth does by itself");
    let mut daemon = bare.start("u0", "");
    bare.says(&["u0 (native)"]);
    assert!(!strips());
    assert_eq!(daemon.stop(SOON).unwrap().code(), Some(0));
    assert!(strips(), "as before");
}

#[test]
fn an_interface_on_a_physical_network_may_come_late_go_and_change_and_hears_all_multicast() {
    let bare = Bare::new(1500);
    let external = |interface: &str| {
        format!("[[external]]\nphysical_network = 'physnet1'\ninterface = '{interface}'")
    };
    let add = |mtu| {
        let options = LinkOptions {
            mtu,
            ..LinkOptions::default()
        };
        bare._lab
            .link((&bare.host, "x0"), (&bare.peer, "x0"), options)
            .unwrap();
    };
    let hears_all = || {
        let flags = bare
            .host
            .run(&["cat", "/sys/class/net/x0/flags"])
            .unwrap_or_default();
        let flags = flags.trim().trim_start_matches("0x");
        // IFF_ALLMULTI
        u32::from_str_radix(flags, 16).unwrap_or(0) & 0x200 != 0
    };
    let mut daemon = bare.start("u0", &external("x0"));
    bare.says(&["u0 (native)", "x0 (missing)"]);
    add(1500);
    bare.says(&["u0 (native)", "x0 (native)"]);
    wait_until("all multicast", SOON, hears_all).unwrap();
    bare.host.ip("link delete x0").unwrap();
    bare.says(&["x0 (missing)"]);
    add(1500);
    bare.says(&["x0 (native)"]);
    wait_until("all multicast again", SOON, hears_all).unwrap();
    assert_eq!(daemon.stop(SOON).unwrap().code(), Some(0));
    assert!(!hears_all(), "as before");
    // The check looks at it too.
    bare.host.ip("link delete x0").unwrap();
    add(9000);
    let checked = bare.check("u0", &external("x0")).unwrap();
    assert!(checked.contains("MTU of 9000"), "{checked}");
    assert_eq!(bare.check("u0", &external("u0")), None);
    let _daemon = bare.start("u0", &external("u0"));
    bare.says(&["[\"u0 (native)\"]"]);
}
