//! Checks whether an interface can be an uplink. The slave of another interface passes its packets to that one, which has the addresses,
//! neighbours and routes, so tunnels through the slave would not work.

use std::thread;

use rtnetlink::packet_route::link::InfoPortKind;

use super::netlink::Netlink;
use weft_dataplane::port::{Interface, PortError};

/// Refuses an interface that is a slave of a bond or a team, a port of a bridge, or in a VRF. Blocks until the kernel has answered.
///
/// # Errors
/// It is not there; it is one of these, and what to configure instead; or the kernel does not tell.
pub fn check_uplink(name: &str) -> Result<(), PortError> {
    // One that is not there has a message of its own.
    Interface::lookup(name)?;
    // A thread with a runtime of its own: callers may be in one, or in none.
    let asked = thread::scope(|scope| scope.spawn(|| ask(name)).join());
    let master = asked.unwrap_or_else(|_| {
        Err(PortError::Netlink {
            what: format!("asking what {name} is part of"),
            problem: "the thread panicked".to_owned(),
        })
    })?;
    match master {
        None => Ok(()),
        Some((master, kind)) => Err(PortError::Uplink {
            interface: name.to_owned(),
            problem: problem(&master, &kind),
        }),
    }
}

fn ask(name: &str) -> Result<Option<(String, InfoPortKind)>, PortError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|source| PortError::Io {
            what: format!("asking what {name} is part of"),
            source,
        })?;
    runtime.block_on(async {
        let (netlink, _news) = Netlink::connect()?;
        netlink.master(name).await
    })
}

fn problem(master: &str, kind: &InfoPortKind) -> String {
    match kind {
        InfoPortKind::Bond => format!(
            "it is a slave of the bond {master}, so it is no uplink itself; name {master} in uplinks instead"
        ),
        InfoPortKind::Bridge => format!(
            "it is a port of the bridge {master}, so it is no uplink itself; name {master} in uplinks instead, or take it out (`ip link set … nomaster`) and give it the address"
        ),
        InfoPortKind::Vrf => format!(
            "it is in the VRF {master}, whose routes are not asked for the way to tunnel addresses; take it out of the VRF (`ip link set … nomaster`)"
        ),
        InfoPortKind::Other(kind) => format!(
            "it is part of {master} ({kind}), so it is no uplink itself; name {master} in uplinks instead, or take it out (`ip link set … nomaster`)"
        ),
        _ => format!(
            "it is part of {master}, so it is no uplink itself; take it out (`ip link set … nomaster`)"
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bonds_slave_is_refused_with_the_bonds_name_and_a_vrf_by_its_own() {
        let said = problem("bond0", &InfoPortKind::Bond);
        assert!(said.contains("slave of the bond bond0") && said.contains("name bond0 in uplinks"));
        let said = problem("red", &InfoPortKind::Vrf);
        assert!(said.contains("in the VRF red") && said.contains("take it out"));
        let said = problem("team0", &InfoPortKind::Other("team".to_owned()));
        assert!(said.contains("part of team0 (team)") && said.contains("name team0"));
    }

    #[test]
    fn an_interface_of_its_own_is_fit() {
        check_uplink("lo").unwrap();
    }
}
