//! The members of security groups as hosts are told them: in parts where they are many, so that one more is told without all others.
//!
//! Which part an address is in depends on the address alone. The members of a group follow the changes of its ports.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use weft_proto::state::{Change, Entry, Kind, Layer, Object, State};
use weft_proto::v1::{GroupMembers, Port};
use weft_proto::validate::limits::GROUP_PARTS;

/// The addresses of a group's ports in a VPC.
#[derive(Debug, Clone, Default)]
pub(crate) struct Members {
    /// The VPC, and the id by which hosts know the group.
    vpc: Arc<str>,
    group: Arc<str>,
    parts: Layer,
    count: usize,
}

impl Members {
    /// Members of a group that hosts know by that id.
    pub(crate) fn new<'a>(
        vpc: &str,
        group: &str,
        addresses: impl IntoIterator<Item = &'a str>,
    ) -> Self {
        let mut members = Self {
            vpc: vpc.into(),
            group: group.into(),
            ..Self::default()
        };
        members.change(std::iter::empty(), addresses);
        members
    }

    /// Whether they are those of a group that hosts know by that id.
    pub(crate) fn are_of(&self, group: &str) -> bool {
        *self.group == *group
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.count
    }

    /// The parts as hosts are told them.
    pub(crate) fn parts(&self) -> &Layer {
        &self.parts
    }

    /// All addresses, sorted.
    pub(crate) fn to_list(&self) -> Vec<String> {
        let mut all = Vec::with_capacity(self.count);
        for object in self.parts.of_kind(Kind::GroupMembers) {
            if let Object::GroupMembers(part) = object {
                all.extend_from_slice(&part.members);
            }
        }
        all.sort_unstable();
        all
    }

    /// Takes out addresses, and puts in others.
    pub(crate) fn change<'a>(
        &mut self,
        gone: impl IntoIterator<Item = &'a str>,
        come: impl IntoIterator<Item = &'a str>,
    ) {
        let mut changed: BTreeMap<u32, [Vec<&str>; 2]> = BTreeMap::new();
        for address in gone {
            changed.entry(part_of(address)).or_default()[0].push(address);
        }
        for address in come {
            changed.entry(part_of(address)).or_default()[1].push(address);
        }
        for (number, [gone, come]) in changed {
            self.change_part(number, &gone, &come);
        }
    }

    fn change_part(&mut self, number: u32, gone: &[&str], come: &[&str]) {
        let id = GroupMembers::id_of(&self.group, number);
        let before = self.parts.remove(Kind::GroupMembers, &id);
        let mut members = match before.as_deref() {
            Some(Entry {
                object: Object::GroupMembers(part),
                ..
            }) => part.members.clone(),
            _ => Vec::new(),
        };
        self.count -= members.len();
        for address in gone {
            if let Ok(at) = members.binary_search_by(|known| (**known).cmp(address)) {
                members.remove(at);
            }
        }
        members.extend(come.iter().map(|address| (*address).to_owned()));
        members.sort_unstable();
        self.count += members.len();
        if !members.is_empty() {
            self.parts
                .insert(&Entry::new(Object::GroupMembers(GroupMembers {
                    id,
                    vpc: self.vpc.to_string(),
                    group: self.group.to_string(),
                    number,
                    members,
                })));
        }
    }
}

/// The part that an address is in: by FNV-1a, so that every controller tells a group alike.
fn part_of(address: &str) -> u32 {
    let hash = address.bytes().fold(0x811c_9dc5_u32, |hash, byte| {
        (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193)
    });
    (hash ^ hash >> 16) % GROUP_PARTS
}

/// The addresses by which a port is a member of its groups: none while it lives nowhere.
pub(crate) fn addresses_of<'s>(state: &'s State, port: &'s Port) -> impl Iterator<Item = &'s str> {
    let direct = state.elastic_ips_of_port(&port.id);
    let direct = direct.filter(|elastic| elastic.is_direct());
    let direct = direct.map(|elastic| &*elastic.address);
    let addresses = port.addresses.iter().map(String::as_str);
    let is_placed = !port.host.is_empty();
    addresses.chain(direct).filter(move |_| is_placed)
}

/// The members of the groups that were asked for, by the group's id in the intent.
pub(crate) type Known = BTreeMap<String, Members>;

/// Makes them those of the state that changes lead to; the groups of which that are others.
pub(crate) fn follow<'s>(
    known: &mut Known,
    vpc: &str,
    (before, state): (&'s State, &'s State),
    changes: &[Change<'s>],
) -> BTreeSet<&'s str> {
    let mut changed = BTreeSet::new();
    if known.is_empty() {
        return changed;
    }
    let mut ports: Vec<&str> = Vec::new();
    for object in changes.iter().flat_map(|change| [change.old, change.new]) {
        match object {
            Some(Object::Port(port)) => ports.push(&port.id),
            Some(Object::ElasticIp(elastic)) => ports.push(&elastic.port),
            Some(Object::SecurityGroup(group))
                if state.find(Kind::SecurityGroup, &group.id).is_none() =>
            {
                known.remove(&group.id);
            }
            _ => {}
        }
    }
    ports.sort_unstable();
    ports.dedup();
    // What comes and goes at each group.
    let mut moves: BTreeMap<&str, [Vec<&str>; 2]> = BTreeMap::new();
    for id in ports {
        for (end, state) in [before, state].into_iter().enumerate() {
            let Some(Object::Port(port)) = state.find(Kind::Port, id) else {
                continue;
            };
            if port.vpc != vpc {
                continue;
            }
            let groups: BTreeSet<&String> = port.security_groups.iter().collect();
            for group in groups {
                if known.contains_key(group) {
                    let addresses = addresses_of(state, port);
                    moves.entry(group).or_default()[end].extend(addresses);
                }
            }
        }
    }
    for (group, [gone, come]) in moves {
        if let Some(members) = known.get_mut(group)
            && gone != come
        {
            members.change(gone, come);
            changed.insert(group);
        }
    }
    changed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_more_changes_one_part() {
        let addresses: Vec<String> = (0..5000)
            .map(|n| format!("10.0.{}.{}", n / 250, n % 250))
            .collect();
        let mut members = Members::new("blue", "web", addresses.iter().map(String::as_str));
        assert_eq!(members.parts().len(), GROUP_PARTS as usize);
        let before = members.clone();
        members.change(["10.0.3.3"], ["fd00::5", "10.9.9.9"]);
        let changed = before.parts().changes_to(members.parts());
        assert!(matches!(changed.len(), 1..=3), "{}", changed.len());
        let mut wanted = addresses.clone();
        wanted.retain(|address| address != "10.0.3.3");
        wanted.extend(["fd00::5".to_owned(), "10.9.9.9".to_owned()]);
        wanted.sort_unstable();
        assert_eq!(members.to_list(), wanted);
        let all: Vec<&str> = wanted.iter().map(String::as_str).collect();
        members.change(all, []);
        assert!(members.parts().is_empty() && members.len() == 0);
    }
}
