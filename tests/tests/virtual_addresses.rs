//! Virtual addresses that move inside a subnet, with real kernels and keepalived: on two hosts, seen from a third and from another subnet, over a fail-over, a fight,
//! and restarts of weftd and of the controller.

#![allow(clippy::unwrap_used)]

use std::time::{Duration, Instant};

use weft_proto::v1::{AddressPair, Objects};
use weft_tests::figures::leave_worst;
use weft_tests::{
    Daemon, Lab, LabError, Namespace, RawSocket, Site, SiteOptions, holds, tenants, wait_until,
};

const SOON: Duration = Duration::from_secs(30);
/// A fail-over takes effect for others so long after keepalived's own.
const EFFECT: Duration = Duration::from_secs(1);
const ADDRESSES: [&str; 2] = ["10.0.1.99", "fd00:1::99"];

/// blue-1, blue-2 and blue-3 on a host each, and blue-b in another subnet on h3. The first two may hold the addresses.
fn objects() -> Objects {
    let mut objects = tenants(3).unwrap();
    for port in &mut objects.ports {
        if ["blue-1", "blue-2"].contains(&&*port.id) {
            let pair = |address: &str| AddressPair {
                cidr: address.into(),
                mac: String::new(),
            };
            port.allowed_pairs = ["10.0.1.99/32", "fd00:1::99/128"].map(pair).to_vec();
        }
    }
    objects
}

fn on_site(body: impl FnOnce(&mut Site) -> Result<(), LabError>) {
    let mut site = Site::start(Lab::new().unwrap(), &objects(), &SiteOptions::default()).unwrap();
    if let Err(error) = body(&mut site).and_then(|()| site.wait_for_frames()) {
        panic!("{}", site.explain(error));
    }
}

fn namespace<'s>(site: &'s Site, port: &str) -> &'s Namespace {
    &site.workloads[port].namespace
}

/// Starts keepalived at a port, for both addresses.
fn keepalived(site: &Site, port: &str, priority: u32) -> Result<Daemon, LabError> {
    let directory = site.directory().join(format!("keepalived-{port}"));
    std::fs::create_dir_all(&directory).map_err(LabError::io("keepalived's directory"))?;
    let at = |name: &str| directory.join(name).display().to_string();
    let instance = |name: &str, id: u32, address: &str| {
        format!(
            "vrrp_instance {name} {{\n state BACKUP\n interface eth0\n virtual_router_id {id}\n priority {priority}\n advert_int 1\n \
             virtual_ipaddress {{\n {address}\n }}\n}}\n"
        )
    };
    let text = instance("four", 7, "10.0.1.99/24") + &instance("six", 8, "fd00:1::99/64");
    std::fs::write(at("conf"), text).map_err(LabError::io("keepalived's configuration"))?;
    let line = [
        "-n",
        "-l",
        "-f",
        &at("conf"),
        "-p",
        &at("pid"),
        "-r",
        &at("vrrp"),
    ];
    namespace(site, port).spawn("keepalived", &line)
}

/// Whether a port's workload has an address.
fn has(site: &Site, port: &str, address: &str) -> bool {
    let addresses = namespace(site, port).ip("address show dev eth0");
    addresses.is_ok_and(|text| text.contains(address))
}

/// The controller's line of an address.
fn holder(site: &Site, address: &str) -> String {
    let all = site.ctl(&["vpc", "holders", "blue"]).unwrap_or_default();
    let line = all.lines().find(|line| line.contains(address));
    line.unwrap_or_default().to_owned()
}

/// Waits until a port has taken an address over; others reach it there soon after that.
fn follow(site: &Site, port: &str, address: &str) -> Result<Duration, LabError> {
    wait_until("a machine takes the address over", SOON, || {
        has(site, port, address)
    })?;
    let took = reached(site, port, address)?;
    println!("{address} is reached at {port} {took:?} after it took the address over");
    holds("soon", took <= EFFECT)?;
    Ok(took)
}

/// How long it takes until others reach an address at a port.
fn reached(site: &Site, port: &str, address: &str) -> Result<Duration, LabError> {
    let begun = Instant::now();
    wait_until("the controller knows", SOON, || {
        holder(site, address).contains(port)
    })?;
    for from in ["blue-3", "blue-b"] {
        wait_until("others reach it", SOON, || site.reaches(from, address, 1))?;
    }
    Ok(begun.elapsed())
}

#[test]
fn keepalived_moves_addresses_between_hosts_and_back() {
    let rounds = std::env::var("WEFT_SERVICES_ROUNDS").ok();
    let rounds: u32 = rounds.map_or(1, |text| text.parse().unwrap());
    on_site(|site| {
        let mut times = Vec::new();
        let mut first = keepalived(site, "blue-1", 150)?;
        for address in ADDRESSES {
            times.push(follow(site, "blue-1", address)?);
        }
        let _second = keepalived(site, "blue-2", 100)?;
        for _ in 0..rounds {
            // Its machine dies: nothing is left there of the addresses, whether keepalived's processes see to that or not.
            first.signal(libc::SIGKILL);
            first.wait(SOON)?;
            for address in ADDRESSES {
                let prefix = if address.contains(':') { 64 } else { 24 };
                let line = format!("address del {address}/{prefix} dev eth0");
                let _ = namespace(site, "blue-1").ip(&line);
            }
            for address in ADDRESSES {
                times.push(follow(site, "blue-2", address)?);
            }
            // It comes back, and is the master again.
            first = keepalived(site, "blue-1", 150)?;
            for address in ADDRESSES {
                times.push(follow(site, "blue-1", address)?);
            }
        }
        leave_worst(
            "WEFT_SERVICES_REPORT",
            "address_reached_after_keepalived_moved_it",
            &times,
        )
    });
}

/// A gratuitous request (RFC 5944 §4.6).
fn announcement(mac: [u8; 6]) -> Vec<u8> {
    let address = [10, 0, 1, 99];
    [
        &[0xff; 6][..],
        &mac,
        &[8, 6, 0, 1, 8, 0, 6, 4, 0, 1],
        &mac,
        &address,
        &[0; 6],
        &address,
    ]
    .concat()
}

fn mac_of(site: &Site, port: &str) -> [u8; 6] {
    let port = site.objects.ports.iter().find(|it| it.id == port).unwrap();
    let mut bytes = port.mac.split(':');
    std::array::from_fn(|_| u8::from_str_radix(bytes.next().unwrap(), 16).unwrap())
}

#[test]
fn two_that_announce_an_address_in_turn_are_limited_and_named() {
    on_site(|site| {
        let ports = ["blue-1", "blue-2"];
        let sockets = ports.map(|port| RawSocket::open(namespace(site, port), "eth0").unwrap());
        for turn in 0..12 {
            let port = ports[turn % 2];
            sockets[turn % 2].send(&announcement(mac_of(site, port)))?;
            let host = if turn % 2 == 0 { "h1" } else { "h2" };
            wait_until("it has moved, or is refused", SOON, || {
                let drops = site.node(host, &["drops"]).unwrap_or_default();
                holder(site, ADDRESSES[0]).contains(port) || drops.contains("address_contested")
            })?;
        }
        let line = holder(site, ADDRESSES[0]);
        let moves: u64 = line.split_whitespace().last().unwrap().parse().unwrap();
        println!("{line}");
        holds("it has moved a few times", (5..=8).contains(&moves))?;
        let logs = ["h1", "h2"].map(|host| site.hosts[host].daemon.as_ref().unwrap().log());
        let named = logs.iter().any(|log| {
            let mut lines = log.lines().filter(|line| line.contains("in turn"));
            lines.any(|line| line.contains("blue-1") && line.contains("blue-2"))
        });
        holds("both are named", named)
    });
}

#[test]
fn what_is_held_outlives_restarts() {
    on_site(|site| {
        let _keepalived = keepalived(site, "blue-1", 150)?;
        for address in ADDRESSES {
            follow(site, "blue-1", address)?;
        }
        if let Some(mut daemon) = site.hosts.get_mut("h1").unwrap().daemon.take() {
            daemon.signal(libc::SIGKILL);
            daemon.wait(SOON)?;
        }
        site.start_daemon("h1")?;
        for address in ADDRESSES {
            reached(site, "blue-1", address)?;
        }
        // A controller that starts again takes nothing from anybody, whoever attaches first.
        let pings = ADDRESSES.map(|address| {
            let line = ["-q", "-n", "-i", "0.05", "-c", "120", address];
            namespace(site, "blue-3").spawn("ping", &line)
        });
        site.controller = None;
        site.start_controller()?;
        let begun = Instant::now();
        for address in ADDRESSES {
            wait_until("the controller knows", SOON, || {
                holder(site, address).contains("blue-1")
            })?;
        }
        println!(
            "known to a controller that started again after {:?}",
            begun.elapsed()
        );
        for address in ADDRESSES {
            reached(site, "blue-1", address)?;
        }
        for ping in pings {
            let mut ping = ping?;
            ping.wait(SOON)?;
            let log = ping.log();
            holds(&log, log.contains(" 0% packet loss"))?;
        }
        // The port loses the pair, and nobody holds it.
        site.change(|objects| {
            let port = objects.ports.iter_mut().find(|it| it.id == "blue-1");
            port.unwrap().allowed_pairs.clear();
        })?;
        for address in ADDRESSES {
            wait_until("nobody holds it", SOON, || holder(site, address).is_empty())?;
            holds("nobody reaches it", !site.reaches("blue-3", address, 1))?;
        }
        Ok(())
    });
}
