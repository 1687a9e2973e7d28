//! Plain types that the XDP programs and the daemon share: names of programs and maps, keys, counters.
//!
//! No dependency and no standard library, since it is compiled for the kernel's virtual machine too. The types are the interface between
//! the object file and the daemon that embeds it; both are built from the same tree.
#![no_std]
#![forbid(unsafe_code)]

/// UDP destination port of VXLAN (RFC 7348 §5).
pub const VXLAN_PORT: u16 = 4789;
/// IP protocol number of GRE (RFC 2784).
pub const PROTOCOL_GRE: u8 = 47;
/// GRE payload type of an Ethernet frame (transparent Ethernet bridging).
pub const GRE_ETHERNET: u16 = 0x6558;

/// Name of the program for uplinks in the object file.
pub const UPLINK_PROGRAM: &str = "weft_uplink";
/// Name of the program for ports in the object file.
pub const PORT_PROGRAM: &str = "weft_port";
/// Name of the program that keeps what arrives by a port from the host's stack. At most 15 bytes, as the kernel keeps it: running programs are
/// found by it. One that does something else needs another name.
pub const GUARD_PROGRAM: &str = "weft_guard";
/// Name of the program that keeps what the host's stack sends from a port; as above.
pub const GUARD_OUT_PROGRAM: &str = "weft_guard_out";
/// The mark of socket buffers that the latter lets pass: "weft".
pub const GUARD_MARK: u32 = 0x7765_6674;
/// Name of an uplink's map from receive queue to AF_XDP socket.
pub const SOCKETS_MAP: &str = "WEFT_SOCKETS";
/// Name of the map from a port's interface, by the kernel's number of it, to its [`PortEntry`].
pub const PORTS_MAP: &str = "WEFT_PORTS";
/// Name of the map of all ports' AF_XDP sockets: those of one port side by side, in the order of its receive queues.
pub const PORT_SOCKETS_MAP: &str = "WEFT_PORT_SOCKETS";
/// Name of the map of our tunnel addresses.
pub const VTEPS_MAP: &str = "WEFT_VTEPS";
/// Name of an uplink's map of the addresses that we hold on its segment.
pub const HELD_MAP: &str = "WEFT_HELD";
/// Name of an uplink's map of the prefixes that are routed to us on its segment.
pub const ROUTED_MAP: &str = "WEFT_ROUTED";
/// Name of an uplink's map of our stations on its segment: ports of external networks.
pub const STATIONS_MAP: &str = "WEFT_STATIONS";
/// Name of the per-CPU counters.
pub const COUNTERS_MAP: &str = "WEFT_COUNTERS";

/// The most receive queues of one interface.
pub const MAX_QUEUES: u32 = 256;
/// The most ports of one host.
pub const MAX_PORTS: u32 = 32_768;
/// The most receive queues of all ports of one host.
pub const MAX_PORT_QUEUES: u32 = 65_536;
/// The most tunnel addresses of one host.
pub const MAX_VTEPS: u32 = 256;
/// The most addresses that one host holds on the segment of an uplink.
pub const MAX_HELD: u32 = 65_536;
/// The most prefixes that are routed to one host on the segment of an uplink.
pub const MAX_ROUTED: u32 = 16_384;

/// The most stations that one host has on the segment of an uplink.
pub const MAX_STATIONS: u32 = 65_536;

/// A station on a segment as the map knows it: its VLAN in network byte order, 0 for untagged frames, and its MAC.
pub type StationKey = [u8; 8];

/// What broadcast and multicast frames are for in the map, whatever their MAC.
pub const GROUP: [u8; 6] = [0xff; 6];

/// What the port program knows of an interface: the place of its first socket among all, how many receive queues it has, bytes by which the
/// head of each packet grows, and the longest frame that goes to a ring (0: there is no such limit).
pub type PortEntry = [u32; 4];

/// An IP address as the maps know it: 16 bytes, IPv4 mapped into IPv6 (RFC 4291 §2.5.5.2).
pub type AddressKey = [u8; 16];

/// The key of an IPv4 address.
pub const fn mapped_v4(octets: [u8; 4]) -> AddressKey {
    let [a, b, c, d] = octets;
    [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, a, b, c, d]
}

/// What the programs count, each one cell of a per-CPU array.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Counter {
    /// Packets handed to a ring.
    Redirected = 0,
    /// Packets left to the kernel's stack.
    Passed = 1,
    /// Fragments addressed to one of our tunnel addresses, left to the kernel's stack.
    FragmentsPassed = 2,
    /// Packets whose headers are truncated or contradict themselves, left to the kernel's stack.
    Malformed = 3,
    /// Packets that were ours, on a receive queue which has no ring.
    NoRing = 4,
    /// Packets of a port whose head couldn't grow; dropped.
    NoHeadroom = 5,
    /// Frames of a port too long for the ring, left to its packet socket.
    Long = 6,
    /// Frames of a VLAN, which an uplink does not take; left to the kernel's stack.
    Tagged = 7,
}

impl Counter {
    /// Every counter, in the order of the map.
    pub const ALL: [Self; 8] = [
        Self::Redirected,
        Self::Passed,
        Self::FragmentsPassed,
        Self::Malformed,
        Self::NoRing,
        Self::NoHeadroom,
        Self::Long,
        Self::Tagged,
    ];

    /// The name in statistics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Redirected => "redirected",
            Self::Passed => "passed",
            Self::FragmentsPassed => "fragments_passed",
            Self::Malformed => "malformed",
            Self::NoRing => "no_ring",
            Self::NoHeadroom => "no_headroom",
            Self::Long => "long",
            Self::Tagged => "tagged",
        }
    }
}
