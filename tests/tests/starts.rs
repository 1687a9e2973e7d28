//! weftd starts while its ports and the underlay are busy: it forwards every packet that it takes in, since it takes none before it knows
//! the next hops and has opened the ports.

#![allow(clippy::unwrap_used)]

use std::time::Duration;

use weft_tests::{Lab, LabError, Site, SiteOptions, topology};

const SOON: Duration = Duration::from_secs(20);
/// How often each daemon is killed and started.
const STARTS: usize = 4;

const SITE: &str = r#"
hosts: [{id: h1, vteps: [192.0.2.1]}, {id: h2, vteps: [192.0.2.2]}]
vpcs: [{id: blue, vni: 100}]
subnets: [{id: blue-a, vpc: blue, cidrs: [10.0.1.0/24]}]
security_groups: [{id: blue, vpc: blue, rules: [{direction: ingress}]}]
ports:
  - {id: a, vpc: blue, subnet: blue-a, mac: "02:00:00:00:01:01", addresses: [10.0.1.11], host: h1}
  - {id: b, vpc: blue, subnet: blue-a, mac: "02:00:00:00:01:02", addresses: [10.0.1.12], host: h1}
  - {id: c, vpc: blue, subnet: blue-a, mac: "02:00:00:00:01:03", addresses: [10.0.1.13], host: h1}
  - {id: far, vpc: blue, subnet: blue-a, mac: "02:00:00:00:01:04", addresses: [10.0.1.14], host: h2}
"#;

/// What a daemon has dropped since it started, for reasons that a start can be the cause of.
fn lost(site: &Site, host: &str) -> Result<Vec<String>, LabError> {
    let answer = site.node_json(host, &["drops"])?;
    let reasons = answer["reasons"].as_array().cloned().unwrap_or_default();
    let lost = reasons
        .iter()
        .filter(|drop| drop["reason"] == "underlay_unresolved" || drop["reason"] == "port_down");
    Ok(lost.map(|drop| format!("{host}: {drop}")).collect())
}

fn start_under_traffic(cores: &[Vec<usize>]) {
    let options = SiteOptions {
        cores: cores.to_vec(),
        ..SiteOptions::default()
    };
    let mut site = Site::start(Lab::new().unwrap(), &topology(SITE).unwrap(), &options).unwrap();
    let body = |site: &mut Site| -> Result<Vec<String>, LabError> {
        let pairs = [
            ("a", "far"),
            ("far", "c"),
            ("a", "c"),
            ("c", "b"),
            ("b", "a"),
        ];
        let streams = (9..)
            .zip(pairs)
            .map(|(l4_port, (from, to))| site.stream(from, to, l4_port, 2000))
            .collect::<Result<Vec<_>, _>>()?;
        let mut all = Vec::new();
        for round in 0..STARTS {
            for host in ["h1", "h2"] {
                let mut daemon = site.hosts.get_mut(host).unwrap().daemon.take().unwrap();
                daemon.signal(libc::SIGKILL);
                daemon.wait(SOON)?;
                if round % 2 == 1 {
                    // The first start of a machine: the kernel does not know its neighbours.
                    let namespace = &site.hosts[host].namespace;
                    namespace.ip("neighbour flush dev u0")?;
                }
                site.start_daemon(host)?;
                site.wait_for_hosts()?;
                site.wait_for_ports()?;
                for stream in &streams {
                    stream.wait_for_more(20)?;
                }
                all.extend(lost(site, host)?);
            }
        }
        Ok(all)
    };
    match body(&mut site) {
        Ok(lost) => assert!(lost.is_empty(), "{}", lost.join("\n")),
        Err(error) => panic!("{}", site.explain(error)),
    }
}

#[test]
fn a_start_under_traffic_drops_nothing_for_want_of_a_way_or_a_port() {
    start_under_traffic(&[]);
}

#[test]
fn a_start_with_two_workers_drops_nothing_for_want_of_a_way_or_a_port() {
    start_under_traffic(&[vec![0, 1], vec![0, 1]]);
}
