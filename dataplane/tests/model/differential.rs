//! Model and pipelines side by side: the same configuration, the same frames, the same time; every byte that comes out and every reason
//! must be alike.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Write;
use std::net::IpAddr;

use ipnetwork::IpNetwork;
use weft_dataplane::packet::parse::{address_word, word_address};
use weft_dataplane::packet::{DropReason, Mac, Offload, Segments};
use weft_dataplane::pipeline::Settings;
use weft_dataplane::route::Prefix;
use weft_dataplane::session::Limits;
use weft_dataplane::snapshot::StaticTranslation;
use weft_dataplane::snapshot::compile::ExternalLink;
use weft_fabric::{Delivered, Fabric, MemoryHost};
use weft_proto::state::State;
use weft_proto::v1::{Objects, Port};

use crate::case::{Case, Event, Translation, hex};
use crate::counts::Counts;
use crate::semantics::frame::{
    Decoded, Flow, IP, decode, is_group_mac, ones_sum, v4_at, v6_at, word,
};
use crate::semantics::outside::interface;
use crate::semantics::{Crossing, Member, Model, Outcome, Seen};
use crate::traced::Traced;
use crate::trunk;

/// Wide enough that nothing gives way: limits are tested elsewhere.
/// Ports of a host.
const PORTS: u16 = 64;
const LIMITS: Limits = Limits {
    capacity: 4096,
    per_port: 4096,
    per_vpc: 4096,
    ports: 64,
    vpcs: 64,
};
const UNLIMITED: u32 = 1_000_000;

/// Model and pipelines do not agree.
#[derive(Debug, Clone)]
pub struct Disagreement {
    /// In what way: a smaller case that fails in another way is another failure.
    pub kind: String,
    /// For people.
    pub text: String,
}

/// What became of a frame.
#[derive(Debug, Default)]
pub struct Outcomes {
    /// Ports, and the frames that they got.
    pub delivered: Vec<(String, Vec<u8>)>,
    /// How many frames went to metadata services.
    pub asked: u64,
    pub dropped: Vec<DropReason>,
    /// Frames that crossed, and the hosts that they went to.
    pub wire: Vec<(String, Vec<u8>)>,
    /// Hosts, and the frames that they sent onto their external networks.
    pub left: Vec<(String, Vec<u8>)>,
}

impl Outcomes {
    /// In the order in which it came.
    fn add(&mut self, objects: &Objects, delivered: Vec<Delivered>, found: Outcome) {
        let frames = delivered.into_iter();
        let frames = frames.map(|out| trunk::off_device(objects, out.port, out.frame));
        self.delivered.extend(frames);
        self.asked += found.asked.len() as u64;
        let reasons = found.dropped.into_iter().map(|(_, reason)| reason);
        self.dropped.extend(reasons);
        self.left.extend(found.left);
    }
}

pub struct Differential {
    objects: Objects,
    fabric: Fabric,
    pub model: Model,
    device_mtus: BTreeMap<String, u16>,
    /// Drops so far by host and reason, in the order of both.
    drops: Vec<u64>,
    /// Outer source ports by host and flow (b008: constant within a flow).
    entropy: HashMap<(String, u32, Flow), u16>,
    /// What crossed last.
    wire: Vec<(String, Vec<u8>)>,
    /// Mappings of NAT gateways by host, when they were looked at last.
    mappings: BTreeMap<String, u32>,
    /// What was counted of members of load balancers.
    counts: Counts,
    /// Frames compared so far.
    pub frames: u64,
}

fn state(objects: &Objects) -> Result<State, Disagreement> {
    State::from_objects(objects.clone()).map_err(refused)
}

fn translation(translation: &Translation) -> StaticTranslation {
    let prefix = |text: &String| {
        let network: IpNetwork = text.parse().unwrap();
        let bits = if network.is_ipv4() { 96 } else { 0 };
        Prefix::new(address_word(network.network()), bits + network.prefix())
    };
    StaticTranslation {
        vpc: translation.vpc.clone(),
        inside: address_word(translation.inside),
        outside: address_word(translation.outside),
        towards: translation.towards.iter().map(prefix).collect(),
    }
}

/// Which of a host's interfaces a frame comes in at.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Wire {
    Underlay,
    Segment,
}

/// The interfaces of hosts on physical networks.
fn links(objects: &Objects) -> BTreeMap<String, Vec<ExternalLink>> {
    let hosts = objects.hosts.iter().map(|host| {
        let networks = host.physical_networks.iter();
        let links = networks.map(|network| ExternalLink {
            physical_network: network.clone(),
            uplink: 1,
            mac: Mac::from_bytes(interface(&host.id)),
            mtu: 1500,
            has_tunnels: false,
        });
        (host.id.clone(), links.collect())
    });
    hosts.collect()
}

/// Whether a frame is ARP or neighbour discovery.
fn finds_neighbors(frame: &[u8]) -> bool {
    let at = if word(frame, 12) == 0x8100 { 16 } else { 12 };
    let icmp = &frame[at + 2..];
    match word(frame, at) {
        0x0806 => true,
        0x86dd => icmp[6] == 58 && (133..=137).contains(&icmp[40]),
        _ => false,
    }
}

fn refused(error: impl std::fmt::Debug) -> Disagreement {
    Disagreement {
        kind: format!("refused: {error:?}"),
        text: format!("the configuration is refused: {error:?}"),
    }
}

impl Differential {
    /// Plays a case from beginning to end.
    pub fn play(case: &Case) -> Result<(), Disagreement> {
        let mut differential = Self::new(case)?;
        for event in &case.events {
            differential.take(event)?;
        }
        differential.finish()
    }

    pub fn new(case: &Case) -> Result<Self, Disagreement> {
        let (objects, metadata) = (&case.objects, case.metadata);
        let settings = Settings {
            ports: PORTS.into(),
            errors_per_second: UNLIMITED,
            replies_per_second: UNLIMITED,
            broadcasts_per_second: UNLIMITED,
            metadata_per_second: UNLIMITED,
            dns_per_second: UNLIMITED,
            reports_per_second: UNLIMITED,
            flows_per_second: UNLIMITED,
            vpc_flows_per_second: UNLIMITED,
            ..Settings::default()
        };
        let mut fabric = Fabric::new(state(objects)?, &settings, LIMITS).map_err(refused)?;
        fabric.metadata = metadata;
        fabric.learns = case.learns;
        fabric.externals = links(objects);
        fabric.translations = case.translations.iter().map(translation).collect();
        fabric.set(state(objects)?).map_err(refused)?;
        fabric.add_worker();
        let mut differential = Self {
            objects: objects.clone(),
            model: Model::new(case, fabric.now),
            device_mtus: case.device_mtus.clone(),
            fabric,
            drops: Vec::new(),
            entropy: HashMap::new(),
            wire: Vec::new(),
            mappings: BTreeMap::new(),
            counts: Counts::default(),
            frames: 0,
        };
        differential.know_devices();
        differential.know_neighbors();
        differential.drops = differential.count_drops();
        Ok(differential)
    }

    /// Hosts know everybody on their segment, as if all had answered just now.
    fn know_neighbors(&mut self) {
        self.mappings.clear();
        let now = self.fabric.now;
        for (id, host) in &self.fabric.hosts {
            let networks = &host.pipeline.snapshot().outside.networks;
            for (network, index) in networks.iter().zip(0u16..) {
                let network = network.as_ref().filter(|network| network.link.is_some());
                let Some(network) = network else { continue };
                let mut objects = self.objects.external_networks.iter();
                let prefixes = objects.find(|other| other.id == network.id);
                let prefixes = prefixes.into_iter().flat_map(|network| &network.prefixes);
                let addresses = prefixes.flat_map(|prefix| {
                    let prefix: IpNetwork = prefix.parse().unwrap();
                    prefix.iter()
                });
                for address in addresses {
                    let Some(mac) = self.model.station(id, address) else {
                        continue;
                    };
                    let neighbors = &host.shared.neighbors;
                    neighbors.ask(index, address_word(address), now);
                    let mac = Mac::from_bytes(mac);
                    neighbors.learn(index, address_word(address), mac, true, now);
                }
            }
        }
    }

    /// The model learns which ports NAT gateways have chosen.
    fn show_mappings(&mut self) {
        if self.objects.nat_gateways.is_empty() {
            return;
        }
        let count = |(id, host): (&String, &MemoryHost)| {
            (id.clone(), host.shared.sessions.mappings().count())
        };
        let counts = self.fabric.hosts.iter().map(count).collect();
        if counts == self.mappings {
            return;
        }
        self.mappings = counts;
        let mut seen = Vec::new();
        for (id, host) in &self.fabric.hosts {
            let outside = &host.pipeline.snapshot().outside;
            for (mapping, _) in host.shared.sessions.mappings().list(usize::MAX) {
                let (inside, address) = (mapping.inside, mapping.outside.address);
                if let Some(gateway) = outside.nat_gateway(inside.gateway) {
                    seen.push(Seen {
                        host: id.clone(),
                        gateway: gateway.id.clone(),
                        protocol: inside.protocol,
                        inside: (word_address(inside.address), inside.port),
                        outside: (word_address(address), mapping.outside.port),
                    });
                }
            }
        }
        self.model.seen = seen.into();
    }

    /// Shows the model which members sessions have, if a frame may be for a load balancer: of several that would do the same with it, that one counts.
    fn show_members(&mut self, frames: &[Vec<u8>]) {
        let vips = self.objects.load_balancers.iter();
        let public = self.objects.elastic_ips.iter();
        let public = public.filter(|it| !it.load_balancer.is_empty());
        let vips = vips.flat_map(|it| &it.addresses);
        let vips = vips.chain(public.map(|it| &it.address));
        let vips: Vec<IpAddr> = vips.filter_map(|text| text.parse().ok()).collect();
        let is_for_one = |frame: &Vec<u8>| match decode(&trunk::untagged(frame)) {
            Ok(Decoded::Ip(packet)) => vips.contains(&packet.flow.destination),
            _ => false,
        };
        if vips.is_empty() || !frames.iter().any(is_for_one) {
            return;
        }
        let mut members = Vec::new();
        for (id, host) in &self.fabric.hosts {
            host.shared.sessions.each(self.fabric.now, |session| {
                let taken = match (session.translated, session.chosen) {
                    (Some((_, after)), _) => (after.destination, after.destination_port),
                    (None, Some(member)) => (member, session.flow.destination_port),
                    (None, None) => return,
                };
                let before = word_address(session.flow.destination);
                if vips.contains(&before) {
                    members.push(Member {
                        host: id.clone(),
                        client: (word_address(session.flow.source), session.flow.source_port),
                        at: (before, session.flow.destination_port),
                        protocol: session.flow.protocol,
                        taken: (word_address(taken.0), taken.1),
                    });
                }
            });
        }
        self.model.members = members.into();
    }

    /// What a NAT gateway or a load balancer chose against the rules, `frames` of them at a time.
    fn check_choices(&mut self, frames: usize) -> Result<(), Disagreement> {
        let complaint = match &self.model.complaint {
            None if self.is_counting() => {
                let counts = self.counts.check(&self.fabric, self.model.world(), frames);
                counts.err()
            }
            complaint => complaint.clone(),
        };
        complaint.map_or(Ok(()), |text| {
            Err(Disagreement {
                kind: "choice".to_owned(),
                text,
            })
        })
    }

    fn is_counting(&self) -> bool {
        let listeners = self
            .objects
            .load_balancers
            .iter()
            .flat_map(|it| &it.listeners);
        self.counts.is_any() || { listeners }.any(|it| it.algorithm == "least-connections")
    }

    /// Ports get the devices that they have, wherever they are now.
    fn know_devices(&mut self) {
        for host in self.fabric.hosts.values() {
            for port in 0..PORTS {
                host.shared.device_mtus.set(port, None);
            }
        }
        for (port, mtu) in &self.device_mtus {
            self.fabric.set_device_mtu(port, Some(*mtu));
        }
    }

    pub fn take(&mut self, event: &Event) -> Result<Outcomes, Disagreement> {
        if matches!(
            event,
            Event::Configure(_) | Event::Translate(_) | Event::Wait(_)
        ) {
            // Sessions may end, and what looked like one flow behind a translation be another.
            self.entropy.clear();
        }
        match event {
            Event::Send {
                port,
                worker,
                frames,
            } => {
                self.fabric.worker = usize::from(*worker);
                return self.send(port, frames, None);
            }
            Event::Segment {
                port,
                worker,
                kind,
                size,
                frames,
            } => {
                self.fabric.worker = usize::from(*worker);
                let segments = match kind {
                    1 => Segments::Tcp4,
                    2 => Segments::Tcp6,
                    3 => Segments::Udp,
                    _ => Segments::None,
                };
                // Of what is not to be split there are no pieces.
                let size = if segments == Segments::None { 0 } else { *size };
                return self.send(port, frames, Some(Offload { segments, size }));
            }
            Event::Receive {
                host,
                worker,
                frames,
            } => {
                self.fabric.worker = usize::from(*worker);
                return self.receive(host, frames, Wire::Underlay);
            }
            Event::Arrive {
                host,
                worker,
                frames,
            } => {
                self.fabric.worker = usize::from(*worker);
                return self.receive(host, frames, Wire::Segment);
            }
            Event::Configure(objects) => {
                self.objects = (**objects).clone();
                self.fabric.externals = links(objects);
                self.fabric.set(state(objects)?).map_err(refused)?;
                self.model.set((**objects).clone());
                self.know_devices();
                self.know_neighbors();
                // Counters belong to a port's index: they stay when the port goes, but then nobody reads them.
                self.drops = self.count_drops();
            }
            Event::Translate(translations) => {
                self.fabric.translations = translations.iter().map(translation).collect();
                self.fabric.set(state(&self.objects)?).map_err(refused)?;
                self.model.translate(translations.clone());
                self.know_neighbors();
                self.drops = self.count_drops();
            }
            Event::Wait(milliseconds) => {
                self.fabric.advance(*milliseconds);
                let expected = self.model.advance(*milliseconds).sorted();
                let found = self.found(&[])?;
                if found != expected {
                    return Err(self.disagreement("time passes", &[], &[expected], &found));
                }
                // What hosts no longer use they give back, and ask for again.
                if self.fabric.learns && *milliseconds >= 100 {
                    let hosts: Vec<String> = self.fabric.hosts.keys().cloned().collect();
                    for host in hosts {
                        self.fabric.forget(&host).map_err(refused)?;
                    }
                }
                // Hosts ask for neighbours, announce their addresses, and probe gateway hosts.
                self.fabric.carry();
                self.fabric.outside.clear();
                self.fabric.crossed.clear();
                self.know_neighbors();
                self.drops = self.count_drops();
            }
        }
        self.check_choices(0)?;
        Ok(Outcomes::default())
    }

    /// After the last frame, no buffer is missing, and every packet is accounted for.
    pub fn finish(&self) -> Result<(), Disagreement> {
        let fail = |kind: &str, text| {
            Err(Disagreement {
                kind: kind.to_owned(),
                text,
            })
        };
        let missing = self.fabric.missing_frames();
        if missing != 0 {
            return fail("leak", format!("{missing} frames leaked"));
        }
        for (id, host) in &self.fabric.hosts {
            let unaccounted = host.unaccounted();
            if unaccounted != 0 {
                return fail(
                    "books",
                    format!("{unaccounted} packets unaccounted for on {id}"),
                );
            }
        }
        Ok(())
    }

    /// What the pipelines made of what they were given.
    fn found(&mut self, delivered: &[Delivered]) -> Result<Outcome, Disagreement> {
        let whole = |out: &&Delivered| out.offload != Offload::default();
        let found = Outcome {
            delivered: delivered
                .iter()
                .map(|out| (out.port.clone(), out.frame.clone()))
                .collect(),
            whole: delivered
                .iter()
                .filter(whole)
                .map(|out| {
                    let Offload { segments, size } = out.offload;
                    (out.port.clone(), segments as u8, size)
                })
                .collect(),
            asked: std::mem::take(&mut self.fabric.asked),
            reports: std::mem::take(&mut self.fabric.reports),
            dropped: self.dropped(),
            crossed: self.crossings()?,
            left: std::mem::take(&mut self.fabric.outside)
                .into_iter()
                .filter(|(_, frame)| !finds_neighbors(frame))
                .collect(),
        };
        Ok(found.sorted())
    }

    /// A host gets frames off the wire, one after the other.
    fn receive(
        &mut self,
        host: &str,
        frames: &[Vec<u8>],
        wire: Wire,
    ) -> Result<Outcomes, Disagreement> {
        let mut outcomes = Outcomes::default();
        for frame in frames {
            // Who asks for a trace does not say at which interface the frame comes in.
            let traced = Traced::from_wire(&self.fabric, host, frame)
                .filter(|traced| wire == Wire::Segment || traced.is_of_tunnel());
            let delivered = match wire {
                Wire::Underlay => self.fabric.send_from_underlay(host, frame),
                Wire::Segment => self.fabric.send_from_uplink(host, 1, frame),
            };
            let found = self.found(&delivered)?;
            self.check_trace(traced, frame, &found)?;
            self.show_mappings();
            self.show_members(std::slice::from_ref(frame));
            let who = format!("the wire into {host}");
            let sent = std::slice::from_ref(frame);
            self.agree((&who, sent), &found, |model, guess| match wire {
                Wire::Underlay => model.receive(host, frame),
                Wire::Segment => model.arrive(host, frame, guess),
            })?;
            self.check_choices(1)?;
            self.frames += 1;
            outcomes.add(&self.objects, delivered, found);
            outcomes.wire.append(&mut self.wire);
        }
        Ok(outcomes)
    }

    /// Sends frames through both, and compares.
    fn send(
        &mut self,
        port: &str,
        frames: &[Vec<u8>],
        offload: Option<Offload>,
    ) -> Result<Outcomes, Disagreement> {
        let (port, frames) = &trunk::on_device(&self.objects, port, frames);
        let segment = frames.first().zip(offload);
        // A packet changes what becomes of those behind it, and a segment that is left to the device is longer than its pieces.
        let traced = match (&frames[..], segment) {
            ([frame], None) => Traced::from_port(&self.fabric, port, frame),
            _ => None,
        };
        let delivered = match segment {
            Some((frame, offload)) => self.fabric.send_segment(port, frame, offload),
            None => self
                .fabric
                .send_vector(port, frames.iter().map(Vec::as_slice)),
        };
        let found = self.found(&delivered)?;
        self.check_trace(traced, frames.first().map_or(&[], |frame| frame), &found)?;
        self.show_mappings();
        self.show_members(frames);
        let who = format!("port {port}");
        self.agree((&who, frames), &found, |model, guess| match segment {
            Some((frame, offload)) => model.send_segment(port, frame, offload, guess),
            None => model.send(port, frames, guess),
        })?;
        self.check_choices(if segment.is_none() { frames.len() } else { 0 })?;
        self.frames += frames.len() as u64;
        let mut outcomes = Outcomes::default();
        outcomes.add(&self.objects, delivered, found);
        outcomes.wire.append(&mut self.wire);
        Ok(outcomes)
    }

    /// The model does the same, with one of the choices that are open to it.
    fn agree(
        &mut self,
        (who, frames): (&str, &[Vec<u8>]),
        found: &Outcome,
        play: impl Fn(&mut Model, usize) -> Outcome,
    ) -> Result<(), Disagreement> {
        let (mut guess, mut guesses) = (0, 1);
        let (mut expected, mut agreed) = (Vec::new(), None::<Model>);
        while guess < guesses {
            let mut model = self.model.clone();
            let outcome = play(&mut model, guess);
            // Where one choice leaves no other, there are fewer of them.
            guesses = guesses.max(model.guesses);
            guess += 1;
            if outcome != *found {
                expected.push(outcome);
            } else if let Some(agreed) = &mut agreed {
                if !agreed.has_chosen_as(&model) {
                    agreed.forget_choices();
                }
            } else {
                agreed = Some(model);
            }
        }
        let Some(agreed) = agreed else {
            return Err(self.disagreement(who, frames, &expected, found));
        };
        self.model = agreed;
        Ok(())
    }

    /// What was traced is what happened.
    fn check_trace(
        &self,
        traced: Option<Traced>,
        frame: &[u8],
        found: &Outcome,
    ) -> Result<(), Disagreement> {
        let wrong = traced.and_then(|traced| traced.contradicts(&self.fabric, found));
        wrong.map_or(Ok(()), |wrong| {
            Err(Disagreement {
                kind: "trace".to_owned(),
                text: format!(
                    "{}\n{wrong}\nthe pipelines say\n{}",
                    short(frame),
                    show(found)
                ),
            })
        })
    }

    fn count_drops(&self) -> Vec<u64> {
        let hosts = self.fabric.hosts.values();
        hosts.flat_map(MemoryHost::drops).collect()
    }

    /// What was dropped since the last look.
    fn dropped(&mut self) -> Vec<(String, DropReason)> {
        let before = std::mem::take(&mut self.drops);
        self.drops = self.count_drops();
        let hosts: Vec<&String> = self.fabric.hosts.keys().collect();
        let mut dropped = Vec::new();
        for (i, (now, before)) in self.drops.iter().zip(&before).enumerate() {
            let (host, reason) = (i / DropReason::COUNT, i % DropReason::COUNT);
            for _ in *before..*now {
                dropped.push((hosts[host].clone(), DropReason::ALL[reason]));
            }
        }
        dropped
    }

    /// What crossed the underlay, out of its outer headers.
    fn crossings(&mut self) -> Result<Vec<Crossing>, Disagreement> {
        let frames = std::mem::take(&mut self.fabric.crossed);
        let mut crossings = Vec::new();
        self.wire.clear();
        for frame in frames {
            let crossing = self.crossing(&frame)?;
            if self.fabric.hosts.contains_key(&crossing.to) {
                self.wire.push((crossing.to.clone(), frame));
            }
            crossings.push(crossing);
        }
        Ok(crossings)
    }

    fn crossing(&mut self, frame: &[u8]) -> Result<Crossing, Disagreement> {
        let fail = |what: &str| Disagreement {
            kind: what.to_owned(),
            text: format!("{what}: outer {}", short(frame)),
        };
        let v6 = word(frame, 12) == 0x86dd;
        let ip = &frame[IP..];
        let (source, destination, protocol, class, l4, length, ttl) = if v6 {
            let class = ip[0] << 4 | ip[1] >> 4;
            let length = 40 + usize::from(word(ip, 4));
            (v6_at(ip, 8), v6_at(ip, 24), ip[6], class, 40, length, ip[7])
        } else {
            if ip[0] != 0x45 || ones_sum(&[&ip[..20]]) != 0xffff || word(ip, 6) != 0x4000 {
                return Err(fail("a wrong IPv4 header"));
            }
            let length = usize::from(word(ip, 2));
            (
                v4_at(ip, 12),
                v4_at(ip, 16),
                ip[9],
                ip[1],
                20,
                length,
                ip[8],
            )
        };
        if length != ip.len() || ttl != 64 {
            return Err(fail("a wrong length or TTL"));
        }
        let tunnel = &ip[l4..];
        let (vni, header, entropy) = match protocol {
            17 => {
                let right = word(tunnel, 2) == 4789
                    && usize::from(word(tunnel, 4)) == tunnel.len()
                    && word(tunnel, 6) == 0
                    && tunnel[8..12] == [8, 0, 0, 0]
                    && tunnel[15] == 0;
                if !right || word(tunnel, 0) < 49152 {
                    return Err(fail("a wrong VXLAN header"));
                }
                let vni = u32::from_be_bytes([0, tunnel[12], tunnel[13], tunnel[14]]);
                (vni, 16, Some(word(tunnel, 0)))
            }
            47 if tunnel[..4] == [0x20, 0, 0x65, 0x58] => {
                let key = [tunnel[4], tunnel[5], tunnel[6], tunnel[7]];
                (u32::from_be_bytes(key), 8, None)
            }
            _ => return Err(fail("neither VXLAN nor GRE")),
        };
        let owner = |address: IpAddr| {
            let text = address.to_string();
            let mut hosts = self.objects.hosts.iter();
            let host = hosts.find(|host| host.vteps.contains(&text));
            host.map(|host| host.id.clone())
                .ok_or_else(|| fail("from or to nobody"))
        };
        let (from, to) = (owner(source)?, owner(destination)?);
        let inner = tunnel[header..].to_vec();
        if let (Some(entropy), Ok(Decoded::Ip(packet))) = (entropy, decode(&inner)) {
            // An advertisement takes that of the question, which may have come by two ways.
            let answers = packet
                .icmp
                .is_some_and(|(kind, _)| !packet.is_v4() && kind == 136);
            // Errors of one flow may be translated or not, by what they quote; what is sent to all is not, though it may look like a flow that is.
            let is_whole = packet.fragment.is_none()
                && !answers
                && !packet.is_icmp_error()
                && !is_group_mac(packet.dst);
            let flow = (from.clone(), vni, packet.flow);
            // What comes from outside is told apart by what it was there.
            let is_whole = is_whole && !self.is_outside(packet.flow.source);
            if is_whole && *self.entropy.entry(flow).or_insert(entropy) != entropy {
                return Err(fail("another source port within the flow"));
            }
        }
        Ok(Crossing {
            from,
            to,
            gre: protocol == 47,
            v6,
            vni,
            class,
            inner,
        })
    }

    /// Whether an address is in no subnet, while there are external networks.
    pub fn is_outside(&self, address: IpAddr) -> bool {
        let mut cidrs = self.objects.subnets.iter().flat_map(|subnet| &subnet.cidrs);
        !self.objects.external_networks.is_empty()
            && !cidrs.any(|cidr| cidr.parse::<IpNetwork>().unwrap().contains(address))
    }

    fn disagreement(
        &self,
        who: &str,
        frames: &[Vec<u8>],
        expected: &[Outcome],
        found: &Outcome,
    ) -> Disagreement {
        let mut text = format!("after {} frames, {who}\n", self.frames);
        for frame in frames {
            let _ = writeln!(text, "  {}", short(frame));
            if let Ok(Decoded::Ip(packet)) = decode(frame) {
                let _ = writeln!(text, "  {:?} tcp {:?}", packet.flow, packet.tcp);
            }
        }
        for outcome in expected {
            let _ = writeln!(text, "the model expects\n{}", show(outcome));
        }
        let _ = writeln!(text, "the pipelines say\n{}", show(found));
        let _ = writeln!(text, "the model tracks {:#?}", self.model.tracked());
        let place = |port: &Port| format!("{} on {}", port.id, port.host);
        let ports: Vec<String> = self.objects.ports.iter().map(place).collect();
        let _ = writeln!(text, "ports: {}", ports.join(", "));
        let kinds: Vec<String> = expected.iter().take(1).chain([found]).map(kind).collect();
        Disagreement {
            kind: kinds.join(" | "),
            text,
        }
    }
}

/// An outcome in a few words, without names and bytes.
fn kind(outcome: &Outcome) -> String {
    let reasons: BTreeMap<&str, usize> =
        outcome
            .dropped
            .iter()
            .fold(BTreeMap::new(), |mut reasons, (_, reason)| {
                *reasons.entry(reason.name()).or_default() += 1;
                reasons
            });
    let (delivered, crossed) = (outcome.delivered.len(), outcome.crossed.len());
    let left = outcome.left.len();
    format!("{delivered} delivered, {crossed} crossed, {left} left, dropped {reasons:?}")
}

fn show(outcome: &Outcome) -> String {
    let mut lines = Vec::new();
    for (port, frame) in &outcome.delivered {
        lines.push(format!("  {port} gets {}", short(frame)));
    }
    for (port, frame) in &outcome.reports {
        lines.push(format!("  {port} reports {}", short(frame)));
    }
    for (port, frame) in &outcome.asked {
        lines.push(format!("  {port} asks for metadata {}", short(frame)));
    }
    for (port, kind, size) in &outcome.whole {
        lines.push(format!(
            "  of which {port} one whole: kind {kind}, size {size}"
        ));
    }
    for (host, reason) in &outcome.dropped {
        lines.push(format!("  {host} drops it: {}", reason.name()));
    }
    for (host, frame) in &outcome.left {
        lines.push(format!("  {host} sends outside {}", short(frame)));
    }
    for crossing in &outcome.crossed {
        let Crossing {
            from,
            to,
            gre,
            v6,
            vni,
            class,
            inner,
        } = crossing;
        lines.push(format!(
            "  {from} to {to}: gre {gre} v6 {v6} vni {vni} class {class:#x} {}",
            short(inner)
        ));
    }
    lines.join("\n")
}

/// The first bytes, for people.
fn short(bytes: &[u8]) -> String {
    match bytes.len() {
        0..=160 => hex(bytes),
        len => format!("{}... ({len} bytes)", hex(&bytes[..160])),
    }
}
