//! Asks resolvers of the host's own network what the VPC's names do not answer.
//!
//! An answer is taken from who was asked alone: each question has a socket of its own, with a port and a number that are random, and connected to the resolver
//! (RFC 5452). Nothing is kept.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use hickory_proto::op::{Edns, Message, MessageType, OpCode, ResponseCode};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::timeout;

use super::answer::{LARGE, Pending};

/// How long one resolver may take.
const EACH: Duration = Duration::from_secs(2);
/// How long all of them may take together: guests ask again after five seconds.
const ALL: Duration = Duration::from_millis(4500);

/// The answer to a question, from the first resolver that has one; none: nobody has answered.
pub(super) async fn ask(resolvers: &[SocketAddr], pending: &Pending) -> Option<Message> {
    let mut last = None;
    let asking = async {
        for resolver in resolvers {
            let Ok(Some(answer)) = timeout(EACH, ask_one(*resolver, pending)).await else {
                continue;
            };
            let code = answer.metadata.response_code;
            let is_lame = matches!(code, ResponseCode::ServFail | ResponseCode::Refused);
            last = Some(answer);
            if !is_lame {
                return;
            }
        }
    };
    let _ = timeout(ALL, asking).await;
    last
}

async fn ask_one(resolver: SocketAddr, pending: &Pending) -> Option<Message> {
    let question = question(pending);
    let bytes = question.to_vec().ok()?;
    let answer = by_udp(resolver, &question, &bytes).await?;
    if answer.metadata.truncation && pending.is_by_tcp() {
        return by_tcp(resolver, &question, &bytes).await;
    }
    Some(answer)
}

fn question(pending: &Pending) -> Message {
    let mut question = Message::new(rand::random(), MessageType::Query, OpCode::Query);
    question.metadata.recursion_desired = true;
    question.metadata.checking_disabled = pending.checking_disabled();
    question.add_query(pending.query.clone());
    if let Some((size, dnssec_ok)) = pending.edns() {
        let mut edns = Edns::new();
        edns.set_max_payload(size.min(LARGE));
        edns.set_version(0);
        edns.set_dnssec_ok(dnssec_ok);
        question.set_edns(edns);
    }
    question
}

async fn by_udp(resolver: SocketAddr, question: &Message, bytes: &[u8]) -> Option<Message> {
    let any: IpAddr = if resolver.is_ipv4() {
        Ipv4Addr::UNSPECIFIED.into()
    } else {
        Ipv6Addr::UNSPECIFIED.into()
    };
    let socket = UdpSocket::bind((any, 0)).await.ok()?;
    socket.connect(resolver).await.ok()?;
    socket.send(bytes).await.ok()?;
    let mut buffer = [0; 4096];
    loop {
        let len = socket.recv(&mut buffer).await.ok()?;
        // What does not fit may be forged; the right one may still come.
        if let Some(answer) = buffer.get(..len).and_then(|bytes| fits(question, bytes)) {
            return Some(answer);
        }
    }
}

async fn by_tcp(resolver: SocketAddr, question: &Message, bytes: &[u8]) -> Option<Message> {
    let mut stream = TcpStream::connect(resolver).await.ok()?;
    let len = u16::try_from(bytes.len()).ok()?;
    let framed = [&len.to_be_bytes()[..], bytes].concat();
    stream.write_all(&framed).await.ok()?;
    let len = stream.read_u16().await.ok()?;
    let mut answer = vec![0; len.into()];
    stream.read_exact(&mut answer).await.ok()?;
    fits(question, &answer)
}

/// A message that answers a question.
fn fits(question: &Message, bytes: &[u8]) -> Option<Message> {
    let answer = Message::from_vec(bytes).ok()?;
    let is_its = answer.metadata.id == question.metadata.id
        && answer.metadata.message_type == MessageType::Response
        && answer.metadata.op_code == OpCode::Query
        && answer.queries == question.queries;
    is_its.then_some(answer)
}
