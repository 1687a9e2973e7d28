//! Ports on an external network (provider networks), with real processes: two hosts on one segment, a bridge, whose namespace is the network's router too, and a
//! server behind it. Tenant blue is on the network, red has tunnels as ever.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use weft_proto::v1::{ExternalNetwork, Objects, SecurityRule};
use weft_tests::site::SEGMENT;
use weft_tests::traffic::{tcp_connects, tcp_exchange, udp_translated};
use weft_tests::{
    Capture, Lab, LabError, LinkOptions, Namespace, RawSocket, Site, SiteOptions, holds, tenants,
    wait_until,
};

const SOON: Duration = Duration::from_secs(10);
/// What does not come within this does not come.
const NEVER: Duration = Duration::from_millis(700);
/// The server behind the router.
const FAR: &str = "198.51.100.10";
const FAR6: &str = "2001:db8:99::10";

fn objects(vlan: u32) -> Objects {
    let mut objects = tenants(2).unwrap();
    for host in &mut objects.hosts {
        host.physical_networks = vec!["physnet1".into()];
    }
    objects.external_networks = vec![ExternalNetwork {
        id: "lan".into(),
        physical_network: "physnet1".into(),
        vlan,
        ..ExternalNetwork::default()
    }];
    for subnet in &mut objects.subnets {
        if subnet.vpc == "blue" {
            subnet.external_network = "lan".into();
        }
    }
    objects
}

fn options(interface: &str) -> SiteOptions {
    let on = |host: &str| (host.to_owned(), interface.to_owned());
    SiteOptions {
        externals: BTreeMap::from([on("h1"), on("h2")]),
        ..SiteOptions::default()
    }
}

fn on_site(
    objects: &Objects,
    options: &SiteOptions,
    body: impl FnOnce(&mut Site) -> Result<(), LabError>,
) {
    let mut site = Site::start(Lab::new().unwrap(), objects, options).unwrap();
    if let Err(error) = body(&mut site).and_then(|()| site.wait_for_frames()) {
        panic!("{}", site.explain(error));
    }
}

/// Makes a namespace the router of the network by its interface there. Answers the server.
fn route(site: &mut Site, router: &Namespace, end: &str) -> Result<Namespace, LabError> {
    let far = site.lab().host("far")?;
    let link = LinkOptions::default();
    site.lab().link((router, "f0"), (&far, "f0"), link)?;
    let line = [
        "sysctl",
        "-qw",
        "net.ipv4.ip_forward=1",
        "net.ipv6.conf.all.forwarding=1",
    ];
    router.run(&line)?;
    for address in [
        "10.0.1.1/24",
        "10.0.2.1/24",
        "fd00:1::1/64 nodad",
        "fd00:2::1/64 nodad",
    ] {
        router.ip(&format!("address add {address} dev {end}"))?;
    }
    for (namespace, line) in [
        (router, "address add 198.51.100.1/24 dev f0"),
        (router, "address add 2001:db8:99::1/64 dev f0 nodad"),
        (&far, "address add 198.51.100.10/24 dev f0"),
        (&far, "address add 2001:db8:99::10/64 dev f0 nodad"),
        (&far, "route add default via 198.51.100.1"),
        (&far, "-6 route add default via 2001:db8:99::1"),
    ] {
        namespace.ip(line)?;
    }
    Ok(far)
}

fn failed(what: &'static str) -> impl FnOnce(std::io::Error) -> LabError {
    move |source| LabError::Io {
        what: what.to_owned(),
        source,
    }
}

fn reaches(site: &Site, from: &str, address: &str) -> Result<(), LabError> {
    wait_until(&format!("{from} reaches {address}"), SOON, || {
        site.reaches(from, address, 2)
    })
}

fn namespace(site: &Site, port: &str) -> Namespace {
    site.workloads[port].namespace.clone()
}

fn at(address: &str, port: u16) -> SocketAddr {
    SocketAddr::new(address.parse().unwrap(), port)
}

/// What passes on the network, whatever carries it: `far` is the server behind its router.
fn all_passes(site: &Site, far: &Namespace) -> Result<(), LabError> {
    let (one, two) = (namespace(site, "blue-1"), namespace(site, "blue-2"));
    for (gateway, server, neighbour, routed) in [
        ("10.0.1.1", FAR, "10.0.1.12", "10.0.2.20"),
        ("fd00:1::1", FAR6, "fd00:1::12", "fd00:2::20"),
    ] {
        for to in [gateway, server, neighbour] {
            reaches(site, "blue-1", to)?;
        }
        // Between two subnets of the VPC the network's router routes, and not weft.
        reaches(site, "blue-1", routed)?;
        reaches(site, "blue-b", neighbour)?;
        let server = at(server, 8080);
        tcp_exchange(&one, far, server, 300_000)?;
        udp_translated(&one, server, far, server)?;
        let neighbour = at(neighbour, 8080);
        tcp_exchange(&one, &two, neighbour, 300_000)?;
    }
    for ipv6 in [false, true] {
        let own = site.service("blue-1", ipv6, 8081)?;
        tcp_exchange(far, &one, own, 300_000)?;
        tcp_exchange(&two, &one, own, 300_000)?;
    }
    Ok(())
}

fn allow(protocol: &str, port: u32) -> SecurityRule {
    SecurityRule {
        direction: "ingress".into(),
        protocol: protocol.into(),
        port_min: Some(port),
        port_max: Some(port),
        ..SecurityRule::default()
    }
}

#[test]
fn ports_of_two_hosts_are_on_one_flat_network_with_its_router() {
    on_site(&objects(0), &options("x0"), |site| {
        let router = site.outside.clone().unwrap();
        let far = route(site, &router, SEGMENT)?;
        all_passes(site, &far)?;
        // No tunnel has carried any of it, while the other tenant's carry as ever.
        for host in ["h1", "h2"] {
            let said = site.node(host, &["drops"])?;
            holds(&said, !said.contains("unknown_vni"))?;
        }
        holds("red has its tunnels", site.pings("red-1", "red-2"))?;
        let port = ["trace", "--port", "blue-1", "--dst", FAR];
        let refused = site.node("h1", &port).unwrap_err().to_string();
        holds(&refused, refused.contains("set --dst-mac"))?;
        let station = [&port[..], &["--dst-mac", "0a:00:00:00:00:01"]].concat();
        let said = site.node("h1", &station)?;
        let way = "the wire of external network lan";
        holds(&said, said.contains(way))?;
        let listed = site.ctl(&["subnet", "list"])?;
        holds(&listed, listed.contains("lan"))?;
        // Groups: what no rule admits does not come, whoever sends it.
        let own = at("10.0.1.11", 8080);
        site.change(|objects| {
            let blue = objects
                .security_groups
                .iter_mut()
                .find(|group| group.id == "blue");
            blue.unwrap().rules = vec![allow("tcp", 8080)];
        })?;
        let one = namespace(site, "blue-1");
        tcp_exchange(&far, &one, own, 100_000)?;
        let listener = one.enter(|| std::net::TcpListener::bind(at("10.0.1.11", 8082)));
        let _listener = listener?.map_err(failed("a server"))?;
        for from in [&far, &router, &namespace(site, "blue-2")] {
            let connects = tcp_connects(from, at("10.0.1.11", 8082), NEVER)?;
            holds("a port that no rule admits is closed", !connects)?;
        }
        holds("nor does a ping come", !router.pings("10.0.1.11", 1))?;
        Ok(())
    });
}

#[test]
fn broadcast_passes_from_the_wire_and_to_it() {
    on_site(&objects(0), &options("x0"), |site| {
        let router = site.outside.clone().unwrap();
        router.ip(&format!("address add 10.0.1.1/24 dev {SEGMENT}"))?;
        let socket = |namespace: &Namespace| -> Result<UdpSocket, LabError> {
            let bound = namespace.enter(|| -> std::io::Result<UdpSocket> {
                let socket = UdpSocket::bind(at("0.0.0.0", 9999))?;
                socket.set_broadcast(true)?;
                socket.set_read_timeout(Some(Duration::from_millis(200)))?;
                Ok(socket)
            })?;
            bound.map_err(failed("a socket"))
        };
        let ends = [
            router.clone(),
            namespace(site, "blue-1"),
            namespace(site, "blue-2"),
        ];
        let sockets: Vec<UdpSocket> = ends.iter().map(socket).collect::<Result<_, _>>()?;
        let red = socket(&namespace(site, "red-1"))?;
        for (sender, from) in sockets.iter().enumerate() {
            let marker = format!("from {sender}");
            for (receiver, to) in sockets.iter().enumerate().filter(|(at, _)| *at != sender) {
                wait_until(&format!("{receiver} hears {sender}"), SOON, || {
                    from.send_to(marker.as_bytes(), at("10.0.1.255", 9999))
                        .unwrap();
                    let mut buffer = [0; 64];
                    while let Ok((len, _)) = to.recv_from(&mut buffer) {
                        if buffer[..len] == *marker.as_bytes() {
                            return true;
                        }
                    }
                    false
                })?;
            }
        }
        holds(
            "another tenant hears nothing",
            red.recv_from(&mut [0; 64]).is_err(),
        )
    });
}

/// The same frame in a VLAN (IEEE 802.1Q §9.6).
fn tagged(mut frame: Vec<u8>, vlan: u16) -> Vec<u8> {
    let [high, low] = vlan.to_be_bytes();
    frame.splice(12..12, [0x81, 0, high, low]);
    frame
}

fn octets(text: &str) -> [u8; 4] {
    text.parse::<Ipv4Addr>().unwrap().octets()
}

/// An ARP answer (RFC 826).
fn arp_answer((mac, from): ([u8; 6], &str), (to_mac, to): ([u8; 6], [u8; 4])) -> Vec<u8> {
    let mut frame = [to_mac, mac].concat();
    frame.extend([8, 6, 0, 1, 8, 0, 6, 4, 0, 2]);
    frame.extend(mac);
    frame.extend(octets(from));
    frame.extend(to_mac);
    frame.extend(to);
    frame
}

/// The kernel here has no VLAN device, so the outside speaks for itself, on a link to the bridge. A bridge passes tags as they are.
#[test]
fn ports_of_two_hosts_are_on_one_vlan_and_no_other() {
    on_site(&objects(42), &options("x0"), |site| {
        let outside = site.outside.clone().unwrap();
        let peer = site.lab().host("peer")?;
        let link = LinkOptions::default();
        site.lab().link((&outside, "e-peer"), (&peer, "v0"), link)?;
        outside.ip(&format!("link set e-peer master {SEGMENT}"))?;
        // A tag that lies beside the frame does not reach an XDP program.
        for end in ["e-h1", "e-h2", "e-peer"] {
            outside.offloads(end, "txvlan off")?;
        }
        reaches(site, "blue-1", "10.0.1.12")?;
        reaches(site, "blue-2", "fd00:1::11")?;
        let (one, two) = (namespace(site, "blue-1"), namespace(site, "blue-2"));
        tcp_exchange(&one, &two, site.service("blue-2", false, 8080)?, 300_000)?;

        // Somebody else of the VLAN: asked by ARP, and a datagram either way.
        let mut capture = Capture::start(&peer, "v0", "")?;
        let wire = RawSocket::open(&peer, "v0")?;
        let (ours, address) = ([2, 0, 0, 0, 0x77, 1], "10.0.1.99");
        let own = site.service("blue-1", false, 7777)?;
        let server = one
            .enter(|| UdpSocket::bind(own))?
            .map_err(failed("a server"))?;
        let timeout = server.set_read_timeout(Some(SOON));
        timeout.map_err(failed("a server"))?;
        wait_until("a datagram comes out", SOON, || {
            let _ = server.send_to(b"question", at(address, 9));
            let frame = wire.receive(NEVER, |_| true).unwrap_or_default();
            let asks =
                frame.get(12..14) == Some(&[8, 6]) && frame.get(38..42) == Some(&octets(address));
            if asks {
                let (mac, from) = (&frame[22..28], &frame[28..32]);
                let asker = (mac.try_into().unwrap(), from.try_into().unwrap());
                let _ = wire.send(&tagged(arp_answer((ours, address), asker), 42));
            }
            frame.windows(8).any(|part| part == b"question")
        })?;
        let to = one.mac("eth0")?;
        let datagram = |payload: &[u8]| {
            let builder = etherparse::PacketBuilder::ethernet2(ours, to)
                .ipv4(octets(address), octets("10.0.1.11"), 64)
                .udp(9, 7777);
            let mut frame = Vec::new();
            builder.write(&mut frame, payload).unwrap();
            frame
        };
        wire.send(&datagram(b"untagged"))?;
        wire.send(&tagged(datagram(b"in another"), 43))?;
        wire.send(&tagged(datagram(b"in its VLAN"), 42))?;
        let mut buffer = [0; 64];
        let (len, from) = server
            .recv_from(&mut buffer)
            .map_err(failed("a datagram"))?;
        holds(
            "it is the one in its VLAN",
            buffer[..len] == *b"in its VLAN",
        )?;
        holds("from its sender", from == at(address, 9))?;
        capture.stop()?;
        let macs = "eth.src == 02:00:00:00:01:11 && (arp || udp)";
        let tags = capture.decode(macs, &["vlan.id"])?;
        holds(
            &format!("all that the port sends has the tag: {tags:?}"),
            !tags.is_empty() && tags.iter().all(|tag| tag == "42"),
        )
    });
}

/// The physical network is the underlay, of which one VLAN is theirs.
#[test]
fn an_uplink_that_the_host_uses_too_may_have_ports_in_a_vlan() {
    on_site(&objects(42), &options("u0"), |site| {
        reaches(site, "blue-1", "10.0.1.12")?;
        reaches(site, "blue-2", "fd00:1::11")?;
        let (one, two) = (namespace(site, "blue-1"), namespace(site, "blue-2"));
        tcp_exchange(&one, &two, site.service("blue-2", false, 8080)?, 300_000)?;
        holds("tunnels work", site.pings("red-1", "red-2"))?;
        let h1 = site.hosts["h1"].namespace.clone();
        holds("and the hosts' own traffic", h1.pings("192.0.2.2", 2))
    });
}

#[test]
fn a_guest_that_asks_by_dhcp_is_told_its_address_and_the_router_of_the_network() {
    // What weft answers, the behaviours have; here it is that the question does not reach the wire.
    on_site(&objects(0), &options("x0"), |site| {
        let router = site.outside.clone().unwrap();
        let wire = RawSocket::open(&router, SEGMENT)?;
        let one = namespace(site, "blue-1");
        let guest = RawSocket::open(&one, "eth0")?;
        let mac = one.mac("eth0")?;
        let mut message = vec![1, 1, 6, 0, 9, 9, 9, 9];
        message.resize(28, 0);
        message.extend(mac);
        message.resize(236, 0);
        message.extend([99, 130, 83, 99, 53, 1, 1, 255]);
        let builder = etherparse::PacketBuilder::ethernet2(mac, [0xff; 6])
            .ipv4([0; 4], [255; 4], 64)
            .udp(68, 67);
        let mut frame = Vec::new();
        builder.write(&mut frame, &message).unwrap();
        let is_answer = |frame: &[u8]| frame.get(34..38) == Some(&[0, 67, 0, 68]);
        guest.send(&frame)?;
        let answer = guest.receive(SOON, is_answer).unwrap_or_default();
        holds("an offer", answer.get(58..62) == Some(&[10, 0, 1, 11]))?;
        let is_question = |frame: &[u8]| frame.get(34..38) == Some(&[0, 68, 0, 67]);
        holds(
            "not on the wire",
            wire.receive(NEVER, is_question).is_none(),
        )?;
        Ok(())
    });
}
