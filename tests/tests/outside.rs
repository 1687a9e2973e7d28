//! The way out of a VPC, with real processes: elastic IPs and a NAT gateway, against the kernel's own stack on the outside.
//!
//! h1 is on the physical network and is the gateway host, h2 is not. On the other side is a router, the namespace `outside`, and behind it a
//! server, `far`. Tenant blue has elastic IPs; red, with the same private addresses, has a NAT gateway.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use weft_proto::v1::{ElasticIp, Listener, LoadBalancer, Member, Objects};
use weft_tests::site::SEGMENT;
use weft_tests::traffic::{Pinger, tcp_connects, tcp_translated, udp_translated};
use weft_tests::{
    Capture, GuestKind, Lab, LabError, LinkOptions, Namespace, RawSocket, Site, SiteOptions, holds,
    put_in_guests, tenants, topology, wait_until,
};

const SOON: Duration = Duration::from_secs(10);
/// What does not come within this does not come.
const NEVER: Duration = Duration::from_millis(700);

const INTENT: &str = r#"
external_networks:
  - id: internet
    physical_network: physnet1
    prefixes: [203.0.113.0/24, "2001:db8:cafe::/64"]
    gateways: [203.0.113.1, "2001:db8:cafe::1"]
    gateway_hosts: [h1]
elastic_ips:
  - {id: one, external_network: internet, address: 203.0.113.11, port: blue-1}
  - {id: one-v6, external_network: internet, address: "2001:db8:cafe::11", port: blue-1}
  - {id: two, external_network: internet, address: 203.0.113.12, port: blue-2}
  - {id: two-v6, external_network: internet, address: "2001:db8:cafe::12", port: blue-2}
nat_gateways:
  - id: nat
    vpc: red
    external_network: internet
    addresses: [203.0.113.100]
    port_forwards: [{protocol: tcp, port_min: 2222, port: red-1, to_port_min: 22}]
route_tables:
  - id: blue
    vpc: blue
    routes: [{prefix: 0.0.0.0/0, external: internet}, {prefix: "::/0", external: internet}]
  - id: red
    vpc: red
    routes: [{prefix: 0.0.0.0/0, nat: nat}]
"#;

const ROUTER: &str = "203.0.113.1";
const FAR: &str = "198.51.100.10";
const FAR6: &str = "2001:db8:99::10";
const NAT: &str = "203.0.113.100";

fn objects() -> Objects {
    let mut objects = tenants(2).unwrap();
    let more = topology(INTENT).unwrap();
    objects.external_networks = more.external_networks;
    objects.elastic_ips = more.elastic_ips;
    objects.nat_gateways = more.nat_gateways;
    objects.route_tables = more.route_tables;
    objects.hosts[0].physical_networks = vec!["physnet1".into()];
    for subnet in &mut objects.subnets {
        subnet.route_table.clone_from(&subnet.vpc);
    }
    objects
}

/// h1 has an interface of its own on the physical network.
fn options() -> SiteOptions {
    SiteOptions {
        externals: BTreeMap::from([("h1".to_owned(), "x0".to_owned())]),
        ..SiteOptions::default()
    }
}

/// The router on the segment, the first hop of which is the interface `e-h1`, and the server behind it.
struct Outside {
    router: Namespace,
    far: Namespace,
}

fn forward(namespace: &Namespace) -> Result<(), LabError> {
    let line = [
        "sysctl",
        "-qw",
        "net.ipv4.ip_forward=1",
        "net.ipv6.conf.all.forwarding=1",
    ];
    namespace.run(&line).map(drop)
}

impl Outside {
    /// `end` is the router's interface on the segment.
    fn set_up(site: &mut Site, router: Namespace, end: &str) -> Result<Self, LabError> {
        let far = site.lab().host("far")?;
        let link = LinkOptions::default();
        site.lab().link((&router, "f0"), (&far, "f0"), link)?;
        forward(&router)?;
        for (namespace, line) in [
            (&router, format!("address add {ROUTER}/24 dev {end}")),
            (
                &router,
                format!("address add 2001:db8:cafe::1/64 dev {end} nodad"),
            ),
            (&router, "address add 198.51.100.1/24 dev f0".to_owned()),
            (
                &router,
                "address add 2001:db8:99::1/64 dev f0 nodad".to_owned(),
            ),
            (&far, format!("address add {FAR}/24 dev f0")),
            (&far, format!("address add {FAR6}/64 dev f0 nodad")),
            (&far, "route add default via 198.51.100.1".to_owned()),
            (&far, "-6 route add default via 2001:db8:99::1".to_owned()),
        ] {
            namespace.ip(&line)?;
        }
        Ok(Self { router, far })
    }
}

/// Runs `body` on a site with its outside, and says what a person would ask for if it fails.
fn on_site(objects: &Objects, body: impl FnOnce(&mut Site, &Outside) -> Result<(), LabError>) {
    on_site_with(objects, &options(), body);
}

fn on_site_with(
    objects: &Objects,
    options: &SiteOptions,
    body: impl FnOnce(&mut Site, &Outside) -> Result<(), LabError>,
) {
    let mut site = Site::start(Lab::new().unwrap(), objects, options).unwrap();
    let router = site.outside.clone().unwrap();
    let end = if options.externals.len() > 1 {
        SEGMENT
    } else {
        "e-h1"
    };
    let outside = Outside::set_up(&mut site, router, end).unwrap();
    if let Err(error) = body(&mut site, &outside).and_then(|()| site.wait_for_frames()) {
        panic!("{}", site.explain(error));
    }
}

fn failed(what: &'static str) -> impl FnOnce(std::io::Error) -> LabError {
    move |source| LabError::Io {
        what: what.to_owned(),
        source,
    }
}

/// The first packet may be lost for a neighbour that is not known yet.
fn reaches(site: &Site, from: &str, address: &str) -> Result<(), LabError> {
    wait_until(&format!("{from} reaches {address}"), SOON, || {
        site.reaches(from, address, 2)
    })
}

fn is_reached(from: &Namespace, address: &str) -> Result<(), LabError> {
    let what = format!("{} reaches {address}", from.label());
    wait_until(&what, SOON, || from.pings(address, 2))
}

fn at(address: impl AsRef<str>, port: u16) -> SocketAddr {
    SocketAddr::new(address.as_ref().parse::<IpAddr>().unwrap(), port)
}

fn namespace(site: &Site, port: &str) -> Namespace {
    site.workloads[port].namespace.clone()
}

/// Whether a server saw the client under the address that it should have.
fn seen(what: &str, peer: SocketAddr, wanted: &str) -> Result<(), LabError> {
    let wanted: IpAddr = wanted.parse().unwrap();
    holds(
        &format!("{what} is seen as {wanted}, not {peer}"),
        peer.ip() == wanted,
    )
}

#[test]
fn elastic_ips_carry_both_ways_on_the_ports_own_host_and_through_the_gateway() {
    // Ports take what the tunnels do.
    let options = SiteOptions {
        workload_mtu: 1450,
        ..options()
    };
    on_site_with(&objects(), &options, |site, outside| {
        for (port, elastic, elastic6) in [
            ("blue-1", "203.0.113.11", "2001:db8:cafe::11"),
            ("blue-2", "203.0.113.12", "2001:db8:cafe::12"),
        ] {
            let inside = namespace(site, port);
            for (elastic, far, ipv6) in [(elastic, FAR, false), (elastic6, FAR6, true)] {
                reaches(site, port, far)?;
                is_reached(&outside.far, elastic)?;
                is_reached(&outside.router, elastic)?;
                let far = at(far, 8080);
                let peer = tcp_translated(&inside, far, &outside.far, far, 100_000)?;
                seen(port, peer, elastic)?;
                let peer = udp_translated(&inside, far, &outside.far, far)?;
                seen(port, peer, elastic)?;
                let own = site.service(port, ipv6, 8081)?;
                let elastic = at(elastic, 8081);
                let peer = tcp_translated(&outside.far, elastic, &inside, own, 100_000)?;
                seen("the outside", peer, &far.ip().to_string())?;
                let peer = udp_translated(&outside.far, elastic, &inside, own)?;
                seen("the outside", peer, &far.ip().to_string())?;
                // The tunnel takes less than the segment, which a sender of IPv6 has to be told (RFC 8201); whole, lest pieces wait for each other.
                for (from, to, size) in [
                    (&outside.far, elastic, "1440"),
                    (&outside.far, elastic, "4000"),
                    (&inside, far, "4000"),
                ] {
                    let to = to.ip().to_string();
                    let line = ["ping", "-n", "-c1", "-W1", "-s", size, &to];
                    let what = format!("{size} bytes from {} to {to}", from.label());
                    wait_until(&what, SOON, || from.run(&line).is_ok())?;
                }
            }
        }
        // A port without one has no way out.
        holds("blue-b has no way out", !site.reaches("blue-b", FAR, 1))
    });
}

#[test]
fn elastic_ips_of_a_vpc_reach_each_other_and_a_port_its_own() {
    on_site(&objects(), |site, _outside| {
        for (from, to) in [("blue-1", "203.0.113.12"), ("blue-2", "203.0.113.11")] {
            reaches(site, from, to)?;
        }
        reaches(site, "blue-1", "203.0.113.11")?;
        reaches(site, "blue-2", "203.0.113.12")?;
        let (one, two) = (namespace(site, "blue-1"), namespace(site, "blue-2"));
        let own = site.service("blue-2", false, 8080)?;
        let peer = tcp_translated(&one, at("203.0.113.12", 8080), &two, own, 100_000)?;
        seen("blue-1", peer, "203.0.113.11")
    });
}

#[test]
fn a_nat_gateway_carries_what_is_opened_inside_and_its_port_forwards() {
    // Both directions of a flow come to different workers.
    let options = SiteOptions {
        cores: vec![vec![0, 1], vec![0, 1]],
        checksum_offload: false,
        ..options()
    };
    on_site_with(&objects(), &options, |site, outside| {
        let far = &outside.far;
        for port in ["red-1", "red-2"] {
            let inside = namespace(site, port);
            reaches(site, port, FAR)?;
            reaches(site, port, ROUTER)?;
            let server = at(FAR, 80);
            let peer = tcp_translated(&inside, server, far, server, 1_000_000)?;
            seen(port, peer, NAT)?;
            let resolver = at(FAR, 53);
            let peer = udp_translated(&inside, resolver, far, resolver)?;
            seen(port, peer, NAT)?;
            // In fragments, which find their first one's mapping (RFC 4787 REQ-14).
            inside.run(&["ping", "-n", "-c1", "-W2", "-s", "4000", FAR])?;
        }
        // The outside opens nothing but what is forwarded.
        let open = |port| tcp_connects(far, at(NAT, port), NEVER);
        holds(
            "no connection is opened from outside",
            !open(22)? && !open(8080)?,
        )?;
        let inside = namespace(site, "red-1");
        let ssh = site.service("red-1", false, 22)?;
        let peer = tcp_translated(far, at(NAT, 2222), &inside, ssh, 100_000)?;
        seen("the outside", peer, FAR)?;
        let sessions = site.node("h1", &["session", "list"])?;
        holds(&format!("{NAT} in {sessions}"), sessions.contains(NAT))
    });
}

/// 198.51.100.10 as an IPv6 port sees it (RFC 6052).
const FAR64: &str = "64:ff9b::c633:640a";

#[test]
fn an_ipv6_only_workload_reaches_an_ipv4_only_server() {
    let mut objects = objects();
    let is_v6 = |text: &String| text.contains(':');
    for subnet in objects.subnets.iter_mut().filter(|it| it.vpc == "red") {
        subnet.cidrs.retain(is_v6);
    }
    for port in objects.ports.iter_mut().filter(|it| it.vpc == "red") {
        port.addresses.retain(is_v6);
    }
    objects.nat_gateways[0].port_forwards.clear();
    let red = objects.route_tables.iter_mut().find(|it| it.id == "red");
    red.unwrap().routes[0].prefix = "64:ff9b::/96".into();
    on_site_with(&objects, &options(), |site, outside| {
        let far = &outside.far;
        far.ip("-6 address flush dev f0")?;
        for (round, mtu) in [1500, 1300].into_iter().enumerate() {
            // A narrow way behind the router: the workload hears of it in its own family.
            outside.router.ip(&format!("link set f0 mtu {mtu}"))?;
            for port in ["red-1", "red-2"] {
                let inside = namespace(site, port);
                reaches(site, port, FAR64)?;
                let service = 80 + round as u16;
                let (target, server) = (at(FAR64, service), at(FAR, service));
                let peer = tcp_translated(&inside, target, far, server, 1_000_000)?;
                seen(port, peer, NAT)?;
                let (target, resolver) = (at(FAR64, 53), at(FAR, 53));
                let peer = udp_translated(&inside, target, far, resolver)?;
                seen(port, peer, NAT)?;
            }
        }
        let silent = at(FAR64, 9999);
        let refused = tcp_connects(&namespace(site, "red-2"), silent, NEVER)?;
        holds("a closed port of the server is refused", !refused)?;
        let sessions = site.node("h1", &["session", "list"])?;
        holds(
            &format!("{NAT} and {FAR64} in {sessions}"),
            sessions.contains(NAT) && sessions.contains(FAR64),
        )
    });
}

fn bound(namespace: &Namespace, address: &str, port: u16) -> Result<UdpSocket, LabError> {
    let socket = namespace.enter(|| UdpSocket::bind(at(address, port)))?;
    let socket = socket.map_err(failed("a socket"))?;
    let limit = socket.set_read_timeout(Some(NEVER));
    limit.map_err(failed("a socket"))?;
    Ok(socket)
}

/// Sends a datagram by one socket, and waits for it at another. Returns whom that one sees; nobody if it does not come.
fn passes(from: &UdpSocket, to: SocketAddr, at: &UdpSocket) -> Option<SocketAddr> {
    from.send_to(b"hello", to).ok()?;
    at.recv_from(&mut [0; 16]).ok().map(|(_, peer)| peer)
}

/// What a STUN client finds out (RFC 5780 §4.3, §4.4): endpoint-independent mapping, and the filtering that is configured.
#[test]
fn a_mapping_serves_all_endpoints_keeps_its_port_and_admits_whom_its_filtering_says() {
    on_site(&objects(), |site, outside| {
        reaches(site, "red-1", FAR)?;
        let inside = bound(&namespace(site, "red-1"), "10.0.1.11", 40000)?;
        let far = bound(&outside.far, FAR, 3478)?;
        let other_port = bound(&outside.far, FAR, 3479)?;
        let other_address = bound(&outside.router, "198.51.100.1", 3478)?;
        let mut mapped = Vec::new();
        for server in [&far, &other_port, &other_address] {
            let address = server.local_addr().map_err(failed("a server"))?;
            mapped.push(passes(&inside, address, server));
        }
        let wanted = Some(at(NAT, 40000));
        holds(
            &format!(
                "one mapping for all, with the port that was free (RFC 4787 REQ-1): {mapped:?}"
            ),
            mapped == [wanted; 3],
        )?;
        // The same port of another host is another one outside.
        let neighbour = bound(&namespace(site, "red-2"), "10.0.1.12", 40000)?;
        let other = passes(&neighbour, at(FAR, 3478), &far);
        holds(
            &format!("another inside is another outside: {other:?}"),
            other.is_some_and(|other| other.ip() == at(NAT, 0).ip() && Some(other) != wanted),
        )?;
        let mappings = site.node("h1", &["nat", "mappings"])?;
        let line = mappings
            .lines()
            .find(|line| line.contains("10.0.1.11:40000"));
        let words: Vec<&str> = line.unwrap_or_default().split_whitespace().collect();
        holds(
            &format!("it is listed with its sessions: {mappings}"),
            words == ["nat", "17", "10.0.1.11:40000", "203.0.113.100:40000", "3"],
        )?;
        for (filtering, admitted) in [
            ("", false),
            ("endpoint_independent", true),
            ("address_and_port", false),
        ] {
            site.change(|objects| objects.nat_gateways[0].filtering = filtering.into())?;
            let stranger = bound(&outside.far, FAR, 0)?;
            holds(
                "who was sent to may answer",
                passes(&far, at(NAT, 40000), &inside).is_some(),
            )?;
            let came = passes(&stranger, at(NAT, 40000), &inside);
            holds(
                &format!("with filtering '{filtering}' a stranger comes in or not: {came:?}"),
                came.is_some() == admitted,
            )?;
        }
        Ok(())
    });
}

/// An Ethernet frame with an IPv4 UDP datagram in it, whose checksum is left out (RFC 768).
fn datagram(
    macs: ([u8; 6], [u8; 6]),
    from: (&str, u16),
    to: (&str, u16),
    payload: &[u8],
) -> Vec<u8> {
    let octets = |text: &str| text.parse::<std::net::Ipv4Addr>().unwrap().octets();
    let builder = etherparse::PacketBuilder::ethernet2(macs.0, macs.1)
        .ipv4(octets(from.0), octets(to.0), 64)
        .udp(from.1, to.1);
    let mut frame = Vec::new();
    builder.write(&mut frame, payload).unwrap();
    frame
}

/// Packets from the segment that the pipeline of a host dropped, all reasons together.
fn dropped(site: &Site, host: &str) -> u64 {
    let drops = site.node_json(host, &["drops"]).unwrap_or_default();
    let rows = drops["reasons"].as_array().cloned().unwrap_or_default();
    let rows = rows.iter().filter(|row| row["port"] == "uplink:x0");
    rows.filter_map(|row| {
        row["packets"]
            .as_u64()
            .or_else(|| row["packets"].as_str()?.parse().ok())
    })
    .sum()
}

#[test]
fn strangers_on_the_segment_reach_nobody_and_the_hosts_own_traffic_goes_on() {
    on_site(&objects(), |site, outside| {
        let h1 = site.hosts["h1"].namespace.clone();
        h1.ip("address add 203.0.113.2/24 dev x0")?;
        h1.ip("address add 2001:db8:cafe::2/64 dev x0 nodad")?;
        let own = || -> Result<(), LabError> {
            for address in ["203.0.113.2", "2001:db8:cafe::2"] {
                is_reached(&outside.router, address)?;
            }
            is_reached(&h1, ROUTER)?;
            let server = at("203.0.113.2", 8080);
            let peer = tcp_translated(&outside.router, server, &h1, server, 100_000)?;
            seen("the outside", peer, ROUTER)
        };
        own()?;
        is_reached(&outside.router, "203.0.113.11")?;

        let blue = RawSocket::open(&namespace(site, "blue-1"), "eth0")?;
        let stranger = RawSocket::open(&outside.router, "e-h1")?;
        let macs = (outside.router.mac("e-h1")?, h1.mac("x0")?);
        let comes = |marker: &[u8]| {
            let found = |frame: &[u8]| frame.windows(marker.len()).any(|part| part == marker);
            blue.receive(NEVER, found).is_some()
        };
        stranger.send(&datagram(macs, (ROUTER, 9), ("203.0.113.11", 9), b"honest"))?;
        holds("what is honest comes", comes(b"honest"))?;
        // Sources of the VPC, of its gateway, of a private address that another tenant has too.
        let before = dropped(site, "h1");
        for source in [
            "10.0.1.12",
            "10.0.1.1",
            "10.0.2.20",
            "127.0.0.1",
            "224.0.0.5",
        ] {
            stranger.send(&datagram(
                macs,
                (source, 9),
                ("203.0.113.11", 9),
                b"spoofed",
            ))?;
        }
        // Straight to a private address, past the translation.
        stranger.send(&datagram(macs, (ROUTER, 9), ("10.0.1.11", 9), b"spoofed"))?;
        // A tunnel packet of the other host, by an interface that no tunnels lead over.
        let inner = datagram(
            ([2, 0, 0, 0, 1, 0x12], [2, 0, 0, 0, 1, 0x11]),
            ("10.0.1.12", 9),
            ("10.0.1.11", 9),
            b"spoofed",
        );
        let mut vxlan = vec![8, 0, 0, 0, 0, 0, 100, 0];
        vxlan.extend(inner);
        stranger.send(&datagram(
            macs,
            ("192.0.2.2", 50000),
            ("192.0.2.1", 4789),
            &vxlan,
        ))?;
        holds("nothing that is spoofed comes", !comes(b"spoofed"))?;
        let drops = site.node("h1", &["drops"])?;
        holds(
            &format!("each of five is dropped by name: {drops}"),
            dropped(site, "h1") >= before + 5,
        )?;
        own()
    });
}

fn elastic<'a>(objects: &'a mut Objects, id: &str) -> &'a mut ElasticIp {
    let mut all = objects.elastic_ips.iter_mut();
    all.find(|elastic| elastic.id == id).unwrap()
}

#[test]
fn unbinding_an_elastic_ip_ends_inbound_at_once_and_binding_it_elsewhere_moves_it() {
    let mut objects = objects();
    objects.elastic_ips.retain(|elastic| elastic.id == "one");
    on_site(&objects, |site, outside| {
        let address = "203.0.113.11";
        is_reached(&outside.far, address)?;
        let mut pinger = Pinger::new(&outside.far, address.parse().unwrap())?;
        holds("the way is open", pinger.ping(SOON)?)?;
        site.change(|objects| elastic(objects, "one").port.clear())?;
        holds("an established flow ends", !pinger.ping(NEVER)?)?;
        holds("and no other begins", !outside.far.pings(address, 1))?;
        holds("outwards too", !site.reaches("blue-1", FAR, 1))?;

        for port in ["blue-2", "blue-1", "blue-b"] {
            site.change(|objects| elastic(objects, "one").port = port.into())?;
            wait_until("the flow goes on", SOON, || {
                pinger.ping(NEVER).is_ok_and(|answered| answered)
            })?;
            let own = site.service(port, false, 8080)?;
            let inside = namespace(site, port);
            let peer = tcp_translated(&outside.far, at(address, 8080), &inside, own, 10_000)?;
            seen("the outside", peer, FAR)?;
            reaches(site, port, FAR)?;
        }
        holds("the one before has none", !site.reaches("blue-1", FAR, 1))
    });
}

/// Cards of virtual machines send segments of up to 64 KiB, which are cut on the way out.
#[test]
fn virtual_machines_reach_the_outside_and_are_reached_with_whole_segments() {
    let mut objects = objects();
    objects
        .ports
        .retain(|port| matches!(port.id.as_str(), "blue-1" | "red-1" | "red-2"));
    objects
        .elastic_ips
        .retain(|elastic| elastic.port == "blue-1");
    put_in_guests(&mut objects, GuestKind::VhostServer, &[]);
    on_site(&objects, |site, outside| {
        let directory = site.directory().join("www");
        let data = directory.join("data");
        std::fs::create_dir_all(&directory).map_err(failed("the server's directory"))?;
        let random = format!("head -c 3000000 /dev/urandom >{}", data.display());
        outside.far.run(&["sh", "-c", &random])?;
        let sum = |text: String| {
            text.split_whitespace()
                .next()
                .unwrap_or_default()
                .to_owned()
        };
        let wanted = sum(outside
            .far
            .run(&["sha256sum", &data.display().to_string()])?);
        let shown = directory.display().to_string();
        let server = ["httpd", "-f", "-p", "80", "-h", &shown];
        let _server = outside.far.spawn("busybox", &server)?;
        for port in ["blue-1", "red-1", "red-2"] {
            reaches(site, port, FAR)?;
            let guest = &site.guests[port];
            let got = guest.succeed(&format!("wget -q -O - http://{FAR}/data | sha256sum"))?;
            holds(&format!("{port} gets what is there"), sum(got) == wanted)?;
            let line = ["-s", "-1", "--forceflush", "-B", FAR];
            let mut receiver = outside.far.spawn("iperf3", &line)?;
            receiver.wait_for_output("listening", SOON)?;
            guest.succeed(&format!("/tools/iperf3 -n 20M -c {FAR}"))?;
            receiver.wait(SOON)?;
        }
        let guest = &site.guests["blue-1"];
        let serves = "mkdir -p /tmp/www && head -c 3000000 /dev/urandom >/tmp/www/data && httpd -h /tmp/www && sha256sum </tmp/www/data";
        let wanted = sum(guest.succeed(serves)?);
        for elastic in ["203.0.113.11", "[2001:db8:cafe::11]"] {
            let line = format!("busybox wget -q -O - http://{elastic}/data | sha256sum");
            let got = outside.far.run(&["sh", "-c", &line])?;
            holds(
                &format!("{elastic} gives what is there"),
                sum(got) == wanted,
            )?;
        }
        Ok(())
    });
}

/// The longest time between two answers, until it is over.
fn longest_silence(pinger: &mut Pinger, over: &AtomicBool) -> Duration {
    let (mut last, mut longest) = (Instant::now(), Duration::ZERO);
    while !over.load(Ordering::Relaxed) {
        if pinger
            .ping(Duration::from_millis(5))
            .is_ok_and(|answered| answered)
        {
            longest = longest.max(last.elapsed());
            last = Instant::now();
        }
    }
    longest.max(last.elapsed())
}

/// Packets that both hosts have sent to each other.
fn packets_by_tunnels(site: &Site) -> Result<u64, LabError> {
    let mut all = 0;
    for host in ["h1", "h2"] {
        let stats = site.node_json(host, &["stats"])?;
        let ports = stats["ports"].as_array().cloned().unwrap_or_default();
        let uplink = ports.iter().find(|port| port["port"] == "uplink:u0");
        let count = uplink.map(|uplink| &uplink["tx_packets"]);
        let text = count.and_then(|count| count.as_str()?.parse().ok());
        let number = count.and_then(|count| count.as_u64().or(text));
        all += number.unwrap_or(0);
    }
    Ok(all)
}

#[test]
fn an_elastic_ip_is_on_its_ports_own_host_and_moves_between_hosts() {
    let mut objects = objects();
    objects.hosts[1].physical_networks = vec!["physnet1".into()];
    objects.elastic_ips.retain(|elastic| elastic.id == "one");
    let mut options = options();
    options.externals.insert("h2".into(), "x0".into());
    on_site_with(&objects, &options, |site, outside| {
        let address = "203.0.113.11";
        is_reached(&outside.far, address)?;
        let mut pinger = Pinger::new(&outside.far, address.parse().unwrap())?;
        for (port, host) in [("blue-2", "h2"), ("blue-1", "h1"), ("blue-b", "h2")] {
            let over = AtomicBool::new(false);
            let silence = thread::scope(|scope| {
                let pinging = scope.spawn(|| longest_silence(&mut pinger, &over));
                let moved = site.change(|objects| elastic(objects, "one").port = port.into());
                let moved = moved.and_then(|_| is_reached(&outside.far, address));
                over.store(true, Ordering::Relaxed);
                let silence = pinging.join();
                moved.map(|()| silence.unwrap_or(Duration::MAX))
            })?;
            println!("moved to {host}: silent for {silence:?}");
            holds(
                &format!("silent for {silence:?} and no longer"),
                silence < Duration::from_secs(1),
            )?;
            let mac = site.hosts[host].namespace.mac("x0")?;
            let shown = mac.map(|byte| format!("{byte:02x}")).join(":");
            let known = outside.router.ip(&format!("neigh show {address}"))?;
            holds(&format!("{host} has it: {known}"), known.contains(&shown))?;
            let own = site.service(port, false, 8080)?;
            let inside = namespace(site, port);
            // Nothing of it crosses the underlay: the host of the port translates.
            let before = packets_by_tunnels(site)?;
            let peer = tcp_translated(&outside.far, at(address, 8080), &inside, own, 100_000)?;
            seen("the outside", peer, FAR)?;
            // The other host's ping is counted after it.
            holds("it is reached", site.pings("blue-1", "blue-2"))?;
            let mut detour = u64::MAX;
            wait_until("it is counted", SOON, || {
                detour = packets_by_tunnels(site).map_or(0, |after| after - before);
                detour > 0
            })?;
            holds(&format!("no detour: {detour} packets"), detour < 40)?;
        }
        Ok(())
    });
}

/// Answers each connection to a port of a namespace with a name, until it is over.
fn serve(inside: &Namespace, name: &str, over: &AtomicBool) -> Result<(), LabError> {
    let listener = inside.enter(|| TcpListener::bind("[::]:8080"))?;
    let listener = listener.map_err(failed("a listener"))?;
    let waits = listener.set_nonblocking(true);
    waits.map_err(failed("a listener"))?;
    while !over.load(Ordering::Relaxed) {
        match listener.accept() {
            Ok((mut client, peer)) => {
                let text = format!("{name} {}", peer.ip());
                client
                    .write_all(text.as_bytes())
                    .map_err(failed("an answer"))?;
            }
            Err(_) => thread::sleep(Duration::from_millis(2)),
        }
    }
    Ok(())
}

/// What a new connection is answered with.
fn asks(from: &Namespace, address: SocketAddr) -> Result<String, LabError> {
    let client = from.enter(|| TcpStream::connect_timeout(&address, SOON))?;
    let mut client = client.map_err(failed("a connection"))?;
    let mut text = String::new();
    let limit = client.set_read_timeout(Some(SOON));
    limit.map_err(failed("a connection"))?;
    client
        .read_to_string(&mut text)
        .map_err(failed("an answer"))?;
    Ok(text)
}

/// Of the load balancer's members one is on the gateway host, one is not, and neither has a way out of its own.
#[test]
fn a_load_balancer_is_reached_from_outside_by_its_elastic_ip() {
    let mut objects = objects();
    objects.elastic_ips.clear();
    objects.route_tables[0].routes.clear();
    objects.load_balancers.push(LoadBalancer {
        id: "web".into(),
        vpc: "blue".into(),
        addresses: vec!["10.0.1.200".into(), "fd00:1::200".into()],
        listeners: vec![Listener {
            protocol: "tcp".into(),
            port_min: 80,
            members: ["blue-1", "blue-2"]
                .map(|port| Member {
                    port: port.into(),
                    to_port_min: 8080,
                    ..Member::default()
                })
                .into(),
            ..Listener::default()
        }],
        ..LoadBalancer::default()
    });
    for (id, address) in [("web", "203.0.113.50"), ("web-v6", "2001:db8:cafe::50")] {
        objects.elastic_ips.push(ElasticIp {
            id: id.into(),
            external_network: "internet".into(),
            address: address.into(),
            load_balancer: "web".into(),
            ..ElasticIp::default()
        });
    }
    on_site(&objects, |site, outside| {
        let over = AtomicBool::new(false);
        let inside = ["blue-1", "blue-2"].map(|port| (port, namespace(site, port)));
        thread::scope(|scope| {
            for (name, inside) in &inside {
                let over = &over;
                scope.spawn(move || serve(inside, name, over));
            }
            let ask = || {
                for (address, far) in [("203.0.113.50", FAR), ("2001:db8:cafe::50", FAR6)] {
                    let address = at(address, 80);
                    wait_until("a first answer", SOON, || {
                        asks(&outside.far, address).is_ok()
                    })?;
                    let mut names = std::collections::BTreeSet::new();
                    for _ in 0..40 {
                        names.insert(asks(&outside.far, address)?);
                    }
                    let seen: Vec<&str> = names.iter().map(String::as_str).collect();
                    let wanted = ["blue-1", "blue-2"].map(|name| format!("{name} {far}"));
                    let ipv4 = ["blue-1", "blue-2"].map(|name| format!("{name} ::ffff:{far}"));
                    holds(
                        &format!("both members answer the client: {seen:?}"),
                        seen == wanted || seen == ipv4,
                    )?;
                }
                // A port of the VPC comes by the address too, and nobody gets out.
                asks(&inside[0].1, at("203.0.113.50", 80))?;
                holds("blue-1 has no way out", !site.reaches("blue-1", FAR, 1))
            };
            let result = ask();
            over.store(true, Ordering::Relaxed);
            result
        })
    });
}

/// A TCP connection that stays, to a server that sends back what it gets.
struct Echo {
    client: TcpStream,
    server: TcpStream,
}

impl Echo {
    fn open(from: &Namespace, to: &Namespace, address: SocketAddr) -> Result<Self, LabError> {
        let listener = to.enter(|| TcpListener::bind(address))?;
        let listener = listener.map_err(failed("a listener"))?;
        let client = from.enter(|| TcpStream::connect_timeout(&address, SOON))?;
        let client = client.map_err(failed("a connection"))?;
        let (server, _) = listener.accept().map_err(failed("a connection"))?;
        for end in [&client, &server] {
            let limit = end.set_read_timeout(Some(SOON));
            limit.map_err(failed("a connection"))?;
        }
        Ok(Self { client, server })
    }

    /// A line there and back.
    fn works(&mut self) -> Result<(), LabError> {
        let mut exchange = || -> std::io::Result<bool> {
            let mut got = [0; 4];
            self.client.write_all(b"ping")?;
            self.server.read_exact(&mut got)?;
            self.server.write_all(&got)?;
            self.client.read_exact(&mut got)?;
            Ok(got == *b"ping")
        };
        let same = exchange().map_err(failed("an established connection"))?;
        holds("what is sent comes back", same)
    }
}

/// h1 and h2 are gateway hosts, the ports are on h3.
#[test]
fn another_gateway_host_takes_over_with_connections_and_gives_back() {
    let mut objects = tenants(3).unwrap();
    let more = topology(INTENT).unwrap();
    objects.external_networks = more.external_networks;
    objects.external_networks[0].gateway_hosts = vec!["h1".into(), "h2".into()];
    objects.nat_gateways = more.nat_gateways;
    objects.nat_gateways[0].port_forwards.clear();
    objects.elastic_ips = more.elastic_ips;
    objects.elastic_ips.retain(|elastic| elastic.id == "one");
    objects.elastic_ips[0].port = "blue-3".into();
    objects.route_tables = more.route_tables;
    for host in &mut objects.hosts[..2] {
        host.physical_networks = vec!["physnet1".into()];
    }
    for subnet in &mut objects.subnets {
        subnet.route_table.clone_from(&subnet.vpc);
    }
    let mut options = options();
    options.externals.insert("h2".into(), "x0".into());
    on_site_with(&objects, &options, |site, outside| {
        let elastic = "203.0.113.11";
        let red = namespace(site, "red-3");
        reaches(site, "red-3", FAR)?;
        is_reached(&outside.far, elastic)?;
        let has = |site: &Site, host: &str| -> Result<bool, LabError> {
            let mac = site.hosts[host].namespace.mac("x0")?;
            let shown = mac.map(|byte| format!("{byte:02x}")).join(":");
            let known = [NAT, elastic].map(|address| {
                let line = format!("neigh show {address}");
                outside.router.ip(&line).unwrap_or_default()
            });
            Ok(known.iter().all(|known| known.contains(&shown)))
        };
        // If the second host was the first to start, it is in use until the first knows what it has made.
        wait_until("h1 has the addresses", 3 * SOON, || {
            has(site, "h1").unwrap_or(false)
        })?;
        let mut echo = Echo::open(&red, &outside.far, at(FAR, 80))?;
        echo.works()?;
        let mut out = Pinger::new(&red, FAR.parse().unwrap())?;
        let mut inwards = Pinger::new(&outside.far, elastic.parse().unwrap())?;
        let h1 = site.hosts["h1"].namespace.clone();
        let links = |up: &str| -> Result<(), LabError> {
            for link in ["u0", "x0"] {
                h1.ip(&format!("link set {link} {up}"))?;
            }
            Ok(())
        };
        let pause = |site: &mut Site, paused: bool| {
            if let Some(daemon) = site.hosts["h1"].daemon.as_ref() {
                daemon.pause(paused);
            }
            Ok(())
        };
        type Fault<'a> = Box<dyn Fn(&mut Site) -> Result<(), LabError> + 'a>;
        let faults: [(&str, Fault<'_>, Fault<'_>); 3] = [
            (
                "killed",
                Box::new(|site| {
                    if let Some(mut daemon) = site.hosts.get_mut("h1").unwrap().daemon.take() {
                        daemon.signal(9);
                        daemon.wait(SOON)?;
                    }
                    Ok(())
                }),
                Box::new(|site| site.start_daemon("h1")),
            ),
            (
                "cut off",
                Box::new(|_| links("down")),
                Box::new(|_| links("up")),
            ),
            (
                "frozen",
                Box::new(move |site| pause(site, true)),
                Box::new(move |site| pause(site, false)),
            ),
        ];
        for (what, fault, mend) in &faults {
            for (host, change, most) in [("h2", fault, 1000), ("h1", mend, 1000)] {
                let over = AtomicBool::new(false);
                let silent = thread::scope(|scope| {
                    let both = [&mut out, &mut inwards];
                    let both = both.map(|pinger| scope.spawn(|| longest_silence(pinger, &over)));
                    let moved = change(site).and_then(|()| {
                        let what = format!("{what}: {host} has the addresses");
                        wait_until(&what, 3 * SOON, || has(site, host).unwrap_or(false))?;
                        reaches(site, "red-3", FAR)?;
                        is_reached(&outside.far, elastic)
                    });
                    over.store(true, Ordering::Relaxed);
                    let silent = both.map(|pinging| pinging.join().unwrap_or(Duration::MAX));
                    moved.map(|()| silent)
                })?;
                println!("h1 {what}, {host} takes over: silent for {silent:?}");
                echo.works()?;
                holds(
                    &format!("{what}: silent for {silent:?} and no longer"),
                    silent.iter().all(|silent| silent.as_millis() < most),
                )?;
            }
        }
        Ok(())
    });
}

/// Who answers a ping with this TTL, and with what.
fn answer(from: &Namespace, ttl: u32, to: &str) -> String {
    let ttl = ttl.to_string();
    let line = ["ping", "-n", "-c1", "-W1", "-t", &ttl, to];
    match from.run(&line) {
        Ok(text) => text,
        Err(error) => error.to_string(),
    }
}

#[test]
fn errors_of_the_outside_come_back_translated_and_name_the_mtu() {
    on_site(&objects(), |site, outside| {
        // The router forwards what fits 1280 bytes to the server, as if the link were that narrow (ip-route(8): `mtu lock`).
        outside
            .router
            .ip("route add 198.51.100.10/32 dev f0 mtu lock 1280")?;
        outside
            .router
            .ip("-6 route add 2001:db8:99::10/128 dev f0 mtu lock 1280")?;
        for port in ["red-1", "red-2", "blue-1", "blue-2"] {
            let inside = namespace(site, port);
            reaches(site, port, FAR)?;
            let hops: Vec<String> = (1..=4).map(|ttl| answer(&inside, ttl, FAR)).collect();
            let exceeded = |who: &str| {
                let from = format!("From {who}");
                hops.iter()
                    .any(|text| text.contains(&from) && text.contains("Time to live exceeded"))
            };
            holds(
                &format!("{port}: the gateway and the router are on the way: {hops:?}"),
                exceeded("10.0.1.1 ") && exceeded("203.0.113.1 "),
            )?;
            let line = ["ping", "-n", "-c1", "-W1", "-Mdo", "-s", "1300", FAR];
            let said = inside.run(&line).unwrap_or_else(|error| error.to_string());
            holds(
                &format!("{port}: the narrow link is named: {said}"),
                said.contains("mtu = 1280") || said.contains("mtu=1280"),
            )?;
            inside.ip("route flush cache")?;
            let server = at(FAR, 80);
            tcp_translated(&inside, server, &outside.far, server, 300_000)?;
        }
        for port in ["blue-1", "blue-2"] {
            let server = at(FAR6, 80);
            reaches(site, port, FAR6)?;
            tcp_translated(
                &namespace(site, port),
                server,
                &outside.far,
                server,
                300_000,
            )?;
        }
        // A network that carries less than a port does: the gateway says so itself.
        site.change(|objects| objects.external_networks[0].mtu = 1300)?;
        for port in ["red-1", "red-2"] {
            let line = ["ping", "-n", "-c1", "-W1", "-Mdo", "-s", "1350", ROUTER];
            let said = namespace(site, port).run(&line);
            let said = said.unwrap_or_else(|error| error.to_string());
            holds(
                &format!("{port}: the network's MTU is named: {said}"),
                said.contains("mtu = 1300") || said.contains("mtu=1300"),
            )?;
        }
        Ok(())
    });
}

#[test]
fn a_next_hop_and_the_interface_may_change_their_macs_and_the_interface_may_go() {
    on_site(&objects(), |site, outside| {
        let both = |site: &Site, what: &str| -> Result<(), LabError> {
            // Whoever changes his MAC asks for his neighbours anew, and is heard by that.
            let outwards = format!("{what}: the outside reaches blue-1");
            wait_until(&outwards, SOON, || outside.far.pings("203.0.113.11", 2))?;
            for port in ["blue-1", "red-2"] {
                let what = format!("{what}: {port} reaches the outside");
                wait_until(&what, SOON, || site.reaches(port, FAR, 2))?;
            }
            Ok(())
        };
        both(site, "at first")?;
        let h1 = site.hosts["h1"].namespace.clone();
        outside
            .router
            .ip("link set e-h1 address 02:00:00:00:77:01")?;
        both(site, "another MAC of the next hop")?;
        h1.ip("link set x0 address 02:00:00:00:77:02")?;
        both(site, "another MAC of the interface")?;
        h1.ip("link delete x0")?;
        wait_until("the interface is gone", SOON, || {
            !site.reaches("blue-1", FAR, 1)
        })?;
        holds("tunnels work on", site.pings("blue-1", "blue-2"))?;
        let router = outside.router.clone();
        let link = LinkOptions::default();
        site.lab().link((&h1, "x0"), (&router, "e-h1"), link)?;
        router.ip(&format!("address add {ROUTER}/24 dev e-h1"))?;
        for port in ["blue-1", "red-2"] {
            reaches(site, port, FAR)?;
        }
        is_reached(&outside.far, "203.0.113.11")
    });
}

/// Who has an address on the segment, for the router.
fn neighbour(router: &Namespace, address: &str) -> String {
    router
        .ip(&format!("neigh show {address} dev e-h1"))
        .unwrap_or_default()
}

#[test]
fn addresses_are_announced_defended_and_found_again_when_a_next_hop_was_silent() {
    let mut objects = objects();
    objects.elastic_ips.retain(|elastic| elastic.id == "one");
    on_site(&objects, |site, outside| {
        let router = &outside.router;
        let segment = RawSocket::open(router, "e-h1")?;
        let ours = site.hosts["h1"].namespace.mac("x0")?;
        let shown = ours.map(|byte| format!("{byte:02x}")).join(":");
        let address = "203.0.113.55";
        let octets = [203, 0, 113, 55];
        // Who has it in his cache learns of its new owner by being told (RFC 5227 §3), and by nothing else.
        router.ip(&format!(
            "neigh replace {address} lladdr 02:00:00:00:99:99 nud stale dev e-h1"
        ))?;
        site.change(|objects| elastic(objects, "one").address = address.into())?;
        let announced = |frame: &[u8]| {
            frame.get(12..14) == Some(&[8, 6])
                && frame.get(22..28) == Some(&ours)
                && frame.get(28..32) == Some(&octets)
                && frame.get(38..42) == Some(&octets)
        };
        holds(
            "it is announced",
            segment.receive(SOON, announced).is_some(),
        )?;
        wait_until("the router has learnt it", SOON, || {
            neighbour(router, address).contains(&shown)
        })?;
        is_reached(&outside.far, address)?;

        // Somebody else claims it: it is defended, and goes on.
        let stranger = [2, 0, 0, 0, 0x99, 0x99];
        let other = RawSocket::open(&site.hosts["h1"].namespace, "x0")?;
        segment.send(&arp(1, stranger, address, ([0; 6], address)))?;
        holds("it is defended", segment.receive(SOON, announced).is_some())?;
        drop(other);
        is_reached(&outside.far, address)?;

        // A next hop that answers nobody is unknown in the end, and found when it answers again.
        let silent = |on: bool| {
            let value = format!("net.ipv4.conf.e-h1.arp_ignore={}", if on { 8 } else { 0 });
            router.run(&["sysctl", "-qw", &value])
        };
        silent(true)?;
        let h1 = site.hosts["h1"].namespace.clone();
        h1.ip("link set x0 address 02:00:00:00:77:02")?;
        wait_until("the next hop is lost", SOON, || {
            let drops = site.node("h1", &["drops"]).unwrap_or_default();
            !site.reaches("blue-1", FAR, 1) && drops.contains("external_unresolved")
        })?;
        silent(false)?;
        reaches(site, "blue-1", FAR)
    });
}

#[test]
fn a_gateway_that_starts_without_its_controller_translates_as_before() {
    on_site(&objects(), |site, outside| {
        for port in ["blue-1", "red-2"] {
            reaches(site, port, FAR)?;
        }
        site.controller = None;
        // Its program leaves the interface when it has ended: a start before that is refused.
        if let Some(mut daemon) = site.hosts.get_mut("h1").unwrap().daemon.take() {
            daemon.signal(libc::SIGKILL);
            daemon.wait(SOON)?;
        }
        site.start_daemon("h1")?;
        for port in ["blue-1", "blue-2", "red-1", "red-2"] {
            reaches(site, port, FAR)?;
        }
        is_reached(&outside.far, "203.0.113.11")?;
        is_reached(&outside.far, "203.0.113.12")
    });
}

/// The same frame in a VLAN (IEEE 802.1Q §9.6).
fn tagged(mut frame: Vec<u8>, vlan: u16) -> Vec<u8> {
    let [high, low] = vlan.to_be_bytes();
    frame.splice(12..12, [0x81, 0, high, low]);
    frame
}

/// An ARP packet (RFC 826) from one who has `mac` and `from`.
fn arp(operation: u8, mac: [u8; 6], from: &str, to: ([u8; 6], &str)) -> Vec<u8> {
    let octets = |text: &str| text.parse::<std::net::Ipv4Addr>().unwrap().octets();
    let destination = if operation == 1 { [0xff; 6] } else { to.0 };
    let mut frame = [destination, mac].concat();
    frame.extend([8, 6, 0, 1, 8, 0, 6, 4, 0, operation]);
    frame.extend(mac);
    frame.extend(octets(from));
    frame.extend(to.0);
    frame.extend(octets(to.1));
    frame
}

/// The kernel here has no VLAN device, so the outside speaks for itself. It strips the tag before a socket sees the frame: the capture has it.
#[test]
fn a_vlan_of_the_physical_network_is_entered_and_left_with_its_tag_and_no_other() {
    let mut objects = objects();
    objects.external_networks[0].vlan = 42;
    let mut site = Site::start(Lab::new().unwrap(), &objects, &options()).unwrap();
    let router = site.outside.clone().unwrap();
    let body = |site: &mut Site| -> Result<(), LabError> {
        let segment = RawSocket::open(&router, "e-h1")?;
        let mut capture = Capture::start(&router, "e-h1", "")?;
        let h1 = site.hosts["h1"].namespace.clone();
        let (ours, theirs) = ([2, 0, 0, 0, 0x77, 1], h1.mac("x0")?);
        let elastic = "203.0.113.11";
        let asked = arp(1, ours, ROUTER, ([0; 6], elastic));
        let is_reply =
            |frame: &[u8]| frame.len() >= 42 && frame[12..14] == [8, 6] && frame[21] == 2;
        for other in [
            asked.clone(),
            tagged(asked.clone(), 43),
            tagged(asked.clone(), 0),
        ] {
            segment.send(&other)?;
            holds(
                "in another VLAN nobody answers",
                segment.receive(NEVER, is_reply).is_none(),
            )?;
        }
        segment.send(&tagged(asked, 42))?;
        let reply = segment.receive(SOON, is_reply).unwrap_or_default();
        holds("ARP is answered", reply.get(22..28) == Some(&theirs[..]))?;

        // A datagram in, and its answer out.
        let own = site.service("blue-1", false, 7777)?;
        let server = namespace(site, "blue-1").enter(|| UdpSocket::bind(own))?;
        let server = server.map_err(failed("a server"))?;
        server
            .set_read_timeout(Some(SOON))
            .map_err(failed("a server"))?;
        let question = datagram((ours, theirs), (ROUTER, 9), (elastic, 7777), b"question");
        segment.send(&tagged(question.clone(), 43))?;
        segment.send(&question)?;
        let question = datagram((ours, theirs), (ROUTER, 9), (elastic, 7777), b"in its VLAN");
        segment.send(&tagged(question, 42))?;
        let mut buffer = [0; 64];
        let (len, peer) = server
            .recv_from(&mut buffer)
            .map_err(failed("the datagram in its VLAN"))?;
        holds(
            "it is the one in its VLAN",
            buffer[..len] == *b"in its VLAN",
        )?;
        seen("the outside", peer, ROUTER)?;
        let send = || {
            let sent = server.send_to(b"answer", peer);
            sent.map(drop).map_err(failed("the answer"))
        };
        // It may be asked for its MAC first, and answers be lost meanwhile.
        wait_until("the answer comes out", SOON, || {
            let _ = send();
            let frame = segment.receive(NEVER, |_| true).unwrap_or_default();
            let asks = frame.get(12..14) == Some(&[8, 6])
                && frame.get(21) == Some(&1)
                && frame.get(38..42) == Some(&[203, 0, 113, 1]);
            if asks {
                let reply = arp(2, ours, ROUTER, (theirs, elastic));
                let _ = segment.send(&tagged(reply, 42));
            }
            frame.windows(6).any(|part| part == b"answer")
        })?;
        capture.stop()?;
        let sent = format!(
            "eth.src == {}",
            theirs.map(|byte| format!("{byte:02x}")).join(":")
        );
        let tags = capture.decode(&format!("{sent} && (arp || udp)"), &["vlan.id"])?;
        holds(
            &format!("all that weft sends has the tag: {tags:?}"),
            !tags.is_empty() && tags.iter().all(|tag| tag == "42"),
        )
    };
    if let Err(error) = body(&mut site) {
        panic!("{}", site.explain(error));
    }
}

/// The physical network is the underlay: the interface of the tunnels leads outside too.
#[test]
fn an_uplink_may_lead_outside_too() {
    let mut objects = objects();
    // Not a host of ours, but with it there is a segment of more than two.
    let mut other = objects.hosts[1].clone();
    (other.id, other.vteps, other.foreign) = ("h3".into(), vec!["192.0.2.3".into()], true);
    objects.hosts.push(other);
    let options = SiteOptions {
        externals: BTreeMap::from([("h1".to_owned(), "u0".to_owned())]),
        ..SiteOptions::default()
    };
    let mut site = Site::start(Lab::new().unwrap(), &objects, &options).unwrap();
    let segment = site.underlay.clone().unwrap();
    let body = |site: &mut Site| -> Result<(), LabError> {
        let outside = Outside::set_up(site, segment.clone(), "br0")?;
        let h1 = site.hosts["h1"].namespace.clone();
        for port in ["blue-1", "blue-2", "red-1", "red-2"] {
            reaches(site, port, FAR)?;
            let server = at(FAR, 80);
            tcp_translated(
                &namespace(site, port),
                server,
                &outside.far,
                server,
                300_000,
            )?;
        }
        for elastic in ["203.0.113.11", "203.0.113.12", "2001:db8:cafe::12"] {
            is_reached(&outside.far, elastic)?;
        }
        holds(
            "tunnels work",
            site.pings("blue-1", "blue-2") && site.pings("red-2", "red-1"),
        )?;
        holds("and the hosts' own traffic", h1.pings("192.0.2.2", 2))?;
        site.wait_for_frames()
    };
    if let Err(error) = body(&mut site) {
        panic!("{}", site.explain(error));
    }
}

/// A prefix that is routed to blue, with blue-1 and blue-2 in it by second addresses, and a direct elastic IP of red-2.
#[test]
fn prefixes_and_direct_addresses_pass_as_they_are() {
    let mut objects = objects();
    let more = topology(
        r#"
subnets:
  - {id: public, vpc: blue, cidrs: [198.18.7.0/24, "2001:db8:7::/64"], route_table: blue}
ports:
  - {id: pub-1, vpc: blue, subnet: public, host: h1, mac: "02:00:00:00:07:11", addresses: [198.18.7.11, "2001:db8:7::11"]}
  - {id: pub-2, vpc: blue, subnet: public, host: h2, mac: "02:00:00:00:07:12", addresses: [198.18.7.12, "2001:db8:7::12"]}
elastic_ips:
  - {id: direct, external_network: internet, address: 203.0.113.30, port: red-2, mode: direct}
"#,
    )
    .unwrap();
    objects.subnets.extend(more.subnets);
    objects.elastic_ips.extend(more.elastic_ips);
    let group = objects.ports[0].security_groups.clone();
    objects.ports.extend(more.ports.into_iter().map(|mut port| {
        port.security_groups.clone_from(&group);
        port
    }));
    let network = &mut objects.external_networks[0];
    network.routers = vec!["203.0.113.2".into(), "2001:db8:cafe::2".into()];
    network.answer_pings = true;
    network.routed = ["198.18.7.0/24", "2001:db8:7::/64"]
        .map(|prefix| weft_proto::v1::RoutedPrefix {
            prefix: prefix.into(),
            vpc: "blue".into(),
        })
        .into();
    on_site(&objects, |site, outside| {
        outside
            .router
            .ip("route add 198.18.7.0/24 via 203.0.113.2")?;
        outside
            .router
            .ip("-6 route add 2001:db8:7::/64 via 2001:db8:cafe::2")?;
        is_reached(&outside.far, "203.0.113.2")?;
        is_reached(&outside.far, "2001:db8:cafe::2")?;
        is_reached(&outside.far, NAT)?;
        for (port, v4, v6) in [
            ("pub-1", "198.18.7.11", "2001:db8:7::11"),
            ("pub-2", "198.18.7.12", "2001:db8:7::12"),
        ] {
            let inside = namespace(site, port);
            for (own, far) in [(v4, FAR), (v6, FAR6)] {
                reaches(site, port, far)?;
                is_reached(&outside.far, own)?;
                let server = at(far, 8080);
                let peer = tcp_translated(&inside, server, &outside.far, server, 300_000)?;
                seen(port, peer, own)?;
                let server = at(own, 8081);
                let peer = tcp_translated(&outside.far, server, &inside, server, 300_000)?;
                seen("the outside", peer, far)?;
            }
        }
        // The guest has the address itself, on a host that is not on the segment.
        let red = namespace(site, "red-2");
        red.ip("address add 203.0.113.30/32 dev eth0")?;
        red.ip("route replace default via 10.0.1.1 src 203.0.113.30")?;
        is_reached(&outside.far, "203.0.113.30")?;
        let server = at(FAR, 8080);
        let peer = tcp_translated(&red, server, &outside.far, server, 300_000)?;
        seen("red-2", peer, "203.0.113.30")?;
        let server = at("203.0.113.30", 8081);
        let peer = tcp_translated(&outside.far, server, &red, server, 300_000)?;
        seen("the outside", peer, FAR)
    });
}

/// A download is as fast as the limit of the elastic IP, however many connections it takes.
#[test]
fn a_limit_of_an_elastic_ip_holds_for_its_connections_together() {
    let mut objects = objects();
    let limit = |bits_per_second| {
        Some(weft_proto::v1::RateLimit {
            bits_per_second,
            ..weft_proto::v1::RateLimit::default()
        })
    };
    elastic(&mut objects, "two").limits = Some(weft_proto::v1::RateLimits {
        egress: limit(80_000_000),
        ingress: None,
    });
    on_site(&objects, |site, outside| {
        reaches(site, "blue-2", FAR)?;
        let inside = namespace(site, "blue-2");
        // 4 MB in two connections at 10 MB a second.
        const BYTES: usize = 2_000_000;
        let begin = Instant::now();
        thread::scope(|scope| {
            let run = |port| {
                let (inside, far) = (inside.clone(), outside.far.clone());
                scope.spawn(move || {
                    tcp_translated(&inside, at(FAR, port), &far, at(FAR, port), BYTES)
                })
            };
            let both = [run(8080), run(8081)];
            both.into_iter().try_for_each(|one| {
                let peer = one.join().map_err(|_| LabError::Io {
                    what: "a connection".to_owned(),
                    source: std::io::Error::other("its thread failed"),
                })??;
                seen("blue-2", peer, "203.0.113.12")
            })
        })?;
        let took = begin.elapsed();
        holds(
            &format!("4 MB at 10 MB a second take 0.2 s at least: {took:?}"),
            took >= Duration::from_millis(200),
        )?;
        holds(
            &format!("and not much longer: {took:?}"),
            took < Duration::from_secs(5),
        )
    });
}
