//! Why a packet was dropped: the one list that the pipeline, the counters, the command line and the documents share.
//!
//! Every dropped packet carries exactly one of these (invariant 6, "accounted").

macro_rules! drop_reasons {
    ($($(#[$attribute:meta])* $variant:ident = $name:literal: $meaning:literal,)*) => {
        /// Why a packet was dropped.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[repr(u8)]
        pub enum DropReason {
            $(#[doc = $meaning] $variant,)*
        }

        impl DropReason {
            /// Every reason, in order of its number.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// The name by which counters and the command line show it.
            pub fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }

            /// What it means, in one line.
            pub fn meaning(self) -> &'static str {
                match self { $(Self::$variant => $meaning,)* }
            }
        }
    };
}

drop_reasons! {
    Truncated = "truncated": "the frame ends before its headers do",
    EtherType = "ether_type": "an inner frame that is neither IPv4, IPv6 nor ARP, or is tagged with a VLAN",
    UnknownVlan = "unknown_vlan": "a frame with the tag of a VLAN that no subport of the port has",
    Ipv4Header = "ipv4_header": "an IPv4 header with a wrong version, header length or total length",
    Ipv4Checksum = "ipv4_checksum": "an IPv4 header whose checksum is wrong (RFC 1812 5.2.2)",
    Ipv4SourceRoute = "ipv4_source_route": "an IPv4 source route option (RFC 7126)",
    Ipv6Header = "ipv6_header": "an IPv6 header with a wrong version or payload length, or a jumbogram",
    Ipv6Extension = "ipv6_extension": "IPv6 extension headers out of order, too many, or malformed (RFC 8200 4.1)",
    Ipv6RoutingType0 = "ipv6_routing_type_0": "an IPv6 routing header of type 0 (RFC 5095)",
    Martian = "martian": "an address that no packet may carry there: loopback, multicast source, IPv4-mapped, source equal to destination, link-local across subnets",
    TransportHeader = "transport_header": "a TCP, UDP, SCTP or ICMP header that is cut short, has a wrong length, or is a query with a code other than 0",
    TcpFlags = "tcp_flags": "a combination of TCP flags that no stack sends",
    FragmentTiny = "fragment_tiny": "a first fragment too short for its transport header, or one that could overwrite it (RFC 1858, RFC 3128)",
    FragmentOverlap = "fragment_overlap": "a fragment that overlaps another of its datagram, or belongs to a datagram with such a fragment (RFC 5722)",
    FragmentDuplicate = "fragment_duplicate": "a fragment that was seen before",
    FragmentOrphan = "fragment_orphan": "a fragment whose first fragment did not come in time or was dropped",
    FragmentTable = "fragment_table": "a fragment that exceeds the budget of its port, or of its peer and VPC, or was evicted while it waited for its first fragment",
    SpoofedMac = "spoofed_mac": "a source MAC that does not belong to the sending port",
    SpoofedAddress = "spoofed_address": "a source address that does not belong to the sending port",
    SpoofedBoth = "spoofed_both": "neither source MAC nor source address belong to the sending port",
    SpoofedArp = "spoofed_arp": "an ARP sender that does not belong to the sending port",
    SpoofedNeighbor = "spoofed_neighbor": "a neighbour advertisement or solicitation for what does not belong to the sending port",
    SpoofedDhcp = "spoofed_dhcp": "a DHCP or DHCPv6 client whose MAC, hardware address or source address does not belong to the sending port",
    ArpMalformed = "arp_malformed": "an ARP packet that is not Ethernet and IPv4, or cut short",
    ArpUnanswered = "arp_unanswered": "an ARP request for an address that no port has, or an announcement that needs no answer",
    NeighborMalformed = "neighbor_malformed": "a neighbour discovery packet that breaks RFC 4861 7.1",
    NeighborUnanswered = "neighbor_unanswered": "a neighbour solicitation or advertisement that needs no answer",
    DhcpMalformed = "dhcp_malformed": "a DHCP or DHCPv6 message that its standard refuses (RFC 2131, RFC 8415 16), or one that is too long",
    DhcpUnanswered = "dhcp_unanswered": "a DHCP or DHCPv6 message that gets no answer: a release, for another server, relayed, or where there is no address to give",
    RogueServer = "rogue_server": "a router advertisement, a redirect or a DHCP server message from a guest",
    RogueQuerier = "rogue_querier": "a query of IGMP or MLD, or any message of these out of a tunnel, in a subnet with multicast snooping: each host asks its own guests",
    MembershipMalformed = "membership_malformed": "a message of IGMP or MLD that its standard refuses (RFC 2236, RFC 3376, RFC 2710, RFC 3810)",
    MembershipLimit = "membership_limit": "more reports of IGMP or MLD than a port may send in a second, or than wait for this host's querier",
    MembershipBudget = "membership_budget": "a report of IGMP or MLD with more groups than a port may join, or more sources than it may name: so much of it was passed over",
    AnnouncementLimit = "announcement_limit": "more announcements of virtual addresses than a port may send in a second, or than wait for this host's agent",
    AddressContested = "address_contested": "an announcement of a virtual address that ports announce in turn, again and again: for a while it stays where it is",
    GatewayUnserved = "gateway_unserved": "to a gateway address, for a service that the gateway does not offer",
    UnknownMac = "unknown_mac": "to a MAC that no port of the subnet has; from an external network, to one that no port of this host has there",
    NoRoute = "no_route": "no route for the destination",
    Blackhole = "blackhole": "the route says blackhole",
    NoPort = "no_port": "the route is local but no port of the VPC has the address",
    AddressUnlearned = "address_unlearned": "from or to an address or a MAC of a VPC whose ports this host learns, and the controller has not said in time who has it",
    LearnLimit = "learn_limit": "the port, or the VPC out of tunnels, asks for more addresses than it may in a second, or too many packets wait for answers",
    PeeringInactive = "peering_inactive": "the route leads by a peering, or the packet came by one, that is not active on both sides, or is deleted",
    PeeringTransit = "peering_transit": "the route leads by a peering, but the source is no address of a port of the VPC, or is translated",
    NextHopGone = "next_hop_gone": "the route's port or host is not there",
    HairpinTunnel = "hairpin_tunnel": "from a tunnel and would have to leave by a tunnel again",
    AclDenied = "acl_denied": "denied by the subnet's network ACL",
    GroupDenied = "group_denied": "no rule of the port's security groups admits it",
    IcmpUnrelated = "icmp_unrelated": "an ICMP error about a packet that no session knows",
    TcpInvalid = "tcp_invalid": "a TCP segment that cannot begin a connection and belongs to none",
    TcpWindow = "tcp_window": "a TCP segment outside the window of its connection",
    SessionTableFull = "session_table_full": "no room for one more session, and no half-open one to evict",
    SessionPortBudget = "session_port_budget": "the port holds as many sessions as it may",
    SessionVpcBudget = "session_vpc_budget": "the VPC holds as many sessions on this host as it may",
    TranslationClash = "translation_clash": "another flow has the same addresses and ports, before or after translation",
    ExternalUnheld = "external_unheld": "a packet from an external network to an address that this host does not hold there",
    ExternalSpoofed = "external_spoofed": "a packet from an external network with a source address that this host holds there or that lies in the VPC, or a claim to an address that this host holds",
    ExternalUnresolved = "external_unresolved": "the next hop on the external network has not answered yet, or there is none",
    ExternalLoop = "external_loop": "a frame from an external network whose source MAC is that of a port of this host: the network sends back what came from here",
    ExternalDown = "external_down": "to a port's external network, on which this host has no interface now",
    NoTranslation = "no_translation": "the route leads to an external network, where the sender has no elastic IP, and no NAT gateway that serves it",
    NoTranslator = "no_translator": "the elastic IP or NAT gateway of the packet is on no host that is known, or not on this one",
    NatUnmapped = "nat_unmapped": "a packet to a port of a NAT gateway that no mapping and no port forward has, or whose mapping does not admit the sender",
    NatProtocol = "nat_protocol": "an ICMP message through a NAT gateway that is no query, or a packet of a protocol without ports while each of its addresses has another sender of that",
    NatPorts = "nat_ports": "every port of the NAT gateway's addresses is in use",
    NatAddressBudget = "nat_address_budget": "the source address has as many mappings of the NAT gateway as one may",
    NatGatewayBudget = "nat_gateway_budget": "the NAT gateway has as many mappings as it may",
    Nat64Untranslatable = "nat64_untranslatable": "a packet that has no counterpart in the other family (RFC 7915): ICMP in fragments or of another type, a first fragment of UDP without a checksum, a routing header",
    NatTableFull = "nat_table_full": "this host has as many mappings of NAT gateways as it can hold",
    FellowMalformed = "fellow_malformed": "a packet of no VPC from another host that is neither a probe nor what a fellow gateway host may tell",
    TranslationGone = "translation_gone": "the session's addresses are no longer translated as they were when it began, or its route leads into another VPC than then",
    NoListener = "no_listener": "to an address of a load balancer, for a protocol or a port that it does not serve",
    NoMember = "no_member": "to a load balancer of which no member takes flows",
    MemberGone = "member_gone": "of a session through a load balancer whose member is no longer there",
    TtlExceeded = "ttl_exceeded": "the TTL or hop limit ran out",
    TooBig = "too_big": "larger than the path carries, and may not be fragmented",
    BroadcastLimit = "broadcast_limit": "more broadcast or multicast than one port may send, or one external network may bring",
    NoReceiver = "no_receiver": "broadcast or multicast without a receiver that policy admits; with multicast snooping, also a group that nobody else has joined",
    ReplyLimit = "reply_limit": "an ICMP error or other reply was not sent: the limit on them is reached",
    FlowLimit = "flow_limit": "the port opens more flows than it may in a second",
    VpcFlowLimit = "vpc_flow_limit": "the VPC opens more flows on this host than it may in a second",
    MetadataLimit = "metadata_limit": "more packets to the metadata service than one port may send",
    HealthFull = "health_full": "there is no room for one more answer to a health check",
    MetadataFull = "metadata_full": "the metadata service has no room for one more packet or connection",
    DnsLimit = "dns_limit": "more packets to the DNS service of the gateway than one port may send",
    DnsFull = "dns_full": "the DNS service has no room for one more packet or connection",
    DnsMalformed = "dns_malformed": "to the DNS service, and no question of DNS: a wrong length or checksum, an answer, or datagrams in one segment (USO)",
    OffloadMalformed = "offload_malformed": "a guest sent a segment to be split whose header does not match it, or that has too many pieces",
    RateLimitEgressPackets = "rate_limit_egress_packets": "more packets than the port may send",
    RateLimitEgressBits = "rate_limit_egress_bits": "more bits than the port may send",
    RateLimitIngressPackets = "rate_limit_ingress_packets": "more packets than the port may be sent",
    RateLimitIngressBits = "rate_limit_ingress_bits": "more bits than the port may be sent",
    ElasticIpEgress = "elastic_ip_egress": "more than the limits of the elastic IP let out",
    ElasticIpIngress = "elastic_ip_ingress": "more than the limits of the elastic IP let in",
    OuterHeader = "outer_header": "a tunnel packet whose outer headers are malformed",
    OuterChecksum = "outer_checksum": "a tunnel packet with a wrong outer checksum",
    OuterFragment = "outer_fragment": "a fragment of a tunnel packet",
    NotOurVtep = "not_our_vtep": "a tunnel packet to an address that is not ours",
    GreVersion = "gre_version": "a GRE version other than 0, a routing field, or another payload than Ethernet",
    GreNoKey = "gre_no_key": "a GRE packet without a key",
    VxlanFlags = "vxlan_flags": "a VXLAN header without the I flag",
    UnknownVtep = "unknown_vtep": "a tunnel packet from an address that is no known VTEP",
    UnknownVni = "unknown_vni": "a VNI or key that is no VPC of this host",
    NotHere = "not_here": "a tunnel packet for a port that is not on this host",
    SpoofedInner = "spoofed_inner": "a tunnel packet whose inner source belongs to a port of this host, or not to the sending host",
    EcnMismatch = "ecn_mismatch": "congestion marked on the tunnel, but the inner packet cannot carry the mark (RFC 6040)",
    UnderlayUnresolved = "underlay_unresolved": "the next hop towards the VTEP is not resolved yet",
    PortDown = "port_down": "the destination port's device is not up",
    RingFull = "ring_full": "the destination's ring has no room",
    NoBuffer = "no_buffer": "no free packet buffer for a copy or a reply",
}

impl DropReason {
    /// How many reasons there are.
    pub const COUNT: usize = Self::ALL.len();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_operators_guide_lists_every_reason() {
        let guide = include_str!("../../../docs/operations.md");
        for reason in DropReason::ALL {
            let row = format!("| `{}` | {} |", reason.name(), reason.meaning());
            assert!(guide.contains(&row), "docs/operations.md lacks: {row}");
        }
    }

    #[test]
    fn numbers_are_positions_and_names_are_unique() {
        let mut names = std::collections::HashSet::new();
        for (position, reason) in DropReason::ALL.iter().enumerate() {
            assert_eq!(*reason as usize, position);
            assert!(names.insert(reason.name()), "{} twice", reason.name());
        }
    }
}
