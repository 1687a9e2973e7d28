//! Hosts as virtual machines: weftd under systemd with real NIC drivers, which have native XDP, and uplinks that the build machine's kernel
//! does not have. What is known of the drivers is in docs/operations.md, "Network cards".

#![allow(clippy::unwrap_used)]

use std::time::Duration;

use etherparse::PacketBuilder;
use weft_tests::{
    Lab, LabError, RawSocket,
    guest::{Card, NicFeatures},
    machine::{Fabric, HostPlan, Kernel, Machine},
    wait_until,
};

const SOON: Duration = Duration::from_secs(30);

fn two_queues() -> NicFeatures {
    NicFeatures {
        queues: 2,
        // What is of other VLANs reaches the driver.
        vlan_filter: false,
        ..NicFeatures::default()
    }
}

/// Where a card that strips VLAN tags is among the others.
const STRIPPING: &str = "eth4";

/// Two hosts of Linux 6.12, each with three cards of virtio and one of VMware's.
fn with_four_cards() -> Fabric {
    let vmxnet3 = NicFeatures {
        card: Card::Vmxnet3,
        ..NicFeatures::default()
    };
    let plan = HostPlan {
        kernel: Kernel::Linux6_12,
        cards: vec![two_queues(), two_queues(), two_queues(), vmxnet3],
    };
    let fabric = Fabric::start(Lab::new().unwrap(), &[plan.clone(), plan]).unwrap();
    fabric.provision().unwrap();
    fabric
}

/// Makes another interface the uplink of every host: runs the lines of shell that make it with `N` for the host's number, gives it the tunnel
/// address, and has weftd use it; returns what `provision.sh driver` says of it on the first host.
fn move_uplinks(fabric: &Fabric, uplink: &str, lines: &str) -> Result<String, LabError> {
    for (number, host) in (1..).zip(&fabric.hosts) {
        let number = number.to_string();
        let lines = lines.replace('N', &number);
        host.succeed(&format!(
            "systemctl stop weftd; for d in eth1 eth2 eth3 eth4; do ip address flush dev $d; done; set -e; {lines}; ip address add 192.168.57.1{number}/24 dev {uplink}; ip link set {uplink} up; sed -i 's/^uplinks = .*/uplinks = [{{ interface = \"{uplink}\" }}]/' /etc/weft/weftd.toml; systemctl start weftd"
        ))?;
    }
    crosses(fabric)?;
    fabric.script(&fabric.hosts[0], "driver")
}

fn pings(from: &Machine, namespace: &str, address: &str) -> bool {
    from.says(&format!(
        "ip netns exec {namespace} ping -q -n -i 0.05 -W 2 -c 5 {address}"
    ))
}

/// Waits until pings cross in both families, both ways, and finds that nothing is lost then, whatever queue a flow is received by.
fn crosses(fabric: &Fabric) -> Result<(), LabError> {
    let [first, second] = &fabric.hosts[..] else {
        panic!("two hosts");
    };
    let explained = |error| second.explain(first.explain(error));
    wait_until("pings cross", SOON, || {
        pings(first, "blue-a1", "10.0.1.12") && pings(second, "blue-a2", "fd00:1::11")
    })
    .map_err(explained)?;
    // Each ping is a flow of its own, and the flows of a tunnel are received by any queue.
    let line = "for i in $(seq 12); do ip netns exec blue-a1 ping -q -n -c 1 -W 2 10.0.1.12 || exit 1; done";
    first.succeed(line).map(drop).map_err(explained)
}

/// Packets that the first host's uplink has given to weftd.
fn received(host: &Machine, uplink: &str) -> u64 {
    let text = host.succeed("weftctl stats -o json").unwrap();
    let stats: serde_json::Value = serde_json::from_str(&text).unwrap();
    let ports = stats["ports"].as_array().cloned().unwrap_or_default();
    let name = format!("uplink:{uplink}");
    let found = ports.iter().find(|port| port["port"] == name.as_str());
    found
        .and_then(|port| port["rx_packets"].as_u64())
        .unwrap_or_else(|| panic!("{name} in {text}"))
}

/// The MAC address of an interface of a machine.
fn mac(host: &Machine, interface: &str) -> [u8; 6] {
    let text = host
        .succeed(&format!("cat /sys/class/net/{interface}/address"))
        .unwrap();
    let mut bytes = text.trim().split(':');
    std::array::from_fn(|_| u8::from_str_radix(bytes.next().unwrap(), 16).unwrap())
}

/// A tunnel packet as the second host sends it to the first: from blue-a2 to blue-a1, with VLAN tags (802.1Q), the outer one first.
fn tunnel(to: [u8; 6], tags: &[u16]) -> Vec<u8> {
    let inner = PacketBuilder::ethernet2([2, 0, 0, 0, 1, 0x12], [2, 0, 0, 0, 1, 0x11])
        .ipv4([10, 0, 1, 12], [10, 0, 1, 11], 64)
        .udp(2000, 5201);
    // RFC 7348 §5: the I flag and the VNI, 100.
    let mut vxlan = vec![0x08, 0, 0, 0, 0, 0, 100, 0];
    inner.write(&mut vxlan, b"hello").unwrap();
    let mut outer = Vec::new();
    PacketBuilder::ethernet2([2, 0, 0, 0, 9, 9], to)
        .ipv4([192, 168, 57, 12], [192, 168, 57, 11], 64)
        .udp(50000, 4789)
        .write(&mut outer, &vxlan)
        .unwrap();
    for tag in tags.iter().rev() {
        let [high, low] = tag.to_be_bytes();
        outer.splice(12..12, [0x81, 0x00, high, low]);
    }
    outer
}

/// Sends tunnel packets with each of the tags, and then one that is taken; finds that only that one is.
fn only_ours_are_taken(fabric: &Fabric, uplink: &str, strange: &[&[u16]], ours: &[u16]) {
    let host = &fabric.hosts[0];
    let to = mac(host, uplink);
    let bridge = RawSocket::open(&fabric.namespace, "under").unwrap();
    // Nothing else is under way: neighbours and sessions are quiet.
    let before = received(host, uplink);
    for tags in strange {
        bridge.send(&tunnel(to, tags)).unwrap();
    }
    bridge.send(&tunnel(to, ours)).unwrap();
    wait_until("the packet that is ours", SOON, || {
        received(host, uplink) > before
    })
    .unwrap_or_else(|error| panic!("{}", host.explain(error)));
    // Those before it were there first.
    assert_eq!(received(host, uplink), before + 1, "on {uplink}");
}

#[test]
fn the_script_of_vagrant_makes_a_fabric_on_the_native_xdp_of_virtio() {
    let plans = [Kernel::Linux6_12, Kernel::Linux6_1].map(|kernel| HostPlan {
        kernel,
        cards: vec![two_queues()],
    });
    let fabric = Fabric::start(Lab::new().unwrap(), &plans).unwrap();
    let drivers = fabric.provision().unwrap();
    for (host, linux) in [("h1", "Linux 6.12"), ("h2", "Linux 6.1.")] {
        let said = &drivers[host];
        for word in [
            "virtio_net",
            linux,
            "eth1 (native)",
            "queues   2 at most, in use 2",
        ] {
            assert!(said.contains(word), "'{word}' in: {said}");
        }
    }
    let table = fabric.table().unwrap();
    println!("{table}");
    assert!(table.contains("TCP, h1 to h2"), "{table}");
    assert!(!table.contains("FAIL "), "{table}");
}

#[test]
fn uplinks_of_every_kind_carry_tunnels_and_take_those_of_no_other_vlan() {
    let fabric = with_four_cards();
    let host = &fabric.hosts[0];
    let refusal = |uplink: &str| {
        let line = format!(
            "sed 's/^uplinks = .*/uplinks = [{{ interface = \"{uplink}\" }}]/' /etc/weft/weftd.toml >/run/other.toml; weftd check /run/other.toml"
        );
        let output = host.run(&line).unwrap();
        assert_ne!(output.code, 0, "{uplink} is taken");
        output.text
    };

    // virtio leaves tags in frames.
    crosses(&fabric).unwrap();
    only_ours_are_taken(&fabric, "eth1", &[&[7], &[7, 0], &[100, 7]], &[0]);

    // A bond, of cards with two queues each; and its slaves are refused.
    let lines = "modprobe bonding; ip link add bond0 type bond mode active-backup miimon 100; for d in eth2 eth3; do ip link set $d down; ip link set $d master bond0; done; ip link set bond0 up";
    let said = move_uplinks(&fabric, "bond0", lines).unwrap();
    assert!(said.contains("bond0 (eth2 native, eth3 native)"), "{said}");
    only_ours_are_taken(&fabric, "bond0", &[&[7], &[100, 7]], &[]);
    let said = refusal("eth2");
    for word in ["eth2", "slave of the bond bond0", "name bond0 in uplinks"] {
        assert!(said.contains(word), "'{word}' in: {said}");
    }
    // The active slave fails, and the other takes over; it comes back, and another slave goes.
    host.succeed("ip link set eth2 down").unwrap();
    crosses(&fabric).unwrap();
    host.succeed("ip link set eth2 up").unwrap();
    host.succeed("ip link set eth3 nomaster").unwrap();
    wait_until("one slave is left", SOON, || {
        host.says("weftctl node status | grep -q 'bond0 (eth2 native)'")
    })
    .unwrap();
    crosses(&fabric).unwrap();

    // A card that takes tags out of frames is told not to, and told to again in the end.
    let strips = |on: &str| {
        host.says(&format!(
            "ethtool -k {STRIPPING} | grep -q 'rx-vlan-offload: {on}'"
        ))
    };
    let lines = format!("ip link delete bond0; ip link set {STRIPPING} up");
    assert!(strips("on"));
    let said = move_uplinks(&fabric, STRIPPING, &lines).unwrap();
    for word in ["vmxnet3", "eth4 (native)"] {
        assert!(said.contains(word), "'{word}' in: {said}");
    }
    assert!(host.says("ethtool -k eth4 | grep -q 'large-receive-offload: off'"));
    assert!(strips("off"));
    only_ours_are_taken(&fabric, STRIPPING, &[&[7], &[100, 7]], &[0]);

    // A bond of such a card: its slave is the one that is told.
    let lines = format!(
        "ip link add bond1 type bond mode active-backup miimon 100; ip link set {STRIPPING} down; ip link set {STRIPPING} master bond1; ip link set bond1 up"
    );
    let said = move_uplinks(&fabric, "bond1", &lines).unwrap();
    assert!(said.contains("bond1 (eth4 native)"), "{said}");
    assert!(strips("off"));
    only_ours_are_taken(&fabric, "bond1", &[&[7], &[100, 7]], &[]);

    // The VLAN of one that strips, and of one that does not.
    let said = move_uplinks(&fabric, "eth4.100", "ip link delete bond1; ip link set eth4 up; ip link add link eth4 name eth4.100 type vlan id 100").unwrap();
    assert!(said.contains("eth4.100 (generic)"), "{said}");
    assert!(strips("on"), "as before");
    only_ours_are_taken(&fabric, "eth4.100", &[&[], &[0], &[7], &[100, 7]], &[100]);
    let said = move_uplinks(&fabric, "eth1.100", "ip link delete eth4.100; ip link set eth1 up; ip link add link eth1 name eth1.100 type vlan id 100").unwrap();
    assert!(said.contains("eth1.100 (generic)"), "{said}");
    only_ours_are_taken(&fabric, "eth1.100", &[&[], &[0], &[7], &[100, 7]], &[100]);
    // The card below is no uplink of that, and weftd says which one is.
    host.succeed("sed -i 's/eth1.100/eth1/' /etc/weft/weftd.toml; systemctl restart weftd")
        .unwrap();
    wait_until("the way is named", SOON, || {
        host.says("weftctl node status | grep -q 'eth1.100 (no uplink, but the route to 192.168.57.12 leads over it'")
    })
    .unwrap();

    // In a VRF.
    host.succeed("modprobe vrf; ip link add red type vrf table 10; ip link set red up; ip link set eth1 master red")
        .unwrap();
    let said = refusal("eth1");
    for word in ["eth1", "in the VRF red", "take it out of the VRF"] {
        assert!(said.contains(word), "'{word}' in: {said}");
    }
}
