//! Security groups and prefix lists that belong to a tenant.

use super::*;

/// Blue is ann's, and p1 is in a group of hers, whose rules name another one and a list.
fn ann(objects: &mut Objects) {
    objects.vpcs[0].tenant = "ann".into();
    objects.prefix_lists.push(PrefixList {
        id: "ann/partners".into(),
        tenant: "ann".into(),
        prefixes: vec!["198.51.100.0/24".into()],
        ..PrefixList::default()
    });
    let rule = |remote_group: &str, remote_prefix_list: &str| SecurityRule {
        direction: "ingress".into(),
        remote_group: remote_group.into(),
        remote_prefix_list: remote_prefix_list.into(),
        ..SecurityRule::default()
    };
    for (id, rules) in [
        (
            "ann/app",
            vec![rule("ann/db", ""), rule("", "ann/partners")],
        ),
        ("ann/db", vec![]),
    ] {
        objects.security_groups.push(SecurityGroup {
            id: id.into(),
            tenant: "ann".into(),
            rules,
            ..SecurityGroup::default()
        });
    }
    objects.ports[0].security_groups.push("ann/app".into());
    objects.security_groups[0].rules.push(rule("ann/db", ""));
}

fn with_ann(change: impl FnOnce(&mut Objects)) -> impl FnOnce(&mut Objects) {
    |o| {
        ann(o);
        change(o);
    }
}

#[test]
fn ports_and_groups_of_a_tenants_vpcs_use_its_groups_and_lists() {
    accepted(ann);
    refused(
        "security_group ann/app tenant: exactly one of vpc and tenant is set",
        with_ann(|o| o.security_groups[1].vpc = "blue".into()),
    );
    refused(
        "security_group nobody vpc: there is no vpc ''",
        with_ann(|o| {
            o.security_groups.push(SecurityGroup {
                id: "nobody".into(),
                ..SecurityGroup::default()
            });
        }),
    );
    refused(
        "security_group ann/app rules[0].remote_group: security_group 'web' is not of tenant 'ann'",
        with_ann(|o| o.security_groups[1].rules[0].remote_group = "web".into()),
    );
    refused(
        "security_group ann/app rules[1].remote_prefix_list: there is no prefix_list 'ann/none'",
        with_ann(|o| o.security_groups[1].rules[1].remote_prefix_list = "ann/none".into()),
    );
}

#[test]
fn another_tenants_ports_do_not() {
    let found = violations(with_ann(|o| o.vpcs[0].tenant = "bob".into()), Scope::Intent);
    let wanted = [
        "port p1 security_groups[1]: security_group 'ann/app' belongs to tenant 'ann', vpc 'blue' does not",
        "security_group web rules[2].remote_group: security_group 'ann/db' belongs to tenant 'ann', vpc 'blue' does not",
    ];
    assert_eq!(found, wanted);
}

#[test]
fn a_change_to_a_tenants_group_is_checked_by_itself_and_its_end_everywhere() {
    let mut objects = good();
    ann(&mut objects);
    let before = State::from_objects(objects.clone()).unwrap();
    let next = |change: &dyn Fn(&mut Objects)| {
        let mut objects = objects.clone();
        change(&mut objects);
        let next = State::from_objects(objects).unwrap();
        validate_next(&before, &next, Scope::Intent)
    };
    let broken = next(&|o| o.security_groups[1].rules[0].direction = "up".into());
    assert_eq!(broken.len(), 1, "{broken:?}");
    let gone = next(&|o| drop(o.security_groups.remove(2)));
    let named: Vec<String> = gone.iter().map(describe).collect();
    assert_eq!(
        named,
        [
            "security_group ann/app: rules[0].remote_group: there is no security_group 'ann/db'",
            "security_group web: rules[2].remote_group: there is no security_group 'ann/db'",
        ]
    );
    let new = next(&|o| {
        o.prefix_lists.push(PrefixList {
            id: "ann/more".into(),
            tenant: "ann".into(),
            prefixes: vec!["x".into()],
            ..PrefixList::default()
        });
    });
    assert_eq!(new.len(), 1, "{new:?}");
}

/// A host has them by VPC.
#[test]
fn a_host_is_told_of_no_group_without_a_vpc() {
    let node = Scope::Node { host: "h1" };
    let found = violations(ann, node);
    assert!(
        found
            .iter()
            .any(|it| it == "security_group ann/app tenant: a host is told the VPC instead"),
        "{found:?}"
    );
    let in_vpc = violations(
        |o| {
            o.security_groups[0].id = "ann/web@blue".into();
            o.security_groups[0].rules.clear();
            for port in o.ports.iter_mut().filter(|port| port.vpc == "blue") {
                port.security_groups = vec!["ann/web@blue".into()];
            }
        },
        node,
    );
    assert_eq!(in_vpc, [] as [&str; 0]);
    refused("security_group ann/web@blue id: an id is", |o| {
        o.security_groups[0].id = "ann/web@blue".into();
        o.security_groups[0].rules.clear();
        for port in o.ports.iter_mut().filter(|port| port.vpc == "blue") {
            port.security_groups = vec!["ann/web@blue".into()];
        }
    });
}
