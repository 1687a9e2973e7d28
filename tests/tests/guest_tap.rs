//! Virtual machines behind taps, whose host side weftd drives by AF_XDP: they reach each other across hosts with every combination of
//! offloads, and packets between hosts are correct.

#![allow(clippy::unwrap_used)]

use std::time::Duration;

use weft_tests::{
    Capture, GuestKind, Lab, LabError, Site, SiteOptions, guest::NicFeatures, put_in_guests,
    tenants, wait_until,
};

const SOON: Duration = Duration::from_secs(20);

/// Guests on two of three hosts, so that there is a bridge between them to listen at; the other tenant's workloads, with the same addresses, are namespaces.
fn site(features: NicFeatures) -> Site {
    let mut objects = tenants(3).unwrap();
    put_in_guests(&mut objects, GuestKind::TapAsNetdev, &["blue-1", "blue-2"]);
    let options = SiteOptions {
        guest_nic: features,
        ..SiteOptions::default()
    };
    Site::start(Lab::new().unwrap(), &objects, &options).unwrap()
}

fn reach_each_other(site: &Site) -> Result<(), LabError> {
    for (from, to) in [
        ("blue-1", "blue-2"),
        ("blue-2", "blue-1"),
        ("blue-1", "blue-b"),
    ] {
        wait_until(&format!("{from} reaches {to}"), SOON, || {
            site.pings(from, to)
        })?;
    }
    let (a, b) = (&site.guests["blue-1"], &site.guests["blue-2"]);
    a.succeed("/tools/ping -q -n -i 0.02 -c 5 -M do -s 1402 10.0.1.12")?;
    a.succeed("/tools/ping -q -n -i 0.02 -c 5 -s 4000 10.0.1.12")?;
    b.fetch(a, "10.0.1.11", 3_000_000)?;
    a.fetch(b, "[fd00:1::12]", 3_000_000)?;
    Ok(())
}

fn works_and_decodes(features: NicFeatures) {
    decodes(&site(features));
}

/// Returns what was recorded.
fn decodes(site: &Site) -> Capture {
    let underlay = site.underlay.clone().unwrap();
    let mut capture = Capture::start(&underlay, "br0", "udp port 4789").unwrap();
    reach_each_other(site)
        .map_err(|error| site.explain(error))
        .unwrap_or_else(|error| panic!("{error}"));
    capture.stop().unwrap();
    assert_eq!(capture.faults_of_guests().unwrap(), Vec::<String>::new());
    let segments = capture
        .decode(
            "tcp.checksum.status == 1 && vxlan.vni == 100",
            &["frame.number"],
        )
        .unwrap();
    assert!(segments.len() > 2000, "{} segments", segments.len());
    // Of the other tenant's workloads, none was asked for, and none answered.
    let strays = capture
        .decode("vxlan.vni != 100", &["frame.number"])
        .unwrap();
    assert_eq!(strays, Vec::<String>::new());
    let large = capture
        .decode("frame.len > 1514", &["frame.number"])
        .unwrap();
    assert_eq!(
        large,
        Vec::<String>::new(),
        "larger than the underlay's MTU"
    );
    capture
}

/// Packets from a guest.
fn sent(site: &Site, host: &str, port: &str) -> usize {
    let stats = site.node_json(host, &["stats"]);
    let stats = stats.map_err(|error| site.explain(error)).unwrap();
    let ports = stats["ports"].as_array().unwrap();
    let found = ports.iter().find(|found| found["port"] == port).unwrap();
    found["rx_packets"].as_u64().unwrap() as usize
}

#[test]
fn guests_that_leave_checksums_to_their_card() {
    works_and_decodes(NicFeatures {
        segmentation: false,
        ..NicFeatures::default()
    });
}

#[test]
fn guests_that_do_everything_themselves() {
    works_and_decodes(NicFeatures {
        checksum: false,
        segmentation: false,
        ..NicFeatures::default()
    });
}

/// Guests as they come: their kernels leave TCP segments of up to 64 KiB to their cards, and take such.
#[test]
fn guests_that_leave_segments_to_their_card() {
    let site = site(NicFeatures::default());
    let capture = decodes(&site);
    // All that a guest sends leaves its host, and as more packets than it sent, since segments leave in pieces.
    for (host, port, mac) in [
        ("h1", "blue-1", "02:00:00:00:01:11"),
        ("h2", "blue-2", "02:00:00:00:01:12"),
    ] {
        let filter = format!("vxlan && eth.src == {mac}");
        let left = capture.decode(&filter, &["frame.number"]).unwrap().len();
        let sent = sent(&site, host, port);
        assert!(left > sent + 300, "{port}: {sent} packets left as {left}");
    }
}
