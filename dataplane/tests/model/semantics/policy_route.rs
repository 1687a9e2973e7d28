//! Policy routes: of those of the sender's table that match, the one with the lowest priority leads the packet, in the direction of who opened the flow.

use weft_proto::v1;

use super::Standing;
use super::frame::{Detail, Flow, Packet};
use super::world::{World, prefix_holds};

impl World {
    /// The one that decides for a packet of a port, to where `flow` goes.
    pub(super) fn policy_route(
        &self,
        port: &v1::Port,
        (packet, flow, standing): (&Packet, &Flow, Standing),
    ) -> Option<&v1::PolicyRoute> {
        if standing != Standing::Forward {
            return None;
        }
        let subnet = self.subnet(&port.subnet);
        let mut tables = self.0.route_tables.iter();
        let table = tables.find(|table| table.id == subnet.route_table)?;
        let matching = table.policies.iter();
        let matching = matching.filter(|policy| matches(policy, flow, packet.class >> 2));
        matching.min_by_key(|policy| policy.priority)
    }

    /// The target of the one that decides, if it does not leave the packet to the routes.
    pub(super) fn policy_target(
        &self,
        port: &v1::Port,
        question: (&Packet, &Flow, Standing),
    ) -> Option<v1::Route> {
        self.policy_route(port, question)?.to.clone()
    }
}

fn matches(policy: &v1::PolicyRoute, flow: &Flow, dscp: u8) -> bool {
    let v4 = flow.source.is_ipv4();
    let protocol = match policy.protocol.as_str() {
        "" | "any" => true,
        "tcp" => flow.protocol == 6,
        "udp" => flow.protocol == 17,
        "icmp" => v4 && flow.protocol == 1,
        "icmpv6" => !v4 && flow.protocol == 58,
        "sctp" => flow.protocol == 132,
        number => number.parse() == Ok(flow.protocol),
    };
    let within = |text: &str, address| text.is_empty() || prefix_holds(text, address);
    let (source, destination) = match flow.detail {
        Detail::Ports(source, destination) => (Some(source.into()), Some(destination.into())),
        _ => (None, None),
    };
    let between = |min: Option<u32>, max: Option<u32>, port: Option<u32>| {
        min.is_none_or(|min| port.is_some_and(|port| min <= port))
            && max.is_none_or(|max| port.is_some_and(|port| port <= max))
    };
    protocol
        && within(&policy.source, flow.source)
        && within(&policy.destination, flow.destination)
        && between(policy.source_port_min, policy.source_port_max, source)
        && between(
            policy.destination_port_min,
            policy.destination_port_max,
            destination,
        )
        && policy.dscp.is_none_or(|only| only == u32::from(dscp))
}
