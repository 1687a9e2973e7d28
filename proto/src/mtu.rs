//! Tunnel overhead, and the MTU that is left for guests.
//!
//! All sizes are bytes of IP packet: an overhead is outer IP, tunnel header and inner Ethernet together (RFC 7348 §5, RFC 2784, RFC 2890).

use crate::v1;

/// What the underlay carries where a host does not say.
pub const DEFAULT_UNDERLAY_MTU: u32 = 1500;

/// The guests' MTU where every tunnel address is IPv4.
pub const DEFAULT_MTU: u32 = 1450;

/// The guests' MTU where any host that carries the VPC has an IPv6 tunnel address.
pub const DEFAULT_MTU_IPV6_UNDERLAY: u32 = 1430;

/// Bytes of IP packet that the underlay carries to this host.
pub fn underlay(host: &v1::Host) -> u32 {
    if host.underlay_mtu == 0 {
        DEFAULT_UNDERLAY_MTU
    } else {
        host.underlay_mtu
    }
}

/// The most that a tunnel to this host adds to a guest's packet.
pub fn overhead(host: &v1::Host) -> u32 {
    let outer = if has_ipv6(host) { 40 } else { 20 };
    // UDP and VXLAN, or GRE with a key; then the inner Ethernet header.
    let tunnel = if host.encapsulation == "gre" { 8 } else { 16 };
    outer + tunnel + 14
}

/// Whether any tunnel address of the host is IPv6.
pub fn has_ipv6(host: &v1::Host) -> bool {
    host.vteps.iter().any(|vtep| vtep.contains(':'))
}

/// What an external network carries where it does not say.
pub const DEFAULT_EXTERNAL_MTU: u32 = 1500;

/// Bytes of IP packet that an external network carries.
pub fn external(network: &v1::ExternalNetwork) -> u32 {
    match network.mtu {
        0 => DEFAULT_EXTERNAL_MTU,
        mtu => mtu,
    }
}

/// The MTU in force in a subnet on an external network.
pub fn on_network(subnet: &v1::Subnet, network: &v1::ExternalNetwork) -> u32 {
    match subnet.mtu {
        0 => external(network),
        mtu => mtu,
    }
}

/// The MTU in force in a subnet whose VPC these hosts carry, if it is on no external network.
pub fn effective<'a>(subnet: &v1::Subnet, mut carriers: impl Iterator<Item = &'a v1::Host>) -> u32 {
    if subnet.mtu != 0 {
        subnet.mtu
    } else if carriers.any(has_ipv6) {
        DEFAULT_MTU_IPV6_UNDERLAY
    } else {
        DEFAULT_MTU
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(vtep: &str, encapsulation: &str) -> v1::Host {
        v1::Host {
            vteps: vec![vtep.into()],
            encapsulation: encapsulation.into(),
            ..v1::Host::default()
        }
    }

    #[test]
    fn overheads_are_those_of_the_headers() {
        assert_eq!(overhead(&host("192.0.2.1", "")), 20 + 8 + 8 + 14);
        assert_eq!(overhead(&host("2001:db8::1", "vxlan")), 40 + 8 + 8 + 14);
        assert_eq!(overhead(&host("192.0.2.1", "gre")), 20 + 8 + 14);
        assert_eq!(overhead(&host("2001:db8::1", "gre")), 40 + 8 + 14);
    }

    #[test]
    fn the_default_mtu_fits_the_default_underlay() {
        let hosts = [host("192.0.2.1", ""), host("2001:db8::1", "")];
        let subnet = v1::Subnet::default();
        assert_eq!(effective(&subnet, hosts[..1].iter()), 1450);
        assert_eq!(effective(&subnet, hosts.iter()), 1430);
        assert_eq!(1430 + overhead(&hosts[1]), underlay(&hosts[1]));
    }
}
