//! What becomes of a packet that no session answers for. The order of the stages stands here and nowhere else (design, "Packet path"): the
//! slow path, fragments and the packet trace all come here.
//!
//! From a port: services of the gateway, anti-spoofing, the gateway itself, session, ACL out, group out, destination translation, route, source
//! translation, and for a port of this host ACL in and group in. From a tunnel: neighbour discovery, session, destination translation, the target port,
//! source translation, ACL in, group in. Policy sees a packet with the addresses that its port knows. Reads tables and changes none; only an
//! answer of the gateway is written over the packet.

use super::gateway::{Asker, Neighbor};
use super::policy_eval::{self, Standing};
use super::tracer::{Silent, Tracer};
use super::tracking::{Follow, NextState, follow, opening};
use super::translate::{self, Change, Choice, Decision};
use super::{
    Entry, Service, Tables, balancing, dns, external, forwarding, gateway, guard, learning,
    membership, metadata, nat64, services,
};
use crate::numbers::Vni;
use crate::packet::parse::{self, Fragment, is_icmp_error};
use crate::packet::parse::{word_address, word_family};
use crate::packet::{DropReason, Flow, Parsed};
use crate::session::table::{Action, Egress, Ingress, SessionRef};
use crate::session::tcp::Side;
use crate::session::{Key, State, Translation};
use crate::snapshot::{Port, Snapshot};

/// What becomes of a packet.
#[derive(Debug)]
#[expect(
    clippy::large_enum_variant,
    reason = "one at a time, on the stack: nothing here may allocate"
)]
pub(super) enum Verdict<'t> {
    /// The gateway answers: the packet has become the answer.
    Reply(Reply),
    /// A service on this host's own threads takes it.
    Punt(Service),
    /// It is for others on the link, whatever policy says.
    Relay(Action),
    /// A copy to everybody in the subnet who may have it.
    Flood,
    /// It goes with the other fragments of its datagram; the first of them goes on to [`flow`].
    Fragment(Fragment),
    /// It goes to one receiver.
    Forward(Decision, Record<'t>),
}

/// An answer of the gateway.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Reply {
    /// Bytes of the frame; none: as long as the question.
    pub len: Option<u16>,
    /// What it is, in words.
    pub name: &'static str,
}

/// What is to be remembered of a packet, once it may pass.
#[derive(Debug)]
pub(super) enum Record<'t> {
    /// Nothing.
    Nothing,
    /// It is of a session.
    Known(SessionRef<'t>, NextState),
    /// It opens one.
    Open(Opened<'t>),
}

/// A session that is to be made.
#[derive(Debug)]
pub(super) struct Opened<'t> {
    pub state: State,
    /// TCP windows: of the opener, and of the other side.
    pub tcp: (Side, Side),
    /// Port that it is charged to.
    pub port: u16,
    /// The sessions of connections that are over, whose place it takes: one has the packet's key, the other what the packet becomes.
    pub over: [Option<SessionRef<'t>>; 2],
    /// Its second key, if its packets are translated, or go from one VPC into another.
    pub second: Option<Translation>,
    /// The mapping of a NAT gateway that it uses.
    pub mapping: Option<u32>,
    /// The member of a load balancer that gets its packets as they are.
    pub chosen: Option<u128>,
    /// The counter of a load balancer's member that it counts in.
    pub member: Option<u32>,
}

/// Why a packet is dropped.
#[derive(Debug)]
pub(super) struct Refusal<'t> {
    pub reason: DropReason,
    /// The session of the packet, if the groups admit it no longer, or its translation is gone.
    pub denied: Option<SessionRef<'t>>,
    /// Whether the sender, of a TCP segment, is told by a reset.
    pub reset: bool,
}

impl From<DropReason> for Refusal<'_> {
    fn from(reason: DropReason) -> Self {
        Self {
            reason,
            denied: None,
            reset: false,
        }
    }
}

/// Resolves a packet. `area` is what its buffer holds from the inner Ethernet header on, with the room behind the frame that an answer may need.
pub(super) fn resolve<'t>(
    tables: Tables<'t>,
    entry: &Entry,
    area: &mut [u8],
    session: Option<SessionRef<'t>>,
    tracer: &mut impl Tracer,
) -> Result<Verdict<'t>, Refusal<'t>> {
    let (snapshot, parsed) = (tables.snapshot, &entry.parsed);
    learning::check(snapshot, entry, area, tracer)?;
    let verdict = match entry.ingress {
        Ingress::Port(index) => {
            let port = snapshot.port(index).ok_or(DropReason::PortDown)?;
            at_port(tables, (index, port), entry, area, tracer)?
        }
        Ingress::Peer(peer) => at_tunnel(snapshot, peer, entry, area, tracer)?,
        Ingress::External(_) => at_wire(snapshot, entry)?,
    };
    if let Some(verdict) = verdict {
        return Ok(verdict);
    }
    if metadata::serves(snapshot, parsed.flow.source) {
        // Nobody but this host answers for it; a session of such a packet would take the guest's own to somebody else.
        return Err(DropReason::Martian.into());
    }
    let to_group = parsed.eth_dst.is_group();
    if !to_group && guard::is_group(parsed.flow.destination) {
        return Err(DropReason::Martian.into());
    }
    match parsed.fragment {
        Some(fragment) => Ok(Verdict::Fragment(fragment)),
        None if to_group => Ok(Verdict::Flood),
        None => {
            let (decision, record) = flow(tables, entry, area, session, tracer)?;
            Ok(Verdict::Forward(decision, record))
        }
    }
}

/// What concerns the sending port alone: what the gateway answers itself, and spoofing.
fn at_port<'t>(
    tables: Tables<'_>,
    (index, port): (u16, &Port),
    entry: &Entry,
    area: &mut [u8],
    tracer: &mut impl Tracer,
) -> Result<Option<Verdict<'t>>, DropReason> {
    let (snapshot, parsed) = (tables.snapshot, &entry.parsed);
    if guard::is_rogue_server(parsed) {
        return Err(DropReason::RogueServer);
    }
    if let Some(question) = services::question(snapshot, port, parsed) {
        let answer = question.answer(area)?;
        return reply(Some(answer.len), answer.name);
    }
    if let Some(verdict) = discovery(snapshot, Asker::Port(index, port), entry, area)? {
        return Ok(Some(verdict));
    }
    if let Err(reason) = guard::check(snapshot, port, parsed) {
        if gateway::is_for_gateway(snapshot, port, parsed) {
            // Who does not serve is asked, too, and at any port: that there is a question is enough.
            let is_answer = balancing::has_balancers_address(snapshot, port, parsed)
                && tables.checks.answered(index, parsed, area).is_some();
            return if is_answer {
                Ok(Some(Verdict::Punt(Service::Health)))
            } else {
                Err(reason)
            };
        }
        if !balancing::may_answer(snapshot, port, parsed) {
            return Err(reason);
        }
        tracer.step("guard", || {
            "a member answers with its load balancer's address".to_owned()
        });
        return Ok(None);
    }
    tracer.step("guard", || "source belongs to the port".to_owned());
    if gateway::is_router_solicitation(parsed) {
        return Err(DropReason::GatewayUnserved);
    }
    if membership::of_port(snapshot, port, area, parsed)? {
        tracer.step("multicast", || "what the port has joined".to_owned());
        return Ok(Some(Verdict::Punt(Service::Querier)));
    }
    if metadata::is_question(snapshot, port, parsed) {
        return Ok(Some(Verdict::Punt(Service::Metadata)));
    }
    if dns::is_question(snapshot, port, parsed) {
        return Ok(Some(Verdict::Punt(Service::Dns)));
    }
    if gateway::is_for_gateway(snapshot, port, parsed) {
        if tables.checks.answered(index, parsed, area).is_some() {
            return Ok(Some(Verdict::Punt(Service::Health)));
        }
        gateway::ping(area, parsed)?;
        return reply(None, "echo reply");
    }
    let balancer = balancing::of(snapshot, entry);
    if balancer.is_some() && tables.checks.answered(index, parsed, area).is_some() {
        return Ok(Some(Verdict::Punt(Service::Health)));
    }
    if let Some(answer) = balancer.and_then(|balancer| balancing::ping(balancer, parsed, area)) {
        answer?;
        return reply(None, "echo reply");
    }
    Ok(None)
}

/// What concerns a packet out of a tunnel alone.
fn at_tunnel<'t>(
    snapshot: &Snapshot,
    peer: u16,
    entry: &Entry,
    area: &mut [u8],
    tracer: &mut impl Tracer,
) -> Result<Option<Verdict<'t>>, DropReason> {
    let (parsed, vpc) = (&entry.parsed, entry.vpc);
    if let Some(onward) = forwarding::moved(snapshot, vpc, peer, parsed) {
        tracer.step("tunnel", || "the port has moved to another host".to_owned());
        // Nothing is remembered of it: soon nothing will come this way.
        return Ok(Some(Verdict::Forward(onward.into(), Record::Nothing)));
    }
    if let Some(verdict) = discovery(snapshot, Asker::Peer(peer, vpc), entry, area)? {
        return Ok(Some(verdict));
    }
    if guard::is_ipv4_router(parsed) {
        return Err(DropReason::RogueServer);
    }
    membership::check_tunnel(snapshot, vpc, area, parsed)?;
    Ok(None)
}

/// What concerns a packet from an external network with ports alone.
fn at_wire<'t>(snapshot: &Snapshot, entry: &Entry) -> Result<Option<Verdict<'t>>, DropReason> {
    let parsed = &entry.parsed;
    if snapshot.vpcs[entry.vpc].wire.is_none() || !gateway::is_discovery(parsed) {
        return Ok(None);
    }
    if parsed.fragment.is_some() {
        return Err(DropReason::NeighborMalformed);
    }
    // What is said there is for the guests to judge, as on any link.
    if parsed.eth_dst.is_group() {
        return Ok(Some(Verdict::Flood));
    }
    let action = forwarding::on_link(snapshot, entry.ingress, entry.vpc, parsed)?;
    Ok(Some(Verdict::Relay(action)))
}

fn reply<'t>(len: Option<u16>, name: &'static str) -> Result<Option<Verdict<'t>>, DropReason> {
    Ok(Some(Verdict::Reply(Reply { len, name })))
}

/// Neighbour discovery: answered, relayed or dropped; none if the packet is not of it.
fn discovery<'t>(
    snapshot: &Snapshot,
    asker: Asker<'_>,
    entry: &Entry,
    area: &mut [u8],
) -> Result<Option<Verdict<'t>>, DropReason> {
    let parsed = &entry.parsed;
    match gateway::neighbor(snapshot, asker, area, parsed)? {
        Neighbor::Reply(len) => reply(Some(len), "neighbour advertisement"),
        Neighbor::Relay if parsed.eth_dst.is_group() => Ok(Some(Verdict::Flood)),
        Neighbor::Relay => {
            let action = forwarding::on_link(snapshot, entry.ingress, entry.vpc, parsed)?;
            Ok(Some(Verdict::Relay(action)))
        }
        Neighbor::Announce => Ok(Some(Verdict::Punt(Service::Holders))),
        Neighbor::NotMine => Ok(None),
    }
}

/// From the session on: where a packet to one receiver goes, and what is to be remembered of it.
pub(super) fn flow<'t>(
    tables: Tables<'t>,
    entry: &Entry,
    frame: &[u8],
    session: Option<SessionRef<'t>>,
    tracer: &mut impl Tracer,
) -> Result<(Decision, Record<'t>), Refusal<'t>> {
    let (snapshot, parsed) = (tables.snapshot, &entry.parsed);
    if is_icmp_error(parsed) {
        let (choice, quoted, quoted_joined) = check_quote(tables, entry, frame)?;
        if balancing::is_answer(snapshot, entry)
            && !balancing::is_asked_about(tables, entry, &quoted)
        {
            return Err(DropReason::SpoofedAddress.into());
        }
        tracer.step("session", || "of the packet that is quoted".to_owned());
        let related = (Standing::Related, choice);
        let judged = judge_about(tables, entry, related, Some(quoted), tracer)?;
        // Into another VPC goes only what is about a packet that came from there.
        let joined = judged.joined.map(|vpc| snapshot.vpcs[vpc].vni);
        if joined.is_some() && joined != quoted_joined {
            return Err(DropReason::IcmpUnrelated.into());
        }
        return Ok((judged.decision, Record::Nothing));
    }
    tracer.step("session", || {
        session.map_or("none".to_owned(), |session| {
            session.state().name().to_owned()
        })
    });
    let (mut known, mut over) = (None, None);
    let answers = balancing::is_answer(snapshot, entry);
    let is_asked = |session: &SessionRef<'_>| balancing::is_asked(snapshot, entry, session);
    if answers && !session.is_some_and(|session| is_asked(&session)) {
        return Err(DropReason::SpoofedAddress.into());
    }
    if let Some(session) = session {
        if session.is_translated()
            && session.translation().is_none()
            && !translate::is_elsewhere(snapshot, entry, &session)
        {
            let opening = opening(parsed, frame);
            if !opening.is_ok_and(|opening| opening.takes_place_of(&session)) {
                return Err(DropReason::TranslationClash.into());
            }
            over = Some(session);
        } else {
            match follow(&session, parsed, frame) {
                Follow::Pass(standings) => known = Some((session, standings)),
                Follow::Reopen => over = Some(session),
                Follow::Drop(reason) => return Err(reason.into()),
            }
        }
    }
    let Some((session, standings)) = known else {
        if answers {
            return Err(DropReason::SpoofedAddress.into());
        }
        return opens(tables, entry, frame, over, tracer);
    };
    let standing = match standings.standing() {
        Some(standing) => standing,
        None if session.from_origin() => Standing::Forward,
        None => Standing::Backward,
    };
    if answers && standing == Standing::Forward {
        // A member opens nothing with that address, not even where a client waits for its answer.
        return Err(DropReason::SpoofedAddress.into());
    }
    let choice = translate::kept(snapshot, entry, &session);
    if matches!(choice, Err(DropReason::MemberGone))
        && session.from_origin()
        && session.state() == State::TcpSynSent
    {
        // Nobody has answered yet: the client that asks again gets another member.
        return opens(tables, entry, frame, Some(session), tracer);
    }
    let judged = choice.and_then(|choice| judge(tables, entry, (standing, choice), tracer));
    // A session that goes from one VPC into another does so as long as it lives, and no other begins to.
    let judged = judged.and_then(|judged| {
        let joined = judged.joined.map(|vpc| snapshot.vpcs[vpc].vni);
        (joined == session.joined())
            .then_some(judged)
            .ok_or(DropReason::TranslationGone)
    });
    match judged {
        Ok(judged) => Ok((judged.decision, Record::Known(session, standings))),
        Err(reason) => {
            let is_denied = match reason {
                DropReason::TranslationGone | DropReason::MemberGone => true,
                DropReason::GroupDenied => standings.standing().is_none(),
                _ => false,
            };
            Err(Refusal {
                reason,
                denied: is_denied.then_some(session),
                reset: balancing::is_reset(snapshot, entry, reason),
            })
        }
    }
}

/// A packet that opens a flow, and what is to be remembered of it.
fn opens<'t>(
    tables: Tables<'t>,
    entry: &Entry,
    frame: &[u8],
    over: Option<SessionRef<'t>>,
    tracer: &mut impl Tracer,
) -> Result<(Decision, Record<'t>), Refusal<'t>> {
    match open(tables, entry, frame, over, tracer) {
        Ok((decision, opened)) => Ok((decision, Record::Open(opened))),
        Err(reason) => Err(Refusal {
            reason,
            denied: None,
            reset: balancing::is_reset(tables.snapshot, entry, reason),
        }),
    }
}

/// How a packet that opens a flow is judged.
const OPENING: (Standing, Choice) = (Standing::Forward, Choice::Anew);

/// What a session is charged to that begins and ends on other hosts: no port has the index.
const NO_PORT: u16 = u16::MAX;

/// A packet that opens a flow.
fn open<'t>(
    tables: Tables<'t>,
    entry: &Entry,
    frame: &[u8],
    over: Option<SessionRef<'t>>,
    tracer: &mut impl Tracer,
) -> Result<(Decision, Opened<'t>), DropReason> {
    let (snapshot, ingress) = (tables.snapshot, entry.ingress);
    let opening = opening(&entry.parsed, frame)?;
    if opening.begin(false).is_none() {
        // Only a flow that is seen one way begins like this.
        judge(tables, entry, OPENING, &mut Silent)
            .ok()
            .filter(|way| may_be_one_sided(snapshot, ingress, way.decision.action.egress()))
            .and_then(|_| opening.begin(true))
            .ok_or(DropReason::TcpInvalid)?;
    }
    tracer.open_flow(ingress, snapshot.vpcs[entry.vpc].index)?;
    let Judged {
        decision,
        joined,
        mapping,
        member: chosen,
    } = judge(tables, entry, OPENING, tracer)?;
    let flow = &entry.parsed.flow;
    let second = match decision.change {
        Change::Flow(translation) => Some(translation),
        // It has come out of another VPC, where its answers go.
        Change::None | Change::Error(..) => {
            joined.map(|vpc| Translation::new(flow, flow, snapshot.vpcs[vpc].vni))
        }
    };
    let alike = match &second {
        Some(second) => alike(tables, entry, second, over.as_ref())?,
        None => None,
    };
    if alike.is_some_and(|alike| !opening.takes_place_of(&alike)) {
        return Err(DropReason::TranslationClash);
    }
    let egress = decision.action.egress();
    let one_sided = may_be_one_sided(snapshot, ingress, egress);
    let (state, tcp) = opening.begin(one_sided).ok_or(DropReason::TcpInvalid)?;
    let port = match (ingress, egress) {
        (Ingress::Port(port), _) | (_, Egress::Port(port)) => port,
        // This host is a gateway for the flow, whose VPC alone it is charged to.
        (Ingress::External(_), _) | (_, Egress::External(_)) => NO_PORT,
        _ if second.is_some() => NO_PORT,
        _ => return Err(DropReason::HairpinTunnel),
    };
    let vpc = &snapshot.vpcs[entry.vpc];
    let member = match (&second, chosen) {
        (Some(second), _) => balancing::counter(vpc, flow, &second.flow),
        (None, Some(address)) => balancing::counter_of(vpc, flow, (address, flow.destination_port)),
        (None, None) => None,
    };
    let opened = Opened {
        state,
        tcp,
        port,
        over: [over, alike],
        second,
        mapping,
        chosen,
        member,
    };
    Ok((decision, opened))
}

/// Another session that has what a translated flow would become: no two share what their packets look like, on either side.
fn alike<'t>(
    tables: Tables<'t>,
    entry: &Entry,
    translation: &Translation,
    over: Option<&SessionRef<'_>>,
) -> Result<Option<SessionRef<'t>>, DropReason> {
    let key = Key::new(tables.sessions.seeds(), &translation.flow, translation.vni);
    // A port that reaches itself with equal ports, or none: its answers would look like its questions.
    if key.words == entry.key.words {
        return Err(DropReason::TranslationClash);
    }
    let other = tables.sessions.find(&key);
    Ok(other.filter(|other| !over.is_some_and(|over| over.is_same(other))))
}

/// An ICMP error passes if it quotes a packet of a session and goes to that packet's sender. Answers how it is translated, the flow of that packet, and the
/// other VPC of a session that goes from one into another.
fn check_quote(
    tables: Tables<'_>,
    entry: &Entry,
    frame: &[u8],
) -> Result<(Choice, Flow, Option<Vni>), DropReason> {
    let parsed = &entry.parsed;
    let quote = frame
        .get(usize::from(parsed.l4) + 8..usize::from(parsed.end))
        .unwrap_or_default();
    parse::quoted(parsed.family, quote)
        .filter(|quoted| quoted.source == parsed.flow.destination)
        .and_then(|quoted| {
            let key = Key::new(tables.sessions.seeds(), &quoted, entry.vni);
            let session = tables.sessions.find(&key)?;
            let choice = translate::of_error(tables.snapshot, entry, &session, &quoted);
            Some((choice, quoted, session.joined()))
        })
        .ok_or(DropReason::IcmpUnrelated)
}

/// What was decided, and the VPC of the port at the other end, where a peering joins it to this one.
struct Judged {
    decision: Decision,
    joined: Option<usize>,
    mapping: Option<u32>,
    /// The member of a load balancer that gets the packet as it is.
    member: Option<u128>,
}

/// Policy, translation and route. ACLs and groups of the sender's port come before the route, those of the receiver's after it.
fn judge(
    tables: Tables<'_>,
    entry: &Entry,
    judged_as: (Standing, Choice),
    tracer: &mut impl Tracer,
) -> Result<Judged, DropReason> {
    judge_about(tables, entry, judged_as, None, tracer)
}

/// The same, of an ICMP error with the flow that it quotes: of several next hops it takes that of the flow, since one that keeps state knows no other.
fn judge_about(
    tables: Tables<'_>,
    entry: &Entry,
    (standing, choice): (Standing, Choice),
    quoted: Option<Flow>,
    tracer: &mut impl Tracer,
) -> Result<Judged, DropReason> {
    let snapshot = tables.snapshot;
    let (parsed, vpc) = (&entry.parsed, &snapshot.vpcs[entry.vpc]);
    let flow = &parsed.flow;
    let mut member = None;
    let (routed, way, is_routed) = match entry.ingress {
        Ingress::Port(index) => {
            let port = snapshot.port(index).ok_or(DropReason::PortDown)?;
            policy(snapshot, port, (parsed, standing), false, tracer)?;
            let is_routed = parsed.eth_dst == snapshot.subnets[port.subnet].gateway_mac;
            let routed = choice.destination(tables, entry, is_routed, tracer)?;
            member = choice
                .member(snapshot, entry, &routed)
                .filter(|_| is_routed);
            let answers = matches!(choice, Choice::Untranslated) && standing != Standing::Forward;
            let translator = (answers && is_routed)
                .then(|| forwarding::to_translator(snapshot, port, flow.destination, tracer));
            let public = balancing::public(snapshot, entry, standing, &choice);
            let way = match (member, translator.flatten(), public.filter(|_| is_routed)) {
                (Some(member), ..) => balancing::straight(snapshot, entry, member, tracer)?,
                (None, Some(way), _) => way,
                (None, None, Some(public)) => {
                    let subnet = &snapshot.subnets[port.subnet];
                    external::leave_balanced(tables, vpc, subnet, &routed, public, tracer)?
                }
                (None, None, None) => {
                    let about = about(routed, quoted, &choice);
                    let what = (parsed, &routed, standing);
                    forwarding::from_port(tables, (index, port), what, &about, tracer)?
                }
            };
            (routed, way, is_routed)
        }
        Ingress::Peer(peer) => {
            let is_routed = forwarding::is_router(vpc, parsed.eth_dst);
            let routed = choice.destination(tables, entry, is_routed, tracer)?;
            let public = balancing::public(snapshot, entry, standing, &choice);
            let place = (entry.vpc, peer);
            let way =
                forwarding::from_peer(tables, place, (parsed, &routed, standing), public, tracer)?;
            (routed, way, is_routed)
        }
        Ingress::External(_) if vpc.wire.is_some() => {
            let way = external::wire::to_port(vpc, parsed.eth_dst, tracer)?;
            (*flow, way, false)
        }
        Ingress::External(_) => {
            let routed = match choice {
                // It has come from another VPC of this host, to an address that a port has as it is.
                Choice::Untranslated if entry.vni == vpc.vni => *flow,
                // Nothing else passes from the outside within one VNI.
                Choice::Untranslated | Choice::Member(_) => {
                    return Err(DropReason::TranslationGone);
                }
                Choice::Anew => {
                    let (address, port) = external::enter(tables, entry.vpc, flow, tracer)?;
                    if word_family(address) == flow.family() {
                        Flow {
                            destination: address,
                            destination_port: port,
                            ..*flow
                        }
                    } else {
                        external::enter_across(snapshot, flow, (address, port))
                            .ok_or(DropReason::NatUnmapped)?
                    }
                }
                Choice::Kept(_) | Choice::Error(..) => {
                    choice.destination(tables, entry, true, tracer)?
                }
            };
            let Some(endpoint) = vpc.by_address.get(&routed.destination) else {
                learning::check_address(snapshot, entry.vpc, routed.destination, tracer)?;
                return Err(DropReason::NoPort);
            };
            tracer.step("route", || {
                format!(
                    "a port of VPC {} has {}",
                    vpc.id,
                    word_address(routed.destination)
                )
            });
            (routed, forwarding::to_endpoint(snapshot, endpoint), false)
        }
    };
    let choice = match way.exit {
        Some(exit) => choice.without_private_source(flow, exit),
        None => choice,
    };
    let translated = (is_routed, way.exit);
    let (after, mapping) = match member {
        Some(_) => (*flow, None),
        None => choice.source(tables, entry, routed, translated, tracer)?,
    };
    // A packet leaves this VPC for another if it comes from a port; one that comes from a tunnel has done so on its sender's host.
    let into = match entry.ingress {
        Ingress::Port(_) => way.joined,
        Ingress::Peer(_) | Ingress::External(_) => None,
    };
    if way.joined.is_some() && (after != *flow || choice.is_kept()) {
        return Err(DropReason::PeeringTransit);
    }
    if let Egress::Port(index) = way.egress {
        let port = snapshot.port(index).ok_or(DropReason::PortDown)?;
        let seen = nat64::seen(parsed, &after);
        policy(snapshot, port, (&seen, standing), true, tracer)?;
    }
    let dscp = match entry.ingress {
        Ingress::Port(index) => snapshot.port(index).and_then(|port| port.dscp),
        Ingress::Peer(_) | Ingress::External(_) => None,
    };
    let action = Action::new(forwarding::macs(parsed), way.egress, way.macs).marked(dscp);
    let vni = match (into, way.exit) {
        (_, Some(_)) => external::beyond(snapshot, vpc, &way, &after),
        (Some(other), None) => snapshot.vpcs[other].vni,
        (None, None) => vpc.vni,
    };
    let change = choice.change(flow, &after, (vni, vni == entry.vni));
    // What a session keeps may be for somewhere else, where its route led when it began.
    let leads = match &change {
        Change::None => entry.vni,
        Change::Flow(translation) | Change::Error(translation, _) => translation.vni,
    };
    let is_bare = way.exit.is_some() && vni != entry.vni && matches!(choice, Choice::Untranslated);
    if is_bare || leads != vni {
        return Err(DropReason::TranslationGone);
    }
    Ok(Judged {
        decision: Decision {
            action: match change {
                Change::None => action,
                Change::Flow(_) | Change::Error(..) => action.translated(),
            },
            change,
        },
        joined: way.joined,
        mapping,
        member,
    })
}

/// The flow that a port's packet is of, as routes know the packets of that port: with its own address, and with that which its destination becomes. Of an error,
/// that of the packet which it quotes, the other way.
fn about(routed: Flow, quoted: Option<Flow>, choice: &Choice) -> Flow {
    match (quoted, choice) {
        (None, _) => routed,
        (Some(quoted), Choice::Error(_, sent)) => Flow {
            source: sent.flow.source,
            source_port: sent.flow.source_port,
            ..quoted
        },
        (Some(quoted), _) => quoted,
    }
}

fn policy(
    snapshot: &Snapshot,
    port: &Port,
    seen: (&Parsed, Standing),
    towards: bool,
    tracer: &mut impl Tracer,
) -> Result<(), DropReason> {
    policy_eval::acl(snapshot, port, seen.0, towards, tracer)?;
    policy_eval::groups(snapshot, port, seen, towards, tracer)
}

/// Whether a port that the packet comes from or goes to may see one way of a connection only: it sends with anybody's address, so that
/// what it passes on may be answered past it.
fn may_be_one_sided(snapshot: &Snapshot, ingress: Ingress, egress: Egress) -> bool {
    let comes = match ingress {
        Ingress::Port(index) => snapshot.port(index),
        Ingress::Peer(_) | Ingress::External(_) => None,
    };
    let goes = match egress {
        Egress::Port(index) => snapshot.port(index),
        Egress::Peer(_) | Egress::External(_) | Egress::Wire(_) => None,
    };
    [comes, goes]
        .into_iter()
        .flatten()
        .any(Port::sends_for_anybody)
}
