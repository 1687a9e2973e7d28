//! What each kind of object has: its flags for `create`, and its columns in a list.

use clap::Args;
use weft_proto::state::{Kind, Object};
use weft_proto::v1;

use crate::balancer::HealthFlags;
use crate::output::Table;

/// The flags of a kind, and the object that they describe.
pub(crate) trait Flags: Args {
    const KIND: Kind;

    fn object(self, id: String) -> Object;
}

/// Flags of `vpc create`.
#[derive(Debug, Args)]
pub(crate) struct Vpc {
    /// VPC-ID, 1 to 16777215: the VXLAN VNI and GRE key [default: the controller chooses one].
    #[arg(long)]
    vni: Option<u32>,
    /// Account that the VPC belongs to [default: the operator's].
    #[arg(long, default_value = "", hide_default_value = true)]
    tenant: String,
    /// Route multicast between its subnets with snooping.
    #[arg(long)]
    multicast_routing: bool,
    /// Answer DNS at the gateways of its subnets, with the names of its ports in this domain.
    #[arg(long, value_name = "DOMAIN")]
    dns_domain: Option<String>,
}

impl Flags for Vpc {
    const KIND: Kind = Kind::Vpc;

    fn object(self, id: String) -> Object {
        Object::Vpc(v1::Vpc {
            id,
            vni: self.vni.unwrap_or_default(),
            tenant: self.tenant,
            multicast_routing: self.multicast_routing,
            dns: self.dns_domain.map(|domain| v1::VpcDns { domain }),
            ..v1::Vpc::default()
        })
    }
}

/// Flags of `quota create`.
#[derive(Debug, Args)]
pub(crate) struct Quota {
    /// How many objects the tenant may have.
    #[arg(
        long,
        default_value_t = 0,
        hide_default_value = true,
        required_unless_present = "file"
    )]
    limit: u32,
}

impl Flags for Quota {
    const KIND: Kind = Kind::Quota;

    fn object(self, id: String) -> Object {
        let (tenant, kind) = id.rsplit_once('/').unwrap_or_default();
        Object::Quota(v1::Quota {
            tenant: tenant.to_owned(),
            kind: kind.to_owned(),
            limit: self.limit,
            id,
            ..v1::Quota::default()
        })
    }
}

/// Flags of `peering create`.
#[derive(Debug, Args)]
pub(crate) struct Peering {
    /// VPC that asks for the peering.
    #[arg(
        long,
        default_value = "",
        required_unless_present = "file",
        hide_default_value = true
    )]
    requester: String,
    /// VPC that is asked.
    #[arg(
        long,
        default_value = "",
        required_unless_present = "file",
        hide_default_value = true
    )]
    accepter: String,
}

impl Flags for Peering {
    const KIND: Kind = Kind::Peering;

    fn object(self, id: String) -> Object {
        Object::Peering(v1::Peering {
            id,
            requester: self.requester,
            accepter: self.accepter,
            ..v1::Peering::default()
        })
    }
}

/// The flag that most kinds share.
#[derive(Debug, Args)]
pub(crate) struct InVpc {
    /// VPC of the object.
    #[arg(
        long,
        default_value = "",
        required_unless_present = "file",
        hide_default_value = true
    )]
    pub(crate) vpc: String,
}

/// Where a security group or a prefix list is.
#[derive(Debug, Args)]
#[group(id = "place", multiple = false)]
pub(crate) struct InVpcOrTenant {
    /// VPC of the object.
    #[arg(
        long,
        default_value = "",
        required_unless_present_any = ["file", "tenant"],
        hide_default_value = true
    )]
    vpc: String,
    /// Tenant whose VPCs may all use it, in place of a VPC.
    #[arg(long, default_value = "", hide_default_value = true)]
    tenant: String,
}

/// Flags of `subnet create`.
#[derive(Debug, Args)]
pub(crate) struct Subnet {
    #[command(flatten)]
    place: InVpc,
    /// Prefix of the subnet; at most one of IPv4 and one of IPv6.
    #[arg(long = "cidr", required_unless_present = "file")]
    cidrs: Vec<String>,
    /// Gateway address in each prefix [default: the first address; on an external network none].
    #[arg(long = "gateway")]
    gateways: Vec<String>,
    /// MAC of the gateway.
    #[arg(long, default_value = "", hide_default_value = true)]
    gateway_mac: String,
    /// Route table of the subnet.
    #[arg(long, default_value = "", hide_default_value = true)]
    route_table: String,
    /// Network ACL of the subnet.
    #[arg(long, default_value = "", hide_default_value = true)]
    acl: String,
    /// MTU of guests, in bytes [default: what fits into the tunnels, or what the external network carries].
    #[arg(long, default_value_t = 0, hide_default_value = true)]
    mtu: u32,
    /// External network that the subnet is on, in place of tunnels: its ports are neighbours of what is on that wire.
    #[arg(long, default_value = "", hide_default_value = true)]
    external_network: String,
    /// What becomes of multicast packets: flood (default), or snooping: those who have joined a group by IGMP or MLD get them.
    #[arg(
        long,
        value_name = "MODE",
        default_value = "",
        hide_default_value = true
    )]
    multicast: String,
    #[command(flatten)]
    dhcp: Dhcp,
}

/// DHCP, DHCPv6 and router advertisement settings of a subnet.
#[derive(Debug, Args)]
struct Dhcp {
    /// Do not answer DHCP, DHCPv6 and router solicitations.
    #[arg(long)]
    no_dhcp: bool,
    /// DNS server for guests; repeat for several.
    #[arg(long = "dns", value_name = "ADDRESS")]
    dns_servers: Vec<String>,
    /// DNS domain for guests.
    #[arg(long, default_value = "", hide_default_value = true)]
    domain: String,
    /// DHCP lease time [default: 86400].
    #[arg(
        long,
        value_name = "SECONDS",
        default_value_t = 0,
        hide_default_value = true
    )]
    lease_seconds: u32,
    /// Route for guests, such as 10.9.0.0/16=10.0.0.5; repeat for several.
    #[arg(long = "dhcp-route", value_name = "PREFIX=NEXT-HOP", value_parser = dhcp_route)]
    routes: Vec<v1::DhcpRoute>,
    /// How guests configure IPv6: dhcpv6-stateful, dhcpv6-stateless or slaac.
    #[arg(long, default_value = "", hide_default_value = true)]
    ipv6_mode: String,
    #[command(flatten)]
    options: DhcpOptions,
}

/// DHCP options of a subnet or a port.
#[derive(Debug, Args)]
struct DhcpOptions {
    /// DHCP option for guests, by name or number, such as bootfile-name=pxelinux.0; nothing behind the = takes it away; repeat for several.
    #[arg(long = "dhcp-option", value_name = "NAME=VALUE", value_parser = dhcp_option)]
    dhcp: Vec<(String, String)>,
    /// DHCPv6 option for guests, by name or number, such as ntp-server=2001:db8::123; repeat for several.
    #[arg(long = "dhcp6-option", value_name = "NAME=VALUE", value_parser = dhcp_option)]
    dhcp6: Vec<(String, String)>,
}

impl DhcpOptions {
    fn message(self) -> Vec<v1::DhcpOption> {
        let option = |family: &str, (name, value)| v1::DhcpOption {
            name,
            value,
            family: family.to_owned(),
            force: false,
        };
        let dhcp = self.dhcp.into_iter().map(|it| option("ipv4", it));
        let dhcp6 = self.dhcp6.into_iter().map(|it| option("ipv6", it));
        dhcp.chain(dhcp6).collect()
    }
}

fn dhcp_option(text: &str) -> Result<(String, String), String> {
    let (name, value) = text
        .split_once('=')
        .ok_or("an option is written NAME=VALUE")?;
    Ok((name.to_owned(), value.to_owned()))
}

fn dhcp_route(text: &str) -> Result<v1::DhcpRoute, String> {
    let (prefix, next_hop) = text
        .split_once('=')
        .ok_or("a route is written PREFIX=NEXT-HOP")?;
    Ok(v1::DhcpRoute {
        prefix: prefix.to_owned(),
        next_hop: next_hop.to_owned(),
    })
}

impl Dhcp {
    /// None when no flag is given.
    fn message(self) -> Option<v1::Dhcp> {
        let dhcp = v1::Dhcp {
            disabled: self.no_dhcp,
            dns_servers: self.dns_servers,
            domain: self.domain,
            lease_seconds: self.lease_seconds,
            routes: self.routes,
            ipv6_mode: self.ipv6_mode,
            options: self.options.message(),
        };
        (dhcp != v1::Dhcp::default()).then_some(dhcp)
    }
}

impl Flags for Subnet {
    const KIND: Kind = Kind::Subnet;

    fn object(self, id: String) -> Object {
        Object::Subnet(v1::Subnet {
            id,
            vpc: self.place.vpc,
            cidrs: self.cidrs,
            gateways: self.gateways,
            gateway_mac: self.gateway_mac,
            route_table: self.route_table,
            network_acl: self.acl,
            mtu: self.mtu,
            dhcp: self.dhcp.message(),
            external_network: self.external_network,
            multicast: self.multicast,
            ..v1::Subnet::default()
        })
    }
}

/// Flags of `port create`.
#[derive(Debug, Args)]
pub(crate) struct Port {
    #[command(flatten)]
    place: InVpc,
    /// Subnet of the port.
    #[arg(
        long,
        default_value = "",
        required_unless_present = "file",
        hide_default_value = true
    )]
    subnet: String,
    /// MAC of the port.
    #[arg(
        long,
        default_value = "",
        required_unless_present = "file",
        hide_default_value = true
    )]
    mac: String,
    /// Address of the port; repeat for several.
    #[arg(long = "address")]
    addresses: Vec<String>,
    /// Security group of the port; repeat for several.
    #[arg(long = "sg")]
    security_groups: Vec<String>,
    /// Allowed address pair: a prefix or address that the port may also use as a source; repeat for several.
    #[arg(long = "allow", value_name = "CIDR")]
    allowed: Vec<String>,
    /// Host of the port.
    #[arg(long, default_value = "", hide_default_value = true)]
    host: String,
    /// Device: a kernel interface of the host, such as a veth end.
    #[arg(long, value_name = "NAME", group = "device")]
    netdev: Option<String>,
    /// Device: a tap interface of the host; weftd creates it if it is missing.
    #[arg(long, value_name = "NAME", group = "device")]
    tap: Option<String>,
    /// Device: a vhost-user socket on the host, on which weftd listens.
    #[arg(long, value_name = "PATH", group = "device")]
    vhost_user: Option<String>,
    /// The virtual machine listens on the vhost-user socket, and weftd connects.
    #[arg(long, requires = "vhost_user")]
    vhost_client: bool,
    /// Queue pairs of a tap or vhost-user device, 1 to 16.
    #[arg(long, default_value_t = 0, hide_default_value = true)]
    queues: u32,
    /// A subport: in place of a device, a VLAN (1 to 4094) on the device of this port.
    #[arg(long, value_name = "PARENT:VLAN", value_parser = trunk, group = "device")]
    trunk: Option<v1::Trunk>,
    /// Turn anti-spoofing off.
    #[arg(long)]
    unguarded: bool,
    /// Clamp the MSS of TCP SYNs to the path's MTU.
    #[arg(long)]
    clamp_mss: bool,
    /// Hostname that DHCP gives to the guest.
    #[arg(long, default_value = "", hide_default_value = true)]
    hostname: String,
    /// DSCP that the packets of the guest are marked with, 0 to 63 [default: they keep their own].
    #[arg(long)]
    dscp: Option<u32>,
    #[command(flatten)]
    check: HealthFlags,
    #[command(flatten)]
    dhcp_options: DhcpOptions,
    #[command(flatten)]
    limits: Limits,
}

/// Rate limits of a port or an elastic IP.
#[derive(Debug, Args)]
pub(crate) struct Limits {
    /// Limit on what it sends.
    #[arg(
        long,
        value_name = "BITS/S",
        default_value_t = 0,
        hide_default_value = true
    )]
    egress_bits: u64,
    /// Limit on what it sends.
    #[arg(
        long,
        value_name = "PACKETS/S",
        default_value_t = 0,
        hide_default_value = true
    )]
    egress_packets: u64,
    /// Limit on what it receives.
    #[arg(
        long,
        value_name = "BITS/S",
        default_value_t = 0,
        hide_default_value = true
    )]
    ingress_bits: u64,
    /// Limit on what it receives.
    #[arg(
        long,
        value_name = "PACKETS/S",
        default_value_t = 0,
        hide_default_value = true
    )]
    ingress_packets: u64,
}

impl Limits {
    /// None when no flag is given; bursts are the default ones.
    pub(crate) fn message(self) -> Option<v1::RateLimits> {
        let limit = |bits_per_second, packets_per_second| {
            let limit = v1::RateLimit {
                bits_per_second,
                packets_per_second,
                ..v1::RateLimit::default()
            };
            (limit != v1::RateLimit::default()).then_some(limit)
        };
        let limits = v1::RateLimits {
            egress: limit(self.egress_bits, self.egress_packets),
            ingress: limit(self.ingress_bits, self.ingress_packets),
        };
        (limits != v1::RateLimits::default()).then_some(limits)
    }
}

impl Flags for Port {
    const KIND: Kind = Kind::Port;

    fn object(self, id: String) -> Object {
        let pair = |cidr| v1::AddressPair {
            cidr,
            mac: String::new(),
        };
        let kinds = [
            ("netdev", self.netdev),
            ("tap", self.tap),
            ("vhost-user", self.vhost_user),
        ];
        let device = kinds
            .into_iter()
            .find_map(|(kind, name)| Some((kind, name?)));
        Object::Port(v1::Port {
            id,
            vpc: self.place.vpc,
            subnet: self.subnet,
            mac: self.mac,
            addresses: self.addresses,
            allowed_pairs: self.allowed.into_iter().map(pair).collect(),
            security_groups: self.security_groups,
            host: self.host,
            device: device.map(|(kind, name)| v1::Device {
                kind: kind.to_owned(),
                name,
                mode: if self.vhost_client { "client" } else { "" }.to_owned(),
                queues: self.queues,
            }),
            trunk: self.trunk,
            unguarded: self.unguarded,
            clamp_mss: self.clamp_mss,
            hostname: self.hostname,
            dscp: self.dscp,
            health: self.check.health().map(Box::new),
            dhcp_options: self.dhcp_options.message(),
            limits: self.limits.message(),
            moved_from: String::new(),
            ..v1::Port::default()
        })
    }
}

fn trunk(text: &str) -> Result<v1::Trunk, String> {
    // An id has no colon.
    let parts = text.split_once(':');
    let found = parts.and_then(|(parent, vlan)| {
        let (parent, vlan) = (parent.to_owned(), vlan.parse().ok()?);
        Some(v1::Trunk { parent, vlan })
    });
    found.ok_or_else(|| "a port and a VLAN, such as vm-1:100".to_owned())
}

/// The name of a port's device, or the parent and the VLAN of a subport.
pub(crate) fn device_text(port: &v1::Port) -> String {
    match (&port.trunk, &port.device) {
        (Some(trunk), _) => format!("{}:{}", trunk.parent, trunk.vlan),
        (None, Some(device)) => device.name.clone(),
        (None, None) => String::new(),
    }
}

/// Flags of `route-table create`.
#[derive(Debug, Args)]
pub(crate) struct RouteTable {
    #[command(flatten)]
    place: InVpc,
}

impl Flags for RouteTable {
    const KIND: Kind = Kind::RouteTable;

    fn object(self, id: String) -> Object {
        Object::RouteTable(v1::RouteTable {
            id,
            vpc: self.place.vpc,
            routes: Vec::new(),
            ..v1::RouteTable::default()
        })
    }
}

/// Flags of `sg create`.
#[derive(Debug, Args)]
pub(crate) struct SecurityGroup {
    #[command(flatten)]
    place: InVpcOrTenant,
}

impl Flags for SecurityGroup {
    const KIND: Kind = Kind::SecurityGroup;

    fn object(self, id: String) -> Object {
        Object::SecurityGroup(v1::SecurityGroup {
            id,
            vpc: self.place.vpc,
            tenant: self.place.tenant,
            ..v1::SecurityGroup::default()
        })
    }
}

/// Flags of `acl create`.
#[derive(Debug, Args)]
pub(crate) struct NetworkAcl {
    #[command(flatten)]
    place: InVpc,
}

impl Flags for NetworkAcl {
    const KIND: Kind = Kind::NetworkAcl;

    fn object(self, id: String) -> Object {
        Object::NetworkAcl(v1::NetworkAcl {
            id,
            vpc: self.place.vpc,
            rules: Vec::new(),
            ..v1::NetworkAcl::default()
        })
    }
}

/// Flags of `prefix-list create`.
#[derive(Debug, Args)]
pub(crate) struct PrefixList {
    #[command(flatten)]
    place: InVpcOrTenant,
    /// Prefix of the list; repeat for several.
    #[arg(long = "prefix")]
    prefixes: Vec<String>,
}

impl Flags for PrefixList {
    const KIND: Kind = Kind::PrefixList;

    fn object(self, id: String) -> Object {
        Object::PrefixList(v1::PrefixList {
            id,
            vpc: self.place.vpc,
            prefixes: self.prefixes,
            tenant: self.place.tenant,
            ..v1::PrefixList::default()
        })
    }
}

/// Flags of `host create`.
#[derive(Debug, Args)]
pub(crate) struct Host {
    /// Tunnel address of the host; repeat for several.
    #[arg(long = "vtep", required_unless_present = "file")]
    vteps: Vec<String>,
    /// Encapsulation towards the host: vxlan or gre.
    #[arg(long, default_value = "", hide_default_value = true)]
    encapsulation: String,
    /// MTU of the underlay to the host, in bytes [default: 1500].
    #[arg(long, default_value_t = 0, hide_default_value = true)]
    underlay_mtu: u32,
    /// The host is foreign equipment without weftd.
    #[arg(long)]
    foreign: bool,
    /// Physical network that the host has an interface on; repeat for several.
    #[arg(long = "physical-network", value_name = "NAME")]
    physical_networks: Vec<String>,
}

impl Flags for Host {
    const KIND: Kind = Kind::Host;

    fn object(self, id: String) -> Object {
        Object::Host(v1::Host {
            id,
            vteps: self.vteps,
            encapsulation: self.encapsulation,
            underlay_mtu: self.underlay_mtu,
            foreign: self.foreign,
            physical_networks: self.physical_networks,
            ..v1::Host::default()
        })
    }
}

/// A table of objects of one kind.
pub(crate) fn table(kind: Kind, objects: &v1::Objects) -> String {
    let mut table = Table::new(headings(kind));
    for object in weft_proto::state::explode(objects.clone()) {
        if object.kind() == kind {
            table.row(row(object));
        }
    }
    table.text()
}

/// The headings of a table of a kind.
pub(crate) fn headings(kind: Kind) -> &'static [&'static str] {
    match kind {
        Kind::Host => &[
            "ID",
            "VTEPS",
            "ENCAPSULATION",
            "UNDERLAY-MTU",
            "FOREIGN",
            "PHYSICAL-NETWORKS",
        ],
        Kind::Vpc => &["ID", "VNI", "TENANT"],
        Kind::Quota => &["ID", "TENANT", "KIND", "LIMIT"],
        Kind::Peering => &[
            "ID",
            "REQUESTER",
            "REQUESTER-STATE",
            "ACCEPTER",
            "ACCEPTER-STATE",
        ],
        Kind::ExternalNetwork => &[
            "ID",
            "TENANT",
            "PHYSICAL-NETWORK",
            "VLAN",
            "PREFIXES",
            "GATEWAYS",
            "GATEWAY-HOSTS",
        ],
        Kind::ElasticIp => &[
            "ID",
            "TENANT",
            "EXTERNAL-NETWORK",
            "ADDRESS",
            "PORT",
            "PRIVATE-ADDRESS",
        ],
        Kind::NatGateway => &[
            "ID",
            "VPC",
            "EXTERNAL-NETWORK",
            "ADDRESSES",
            "SOURCES",
            "FORWARDS",
        ],
        Kind::LoadBalancer => &["ID", "VPC", "ADDRESSES", "LISTENERS", "MEMBERS"],
        Kind::Subnet => &[
            "ID",
            "VPC",
            "CIDRS",
            "GATEWAYS",
            "ROUTE-TABLE",
            "ACL",
            "MTU",
            "EXTERNAL-NETWORK",
        ],
        Kind::RouteTable => &["ID", "VPC", "ROUTES"],
        Kind::NetworkAcl => &["ID", "VPC", "RULES"],
        Kind::SecurityGroup => &["ID", "VPC", "RULES", "TENANT"],
        Kind::GroupMembers => &["ID", "VPC", "MEMBERS"],
        Kind::LearnedAddress => &["ID", "VPC", "ADDRESS"],
        Kind::MemberHealth | Kind::PortHealth => &["ID", "VPC", "UP"],
        Kind::MulticastListener => &["ID", "VPC", "HOST", "SUBNET", "GROUP"],
        Kind::AddressHolder => &["ID", "VPC", "ADDRESS", "PORT", "MAC"],
        Kind::DnsZone => &["ID", "VPC", "DOMAIN", "RECORDS"],
        Kind::PortName => &["ID", "VPC", "NAME", "ADDRESSES"],
        Kind::PrefixList => &["ID", "VPC", "PREFIXES", "TENANT"],
        Kind::Port => &[
            "ID",
            "VPC",
            "SUBNET",
            "MAC",
            "ADDRESSES",
            "GROUPS",
            "HOST",
            "DEVICE",
        ],
    }
}

/// The cells of an object, under the headings of its kind.
pub(crate) fn row(object: Object) -> Vec<String> {
    let or_dash = |text: String| {
        if text.is_empty() {
            "-".to_owned()
        } else {
            text
        }
    };
    let number = |n: u32| {
        if n == 0 {
            "-".to_owned()
        } else {
            n.to_string()
        }
    };
    match object {
        Object::Host(o) => vec![
            o.id,
            o.vteps.join(","),
            if o.encapsulation.is_empty() {
                "vxlan".to_owned()
            } else {
                o.encapsulation
            },
            number(o.underlay_mtu),
            if o.foreign { "yes" } else { "no" }.to_owned(),
            or_dash(o.physical_networks.join(",")),
        ],
        Object::Vpc(o) => vec![o.id, o.vni.to_string(), or_dash(o.tenant)],
        Object::Quota(o) => vec![o.id, o.tenant, o.kind, o.limit.to_string()],
        Object::Peering(o) => vec![
            o.id,
            o.requester,
            o.requester_state,
            o.accepter,
            o.accepter_state,
        ],
        Object::ExternalNetwork(o) => vec![
            o.id,
            or_dash(o.tenant),
            or_dash(o.physical_network),
            number(o.vlan),
            or_dash(o.prefixes.join(",")),
            or_dash(o.gateways.join(",")),
            or_dash(o.gateway_hosts.join(",")),
        ],
        Object::ElasticIp(o) => vec![
            o.id,
            or_dash(o.tenant),
            o.external_network,
            o.address,
            or_dash(o.port),
            or_dash(o.private_address),
        ],
        Object::NatGateway(o) => vec![
            o.id,
            o.vpc,
            o.external_network,
            o.addresses.join(","),
            or_dash(o.sources.join(",")),
            o.port_forwards.len().to_string(),
        ],
        Object::LoadBalancer(o) => vec![
            o.id.clone(),
            o.vpc.clone(),
            o.addresses.join(","),
            o.listeners.len().to_string(),
            o.members().count().to_string(),
        ],
        Object::Subnet(o) => vec![
            o.id,
            o.vpc,
            o.cidrs.join(","),
            or_dash(o.gateways.join(",")),
            or_dash(o.route_table),
            or_dash(o.network_acl),
            number(o.mtu),
            or_dash(o.external_network),
        ],
        Object::RouteTable(o) => vec![o.id, o.vpc, o.routes.len().to_string()],
        Object::NetworkAcl(o) => vec![o.id, o.vpc, o.rules.len().to_string()],
        Object::PrefixList(o) => {
            let prefixes = or_dash(o.prefixes.join(","));
            vec![o.id, or_dash(o.vpc), prefixes, or_dash(o.tenant)]
        }
        Object::SecurityGroup(o) => {
            let rules = o.rules.len().to_string();
            vec![o.id, or_dash(o.vpc), rules, or_dash(o.tenant)]
        }
        Object::GroupMembers(o) => vec![o.id, o.vpc, o.members.len().to_string()],
        Object::LearnedAddress(o) => vec![o.id, o.vpc, o.address],
        Object::MemberHealth(o) => vec![o.id, o.vpc, o.up.to_string()],
        Object::PortHealth(o) => vec![o.id, o.vpc, o.up.to_string()],
        Object::MulticastListener(o) => vec![o.id, o.vpc, o.host, o.subnet, o.group],
        Object::AddressHolder(o) => vec![o.id, o.vpc, o.address, o.port, o.mac],
        Object::DnsZone(o) => vec![o.id, o.vpc, o.domain, o.records.len().to_string()],
        Object::PortName(o) => vec![o.id, o.vpc, o.name, o.addresses.join(",")],
        Object::Port(o) => {
            let device = or_dash(device_text(&o));
            vec![
                o.id,
                o.vpc,
                o.subnet,
                o.mac,
                or_dash(o.addresses.join(",")),
                or_dash(o.security_groups.join(",")),
                or_dash(o.host),
                device,
            ]
        }
    }
}
