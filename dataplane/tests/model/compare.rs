//! Model and pipelines side by side: the same configuration, the same frames, the same time; every byte that comes out and every reason
//! must be alike.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Write;
use std::net::IpAddr;

use proptest::test_runner::TestCaseError;
use weft_dataplane::fabric::Fabric;
use weft_dataplane::packet::DropReason;
use weft_dataplane::pipeline::Settings;
use weft_dataplane::session::Limits;
use weft_proto::state::State;
use weft_proto::v1::{Objects, Port};

use crate::connection::Connection;
use crate::craft;
use crate::generate::{Act, FabricPlan, Step};
use crate::semantics::frame::{Decoded, IP, RST, decode, ones_sum, v4_at, v6_at, word};
use crate::semantics::{Crossing, Model, Outcome};
use crate::{questions, traffic};

/// Wide enough that nothing gives way: limits are tested elsewhere.
const LIMITS: Limits = Limits {
    capacity: 4096,
    per_port: 4096,
    per_vpc: 4096,
    ports: 64,
    vpcs: 64,
};
const UNLIMITED: u32 = 1_000_000;

type Result<T = ()> = std::result::Result<T, TestCaseError>;

pub struct Run {
    plan: FabricPlan,
    objects: Objects,
    fabric: Fabric,
    model: Model,
    connections: Vec<Connection>,
    sent: Vec<(String, Vec<u8>)>,
    got: Vec<(String, Vec<u8>)>,
    /// Outer source ports by host and flow (b008: constant within a flow).
    entropy: HashMap<String, u16>,
    /// IP ids: each packet has its own.
    id: u16,
    /// Frames compared so far.
    pub frames: u64,
    /// Frames that reached a port, so that nobody mistakes silence for agreement.
    pub delivered: u64,
    /// Frames that reached a metadata service.
    pub asked: u64,
    pub reasons: BTreeMap<DropReason, u64>,
}

fn state(objects: &Objects) -> State {
    State::from_objects(objects.clone()).unwrap()
}

impl Run {
    pub fn new(plan: FabricPlan) -> Self {
        let objects = plan.objects();
        let settings = Settings {
            ports: 64,
            errors_per_second: UNLIMITED,
            replies_per_second: UNLIMITED,
            broadcasts_per_second: UNLIMITED,
            metadata_per_second: UNLIMITED,
            ..Settings::default()
        };
        let mut fabric = Fabric::new(state(&objects), &settings, LIMITS).unwrap();
        fabric.metadata = plan.metadata;
        fabric.set(state(&objects)).unwrap();
        let model = Model::new(objects.clone(), plan.metadata, fabric.now);
        let mut run = Self {
            plan,
            objects,
            fabric,
            model,
            connections: Vec::new(),
            sent: Vec::new(),
            got: Vec::new(),
            entropy: HashMap::new(),
            id: 0,
            frames: 0,
            delivered: 0,
            asked: 0,
            reasons: BTreeMap::new(),
        };
        run.connect();
        run
    }

    /// Three pairs of ports that can talk.
    fn connect(&mut self) {
        for number in 0..3 {
            let v4 = number != 2;
            let mut pairs = Vec::new();
            for a in &self.objects.ports {
                for b in &self.objects.ports {
                    let ends = (traffic::address(a, v4), traffic::address(b, v4));
                    if let (Some(client), Some(server)) = ends
                        && a.vpc == b.vpc
                        && a.id != b.id
                    {
                        pairs.push((a, client, b, server));
                    }
                }
            }
            if let Some((a, client, b, server)) =
                pairs.get(usize::from(number) * 5 % pairs.len().max(1))
            {
                let ends = ((a.id.as_str(), *client), (b.id.as_str(), *server));
                self.connections
                    .push(Connection::new(number, &a.vpc, ends.0, ends.1));
            }
        }
    }

    pub fn step(&mut self, step: &Step) -> Result {
        self.id = self.id.wrapping_add(1);
        let back = |list: &[(String, Vec<u8>)], back: u8| {
            let at = list.len().checked_sub(1 + usize::from(back))?;
            Some(list[at].clone())
        };
        let sending = match step {
            Step::Packet(plan) => traffic::packet(&self.objects, plan, self.id),
            Step::Answer(n) => {
                back(&self.got, *n).and_then(|(port, frame)| Some((port, traffic::answer(&frame)?)))
            }
            // Not resets: an old one lies before the window, and how far it may is not modelled.
            Step::Repeat(n) => back(&self.sent, *n)
                .filter(|(_, frame)| !is_reset(frame))
                .map(|(port, frame)| (port, self.anew(frame))),
            Step::Report {
                back: n,
                stranger,
                cut,
            } => back(&self.got, *n).and_then(|(port, frame)| {
                let port = self.objects.ports.iter().find(|other| other.id == port)?;
                traffic::report(&self.objects, port, &frame, *stranger, *cut)
            }),
            Step::Tcp {
                connection,
                from_server,
                act,
            } => return self.talk(usize::from(*connection), usize::from(*from_server), *act),
            Step::Arp(plan) => traffic::arp(&self.objects, plan),
            Step::Solicit(plan) => traffic::solicit(&self.objects, plan),
            Step::Ask(plan) => questions::ask(&self.objects, plan),
            Step::Change(change) => {
                self.plan.change(change);
                self.objects = self.plan.objects();
                self.fabric.set(state(&self.objects)).unwrap();
                self.model.set(self.objects.clone());
                return Ok(());
            }
            Step::Wait(length) => {
                let seconds = [1, 20, 31, 61, 119, 121, 181, 250, 7441];
                let milliseconds = seconds[usize::from(*length) % seconds.len()] * 1000;
                self.fabric.advance(milliseconds);
                self.model.advance(milliseconds);
                return Ok(());
            }
        };
        match sending {
            Some((port, frame)) => self.send(&port, &frame),
            None => Ok(()),
        }
    }

    /// The same frame, but under another id where it may be fragmented: it is another datagram.
    fn anew(&self, mut frame: Vec<u8>) -> Vec<u8> {
        if matches!(decode(&frame), Ok(Decoded::Ip(packet)) if !packet.dont_fragment) {
            frame[IP + 4..IP + 6].copy_from_slice(&self.id.to_be_bytes());
            craft::fix_ipv4_checksum(&mut frame);
        }
        frame
    }

    fn talk(&mut self, connection: usize, side: usize, act: Act) -> Result {
        if matches!(act, Act::Handshake) {
            self.talk(connection, side, Act::Syn)?;
            self.talk(connection, 1 - side, Act::SynAck)?;
            return self.talk(connection, side, Act::Ack);
        }
        let Some(talk) = self.connections.get_mut(connection) else {
            return Ok(());
        };
        let settled = self.model.is_settled(&talk.vpc, &talk.flow());
        let Some(sending) = talk.act(side, act, settled) else {
            return Ok(());
        };
        let mut ports = self.objects.ports.iter();
        let Some(port) = ports.find(|port| port.id == sending.port) else {
            return Ok(());
        };
        let dst = traffic::next_mac(&self.objects, port, sending.ends[1]);
        let frame = sending.frame(dst, traffic::mac(&port.mac), self.id);
        self.send(&sending.port, &frame)
    }

    /// Sends a frame through both, and compares.
    fn send(&mut self, port: &str, frame: &[u8]) -> Result {
        let before = self.drops();
        let crossed = self.fabric.crossed.len();
        let delivered = self.fabric.send(port, frame);
        let found = Outcome {
            delivered: delivered
                .into_iter()
                .map(|out| (out.port, out.frame))
                .collect(),
            asked: std::mem::take(&mut self.fabric.asked),
            dropped: self.dropped_since(&before),
            crossed: self.crossings(crossed)?,
        }
        .sorted();
        let (mut guess, mut guesses) = (0, 1);
        let mut expected = Vec::new();
        while guess < guesses {
            let mut model = self.model.clone();
            let outcome = model.send(port, frame, guess);
            if outcome == found {
                self.model = model;
                break;
            }
            guesses = model.guesses;
            expected.push(outcome);
            guess += 1;
        }
        if guess == guesses {
            return Err(self.disagreement(port, frame, &expected, &found));
        }
        self.frames += 1;
        self.delivered += found.delivered.len() as u64;
        self.asked += found.asked.len() as u64;
        for (_, reason) in &found.dropped {
            *self.reasons.entry(*reason).or_default() += 1;
        }
        self.sent.push((port.to_owned(), frame.to_vec()));
        for connection in &mut self.connections {
            connection.hear(&found.delivered);
        }
        let whole = |(_, frame): &&(String, Vec<u8>)| {
            frame.get(12..14) != Some(&[8, 0]) || word(frame, IP + 6) & 0x3fff == 0
        };
        self.got
            .extend(found.delivered.iter().filter(whole).cloned());
        Ok(())
    }

    fn drops(&self) -> BTreeMap<(String, DropReason), u64> {
        let mut drops = BTreeMap::new();
        for host in self.fabric.hosts.keys() {
            for reason in DropReason::ALL {
                drops.insert((host.clone(), *reason), self.fabric.drops(host, *reason));
            }
        }
        drops
    }

    fn dropped_since(
        &self,
        before: &BTreeMap<(String, DropReason), u64>,
    ) -> Vec<(String, DropReason)> {
        let mut dropped = Vec::new();
        for (key, count) in self.drops() {
            // Counters belong to a port's index: they don't go when the port goes, but then nobody reads them.
            let new = count - before[&key];
            dropped.extend((0..new).map(|_| key.clone()));
        }
        dropped
    }

    /// What crossed the underlay, out of its outer headers.
    fn crossings(&mut self, from: usize) -> Result<Vec<Crossing>> {
        let frames = self.fabric.crossed[from..].to_vec();
        frames.iter().map(|frame| self.crossing(frame)).collect()
    }

    fn crossing(&mut self, frame: &[u8]) -> Result<Crossing> {
        let fail = |what: &str| TestCaseError::fail(format!("{what}: outer {}", hex(frame)));
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
            let is_whole = !packet.is_v4() || word(&inner, IP + 6) & 0x3fff == 0;
            let flow = format!("{from} {vni} {:?}", packet.flow);
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

    fn disagreement(
        &self,
        port: &str,
        frame: &[u8],
        expected: &[Outcome],
        found: &Outcome,
    ) -> TestCaseError {
        let mut text = format!(
            "after {} frames, {port} sends {}\n",
            self.frames,
            hex(frame)
        );
        if let Ok(Decoded::Ip(packet)) = decode(frame) {
            let _ = writeln!(text, "  {:?} tcp {:?}", packet.flow, packet.tcp);
        }
        for outcome in expected {
            let _ = writeln!(text, "the model expects\n{}", show(outcome));
        }
        let _ = writeln!(text, "the pipelines say\n{}", show(found));
        let _ = writeln!(text, "the model tracks {:#?}", self.model.tracked());
        let place = |port: &Port| format!("{} on {}", port.id, port.host);
        let ports: Vec<String> = self.objects.ports.iter().map(place).collect();
        let _ = writeln!(text, "ports: {}", ports.join(", "));
        let _ = writeln!(text, "{}", serde_yaml_ng::to_string(&self.objects).unwrap());
        TestCaseError::fail(text)
    }

    /// After the last frame, no buffer is missing.
    pub fn finish(&self) -> Result {
        match self.fabric.missing_frames() {
            0 => Ok(()),
            missing => Err(TestCaseError::fail(format!("{missing} frames leaked"))),
        }
    }
}

fn is_reset(frame: &[u8]) -> bool {
    let packet = decode(frame);
    matches!(packet, Ok(Decoded::Ip(packet)) if packet.tcp.is_some_and(|tcp| tcp.has(RST)))
}

fn show(outcome: &Outcome) -> String {
    let mut lines = Vec::new();
    for (port, frame) in &outcome.delivered {
        lines.push(format!("  {port} gets {}", hex(frame)));
    }
    for (port, frame) in &outcome.asked {
        lines.push(format!("  {port} asks for metadata {}", hex(frame)));
    }
    for (host, reason) in &outcome.dropped {
        lines.push(format!("  {host} drops it: {}", reason.name()));
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
            hex(inner)
        ));
    }
    lines.join("\n")
}

fn hex(bytes: &[u8]) -> String {
    let mut text = String::new();
    for byte in bytes.iter().take(160) {
        let _ = write!(text, "{byte:02x}");
    }
    if bytes.len() > 160 {
        let _ = write!(text, "... ({} bytes)", bytes.len());
    }
    text
}
