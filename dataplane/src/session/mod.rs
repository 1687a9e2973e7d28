//! Sessions: tracked flows, both directions, with what was decided for each.
//!
//! `key` names them, `tcp` follows connections, `table` holds them for all workers: an `index` finds the `slot` of a session, and both lie in
//! an `arena`. A session whose packets are translated has a second key and a line of its own (`translation`).

#[cfg_attr(feature = "loom", path = "arena_model.rs")]
mod arena;
mod held;
mod index;
pub mod key;
mod mapping_owners;
pub mod mappings;
pub mod member_counts;
mod second_actions;
pub mod slot;
pub mod table;
pub mod tcp;
mod translation;

use std::time::Duration;

pub use key::{Direction, Key, Seeds};
pub use table::{InsertError, Limits, SessionTable, TableStatistics};
pub use translation::{Side, Translation};

macro_rules! states {
    ($($variant:ident = $name:literal,)*) => {
        /// Where a session stands.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[repr(u8)]
        #[allow(missing_docs)]
        pub enum State { $($variant,)* }

        impl State {
            /// Every state, in order of its number.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// The name that the command line shows.
            pub fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }
        }
    };
}

states! {
    TcpSynSent = "syn_sent",
    TcpSimultaneous = "simultaneous_open",
    TcpSimultaneousOrigin = "simultaneous_open_origin",
    TcpSimultaneousReply = "simultaneous_open_reply",
    TcpSynReceived = "syn_received",
    TcpEstablished = "established",
    TcpFinOrigin = "fin_from_origin",
    TcpFinReply = "fin_from_reply",
    TcpTimeWait = "time_wait",
    TcpClosed = "closed",
    TcpDenied = "denied",
    OneWay = "one_way",
    BothWays = "both_ways",
    IcmpQuery = "icmp_query",
}

impl State {
    /// Whether such a session gives way when room is short: it has seen one direction only, or is over.
    pub fn gives_way(self) -> bool {
        !matches!(
            self,
            Self::TcpEstablished | Self::TcpFinOrigin | Self::TcpFinReply | Self::BothWays
        )
    }
}

/// How long a session may idle, by its state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timeouts {
    /// A connection being opened (RFC 5382 §5: the transitory idle time).
    pub tcp_opening: Duration,
    /// An established connection (RFC 5382 REQ-5: not less than 2 hours 4 minutes).
    pub tcp_established: Duration,
    /// A connection being closed (RFC 5382 REQ-5: not less than 4 minutes).
    pub tcp_closing: Duration,
    /// After both FINs, or a reset.
    pub tcp_closed: Duration,
    /// UDP and others that were seen one way only.
    pub one_way: Duration,
    /// UDP and others seen both ways (RFC 4787 REQ-5: not less than 2 minutes).
    pub both_ways: Duration,
    /// ICMP queries (RFC 5508 REQ-2: not less than 60 seconds).
    pub icmp: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            tcp_opening: Duration::from_secs(60),
            tcp_established: Duration::from_secs(7440),
            tcp_closing: Duration::from_secs(240),
            tcp_closed: Duration::from_secs(30),
            one_way: Duration::from_secs(120),
            both_ways: Duration::from_secs(180),
            icmp: Duration::from_secs(60),
        }
    }
}

impl Timeouts {
    /// The idle time of a state, in milliseconds.
    pub fn of(&self, state: State) -> u32 {
        let time = match state {
            State::TcpSynSent
            | State::TcpSimultaneous
            | State::TcpSimultaneousOrigin
            | State::TcpSimultaneousReply
            | State::TcpSynReceived => self.tcp_opening,
            State::TcpEstablished => self.tcp_established,
            // Longer than the ends wait between two tries (RFC 6298 §5.5 allows for a minute; kernels take two).
            State::TcpFinOrigin | State::TcpFinReply | State::TcpDenied => self.tcp_closing,
            State::TcpTimeWait | State::TcpClosed => self.tcp_closed,
            State::OneWay => self.one_way,
            State::BothWays => self.both_ways,
            State::IcmpQuery => self.icmp,
        };
        u32::try_from(time.as_millis()).unwrap_or(u32::MAX)
    }
}
