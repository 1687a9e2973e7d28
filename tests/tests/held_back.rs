//! One tenant outgrows a host, and no other notices (decision 013): what the host cannot hold is refused at the change where its limits are known, and else
//! stays behind there alone. `limits.peers` of h1 is 2 throughout.

#![allow(clippy::unwrap_used)]

use std::fs::OpenOptions;
use std::io::Write;
use std::time::Duration;

use weft_proto::v1::Objects;
use weft_tests::{Daemon, Lab, LabError, Site, SiteOptions, topology, wait_until};

const SOON: Duration = Duration::from_secs(15);

/// Blue on h1 and h2, red on h1, h2 and h3; h4 has nothing of either yet.
const TOPOLOGY: &str = r#"
hosts:
  - {id: h1, vteps: [192.0.2.1]}
  - {id: h2, vteps: [192.0.2.2]}
  - {id: h3, vteps: [192.0.2.3]}
  - {id: h4, vteps: [192.0.2.4]}
vpcs: [{id: blue, vni: 101}, {id: red, vni: 102}]
subnets:
  - {id: blue-a, vpc: blue, cidrs: [10.1.0.0/24]}
  - {id: red-a, vpc: red, cidrs: [10.1.0.0/24]}
security_groups:
  - {id: blue, vpc: blue, rules: [{direction: ingress, protocol: icmp}]}
  - {id: red, vpc: red, rules: [{direction: ingress, protocol: icmp}]}
ports:
  - {id: blue-1, vpc: blue, subnet: blue-a, mac: "02:00:00:00:01:01", addresses: [10.1.0.11], host: h1}
  - {id: blue-2, vpc: blue, subnet: blue-a, mac: "02:00:00:00:01:02", addresses: [10.1.0.12], host: h2}
  - {id: red-1, vpc: red, subnet: red-a, mac: "02:00:00:00:02:01", addresses: [10.1.0.11], host: h1}
  - {id: red-2, vpc: red, subnet: red-a, mac: "02:00:00:00:02:02", addresses: [10.1.0.12], host: h2}
  - {id: red-3, vpc: red, subnet: red-a, mac: "02:00:00:00:02:03", addresses: [10.1.0.13], host: h3}
"#;

/// Red on h4, too: with it h1 would have to know three other hosts.
const GROWTH: &str = r#"
ports: [{id: red-4, vpc: red, subnet: red-a, mac: "02:00:00:00:02:04", addresses: [10.1.0.14], host: h4}]
"#;

fn explained(site: &mut Site, body: impl FnOnce(&mut Site) -> Result<(), LabError>) {
    if let Err(error) = body(site) {
        panic!("{}", site.explain(error));
    }
}

/// Whether blue's port on h1 can be pinged.
fn set_open(objects: &mut Objects, is_open: bool) {
    let mut groups = topology(TOPOLOGY).unwrap().security_groups.into_iter();
    let open = groups.find(|group| group.id == "blue").unwrap().rules;
    let blue = objects
        .security_groups
        .iter_mut()
        .find(|group| group.id == "blue");
    blue.unwrap().rules = if is_open { open } else { Vec::new() };
}

/// Blue's port on h1 is open or closed once the change has returned and the host has it in force.
fn blue_is(site: &mut Site, is_open: bool) -> Result<(), LabError> {
    let mut objects = site.objects.clone();
    set_open(&mut objects, is_open);
    site.apply_only(&objects)?;
    site.objects = objects;
    let wanted = revision(site, None);
    wait_until("h1 has blue's change in force", SOON, || {
        revision(site, Some("h1")) >= wanted
    })?;
    assert_eq!(site.reaches("blue-2", "10.1.0.11", 1), is_open);
    Ok(())
}

/// The revision that a host has acknowledged; without a host, that of the intent.
fn revision(site: &Site, host: Option<&str>) -> u64 {
    let text = site.ctl(&["hosts", "-o", "json"]).unwrap_or_default();
    let reply: serde_json::Value = serde_json::from_str(&text).unwrap_or_default();
    let number = |value: &serde_json::Value| {
        let text = value.as_str().and_then(|text| text.parse().ok());
        value.as_u64().or(text).unwrap_or(0)
    };
    let Some(host) = host else {
        return number(&reply["revision"]);
    };
    let hosts = reply["hosts"].as_array().cloned().unwrap_or_default();
    let found = hosts.iter().find(|it| it["host"] == host);
    found.map_or(0, |it| number(&it["acknowledged_revision"]))
}

fn vpc_status(site: &Site) -> String {
    site.ctl(&["vpc", "status"]).unwrap_or_default()
}

/// A daemon dies with all that it has in memory.
fn kill(site: &mut Site, host: &str) {
    let daemon = site.hosts.get_mut(host).unwrap().daemon.take();
    end(daemon.unwrap());
}

fn end(mut daemon: Daemon) {
    daemon.signal(9);
    daemon.wait(SOON).unwrap();
}

#[test]
fn a_tenant_that_outgrows_a_host_keeps_no_other_tenants_change_from_it() {
    let options = SiteOptions::default();
    let objects = topology(TOPOLOGY).unwrap();
    let mut site = Site::start(Lab::new().unwrap(), &objects, &options).unwrap();
    let mut growth = topology(GROWTH).unwrap();
    explained(&mut site, |site| {
        let config = site.hosts["h1"].config.clone();
        let mut file = OpenOptions::new().append(true).open(&config).unwrap();
        writeln!(file, "limits.peers = 2").unwrap();
        kill(site, "h1");
        site.start_daemon("h1")?;
        site.wait_for_hosts()?;
        site.wait_for_ports()?;
        site.prepare(&mut growth.ports[0], &options)?;

        // 1. The limit is known: red's growth is refused, and blue's deletion of a rule is in force at once.
        let mut grown = site.objects.clone();
        grown.ports.push(growth.ports[0].clone());
        let refused = site.apply_only(&grown).unwrap_err().to_string();
        let rule = "port red-4: host: with it, host 'h1' would have to know 3 other hosts, and knows at most 2 (limits.peers of its weftd.toml)";
        assert!(refused.contains(rule), "{refused}");
        assert!(site.reaches("blue-2", "10.1.0.11", 1));
        blue_is(site, false)?;
        blue_is(site, true)?;

        // 2. It is not known: a controller that has just started takes the change while h1 is away.
        kill(site, "h1");
        end(site.controller.take().unwrap());
        site.start_controller()?;
        site.apply_only(&grown)?;
        site.objects = grown;
        site.start_daemon("h1")?;
        wait_until("red stays behind on h1", SOON, || {
            vpc_status(site)
                .lines()
                .any(|line| line.starts_with("red ") && line.contains(" h1 "))
        })?;
        let status = vpc_status(site);
        assert_eq!(status.lines().count(), 2, "nothing else does: {status}");
        assert!(
            status.contains("would know 3 other hosts, and knows at most 2 (limits.peers)"),
            "{status}"
        );
        site.wait_for_ports()?;
        // Red is there as it was, and new where there is room.
        assert!(site.pings("red-3", "red-1"));
        assert!(site.pings("red-3", "red-4"));
        assert!(
            !site.reaches("red-4", "10.1.0.11", 1),
            "h1 knows nothing of h4"
        );
        // Blue goes on.
        assert!(site.reaches("blue-2", "10.1.0.11", 1));
        blue_is(site, false)?;
        let log = site.hosts["h1"].daemon.as_ref().unwrap().log();
        let said = log
            .lines()
            .filter(|line| line.contains("stays behind on this host"));
        assert_eq!(
            said.filter(|line| line.contains("vpc red")).count(),
            1,
            "{log}"
        );
        let node = site.node("h1", &["node", "status"])?;
        assert!(
            node.contains("HELD BACK: vpc red stays behind (as of revision "),
            "{node}"
        );

        // 3. A restart changes nothing of that, nor does it loop: the same state is in sync.
        kill(site, "h1");
        site.start_daemon("h1")?;
        wait_until("h1 is there again", SOON, || {
            let node = site.node("h1", &["node", "status"]).unwrap_or_default();
            node.contains("controller connected") && node.contains("HELD BACK: vpc red")
        })?;
        site.wait_for_ports()?;
        assert!(site.pings("red-3", "red-1"), "as it was before");
        assert!(!site.reaches("blue-2", "10.1.0.11", 1), "closed");
        assert_eq!(vpc_status(site).lines().count(), 2);

        // 4. Red shrinks elsewhere, and is in sync again.
        let mut objects = site.objects.clone();
        objects.ports.retain(|port| port.id != "red-3");
        site.apply_only(&objects)?;
        site.objects = objects;
        wait_until("red has caught up", SOON, || {
            vpc_status(site).lines().count() == 1
        })?;
        site.wait_for_hosts()?;
        assert!(site.pings("red-4", "red-1"));
        blue_is(site, true)?;
        Ok(())
    });
}
