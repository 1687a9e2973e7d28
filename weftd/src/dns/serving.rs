//! Which addresses of a record serve, as health checks of load balancers found.

use std::net::IpAddr;

use hickory_proto::rr::RData;
use weft_proto::state::{Kind, Object, State};
use weft_proto::v1::{Listener, LoadBalancer, Member, MemberHealth};

/// Keeps the addresses that serve; all, if none does: what is known of all at once may be wrong, and an answer is worth a try.
pub(super) fn keep(state: &State, vpc: &str, data: &mut Vec<RData>) {
    let serves = |data: &RData| match data {
        RData::A(address) => serves(state, vpc, address.0.into()),
        RData::AAAA(address) => serves(state, vpc, address.0.into()),
        _ => true,
    };
    if data.iter().any(serves) {
        data.retain(serves);
    }
}

/// Whether an address serves: nothing is known to the contrary.
fn serves(state: &State, vpc: &str, address: IpAddr) -> bool {
    let mut own = state.balancers_with_address(vpc, address);
    if let Some(balancer) = own.next() {
        let mut listeners = balancer.listeners.iter();
        return listeners.any(|listener| has_server(state, (balancer, listener), address));
    }
    let named = state.names_of_address(vpc, address);
    let by_port = named.flat_map(|port| state.balancers_of_port(&port.id));
    let mut all = by_port.chain(state.balancers_of_address(vpc, address));
    !all.any(|balancer| {
        let mut down = down(state, balancer);
        down.any(|health| is(&health.address, address))
    })
}

/// Whether a listener has a member that serves, of the family of the load balancer's address.
fn has_server(
    state: &State,
    (balancer, listener): (&LoadBalancer, &Listener),
    own: IpAddr,
) -> bool {
    let is_up = |member: &Member, address: IpAddr| {
        listener.health.is_none()
            || !down(state, balancer).any(|health| {
                is(&health.address, address)
                    && health.protocol == listener.protocol
                    && health.port == listener.port_min
                    && health.member_port == listener.first_port_at(member)
            })
    };
    let mut members = listener.members.iter();
    members.any(|member| {
        let addresses = match state.find(Kind::Port, &member.port) {
            Some(Object::Port(port)) => &port.addresses[..],
            _ => std::slice::from_ref(&member.address),
        };
        let addresses = addresses.iter().filter_map(|text| text.parse().ok());
        let mut of_family = addresses.filter(|it: &IpAddr| it.is_ipv4() == own.is_ipv4());
        of_family
            .next()
            .is_some_and(|address| is_up(member, address))
    })
}

/// The members of a load balancer that do not serve.
fn down<'s>(
    state: &'s State,
    balancer: &'s LoadBalancer,
) -> impl Iterator<Item = &'s MemberHealth> {
    state.health_of(&balancer.id).filter(|health| !health.up)
}

fn is(text: &str, address: IpAddr) -> bool {
    text.parse() == Ok(address)
}
