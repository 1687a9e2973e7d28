//! DHCPv6 (RFC 8415, options of RFC 3646).
//!
//! The port's first IPv6 address is the one that its guest is given, in the first association (IA_NA) that it names. Other associations,
//! temporary addresses and delegated prefixes get none. Servers are told apart by their DUID: ours is made of the gateway's MAC, so that it is
//! the same on every host.

use super::datagram::{self, Envelope};
use super::{Answer, Question, headers, is_link_local};
use crate::packet::parse::ETHERNET;
use crate::packet::{DropReason, Family};
use crate::snapshot::guests::each6;

/// The server's UDP port.
pub(super) const SERVER: u16 = 547;
const CLIENT: u16 = 546;
/// All relay agents and servers, and all servers (RFC 8415 §7.1).
pub(super) const GROUPS: [u128; 2] = [0xff02 << 112 | 0x1_0002, 0xff05 << 112 | 0x1_0003];

/// Codes of options.
mod code {
    pub const CLIENT: u16 = 1;
    pub const SERVER: u16 = 2;
    pub const IA_NA: u16 = 3;
    pub const IA_TA: u16 = 4;
    pub const ADDRESS: u16 = 5;
    pub const WANTED: u16 = 6;
    pub const STATUS: u16 = 13;
    pub const RAPID_COMMIT: u16 = 14;
    pub const IA_PD: u16 = 25;
}

/// Status codes (RFC 8415 §21.13).
mod status {
    pub const SUCCESS: u16 = 0;
    pub const NO_ADDRESSES: u16 = 2;
    pub const NO_BINDING: u16 = 3;
    pub const NOT_ON_LINK: u16 = 4;
    pub const NO_PREFIX: u16 = 6;
}

/// Kinds of messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Solicit,
    Request,
    Confirm,
    Renew,
    Rebind,
    Release,
    Decline,
    InformationRequest,
}

/// Bytes of IP packet that every link of IPv6 carries (RFC 8200 §5).
const LEAST_MTU: usize = 1280;
const ADVERTISE: u8 = 2;
const REPLY: u8 = 7;

/// What a client's message says, besides its associations.
#[derive(Debug)]
struct Request<'m> {
    kind: Kind,
    transaction: &'m [u8],
    /// The client's DUID.
    client: Option<&'m [u8]>,
    rapid_commit: bool,
    /// The codes of the options that it wants.
    wanted: Option<&'m [u8]>,
    /// All options.
    options: &'m [u8],
}

/// Turns a client's message into the answer.
pub(super) fn answer(
    question: &Question<'_>,
    message: &[u8],
    area: &mut [u8],
) -> Result<Answer, DropReason> {
    let parsed = question.parsed;
    question.check_mac(parsed.eth_src)?;
    let source = parsed.flow.source;
    if !is_link_local(source) && !question.port.owns(source, parsed.eth_src) {
        return Err(question.stranger());
    }
    let duid = server_duid(question);
    let request = read(message, &duid)?;
    let headers = headers(Family::Ipv6);
    let limit = (ETHERNET + LEAST_MTU).min(area.len());
    let room = area.get_mut(headers..limit).ok_or(DropReason::NoBuffer)?;
    let (len, name) = write(question, &request, &duid, room)?;
    let envelope = Envelope {
        eth_dst: parsed.eth_src,
        eth_src: question.subnet.gateway_mac,
        source: question.router(),
        destination: source,
        ports: (SERVER, CLIENT),
    };
    let len = datagram::write(area, &envelope, len).ok_or(DropReason::NoBuffer)?;
    Ok(Answer { len, name })
}

/// A DUID-LL over Ethernet (RFC 8415 §11.4).
fn server_duid(question: &Question<'_>) -> [u8; 10] {
    let [a, b, c, d, e, f] = question.subnet.gateway_mac.bytes();
    [0, 3, 0, 1, a, b, c, d, e, f]
}

/// The options of a message or of another option: code and value, none where they are malformed. Ends behind that.
fn each(mut options: &[u8]) -> impl Iterator<Item = Option<(u16, &[u8])>> {
    std::iter::from_fn(move || {
        let next = match options {
            [] => return None,
            [a, b, c, d, rest @ ..] => rest
                .split_at_checked(u16::from_be_bytes([*c, *d]).into())
                .map(|(value, rest)| (u16::from_be_bytes([*a, *b]), value, rest)),
            _ => None,
        };
        options = next.map_or(&[], |(_, _, rest)| rest);
        Some(next.map(|(code, value, _)| (code, value)))
    })
}

/// Reads a client's message, and refuses what RFC 8415 §16 refuses.
fn read<'m>(message: &'m [u8], own_duid: &[u8]) -> Result<Request<'m>, DropReason> {
    let malformed = DropReason::DhcpMalformed;
    let (kind, rest) = message.split_first().ok_or(malformed)?;
    let kind = match kind {
        1 => Kind::Solicit,
        3 => Kind::Request,
        4 => Kind::Confirm,
        5 => Kind::Renew,
        6 => Kind::Rebind,
        8 => Kind::Release,
        9 => Kind::Decline,
        11 => Kind::InformationRequest,
        // A relay's: it has no business between a guest and its gateway.
        12 => return Err(DropReason::DhcpUnanswered),
        _ => return Err(malformed),
    };
    let (transaction, options) = rest.split_at_checked(3).ok_or(malformed)?;
    let mut request = Request {
        kind,
        transaction,
        client: None,
        rapid_commit: false,
        wanted: None,
        options,
    };
    let (mut server, mut associations) = (None, false);
    for option in each(options) {
        let (code, value) = option.ok_or(malformed)?;
        match code {
            // RFC 8415 §11.1.
            code::CLIENT | code::SERVER if !(3..=130).contains(&value.len()) => {
                return Err(malformed);
            }
            code::CLIENT => request.client = Some(value),
            code::SERVER => server = Some(value),
            code::WANTED => request.wanted = Some(value),
            code::RAPID_COMMIT => request.rapid_commit = true,
            code::IA_NA | code::IA_TA | code::IA_PD => associations = true,
            _ => {}
        }
    }
    let (needs_client, right_server) = match kind {
        Kind::Solicit | Kind::Confirm | Kind::Rebind => (true, server.is_none()),
        Kind::InformationRequest => (false, !associations),
        Kind::Request | Kind::Renew | Kind::Release | Kind::Decline => (true, server.is_some()),
    };
    if !right_server || (needs_client && request.client.is_none()) {
        return Err(malformed);
    }
    if server.is_some_and(|server| server != own_duid) {
        return Err(DropReason::DhcpUnanswered);
    }
    Ok(request)
}

/// Writes the answer (RFC 8415 §18.3). Answers its length, and what it is in words.
fn write(
    question: &Question<'_>,
    request: &Request<'_>,
    duid: &[u8],
    room: &mut [u8],
) -> Result<(usize, &'static str), DropReason> {
    let own = question.port.first_address(Family::Ipv6);
    let leased = own.filter(|_| question.guests.stateful);
    let commits = request.kind != Kind::Solicit || (request.rapid_commit && leased.is_some());
    let (kind, name) = if commits {
        (REPLY, "DHCPv6 reply")
    } else {
        (ADVERTISE, "DHCPv6 advertisement")
    };
    let mut message = Writer { room, at: 0 };
    message.bytes(&[kind])?;
    message.bytes(request.transaction)?;
    if let Some(client) = request.client {
        message.option(code::CLIENT, &[client])?;
    }
    message.option(code::SERVER, &[duid])?;
    match request.kind {
        Kind::Solicit | Kind::Request | Kind::Renew | Kind::Rebind => {
            if request.kind == Kind::Solicit && commits {
                message.option(code::RAPID_COMMIT, &[])?;
            }
            associations(question, request, leased, &mut message)?;
            parameters(question, request, &mut message)?;
        }
        Kind::Confirm => {
            let status = confirm(question, request)?;
            message.option(code::STATUS, &[&status.to_be_bytes()])?;
        }
        // Nothing was kept for the guest, and nothing is free now.
        Kind::Release | Kind::Decline => {
            message.option(code::STATUS, &[&status::SUCCESS.to_be_bytes()])?;
        }
        Kind::InformationRequest => parameters(question, request, &mut message)?,
    }
    Ok((message.at, name))
}

/// Answers each association that the client names.
fn associations(
    question: &Question<'_>,
    request: &Request<'_>,
    leased: Option<u128>,
    message: &mut Writer<'_>,
) -> Result<(), DropReason> {
    let malformed = DropReason::DhcpMalformed;
    let renews = matches!(request.kind, Kind::Renew | Kind::Rebind);
    let mut address = leased;
    for (code, value) in each(request.options).flatten() {
        let (fixed, refusal) = match code {
            code::IA_NA => (12, status::NO_ADDRESSES),
            code::IA_TA => (4, status::NO_ADDRESSES),
            code::IA_PD => (12, status::NO_PREFIX),
            _ => continue,
        };
        let (head, options) = value.split_at_checked(fixed).ok_or(malformed)?;
        let id = head.get(..4).ok_or(malformed)?;
        let given = if code == code::IA_NA {
            address.take()
        } else {
            None
        };
        let Some(given) = given else {
            // No times, and why.
            let refusal = if renews { status::NO_BINDING } else { refusal };
            let status = status_option(refusal);
            message.option(code, &[id, &[0; 8][..fixed - 4], &status])?;
            continue;
        };
        let lease = question.guests.lease;
        // RFC 8415 §21.4.
        let (renewal, rebinding) = match lease {
            u32::MAX => (lease, lease),
            _ => (lease / 2, (u64::from(lease) * 4 / 5) as u32),
        };
        let start = message.open(code)?;
        message.bytes(id)?;
        message.bytes(&renewal.to_be_bytes())?;
        message.bytes(&rebinding.to_be_bytes())?;
        message.address(given, lease)?;
        if renews {
            // What the client has besides is no longer its own.
            for other in addresses(options) {
                let other = other?;
                if other != given {
                    message.address(other, 0)?;
                }
            }
        }
        message.close(start);
    }
    Ok(())
}

/// The addresses of an association.
fn addresses(options: &[u8]) -> impl Iterator<Item = Result<u128, DropReason>> {
    each(options).filter_map(|option| match option {
        Some((code::ADDRESS, value)) => Some(
            value
                .first_chunk()
                .map(|address| u128::from_be_bytes(*address))
                .ok_or(DropReason::DhcpMalformed),
        ),
        Some(_) => None,
        None => Some(Err(DropReason::DhcpMalformed)),
    })
}

/// Whether the addresses that a client has are right where it is now. What has no IPv6 address, or is not asked for any, has nothing to say.
fn confirm(question: &Question<'_>, request: &Request<'_>) -> Result<u16, DropReason> {
    if question.port.first_address(Family::Ipv6).is_none() {
        return Err(DropReason::DhcpUnanswered);
    }
    let (mut some, mut right) = (false, true);
    for (code, value) in each(request.options).flatten() {
        let fixed = match code {
            code::IA_NA => 12,
            code::IA_TA => 4,
            _ => continue,
        };
        let options = value.get(fixed..).ok_or(DropReason::DhcpMalformed)?;
        for address in addresses(options) {
            some = true;
            right &= question.port.addresses.contains(&address?);
        }
    }
    match (some, right) {
        (false, _) => Err(DropReason::DhcpUnanswered),
        (_, true) => Ok(status::SUCCESS),
        (_, false) => Ok(status::NOT_ON_LINK),
    }
}

/// The options that the client wants, or all if it does not say, and those of which every client is told.
fn parameters(
    question: &Question<'_>,
    request: &Request<'_>,
    message: &mut Writer<'_>,
) -> Result<(), DropReason> {
    for (code, value) in each6(&question.guests.dhcp6) {
        let forced = question.guests.forced6.contains(&code);
        let wanted = request.wanted.is_none_or(|wanted| {
            let mut codes = wanted.chunks_exact(2);
            codes.any(|wanted| wanted == code.to_be_bytes())
        });
        if wanted || forced {
            message.option(code, &[value])?;
        }
    }
    Ok(())
}

/// A status code option without a message for people.
fn status_option(status: u16) -> [u8; 6] {
    let [high, low] = status.to_be_bytes();
    [0, code::STATUS as u8, 0, 2, high, low]
}

/// Writes a message piece by piece. What does not fit makes the question one that asks too much.
struct Writer<'a> {
    room: &'a mut [u8],
    at: usize,
}

impl Writer<'_> {
    fn bytes(&mut self, bytes: &[u8]) -> Result<(), DropReason> {
        let end = self.at + bytes.len();
        let place = self.room.get_mut(self.at..end);
        place
            .ok_or(DropReason::DhcpMalformed)?
            .copy_from_slice(bytes);
        self.at = end;
        Ok(())
    }

    /// An option of these parts.
    fn option(&mut self, code: u16, parts: &[&[u8]]) -> Result<(), DropReason> {
        let start = self.open(code)?;
        for part in parts {
            self.bytes(part)?;
        }
        self.close(start);
        Ok(())
    }

    /// Begins an option whose length is not known yet.
    fn open(&mut self, code: u16) -> Result<usize, DropReason> {
        self.bytes(&code.to_be_bytes())?;
        self.bytes(&[0, 0])?;
        Ok(self.at)
    }

    /// Ends the option that began there.
    fn close(&mut self, start: usize) {
        let len = (self.at - start) as u16;
        if let Some(place) = self.room.get_mut(start - 2..start) {
            place.copy_from_slice(&len.to_be_bytes());
        }
    }

    /// An address with its lifetimes; preferred as long as it is valid.
    fn address(&mut self, address: u128, lifetime: u32) -> Result<(), DropReason> {
        let lifetime = lifetime.to_be_bytes();
        self.option(
            code::ADDRESS,
            &[&address.to_be_bytes(), &lifetime, &lifetime],
        )
    }
}
