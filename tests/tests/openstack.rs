//! OpenStack's own Neutron drives weft: a database, its API and the driver of `integrations/openstack`, and a cloud's user who asks them by OpenStack's
//! client library. Two hosts, and an outside behind the first one.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use weft_proto::v1::{Host, Objects};
use weft_tests::traffic::tcp_connects;
use weft_tests::{Daemon, Lab, LinkOptions, Namespace, Site, SiteOptions, wait_until};

/// Neutron makes its tables, and starts.
const START: Duration = Duration::from_secs(120);
const SOON: Duration = Duration::from_secs(20);
const URL: &str = "http://127.0.0.1:9696/";

/// A port as Neutron tells it.
#[derive(Debug, Deserialize)]
struct Port {
    mac: String,
    addresses: Vec<String>,
    /// The name of the interface on the host.
    device: String,
    vif: String,
}

#[derive(Debug, Deserialize)]
struct Named {
    address: String,
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn python() -> PathBuf {
    root().join("target/openstack/venv/bin/python")
}

/// Neutron, and the site that it drives.
struct Cloud {
    // Before the site: it asks the controller until its end.
    neutron: Daemon,
    workloads: BTreeMap<String, Namespace>,
    lab: Lab,
    site: Site,
}

impl Cloud {
    fn start() -> Self {
        let hosts = ["192.0.2.1", "192.0.2.2"].into_iter().zip(1..);
        let hosts = hosts.map(|(vtep, number)| Host {
            id: format!("h{number}"),
            vteps: vec![vtep.into()],
            physical_networks: if number == 1 {
                vec!["physnet1".into()]
            } else {
                vec![]
            },
            ..Host::default()
        });
        let objects = Objects {
            hosts: hosts.collect(),
            ..Objects::default()
        };
        let options = SiteOptions {
            externals: BTreeMap::from([("h1".to_owned(), "x0".to_owned())]),
            ..SiteOptions::default()
        };
        let site = Site::start(Lab::new().unwrap(), &objects, &options).unwrap();
        let directory = site.directory().join("neutron");
        let script = root().join("integrations/openstack/tests/cloud.py");
        let controller = format!("unix:{}/controller.sock", site.directory().display());
        let arguments = [
            script.to_str().unwrap(),
            directory.to_str().unwrap(),
            "--controller",
            &controller,
        ];
        let mut neutron = site
            .controller_namespace
            .spawn(python(), &arguments)
            .unwrap();
        neutron.wait_for_output("ready", START).unwrap();
        Self {
            neutron,
            workloads: BTreeMap::new(),
            lab: Lab::new().unwrap(),
            site,
        }
    }

    /// What the driver said last.
    fn logs(&self) -> String {
        let logs = ["api", "worker"].map(|name| {
            let path = self.site.directory().join(format!("neutron/{name}.log"));
            let log = std::fs::read_to_string(path).unwrap();
            let lines: Vec<&str> = log.lines().filter(|line| line.contains("weft")).collect();
            lines[lines.len().saturating_sub(40)..].join("\n")
        });
        logs.join("\n")
    }

    /// One step of the cloud's user.
    fn step<T: DeserializeOwned>(&self, words: &[&str]) -> T {
        let python = python();
        let script = root().join("integrations/openstack/tests/scenario.py");
        let fixed = [
            python.to_str().unwrap(),
            "-Wignore",
            script.to_str().unwrap(),
            URL,
        ];
        let line = [&fixed[..], words].concat();
        let answer = self.site.controller_namespace.run(&line);
        let answer = answer.unwrap_or_else(|error| panic!("{words:?}: {error}\n{}", self.logs()));
        serde_json::from_str(&answer).unwrap()
    }

    /// What differs between Neutron and the controller, and is not repaired.
    fn resync(&self) -> String {
        let resync = root().join("target/openstack/venv/bin/neutron-weft-resync");
        let config = self.site.directory().join("neutron/neutron.conf");
        let line = [
            resync.to_str().unwrap(),
            "--config-file",
            config.to_str().unwrap(),
        ];
        // Neutron's log goes the same way.
        let said = self.site.controller_namespace.run(&line).unwrap();
        said.lines().last().unwrap_or_default().to_owned()
    }

    fn does(&self, words: &[&str]) {
        let _: serde_json::Value = self.step(words);
    }

    /// A port, and the container at it; `gateways` are where its default routes lead.
    fn port(&mut self, name: &str, host: &str, words: &[&str], gateways: &[&str]) -> Port {
        let port: Port = self.step(words);
        assert_eq!(port.vif, "tap", "{port:?}");
        let workload = self.lab.host(name).unwrap();
        let there = self.site.hosts[host].namespace.clone();
        let link = LinkOptions {
            mtu: 1430,
            ..LinkOptions::default()
        };
        self.lab
            .link((&there, &port.device), (&workload, "eth0"), link)
            .unwrap();
        there
            .run(&[
                "sysctl",
                "-qw",
                &format!("net.ipv6.conf.{}.disable_ipv6=1", port.device),
            ])
            .unwrap();
        workload
            .ip(&format!("link set eth0 address {}", port.mac))
            .unwrap();
        for address in &port.addresses {
            let length = if address.contains(':') { 64 } else { 24 };
            workload
                .ip(&format!("address add {address}/{length} dev eth0"))
                .unwrap();
        }
        for gateway in gateways {
            let family = if gateway.contains(':') { "-6" } else { "-4" };
            workload
                .ip(&format!(
                    "{family} route add default via {gateway} dev eth0"
                ))
                .unwrap();
        }
        self.workloads.insert(name.to_owned(), workload);
        port
    }

    fn reaches(&self, from: &str, address: &str) {
        let from = &self.workloads[from];
        let what = format!("{} reaches {address}", from.label());
        let reached = wait_until(&what, SOON, || from.pings(address, 1));
        reached.unwrap_or_else(|error| panic!("{error}\n{}\n{}", self.logs(), objects(&self.site)));
    }
}

fn is_empty(line: &str) -> bool {
    ["", "{}", "[]"].contains(&line)
}

fn v4_of(port: &Port) -> &str {
    port.addresses
        .iter()
        .find(|address| address.contains('.'))
        .unwrap()
}

/// Whether port 80 answers.
fn connects(from: &Namespace, address: &str) -> bool {
    let address: SocketAddr = format!("{address}:80").parse().unwrap();
    tcp_connects(from, address, Duration::from_secs(1)).unwrap()
}

/// The controller's objects of the kinds that Neutron makes.
fn objects(site: &Site) -> String {
    let kinds = [
        "vpc",
        "subnet",
        "port",
        "sg",
        "peering",
        "route-table",
        "elastic-ip",
        "nat-gateway",
    ];
    let lists = kinds.map(|kind| site.ctl(&[kind, "list", "-o", "json"]).unwrap());
    lists.join("\n")
}

#[test]
fn neutron_drives_networks_groups_routers_and_the_way_out() {
    let mut cloud = Cloud::start();
    cloud.does(&["agents", "2"]);

    // A network over two hosts; its project's default group admits the group itself.
    cloud.does(&["network", "blue", "10.0.1.0/24", "fd00:1::/64"]);
    let gateways = ["10.0.1.1", "fd00:1::"];
    cloud.port("a", "h1", &["port", "blue", "a", "h1"], &gateways);
    let b = cloud.port("b", "h2", &["port", "blue", "b", "h2"], &gateways);
    cloud.does(&["wait_active", "a", "b"]);
    for address in &b.addresses {
        cloud.reaches("a", address);
    }

    // A port is ACTIVE while packets pass it.
    let h2 = cloud.site.hosts["h2"].namespace.clone();
    h2.ip(&format!("link set {} down", b.device)).unwrap();
    cloud.does(&["wait_down", "b"]);
    h2.ip(&format!("link set {} up", b.device)).unwrap();
    cloud.does(&["wait_active", "b"]);

    // A group of one's own: what it does not admit does not pass.
    cloud.does(&["group", "web", "tcp", "80"]);
    let web = cloud.port("c", "h2", &["port", "blue", "c", "h2", "web"], &gateways);
    cloud.does(&["wait_active", "c"]);
    let (a, c) = (&cloud.workloads["a"], &cloud.workloads["c"]);
    let _listener = c
        .enter(|| TcpListener::bind("0.0.0.0:80"))
        .unwrap()
        .unwrap();
    wait_until("port 80 is open", SOON, || connects(a, v4_of(&web))).unwrap();
    assert!(!a.pings(v4_of(&web), 1));

    // Another network, reached by a router, and only by it.
    cloud.does(&["network", "green", "10.0.2.0/24", "fd00:2::/64"]);
    let green = cloud.port(
        "d",
        "h2",
        &["port", "green", "d", "h2"],
        &["10.0.2.1", "fd00:2::"],
    );
    cloud.does(&["wait_active", "d"]);
    let v4 = v4_of(&green);
    assert!(!cloud.workloads["a"].pings(v4, 1));
    cloud.does(&["router", "r", "blue", "green"]);
    for address in &green.addresses {
        cloud.reaches("a", address);
    }

    // The way out, by the router's address and by one of the port's own.
    let outside = cloud.site.outside.clone().unwrap();
    outside.ip("address add 203.0.113.1/24 dev e-h1").unwrap();
    cloud.does(&[
        "outside",
        "public",
        "203.0.113.0/24",
        "203.0.113.1",
        "203.0.113.10",
        "203.0.113.99",
    ]);
    cloud.does(&["gateway", "r", "public"]);
    cloud.reaches("a", "203.0.113.1");
    let floating: Named = cloud.step(&["floating", "public", "c"]);
    let is_there = || connects(&outside, &floating.address);
    wait_until("the floating IP answers", SOON, is_there).unwrap();

    // A port of another project in this one's network: it reaches what is open to all, and its own group admits nobody of this project.
    let s = cloud.port("s", "h1", &["strange_port", "blue", "s", "h1"], &gateways);
    cloud.does(&["wait_active", "s"]);
    let from_s = || connects(&cloud.workloads["s"], v4_of(&web));
    wait_until("port 80 is open to s", SOON, from_s).unwrap();
    assert!(!cloud.workloads["a"].pings(v4_of(&s), 1));

    // While the controller is away, the API goes on; what changed is brought to it afterwards.
    cloud.site.controller = None;
    let e = cloud.port("e", "h1", &["port", "blue", "e", "h1"], &gateways);
    cloud.site.start_controller().unwrap();
    cloud.does(&["wait_active", "e"]);
    cloud.reaches("b", v4_of(&e));
    assert_eq!(cloud.resync(), "0 differences");

    // What weft cannot do is refused by name.
    let refused: Vec<String> = cloud.step(&["refused"]);
    let texts = [
        "VLAN Transparency",
        "weft: security groups that are not stateful",
    ];
    for (refusal, text) in refused.iter().zip(texts) {
        assert!(
            refusal.starts_with('4') && refusal.contains(text),
            "{refused:?}"
        );
    }
    assert_eq!(refused.len(), texts.len(), "{refused:?}");

    // Nothing is left.
    cloud.does(&["leave", "r", "green"]);
    let is_away = || !cloud.workloads["a"].pings(v4, 1);
    wait_until("the networks are apart", SOON, is_away).unwrap();
    cloud.does(&["delete_all"]);
    let site = &cloud.site;
    let gone = wait_until("the controller has nothing left", SOON, || {
        objects(site).lines().all(is_empty)
    });
    gone.unwrap_or_else(|error| panic!("{error}\n{}\n{}", cloud.logs(), objects(site)));
    cloud.neutron.stop(SOON).unwrap();
}
