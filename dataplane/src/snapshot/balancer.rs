//! Load balancers: addresses of a VPC behind which several ports serve (services, "Load balancer").

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::packet::Flow;
use crate::route::{ecmp, maglev};

/// A load balancer, by one of its addresses.
#[derive(Debug)]
pub struct Balancer {
    /// Its id.
    pub id: String,
    /// What it serves, by protocol and first port; none overlaps another.
    pub listeners: Box<[Arc<Listener>]>,
}

/// Ports of a load balancer's address, and who serves them.
#[derive(Debug)]
pub struct Listener {
    /// What it is made of.
    pub plan: Plan,
    /// Those who serve, in order: each address and port once.
    pub members: Box<[Member]>,
    /// How one is chosen.
    pub choice: Choice,
}

/// What a listener is made of: of equal plans the tables are equal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// IP protocol number.
    pub protocol: u8,
    /// First and last port.
    pub ports: (u16, u16),
    /// The members in order, each with its weight if it takes flows.
    pub shares: Vec<(Member, Option<u16>)>,
    /// Whether members are taken one after the other.
    pub in_turn: bool,
    /// Whether all flows of a client go to one member.
    pub by_source: bool,
    /// Whether clients are told of connections that are lost.
    pub resets: bool,
}

/// Who serves, where.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Member {
    /// An address of a port of the VPC.
    pub address: u128,
    /// The port that the listener's first one becomes.
    pub first: u16,
}

/// How a member is chosen.
#[derive(Debug)]
pub enum Choice {
    /// By a hash, the same on every host.
    Maglev {
        /// The places of members.
        table: maglev::Table,
        /// Whether the hash is of the client's address alone.
        by_source: bool,
    },
    /// One after the other.
    RoundRobin {
        /// The places of members, those with a greater weight more often.
        order: Box<[u16]>,
        /// Whose turn it is.
        next: AtomicU32,
    },
}

impl Balancer {
    /// The listener that a flow to the load balancer's address is for.
    pub fn listener(&self, protocol: u8, port: u16) -> Option<&Listener> {
        let beyond = self
            .listeners
            .partition_point(|it| (it.plan.protocol, it.plan.ports.0) <= (protocol, port));
        let listener = self.listeners.get(beyond.checked_sub(1)?)?;
        let is_for = listener.plan.protocol == protocol && port <= listener.plan.ports.1;
        is_for.then_some(&**listener)
    }

    /// Whether any member takes flows.
    pub fn serves(&self) -> bool {
        self.listeners.iter().any(|listener| listener.serves())
    }

    /// Whether a flow to the load balancer's address and this port may go on to this address and port.
    pub fn keeps(&self, (protocol, port): (u8, u16), to: (u128, u16)) -> bool {
        self.listener(protocol, port)
            .is_some_and(|listener| listener.has(port, to))
    }
}

impl Listener {
    /// Whether any member takes flows.
    pub fn serves(&self) -> bool {
        match &self.choice {
            Choice::Maglev { table, .. } => !table.is_empty(),
            Choice::RoundRobin { order, .. } => !order.is_empty(),
        }
    }

    /// The address and port that a new flow goes to; none if no member takes flows. `counts`: the flow takes its turn, where members have turns.
    pub fn choose(&self, flow: &Flow, counts: bool) -> Option<(u128, u16)> {
        let place = match &self.choice {
            Choice::Maglev { table, by_source } => {
                let hash = if *by_source {
                    ecmp::flow_hash(&Flow {
                        source: flow.source,
                        destination: flow.destination,
                        ..Flow::default()
                    })
                } else {
                    ecmp::flow_hash(flow)
                };
                table.member(hash)?
            }
            Choice::RoundRobin { order, next } => {
                let turn = next.fetch_add(counts.into(), Ordering::Relaxed) as usize;
                *order.get(turn.checked_rem(order.len())?)?
            }
        };
        let member = self.members.get(usize::from(place))?;
        Some((member.address, self.port_of(member, flow.destination_port)))
    }

    fn port_of(&self, member: &Member, port: u16) -> u16 {
        member
            .first
            .wrapping_add(port.wrapping_sub(self.plan.ports.0))
    }

    /// Whether a member serves a port of the listener at an address and port, whether it takes new flows or not.
    fn has(&self, port: u16, (address, at): (u128, u16)) -> bool {
        let first = at.wrapping_sub(port.wrapping_sub(self.plan.ports.0));
        self.members
            .binary_search(&Member { address, first })
            .is_ok()
    }
}

/// What of a VPC's load balancers is reached from outside.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PublicBalancers {
    /// Their elastic IPs, each with its network by index, and the own address of the load balancer.
    pub addresses: super::Map<u128, (u16, u128)>,
    /// The addresses that their members serve at, and by which network answers to the outside leave.
    pub members: super::Map<u128, u16>,
}

/// The load balancers of a VPC, by address.
pub type Balancers = super::CowMap<u128, Arc<Balancer>>;
