//! Network ACLs and security groups of one port, held against one packet (design, "Policy").
//!
//! Groups are stateful: they are held against the flow as its opener sent it, whichever way this packet goes. ACLs are stateless: they are
//! held against this packet.

use super::tracer::Tracer;
use crate::packet::{DropReason, Parsed};
use crate::policy::Subject;
use crate::snapshot::{Port, Snapshot};

/// How a packet stands to the flow that it is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// It opens the flow, or goes the way of the packet that did.
    Forward,
    /// It goes against the packet that opened the flow.
    Backward,
    /// An ICMP error about a tracked packet: no group has a say.
    Related,
}

/// The subnet's network ACL, held against this packet.
pub(super) fn acl(
    snapshot: &Snapshot,
    port: &Port,
    parsed: &Parsed,
    towards: bool,
    trace: &mut impl Tracer,
) -> Result<(), DropReason> {
    let Some(acl) = snapshot.subnets[port.subnet]
        .acl
        .and_then(|acl| snapshot.acls.get(acl))
    else {
        return Ok(());
    };
    let flow = &parsed.flow;
    let (rules, remote, stage) = if towards {
        (&acl.ingress, flow.source, "acl in")
    } else {
        (&acl.egress, flow.destination, "acl out")
    };
    let subject = Subject::of(flow, parsed.icmp, remote);
    let (number, allow) = rules.verdict(&subject, &snapshot.vpcs[port.vpc].sets);
    trace.step(stage, || {
        let verdict = if allow { "allow" } else { "deny" };
        number.map_or_else(
            || format!("{}: no rule matches, deny", acl.id),
            |number| format!("{}: rule {number}, {verdict}", acl.id),
        )
    });
    if allow {
        Ok(())
    } else {
        Err(DropReason::AclDenied)
    }
}

/// The port's security groups, held against the flow as its opener sent it.
pub(super) fn groups(
    snapshot: &Snapshot,
    port: &Port,
    (parsed, standing): (&Parsed, Standing),
    towards: bool,
    trace: &mut impl Tracer,
) -> Result<(), DropReason> {
    let opened = match standing {
        Standing::Forward => parsed.flow,
        Standing::Backward => parsed.flow.reversed(),
        Standing::Related => return Ok(()),
    };
    // The port is the opener's end if it sends forward or receives backward.
    let receives = towards == (standing == Standing::Forward);
    let (rules, remote, stage) = if receives {
        (&port.ingress, opened.source, "group in")
    } else {
        (&port.egress, opened.destination, "group out")
    };
    // The opener's ICMP type and code stand in its ports (see `Flow`).
    let icmp = if standing == Standing::Forward {
        parsed.icmp
    } else {
        opened.opening_icmp()
    };
    let allow = rules.allow(
        &Subject::of(&opened, icmp, remote),
        &snapshot.vpcs[port.vpc].sets,
    );
    trace.step(stage, || {
        format!(
            "port {}: {}",
            port.id,
            if allow {
                "admitted"
            } else {
                "no rule admits it"
            }
        )
    });
    if allow {
        Ok(())
    } else {
        Err(DropReason::GroupDenied)
    }
}
