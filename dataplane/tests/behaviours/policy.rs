//! Policy: behaviours 14 to 18.

use weft_dataplane::packet::DropReason;
use weft_proto::v1::{AclRule, NetworkAcl, PrefixList, SecurityGroup, SecurityRule};

use crate::frames::{A1, A2, A3, B1, echo, tcp, udp, udp6};
use crate::topology::{ROUTER, change, fabric, group, ingress, port};

#[test]
fn b014_an_ingress_rule_admits_exactly_what_it_says() {
    let mut fabric = fabric(|objects| {
        let rule = SecurityRule {
            remote_cidr: "10.0.1.11/32".into(),
            ..ingress("udp", Some(53))
        };
        group(objects, "open").rules = vec![rule];
    });
    assert_eq!(
        fabric
            .send("a1", &udp(A1, A2, A2.mac, (1000, 53), b"?"))
            .len(),
        1
    );
    assert_eq!(
        fabric
            .send("a2", &udp(A2, A1, A1.mac, (53, 1000), b"!"))
            .len(),
        1,
        "the reply needs no rule"
    );
    for (name, from, frame) in [
        ("another port", "a1", udp(A1, A2, A2.mac, (1000, 54), b"?")),
        (
            "another source",
            "a3",
            udp(A3, A2, A2.mac, (1000, 53), b"?"),
        ),
        (
            "another protocol",
            "a1",
            tcp(A1, A2, A2.mac, (1000, 53), "S", (1, 0), 0),
        ),
        (
            "another family",
            "a1",
            udp6(A1, A2, A2.mac, (1000, 53), b"?"),
        ),
        ("not a reply", "a2", udp(A2, A1, A1.mac, (53, 1001), b"!")),
    ] {
        assert!(fabric.send(from, &frame).is_empty(), "{name}");
    }
    assert_eq!(
        fabric.drops("h1", DropReason::GroupDenied) + fabric.drops("h2", DropReason::GroupDenied),
        5
    );
}

#[test]
fn b014_by_default_out_is_open_and_in_is_shut_and_the_first_egress_rule_flips_out() {
    let mut fabric = fabric(|objects| port(objects, "a2").security_groups.clear());
    assert!(
        fabric
            .send("a1", &udp(A1, A2, A2.mac, (1, 2), b"x"))
            .is_empty()
    );
    assert_eq!(
        fabric.send("a2", &udp(A2, A1, A1.mac, (1, 2), b"x")).len(),
        1
    );
    change(&mut fabric, |objects| {
        let egress = SecurityRule {
            direction: "egress".into(),
            ..ingress("tcp", Some(443))
        };
        objects.security_groups.push(SecurityGroup {
            id: "web".into(),
            vpc: "blue".into(),
            rules: vec![egress],
            members: vec![],
            tenant: String::new(),
            ..SecurityGroup::default()
        });
        port(objects, "a2").security_groups = vec!["web".into()];
    });
    assert!(
        fabric
            .send("a2", &udp(A2, A1, A1.mac, (3, 4), b"x"))
            .is_empty()
    );
    assert_eq!(
        fabric
            .send("a2", &tcp(A2, A1, A1.mac, (9, 443), "S", (1, 0), 0))
            .len(),
        1
    );
}

#[test]
fn b014_icmp_type_and_code() {
    let mut fabric = fabric(|objects| {
        let rule = SecurityRule {
            icmp_type: Some(8),
            icmp_code: Some(0),
            ..ingress("icmp", None)
        };
        group(objects, "open").rules = vec![rule];
    });
    assert_eq!(
        fabric.send("a1", &echo(A1, A2, A2.mac, 5, b"ping")).len(),
        1
    );
    assert_eq!(
        fabric
            .send("a2", &crate::frames::echo_reply(A2, A1, A1.mac, 5, b"ping"))
            .len(),
        1
    );
    assert!(
        fabric
            .send("a2", &crate::frames::echo_reply(A2, A1, A1.mac, 6, b"ping"))
            .is_empty(),
        "another id"
    );
    let mut timestamp = echo(A1, A2, A2.mac, 5, b"ping");
    timestamp[34] = 13;
    assert!(fabric.send("a1", &timestamp).is_empty());
}

#[test]
fn b016_a_question_with_a_code_passes_for_none_without() {
    let mut fabric = fabric(|_| {});
    assert_eq!(
        fabric.send("a1", &echo(A1, A2, A2.mac, 5, b"ping")).len(),
        1
    );
    let mut coded = echo(A1, A2, A2.mac, 5, b"ping");
    coded[35] = 1;
    assert!(
        fabric.send("a1", &coded).is_empty(),
        "the session of code 0 does not carry it"
    );
    assert_eq!(fabric.drops("h1", DropReason::TransportHeader), 1);
}

#[test]
fn b015_a_group_as_the_remote_follows_its_members_and_so_do_prefix_lists() {
    let mut fabric = fabric(|objects| {
        objects.security_groups.push(SecurityGroup {
            id: "clients".into(),
            vpc: "blue".into(),
            rules: vec![],
            members: vec!["10.0.1.11".into()],
            tenant: String::new(),
            ..SecurityGroup::default()
        });
        objects.prefix_lists.push(PrefixList {
            id: "office".into(),
            vpc: "blue".into(),
            prefixes: vec!["10.0.2.0/24".into()],
            tenant: String::new(),
            ..PrefixList::default()
        });
        group(objects, "open").rules = vec![
            SecurityRule {
                remote_group: "clients".into(),
                ..ingress("udp", Some(53))
            },
            SecurityRule {
                remote_prefix_list: "office".into(),
                ..ingress("udp", Some(53))
            },
        ];
    });
    let from = |from, dst| udp(from, A2, dst, (1000, 53), b"?");
    assert_eq!(fabric.send("a1", &from(A1, A2.mac)).len(), 1);
    assert_eq!(fabric.send("b1", &from(B1, ROUTER)).len(), 1);
    assert!(fabric.send("a3", &from(A3, A2.mac)).is_empty());
    change(&mut fabric, |objects| {
        group(objects, "clients").members = vec!["10.0.1.13".into()];
        objects.prefix_lists[0].prefixes.clear();
    });
    assert_eq!(fabric.send("a3", &from(A3, A2.mac)).len(), 1);
    assert!(
        fabric.send("a1", &from(A1, A2.mac)).is_empty(),
        "an established flow too: its member is gone"
    );
    assert!(fabric.send("b1", &from(B1, ROUTER)).is_empty());
}

fn acl_rule(number: u32, direction: &str, action: &str, port: Option<u32>) -> AclRule {
    let protocol = if port.is_some() { "udp" } else { "any" };
    AclRule {
        number,
        direction: direction.into(),
        action: action.into(),
        protocol: protocol.into(),
        port_min: port,
        port_max: port,
        ..AclRule::default()
    }
}

#[test]
fn b016_acls_are_ordered_and_stateless() {
    let mut fabric = fabric(|objects| {
        let rules = vec![
            acl_rule(200, "egress", "deny", Some(53)),
            acl_rule(100, "egress", "allow", Some(53)),
            acl_rule(300, "egress", "deny", Some(54)),
            acl_rule(10, "ingress", "allow", Some(1000)),
        ];
        objects.network_acls = vec![NetworkAcl {
            id: "acl".into(),
            vpc: "blue".into(),
            rules,
            ..NetworkAcl::default()
        }];
        objects.subnets[1].network_acl = "acl".into();
    });
    let out = |port| udp(B1, A1, ROUTER, (1000, port), b"?");
    assert_eq!(
        fabric.send("b1", &out(53)).len(),
        1,
        "the lowest number decides"
    );
    assert!(fabric.send("b1", &out(54)).is_empty());
    assert!(fabric.send("b1", &out(55)).is_empty(), "denied at the end");
    assert_eq!(
        fabric
            .send("a1", &udp(A1, B1, ROUTER, (53, 1000), b"!"))
            .len(),
        1,
        "the reply by its own rule"
    );
    change(&mut fabric, |objects| {
        drop(objects.network_acls[0].rules.pop());
    });
    assert_eq!(fabric.send("b1", &out(53)).len(), 1);
    assert!(
        fabric
            .send("a1", &udp(A1, B1, ROUTER, (53, 1000), b"!"))
            .is_empty(),
        "stateless: no rule, no reply"
    );
    assert_eq!(fabric.drops("h1", DropReason::AclDenied), 3);
}

#[test]
fn b017_a_flow_whose_rule_is_removed_ends_both_ways_and_is_forgotten() {
    for reply_first in [false, true] {
        let mut fabric =
            fabric(|objects| group(objects, "open").rules = vec![ingress("udp", Some(53))]);
        let (there, back) = (
            udp(A1, A2, A2.mac, (1000, 53), b"?"),
            udp(A2, A1, A1.mac, (53, 1000), b"!"),
        );
        assert_eq!(fabric.send("a1", &there).len(), 1);
        assert_eq!(fabric.send("a2", &back).len(), 1);
        change(&mut fabric, |objects| group(objects, "open").rules.clear());
        if reply_first {
            // On h2 the rule that admitted the flow is gone: the reply is dropped there.
            assert!(fabric.send("a2", &back).is_empty());
        }
        assert!(fabric.send("a1", &there).is_empty());
        assert_eq!(
            fabric.hosts["h2"].shared.sessions.statistics().live,
            0,
            "forgotten"
        );
        change(&mut fabric, |objects| {
            group(objects, "open").rules = vec![ingress("udp", Some(53))];
        });
        assert_eq!(fabric.send("a1", &there).len(), 1, "and may come back");
    }
}

#[test]
fn b017_equivalent_rules_do_not_lose_a_packet() {
    let mut fabric =
        fabric(|objects| group(objects, "open").rules = vec![ingress("udp", Some(53))]);
    let (there, back) = (
        udp(A1, A2, A2.mac, (1000, 53), b"?"),
        udp(A2, A1, A1.mac, (53, 1000), b"!"),
    );
    for round in 0..20 {
        assert_eq!(fabric.send("a1", &there).len(), 1);
        assert_eq!(fabric.send("a2", &back).len(), 1);
        change(&mut fabric, |objects| {
            let mut rule = ingress("udp", Some(53));
            rule.port_min = Some(53 - round % 5);
            group(objects, "open").rules = vec![rule];
        });
    }
    assert!(fabric.all_drops().is_empty());
}

#[test]
fn b018_what_is_denied_further_on_holds_no_session() {
    let mut fabric = fabric(|objects| port(objects, "a3").security_groups.clear());
    assert!(
        fabric
            .send("a1", &udp(A1, A3, A3.mac, (1, 2), b"x"))
            .is_empty(),
        "group in of a port here"
    );
    assert_eq!(fabric.hosts["h1"].shared.sessions.statistics().live, 0);
}

#[test]
fn b035_a_deleted_port_takes_its_sessions_along() {
    let mut fabric = fabric(|_| {});
    let frame = udp(A1, A3, A3.mac, (1, 2), b"x");
    assert_eq!(fabric.send("a1", &frame).len(), 1);
    change(&mut fabric, |objects| {
        objects.ports.retain(|port| port.id != "a3");
    });
    assert!(fabric.send("a1", &frame).is_empty());
    assert_eq!(fabric.drops("h1", DropReason::UnknownMac), 1);
    assert_eq!(fabric.missing_frames(), 0);
}
