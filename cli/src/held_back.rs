//! What stays behind on hosts while all else is in force there: `weftctl vpc status`, and what `show` of a VPC or a host says besides the object.

use anyhow::Result;
use clap::Subcommand;
use weft_proto::v1::{
    HeldBack, ListHostStatusRequest, ListVpcStatusRequest, ObjectKey, Violation, VpcStatusReply,
};
use weft_proto::validate::describe;

use crate::client::Targets;
use crate::found;
use crate::kinds;
use crate::objects::Action;
use crate::output::{Format, Table, show};

/// Commands on VPCs.
#[derive(Debug, Subcommand)]
pub(crate) enum VpcAction {
    #[command(flatten)]
    Any(Action<kinds::Vpc>),
    /// Show the hosts on which VPCs stay behind the intent, since when and why; none: they are in force wherever their hosts are in sync.
    Status {
        /// Only this VPC [default: all].
        #[arg(default_value = "", hide_default_value = true)]
        id: String,
    },
    /// Show which ports hold virtual addresses (addresses of their allowed pairs that they have announced), since when, and how often each has moved.
    Holders {
        /// Only in this VPC [default: all].
        #[arg(default_value = "", hide_default_value = true)]
        id: String,
    },
    /// Show which multicast groups ports have joined, in subnets with snooping, as their hosts tell it.
    Listeners {
        /// Only in this VPC [default: all].
        #[arg(default_value = "", hide_default_value = true)]
        id: String,
    },
}

/// Commands on hosts.
#[derive(Debug, Subcommand)]
pub(crate) enum HostAction {
    #[command(flatten)]
    Any(Action<kinds::Host>),
}

impl VpcAction {
    pub(crate) async fn run(self, targets: &Targets, format: Format) -> Result<()> {
        let id = match self {
            Self::Any(action) => {
                let shown = action.shown().map(str::to_owned);
                action.run(targets, format).await?;
                // A controller of before says nothing of that.
                if let Some(id) = shown
                    && let Ok(reply) = status(targets, id).await
                {
                    for line in lines(&reply) {
                        eprintln!("weftctl: {line}");
                    }
                }
                return Ok(());
            }
            Self::Status { id } => id,
            Self::Holders { id } => return found::list_holders(targets, format, id).await,
            Self::Listeners { id } => return found::list_listeners(targets, format, id).await,
        };
        let reply = status(targets, id).await?;
        show(format, &reply, || table(&reply))
    }
}

impl HostAction {
    pub(crate) async fn run(self, targets: &Targets, format: Format) -> Result<()> {
        let Self::Any(action) = self;
        let shown = action.shown().map(str::to_owned);
        action.run(targets, format).await?;
        let Some(id) = shown else { return Ok(()) };
        let mut client = targets.intent().await?;
        let Ok(reply) = client.list_host_status(ListHostStatusRequest {}).await else {
            return Ok(());
        };
        let hosts = reply.into_inner().hosts.into_iter();
        for held in hosts
            .filter(|host| host.host == id)
            .flat_map(|host| host.held_back)
        {
            eprintln!("weftctl: host {id}: {}", line(&held));
        }
        Ok(())
    }
}

async fn status(targets: &Targets, vpc: String) -> Result<VpcStatusReply> {
    let mut client = targets.intent().await?;
    let reply = client.list_vpc_status(ListVpcStatusRequest { vpc }).await?;
    Ok(reply.into_inner())
}

fn table(reply: &VpcStatusReply) -> String {
    let mut table = Table::new(&["VPC", "BEHIND ON HOST", "AS OF", "INTENT", "REASON"]);
    for held in &reply.held_back {
        table.row([
            held.vpc.clone(),
            named(&held.host).to_owned(),
            as_of(held.in_force_revision),
            reply.revision.to_string(),
            reasons(&held.violations),
        ]);
    }
    table.text()
}

fn lines(reply: &VpcStatusReply) -> impl Iterator<Item = String> {
    reply.held_back.iter().map(|held| {
        format!(
            "vpc {} stays behind on host {} ({}): {}",
            held.vpc,
            named(&held.host),
            as_of(held.in_force_revision),
            reasons(&held.violations)
        )
    })
}

/// A tenant is not told of every host.
fn named(host: &str) -> &str {
    if host.is_empty() { "(a gateway)" } else { host }
}

fn as_of(revision: u64) -> String {
    match revision {
        0 => "absent".to_owned(),
        revision => format!("as of revision {revision}"),
    }
}

fn reasons(violations: &[Violation]) -> String {
    let reasons: Vec<String> = violations.iter().map(describe).collect();
    reasons.join("; ")
}

/// What is held back on a host, in one line.
pub(crate) fn line(held: &HeldBack) -> String {
    let object = held.object.clone().unwrap_or_default();
    let (since, reasons) = (as_of(held.in_force_revision), reasons(&held.violations));
    let ObjectKey { kind, id } = object;
    format!("{kind} {id} stays behind ({since}): {reasons}")
}
