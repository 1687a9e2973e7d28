//! The wire contract of weft: messages generated from `weft/v1/*.proto`, and the canonical form of a set of objects. The services of the
//! same files are generated in `weft-process`, so that who only reads messages links no gRPC.
//! The controller and the daemon meet here and nowhere else.

#![forbid(unsafe_code)]

/// Version 1 of the contract.
#[allow(missing_docs, clippy::all, unreachable_pub)]
pub mod v1 {
    include!(concat!(env!("OUT_DIR"), "/weft.v1.rs"));
}

pub mod address;
mod balancer;
pub mod dhcp_option;
pub mod dns;
pub mod external;
mod health;
mod holder;
pub mod labels;
pub mod mtu;
pub mod multicast;
pub mod nat;
pub mod peering;
pub mod persistent;
pub mod state;
pub mod strict;
pub mod validate;

/// Version of the host protocol.
pub const HOST_PROTOCOL: u32 = 1;

/// The capability of a host that takes [`v1::LoadBalancer`]s.
pub const LOAD_BALANCER: &str = "load_balancer";

/// The capability of a host that chooses members of load balancers by least connections. Others are told listeners that do to choose by a hash.
pub const LEAST_CONNECTIONS: &str = "least_connections";

/// The capability of a host that takes listeners of mode dsr ([`v1::Listener::mode`]). Others are told load balancers without them.
pub const DSR: &str = "dsr";

/// The capability of a host that takes DHCP options of subnets and ports. Others are told the subnets and ports without them.
pub const DHCP_OPTIONS: &str = "dhcp_options";

/// The capability of a host that takes what other hosts have found out, and of a controller that hears it.
pub const FINDINGS: &str = "findings";

/// The capability of a host that marks what ports send ([`v1::Port::dscp`]). Others are told the ports without it.
pub const DSCP_MARKING: &str = "dscp_marking";

/// The capability of a host that takes policy routes ([`v1::PolicyRoute`]). Others are told the route tables without them.
pub const POLICY_ROUTES: &str = "policy_routes";

/// The capability of a host that snoops multicast. Others are told subnets and VPCs without the settings, and flood.
pub const MULTICAST: &str = "multicast";

/// The capability of a host that takes what ports of other hosts have joined ([`v1::MulticastListener`]).
pub const MULTICAST_LISTENERS: &str = "multicast_listeners";

/// The capability of a host that takes which ports hold virtual addresses ([`v1::AddressHolder`]).
pub const ADDRESS_HOLDERS: &str = "address_holders";

/// The capability of a host that checks whether appliances at its ports live, and takes which of others do not ([`v1::PortHealth`]). Others are told the ports
/// without [`v1::Port::health`].
pub const PORT_HEALTH: &str = "port_health";

/// The capability of a host that takes a state in several messages ([`v1::Part`]).
pub const STATE_PARTS: &str = "state_parts";

/// The capability of a controller that takes [`v1::Findings`] which are all of some kinds.
pub const FINDINGS_BY_KIND: &str = "findings_by_kind";

/// The capability of a host that takes subports ([`v1::Trunk`]). Others are told the ports with a device that they lack, so that these are down.
pub const TRUNK_PORTS: &str = "trunk_ports";

/// The capability of a host whose gateways answer DNS. Others are told VPCs without [`v1::VpcDns`], and neither zones nor names.
pub const DNS: &str = "dns";

/// The capability of a controller that takes [`v1::PortReports`].
pub const PORT_REPORTS: &str = "port_reports";
