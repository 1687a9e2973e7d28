//! What a peering says: which VPCs it joins, and whether packets pass.

use crate::state::{Kind, Object, State};
use crate::v1::{Peering, Route, RouteTable};

/// State of one side of a peering.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum SideState {
    /// The requester waits for an answer.
    Connecting,
    /// The accepter has not answered yet.
    Accepting,
    Active,
    /// Asked to be frozen; some hosts still pass packets.
    Freezing,
    Frozen,
    /// Asked to be active again; some hosts still drop packets.
    Activating,
    Rejected,
    /// Deleted, but routes or groups still name it.
    Deleted,
}

impl SideState {
    /// Every state.
    pub const ALL: [Self; 8] = [
        Self::Connecting,
        Self::Accepting,
        Self::Active,
        Self::Freezing,
        Self::Frozen,
        Self::Activating,
        Self::Rejected,
        Self::Deleted,
    ];

    /// The state's name in the object.
    pub fn name(self) -> &'static str {
        match self {
            Self::Connecting => "connecting",
            Self::Accepting => "accepting",
            Self::Active => "active",
            Self::Freezing => "freezing",
            Self::Frozen => "frozen",
            Self::Activating => "activating",
            Self::Rejected => "rejected",
            Self::Deleted => "deleted",
        }
    }

    /// The state of that name. A file that names none means an active side.
    pub fn from_name(name: &str) -> Option<Self> {
        if name.is_empty() {
            return Some(Self::Active);
        }
        Self::ALL.into_iter().find(|state| state.name() == name)
    }

    /// Whether this side lets packets pass.
    pub fn passes(self) -> bool {
        matches!(self, Self::Active | Self::Activating)
    }

    /// Whether the side has agreed to the peering, and not ended it.
    pub fn is_agreed(self) -> bool {
        matches!(
            self,
            Self::Active | Self::Freezing | Self::Frozen | Self::Activating
        )
    }
}

impl Peering {
    /// The two VPCs, the requester's first.
    pub fn vpcs(&self) -> [&str; 2] {
        [&self.requester, &self.accepter]
    }

    /// The states of both sides, the requester's first. What is not a state counts as deleted.
    pub fn states(&self) -> [SideState; 2] {
        [&self.requester_state, &self.accepter_state]
            .map(|name| SideState::from_name(name).unwrap_or(SideState::Deleted))
    }

    /// Puts both sides into states.
    pub fn set_states(&mut self, [requester, accepter]: [SideState; 2]) {
        requester.name().clone_into(&mut self.requester_state);
        accepter.name().clone_into(&mut self.accepter_state);
    }

    /// The VPC that it joins with this one.
    pub fn other(&self, vpc: &str) -> Option<&str> {
        match self.vpcs() {
            [own, other] | [other, own] if own == vpc => Some(other),
            _ => None,
        }
    }

    /// Whether packets pass.
    pub fn passes(&self) -> bool {
        self.states().into_iter().all(SideState::passes)
    }

    /// Whether both sides have agreed to it.
    pub fn is_agreed(&self) -> bool {
        self.states().into_iter().all(SideState::is_agreed)
    }

    /// Whether it is over: refused or deleted.
    pub fn is_over(&self) -> bool {
        let over = |state| matches!(state, SideState::Rejected | SideState::Deleted);
        self.states().into_iter().any(over)
    }
}

impl RouteTable {
    /// The peerings that the routes lead to, as often as they do.
    pub fn peerings(&self) -> impl Iterator<Item = &str> {
        let named = self.targets().map(|route: &Route| &*route.peering);
        named.filter(|peering| !peering.is_empty())
    }
}

impl State {
    /// Whether anything leads to a peering or relies on it: a route, or a group that names one of the other VPC.
    pub fn names_peering(&self, peering: &Peering) -> bool {
        peering.vpcs().into_iter().any(|vpc| {
            let other = peering.other(vpc).unwrap_or_default();
            self.of_vpc(vpc).any(|object| match object {
                Object::RouteTable(table) => table.peerings().any(|id| id == peering.id),
                Object::SecurityGroup(group) => group.rules.iter().any(|rule| {
                    let remote = self.find(Kind::SecurityGroup, &rule.remote_group);
                    remote.and_then(Object::vpc) == Some(other)
                }),
                _ => false,
            })
        })
    }
}
