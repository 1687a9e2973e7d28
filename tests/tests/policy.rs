//! b014, b015, b017: policy that changes under live traffic; DSCP marks and policy routes.

#![allow(clippy::unwrap_used)]

use std::{
    io::{ErrorKind, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    time::Duration,
};

use weft_proto::v1::{AddressPair, Objects, SecurityRule};
use weft_tests::{Capture, Lab, LabError, Site, SiteOptions, tenants, topology, wait_until};

const SOON: Duration = Duration::from_secs(10);

fn site() -> Site {
    let options = SiteOptions::default();
    Site::start(Lab::new().unwrap(), &tenants(2).unwrap(), &options).unwrap()
}

fn explained(site: &mut Site, body: impl FnOnce(&mut Site) -> Result<(), LabError>) {
    if let Err(error) = body(site) {
        panic!("{}", site.explain(error));
    }
}

fn ingress(protocol: &str, port: Option<u32>) -> SecurityRule {
    SecurityRule {
        direction: "ingress".into(),
        protocol: protocol.into(),
        port_min: port,
        port_max: port,
        ..SecurityRule::default()
    }
}

fn set_rules(objects: &mut Objects, tenant: &str, rules: &[SecurityRule]) {
    let groups = objects.security_groups.iter_mut();
    groups
        .filter(|group| group.id == tenant)
        .for_each(|group| group.rules = rules.to_vec());
}

/// A TCP connection between two workloads, both ends in hand.
struct Connection {
    client: TcpStream,
    server: TcpStream,
}

impl Connection {
    fn open(site: &Site, from: &str, to: &str, port: u16) -> Result<Self, LabError> {
        let service: SocketAddr = site.service(to, false, port)?;
        let listener = site.workloads[to]
            .namespace
            .enter(|| TcpListener::bind(service))?
            .unwrap();
        let client = site.workloads[from]
            .namespace
            .enter(|| TcpStream::connect_timeout(&service, SOON))?
            .unwrap();
        let (server, _) = listener.accept().unwrap();
        for end in [&client, &server] {
            end.set_read_timeout(Some(Duration::from_millis(400)))
                .unwrap();
            end.set_nodelay(true).unwrap();
        }
        Ok(Self { client, server })
    }

    /// Whether a byte crosses each way.
    fn carries(&mut self) -> bool {
        carries(&mut self.client, &mut self.server) && carries(&mut self.server, &mut self.client)
    }
}

fn carries(from: &mut TcpStream, to: &mut TcpStream) -> bool {
    from.write_all(&[7]).is_ok() && {
        let mut byte = [0];
        match to.read(&mut byte) {
            Ok(count) => count == 1,
            Err(error) => {
                assert!(
                    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut),
                    "{error}"
                );
                false
            }
        }
    }
}

#[test]
fn b017_a_rule_that_goes_stops_an_established_connection_both_ways() {
    let mut site = site();
    explained(&mut site, |site| {
        let mut stopped = Connection::open(site, "blue-1", "blue-2", 5201)?;
        let mut other = Connection::open(site, "red-1", "red-2", 5201)?;
        assert!(stopped.carries() && other.carries());
        site.change(|objects| set_rules(objects, "blue", &[ingress("icmp", None)]))?;
        assert!(
            !carries(&mut stopped.client, &mut stopped.server),
            "client to server"
        );
        assert!(
            !carries(&mut stopped.server, &mut stopped.client),
            "server to client"
        );
        assert!(other.carries(), "the other tenant's");
        site.change(|objects| set_rules(objects, "blue", &[ingress("any", None)]))?;
        wait_until("admitted again, it goes on", SOON, || stopped.carries())
    });
}

#[test]
fn b017_equivalent_rules_lose_no_packet() {
    let mut site = site();
    explained(&mut site, |site| {
        let stream = site.stream("blue-1", "blue-2", 9, 2000)?;
        let routed = site.stream("blue-b", "blue-1", 9, 500)?;
        let mut connection = Connection::open(site, "blue-1", "blue-b", 5201)?;
        for round in 0..20 {
            let rules = if round % 2 == 0 {
                vec![
                    ingress("udp", Some(9)),
                    ingress("tcp", None),
                    ingress("icmp", None),
                ]
            } else {
                vec![ingress("any", None)]
            };
            site.change(|objects| set_rules(objects, "blue", &rules))?;
            assert!(connection.carries(), "round {round}");
        }
        for stream in [stream, routed] {
            let tally = stream.end();
            assert_eq!((tally.lost(), tally.twice), (0, 0), "{tally:?}");
        }
        Ok(())
    });
}

#[test]
fn b014_a_port_opens_and_shuts_for_new_flows() {
    let mut site = site();
    explained(&mut site, |site| {
        site.change(|objects| set_rules(objects, "blue", &[ingress("tcp", Some(80))]))?;
        let refused = |site: &Site, port: u16| {
            let service = site.service("blue-2", false, port).unwrap();
            let connected = site.workloads["blue-1"]
                .namespace
                .enter(|| TcpStream::connect_timeout(&service, Duration::from_millis(500)));
            // Nobody listens: let in, the far kernel says so; kept out, nothing comes back.
            match connected.unwrap().unwrap_err().kind() {
                ErrorKind::ConnectionRefused => false,
                ErrorKind::TimedOut => true,
                other => panic!("{other}"),
            }
        };
        assert!(!refused(site, 80));
        assert!(refused(site, 81));
        assert!(Connection::open(site, "blue-1", "blue-2", 80)?.carries());
        assert!(!site.pings("blue-1", "blue-2"));
        site.change(|objects| set_rules(objects, "blue", &[ingress("tcp", Some(81))]))?;
        assert!(refused(site, 80));
        assert!(!refused(site, 81));
        Ok(())
    });
}

#[test]
fn b015_a_rule_for_a_group_follows_its_members() {
    let mut site = site();
    explained(&mut site, |site| {
        site.change(|objects| {
            let mut friends = objects.security_groups[0].clone();
            friends.id = "friends".into();
            friends.rules.clear();
            objects.security_groups.push(friends);
            let mut rule = ingress("any", None);
            rule.remote_group = "friends".into();
            set_rules(objects, "blue", &[rule]);
        })?;
        let join = |site: &mut Site, member: bool| {
            site.change(|objects| {
                let ports = objects.ports.iter_mut();
                for port in ports.filter(|port| port.id == "blue-1") {
                    port.security_groups = vec!["blue".into()];
                    port.security_groups
                        .extend(member.then(|| "friends".into()));
                }
            })
        };
        for _ in 0..2 {
            assert!(!site.pings("blue-1", "blue-2"), "not a member");
            join(site, true)?;
            assert!(
                site.pings("blue-1", "blue-2") && site.pings("blue-1", "blue-b"),
                "a member"
            );
            join(site, false)?;
        }
        Ok(())
    });
}

/// The field of every packet that a filter selects, those of outer headers first.
fn seen(capture: &Capture, filter: &str, field: &str) -> Vec<String> {
    let lines = capture.decode(filter, &[field]).unwrap();
    lines
        .iter()
        .flat_map(|line| line.split(','))
        .map(ToOwned::to_owned)
        .collect()
}

#[test]
fn what_a_port_sends_bears_its_dscp_on_the_wire_and_at_the_receiver() {
    // With three hosts there is a bridge between them, which shows what leaves through AF_XDP.
    let mut objects = tenants(2).unwrap();
    let third = topology("hosts: [{id: h3, vteps: [192.0.2.3]}]").unwrap();
    objects.hosts.extend(third.hosts);
    let mut site = Site::start(Lab::new().unwrap(), &objects, &SiteOptions::default()).unwrap();
    explained(&mut site, |site| {
        site.change(|objects| {
            for port in &mut objects.ports {
                port.dscp = match port.id.as_str() {
                    "blue-1" => Some(46),
                    "blue-2" => Some(10),
                    _ => None,
                };
            }
        })?;
        let mut inside = Capture::start(&site.workloads["blue-2"].namespace, "eth0", "")?;
        let underlay = site.underlay.clone().unwrap();
        let mut wire = Capture::start(&underlay, "br0", "udp port 4789")?;
        assert!(site.pings("blue-1", "blue-2"), "both families");
        for capture in [&mut inside, &mut wire] {
            capture.stop()?;
            let faults = capture.faults()?;
            assert!(faults.is_empty(), "{faults:#?}");
        }
        // Two pings of each family. Linux answers with the traffic class of the question; the answerer's port has its own.
        assert_eq!(
            seen(&inside, "icmp.type == 8", "ip.dsfield.dscp"),
            ["46"; 2]
        );
        let v6 = seen(&inside, "icmpv6.type == 128", "ipv6.tclass.dscp");
        assert_eq!(v6, ["46"; 2]);
        assert_eq!(seen(&wire, "icmp.type == 8", "ip.dsfield.dscp"), ["46"; 4]);
        assert_eq!(seen(&wire, "icmp.type == 0", "ip.dsfield.dscp"), ["10"; 4]);
        Ok(())
    });
}

#[test]
fn policy_routes_lead_a_protocol_elsewhere_and_leave_answers_alone() {
    let mut site = site();
    explained(&mut site, |site| {
        // Nobody's address, which blue-2's workload answers for.
        const ELSEWHERE: &str = "198.51.100.7";
        site.change(|objects| {
            objects.route_tables = topology("route_tables: [{id: main, vpc: blue}]")
                .unwrap()
                .route_tables;
            let subnets = objects.subnets.iter_mut();
            for subnet in subnets.filter(|subnet| subnet.id == "blue-a") {
                subnet.route_table = "main".into();
            }
            let ports = objects.ports.iter_mut();
            for port in ports.filter(|port| port.id == "blue-2") {
                port.allowed_pairs = vec![AddressPair {
                    cidr: ELSEWHERE.into(),
                    ..AddressPair::default()
                }];
            }
        })?;
        let answering = format!("address add {ELSEWHERE}/32 dev eth0");
        site.workloads["blue-2"].namespace.ip(&answering)?;
        assert!(!site.reaches("blue-1", ELSEWHERE, 1), "no route");
        let ctl = |site: &Site, words: &str| {
            let words: Vec<&str> = words.split_whitespace().collect();
            site.ctl(&[&["route", "policy"], &words[..]].concat())?;
            site.wait_for_hosts()
        };
        ctl(site, "add main 10 --protocol icmp --port blue-2")?;
        assert!(site.reaches("blue-1", ELSEWHERE, 3));
        let connected = |site: &Site, address: &str| {
            let service = SocketAddr::new(address.parse().unwrap(), 80);
            let namespace = &site.workloads["blue-1"].namespace;
            let connected = namespace
                .enter(|| TcpStream::connect_timeout(&service, Duration::from_millis(500)));
            connected.unwrap().map_err(|error| error.kind())
        };
        // Nobody listens: who is reached says so.
        let refused = ErrorKind::ConnectionRefused;
        assert_eq!(connected(site, "10.0.2.20").unwrap_err(), refused);
        assert_ne!(
            connected(site, ELSEWHERE).unwrap_err(),
            refused,
            "TCP has no route"
        );
        let trace = ["trace", "--port", "blue-1", "--dst", "10.0.2.20"];
        let traced = site.node("h1", &trace)?;
        assert!(traced.contains("policy route 10: port"), "{traced}");
        // What blue-1 begins is led away; what blue-b begins is answered.
        ctl(
            site,
            "add main 10 --protocol icmp --source 10.0.1.0/24 --blackhole",
        )?;
        assert!(!site.reaches("blue-1", "10.0.2.20", 1));
        assert!(site.reaches("blue-b", "10.0.1.11", 2));
        assert!(site.reaches("blue-1", "10.0.1.12", 2), "within the subnet");
        assert!(site.reaches("blue-1", "10.0.1.1", 2), "the gateway");
        ctl(site, "delete main 10")?;
        assert!(site.reaches("blue-1", "10.0.2.20", 2));
        Ok(())
    });
}
