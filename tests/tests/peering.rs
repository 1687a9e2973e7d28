//! Two tenants join their VPCs by a peering, with real processes: what its states let pass, and what each side may do with it.

#![allow(clippy::unwrap_used)]

use std::time::Duration;

use weft_proto::v1::{Objects, Route};
use weft_tests::{Lab, LabError, Site, SiteOptions, tenants, topology, wait_until};

const SOON: Duration = Duration::from_secs(10);

const GREEN: &str = r#"
vpcs: [{id: green, vni: 300, tenant: ben}]
peerings: [{id: p, requester: blue, accepter: green}]
subnets: [{id: green-a, vpc: green, cidrs: [10.0.3.0/24, "fd00:3::/64"], route_table: green}]
route_tables:
  - id: green
    vpc: green
    routes: [{prefix: 10.0.1.0/24, peering: p}, {prefix: "fd00:1::/64", peering: p}]
  - id: blue
    vpc: blue
    routes: [{prefix: 10.0.3.0/24, peering: p}, {prefix: "fd00:3::/64", peering: p}]
security_groups: [{id: green, vpc: green, rules: [{direction: ingress, remote_group: blue}]}]
ports:
  - {id: green-1, vpc: green, subnet: green-a, host: h1, mac: "02:00:00:00:03:11", addresses: [10.0.3.11, "fd00:3::11"]}
  - {id: green-2, vpc: green, subnet: green-a, host: h2, mac: "02:00:00:00:03:12", addresses: [10.0.3.12, "fd00:3::12"]}
"#;

/// Blue of one tenant, green of another; red has blue's addresses and is joined to nobody. h2 wants GRE.
fn objects() -> Objects {
    let mut objects = tenants(2).unwrap();
    objects.hosts[1].encapsulation = "gre".into();
    objects.vpcs[0].tenant = "ann".into();
    for subnet in objects
        .subnets
        .iter_mut()
        .filter(|subnet| subnet.vpc == "blue")
    {
        subnet.route_table = "blue".into();
    }
    let green = topology(GREEN).unwrap();
    objects.vpcs.extend(green.vpcs);
    objects.peerings.extend(green.peerings);
    objects.subnets.extend(green.subnets);
    objects.route_tables.extend(green.route_tables);
    objects.security_groups.extend(green.security_groups);
    objects.ports.extend(green.ports);
    objects
}

const PAIRS: [(&str, &str); 4] = [
    ("blue-1", "green-1"),
    ("blue-1", "green-2"),
    ("blue-2", "green-1"),
    ("blue-2", "green-2"),
];

/// Whether every pair reaches each other, or none does: from blue, which green's groups admit, and from green, which blue's do.
fn all(site: &Site, reach: bool) -> bool {
    // What does not come takes its time.
    let pairs = if reach { &PAIRS[..] } else { &PAIRS[1..3] };
    let ways = pairs.iter().flat_map(|(a, b)| [(*a, *b), (*b, *a)]);
    let odd: Vec<_> = ways
        .flat_map(|(from, to)| [(from, to, false), (from, to, true)])
        .filter(|(from, to, v6)| {
            let address = site.address(to, *v6).unwrap().to_string();
            site.reaches(from, &address, 1) != reach
        })
        .collect();
    if !odd.is_empty() {
        println!("reach each other or not: {odd:?}");
    }
    odd.is_empty()
}

/// The states of the peering's two sides.
fn states(site: &Site) -> Option<[String; 2]> {
    let list = site.ctl(&["peering", "list"]).ok()?;
    let line = list.lines().find(|line| line.starts_with("p "))?;
    let words: Vec<&str> = line.split_whitespace().collect();
    Some([words[2].to_owned(), words[4].to_owned()])
}

fn wait_for(site: &Site, requester: &str, accepter: &str) -> Result<(), LabError> {
    wait_until(&format!("{requester} and {accepter}"), SOON, || {
        states(site).is_some_and(|found| found == [requester, accepter])
    })
}

/// What weftctl says on its way out.
fn refused(site: &Site, arguments: &[&str], text: &str) {
    let error = site.ctl(arguments).unwrap_err().to_string();
    assert!(error.contains(text), "{arguments:?}: {error}");
}

fn dropped(site: &Site, host: &str) -> bool {
    let drops = site.node(host, &["drops"]).unwrap_or_default();
    drops.contains("peering_inactive")
}

#[test]
fn two_tenants_join_their_vpcs_and_part_again() {
    let options = SiteOptions::default();
    let mut site = Site::start(Lab::new().unwrap(), &objects(), &options).unwrap();
    let body = |site: &mut Site| -> Result<(), LabError> {
        wait_for(site, "connecting", "accepting")?;
        assert!(all(site, false) && dropped(site, "h1") && dropped(site, "h2"));
        refused(
            site,
            &["peering", "freeze", "p", "--vpc", "blue"],
            "peering p: requester_state: its sides are connecting and accepting",
        );
        refused(
            site,
            &["peering", "accept", "p", "--vpc", "blue"],
            "peering p: vpc: only the accepter accepts or rejects a peering",
        );
        site.ctl(&["peering", "accept", "p"])?;
        wait_for(site, "active", "active")?;
        wait_until("all reach each other", SOON, || all(site, true))?;
        assert!(site.pings("red-1", "red-2"), "the others go on");
        assert!(
            !site.reaches("red-1", "10.0.3.11", 1),
            "and are joined to nobody"
        );

        refused(
            site,
            &["peering", "freeze", "p"],
            "peering p: vpc: name the VPC whose side it is",
        );
        site.ctl(&["peering", "freeze", "p", "--vpc", "green"])?;
        wait_for(site, "active", "frozen")?;
        assert!(
            all(site, false),
            "frozen is said when no host lets anything pass"
        );
        site.ctl(&["peering", "freeze", "p", "--vpc", "blue"])?;
        wait_for(site, "frozen", "frozen")?;
        site.ctl(&["peering", "activate", "p", "--vpc", "green"])?;
        wait_for(site, "frozen", "active")?;
        assert!(all(site, false), "either side alone keeps it shut");
        site.ctl(&["peering", "activate", "p", "--vpc", "blue"])?;
        wait_for(site, "active", "active")?;
        wait_until("all do again", SOON, || all(site, true))?;

        // What a file says of the states counts for nothing, and what overlaps is refused whole.
        site.change(|objects| objects.peerings[0].accepter_state = "frozen".into())?;
        assert_eq!(states(site).unwrap(), ["active", "active"]);
        let mut wrong = site.objects.clone();
        let mut subnet = wrong.subnets[0].clone();
        (subnet.id, subnet.vpc) = ("green-b".into(), "green".into());
        (subnet.cidrs, subnet.route_table) = (vec!["10.0.0.0/22".into()], String::new());
        wrong.subnets.push(subnet);
        let error = site.apply_only(&wrong).unwrap_err().to_string();
        for text in ["peering p: accepter", "'green-b'", "'blue-a'", "overlaps"] {
            assert!(error.contains(text), "{error}");
        }

        // A deleted one stays as such while a route leads there.
        site.ctl(&["peering", "delete", "p"])?;
        wait_for(site, "deleted", "deleted")?;
        site.wait_for_hosts()?;
        assert!(all(site, false) && dropped(site, "h1") && dropped(site, "h2"));
        for (table, prefix) in [
            ("blue", "10.0.3.0/24"),
            ("blue", "fd00:3::/64"),
            ("green", "10.0.1.0/24"),
        ] {
            site.ctl(&["route", "delete", table, prefix])?;
        }
        assert!(
            states(site).is_some(),
            "one route is left, and a group that names blue's"
        );
        site.ctl(&["route", "delete", "green", "fd00:1::/64"])?;
        assert!(states(site).is_some());
        site.ctl(&["sg", "rule", "delete", "green", "--remote-group", "blue"])?;
        assert_eq!(states(site), None);

        // Asked again, it waits for an answer again; and a no is a no.
        let mut again = site.objects.clone();
        for table in &mut again.route_tables {
            table.routes.clear();
        }
        again.security_groups.last_mut().unwrap().rules.clear();
        again.peerings[0].requester_state = "active".into();
        site.apply_only(&again)?;
        wait_for(site, "connecting", "accepting")?;
        site.ctl(&["peering", "reject", "p"])?;
        wait_for(site, "rejected", "rejected")?;
        refused(
            site,
            &["route", "add", "blue", "10.9.0.0/16", "--peering", "q"],
            "route_table blue: routes[0].peering: there is no peering 'q'",
        );
        site.wait_for_frames()
    };
    if let Err(error) = body(&mut site) {
        panic!("{}", site.explain(error));
    }
}

/// One tenant's two VPCs need nobody's consent, and its routes and groups may name the other's.
#[test]
fn one_tenants_vpcs_are_joined_at_once_and_traced_through() {
    let mut objects = objects();
    objects.vpcs[0].tenant = "ben".into();
    let options = SiteOptions::default();
    let mut site = Site::start(Lab::new().unwrap(), &objects, &options).unwrap();
    let body = |site: &mut Site| -> Result<(), LabError> {
        assert_eq!(states(site).unwrap(), ["active", "active"]);
        wait_until("all reach each other", SOON, || all(site, true))?;
        let trace = site.node("h1", &["trace", "--port", "blue-1", "--dst", "10.0.3.12"])?;
        for text in ["peering p", "into VPC green", "host h2"] {
            assert!(trace.contains(text), "{trace}");
        }
        let sessions = site.node("h1", &["session", "list"])?;
        assert!(sessions.contains("green"), "{sessions}");
        // A member of blue's group that goes is one no longer, in green too.
        site.change(|objects| {
            let port = objects.ports.iter_mut().find(|port| port.id == "blue-2");
            port.unwrap().security_groups.clear();
        })?;
        assert!(site.pings("blue-1", "green-1") && !site.pings("blue-2", "green-1"));
        // And one more VPC may not change hands.
        let mut stolen = site.objects.clone();
        stolen.vpcs[0].tenant = "ann".into();
        let error = site.apply_only(&stolen).unwrap_err().to_string();
        assert!(
            error.contains("vpc blue: tenant: cannot be changed"),
            "{error}"
        );
        site.change(|objects| {
            for table in &mut objects.route_tables {
                table
                    .routes
                    .retain(|route: &Route| route.peering.is_empty());
            }
        })?;
        assert!(!site.pings("blue-1", "green-1"), "no route, no way");
        site.wait_for_frames()
    };
    if let Err(error) = body(&mut site) {
        panic!("{}", site.explain(error));
    }
}
