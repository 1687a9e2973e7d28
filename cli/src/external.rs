//! The way out of VPCs: external networks, elastic IPs and NAT gateways; their flags, and how an elastic IP is bound.

use std::net::IpAddr;

use anyhow::Result;
use clap::{Args, Subcommand};
use weft_proto::state::{Kind, Object};
use weft_proto::v1;

use crate::Usage;
use crate::client::Targets;
use crate::edit::edit;
use crate::kinds::{Flags, InVpc, Limits};
use crate::objects::{Action, say_change};
use crate::output::Format;
use crate::rules::Range;

/// Flags of `external-network create`.
#[derive(Debug, Args)]
pub(crate) struct ExternalNetwork {
    /// Physical network that it is on, by its name in hosts' weftd.toml.
    #[arg(
        long,
        default_value = "",
        required_unless_present = "file",
        hide_default_value = true
    )]
    physical_network: String,
    /// VLAN of its frames, 1 to 4094 [default: untagged].
    #[arg(long, default_value_t = 0, hide_default_value = true)]
    vlan: u32,
    /// Prefix of the network, for elastic IPs and NAT gateways; repeat for several.
    #[arg(long = "prefix")]
    prefixes: Vec<String>,
    /// Next hop for addresses outside of its prefixes; at most one of IPv4 and one of IPv6.
    #[arg(long = "gateway")]
    gateways: Vec<String>,
    /// Host that translates for hosts without the physical network; repeat for several, the first is in use.
    #[arg(long = "gateway-host")]
    gateway_hosts: Vec<String>,
    /// Address of the network's own, which the gateway host in use holds, and routers outside send routed prefixes to; at most one of IPv4 and one of
    /// IPv6.
    #[arg(long = "router")]
    routers: Vec<String>,
    /// Prefix that the outside routes to the network's router address, and the VPC that has it; repeat for several.
    #[arg(long = "routed", value_name = "PREFIX=VPC")]
    routed: Vec<Routed>,
    /// Answer pings to the router addresses and to addresses of NAT gateways.
    #[arg(long)]
    answer_pings: bool,
    /// MTU of the network, in bytes [default: 1500].
    #[arg(long, default_value_t = 0, hide_default_value = true)]
    mtu: u32,
    /// Tenant that alone may use it [default: every tenant may].
    #[arg(long, default_value = "", hide_default_value = true)]
    tenant: String,
}

impl Flags for ExternalNetwork {
    const KIND: Kind = Kind::ExternalNetwork;

    fn object(self, id: String) -> Object {
        Object::ExternalNetwork(v1::ExternalNetwork {
            id,
            tenant: self.tenant,
            physical_network: self.physical_network,
            vlan: self.vlan,
            prefixes: self.prefixes,
            gateways: self.gateways,
            mtu: self.mtu,
            gateway_hosts: self.gateway_hosts,
            routers: self.routers,
            routed: self.routed.into_iter().map(|routed| routed.0).collect(),
            answer_pings: self.answer_pings,
            ..v1::ExternalNetwork::default()
        })
    }
}

/// A routed prefix, as it is written on the command line.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Routed(v1::RoutedPrefix);

impl std::str::FromStr for Routed {
    type Err = Usage;

    fn from_str(text: &str) -> Result<Self, Usage> {
        let parts = text.split_once('=');
        let parts = parts.filter(|(prefix, vpc)| !prefix.is_empty() && !vpc.is_empty());
        let (prefix, vpc) = parts.ok_or_else(|| Usage(format!("'{text}' is not PREFIX=VPC")))?;
        Ok(Self(v1::RoutedPrefix {
            prefix: prefix.to_owned(),
            vpc: vpc.to_owned(),
        }))
    }
}

/// Flags of `elastic-ip create`.
#[derive(Debug, Args)]
pub(crate) struct ElasticIp {
    /// External network of the address.
    #[arg(
        long,
        default_value = "",
        required_unless_present = "file",
        hide_default_value = true
    )]
    external_network: String,
    /// Address, in a prefix of the external network.
    #[arg(
        long,
        default_value = "",
        required_unless_present = "file",
        hide_default_value = true
    )]
    address: String,
    /// Port that it is bound to [default: none].
    #[arg(long, default_value = "", hide_default_value = true)]
    port: String,
    /// Load balancer that it is bound to, in place of a port [default: none].
    #[arg(
        long,
        default_value = "",
        hide_default_value = true,
        conflicts_with_all = ["port", "mode"]
    )]
    load_balancer: String,
    /// Address of the port that it stands for [default: the first of the same family].
    #[arg(long, default_value = "", hide_default_value = true, requires = "port")]
    private_address: String,
    /// nat: translated into the port's private address; direct: the port has it besides its own [default: nat].
    #[arg(long, default_value = "", hide_default_value = true)]
    mode: String,
    #[command(flatten)]
    limits: Limits,
    /// Tenant that it belongs to [default: the operator].
    #[arg(long, default_value = "", hide_default_value = true)]
    tenant: String,
}

impl Flags for ElasticIp {
    const KIND: Kind = Kind::ElasticIp;

    fn object(self, id: String) -> Object {
        Object::ElasticIp(v1::ElasticIp {
            id,
            tenant: self.tenant,
            external_network: self.external_network,
            address: self.address,
            port: self.port,
            load_balancer: self.load_balancer,
            private_address: self.private_address,
            mode: self.mode,
            limits: self.limits.message(),
            ..v1::ElasticIp::default()
        })
    }
}

/// What can be done with elastic IPs.
#[derive(Debug, Subcommand)]
pub(crate) enum ElasticIpAction {
    #[command(flatten)]
    Any(Action<ElasticIp>),
    /// Bind an elastic IP to a port or a load balancer; one that is bound moves.
    Bind {
        /// Id of the elastic IP.
        id: String,
        /// Port that it is bound to.
        #[arg(long, default_value = "", hide_default_value = true)]
        port: String,
        /// Load balancer that it is bound to, in place of a port.
        #[arg(
            long,
            default_value = "",
            hide_default_value = true,
            conflicts_with = "port",
            required_unless_present = "port"
        )]
        load_balancer: String,
        /// Address of the port that it stands for [default: the first of the same family].
        #[arg(long, default_value = "", hide_default_value = true, requires = "port")]
        private_address: String,
    },
    /// Unbind an elastic IP from its port or load balancer.
    Unbind {
        /// Id of the elastic IP.
        id: String,
    },
}

impl ElasticIpAction {
    pub(crate) async fn run(self, targets: &Targets, format: Format) -> Result<()> {
        let (id, port, load_balancer, private_address) = match self {
            Self::Any(action) => return action.run(targets, format).await,
            Self::Bind {
                id,
                port,
                load_balancer,
                private_address,
            } => (id, port, load_balancer, private_address),
            Self::Unbind { id } => (id, String::new(), String::new(), String::new()),
        };
        let reply = edit(targets, Kind::ElasticIp, &id, |object| {
            if let Object::ElasticIp(elastic) = object {
                elastic.port.clone_from(&port);
                elastic.load_balancer.clone_from(&load_balancer);
                elastic.private_address.clone_from(&private_address);
            }
            Ok(())
        });
        say_change(format, &reply.await?)
    }
}

/// Flags of `nat-gateway create`.
#[derive(Debug, Args)]
pub(crate) struct NatGateway {
    #[command(flatten)]
    place: InVpc,
    /// External network of its addresses.
    #[arg(
        long,
        default_value = "",
        required_unless_present = "file",
        hide_default_value = true
    )]
    external_network: String,
    /// Address that ports share, in a prefix of the external network; repeat for several.
    #[arg(long = "address", required_unless_present = "file")]
    addresses: Vec<String>,
    /// Prefix of source addresses that it serves; repeat for several [default: all].
    #[arg(long = "source", value_name = "CIDR")]
    sources: Vec<String>,
    /// Who may send to a mapping: address_and_port or endpoint_independent [default: address_and_port].
    #[arg(long, default_value = "", hide_default_value = true)]
    filtering: String,
    /// Ports that lead to a port of the VPC or an address of one, such as tcp:8080:web-1:80; an IPv6 address in brackets; @ADDRESS names one of the
    /// gateway's addresses other than the first. Repeat for several.
    #[arg(
        long = "forward",
        value_name = "PROTOCOL:PORT[-PORT]:TARGET[:PORT][@ADDRESS]"
    )]
    forwards: Vec<Forward>,
    /// Idle time of an established TCP connection, in seconds, 7440 at least [default: 7440].
    #[arg(long, default_value_t = 0, hide_default_value = true)]
    tcp_established_timeout: u32,
    /// Idle time of a TCP connection that is being opened or closed, in seconds, 240 at least [default: 240].
    #[arg(long, default_value_t = 0, hide_default_value = true)]
    tcp_transitory_timeout: u32,
    /// Idle time of UDP, in seconds, 120 at least [default: 300].
    #[arg(long, default_value_t = 0, hide_default_value = true)]
    udp_timeout: u32,
    /// Idle time of a ping, in seconds, 60 at least [default: 60].
    #[arg(long, default_value_t = 0, hide_default_value = true)]
    icmp_timeout: u32,
    /// Most mappings [default: 262144].
    #[arg(long, default_value_t = 0, hide_default_value = true)]
    max_mappings: u32,
    /// Most mappings of one source address [default: no limit of its own].
    #[arg(long, default_value_t = 0, hide_default_value = true)]
    max_mappings_per_address: u32,
    /// IPv6 prefix of length 96 whose addresses stand for IPv4 addresses (NAT64) [default: 64:ff9b::/96].
    #[arg(
        long,
        default_value = "",
        hide_default_value = true,
        value_name = "CIDR"
    )]
    nat64_prefix: String,
}

impl Flags for NatGateway {
    const KIND: Kind = Kind::NatGateway;

    fn object(self, id: String) -> Object {
        let timeouts = v1::NatTimeouts {
            tcp_established: self.tcp_established_timeout,
            tcp_transitory: self.tcp_transitory_timeout,
            udp: self.udp_timeout,
            icmp: self.icmp_timeout,
        };
        let limits = v1::NatLimits {
            mappings: self.max_mappings,
            mappings_per_address: self.max_mappings_per_address,
        };
        Object::NatGateway(v1::NatGateway {
            id,
            vpc: self.place.vpc,
            external_network: self.external_network,
            addresses: self.addresses,
            sources: self.sources,
            port_forwards: self.forwards.into_iter().map(|forward| forward.0).collect(),
            filtering: self.filtering,
            timeouts: Some(timeouts).filter(|it| *it != v1::NatTimeouts::default()),
            limits: Some(limits).filter(|it| *it != v1::NatLimits::default()),
            nat64_prefix: self.nat64_prefix,
            ..v1::NatGateway::default()
        })
    }
}

/// A port forward, as it is written on the command line.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Forward(v1::PortForward);

impl std::str::FromStr for Forward {
    type Err = Usage;

    fn from_str(text: &str) -> Result<Self, Usage> {
        let wrong = || {
            Usage(format!(
                "'{text}' is not PROTOCOL:PORT[-PORT]:TARGET[:PORT][@ADDRESS]"
            ))
        };
        let (forward, address) = text.rsplit_once('@').unwrap_or((text, ""));
        let mut parts = forward.splitn(3, ':');
        let (Some(protocol), Some(ports), Some(to)) = (parts.next(), parts.next(), parts.next())
        else {
            return Err(wrong());
        };
        let (target, to_port) = split_target(to).ok_or_else(wrong)?;
        let number = |text: &str| {
            text.parse()
                .map_err(|_| Usage(format!("'{text}' is not a port number")))
        };
        let (port_min, port_max) = ports.parse::<Range>()?.bounds();
        let (port, private_address) = if target.parse::<IpAddr>().is_ok() {
            (String::new(), target.to_owned())
        } else {
            (target.to_owned(), String::new())
        };
        Ok(Self(v1::PortForward {
            protocol: protocol.to_owned(),
            address: address.to_owned(),
            port_min,
            port_max: if port_max == port_min { 0 } else { port_max },
            port,
            private_address,
            to_port_min: to_port.map_or(Ok(0), number)?,
        }))
    }
}

/// A target and the port after it, if there is one. An address with colons is in brackets, or has no port after it.
pub(crate) fn split_target(text: &str) -> Option<(&str, Option<&str>)> {
    if text.is_empty() {
        return None;
    }
    if let Some(rest) = text.strip_prefix('[') {
        let (address, rest) = rest.split_once(']')?;
        return match rest {
            "" => Some((address, None)),
            port => Some((address, Some(port.strip_prefix(':')?))),
        };
    }
    if text.parse::<IpAddr>().is_ok() {
        return Some((text, None));
    }
    Some(match text.split_once(':') {
        Some((target, port)) => (target, Some(port)),
        None => (text, None),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn port_forwards_read_as_documented() {
        let read = |text: &str| text.parse::<Forward>().map(|forward| forward.0);
        let web = read("tcp:8080-8090:web-1:80@203.0.113.9").unwrap();
        assert_eq!(
            (&*web.protocol, web.port_min, web.port_max, &*web.port),
            ("tcp", 8080, 8090, "web-1")
        );
        assert_eq!((web.to_port_min, &*web.address), (80, "203.0.113.9"));
        let dns = read("udp:53:10.0.0.5").unwrap();
        assert_eq!((dns.port_min, dns.port_max, dns.to_port_min), (53, 0, 0));
        assert_eq!((&*dns.private_address, &*dns.port), ("10.0.0.5", ""));
        for (text, port) in [
            ("tcp:443:[fd00::5]:8443", 8443),
            ("tcp:443:[fd00::5]", 0),
            ("tcp:443:fd00::5", 0),
        ] {
            let forward = read(text).unwrap();
            assert_eq!(
                (&*forward.private_address, forward.to_port_min),
                ("fd00::5", port),
                "{text}"
            );
        }
        for text in [
            "tcp",
            "tcp:80",
            "tcp:80:",
            "tcp:x:web-1",
            "tcp:80:web-1:x",
            "tcp:80:[fd00::5",
        ] {
            assert!(read(text).is_err(), "{text}");
        }
    }
}
