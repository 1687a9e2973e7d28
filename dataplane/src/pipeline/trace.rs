//! The packet trace: what would happen to a packet, step by step. Runs the same judgement as real packets; sends nothing, makes no session.

use super::judge::{self, Case, Standing};
use super::local;
use super::{guard, metadata, services};
use crate::packet::parse::{self, Inner, is_icmp_error, word_address};
use crate::packet::{DropReason, Parsed};
use crate::session::table::{Action, Egress, Ingress};
use crate::session::{Key, SessionTable};
use crate::snapshot::Snapshot;

/// Bytes of frame that any answer of a service fits in.
const ANSWER: usize = 2048;

/// Listens to the steps of a judgement.
pub trait Tracer {
    /// One step. The text is made only when somebody listens.
    fn step(&mut self, stage: &'static str, text: impl FnOnce() -> String);
}

/// Nobody listens; the steps cost nothing.
#[derive(Debug)]
pub struct Silent;

impl Tracer for Silent {
    #[inline]
    fn step(&mut self, _stage: &'static str, _text: impl FnOnce() -> String) {}
}

/// The steps, kept.
#[derive(Debug, Default)]
pub struct Steps(pub Vec<(&'static str, String)>);

impl Tracer for Steps {
    fn step(&mut self, stage: &'static str, text: impl FnOnce() -> String) {
        self.0.push((stage, text()));
    }
}

/// Traces a frame that a port would send. Answers the steps and the verdict in words.
pub fn trace(
    snapshot: &Snapshot,
    sessions: &SessionTable,
    port: u16,
    frame: &[u8],
) -> (Steps, String) {
    let mut steps = Steps::default();
    let verdict = match run(snapshot, sessions, port, frame, &mut steps) {
        Ok(verdict) => verdict,
        Err(reason) => format!("drop {}: {}", reason.name(), reason.meaning()),
    };
    (steps, verdict)
}

fn run(
    snapshot: &Snapshot,
    sessions: &SessionTable,
    index: u16,
    frame: &[u8],
    steps: &mut Steps,
) -> Result<String, DropReason> {
    let port = snapshot.port(index).ok_or(DropReason::PortDown)?;
    steps.step("port", || {
        format!("{} in generation {}", port.id, snapshot.generation)
    });
    let parsed = match parse::inner(frame)? {
        Inner::Ip(parsed) => parsed,
        Inner::Arp => {
            local::arp(
                snapshot,
                local::Asker::Port(index, port),
                &mut frame.to_vec(),
            )?;
            return Ok("reply from the gateway".to_owned());
        }
    };
    steps.step("parse", || describe(&parsed));
    if guard::is_rogue_server(&parsed) {
        return Err(DropReason::RogueServer);
    }
    if let Some(question) = services::question(snapshot, (port, u16::MAX), &parsed) {
        let mut area = frame.to_vec();
        area.resize(ANSWER.max(area.len()), 0);
        let answer = question.answer(&mut area)?;
        return Ok(format!("{} from the gateway", answer.name));
    }
    guard::check(snapshot, port, &parsed)?;
    steps.step("guard", || "source belongs to the port".to_owned());
    if metadata::is_question(snapshot, port, &parsed) {
        return Ok("the metadata service of this host".to_owned());
    }
    if metadata::serves(snapshot, parsed.flow.source) {
        return Err(DropReason::Martian);
    }
    if local::is_for_gateway(snapshot, port, &parsed) {
        local::ping(&mut frame.to_vec(), &parsed)?;
        return Ok("reply from the gateway".to_owned());
    }
    judge_traced(
        snapshot,
        sessions,
        frame,
        (&parsed, Ingress::Port(index), port.vpc),
        steps,
    )
}

/// What real packets meet after the checks of their ingress.
fn judge_traced(
    snapshot: &Snapshot,
    sessions: &SessionTable,
    frame: &[u8],
    packet: (&Parsed, Ingress, usize),
    steps: &mut Steps,
) -> Result<String, DropReason> {
    let (parsed, ingress, vpc) = packet;
    let vni = snapshot.vpcs[vpc].vni;
    let standing = if is_icmp_error(parsed) {
        let quote = frame
            .get(usize::from(parsed.l4) + 8..usize::from(parsed.end))
            .unwrap_or_default();
        let quoted = parse::quoted(parsed.family, quote).ok_or(DropReason::IcmpUnrelated)?;
        sessions
            .find(&Key::new(sessions.seeds(), &quoted, vni))
            .ok_or(DropReason::IcmpUnrelated)?;
        Standing::Related
    } else {
        let session = sessions.find(&Key::new(sessions.seeds(), &parsed.flow, vni));
        steps.step("session", || {
            session.map_or("none".to_owned(), |session| {
                session.state().name().to_owned()
            })
        });
        if session.is_none_or(|session| session.from_origin()) {
            Standing::Forward
        } else {
            Standing::Backward
        }
    };
    let case = Case {
        parsed,
        ingress,
        vpc,
        standing,
    };
    let action = judge::judge(snapshot, &case, steps)?;
    Ok(verdict(snapshot, &action))
}

/// Traces a frame that comes in over the uplink, outer headers included.
pub fn trace_from_uplink(
    snapshot: &Snapshot,
    sessions: &SessionTable,
    frame: &[u8],
) -> (Steps, String) {
    let mut steps = Steps::default();
    let verdict = match run_from_uplink(snapshot, sessions, frame, &mut steps) {
        Ok(verdict) => verdict,
        Err(reason) => format!("drop {}: {}", reason.name(), reason.meaning()),
    };
    (steps, verdict)
}

fn run_from_uplink(
    snapshot: &Snapshot,
    sessions: &SessionTable,
    frame: &[u8],
    steps: &mut Steps,
) -> Result<String, DropReason> {
    let (outer, peer, vpc) = super::enter::check_outer(snapshot, frame)?;
    steps.step("tunnel", || {
        let host = snapshot
            .peer(peer)
            .map_or("gone", |peer| peer.host.as_str());
        format!(
            "from host {host}, VPC {}, in generation {}",
            snapshot.vpcs[vpc].id, snapshot.generation
        )
    });
    let inner = &frame[usize::from(outer.inner)..usize::from(outer.end)];
    let Inner::Ip(parsed) = parse::inner(inner)? else {
        local::arp(snapshot, local::Asker::Peer(peer, vpc), &mut inner.to_vec())?;
        return Ok("reply from the gateway".to_owned());
    };
    steps.step("parse", || describe(&parsed));
    judge_traced(
        snapshot,
        sessions,
        inner,
        (&parsed, Ingress::Peer(peer), vpc),
        steps,
    )
}

fn describe(parsed: &Parsed) -> String {
    let flow = &parsed.flow;
    format!(
        "{} port {} to {} port {}, protocol {}, {} bytes, TTL {}",
        word_address(flow.source),
        flow.source_port,
        word_address(flow.destination),
        flow.destination_port,
        flow.protocol,
        parsed.ip_len(),
        parsed.ttl
    )
}

/// An action in words.
pub fn verdict(snapshot: &Snapshot, action: &Action) -> String {
    match action.egress {
        Egress::Port(port) => format!(
            "port {}",
            snapshot.port(port).map_or("gone", |port| port.id.as_str())
        ),
        Egress::Peer(peer) => format!(
            "host {}",
            snapshot
                .peer(peer)
                .map_or("gone", |peer| peer.host.as_str())
        ),
    }
}
