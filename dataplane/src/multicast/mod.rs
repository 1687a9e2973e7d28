//! Who has joined which multicast group, in subnets with snooping (RFC 4541).
//!
//! A guest says what it wants to receive by IGMP (RFC 2236, RFC 3376) or MLD (RFC 2710, RFC 3810). A worker checks the message (`message`) and leaves it to the
//! agent's threads, where the [`Querier`] keeps what each port has joined (`group`), asks guests at intervals whether they still want it (`query`), and publishes who
//! gets which group as an immutable table ([`Listeners`]). Workers read that table for each packet to a group (`pipeline::flood`), and nothing else of this.
//!
//! Each host asks its own guests, as the gateway of their subnet: no message of IGMP or MLD crosses a tunnel. Hosts tell each other what their ports have joined
//! by way of the controller ([`Others`]); one that does not tell gets a copy of everything.

mod group;
pub mod listeners;
pub mod message;
pub mod others;
pub mod querier;
pub mod query;

pub use self::listeners::{Elsewhere, Filter, Listener, Listeners, Table};
pub use self::others::Others;
pub use self::querier::{Answer, Querier};

use crate::packet::parse::IPV4_MAPPED;
use crate::pipeline::guard;

fn is_ipv4(address: u128) -> bool {
    address >> 32 == IPV4_MAPPED >> 32
}

/// The scope of an IPv6 group (RFC 4291 §2.7).
fn scope(group: u128) -> u8 {
    (group >> 112) as u8 & 0xf
}

/// Whether packets to an address go to those who have joined it: those to link-local groups (224.0.0.0/24, ff02::/16), of which routers and mDNS make use
/// whether they have joined them or not, go to everybody in the subnet (RFC 4541 §2.1.2, §3).
pub fn is_snooped(group: u128) -> bool {
    if is_ipv4(group) {
        let group = group as u32;
        group >> 28 == 0xe && group >> 8 != 0x00e0_0000
    } else {
        group >> 120 == 0xff && scope(group) >= 2 && group >> 112 != 0xff02
    }
}

/// Whether a packet from a source to a snooped group may pass from one subnet into another.
pub fn may_be_routed(source: u128, group: u128) -> bool {
    guard::may_be_routed(source) && (is_ipv4(group) || scope(group) > 2)
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;
    use crate::packet::parse::address_word;

    fn word(text: &str) -> u128 {
        address_word(text.parse::<IpAddr>().unwrap())
    }

    #[test]
    fn link_local_groups_are_not_snooped_and_what_is_on_a_link_is_not_routed() {
        let snooped = [
            "224.0.1.0",
            "239.255.255.250",
            "232.1.1.1",
            "ff05::2",
            "ff12::1",
        ];
        assert!(snooped.map(word).into_iter().all(is_snooped));
        let flooded = [
            "224.0.0.1",
            "224.0.0.251",
            "255.255.255.255",
            "10.0.0.255",
            "ff02::fb",
            "ff01::1",
            "fe80::1",
        ];
        assert!(!flooded.map(word).into_iter().any(is_snooped));
        assert!(may_be_routed(word("10.0.0.1"), word("239.1.1.1")));
        assert!(may_be_routed(word("fd00::1"), word("ff05::2")));
        assert!(!may_be_routed(word("fe80::1"), word("ff05::2")));
        assert!(!may_be_routed(word("fd00::1"), word("ff12::1")));
        assert!(!may_be_routed(word("169.254.1.1"), word("239.1.1.1")));
    }
}
