//! The way out of a VPC against programs that we did not write: STUN's behaviour discovery, nftables as a second NAT, traceroute, DNS, FTP, and
//! servers under load.
//!
//! h1 is on the physical network and is the gateway host, h2 is not; red has a NAT gateway, with a port on each. Behind the segment's router is
//! a server, `far`, with two addresses. `WEFT_DOWNLOAD_MB` sets the size of the download, `WEFT_WRK_CONNECTIONS` how many connections wrk keeps
//! open.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use weft_proto::v1::Objects;
use weft_tests::traffic::{tcp_translated, udp_translated};
use weft_tests::{
    Daemon, Lab, LabError, LinkOptions, Namespace, Site, SiteOptions, holds, load, tenants,
    topology, wait_until,
};

const SOON: Duration = Duration::from_secs(10);

const INTENT: &str = r#"
external_networks:
  - id: internet
    physical_network: physnet1
    prefixes: [203.0.113.0/24]
    gateways: [203.0.113.1]
    gateway_hosts: [h1]
nat_gateways:
  - {id: nat, vpc: red, external_network: internet, addresses: [203.0.113.100]}
route_tables:
  - {id: red, vpc: red, routes: [{prefix: 0.0.0.0/0, nat: nat}]}
"#;

const ROUTER: &str = "203.0.113.1";
const FAR: &str = "198.51.100.10";
const FAR_TOO: &str = "198.51.100.11";
const NAT: &str = "203.0.113.100";

fn setting(name: &str, usual: usize) -> usize {
    std::env::var(name).map_or(usual, |text| text.parse().unwrap())
}

fn objects() -> Objects {
    let mut objects = tenants(2).unwrap();
    let more = topology(INTENT).unwrap();
    objects.external_networks = more.external_networks;
    objects.nat_gateways = more.nat_gateways;
    objects.route_tables = more.route_tables;
    objects.hosts[0].physical_networks = vec!["physnet1".into()];
    for subnet in objects.subnets.iter_mut().filter(|it| it.vpc == "red") {
        subnet.route_table = "red".into();
    }
    objects.ports.retain(|port| port.vpc == "red");
    objects
}

struct Outside {
    router: Namespace,
    far: Namespace,
    /// For files of servers; they may give up root.
    directory: PathBuf,
}

impl Outside {
    fn set_up(site: &mut Site) -> Result<Self, LabError> {
        let router = site.outside.clone().unwrap();
        let far = site.lab().host("far")?;
        let link = LinkOptions::default();
        site.lab().link((&router, "f0"), (&far, "f0"), link)?;
        router.run(&["sysctl", "-qw", "net.ipv4.ip_forward=1"])?;
        for (namespace, line) in [
            (&router, format!("address add {ROUTER}/24 dev e-h1")),
            (&router, "address add 198.51.100.1/24 dev f0".to_owned()),
            (&far, format!("address add {FAR}/24 dev f0")),
            (&far, format!("address add {FAR_TOO}/24 dev f0")),
            (&far, "route add default via 198.51.100.1".to_owned()),
        ] {
            namespace.ip(&line)?;
        }
        let directory = site.directory().join("far");
        router.run(&["mkdir", "-p", "-m", "755", &directory.display().to_string()])?;
        Ok(Self {
            router,
            far,
            directory,
        })
    }

    fn file(&self, name: &str) -> String {
        self.directory.join(name).display().to_string()
    }

    fn write(&self, name: &str, text: &str) -> Result<String, LabError> {
        let file = self.file(name);
        std::fs::write(&file, text).map_err(LabError::io(file.clone()))?;
        Ok(file)
    }

    /// Starts a program beside the server's other ones, and waits until it listens at these.
    fn serve(&self, line: &[&str], listens: &[&str]) -> Result<Daemon, LabError> {
        let daemon = self.far.spawn(line[0], &line[1..])?;
        let what = format!("{} listens", line[0]);
        let waited = wait_until(&what, SOON, || {
            let sockets = self.far.run(&["ss", "-Hlntu"]).unwrap_or_default();
            listens.iter().all(|address| sockets.contains(address))
        });
        waited.map_err(|error| LabError::Explained {
            source: Box::new(error),
            text: daemon.log(),
        })?;
        Ok(daemon)
    }

    /// A web server, and a file with so many bytes.
    fn web(&self, bytes: usize) -> Result<Daemon, LabError> {
        let fill = format!("head -c {bytes} /dev/urandom >{}", self.file("data"));
        self.far.run(&["sh", "-c", &fill])?;
        let text = format!(
            "daemon off;\nuser root;\nworker_processes 1;\nworker_rlimit_nofile 65536;\npid {pid};\nerror_log stderr;\nevents {{ worker_connections 32768; }}\nhttp {{ access_log off; sendfile on; server {{ listen {FAR}:80 backlog=4096; root {root}; }} }}\n",
            pid = self.file("nginx.pid"),
            root = self.directory.display(),
        );
        let config = self.write("nginx.conf", &text)?;
        self.far
            .run(&["sysctl", "-qw", "net.core.somaxconn=4096"])?;
        let listens = format!("{FAR}:80 ");
        self.serve(&["nginx", "-c", &config], &[&listens])
    }
}

fn on_site(body: impl FnOnce(&mut Site, &Outside) -> Result<(), LabError>) {
    let options = SiteOptions {
        externals: BTreeMap::from([("h1".to_owned(), "x0".to_owned())]),
        workload_mtu: 1450,
        ..SiteOptions::default()
    };
    let mut site = Site::start(Lab::new().unwrap(), &objects(), &options).unwrap();
    let outside = Outside::set_up(&mut site).unwrap();
    let ready = ["red-1", "red-2"].map(|port| {
        let what = format!("{port} reaches the server");
        wait_until(&what, SOON, || site.reaches(port, FAR, 1))
    });
    let result = ready.into_iter().collect::<Result<(), _>>();
    let result = result
        .and_then(|()| body(&mut site, &outside))
        .and_then(|()| site.wait_for_frames());
    if let Err(error) = result {
        panic!("{}", site.explain(error));
    }
}

fn inside(site: &Site, port: &str) -> Namespace {
    site.workloads[port].namespace.clone()
}

/// RFC 5780 §4.3 to §4.5, as coturn's client does them.
#[test]
fn stun_finds_endpoint_independent_mapping_and_the_filtering_that_is_configured() {
    on_site(|site, outside| {
        let server = [
            "turnserver",
            "-n",
            "--stun-only",
            "--no-tls",
            "--no-dtls",
            "--no-cli",
            "--no-auth",
            "--log-file=stdout",
            &format!("--listening-ip={FAR}"),
            &format!("--listening-ip={FAR_TOO}"),
            &format!("--relay-ip={FAR}"),
            &format!("--pidfile={}", outside.file("turn.pid")),
            &format!("--db={}", outside.file("turn.db")),
        ];
        let listens = [FAR, FAR_TOO].map(|address| format!("{address}:3479 "));
        let _server = outside.serve(&server, &[&listens[0], &listens[1]])?;
        let ask = |site: &Site, port: &str, what: &str| {
            inside(site, port).run(&["turnutils_natdiscovery", what, FAR])
        };
        for port in ["red-1", "red-2"] {
            let said = ask(site, port, "-m")?;
            holds(
                &format!("{port}: {said}"),
                said.contains("NAT with Endpoint Independent Mapping!")
                    && said.contains(&format!("UDP reflexive addr: {NAT}:")),
            )?;
        }
        for (filtering, port, word) in [
            ("", "red-1", "Address and Port Dependent"),
            ("endpoint_independent", "red-1", "Endpoint Independent"),
            ("endpoint_independent", "red-2", "Endpoint Independent"),
        ] {
            site.change(|objects| objects.nat_gateways[0].filtering = filtering.into())?;
            let said = ask(site, port, "-f")?;
            holds(
                &format!("{port} with filtering '{filtering}': {said}"),
                said.contains(&format!("NAT with {word} Filtering!")),
            )?;
        }
        // Its filtering holds for who comes back in too, so that it is open for this (RFC 4787 §6).
        for port in ["red-1", "red-2"] {
            let said = ask(site, port, "-H")?;
            holds(
                &format!("{port}: hairpinning: {said}"),
                said.contains("successful hairpinning"),
            )?;
        }
        Ok(())
    });
}

/// Makes a namespace translate what it forwards to an interface.
fn masquerade(namespace: &Namespace, interface: &str) -> Result<(), LabError> {
    namespace.run(&["sysctl", "-qw", "net.ipv4.ip_forward=1"])?;
    let rules = format!(
        "add table ip nat; add chain ip nat out {{ type nat hook postrouting priority 100; }}; add rule ip nat out oifname {interface} masquerade"
    );
    namespace.run(&["nft", &rules]).map(drop)
}

#[test]
fn nftables_may_translate_in_front_of_the_gateway_and_behind_it() {
    on_site(|site, outside| {
        let works = |from: &Namespace, seen_as: &str| -> Result<(), LabError> {
            let server = format!("{FAR}:8080").parse().unwrap();
            let far = &outside.far;
            let peers = [
                tcp_translated(from, server, far, server, 300_000)?,
                udp_translated(from, server, far, server)?,
            ];
            let wanted: std::net::IpAddr = seen_as.parse().unwrap();
            holds(
                &format!("{} is seen as {seen_as}: {peers:?}", from.label()),
                peers.iter().all(|peer| peer.ip() == wanted),
            )?;
            // Of an echo the identifier is translated three times.
            holds("pings", from.pings(FAR, 3))?;
            let line = ["ping", "-n", "-c1", "-W2", "-s", "4000", FAR];
            from.run(&line).map(drop)
        };
        // Behind it: a network that a workload translates, as containers on a virtual machine do.
        for (port, number) in [("red-1", 1), ("red-2", 2)] {
            let workload = inside(site, port);
            let lan = site.lab().host(&format!("lan-{number}"))?;
            let link = LinkOptions {
                mtu: 1450,
                ..LinkOptions::default()
            };
            site.lab().link((&workload, "lan"), (&lan, "eth0"), link)?;
            workload.ip("address add 192.168.0.1/24 dev lan")?;
            lan.ip("address add 192.168.0.2/24 dev eth0")?;
            lan.ip("route add default via 192.168.0.1")?;
            masquerade(&workload, "eth0")?;
            works(&lan, NAT)?;
            works(&workload, NAT)?;
            let said = lan.run(&["traceroute", "-n", "-q1", "-w2", "-m5", FAR])?;
            let hops = ["192.168.0.1", "10.0.1.1", ROUTER, FAR];
            holds(
                &format!("every hop is seen: {said}"),
                hops.iter().all(|hop| said.contains(hop)),
            )?;
        }
        // And in front, as a provider does (RFC 6888).
        masquerade(&outside.router, "f0")?;
        for label in ["red-1", "red-2"] {
            works(&inside(site, label), "198.51.100.1")?;
        }
        Ok(())
    });
}

#[test]
fn traceroute_and_ping_with_options_pass_the_gateway() {
    on_site(|site, _| {
        for port in ["red-1", "red-2"] {
            let from = inside(site, port);
            for kind in ["-U", "-I", "-T"] {
                let said = from.run(&["traceroute", "-n", "-q1", "-w2", "-m5", kind, FAR])?;
                let mut hops: Vec<&str> = said.lines().skip(1).collect();
                let wanted = ["10.0.1.1", ROUTER, FAR];
                // The gateway host is a hop of its own, with the address of the subnet's router.
                if port == "red-2" && hops.len() == 4 && hops[0].contains(wanted[0]) {
                    hops.remove(0);
                }
                holds(
                    &format!("{port}, {kind}: the gateway, the router, the server: {said}"),
                    hops.len() == 3
                        && hops
                            .iter()
                            .zip(wanted)
                            .all(|(line, hop)| line.contains(hop)),
                )?;
            }
            // The router and the server write themselves into the option (RFC 791 §3.1), and weft, as RFC 7126 §4.6 allows, does not.
            let said = from.run(&["ping", "-n", "-R", "-c3", "-i0.2", "-W2", FAR])?;
            holds(
                &format!("{port}: recorded routes come back: {said}"),
                said.contains(" 3 received") && said.contains("RR:") && said.contains(FAR),
            )?;
            let said = from.run(&["ping", "-n", "-T", "tsonly", "-c2", "-i0.2", "-W2", FAR])?;
            holds(
                &format!("{port}: timestamps come back: {said}"),
                said.contains(" 2 received"),
            )?;
        }
        Ok(())
    });
}

#[test]
fn names_are_resolved_by_udp_and_tcp_and_ftp_works_in_passive_mode_alone() {
    on_site(|site, outside| {
        let mut text = String::new();
        for number in 1..60 {
            text += &format!("txt-record=long.test,{number:0200}\n");
        }
        let config = outside.write("dnsmasq.conf", &text)?;
        let (config, listen) = (
            format!("--conf-file={config}"),
            format!("--listen-address={FAR}"),
        );
        let resolver = [
            "dnsmasq",
            "--keep-in-foreground",
            "--user=root",
            "--pid-file=",
            "--no-resolv",
            "--no-hosts",
            "--bind-interfaces",
            "--host-record=www.test,198.51.100.10",
            "--edns-packet-max=4096",
            &config,
            &listen,
        ];
        let _resolver = outside.serve(&resolver, &[&format!("{FAR}:53 ")])?;
        let (files, empty) = (outside.file("files"), outside.file("empty"));
        let fill = format!(
            "mkdir -p {files} {empty} && head -c 600000 /dev/urandom >{files}/file && chmod 755 {files} {empty}"
        );
        outside.far.run(&["sh", "-c", &fill])?;
        let lines = [
            "listen=YES",
            "listen_ipv6=NO",
            "background=NO",
            "anonymous_enable=YES",
            "no_anon_password=YES",
            "seccomp_sandbox=NO",
            "isolate_network=NO",
            "connect_from_port_20=YES",
            "pasv_min_port=40000",
            "pasv_max_port=40010",
            &format!("listen_address={FAR}"),
            &format!("anon_root={files}"),
            &format!("secure_chroot_dir={empty}"),
        ];
        let config = outside.write("vsftpd.conf", &(lines.join("\n") + "\n"))?;
        let _ftp = outside.serve(&["vsftpd", &config], &[&format!("{FAR}:21 ")])?;
        let at = format!("@{FAR}");
        for port in ["red-1", "red-2"] {
            let from = inside(site, port);
            let dig =
                |more: &[&str]| from.run(&[&["dig", "+time=3", "+tries=3", &at], more].concat());
            for transport in ["+notcp", "+tcp"] {
                let said = dig(&["+short", transport, "www.test", "A"])?;
                holds(&format!("{transport}: {said}"), said.trim() == FAR)?;
            }
            // Cut off, and asked for again by TCP (RFC 7766 §5); whole in fragments, which the answer of 4096 bytes needs.
            for (size, transport) in [("1232", "TCP"), ("4096", "")] {
                let size = format!("+bufsize={size}");
                let said = dig(&["long.test", "TXT", &size])?;
                let answers = said.matches("IN\tTXT\t\"").count();
                holds(
                    &format!("long answers, {size}: {said}"),
                    answers >= 59 && said.contains(transport),
                )?;
            }
            let url = format!("ftp://{FAR}/file");
            let fetched = outside.file("fetched");
            for mode in ["--disable-epsv", "--no-disable-epsv"] {
                from.run(&["curl", "-sS", "-m", "10", mode, "-o", &fetched, &url])?;
                from.run(&["cmp", &fetched, &format!("{files}/file")])?;
            }
            // The server is told a private address, and there is no gateway of the application (ALG) to change it.
            let script = |passive: &str| {
                format!(
                    "import ftplib; f = ftplib.FTP('{FAR}', timeout=5); f.login(); f.set_pasv({passive}); f.retrbinary('RETR file', lambda part: None)"
                )
            };
            from.run(&["python3", "-c", &script("True")])?;
            let active = from.run(&["python3", "-c", &script("False")]);
            let refused = active.map_or_else(|error| error.to_string(), |_| String::new());
            // RFC 2577 §3: a server opens no connection to another address than the client's.
            holds(
                &format!("active FTP fails: {refused}"),
                refused.contains("Illegal PORT command"),
            )?;
        }
        Ok(())
    });
}

#[test]
fn a_large_download_and_bulk_streams_pass_the_gateway_whole() {
    let megabytes = setting("WEFT_DOWNLOAD_MB", 256);
    on_site(|site, outside| {
        let _web = outside.web(megabytes << 20)?;
        let sum = |text: String| {
            text.split_whitespace()
                .next()
                .unwrap_or_default()
                .to_owned()
        };
        let wanted = sum(outside.far.run(&["sha256sum", &outside.file("data")])?);
        // By the tunnel, which is the longer way.
        let from = inside(site, "red-2");
        let line = format!("curl -sS -m 300 http://{FAR}/data | sha256sum");
        let begun = std::time::Instant::now();
        let got = sum(from.run(&["sh", "-c", &line])?);
        let seconds = begun.elapsed().as_secs_f64();
        let rate = (megabytes << 20) as f64 * 8.0 / seconds / 1e9;
        println!("{megabytes} MiB in {seconds:.1} s, {rate:.2} Gbit/s");
        holds("it is what the server has", got == wanted)?;
        for port in ["red-1", "red-2"] {
            for reverse in [false, true] {
                let gigabits = load::tcp(&inside(site, port), (&outside.far, FAR), reverse, 1)?;
                println!("{port}, iperf3, reverse: {reverse}: {gigabits:.2} Gbit/s");
                holds("something passes", gigabits > 0.01)?;
            }
        }
        Ok(())
    });
}

/// Each request is a connection of its own, so that mappings come and go, and ports are used again.
#[test]
fn many_connections_at_once_are_all_served() {
    let connections = setting("WEFT_WRK_CONNECTIONS", 300);
    on_site(|site, outside| {
        let _web = outside.web(100)?;
        let from = inside(site, "red-2");
        from.run(&["sysctl", "-qw", "net.ipv4.ip_local_port_range=1024 65535"])?;
        for (kind, header) in [
            ("kept open", "X-Test: yes"),
            ("one request each", "Connection: close"),
        ] {
            let line = format!(
                "ulimit -n 65536; exec wrk -t2 -c{connections} -d4s --timeout 10s -H '{header}' http://{FAR}/data"
            );
            let said = from.run(&["sh", "-c", &line])?;
            println!("{connections} connections, {kind}:\n{said}");
            let served: usize = said
                .lines()
                .find_map(|line| line.split_once(" requests in ")?.0.trim().parse().ok())
                .unwrap_or(0);
            holds(
                &format!("{connections} connections, {kind}: {said}"),
                served >= connections
                    && !said.contains("Socket errors")
                    && !said.contains("Non-2xx"),
            )?;
        }
        let mappings = site.node("h1", &["nat", "mappings"])?;
        println!("{} mappings at the end", mappings.lines().count() - 1);
        for host in ["h1", "h2"] {
            let drops = site.node(host, &["drops"])?;
            let refused = ["nat_ports", "nat_table_full", "session_", "budget"];
            holds(
                &format!("none was refused at {host}: {drops}"),
                !refused.iter().any(|reason| drops.contains(reason)),
            )?;
        }
        Ok(())
    });
}
