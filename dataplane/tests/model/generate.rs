//! Random fabrics and random traffic, as plans of small numbers: any plan makes sense.

use std::collections::BTreeMap;

use weft_proto::peering::SideState;
use weft_proto::v1::{self, Objects};

use crate::case::Translation;
use crate::rng::Rng;
use crate::semantics::services::GIVEN;
use crate::traffic;

/// Hosts that run weft; one more is foreign.
pub const HOSTS: usize = 3;

/// Prefixes that routes, rules and lists choose from.
const PREFIXES: [&str; 16] = [
    "0.0.0.0/0",
    "::/0",
    "10.0.0.0/16",
    "10.0.1.0/24",
    "10.0.2.0/24",
    "10.0.1.11/32",
    "10.0.1.12/31",
    "10.0.2.12/31",
    "fd00::/16",
    "fd00:1::/64",
    "fd00:2::/64",
    "fd00:1::c/126",
    "203.0.113.0/24",
    "203.0.113.64/26",
    "2001:db8:5::/48",
    "198.51.100.0/24",
];

#[derive(Debug, Clone)]
pub struct FabricPlan {
    /// Every port admits everything, so that what comes after policy is reached.
    pub open: bool,
    /// The hosts have a metadata service.
    pub metadata: bool,
    /// Which families the hosts' tunnel addresses are of.
    pub underlay: u8,
    /// For each host: GRE, a small underlay MTU, two addresses.
    pub hosts: [(bool, bool, bool); HOSTS],
    pub vpcs: Vec<VpcPlan>,
    /// The VPCs have different prefixes.
    pub apart: bool,
    pub peerings: Vec<PeeringPlan>,
    pub translations: Vec<TranslationPlan>,
    /// Ports with narrow devices, and how narrow.
    pub devices: Vec<(u8, u8)>,
    pub balancers: Vec<BalancerPlan>,
    pub segment: Option<SegmentPlan>,
    pub outside: OutsidePlan,
    /// The hosts learn the ports of their VPCs.
    pub learns: bool,
    /// Ports that have a VLAN on the device of another, by bit.
    pub trunks: u32,
}

/// A physical network with an external network on it.
#[derive(Debug, Clone)]
pub struct SegmentPlan {
    /// Which hosts are on it, by bit: at least one.
    pub hosts: u8,
    pub tagged: bool,
    /// Another external network is on it, in a VLAN.
    pub second: bool,
}

/// What VPCs have of the external network.
#[derive(Debug, Clone, Default)]
pub struct OutsidePlan {
    /// Which of its hosts is the first gateway host.
    pub first: u8,
    pub mtu: u8,
    /// Which families have a gateway, by bit; more often than not both.
    pub gateways: u8,
    pub elastics: Vec<ElasticPlan>,
    pub nats: Vec<NatPlan>,
    /// For each VPC, where its default routes lead.
    pub ways: [u8; 3],
    /// Prefixes that are routed to VPCs: of which subnets.
    pub routed: Vec<u8>,
    /// Whether the first network has addresses of its own, and answers pings: by bit.
    pub own: u8,
}

/// An elastic IP of a port.
#[derive(Debug, Clone)]
pub struct ElasticPlan {
    pub port: u8,
    pub v4: bool,
    /// Which outside address.
    pub which: u8,
    pub direct: bool,
}

/// A NAT gateway of a VPC.
#[derive(Debug, Clone)]
pub struct NatPlan {
    pub vpc: u8,
    pub which: u8,
    pub sources: u8,
    pub is_open: bool,
    pub times: u8,
    pub limits: u8,
    pub forwards: Vec<ForwardPlan>,
}

/// A port forward.
#[derive(Debug, Clone)]
pub struct ForwardPlan {
    pub port: u8,
    pub v4: bool,
    pub udp: bool,
    pub range: u8,
}

/// An address that stands for one of a port.
#[derive(Debug, Clone)]
pub struct TranslationPlan {
    port: u8,
    v4: bool,
    towards: u8,
}

/// A load balancer of a VPC.
#[derive(Debug, Clone)]
pub struct BalancerPlan {
    pub subnet: u8,
    /// Which elastic IPs it has, by bit.
    pub public: u8,
    /// Which members do not serve, by bit.
    pub down: u8,
    pub listeners: Vec<ListenerPlan>,
}

#[derive(Debug, Clone)]
pub struct ListenerPlan {
    pub udp: bool,
    pub range: u8,
    pub choice: u8,
    pub dsr: bool,
    pub drop_lost: bool,
    pub members: Vec<MemberPlan>,
}

#[derive(Debug, Clone)]
pub struct MemberPlan {
    pub port: u8,
    pub to: u8,
    pub weight: u8,
    pub draining: bool,
}

/// Two VPCs that a peering joins.
#[derive(Debug, Clone)]
pub struct PeeringPlan {
    pub vpcs: (u8, u8),
    /// State of each side: mostly active.
    pub states: (u8, u8),
    /// Which of them has routes that lead there, by bit.
    pub routed: u8,
}

#[derive(Debug, Clone)]
pub struct VpcPlan {
    pub routes_multicast: bool,
    /// Its gateways answer DNS.
    pub has_dns: bool,
    pub subnets: Vec<SubnetPlan>,
    pub groups: Vec<GroupPlan>,
    pub list: Vec<u8>,
    pub ports: Vec<PortPlan>,
}

#[derive(Debug, Clone)]
pub struct SubnetPlan {
    /// 0 IPv4, 1 IPv6, else both.
    pub family: u8,
    pub own_gateway: bool,
    /// None lets everything pass.
    pub acl: Option<AclPlan>,
    pub routes: Vec<RoutePlan>,
    pub policies: Vec<PolicyPlan>,
    /// What guests are told, by bit.
    pub told: u8,
    /// DHCP options that it gives, two bits each.
    pub options: u32,
    /// Multicast goes to those who have joined.
    pub snoops: bool,
}

#[derive(Debug, Clone)]
pub struct AclPlan {
    pub rules: Vec<(bool, RulePlan)>,
    /// Whether what no rule matches is allowed, in and out.
    pub rest: (bool, bool),
}

#[derive(Debug, Clone)]
pub struct GroupPlan {
    /// Admits everything in.
    pub open: bool,
    pub rules: Vec<RulePlan>,
}

#[derive(Debug, Clone)]
pub struct RulePlan {
    pub egress: bool,
    pub protocol: u8,
    pub range: u8,
    pub remote: u8,
    pub number: u16,
}

#[derive(Debug, Clone)]
pub struct RoutePlan {
    pub prefix: u8,
    pub target: u8,
    pub which: u8,
}

/// A policy route.
#[derive(Debug, Clone)]
pub struct PolicyPlan {
    /// Where it leads, the prefix apart; now and then out, or through a peering, where there is one.
    pub to: RoutePlan,
    /// Prefixes of source and destination; some stand for none.
    pub prefixes: (u8, u8),
    /// Protocol and ports, of a rule.
    pub service: RulePlan,
}

#[derive(Debug, Clone)]
pub struct PortPlan {
    pub absent: bool,
    pub subnet: u8,
    pub host: u8,
    /// Groups by bit.
    pub groups: u8,
    /// What it may use besides.
    pub pairs: u8,
    pub unguarded: bool,
    pub clamp_mss: bool,
    /// An IPv6 address that ends in zeros.
    pub odd_address: bool,
    /// The host that it has just left, if there is one of this number.
    pub left: u8,
    /// DHCP options that it gives, two bits each.
    pub options: u32,
    pub dscp: u8,
    /// An appliance there does not live: in one of so many cases.
    pub down: u8,
}

/// One step of a run.
#[derive(Debug, Clone)]
pub enum Step {
    Packet(PacketPlan),
    /// A port answers a frame that it got, so many back.
    Answer(u8),
    /// A guest that got a frame passes it on, as a router does.
    PassOn(u8),
    /// A port sends a frame again, so many back.
    Repeat(u8),
    /// A port that got a frame reports an error about it; or another port does.
    Report {
        back: u8,
        stranger: bool,
        cut: bool,
    },
    Tcp {
        connection: u8,
        from_server: bool,
        act: Act,
        /// So many segments of data in one vector besides.
        more: u8,
    },
    /// A port sends several packets at once.
    Vector(Vec<PacketPlan>),
    /// A port sends a packet in pieces.
    Pieces(PacketPlan, PiecesPlan),
    /// A port leaves a packet to be split, into what and into pieces of which size.
    Segment(PacketPlan, u8, u16),
    /// A host gets something off the wire.
    Wire(WirePlan),
    /// A port sends a packet to an outside address.
    Out(PacketPlan),
    /// And leaves it to be split, or sends it in pieces.
    OutSegment(PacketPlan, u8, u16),
    OutPieces(PacketPlan, PiecesPlan),
    /// Something comes from outside.
    In(InPlan),
    Arp(NeighborPlan),
    Solicit(NeighborPlan),
    /// A question to one of the gateway's services.
    Ask(AskPlan),
    /// A report of IGMP or MLD, or a packet to a group.
    Multicast(MulticastPlan),
    Change(Change),
    Wait(u8),
}

#[derive(Debug, Clone)]
pub struct NeighborPlan {
    pub from: u8,
    pub target: u8,
    pub lie: u8,
}

#[derive(Debug, Clone)]
pub struct AskPlan {
    pub from: u8,
    pub service: u8,
    /// Which message.
    pub kind: u8,
    /// Which of the ways to put it.
    pub way: u8,
    pub lie: u8,
}

#[derive(Debug, Clone)]
pub struct MulticastPlan {
    pub from: u8,
    pub v6: bool,
    /// A packet, or which message.
    pub kind: u8,
    pub group: u8,
    /// Ports that are named as sources, by bit.
    pub sources: u8,
    pub lie: u8,
}

#[derive(Debug, Clone)]
pub struct PacketPlan {
    pub from: u8,
    pub to: u8,
    pub v6: bool,
    pub way: u8,
    pub body: u8,
    pub ports: u8,
    pub size: u16,
    pub ttl: u8,
    pub class: u8,
    pub twist: u8,
    pub cut: u16,
}

/// How a packet is cut, and what is wrong with the pieces.
#[derive(Debug, Clone)]
pub struct PiecesPlan {
    pub size: u8,
    pub trouble: u8,
    pub which: u8,
    /// All in one vector.
    pub together: bool,
}

/// What becomes of a frame that crossed the underlay, so many back.
#[derive(Debug, Clone)]
pub struct WirePlan {
    pub back: u8,
    pub change: u8,
    pub value: u16,
}

/// What comes from outside, and what is odd about it.
#[derive(Debug, Clone)]
pub struct InPlan {
    /// An answer to a frame that left, so many back; an error about one; or something new.
    pub kind: u8,
    pub back: u8,
    pub from: u8,
    pub to: u8,
    pub lie: u8,
    pub packet: PacketPlan,
    /// It comes in pieces.
    pub pieces: Option<PiecesPlan>,
}

#[derive(Debug, Clone, Copy)]
pub enum Act {
    Handshake,
    Syn,
    /// With data.
    FastOpen,
    SynAck,
    /// The answer to a SYN of one that holds a connection.
    Challenge,
    /// The answer to a SYN of one that does not listen.
    Refuse,
    Ack,
    KeepAlive,
    Data(u16),
    /// Too big for a tunnel, without "don't fragment".
    BigData,
    /// So much that it is left to be split, into pieces of this size.
    Segment(u16, u16),
    Old,
    Fin,
    Rst,
    BareRst,
    /// In the window, but not exact.
    NearRst,
    FarData,
    FarAck,
    FarRst,
}

#[derive(Debug, Clone)]
pub enum Change {
    /// The same again, under another generation.
    Nothing,
    Group {
        vpc: u8,
        group: u8,
        plan: GroupPlan,
    },
    Acl {
        vpc: u8,
        subnet: u8,
        plan: Option<AclPlan>,
    },
    Routes {
        vpc: u8,
        subnet: u8,
        plan: Vec<RoutePlan>,
    },
    Policies {
        vpc: u8,
        subnet: u8,
        plan: Vec<PolicyPlan>,
    },
    List {
        vpc: u8,
        plan: Vec<u8>,
    },
    Port {
        vpc: u8,
        port: u8,
        plan: PortPlan,
    },
    Host {
        host: u8,
        gre: bool,
    },
    Translations(Vec<TranslationPlan>),
    Trunks(u32),
    Multicast {
        vpc: u8,
        subnet: u8,
        snoops: bool,
        routes: bool,
    },
    Balancers(Vec<BalancerPlan>),
    /// Members of one come, go or drain.
    Members(u8, Vec<MemberPlan>),
    /// Others of one do not serve.
    Health(u8, u8),
    Peerings(Vec<PeeringPlan>),
    /// Of the outside, one thing or all.
    Outside(u8, OutsidePlan),
}

fn rule(rng: &mut Rng) -> RulePlan {
    RulePlan {
        egress: rng.coin(),
        protocol: rng.below(10),
        range: rng.below(6),
        remote: rng.below(28),
        number: 1 + u16::from(rng.below(99)),
    }
}

fn acl(rng: &mut Rng) -> Option<AclPlan> {
    rng.percent(25).then(|| AclPlan {
        rules: rng.list(0..4, |rng| (rng.coin(), rule(rng))),
        rest: (rng.percent(80), rng.percent(80)),
    })
}

fn group(rng: &mut Rng) -> GroupPlan {
    GroupPlan {
        open: rng.coin(),
        rules: rng.list(0..4, rule),
    }
}

fn routes(rng: &mut Rng) -> Vec<RoutePlan> {
    rng.list(0..4, |rng| RoutePlan {
        prefix: rng.byte(),
        target: rng.byte(),
        which: rng.byte(),
    })
}

fn policies(rng: &mut Rng) -> Vec<PolicyPlan> {
    if rng.coin() {
        return Vec::new();
    }
    rng.list(1..4, |rng| PolicyPlan {
        to: RoutePlan {
            prefix: 0,
            target: rng.byte(),
            which: rng.byte(),
        },
        prefixes: (rng.below(40), rng.below(40)),
        service: rule(rng),
    })
}

/// Mostly few of them.
fn options(rng: &mut Rng) -> u32 {
    let mut options = 0;
    for i in 0..GIVEN.len() {
        if rng.percent(15) {
            options |= u32::from(1 + rng.below(3)) << (2 * i);
        }
    }
    options
}

fn port(rng: &mut Rng) -> PortPlan {
    PortPlan {
        absent: rng.percent(10),
        subnet: rng.byte(),
        host: rng.byte(),
        groups: rng.byte(),
        pairs: rng.below(12),
        unguarded: rng.percent(10),
        clamp_mss: rng.coin(),
        odd_address: rng.percent(10),
        left: rng.below(20),
        options: options(rng),
        dscp: rng.below(10),
        down: rng.below(8),
    }
}

fn subnet(rng: &mut Rng) -> SubnetPlan {
    SubnetPlan {
        family: rng.below(6),
        own_gateway: rng.percent(20),
        acl: acl(rng),
        routes: routes(rng),
        policies: policies(rng),
        told: rng.byte(),
        options: options(rng),
        snoops: rng.percent(60),
    }
}

fn vpc(rng: &mut Rng) -> VpcPlan {
    VpcPlan {
        routes_multicast: rng.coin(),
        has_dns: rng.coin(),
        subnets: rng.list(1..4, subnet),
        groups: rng.list(1..4, group),
        list: rng.list(0..3, Rng::byte),
        ports: rng.list(2..6, port),
    }
}

pub fn fabric(rng: &mut Rng) -> FabricPlan {
    FabricPlan {
        open: rng.coin(),
        metadata: rng.coin(),
        underlay: rng.below(8),
        hosts: std::array::from_fn(|_| (rng.coin(), rng.percent(20), rng.coin())),
        vpcs: rng.list(1..4, vpc),
        apart: rng.percent(70),
        peerings: rng.list(0..3, peering),
        translations: rng.list(0..4, translation),
        devices: rng.list(0..4, |rng| (rng.byte(), rng.byte())),
        balancers: rng.list(0..4, balancer),
        segment: rng.percent(65).then(|| SegmentPlan {
            hosts: 1 + rng.below(7),
            tagged: rng.percent(25),
            second: rng.percent(25),
        }),
        outside: outside(rng),
        learns: rng.percent(25),
        trunks: trunks(rng),
    }
}

/// None in half of the fabrics.
fn trunks(rng: &mut Rng) -> u32 {
    let some = u32::from(rng.word()) << 16 | u32::from(rng.word());
    if rng.coin() { some } else { 0 }
}

fn outside(rng: &mut Rng) -> OutsidePlan {
    OutsidePlan {
        first: rng.byte(),
        mtu: rng.below(8),
        gateways: if rng.percent(85) { 3 } else { rng.byte() },
        elastics: rng.list(1..8, |rng| ElasticPlan {
            port: rng.byte(),
            v4: rng.percent(65),
            which: rng.byte(),
            direct: rng.percent(30),
        }),
        nats: nats(rng),
        ways: std::array::from_fn(|_| rng.byte()),
        routed: rng.list(0..3, Rng::byte),
        own: rng.below(4),
    }
}

fn nats(rng: &mut Rng) -> Vec<NatPlan> {
    rng.list(0..3, |rng| NatPlan {
        vpc: rng.byte(),
        which: rng.byte(),
        sources: rng.below(7),
        is_open: rng.coin(),
        times: rng.byte(),
        limits: rng.byte(),
        forwards: rng.list(0..3, |rng| ForwardPlan {
            port: rng.byte(),
            v4: rng.percent(70),
            udp: rng.percent(60),
            range: rng.byte(),
        }),
    })
}

fn peering(rng: &mut Rng) -> PeeringPlan {
    let state = |rng: &mut Rng| if rng.percent(85) { 0 } else { rng.below(8) };
    PeeringPlan {
        vpcs: (rng.byte(), rng.byte()),
        states: (state(rng), state(rng)),
        routed: if rng.percent(80) { 3 } else { rng.byte() },
    }
}

fn balancer(rng: &mut Rng) -> BalancerPlan {
    BalancerPlan {
        subnet: rng.byte(),
        public: if rng.percent(60) { rng.byte() } else { 0 },
        down: down(rng),
        listeners: rng.list(1..4, |rng| ListenerPlan {
            udp: rng.coin(),
            range: rng.byte(),
            choice: rng.below(8),
            dsr: rng.percent(20),
            drop_lost: rng.percent(30),
            members: members(rng),
        }),
    }
}

fn down(rng: &mut Rng) -> u8 {
    if rng.percent(40) {
        rng.byte() & rng.byte()
    } else {
        0
    }
}

fn members(rng: &mut Rng) -> Vec<MemberPlan> {
    let least = u8::from(!rng.percent(10));
    rng.list(least..4, |rng| MemberPlan {
        port: rng.byte(),
        to: rng.below(5),
        weight: rng.below(6),
        draining: rng.percent(15),
    })
}

fn translation(rng: &mut Rng) -> TranslationPlan {
    TranslationPlan {
        port: rng.byte(),
        v4: rng.percent(70),
        towards: rng.below(3),
    }
}

fn packet(rng: &mut Rng) -> PacketPlan {
    PacketPlan {
        from: rng.byte(),
        to: rng.byte(),
        v6: rng.coin(),
        way: rng.below(20),
        body: rng.below(20),
        ports: rng.below(12),
        size: rng.below(64).into(),
        ttl: rng.below(20),
        class: rng.below(20),
        twist: rng.below(60),
        cut: rng.word(),
    }
}

fn pieces(rng: &mut Rng) -> PiecesPlan {
    PiecesPlan {
        size: rng.below(6),
        trouble: rng.below(20),
        which: rng.byte(),
        together: rng.coin(),
    }
}

fn act(rng: &mut Rng) -> Act {
    match rng.below(29) {
        0..4 => Act::Handshake,
        4 => Act::Syn,
        5 => Act::SynAck,
        6..9 => Act::Ack,
        9..14 => Act::Data(1 + rng.word() % 499),
        14 => Act::BigData,
        15 => Act::Segment(1 + rng.word() % 9000, 1 + rng.word() % 1500),
        16 => Act::Old,
        17..19 => Act::Fin,
        19 => Act::Rst,
        20 => Act::BareRst,
        21 => Act::FarData,
        22 => Act::FarAck,
        23 => Act::FastOpen,
        24 => Act::Challenge,
        25 => Act::Refuse,
        26 => Act::KeepAlive,
        27 => Act::NearRst,
        _ => Act::FarRst,
    }
}

fn change(rng: &mut Rng) -> Change {
    match rng.below(22) {
        0 => Change::Nothing,
        21 => Change::Trunks(trunks(rng)),
        18 => Change::Policies {
            vpc: rng.byte(),
            subnet: rng.byte(),
            plan: policies(rng),
        },
        19 | 20 => Change::Multicast {
            vpc: rng.byte(),
            subnet: rng.byte(),
            snoops: rng.percent(60),
            routes: rng.coin(),
        },
        11 => Change::Balancers(rng.list(0..4, balancer)),
        12..16 => Change::Members(rng.byte(), members(rng)),
        16 | 17 => Change::Health(rng.byte(), down(rng)),
        9 | 10 => Change::Outside(rng.below(9), outside(rng)),
        8 => Change::Peerings(rng.list(0..3, peering)),
        7 => Change::Translations(rng.list(0..4, translation)),
        1 => Change::Group {
            vpc: rng.byte(),
            group: rng.byte(),
            plan: group(rng),
        },
        2 => Change::Acl {
            vpc: rng.byte(),
            subnet: rng.byte(),
            plan: acl(rng),
        },
        3 => Change::Routes {
            vpc: rng.byte(),
            subnet: rng.byte(),
            plan: routes(rng),
        },
        4 => Change::List {
            vpc: rng.byte(),
            plan: rng.list(0..3, Rng::byte),
        },
        5 => Change::Port {
            vpc: rng.byte(),
            port: rng.byte(),
            plan: port(rng),
        },
        _ => Change::Host {
            host: rng.byte(),
            gre: rng.coin(),
        },
    }
}

fn neighbor(rng: &mut Rng) -> NeighborPlan {
    NeighborPlan {
        from: rng.byte(),
        target: rng.byte(),
        lie: rng.below(12),
    }
}

fn ask(rng: &mut Rng) -> AskPlan {
    AskPlan {
        from: rng.byte(),
        service: rng.below(3),
        kind: rng.byte(),
        way: rng.byte(),
        lie: rng.below(16),
    }
}

fn multicast(rng: &mut Rng) -> MulticastPlan {
    MulticastPlan {
        from: rng.byte(),
        v6: rng.coin(),
        kind: rng.below(24),
        // Mostly the same one.
        group: if rng.coin() { 0 } else { rng.byte() },
        sources: rng.below(8),
        lie: rng.below(30),
    }
}

/// The next step of a run; most are packets.
pub fn step(rng: &mut Rng) -> Step {
    match rng.below(112) {
        100..112 => Step::Multicast(multicast(rng)),
        0..3 => Step::Segment(packet(rng), rng.below(4), 1 + rng.word() % 1500),
        3..8 => Step::Packet(packet(rng)),
        8..12 => Step::Out(packet(rng)),
        12..14 => match rng.below(4) {
            0 => Step::OutSegment(packet(rng), rng.below(4), 1 + rng.word() % 1500),
            1 => Step::OutPieces(packet(rng), pieces(rng)),
            _ => Step::Out(packet(rng)),
        },
        14..18 => Step::Vector(rng.list(2..7, packet)),
        18..24 => Step::Pieces(packet(rng), pieces(rng)),
        24..32 => Step::Wire(WirePlan {
            back: rng.below(8),
            change: rng.below(32),
            value: rng.word(),
        }),
        32..43 => Step::Answer(rng.below(4)),
        43..45 => Step::PassOn(rng.below(4)),
        45..52 => Step::Repeat(rng.below(8)),
        52..55 => Step::Report {
            back: rng.below(4),
            stranger: rng.percent(30),
            cut: rng.coin(),
        },
        80..84 => Step::Out(packet(rng)),
        55..80 => Step::Tcp {
            connection: rng.below(3),
            from_server: rng.coin(),
            act: act(rng),
            more: if rng.percent(20) { rng.below(6) } else { 0 },
        },
        84..88 => Step::In(InPlan {
            kind: rng.below(20),
            back: rng.below(6),
            from: rng.byte(),
            to: rng.byte(),
            lie: rng.below(24),
            packet: packet(rng),
            pieces: rng.percent(15).then(|| pieces(rng)),
        }),
        88..90 => Step::Arp(neighbor(rng)),
        90..92 => Step::Solicit(neighbor(rng)),
        92..96 => Step::Ask(ask(rng)),
        96..98 => Step::Change(change(rng)),
        _ => Step::Wait(rng.byte()),
    }
}

impl FabricPlan {
    pub fn change(&mut self, change: &Change) {
        fn pick<T>(list: &mut [T], index: u8) -> &mut T {
            let len = list.len();
            &mut list[usize::from(index) % len]
        }
        match change {
            Change::Nothing => {}
            Change::Group { vpc, group, plan } => {
                *pick(&mut pick(&mut self.vpcs, *vpc).groups, *group) = plan.clone();
            }
            Change::Acl { vpc, subnet, plan } => {
                pick(&mut pick(&mut self.vpcs, *vpc).subnets, *subnet).acl = plan.clone();
            }
            Change::Routes { vpc, subnet, plan } => {
                pick(&mut pick(&mut self.vpcs, *vpc).subnets, *subnet).routes = plan.clone();
            }
            Change::Policies { vpc, subnet, plan } => {
                pick(&mut pick(&mut self.vpcs, *vpc).subnets, *subnet).policies = plan.clone();
            }
            Change::List { vpc, plan } => pick(&mut self.vpcs, *vpc).list = plan.clone(),
            Change::Port { vpc, port, plan } => {
                let port = pick(&mut pick(&mut self.vpcs, *vpc).ports, *port);
                // It moves, goes or comes, and its policy changes; it stays in its subnet, with its addresses.
                *port = PortPlan {
                    subnet: port.subnet,
                    odd_address: port.odd_address,
                    ..plan.clone()
                };
            }
            Change::Host { host, gre } => pick(&mut self.hosts, *host).0 = *gre,
            Change::Trunks(trunks) => self.trunks = *trunks,
            Change::Translations(plans) => self.translations.clone_from(plans),
            Change::Peerings(plans) => self.peerings.clone_from(plans),
            Change::Multicast {
                vpc,
                subnet,
                snoops,
                routes,
            } => {
                let vpc = pick(&mut self.vpcs, *vpc);
                vpc.routes_multicast = *routes;
                pick(&mut vpc.subnets, *subnet).snoops = *snoops;
            }
            Change::Balancers(plans) => self.balancers.clone_from(plans),
            Change::Health(which, down) => {
                let vpc = pick(&mut self.vpcs, *which);
                pick(&mut vpc.ports, which >> 3).down = down & 1;
                if !self.balancers.is_empty() {
                    pick(&mut self.balancers, *which).down = *down;
                }
            }
            Change::Members(which, plans) => {
                let listeners = self.balancers.iter_mut().flat_map(|it| &mut it.listeners);
                let mut listeners: Vec<&mut ListenerPlan> = listeners.collect();
                if !listeners.is_empty() {
                    let members = &mut pick(&mut listeners, *which).members;
                    if plans.len() < 3 && !members.is_empty() {
                        members.remove(0);
                    } else {
                        members.clone_from(plans);
                    }
                }
            }
            Change::Outside(which, plan) => {
                let plan = plan.clone();
                match which {
                    0 => self.outside.first = plan.first,
                    1 => (self.outside.mtu, self.outside.gateways) = (plan.mtu, plan.gateways),
                    2 | 3 => self.outside.elastics = plan.elastics,
                    4 => self.outside.nats = plan.nats,
                    5 => self.outside.ways = plan.ways,
                    6 | 7 => {
                        // The same gateways with other addresses.
                        for nat in &mut self.outside.nats {
                            nat.which = plan.first;
                        }
                    }
                    _ => self.outside = plan,
                }
            }
        }
    }

    /// The configuration that the plan stands for.
    pub fn objects(&self) -> Objects {
        let mut objects = Objects::default();
        for (i, (gre, small, two)) in self.hosts.iter().enumerate() {
            objects.hosts.push(v1::Host {
                id: format!("h{i}"),
                vteps: self.vteps(i, *two),
                encapsulation: if *gre { "gre" } else { "" }.into(),
                underlay_mtu: if *small { 1400 } else { 0 },
                foreign: false,
                physical_networks: match &self.segment {
                    Some(segment) if segment.hosts >> i & 1 != 0 => vec!["physnet".into()],
                    _ => Vec::new(),
                },
                ..v1::Host::default()
            });
        }
        objects.hosts.push(v1::Host {
            id: "foreign".into(),
            vteps: self.vteps(9, false),
            foreign: true,
            ..v1::Host::default()
        });
        for (v, vpc) in self.vpcs.iter().enumerate() {
            // At most three subnets each.
            let first = if self.apart { 1 + 3 * v } else { 1 };
            let place = Place {
                vpc: format!("v{v}"),
                vni: 100 + v as u32,
                first,
            };
            vpc.add_to(&place, self.open, &mut objects);
        }
        self.add_trunks(&mut objects);
        for (i, plan) in self.balancers.iter().enumerate() {
            plan.add_to(i, &mut objects);
        }
        for (i, plan) in self.peerings.iter().enumerate() {
            plan.add_to(&format!("p{i}"), self.vpcs.len(), &mut objects);
        }
        if let Some(segment) = &self.segment {
            self.outside.add_to(segment, &mut objects);
            for (i, plan) in self.balancers.iter().enumerate() {
                plan.bind(i, &mut objects);
            }
        }
        objects
    }

    /// Makes some ports subports of the first port of their host that is none.
    fn add_trunks(&self, objects: &mut Objects) {
        let is_subport = |i: usize| self.trunks >> (i % 32) & 1 != 0;
        let ports = objects.ports.clone();
        for (i, port) in objects.ports.iter_mut().enumerate() {
            let mut others = ports.iter().enumerate();
            let parent = others.find(|(i, it)| it.host == port.host && !is_subport(*i));
            if let Some((_, parent)) = parent.filter(|_| is_subport(i)) {
                port.trunk = Some(v1::Trunk {
                    parent: parent.id.clone(),
                    vlan: 1 + i as u32,
                });
            }
        }
    }

    /// What the devices of some ports of these objects take.
    pub fn device_mtus(&self, objects: &Objects) -> BTreeMap<String, u16> {
        let port = |number: u8| {
            let place = usize::from(number) % objects.ports.len().max(1);
            objects.ports.get(place)
        };
        let all = self.devices.iter().filter_map(|(number, mtu)| {
            let mtu = [1280, 1300, 1400, 1492][usize::from(*mtu) % 4];
            Some((port(*number)?.id.clone(), mtu))
        });
        all.collect()
    }

    /// The translations that the plan stands for, of ports of these objects.
    pub fn translations(&self, objects: &Objects) -> Vec<Translation> {
        let mut all: Vec<Translation> = Vec::new();
        for (i, plan) in self.translations.iter().enumerate() {
            let Some(port) = objects
                .ports
                .get(usize::from(plan.port) % objects.ports.len().max(1))
            else {
                continue;
            };
            let Some(inside) = traffic::address(port, plan.v4) else {
                continue;
            };
            let taken = |other: &Translation| other.vpc == port.vpc && other.inside == inside;
            if all.iter().any(taken) || has_elastic(objects, &port.vpc, inside) {
                continue;
            }
            let outside = if plan.v4 { "198.18.0." } else { "fd00:aa::" };
            let towards: &[&str] = match (plan.towards, plan.v4) {
                (0, _) => &[],
                (1, true) => &["203.0.113.0/24"],
                (1, false) => &["2001:db8:5::/48"],
                (_, true) => &["0.0.0.0/0"],
                (_, false) => &["fd00::/8"],
            };
            all.push(Translation {
                vpc: port.vpc.clone(),
                inside,
                outside: format!("{outside}{}", i + 1).parse().unwrap(),
                towards: towards.iter().map(ToString::to_string).collect(),
            });
        }
        all
    }

    fn vteps(&self, host: usize, two: bool) -> Vec<String> {
        let v4 = format!("192.0.2.{}", host + 1);
        let v6 = format!("2001:db8:ffff::{}", host + 31);
        let mut vteps = match (self.underlay, host) {
            (0..3, _) => vec![v4],
            (3..5, _) => vec![v6],
            (5, _) | (6, 0) => vec![v4, v6],
            (6, _) => vec![v6, v4],
            // Some can't reach each other.
            (_, 0) => vec![v4],
            (_, 1) => vec![v6],
            _ => vec![v6, v4],
        };
        if two {
            let second = if vteps[0].contains(':') {
                format!("2001:db8:ffff::{}", host + 51)
            } else {
                format!("192.0.2.{}", host + 101)
            };
            vteps.push(second);
        }
        vteps
    }
}

impl OutsidePlan {
    fn add_to(&self, segment: &SegmentPlan, objects: &mut Objects) {
        let hosts = (0..HOSTS).filter(|host| segment.hosts >> host & 1 != 0);
        let mut hosts: Vec<String> = hosts.map(|host| format!("h{host}")).collect();
        let first = usize::from(self.first) % hosts.len();
        hosts.rotate_left(first);
        if self.first == 0 {
            hosts.clear();
        }
        // Each network has one: what gateway hosts tell each other is not modelled.
        let mut others = hosts.clone();
        hosts.truncate(1);
        let gateways = ["198.51.100.14", "2001:db8:5::7"];
        let of_family = |bit: &usize| self.gateways >> bit & 1 != 0;
        objects.external_networks.push(v1::ExternalNetwork {
            id: "net".into(),
            physical_network: "physnet".into(),
            vlan: if segment.tagged { 321 } else { 0 },
            prefixes: vec!["198.51.100.0/28".into(), "2001:db8:5::/125".into()],
            gateways: (0..2)
                .filter(of_family)
                .map(|i| gateways[i].to_owned())
                .collect(),
            mtu: [0, 0, 0, 0, 1300, 1400, 1480, 9000][usize::from(self.mtu)],
            gateway_hosts: hosts,
            answer_pings: self.own >> 1 & 1 != 0,
            ..v1::ExternalNetwork::default()
        });
        self.add_routed(objects);
        if segment.second {
            others.reverse();
            others.truncate(1);
            objects.external_networks.push(v1::ExternalNetwork {
                id: "other".into(),
                physical_network: "physnet".into(),
                vlan: 322,
                prefixes: vec!["192.88.99.0/28".into(), "2001:db8:6::/125".into()],
                gateways: vec!["192.88.99.14".into()],
                gateway_hosts: others,
                ..v1::ExternalNetwork::default()
            });
        }
        for (i, plan) in self.elastics.iter().enumerate() {
            plan.add_to(i, objects);
        }
        for (i, plan) in self.nats.iter().enumerate() {
            plan.add_to(i, objects);
        }
        let nats: Vec<(String, String)> = objects
            .nat_gateways
            .iter()
            .map(|gateway| (gateway.vpc.clone(), gateway.id.clone()))
            .collect();
        for table in &mut objects.route_tables {
            let vpc = usize::from(table.vpc.as_bytes()[1] - b'0');
            let nat = nats.iter().find(|(vpc, _)| *vpc == table.vpc);
            let route = match (self.ways[vpc] % 8, nat) {
                (0, _) => continue,
                (1, _) | (_, None) => v1::Route {
                    external: "net".into(),
                    ..v1::Route::default()
                },
                (_, Some((_, nat))) => v1::Route {
                    nat: nat.clone(),
                    ..v1::Route::default()
                },
            };
            for policy in &mut table.policies {
                if policy.to.is_some() && policy.priority % 3 == 0 {
                    policy.to = Some(route.clone());
                }
            }
            for prefix in ["0.0.0.0/0", "::/0"] {
                // Most often in place of what was there.
                if self.ways[vpc] < 200 {
                    table.routes.retain(|route| {
                        let is_outside = ["203", "198", "2001"].iter();
                        let mut is_outside = is_outside.map(|it| route.prefix.starts_with(it));
                        route.prefix != prefix && !is_outside.any(|is| is)
                    });
                }
                if table.routes.iter().all(|route| route.prefix != prefix) {
                    table.routes.push(v1::Route {
                        prefix: prefix.into(),
                        ..route.clone()
                    });
                }
            }
        }
    }
}

impl OutsidePlan {
    /// Prefixes of subnets that are routed there, no two of them the same.
    fn add_routed(&self, objects: &mut Objects) {
        let network = objects.external_networks.last_mut().unwrap();
        if self.own & 1 == 0 || network.gateway_hosts.is_empty() {
            return;
        }
        network.routers = vec!["198.51.100.9".into(), "2001:db8:5::4".into()];
        for which in &self.routed {
            let count = objects.subnets.len().max(1);
            let Some(subnet) = objects.subnets.get(usize::from(*which) % count) else {
                continue;
            };
            for prefix in &subnet.cidrs {
                let parse = |text: &String| text.parse::<ipnetwork::IpNetwork>().unwrap();
                let new = parse(prefix);
                let overlaps = |other: &v1::RoutedPrefix| {
                    let other = parse(&other.prefix);
                    other.contains(new.network()) || new.contains(other.network())
                };
                if !network.routed.iter().any(overlaps) {
                    network.routed.push(v1::RoutedPrefix {
                        prefix: prefix.clone(),
                        vpc: subnet.vpc.clone(),
                    });
                }
            }
        }
    }
}

impl ElasticPlan {
    fn add_to(&self, number: usize, objects: &mut Objects) {
        let count = objects.ports.len().max(1);
        let Some(port) = objects.ports.get(usize::from(self.port) % count) else {
            return;
        };
        let address = match self.v4 {
            true => format!("198.51.100.{}", 2 + self.which % 4),
            false => format!("2001:db8:5::{}", 1 + self.which % 3),
        };
        let second = objects.external_networks.len() > 1 && self.which >= 170;
        let (network, address) = match second {
            true => {
                let address = address.replace("198.51.100", "192.88.99");
                ("other", address.replace("2001:db8:5:", "2001:db8:6:"))
            }
            false => ("net", address),
        };
        let has = |taken: &v1::ElasticIp| {
            let same = taken.port == port.id && taken.address.contains('.') == self.v4;
            taken.address == address || same
        };
        if traffic::address(port, self.v4).is_none() || objects.elastic_ips.iter().any(has) {
            return;
        }
        objects.elastic_ips.push(v1::ElasticIp {
            id: format!("e{number}"),
            external_network: network.into(),
            address,
            port: port.id.clone(),
            mode: if self.direct {
                "direct".into()
            } else {
                String::new()
            },
            ..v1::ElasticIp::default()
        });
    }
}

impl NatPlan {
    fn add_to(&self, number: usize, objects: &mut Objects) {
        let vpcs = objects.vpcs.len();
        let vpc = format!("v{}", usize::from(self.vpc) % vpcs);
        // Two gateways have no address in common.
        let mut addresses = match (number, self.which % 4) {
            (0, 0) => vec!["198.51.100.6"],
            (0, 1) => vec!["198.51.100.6", "198.51.100.7", "2001:db8:5::5"],
            (0, _) => vec!["2001:db8:5::5", "198.51.100.6"],
            (_, 0) => vec!["198.51.100.8"],
            (_, _) => vec!["198.51.100.8", "2001:db8:5::6"],
        };
        if self.which >= 230 {
            addresses.rotate_left(1);
        }
        let ports = objects.ports.iter().filter(|port| port.vpc == vpc);
        let ports: Vec<&v1::Port> = ports.collect();
        let mut forwards = Vec::new();
        for (i, plan) in self.forwards.iter().enumerate() {
            if let Some(port) = ports.get(usize::from(plan.port) % ports.len().max(1)) {
                forwards.extend(plan.build(i, port, &addresses));
            }
        }
        objects.nat_gateways.push(v1::NatGateway {
            id: format!("n{number}"),
            vpc,
            external_network: "net".into(),
            addresses: addresses.iter().map(ToString::to_string).collect(),
            sources: match self.sources {
                0..4 => Vec::new(),
                4 => vec!["10.0.1.0/24".into(), "fd00::/16".into()],
                5 => vec!["10.0.1.12/31".into()],
                _ => vec!["10.0.0.0/16".into(), "fd00:1::/64".into()],
            },
            port_forwards: forwards,
            filtering: match self.is_open {
                true => "endpoint_independent".into(),
                false => String::new(),
            },
            // What goes between the families is for the behaviours.
            nat64_prefix: String::new(),
            timeouts: match self.times {
                0..100 => None,
                times => Some(v1::NatTimeouts {
                    tcp_established: [0, 7440, 7500][usize::from(times) % 3],
                    tcp_transitory: [0, 241, 8000][usize::from(times) / 3 % 3],
                    udp: [0, 120, 240][usize::from(times) / 9 % 3],
                    icmp: [0, 60, 120][usize::from(times) / 27 % 3],
                }),
            },
            limits: match self.limits {
                0..150 => None,
                limits => Some(v1::NatLimits {
                    mappings: [0, 1, 2, 5][usize::from(limits) % 4],
                    mappings_per_address: [0, 1, 2, 3][usize::from(limits) / 4 % 4],
                }),
            },
            ..v1::NatGateway::default()
        });
    }
}

impl BalancerPlan {
    fn add_to(&self, number: usize, objects: &mut Objects) {
        let place = usize::from(self.subnet) % objects.subnets.len();
        let subnet = &objects.subnets[place];
        let addresses = subnet.cidrs.iter().map(|cidr| {
            let (network, _) = cidr.rsplit_once("0/").or(cidr.rsplit_once('/')).unwrap();
            format!("{network}{}", 90 + number)
        });
        let ports = objects.ports.iter().filter(|port| port.vpc == subnet.vpc);
        let ports: Vec<&v1::Port> = ports.collect();
        let mut taken: Vec<(bool, u32, u32)> = Vec::new();
        let mut listeners = Vec::new();
        for plan in &self.listeners {
            let (first, last) = match plan.range {
                0..60 => (80, 80),
                60..200 => (1, 1024),
                200..220 => (443, 900),
                _ => (53, 53),
            };
            let overlaps =
                |(udp, a, b): &(bool, u32, u32)| *udp == plan.udp && first <= *b && *a <= last;
            if taken.iter().any(overlaps) {
                continue;
            }
            taken.push((plan.udp, first, last));
            let v6_only = subnet.cidrs.iter().all(|cidr| cidr.contains(':'));
            listeners.push(plan.build((first, last), &ports, v6_only));
        }
        objects.load_balancers.push(v1::LoadBalancer {
            id: format!("lb{number}"),
            vpc: subnet.vpc.clone(),
            addresses: addresses.collect(),
            listeners,
            ..v1::LoadBalancer::default()
        });
        self.add_health(objects);
    }

    /// What was found of the members of the last one.
    fn add_health(&self, objects: &mut Objects) {
        let Some(balancer) = objects.load_balancers.last() else {
            return;
        };
        let listeners = balancer.listeners.iter();
        let members = listeners.flat_map(|it| it.members.iter().map(move |member| (it, member)));
        for (place, (listener, member)) in members.enumerate() {
            if self.down >> (place % 8) & 1 == 0 {
                continue;
            }
            let port = objects.ports.iter().find(|port| port.id == member.port);
            let addresses = match port {
                Some(port) => &port.addresses[..],
                None => std::slice::from_ref(&member.address),
            };
            for address in addresses.iter().filter_map(|text| text.parse().ok()) {
                let at = (address, listener.first_port_at(member));
                let health = v1::MemberHealth::of(balancer, listener, at);
                if objects.member_health.iter().all(|it| it.id != health.id) {
                    objects.member_health.push(health);
                }
            }
        }
    }
}

impl BalancerPlan {
    fn bind(&self, number: usize, objects: &mut Objects) {
        // Members answer clients outside by their hosts with nat alone.
        let id = format!("lb{number}");
        let own = objects.load_balancers.iter().find(|it| it.id == id);
        if own.is_some_and(|it| it.listeners.iter().any(|it| it.mode == "dsr")) {
            return;
        }
        let place = usize::from(self.subnet) % objects.subnets.len();
        let cidrs = objects.subnets[place].cidrs.clone();
        // Those of a VPC are on one network.
        let vpc = objects.subnets[place].vpc.clone();
        let second = objects.external_networks.len() > 1 && vpc.ends_with('1');
        let (network, prefixes) = match second {
            true => ("other", ["192.88.99.", "2001:db8:6::"]),
            false => ("net", ["198.51.100.", "2001:db8:5::"]),
        };
        for (i, prefix) in prefixes.into_iter().enumerate() {
            let has_family = cidrs.iter().any(|cidr| cidr.contains('.') == (i == 0));
            let last = [10 + number, if second { 5 + number } else { 3 }][i];
            let address = format!("{prefix}{last}");
            let is_taken = objects.elastic_ips.iter().any(|it| it.address == address);
            if self.public >> i & 1 == 0 || !has_family || is_taken {
                continue;
            }
            objects.elastic_ips.push(v1::ElasticIp {
                id: format!("lb{number}-{i}"),
                external_network: network.into(),
                address,
                load_balancer: format!("lb{number}"),
                ..v1::ElasticIp::default()
            });
        }
    }
}

impl ListenerPlan {
    fn build(&self, (first, last): (u32, u32), ports: &[&v1::Port], v6: bool) -> v1::Listener {
        let mut members: Vec<v1::Member> = Vec::new();
        for plan in &self.members {
            let Some(port) = ports.get(usize::from(plan.port) % ports.len().max(1)) else {
                continue;
            };
            let by_address = plan.port >= 200;
            let address = traffic::address(port, !v6).filter(|_| by_address);
            let member = v1::Member {
                port: if address.is_none() {
                    port.id.clone()
                } else {
                    String::new()
                },
                address: address.map_or(String::new(), |address| address.to_string()),
                to_port_min: match self.dsr {
                    true => 0,
                    false => [0, 0, 0, 80, 8080][usize::from(plan.to)],
                },
                weight: plan.weight.into(),
                draining: plan.draining,
            };
            let is_same = |other: &v1::Member| {
                let first =
                    |it: &v1::Member| [it.to_port_min, first][usize::from(it.to_port_min == 0)];
                (&other.port, &other.address, first(other))
                    == (&member.port, &member.address, first(&member))
            };
            if !members.iter().any(is_same) {
                members.push(member);
            }
        }
        v1::Listener {
            protocol: if self.udp { "udp" } else { "tcp" }.into(),
            port_min: first,
            port_max: if first == last { 0 } else { last },
            algorithm: ["", "maglev", "round-robin", "least-connections"]
                [usize::from(self.choice % 4)]
            .into(),
            affinity: if self.choice == 4 { "source" } else { "" }.into(),
            members,
            drop_lost: self.drop_lost,
            mode: if self.dsr { "dsr" } else { "" }.into(),
            health: Some(v1::HealthCheck {
                protocol: "tcp".into(),
                ..v1::HealthCheck::default()
            }),
        }
    }
}

impl ForwardPlan {
    /// Ranges of one gateway do not overlap.
    fn build(&self, number: usize, port: &v1::Port, addresses: &[&str]) -> Option<v1::PortForward> {
        let private = traffic::address(port, self.v4)?;
        let mut of_family = addresses
            .iter()
            .filter(|text| text.contains('.') == self.v4);
        let address = of_family.next()?;
        let (port_min, port_max, to_port_min) = match (number, self.range % 4) {
            (0, 0) => (80, 0, 0),
            (0, 1) => (80, 89, 1000),
            (0, _) => (1000, 1001, 80),
            (_, 0) => (40_000, 40_003, 0),
            (_, _) => (53, 0, 900),
        };
        let by_port = self.range < 128 && traffic::address(port, self.v4).is_some();
        Some(v1::PortForward {
            protocol: if self.udp { "udp" } else { "tcp" }.into(),
            address: (*address).to_owned(),
            port_min,
            port_max,
            port: if by_port {
                port.id.clone()
            } else {
                String::new()
            },
            private_address: if by_port {
                String::new()
            } else {
                private.to_string()
            },
            to_port_min,
        })
    }
}

/// Whether an address of a VPC has an elastic IP: it can't have another translation.
pub fn has_elastic(objects: &Objects, vpc: &str, inside: std::net::IpAddr) -> bool {
    let v4 = inside.is_ipv4();
    objects.elastic_ips.iter().any(|elastic| {
        let mut ports = objects.ports.iter();
        let port = ports.find(|port| port.id == elastic.port && port.vpc == vpc);
        elastic.address.contains('.') == v4
            && port.and_then(|port| traffic::address(port, v4)) == Some(inside)
    })
}

/// What a VPC is, and the number of its first subnet, which is in its addresses.
struct Place {
    vpc: String,
    vni: u32,
    first: usize,
}

impl PeeringPlan {
    fn add_to(&self, id: &str, vpcs: usize, objects: &mut Objects) {
        let ends = [self.vpcs.0, self.vpcs.1].map(|end| format!("v{}", usize::from(end) % vpcs));
        if ends[0] == ends[1] {
            return;
        }
        let state = |number: u8| {
            let state = SideState::ALL[usize::from(number) % SideState::ALL.len()];
            if number == 0 { "" } else { state.name() }.to_owned()
        };
        let [requester, accepter] = ends.clone();
        objects.peerings.push(v1::Peering {
            id: id.into(),
            requester,
            accepter,
            requester_state: state(self.states.0),
            accepter_state: state(self.states.1),
            ..v1::Peering::default()
        });
        for (side, [vpc, other]) in [[&ends[0], &ends[1]], [&ends[1], &ends[0]]]
            .iter()
            .enumerate()
        {
            if self.routed >> side & 1 == 0 {
                continue;
            }
            let others = objects
                .subnets
                .iter()
                .filter(|subnet| subnet.vpc == **other);
            let prefixes: Vec<String> = others.flat_map(|subnet| subnet.cidrs.clone()).collect();
            let tables = objects.route_tables.iter_mut();
            for table in tables.filter(|table| table.vpc == **vpc) {
                for policy in &mut table.policies {
                    if policy.to.is_some() && policy.priority % 5 == 0 {
                        policy.to = Some(v1::Route {
                            peering: id.into(),
                            ..v1::Route::default()
                        });
                    }
                }
                for prefix in &prefixes {
                    if table.routes.iter().all(|route| route.prefix != *prefix) {
                        table.routes.push(v1::Route {
                            prefix: prefix.clone(),
                            peering: id.into(),
                            ..v1::Route::default()
                        });
                    }
                }
            }
        }
    }
}

impl VpcPlan {
    fn add_to(&self, place: &Place, open: bool, objects: &mut Objects) {
        let Place { vpc, vni, first } = place;
        let (vpc, vni, first) = (vpc.as_str(), *vni, *first);
        let number = |subnet: usize| first + subnet;
        objects.vpcs.push(v1::Vpc {
            id: vpc.into(),
            vni,
            multicast_routing: self.routes_multicast,
            dns: self.has_dns.then(|| v1::VpcDns {
                domain: "names.test".into(),
            }),
            ..v1::Vpc::default()
        });
        for (s, subnet) in self.subnets.iter().enumerate() {
            let mut cidrs = Vec::new();
            if subnet.family != 1 {
                cidrs.push(format!("10.0.{}.0/24", number(s)));
            }
            if subnet.family != 0 {
                cidrs.push(format!("fd00:{}::/64", number(s)));
            }
            let id = format!("{vpc}-s{s}");
            let mut row = v1::Subnet {
                id: id.clone(),
                vpc: vpc.into(),
                cidrs,
                route_table: id.clone(),
                dhcp: subnet.dhcp(number(s)),
                multicast: if subnet.snoops { "snooping" } else { "" }.into(),
                ..v1::Subnet::default()
            };
            if subnet.own_gateway {
                row.gateway_mac = format!("02:aa:00:00:00:{s:02x}");
                row.gateways = row.cidrs.iter().map(|cidr| own_gateway(cidr)).collect();
            }
            if let Some(acl) = &subnet.acl {
                row.network_acl = id.clone();
                objects.network_acls.push(acl.build(&id, vpc));
            }
            objects.subnets.push(row);
            objects
                .route_tables
                .push(self.route_table(&id, vpc, subnet));
        }
        objects.prefix_lists.push(v1::PrefixList {
            id: format!("{vpc}-list"),
            vpc: vpc.into(),
            prefixes: self.list.iter().map(|i| prefix(*i)).collect(),
            tenant: String::new(),
            ..v1::PrefixList::default()
        });
        for (p, port) in self.ports.iter().enumerate() {
            if !port.absent {
                let plan_holds = port.pairs == 3;
                let is_down = port.down == 0;
                let mut port = self.port(p, port, (vpc, first));
                let first = format!("{vpc}-g0");
                if open && !port.security_groups.contains(&first) {
                    port.security_groups.push(first);
                }
                if plan_holds {
                    hold(objects, &port);
                }
                if is_down {
                    objects.port_health.push(v1::PortHealth {
                        id: port.id.clone(),
                        vpc: vpc.into(),
                        ..v1::PortHealth::default()
                    });
                }
                objects.ports.push(port);
            }
        }
        for (g, group) in self.groups.iter().enumerate() {
            let id = format!("{vpc}-g{g}");
            let members = objects
                .ports
                .iter()
                .filter(|port| port.security_groups.contains(&id));
            let members = members.flat_map(|port| port.addresses.clone());
            let mut members: Vec<String> = members.collect();
            if g % 2 == 1 {
                let parts = (3..).zip(members.drain(..members.len() / 2));
                objects
                    .group_members
                    .extend(parts.map(|(number, member)| v1::GroupMembers {
                        id: v1::GroupMembers::id_of(&id, number),
                        vpc: vpc.into(),
                        group: id.clone(),
                        number,
                        members: vec![member],
                    }));
            }
            let mut rules: Vec<v1::SecurityRule> = group
                .rules
                .iter()
                .map(|rule| self.security_rule(rule, vpc))
                .collect();
            let directions = ["ingress", "egress"];
            let opened = directions.iter().take(match (open && g == 0, group.open) {
                (true, _) => 2,
                (_, true) => 1,
                _ => 0,
            });
            for direction in opened {
                rules.push(v1::SecurityRule {
                    direction: (*direction).into(),
                    ..v1::SecurityRule::default()
                });
            }
            objects.security_groups.push(v1::SecurityGroup {
                id,
                vpc: vpc.into(),
                rules,
                members,
                tenant: String::new(),
                ..v1::SecurityGroup::default()
            });
        }
    }

    fn port(&self, p: usize, plan: &PortPlan, (vpc, first): (&str, usize)) -> v1::Port {
        let place = usize::from(plan.subnet) % self.subnets.len();
        let subnet = &self.subnets[place];
        let (s, n) = (first + place, p + 1);
        let mut addresses = Vec::new();
        if subnet.family != 1 {
            addresses.push(format!("10.0.{s}.{}", 10 + n));
        }
        if subnet.family != 0 {
            addresses.push(if plan.odd_address {
                format!("fd00:{s}::{n}:0:0")
            } else {
                format!("fd00:{s}::{:x}", 10 + n)
            });
        }
        let pair = |cidr: &str, mac: &str| v1::AddressPair {
            cidr: cidr.into(),
            mac: mac.into(),
        };
        let groups = 0..self.groups.len();
        let host = usize::from(plan.host) % HOSTS;
        v1::Port {
            id: format!("{vpc}-p{p}"),
            vpc: vpc.into(),
            subnet: format!("{vpc}-s{place}"),
            mac: format!("02:00:00:00:{s:02x}:{n:02x}"),
            addresses,
            allowed_pairs: match plan.pairs {
                0 => vec![pair("203.0.113.0/24", "")],
                1 => vec![pair("0.0.0.0/0", "02:00:00:00:09:09")],
                2 => vec![pair("2001:db8:5::/48", ""), pair("198.51.100.1", "")],
                3 | 4 => virtual_addresses(s).map(|it| pair(&it, "")).to_vec(),
                _ => Vec::new(),
            },
            security_groups: groups
                .filter(|g| plan.groups >> g & 1 != 0)
                .map(|g| format!("{vpc}-g{g}"))
                .collect(),
            host: format!("h{host}"),
            moved_from: match usize::from(plan.left) {
                left @ 0..HOSTS if left != host => format!("h{left}"),
                _ => String::new(),
            },
            unguarded: plan.unguarded,
            clamp_mss: plan.clamp_mss,
            dhcp_options: given(plan.options),
            dscp: match plan.dscp {
                0 => Some(46),
                1 => Some(10),
                2 => Some(0),
                _ => None,
            },
            hostname: if n % 2 == 0 {
                format!("guest-{n}")
            } else {
                String::new()
            },
            ..v1::Port::default()
        }
    }

    fn route_table(&self, id: &str, vpc: &str, plan: &SubnetPlan) -> v1::RouteTable {
        let mut routes: Vec<v1::Route> = Vec::new();
        for plan in &plan.routes {
            let prefix = prefix(plan.prefix);
            if routes.iter().any(|route| route.prefix == prefix) {
                continue;
            }
            routes.push(v1::Route {
                prefix,
                ..self.target(vpc, plan)
            });
        }
        let policies = plan.policies.iter().enumerate();
        let policies = policies.map(|(i, policy)| self.policy(vpc, i, policy));
        v1::RouteTable {
            id: id.into(),
            vpc: vpc.into(),
            routes,
            policies: policies.collect(),
            ..v1::RouteTable::default()
        }
    }

    fn policy(&self, vpc: &str, i: usize, plan: &PolicyPlan) -> v1::PolicyRoute {
        let text = |i: u8| match usize::from(i) < PREFIXES.len() {
            true => prefix(i),
            false => String::new(),
        };
        let (source, mut destination) = (text(plan.prefixes.0), text(plan.prefixes.1));
        if !source.is_empty() && source.contains('.') != destination.contains('.') {
            destination.clear();
        }
        let either = format!("{source}{destination}");
        let service = plan
            .service
            .service(either.contains('.'), either.contains(':'));
        let (min, max) = service.ports;
        let of_source = plan.service.egress;
        let ends = |is_wanted: bool| (min.filter(|_| is_wanted), max.filter(|_| is_wanted));
        let (sources, destinations) = (ends(of_source), ends(!of_source));
        let is_default = plan.to.target % 9 == 8;
        v1::PolicyRoute {
            // Not in the order of the list, and each once.
            priority: u32::from(plan.service.number) * 8 + i as u32,
            source,
            destination,
            protocol: service.protocol.into(),
            source_port_min: sources.0,
            source_port_max: sources.1,
            destination_port_min: destinations.0,
            destination_port_max: destinations.1,
            // The first packet of a session decides for others with another DSCP, and the model judges each: behaviour tests are about it.
            dscp: None,
            to: (!is_default).then(|| self.target(vpc, &plan.to)),
            default_routing: is_default,
        }
    }

    /// A route without its prefix.
    fn target(&self, vpc: &str, plan: &RoutePlan) -> v1::Route {
        let port = |i: u8| format!("{vpc}-p{}", usize::from(i) % self.ports.len());
        let host = |i: u8| match usize::from(i) % (HOSTS + 1) {
            HOSTS => "foreign".to_owned(),
            h => format!("h{h}"),
        };
        let hop = |port: String, host: String| v1::NextHop {
            weight: 1 + u32::from(plan.which % 3),
            port,
            host,
            ..v1::NextHop::default()
        };
        let mut route = v1::Route::default();
        match plan.target % 8 {
            0 => route.blackhole = true,
            1 => route.local = true,
            2 | 3 => route.port = port(plan.which),
            4 => route.host = host(plan.which),
            5 => {
                route.host = host(plan.which);
                route.next_hop_mac = "02:00:00:00:01:02".into();
            }
            6 => {
                // Which ports, by bit.
                let chosen = (0..self.ports.len() as u8).filter(|i| plan.which >> i & 1 != 0);
                route.ecmp = chosen.map(|i| hop(port(i), String::new())).collect();
            }
            _ => {
                let chosen = (0..=HOSTS as u8).filter(|i| plan.which >> i & 1 != 0);
                route.ecmp = chosen.map(|i| hop(String::new(), host(i))).collect();
            }
        }
        if plan.target % 8 >= 6 && route.ecmp.is_empty() {
            route.blackhole = true;
        }
        route
    }

    fn security_rule(&self, plan: &RulePlan, vpc: &str) -> v1::SecurityRule {
        let mut rule = v1::SecurityRule {
            direction: if plan.egress { "egress" } else { "ingress" }.into(),
            ..v1::SecurityRule::default()
        };
        match plan.remote {
            0..16 => rule.remote_cidr = prefix(plan.remote),
            16..22 => {
                let group = usize::from(plan.remote) % self.groups.len();
                rule.remote_group = format!("{vpc}-g{group}");
            }
            22..24 => rule.remote_prefix_list = format!("{vpc}-list"),
            24 => rule.family = "ipv4".into(),
            25 => rule.family = "ipv6".into(),
            _ => {}
        }
        let v6 = rule.remote_cidr.contains(':') || rule.family == "ipv6";
        let v4 = rule.remote_cidr.contains('.') || rule.family == "ipv4";
        let service = plan.service(v4, v6);
        rule.protocol = service.protocol.into();
        (rule.port_min, rule.port_max) = service.ports;
        (rule.icmp_type, rule.icmp_code) = service.icmp;
        rule
    }
}

struct Service {
    protocol: &'static str,
    ports: (Option<u32>, Option<u32>),
    icmp: (Option<u32>, Option<u32>),
}

impl RulePlan {
    /// What the rule is about; ICMP's family agrees with the rule's.
    fn service(&self, v4: bool, v6: bool) -> Service {
        let ports = match self.range {
            0 => (Some(80), Some(80)),
            1 => (Some(53), Some(1000)),
            2 => (Some(0), Some(65535)),
            _ => (None, None),
        };
        let none = (None, None);
        let (protocol, ports, icmp) = match self.protocol {
            0 | 1 => ("tcp", ports, none),
            2 | 3 => ("udp", ports, none),
            4 if !v6 => match self.range {
                0 => ("icmp", none, (Some(8), Some(0))),
                1 => ("icmp", none, (Some(8), None)),
                2 => ("icmp", none, (Some(0), None)),
                _ => ("icmp", none, none),
            },
            5 if !v4 => match self.range {
                0 => ("icmpv6", none, (Some(128), None)),
                1 => ("icmpv6", none, (Some(1), None)),
                _ => ("icmpv6", none, none),
            },
            6 => ("sctp", ports, none),
            7 => ("47", none, none),
            8 => ("any", none, none),
            _ => ("", none, none),
        };
        Service {
            protocol,
            ports,
            icmp,
        }
    }
}

/// The options that a subnet or a port gives: by two bits each, none, one of two values, or that there is to be none. Some numbers are told to everybody.
fn given(options: u32) -> Vec<v1::DhcpOption> {
    let mut given = Vec::new();
    for (i, (is_v6, name, code, values)) in GIVEN.iter().enumerate() {
        let value = match options >> (2 * i) & 3 {
            0 => continue,
            3 => "",
            value => values[value as usize - 1].0,
        };
        given.push(v1::DhcpOption {
            name: (*name).into(),
            value: value.into(),
            family: if *is_v6 { "ipv6" } else { "" }.into(),
            force: matches!(code, 56 | 67 | 224) && value == values[1].0,
        });
    }
    given
}

impl SubnetPlan {
    /// What the subnet of this number tells its guests; the first bits say nothing at all.
    fn dhcp(&self, number: usize) -> Option<v1::Dhcp> {
        let said = |bit: u8| self.told >> bit & 1 != 0;
        if self.told.is_multiple_of(5) {
            return None;
        }
        let mut dhcp = v1::Dhcp {
            disabled: self.told.is_multiple_of(7),
            options: given(self.options),
            lease_seconds: if said(3) { 3601 } else { 0 },
            ..v1::Dhcp::default()
        };
        if said(4) {
            dhcp.dns_servers = vec!["192.0.2.53".into(), "2001:db8::53".into()];
        }
        if said(5) {
            dhcp.domain = "model.test".into();
        }
        if said(6) && self.family != 1 {
            dhcp.routes.push(v1::DhcpRoute {
                prefix: "172.16.0.0/12".into(),
                next_hop: format!("10.0.{number}.250"),
            });
        }
        if self.family != 0 {
            let modes = ["", "dhcpv6-stateful", "dhcpv6-stateless", "slaac"];
            dhcp.ipv6_mode = modes[usize::from(self.told & 3)].into();
        }
        Some(dhcp)
    }
}

impl AclPlan {
    fn build(&self, id: &str, vpc: &str) -> v1::NetworkAcl {
        let mut rules: Vec<v1::AclRule> = Vec::new();
        for (allow, plan) in &self.rules {
            let direction = if plan.egress { "egress" } else { "ingress" };
            let number = u32::from(plan.number);
            if rules
                .iter()
                .any(|rule| rule.number == number && rule.direction == direction)
            {
                continue;
            }
            let cidr = match plan.remote {
                remote @ 0..16 => prefix(remote),
                _ => String::new(),
            };
            let service = plan.service(cidr.contains('.'), cidr.contains(':'));
            rules.push(v1::AclRule {
                number,
                direction: direction.into(),
                action: if *allow { "allow" } else { "deny" }.into(),
                protocol: service.protocol.into(),
                cidr,
                port_min: service.ports.0,
                port_max: service.ports.1,
                icmp_type: service.icmp.0,
                icmp_code: service.icmp.1,
            });
        }
        for (direction, allow) in [("ingress", self.rest.0), ("egress", self.rest.1)] {
            if allow {
                rules.push(v1::AclRule {
                    number: 1000,
                    direction: direction.into(),
                    action: "allow".into(),
                    ..v1::AclRule::default()
                });
            }
        }
        v1::NetworkAcl {
            id: id.into(),
            vpc: vpc.into(),
            rules,
            ..v1::NetworkAcl::default()
        }
    }
}

fn prefix(i: u8) -> String {
    PREFIXES[usize::from(i) % PREFIXES.len()].to_owned()
}

fn own_gateway(cidr: &str) -> String {
    match cidr.split_once("0/24") {
        Some((net, _)) => format!("{net}254"),
        None => cidr.replace("/64", "fe"),
    }
}

/// The virtual addresses of a subnet.
fn virtual_addresses(subnet: usize) -> [String; 2] {
    [format!("10.0.{subnet}.200"), format!("fd00:{subnet}::200")]
}

/// Has a port hold what its pairs name and nobody holds. Of what is in no prefix of its subnet hosts take no notice.
fn hold(objects: &mut Objects, port: &v1::Port) {
    for pair in &port.allowed_pairs {
        let mut holder = v1::AddressHolder {
            vpc: port.vpc.clone(),
            address: pair.cidr.clone(),
            port: port.id.clone(),
            subnet: port.subnet.clone(),
            host: port.host.clone(),
            mac: port.mac.clone(),
            moves: 1,
            ..v1::AddressHolder::default()
        };
        holder.id = holder.own_id();
        if objects.address_holders.iter().all(|it| it.id != holder.id) {
            objects.address_holders.push(holder);
        }
    }
}
