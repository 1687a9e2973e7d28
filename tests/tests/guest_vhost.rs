//! Virtual machines over vhost-user: they reach each other on one host and across hosts with every kind of ring and card, and packets
//! between hosts are correct.

#![allow(clippy::unwrap_used)]

use std::{collections::BTreeMap, time::Duration};

use weft_proto::v1::Objects;
use weft_tests::{
    Capture, GuestKind, Lab, LabError, Site, SiteOptions, guest::NicFeatures, put_in_guests,
    topology, wait_until,
};

const SOON: Duration = Duration::from_secs(20);

/// Three hosts, so that there is a bridge between them to listen at. What a port's card offers is in its name.
const OBJECTS: &str = r#"
hosts: [{id: h1, vteps: [192.0.2.1]}, {id: h2, vteps: [192.0.2.2]}, {id: h3, vteps: [192.0.2.3]}]
vpcs: [{id: blue, vni: 100}]
subnets: [{id: blue, vpc: blue, cidrs: [10.0.1.0/24, "fd00:1::/64"], mtu: 1430}]
security_groups: [{id: blue, vpc: blue, rules: [{direction: ingress}]}]
ports:
"#;

fn objects(ports: &[(&str, &str)]) -> Objects {
    let mut yaml = OBJECTS.to_owned();
    for (number, (port, host)) in (11..).zip(ports) {
        yaml += &format!(
            "  - {{id: {port}, vpc: blue, subnet: blue, host: {host}, mac: \"02:00:00:00:01:{number}\", addresses: [10.0.1.{number}, \"fd00:1::{number}\"]}}\n"
        );
    }
    topology(&yaml).unwrap()
}

fn site(ports: &[(&str, &str, NicFeatures)], kind: GuestKind) -> Site {
    let places: Vec<_> = ports.iter().map(|(port, host, _)| (*port, *host)).collect();
    let mut objects = objects(&places);
    put_in_guests(&mut objects, kind, &[]);
    let features =
        |(port, _, features): &(&str, &str, NicFeatures)| ((*port).to_owned(), features.clone());
    let options = SiteOptions {
        guest_nics: ports.iter().map(features).collect::<BTreeMap<_, _>>(),
        ..SiteOptions::default()
    };
    Site::start(Lab::new().unwrap(), &objects, &options).unwrap_or_else(|error| panic!("{error}"))
}

fn explained(site: &Site, body: impl FnOnce() -> Result<(), LabError>) {
    if let Err(error) = body() {
        panic!("{}", site.explain(error));
    }
}

/// Pings of all sizes and TCP, there and back, over both families.
fn exchange(site: &Site, a: &str, b: &str) -> Result<(), LabError> {
    for (from, to) in [(a, b), (b, a)] {
        wait_until(&format!("{from} reaches {to}"), SOON, || {
            site.pings(from, to)
        })?;
        let (guest, peer) = (&site.guests[from], &site.guests[to]);
        let [v4, v6] = [false, true].map(|ipv6| site.address(to, ipv6).unwrap().to_string());
        for options in ["-M do -s 972", "-s 1402", "-s 1", "-s 5000"] {
            guest.succeed(&format!(
                "/tools/ping -q -n -i 0.02 -W 2 -c 3 {options} {v4}"
            ))?;
        }
        guest.succeed(&format!("/tools/ping -q -n -i 0.02 -W 2 -c 3 -s 5000 {v6}"))?;
        guest.fetch(peer, &v4, 2_000_000)?;
        guest.fetch(peer, &format!("[{v6}]"), 500_000)?;
    }
    Ok(())
}

/// Cards of every sort, pairwise on one host and across.
fn every_sort(kind: GuestKind, sorts: [NicFeatures; 4]) {
    let [a, b, c, d] = sorts;
    let ports = [
        ("near-1", "h1", a),
        ("near-2", "h1", b),
        ("far-1", "h2", c),
        ("far-2", "h2", d),
    ];
    let site = site(&ports, kind);
    let underlay = site.underlay.clone().unwrap();
    let mut capture = Capture::start(&underlay, "br0", "udp port 4789").unwrap();
    explained(&site, || {
        exchange(&site, "near-1", "near-2")?;
        exchange(&site, "near-1", "far-1")?;
        exchange(&site, "near-2", "far-2")?;
        exchange(&site, "far-1", "far-2")?;
        site.wait_for_frames()
    });
    capture.stop().unwrap();
    assert_eq!(capture.faults_of_guests().unwrap(), Vec::<String>::new());
    let verified = "tcp.checksum.status == 1 && vxlan.vni == 100 && frame.len <= 1514";
    let segments = capture.decode(verified, &["frame.number"]).unwrap().len();
    assert!(segments > 3000, "{segments} segments");
    let large = capture
        .decode("frame.len > 1514", &["frame.number"])
        .unwrap();
    assert_eq!(
        large,
        Vec::<String>::new(),
        "nothing is larger than the underlay's MTU"
    );
}

#[test]
fn split_rings_of_every_sort() {
    let all = NicFeatures::default();
    every_sort(
        GuestKind::VhostServer,
        [
            all.clone(),
            NicFeatures {
                segmentation: false,
                ..all.clone()
            },
            NicFeatures {
                mergeable: false,
                indirect: false,
                ..all.clone()
            },
            NicFeatures {
                checksum: false,
                segmentation: false,
                event_index: false,
                ..all
            },
        ],
    );
}

#[test]
fn packed_rings_of_every_sort() {
    let all = NicFeatures {
        packed: true,
        ..NicFeatures::default()
    };
    every_sort(
        GuestKind::VhostClient,
        [
            all.clone(),
            NicFeatures {
                mergeable: false,
                segmentation: false,
                ..all.clone()
            },
            NicFeatures {
                queues: 2,
                indirect: false,
                ..all.clone()
            },
            NicFeatures {
                ring_size: 1024,
                event_index: false,
                ..all
            },
        ],
    );
}

/// weftd reads every queue that a guest sends on, and spreads the flows to it over all that it uses.
#[test]
fn each_of_several_queues_is_used() {
    let several = NicFeatures {
        queues: 2,
        ..NicFeatures::default()
    };
    let ports = [("near", "h1", several.clone()), ("far", "h2", several)];
    let site = site(&ports, GuestKind::VhostClient);
    explained(&site, || {
        exchange(&site, "near", "far")?;
        let (near, far) = (&site.guests["near"], &site.guests["far"]);
        far.succeed("/tools/iperf3 -s -D")?;
        near.succeed("/tools/iperf3 -c 10.0.1.12 -t 2 -P 16 >/dev/null")?;
        near.succeed("/tools/iperf3 -c 10.0.1.12 -t 2 -P 16 -R >/dev/null")?;
        let counts = near.succeed("/tools/ethtool -S eth0")?;
        let count = |name: &str| {
            let mut lines = counts.lines();
            lines.find_map(|line| line.trim().strip_prefix(name)?.trim().parse::<u64>().ok())
        };
        for queue in 0..2 {
            for direction in ["rx", "tx"] {
                let name = format!("{direction}_queue_{queue}_packets:");
                assert!(count(&name) > Some(20), "{name} {counts}");
            }
        }
        // Of the queues that it has, the guest uses one now.
        near.succeed("/tools/ethtool -L eth0 combined 1")?;
        near.succeed("/tools/iperf3 -c 10.0.1.12 -t 1 -P 16 -R >/dev/null")?;
        for _ in 0..20 {
            assert!(near.pings("10.0.1.12", 1), "no flow is lost");
        }
        site.wait_for_frames()
    });
}

/// The card says what the path carries, and a guest that doesn't listen is told by packets: TCP adapts, and what may not be split is refused with
/// the size that would pass.
#[test]
fn a_guests_mtu_changes() {
    let told = NicFeatures {
        mtu: Some(1400),
        ..NicFeatures::default()
    };
    let ports = [("near", "h1", told), ("far", "h2", NicFeatures::default())];
    let mut objects = objects(&ports.each_ref().map(|(port, host, _)| (*port, *host)));
    put_in_guests(&mut objects, GuestKind::VhostServer, &[]);
    let features = ports.map(|(port, _, features)| (port.to_owned(), features));
    let options = SiteOptions {
        guest_nics: features.into_iter().collect(),
        workload_mtu: 1400,
        ..SiteOptions::default()
    };
    let site = Site::start(Lab::new().unwrap(), &objects, &options)
        .unwrap_or_else(|error| panic!("{error}"));
    explained(&site, || {
        let (near, far) = (&site.guests["near"], &site.guests["far"]);
        let ping = |size: u32| {
            near.run(&format!(
                "/tools/ping -n -W 2 -i 0.1 -c 2 -M do -s {size} 10.0.1.12"
            ))
        };
        exchange(&site, "near", "far")?;
        assert_ne!(ping(1373)?.code, 0, "1401 bytes");
        assert!(
            !near.says("ip link set eth0 mtu 1401"),
            "more than the card said"
        );
        near.succeed("ip link set eth0 mtu 1300")?;
        assert_ne!(ping(1273)?.code, 0);
        exchange(&site, "near", "far")?;
        // Larger than the tunnel carries: 1450 bytes of the underlay's 1500.
        far.succeed("ip link set eth0 mtu 1500")?;
        near.succeed("ip link set eth0 mtu 1400")?;
        near.fetch(far, "10.0.1.12", 1_000_000)?;
        let large = far.run("/tools/ping -n -W 2 -i 0.1 -c 2 -M do -s 1472 10.0.1.11")?;
        assert!(large.text.contains("mtu"), "{large:?}");
        site.wait_for_frames()
    });
}

/// Two tenants with the same addresses: each gets its own peer's answer, and what only the other has is not reached.
#[test]
fn b011_guests_of_another_tenant_are_out_of_reach() {
    let mut objects = weft_tests::tenants(2).unwrap();
    // The address of blue-b is one that only blue has.
    objects.ports.retain(|port| port.id != "red-b");
    put_in_guests(&mut objects, GuestKind::VhostClient, &[]);
    let site = Site::start(Lab::new().unwrap(), &objects, &SiteOptions::default())
        .unwrap_or_else(|error| panic!("{error}"));
    explained(&site, || {
        for (id, guest) in &site.guests {
            guest.succeed(&format!(
                "mkdir -p /tmp/www && echo {id} >/tmp/www/name && httpd -h /tmp/www"
            ))?;
        }
        for tenant in ["blue", "red"] {
            for address in ["10.0.1.12", "[fd00:1::12]"] {
                let line = format!("wget -q -O - http://{address}/name");
                let name = site.guests[&format!("{tenant}-1")].succeed(&line)?;
                assert_eq!(name.trim(), format!("{tenant}-2"));
            }
        }
        for address in ["10.0.2.20", "fd00:2::20"] {
            assert!(site.reaches("blue-1", address, 2), "{address} from blue");
            assert!(!site.reaches("red-1", address, 2), "{address} from red");
        }
        Ok(())
    });
}
