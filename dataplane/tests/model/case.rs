//! A case: a configuration and what happens under it, in bytes, so that it can be kept, read by people, and played again.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::net::IpAddr;
use std::path::Path;

use serde::{Deserialize, Serialize};
use weft_proto::v1::Objects;

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Case {
    /// The hosts have a metadata service.
    #[serde(default)]
    pub metadata: bool,
    /// The hosts learn the ports of their VPCs.
    #[serde(default)]
    pub learns: bool,
    #[serde(default)]
    pub translations: Vec<Translation>,
    /// Bytes of IP packet that the devices of some ports take.
    #[serde(default)]
    pub device_mtus: BTreeMap<String, u16>,
    pub objects: Objects,
    pub events: Vec<Event>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Event {
    /// A port sends frames, which its host takes as one vector; the workers of this number take them here and there.
    Send {
        port: String,
        worker: u8,
        #[serde(with = "hexadecimal")]
        frames: Vec<Vec<u8>>,
    },
    /// A port leaves a segment to be split: into what (1 TCP over IPv4, 2 over IPv6, 3 UDP), and bytes of payload of a piece.
    Segment {
        port: String,
        worker: u8,
        kind: u8,
        size: u16,
        #[serde(with = "hexadecimal")]
        frames: Vec<Vec<u8>>,
    },
    /// A host gets a frame off the wire.
    Receive {
        host: String,
        worker: u8,
        #[serde(with = "hexadecimal")]
        frames: Vec<Vec<u8>>,
    },
    /// A host gets frames off the segment of its external networks.
    Arrive {
        host: String,
        worker: u8,
        #[serde(with = "hexadecimal")]
        frames: Vec<Vec<u8>>,
    },
    /// Another configuration comes into force.
    Configure(Box<Objects>),
    /// Other addresses stand for others.
    Translate(Vec<Translation>),
    /// So many milliseconds pass.
    Wait(u32),
}

/// An address of a VPC that stands for another. As a source it is seen `towards` these prefixes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Translation {
    pub vpc: String,
    pub inside: IpAddr,
    pub outside: IpAddr,
    pub towards: Vec<String>,
}

impl Case {
    pub fn to_text(&self) -> String {
        serde_yaml_ng::to_string(self).unwrap()
    }

    pub fn read(path: &Path) -> Self {
        let text = std::fs::read_to_string(path).unwrap();
        serde_yaml_ng::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
    }
}

/// All digits, for files.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

mod hexadecimal {
    use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};

    pub fn serialize<S: Serializer>(list: &[Vec<u8>], serializer: S) -> Result<S::Ok, S::Error> {
        let texts: Vec<String> = list.iter().map(|bytes| super::hex(bytes)).collect();
        texts.serialize(serializer)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Vec<Vec<u8>>, D::Error> {
        let texts = Vec::<String>::deserialize(deserializer)?;
        let bytes = |text: &String| -> Result<Vec<u8>, &str> {
            let byte = |at: usize| {
                let pair = text.get(at..at + 2).ok_or("a digit is missing")?;
                u8::from_str_radix(pair, 16).map_err(|_| "not hexadecimal")
            };
            (0..text.len()).step_by(2).map(byte).collect()
        };
        let list: Result<_, &str> = texts.iter().map(bytes).collect();
        list.map_err(D::Error::custom)
    }
}
