//! What a NAT gateway has of its own besides addresses: idle times, and counters of what it had to refuse.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::session::State;
use crate::session::mappings::MappingError;

/// How long sessions through a NAT gateway may idle, in milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NatTimeouts {
    /// An established connection (RFC 5382 REQ-5).
    pub tcp_established: u32,
    /// A connection that is being opened or closed (RFC 5382 REQ-5).
    pub tcp_transitory: u32,
    /// UDP and protocols without ports, whichever way packets went (RFC 4787 REQ-5).
    pub udp: u32,
    /// ICMP queries (RFC 5508 REQ-2).
    pub icmp: u32,
}

impl NatTimeouts {
    /// The idle time of a state, in milliseconds; none for what is over, which goes by the host's.
    pub fn of(&self, state: State) -> Option<u32> {
        Some(match state {
            State::TcpSynSent
            | State::TcpSimultaneous
            | State::TcpSimultaneousOrigin
            | State::TcpSimultaneousReply
            | State::TcpSynReceived
            | State::TcpFinOrigin
            | State::TcpFinReply
            | State::TcpDenied => self.tcp_transitory,
            State::TcpEstablished => self.tcp_established,
            State::OneWay | State::BothWays => self.udp,
            State::IcmpQuery => self.icmp,
            State::TcpTimeWait | State::TcpClosed => return None,
        })
    }
}

/// Packets that got no mapping. All workers count here; a packet that is counted was on the longest way there is.
#[derive(Debug, Default)]
pub struct NatAlarms {
    ports: AtomicU64,
    address_budget: AtomicU64,
    gateway_budget: AtomicU64,
}

impl NatAlarms {
    /// Counts a packet that got no mapping.
    pub fn count(&self, error: MappingError) {
        let counter = match error {
            MappingError::Ports => &self.ports,
            MappingError::AddressBudget => &self.address_budget,
            MappingError::GatewayBudget => &self.gateway_budget,
            // Of the host, or of the packet.
            MappingError::Full | MappingError::Protocol => return,
        };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    /// No port was free.
    pub fn ports(&self) -> u64 {
        self.ports.load(Ordering::Relaxed)
    }

    /// The source address had as many mappings as one may.
    pub fn address_budget(&self) -> u64 {
        self.address_budget.load(Ordering::Relaxed)
    }

    /// The gateway had as many as it may.
    pub fn gateway_budget(&self) -> u64 {
        self.gateway_budget.load(Ordering::Relaxed)
    }
}

/// They count; what is decided does not depend on them.
impl PartialEq for NatAlarms {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for NatAlarms {}
