//! b026, b027, b030 and checksums: properties of the path that only real kernels at both ends show.

#![allow(clippy::unwrap_used)]

use std::{net::SocketAddr, time::Duration};

use weft_tests::{
    Capture, Lab, LabError, Namespace, RawSocket, Site, SiteOptions, load, tenants,
    traffic::{NumberedStream, tcp_exchange},
    wait_until,
};

const SOON: Duration = Duration::from_secs(10);

fn explained(site: &mut Site, body: impl FnOnce(&mut Site) -> Result<(), LabError>) {
    if let Err(error) = body(site) {
        panic!("{}", site.explain(error));
    }
}

fn workload<'a>(site: &'a Site, port: &str) -> &'a Namespace {
    &site.workloads[port].namespace
}

/// What a ping prints, answered or not.
fn ping(from: &Namespace, line: &str) -> String {
    let mut command = vec!["ping", "-n", "-W", "1", "-i", "0.05"];
    command.extend(line.split_whitespace());
    match from.run(&command) {
        Ok(text) => text,
        Err(error) => error.to_string(),
    }
}

fn tcp(site: &Site, from: &str, to: &str, bytes: usize) -> Result<(), LabError> {
    for ipv6 in [false, true] {
        let service = site.service(to, ipv6, 5201)?;
        tcp_exchange(workload(site, from), workload(site, to), service, bytes)?;
    }
    Ok(())
}

/// TCP on one host, across hosts, within a subnet and across subnets.
fn tcp_everywhere(checksum_offload: bool) {
    let options = SiteOptions {
        checksum_offload,
        ..SiteOptions::default()
    };
    let objects = tenants(2).unwrap();
    let mut site = Site::start(Lab::new().unwrap(), &objects, &options).unwrap();
    explained(&mut site, |site| {
        for (from, to) in [
            ("blue-1", "blue-2"),
            ("blue-2", "blue-1"),
            ("red-1", "red-b"),
            ("red-b", "red-1"),
            ("blue-2", "blue-b"),
        ] {
            tcp(site, from, to, 2 << 20)?;
        }
        site.wait_for_frames()
    });
}

#[test]
fn tcp_with_checksums_left_to_the_device() {
    tcp_everywhere(true);
}

#[test]
fn tcp_with_checksums_by_the_kernel() {
    tcp_everywhere(false);
}

/// Workloads that believe in an MTU of 1500.
fn site_of_1500() -> Site {
    let options = SiteOptions {
        workload_mtu: 1500,
        ..SiteOptions::default()
    };
    Site::start(Lab::new().unwrap(), &tenants(2).unwrap(), &options).unwrap()
}

/// The kernel's route to an address, with what it has learnt.
fn learnt_mtu(from: &Namespace, address: &str) -> bool {
    let route = from.ip(&format!("route get {address}")).unwrap();
    route.contains("mtu 1450")
}

#[test]
fn b027_tcp_adapts_to_what_the_tunnel_carries() {
    let mut site = site_of_1500();
    explained(&mut site, |site| {
        // Both ends believe in 1460 bytes a segment, so the first full one is too big.
        tcp(site, "blue-1", "blue-2", 1 << 20)?;
        tcp(site, "blue-b", "blue-1", 1 << 20)?;
        for address in ["10.0.1.12", "fd00:1::12"] {
            assert!(learnt_mtu(workload(site, "blue-1"), address), "{address}");
        }
        let drops = site.node_json("h1", &["drops"])?;
        assert!(drops.to_string().contains("too_big"), "{drops}");
        site.wait_for_frames()
    });
}

#[test]
fn b027_clamped_segments_need_no_errors() {
    let mut site = site_of_1500();
    explained(&mut site, |site| {
        site.change(|objects| {
            objects
                .ports
                .iter_mut()
                .for_each(|port| port.clamp_mss = true);
        })?;
        tcp(site, "blue-1", "blue-2", 1 << 20)?;
        tcp(site, "blue-2", "blue-1", 1 << 20)?;
        for address in ["10.0.1.12", "fd00:1::12"] {
            assert!(!learnt_mtu(workload(site, "blue-1"), address), "{address}");
        }
        Ok(())
    });
}

#[test]
fn b027_pings_too_big_are_told_the_mtu() {
    let mut site = site_of_1500();
    explained(&mut site, |site| {
        let near = workload(site, "blue-1");
        for to in ["10.0.1.12", "10.0.2.20"] {
            let text = ping(near, &format!("-c 1 -M do -s 1472 {to}"));
            assert!(text.contains("mtu") && text.contains("1450"), "{text}");
            assert!(ping(near, &format!("-c 2 -M do -s 1422 {to}")).contains("2 received"));
        }
        let text = ping(near, "-c 1 -M do -s 1452 fd00:1::12");
        assert!(text.contains("Packet too big: mtu=1450"), "{text}");
        Ok(())
    });
}

/// The sender's kernel fragments (3000 bytes), or the host does (without DF, 1500 bytes).
#[test]
fn b027_fragments_cross_hosts_and_reach_the_gateway() {
    let mut site = site_of_1500();
    explained(&mut site, |site| {
        let near = workload(site, "blue-1");
        for to in ["10.0.1.12", "10.0.2.20", "10.0.1.1"] {
            for size in [1472, 3000, 8000] {
                let text = ping(near, &format!("-c 3 -M dont -s {size} {to}"));
                assert!(text.contains("3 received"), "{to} {size}: {text}");
            }
        }
        for to in ["fd00:1::12", "fd00:2::20", "fd00:1::1"] {
            // The first may meet the tunnel's MTU before the kernel knows it.
            wait_until(&format!("large pings to {to}"), SOON, || {
                ping(near, &format!("-c 1 -s 3000 {to}")).contains("1 received")
            })?;
            let text = ping(near, &format!("-c 3 -s 3000 {to}"));
            assert!(text.contains("3 received"), "{to}: {text}");
        }
        Ok(())
    });
}

#[test]
fn b026_a_hop_limit_that_ends_at_the_gateway() {
    let mut site = Site::start(
        Lab::new().unwrap(),
        &tenants(2).unwrap(),
        &SiteOptions::default(),
    )
    .unwrap();
    explained(&mut site, |site| {
        let near = workload(site, "blue-1");
        let text = ping(near, "-c 1 -t 1 10.0.2.20");
        assert!(
            text.contains("From 10.0.1.1") && text.contains("Time to live exceeded"),
            "{text}"
        );
        let text = ping(near, "-c 1 -t 1 fd00:2::20");
        assert!(
            text.contains("From fd00:1::1") && text.contains("Hop limit"),
            "{text}"
        );
        assert!(ping(near, "-c 1 -t 2 10.0.2.20").contains("1 received"));
        assert!(
            ping(near, "-c 1 -t 1 10.0.1.12").contains("1 received"),
            "no hop within a subnet"
        );
        let reply = ping(near, "-c 1 10.0.2.20");
        assert!(reply.contains("ttl=63"), "{reply}");
        Ok(())
    });
}

/// One copy to each other port of the subnet, here and there; none back, none to the other subnet, none to the other tenant.
#[test]
fn b030_broadcast_stays_within_the_subnet() {
    const FRAMES: usize = 5;
    let objects = tenants(3).unwrap();
    let mut site = Site::start(Lab::new().unwrap(), &objects, &SiteOptions::default()).unwrap();
    explained(&mut site, |site| {
        let listening: Vec<(&String, RawSocket)> = site
            .workloads
            .iter()
            .map(|(id, workload)| (id, RawSocket::open(&workload.namespace, "eth0").unwrap()))
            .collect();
        let sender = RawSocket::open(workload(site, "blue-1"), "eth0")?;
        let macs = ([0xff; 6], [2, 0, 0, 0, 1, 0x11]);
        let mut frame = load::udp(macs, ([10, 0, 1, 11], [10, 0, 1, 255]), (7, 9), 40);
        let mark = b"heard by the subnet alone";
        frame[42..42 + mark.len()].copy_from_slice(mark);
        for _ in 0..FRAMES {
            sender.send(&frame)?;
        }
        let holds = |frame: &[u8]| frame.windows(mark.len()).any(|window| window == mark);
        for (id, socket) in &listening {
            let wanted = ["blue-2", "blue-3"].contains(&id.as_str());
            let expected = if wanted { FRAMES } else { 0 };
            for number in 0..expected {
                let got = socket.receive(SOON, holds);
                assert_eq!(got.as_deref(), Some(&frame[..]), "{id}: {number}");
            }
        }
        // Those that should not hear it had as long as those that did.
        for (id, socket) in &listening {
            assert_eq!(
                socket.receive(Duration::from_millis(50), holds),
                None,
                "{id}"
            );
        }
        Ok(())
    });
}

/// Packets of a host's workers by what they cost: those of the fast path, of the slow path, and those that were judged.
fn lanes(site: &Site, host: &str) -> Result<[u64; 3], LabError> {
    let status = site.node_json(host, &["node", "status"])?;
    let workers = status["workers"].as_array().cloned().unwrap_or_default();
    Ok(["fast", "general", "judged"].map(|lane| {
        let counts = workers.iter().map(|worker| &worker[lane]);
        counts
            .map(|count| count.as_u64().or_else(|| count.as_str()?.parse().ok()))
            .map(Option::unwrap_or_default)
            .sum()
    }))
}

/// What an operator reads in `weftctl node status`, at both ends of a flow whose packets are known by number.
fn lanes_tell_what_packets_cost(site: &Site) -> Result<(), LabError> {
    const PINGS: u64 = 20;
    // Some of a kernel's own: it asks for its neighbours, and again.
    const NOISE: u64 = 40;
    let before = [lanes(site, "h1")?, lanes(site, "h2")?];
    let stream = site.stream("blue-1", "blue-2", 3003, 2000)?;
    stream.wait_for_more(3000)?;
    let tally = stream.end();
    assert_eq!((tally.lost(), tally.twice), (0, 0), "{tally:?}");
    assert!(workload(site, "blue-1").pings("10.0.1.12", PINGS as u32));
    for (host, before) in ["h1", "h2"].iter().zip(before) {
        let after = lanes(site, host)?;
        let [fast, general, judged] = std::array::from_fn(|lane| after[lane] - before[lane]);
        let what = format!("{host}: {tally:?}: fast {fast}, general {general}, judged {judged}");
        // All datagrams but those that were judged, and echoes both ways, which only the slow path knows.
        assert!((tally.sent - NOISE..=tally.sent).contains(&fast), "{what}");
        assert!(
            (2 * PINGS - 2..2 * PINGS + NOISE).contains(&general),
            "{what}"
        );
        assert!((2..NOISE).contains(&judged), "{what}");
    }
    Ok(())
}

/// Both tenants run the same traffic between the same addresses; each sees its own alone.
#[test]
fn b011_nothing_crosses_tenants_while_both_run_traffic() {
    let objects = tenants(2).unwrap();
    let mut site = Site::start(Lab::new().unwrap(), &objects, &SiteOptions::default()).unwrap();
    explained(&mut site, |site| {
        // The same addresses in both; the destination port tells whose datagrams they are.
        let recording = |tenant: &str| -> Result<Vec<Capture>, LabError> {
            ["1", "2", "b"]
                .iter()
                .map(|number| workload(site, &format!("{tenant}-{number}")))
                .map(|namespace| Capture::start(namespace, "eth0", ""))
                .collect()
        };
        let (blue, red) = (recording("blue")?, recording("red")?);
        let start = |tenant: &str, port: u16| -> Result<Vec<NumberedStream>, LabError> {
            [("1", "2"), ("2", "1"), ("1", "b")]
                .iter()
                .map(|(from, to)| {
                    let id = |number: &str| format!("{tenant}-{number}");
                    site.stream(&id(from), &id(to), port, 500)
                })
                .collect()
        };
        let streams: Vec<_> = start("blue", 1001)?
            .into_iter()
            .chain(start("red", 2002)?)
            .collect();
        streams
            .iter()
            .try_for_each(|stream| stream.wait_for_more(500))?;
        for (stream, number) in streams.into_iter().zip(0..) {
            let tally = stream.end();
            assert_eq!((tally.lost(), tally.twice), (0, 0), "{number}: {tally:?}");
        }
        for (captures, own, other) in [(blue, 1001, 2002), (red, 2002, 1001)] {
            for mut capture in captures {
                capture.stop()?;
                let seen = capture.decode("", &["udp.dstport"])?;
                let count = |port: u16| {
                    seen.iter()
                        .filter(|line| **line == port.to_string())
                        .count()
                };
                assert_eq!(count(other), 0, "frames of the other tenant");
                assert!(count(own) >= 500, "{} of its own seen", count(own));
            }
        }
        lanes_tell_what_packets_cost(site)
    });
}

/// A service address in the other tenant alone answers nothing here.
#[test]
fn b011_an_address_that_only_the_other_tenant_has_is_not_reached() {
    let mut objects = tenants(2).unwrap();
    objects.ports.retain(|port| port.id != "red-2");
    let mut site = Site::start(Lab::new().unwrap(), &objects, &SiteOptions::default()).unwrap();
    explained(&mut site, |site| {
        assert!(site.pings("blue-1", "blue-2"));
        let service: SocketAddr = site.service("blue-2", false, 9)?;
        let heard = RawSocket::open(workload(site, "blue-2"), "eth0")?;
        let red = workload(site, "red-1");
        assert!(!red.pings(&service.ip().to_string(), 2));
        let sender = RawSocket::open(red, "eth0")?;
        let macs = ([2, 0, 0, 0, 1, 0x12], [2, 0, 0, 0, 1, 0x11]);
        sender.send(&load::udp(
            macs,
            ([10, 0, 1, 11], [10, 0, 1, 12]),
            (7, 4242),
            20,
        ))?;
        wait_until("the drop is counted", SOON, || {
            let drops = site.node_json("h1", &["drops"]).unwrap_or_default();
            let reasons = drops["reasons"].as_array().cloned().unwrap_or_default();
            reasons
                .iter()
                .any(|drop| drop["port"] == "red-1" && drop["packets"].as_u64() > Some(0))
        })?;
        let leaked = heard.receive(Duration::from_millis(50), |frame| {
            frame.len() > 38 && frame[36..38] == 4242u16.to_be_bytes()
        });
        assert_eq!(leaked, None);
        Ok(())
    });
}
