//! What a fabric does with a frame, as plainly as it can be said: the packet path of the design, one step after the other.
//!
//! `frame` reads frames, `world` the configuration, `policy` and `session` judge, `policy_route` leads, `gateway` and `services` answer. Here is the way through them: from
//! the port over its host, and over the tunnel through another host, to the ports that get the frame or to the reason why none does.
//!
//! `outside` says what lies outside of VPCs, `leave` how packets get there and come from there.
//!
//! `balancing` is about load balancers.
//!
//! `trunk` knows whose the frames of a VLAN are.
//!
//! `fragments` follows datagrams in pieces, `segment` splits what was left to be split, `outer` reads tunnel headers.
//!
//! Not in this version: limits and budgets; more than one gateway host of an external network, which tell each other of sessions.

pub mod balancing;
mod fragments;
pub mod frame;
mod gateway;
mod leave;
mod multicast;
pub mod outer;
pub mod outside;
mod policy;
mod policy_route;
mod segment;
pub mod services;
pub mod session;
mod trunk;
pub mod world;

use std::collections::BTreeMap;
use std::rc::Rc;

use weft_dataplane::packet::{DropReason, Offload, Segments};
use weft_proto::v1::{self, Objects};

use crate::case::{Case, Translation};
pub use balancing::Member;
use fragments::{Datagram, Datagrams, First, Later};
use frame::{Decoded, Detail, Flow, Mac, Packet, SYN, decode, is_group, is_group_mac};
use gateway::{Discovery, Problem, stays_on_link};
use leave::Mapping;
pub use leave::Seen;
use multicast::{Joined, Said};
use outside::{By, OUTSIDE};
use policy::{Question, acl_allows, groups_allow};
use session::{Follow, Place, Session, Stage, follow, open};
use world::{ROUTER, Tunnel, World, gateway_mac, mac, prefix_holds};

/// A frame on its way from one host to another, without its outer header.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Crossing {
    pub from: String,
    pub to: String,
    pub gre: bool,
    pub v6: bool,
    pub vni: u32,
    pub class: u8,
    pub inner: Vec<u8>,
}

/// All that becomes of a frame. Order does not matter: both lists are kept sorted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Port, and the frame that it gets.
    pub delivered: Vec<(String, Vec<u8>)>,
    /// Ports that got a segment whole, and what is still to be made of it: kind and size.
    pub whole: Vec<(String, u8, u16)>,
    /// Port, and what it sends to its host's metadata or DNS service.
    pub asked: Vec<(String, Vec<u8>)>,
    /// Port, and what it says that it has joined.
    pub reports: Vec<(String, Vec<u8>)>,
    /// Host, and the reason.
    pub dropped: Vec<(String, DropReason)>,
    pub crossed: Vec<Crossing>,
    /// Host, and what it sends onto its external networks, to none of the fabric's hosts.
    pub left: Vec<(String, Vec<u8>)>,
}

impl Outcome {
    pub fn sorted(mut self) -> Self {
        self.delivered.sort();
        self.whole.sort();
        self.asked.sort();
        self.reports.sort();
        self.dropped.sort();
        self.crossed.sort();
        self.left.sort();
        self
    }
}

/// The way into a host.
#[derive(Clone, Copy)]
enum Ingress<'a> {
    Port(&'a v1::Port),
    /// From the host of this id, with this class outside.
    Tunnel(&'a str, u8),
    /// From the external network of this id. What another VPC sends to an address of its own host comes in with that VPC's VNI.
    Outside(&'a str, u32),
}

impl Ingress<'_> {
    fn id(&self) -> &str {
        match self {
            Self::Port(port) => &port.id,
            Self::Tunnel(host, _) => host,
            Self::Outside(network, _) => network,
        }
    }
}

/// How a packet stands to its flow.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Standing {
    /// It opens the flow or goes its opener's way.
    Forward,
    Backward,
    /// An error about a packet of a flow.
    Related,
}

/// Where a packet goes.
struct Way<'a> {
    to: To<'a>,
    /// Through the router: the new destination and source MAC.
    rewrite: Option<(Mac, Mac)>,
    /// The flow that the packet gets, where it is translated, and the one that a packet gets that it quotes.
    becomes: Option<(Flow, Option<Flow>)>,
    /// The VPC of the port at the other end, where a peering joins it to the packet's own.
    joined: Option<&'a str>,
    /// How it leaves for an external network, and what it is known by there.
    exit: Option<Exit<'a>>,
    /// The VNI that it is known by from here on, and the mapping that it uses.
    beyond: u32,
    mapping: Option<u32>,
    /// The member of a load balancer that gets it as it is.
    member: Option<std::net::IpAddr>,
}

/// How this host translates what leaves for an external network.
#[derive(Clone, Copy)]
enum Exit<'a> {
    Elastic(std::net::IpAddr),
    Gateway(&'a v1::NatGateway),
    AsItIs,
}

impl<'a> Way<'a> {
    fn new(to: To<'a>, rewrite: Option<(Mac, Mac)>) -> Self {
        Self {
            to,
            rewrite,
            becomes: None,
            joined: None,
            exit: None,
            beyond: OUTSIDE,
            mapping: None,
            member: None,
        }
    }
}

/// How it is known what a packet becomes.
#[derive(Clone, Copy)]
enum Becoming {
    /// By the configuration: it opens a flow.
    Anew,
    /// By its session, if anything.
    Kept(Option<(Flow, u32)>),
    /// Nothing else: it goes to this member of the load balancer that it is for.
    Member(std::net::IpAddr),
    /// An error: by the packet that it quotes. The VNI is that of where it goes.
    Error(Flow, Flow, u32),
}

#[derive(Clone, Copy)]
enum To<'a> {
    Port(&'a v1::Port),
    Host(&'a str),
    /// Onto an external network.
    Outside(&'a v1::ExternalNetwork),
    /// To an address that the host itself holds: it comes in as from there.
    ThisHost,
}

/// By which flow a port's packet takes one of several next hops: an error goes the way of what it is about.
fn about(packet: &Packet, flow: Flow, standing: Standing, choice: Becoming) -> Flow {
    if standing != Standing::Related {
        return flow;
    }
    let Some(mut quoted) = packet.quoted() else {
        return flow;
    };
    if let Becoming::Error(_, was, _) = choice {
        quoted.source = was.source;
        if let (Detail::Ports(source, _), Detail::Ports(own, _)) = (&mut quoted.detail, was.detail)
        {
            *source = own;
        }
    }
    quoted
}

/// A next hop of an ECMP route.
#[derive(Debug, Clone, PartialEq)]
struct Hop(v1::NextHop);

/// A next hop that a flow was seen to take, and those among which it was.
#[derive(Debug, Clone, PartialEq)]
struct Choice {
    /// In either direction.
    flow: Flow,
    among: Vec<Hop>,
    taken: Hop,
}

/// The fabric.
#[derive(Debug, Clone)]
pub struct Model {
    world: Rc<World>,
    /// What each host tracks.
    sessions: BTreeMap<String, Vec<Session>>,
    /// Datagrams in pieces that each host knows.
    datagrams: BTreeMap<String, Datagrams>,
    choices: Vec<Choice>,
    /// Which members of load balancers flows were seen to go to.
    balanced: Vec<balancing::Balanced>,
    /// What ports have joined.
    joined: Joined,
    /// Of NAT gateways.
    mappings: Vec<Mapping>,
    /// The number of the next one.
    next_mapping: u32,
    /// Which ports NAT gateways have chosen: that is free, but for rules which are checked.
    pub seen: Rc<Vec<Seen>>,
    /// Which members load balancers have chosen.
    pub members: Rc<Vec<Member>>,
    /// What was chosen against the rules.
    pub complaint: Option<String>,
    /// Hosts learn the ports of their VPCs. Those that have some of a subnet are not known then: each that has some of the VPC gets a copy of a broadcast.
    learns: bool,
    /// Nothing may be chosen now.
    only_looks: bool,
    /// How many choices, and how many of members, were there before the last frame.
    certain: (usize, usize),
    /// Milliseconds.
    now: u32,
    /// Which of several allowed next hops is to be tried, and how many there were.
    guess: usize,
    pub guesses: usize,
    /// Packets that were translated so far, every guess included.
    pub translated: u64,
}

impl Model {
    pub fn new(case: &Case, now: u32) -> Self {
        let world = World::new(
            case.objects.clone(),
            case.metadata,
            case.translations.clone(),
            case.device_mtus.clone(),
        );
        Self {
            joined: Joined::new(),
            mappings: Vec::new(),
            next_mapping: 0,
            seen: Rc::default(),
            members: Rc::default(),
            complaint: None,
            only_looks: false,
            learns: case.learns,
            world: Rc::new(world),
            sessions: BTreeMap::new(),
            datagrams: BTreeMap::new(),
            choices: Vec::new(),
            balanced: Vec::new(),
            certain: (0, 0),
            now,
            guess: 0,
            guesses: 1,
            translated: 0,
        }
    }

    /// Puts another configuration in force. Nothing else changes: sessions are judged again as their packets come.
    pub fn set(&mut self, objects: Objects) {
        let World(_, metadata, translations, device_mtus, _) = &*self.world;
        let world = World::new(
            objects,
            *metadata,
            translations.clone(),
            device_mtus.clone(),
        );
        multicast::keep(&mut self.joined, &self.world, &world);
        self.world = Rc::new(world);
    }

    /// Other addresses stand for others from now on.
    pub fn translate(&mut self, translations: Vec<Translation>) {
        let World(objects, metadata, _, device_mtus, _) = &*self.world;
        let world = World::new(
            objects.clone(),
            *metadata,
            translations,
            device_mtus.clone(),
        );
        self.world = Rc::new(world);
    }

    /// Lets time pass: sessions expire, and what has waited in vain for its first fragment is dropped.
    pub fn advance(&mut self, milliseconds: u32) -> Outcome {
        self.now += milliseconds;
        multicast::expire(&mut self.joined, self.now);
        let (world, now) = (Rc::clone(&self.world), self.now);
        for (host, sessions) in &mut self.sessions {
            sessions.retain(|session| {
                let address = session.outside_address();
                let gateway = address.and_then(|address| world.gateway_of(host, address));
                !session.is_expired(now, gateway)
            });
        }
        self.forget_mappings();
        let mut outcome = Outcome::default();
        for (host, datagrams) in &mut self.datagrams {
            for _ in 0..datagrams.expire(self.now) {
                outcome
                    .dropped
                    .push((host.clone(), DropReason::FragmentOrphan));
            }
        }
        outcome
    }

    /// Whether the flow is tracked, and by everybody who does both sides were seen.
    pub fn is_settled(&self, vpc: &str, flow: &Flow) -> bool {
        let vni = self.world.vni(vpc);
        let all = self.sessions.values().flatten();
        let mut of_flow = all
            .filter(|session| session.place(vni, flow).is_some())
            .peekable();
        of_flow.peek().is_some() && of_flow.all(Session::is_settled)
    }

    /// The MAC at an address of the segment, as others than the host itself see it that holds it.
    pub fn station(&self, host: &str, address: std::net::IpAddr) -> Option<Mac> {
        let held = self.world.held(host, address).is_some();
        (!held).then(|| self.world.station(address))
    }

    /// What is configured.
    pub fn world(&self) -> &World {
        &self.world
    }

    /// What each host tracks, for people.
    pub fn tracked(&self) -> &BTreeMap<String, Vec<Session>> {
        &self.sessions
    }

    /// Whether the last frame took the same next hops and members as with another guess.
    pub fn has_chosen_as(&self, other: &Self) -> bool {
        self.choices == other.choices && self.balanced == other.balanced
    }

    /// Takes back which next hops the last frame took: several would have had the same outcome.
    pub fn forget_choices(&mut self) {
        self.choices.truncate(self.certain.0);
        self.balanced.truncate(self.certain.1);
    }

    /// A port sends frames. Where several outcomes are allowed, `guess` chooses one of [`Self::guesses`].
    pub fn send(&mut self, port: &str, frames: &[Vec<u8>], guess: usize) -> Outcome {
        let world = self.begin(guess);
        let mut outcome = Outcome::default();
        if let Some(device) = world.port(port) {
            for (port, frame) in trunk::owners(&world, device, frames) {
                let none = Offload::default();
                let result = port.and_then(|port| {
                    self.enter_from_port(&world, port, &frame, none, &mut outcome)
                });
                if let Err(reason) = result {
                    outcome.dropped.push((device.host.clone(), reason));
                }
            }
        }
        trunk::on_devices(&world, &mut outcome);
        outcome.sorted()
    }

    /// A port sends a segment that is to be split.
    pub fn send_segment(
        &mut self,
        port: &str,
        frame: &[u8],
        offload: Offload,
        guess: usize,
    ) -> Outcome {
        let world = self.begin(guess);
        let mut outcome = Outcome::default();
        if let Some(device) = world.port(port) {
            for (port, frame) in trunk::owners(&world, device, &[frame.to_vec()]) {
                let result = port.and_then(|port| {
                    self.enter_from_port(&world, port, &frame, offload, &mut outcome)
                });
                if let Err(reason) = result {
                    outcome.dropped.push((device.host.clone(), reason));
                }
            }
        }
        trunk::on_devices(&world, &mut outcome);
        outcome.sorted()
    }

    /// A host gets a frame off the wire, from whoever it may be.
    pub fn receive(&mut self, host: &str, frame: &[u8]) -> Outcome {
        let world = self.begin(0);
        let mut outcome = Outcome::default();
        if let Err(reason) = self.enter_from_wire(&world, host, frame, &mut outcome) {
            outcome.dropped.push((host.to_owned(), reason));
        }
        trunk::on_devices(&world, &mut outcome);
        outcome.sorted()
    }

    fn begin(&mut self, guess: usize) -> Rc<World> {
        (self.guess, self.guesses) = (guess, 1);
        self.certain = (self.choices.len(), self.balanced.len());
        Rc::clone(&self.world)
    }

    fn enter_from_wire(
        &mut self,
        world: &World,
        host: &str,
        frame: &[u8],
        outcome: &mut Outcome,
    ) -> Result<(), DropReason> {
        let (outer, from, vpc) = check_outer(world, host, frame)?;
        let way = (from, host, vpc);
        self.enter_from_tunnel(world, way, outer.class, &outer.inner, outcome)
    }

    fn enter_from_port(
        &mut self,
        world: &World,
        port: &v1::Port,
        frame: &[u8],
        offload: Offload,
        outcome: &mut Outcome,
    ) -> Result<(), DropReason> {
        let mut answer = |frame| outcome.delivered.push((port.id.clone(), frame));
        let is_segment = offload.segments != Segments::None;
        let mut packet = match decode(frame) {
            Ok(Decoded::Ip(packet)) => packet,
            _ if is_segment => return Err(DropReason::OffloadMalformed),
            Ok(Decoded::Arp) => {
                match gateway::arp(world, port, frame)? {
                    gateway::Answer::Frame(frame) => answer(frame),
                    gateway::Answer::Heard => {
                        outcome.asked.push((port.id.clone(), frame.to_vec()));
                    }
                }
                return Ok(());
            }
            Err(reason) => return Err(reason),
        };
        segment::check(&packet, offload)?;
        if let Some(dscp) = port.dscp {
            packet.mark(dscp as u8);
        }
        if is_segment {
            // The checksums are made when it is split.
            packet.segment = Some(offload);
        } else {
            packet.complete_checksum();
        }
        if gateway::is_rogue_server(&packet) {
            return Err(DropReason::RogueServer);
        }
        if let Some(result) = services::answer(world, port, &packet) {
            answer(result?);
            return Ok(());
        }
        if let Some(result) = gateway::neighbor_discovery(world, port, &packet) {
            match result? {
                Discovery::Answer(frame) => answer(frame),
                Discovery::Relay => {
                    let place = (port.host.as_str(), port.vpc.as_str());
                    return self.relay(world, place, Ingress::Port(port), packet, outcome);
                }
                Discovery::Heard => outcome.asked.push((port.id.clone(), packet.bytes)),
            }
            return Ok(());
        }
        let to_router = packet.dst == gateway_mac(world.subnet(&port.subnet));
        let destination = packet.flow.destination;
        let is_local = destination == gateway::link_local(packet.dst);
        let is_metadata = world.is_metadata(destination);
        let is_gateway = world.gateway(&port.vpc, destination).is_some();
        let to_gateway = to_router && (is_local || is_metadata || is_gateway);
        if let Err(reason) = gateway::guard(world, port, &packet) {
            // A member answers a client with its load balancer's address; no question of the host's own is in the model.
            if to_gateway || !balancing::may_answer(world, port, &packet) {
                return Err(reason);
            }
            let (ingress, place) = (Ingress::Port(port), (&*port.host, &*port.vpc));
            return self.onward(world, place, ingress, packet, outcome);
        }
        // Nobody answers IPv4's solicitations of routers (RFC 1256).
        if packet.is_v4()
            && packet.flow.protocol == frame::ICMP
            && matches!(packet.icmp, Some((10, _)))
        {
            return Err(DropReason::GatewayUnserved);
        }
        if multicast::is_heard(world, port)
            && let Some(said) = multicast::read(&packet)
        {
            match said? {
                Said::Query => return Err(DropReason::RogueQuerier),
                Said::Report(records) => {
                    outcome.reports.push((port.id.clone(), packet.bytes));
                    multicast::hear(&mut self.joined, &port.id, records, self.now);
                    return Ok(());
                }
                Said::Other => {}
            }
        }
        let to_web = matches!(packet.flow.detail, frame::Detail::Ports(_, 80));
        if to_router && is_metadata && to_web && packet.flow.protocol == frame::TCP {
            outcome.asked.push((port.id.clone(), packet.bytes));
            return Ok(());
        }
        if to_router && world.is_name_server(port, destination) && gateway::asks_for_names(&packet)
        {
            if packet.segment.is_some() && packet.flow.protocol == frame::UDP {
                return Err(DropReason::DnsMalformed);
            }
            outcome.asked.push((port.id.clone(), packet.bytes));
            return Ok(());
        }
        if to_gateway {
            answer(gateway::ping(&packet)?);
            return Ok(());
        }
        let balancer = world.balancer_of(port, &packet);
        if let Some(result) = balancer.and_then(|it| balancing::ping(world, it, &packet)) {
            answer(result?);
            return Ok(());
        }
        let (ingress, place) = (Ingress::Port(port), (&*port.host, &*port.vpc));
        let result = self.onward(world, place, ingress, packet.clone(), outcome);
        if let Err(reason) = result {
            let reset = balancing::reset(world, port, &packet, reason);
            let told = reset.map(|frame| (port.id.clone(), frame));
            outcome.delivered.extend(told);
        }
        result
    }

    /// A host takes a frame off a tunnel. Equipment behind it may ask for neighbours, and is answered through the tunnel.
    fn enter_from_tunnel(
        &mut self,
        world: &World,
        (from, to, vpc): (&str, &str, &str),
        class: u8,
        frame: &[u8],
        outcome: &mut Outcome,
    ) -> Result<(), DropReason> {
        let (answer, class) = match decode(frame)? {
            Decoded::Arp => (gateway::arp_of_peer(world, (to, vpc), frame)?, 0),
            Decoded::Ip(mut packet) => {
                packet.complete_checksum();
                if let Some(way) = way_after_move(world, (to, vpc), from, &packet) {
                    // The port's host judges it.
                    let ingress = Ingress::Tunnel(from, class);
                    return self.forward(world, (to, vpc), ingress, packet, &way, outcome);
                }
                match gateway::discovery_of_peer(world, (to, vpc), &packet).transpose()? {
                    // Of ports alone.
                    Some(Discovery::Heard) => return Ok(()),
                    Some(Discovery::Answer(answer)) => (answer, packet.class),
                    Some(Discovery::Relay) => {
                        let ingress = Ingress::Tunnel(from, class);
                        return self.relay(world, (to, vpc), ingress, packet, outcome);
                    }
                    None if gateway::is_v4_router(&packet) => {
                        return Err(DropReason::RogueServer);
                    }
                    None => {
                        let sender = world.port_by_mac(vpc, packet.src);
                        if sender.is_some_and(|sender| multicast::is_heard(world, sender))
                            && let Some(said) = multicast::read(&packet)
                            && !matches!(said?, Said::Other)
                        {
                            // Each host asks its own guests.
                            return Err(DropReason::RogueQuerier);
                        }
                        let ingress = Ingress::Tunnel(from, class);
                        return self.onward(world, (to, vpc), ingress, packet, outcome);
                    }
                }
            }
        };
        let tunnel = world
            .tunnel(to, from)
            .ok_or(DropReason::UnderlayUnresolved)?;
        self.cross(world, (to, from, vpc), tunnel, class, &[answer], outcome);
        Ok(())
    }

    /// From either side: groups are served by copies, all else is judged and sent on its way.
    fn onward(
        &mut self,
        world: &World,
        place: (&str, &str),
        ingress: Ingress<'_>,
        packet: Packet,
        outcome: &mut Outcome,
    ) -> Result<(), DropReason> {
        if world.is_metadata(packet.flow.source) {
            return Err(DropReason::Martian);
        }
        let to_group = is_group_mac(packet.dst);
        if !to_group && is_group(packet.flow.destination) {
            return Err(DropReason::Martian);
        }
        match packet.fragment {
            None if to_group => self.flood(world, place, ingress, &packet, outcome),
            None => {
                let way = self.track(world, place, ingress, &packet)?;
                self.forward(world, place, ingress, packet, &way, outcome)
            }
            Some(_) => self.fragment(world, place, ingress, packet, outcome),
        }
    }

    /// A message of neighbour discovery goes to others on the link, whatever policy says.
    fn relay(
        &mut self,
        world: &World,
        place: (&str, &str),
        ingress: Ingress<'_>,
        packet: Packet,
        outcome: &mut Outcome,
    ) -> Result<(), DropReason> {
        let (host, vpc) = place;
        if is_group_mac(packet.dst) {
            return self.flood(world, place, ingress, &packet, outcome);
        }
        let sender = match ingress {
            Ingress::Port(port) => port,
            Ingress::Tunnel(from, _) => world
                .port_by_mac(vpc, packet.src)
                .filter(|sender| sender.host == from)
                .ok_or(DropReason::SpoofedInner)?,
            Ingress::Outside(..) => return Err(DropReason::NotHere),
        };
        let target = world
            .port_by_mac(vpc, packet.dst)
            .filter(|target| target.subnet == sender.subnet)
            .ok_or(DropReason::UnknownMac)?;
        let to = match (ingress, target.host == host) {
            (Ingress::Port(port), _) if port.id == target.id => {
                return Err(DropReason::UnknownMac);
            }
            (_, true) => To::Port(target),
            (Ingress::Port(_), false) => To::Host(&target.host),
            (_, false) => return Err(DropReason::NotHere),
        };
        let way = Way::new(to, None);
        self.forward(world, place, ingress, packet, &way, outcome)
    }

    /// A piece of a datagram.
    fn fragment(
        &mut self,
        world: &World,
        place: (&str, &str),
        ingress: Ingress<'_>,
        mut packet: Packet,
        outcome: &mut Outcome,
    ) -> Result<(), DropReason> {
        let (host, vpc) = place;
        let Some(piece) = packet.fragment else {
            return Ok(());
        };
        let datagram = Datagram {
            ingress: ingress.id().to_owned(),
            vni: vni_of(world, vpc, ingress),
            source: packet.flow.source,
            destination: packet.flow.destination,
            protocol: packet.is_v4().then_some(packet.flow.protocol),
            id: piece.id,
        };
        let datagrams = self.datagrams.entry(host.to_owned()).or_default();
        let (vain, placed) = datagrams.place(&datagram, piece, self.now);
        let orphan = (host.to_owned(), DropReason::FragmentOrphan);
        outcome.dropped.extend(vec![orphan; vain]);
        placed?;
        let to_group = is_group_mac(packet.dst);
        if piece.is_first() {
            let verdict = match to_group {
                true => Ok(None),
                false => self.track(world, place, ingress, &packet).map(Some),
            };
            let first = verdict.is_ok().then(|| First::of(&packet));
            let datagrams = self.datagrams.entry(host.to_owned()).or_default();
            let waiting = datagrams.judged(&datagram, first);
            let result = verdict.and_then(|way| match way {
                Some(way) => self.forward(world, place, ingress, packet, &way, outcome),
                None => self.flood(world, place, ingress, &packet, outcome),
            });
            for packet in waiting {
                if let Err(reason) = self.onward(world, place, ingress, packet, outcome) {
                    outcome.dropped.push((host.to_owned(), reason));
                }
            }
            return result;
        }
        let Later::Follows(first) = datagrams.later(&datagram, &packet)? else {
            return Ok(());
        };
        (packet.flow.detail, packet.icmp) = (first.detail, first.icmp);
        packet.flow.protocol = first.protocol;
        if to_group {
            return self.flood(world, place, ingress, &packet, outcome);
        }
        // With the session of its first, its leave to pass is gone.
        let (session, stands) = self
            .find(host, vni_of(world, vpc, ingress), &packet.flow)
            .ok_or(DropReason::FragmentOrphan)?;
        let from_opener = stands.from_opener;
        let is_outside = matches!(ingress, Ingress::Outside(..));
        let choice = self.kept(world, (place, is_outside), session, stands)?;
        let standing = match from_opener {
            true => Standing::Forward,
            false => Standing::Backward,
        };
        let way = self.judge(world, place, ingress, &packet, (standing, choice))?;
        self.check_joined(world, place, session, &way)?;
        if let Some(sequence) = first.sequence {
            let ends = &mut self.sessions.entry(host.to_owned()).or_default()[session].ends;
            let sender = &mut ends[usize::from(!from_opener)];
            let next = sequence.wrapping_add(piece.end as u32);
            if (next.wrapping_sub(sender.next) as i32) > 0 {
                sender.next = next;
            }
        }
        self.forward(world, place, ingress, packet, &way, outcome)
    }

    /// The session of a flow on a host, and how the flow stands to it.
    fn find(&self, host: &str, vni: u32, flow: &Flow) -> Option<(usize, Place)> {
        find(self.sessions.get(host)?, vni, flow)
    }

    /// What a packet of a session becomes, if that is still allowed.
    fn kept(
        &self,
        world: &World,
        (place, is_outside): ((&str, &str), bool),
        session: usize,
        stands: Place,
    ) -> Result<Becoming, DropReason> {
        let host = place.0;
        let known = &self.sessions[host][session];
        if let Some(member) = known.member
            && stands.from_opener
        {
            return match world.keeps_member(place.1, &known.flow, member) {
                true => Ok(Becoming::Member(member)),
                false => Err(DropReason::MemberGone),
            };
        }
        let Some([before, after]) = self.sessions[host][session].translated else {
            return Ok(Becoming::Kept(None));
        };
        if stands.was.is_some() {
            return Err(DropReason::TranslationClash);
        }
        let balanced = world.may_be_balanced(place.1, &before, &after);
        let opener = self.sessions[host][session].sides[0];
        if balanced.is_some()
            && opener != world.vni(place.1)
            && world.held(host, before.destination).is_none()
        {
            // Another host translates: this one passes on what ports and tunnels send.
            return if is_outside {
                Err(DropReason::NoTranslator)
            } else {
                Ok(Becoming::Kept(None))
            };
        }
        match balanced {
            Some(true) => return Ok(Becoming::Kept(stands.becomes)),
            Some(false) => return Err(DropReason::MemberGone),
            None => {}
        }
        if !world.may_become(place, &before, &after) {
            return Err(DropReason::TranslationGone);
        }
        Ok(Becoming::Kept(stands.becomes))
    }

    /// A session that goes from one VPC into another does so as long as it lives, and no other begins to.
    fn check_joined(
        &self,
        world: &World,
        (host, vpc): (&str, &str),
        session: usize,
        way: &Way<'_>,
    ) -> Result<(), DropReason> {
        let joined = way.joined.map(|other| world.vni(other));
        if joined == self.sessions[host][session].other(world.vni(vpc)) {
            Ok(())
        } else {
            Err(DropReason::TranslationGone)
        }
    }

    /// Finds the packet's session or opens one, and judges the packet.
    fn track<'a>(
        &mut self,
        world: &'a World,
        place: (&str, &str),
        ingress: Ingress<'_>,
        packet: &Packet,
    ) -> Result<Way<'a>, DropReason> {
        let (host, vpc) = place;
        let (vni, now) = (vni_of(world, vpc, ingress), self.now);
        let sessions = self.sessions.entry(host.to_owned()).or_default();
        let answering = match ingress {
            Ingress::Port(port) if balancing::is_answer(world, port, packet) => Some(port),
            _ => None,
        };
        if packet.is_icmp_error() {
            // An error passes to the sender of a tracked packet (b022).
            let quoted = packet
                .quoted()
                .filter(|quoted| quoted.source == packet.flow.destination);
            let (quoted, (session, stands)) = quoted
                .and_then(|quoted| Some((quoted, find(sessions, vni, &quoted)?)))
                .ok_or(DropReason::IcmpUnrelated)?;
            // With a load balancer's address, a member speaks of what it got itself.
            let is_own = |port| {
                is_of_member(&sessions[session], port) && quoted.destination == packet.flow.source
            };
            if answering.is_some_and(|port| !is_own(port)) {
                return Err(DropReason::SpoofedAddress);
            }
            // It was translated before it got there.
            let member = sessions[session].member.filter(|_| !stands.from_opener);
            let as_it_is = member.map_or(Becoming::Kept(None), Becoming::Member);
            let choice = stands.was.map_or(as_it_is, |(was, there)| {
                let mut flow = packet.flow;
                flow.destination = was.source;
                if flow.source == quoted.destination {
                    flow.source = was.destination;
                }
                Becoming::Error(flow, was, there)
            });
            let quoted_joined = sessions[session].other(vni);
            let way = self.judge(world, place, ingress, packet, (Standing::Related, choice))?;
            // Into another VPC goes only what is about a packet from there.
            let joined = way.joined.map(|other| world.vni(other));
            return if joined.is_some() && joined != quoted_joined {
                Err(DropReason::IcmpUnrelated)
            } else {
                Ok(way)
            };
        }
        let is_outside = matches!(ingress, Ingress::Outside(..));
        let mut known = find(sessions, vni, &packet.flow);
        if let Some(port) = answering {
            let asks = known.filter(|(_, stands)| !stands.from_opener);
            if !asks.is_some_and(|(i, _)| is_of_member(&sessions[i], port)) {
                return Err(DropReason::SpoofedAddress);
            }
        }
        let becomes = known.and_then(|(_, stands)| stands.becomes);
        let becomes = becomes.map(|(flow, _)| flow);
        let (mut followed, mut over) = (None, None);
        // The port of a connection that is over may be used again, on either side of its translation.
        let is_over = |session: &Session| {
            matches!(session.stage, Stage::TimeWait | Stage::Closed)
                && matches!(open(packet, false), Ok((Stage::SynSent, _)))
        };
        if let Some((i, stands)) = known
            && stands.was.is_some()
        {
            if !is_over(&sessions[i]) {
                return Err(DropReason::TranslationClash);
            }
            (known, over) = (None, Some(i));
        }
        // A SYN that may begin a connection anew opens a flow, and the SYN-ACK that accepts it answers one, whatever the session was.
        let (mut unlike, mut turned) = (None, false);
        if let Some((i, stands)) = known {
            match follow(&sessions[i], stands.from_opener, packet) {
                Follow::Pass(stage, ends) => followed = Some((stage, ends)),
                Follow::Offer(stage, ends) => {
                    followed = Some((stage, ends));
                    unlike = Some(Standing::Forward);
                }
                Follow::Afresh(ends) => {
                    followed = Some((Stage::SynReceived, ends));
                    (unlike, turned) = (Some(Standing::Backward), true);
                }
                Follow::Reopen => {
                    over = Some(i);
                    known = None;
                }
                Follow::Drop(reason) => return Err(reason),
            }
        }
        if known.is_none() && answering.is_some() {
            return Err(DropReason::SpoofedAddress);
        }
        if let Some((i, stands)) = known
            && stands.from_opener
            && self.sessions[host][i].stage == Stage::SynSent
            && matches!(
                self.kept(world, (place, is_outside), i, stands),
                Err(DropReason::MemberGone)
            )
        {
            // Nobody has answered yet: it is as if it opened the flow.
            (over, known, followed) = (Some(i), None, None);
        }
        let standing = match known {
            Some((_, stands)) if !stands.from_opener => unlike.unwrap_or(Standing::Backward),
            _ => unlike.unwrap_or(Standing::Forward),
        };
        if answering.is_some() && matches!(standing, Standing::Forward) {
            // A member opens nothing with a load balancer's address.
            return Err(DropReason::SpoofedAddress);
        }
        if known.is_none() && open(packet, false).is_err() {
            // Only where a connection may be seen one way.
            open(packet, true)?;
            self.only_looks = true;
            let way = self.judge(world, place, ingress, packet, (standing, Becoming::Anew));
            self.only_looks = false;
            open(packet, way.is_ok_and(|way| is_one_sided(ingress, &way)))?;
        }
        let judged = match known {
            None => self.judge(world, place, ingress, packet, (standing, Becoming::Anew)),
            Some((i, stands)) => self
                .kept(world, (place, is_outside), i, stands)
                .and_then(|choice| self.judge(world, place, ingress, packet, (standing, choice)))
                .and_then(|way| {
                    self.check_joined(world, place, i, &way)?;
                    Ok(way)
                }),
        };
        let (stage, ends) = match followed {
            Some(followed) => followed,
            None if open(packet, false).is_ok() => open(
                packet,
                judged.as_ref().is_ok_and(|way| is_one_sided(ingress, way)),
            )?,
            None => match &judged {
                Ok(way) => open(packet, is_one_sided(ingress, way))?,
                Err(_) => open(packet, false)?,
            },
        };
        let sessions = self.sessions.entry(host.to_owned()).or_default();
        let mut given_up = match (&judged, over) {
            (Ok(_), Some(i)) => Some((i, sessions.remove(i))),
            _ => None,
        };
        // What is dropped in the end takes nobody's place.
        let mut clash = |sessions: &mut Vec<Session>| {
            if let Some((i, session)) = given_up.take() {
                sessions.insert(i, session);
            }
            DropReason::TranslationClash
        };
        match (&judged, known) {
            (Ok(_), Some((i, _))) => {
                (sessions[i].stage, sessions[i].ends) = (stage, ends);
                sessions[i].last_seen = now;
                if turned {
                    // Its receiver sends against what the packet becomes.
                    sessions[i].flow = becomes.unwrap_or(packet.flow).reversed();
                }
            }
            (Ok(way), None) => {
                let after = way.becomes.map(|(after, _)| after);
                // No two sessions share what a packet looks like on either side, nor two sides of one.
                let beyond = way.beyond;
                let is_own_answer = |after: &Flow| {
                    let answerable = !matches!(after.detail, frame::Detail::Message(..));
                    answerable && beyond == vni && *after == packet.flow.reversed()
                };
                let joined = way.joined.map(|other| world.vni(other));
                let across = joined.map(|other| (other, packet.flow));
                let seen = after.map(|after| (beyond, after)).or(across);
                let alike = seen.and_then(|(vni, flow)| find(sessions, vni, &flow));
                match alike {
                    _ if after.as_ref().is_some_and(is_own_answer) => return Err(clash(sessions)),
                    Some((i, _)) if is_over(&sessions[i]) => drop(sessions.remove(i)),
                    Some(_) => return Err(clash(sessions)),
                    None => {}
                }
                sessions.push(Session {
                    vni,
                    flow: packet.flow,
                    translated: after.map(|after| [packet.flow, after]),
                    sides: [vni, beyond],
                    mapping: way.mapping,
                    member: way.member,
                    charged: match (ingress, way.to) {
                        (Ingress::Port(port), _) | (_, To::Port(port)) => Some(port.id.clone()),
                        _ => None,
                    },
                    joined,
                    stage,
                    ends,
                    last_seen: now,
                });
            }
            // What no rule admits any more is forgotten, both ways (b017); a connection is known as denied while its ends try.
            (Err(reason), Some((i, _)))
                if matches!(reason, DropReason::TranslationGone | DropReason::MemberGone)
                    || (*reason == DropReason::GroupDenied && unlike.is_none()) =>
            {
                match sessions[i].stage {
                    Stage::Established | Stage::FinFrom(_) | Stage::Closed | Stage::Denied => {
                        (sessions[i].stage, sessions[i].last_seen) = (Stage::Denied, now);
                    }
                    _ => drop(sessions.remove(i)),
                }
            }
            (Err(_), _) => {}
        }
        judged
    }

    /// ACL out, group out, the destination's translation, route, the source's translation; for a port of this host ACL in and group in.
    fn judge<'a>(
        &mut self,
        world: &'a World,
        place: (&str, &str),
        ingress: Ingress<'_>,
        packet: &Packet,
        (standing, choice): (Standing, Becoming),
    ) -> Result<Way<'a>, DropReason> {
        let (host, vpc) = place;
        let routed = match ingress {
            Ingress::Port(port) => packet.dst == gateway_mac(world.subnet(&port.subnet)),
            Ingress::Tunnel(..) => is_router(world, vpc, packet.dst),
            Ingress::Outside(..) => false,
        };
        if let Ingress::Port(port) = ingress {
            policy(world, port, packet, standing, false)?;
        }
        let mut flow = packet.flow;
        let balancer = match (choice, ingress) {
            (Becoming::Anew, Ingress::Port(port)) => world.balancer_of(port, packet),
            _ => None,
        };
        if let Some(balancer) = balancer {
            self.balance(world, (host, balancer), &mut flow)?;
        }
        let member = match choice {
            Becoming::Member(member) => Some(member).filter(|_| routed),
            _ if balancer.is_some_and(|it| balancing::is_dsr(it, &packet.flow)) => {
                Some(flow.destination)
            }
            _ => None,
        };
        match (choice, ingress) {
            _ if balancer.is_some() => {}
            // Nothing passes from the outside in one VNI, but what comes from another VPC of the host to an address that a port has itself.
            (Becoming::Kept(None), Ingress::Outside(_, from)) if from != world.vni(vpc) => {
                return Err(DropReason::TranslationGone);
            }
            (Becoming::Anew, Ingress::Outside(..)) => {
                self.come_to(world, place, &mut flow)?;
            }
            (Becoming::Anew, _) if routed => {
                flow.destination = world.destination(vpc, flow.destination);
                let held = world.held(host, packet.flow.destination);
                let by_gateway =
                    held.is_some_and(|held| held.vpc == vpc && matches!(held.by, By::Gateway(_)));
                if flow.destination == packet.flow.destination && by_gateway {
                    self.come_to(world, place, &mut flow)?;
                }
            }
            (Becoming::Kept(Some((to, _))) | Becoming::Error(to, ..), _) => {
                flow.destination = to.destination;
                flow.detail = leave::with_destination(flow.detail, to.detail);
            }
            _ => {}
        }
        let kept = match choice {
            Becoming::Kept(Some((to, there))) | Becoming::Error(to, _, there) => {
                let is_answer = there != world.vni(vpc) && to.source != packet.flow.source;
                Some(to.source).filter(|_| is_answer)
            }
            _ => None,
        };
        let public = kept.and_then(|kept| world.answers_by(vpc, kept));
        let public = public.filter(|_| match ingress {
            Ingress::Port(port) => world.leads_out(port, packet.flow.destination),
            _ => true,
        });
        let mut way = match ingress {
            Ingress::Port(port) => {
                let answers =
                    matches!(choice, Becoming::Kept(None)) && standing != Standing::Forward;
                // An answer to an address that stands for one elsewhere: its host translates it.
                let inside = world.destination(vpc, packet.flow.destination);
                let elsewhere = world.port_by_address(vpc, inside).filter(|target| {
                    answers
                        && routed
                        && inside != packet.flow.destination
                        && target.host != port.host
                });
                let may_answer =
                    matches!(choice, Becoming::Kept(None)) && standing != Standing::Forward;
                let public = public.or_else(|| {
                    let network = world.may_answer_by(port, &packet.flow);
                    let network = network.filter(|_| may_answer);
                    // Which address it is the gateway host knows.
                    network.map(|network| (network, packet.flow.source))
                });
                match elsewhere {
                    _ if let Some(member) = member => {
                        let target = world.port_by_address(vpc, member);
                        let target = target.ok_or(DropReason::NoPort)?;
                        if target.id == port.id {
                            return Err(DropReason::UnknownMac);
                        }
                        let macs = (mac(&target.mac), gateway_mac(world.subnet(&target.subnet)));
                        Way::new(to_port(port, target), Some(macs))
                    }
                    None if let Some(public) = public.filter(|_| routed) => {
                        let subnet = world.subnet(&port.subnet);
                        leave::leave_balanced(world, host, subnet, &flow, public)?
                    }
                    Some(target) => Way::new(
                        To::Host(&target.host),
                        Some((ROUTER, gateway_mac(world.subnet(&port.subnet)))),
                    ),
                    None => {
                        let about = about(packet, flow, standing, choice);
                        self.way_from_port(world, port, (packet, &flow, standing), &about)?
                    }
                }
            }
            Ingress::Tunnel(from, _) => {
                way_from_tunnel(world, place, from, (packet, &flow, standing), public)?
            }
            Ingress::Outside(..) => {
                let target = world.port_by_address(vpc, flow.destination);
                let target = target.ok_or(DropReason::NoPort)?;
                let macs = (mac(&target.mac), gateway_mac(world.subnet(&target.subnet)));
                let to = match target.host == host {
                    true => To::Port(target),
                    false => To::Host(&target.host),
                };
                Way::new(to, Some(macs))
            }
        };
        way.member = member.filter(|_| matches!(ingress, Ingress::Port(_)));
        match choice {
            _ if way.member.is_some() => flow = packet.flow,
            _ if let (Some(_), Ingress::Port(port)) = (balancer, ingress) => {
                flow.source = balancing::source(world, port, &flow, &packet.flow);
            }
            Becoming::Anew if routed => {
                way.mapping = self.leave_by(world, place, packet, &mut flow, way.exit)?;
            }
            Becoming::Kept(Some((to, _))) => flow = to,
            Becoming::Error(to, quoted, _) => {
                flow = to;
                // An error from another than the packet's receiver takes no private address out (RFC 5508 REQ-5).
                if flow.source == packet.flow.source {
                    flow.source = match way.exit {
                        Some(Exit::Elastic(address)) => address,
                        Some(Exit::Gateway(_) | Exit::AsItIs) => quoted.destination,
                        None => flow.source,
                    };
                }
            }
            _ => {}
        }
        // What is translated goes by no peering.
        let is_kept = matches!(choice, Becoming::Kept(Some(_)) | Becoming::Error(..));
        if way.joined.is_some() && (flow != packet.flow || is_kept) {
            return Err(DropReason::PeeringTransit);
        }
        way.beyond = match (way.exit, way.to, way.joined, ingress) {
            (Some(Exit::AsItIs), To::ThisHost, ..) => world.vni(vpc),
            (Some(_), To::ThisHost, ..) => world.known_as(host, flow.destination),
            (Some(_), ..) => OUTSIDE,
            (None, _, Some(other), Ingress::Port(_)) => world.vni(other),
            (None, ..) => world.vni(vpc),
        };
        let vni = vni_of(world, vpc, ingress);
        let crosses = way.joined.is_none() && way.beyond != vni;
        way.becomes = match choice {
            Becoming::Error(_, quoted, _) => Some((flow, Some(quoted))),
            _ => (flow != packet.flow || crosses).then_some((flow, None)),
        };
        if let To::Port(target) = way.to {
            let mut seen = packet.clone();
            seen.flow = flow;
            policy(world, target, &seen, standing, true)?;
        }
        // What its session keeps may be for somewhere else, where its route led when it began.
        match choice {
            Becoming::Kept(None) if way.exit.is_some() && way.beyond != vni => {
                Err(DropReason::TranslationGone)
            }
            Becoming::Kept(Some((_, there))) | Becoming::Error(_, _, there)
                if there != way.beyond =>
            {
                Err(DropReason::TranslationGone)
            }
            _ => Ok(way),
        }
    }

    /// Within the subnet by MAC, through the gateway by route.
    fn way_from_port<'a>(
        &mut self,
        world: &'a World,
        port: &v1::Port,
        (packet, flow, standing): (&Packet, &Flow, Standing),
        about: &Flow,
    ) -> Result<Way<'a>, DropReason> {
        let subnet = world.subnet(&port.subnet);
        let way = if packet.dst == gateway_mac(subnet) {
            self.route(world, port, (packet, flow, standing), about)?
        } else {
            let target = world.port_by_mac(&port.vpc, packet.dst);
            let target = target.filter(|target| target.subnet == port.subnet);
            Way::new(to_port(port, target.ok_or(DropReason::UnknownMac)?), None)
        };
        // It reaches itself by an address that stands for its own.
        let is_plain = way.rewrite.is_none() || *flow == packet.flow;
        match way.to {
            To::Port(target) if target.id == port.id && is_plain => Err(DropReason::UnknownMac),
            _ => Ok(way),
        }
    }

    /// The longest prefix that holds the destination; of equal length, the custom one.
    fn route<'a>(
        &mut self,
        world: &'a World,
        port: &v1::Port,
        (packet, flow, standing): (&Packet, &Flow, Standing),
        about: &Flow,
    ) -> Result<Way<'a>, DropReason> {
        if stays_on_link(flow.source) || stays_on_link(flow.destination) {
            return Err(DropReason::Martian);
        }
        let subnet = world.subnet(&port.subnet);
        let implied = world
            .subnets_of(&port.vpc)
            .flat_map(|subnet| &subnet.cidrs)
            .map(|prefix| v1::Route {
                prefix: prefix.clone(),
                local: true,
                ..v1::Route::default()
            });
        let table = world
            .0
            .route_tables
            .iter()
            .find(|t| t.id == subnet.route_table);
        let custom = table.into_iter().flat_map(|table| table.routes.clone());
        let direct = world.is_direct(&port.vpc, flow.destination);
        let implied = implied.chain(direct.then(|| v1::Route {
            prefix: flow.destination.to_string(),
            local: true,
            ..v1::Route::default()
        }));
        let length = |route: &v1::Route| {
            let network: ipnetwork::IpNetwork = route.prefix.parse().unwrap();
            network.prefix()
        };
        // Of equals, `max_by_key` takes the last: custom routes come after the implied ones.
        let longest = implied
            .chain(custom)
            .filter(|route| prefix_holds(&route.prefix, flow.destination))
            .max_by_key(length);
        let policy = world.policy_target(port, (packet, flow, standing));
        let place = (port.host.as_str(), port.vpc.as_str());
        let Some(route) = policy.or(longest) else {
            // Without a route the way out is that of the sender's elastic IP.
            let elastic = world.elastic(&port.vpc, flow.source);
            let network = &elastic.ok_or(DropReason::NoRoute)?.network;
            return leave::leave(world, place, subnet, flow, (network, None));
        };
        let through = |target: &'a v1::Port| {
            let macs = (mac(&target.mac), gateway_mac(world.subnet(&target.subnet)));
            Way::new(to_port(port, target), Some(macs))
        };
        if route.blackhole {
            return Err(DropReason::Blackhole);
        }
        if !route.nat.is_empty() || !route.external.is_empty() {
            let leads = leave::leads(world, &route).ok_or(DropReason::NextHopGone)?;
            return leave::leave(world, place, subnet, flow, leads);
        }
        if !route.peering.is_empty() {
            let mut peerings = world.0.peerings.iter();
            let peering = peerings.find(|peering| peering.id == route.peering && peering.passes());
            let other = peering.and_then(|peering| peering.other(&port.vpc));
            let other = other.ok_or(DropReason::PeeringInactive)?;
            // No transit.
            if world.port_by_address(&port.vpc, flow.source).is_none() {
                return Err(DropReason::PeeringTransit);
            }
            let target = world.port_by_address(other, flow.destination);
            return Ok(Way {
                joined: Some(other),
                ..through(target.ok_or(DropReason::NoPort)?)
            });
        }
        if route.local {
            let target = world.port_by_address(&port.vpc, flow.destination);
            return target.map(through).ok_or(DropReason::NoPort);
        }
        let mut hops = route.ecmp.clone();
        if hops.is_empty() {
            hops.push(v1::NextHop {
                port: route.port.clone(),
                host: route.host.clone(),
                next_hop_mac: route.next_hop_mac.clone(),
                ..v1::NextHop::default()
            });
        }
        // An appliance that does not live is passed over where there are others. A host is no next hop to itself.
        let lives = |hop: &v1::NextHop| {
            let mut found = world.0.port_health.iter();
            route.ecmp.is_empty() || !found.any(|it| it.id == hop.port && !it.up)
        };
        let is_there = |hop: &v1::NextHop| {
            world.port(&hop.port).is_some()
                || (hop.host != port.host && world.0.hosts.iter().any(|h| h.id == hop.host))
        };
        let hops = hops.into_iter().filter(is_there).filter(lives);
        let hops: Vec<Hop> = hops.map(Hop).collect();
        if hops.is_empty() {
            return Err(DropReason::NextHopGone);
        }
        let Hop(hop) = self.choose(about, &hops);
        if let Some(target) = world.port(&hop.port) {
            return Ok(through(target));
        }
        let host = world.0.hosts.iter().find(|host| host.id == hop.host);
        let next_mac = if hop.next_hop_mac.is_empty() {
            ROUTER
        } else {
            mac(&hop.next_hop_mac)
        };
        let to = To::Host(&host.ok_or(DropReason::NextHopGone)?.id);
        Ok(Way::new(to, Some((next_mac, gateway_mac(subnet)))))
    }

    /// One of the members: for the same flow the same, whichever host asks and in whichever direction; a change of members moves a flow only if its own is
    /// gone, and only to one that is new otherwise (b029).
    fn choose(&mut self, flow: &Flow, among: &[Hop]) -> Hop {
        let may_be = |hop: &&Hop| {
            let (there, back) = (*flow, flow.reversed());
            let mut seen = self
                .choices
                .iter()
                .filter(|choice| choice.flow == there || choice.flow == back);
            seen.all(|choice| {
                let stays = choice.taken == **hop;
                let gone = !among.contains(&choice.taken);
                let new = !choice.among.contains(*hop);
                stays || gone || new
            })
        };
        let allowed: Vec<&Hop> = among.iter().filter(may_be).collect();
        let count = allowed.len().max(1);
        let guess = self.guess / self.guesses % count;
        self.guesses *= count;
        let taken = allowed.get(guess).copied().unwrap_or(&among[0]).clone();
        let choice = Choice {
            flow: *flow,
            among: among.to_vec(),
            taken: taken.clone(),
        };
        self.choices.push(choice);
        taken
    }

    /// Through the router if need be, and out: to the port, or over the tunnel into the next host.
    fn forward(
        &mut self,
        world: &World,
        place: (&str, &str),
        ingress: Ingress<'_>,
        mut packet: Packet,
        way: &Way<'_>,
        outcome: &mut Outcome,
    ) -> Result<(), DropReason> {
        let (host, vpc) = place;
        let leaves = matches!(way.to, To::Outside(_) | To::ThisHost);
        if way.rewrite.is_some() && packet.ttl <= 1 {
            let problem = Problem::TimeExceeded;
            return self.report(world, place, (ingress, leaves), &packet, problem, outcome);
        }
        let tunnel = match way.to {
            To::Port(_) | To::Outside(_) | To::ThisHost => None,
            To::Host(to) => {
                let tunnel = world.tunnel(host, to);
                Some((to, tunnel.ok_or(DropReason::UnderlayUnresolved)?))
            }
        };
        let longest = match packet.segment {
            Some(offload) => segment::longest(&packet, offload),
            None => packet.ip_len(),
        };
        let mtu = match (&tunnel, way.to) {
            (Some((_, tunnel)), _) => Some(tunnel.mtu),
            (None, To::Port(port)) => world.device_mtu(&port.id),
            (None, To::Outside(network)) => Some(outside::mtu(network)),
            (None, To::Host(_) | To::ThisHost) => None,
        };
        let too_big = mtu.filter(|mtu| longest > *mtu);
        // Pieces of a segment are not cut once more.
        let stays_whole = packet.dont_fragment || packet.segment.is_some();
        if let Some(mtu) = too_big {
            if !has_router(world, vpc, ingress, &packet, way) {
                return Err(DropReason::TooBig);
            }
            if stays_whole {
                let problem = Problem::TooBig(mtu);
                if let (To::Port(target), Ingress::Tunnel(from, _)) = (way.to, ingress) {
                    let ends = (from, target);
                    return self.report_to_host(world, place, ends, &packet, problem, outcome);
                }
                return self.report(world, place, (ingress, leaves), &packet, problem, outcome);
            }
        }
        if let Some((dst, src)) = way.rewrite {
            packet.set_macs(dst, src);
            packet.set_ttl(packet.ttl - 1);
        }
        if let Ingress::Tunnel(_, class) = ingress {
            packet.carry_congestion(class)?;
        }
        if let Some((flow, quoted)) = way.becomes {
            packet.translate(&flow, quoted.as_ref());
            self.translated += 1;
        }
        if too_big.is_none() && packet.tcp.is_some_and(|segment| segment.has(SYN)) {
            clamp(world, host, ingress, way, &mut packet);
        }
        // What has options is not fragmented.
        if too_big.is_some() && packet.l4 != frame::IP + 20 {
            return Err(DropReason::TooBig);
        }
        if let To::ThisHost = way.to {
            for piece in packet.split() {
                if let Err(reason) = self.come_back(world, host, &piece.bytes, outcome) {
                    outcome.dropped.push((host.to_owned(), reason));
                }
            }
            return Ok(());
        }
        if let To::Outside(network) = way.to {
            let frames = match too_big {
                None => packet
                    .split()
                    .into_iter()
                    .map(|piece| piece.bytes)
                    .collect(),
                Some(mtu) => packet.pieces(mtu),
            };
            for frame in frames {
                self.leave_segment(world, (host, network), frame, outcome);
            }
            return Ok(());
        }
        let Some((to, tunnel)) = tunnel else {
            if let (To::Port(port), Some(mtu)) = (way.to, too_big) {
                let pieces = packet.pieces(mtu).into_iter();
                let delivered = pieces.map(|piece| (port.id.clone(), piece));
                outcome.delivered.extend(delivered);
            } else if let To::Port(port) = way.to {
                if let Some(Offload { segments, size }) = packet.segment {
                    outcome.whole.push((port.id.clone(), segments as u8, size));
                }
                outcome.delivered.push((port.id.clone(), packet.bytes));
            }
            return Ok(());
        };
        let frames = match too_big {
            None => packet
                .split()
                .into_iter()
                .map(|piece| piece.bytes)
                .collect(),
            Some(mtu) => packet.pieces(mtu),
        };
        // What goes from a port into another VPC is in that one from here on.
        let into = match ingress {
            Ingress::Port(_) => way.joined.unwrap_or(vpc),
            Ingress::Tunnel(..) | Ingress::Outside(..) => vpc,
        };
        self.cross(
            world,
            (host, to, into),
            tunnel,
            packet.class,
            &frames,
            outcome,
        );
        Ok(())
    }

    /// An error about a packet that the device of its receiver does not take goes back through the tunnel, if its sender lives there.
    fn report_to_host(
        &mut self,
        world: &World,
        (host, vpc): (&str, &str),
        (from, target): (&str, &v1::Port),
        packet: &Packet,
        problem: Problem,
        outcome: &mut Outcome,
    ) -> Result<(), DropReason> {
        let joined = world.joined(vpc, packet.flow.source, Some(target));
        let sender = joined.map(|(_, port)| port);
        let sender = sender.or_else(|| world.port_by_address(vpc, packet.flow.source));
        let sender = sender.filter(|sender| sender.host == from);
        let error = gateway::error(world, target, packet, problem);
        let reason = problem.reason();
        let (Some(sender), Some(mut error)) = (sender, error) else {
            return Err(reason);
        };
        error[..6].copy_from_slice(&mac(&sender.mac));
        outcome.dropped.push((host.to_owned(), reason));
        let tunnel = world
            .tunnel(host, from)
            .ok_or(DropReason::UnderlayUnresolved)?;
        self.cross(
            world,
            (host, from, &sender.vpc),
            tunnel,
            packet.class,
            &[error],
            outcome,
        );
        Ok(())
    }

    /// Frames cross from host to host.
    fn cross(
        &mut self,
        world: &World,
        (from, to, vpc): (&str, &str, &str),
        tunnel: Tunnel,
        class: u8,
        frames: &[Vec<u8>],
        outcome: &mut Outcome,
    ) {
        for inner in frames {
            outcome.crossed.push(Crossing {
                from: from.to_owned(),
                to: to.to_owned(),
                gre: tunnel.gre,
                v6: tunnel.v6,
                vni: world.vni(vpc),
                class,
                inner: inner.clone(),
            });
        }
        if world.is_foreign(to) {
            return;
        }
        for inner in frames {
            let result = self.enter_from_tunnel(world, (from, to, vpc), class, inner, outcome);
            if let Err(reason) = result {
                outcome.dropped.push((to.to_owned(), reason));
            }
        }
    }

    /// Broadcast and multicast: a copy to each port of the subnet that may have it, one to each host that has such ports, none back (b030).
    fn flood(
        &mut self,
        world: &World,
        (host, vpc): (&str, &str),
        ingress: Ingress<'_>,
        packet: &Packet,
        outcome: &mut Outcome,
    ) -> Result<(), DropReason> {
        // Neighbour discovery is no matter of policy.
        let discovers = !packet.is_v4()
            && matches!(packet.icmp, Some((kind, _)) if (133..=137).contains(&kind));
        let passes = |port: &v1::Port, towards| {
            discovers || policy(world, port, packet, Standing::Forward, towards).is_ok()
        };
        let sender = match ingress {
            Ingress::Port(port) => Some(port).filter(|port| passes(port, false)),
            // A virtual router speaks with a MAC of its own.
            Ingress::Tunnel(from, _) => world
                .port_by_mac(vpc, packet.src)
                .or_else(|| {
                    let may_pass_on = may_pass_on(world, (from, vpc), packet);
                    let sender = world.port_by_address(vpc, packet.flow.source);
                    sender.filter(|_| may_pass_on)
                })
                .filter(|port| port.host == from),
            Ingress::Outside(..) => None,
        };
        let Some(sender) = sender else {
            let nobody = (host.to_owned(), DropReason::NoReceiver);
            outcome.dropped.extend(vec![nobody; packet.split().len()]);
            return Ok(());
        };
        let for_all = multicast::is_for_all(world, sender, packet.flow.destination);
        let is_routed = |port: &v1::Port| match for_all {
            true => (port.subnet == sender.subnet && port.id != sender.id).then_some(false),
            false => multicast::way(world, &self.joined, (sender, port), packet),
        };
        let others: Vec<(&v1::Port, bool)> = world
            .0
            .ports
            .iter()
            .filter_map(|port| Some((port, is_routed(port)?)))
            .collect();
        let mut copies = 0;
        for (port, is_routed) in others.iter().filter(|(port, _)| port.host == host) {
            if !passes(port, true) {
                continue;
            }
            copies += 1;
            for mut packet in packet.split() {
                if let Ingress::Tunnel(_, class) = ingress {
                    packet.carry_congestion(class)?;
                }
                if *is_routed {
                    packet.set_macs(packet.dst, gateway_mac(world.subnet(&port.subnet)));
                    packet.set_ttl(packet.ttl - 1);
                }
                let mtu = world.device_mtu(&port.id);
                if mtu.is_some_and(|mtu| packet.ip_len() > mtu) {
                    outcome.dropped.push((host.to_owned(), DropReason::TooBig));
                } else {
                    outcome.delivered.push((port.id.clone(), packet.bytes));
                }
            }
        }
        let remote = others.iter().map(|(port, _)| port.host.as_str());
        let mut remote: Vec<&str> = remote.collect();
        if self.learns && for_all {
            let all = world.0.ports.iter().filter(|port| port.vpc == vpc);
            remote.extend(all.map(|port| port.host.as_str()));
        }
        remote.sort_unstable();
        remote.dedup();
        remote.retain(|other| *other != host && matches!(ingress, Ingress::Port(_)));
        for to in remote {
            let Some(tunnel) = world.tunnel(host, to) else {
                continue;
            };
            copies += 1;
            for packet in packet.split() {
                if packet.ip_len() > tunnel.mtu {
                    outcome.dropped.push((host.to_owned(), DropReason::TooBig));
                } else {
                    let (way, class) = ((host, to, vpc), packet.class);
                    self.cross(world, way, tunnel, class, &[packet.bytes], outcome);
                }
            }
        }
        if copies == 0 {
            // Each piece for itself finds nobody.
            let others = packet.split().len() - 1;
            let nobody = (host.to_owned(), DropReason::NoReceiver);
            outcome.dropped.extend(vec![nobody; others]);
            return Err(DropReason::NoReceiver);
        }
        Ok(())
    }
}

/// A tunnel packet to this host, from a host that is known, in a VPC.
fn check_outer<'a>(
    world: &'a World,
    host: &str,
    frame: &[u8],
) -> Result<(outer::Outer, &'a str, &'a str), DropReason> {
    let outer = outer::decode(frame)?;
    if world.host_by_vtep(outer.destination) != Some(host) {
        return Err(DropReason::NotOurVtep);
    }
    let from = world
        .host_by_vtep(outer.source)
        .filter(|from| *from != host);
    let from = from.ok_or(DropReason::UnknownVtep)?;
    let vpc = world.vpc_by_vni(outer.vni).ok_or(DropReason::UnknownVni)?;
    Ok((outer, from, vpc))
}

/// Whether a router stands between the packet's sender and where it goes, which alone cuts it or says that it is too big. A tunnel has one at each end; the
/// device of a port is as a link is.
fn has_router(
    world: &World,
    vpc: &str,
    ingress: Ingress<'_>,
    packet: &Packet,
    way: &Way<'_>,
) -> bool {
    match (way.to, ingress) {
        (To::Host(_) | To::Outside(_) | To::ThisHost, _) | (_, Ingress::Outside(..)) => true,
        (To::Port(_), Ingress::Port(_)) => way.rewrite.is_some(),
        (To::Port(target), Ingress::Tunnel(..)) => {
            let sender = world.port_by_address(vpc, packet.flow.source);
            sender.map(|sender| &sender.subnet) != Some(&target.subnet)
        }
    }
}

/// MSS clamping, by either end that asks for it, to what the narrowest part of the way takes that this host knows of.
fn clamp(world: &World, host: &str, ingress: Ingress<'_>, way: &Way<'_>, packet: &mut Packet) {
    let through = |to: &str| world.tunnel(host, to).map(|tunnel| tunnel.mtu);
    let (sender, from) = match ingress {
        Ingress::Port(port) => (port.clamp_mss, world.device_mtu(&port.id)),
        Ingress::Tunnel(from, _) => (false, through(from)),
        Ingress::Outside(network, _) => (false, world.network(network).map(outside::mtu)),
    };
    let (receiver, to) = match way.to {
        To::Port(port) => (port.clamp_mss, world.device_mtu(&port.id)),
        To::Host(to) => (false, through(to)),
        To::Outside(network) => (false, Some(outside::mtu(network))),
        To::ThisHost => (false, None),
    };
    let narrowest = from.into_iter().chain(to).min();
    if let Some(mtu) = narrowest.filter(|_| sender || receiver) {
        packet.clamp_mss(mtu);
    }
}

/// The session of a flow, and how the flow stands to it.
fn find(sessions: &[Session], vni: u32, flow: &Flow) -> Option<(usize, Place)> {
    let mut all = sessions.iter().enumerate();
    all.find_map(|(i, session)| Some((i, session.place(vni, flow)?)))
}

/// The VNI that a packet is known by as it comes.
fn vni_of(world: &World, vpc: &str, ingress: Ingress<'_>) -> u32 {
    match ingress {
        Ingress::Outside(_, vni) => vni,
        Ingress::Port(_) | Ingress::Tunnel(..) => world.vni(vpc),
    }
}

fn to_port<'a>(sender: &v1::Port, target: &'a v1::Port) -> To<'a> {
    if target.host == sender.host {
        To::Port(target)
    } else {
        To::Host(&target.host)
    }
}

fn is_router(world: &World, vpc: &str, address: Mac) -> bool {
    let mut gateways = world.subnets_of(vpc).map(gateway_mac);
    address == ROUTER || gateways.any(|gateway| gateway == address)
}

/// What comes for a port that has just left this host goes on to where the port is now; not what comes from there, nor what claims to come from
/// a port of this host or of somebody other than its sender.
fn way_after_move<'a>(
    world: &'a World,
    (host, vpc): (&str, &str),
    from: &str,
    packet: &Packet,
) -> Option<Way<'a>> {
    let through_router = is_router(world, vpc, packet.dst);
    let port = match through_router {
        true => world.port_by_address(vpc, packet.flow.destination),
        false => world.port_by_mac(vpc, packet.dst),
    };
    let port = port.filter(|port| port.moved_from == host && port.host != from)?;
    let by_mac = world.port_by_mac(vpc, packet.src);
    let source = world.destination(vpc, packet.flow.source);
    let by_address = world.port_by_address(vpc, source);
    let honest = by_mac.is_none_or(|sender| sender.host == from)
        && by_address.is_none_or(|sender| sender.host != host);
    honest.then(|| {
        let macs = (mac(&port.mac), gateway_mac(world.subnet(&port.subnet)));
        Way::new(To::Host(&port.host), through_router.then_some(macs))
    })
}

/// To a port of this host.
fn way_from_tunnel<'a>(
    world: &'a World,
    (host, vpc): (&str, &str),
    from: &str,
    (packet, flow, standing): (&Packet, &Flow, Standing),
    public: Option<(&str, std::net::IpAddr)>,
) -> Result<Way<'a>, DropReason> {
    // What claims to come from a port of this host, or carries the MAC of one that is not behind its sender, is a lie (b009); but between the two
    // hosts of a port that has moved others' packets for it pass.
    let source = world.destination(vpc, packet.flow.source);
    let by_address = world.port_by_address(vpc, source);
    let by_mac = world.port_by_mac(vpc, packet.src);
    let target = world.port_by_mac(vpc, packet.dst);
    let between = target.is_some_and(|port| {
        let ends = [port.host.as_str(), port.moved_from.as_str()];
        ends == [host, from] || ends == [from, host]
    });
    let is_elsewhere = |port: &v1::Port| port.host == host || (port.host != from && !between);
    if (by_address.is_some_and(|port| port.host == host) || by_mac.is_some_and(is_elsewhere))
        && !may_pass_on(world, (from, vpc), packet)
    {
        return Err(DropReason::SpoofedInner);
    }
    let joined = world.joined(vpc, packet.flow.source, target);
    if let Some((peering, sender)) = joined {
        if sender.host != from && !between {
            return Err(DropReason::SpoofedInner);
        }
        if !peering.passes() {
            return Err(DropReason::PeeringInactive);
        }
    }
    let joined = joined.map(|(_, sender)| sender.vpc.as_str());
    if let Some(port) = world.port_by_mac(vpc, packet.dst) {
        if port.host != host {
            return Err(DropReason::NotHere);
        }
        return Ok(Way {
            joined,
            ..Way::new(To::Port(port), None)
        });
    }
    // Routers elsewhere send to the virtual router's MAC.
    if !is_router(world, vpc, packet.dst) {
        return Err(DropReason::NotHere);
    }
    if stays_on_link(flow.source) || stays_on_link(flow.destination) {
        return Err(DropReason::Martian);
    }
    match world.port_by_address(vpc, flow.destination) {
        None if let Some(public) = public => {
            let sender = world.port_by_address(vpc, flow.source);
            let sender = sender.filter(|sender| sender.host == from);
            let subnet = world.subnet(&sender.ok_or(DropReason::NoPort)?.subnet);
            leave::leave_balanced(world, host, subnet, flow, public)
        }
        None => leave::pass_on(world, (host, vpc), from, (packet, flow, standing)),
        // Only what this host has translated goes back into a tunnel.
        Some(port) if port.host != host && *flow == packet.flow => Err(DropReason::HairpinTunnel),
        Some(port) => {
            let to = match port.host == host {
                true => To::Port(port),
                false => To::Host(&port.host),
            };
            let macs = (mac(&port.mac), gateway_mac(world.subnet(&port.subnet)));
            Ok(Way {
                joined,
                ..Way::new(to, Some(macs))
            })
        }
    }
}

/// Whether a packet comes from or goes to a port here that sends with any address, so that connections may be answered past it.
fn is_one_sided(ingress: Ingress<'_>, way: &Way<'_>) -> bool {
    let any = |port: &v1::Port| {
        let mut pairs = port.allowed_pairs.iter();
        port.unguarded || pairs.any(|pair| pair.cidr.ends_with("/0"))
    };
    matches!(ingress, Ingress::Port(port) if any(port))
        || matches!(way.to, To::Port(port) if any(port))
}

/// A port's ACL, held against the packet, and its groups, held against the flow as its opener sent it.
fn policy(
    world: &World,
    port: &v1::Port,
    packet: &Packet,
    standing: Standing,
    towards: bool,
) -> Result<(), DropReason> {
    let flow = &packet.flow;
    let (direction, remote) = if towards {
        ("ingress", flow.source)
    } else {
        ("egress", flow.destination)
    };
    let acl = world.acl(world.subnet(&port.subnet));
    if !acl_allows(acl, direction, &Question::about(flow, packet.icmp, remote)) {
        return Err(DropReason::AclDenied);
    }
    let (flow, icmp, towards) = match standing {
        Standing::Related => return Ok(()),
        Standing::Forward => (*flow, packet.icmp, towards),
        Standing::Backward => {
            let flow = flow.reversed();
            let icmp = match flow.detail {
                frame::Detail::Query { kind, .. } => Some((kind, 0)),
                _ => None,
            };
            (flow, icmp, !towards)
        }
    };
    let (direction, remote) = if towards {
        ("ingress", flow.source)
    } else {
        ("egress", flow.destination)
    };
    if !groups_allow(
        world,
        port,
        direction,
        &Question::about(&flow, icmp, remote),
    ) {
        return Err(DropReason::GroupDenied);
    }
    Ok(())
}

/// Whether a host has a port that may pass on what is not its own; its router leaves its own MAC.
fn may_pass_on(world: &World, (host, vpc): (&str, &str), packet: &Packet) -> bool {
    let routed = is_router(world, vpc, packet.src);
    let ports = world.0.ports.iter();
    let mut ports = ports.filter(|port| port.vpc == vpc && port.host == host);
    ports.any(|port| {
        let mut pairs = port.allowed_pairs.iter();
        port.unguarded
            || pairs.any(|pair| {
                prefix_holds(&pair.cidr, packet.flow.source)
                    && (routed || gateway::pair_mac(port, pair) == packet.src)
            })
    })
}

/// Whether a port is the member that a session goes to.
fn is_of_member(session: &Session, port: &v1::Port) -> bool {
    match session.member {
        Some(member) => crate::traffic::addresses(port).any(|address| address == member),
        None => session.charged.as_ref() == Some(&port.id),
    }
}
