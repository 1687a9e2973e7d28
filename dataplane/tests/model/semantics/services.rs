//! The services of the gateway: router advertisements (RFC 4861), DHCP (RFC 2131) and DHCPv6 (RFC 8415). Answers are built from what the
//! objects say, option by option.
//!
//! Of what clients may send, here is what `traffic` makes: one association at most, no overflow.

use std::net::IpAddr;

use ipnetwork::IpNetwork;
use weft_dataplane::packet::DropReason;
use weft_proto::v1;

use super::frame::{
    Detail, ICMPV6, Mac, Packet, UDP, mac_at, octets, ones_sum, pseudo_header, v4_at, v6_at, word,
};
use super::gateway::{is_link_local, link_local, owns, owns_address, owns_mac, source_option};
use super::world::{World, gateway_address, gateway_mac, has_address, mac};

type Answer = Result<Vec<u8>, DropReason>;

/// An option that `generate` may have a subnet or port give: whether it is of DHCPv6, its name and its number, and values as text and as sent. The one of
/// number 0 is no option but a field.
pub type Given = (bool, &'static str, u16, [(&'static str, &'static [u8]); 2]);

const LONG: &str = "boot-server-with-a-name-that-no-field-of-a-dhcp-message-holds.test";

pub const GIVEN: [Given; 9] = [
    (
        false,
        "server-ip-address",
        0,
        [("10.0.0.9", &[10, 0, 0, 9]), ("192.0.2.7", &[192, 0, 2, 7])],
    ),
    (
        false,
        "tftp-server",
        66,
        [("boot.test", b"boot.test"), (LONG, LONG.as_bytes())],
    ),
    (
        false,
        "67",
        67,
        [("pxelinux.0", b"pxelinux.0"), ("ipxe.efi", b"ipxe.efi")],
    ),
    (false, "mtu", 26, [("1400", &[5, 120]), ("1280", &[5, 0])]),
    (
        false,
        "classless-static-route",
        121,
        [
            ("10.9.0.0/16,10.0.1.250", &[16, 10, 9, 10, 0, 1, 250]),
            ("0.0.0.0/0,10.0.1.9", &[0, 10, 0, 1, 9]),
        ],
    ),
    (
        false,
        "224",
        224,
        [("hex:00ff", &[0, 255]), ("plain", b"plain")],
    ),
    (
        true,
        "ntp-server",
        56,
        [
            (
                "2001:db8::1",
                &[
                    0, 1, 0, 16, 0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1,
                ],
            ),
            ("ntp.test", b"\x00\x03\x00\x0a\x03ntp\x04test\x00"),
        ],
    ),
    (
        true,
        "bootfile-url",
        59,
        [
            ("tftp://[2001:db8::9]/a", b"tftp://[2001:db8::9]/a"),
            ("http://boot.test/b", b"http://boot.test/b"),
        ],
    ),
    (
        true,
        "24",
        24,
        [("a", &[1, b'a', 0]), ("b,c", &[1, b'b', 0, 1, b'c', 0])],
    ),
];

/// What a service makes of a packet; none where it is nobody's question.
pub fn answer(world: &World, port: &v1::Port, packet: &Packet) -> Option<Answer> {
    let subnet = world.subnet(&port.subnet);
    let mut told = subnet.dhcp.clone().unwrap_or_default();
    if let Some(dns) = world.dns(&port.vpc) {
        if told.dns_servers.is_empty() {
            let own = [true, false].map(|v4| gateway_address(subnet, v4));
            told.dns_servers = own.into_iter().flatten().map(|it| it.to_string()).collect();
        }
        if told.domain.is_empty() {
            told.domain.clone_from(&dns.domain);
        }
    }
    // A question in pieces is nobody's.
    if told.disabled || packet.fragment.is_some() {
        return None;
    }
    let service = Service {
        world,
        port,
        subnet,
        told,
        packet,
    };
    let destination = packet.flow.destination;
    match (packet.flow.protocol, packet.flow.detail) {
        (UDP, Detail::Ports(_, 67)) if packet.is_v4() => {
            let unicast = gateway_address(subnet, true) == Some(destination)
                && packet.dst == gateway_mac(subnet);
            let broadcast = destination == IpAddr::from([255; 4]);
            (unicast || broadcast).then(|| service.dhcp())
        }
        (UDP, Detail::Ports(_, 547)) if !packet.is_v4() => {
            let groups = ["ff02::1:2", "ff05::1:3"];
            groups
                .contains(&destination.to_string().as_str())
                .then(|| service.dhcp6())
        }
        (ICMPV6, Detail::Message(133, _)) if !packet.is_v4() => Some(service.advertisement()),
        _ => None,
    }
}

struct Service<'a> {
    world: &'a World,
    port: &'a v1::Port,
    subnet: &'a v1::Subnet,
    told: v1::Dhcp,
    packet: &'a Packet,
}

impl Service<'_> {
    fn address(&self, v4: bool) -> Option<IpAddr> {
        let mut all = self.port.addresses.iter().map(|text| text.parse().unwrap());
        all.find(|address: &IpAddr| address.is_ipv4() == v4)
    }

    fn prefix(&self, v4: bool) -> Option<IpNetwork> {
        let mut all = self.subnet.cidrs.iter().map(|text| text.parse().unwrap());
        all.find(|prefix: &IpNetwork| prefix.is_ipv4() == v4)
    }

    fn servers(&self, v4: bool) -> Vec<u8> {
        let all = self
            .told
            .dns_servers
            .iter()
            .map(|text| text.parse().unwrap());
        all.filter(|server: &IpAddr| server.is_ipv4() == v4)
            .flat_map(octets)
            .collect()
    }

    fn lease(&self) -> u32 {
        match self.told.lease_seconds {
            0 => 86400,
            seconds => seconds,
        }
    }

    /// The subnet's own, or what fits the tunnels of this fabric's hosts.
    fn mtu(&self) -> u32 {
        let v6 = |host: &v1::Host| host.vteps.iter().any(|vtep| vtep.contains(':'));
        match self.subnet.mtu {
            0 if self.world.0.hosts.iter().any(v6) => 1430,
            0 => 1450,
            mtu => mtu,
        }
    }

    /// Only the port's own MAC has leases.
    fn check_mac(&self, source: Mac) -> Result<(), DropReason> {
        if source == mac(&self.port.mac) {
            Ok(())
        } else if self.port.unguarded || owns_mac(self.port, source) {
            Err(DropReason::DhcpUnanswered)
        } else {
            Err(DropReason::SpoofedDhcp)
        }
    }

    fn stranger(&self) -> DropReason {
        if self.port.unguarded {
            DropReason::DhcpUnanswered
        } else {
            DropReason::SpoofedDhcp
        }
    }

    /// The datagram's payload, if it is whole.
    fn payload(&self) -> Result<&[u8], DropReason> {
        let packet = self.packet;
        let length = usize::from(word(&packet.bytes, packet.l4 + 4));
        let datagram = &packet.bytes[packet.l4..packet.l4 + length];
        let pseudo = pseudo_header(packet.flow.source, packet.flow.destination, UDP, length);
        let absent = packet.is_v4() && word(datagram, 6) == 0;
        if !absent && ones_sum(&[&pseudo, datagram]) != 0xffff {
            return Err(DropReason::DhcpMalformed);
        }
        Ok(&datagram[8..])
    }

    fn dhcp(&self) -> Answer {
        let message = self.payload()?;
        if message.len() < 240 {
            return Err(DropReason::DhcpMalformed);
        }
        self.check_mac(self.packet.src)?;
        self.check_mac(mac_at(message, 28))?;
        if message[..3] != [1, 1, 6] || message[236..240] != [99, 130, 83, 99] {
            return Err(DropReason::DhcpMalformed);
        }
        let option = |wanted: u8| {
            let mut at = 240;
            while message[at] != 255 {
                let end = at + 2 + usize::from(message[at + 1]);
                if message[at] == wanted {
                    return Some(&message[at + 2..end]);
                }
                at = end;
            }
            None
        };
        let client = v4_at(message, 12);
        let source = self.packet.flow.source;
        if !source.is_unspecified() && source != client && !owns(self.port, source, self.packet.src)
        {
            return Err(self.stranger());
        }
        if message[24..28] != [0; 4] {
            return Err(DropReason::DhcpUnanswered);
        }
        let ends = (gateway_address(self.subnet, true), self.address(true));
        let (Some(gateway), Some(own)) = ends else {
            return Err(DropReason::DhcpUnanswered);
        };
        let is_other = |address: &[u8]| octets(gateway) != address;
        let kind = option(53).ok_or(DropReason::DhcpMalformed)?[0];
        let (reply, given) = match kind {
            1 if option(80).is_some() => (5, Some(own)),
            1 => (2, Some(own)),
            3 if option(54).is_some_and(is_other) => return Err(DropReason::DhcpUnanswered),
            3 => {
                let asked = option(50).map(|address| v4_at(address, 0));
                // An option that names no address counts as none.
                let wanted = asked.filter(|address| !address.is_unspecified());
                let wanted = wanted.unwrap_or(client);
                if wanted.is_unspecified() {
                    return Err(DropReason::DhcpMalformed);
                }
                if wanted == own {
                    (5, Some(own))
                } else {
                    (6, None)
                }
            }
            8 if client.is_unspecified() => return Err(DropReason::DhcpMalformed),
            8 if owns_address(self.port, client) => (5, None),
            4 | 7 | 8 => return Err(DropReason::DhcpUnanswered),
            _ => return Err(DropReason::DhcpMalformed),
        };
        let everybody = IpAddr::from([255; 4]);
        let nobody = IpAddr::from([0; 4]);
        // Who gets another address than the one it has is not sent to at that.
        let client = match given {
            Some(given) if given != client => nobody,
            _ => client,
        };
        let to = if reply == 6 {
            everybody
        } else if !client.is_unspecified() {
            client
        } else if message[10] & 0x80 != 0 {
            everybody
        } else {
            given.unwrap_or(everybody)
        };
        let mut bytes = vec![2, 1, 6, 0];
        bytes.extend(&message[4..8]);
        bytes.extend([0, 0]);
        bytes.extend(&message[10..12]);
        bytes.extend(octets(if reply == 5 { client } else { nobody }));
        bytes.extend(octets(given.unwrap_or(nobody)));
        let field = |code: u16| match reply {
            6 => Vec::new(),
            _ => self.given(false, code).unwrap_or_default(),
        };
        let mut next_server = field(0);
        next_server.resize(4, 0);
        bytes.extend(next_server);
        bytes.extend([0; 4]);
        bytes.extend(&message[28..34]);
        for (code, from, to) in [(66, 44, 108), (67, 108, 236)] {
            bytes.resize(from, 0);
            // With a zero at its end.
            let value = Some(field(code)).filter(|value| value.len() < to - from);
            bytes.extend(value.unwrap_or_default());
        }
        bytes.resize(236, 0);
        bytes.extend([99, 130, 83, 99]);
        let mut put = |code: u8, value: &[u8]| {
            bytes.extend([code, value.len() as u8]);
            bytes.extend(value);
        };
        put(53, &[reply]);
        put(54, &octets(gateway));
        if reply == 5 && kind == 1 {
            put(80, &[]);
        }
        if given.is_some() {
            let lease = self.lease();
            for (code, seconds) in [(51, lease), (58, lease / 2), (59, lease - lease / 8)] {
                put(code, &seconds.to_be_bytes());
            }
        }
        if reply != 6 {
            let all = self.parameters(gateway);
            let mut told: Vec<u8> = match option(55) {
                Some(wanted) => [&[1], wanted].concat(),
                None => all.iter().map(|(code, _)| *code).collect(),
            };
            let forced = GIVEN
                .iter()
                .filter(|it| !it.0 && self.is_forced(false, it.2));
            told.extend(forced.map(|it| it.2 as u8));
            for (i, code) in told.iter().enumerate() {
                let value = all.iter().find(|(known, _)| known == code);
                if let Some((_, value)) = value.filter(|_| !told[..i].contains(code)) {
                    put(*code, value);
                }
            }
        }
        bytes.push(255);
        bytes.resize(bytes.len().max(300), 0);
        let to_mac = if to == everybody {
            [0xff; 6]
        } else {
            self.packet.src
        };
        Ok(self.datagram(to_mac, (gateway, to), (67, 68), &bytes))
    }

    fn parameters(&self, gateway: IpAddr) -> Vec<(u8, Vec<u8>)> {
        let Some(IpNetwork::V4(prefix)) = self.prefix(true) else {
            return Vec::new();
        };
        let mut routes = vec![0];
        routes.extend(octets(gateway));
        for route in &self.told.routes {
            let prefix: IpNetwork = route.prefix.parse().unwrap();
            routes.push(prefix.prefix());
            let significant = usize::from(prefix.prefix()).div_ceil(8);
            routes.extend(&octets(prefix.network())[..significant]);
            routes.extend(octets(route.next_hop.parse().unwrap()));
        }
        if self.world.1 {
            routes.extend([32, 169, 254, 169, 254]);
            routes.extend(octets(gateway));
        }
        let own = [
            (1, octets(prefix.mask().into())),
            (3, octets(gateway)),
            (121, routes),
            (26, (self.mtu() as u16).to_be_bytes().to_vec()),
            (6, self.servers(true)),
            (15, self.told.domain.clone().into_bytes()),
        ];
        let mut all = self.with_given(false, &own);
        all.push((12, self.port.hostname.clone().into_bytes()));
        let all = all.into_iter().map(|(code, value)| (code as u8, value));
        all.filter(|(_, value)| !value.is_empty()).collect()
    }

    /// What the network tells by itself, with the options that the subnet and the port give in place of its own and behind them. A port's option that
    /// the subnet gives, too, stands where the subnet's stood, if the subnet told any.
    fn with_given(&self, is_v6: bool, own: &[(u16, Vec<u8>)]) -> Vec<(u16, Vec<u8>)> {
        let mut all = own.to_vec();
        all.retain(|(_, value)| !value.is_empty());
        for options in [&self.told.options, &self.port.dhcp_options] {
            for (code, value) in options.iter().filter_map(|it| sent(it, is_v6)) {
                match all.iter_mut().find(|(known, _)| *known == code) {
                    Some(known) => known.1 = value,
                    None => all.push((code, value)),
                }
            }
            all.retain(|(code, value)| *code != 0 && !value.is_empty());
        }
        all
    }

    /// The value of an option that the port gives, or else the subnet.
    fn given(&self, is_v6: bool, code: u16) -> Option<Vec<u8>> {
        let find = |options: &[v1::DhcpOption]| {
            let mut all = options.iter().filter_map(|it| sent(it, is_v6));
            all.find(|(known, _)| *known == code)
        };
        let found = find(&self.port.dhcp_options).or_else(|| find(&self.told.options));
        found.map(|(_, value)| value)
    }

    /// Whether who does not ask for an option is told of it.
    fn is_forced(&self, is_v6: bool, code: u16) -> bool {
        let find = |options: &[v1::DhcpOption]| {
            let of_code = |it: &&v1::DhcpOption| sent(it, is_v6).is_some_and(|it| it.0 == code);
            options.iter().find(of_code).map(|it| it.force)
        };
        let forced = find(&self.port.dhcp_options).or_else(|| find(&self.told.options));
        forced.unwrap_or(false)
    }

    fn router(&self) -> IpAddr {
        link_local(gateway_mac(self.subnet))
    }

    fn is_stateful(&self) -> bool {
        matches!(self.told.ipv6_mode.as_str(), "" | "dhcpv6-stateful")
    }

    fn dhcp6(&self) -> Answer {
        let message = self.payload()?;
        self.check_mac(self.packet.src)?;
        let source = self.packet.flow.source;
        if !is_link_local(source) && !owns(self.port, source, self.packet.src) {
            return Err(self.stranger());
        }
        if message.first() == Some(&12) {
            return Err(DropReason::DhcpUnanswered);
        }
        if message.len() < 4 {
            return Err(DropReason::DhcpMalformed);
        }
        let options = read_options(&message[4..]);
        let option = |code: u16| options.iter().find(|option| option.0 == code);
        let mut duid = vec![0, 3, 0, 1];
        duid.extend(gateway_mac(self.subnet));
        let kind = message[0];
        let (client, server) = (option(1), option(2));
        let well_formed = match kind {
            1 | 4 | 6 => client.is_some() && server.is_none(),
            3 | 5 | 8 | 9 => client.is_some() && server.is_some(),
            11 => option(3).is_none(),
            _ => false,
        };
        if !well_formed {
            return Err(DropReason::DhcpMalformed);
        }
        if server.is_some_and(|(_, server)| *server != duid) {
            return Err(DropReason::DhcpUnanswered);
        }
        let own = self.address(false);
        let leased = own.filter(|_| self.is_stateful());
        let advertises = kind == 1 && (option(14).is_none() || leased.is_none());
        let mut bytes = vec![if advertises { 2 } else { 7 }];
        bytes.extend(&message[1..4]);
        if let Some((_, client)) = client {
            write_option(&mut bytes, 1, client);
        }
        write_option(&mut bytes, 2, &duid);
        if kind == 1 && !advertises {
            write_option(&mut bytes, 14, &[]);
        }
        let association = option(3).map(|(_, value)| value);
        match (kind, association) {
            (4, association) => {
                let held: Vec<IpAddr> = association.map_or(Vec::new(), |value| held(value));
                if own.is_none() || held.is_empty() {
                    return Err(DropReason::DhcpUnanswered);
                }
                let right = held.iter().all(|address| has_address(self.port, *address));
                write_option(&mut bytes, 13, &[0, if right { 0 } else { 4 }]);
            }
            (8 | 9, _) => write_option(&mut bytes, 13, &[0, 0]),
            (1 | 3 | 5 | 6, Some(value)) => {
                let value = self.association(kind, value, leased);
                write_option(&mut bytes, 3, &value);
            }
            _ => {}
        }
        if !matches!(kind, 4 | 8 | 9) {
            let own = [(23, self.servers(false)), (24, self.domain())];
            for (code, value) in self.with_given(true, &own) {
                let wanted = option(6).is_none_or(|(_, wanted)| {
                    wanted.chunks(2).any(|wanted| word(wanted, 0) == code)
                });
                if wanted || self.is_forced(true, code) {
                    write_option(&mut bytes, code, &value);
                }
            }
        }
        let ends = (self.router(), source);
        Ok(self.datagram(self.packet.src, ends, (547, 546), &bytes))
    }

    /// The answer to an association with non-temporary addresses.
    fn association(&self, kind: u8, asked: &[u8], leased: Option<IpAddr>) -> Vec<u8> {
        let renews = matches!(kind, 5 | 6);
        let mut value = asked[..4].to_vec();
        let Some(address) = leased else {
            value.extend([0; 8]);
            write_option(&mut value, 13, &[0, if renews { 3 } else { 2 }]);
            return value;
        };
        let lease = self.lease();
        value.extend((lease / 2).to_be_bytes());
        value.extend(((u64::from(lease) * 8 / 10) as u32).to_be_bytes());
        let others = held(asked)
            .into_iter()
            .filter(|other| renews && *other != address);
        for (address, life) in std::iter::once((address, lease)).chain(others.map(|o| (o, 0))) {
            let life = life.to_be_bytes();
            write_option(
                &mut value,
                5,
                &[&octets(address)[..], &life, &life].concat(),
            );
        }
        value
    }

    /// The domain as RFC 1035 writes it.
    fn domain(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        if !self.told.domain.is_empty() {
            for label in self.told.domain.split('.') {
                bytes.push(label.len() as u8);
                bytes.extend(label.bytes());
            }
            bytes.push(0);
        }
        bytes
    }

    fn advertisement(&self) -> Answer {
        let packet = self.packet;
        let message = super::gateway::checked(packet)?;
        let option = source_option(&message[8..]);
        let source = packet.flow.source;
        let unspecified = source.is_unspecified();
        if unspecified && option.is_some() {
            return Err(DropReason::NeighborMalformed);
        }
        let local = unspecified || is_link_local(source);
        let own = owns(self.port, source, packet.src) || local && owns_mac(self.port, packet.src);
        let lies = option.is_some_and(|option| !owns_mac(self.port, option));
        if !self.port.unguarded && (!own || lies) {
            return Err(DropReason::SpoofedNeighbor);
        }
        let (Some(prefix), Some(_)) = (self.prefix(false), self.address(false)) else {
            return Err(DropReason::NeighborUnanswered);
        };
        let (managed, other) = match self.told.ipv6_mode.as_str() {
            "slaac" => (0, 0),
            "dhcpv6-stateless" => (0, 0x40),
            _ => (0x80, 0x40),
        };
        let autonomous = if managed == 0 { 0x40 } else { 0 };
        let forever = [0xff; 4];
        let mut bytes = vec![134, 0, 0, 0, 64, managed | other, 0xff, 0xff];
        bytes.extend([0; 8]);
        bytes.extend([1, 1]);
        bytes.extend(gateway_mac(self.subnet));
        bytes.extend([5, 1, 0, 0]);
        bytes.extend(self.mtu().to_be_bytes());
        bytes.extend([3, 4, prefix.prefix(), 0x80 | autonomous]);
        bytes.extend([forever, forever, [0; 4]].concat());
        bytes.extend(octets(prefix.network()));
        bytes.extend([24, 1, 0, 0]);
        bytes.extend(forever);
        for (kind, mut value) in [(25, self.servers(false)), (31, self.domain())] {
            if !value.is_empty() {
                value.resize(value.len().div_ceil(8) * 8, 0);
                bytes.extend([kind, 1 + (value.len() / 8) as u8, 0, 0]);
                bytes.extend(forever);
                bytes.extend(value);
            }
        }
        let all_nodes = IpAddr::from([0xff02, 0, 0, 0, 0, 0, 0, 1]);
        let (to, to_mac) = if unspecified {
            (all_nodes, [0x33, 0x33, 0, 0, 0, 1])
        } else {
            (source, packet.src)
        };
        let pseudo = pseudo_header(self.router(), to, ICMPV6, bytes.len());
        let sum = !ones_sum(&[&pseudo, &bytes]);
        bytes[2..4].copy_from_slice(&sum.to_be_bytes());
        Ok(self.frame(to_mac, (self.router(), to), (ICMPV6, 255), &bytes))
    }

    fn datagram(&self, to: Mac, ends: (IpAddr, IpAddr), ports: (u16, u16), body: &[u8]) -> Vec<u8> {
        let mut bytes = [ports.0.to_be_bytes(), ports.1.to_be_bytes()].concat();
        bytes.extend((8 + body.len() as u16).to_be_bytes());
        bytes.extend([0, 0]);
        bytes.extend(body);
        let pseudo = pseudo_header(ends.0, ends.1, UDP, bytes.len());
        let sum = match !ones_sum(&[&pseudo, &bytes]) {
            0 => 0xffff,
            sum => sum,
        };
        bytes[6..8].copy_from_slice(&sum.to_be_bytes());
        self.frame(to, ends, (UDP, 64), &bytes)
    }

    /// `carries`: protocol and hop limit.
    fn frame(&self, to: Mac, ends: (IpAddr, IpAddr), carries: (u8, u8), payload: &[u8]) -> Vec<u8> {
        let mut frame = [to, gateway_mac(self.subnet)].concat();
        let (protocol, ttl) = carries;
        if ends.0.is_ipv4() {
            let mut header = vec![0x45, 0];
            header.extend((20 + payload.len() as u16).to_be_bytes());
            header.extend([0, 0, 0x40, 0, ttl, protocol, 0, 0]);
            header.extend(octets(ends.0));
            header.extend(octets(ends.1));
            let sum = !ones_sum(&[&header]);
            header[10..12].copy_from_slice(&sum.to_be_bytes());
            frame.extend([8, 0]);
            frame.extend(header);
        } else {
            frame.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
            frame.extend((payload.len() as u16).to_be_bytes());
            frame.extend([protocol, ttl]);
            frame.extend(octets(ends.0));
            frame.extend(octets(ends.1));
        }
        frame.extend(payload);
        frame
    }
}

/// Number and value of an option of a family as it is sent; the value is empty where it is taken away.
fn sent(option: &v1::DhcpOption, is_v6: bool) -> Option<(u16, Vec<u8>)> {
    let (_, _, code, values) = GIVEN
        .iter()
        .find(|given| given.0 == is_v6 && given.1 == option.name)
        .filter(|_| is_v6 == (option.family == "ipv6"))?;
    let value = values.iter().find(|(text, _)| *text == option.value);
    Some((*code, value.map_or(Vec::new(), |(_, bytes)| bytes.to_vec())))
}

/// DHCPv6 options: code and value.
fn read_options(bytes: &[u8]) -> Vec<(u16, Vec<u8>)> {
    let (mut at, mut options) = (0, Vec::new());
    while at < bytes.len() {
        let end = at + 4 + usize::from(word(bytes, at + 2));
        options.push((word(bytes, at), bytes[at + 4..end].to_vec()));
        at = end;
    }
    options
}

/// The addresses that an association holds.
fn held(association: &[u8]) -> Vec<IpAddr> {
    let options = read_options(&association[12..]);
    let addresses = options.iter().filter(|(code, _)| *code == 5);
    addresses.map(|(_, value)| v6_at(value, 0)).collect()
}

fn write_option(bytes: &mut Vec<u8>, code: u16, value: &[u8]) {
    bytes.extend(code.to_be_bytes());
    bytes.extend((value.len() as u16).to_be_bytes());
    bytes.extend(value);
}
