//! What each kind of object has: its flags for `create`, and its columns in a list.

use clap::Args;
use weft_proto::state::{Kind, Object};
use weft_proto::v1;

use crate::output::Table;

/// The flags of a kind, and the object that they describe.
pub(crate) trait Flags: Args {
    const KIND: Kind;

    fn object(self, id: String) -> Object;
}

/// Flags of `vpc create`.
#[derive(Debug, Args)]
pub(crate) struct Vpc {
    /// The VPC-ID, 1 to 16777215: VXLAN VNI and GRE key.
    #[arg(long, required_unless_present = "file")]
    vni: Option<u32>,
}

impl Flags for Vpc {
    const KIND: Kind = Kind::Vpc;

    fn object(self, id: String) -> Object {
        Object::Vpc(v1::Vpc {
            id,
            vni: self.vni.unwrap_or_default(),
        })
    }
}

/// The flag that most kinds share.
#[derive(Debug, Args)]
pub(crate) struct InVpc {
    /// The VPC that it belongs to.
    #[arg(
        long,
        default_value = "",
        required_unless_present = "file",
        hide_default_value = true
    )]
    vpc: String,
}

/// Flags of `subnet create`.
#[derive(Debug, Args)]
pub(crate) struct Subnet {
    #[command(flatten)]
    place: InVpc,
    /// Its prefix; once for IPv4, once for IPv6.
    #[arg(long = "cidr", required_unless_present = "file")]
    cidrs: Vec<String>,
    /// The virtual router's address in each prefix; the first of the prefix by default.
    #[arg(long = "gateway")]
    gateways: Vec<String>,
    /// The virtual router's MAC.
    #[arg(long, default_value = "", hide_default_value = true)]
    gateway_mac: String,
    /// Its route table.
    #[arg(long, default_value = "", hide_default_value = true)]
    route_table: String,
    /// Its network ACL.
    #[arg(long, default_value = "", hide_default_value = true)]
    acl: String,
    /// Bytes of IP packet that a guest may send; by default what fits the tunnels.
    #[arg(long, default_value_t = 0, hide_default_value = true)]
    mtu: u32,
    #[command(flatten)]
    dhcp: Dhcp,
}

/// What a subnet tells its guests.
#[derive(Debug, Args)]
struct Dhcp {
    /// Answer no DHCP, DHCPv6 or router solicitation.
    #[arg(long)]
    no_dhcp: bool,
    /// A DNS server that guests are told of; may be given several times.
    #[arg(long = "dns", value_name = "ADDRESS")]
    dns_servers: Vec<String>,
    /// The guests' domain.
    #[arg(long, default_value = "", hide_default_value = true)]
    domain: String,
    /// How long an address is leased; a day by default.
    #[arg(
        long,
        value_name = "SECONDS",
        default_value_t = 0,
        hide_default_value = true
    )]
    lease_seconds: u32,
    /// A route that guests are told of, such as 10.9.0.0/16=10.0.0.5; may be given several times.
    #[arg(long = "dhcp-route", value_name = "PREFIX=NEXT-HOP", value_parser = dhcp_route)]
    routes: Vec<v1::DhcpRoute>,
    /// How guests come by their IPv6 address: dhcpv6-stateful, dhcpv6-stateless or slaac.
    #[arg(long, default_value = "", hide_default_value = true)]
    ipv6_mode: String,
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
    /// Absent when no flag says anything.
    fn message(self) -> Option<v1::Dhcp> {
        let dhcp = v1::Dhcp {
            disabled: self.no_dhcp,
            dns_servers: self.dns_servers,
            domain: self.domain,
            lease_seconds: self.lease_seconds,
            routes: self.routes,
            ipv6_mode: self.ipv6_mode,
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
        })
    }
}

/// Flags of `port create`.
#[derive(Debug, Args)]
pub(crate) struct Port {
    #[command(flatten)]
    place: InVpc,
    /// Its subnet.
    #[arg(
        long,
        default_value = "",
        required_unless_present = "file",
        hide_default_value = true
    )]
    subnet: String,
    /// Its MAC.
    #[arg(
        long,
        default_value = "",
        required_unless_present = "file",
        hide_default_value = true
    )]
    mac: String,
    /// An address of it; may be given several times.
    #[arg(long = "address")]
    addresses: Vec<String>,
    /// A security group of it; may be given several times.
    #[arg(long = "sg")]
    security_groups: Vec<String>,
    /// Another prefix or address that it may use, with its own MAC; may be given several times.
    #[arg(long = "allow", value_name = "CIDR")]
    allowed: Vec<String>,
    /// The host that it lives on.
    #[arg(long, default_value = "", hide_default_value = true)]
    host: String,
    /// The kernel interface on that host which leads to it.
    #[arg(long, value_name = "NAME", group = "device")]
    netdev: Option<String>,
    /// The tap interface on that host; weftd makes it if it is not there.
    #[arg(long, value_name = "NAME", group = "device")]
    tap: Option<String>,
    /// The socket of the virtual machine on that host, where weftd listens.
    #[arg(long, value_name = "PATH", group = "device")]
    vhost_user: Option<String>,
    /// The virtual machine listens, and weftd connects.
    #[arg(long, requires = "vhost_user")]
    vhost_client: bool,
    /// Queue pairs of a tap or a virtual machine's port, 1 to 16.
    #[arg(long, default_value_t = 0, hide_default_value = true)]
    queues: u32,
    /// No anti-spoofing.
    #[arg(long)]
    unguarded: bool,
    /// Clamp the MSS of TCP SYNs to what the path carries.
    #[arg(long)]
    clamp_mss: bool,
    /// The name that DHCP tells the guest.
    #[arg(long, default_value = "", hide_default_value = true)]
    hostname: String,
    #[command(flatten)]
    limits: Limits,
}

/// Rate limits of a port.
#[derive(Debug, Args)]
struct Limits {
    /// Bits a second that it may send.
    #[arg(
        long,
        value_name = "BITS/S",
        default_value_t = 0,
        hide_default_value = true
    )]
    egress_bits: u64,
    /// Packets a second that it may send.
    #[arg(
        long,
        value_name = "PACKETS/S",
        default_value_t = 0,
        hide_default_value = true
    )]
    egress_packets: u64,
    /// Bits a second that it may be sent.
    #[arg(
        long,
        value_name = "BITS/S",
        default_value_t = 0,
        hide_default_value = true
    )]
    ingress_bits: u64,
    /// Packets a second that it may be sent.
    #[arg(
        long,
        value_name = "PACKETS/S",
        default_value_t = 0,
        hide_default_value = true
    )]
    ingress_packets: u64,
}

impl Limits {
    /// Absent when no flag says anything; bursts are the default ones.
    fn message(self) -> Option<v1::RateLimits> {
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
            unguarded: self.unguarded,
            clamp_mss: self.clamp_mss,
            hostname: self.hostname,
            limits: self.limits.message(),
            moved_from: String::new(),
        })
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
        })
    }
}

/// Flags of `sg create`.
#[derive(Debug, Args)]
pub(crate) struct SecurityGroup {
    #[command(flatten)]
    place: InVpc,
}

impl Flags for SecurityGroup {
    const KIND: Kind = Kind::SecurityGroup;

    fn object(self, id: String) -> Object {
        Object::SecurityGroup(v1::SecurityGroup {
            id,
            vpc: self.place.vpc,
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
        })
    }
}

/// Flags of `prefix-list create`.
#[derive(Debug, Args)]
pub(crate) struct PrefixList {
    #[command(flatten)]
    place: InVpc,
    /// A prefix of it; may be given several times.
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
        })
    }
}

/// Flags of `host create`.
#[derive(Debug, Args)]
pub(crate) struct Host {
    /// A tunnel address of it; may be given several times.
    #[arg(long = "vtep", required_unless_present = "file")]
    vteps: Vec<String>,
    /// What it wants to be sent: vxlan or gre.
    #[arg(long, default_value = "", hide_default_value = true)]
    encapsulation: String,
    /// Bytes of IP packet that the underlay carries to it; 1500 by default.
    #[arg(long, default_value_t = 0, hide_default_value = true)]
    underlay_mtu: u32,
    /// Foreign equipment: no weftd runs there.
    #[arg(long)]
    foreign: bool,
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

fn headings(kind: Kind) -> &'static [&'static str] {
    match kind {
        Kind::Host => &["ID", "VTEPS", "ENCAPSULATION", "UNDERLAY-MTU", "FOREIGN"],
        Kind::Vpc => &["ID", "VNI"],
        Kind::Subnet => &[
            "ID",
            "VPC",
            "CIDRS",
            "GATEWAYS",
            "ROUTE-TABLE",
            "ACL",
            "MTU",
        ],
        Kind::RouteTable => &["ID", "VPC", "ROUTES"],
        Kind::NetworkAcl | Kind::SecurityGroup => &["ID", "VPC", "RULES"],
        Kind::PrefixList => &["ID", "VPC", "PREFIXES"],
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

fn row(object: Object) -> Vec<String> {
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
        ],
        Object::Vpc(o) => vec![o.id, o.vni.to_string()],
        Object::Subnet(o) => vec![
            o.id,
            o.vpc,
            o.cidrs.join(","),
            or_dash(o.gateways.join(",")),
            or_dash(o.route_table),
            or_dash(o.network_acl),
            number(o.mtu),
        ],
        Object::RouteTable(o) => vec![o.id, o.vpc, o.routes.len().to_string()],
        Object::NetworkAcl(o) => vec![o.id, o.vpc, o.rules.len().to_string()],
        Object::PrefixList(o) => vec![o.id, o.vpc, or_dash(o.prefixes.join(","))],
        Object::SecurityGroup(o) => vec![o.id, o.vpc, o.rules.len().to_string()],
        Object::Port(o) => vec![
            o.id,
            o.vpc,
            o.subnet,
            o.mac,
            or_dash(o.addresses.join(",")),
            or_dash(o.security_groups.join(",")),
            or_dash(o.host),
            or_dash(o.device.map_or(String::new(), |device| device.name)),
        ],
    }
}
