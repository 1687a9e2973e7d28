//! Virtual machines with a kernel of their own behind taps, whose kernel side weftd has by AF_XDP: they reach each other across hosts whatever their
//! cards leave to the other side, and what is sent between the hosts is in order.

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

fn decodes(site: &Site) {
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
}

/// Packets from a guest, to it, and their bytes each.
fn traffic(site: &Site, host: &str, port: &str) -> [u64; 4] {
    let stats = site.node_json(host, &["stats"]).unwrap();
    let ports = stats["ports"].as_array().unwrap();
    let found = ports.iter().find(|found| found["port"] == port).unwrap();
    ["rx_packets", "rx_bytes", "tx_packets", "tx_bytes"].map(|what| found[what].as_u64().unwrap())
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
    decodes(&site);
    // The second has sent 3 MB, and the first as much; each frame of a wire would hold 1450 bytes at most.
    for (host, port) in [("h1", "blue-1"), ("h2", "blue-2")] {
        let [packets, bytes, ..] = traffic(&site, host, port);
        assert!(bytes > 3_000_000, "{port}: {bytes} bytes");
        assert!(
            bytes / packets > 2000,
            "{port}: {bytes} bytes in {packets} packets"
        );
    }
}
