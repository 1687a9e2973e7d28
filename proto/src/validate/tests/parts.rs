//! Members of groups that are told in parts.

use super::*;
use crate::v1::GroupMembers;

const NODE: Scope<'_> = Scope::Node { host: "h1" };

fn part(group: &str, number: u32, members: &[&str]) -> GroupMembers {
    GroupMembers {
        id: GroupMembers::id_of(group, number),
        vpc: "blue".into(),
        group: group.into(),
        number,
        members: members.iter().map(|text| (*text).into()).collect(),
    }
}

/// What breaks rules with such a part beside the good objects, as a host checks it.
fn broken(change: impl FnOnce(&mut GroupMembers)) -> Vec<String> {
    violations(
        |o| {
            let mut part = part(&o.security_groups[0].id, 7, &["10.0.1.11", "fd00::7"]);
            change(&mut part);
            o.group_members.push(part);
        },
        NODE,
    )
    .into_iter()
    .filter(|line| line.starts_with("group_members"))
    .collect()
}

#[test]
fn a_part_is_of_a_group_of_its_vpc_and_has_a_number() {
    assert_eq!(broken(|_| {}), Vec::<String>::new());
    type Change = fn(&mut GroupMembers);
    let cases: [(&str, Change); 5] = [
        ("id: is that of its group and its number", |part| {
            part.id = "x".into();
        }),
        ("number: 256 is outside 0 to 255", |part| {
            part.number = 256;
            part.id = GroupMembers::id_of(&part.group, 256);
        }),
        ("group: there is no security_group 'none'", |part| {
            part.group = "none".into();
            part.id = GroupMembers::id_of("none", 7);
        }),
        ("group: a part is of a group", |part| {
            part.group.clear();
            part.id = GroupMembers::id_of("", 7);
        }),
        ("members[1]: ", |part| {
            part.members[1] = "10.0.1.0/33".into();
        }),
    ];
    for (wanted, change) in cases {
        let found = broken(change);
        assert!(
            found.len() == 1 && found[0].contains(wanted),
            "{wanted}: {found:?}"
        );
    }
}

#[test]
fn a_part_in_the_intent_is_refused() {
    refused(
        "group_members web/0 id: made by the controller; name the group in the ports' security_groups instead",
        |o| {
            let part = part(&o.security_groups[0].id, 0, &[]);
            o.group_members.push(part);
        },
    );
}

/// All parts of a group together have no more than a group may have; also where one of them changes alone.
#[test]
fn the_parts_of_a_group_together_are_within_its_limit() {
    let mut objects = good();
    let group = objects.security_groups[0].id.clone();
    let address = |n: usize| format!("10.{}.{}.{}", n >> 16, n >> 8 & 255, n & 255);
    let half = limits::GROUP_MEMBERS / 2;
    for number in 0..2 {
        let mut part = part(&group, number, &[]);
        let first = number as usize * half;
        part.members = (first..first + half).map(address).collect();
        objects.group_members.push(part);
    }
    let before = State::from_objects(objects.clone()).unwrap();
    let about_parts = |found: Vec<crate::v1::Violation>| {
        let found = found.iter().map(describe);
        found
            .filter(|line| line.starts_with("group_members"))
            .collect::<Vec<_>>()
    };
    assert_eq!(about_parts(validate(&before, NODE)), Vec::<String>::new());
    objects.group_members[0].members.push("fd00::1".into());
    let after = State::from_objects(objects).unwrap();
    for found in [validate(&after, NODE), validate_next(&before, &after, NODE)] {
        let found = about_parts(found);
        assert!(
            found[0].contains("at most 262144 members, and 262145 are given"),
            "{found:?}"
        );
    }
}
