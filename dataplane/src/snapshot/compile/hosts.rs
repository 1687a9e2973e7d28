//! Hosts: this one's VTEPs, and the others with the ways to them.

use std::net::IpAddr;
use std::sync::Arc;

use weft_proto::state::{Kind, Object, State};
use weft_proto::v1;

use super::super::{Peer, TUNNEL_SLOTS, Tunnel};
use super::{Context, Draft, Objects, put};
use crate::encap::{Encapsulation, Template};
use crate::packet::parse::{address_word, word_address};
use crate::route::ecmp::{self, Group, Member};

impl Draft<'_> {
    pub(super) fn fill_hosts(&mut self, objects: &Objects<'_>) {
        for host in &objects.hosts {
            let vteps: Vec<u128> = host
                .vteps
                .iter()
                .filter_map(|text| text.parse::<IpAddr>().ok())
                .map(address_word)
                .collect();
            if vteps.len() != host.vteps.len() || vteps.is_empty() {
                let rule = "is a list of one or more addresses";
                self.report.add(Kind::Host, &host.id, "vteps", rule);
                continue;
            }
            if host.id == self.context.host {
                self.vteps = vteps;
                continue;
            }
            let encapsulation = match host.encapsulation.as_str() {
                "" | "vxlan" => Encapsulation::Vxlan,
                "gre" => Encapsulation::Gre,
                _ => {
                    let rule = "is vxlan or gre";
                    self.report.add(Kind::Host, &host.id, "encapsulation", rule);
                    continue;
                }
            };
            let Some(index) = self.numbers.peers.number(&host.id) else {
                let most = self.numbers.peers.cap();
                let rule = format!("this host knows at most {most} other hosts");
                self.report.add(Kind::Host, &host.id, "", rule);
                continue;
            };
            let index = index as u16;
            self.places.peers.insert(host.id.clone(), index);
            for vtep in &vteps {
                self.peer_by_vtep.insert(*vtep, index);
            }
            put(
                &mut self.peers,
                index,
                peer(self.context, host, encapsulation, vteps),
            );
        }
    }
}

/// The peers with the ways that the underlay has now.
pub(super) fn renew(
    before: &[Option<Peer>],
    state: &State,
    context: &Context<'_>,
) -> Arc<[Option<Peer>]> {
    let renewed = before.iter().map(|before| {
        let before = before.as_ref()?;
        match state.find(Kind::Host, &before.host) {
            Some(Object::Host(host)) => {
                let vteps = before.vteps.clone();
                Some(peer(context, host, before.encapsulation, vteps))
            }
            _ => None,
        }
    });
    renewed.collect()
}

fn peer(
    context: &Context<'_>,
    host: &v1::Host,
    encapsulation: Encapsulation,
    vteps: Vec<u128>,
) -> Peer {
    let limit = if host.underlay_mtu == 0 {
        u16::MAX
    } else {
        u16::try_from(host.underlay_mtu).unwrap_or(u16::MAX)
    };
    let mut tunnels = Vec::new();
    for remote in &vteps {
        for way in context.underlay.get(remote).into_iter().flatten() {
            let template = Template::new(
                encapsulation,
                (way.source_mac, way.next_hop_mac),
                way.source,
                *remote,
            );
            let inner_mtu = template.inner_mtu(way.mtu.min(limit));
            tunnels.push(Tunnel {
                remote: *remote,
                template,
                inner_mtu,
                uplink: way.uplink,
            });
        }
    }
    // Of two families, the one that the host names first is in use while a way of it is up.
    if let Some(first) = tunnels
        .first()
        .map(|tunnel| word_address(tunnel.remote).is_ipv4())
    {
        tunnels.retain(|tunnel| word_address(tunnel.remote).is_ipv4() == first);
    }
    // Each slot takes the way that it scores highest for, so that a way that goes moves no flow of the others.
    let identity = |way: &Tunnel| {
        ecmp::identity(&[&way.remote.to_be_bytes()[..], &way.uplink.to_be_bytes()].concat())
    };
    let members: Vec<_> = (0u8..)
        .zip(&tunnels)
        .map(|(i, way)| Member {
            identity: identity(way),
            weight: 1,
            target: i,
        })
        .collect();
    let ways = Group::new(members);
    let slots = (0..TUNNEL_SLOTS as u64)
        .filter_map(|slot| ways.choose(ecmp::identity(&slot.to_be_bytes())))
        .map(|m| m.target)
        .collect();
    Peer {
        host: host.id.clone(),
        encapsulation,
        vteps,
        tunnels,
        slots,
    }
}
