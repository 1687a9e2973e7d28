//! Ethernet addresses.

use std::fmt;
use std::str::FromStr;

/// A 48-bit MAC, kept in the low bits of a word so that it compares and stores in one instruction.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Mac(u64);

impl Mac {
    /// All ones.
    pub const BROADCAST: Self = Self(0xffff_ffff_ffff);
    /// The virtual router's MAC in every subnet that does not name its own.
    pub const ROUTER: Self = Self(0x0277_6566_7401);

    /// From the bytes on the wire.
    pub fn from_bytes(bytes: [u8; 6]) -> Self {
        let [a, b, c, d, e, f] = bytes;
        Self(u64::from_be_bytes([0, 0, a, b, c, d, e, f]))
    }

    /// The bytes on the wire.
    pub fn bytes(self) -> [u8; 6] {
        let [_, _, a, b, c, d, e, f] = self.0.to_be_bytes();
        [a, b, c, d, e, f]
    }

    /// From the low 48 bits of a word.
    pub fn from_word(word: u64) -> Self {
        Self(word & 0xffff_ffff_ffff)
    }

    /// As the low 48 bits of a word.
    pub fn word(self) -> u64 {
        self.0
    }

    /// Whether the group bit is set: broadcast or multicast.
    pub fn is_group(self) -> bool {
        self.0 & 0x0100_0000_0000 != 0
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.bytes();
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A text that is not six colon-separated pairs of hexadecimal digits.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("'{0}' is not a MAC such as 02:00:00:00:00:01")]
pub struct MacError(String);

impl FromStr for Mac {
    type Err = MacError;

    fn from_str(text: &str) -> Result<Self, MacError> {
        let error = || MacError(text.to_owned());
        let mut bytes = [0; 6];
        let mut parts = text.split(':');
        for byte in &mut bytes {
            let part = parts
                .next()
                .filter(|part| part.len() == 2)
                .ok_or_else(error)?;
            *byte = u8::from_str_radix(part, 16).map_err(|_| error())?;
        }
        if parts.next().is_some() {
            Err(error())
        } else {
            Ok(Self::from_bytes(bytes))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_and_bytes_agree() {
        let mac: Mac = "02:00:0a:Fb:00:01".parse().unwrap();
        assert_eq!(mac.bytes(), [2, 0, 10, 0xfb, 0, 1]);
        assert_eq!(mac.to_string(), "02:00:0a:fb:00:01");
        assert_eq!(Mac::from_word(mac.word()), mac);
        for wrong in [
            "",
            "02:00",
            "02:00:00:00:00:0g",
            "02:00:00:00:00:01:02",
            "2:0:0:0:0:1",
        ] {
            assert!(wrong.parse::<Mac>().is_err(), "{wrong}");
        }
    }
}
