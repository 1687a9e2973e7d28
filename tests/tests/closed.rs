//! The guard between guests and the host's own stack does not depend on weftd: the host's stack answers no packet of a guest before weftd
//! has started, while it runs, after it is killed, stopped or restarted, and while the interface is renamed, moved or created again. The
//! host's traffic on its uplinks passes all the time.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::net::{Ipv6Addr, TcpListener};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use weft_dataplane::port::Programs;
use weft_proto::v1::Device;
use weft_tests::site::program;
use weft_tests::xdp_detach::{Attached, Hook};
use weft_tests::{
    Lab, LabError, LinkOptions, Namespace, RawSocket, Site, SiteOptions, TapEnd, tenants,
    wait_until,
};

const SOON: Duration = Duration::from_secs(10);
const HOST: [u8; 4] = [198, 18, 0, 1];
const GUEST: [u8; 4] = [198, 18, 0, 2];
const GUEST6: &str = "fe80::2";
const TCP: u16 = 7000;
/// Rounds of all probes after which a phase has seen enough.
const ENOUGH: u32 = 100;

type Mac = [u8; 6];

fn text(mac: Mac) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

/// The link-local address that Linux makes of a MAC (RFC 4291, appendix A).
fn link_local(mac: Mac) -> [u8; 16] {
    let [a, b, c, d, e, f] = mac;
    [
        0xfe,
        0x80,
        0,
        0,
        0,
        0,
        0,
        0,
        a ^ 2,
        b,
        c,
        0xff,
        0xfe,
        d,
        e,
        f,
    ]
}

fn checksum(parts: &[&[u8]]) -> [u8; 2] {
    let bytes = parts.concat();
    let words = bytes.chunks(2);
    let mut sum: u32 = words
        .map(|word| u32::from(u16::from_be_bytes([word[0], *word.get(1).unwrap_or(&0)])))
        .sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    (!(sum as u16)).to_be_bytes()
}

fn ethernet(to: Mac, from: Mac, kind: u16, payload: &[u8]) -> Vec<u8> {
    [&to[..], &from, &kind.to_be_bytes(), payload].concat()
}

fn ipv4(to: [u8; 4], protocol: u8, payload: &[u8]) -> Vec<u8> {
    let len = (20 + payload.len()) as u16;
    let mut header = vec![0x45, 0];
    header.extend(len.to_be_bytes());
    header.extend([0, 1, 0, 0, 64, protocol, 0, 0]);
    header.extend(GUEST.iter().chain(&to));
    let sum = checksum(&[&header]);
    header[10..12].copy_from_slice(&sum);
    [&header, payload].concat()
}

fn ipv6(to: [u8; 16], protocol: u8, hops: u8, mut payload: Vec<u8>, sum_at: usize) -> Vec<u8> {
    let from = GUEST6.parse::<Ipv6Addr>().unwrap().octets();
    let len = payload.len() as u16;
    let pseudo = [
        &from[..],
        &to,
        &[0, 0],
        &len.to_be_bytes(),
        &[0, 0, 0, protocol],
    ]
    .concat();
    let sum = checksum(&[&pseudo, &payload]);
    payload[sum_at..sum_at + 2].copy_from_slice(&sum);
    let mut packet = vec![0x60, 0, 0, 0];
    packet.extend(len.to_be_bytes());
    packet.extend([protocol, hops]);
    packet.extend(from.iter().chain(&to));
    [packet, payload].concat()
}

fn echo(kind: u8) -> Vec<u8> {
    let mut message = vec![kind, 0, 0, 0, 0x77, 0x66, 0, 1];
    message.extend([0x5a; 16]);
    message
}

fn syn(port: u16) -> Vec<u8> {
    let mut segment = port.to_be_bytes().to_vec();
    segment.extend(TCP.to_be_bytes());
    segment.extend([0, 0, 0, 1, 0, 0, 0, 0, 0x50, 0x02, 0x20, 0, 0, 0, 0, 0]);
    segment
}

/// What a guest may try at the host end of its link, each with a name.
fn probes(guest: Mac, host: Mac) -> Vec<(&'static str, Vec<u8>)> {
    let all = [0xff; 6];
    let v4 = |to: [u8; 4], mac: Mac, protocol: u8, mut payload: Vec<u8>| {
        if protocol == 1 {
            let sum = checksum(&[&payload]);
            payload[2..4].copy_from_slice(&sum);
        } else {
            let len = (payload.len() as u16).to_be_bytes();
            let sum = checksum(&[&GUEST, &to, &[0, protocol], &len, &payload]);
            payload[16..18].copy_from_slice(&sum);
        }
        ethernet(mac, guest, 0x0800, &ipv4(to, protocol, &payload))
    };
    let v6 = |to: [u8; 16], mac: Mac, protocol: u8, payload: Vec<u8>| {
        let at = if protocol == 58 { 2 } else { 16 };
        ethernet(mac, guest, 0x86dd, &ipv6(to, protocol, 255, payload, at))
    };
    let own = link_local(host);
    let arp = [
        &[0, 1, 8, 0, 6, 4, 0, 1][..],
        &guest,
        &GUEST,
        &[0; 6],
        &HOST,
    ]
    .concat();
    let mut solicitation = vec![135, 0, 0, 0, 0, 0, 0, 0];
    solicitation.extend(own);
    solicitation.extend([1, 1]);
    solicitation.extend(guest);
    let all_nodes: [u8; 16] = "ff02::1".parse::<Ipv6Addr>().unwrap().octets();
    vec![
        ("arp", ethernet(all, guest, 0x0806, &arp)),
        ("ping", v4(HOST, host, 1, echo(8))),
        ("tcp", v4(HOST, host, 6, syn(40_000))),
        (
            "ping of 224.0.0.1",
            v4([224, 0, 0, 1], [1, 0, 0x5e, 0, 0, 1], 1, echo(8)),
        ),
        ("ping of fe80::", v6(own, host, 58, echo(128))),
        ("tcp to fe80::", v6(own, host, 6, syn(40_001))),
        ("nd", v6(own, host, 58, solicitation)),
        (
            "ping of ff02::1",
            v6(all_nodes, [0x33, 0x33, 0, 0, 0, 1], 58, echo(128)),
        ),
    ]
}

/// Which probe a frame of the host answers; or what it is.
fn answers(frame: &[u8]) -> &'static str {
    let kind = u16::from_be_bytes([frame[12], frame[13]]);
    let at = |index: usize| frame.get(index).copied().unwrap_or(0);
    match (kind, at(23), at(34), at(20), at(54)) {
        (0x0806, ..) => "arp",
        (0x0800, 1, 0, ..) => "ping",
        (0x0800, 6, ..) => "tcp",
        (0x86dd, _, _, 58, 129) => "ping of fe80::",
        (0x86dd, _, _, 58, 136) => "nd",
        (0x86dd, _, _, 6, _) => "tcp to fe80::",
        _ => "something else",
    }
}

/// The guest's end of a link.
enum End {
    Veth(RawSocket),
    Tap(TapEnd),
}

impl End {
    fn send(&mut self, frame: &[u8]) {
        // The link may be down, or gone for now.
        let _ = match self {
            Self::Veth(socket) => socket.send(frame),
            Self::Tap(tap) => tap.send([0; 10], frame),
        };
    }

    fn receive(&mut self, mut wanted: impl FnMut(&[u8]) -> bool) -> Option<Vec<u8>> {
        let within = Duration::from_millis(2);
        match self {
            Self::Veth(socket) => socket.receive(within, wanted),
            Self::Tap(tap) => {
                let frame = tap.receive(within, |frame| wanted(frame));
                frame.map(|(_, frame)| frame)
            }
        }
    }
}

/// Sends all probes over and over, and notes every frame that the host's stack sent: those that come from its own MAC, which weftd never uses.
struct Prober {
    stop: Arc<AtomicBool>,
    rounds: Arc<AtomicU32>,
    seen: Arc<Mutex<BTreeMap<&'static str, u32>>>,
    thread: JoinHandle<()>,
}

impl Prober {
    fn start(mut end: End, guest: Mac, host: Mac) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let rounds = Arc::new(AtomicU32::new(0));
        let seen = Arc::new(Mutex::new(BTreeMap::new()));
        let (stopped, counted, noted) = (Arc::clone(&stop), Arc::clone(&rounds), Arc::clone(&seen));
        let thread = thread::spawn(move || {
            let probes = probes(guest, host);
            while !stopped.load(Ordering::Relaxed) {
                for (_, frame) in &probes {
                    end.send(frame);
                }
                while let Some(frame) = end.receive(|frame| frame[6..12] == host) {
                    *noted.lock().unwrap().entry(answers(&frame)).or_insert(0) += 1;
                }
                counted.fetch_add(1, Ordering::Relaxed);
            }
        });
        Self {
            stop,
            rounds,
            seen,
            thread,
        }
    }

    /// Waits for so many rounds more.
    fn go_on(&self) {
        let until = self.rounds.load(Ordering::Relaxed) + ENOUGH;
        wait_until("the probes are sent", SOON, || {
            self.rounds.load(Ordering::Relaxed) >= until
        })
        .unwrap();
    }

    fn end(self) -> BTreeMap<&'static str, u32> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap();
        Arc::into_inner(self.seen).unwrap().into_inner().unwrap()
    }

    /// Whatever `phase` does, the host's stack says nothing.
    fn silent(&self, what: &str, phase: impl FnOnce()) {
        phase();
        self.go_on();
        let seen = self.seen.lock().unwrap();
        assert!(seen.is_empty(), "{what}: {seen:?}");
    }
}

/// Gives the host's end of a link all that a guest could ask for: addresses of both families, the guest as a neighbour, a TCP service.
fn tempt(namespace: &Namespace, interface: &str, guest: Mac) -> TcpListener {
    for setting in [
        format!("net.ipv6.conf.{interface}.disable_ipv6=0"),
        "net.ipv4.icmp_echo_ignore_broadcasts=0".to_owned(),
        format!("net.ipv4.conf.{interface}.accept_local=1"),
        "net.ipv4.icmp_ratelimit=0".to_owned(),
    ] {
        namespace.run(&["sysctl", "-qw", &setting]).unwrap();
    }
    let mac = text(guest);
    for line in [
        format!("link set {interface} up"),
        format!("address replace 198.18.0.1/24 dev {interface}"),
        format!("neigh replace 198.18.0.2 lladdr {mac} dev {interface}"),
        format!("neigh replace {GUEST6} lladdr {mac} dev {interface}"),
    ] {
        namespace.ip(&line).unwrap();
    }
    let bind = || TcpListener::bind(format!("[::]:{TCP}"));
    namespace.enter(bind).unwrap().unwrap()
}

fn weftd(namespace: &Namespace, command: &str, interface: &str) -> String {
    let weftd = program("weftd").unwrap();
    let line = [weftd.to_str().unwrap(), command, interface];
    namespace.run(&line).unwrap()
}

/// The whole set of probes that an open interface answers. Both multicast pings are answered as pings.
const ALL: [&str; 6] = [
    "arp",
    "nd",
    "ping",
    "ping of fe80::",
    "tcp",
    "tcp to fe80::",
];

#[test]
fn an_interface_that_is_guarded_before_it_is_up_is_never_open_until_it_is_released() {
    let mut lab = Lab::new().unwrap();
    let (host, guest) = (lab.host("host").unwrap(), lab.host("guest").unwrap());
    let line = format!(
        "link add p0 type veth peer name eth0 netns {}",
        guest.name()
    );
    host.ip(&line).unwrap();
    assert_eq!(weftd(&host, "guard", "p0"), "p0: closed\n");
    guest.ip("link set eth0 up").unwrap();
    let guest_mac = guest.mac("eth0").unwrap();
    let end = || End::Veth(RawSocket::open(&guest, "eth0").unwrap());
    let prober = Prober::start(end(), guest_mac, host.mac("p0").unwrap());
    prober.silent("not yet up", || ());
    let _service = tempt(&host, "p0", guest_mac);
    prober.silent("guarded", || ());
    prober.silent("guarded twice", || {
        assert_eq!(weftd(&host, "guard", "p0"), "p0: closed\n");
    });
    // Nothing of the host's stack goes out either: this would be a frame of its MAC.
    prober.silent("the host pings the guest", || {
        assert!(!host.pings("198.18.0.2", 1));
    });
    drop(prober.end());
    // That the probes are good.
    assert_eq!(weftd(&host, "release", "p0"), "p0: released\n");
    let prober = Prober::start(end(), guest_mac, host.mac("p0").unwrap());
    wait_until("the host answers all of it", SOON, || {
        let seen = prober.seen.lock().unwrap();
        ALL.iter().all(|kind| seen.contains_key(kind))
    })
    .unwrap();
    drop(prober.end());
    assert_eq!(weftd(&host, "release", "p0"), "p0: was not closed\n");
}

#[test]
fn kernels_before_6_6_close_an_interface_by_a_filter_for_what_arrives() {
    let mut lab = Lab::new().unwrap();
    let (host, guest) = (lab.host("host").unwrap(), lab.host("guest").unwrap());
    let link = LinkOptions::default();
    lab.link((&host, "p0"), (&guest, "eth0"), link).unwrap();
    for _ in 0..2 {
        // By programs of another load each time, as by weftd after a restart.
        let close = || Programs::default().close_by_filter("p0");
        host.enter(close).unwrap().unwrap();
    }
    let guest_mac = guest.mac("eth0").unwrap();
    let _service = tempt(&host, "p0", guest_mac);
    let end = || End::Veth(RawSocket::open(&guest, "eth0").unwrap());
    let prober = Prober::start(end(), guest_mac, host.mac("p0").unwrap());
    prober.go_on();
    // What the host sends by itself is not kept back there.
    let mut seen = prober.end();
    seen.remove("something else");
    assert!(seen.is_empty(), "{seen:?}");
    assert_eq!(weftd(&host, "release", "p0"), "p0: released\n");
    let prober = Prober::start(end(), guest_mac, host.mac("p0").unwrap());
    wait_until("the host answers all of it", SOON, || {
        let seen = prober.seen.lock().unwrap();
        ALL.iter().all(|kind| seen.contains_key(kind))
    })
    .unwrap();
    drop(prober.end());
}

fn explained(site: &mut Site, body: impl FnOnce(&mut Site) -> Result<(), LabError>) {
    if let Err(error) = body(site) {
        panic!("{}", site.explain(error));
    }
}

fn kill(site: &mut Site) {
    let mut daemon = site.hosts.get_mut("h1").unwrap().daemon.take().unwrap();
    daemon.signal(libc::SIGKILL);
    daemon.wait(SOON).unwrap();
}

fn stop(site: &mut Site) {
    let mut daemon = site.hosts.get_mut("h1").unwrap().daemon.take().unwrap();
    assert_eq!(daemon.stop(SOON).unwrap().code(), Some(0));
}

/// What the status says of a port of h1.
fn port(site: &Site, id: &str) -> serde_json::Value {
    let status = site.node_json("h1", &["node", "status"]);
    let ports = status.unwrap_or_default()["ports"].take();
    let mut ports = ports.as_array().cloned().unwrap_or_default().into_iter();
    ports.find(|port| port["port"] == id).unwrap_or_default()
}

fn up(site: &Site, id: &str) {
    wait_until("the port is up", SOON, || port(site, id)["up"] == true).unwrap();
}

/// Starts, kills and stops weftd in every way, while a guest probes.
fn ways_to_end(site: &mut Site, id: &str, prober: &Prober) {
    let host = site.hosts["h1"].namespace.clone();
    let own = || assert!(host.pings("192.0.2.2", 2), "the host's own traffic");
    prober.silent("running", own);
    prober.silent("killed", || {
        kill(site);
        own();
    });
    prober.silent("restarted again and again", || {
        for _ in 0..5 {
            site.start_daemon("h1").unwrap();
            up(site, id);
            own();
            kill(site);
        }
    });
    prober.silent("stopped", || {
        site.start_daemon("h1").unwrap();
        up(site, id);
        stop(site);
        own();
    });
    prober.silent("back", || {
        site.start_daemon("h1").unwrap();
        up(site, id);
        own();
    });
}

#[test]
fn no_packet_of_a_container_is_answered_by_the_host_whatever_happens_to_weftd_or_the_interface() {
    let mut lab = Lab::new().unwrap();
    let elsewhere = lab.host("elsewhere").unwrap();
    let mut site = Site::start(lab, &tenants(2).unwrap(), &SiteOptions::default()).unwrap();
    explained(&mut site, |site| {
        let host = site.hosts["h1"].namespace.clone();
        let guest = site.workloads["blue-1"].namespace.clone();
        let guest_mac = guest.mac("eth0")?;
        let host_mac = host.mac("p-blue-1")?;
        let own = || assert!(host.pings("192.0.2.2", 2), "the host's own traffic");
        let end = || RawSocket::open(&guest, "eth0").map(End::Veth);
        let _service = tempt(&host, "p-blue-1", guest_mac);
        let prober = Prober::start(end()?, guest_mac, host_mac);
        ways_to_end(site, "blue-1", &prober);

        let pid = site.hosts["h1"].daemon.as_ref().unwrap().pid();
        for hook in [Hook::Xdp, Hook::Tcx] {
            let attached = Attached {
                pid,
                namespace: &host,
                interface: "p-blue-1",
                hook,
            };
            prober.silent("one of its programs is taken off", || {
                attached.take_off().unwrap();
                wait_until("it is back", SOON, || attached.is_there()).unwrap();
            });
        }
        up(site, "blue-1");

        prober.silent("renamed and back", || {
            host.ip("link set p-blue-1 name q0").unwrap();
            wait_until("the port is down and says why", SOON, || {
                let port = port(site, "blue-1");
                port["up"] != true && port["reason"].to_string().contains("no such interface")
            })
            .unwrap();
            tempt_again(&host, "q0", guest_mac);
            own();
            prober.go_on();
            host.ip("link set q0 name p-blue-1").unwrap();
            up(site, "blue-1");
        });
        prober.silent("moved elsewhere and back", || {
            let move_to = |from: &Namespace, to: &Namespace| {
                let line = format!("link set p-blue-1 netns {}", to.name());
                from.ip(&line).unwrap();
            };
            move_to(&host, &elsewhere);
            let _there = tempt(&elsewhere, "p-blue-1", guest_mac);
            prober.go_on();
            own();
            assert_ne!(port(site, "blue-1")["up"], true);
            move_to(&elsewhere, &host);
            tempt_again(&host, "p-blue-1", guest_mac);
            up(site, "blue-1");
        });
        drop(prober.end());

        // Made again while weftd is gone: closed before it is up, by the command; and from then on.
        kill(site);
        host.ip("link delete p-blue-1")?;
        let line = format!(
            "link add p-blue-1 mtu 1430 type veth peer name eth0 address {} mtu 1430 netns {}",
            text(guest_mac),
            guest.name()
        );
        host.ip(&line)?;
        weftd(&host, "guard", "p-blue-1");
        guest.ip("link set eth0 up")?;
        tempt_again(&host, "p-blue-1", guest_mac);
        let prober = Prober::start(end()?, guest_mac, host.mac("p-blue-1")?);
        prober.silent("made again, guarded by hand", own);
        site.start_daemon("h1")?;
        up(site, "blue-1");
        prober.silent("taken over", own);
        drop(prober.end());

        // Made again under weftd without the command: closed as soon as weftd has seen it.
        host.ip("link delete p-blue-1")?;
        wait_until("the port is down", SOON, || {
            port(site, "blue-1")["up"] != true
        })?;
        host.ip(&line)?;
        guest.ip("link set eth0 up")?;
        tempt_again(&host, "p-blue-1", guest_mac);
        up(site, "blue-1");
        let prober = Prober::start(end()?, guest_mac, host.mac("p-blue-1")?);
        prober.silent("made again", own);

        // A port that is gone from the state stays closed.
        let before = site.objects.clone();
        prober.silent("removed from the state", || {
            site.change(|objects| objects.ports.retain(|port| port.id != "blue-1"))
                .unwrap();
            wait_until("it is no port any more", SOON, || {
                port(site, "blue-1").is_null()
            })
            .unwrap();
        });
        drop(prober.end());
        weftd(&host, "release", "p-blue-1");
        let prober = Prober::start(end()?, guest_mac, host.mac("p-blue-1")?);
        wait_until("the host answers", SOON, || {
            !prober.seen.lock().unwrap().is_empty()
        })?;
        drop(prober.end());
        site.change(|objects| *objects = before)?;
        up(site, "blue-1");
        for address in ["10.0.1.11/24", "fd00:1::11/64"] {
            guest.ip(&format!("address add {address} dev eth0"))?;
        }
        wait_until("the port works", SOON, || site.pings("blue-1", "blue-2"))
    });
}

/// As [`tempt`], for an interface that lost its addresses; the service is another's.
fn tempt_again(namespace: &Namespace, interface: &str, guest: Mac) {
    let mac = text(guest);
    for line in [
        format!("link set {interface} up"),
        format!("address replace 198.18.0.1/24 dev {interface}"),
        format!("neigh replace 198.18.0.2 lladdr {mac} dev {interface}"),
        format!("neigh replace {GUEST6} lladdr {mac} dev {interface}"),
    ] {
        // A link that is down or has no IPv6 takes no neighbours.
        let _ = namespace.ip(&line);
    }
    let setting = format!("net.ipv6.conf.{interface}.disable_ipv6=0");
    namespace.run(&["sysctl", "-qw", &setting]).unwrap();
}

#[test]
fn no_packet_of_a_virtual_machine_is_answered_by_the_host_whatever_happens_to_weftd() {
    let mut site = Site::start(
        Lab::new().unwrap(),
        &tenants(2).unwrap(),
        &SiteOptions::default(),
    )
    .unwrap();
    explained(&mut site, |site| {
        let host = site.hosts["h1"].namespace.clone();
        let guest_mac = [2, 0, 0, 0, 1, 0x77];
        let mut tap = site.objects.ports[0].clone();
        (tap.id, tap.host, tap.mac) = ("blue-tap".into(), "h1".into(), text(guest_mac));
        tap.addresses = vec!["10.0.1.77".into()];
        tap.device = Some(Device {
            kind: "tap".into(),
            name: "t0".into(),
            ..Device::default()
        });
        site.change(|objects| objects.ports.push(tap))?;
        wait_until("weftd makes the tap", SOON, || host.mac("t0").is_ok())?;
        let far = TapEnd::of(&host, "t0")?;
        up(site, "blue-tap");
        let _service = tempt(&host, "t0", guest_mac);
        let prober = Prober::start(End::Tap(far), guest_mac, host.mac("t0")?);
        ways_to_end(site, "blue-tap", &prober);
        // Deleted and made again by weftd: it is closed before it is up.
        drop(prober.end());
        host.ip("link delete t0")?;
        wait_until("weftd makes the tap again", SOON, || host.mac("t0").is_ok())?;
        let far = TapEnd::of(&host, "t0")?;
        tempt_again(&host, "t0", guest_mac);
        let prober = Prober::start(End::Tap(far), guest_mac, host.mac("t0")?);
        prober.silent("made again", || up(site, "blue-tap"));
        drop(prober.end());
        Ok(())
    });
}

#[test]
fn an_uplink_that_is_closed_as_ports_are_is_refused_by_name() {
    let mut lab = Lab::new().unwrap();
    let (host, peer) = (lab.host("host").unwrap(), lab.host("peer").unwrap());
    lab.link((&host, "u0"), (&peer, "u0"), LinkOptions::default())
        .unwrap();
    weftd(&host, "guard", "u0");
    let directory = std::env::temp_dir().join(host.name());
    std::fs::create_dir_all(&directory).unwrap();
    let config = directory.join("weftd.toml");
    std::fs::write(directory.join("state.yaml"), "{}").unwrap();
    let lines = format!(
        "host = 'h1'\nstate_file = '{0}/state.yaml'\nstate_directory = '{0}'\nsocket = '{0}/sock'\nuplinks = [{{ interface = 'u0' }}]\n",
        directory.display()
    );
    std::fs::write(&config, lines).unwrap();
    let line = ["--config".as_ref(), config.as_os_str()];
    let mut daemon = host.spawn(program("weftd").unwrap(), &line).unwrap();
    assert_eq!(daemon.wait(SOON).unwrap().code(), Some(1));
    assert!(
        daemon.log().contains("weftd release u0"),
        "{}",
        daemon.log()
    );
}
