//! VPCs whose ports this host learns: what it has asked for, and who gets broadcasts.

use std::collections::HashSet;
use std::net::IpAddr;

use weft_proto::state::{Change, Kind, Object};
use weft_proto::v1;

use super::{Done, Draft, Objects, Report};
use crate::packet::Mac;
use crate::packet::parse::address_word;
use crate::snapshot::{Asked, Vpc};

/// An address or a MAC.
fn named(text: &str) -> Option<Asked> {
    let address = text.parse::<IpAddr>().ok();
    let address = address.map(|address| Asked::Address(address_word(address)));
    address.or_else(|| text.parse::<Mac>().ok().map(Asked::Mac))
}

/// What an object says was asked for.
fn asked(learned: &v1::LearnedAddress, report: &mut Report) -> Option<Asked> {
    let text = &learned.address;
    let asked = named(text);
    if asked.is_none() {
        let rule = format!("'{text}' is neither an address nor a MAC");
        report.add(Kind::LearnedAddress, &learned.id, "address", rule);
    }
    asked
}

impl Draft<'_> {
    pub(super) fn fill_learned(&mut self, objects: &Objects<'_>) {
        for learned in &objects.learned {
            let asked = asked(learned, &mut self.report);
            let place = self.places.vpcs.get(&learned.vpc).copied();
            let known = place.and_then(|place| self.vpcs[place].vpc.learned.as_mut());
            match (asked, known) {
                (Some(asked), Some(known)) => known.set(asked, true),
                (None, _) => {}
                (_, None) => {
                    let rule = format!("the ports of VPC '{}' are not learned", learned.vpc);
                    self.report
                        .add(Kind::LearnedAddress, &learned.id, "vpc", rule);
                }
            }
        }
    }

    /// Which peers have ports of a subnet is not known of a VPC whose ports are learned: all that carry the VPC get its broadcasts.
    pub(super) fn fill_broadcast_peers(&mut self, objects: &Objects<'_>) {
        for vpc in &objects.vpcs {
            let place = self.places.vpcs.get(&vpc.id).copied();
            let (Some(place), Some(learning)) = (place, &vpc.learning) else {
                continue;
            };
            let hosts = learning.hosts.iter();
            let peers: Vec<u16> = hosts
                .filter_map(|host| self.places.peers.get(host).copied())
                .collect();
            let subnets = self.subnets.iter_mut();
            for subnet in subnets.filter(|subnet| subnet.vpc == place) {
                subnet.peers.clone_from(&peers);
            }
        }
    }
}

/// What was asked for that was not before, or is no longer.
#[derive(Debug, Clone, Copy)]
pub(super) struct Edit {
    vpc: usize,
    asked: Asked,
    is_known: bool,
}

/// Those of a change. None if they can't be put into the snapshot by themselves.
pub(super) fn edits(done: &Done, changes: &[Change<'_>], report: &mut Report) -> Option<Vec<Edit>> {
    let mut edits = Vec::new();
    for change in changes {
        for (object, is_known) in [(change.old, false), (change.new, true)] {
            let Some(Object::LearnedAddress(learned)) = object else {
                continue;
            };
            let vpc = *done.places.vpcs.get(&learned.vpc)?;
            done.snapshot.vpcs.get(vpc)?.learned.as_ref()?;
            if let Some(asked) = asked(learned, report) {
                edits.push(Edit {
                    vpc,
                    asked,
                    is_known,
                });
            }
        }
    }
    Some(edits)
}

/// What has come to be known by a change, and was not before.
struct Answers<'d, 's> {
    done: &'d Done,
    /// The addresses of the ports that are told of.
    addresses: HashSet<&'s str>,
}

impl<'d, 's> Answers<'d, 's> {
    fn new(done: &'d Done, changes: &[Change<'s>]) -> Self {
        let mut answers = Self {
            done,
            addresses: HashSet::new(),
        };
        for change in changes {
            if let (None, Some(Object::Port(port))) = (change.old, change.new)
                && answers.is_new(port)
            {
                answers
                    .addresses
                    .extend(port.addresses.iter().map(String::as_str));
            }
        }
        answers
    }

    fn vpc(&self, id: &str) -> Option<&'d Vpc> {
        let place = self.done.places.vpcs.get(id)?;
        self.done.snapshot.vpcs.get(*place)
    }

    /// Whether no packet was judged yet that came from a port of another host, or was for it.
    fn is_new(&self, port: &v1::Port) -> bool {
        let learned = self.vpc(&port.vpc).and_then(|vpc| vpc.learned.as_ref());
        let Some(learned) = learned.filter(|_| port.host != self.done.host) else {
            return false;
        };
        let is_new = |text: &str| named(text).is_some_and(|asked| !learned.has(asked));
        port.moved_from.is_empty()
            && is_new(&port.mac)
            && port.addresses.iter().all(|text| is_new(text))
    }

    /// Whether members of a group are those that it had and new ones.
    fn adds(&self, vpc: &str, before: &[String], after: &[String]) -> bool {
        let Some(vpc) = self.vpc(vpc) else {
            return false;
        };
        let before: HashSet<&str> = before.iter().map(String::as_str).collect();
        let added = after.iter().filter(|text| !before.contains(&***text));
        let mut count = 0;
        let are_new = added.inspect(|_| count += 1).all(|text| {
            let is_known = match named(text) {
                Some(Asked::Address(address)) => vpc.by_address.contains_key(&address),
                _ => true,
            };
            self.addresses.contains(&**text) && !is_known
        });
        are_new && before.len() + count == after.len()
    }

    fn has(&self, change: &Change<'_>) -> bool {
        match (change.old, change.new) {
            (None, Some(Object::LearnedAddress(_))) => true,
            // Where nobody has it, no session is kept by who does.
            (Some(Object::LearnedAddress(learned)), None) => {
                self.vpc(&learned.vpc)
                    .is_some_and(|vpc| match named(&learned.address) {
                        Some(Asked::Address(address)) => !vpc.by_address.contains_key(&address),
                        Some(Asked::Mac(mac)) => !vpc.by_mac.contains_key(&mac),
                        None => false,
                    })
            }
            (None, Some(Object::Port(port))) => self.is_new(port),
            (Some(Object::SecurityGroup(old)), Some(Object::SecurityGroup(new))) => {
                old.rules == new.rules && self.adds(&new.vpc, &old.members, &new.members)
            }
            (Some(Object::GroupMembers(old)), Some(Object::GroupMembers(new))) => {
                self.adds(&new.vpc, &old.members, &new.members)
            }
            (None, Some(Object::GroupMembers(new))) => self.adds(&new.vpc, &[], &new.members),
            _ => false,
        }
    }
}

/// The changes that are more than answers to what was asked for. What is decided for other packets does not depend on an answer, and for those that
/// it is about nothing was decided yet.
pub(super) fn beyond_answers<'c, 's>(
    done: &Done,
    changes: &'c [Change<'s>],
) -> impl Iterator<Item = &'c Change<'s>> {
    let answers = done.snapshot.learns.then(|| Answers::new(done, changes));
    changes.iter().filter(move |change| {
        let answers = answers.as_ref();
        !answers.is_some_and(|answers| answers.has(change))
    })
}

impl Edit {
    pub(super) fn put(self, done: &mut Done) {
        let vpc = done.snapshot.vpcs.get_mut(self.vpc);
        if let Some(learned) = vpc.and_then(|vpc| vpc.learned.as_mut()) {
            learned.set(self.asked, self.is_known);
        }
    }
}
