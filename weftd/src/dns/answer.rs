//! What becomes of a question (RFC 1034, RFC 1035): an answer from the VPC's names, one that others are asked for, or nothing.
//!
//! Pure: bytes and names in, bytes out. Whatever a guest sends, the answer is no longer than it may be, and what lies in a domain of the VPC is asked nowhere else.

use hickory_proto::op::{Edns, Message, MessageType, Metadata, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::SOA;
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};
use weft_proto::dns::MAX_CHAIN;

use super::names::{At, Names, PORT_TTL, name, text};

/// Bytes of a header (RFC 1035 §4.1.1).
const HEADER: usize = 12;
/// Bytes of a message that every guest takes by UDP (RFC 1035 §4.2.1).
const SMALL: usize = 512;
/// The most that is sent by UDP to who takes more (RFC 9715): no fragments.
pub(super) const LARGE: u16 = 1232;
/// EDNS's version (RFC 6891 §6.1.3).
const EDNS_VERSION: u8 = 0;

/// By what a question came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Transport {
    /// With room for so many bytes in a packet.
    Udp(usize),
    Tcp,
}

/// What becomes of a question.
#[derive(Debug)]
pub(super) enum Verdict {
    /// This goes back.
    Answer(Vec<u8>),
    /// Others are asked.
    Forward(Box<Pending>),
    /// It is no question.
    Silence,
}

/// A question that was read.
#[derive(Debug, Clone)]
pub(super) struct Asked {
    /// Of answers.
    head: Metadata,
    query: Query,
    /// The bytes that the guest takes by UDP, and whether it wants signatures.
    edns: Option<(u16, bool)>,
    /// The longest answer.
    limit: usize,
}

/// A question that others answer.
#[derive(Debug)]
pub(super) struct Pending {
    asked: Asked,
    /// What they are asked for: the name that the VPC's CNAMEs lead to.
    pub(super) query: Query,
    /// These CNAMEs.
    chain: Vec<Record>,
}

/// What becomes of a message. `recurses`: whether others can be asked.
pub(super) fn answer(
    names: Option<&Names<'_>>,
    bytes: &[u8],
    transport: Transport,
    recurses: bool,
) -> Verdict {
    let asked = match read(bytes, transport, recurses) {
        Ok(asked) => asked,
        Err(Some(answer)) => return Verdict::Answer(answer),
        Err(None) => return Verdict::Silence,
    };
    // The state that is in force has no names of this VPC yet, or not any more.
    let Some(names) = names else {
        return Verdict::Answer(asked.says(ResponseCode::ServFail));
    };
    look_up(names, asked, recurses)
}

/// Reads a question.
///
/// # Errors
/// The answer to what cannot be answered otherwise, or none.
fn read(bytes: &[u8], transport: Transport, recurses: bool) -> Result<Asked, Option<Vec<u8>>> {
    let Some(header) = bytes.first_chunk::<HEADER>() else {
        return Err(None);
    };
    let is_answer = header[2] & 0x80 != 0;
    if is_answer {
        // Two servers that answer each other would never end.
        return Err(None);
    }
    let opcode = header[2] >> 3 & 0xf;
    if opcode != 0 {
        return Err(Some(bare(header, ResponseCode::NotImp)));
    }
    let questions = u16::from_be_bytes([header[4], header[5]]);
    if questions != 1 {
        // RFC 9619.
        return Err(Some(bare(header, ResponseCode::FormErr)));
    }
    let Ok(message) = Message::from_vec(bytes) else {
        return Err(Some(bare(header, ResponseCode::FormErr)));
    };
    let Some(query) = message.queries.first().cloned() else {
        return Err(Some(bare(header, ResponseCode::FormErr)));
    };
    let mut head = Metadata::response_from_request(&message.metadata);
    head.recursion_available = recurses;
    let edns = message.edns.as_ref();
    let size = edns.map_or(0, Edns::max_payload);
    let asked = Asked {
        head,
        query,
        edns: edns.map(|edns| (size, edns.flags().dnssec_ok)),
        limit: match transport {
            Transport::Udp(room) => usize::from(size.min(LARGE)).max(SMALL).min(room),
            Transport::Tcp => u16::MAX.into(),
        },
    };
    if edns.is_some_and(|edns| edns.version() != EDNS_VERSION) {
        return Err(Some(asked.says(ResponseCode::BADVERS)));
    }
    Ok(asked)
}

/// An answer of a header alone, to what was not understood.
fn bare(header: &[u8; HEADER], code: ResponseCode) -> Vec<u8> {
    let mut answer = [0; HEADER];
    answer[..2].copy_from_slice(&header[..2]);
    // The opcode, and whether recursion is desired, are the asker's.
    answer[2] = 0x80 | header[2] & 0x79;
    answer[3] = code.low();
    answer.to_vec()
}

fn look_up(names: &Names<'_>, mut asked: Asked, recurses: bool) -> Verdict {
    let kind = asked.query.query_type();
    let is_refused = matches!(
        kind,
        // RFC 8482 for the first; zones are nobody's to copy.
        RecordType::ANY | RecordType::AXFR | RecordType::IXFR
    ) || asked.query.query_class() != DNSClass::IN;
    if is_refused {
        return Verdict::Answer(asked.says(ResponseCode::Refused));
    }
    let mut chain: Vec<Record> = Vec::new();
    let mut owner: Name = asked.query.name().clone();
    loop {
        let Some(at) = names.at(&text(&owner)) else {
            asked.head.authoritative = !chain.is_empty();
            if recurses && asked.head.recursion_desired {
                let mut query = Query::query(owner, kind);
                query.set_query_class(DNSClass::IN);
                return Verdict::Forward(Box::new(Pending {
                    asked,
                    query,
                    chain,
                }));
            }
            let code = if chain.is_empty() {
                ResponseCode::Refused
            } else {
                // What is known of it; the rest is for others to say.
                ResponseCode::NoError
            };
            return Verdict::Answer(asked.reply(code, chain, Vec::new()));
        };
        asked.head.authoritative = true;
        let alias = at.sets.iter().find(|set| set.kind == RecordType::CNAME);
        if let Some(alias) = alias.filter(|_| kind != RecordType::CNAME)
            && let Some(RData::CNAME(target)) = alias.data.first()
        {
            let next = target.0.clone();
            let record = Record::from_rdata(owner, alias.ttl, RData::CNAME(target.clone()));
            chain.push(record);
            if chain.len() > MAX_CHAIN {
                return Verdict::Answer(asked.says(ResponseCode::ServFail));
            }
            owner = next;
            continue;
        }
        return Verdict::Answer(asked.found(&at, &owner, chain));
    }
}

impl Asked {
    /// The answer from what a name has, after the CNAMEs that lead to it.
    fn found(&self, at: &At, owner: &Name, mut answers: Vec<Record>) -> Vec<u8> {
        let kind = self.query.query_type();
        let soa = start_of_authority(&at.origin);
        if kind == RecordType::SOA && text(owner) == at.origin {
            answers.extend(soa);
            return self.reply(ResponseCode::NoError, answers, Vec::new());
        }
        let Some(set) = at.sets.iter().find(|set| set.kind == kind) else {
            let code = if at.exists {
                ResponseCode::NoError
            } else {
                ResponseCode::NXDomain
            };
            // RFC 2308 §3.
            return self.reply(code, answers, soa.into_iter().collect());
        };
        // Each time another comes first, for those who take the first.
        let first = usize::from(self.head.id) % set.data.len().max(1);
        let (end, start) = set.data.split_at(first);
        let data = start.iter().chain(end).cloned();
        answers.extend(data.map(|data| Record::from_rdata(owner.clone(), set.ttl, data)));
        self.reply(ResponseCode::NoError, answers, Vec::new())
    }

    /// An answer without records.
    pub(super) fn says(&self, code: ResponseCode) -> Vec<u8> {
        self.reply(code, Vec::new(), Vec::new())
    }

    fn reply(&self, code: ResponseCode, answers: Vec<Record>, authorities: Vec<Record>) -> Vec<u8> {
        let mut message = Message::new(self.head.id, MessageType::Response, OpCode::Query);
        message.answers = answers;
        message.authorities = authorities;
        self.write(code, message)
    }

    /// Writes an answer: cut where it is longer than it may be (RFC 2181 §9).
    fn write(&self, code: ResponseCode, mut message: Message) -> Vec<u8> {
        message.metadata = self.head;
        message.metadata.response_code = code;
        message.queries = vec![self.query.clone()];
        message.edns = self.edns.map(|(_, dnssec_ok)| {
            let mut edns = Edns::new();
            edns.set_max_payload(LARGE);
            edns.set_version(EDNS_VERSION);
            edns.set_dnssec_ok(dnssec_ok);
            edns.set_rcode_high(code.high());
            edns
        });
        match message.to_vec() {
            Ok(bytes) if bytes.len() <= self.limit => bytes,
            // A question of this length was read, so that one of it can be written.
            _ => message.truncate().to_vec().unwrap_or_default(),
        }
    }
}

impl Pending {
    pub(super) fn is_by_tcp(&self) -> bool {
        self.asked.limit > LARGE.into()
    }

    /// The bytes that the guest takes by UDP, and whether it wants signatures.
    pub(super) fn edns(&self) -> Option<(u16, bool)> {
        self.asked.edns
    }

    pub(super) fn checking_disabled(&self) -> bool {
        self.asked.head.checking_disabled
    }

    /// The guest's answer from that of who was asked; none: nobody answered.
    pub(super) fn answer(self, from: Option<Message>) -> Vec<u8> {
        let mut asked = self.asked;
        let Some(mut from) = from else {
            return asked.says(ResponseCode::ServFail);
        };
        asked.head.truncation = from.metadata.truncation;
        asked.head.authentic_data = from.metadata.authentic_data && self.chain.is_empty();
        let mut answers = self.chain;
        answers.append(&mut from.answers);
        from.answers = answers;
        let code = from.metadata.response_code;
        asked.write(code, from)
    }
}

fn start_of_authority(origin: &str) -> Option<Record> {
    let name = name(origin)?;
    let mailbox = name
        .prepend_label("hostmaster")
        .ok()
        .unwrap_or_else(|| name.clone());
    let ttl = PORT_TTL;
    // Nobody copies the zone: the serial number and the intervals say nothing.
    let soa = SOA::new(name.clone(), mailbox, 1, 3600, 600, 86400, ttl);
    Some(Record::from_rdata(name, ttl, RData::SOA(soa)))
}
