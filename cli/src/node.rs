//! What the daemon of a host reports: status, state, sessions, drops, counters.

use std::collections::HashMap;
use std::time::Duration;

use anyhow::Result;
use clap::{Args, Subcommand};
use weft_proto::state::Kind;
use weft_proto::v1::{
    self, GetDropsRequest, GetStateRequest, GetStatsRequest, GetStatusRequest, ListMappingsRequest,
    ListNatGatewaysRequest, ListSessionsRequest, MappingList, PortCounters, SessionList,
    TranslatedFlow,
};

use crate::client::Targets;
use crate::held_back::line;
use crate::kinds;
use crate::output::{Format, Table, brief, print, show};

/// Commands on a daemon.
#[derive(Debug, Subcommand)]
pub(crate) enum NodeAction {
    /// Show revision, controller connection, workers and ports.
    Status,
    /// Show the state in force: the objects of this host.
    State,
}

impl NodeAction {
    pub(crate) async fn run(self, targets: &Targets, format: Format) -> Result<()> {
        let mut client = targets.node().await?;
        match self {
            Self::Status => {
                let status = client.get_status(GetStatusRequest {}).await?.into_inner();
                show(format, &status, || status_text(&status))
            }
            Self::State => {
                let reply = client.get_state(GetStateRequest {}).await?.into_inner();
                show(format, &brief(&reply)?, || {
                    let objects = reply.state.clone().unwrap_or_default();
                    let tables = Kind::ALL.map(|kind| {
                        format!("{}:\n{}\n", kind.name(), kinds::table(kind, &objects))
                    });
                    format!("revision {}\n\n{}", reply.revision, tables.concat())
                })
            }
        }
    }
}

fn status_text(status: &v1::Status) -> String {
    let mut workers = Table::new(&[
        "WORKER", "CORE", "PACKETS", "FAST", "GENERAL", "JUDGED", "AGAIN", "BUSY", "STALLS",
        "STATE",
    ]);
    for worker in &status.workers {
        let time = worker.busy_nanoseconds + worker.idle_nanoseconds;
        let busy = (worker.busy_nanoseconds * 100)
            .checked_div(time)
            .unwrap_or(0);
        workers.row([
            worker.index.to_string(),
            worker
                .core
                .map_or_else(|| "any".to_owned(), |core| core.to_string()),
            worker.packets.to_string(),
            worker.fast.to_string(),
            worker.general.to_string(),
            worker.judged.to_string(),
            worker.decided_again.to_string(),
            format!("{busy} %"),
            worker.stalls.to_string(),
            match worker.stuck_milliseconds {
                0 => "running".to_owned(),
                stuck => format!(
                    "stuck for {:.1} s in generation {}",
                    stuck as f64 / 1e3,
                    worker.generation
                ),
            },
        ]);
    }
    let mut ports = Table::new(&["PORT", "DEVICE", "UP", "XDP", "ZERO-COPY"]);
    for port in &status.ports {
        let yes = |flag| if flag { "yes" } else { "no" }.to_owned();
        ports.row([
            port.port.clone(),
            port.device.clone(),
            yes(port.up),
            if port.reason.is_empty() {
                port.mode.clone()
            } else {
                port.reason.clone()
            },
            yes(port.zero_copy),
        ]);
    }
    let held_back: String = status
        .held_back
        .iter()
        .map(|held| format!("HELD BACK: {}\n", line(held)))
        .collect();
    format!(
        "host {}, weftd {}\nrevision {}, generation {}, controller {}\nuplinks {}\n{held_back}\n{}\n{}",
        status.host,
        status.version,
        status.revision,
        status.generation,
        status.controller,
        status.uplinks.join(", "),
        workers.text(),
        ports.text()
    )
}

/// Commands on the session table.
#[derive(Debug, Subcommand)]
pub(crate) enum SessionAction {
    /// List sessions.
    List {
        /// Only sessions of this VPC.
        #[arg(long, default_value = "", hide_default_value = true)]
        vpc: String,
        /// Most sessions to list; 0 lists all.
        #[arg(long, default_value_t = 1000)]
        limit: u32,
    },
}

impl SessionAction {
    pub(crate) async fn run(self, targets: &Targets, format: Format) -> Result<()> {
        let Self::List { vpc, limit } = self;
        let mut client = targets.node().await?;
        let request = ListSessionsRequest { limit, vpc };
        let mut stream = client.list_sessions(request).await?.into_inner();
        let mut all = SessionList::default();
        while let Some(list) = stream.message().await? {
            all.sessions.extend(list.sessions);
        }
        show(format, &all, || {
            let mut table = Table::new(&[
                "VPC",
                "PROTO",
                "SOURCE",
                "DESTINATION",
                "TRANSLATED",
                "STATE",
                "IDLE",
                "OUT",
                "BACK",
                "ACTION",
            ]);
            for s in &all.sessions {
                table.row([
                    s.vpc.clone(),
                    s.protocol.to_string(),
                    end(&s.source, s.source_port),
                    end(&s.destination, s.destination_port),
                    s.translated.as_ref().map_or_else(String::new, translated),
                    s.state.clone(),
                    format!("{} s", s.idle_seconds),
                    s.packets_out.to_string(),
                    s.packets_back.to_string(),
                    s.action_out.clone(),
                ]);
            }
            table.text()
        })
    }
}

/// Commands on the NAT gateways that a host runs.
#[derive(Debug, Subcommand)]
pub(crate) enum NatAction {
    /// Show the NAT gateways of the host: mappings, their limits, and packets that got none.
    Status,
    /// List mappings: which port of an outside address stands for a port inside.
    Mappings {
        /// Only mappings of this NAT gateway.
        #[arg(long, value_name = "ID", default_value = "", hide_default_value = true)]
        nat_gateway: String,
        /// Most mappings to list; 0 lists all.
        #[arg(long, default_value_t = 1000)]
        limit: u32,
    },
}

impl NatAction {
    pub(crate) async fn run(self, targets: &Targets, format: Format) -> Result<()> {
        let mut client = targets.node().await?;
        let Self::Mappings { nat_gateway, limit } = self else {
            let request = ListNatGatewaysRequest {};
            let all = client.list_nat_gateways(request).await?.into_inner();
            return show(format, &all, || gateways(&all));
        };
        let request = ListMappingsRequest { limit, nat_gateway };
        let mut stream = client.list_mappings(request).await?.into_inner();
        let mut all = MappingList::default();
        while let Some(list) = stream.message().await? {
            all.mappings.extend(list.mappings);
        }
        show(format, &all, || {
            let headings = ["NAT-GATEWAY", "PROTO", "INSIDE", "OUTSIDE", "SESSIONS"];
            let mut table = Table::new(&headings);
            for mapping in &all.mappings {
                table.row([
                    mapping.nat_gateway.clone(),
                    mapping.protocol.to_string(),
                    mapped(mapping.protocol, &mapping.inside, mapping.inside_port),
                    mapped(mapping.protocol, &mapping.outside, mapping.outside_port),
                    mapping.sessions.to_string(),
                ]);
            }
            table.text()
        })
    }
}

fn gateways(all: &v1::NatGatewayList) -> String {
    let headings = [
        "NAT-GATEWAY",
        "STATE",
        "MAPPINGS",
        "MOST",
        "PER-ADDRESS",
        "OUT-OF-PORTS",
        "OUT-OF-ADDRESS-BUDGET",
        "OUT-OF-BUDGET",
    ];
    let mut table = Table::new(&headings);
    for gateway in &all.nat_gateways {
        table.row([
            gateway.nat_gateway.clone(),
            if gateway.active { "active" } else { "standby" }.to_owned(),
            gateway.mappings.to_string(),
            gateway.most_mappings.to_string(),
            gateway.most_per_address.to_string(),
            gateway.out_of_ports.to_string(),
            gateway.out_of_address_budget.to_string(),
            gateway.out_of_budget.to_string(),
        ]);
    }
    table.text()
}

/// An end of a mapping; of a protocol other than TCP, UDP and ICMP an address alone.
fn mapped(protocol: u32, address: &str, port: u32) -> String {
    match protocol {
        1 | 6 | 17 | 58 => end(address, port),
        _ => address.to_owned(),
    }
}

/// What a flow becomes.
fn translated(flow: &TranslatedFlow) -> String {
    format!(
        "{} to {}",
        end(&flow.source, flow.source_port),
        end(&flow.destination, flow.destination_port)
    )
}

fn end(address: &str, port: u32) -> String {
    if address.contains(':') {
        format!("[{address}]:{port}")
    } else {
        format!("{address}:{port}")
    }
}

pub(crate) async fn drops(targets: &Targets, format: Format) -> Result<()> {
    let mut client = targets.node().await?;
    let drops = client.get_drops(GetDropsRequest {}).await?.into_inner();
    show(format, &drops, || {
        let mut table = Table::new(&["PORT", "REASON", "PACKETS", "MEANING"]);
        for drop in &drops.reasons {
            table.row([
                drop.port.clone(),
                drop.reason.clone(),
                drop.packets.to_string(),
                drop.meaning.clone(),
            ]);
        }
        table.text()
    })
}

/// Flags of `stats`.
#[derive(Debug, Args)]
pub(crate) struct Stats {
    /// Repeat every SECONDS (1 if not given) with rates, until interrupted.
    #[arg(long, value_name = "SECONDS", num_args = 0..=1, default_missing_value = "1",
          value_parser = clap::value_parser!(u64).range(1..))]
    watch: Option<u64>,
}

impl Stats {
    pub(crate) async fn run(self, targets: &Targets, format: Format) -> Result<()> {
        let mut client = targets.node().await?;
        let mut stats = client.get_stats(GetStatsRequest {}).await?.into_inner();
        show(format, &stats, || stats_text(&stats, None, 1))?;
        let Some(seconds) = self.watch else {
            return Ok(());
        };
        let mut ticks = tokio::time::interval(Duration::from_secs(seconds));
        ticks.tick().await;
        loop {
            ticks.tick().await;
            let next = client.get_stats(GetStatsRequest {}).await?.into_inner();
            match format {
                Format::Table => print("\n")?,
                Format::Yaml => print("---\n")?,
                Format::Json => {}
            }
            show(format, &next, || stats_text(&next, Some(&stats), seconds))?;
            stats = next;
        }
    }
}

/// Counters, and rates if earlier counters are given.
fn stats_text(stats: &v1::Stats, before: Option<&v1::Stats>, seconds: u64) -> String {
    let old: HashMap<&str, &PortCounters> = before
        .iter()
        .flat_map(|before| &before.ports)
        .map(|port| (port.port.as_str(), port))
        .collect();
    let suffix = if before.is_some() { "/S" } else { "" };
    let headings = [
        "RX-PACKETS",
        "RX-BYTES",
        "TX-PACKETS",
        "TX-BYTES",
        "DROPS",
        "KERNEL-DROPS",
        "READ",
    ]
    .map(|heading| format!("{heading}{suffix}"));
    let [
        rx_packets,
        rx_bytes,
        tx_packets,
        tx_bytes,
        drops,
        kernel_drops,
        read,
    ] = &headings;
    let mut table = Table::new(&[
        "PORT",
        rx_packets,
        rx_bytes,
        tx_packets,
        tx_bytes,
        drops,
        kernel_drops,
        read,
    ]);
    for port in &stats.ports {
        let old = old.get(port.port.as_str()).copied();
        let cell = |field: fn(&PortCounters) -> u64| {
            let now = field(port);
            let shown = match before {
                None => now,
                Some(_) => now.saturating_sub(old.map_or(0, field)) / seconds,
            };
            shown.to_string()
        };
        table.row([
            port.port.clone(),
            cell(|p| p.rx_packets),
            cell(|p| p.rx_bytes),
            cell(|p| p.tx_packets),
            cell(|p| p.tx_bytes),
            cell(|p| p.drops),
            cell(|p| p.kernel_drops),
            cell(|p| p.read),
        ]);
    }
    let mut text = table.text();
    if stats.held_back > 0 {
        text += &format!(
            "\nheld back: {} VPCs or other objects; see `weftctl node status`\n",
            stats.held_back
        );
    }
    if let Some(s) = &stats.sessions {
        text += &format!(
            "\nsessions: {} of {}; installed {}, expired {}, evicted {}, refused {}\n",
            s.live, s.capacity, s.installed, s.expired, s.evicted, s.refused
        );
    }
    if let Some(m) = stats
        .members
        .as_ref()
        .filter(|m| m.counted > 0 || m.refused > 0)
    {
        text += &format!(
            "counted members of load balancers: {} of {}, refused {}\n",
            m.counted, m.capacity, m.refused
        );
    }
    if let Some(f) = &stats.frames {
        text += &format!(
            "frames: {} = {} free + {} fill + {} transmit + {} held\n",
            f.total, f.free, f.fill, f.transmit, f.held
        );
    }
    if let Some(m) = &stats.metadata {
        text += &format!(
            "metadata: {} requests, {} not answered by the backend; {} connections, {} refused\n",
            m.requests, m.backend_errors, m.connections, m.refused
        );
    }
    if let Some(d) = &stats.dns {
        text += &format!(
            "dns: {} questions; {} forwarded, {} of them not answered; {} refused\n",
            d.questions, d.forwarded, d.unanswered, d.refused
        );
    }
    text
}
