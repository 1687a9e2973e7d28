//! weftctl against a daemon, whose node service the test implements.

#![allow(clippy::unwrap_used)]

mod support;

use std::sync::{Arc, Mutex};

use support::{Scene, TOPOLOGY};
use tokio_stream::Iter;
use tonic::{Request, Response, Status};
use weft_process::services::node_server::{Node, NodeServer};
use weft_process::transport::{self, Listener};
use weft_proto::v1::{
    self, DnsCounters, DropCount, Drops, FrameCounters, GetDropsRequest, GetStateRequest,
    GetStatsRequest, GetStatusRequest, ListMappingsRequest, ListNatGatewaysRequest,
    ListSessionsRequest, Mapping, MappingList, MemberCounters, MetadataCounters, NatGatewayList,
    NatGatewayStatus, NodeStateReply, PortCounters, PortStatus, Session, SessionList, Stats,
    TableCounters, TraceReply, TraceRequest, TraceStep, WorkerStatus,
};

#[derive(Default)]
struct Daemon {
    traced: Arc<Mutex<Vec<TraceRequest>>>,
    asked: Mutex<u64>,
}

#[tonic::async_trait]
impl Node for Daemon {
    async fn get_status(
        &self,
        _: Request<GetStatusRequest>,
    ) -> Result<Response<v1::Status>, Status> {
        Ok(Response::new(v1::Status {
            host: "h1".into(),
            version: "0.1.0".into(),
            revision: 7,
            generation: 9,
            controller: "connected".into(),
            workers: vec![WorkerStatus {
                index: 0,
                core: Some(1),
                packets: 5,
                busy_nanoseconds: 25,
                idle_nanoseconds: 75,
                generation: 8,
                stalls: 2,
                stuck_milliseconds: 1500,
                fast: 3,
                general: 1,
                judged: 4,
                decided_again: 2,
            }],
            ports: vec![PortStatus {
                port: "b1".into(),
                device: "veth1".into(),
                up: true,
                mode: "native".into(),
                zero_copy: false,
                reason: String::new(),
            }],
            uplinks: vec!["eth0".into()],
            held_back: vec![v1::HeldBack {
                object: Some(v1::ObjectKey {
                    kind: "vpc".into(),
                    id: "red".into(),
                }),
                in_force_revision: 5,
                violations: vec![v1::Violation {
                    rule: "no room".into(),
                    ..v1::Violation::default()
                }],
            }],
        }))
    }

    async fn get_state(
        &self,
        _: Request<GetStateRequest>,
    ) -> Result<Response<NodeStateReply>, Status> {
        Ok(Response::new(NodeStateReply {
            revision: 7,
            state: Some(serde_yaml_ng::from_str(TOPOLOGY).unwrap()),
        }))
    }

    async fn get_drops(&self, _: Request<GetDropsRequest>) -> Result<Response<Drops>, Status> {
        Ok(Response::new(Drops {
            reasons: vec![DropCount {
                reason: "spoofed_mac".into(),
                meaning: "the source MAC is not the port's".into(),
                packets: 3,
                port: "b1".into(),
            }],
        }))
    }

    async fn get_stats(&self, _: Request<GetStatsRequest>) -> Result<Response<Stats>, Status> {
        let mut asked = self.asked.lock().unwrap();
        *asked += 1;
        Ok(Response::new(Stats {
            ports: vec![PortCounters {
                port: "b1".into(),
                rx_packets: *asked * 1000,
                ..PortCounters::default()
            }],
            sessions: Some(TableCounters {
                live: 2,
                capacity: 64,
                ..TableCounters::default()
            }),
            frames: Some(FrameCounters {
                total: 8,
                free: 8,
                ..FrameCounters::default()
            }),
            metadata: Some(MetadataCounters {
                requests: 7,
                ..MetadataCounters::default()
            }),
            held_back: 1,
            dns: Some(DnsCounters {
                questions: 9,
                forwarded: 4,
                ..DnsCounters::default()
            }),
            members: Some(MemberCounters {
                counted: 3,
                capacity: 99,
                refused: 1,
            }),
        }))
    }

    type ListSessionsStream = Iter<std::vec::IntoIter<Result<SessionList, Status>>>;

    async fn list_sessions(
        &self,
        request: Request<ListSessionsRequest>,
    ) -> Result<Response<Self::ListSessionsStream>, Status> {
        assert_eq!(request.into_inner().vpc, "blue");
        let list = |source: &str| {
            let session = Session {
                vpc: "blue".into(),
                protocol: 6,
                source: source.into(),
                source_port: 1000,
                destination: "10.0.0.12".into(),
                destination_port: 80,
                state: "established".into(),
                ..Session::default()
            };
            Ok(SessionList {
                sessions: vec![session],
            })
        };
        let lists = vec![list("10.0.0.11"), list("fd00::b")];
        Ok(Response::new(tokio_stream::iter(lists)))
    }

    async fn list_nat_gateways(
        &self,
        _: Request<ListNatGatewaysRequest>,
    ) -> Result<Response<NatGatewayList>, Status> {
        Ok(Response::new(NatGatewayList {
            nat_gateways: vec![NatGatewayStatus {
                nat_gateway: "nat".into(),
                active: true,
                mappings: 7,
                most_mappings: 5000,
                most_per_address: 200,
                out_of_ports: 3,
                out_of_address_budget: 4,
                out_of_budget: 5,
            }],
        }))
    }

    type ListMappingsStream = Iter<std::vec::IntoIter<Result<MappingList, Status>>>;

    async fn list_mappings(
        &self,
        request: Request<ListMappingsRequest>,
    ) -> Result<Response<Self::ListMappingsStream>, Status> {
        let request = request.into_inner();
        assert_eq!((request.nat_gateway.as_str(), request.limit), ("nat", 1000));
        let list = |inside: &str, outside: &str| {
            let mapping = Mapping {
                nat_gateway: "nat".into(),
                protocol: 17,
                inside: inside.into(),
                inside_port: 40000,
                outside: outside.into(),
                outside_port: 40001,
                sessions: 3,
            };
            Ok(MappingList {
                mappings: vec![mapping],
            })
        };
        let lists = vec![
            list("10.0.0.11", "203.0.113.100"),
            list("fd00::b", "2001:db8:cafe::100"),
        ];
        Ok(Response::new(tokio_stream::iter(lists)))
    }

    async fn trace(&self, request: Request<TraceRequest>) -> Result<Response<TraceReply>, Status> {
        self.traced.lock().unwrap().push(request.into_inner());
        Ok(Response::new(TraceReply {
            steps: vec![TraceStep {
                stage: "guard".into(),
                text: "the MAC and the address are the port's".into(),
            }],
            verdict: "uplink h2 192.0.2.2".into(),
        }))
    }
}

/// A scene with a daemon, and what it was asked to trace.
async fn scene() -> (Scene, Arc<Mutex<Vec<TraceRequest>>>) {
    let scene = Scene::empty().await;
    let daemon = Daemon::default();
    let traced = daemon.traced.clone();
    let socket = format!("unix:{}", scene.path("node").display());
    let listener = Listener::bind(&socket).await.unwrap();
    tokio::spawn(async {
        let router = transport::server().add_service(NodeServer::new(daemon));
        transport::serve(router, listener, None, std::future::pending())
            .await
            .unwrap();
    });
    (scene, traced)
}

#[tokio::test]
async fn what_the_daemon_says_is_printed() {
    let (scene, _) = scene().await;
    let status = scene.run("node status").await.ok();
    assert!(
        status.contains("\nHELD BACK: vpc red stays behind (as of revision 5): no room\n"),
        "{status}"
    );
    assert!(
        status.contains("revision 7, generation 9, controller connected"),
        "{status}"
    );
    // Number, core, packets, of which fast, general, judged and decided again, and how busy.
    let worker = status.lines().find(|line| line.starts_with("0 "));
    let columns: Vec<&str> = worker.into_iter().flat_map(str::split_whitespace).collect();
    assert_eq!(columns[..9], ["0", "1", "5", "3", "1", "4", "2", "25", "%"]);
    let stuck = "2       stuck for 1.5 s in generation 8";
    assert!(status.contains(stuck), "{status}");
    let state = scene.run("node state").await.ok();
    assert!(state.contains("02:00:00:00:00:02"), "{state}");
    let drops = scene.run("drops").await.ok();
    assert!(
        drops.contains("b1    spoofed_mac  3        the source MAC"),
        "{drops}"
    );
    let sessions = scene.run("session list --vpc blue").await.ok();
    assert!(
        sessions.contains("10.0.0.11:1000") && sessions.contains("[fd00::b]:1000"),
        "{sessions}"
    );
    let gateways = scene.run("nat status").await.ok();
    let words: Vec<&str> = gateways.split_whitespace().skip(8).collect();
    assert_eq!(
        words,
        ["nat", "active", "7", "5000", "200", "3", "4", "5"],
        "{gateways}"
    );
    let mappings = scene.run("nat mappings --nat-gateway nat").await.ok();
    let lines: Vec<Vec<&str>> = mappings
        .lines()
        .map(|line| line.split_whitespace().collect())
        .collect();
    assert_eq!(
        lines[1..],
        [
            ["nat", "17", "10.0.0.11:40000", "203.0.113.100:40001", "3"],
            [
                "nat",
                "17",
                "[fd00::b]:40000",
                "[2001:db8:cafe::100]:40001",
                "3"
            ]
        ]
    );
    let stats = scene.run("stats -o json").await.ok();
    let stats: serde_json::Value = serde_json::from_str(&stats).unwrap();
    assert_eq!(stats["frames"]["held"], 0, "a counter at zero is told");
    assert_eq!(stats["metadata"]["requests"], 7);
    let stats = scene.run("stats").await.ok();
    assert!(
        stats.contains("counted members of load balancers: 3 of 99, refused 1"),
        "{stats}"
    );
    assert!(
        stats.contains("dns: 9 questions; 4 forwarded, 0 of them not answered"),
        "{stats}"
    );
    assert!(
        stats.contains("metadata: 7 requests, 0 not answered"),
        "{stats}"
    );
}

#[tokio::test]
async fn a_trace_sends_the_frame_that_the_flags_describe() {
    let (scene, traced) = scene().await;
    let words = "trace --port b1 --dst 10.0.0.12 --proto tcp --dport 443 --ttl 9";
    let text = scene.run(words).await.ok();
    assert!(text.contains("guard  the MAC and the address"), "{text}");
    assert!(text.ends_with("verdict: uplink h2 192.0.2.2\n"), "{text}");
    scene.run("trace --hex 0200:0000").await.ok();
    scene.run("trace --hex 0").await.failed(2);
    let traced = traced.lock().unwrap();
    assert_eq!(traced[0].port, "b1");
    let frame = &traced[0].frame;
    assert_eq!(
        frame[..12],
        [2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1],
        "to the neighbour"
    );
    assert_eq!((frame[22], frame[23]), (9, 6), "time to live, protocol");
    assert_eq!(frame[36..38], 443u16.to_be_bytes());
    assert_eq!(
        (traced[1].port.as_str(), &traced[1].frame[..]),
        ("", &[2, 0, 0, 0][..])
    );
}

#[tokio::test]
async fn watched_stats_show_rates() {
    use tokio::io::{AsyncBufReadExt, BufReader};
    let (scene, _) = scene().await;
    let mut child = tokio::process::Command::new(env!("CARGO_BIN_EXE_weftctl"))
        .args(["stats", "--watch"])
        .env(
            "WEFT_NODE",
            format!("unix:{}", scene.path("node").display()),
        )
        .stdout(std::process::Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let rate = async {
        while let Some(line) = lines.next_line().await.unwrap() {
            if line.contains("RX-PACKETS/S") {
                return lines.next_line().await.unwrap();
            }
        }
        None
    };
    let line = tokio::time::timeout(std::time::Duration::from_secs(20), rate)
        .await
        .unwrap()
        .unwrap();
    assert!(line.starts_with("b1    1000 "), "{line}");
}
