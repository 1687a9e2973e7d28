//! The DHCP options that subnets and ports give, put among those of the network.

use std::sync::Arc;

use weft_proto::dhcp_option::{Code, parse};
use weft_proto::state::Kind;
use weft_proto::v1;

use super::super::Guests;
use super::super::guests::{each4, each6};
use super::Report;

/// What the guest of a port is told; none if it is what its subnet tells.
pub(super) fn of_port(
    port: &v1::Port,
    subnet: Option<&Guests>,
    report: &mut Report,
) -> Option<Arc<Guests>> {
    if port.dhcp_options.is_empty() {
        return None;
    }
    let mut guests = subnet?.clone();
    let owner = (Kind::Port, &*port.id, "dhcp_options");
    give(&mut guests, &port.dhcp_options, owner, report);
    Some(Arc::new(guests))
}

/// Puts options in the places of those of the same number, or behind all others; takes away those without a value. `owner`: kind, id and field.
pub(super) fn give(
    guests: &mut Guests,
    options: &[v1::DhcpOption],
    owner: (Kind, &str, &str),
    report: &mut Report,
) {
    if options.is_empty() {
        return;
    }
    let mut dhcp: Vec<(u8, Vec<u8>)> = each4(&guests.dhcp)
        .map(|(code, value)| (code, value.to_vec()))
        .collect();
    let mut dhcp6: Vec<(u16, Vec<u8>)> = each6(&guests.dhcp6)
        .map(|(code, value)| (code, value.to_vec()))
        .collect();
    let (mut forced, mut forced6) = (guests.forced.to_vec(), guests.forced6.to_vec());
    for (i, option) in options.iter().enumerate() {
        let parsed = match parse(option) {
            Ok(parsed) => parsed,
            Err(refused) => {
                let (kind, id, field) = owner;
                let field = format!("{field}[{i}].{}", refused.field);
                report.add(kind, id, field, refused.rule);
                continue;
            }
        };
        match parsed.code {
            Code::NextServer => {
                let address = parsed.value.first_chunk().copied();
                guests.next_server = address.map_or(0, u32::from_be_bytes);
            }
            Code::V4(code) => {
                put(&mut dhcp, code, parsed.value);
                force(&mut forced, code, parsed.force);
            }
            Code::V6(code) => {
                put(&mut dhcp6, code, parsed.value);
                force(&mut forced6, code, parsed.force);
            }
        }
    }
    guests.dhcp = written(&dhcp, |code, len| vec![code, len as u8]);
    guests.dhcp6 = written(&dhcp6, |code, len| {
        [code.to_be_bytes(), (len as u16).to_be_bytes()].concat()
    });
    guests.forced = forced.into();
    guests.forced6 = forced6.into();
}

fn put<C: PartialEq>(options: &mut Vec<(C, Vec<u8>)>, code: C, value: Vec<u8>) {
    match options.iter().position(|(known, _)| *known == code) {
        Some(at) if value.is_empty() => {
            options.remove(at);
        }
        Some(at) => options[at].1 = value,
        None if value.is_empty() => {}
        None => options.push((code, value)),
    }
}

/// In order, so that answers do not depend on who gave what first.
fn force<C: Ord>(forced: &mut Vec<C>, code: C, is_forced: bool) {
    forced.retain(|known| *known != code);
    if is_forced {
        forced.push(code);
        forced.sort_unstable();
    }
}

/// Options one after the other. No value is longer than its option holds: `parse` refuses those.
fn written<C: Copy>(options: &[(C, Vec<u8>)], header: impl Fn(C, usize) -> Vec<u8>) -> Box<[u8]> {
    let pieces = options
        .iter()
        .flat_map(|(code, value)| [header(*code, value.len()), value.clone()]);
    pieces.collect::<Vec<_>>().concat().into()
}
