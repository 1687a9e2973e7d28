//! Whom a frame on a segment is for.

use super::Mac;

/// Somebody on a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Station {
    /// The VLAN of its frames, 0 for untagged ones.
    pub vlan: u16,
    /// Its MAC; none: whoever is sent to by broadcast and multicast.
    pub mac: Option<Mac>,
}
