//! Shared by the suites without sockets: two hosts in memory, traffic between them, and the measurement of a pipeline.

use weft_dataplane::packet::{FrameMemory, Packet};
use weft_dataplane::pipeline::{Pipeline, Settings, Source, VECTOR};
use weft_dataplane::session::Limits;
use weft_fabric::{Fabric, MemoryIo};
use weft_proto::state::State;
use weft_proto::v1::{AclRule, NetworkAcl, Objects};
use weft_tests::load;

use crate::clock::cycles;

/// Vectors in a sample.
pub(crate) const ROUNDS: usize = 400;
/// Packets in a sample.
pub(crate) const PACKETS: usize = ROUNDS * VECTOR;
const HEADROOM: usize = 256;

const TOPOLOGY: &str = r#"
hosts: [{id: h1, vteps: [192.0.2.1]}, {id: h2, vteps: [192.0.2.2]}]
vpcs: [{id: blue, vni: 100}]
subnets:
  - {id: a, vpc: blue, cidrs: [10.0.1.0/24, "fd00:1::/64"], network_acl: acl}
  - {id: b, vpc: blue, cidrs: [10.0.2.0/24, "fd00:2::/64"]}
security_groups: [{id: open, vpc: blue, rules: [{direction: ingress, protocol: udp}, {direction: ingress, protocol: tcp}]}]
ports:
  - {id: a1, vpc: blue, subnet: a, mac: "02:00:00:00:01:01", addresses: [10.0.1.11, "fd00:1::11"], security_groups: [open], host: h1}
  - {id: b2, vpc: blue, subnet: b, mac: "02:00:00:00:02:02", addresses: [10.0.2.12, "fd00:2::12"], security_groups: [open], host: h2}
"#;

pub(crate) const ROUTER: [u8; 6] = [0x02, 0x77, 0x65, 0x66, 0x74, 0x01];
pub(crate) const A1: ([u8; 6], [u8; 4]) = ([2, 0, 0, 0, 1, 1], [10, 0, 1, 11]);
pub(crate) const B2: ([u8; 6], [u8; 4]) = ([2, 0, 0, 0, 2, 2], [10, 0, 2, 12]);

/// The objects of the topology: port a1 on host h1 and b2 on h2, in two subnets of one VPC.
pub(crate) fn objects() -> anyhow::Result<Objects> {
    let mut objects: Objects = serde_yaml_ng::from_str(TOPOLOGY)?;
    let rule = |direction: &str| AclRule {
        number: 1,
        direction: direction.into(),
        action: "allow".into(),
        ..AclRule::default()
    };
    objects.network_acls = vec![NetworkAcl {
        id: "acl".into(),
        vpc: "blue".into(),
        rules: vec![rule("ingress"), rule("egress")],
        ..NetworkAcl::default()
    }];
    Ok(objects)
}

/// How pipelines are set up.
pub(crate) fn settings() -> Settings {
    Settings {
        ports: 16,
        // What a miss costs is to be measured, not how many there may be.
        flows_per_second: u32::MAX,
        vpc_flows_per_second: u32::MAX,
        ..Settings::default()
    }
}

/// The topology in memory, with room for so many sessions on each host.
pub(crate) fn fabric(capacity: u32) -> anyhow::Result<Fabric> {
    fabric_of(objects()?, capacity)
}

/// Any objects in memory, with room for so many sessions on each host.
pub(crate) fn fabric_of(objects: Objects, capacity: u32) -> anyhow::Result<Fabric> {
    let settings = Settings {
        ports: objects.ports.len().max(16),
        ..settings()
    };
    let limits = Limits {
        capacity,
        per_port: capacity,
        per_vpc: capacity,
        ports: settings.ports,
        vpcs: objects.vpcs.len().max(16),
    };
    Fabric::new(State::from_objects(objects)?, &settings, limits)
        .map_err(|violations| anyhow::anyhow!("{violations:?}"))
}

fn ports(number: u32) -> (u16, u16) {
    (number as u16, 1000 + (number >> 16) as u16)
}

/// A UDP packet of 60 bytes (64 on the wire) of flow `number`, from a1 through its gateway to b2.
pub(crate) fn udp(number: u32) -> Vec<u8> {
    load::udp((ROUTER, A1.0), (A1.1, B2.1), ports(number), 18)
}

/// The same over IPv6, 80 bytes.
pub(crate) fn udp6(number: u32) -> Vec<u8> {
    let address =
        |subnet: u8, last: u8| [0xfd, 0, 0, subnet, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, last];
    let mut frame = [
        &ROUTER[..],
        &A1.0,
        &[0x86, 0xdd, 0x60, 0, 0, 0, 0, 26, 17, 64],
    ]
    .concat();
    frame.extend_from_slice(&address(1, 0x11));
    frame.extend_from_slice(&address(2, 0x12));
    // No checksum is looked at unless it is the sum of the pseudo-header alone.
    for word in [ports(number).0, ports(number).1, 26, 0xffff] {
        frame.extend_from_slice(&word.to_be_bytes());
    }
    frame.resize(80, 0x77);
    frame
}

/// Which way a segment goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    There,
    Back,
}

/// A TCP segment of flow `number` with six bytes of payload at most: flags, sequence and acknowledgement numbers.
pub(crate) fn tcp(number: u32, way: Way, flags: u8, numbers: (u32, u32)) -> Vec<u8> {
    let (near, far) = ports(number);
    let (from, to, ports) = if way == Way::There {
        (A1, B2, (near, far))
    } else {
        (B2, A1, (far, near))
    };
    // A UDP frame of the right length, made into one of TCP: the IPv4 checksum follows the protocol's number.
    let mut frame = load::udp((ROUTER, from.0), (from.1, to.1), ports, 18);
    frame[23] = 6;
    let sum = u16::from_be_bytes([frame[24], frame[25]]);
    let (sum, carry) = sum.overflowing_add(17 - 6);
    frame[24..26].copy_from_slice(&(sum + u16::from(carry)).to_be_bytes());
    frame[38..42].copy_from_slice(&numbers.0.to_be_bytes());
    frame[42..46].copy_from_slice(&numbers.1.to_be_bytes());
    frame[46..54].copy_from_slice(&[0x50, flags, 0xff, 0xff, 0xff, 0xff, 0, 0]);
    frame
}

/// Opens connection `number` and returns the segment that may then be repeated.
pub(crate) fn connect(fabric: &mut Fabric, number: u32) -> anyhow::Result<Vec<u8>> {
    const SYN: u8 = 2;
    const ACK: u8 = 16;
    // Six bytes of payload in every segment: sequence numbers move on by them.
    let steps = [
        ("a1", tcp(number, Way::There, SYN, (100, 0))),
        ("b2", tcp(number, Way::Back, SYN | ACK, (500, 107))),
        ("a1", tcp(number, Way::There, ACK, (107, 507))),
    ];
    for (port, frame) in &steps {
        anyhow::ensure!(
            fabric.send(port, frame).len() == 1,
            "{:?}",
            fabric.all_drops()
        );
    }
    let [.., (_, last)] = steps;
    Ok(last)
}

/// Cycles per packet to take a sample of packets through a pipeline, beginning with frame `start`. Every packet has to come out.
pub(crate) fn measure(
    pipeline: &mut Pipeline,
    now: u32,
    source: Source,
    frames: &[Vec<u8>],
    start: usize,
) -> anyhow::Result<f64> {
    let mut io = MemoryIo::new(4 * VECTOR as u32, 2048);
    let (mut spent, mut count) = (0, 0);
    let mut vector: Vec<Packet> = Vec::with_capacity(VECTOR);
    for round in 0..ROUNDS {
        for i in 0..VECTOR {
            let frame = &frames[(start + round * VECTOR + i) % frames.len()];
            vector.push(
                io.memory
                    .packet(HEADROOM, frame)
                    .ok_or_else(|| anyhow::anyhow!("no frame"))?,
            );
        }
        let begun = cycles();
        pipeline.process(&mut io, source, &mut vector, now);
        spent += cycles() - begun;
        count += io.sent.len();
        while let Some((_, packet)) = io.sent.pop() {
            io.free(packet.frame);
        }
    }
    anyhow::ensure!(count == PACKETS, "{count} of {PACKETS} packets came out");
    Ok(spent as f64 / count as f64)
}

/// The source of what a1 sends.
pub(crate) fn source(fabric: &Fabric) -> anyhow::Result<Source> {
    let (_, index) = fabric
        .find_port("a1")
        .ok_or_else(|| anyhow::anyhow!("no port"))?;
    Ok(Source::Port(index))
}
