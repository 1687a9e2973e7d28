//! Behaviours that users of such systems rely on, in memory: packet in, packet out. Tests are named after the numbers of the list of
//! behaviours.

#![allow(clippy::unwrap_used)]

mod allocations;
mod appliances;
mod balancing;
mod balancing_public;
mod checksums;
mod connections;
mod dhcp;
mod dhcp6;
mod direct;
mod dscp;
mod epochs;
mod external;
mod failover;
mod fellows;
mod fragments;
mod frames;
mod lanes;
mod learning;
mod metadata;
mod moves;
mod mtu;
mod multicast;
mod nat;
mod nat64;
mod neighbours;
mod overlay;
mod peering;
mod policy;
mod policy_routes;
mod rate_limits;
mod router;
mod router_advertisement;
mod segments;
mod services_hostile;
mod topology;
mod traces;
mod translation;
mod transport;
mod trunk;
mod vectors;
mod virtual_addresses;
mod wires;
mod wires_random;
