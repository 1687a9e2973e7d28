//! Which addresses of a VPC do not serve, as health checks of its load balancers found: records with `serving_only` are answered without them.

use std::collections::HashSet;
use std::net::IpAddr;

use weft_proto::state::{Kind, Object, State};
use weft_proto::v1::{Listener, LoadBalancer, Member};

/// What does not serve: load balancer, protocol and first port of the listener, address and port of the member.
type Down<'s> = HashSet<(&'s str, &'s str, u32, IpAddr, u32)>;

/// Those of a VPC that do not serve: members that a check found down; and, of the load balancers at these `named` addresses, those none of whose listeners has
/// a member that takes flows and serves. Takes time in proportion to what was found and to the members of these load balancers; nothing where none is named.
pub(super) fn idle(
    state: &State,
    vpc: &str,
    named: impl Iterator<Item = IpAddr>,
) -> HashSet<IpAddr> {
    let mut named = named.peekable();
    if named.peek().is_none() {
        return HashSet::new();
    }
    let found = state.of_vpc_and_kind(vpc, Kind::MemberHealth);
    let down = found.filter_map(|object| match object {
        Object::MemberHealth(it) if !it.up => {
            let address = it.address.parse().ok()?;
            Some((
                &*it.load_balancer,
                &*it.protocol,
                it.port,
                address,
                it.member_port,
            ))
        }
        _ => None,
    });
    let down: Down<'_> = down.collect();
    let mut idle: HashSet<IpAddr> = down.iter().map(|(_, _, _, address, _)| *address).collect();
    let mut seen = HashSet::new();
    for address in named.filter(|address| seen.insert(*address)) {
        for balancer in state.balancers_with_address(vpc, address) {
            let mut listeners = balancer.listeners.iter();
            if !listeners.any(|listener| has_server(state, &down, (balancer, listener), address)) {
                idle.insert(address);
            }
        }
    }
    idle
}

/// Whether a listener has a member that takes flows and serves, of the family of the load balancer's address.
fn has_server(
    state: &State,
    down: &Down<'_>,
    (balancer, listener): (&LoadBalancer, &Listener),
    own: IpAddr,
) -> bool {
    let is_down = |member: &Member, address: IpAddr| {
        let (protocol, port) = (&*listener.protocol, listener.port_min);
        let at = listener.first_port_at(member);
        listener.health.is_some() && down.contains(&(&*balancer.id, protocol, port, address, at))
    };
    let members = listener.members.iter();
    members.filter(|member| !member.draining).any(|member| {
        let addresses = match state.find(Kind::Port, &member.port) {
            Some(Object::Port(port)) => &port.addresses[..],
            _ => std::slice::from_ref(&member.address),
        };
        let addresses = addresses.iter().filter_map(|text| text.parse().ok());
        let mut of_family = addresses.filter(|it: &IpAddr| it.is_ipv4() == own.is_ipv4());
        of_family
            .next()
            .is_some_and(|address| !is_down(member, address))
    })
}
