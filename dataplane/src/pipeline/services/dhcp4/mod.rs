//! DHCP for IPv4 (RFC 2131, options of RFC 2132, 3442, 4039 and 6842).
//!
//! The port's first IPv4 address is the one that its guest is given, for as long as it asks. So nothing is reserved by an offer, and a request
//! for any other address is refused.

mod options;

use self::options::{Options, code, field};
use super::datagram::{self, Envelope};
use super::{Answer, Question, headers};
use crate::packet::parse::{ETHERNET, IPV4_MAPPED};
use crate::packet::{DropReason, Family, Mac};
use crate::snapshot::guests::each4;

/// The server's UDP port.
pub(super) const SERVER: u16 = 67;
const CLIENT: u16 = 68;
/// 255.255.255.255.
pub(super) const BROADCAST: u128 = IPV4_MAPPED | u32::MAX as u128;

/// What options begin with.
const COOKIE: [u8; 4] = [99, 130, 83, 99];
/// Bytes of IP packet that every client takes (RFC 2131 §2).
const EVERY_CLIENT: u16 = 576;

/// Kinds of messages.
mod kind {
    pub const DISCOVER: u8 = 1;
    pub const OFFER: u8 = 2;
    pub const REQUEST: u8 = 3;
    pub const DECLINE: u8 = 4;
    pub const ACK: u8 = 5;
    pub const NAK: u8 = 6;
    pub const RELEASE: u8 = 7;
    pub const INFORM: u8 = 8;
}

/// What a client's message says.
#[derive(Debug, Default)]
struct Request<'m> {
    kind: u8,
    broadcast: bool,
    client_address: u32,
    requested: Option<u32>,
    server: Option<u32>,
    rapid_commit: bool,
    max_size: Option<u16>,
    wanted: Option<&'m [u8]>,
    client: Option<&'m [u8]>,
}

/// What to answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Reply {
    kind: u8,
    /// The address that is given, for a time; none to who has one already.
    address: Option<u32>,
    rapid_commit: bool,
    name: &'static str,
}

/// Turns a client's message into the answer.
pub(super) fn answer(
    question: &Question<'_>,
    message: &[u8],
    area: &mut [u8],
) -> Result<Answer, DropReason> {
    let chaddr: [u8; 6] = message
        .get(field::CHADDR)
        .and_then(|chaddr| chaddr.try_into().ok())
        .ok_or(DropReason::DhcpMalformed)?;
    question.check_mac(question.parsed.eth_src)?;
    question.check_mac(Mac::from_bytes(chaddr))?;
    let mut request = read(message)?;
    check_source(question, &request)?;
    if message.get(field::GIADDR) != Some(&[0; 4]) {
        // A relay's: it has no business between a guest and its gateway.
        return Err(DropReason::DhcpUnanswered);
    }
    let no_ipv4 = DropReason::DhcpUnanswered;
    let gateway = question.subnet.gateway_v4.ok_or(no_ipv4)?;
    let own = question.port.first_address(Family::Ipv4).ok_or(no_ipv4)?;
    let reply = decide(question, &request, (gateway as u32, own as u32))?;
    if reply
        .address
        .is_some_and(|address| address != request.client_address)
    {
        // It is to have another address from now on, and may not be sent to at the one that it has.
        request.client_address = 0;
    }
    let destination = match (reply.kind, reply.address) {
        (kind::NAK, _) => BROADCAST,
        _ if request.client_address != 0 => IPV4_MAPPED | u128::from(request.client_address),
        (_, Some(address)) if !request.broadcast => IPV4_MAPPED | u128::from(address),
        _ => BROADCAST,
    };
    let envelope = Envelope {
        eth_dst: if destination == BROADCAST {
            Mac::BROADCAST
        } else {
            question.port.mac
        },
        eth_src: question.subnet.gateway_mac,
        source: gateway,
        destination,
        ports: (SERVER, CLIENT),
    };
    let headers = headers(Family::Ipv4);
    // No answer is longer than the client takes, nor than the subnet's packets may be.
    let limit = request.max_size.unwrap_or(0).max(EVERY_CLIENT);
    let limit = usize::from(limit.min(question.guests.mtu)) + ETHERNET;
    let limit = limit.min(area.len());
    let room = area.get_mut(headers..limit).ok_or(DropReason::NoBuffer)?;
    let len = write(question, (&request, message), &reply, room).ok_or(DropReason::NoBuffer)?;
    let len = datagram::write(area, &envelope, len).ok_or(DropReason::NoBuffer)?;
    Ok(Answer {
        len,
        name: reply.name,
    })
}

/// A client that has no address sends from none, one that has from its own, even if that is no longer the port's: it is to hear so.
fn check_source(question: &Question<'_>, request: &Request<'_>) -> Result<(), DropReason> {
    let source = question.parsed.flow.source;
    if source == IPV4_MAPPED
        || source == IPV4_MAPPED | u128::from(request.client_address)
        || question.port.owns(source, question.port.mac)
    {
        Ok(())
    } else {
        Err(question.stranger())
    }
}

/// RFC 2131 §4.3; `ends`: the gateway's address and the port's.
fn decide(
    question: &Question<'_>,
    request: &Request<'_>,
    ends: (u32, u32),
) -> Result<Reply, DropReason> {
    let (gateway, own) = ends;
    let reply = |kind, address, name| Reply {
        kind,
        address,
        rapid_commit: false,
        name,
    };
    let acknowledged = reply(kind::ACK, Some(own), "DHCP acknowledgement");
    match request.kind {
        kind::DISCOVER if request.rapid_commit => Ok(Reply {
            rapid_commit: true,
            ..acknowledged
        }),
        kind::DISCOVER => Ok(reply(kind::OFFER, Some(own), "DHCP offer")),
        kind::REQUEST => {
            if request.server.is_some_and(|server| server != gateway) {
                // The client chose another server's offer.
                return Err(DropReason::DhcpUnanswered);
            }
            // RFC 2131 §4.3.2 has one of the two. Boot loaders fill in an option of 0.0.0.0 beside their address, and clients that were just
            // refused the address that they had before beside the one that they ask for.
            let wanted = match (request.requested, request.client_address) {
                (Some(address), _) => address,
                (None, 0) => return Err(DropReason::DhcpMalformed),
                (None, address) => address,
            };
            if wanted == own {
                Ok(acknowledged)
            } else {
                Ok(reply(kind::NAK, None, "DHCP refusal"))
            }
        }
        kind::INFORM => {
            let address = IPV4_MAPPED | u128::from(request.client_address);
            if request.client_address == 0 {
                Err(DropReason::DhcpMalformed)
            } else if question.port.owns_address(address) {
                Ok(reply(kind::ACK, None, "DHCP information"))
            } else {
                Err(DropReason::DhcpUnanswered)
            }
        }
        kind::DECLINE | kind::RELEASE => Err(DropReason::DhcpUnanswered),
        _ => Err(DropReason::DhcpMalformed),
    }
}

/// Reads a client's message. Of an option that is given twice the first counts.
fn read(message: &[u8]) -> Result<Request<'_>, DropReason> {
    let malformed = DropReason::DhcpMalformed;
    let word = |range| be32(message.get(range)?);
    // A request over Ethernet, with options.
    if message.get(..3) != Some(&[1, 1, 6]) || message.get(field::COOKIE) != Some(&COOKIE) {
        return Err(malformed);
    }
    let mut request = Request {
        broadcast: message.get(field::FLAGS.start).ok_or(malformed)? & 0x80 != 0,
        client_address: word(field::CIADDR).ok_or(malformed)?,
        ..Request::default()
    };
    let options = message.get(field::OPTIONS..).ok_or(malformed)?;
    let overload = read_options(options, &mut request)?;
    // `file` first (RFC 2131 §4.1).
    for (bit, range) in [(1, field::FILE), (2, field::SNAME)] {
        if overload & bit != 0 {
            read_options(message.get(range).ok_or(malformed)?, &mut request)?;
        }
    }
    Ok(request)
}

/// Reads the options of one field; answers which other fields hold more.
fn read_options<'m>(mut options: &'m [u8], request: &mut Request<'m>) -> Result<u8, DropReason> {
    let malformed = DropReason::DhcpMalformed;
    let mut overload = 0;
    while let [first, rest @ ..] = options {
        let (value, rest) = match (*first, rest) {
            (code::END, _) => break,
            (code::PAD, rest) => {
                options = rest;
                continue;
            }
            (_, [len, rest @ ..]) => rest.split_at_checked((*len).into()).ok_or(malformed)?,
            (_, []) => return Err(malformed),
        };
        options = rest;
        let address = || be32(value).ok_or(malformed);
        match *first {
            code::KIND if request.kind == 0 => {
                let [kind] = value else {
                    return Err(malformed);
                };
                request.kind = *kind;
            }
            code::REQUESTED_ADDRESS => {
                request.requested = Some(address()?).filter(|address| *address != 0);
            }
            code::SERVER => request.server = Some(address()?),
            code::OVERLOAD => overload = *value.first().ok_or(malformed)?,
            code::MAX_SIZE => {
                let size = value.try_into().map_err(|_| malformed)?;
                request.max_size = Some(u16::from_be_bytes(size));
            }
            code::WANTED => request.wanted = request.wanted.or(Some(value)),
            code::CLIENT => request.client = request.client.or(Some(value)),
            code::RAPID_COMMIT => request.rapid_commit = true,
            _ => {}
        }
    }
    Ok(overload)
}

fn be32(bytes: &[u8]) -> Option<u32> {
    Some(u32::from_be_bytes(bytes.try_into().ok()?))
}

/// Writes the answer into `room`, as long as it may be. Answers its length; none if what has to be in it does not fit.
fn write(
    question: &Question<'_>,
    (request, message): (&Request<'_>, &[u8]),
    reply: &Reply,
    room: &mut [u8],
) -> Option<usize> {
    room.fill(0);
    room.get_mut(..3)?.copy_from_slice(&[2, 1, 6]);
    for range in [field::XID, field::FLAGS, field::CHADDR] {
        let copied = message.get(range.clone())?;
        room.get_mut(range)?.copy_from_slice(copied);
    }
    if reply.kind == kind::ACK {
        let client = request.client_address.to_be_bytes();
        room.get_mut(field::CIADDR)?.copy_from_slice(&client);
    }
    let address = reply.address.unwrap_or(0).to_be_bytes();
    room.get_mut(field::YIADDR)?.copy_from_slice(&address);
    if reply.kind != kind::NAK {
        let next_server = question.guests.next_server.to_be_bytes();
        room.get_mut(field::SIADDR)?.copy_from_slice(&next_server);
    }
    room.get_mut(field::COOKIE)?.copy_from_slice(&COOKIE);
    let mut options = Options::new(room)?;
    if reply.kind != kind::NAK {
        mirror(question, request.wanted, false, &mut options);
    }
    let gateway = question.subnet.gateway_v4? as u32;
    options.must(code::KIND, &[reply.kind])?;
    options.must(code::SERVER, &gateway.to_be_bytes())?;
    if let Some(client) = request.client {
        // RFC 6842 §3.
        options.must(code::CLIENT, client)?;
    }
    if reply.rapid_commit {
        options.must(code::RAPID_COMMIT, &[])?;
    }
    if reply.address.is_some() {
        let lease = question.guests.lease;
        // RFC 2131 §4.4.5.
        let (renewal, rebinding) = match lease {
            u32::MAX => (lease, lease),
            _ => (lease / 2, lease - lease / 8),
        };
        options.must(code::LEASE, &lease.to_be_bytes())?;
        options.must(code::RENEWAL, &renewal.to_be_bytes())?;
        options.must(code::REBINDING, &rebinding.to_be_bytes())?;
    }
    if reply.kind != kind::NAK {
        options.must(code::MASK, &question.guests.mask.to_be_bytes())?;
        parameters(question, request.wanted, &mut options);
        mirror(question, request.wanted, true, &mut options);
    }
    options.finish()
}

/// Tells the names of the boot server and file in the fields of BOOTP, from which old clients and boot ROMs read them. Of a name that the client is
/// told by no option the field is kept free of options; of others it is filled in at last, if there is room.
fn mirror(
    question: &Question<'_>,
    wanted: Option<&[u8]>,
    are_options: bool,
    options: &mut Options<'_>,
) {
    let guests = question.guests;
    for code in [code::BOOT_FILE, code::TFTP_SERVER] {
        let is_option =
            wanted.is_none_or(|wanted| wanted.contains(&code)) || guests.forced.contains(&code);
        if is_option == are_options
            && let Some(value) = find(&guests.dhcp, code)
        {
            options.mirror(code, value);
        }
    }
}

/// The parameters that the client wants, in its order, or all if it does not say (RFC 2131 §4.3.1, RFC 2132 §9.8); and those of
/// which every client is told. What does not fit is left out.
fn parameters(question: &Question<'_>, wanted: Option<&[u8]>, options: &mut Options<'_>) {
    let configured = &question.guests.dhcp;
    let hostname = question.port.hostname.as_bytes();
    match wanted {
        Some(wanted) => {
            for code in wanted {
                let value = match *code {
                    code::HOSTNAME => Some(hostname),
                    code => find(configured, code),
                };
                if let Some(value) = value.filter(|value| !value.is_empty()) {
                    options.put(*code, value);
                }
            }
            for code in &question.guests.forced {
                if let Some(value) = find(configured, *code) {
                    options.put(*code, value);
                }
            }
        }
        None => {
            for (code, value) in each4(configured) {
                options.put(code, value);
            }
            if !hostname.is_empty() {
                options.put(code::HOSTNAME, hostname);
            }
        }
    }
}

fn find(options: &[u8], wanted: u8) -> Option<&[u8]> {
    let mut found = each4(options).filter(|(code, _)| *code == wanted);
    found.next().map(|(_, value)| value)
}
