//! The node service: weftctl's requests over the local socket.

use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio_stream::Stream;
use tonic::{Request, Response, Status as RpcStatus};
use weft_process::services::node_server::Node;
use weft_proto::v1;

use super::host::Host;
use crate::agent::AgentHandle;
use weft_dataplane::numbers::Vni;
use weft_dataplane::packet::parse::{protocol, word_address};
use weft_dataplane::packet::{DropReason, Flow};
use weft_dataplane::pipeline::counters::{Counters, Traffic};
use weft_dataplane::pipeline::trace;
use weft_dataplane::session::table::{Action, SessionView};
use weft_dataplane::snapshot::{Snapshot, Translator};

/// Sessions in one message of a list.
const CHUNK: usize = 500;

/// The service.
#[derive(Debug)]
pub struct NodeService {
    /// The id of its host.
    pub host: Arc<Host>,
    /// Where its state comes from.
    pub agent: Arc<AgentHandle>,
}

impl NodeService {
    fn snapshot(&self) -> Arc<Snapshot> {
        self.host.inner().workers.common().snapshot.load_full()
    }
}

impl NodeService {
    /// Shows every port and uplink by name, with its counters at each worker.
    fn each_place(&self, mut show: impl FnMut(String, &[&Traffic])) {
        let snapshot = self.snapshot();
        let inner = self.host.inner();
        let counters: Vec<&Counters> = inner
            .workers
            .gauges()
            .map(|(_, _, counters)| counters)
            .chain([self.host.injector.counters()])
            .collect();
        for (index, port) in (0u16..).zip(snapshot.ports.iter()) {
            if let Some(port) = port {
                let sets: Vec<&Traffic> = counters
                    .iter()
                    .map(|counters| counters.port(index))
                    .collect();
                show(port.id.clone(), &sets);
            }
        }
        for (index, interface) in (0u16..).zip(&self.host.links) {
            let sets: Vec<&Traffic> = counters
                .iter()
                .map(|counters| counters.uplink(index))
                .collect();
            show(format!("uplink:{interface}"), &sets);
        }
    }
}

/// Sums of one counter over the workers.
fn total<'a>(sets: &[&'a Traffic], read: impl Fn(&'a Traffic) -> u64) -> u64 {
    sets.iter().copied().map(read).sum()
}

fn port_counters(port: String, sets: &[&Traffic]) -> v1::PortCounters {
    v1::PortCounters {
        port,
        rx_packets: total(sets, |traffic| traffic.rx_packets.get()),
        rx_bytes: total(sets, |traffic| traffic.rx_bytes.get()),
        tx_packets: total(sets, |traffic| traffic.tx_packets.get()),
        tx_bytes: total(sets, |traffic| traffic.tx_bytes.get()),
        drops: total(sets, Traffic::all_drops),
        kernel_drops: total(sets, |traffic| traffic.kernel_drops.get()),
        read: total(sets, |traffic| traffic.read.get()),
    }
}

fn drop_counts(port: &str, sets: &[&Traffic]) -> Vec<v1::DropCount> {
    let count = |reason: &DropReason| {
        let packets = total(sets, |traffic| traffic.drops(*reason));
        let (reason, meaning) = (reason.name().to_owned(), reason.meaning().to_owned());
        (packets > 0).then(|| v1::DropCount {
            reason,
            meaning,
            packets,
            port: port.to_owned(),
        })
    };
    DropReason::ALL.iter().filter_map(count).collect()
}

#[tonic::async_trait]
impl Node for NodeService {
    async fn get_status(
        &self,
        _request: Request<v1::GetStatusRequest>,
    ) -> Result<Response<v1::Status>, RpcStatus> {
        let agent = self.agent.status();
        let snapshot = self.snapshot();
        let inner = self.host.inner();
        let workers = (0u32..)
            .zip(inner.workers.gauges())
            .map(|(index, (core, gauge, counters))| v1::WorkerStatus {
                index,
                core: core.map(|core| core as u32),
                packets: gauge.packets.load(Ordering::Relaxed),
                busy_nanoseconds: gauge.busy.load(Ordering::Relaxed),
                idle_nanoseconds: gauge.idle.load(Ordering::Relaxed),
                generation: gauge.taken.generation().into(),
                stalls: gauge.stalls.load(Ordering::Relaxed),
                stuck_milliseconds: gauge.stuck_milliseconds.load(Ordering::Relaxed),
                fast: counters.fast.get(),
                general: counters.general.get(),
                judged: counters.misses.get(),
                decided_again: counters.decided_again.get(),
            })
            .collect();
        let port = |(index, port): (u16, &weft_dataplane::snapshot::Port)| {
            let open = inner.devices.ports.get(&snapshot.trunks.device(index));
            let what = open.map(|open| open.device.describe());
            let condition = inner.devices.condition(index);
            let has_device = port.device.is_some() || port.trunk.is_some();
            let device = match (&port.trunk, &port.device) {
                (Some(trunk), _) => format!("{}:{}", trunk.parent, trunk.vlan),
                (None, Some(device)) => device.name.clone(),
                (None, None) => String::new(),
            };
            v1::PortStatus {
                port: port.id.clone(),
                device,
                up: condition.is_ok(),
                zero_copy: what.as_ref().is_some_and(|what| what.zero_copy),
                mode: what.map(|what| what.mode).unwrap_or_default(),
                reason: condition.err().filter(|_| has_device).unwrap_or_default(),
            }
        };
        let ports = (0u16..)
            .zip(snapshot.ports.iter())
            .filter_map(|(index, entry)| Some(port((index, entry.as_ref()?))))
            .collect();
        let held_back = agent.in_force.as_ref();
        let held_back = held_back.map_or(Vec::new(), |known| known.held_back.to_vec());
        Ok(Response::new(v1::Status {
            held_back,
            host: self.host.id.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            revision: agent.revision(),
            generation: snapshot.generation.into(),
            controller: agent.connection.name().to_owned(),
            workers,
            ports,
            uplinks: inner
                .devices
                .uplinks
                .iter()
                .map(|uplink| format!("{} ({})", uplink.name(), uplink.mode()))
                .chain(self.host.detours(&inner))
                .collect(),
        }))
    }

    async fn get_state(
        &self,
        _request: Request<v1::GetStateRequest>,
    ) -> Result<Response<v1::NodeStateReply>, RpcStatus> {
        let inner = self.host.inner();
        Ok(Response::new(v1::NodeStateReply {
            revision: inner.revision,
            state: Some(inner.state.to_objects()),
        }))
    }

    async fn get_drops(
        &self,
        _request: Request<v1::GetDropsRequest>,
    ) -> Result<Response<v1::Drops>, RpcStatus> {
        let mut reasons = Vec::new();
        self.each_place(|name, sets| reasons.extend(drop_counts(&name, sets)));
        Ok(Response::new(v1::Drops { reasons }))
    }

    async fn get_stats(
        &self,
        _request: Request<v1::GetStatsRequest>,
    ) -> Result<Response<v1::Stats>, RpcStatus> {
        let mut ports = Vec::new();
        self.each_place(|name, sets| ports.push(port_counters(name, sets)));
        let table = self.host.shared.sessions.statistics();
        let sessions = v1::TableCounters {
            live: table.live,
            capacity: table.capacity,
            installed: table.installed,
            expired: table.expired,
            evicted: table.evicted,
            refused: table.refused,
        };
        let books = self.host.umem.accounting();
        let count = |frames: i64| u64::try_from(frames).unwrap_or_default();
        let frames = v1::FrameCounters {
            total: count(books.total),
            free: count(books.free + books.cached),
            fill: count(books.fill),
            transmit: count(books.transmit),
            held: count(books.held),
        };
        let metadata = self.host.metadata.as_ref().map(|service| {
            let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
            let tally = service.tally();
            v1::MetadataCounters {
                connections: read(&tally.connections),
                refused: read(&tally.refused),
                requests: read(&tally.requests),
                backend_errors: read(&tally.backend_errors),
            }
        });
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let tally = self.host.dns.tally();
        let dns = v1::DnsCounters {
            questions: read(&tally.questions),
            forwarded: read(&tally.forwarded),
            unanswered: read(&tally.unanswered),
            refused: read(&tally.refused),
        };
        let members = self.host.shared.sessions.member_counts();
        let in_force = self.agent.status().in_force;
        Ok(Response::new(v1::Stats {
            held_back: in_force.map_or(0, |known| known.held_back.len() as u32),
            ports,
            sessions: Some(sessions),
            frames: Some(frames),
            metadata,
            dns: Some(dns),
            members: Some(v1::MemberCounters {
                counted: members.used(),
                capacity: members.capacity(),
                refused: members.refused(),
            }),
        }))
    }

    type ListSessionsStream =
        Pin<Box<dyn Stream<Item = Result<v1::SessionList, RpcStatus>> + Send>>;

    async fn list_sessions(
        &self,
        request: Request<v1::ListSessionsRequest>,
    ) -> Result<Response<Self::ListSessionsStream>, RpcStatus> {
        let request = request.into_inner();
        let snapshot = self.snapshot();
        let now = self.host.inner().workers.common().now();
        let vni = match request.vpc.as_str() {
            "" => None,
            id => {
                let vpc = snapshot.vpcs.iter().find(|vpc| vpc.id == id);
                Some(
                    vpc.ok_or_else(|| {
                        RpcStatus::not_found(format!("vpc {id} is not on this host"))
                    })?
                    .vni,
                )
            }
        };
        let limit = if request.limit == 0 {
            usize::MAX
        } else {
            request.limit as usize
        };
        let views = self
            .host
            .shared
            .sessions
            .list(limit, now, |session| vni.is_none_or(|vni| vni == session));
        let sessions: Vec<v1::Session> =
            views.iter().map(|view| session(&snapshot, view)).collect();
        let chunks: Vec<_> = sessions
            .chunks(CHUNK)
            .map(|chunk| {
                Ok(v1::SessionList {
                    sessions: chunk.to_vec(),
                })
            })
            .collect();
        Ok(Response::new(Box::pin(tokio_stream::iter(chunks))))
    }

    async fn list_nat_gateways(
        &self,
        _: Request<v1::ListNatGatewaysRequest>,
    ) -> Result<Response<v1::NatGatewayList>, RpcStatus> {
        let snapshot = self.snapshot();
        let mappings = self.host.shared.sessions.mappings();
        let gateways = (0u16..).zip(&snapshot.outside.nat_gateways);
        let known = gateways.filter_map(|(index, gateway)| Some((index, gateway.as_ref()?)));
        let here = known.filter(|(_, gateway)| !gateway.pools.is_empty());
        let nat_gateways = here.map(|(index, gateway)| v1::NatGatewayStatus {
            nat_gateway: gateway.id.clone(),
            active: snapshot
                .outside
                .network(gateway.network)
                .is_some_and(|network| network.gateway == Translator::Here),
            mappings: mappings.count_of(index),
            most_mappings: gateway.budget.gateway,
            most_per_address: gateway.budget.address,
            out_of_ports: gateway.alarms.ports(),
            out_of_address_budget: gateway.alarms.address_budget(),
            out_of_budget: gateway.alarms.gateway_budget(),
        });
        Ok(Response::new(v1::NatGatewayList {
            nat_gateways: nat_gateways.collect(),
        }))
    }

    type ListMappingsStream =
        Pin<Box<dyn Stream<Item = Result<v1::MappingList, RpcStatus>> + Send>>;

    async fn list_mappings(
        &self,
        request: Request<v1::ListMappingsRequest>,
    ) -> Result<Response<Self::ListMappingsStream>, RpcStatus> {
        let v1::ListMappingsRequest { limit, nat_gateway } = request.into_inner();
        let limit = if limit == 0 {
            usize::MAX
        } else {
            limit as usize
        };
        let snapshot = self.snapshot();
        let id = |index: u16| {
            let gateway = snapshot.outside.nat_gateway(index);
            gateway.map_or_else(String::new, |gateway| gateway.id.clone())
        };
        let wanted = match nat_gateway.as_str() {
            "" => None,
            name => {
                let gateways = snapshot.outside.nat_gateways.iter();
                let mut named = (0u16..).zip(gateways).filter(|(_, gateway)| {
                    gateway.as_ref().is_some_and(|gateway| gateway.id == name)
                });
                let (index, _) = named.next().ok_or_else(|| {
                    RpcStatus::not_found(format!("NAT gateway {name} is not on this host"))
                })?;
                Some(index)
            }
        };
        let all = self.host.shared.sessions.mappings().list(usize::MAX);
        let mappings: Vec<v1::Mapping> = all
            .into_iter()
            .filter(|(mapping, _)| wanted.is_none_or(|wanted| mapping.inside.gateway == wanted))
            .take(limit)
            .map(|(mapping, sessions)| v1::Mapping {
                nat_gateway: id(mapping.inside.gateway),
                protocol: mapping.inside.protocol.into(),
                inside: word_address(mapping.inside.address).to_string(),
                inside_port: mapping.inside.port.into(),
                outside: word_address(mapping.outside.address).to_string(),
                outside_port: mapping.outside.port.into(),
                sessions,
            })
            .collect();
        let chunks: Vec<_> = mappings
            .chunks(CHUNK)
            .map(|chunk| {
                Ok(v1::MappingList {
                    mappings: chunk.to_vec(),
                })
            })
            .collect();
        Ok(Response::new(Box::pin(tokio_stream::iter(chunks))))
    }

    async fn trace(
        &self,
        request: Request<v1::TraceRequest>,
    ) -> Result<Response<v1::TraceReply>, RpcStatus> {
        let request = request.into_inner();
        let snapshot = self.snapshot();
        let view = trace::View {
            snapshot: &snapshot,
            shared: &self.host.shared,
            fragment: self.host.fragment,
        };
        let trace = if request.port.is_empty() {
            trace::trace_from_uplink(view, &request.frame)
        } else {
            let index = snapshot
                .ports
                .iter()
                .position(|port| port.as_ref().is_some_and(|port| port.id == request.port));
            let index = index.ok_or_else(|| {
                RpcStatus::not_found(format!("port {} is not on this host", request.port))
            })?;
            trace::trace(view, index as u16, &request.frame)
        };
        let verdict = trace.outcome.text(&snapshot);
        let steps = trace
            .steps
            .into_iter()
            .map(|(stage, text)| v1::TraceStep {
                stage: stage.to_owned(),
                text,
            })
            .collect();
        Ok(Response::new(v1::TraceReply { steps, verdict }))
    }
}

fn session(snapshot: &Snapshot, view: &SessionView) -> v1::Session {
    let vpc = |vni: Vni| {
        if vni == Vni::OUTSIDE {
            return "outside".to_owned();
        }
        let place = snapshot.vpc_by_vni.get(&vni);
        let vpc = place.and_then(|place| snapshot.vpcs.get(*place));
        vpc.map_or_else(|| format!("vni {vni}"), |vpc| vpc.id.clone())
    };
    let text = |word: u128| -> String {
        let address: IpAddr = word_address(word);
        address.to_string()
    };
    let action = |action: &Option<Action>| {
        action.as_ref().map_or_else(
            || "undecided".to_owned(),
            |action: &Action| trace::egress_text(snapshot, action.egress()),
        )
    };
    // Of ICMP, the type and code.
    let destination_port = |flow: &Flow| match flow.protocol {
        protocol::ICMP | protocol::ICMPV6 => flow.opening_icmp(),
        _ => flow.destination_port,
    };
    // A member that gets packets as they are is shown as if it got them at its own address.
    let chosen = view.chosen.map(|destination| {
        let flow = Flow {
            destination,
            ..view.flow
        };
        (view.vni, flow)
    });
    let translated = view
        .translated
        .or(chosen)
        .map(|(vni, flow)| v1::TranslatedFlow {
            vpc: vpc(vni),
            source: text(flow.source),
            source_port: flow.source_port.into(),
            destination: text(flow.destination),
            destination_port: destination_port(&flow).into(),
        });
    v1::Session {
        vpc: vpc(view.vni),
        protocol: view.flow.protocol.into(),
        source: text(view.flow.source),
        source_port: view.flow.source_port.into(),
        destination: text(view.flow.destination),
        destination_port: destination_port(&view.flow).into(),
        state: view.state.name().to_owned(),
        generation: view.epoch.get().into(),
        idle_seconds: (view.idle_ms / 1000).into(),
        packets_out: view.packets_out,
        packets_back: view.packets_back,
        action_out: action(&view.action_out),
        action_back: action(&view.action_back),
        translated,
    }
}
