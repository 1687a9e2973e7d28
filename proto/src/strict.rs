//! Requests in which an unknown field is an error.
//!
//! Protobuf skips fields that it does not know. In a request this is wrong: a newer client would ask for something that this version does
//! not know, and get a success. Therefore the bytes of every message whose name ends in `Request` are compared with the contract before
//! they are decoded (`process/src/codec.rs`), and an unknown field is answered with INVALID_ARGUMENT, its message, path and number. Replies
//! may have unknown fields, so that an older client can read a newer server's. The host protocol detects unknown fields by digests
//! (`docs/decisions/001-host-protocol.md`).

use std::collections::HashMap;
use std::sync::LazyLock;

use prost::Message;
use prost::encoding::{WireType, decode_key, decode_varint};
use prost_types::field_descriptor_proto::Type;
use prost_types::{DescriptorProto, FileDescriptorSet};

/// The contract's descriptors, as `build.rs` wrote them.
static DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));

/// Messages do not nest deeper; prost's own limit is the same.
const DEPTH: u32 = 100;

/// A field of a message: its name, and the message that it holds, if it holds one.
type Field = (String, Option<String>);

/// Every message of the contract by its full name, with its fields by number.
static CONTRACT: LazyLock<HashMap<String, HashMap<u32, Field>>> = LazyLock::new(|| {
    let mut contract = HashMap::new();
    // What the build wrote is well formed; without it every request would be refused.
    let set = FileDescriptorSet::decode(DESCRIPTORS).unwrap_or_default();
    for file in &set.file {
        for message in &file.message_type {
            describe(file.package(), message, &mut contract);
        }
    }
    contract
});

fn describe(
    scope: &str,
    message: &DescriptorProto,
    contract: &mut HashMap<String, HashMap<u32, Field>>,
) {
    let name = format!("{scope}.{}", message.name());
    let field = |field: &prost_types::FieldDescriptorProto| {
        let held = (field.r#type() == Type::Message)
            .then(|| field.type_name().trim_start_matches('.').to_owned());
        (field.number() as u32, (field.name().to_owned(), held))
    };
    contract.insert(name.clone(), message.field.iter().map(field).collect());
    for nested in &message.nested_type {
        describe(&name, nested, contract);
    }
}

/// Whether the bytes of a message hold only fields that the contract knows.
///
/// # Errors
/// Where there is another field, or the bytes are no message.
pub fn check(message: &str, bytes: &[u8]) -> Result<(), String> {
    check_message(message, &mut String::new(), bytes, DEPTH)
}

fn check_message(
    message: &str,
    path: &mut String,
    mut bytes: &[u8],
    depth: u32,
) -> Result<(), String> {
    let fields = CONTRACT
        .get(message)
        .ok_or_else(|| format!("{message} is no message of the contract"))?;
    if depth == 0 {
        return Err(format!("{path} is nested too deeply"));
    }
    while !bytes.is_empty() {
        let (number, wire) = decode_key(&mut bytes).map_err(|error| error.to_string())?;
        let Some((name, held)) = fields.get(&number) else {
            let place = if path.is_empty() {
                String::new()
            } else {
                format!(" at {path}")
            };
            return Err(format!("unknown field {number} of {message}{place}"));
        };
        match wire {
            WireType::Varint => _ = varint(&mut bytes)?,
            WireType::SixtyFourBit => _ = take(&mut bytes, 8)?,
            WireType::ThirtyTwoBit => _ = take(&mut bytes, 4)?,
            WireType::LengthDelimited => {
                let length = varint(&mut bytes)?;
                let value = take(&mut bytes, length)?;
                if let Some(held) = held {
                    let before = path.len();
                    if before > 0 {
                        path.push('.');
                    }
                    path.push_str(name);
                    check_message(held, path, value, depth - 1)?;
                    path.truncate(before);
                }
            }
            WireType::StartGroup | WireType::EndGroup => {
                return Err(format!("{message}.{name} is a group"));
            }
        }
    }
    Ok(())
}

fn take<'a>(bytes: &mut &'a [u8], length: u64) -> Result<&'a [u8], String> {
    let parts = usize::try_from(length)
        .ok()
        .and_then(|length| bytes.split_at_checked(length));
    let (value, rest) = parts.ok_or("a field is longer than its message")?;
    *bytes = rest;
    Ok(value)
}

fn varint(bytes: &mut &[u8]) -> Result<u64, String> {
    decode_varint(bytes).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::v1::{ApplyRequest, Objects, Port, Vpc};

    fn request() -> ApplyRequest {
        let vpc = Vpc {
            id: "blue".into(),
            vni: 7,
            ..Vpc::default()
        };
        let port = Port {
            id: "p1".into(),
            addresses: vec!["10.0.0.1".into(), "10.0.0.2".into()],
            unguarded: true,
            ..Port::default()
        };
        ApplyRequest {
            objects: Some(Objects {
                vpcs: vec![vpc],
                ports: vec![port],
                ..Objects::default()
            }),
            prune: true,
            if_revision: u64::MAX,
            ..ApplyRequest::default()
        }
    }

    #[test]
    fn what_the_contract_knows_passes() {
        let bytes = request().encode_to_vec();
        assert_eq!(check("weft.v1.ApplyRequest", &bytes), Ok(()));
        assert_eq!(check("weft.v1.ListHostStatusRequest", &[]), Ok(()));
    }

    #[test]
    fn an_unknown_field_is_named_with_its_message() {
        let mut bytes = request().encode_to_vec();
        // Field 99, a varint.
        bytes.extend([0x98, 0x06, 0x01]);
        let told = "unknown field 99 of weft.v1.ApplyRequest";
        assert_eq!(check("weft.v1.ApplyRequest", &bytes), Err(told.to_owned()));
    }

    #[test]
    fn an_unknown_field_deep_inside_is_found() {
        let mut vpc = Vpc {
            id: "blue".into(),
            vni: 7,
            ..Vpc::default()
        }
        .encode_to_vec();
        // Field 99, of 4 bytes.
        vpc.extend([0x9d, 0x06, 1, 2, 3, 4]);
        let vpcs = 2;
        let mut objects = vec![vpcs << 3 | 2, vpc.len() as u8];
        objects.extend(vpc);
        let mut bytes = vec![1 << 3 | 2, objects.len() as u8];
        bytes.extend(objects);
        let told = "unknown field 99 of weft.v1.Vpc at objects.vpcs";
        assert_eq!(check("weft.v1.ApplyRequest", &bytes), Err(told.to_owned()));
    }

    #[test]
    fn bytes_cut_short_or_shuffled_are_refused_or_pass_but_nothing_else() {
        let good = request().encode_to_vec();
        for end in 0..good.len() {
            let verdict = check("weft.v1.ApplyRequest", &good[..end]);
            assert_eq!(
                verdict.is_ok(),
                ApplyRequest::decode(&good[..end]).is_ok(),
                "up to {end}"
            );
        }
        for place in 0..good.len() {
            for value in 0..=u8::MAX {
                let mut bytes = good.clone();
                bytes[place] = value;
                // What it is does not matter here, that it ends does; what passes has no field that decoding would lose.
                let passes = check("weft.v1.ApplyRequest", &bytes).is_ok();
                if let (true, Ok(read)) = (passes, ApplyRequest::decode(bytes.as_slice())) {
                    assert_eq!(check("weft.v1.ApplyRequest", &read.encode_to_vec()), Ok(()));
                }
            }
        }
    }
}
