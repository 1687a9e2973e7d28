//! What the tests of ports share: frames to send, and a device under test.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use weft_dataplane::{
    packet::buffer::Packet,
    port::{
        AttachMode, Attachment, FrameCache, Programs, QueueOptions, Role, Umem, UmemOptions,
        XskQueue,
    },
};
use weft_tests::{Lab, LinkOptions, Namespace};

/// How long anything may take before it counts as not happening.
pub(crate) const SOON: Duration = Duration::from_secs(5);

/// An Ethernet frame of a type that no stack answers, with a payload that can be recognised.
pub(crate) fn frame(number: u32, len: usize) -> Vec<u8> {
    let mut frame = vec![0x02, 0, 0, 0, 0, 0xbb, 0x02, 0, 0, 0, 0, 0xaa, 0x88, 0xb5];
    frame.extend_from_slice(&number.to_be_bytes());
    frame.extend((frame.len()..len).map(|at| (at as u32 ^ number) as u8));
    frame
}

/// Two namespaces with a link: `dut` has `under0`, where weft is, and `peer` has `peer0`.
pub(crate) struct Pair {
    _lab: Lab,
    pub(crate) dut: Namespace,
    pub(crate) peer: Namespace,
}

pub(crate) fn pair() -> Pair {
    let mut lab = Lab::new().unwrap();
    let dut = lab.host("dut").unwrap();
    let peer = lab.host("peer").unwrap();
    // Nothing is on the link but what the test sends: no reports and solicitations of IPv6.
    for namespace in [&dut, &peer] {
        let line = ["sysctl", "-qw", "net.ipv6.conf.default.disable_ipv6=1"];
        namespace.run(&line).unwrap();
    }
    lab.link((&dut, "under0"), (&peer, "peer0"), LinkOptions::default())
        .unwrap();
    Pair {
        _lab: lab,
        dut,
        peer,
    }
}

pub(crate) fn small_umem() -> Arc<Umem> {
    Umem::new(UmemOptions {
        frames: 4096,
        ..UmemOptions::default()
    })
    .unwrap()
}

/// Opens queue 0 of `interface`, attaches the program, and registers the one with the other.
pub(crate) fn open(
    namespace: &Namespace,
    umem: &Arc<Umem>,
    interface: &str,
    role: &Role,
    only: Option<AttachMode>,
) -> (XskQueue, Attachment) {
    let options = QueueOptions {
        headroom: match role {
            Role::Port { headroom } => *headroom,
            Role::Uplink { .. } => 0,
        },
        ..QueueOptions::default()
    };
    namespace
        .enter(|| {
            let queue = XskQueue::open(umem, interface, 0, options).unwrap();
            let mut attachment =
                Attachment::attach(&Programs::default(), interface, role, only).unwrap();
            attachment.register(&queue).unwrap();
            (queue, attachment)
        })
        .unwrap()
}

/// Receives until `count` packets are there or the time is over.
pub(crate) fn collect(queue: &mut XskQueue, cache: &mut FrameCache, count: usize) -> Vec<Packet> {
    let deadline = Instant::now() + SOON;
    let mut packets = Vec::with_capacity(count + 64);
    while packets.len() < count && Instant::now() < deadline {
        queue.receive(cache, &mut packets, 64);
    }
    packets
}
