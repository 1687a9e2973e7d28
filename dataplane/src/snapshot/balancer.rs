//! Load balancers: addresses of a VPC behind which several ports serve (services, "Load balancer").

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::packet::Flow;
use crate::route::{ecmp, maglev};
use crate::session::member_counts::Held;

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
    /// Those that do not serve now, in order: their counters are kept for them.
    pub down: Vec<Member>,
    /// How one is chosen.
    pub algorithm: Algorithm,
    /// Whether all flows of a client go to one member.
    pub by_source: bool,
    /// Whether clients are told of connections that are lost.
    pub resets: bool,
    /// Whether members get what is for the load balancer's address as it is, and answer with that address.
    pub dsr: bool,
}

/// How members are chosen, as it is configured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Algorithm {
    /// By a hash of the flow.
    Maglev,
    /// One after the other.
    RoundRobin,
    /// Who has the fewest sessions. Where the host has no room to count them: by a hash of the flow.
    LeastConnections,
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
    /// Who has the fewest sessions of the listener on this host, as its weight is.
    LeastConnections {
        /// Those who take flows.
        takers: Box<[Taker]>,
        /// The counters of all members, by their places, and of those that are down.
        held: Held,
        /// Whose turn it is of those who have as few.
        next: AtomicU32,
    },
}

/// A member that takes flows and whose sessions are counted.
#[derive(Debug, Clone, Copy)]
pub struct Taker {
    /// Its place among the members.
    pub place: u16,
    /// Its share beside the others', at least 1.
    pub weight: u16,
    /// Its counter.
    pub number: u32,
}

/// So many members are compared for a flow. Of more, so many in a row from a place on that the flow's hash says: to take the best of several at random evens out
/// nearly as well as to take the best of all (Azar et al., "Balanced Allocations", 1994), and costs the same whatever their number is.
const COMPARED: usize = 64;

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

    /// Whether a member at this address gets what is for the load balancer's address as it is: of a protocol and a port, or of any.
    pub fn is_answered_by(&self, address: u128, of: Option<(u8, u16)>) -> bool {
        let has = |listener: &Listener| {
            let first = listener.plan.ports.0;
            listener.plan.dsr && listener.has(first, (address, first))
        };
        match of {
            Some((protocol, port)) => self.listener(protocol, port).is_some_and(has),
            None => self.listeners.iter().any(|listener| has(listener)),
        }
    }
}

impl Listener {
    /// Whether members are chosen as the plan says: there was room to count sessions, if it says so.
    pub fn is_as_planned(&self) -> bool {
        self.plan.algorithm != Algorithm::LeastConnections
            || matches!(self.choice, Choice::LeastConnections { .. })
    }

    /// Whether any member takes flows.
    pub fn serves(&self) -> bool {
        match &self.choice {
            Choice::Maglev { table, .. } => !table.is_empty(),
            Choice::RoundRobin { order, .. } => !order.is_empty(),
            Choice::LeastConnections { takers, .. } => !takers.is_empty(),
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
            Choice::LeastConnections { takers, held, next } => {
                let is_exact = takers.len() <= COMPARED;
                let from = if is_exact {
                    next.load(Ordering::Relaxed) as usize
                } else {
                    ecmp::flow_hash(flow) as usize
                };
                let at = fewest(takers, held, from)?;
                if counts && is_exact {
                    next.store(at as u32 + 1, Ordering::Relaxed);
                }
                takers[at].place
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
    pub fn has(&self, port: u16, to: (u128, u16)) -> bool {
        self.place(port, to).is_some()
    }

    /// The place of the member that serves a port of the listener at an address and port.
    fn place(&self, port: u16, (address, at): (u128, u16)) -> Option<usize> {
        let first = at.wrapping_sub(port.wrapping_sub(self.plan.ports.0));
        self.members.binary_search(&Member { address, first }).ok()
    }

    /// The counter in which a session from a port of the listener to an address and port counts; none if the listener does not count sessions.
    pub fn counter(&self, port: u16, to: (u128, u16)) -> Option<u32> {
        match &self.choice {
            Choice::LeastConnections { held, .. } => held.number(self.place(port, to)?),
            Choice::Maglev { .. } | Choice::RoundRobin { .. } => None,
        }
    }

    /// How many sessions of the listener a counter counts.
    pub fn sessions(&self, number: u32) -> u32 {
        match &self.choice {
            Choice::LeastConnections { held, .. } => held.sessions(number),
            Choice::Maglev { .. } | Choice::RoundRobin { .. } => 0,
        }
    }
}

/// Where the member is, among those who take flows, that will have the fewest sessions for its weight if it gets one more: the first one of [`COMPARED`] from a place on.
fn fewest(takers: &[Taker], held: &Held, from: usize) -> Option<usize> {
    let first = from.checked_rem(takers.len())?;
    let (behind, ahead) = (takers.len().min(first + COMPARED), takers.len());
    let around = (first + COMPARED).saturating_sub(ahead).min(first);
    let mut best: Option<(usize, u64, u64)> = None;
    for at in (first..behind).chain(0..around) {
        let taker = &takers[at];
        let sessions = u64::from(held.sessions(taker.number)) + 1;
        let weight = u64::from(taker.weight);
        // Fractions are compared crosswise.
        if best.is_none_or(|(_, fewest, of)| sessions * of < fewest * weight) {
            best = Some((at, sessions, weight));
        }
    }
    best.map(|(at, ..)| at)
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::member_counts::{ListenerName, MemberCounts};

    fn counting(weights: &[u16]) -> (Arc<MemberCounts>, Listener) {
        // All of them are of one VPC.
        let counts = Arc::new(MemberCounts::new(weights.len() as u32 * 4));
        let name = ListenerName {
            vpc: "blue".into(),
            balancer: "web".into(),
            protocol: 17,
            port: 80,
        };
        let members = (1..)
            .zip(weights)
            .map(|(address, _)| Member { address, first: 80 });
        let members: Box<[Member]> = members.collect();
        let names: Vec<_> = members.iter().map(|it| (it.address, it.first)).collect();
        let held = counts.hold(&Arc::new(name), &names).unwrap();
        let takers = (0..).zip(weights).map(|(place, weight)| Taker {
            place,
            weight: *weight,
            number: held.number(place.into()).unwrap(),
        });
        let choice = Choice::LeastConnections {
            takers: takers.collect(),
            held,
            next: AtomicU32::new(u32::MAX),
        };
        let plan = Plan {
            protocol: 17,
            ports: (80, 80),
            shares: Vec::new(),
            down: Vec::new(),
            algorithm: Algorithm::LeastConnections,
            by_source: false,
            resets: true,
            dsr: false,
        };
        (
            counts,
            Listener {
                plan,
                members,
                choice,
            },
        )
    }

    /// Opens flows; how many sessions each member has then.
    fn open(counts: &MemberCounts, listener: &Listener, flows: u32) -> Vec<u32> {
        for source in 0..flows {
            let flow = Flow {
                source: u128::from(source / 1000) << 96,
                source_port: (source % 1000) as u16,
                destination_port: 80,
                ..Flow::default()
            };
            let to = listener.choose(&flow, true).unwrap();
            counts.retain(listener.counter(80, to).unwrap());
        }
        let members = listener.members.iter();
        let numbers = members.map(|it| listener.counter(80, (it.address, it.first)).unwrap());
        numbers.map(|number| listener.sessions(number)).collect()
    }

    #[test]
    fn of_few_members_each_has_its_exact_share() {
        for count in [1, 2, 63, 64] {
            let (counts, listener) = counting(&vec![1; count]);
            let found = open(&counts, &listener, count as u32 * 5);
            assert!(found.iter().all(|it| *it == 5), "{found:?}");
        }
        let (counts, listener) = counting(&[1, 256, 0x1000, 3]);
        let found = open(&counts, &listener, (1 + 256 + 0x1000 + 3) * 3);
        assert_eq!(found, [3, 256 * 3, 0x1000 * 3, 9]);
    }

    #[test]
    fn of_very_many_members_none_has_many_more_than_another() {
        for (members, flows) in [(65, 6500), (1000, 10_000), (10_000, 100_000)] {
            let (counts, listener) = counting(&vec![2; members]);
            let found = open(&counts, &listener, flows);
            let mean = flows / members as u32;
            let (least, most) = (found.iter().min().unwrap(), found.iter().max().unwrap());
            assert!(
                *least + 3 >= mean && *most <= mean + 2,
                "{members}: {least} to {most}, {mean} on average"
            );
        }
    }

    #[test]
    fn of_very_many_members_each_is_compared_as_often_and_first_as_often() {
        const MEMBERS: usize = 200;
        const FLOWS: u32 = 100_000;
        let (counts, listener) = counting(&[1; MEMBERS]);
        let numbers = listener.members.iter();
        let numbers = numbers.map(|it| listener.counter(80, (it.address, it.first)).unwrap());
        let numbers: Vec<u32> = numbers.collect();
        let to = |source: u32| {
            let flow = Flow {
                source: u128::from(source / 50_000),
                source_port: (source % 50_000) as u16,
                destination_port: 80,
                ..Flow::default()
            };
            listener.choose(&flow, true).unwrap().0 as usize - 1
        };
        // Of alike ones the first is taken.
        let mut first = [0u32; MEMBERS];
        (0..FLOWS).for_each(|source| first[to(source)] += 1);
        let mean = FLOWS / MEMBERS as u32;
        assert!(
            first.iter().all(|it| it.abs_diff(mean) < mean / 4),
            "{first:?}"
        );
        // One with fewer sessions is taken whenever it is compared.
        for number in &numbers {
            (0..9).for_each(|_| counts.retain(*number));
        }
        for (place, number) in numbers
            .iter()
            .enumerate()
            .step_by(7)
            .chain([(199, &numbers[199])])
        {
            counts.release(*number);
            let compared = (0..FLOWS / 10)
                .filter(|source| to(*source) == place)
                .count();
            counts.retain(*number);
            let share = FLOWS as usize / 10 * COMPARED / MEMBERS;
            assert!(
                compared.abs_diff(share) < share / 10,
                "{place}: {compared}, {share}"
            );
        }
    }

    #[test]
    fn nobody_is_chosen_where_nobody_takes_flows() {
        let (_, listener) = counting(&[]);
        assert!(!listener.serves());
        assert_eq!(listener.choose(&Flow::default(), true), None);
    }
}
