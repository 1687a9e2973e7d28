//! A port moves to another host, with real processes: packets that other hosts still send to the old host arrive until they know of the
//! move.

#![allow(clippy::unwrap_used)]

use std::time::Duration;

use weft_tests::{Lab, LabError, Site, SiteOptions, tenants, traffic::NumberedStream, wait_until};

const SOON: Duration = Duration::from_secs(10);

fn dropped(site: &Site, host: &str, reason: &str) -> bool {
    let drops = site.node(host, &["drops"]).unwrap_or_default();
    drops.contains(reason)
}

#[test]
fn b042_the_old_host_sends_on_to_the_new_until_the_others_have_heard() {
    let options = SiteOptions::default();
    let mut site = Site::start(Lab::new().unwrap(), &tenants(3).unwrap(), &options).unwrap();
    let body = |site: &mut Site| -> Result<(), LabError> {
        wait_until("blue-3 reaches blue-1", SOON, || {
            site.pings("blue-3", "blue-1")
        })?;
        // The third host hears nothing from now on.
        let file = site.restart_from_file("h3")?;
        wait_until("it does again", SOON, || site.pings("blue-3", "blue-1"))?;

        // The same machine, as far as anybody can see, on another host.
        let mut there = site
            .objects
            .ports
            .iter()
            .find(|port| port.id == "blue-1")
            .unwrap()
            .clone();
        there.id = "blue-1-moved".into();
        there.host = "h2".into();
        there.device.as_mut().unwrap().name = "p-blue-1-moved".into();
        site.prepare(&mut there, &options)?;
        let hears = |site: &Site, host: &str| {
            let state = site.node_json(host, &["node", "state"]);
            state.is_ok_and(|state| state.to_string().contains(r#""moved_from":"h1""#))
        };
        let mut objects = site.objects.clone();
        let port = objects
            .ports
            .iter_mut()
            .find(|port| port.id == "blue-1")
            .unwrap();
        (port.host, port.device) = ("h2".into(), there.device.clone());
        site.apply_only(&objects)?;
        site.objects = objects;
        for host in ["h1", "h2"] {
            wait_until(&format!("{host} has heard"), SOON, || hears(site, host))?;
        }
        let up = || {
            site.node("h2", &["node", "status"])
                .is_ok_and(|text| text.contains("blue-1"))
        };
        wait_until("the port is up", SOON, up)?;

        let address = site.service("blue-1", false, 9)?;
        let (from, to) = (&site.workloads["blue-3"], &site.workloads["blue-1-moved"]);
        let stream = NumberedStream::start(&from.namespace, &to.namespace, address, 1000)?;
        stream.wait_for_more(500)?;
        assert!(
            !site.pings("blue-3", "blue-1"),
            "it must not speak from elsewhere yet"
        );
        assert!(dropped(site, "h3", "spoofed_inner"));
        assert!(site.pings("blue-2", "blue-1") && site.pings("blue-1-moved", "blue-2"));

        let mut state: serde_json::Value =
            serde_json::from_str(&std::fs::read_to_string(&file).unwrap()).unwrap();
        let ports = state["ports"].as_array_mut().unwrap();
        let port = ports
            .iter_mut()
            .find(|port| port["id"] == "blue-1")
            .unwrap();
        port["host"] = "h2".into();
        std::fs::write(&file, state.to_string()).unwrap();
        let daemon = site.hosts.get_mut("h3").unwrap().daemon.as_mut().unwrap();
        daemon.signal(libc::SIGHUP);
        wait_until("both ways", SOON, || site.pings("blue-3", "blue-1"))?;
        stream.wait_for_more(500)?;
        let tally = stream.end();
        assert_eq!((tally.lost(), tally.twice), (0, 0), "{tally:?}");
        site.wait_for_frames()
    };
    if let Err(error) = body(&mut site) {
        panic!("{}", site.explain(error));
    }
}

/// The MAC by which a workload reaches an address.
fn neighbour(site: &Site, from: &str, address: &str) -> String {
    let known = site.workloads[from]
        .namespace
        .ip(&format!("neigh show to {address}"))
        .unwrap_or_default();
    let mut words = known.split_whitespace();
    words.find(|word| *word == "lladdr");
    words.next().unwrap_or_default().to_owned()
}

#[test]
fn b001_neighbours_hear_of_an_address_that_passes_to_another_port() {
    // Left alone, a kernel asks again after some twenty-five seconds.
    let options = SiteOptions::default();
    let mut site = Site::start(Lab::new().unwrap(), &tenants(3).unwrap(), &options).unwrap();
    let body = |site: &mut Site| -> Result<(), LabError> {
        let both = ["10.0.1.13", "fd00:1::13"];
        for address in both {
            wait_until("blue-1 reaches blue-3", SOON, || {
                site.reaches("blue-1", address, 1)
            })?;
            assert_eq!(neighbour(site, "blue-1", address), "02:00:00:00:01:13");
        }
        for (address, length) in both.iter().zip([24, 64]) {
            let (old, new) = (&site.workloads["blue-3"], &site.workloads["blue-2"]);
            let nodad = if length == 64 { "nodad" } else { "" };
            old.namespace
                .ip(&format!("address del {address}/{length} dev eth0"))?;
            new.namespace
                .ip(&format!("address add {address}/{length} dev eth0 {nodad}"))?;
        }
        site.change(|objects| {
            let find = |id: &str| objects.ports.iter().position(|port| port.id == id).unwrap();
            let (from, to) = (find("blue-3"), find("blue-2"));
            let addresses = std::mem::take(&mut objects.ports[from].addresses);
            objects.ports[to].addresses.extend(addresses);
        })?;
        for address in both {
            wait_until(&format!("blue-1 hears of {address}"), SOON, || {
                neighbour(site, "blue-1", address) == "02:00:00:00:01:12"
            })?;
            assert!(site.reaches("blue-1", address, 1), "{address}");
        }
        site.wait_for_frames()
    };
    if let Err(error) = body(&mut site) {
        panic!("{}", site.explain(error));
    }
}
