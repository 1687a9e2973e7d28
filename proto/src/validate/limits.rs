//! Limits on the size of one object. Together with the number of objects they bound every table, so that no tenant's request can exhaust a
//! host's memory or make the decision about a packet slow; `docs/operations.md` lists them.

use super::{At, Report};

/// Labels of an object.
pub const LABELS: usize = 64;
/// Tunnel addresses of a host.
pub const HOST_VTEPS: usize = 16;
/// Routes of a route table.
pub const TABLE_ROUTES: usize = 2_000_000;
/// Policy routes of a route table: each may have to be asked on a session miss.
pub const TABLE_POLICIES: usize = 1000;
/// Next hops of a route.
pub const ROUTE_MEMBERS: usize = 256;
/// Rules of a network ACL, both directions together.
pub const ACL_RULES: usize = 20_000;
/// Rules of a security group, both directions together.
pub const GROUP_RULES: usize = 20_000;
/// Different security groups and prefix lists that the rules of one group name: each may have to be asked on a session miss.
pub const GROUP_SETS: usize = 64;
/// Addresses of the ports in a security group.
pub const GROUP_MEMBERS: usize = 262_144;
/// Parts in which hosts are told of a group's members.
pub const GROUP_PARTS: u32 = 256;
/// Prefixes of a prefix list.
pub const LIST_PREFIXES: usize = 262_144;
/// Addresses of a port.
pub const PORT_ADDRESSES: usize = 16;
/// Allowed pairs of a port: each is compared on a session miss.
pub const PORT_PAIRS: usize = 64;
/// Subports of a port.
pub const TRUNK_SUBPORTS: usize = 512;
/// Security groups of a port.
pub const PORT_GROUPS: usize = 16;
/// DNS servers that a subnet tells its guests of, both families together.
pub const SUBNET_DNS_SERVERS: usize = 16;
/// Routes that a subnet tells its guests by DHCP: with the default route, as many as one option of 255 bytes holds.
pub const SUBNET_DHCP_ROUTES: usize = 24;
/// DHCP and DHCPv6 options that a subnet or a port gives, both families together.
pub const DHCP_OPTIONS: usize = 32;
/// Bytes of all DHCP options that a guest is told, where a subnet or port gives any: what fits into the 576 bytes that every client takes (RFC 2131 §2)
/// behind headers of 268 bytes, beside 35 bytes that every answer has and a client's identifier of up to 37, with 4 bytes kept for what ends the options.
pub const DHCP_OPTION_BYTES: usize = 230;
/// Bytes of the DHCPv6 options that a subnet and a port give together: with as many DNS servers and as long a domain as there may be, and the longest
/// client's identifier, 173 of the 1280 bytes that every link takes (RFC 8200 §5) are left for addresses.
pub const DHCP6_OPTION_BYTES: usize = 384;
/// Prefixes of an external network.
pub const EXTERNAL_PREFIXES: usize = 64;
/// Prefixes that an external network's outside routes to VPCs.
pub const EXTERNAL_ROUTED: usize = 1024;
/// Gateway hosts of an external network.
pub const EXTERNAL_GATEWAY_HOSTS: usize = 16;
/// Physical networks of a host.
pub const HOST_PHYSICAL_NETWORKS: usize = 64;
/// Addresses of a NAT gateway.
pub const NAT_ADDRESSES: usize = 16;
/// Prefixes of sources of a NAT gateway.
pub const NAT_SOURCES: usize = 64;
/// Port forwards of a NAT gateway.
pub const NAT_FORWARDS: usize = 1024;
/// Listeners of a load balancer.
pub const BALANCER_LISTENERS: usize = 64;
/// Members of all listeners of a load balancer: each has a hundred slots or more in the table that flows are looked up in.
pub const BALANCER_MEMBERS: usize = 10_000;
/// The highest weight of a member of a load balancer.
pub const MEMBER_WEIGHT: u32 = 256;
/// DNS zones of a VPC: each question is compared with all.
pub const VPC_DNS_ZONES: usize = 64;
/// Data of all records of a VPC's DNS zones: each host with ports of the VPC keeps them as they are answered.
pub const VPC_DNS_DATA: usize = 65_536;
/// Records of a DNS zone.
pub const ZONE_RECORDS: usize = 1000;
/// Data of a record of a DNS zone.
pub const RECORD_DATA: usize = 32;
/// VPCs of a tenant, where no quota says otherwise.
pub const TENANT_VPCS: u32 = 16;
/// Subnets of a tenant.
pub const TENANT_SUBNETS: u32 = 256;
/// Route tables of a tenant.
pub const TENANT_ROUTE_TABLES: u32 = 128;
/// Network ACLs of a tenant.
pub const TENANT_NETWORK_ACLS: u32 = 128;
/// Prefix lists of a tenant.
pub const TENANT_PREFIX_LISTS: u32 = 128;
/// Security groups of a tenant.
pub const TENANT_SECURITY_GROUPS: u32 = 512;
/// Ports of a tenant.
pub const TENANT_PORTS: u32 = 5000;
/// Peerings that a tenant's VPCs request.
pub const TENANT_PEERINGS: u32 = 64;
/// Elastic IPs of a tenant.
pub const TENANT_ELASTIC_IPS: u32 = 20;
/// NAT gateways of a tenant.
pub const TENANT_NAT_GATEWAYS: u32 = 20;
/// Load balancers of a tenant.
pub const TENANT_LOAD_BALANCERS: u32 = 20;
/// DNS zones of a tenant.
pub const TENANT_DNS_ZONES: u32 = 64;
/// Most violations that are reported; of more, the first ones are.
pub const VIOLATIONS: usize = 1000;

impl Report {
    /// Refuses more than `most`; returns whether the number is within.
    pub(super) fn within(
        &mut self,
        at: At<'_>,
        field: impl Into<String>,
        count: usize,
        (owner, most, things): (&str, usize, &str),
    ) -> bool {
        if count > most {
            let rule = format!("{owner} at most {most} {things}, and {count} are given");
            self.add(at, field, rule);
        }
        count <= most
    }
}
