//! Health checks of load balancer members and of appliances: which packets of a port answer a question of this host (services, "Load balancer").
//!
//! Each question has a number of its own: the port that it comes from, or the identifier of an echo. What a port sends to a load balancer's address, or to its
//! gateway's, and such a number is looked up by it, and goes to the agent past groups and ACLs. Asked on the miss path alone, and only of what is for a load
//! balancer or the gateway.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use crate::packet::parse::{self, Family, Parsed, protocol};

/// The lowest number, and how many there are: the upper ports of those that clients choose by themselves (RFC 6335 §6).
const FIRST: u16 = 61_440;
const COUNT: u16 = 4096;

/// Whom a question went to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Asked {
    /// The port that is asked, by index.
    pub port: u16,
    /// IP protocol number of the question.
    pub protocol: u8,
    /// The port number that it went to; 0 where the protocol has none.
    pub to: u16,
}

impl Asked {
    fn word(self) -> u64 {
        1 << 63 | u64::from(self.protocol) << 32 | u64::from(self.port) << 16 | u64::from(self.to)
    }
}

/// The questions that wait for answers.
#[derive(Debug)]
pub struct Checks {
    /// By number: whom it went to; 0: no question has it.
    slots: Box<[AtomicU64]>,
    next: AtomicU32,
}

impl Default for Checks {
    fn default() -> Self {
        Self {
            slots: (0..COUNT).map(|_| AtomicU64::new(0)).collect(),
            next: AtomicU32::new(0),
        }
    }
}

impl Checks {
    /// A number for a question; none if all are in use. To be given back by [`Self::end`].
    pub fn begin(&self, asked: Asked) -> Option<u16> {
        (0..COUNT).find_map(|_| {
            // Round and round, so that a late answer finds no new question.
            let at = self.next.fetch_add(1, Ordering::Relaxed) as u16 % COUNT;
            let slot = self.slots.get(usize::from(at))?;
            let taken =
                slot.compare_exchange(0, asked.word(), Ordering::Relaxed, Ordering::Relaxed);
            taken.ok().map(|_| FIRST + at)
        })
    }

    /// Gives a number back.
    pub fn end(&self, number: u16) {
        if let Some(slot) = self.slot(number) {
            slot.store(0, Ordering::Relaxed);
        }
    }

    fn slot(&self, number: u16) -> Option<&AtomicU64> {
        self.slots.get(usize::from(number.checked_sub(FIRST)?))
    }

    fn waits(&self, number: u16, asked: Asked) -> bool {
        let slot = self.slot(number);
        slot.is_some_and(|slot| slot.load(Ordering::Relaxed) == asked.word())
    }

    /// The number of the question that a packet of a port answers, or says that nobody takes; none if it is no such packet. `frame`: from the inner
    /// Ethernet header on.
    pub fn answered(&self, port: u16, parsed: &Parsed, frame: &[u8]) -> Option<u16> {
        let flow = &parsed.flow;
        if parsed.fragment.is_some() {
            return None;
        }
        let (number, protocol, to) = if parse::is_icmp_error(parsed) {
            let quote = frame.get(usize::from(parsed.l4) + 8..usize::from(parsed.end))?;
            let quoted = parse::quoted(parsed.family, quote)?;
            if quoted.source != flow.destination {
                return None;
            }
            (quoted.source_port, quoted.protocol, quoted.destination_port)
        } else {
            let is_icmp = matches!(
                (parsed.family, flow.protocol),
                (Family::Ipv4, protocol::ICMP) | (Family::Ipv6, protocol::ICMPV6)
            );
            // The gateway and load balancers answer pings themselves.
            if is_icmp && parse::is_query(parsed.family, (parsed.icmp >> 8) as u8) {
                return None;
            }
            let to = if is_icmp { 0 } else { flow.source_port };
            (flow.destination_port, flow.protocol, to)
        };
        let asked = Asked { port, protocol, to };
        self.waits(number, asked).then_some(number)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_used_once_at_a_time() {
        let checks = Checks::default();
        let asked = Asked {
            port: 7,
            protocol: protocol::TCP,
            to: 80,
        };
        let mut numbers: Vec<u16> = (0..COUNT).map(|_| checks.begin(asked).unwrap()).collect();
        assert_eq!(checks.begin(asked), None);
        assert!(checks.waits(numbers[9], asked));
        assert!(!checks.waits(numbers[9], Asked { port: 8, ..asked }));
        assert!(!checks.waits(80, asked));
        checks.end(numbers[9]);
        assert!(!checks.waits(numbers[9], asked));
        assert_eq!(checks.begin(asked), Some(numbers[9]));
        numbers.sort_unstable();
        numbers.dedup();
        assert_eq!(numbers.len(), usize::from(COUNT));
        assert_eq!((numbers[0], numbers[4095]), (FIRST, u16::MAX));
    }
}
