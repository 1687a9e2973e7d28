//! weft's dataplane as a library: packets, tables, sessions, the pipeline, ports and workers.
//!
//! The tables and the pipeline use no sockets, gRPC or threads: tests, fuzzers and benchmarks drive them from memory.
//!
//! # A packet from a port into a tunnel
//! A host is three things: a [`Snapshot`](snapshot::Snapshot), compiled from the objects of its tenants; a
//! [`SessionTable`](session::SessionTable), which all workers share; and a [`Pipeline`](pipeline::Pipeline) for each worker. A driver passes
//! vectors of packets to the pipeline and takes them back through [`Io`](pipeline::Io). Here the driver is a list in memory.
//!
//! ```
//! use std::{net::IpAddr, sync::Arc};
//! use etherparse::PacketBuilder;
//! use weft_dataplane::{
//!     encap::decap,
//!     packet::{DropReason, Frame, FrameMemory, Mac, Packet, PlainMemory, parse::address_word},
//!     pipeline::{Destination, DeviceMtus, Io, Pipeline, Settings, Shared, Source},
//!     session::{Limits, SessionTable},
//!     snapshot::compile::{Adjacency, Compiler, Context, Underlay},
//! };
//! use weft_proto::state::State;
//!
//! /// Packet buffers, and what was sent.
//! struct Driver {
//!     memory: PlainMemory,
//!     sent: Vec<(Destination, Packet)>,
//! }
//!
//! impl FrameMemory for Driver {
//!     fn bytes<'a>(&'a self, frame: &'a Frame) -> &'a [u8] {
//!         self.memory.bytes(frame)
//!     }
//!     fn bytes_mut<'a>(&'a mut self, frame: &'a mut Frame) -> &'a mut [u8] {
//!         self.memory.bytes_mut(frame)
//!     }
//!     fn alloc(&mut self) -> Option<Frame> {
//!         self.memory.alloc()
//!     }
//!     fn alloc_large(&mut self) -> Option<Frame> {
//!         self.memory.alloc_large()
//!     }
//!     fn free(&mut self, frame: Frame) {
//!         self.memory.free(frame);
//!     }
//! }
//!
//! impl Io for Driver {
//!     fn send(&mut self, to: Destination, packet: Packet) {
//!         self.sent.push((to, packet));
//!     }
//! }
//!
//! // The objects, as `weftctl apply` takes them: two hosts, and a port on each.
//! let state = State::from_objects(serde_yaml_ng::from_str(r#"
//! hosts: [{id: h1, vteps: [192.0.2.1]}, {id: h2, vteps: [192.0.2.2]}]
//! vpcs: [{id: blue, vni: 100}]
//! subnets: [{id: blue-a, vpc: blue, cidrs: [10.0.1.0/24]}]
//! ports:
//!   - {id: a, vpc: blue, subnet: blue-a, mac: "02:00:00:00:01:01", addresses: [10.0.1.11], host: h1, device: {kind: netdev, name: a}}
//!   - {id: b, vpc: blue, subnet: blue-a, mac: "02:00:00:00:01:02", addresses: [10.0.1.12], host: h2, device: {kind: netdev, name: b}}
//! "#)?)?;
//!
//! // The underlay: h2 is reached over uplink 0.
//! let word = |text: &str| address_word(text.parse::<IpAddr>().unwrap());
//! let way = Adjacency {
//!     source: word("192.0.2.1"),
//!     source_mac: Mac::from_bytes([6, 0, 0, 0, 0, 1]),
//!     next_hop_mac: Mac::from_bytes([6, 0, 0, 0, 0, 2]),
//!     uplink: 0,
//!     mtu: 1500,
//! };
//! let underlay = Underlay::from_iter([(word("192.0.2.2"), vec![way])]);
//! let context = Context { host: "h1", generation: 1, revision: 1, underlay: &underlay, metadata: false, translations: &[], externals: &[], silent: &Default::default() };
//! let snapshot = Compiler::new(16, 16, 16).compile(&state, &context).map_err(|broken| format!("{broken:?}"))?;
//!
//! // One worker.
//! let settings = Settings::default();
//! let limits = Limits { capacity: 1024, per_port: 512, per_vpc: 512, ports: settings.ports, vpcs: settings.vpcs };
//! let shared = Shared {
//!     sessions: Arc::new(SessionTable::new(limits)),
//!     fragments: Arc::default(),
//!     neighbors: Arc::default(),
//!     probes: Arc::default(),
//!     asks: Arc::default(),
//!     checks: Arc::default(),
//!     listeners: Arc::default(),
//!     device_mtus: Arc::new(DeviceMtus::new(settings.ports)),
//! };
//! let mut pipeline = Pipeline::new(shared, &settings);
//! pipeline.set_snapshot(Arc::new(snapshot));
//! let mut driver = Driver { memory: PlainMemory::new(8, 2048), sent: Vec::new() };
//!
//! // Port a sends a datagram to port b, which leaves by the uplink, in VXLAN, to h2.
//! let datagram = |source: [u8; 4]| {
//!     let mut frame = Vec::new();
//!     PacketBuilder::ethernet2([2, 0, 0, 0, 1, 1], [2, 0, 0, 0, 1, 2])
//!         .ipv4(source, [10, 0, 1, 12], 64)
//!         .udp(5000, 53)
//!         .write(&mut frame, b"query")
//!         .map(|()| frame)
//! };
//! let sent = datagram([10, 0, 1, 11])?;
//! let mut vector = vec![driver.memory.packet(128, &sent).ok_or("no buffer")?];
//! pipeline.process(&mut driver, Source::Port(0), &mut vector, 1);
//! let (to, packet) = driver.sent.pop().ok_or("dropped")?;
//! assert_eq!(to, Destination::Uplink(0));
//! let bytes = packet.bytes(&driver.memory);
//! let outer = decap::outer(bytes).map_err(|reason| reason.name())?;
//! assert_eq!((outer.destination, outer.vni), (word("192.0.2.2"), 100.into()));
//! assert_eq!(bytes[outer.inner.into()..outer.end.into()], sent);
//!
//! // A source address that is not the port's is dropped, and counted.
//! let mut vector = vec![driver.memory.packet(128, &datagram([10, 0, 1, 99])?).ok_or("no buffer")?];
//! pipeline.process(&mut driver, Source::Port(0), &mut vector, 2);
//! assert!(driver.sent.is_empty());
//! assert_eq!(pipeline.counters().port(0).drops(DropReason::SpoofedAddress), 1);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

pub mod encap;
pub mod multicast;
pub mod numbers;
pub mod packet;
pub mod pipeline;
pub mod policy;
pub mod port;
pub mod prefetch;
pub mod route;
pub mod session;
pub mod snapshot;
mod sync;
pub mod worker;
