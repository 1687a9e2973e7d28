//! Trunk ports with real processes: one guest with one device, on which VLANs are ports of two VPCs. A VLAN's own part of the guest is a namespace, whose interface
//! stands for a VLAN device.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::Duration;

use weft_proto::v1::{Objects, Port, Trunk};
use weft_tests::traffic::tcp_exchange;
use weft_tests::vlan::{Vlan, tagged};
use weft_tests::{
    GuestKind, Lab, LabError, Namespace, RawSocket, Site, SiteOptions, Workload, holds,
    put_in_guests, tenants, topology, wait_until,
};

const SOON: Duration = Duration::from_secs(10);
/// What does not come within this does not come.
const NEVER: Duration = Duration::from_millis(700);
/// The VLANs of red-1, which has the MAC and the addresses of its parent blue-1, and of blue-s, which is in the parent's VPC.
const RED: u32 = 100;
const SIDE: u32 = 200;

const MORE: &str = r#"
ports:
  - {id: blue-s, vpc: blue, subnet: blue-b, host: h1, mac: "02:00:00:00:02:31", addresses: [10.0.2.31, "fd00:2::31"], trunk: {parent: blue-1, vlan: 200}}
"#;

fn port<'o>(objects: &'o mut Objects, id: &str) -> &'o mut Port {
    let mut ports = objects.ports.iter_mut();
    ports.find(|port| port.id == id).unwrap()
}

fn objects() -> Objects {
    let mut objects = tenants(2).unwrap();
    objects.ports.extend(topology(MORE).unwrap().ports);
    let red = port(&mut objects, "red-1");
    red.device = None;
    red.trunk = Some(Trunk {
        parent: "blue-1".into(),
        vlan: RED,
    });
    objects
}

/// What the test runs on, and the guest's VLANs.
struct Scene {
    site: Site,
    vlans: BTreeMap<u32, Vlan>,
}

fn on_site(
    change: impl FnOnce(&mut Objects),
    body: impl FnOnce(&mut Scene) -> Result<(), LabError>,
) {
    let mut objects = objects();
    change(&mut objects);
    // Subports and their parent are of different workers.
    let options = SiteOptions {
        cores: vec![vec![0, 1], vec![0]],
        ..SiteOptions::default()
    };
    let site = Site::start(Lab::new().unwrap(), &objects, &options).unwrap();
    let mut scene = Scene {
        site,
        vlans: BTreeMap::new(),
    };
    let done = scene
        .enter("red-1", RED)
        .and_then(|()| scene.enter("blue-s", SIDE))
        .and_then(|()| body(&mut scene))
        .and_then(|()| scene.site.wait_for_frames());
    if let Err(error) = done {
        panic!("{}", scene.site.explain(error));
    }
}

impl Scene {
    /// The guest brings up a VLAN, with the addresses of the port that it is.
    fn enter(&mut self, id: &str, vlan: u32) -> Result<(), LabError> {
        let port = port(&mut self.site.objects, id).clone();
        let parent = self.namespace("blue-1");
        let inside = self.site.lab().host(id)?;
        let stands_for = Vlan::start((&parent, "eth0"), vlan as u16, &inside)?;
        self.vlans.insert(vlan, stands_for);
        inside.ip(&format!("link set eth0 address {} mtu 1430", port.mac))?;
        for address in &port.addresses {
            let (length, subnet) = match address.rsplit_once(':') {
                Some(_) => (
                    "64 nodad",
                    address.replace("::31", "::1").replace("::11", "::1"),
                ),
                None => ("24", address.replace(".31", ".1").replace(".11", ".1")),
            };
            let (length, how) = length.split_once(' ').unwrap_or((length, ""));
            inside.ip(&format!("address add {address}/{length} dev eth0 {how}"))?;
            let family = if address.contains(':') { "-6" } else { "-4" };
            inside.ip(&format!("{family} route add default via {subnet} dev eth0"))?;
        }
        let workload = Workload {
            namespace: inside,
            port: String::new(),
        };
        self.site.workloads.insert(id.to_owned(), workload);
        Ok(())
    }

    fn namespace(&self, port: &str) -> Namespace {
        self.site.workloads[port].namespace.clone()
    }

    fn pings(&self, from: &str, to: &str) -> Result<(), LabError> {
        wait_until(&format!("{from} reaches {to}"), SOON, || {
            self.site.pings(from, to)
        })
    }

    fn all_pass(&self) -> Result<(), LabError> {
        for (from, to) in [
            ("blue-1", "blue-2"),
            ("blue-2", "blue-1"),
            ("red-1", "red-2"),
            ("red-2", "red-1"),
            ("blue-s", "blue-b"),
            ("blue-b", "blue-s"),
            // By way of the gateway, on one device both ways.
            ("blue-1", "blue-s"),
            ("blue-s", "blue-1"),
            ("blue-s", "blue-2"),
        ] {
            self.pings(from, to)?;
        }
        Ok(())
    }

    /// What a host's daemon says of one of its ports.
    fn status(&self, port: &str) -> serde_json::Value {
        let status = self.site.node_json("h1", &["node", "status"]).unwrap();
        let ports = status["ports"].as_array().unwrap();
        let of_port = |it: &&serde_json::Value| it["port"] == port;
        ports.iter().find(of_port).unwrap().clone()
    }

    fn drops(&self, reason: &str) -> u64 {
        let drops = self.site.node_json("h1", &["drops"]).unwrap();
        let rows = drops["reasons"].as_array().unwrap();
        let rows = rows.iter().filter(|row| row["reason"] == reason);
        let packets = rows.filter_map(|row| {
            let text = row["packets"].as_str();
            row["packets"].as_u64().or_else(|| text?.parse().ok())
        });
        packets.sum()
    }
}

const GROUP: [u8; 4] = [239, 9, 9, 9];

/// The Internet checksum (RFC 1071).
fn checksum(bytes: &[u8]) -> [u8; 2] {
    let words = bytes
        .chunks(2)
        .map(|it| u32::from(it[0]) << 8 | u32::from(it[1]));
    let mut sum: u32 = words.sum();
    while sum >> 16 != 0 {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    (!(sum as u16)).to_be_bytes()
}

/// A message of IGMPv2 about the group (RFC 2236), with a router alert.
fn igmp(from: &Port, kind: u8) -> Vec<u8> {
    let mac = weft_proto::address::parse_mac(&from.mac).unwrap();
    let IpAddr::V4(source) = from.addresses[0].parse().unwrap() else {
        unreachable!("its first address is of IPv4");
    };
    let mut ip = vec![0x46, 0, 0, 32, 0, 0, 0, 0, 1, 2, 0, 0];
    ip.extend(source.octets());
    ip.extend(GROUP);
    ip.extend([0x94, 4, 0, 0]);
    let sum = checksum(&ip);
    ip[10..12].copy_from_slice(&sum);
    let mut message = vec![kind, 0, 0, 0];
    message.extend(GROUP);
    let sum = checksum(&message);
    message[2..4].copy_from_slice(&sum);
    let mut frame = vec![1, 0, 0x5e, 9, 9, 9];
    frame.extend(mac);
    frame.extend([8, 0]);
    [frame, ip, message].concat()
}

fn bound(namespace: &Namespace, address: IpAddr) -> Result<UdpSocket, LabError> {
    let open = || UdpSocket::bind(SocketAddr::new(address, 7777));
    namespace.enter(open)?.map_err(LabError::io("a socket"))
}

/// Whether a datagram comes in time, and this one.
fn hears(socket: &UdpSocket, within: Duration, wanted: &[u8]) -> bool {
    let mut buffer = [0; 64];
    socket.set_read_timeout(Some(within)).unwrap();
    matches!(socket.recv(&mut buffer), Ok(len) if buffer[..len] == *wanted)
}

#[test]
fn one_device_is_in_two_vpcs_and_nothing_crosses_between_them() {
    on_site(
        |_| {},
        |scene| {
            scene.all_pass()?;
            for (id, device) in [("red-1", "blue-1:100"), ("blue-s", "blue-1:200")] {
                let status = scene.status(id);
                holds(&status.to_string(), status["device"] == device)?;
                holds(&status.to_string(), status["up"] == true)?;
            }
            let listed = scene.site.ctl(&["port", "list"])?;
            holds(&listed, listed.contains("blue-1:100"))?;
            for (client, server) in [("red-1", "red-2"), ("red-2", "red-1"), ("blue-b", "blue-s")] {
                for ipv6 in [false, true] {
                    let address = scene.site.address(server, ipv6).unwrap();
                    let (from, to) = (scene.namespace(client), scene.namespace(server));
                    tcp_exchange(&from, &to, SocketAddr::new(address, 8080), 500_000)?;
                }
            }
            // The same addresses in both VPCs, on both ends.
            let far: IpAddr = "10.0.1.12".parse().unwrap();
            let near: IpAddr = "10.0.1.11".parse().unwrap();
            let [blue, red] = ["blue", "red"].map(|vpc| {
                let (from, to) = (format!("{vpc}-1"), format!("{vpc}-2"));
                (scene.namespace(&from), scene.namespace(&to))
            });
            let receivers = [bound(&blue.1, far)?, bound(&red.1, far)?];
            let senders = [bound(&blue.0, near)?, bound(&red.0, near)?];
            for (n, sender) in senders.iter().enumerate() {
                let said = [b"blue", &b"red!"[..]][n];
                let sent = sender.send_to(said, SocketAddr::new(far, 7777));
                sent.map_err(LabError::io("a datagram"))?;
                holds("its own VPC hears it", hears(&receivers[n], SOON, said))?;
                holds("the other does not", !hears(&receivers[1 - n], NEVER, said))?;
            }
            let stats = scene.site.node_json("h1", &["stats"])?;
            let rows = stats["ports"].as_array().unwrap();
            for id in ["blue-1", "red-1", "blue-s"] {
                let row = rows.iter().find(|row| row["port"] == id).unwrap();
                for count in ["rx_packets", "tx_packets", "rx_bytes", "tx_bytes"] {
                    let text = row[count].to_string();
                    let some = text.trim_matches('"').parse().is_ok_and(|it: u64| it > 500);
                    holds(&format!("{id}: {row}"), some || id == "blue-1")?;
                }
            }
            // A tag that is nobody's.
            let raw = RawSocket::open(&blue.0, "eth0")?;
            let before = scene.drops("unknown_vlan");
            for _ in 0..5 {
                raw.send(&tagged(&[0xff; 60], 9))?;
            }
            wait_until("they are dropped by name", SOON, || {
                scene.drops("unknown_vlan") == before + 5
            })
        },
    );
}

#[test]
fn a_subport_is_leased_its_address_and_asked_what_it_has_joined() {
    let snoop = |objects: &mut Objects| {
        for subnet in &mut objects.subnets {
            subnet.multicast = "snooping".into();
        }
    };
    on_site(snoop, |scene| {
        // What the host itself sends to a port has its tag, too.
        for id in ["red-1", "blue-s"] {
            let member = port(&mut scene.site.objects, id).clone();
            let raw = RawSocket::open(&scene.namespace(id), "eth0")?;
            // Who has joined and leaves is asked whether another of its guest stays.
            for kind in [0x16, 0x17] {
                raw.send(&igmp(&member, kind))?;
            }
            let is_query = |frame: &[u8]| {
                let igmp = frame.get(38..46);
                frame[12..14] == [8, 0] && igmp.is_some_and(|it| it[0] == 0x11 && it[4..] == GROUP)
            };
            holds("the querier asks", raw.receive(SOON, is_query).is_some())?;
        }
        for (id, address) in [("red-1", "10.0.1.11"), ("blue-s", "10.0.2.31")] {
            let inside = scene.namespace(id);
            inside.ip("-4 address flush dev eth0")?;
            let script = scene.site.directory().join(format!("lease-{id}"));
            let told = scene.site.directory().join(format!("leased-{id}"));
            let text = format!(
                "#!/bin/sh\n[ \"$1\" = bound ] && echo \"$ip\" >{}\nexit 0\n",
                told.display()
            );
            std::fs::write(&script, text).map_err(LabError::io("a script"))?;
            let executable = std::os::unix::fs::PermissionsExt::from_mode(0o755);
            std::fs::set_permissions(&script, executable).map_err(LabError::io("a script"))?;
            let path = script.display().to_string();
            let mut line = vec!["busybox", "udhcpc", "-i", "eth0", "-f", "-n", "-q"];
            line.extend(["-t", "10", "-T", "1", "-s", &path]);
            inside.run(&line)?;
            let leased = std::fs::read_to_string(&told).map_err(LabError::io("the lease"))?;
            holds(&leased, leased.trim() == address)?;
        }
        Ok(())
    });
}

#[test]
fn subports_stay_over_a_restart_and_go_before_their_parent() {
    on_site(
        |_| {},
        |scene| {
            scene.all_pass()?;
            let host = scene.site.hosts.get_mut("h1").unwrap();
            drop(host.daemon.take());
            scene.site.start_daemon("h1")?;
            scene.site.wait_for_hosts()?;
            scene.site.wait_for_ports()?;
            scene.all_pass()?;
            let refused = scene.site.ctl(&["port", "delete", "blue-1"]);
            let said = refused.map_or_else(|error| error.to_string(), |_| String::new());
            holds(&said, said.contains("there is no port 'blue-1'"))?;
            // Without the port its VLAN is nobody's; with it again, as before.
            let objects = scene.site.objects.clone();
            scene
                .site
                .change(|objects| objects.ports.retain(|port| port.id != "red-1"))?;
            let before = scene.drops("unknown_vlan");
            holds(
                "nothing passes",
                !scene.site.reaches("red-1", "10.0.1.12", 1),
            )?;
            holds("by name", scene.drops("unknown_vlan") > before)?;
            scene.pings("blue-1", "blue-2")?;
            scene.site.change(|now| *now = objects)?;
            scene.site.wait_for_ports()?;
            scene.all_pass()?;
            // The parent's device goes, and all of it is down.
            let host = scene.site.hosts["h1"].namespace.clone();
            host.ip("link delete p-blue-1")?;
            wait_until("the subports are down", SOON, || {
                ["blue-1", "red-1", "blue-s"]
                    .iter()
                    .all(|id| scene.status(id)["up"] == false)
            })?;
            let reason = scene.status("red-1")["reason"].to_string();
            holds(&reason, reason.contains("its parent is down"))?;
            // Nobody is left to look.
            scene.vlans.clear();
            scene.site.change(|objects| {
                let gone = ["blue-1", "red-1", "blue-s"];
                objects.ports.retain(|port| !gone.contains(&&*port.id));
            })?;
            Ok(())
        },
    );
}

/// Virtual machines with real VLAN devices, whose kernels leave segments to their cards to split, tag and all.
fn machines(kind: GuestKind) {
    let mut objects = objects();
    objects.ports.retain(|port| port.id != "blue-s");
    put_in_guests(&mut objects, kind, &["blue-1", "red-2"]);
    let options = SiteOptions {
        configure_guests: false,
        ..SiteOptions::default()
    };
    let site = Site::start(Lab::new().unwrap(), &objects, &options).unwrap();
    let body = || {
        let (trunk, plain) = (&site.guests["blue-1"], &site.guests["red-2"]);
        let up = "cd /proc/sys/net/ipv6/conf/all && echo 0 >accept_dad && cd ../default && echo 0 >accept_dad && ip link set eth0 mtu 1430 up";
        trunk.succeed(up)?;
        trunk.succeed(
            "ip link add link eth0 name eth0.100 type vlan id 100 && ip link set eth0.100 up",
        )?;
        plain.succeed(up)?;
        for (guest, interface, number) in [(trunk, "eth0.100", 11), (plain, "eth0", 12)] {
            for address in [
                format!("10.0.1.{number}/24"),
                format!("fd00:1::{number}/64"),
            ] {
                guest.succeed(&format!("ip address add {address} dev {interface}"))?;
            }
        }
        for (from, to, number) in [(trunk, plain, 12), (plain, trunk, 11)] {
            let (v4, v6) = (format!("10.0.1.{number}"), format!("fd00:1::{number}"));
            wait_until("a ping is answered", SOON, || {
                from.pings(&v4, 2) && from.pings(&v6, 2)
            })?;
            // The largest packet of the VLAN is as long as that of the device.
            for options in ["-M do -s 1402", "-s 5000"] {
                from.succeed(&format!(
                    "/tools/ping -q -n -i 0.02 -W 2 -c 3 {options} {v4}"
                ))?;
            }
            from.fetch(to, &v4, 3_000_000)?;
            from.fetch(to, &format!("[{v6}]"), 1_000_000)?;
        }
        // What it has sent: segments, or there would be a packet for each 1400 bytes.
        let sent = trunk.succeed("cat /sys/class/net/eth0.100/statistics/tx_packets")?;
        let sent: u64 = sent.trim().parse().unwrap_or(u64::MAX);
        holds(&format!("{sent} packets"), sent < 4_000_000 / 1400)?;
        let parent =
            "ip address add 10.0.1.11/24 dev eth0 && /tools/ping -q -n -I eth0 -W 2 -c 1 10.0.1.12";
        holds("blue-2 is the parent's", trunk.says(parent))?;
        site.wait_for_frames()
    };
    if let Err(error) = body() {
        panic!("{}", site.explain(error));
    }
}

#[test]
fn a_virtual_machine_has_a_vlan_device_on_vhost_user() {
    machines(GuestKind::VhostServer);
}

#[test]
fn a_virtual_machine_has_a_vlan_device_on_a_tap() {
    machines(GuestKind::Tap);
}
