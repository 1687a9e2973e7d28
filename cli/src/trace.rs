//! `weftctl trace`: what the daemon would do with a packet.
//!
//! Flags that are not given default to what the guest behind the port would send: its own MAC and address, and as the destination MAC that of
//! the neighbour or of the gateway.

use std::net::IpAddr;

use anyhow::{Context, Result, bail};
use clap::Args;
use ipnetwork::IpNetwork;
use weft_proto::address::{DEFAULT_GATEWAY_MAC, parse_mac, parse_prefix, parse_protocol};
use weft_proto::v1::{GetStateRequest, Objects, Port, TraceReply, TraceRequest};

use crate::Usage;
use crate::client::Targets;
use crate::frame::{Packet, build, from_hex};
use crate::output::{Format, Table, show};

/// Flags of `trace`.
#[derive(Debug, Args)]
pub(crate) struct Trace {
    /// Port that sends the packet; without it the packet comes from the uplink, and --hex is required.
    #[arg(long)]
    port: Option<String>,
    /// The whole Ethernet frame in hexadecimal.
    #[arg(long, conflicts_with_all = ["src", "dst", "src_mac", "dst_mac"])]
    hex: Option<String>,
    /// Source address [default: the port's].
    #[arg(long)]
    src: Option<IpAddr>,
    /// Destination address.
    #[arg(long, required_unless_present = "hex")]
    dst: Option<IpAddr>,
    /// Source MAC [default: the port's].
    #[arg(long, value_parser = parse_mac)]
    src_mac: Option<[u8; 6]>,
    /// Destination MAC [default: the neighbour's or the gateway's].
    #[arg(long, value_parser = parse_mac)]
    dst_mac: Option<[u8; 6]>,
    /// Protocol: tcp (a SYN), udp, icmp or icmpv6 (an echo request), sctp or a number [default: icmp or icmpv6].
    #[arg(long)]
    proto: Option<String>,
    /// Source port.
    #[arg(long, default_value_t = 40000)]
    sport: u16,
    /// Destination port.
    #[arg(long, default_value_t = 80)]
    dport: u16,
    /// TTL or hop limit.
    #[arg(long, default_value_t = 64)]
    ttl: u8,
    /// DSCP, 0 to 63.
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u8).range(..64))]
    dscp: u8,
    /// Payload length in bytes.
    #[arg(long, default_value_t = 0)]
    size: usize,
}

impl Trace {
    pub(crate) async fn run(self, targets: &Targets, format: Format) -> Result<()> {
        let mut client = targets.node().await?;
        let frame = match &self.hex {
            Some(hex) => from_hex(hex)?,
            None => {
                let reply = client.get_state(GetStateRequest {}).await?.into_inner();
                build(&self.packet(&reply.state.unwrap_or_default())?)?
            }
        };
        let request = TraceRequest {
            port: self.port.unwrap_or_default(),
            frame,
        };
        let reply = client.trace(request).await?.into_inner();
        show(format, &reply, || text(&reply))
    }

    fn packet(&self, state: &Objects) -> Result<Packet> {
        let missing = |what: &str| Usage(format!("{what} or --hex is required"));
        let id = self.port.as_ref().ok_or_else(|| missing("--port"))?;
        let destination = self.dst.ok_or_else(|| missing("--dst"))?;
        let port = state
            .ports
            .iter()
            .find(|port| port.id == *id)
            .with_context(|| format!("this host has no port {id}"))?;
        let own = || {
            let addresses = port.addresses.iter().filter_map(|text| text.parse().ok());
            addresses
                .into_iter()
                .find(|own: &IpAddr| own.is_ipv4() == destination.is_ipv4())
                .with_context(|| format!("port {id} has no address of this family: set --src"))
        };
        let protocol = match &self.proto {
            Some(word) => parse_protocol(word)?.ok_or_else(|| missing("a single --proto"))?,
            None if destination.is_ipv4() => 1,
            None => 58,
        };
        Ok(Packet {
            source_mac: match self.src_mac {
                Some(mac) => mac,
                None => parse_mac(&port.mac)?,
            },
            destination_mac: match self.dst_mac {
                Some(mac) => mac,
                None => next_mac(state, port, destination)?,
            },
            source: self.src.map_or_else(own, Ok)?,
            destination,
            ttl: self.ttl,
            dscp: self.dscp,
            protocol,
            source_port: self.sport,
            destination_port: self.dport,
            payload: self.size,
        })
    }
}

/// The destination MAC that a guest behind the port would use: that of the neighbour with the address, else the gateway's.
fn next_mac(state: &Objects, port: &Port, destination: IpAddr) -> Result<[u8; 6]> {
    let subnet = state
        .subnets
        .iter()
        .find(|subnet| subnet.id == port.subnet)
        .with_context(|| format!("this host has no subnet {}", port.subnet))?;
    let neighbour = |other: &&Port| {
        let mut addresses = other.addresses.iter().filter_map(|text| text.parse().ok());
        other.subnet == port.subnet && addresses.any(|address: IpAddr| address == destination)
    };
    let mut prefixes = subnet
        .cidrs
        .iter()
        .filter_map(|text| parse_prefix(text).ok());
    if prefixes.any(|prefix: IpNetwork| prefix.contains(destination))
        && let Some(neighbour) = state.ports.iter().find(neighbour)
    {
        return Ok(parse_mac(&neighbour.mac)?);
    }
    if !subnet.external_network.is_empty() {
        bail!(
            "no port of subnet {} has {destination}, and who is on external network {} is not known here: set --dst-mac",
            subnet.id,
            subnet.external_network
        );
    }
    if subnet.gateway_mac.is_empty() {
        Ok(DEFAULT_GATEWAY_MAC)
    } else {
        Ok(parse_mac(&subnet.gateway_mac)?)
    }
}

fn text(reply: &TraceReply) -> String {
    let mut table = Table::new(&["STAGE", "WHAT HAPPENS"]);
    for step in &reply.steps {
        table.row([step.stage.clone(), step.text.clone()]);
    }
    format!("{}\nverdict: {}\n", table.text(), reply.verdict)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Debug, Parser)]
    struct Command {
        #[command(flatten)]
        trace: Trace,
    }

    fn packet(flags: &str) -> Result<Packet> {
        let state = serde_yaml_ng::from_str(
            r#"
subnets: [{id: s, cidrs: [10.0.0.0/24, "fd00::/64"]}]
ports:
  - {id: p, subnet: s, mac: "02:00:00:00:00:01", addresses: [10.0.0.11, "fd00::b"]}
  - {id: q, subnet: s, mac: "02:00:00:00:00:02", addresses: [10.0.0.12]}
"#,
        )?;
        let words = format!("trace {flags}");
        Command::try_parse_from(words.split_whitespace())?
            .trace
            .packet(&state)
    }

    #[test]
    fn what_the_flags_leave_open_is_as_the_guest_would_send_it() {
        let near = packet("--port p --dst 10.0.0.12").unwrap();
        assert_eq!(near.source.to_string(), "10.0.0.11");
        assert_eq!(near.source_mac[5], 1);
        assert_eq!(near.destination_mac[5], 2, "the neighbour's");
        assert_eq!(near.protocol, 1);
        let far = packet("--port p --dst fd01::1 --proto tcp --dport 443").unwrap();
        assert_eq!(far.source.to_string(), "fd00::b");
        assert_eq!(far.destination_mac, DEFAULT_GATEWAY_MAC);
        assert_eq!((far.protocol, far.destination_port), (6, 443));
    }

    #[test]
    fn flags_win_over_what_the_guest_would_send() {
        let spoofed =
            packet("--port p --dst 10.0.0.12 --src 10.0.0.99 --src-mac 02:00:00:00:00:77").unwrap();
        assert_eq!(spoofed.source.to_string(), "10.0.0.99");
        assert_eq!(spoofed.source_mac[5], 0x77);
        assert!(packet("--dst 10.0.0.12").is_err());
        assert!(packet("--port x --dst 10.0.0.12").is_err());
    }
}
