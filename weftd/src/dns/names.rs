//! The names of one VPC, as its guests are answered: of zones, of ports, and of the addresses of both.
//!
//! A zone is read once for each change of it ([`Zones`]); ports' names are looked up in the state, which has an index of them.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use hickory_proto::rr::rdata::{A, AAAA, CNAME, MX, PTR, SRV, TXT};
use hickory_proto::rr::{Name, RData, RecordType};
use ipnetwork::IpNetwork;
use weft_proto::dns::{self, Data};
use weft_proto::state::{Entry, Kind, Object, State};
use weft_proto::v1::{DnsZone, Vpc};

/// Seconds for which names of ports, and what is not there, may be kept: ports come and go.
pub(super) const PORT_TTL: u32 = 30;
/// Addresses of ports of one name that are answered.
const MOST_ADDRESSES: usize = 1024;

/// All data of one type that a name has.
#[derive(Debug, Clone)]
pub(super) struct Set {
    pub(super) kind: RecordType,
    /// Seconds.
    pub(super) ttl: u32,
    pub(super) data: Vec<RData>,
    /// Whether addresses that do not serve are left out.
    pub(super) serving_only: bool,
}

/// A zone by the names in it.
#[derive(Debug, Default)]
struct Zone {
    sets: HashMap<String, Vec<Set>>,
    /// Names that only have names below them (RFC 4592 §2.2.2).
    above: HashSet<String>,
    /// The addresses of records that are answered while they serve.
    checked: Vec<IpAddr>,
}

/// The zones of a VPC by their domains.
#[derive(Debug, Default)]
pub(super) struct Zones {
    by_origin: BTreeMap<String, Arc<Zone>>,
    /// What they were read from, in the state's order.
    entries: Vec<(Arc<Entry>, Arc<Zone>)>,
}

impl Zones {
    /// The zones of a VPC in a state; what was read of the very same zones before is not read again.
    pub(super) fn of(state: &State, vpc: &str, before: Option<&Arc<Self>>) -> Arc<Self> {
        if let Some(before) = before.filter(|before| before.are_of(state, vpc)) {
            return Arc::clone(before);
        }
        let known = before.map_or(&[][..], |before| &before.entries);
        let mut zones = Self::default();
        for entry in entries(state, vpc) {
            let Object::DnsZone(zone) = &entry.object else {
                continue;
            };
            let mut known = known.iter();
            let read = match known.find(|(known, _)| Arc::ptr_eq(known, entry)) {
                Some((_, read)) => Arc::clone(read),
                None => Arc::new(Zone::of(zone)),
            };
            zones.by_origin.insert(zone.origin(), Arc::clone(&read));
            zones.entries.push((Arc::clone(entry), read));
        }
        Arc::new(zones)
    }

    /// The addresses of records that are answered while they serve.
    pub(super) fn checked(&self) -> impl Iterator<Item = IpAddr> {
        let zones = self.by_origin.values();
        zones.flat_map(|zone| zone.checked.iter().copied())
    }

    /// Whether a zone was read once for both.
    #[cfg(test)]
    pub(super) fn shares(&self, other: &Self, origin: &str) -> bool {
        let zones = [self, other].map(|zones| zones.by_origin.get(origin));
        matches!(zones, [Some(one), Some(another)] if Arc::ptr_eq(one, another))
    }

    /// Whether a state has the very same zones.
    fn are_of(&self, state: &State, vpc: &str) -> bool {
        let mut known = self.entries.iter();
        let is_same = entries(state, vpc).all(|entry| {
            let known = known.next();
            known.is_some_and(|(known, _)| Arc::ptr_eq(known, entry))
        });
        is_same && known.next().is_none()
    }
}

fn entries<'s>(state: &'s State, vpc: &'s str) -> impl Iterator<Item = &'s Arc<Entry>> {
    let zones = state.of_vpc_and_kind(vpc, Kind::DnsZone);
    zones.filter_map(|object| state.entry(Kind::DnsZone, object.id()))
}

impl Zone {
    fn of(zone: &DnsZone) -> Self {
        let origin = zone.origin();
        let mut read = Self::default();
        for record in &zone.records {
            let Some(name) = dns::name_in(&record.name, &origin) else {
                continue;
            };
            let data = record.data.iter();
            let data = data.filter_map(|text| Data::parse(&record.r#type, text).ok());
            let data: Vec<RData> = data.filter_map(rdata).collect();
            let Some(first) = data.first() else { continue };
            let set = Set {
                kind: first.record_type(),
                ttl: record.seconds(),
                data,
                serving_only: record.serving_only,
            };
            if set.serving_only {
                read.checked.extend(set.data.iter().filter_map(address));
            }
            let mut above = name.split_once('.').map(|(_, rest)| rest);
            while let Some(name) = above.filter(|name| *name != origin) {
                read.above.insert(name.to_owned());
                above = name.split_once('.').map(|(_, rest)| rest);
            }
            read.sets.entry(name).or_default().push(set);
        }
        read
    }
}

fn rdata(data: Data) -> Option<RData> {
    Some(match data {
        Data::A(address) => RData::A(A(address)),
        Data::Aaaa(address) => RData::AAAA(AAAA(address)),
        Data::Cname(target) => RData::CNAME(CNAME(name(&target)?)),
        Data::Ptr(target) => RData::PTR(PTR(name(&target)?)),
        Data::Mx(preference, target) => RData::MX(MX::new(preference, name(&target)?)),
        Data::Srv([priority, weight, port], target) => {
            RData::SRV(SRV::new(priority, weight, port, name(&target)?))
        }
        Data::Txt(text) => RData::TXT(TXT::new(vec![text])),
    })
}

fn address(data: &RData) -> Option<IpAddr> {
    match data {
        RData::A(address) => Some(address.0.into()),
        RData::AAAA(address) => Some(address.0.into()),
        _ => None,
    }
}

/// A name of ours as it is sent.
pub(super) fn name(text: &str) -> Option<Name> {
    let labels = text.split('.').map(str::as_bytes);
    let name = Name::from_labels(labels).ok()?;
    Some(name)
}

/// A name as it is compared with ours: in lower case, without the dot at the end. What no name of ours has is written so that it stays apart.
pub(super) fn text(name: &Name) -> String {
    let mut text = String::new();
    for label in name.iter() {
        if !text.is_empty() {
            text.push('.');
        }
        for byte in label {
            match byte {
                b'-' | b'_' => text.push(char::from(*byte)),
                byte if byte.is_ascii_alphanumeric() => {
                    text.push(char::from(byte.to_ascii_lowercase()));
                }
                byte => text.push_str(&format!("\\{byte:03}")),
            }
        }
    }
    text
}

/// A name that the VPC answers for.
#[derive(Debug)]
pub(super) struct At {
    /// The domain of the zone that it is in.
    pub(super) origin: String,
    /// Whether there is such a name, with or without data.
    pub(super) exists: bool,
    pub(super) sets: Vec<Set>,
}

/// The names of a VPC.
#[derive(Debug, Clone, Copy)]
pub(super) struct Names<'s> {
    pub(super) state: &'s State,
    pub(super) vpc: &'s Vpc,
    /// The domain of its ports, as it is compared.
    pub(super) domain: &'s str,
    pub(super) zones: &'s Zones,
    /// Addresses that do not serve.
    pub(super) idle: &'s HashSet<IpAddr>,
}

impl Names<'_> {
    /// What a name has, as [`text`] writes it; none if the VPC does not answer for it.
    pub(super) fn at(&self, name: &str) -> Option<At> {
        let matching = self.domains().filter(|domain| dns::is_in(name, domain));
        let origin = matching.max_by_key(|domain| domain.len());
        let reversed = dns::reversed(name);
        let Some(origin) = origin else {
            return self.at_address(name, reversed?);
        };
        let zone = self.zones.by_origin.get(origin);
        let of_zone = zone.and_then(|zone| zone.sets.get(name));
        let mut sets = of_zone.cloned().unwrap_or_default();
        let checked = sets.iter_mut().filter(|set| set.serving_only);
        checked.for_each(|set| self.leave_out(&mut set.data));
        if sets.is_empty() && origin == self.domain {
            sets = self.port(name);
        }
        if sets.is_empty()
            && let Some((address, true)) = reversed
        {
            sets.extend(self.pointers(address));
        }
        let is_above = zone.is_some_and(|zone| zone.above.contains(name))
            || self.is_above_domain(name)
            // Below a part of an address there may be those of ports.
            || dns::is_part_of_address(name);
        Some(At {
            exists: !sets.is_empty() || is_above || name == origin,
            origin: origin.to_owned(),
            sets,
        })
    }

    /// Leaves out the addresses that do not serve; none, if none would be left: what is known of all at once may be wrong, and an answer is worth a try.
    fn leave_out(&self, data: &mut Vec<RData>) {
        let serves = |data: &RData| !address(data).is_some_and(|it| self.idle.contains(&it));
        if data.iter().any(serves) {
            data.retain(serves);
        }
    }

    fn domains(&self) -> impl Iterator<Item = &str> {
        let zones = self.zones.by_origin.keys().map(String::as_str);
        zones.chain([self.domain])
    }

    /// Whether a domain of the VPC lies below a name.
    fn is_above_domain(&self, name: &str) -> bool {
        self.domains()
            .any(|domain| domain != name && dns::is_in(domain, name))
    }

    /// The name of an address of the VPC's subnets, or one below it: whether somebody has the address is nobody else's business.
    fn at_address(&self, name: &str, (address, is_whole): (IpAddr, bool)) -> Option<At> {
        let subnets = self.state.of_vpc_and_kind(&self.vpc.id, Kind::Subnet);
        let mut prefixes = subnets.flat_map(|object| match object {
            Object::Subnet(subnet) => &subnet.cidrs[..],
            _ => &[],
        });
        let holds = |text: &String| {
            let prefix = text.parse::<IpNetwork>();
            prefix.is_ok_and(|prefix| prefix.contains(address))
        };
        if !prefixes.any(holds) {
            return None;
        }
        // As zones of addresses are cut most often: after 24 bits, or 64.
        let labels: Vec<&str> = name.split('.').collect();
        let of_zone = if address.is_ipv4() { 3 + 2 } else { 16 + 2 };
        let origin = labels[labels.len().saturating_sub(of_zone)..].join(".");
        let sets: Vec<Set> = self
            .pointers(address)
            .filter(|_| is_whole)
            .into_iter()
            .collect();
        Some(At {
            origin,
            exists: !sets.is_empty() || self.is_above_domain(name),
            sets,
        })
    }

    /// The addresses of the ports that have a name.
    fn port(&self, name: &str) -> Vec<Set> {
        let Some((label, rest)) = name.split_once('.') else {
            return Vec::new();
        };
        if rest != self.domain {
            return Vec::new();
        }
        let (mut ipv4, mut ipv6) = (Vec::new(), Vec::new());
        for port in self.state.ports_named(&self.vpc.id, label) {
            for address in port.addresses.iter().filter_map(|it| it.parse().ok()) {
                match address {
                    IpAddr::V4(address) => ipv4.push(RData::A(A(address))),
                    IpAddr::V6(address) => ipv6.push(RData::AAAA(AAAA(address))),
                }
            }
            if ipv4.len().max(ipv6.len()) >= MOST_ADDRESSES {
                break;
            }
        }
        let sets = [(RecordType::A, ipv4), (RecordType::AAAA, ipv6)];
        let sets = sets.into_iter().filter(|(_, data)| !data.is_empty());
        sets.map(|(kind, data)| Set {
            kind,
            ttl: PORT_TTL,
            data,
            serving_only: false,
        })
        .collect()
    }

    /// The names of the ports that have an address.
    fn pointers(&self, address: IpAddr) -> Option<Set> {
        let ports = self.state.names_of_address(&self.vpc.id, address);
        let names = ports.filter_map(|port| name(&format!("{}.{}", port.name, self.domain)));
        let data: Vec<RData> = names.map(|name| RData::PTR(PTR(name))).collect();
        (!data.is_empty()).then_some(Set {
            kind: RecordType::PTR,
            ttl: PORT_TTL,
            data,
            serving_only: false,
        })
    }
}
