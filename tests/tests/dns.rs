//! DNS for guests with real processes: dig in workloads of two hosts, and dnsmasq as the resolver of the hosts' own network.

#![allow(clippy::unwrap_used)]

use std::time::Duration;

use weft_proto::v1::{Objects, VpcDns};
use weft_tests::{Daemon, Lab, LabError, Site, SiteOptions, tenants, topology, wait_until};

const SOON: Duration = Duration::from_secs(10);
/// The gateway of the first subnet of either VPC, by its addresses.
const GATEWAYS: [&str; 3] = ["10.0.1.1", "fd00:1::1", "fe80::77:65ff:fe66:7401%eth0"];
const RESOLVER: &str = "127.0.0.1";
const CONFIG: &str = "dns = { resolvers = ['127.0.0.1:5353'] }\nlimits = { dns_per_second = 500 }";

const ZONES: &str = r#"
dns_zones:
  - id: apps
    vpc: blue
    domain: apps.example
    records:
      - {name: www, type: CNAME, data: [front.blue.example]}
      - {name: out, type: CNAME, data: [www.example.net]}
      - {name: _http._tcp, type: SRV, data: [0 5 80 front.blue.example]}
      - {name: text, type: TXT, data: [from blue]}
  - {id: apps-of-red, vpc: red, domain: apps.example, records: [{name: text, type: TXT, data: [from red]}]}
"#;

/// Both VPCs have the same domain; blue-1 has a hostname.
fn objects() -> Objects {
    let mut objects = tenants(2).unwrap();
    for vpc in &mut objects.vpcs {
        vpc.dns = Some(VpcDns {
            domain: "blue.example".into(),
        });
    }
    let mut zones = topology(ZONES).unwrap().dns_zones;
    for zone in &mut zones {
        if zone.id == "apps" {
            zone.records.push(weft_proto::v1::DnsRecord {
                name: "many".into(),
                r#type: "TXT".into(),
                data: (0..20)
                    .map(|n| format!("{n}-{}", "x".repeat(200)))
                    .collect(),
                ..Default::default()
            });
        }
    }
    objects.dns_zones = zones;
    for port in &mut objects.ports {
        if port.id == "blue-1" {
            port.hostname = "Front".into();
        }
    }
    objects
}

fn options() -> SiteOptions {
    SiteOptions {
        daemon: CONFIG.to_owned(),
        ..SiteOptions::default()
    }
}

struct Scene {
    site: Site,
    _resolvers: Vec<Daemon>,
}

/// Runs `body` where hosts have a resolver, and says what a person would ask for if it fails.
fn on_site(options: &SiteOptions, body: impl FnOnce(&mut Scene) -> Result<(), LabError>) {
    let site = Site::start(Lab::new().unwrap(), &objects(), options).unwrap();
    let resolvers = ["h1", "h2"].map(|host| resolver(&site, host).unwrap());
    let mut scene = Scene {
        site,
        _resolvers: resolvers.into(),
    };
    if let Err(error) = body(&mut scene).and_then(|()| scene.site.wait_for_frames()) {
        panic!("{}", scene.site.explain(error));
    }
}

/// A resolver in a host's own network, which knows a name and says where it was asked for others.
fn resolver(site: &Site, host: &str) -> Result<Daemon, LabError> {
    let namespace = &site.hosts[host].namespace;
    namespace.ip("link set lo up")?;
    let long = format!(
        "--txt-record=long.example.net,{}",
        vec!["y".repeat(200); 10].join(",")
    );
    let daemon = namespace.spawn(
        "dnsmasq",
        &[
            "--keep-in-foreground",
            "--conf-file=/dev/null",
            "--no-resolv",
            "--no-hosts",
            "--user=root",
            "--pid-file=",
            "--port=5353",
            "--listen-address=127.0.0.1",
            "--bind-interfaces",
            "--host-record=www.example.net,203.0.113.9,2001:db8::9",
            // Whatever is asked for in the VPCs' domain gives away that it was.
            "--address=/blue.example/192.0.2.66",
            "--address=/apps.example/192.0.2.66",
            "--local=/example.net/",
            &long,
        ],
    )?;
    let at = format!("@{RESOLVER}");
    wait_until("dnsmasq answers", SOON, || {
        let said = namespace.run(&["dig", &at, "-p", "5353", "+short", "www.example.net"]);
        said.is_ok_and(|said| said.contains("203.0.113.9"))
    })?;
    Ok(daemon)
}

fn differs(what: &str, said: &str) -> LabError {
    LabError::Io {
        what: what.to_owned(),
        source: std::io::Error::other(said.to_owned()),
    }
}

impl Scene {
    /// What dig says in a workload.
    fn dig(&self, from: &str, words: &str) -> Result<String, LabError> {
        let mut line = vec!["dig", "+time=3", "+tries=2", "+nocookie"];
        line.extend(words.split_whitespace());
        self.site.workloads[from].namespace.run(&line)
    }

    /// The answer, line by line, is this.
    fn says(&self, from: &str, words: &str, expected: &[&str]) -> Result<(), LabError> {
        let said = self.dig(from, &format!("+short {words}"))?;
        let mut lines: Vec<&str> = said.lines().collect();
        lines.sort_unstable();
        if lines == expected {
            return Ok(());
        }
        Err(differs(
            &format!("{from}: dig {words}, expected {expected:?}"),
            &said,
        ))
    }

    /// The whole answer has this in it.
    fn has(&self, from: &str, words: &str, expected: &str) -> Result<(), LabError> {
        let said = self.dig(from, words)?;
        if said.contains(expected) {
            return Ok(());
        }
        Err(differs(
            &format!("{from}: dig {words}, expected {expected}"),
            &said,
        ))
    }
}

#[test]
fn names_of_ports_and_zones_are_answered_at_the_gateway_on_every_host() {
    on_site(&options(), |scene| {
        for gateway in GATEWAYS {
            for transport in ["+notcp", "+tcp"] {
                let at = format!("@{gateway} {transport}");
                // On this host, and on another.
                scene.says(
                    "blue-1",
                    &format!("{at} front.blue.example"),
                    &["10.0.1.11"],
                )?;
                scene.says(
                    "blue-1",
                    &format!("{at} BLUE-2.Blue.example"),
                    &["10.0.1.12"],
                )?;
                scene.says(
                    "blue-2",
                    &format!("{at} front.blue.example AAAA"),
                    &["fd00:1::11"],
                )?;
            }
        }
        let at = "@10.0.1.1";
        scene.says(
            "blue-2",
            &format!("{at} -x 10.0.1.11"),
            &["front.blue.example."],
        )?;
        scene.says(
            "blue-1",
            &format!("{at} -x fd00:1::12"),
            &["blue-2.blue.example."],
        )?;
        scene.says(
            "blue-1",
            &format!("{at} www.apps.example"),
            &["10.0.1.11", "front.blue.example."],
        )?;
        scene.says(
            "blue-1",
            &format!("{at} _http._tcp.apps.example SRV"),
            &["0 5 80 front.blue.example."],
        )?;
        // What is not there is nobody else's to say.
        for name in ["nobody.blue.example", "nobody.apps.example"] {
            scene.has("blue-1", &format!("{at} {name}"), "status: NXDOMAIN")?;
            scene.has("blue-1", &format!("{at} {name}"), "SOA")?;
        }
        scene.has("blue-1", &format!("{at} -x 10.0.1.77"), "status: NXDOMAIN")?;
        scene.has(
            "blue-1",
            &format!("{at} front.blue.example MX"),
            "status: NOERROR",
        )?;
        scene.has(
            "blue-1",
            &format!("{at} blue.example AXFR"),
            "Transfer failed",
        )?;
        scene.has(
            "blue-1",
            &format!("{at} +notcp front.blue.example ANY"),
            "status: REFUSED",
        )?;
        // Too long for UDP: dig asks again by TCP.
        let said = scene.dig("blue-1", &format!("{at} many.apps.example TXT"))?;
        if !said.contains("19-xxx") || !said.contains("Truncated, retrying in TCP mode") {
            return Err(differs("a long answer by TCP", &said));
        }
        // A name goes with its port, and comes with another.
        scene.site.change(|objects| {
            for port in &mut objects.ports {
                if port.id == "blue-2" {
                    port.hostname = "back".into();
                }
            }
        })?;
        scene.says("blue-1", &format!("{at} back.blue.example"), &["10.0.1.12"])?;
        scene.has(
            "blue-1",
            &format!("{at} blue-2.blue.example"),
            "status: NXDOMAIN",
        )?;
        let stats = scene.site.node("h1", &["stats"])?;
        if stats.contains("dns: ") {
            Ok(())
        } else {
            Err(differs("counters", &stats))
        }
    });
}

#[test]
fn vpcs_of_one_domain_see_none_of_each_others_names() {
    on_site(&options(), |scene| {
        let at = "@10.0.1.1";
        scene.says("red-1", &format!("{at} red-2.blue.example"), &["10.0.1.12"])?;
        scene.says(
            "red-1",
            &format!("{at} text.apps.example TXT"),
            &["\"from red\""],
        )?;
        scene.says(
            "blue-1",
            &format!("{at} text.apps.example TXT"),
            &["\"from blue\""],
        )?;
        for name in [
            "front.blue.example",
            "blue-2.blue.example",
            "www.apps.example",
        ] {
            scene.has("red-1", &format!("{at} {name}"), "status: NXDOMAIN")?;
        }
        scene.has(
            "blue-1",
            &format!("{at} red-1.blue.example"),
            "status: NXDOMAIN",
        )?;
        // Both have a port with this address.
        scene.says(
            "red-1",
            &format!("{at} -x 10.0.1.11"),
            &["red-1.blue.example."],
        )
    });
}

#[test]
fn everything_else_is_asked_of_the_hosts_resolvers() {
    on_site(&options(), |scene| {
        for (from, gateway) in [("blue-1", GATEWAYS[0]), ("blue-2", GATEWAYS[1])] {
            let at = format!("@{gateway}");
            scene.says(from, &format!("{at} www.example.net"), &["203.0.113.9"])?;
            scene.says(
                from,
                &format!("{at} +tcp www.example.net AAAA"),
                &["2001:db8::9"],
            )?;
            scene.has(from, &format!("{at} none.example.net"), "status: NXDOMAIN")?;
            scene.says(
                from,
                &format!("{at} out.apps.example"),
                &["203.0.113.9", "www.example.net."],
            )?;
            let said = scene.dig(from, &format!("{at} long.example.net TXT"))?;
            if !said.contains("Truncated, retrying in TCP mode") || !said.contains("yyyy") {
                return Err(differs("a long answer of a resolver", &said));
            }
        }
        // Without an answer there is one that says so, before dig gives up.
        scene._resolvers.clear();
        scene.has("blue-1", "@10.0.1.1 www.example.net", "status: SERVFAIL")?;
        scene.says("blue-1", "@10.0.1.1 front.blue.example", &["10.0.1.11"])
    });
}

#[test]
fn a_port_that_asks_too_much_is_stopped_and_others_are_answered() {
    on_site(&options(), |scene| {
        let flood = "import socket\n\
            s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n\
            q = bytes.fromhex('000001000001000000000000') + b'\\x05front\\x04blue\\x07example\\0\\0\\x01\\0\\x01'\n\
            for n in range(20000):\n    s.sendto(q, ('10.0.1.1', 53))\n";
        scene.site.workloads["blue-1"]
            .namespace
            .run(&["python3", "-c", flood])?;
        let drops = scene.site.node("h1", &["drops"])?;
        if !drops.contains("dns_limit") {
            return Err(differs("drops", &drops));
        }
        scene.says("red-1", "@10.0.1.1 red-2.blue.example", &["10.0.1.12"])?;
        wait_until("blue-1 is answered again", SOON, || {
            scene
                .says("blue-1", "@10.0.1.1 front.blue.example", &["10.0.1.11"])
                .is_ok()
        })
    });
}

/// Names are told to hosts that learn ports, too.
#[test]
fn ports_that_a_host_does_not_know_have_names() {
    let learning = SiteOptions {
        controller: "learn_above = 1".into(),
        ..options()
    };
    on_site(&learning, |scene| {
        scene.says("blue-1", "@10.0.1.1 blue-b.blue.example", &["10.0.2.20"])?;
        scene.site.ctl(&["vpc", "list"])?;
        scene.site.change(|objects| {
            for port in &mut objects.ports {
                if port.id == "blue-b" {
                    port.hostname = "far".into();
                }
            }
        })?;
        scene.says("blue-1", "@10.0.1.1 far.blue.example", &["10.0.2.20"])?;
        scene.has(
            "blue-1",
            "@10.0.1.1 blue-b.blue.example",
            "status: NXDOMAIN",
        )
    });
}
