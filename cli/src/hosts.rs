//! `weftctl hosts`: how far hosts are in sync, as the controller knows it.

use std::time::Duration;

use anyhow::{Result, bail};
use clap::Args;
use tokio::time::Instant;
use weft_proto::v1::{HostStatusReply, ListHostStatusRequest};
use weft_proto::validate::describe;

use crate::client::Targets;
use crate::held_back::line;
use crate::output::{Format, Table, show};

/// How often a wait asks again.
const ASK_AGAIN: Duration = Duration::from_millis(20);

/// Flags of `hosts`.
#[derive(Debug, Args)]
pub(crate) struct Hosts {
    /// Wait until every attached host has the current intent in force, at most SECONDS (10 if not given). Fails if a host
    /// refuses the intent or holds back a part of it, or the time is up.
    #[arg(long, value_name = "SECONDS", num_args = 0..=1, default_missing_value = "10")]
    wait: Option<u64>,
}

impl Hosts {
    pub(crate) async fn run(self, targets: &Targets, format: Format) -> Result<()> {
        let mut client = targets.intent().await?;
        let first = client.list_host_status(ListHostStatusRequest {}).await?;
        let mut reply = first.into_inner();
        let wanted = reply.revision;
        if let Some(seconds) = self.wait {
            let deadline = Instant::now() + Duration::from_secs(seconds);
            while behind(&reply, wanted).next().is_some()
                && refusals(&reply, wanted).next().is_none()
                && Instant::now() < deadline
            {
                tokio::time::sleep(ASK_AGAIN).await;
                let next = client.list_host_status(ListHostStatusRequest {}).await?;
                reply = next.into_inner();
            }
        }
        show(format, &reply, || text(&reply))?;
        if self.wait.is_some() {
            let refused: Vec<_> = refusals(&reply, wanted).collect();
            if !refused.is_empty() {
                bail!(refused.join("\n"));
            }
            let behind: Vec<_> = behind(&reply, wanted).collect();
            if !behind.is_empty() {
                bail!(
                    "hosts that are not at revision {wanted} yet: {}",
                    behind.join(", ")
                );
            }
            let hosts = reply.hosts.iter().filter(|host| host.attached);
            let held = hosts.flat_map(|host| {
                let lines = host.held_back.iter().map(line);
                lines.map(|line| format!("host {}: {line}", host.host))
            });
            let held: Vec<_> = held.collect();
            if !held.is_empty() {
                bail!(held.join("\n"));
            }
        }
        Ok(())
    }
}

/// Attached hosts that have not acknowledged the revision.
fn behind(reply: &HostStatusReply, revision: u64) -> impl Iterator<Item = &str> {
    reply
        .hosts
        .iter()
        .filter(move |host| host.attached && host.acknowledged_revision < revision)
        .map(|host| host.host.as_str())
}

/// Why hosts refused this revision or a later one; refusals of earlier revisions do not count.
fn refusals(reply: &HostStatusReply, revision: u64) -> impl Iterator<Item = String> {
    let hosts = reply.hosts.iter();
    let refusing = hosts.filter(move |host| host.refused_revision >= revision);
    refusing.flat_map(|host| {
        let lines = host.violations.iter().map(describe);
        lines.map(|line| format!("host {} refuses: {line}", host.host))
    })
}

fn text(reply: &HostStatusReply) -> String {
    let mut table = Table::new(&[
        "HOST",
        "ATTACHED",
        "SENT",
        "ACKNOWLEDGED",
        "INTENT",
        "EFFECT",
        "REFUSED",
        "HELD BACK",
    ]);
    for host in &reply.hosts {
        let refused: Vec<_> = host.violations.iter().map(describe).collect();
        table.row([
            host.host.clone(),
            if host.attached { "yes" } else { "no" }.to_owned(),
            host.sent_revision.to_string(),
            host.acknowledged_revision.to_string(),
            reply.revision.to_string(),
            format!("{} us", host.effect_microseconds),
            if refused.is_empty() {
                "-".to_owned()
            } else {
                refused.join("; ")
            },
            if host.held_back.is_empty() {
                "-".to_owned()
            } else {
                let lines: Vec<_> = host.held_back.iter().map(line).collect();
                lines.join("; ")
            },
        ]);
    }
    table.text()
}
