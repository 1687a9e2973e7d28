//! VPCs whose ports hosts learn on demand (decision 018), with real processes: nothing differs for the workloads, and hosts know what they use.

#![allow(clippy::unwrap_used)]

use std::time::Duration;

use weft_proto::v1::Objects;
use weft_tests::{Lab, LabError, Site, SiteOptions, holds, tenants, wait_until};

const SOON: Duration = Duration::from_secs(10);

/// Every VPC has more ports than this.
fn options() -> SiteOptions {
    SiteOptions {
        controller: "learn_above = 1".into(),
        ..SiteOptions::default()
    }
}

/// Runs `body` on a site whose hosts learn, and says what a person would ask for if it fails.
fn on_site(objects: &Objects, body: impl FnOnce(&mut Site) -> Result<(), LabError>) {
    let mut site = Site::start(Lab::new().unwrap(), objects, &options()).unwrap();
    if let Err(error) = body(&mut site).and_then(|()| site.wait_for_frames()) {
        panic!("{}", site.explain(error));
    }
}

/// The ids of ports, or of addresses that were asked for, in the state of a host.
fn known(site: &Site, host: &str, list: &str) -> Vec<String> {
    let state = site.node_json(host, &["node", "state"]).unwrap();
    let objects = state["state"][list].as_array().cloned();
    let ids = objects.unwrap_or_default();
    ids.iter()
        .filter_map(|object| object["id"].as_str().map(str::to_owned))
        .collect()
}

/// How long the answer to the one and only packet takes, in milliseconds.
fn first_packet(site: &Site, from: &str, address: &str) -> Result<String, LabError> {
    let namespace = &site.workloads[from].namespace;
    let said = namespace.run(&["ping", "-n", "-W", "1", "-c", "1", address])?;
    let time = said.split("time=").nth(1);
    let time = time.and_then(|rest| rest.split_whitespace().next());
    Ok(time.unwrap_or_default().to_owned())
}

fn drops(site: &Site, host: &str, reason: &str) -> bool {
    let drops = site.node(host, &["drops"]).unwrap_or_default();
    drops.contains(reason)
}

#[test]
fn all_reach_each_other_and_hosts_know_whom_they_speak_to() {
    let objects = tenants(2).unwrap();
    on_site(&objects, |site| {
        // One packet each: none is lost, not the first ones.
        for (from, to) in [
            ("blue-1", "blue-2"),
            ("blue-1", "blue-b"),
            ("blue-2", "blue-1"),
            ("blue-b", "blue-1"),
            ("red-1", "red-2"),
        ] {
            for v6 in [false, true] {
                let address = site.address(to, v6).unwrap().to_string();
                let took = first_packet(site, from, &address)?;
                println!("{from} to {address}: first answer after {took} ms, neighbours included");
            }
        }
        let ports = known(site, "h1", "ports");
        holds("h1 knows the others now", {
            ["blue-2", "blue-b", "red-2"]
                .iter()
                .all(|id| ports.iter().any(|port| port == id))
        })?;
        // By an address, or by the MAC with which they have sent a multicast.
        let asked = known(site, "h1", "learned_addresses");
        holds("since it has asked for them", !asked.is_empty())?;
        holds(
            "nothing was dropped for want of an answer",
            !drops(site, "h1", "address_unlearned") && !drops(site, "h2", "address_unlearned"),
        )
    });
}

#[test]
fn a_group_admits_its_members_whether_they_were_known_or_not() {
    let mut objects = tenants(2).unwrap();
    // blue-1 is reached by members of `callers` alone: blue-b is one, blue-2 is none.
    let open = objects.security_groups.iter();
    let mut callers = open.clone().find(|it| it.vpc == "blue").unwrap().clone();
    let mut guarded = callers.clone();
    (callers.id, callers.rules) = ("callers".into(), Vec::new());
    guarded.id = "guarded".into();
    for rule in &mut guarded.rules {
        rule.remote_group = "callers".into();
        rule.remote_cidr.clear();
    }
    guarded.rules.retain(|rule| rule.direction == "ingress");
    objects.security_groups.extend([callers, guarded]);
    for port in &mut objects.ports {
        match &*port.id {
            "blue-1" => port.security_groups = vec!["guarded".into()],
            "blue-b" => port.security_groups.push("callers".into()),
            _ => {}
        }
    }
    on_site(&objects, |site| {
        let address = site.address("blue-1", false).unwrap().to_string();
        holds("no member", !site.reaches("blue-2", &address, 1))?;
        holds("a member", site.reaches("blue-b", &address, 1))?;
        holds(
            "refused by the group, and by nothing else",
            drops(site, "h1", "group_denied") && !drops(site, "h1", "address_unlearned"),
        )?;
        site.change(|objects| {
            let port = objects.ports.iter_mut().find(|it| it.id == "blue-2");
            port.unwrap().security_groups.push("callers".into());
        })?;
        holds("a member now", site.reaches("blue-2", &address, 1))
    });
}

#[test]
fn what_is_known_stays_without_a_controller_and_the_rest_is_asked_for_when_it_is_back() {
    let objects = tenants(2).unwrap();
    on_site(&objects, |site| {
        let near = site.address("blue-2", false).unwrap().to_string();
        // Nobody has it, but that is not known yet.
        let far = "10.0.2.77";
        holds("one is asked for", site.reaches("blue-1", &near, 1))?;
        site.controller = None;
        if let Some(mut daemon) = site.hosts.get_mut("h1").unwrap().daemon.take() {
            daemon.signal(libc::SIGKILL);
            daemon.wait(SOON)?;
        }
        site.start_daemon("h1")?;
        wait_until("the one that is known is reached", SOON, || {
            site.reaches("blue-1", &near, 1)
        })?;
        holds("the other is not", !site.reaches("blue-1", far, 1))?;
        holds("and it is said why", drops(site, "h1", "address_unlearned"))?;
        site.start_controller()?;
        site.wait_for_hosts()?;
        wait_until("it is known that nobody has it", SOON, || {
            site.reaches("blue-1", far, 1) || drops(site, "h1", "no_port")
        })
    });
}

#[test]
fn an_address_that_moves_is_followed_and_one_that_comes_is_found() {
    let objects = tenants(2).unwrap();
    on_site(&objects, |site| {
        let free = "10.0.2.77";
        holds("nobody has it", !site.reaches("blue-1", free, 1))?;
        holds("which is known", drops(site, "h1", "no_port"))?;
        // blue-b gets it, and h1, which had asked, is told.
        site.change(|objects| {
            let port = objects.ports.iter_mut().find(|it| it.id == "blue-b");
            port.unwrap().addresses.push(free.into());
        })?;
        wait_until("h1 is told of the port", SOON, || {
            known(site, "h1", "ports").iter().any(|id| id == "blue-b")
        })?;
        let namespace = &site.workloads["blue-b"].namespace;
        namespace.ip(&format!("address add {free}/24 dev eth0"))?;
        holds("it is reached", site.reaches("blue-1", free, 1))
    });
}
