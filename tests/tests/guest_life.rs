//! Restarts of a virtual machine and of weftd, and hot-plugged cards.

#![allow(clippy::unwrap_used)]

use std::time::Duration;

use weft_tests::{
    GuestKind, Lab, LabError, Site, SiteOptions,
    guest::{NicFeatures, longest_gap},
    put_in_guests, tenants, wait_until,
};

const SOON: Duration = Duration::from_secs(20);

fn options() -> SiteOptions {
    SiteOptions {
        guest_nic: NicFeatures {
            segmentation: false,
            // A guest that sees its link go down asks for its neighbours anew, a second later.
            link_status: false,
            ..NicFeatures::default()
        },
        ..SiteOptions::default()
    }
}

fn site(kind: GuestKind) -> Site {
    let mut objects = tenants(2).unwrap();
    put_in_guests(&mut objects, kind, &["blue-1", "blue-2"]);
    Site::start(Lab::new().unwrap(), &objects, &options()).unwrap_or_else(|error| panic!("{error}"))
}

fn explained(site: &mut Site, body: impl FnOnce(&mut Site) -> Result<(), LabError>) {
    if let Err(error) = body(site) {
        panic!("{}", site.explain(error));
    }
}

fn until_pings(site: &Site, from: &str, to: &str) -> Result<(), LabError> {
    wait_until(&format!("{from} reaches {to}"), SOON, || {
        site.pings(from, to)
    })
}

/// The guest's kernel starts anew, and finds its card as it was.
fn reboots(kind: GuestKind) {
    let mut site = site(kind);
    explained(&mut site, |site| {
        until_pings(site, "blue-1", "blue-2")?;
        for _ in 0..2 {
            site.guests["blue-1"].reboot()?;
            site.configure_guest("blue-1", 1430)?;
            until_pings(site, "blue-1", "blue-2")?;
            until_pings(site, "blue-2", "blue-1")?;
        }
        site.wait_for_frames()
    });
}

/// weftd ends, whether it has time to clean up or not, and starts again; the guest notices nothing but silence.
fn outlives_weftd(kind: GuestKind) {
    let mut site = site(kind);
    explained(&mut site, |site| {
        until_pings(site, "blue-1", "blue-2")?;
        let boot = |site: &Site| {
            site.guests["blue-1"]
                .succeed("cd /sys/class/net/eth0 && cat /proc/sys/kernel/random/boot_id carrier")
        };
        let before = boot(site)?;
        for signal in [libc::SIGTERM, libc::SIGKILL] {
            let mut daemon = site.hosts.get_mut("h1").unwrap().daemon.take().unwrap();
            daemon.signal(signal);
            daemon.wait(SOON)?;
            assert!(!site.pings("blue-1", "blue-2"), "nothing switches");
            site.start_daemon("h1")?;
            until_pings(site, "blue-1", "blue-2")?;
            until_pings(site, "blue-2", "blue-1")?;
        }
        assert_eq!(boot(site)?, before);
        site.wait_for_frames()
    });
}

/// Pings of a guest every hundredth of a second while its weftd is stopped and started: the silence is short, and a connection goes on. A machine
/// that connects by itself tries once a second.
fn restart_is_short(kind: GuestKind, within: Duration) {
    let mut site = site(kind);
    explained(&mut site, |site| {
        until_pings(site, "blue-1", "blue-2")?;
        site.guests["blue-2"].serve("/tools/weft-guest answer 7", "tcp6", 7)?;
        let pings = "/tools/ping -n -D -i 0.01 -W 1 -c 250 10.0.1.12 >/tmp/pings 2>&1 &";
        let guest = &site.guests["blue-1"];
        guest
            .succeed("(/tools/weft-guest watch 10.0.1.12:7 3; echo ended $?) >/tmp/watch 2>&1 &")?;
        guest.succeed(pings)?;
        wait_until("pings under way", SOON, || {
            guest.says("grep -q icmp_seq=10 /tmp/pings")
        })?;
        let mut daemon = site.hosts.get_mut("h1").unwrap().daemon.take().unwrap();
        daemon.stop(SOON)?;
        site.start_daemon("h1")?;
        let guest = &site.guests["blue-1"];
        wait_until("the end of the pings", SOON, || {
            guest.says("grep -q received /tmp/pings")
        })?;
        let text = guest.succeed("cat /tmp/pings")?;
        let gap = longest_gap(&text).unwrap_or(f64::INFINITY);
        let end = text.lines().rev().take(3).collect::<Vec<_>>().join("; ");
        assert!(gap < within.as_secs_f64(), "{gap} s: {end}");
        wait_until("the end of the connection", SOON, || {
            guest.says("grep -q ended /tmp/watch")
        })?;
        let connection = guest.succeed("cat /tmp/watch")?;
        assert!(connection.contains("ended 0"), "{connection}");
        println!("longest silence {gap} s; of a connection, in ms, {connection}");
        Ok(())
    });
}

/// A second card with a port of its own comes while the guest runs, works, and goes; the first one works throughout.
fn plugs(kind: GuestKind) {
    let mut site = site(kind);
    explained(&mut site, |site| {
        let mut added = site.objects.clone();
        let mut port = added
            .ports
            .iter()
            .find(|port| port.id == "blue-1")
            .unwrap()
            .clone();
        port.id = "blue-9".into();
        port.mac = "02:00:00:00:01:19".into();
        port.addresses = vec!["10.0.1.19".into()];
        added.ports = vec![port];
        put_in_guests(&mut added, kind, &[]);
        let mut port = added.ports.remove(0);
        for _ in 0..2 {
            site.prepare(&mut port, &options())?;
            site.change(|objects| objects.ports.push(port.clone()))?;
            let nic = site.nic("nic1", &port, &options().guest_nic)?.unwrap();
            let guest = &site.guests["blue-1"];
            guest.add_nic(&nic, "eth1")?;
            guest.succeed("ip address add 10.0.1.19/32 dev eth1 && ip link set eth1 mtu 1430 up && ip route add 10.0.1.12/32 dev eth1 src 10.0.1.19")?;
            wait_until("pings over the added card", SOON, || {
                let line = "/tools/ping -q -n -c 2 -i 0.05 -W 1 -I eth1 10.0.1.12";
                guest.says(line)
            })?;
            guest.remove_nic(&nic)?;
            until_pings(site, "blue-1", "blue-2")?;
            site.change(|objects| objects.ports.retain(|port| port.id != "blue-9"))?;
            site.forget(&port)?;
            until_pings(site, "blue-1", "blue-2")?;
        }
        site.wait_for_frames()
    });
}

#[test]
fn a_guest_on_a_tap_reboots() {
    reboots(GuestKind::Tap);
}

#[test]
fn a_guest_on_a_tap_outlives_weftd() {
    outlives_weftd(GuestKind::Tap);
}

#[test]
fn a_guest_on_a_tap_gets_another_card_and_gives_it_back() {
    plugs(GuestKind::Tap);
}

#[test]
fn a_guest_that_connects_reboots() {
    reboots(GuestKind::VhostServer);
}

#[test]
fn a_guest_that_connects_outlives_weftd() {
    outlives_weftd(GuestKind::VhostServer);
}

#[test]
fn a_guest_that_connects_gets_another_card_and_gives_it_back() {
    plugs(GuestKind::VhostServer);
}

#[test]
fn a_guest_that_listens_reboots() {
    reboots(GuestKind::VhostClient);
}

#[test]
fn a_guest_that_listens_outlives_weftd() {
    outlives_weftd(GuestKind::VhostClient);
}

#[test]
fn a_guest_that_listens_gets_another_card_and_gives_it_back() {
    plugs(GuestKind::VhostClient);
}

#[test]
fn a_guest_on_a_tap_waits_little_for_weftd() {
    restart_is_short(GuestKind::Tap, Duration::from_secs(5));
}

#[test]
fn a_guest_that_connects_waits_little_for_weftd() {
    restart_is_short(GuestKind::VhostServer, Duration::from_secs(5));
}

#[test]
fn a_guest_that_listens_waits_little_for_weftd() {
    restart_is_short(GuestKind::VhostClient, Duration::from_secs(3));
}
