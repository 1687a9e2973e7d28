//! Subports: ports whose frames bear the tag of a VLAN on another port's device, the parent's. Compiled with the ports; the pipeline asks which port a frame is of,
//! and whoever drives the devices by which one a subport is reached.

use super::{Map, Port};

/// Where a subport is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Subport {
    /// The port that has the device, by index.
    pub parent: u16,
    /// The VLAN of its frames there, 1 to 4094.
    pub vlan: u16,
}

/// The subports of this host; on most hosts there are none.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Trunks {
    /// By the subport's index.
    subports: Map<u16, Subport>,
    /// The subport's index, by its parent's and the VLAN.
    by_vlan: Map<(u16, u16), u16>,
    /// The indices of its subports, by the parent's.
    of_parent: Map<u16, Vec<u16>>,
    /// How many were left out.
    unlinked: u32,
}

impl Trunks {
    /// Those among the ports of this host. `parent` finds a port of this host by its id. A subport whose parent is not here, or is none, is left out: nothing reaches
    /// it. So is one whose VLAN another has.
    pub fn of_ports<'p>(
        ports: impl Iterator<Item = &'p Option<Port>>,
        parent: impl Fn(&str) -> Option<u16>,
    ) -> Self {
        let mut found = Self::default();
        for (index, port) in (0u16..).zip(ports) {
            let Some(trunk) = port.as_ref().and_then(|port| port.trunk.as_ref()) else {
                continue;
            };
            let (Some(parent), Ok(vlan @ 1..=4094)) =
                (parent(&trunk.parent), trunk.vlan.try_into())
            else {
                found.unlinked += 1;
                continue;
            };
            if found.by_vlan.contains_key(&(parent, vlan)) {
                found.unlinked += 1;
                continue;
            }
            found.subports.insert(index, Subport { parent, vlan });
            found.by_vlan.insert((parent, vlan), index);
            found.of_parent.entry(parent).or_default().push(index);
        }
        found
    }

    /// Whether there are none, not even one that was left out.
    pub fn is_empty(&self) -> bool {
        self.subports.is_empty() && self.unlinked == 0
    }

    /// Whether a port has subports.
    #[inline]
    pub fn is_parent(&self, index: u16) -> bool {
        self.of_parent.contains_key(&index)
    }

    /// The subports of a port.
    pub fn subports_of(&self, parent: u16) -> &[u16] {
        self.of_parent.get(&parent).map_or(&[], Vec::as_slice)
    }

    /// The port that the frames of a VLAN on a port's device are of.
    #[inline]
    pub fn port(&self, parent: u16, vlan: u16) -> Option<u16> {
        self.by_vlan.get(&(parent, vlan)).copied()
    }

    /// Where a port is, if it is a subport.
    #[inline]
    pub fn subport(&self, index: u16) -> Option<Subport> {
        self.subports.get(&index).copied()
    }

    /// The port whose device a port has: itself, or its parent.
    pub fn device(&self, index: u16) -> u16 {
        self.subport(index).map_or(index, |subport| subport.parent)
    }
}
