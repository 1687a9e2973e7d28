//! Policy routes of a route table, on the command line.

use anyhow::{Result, bail};
use clap::{Args, Subcommand};
use weft_proto::state::{Kind, Object};
use weft_proto::v1::PolicyRoute;

use crate::client::Targets;
use crate::edit::edit;
use crate::objects::{one_or_all, say_change};
use crate::output::{Format, Table, brief, show};
use crate::rules::{Range, Target, target};

/// What can be done with policy routes.
// Made once.
#[allow(clippy::large_enum_variant)]
#[derive(Debug, Subcommand)]
pub(crate) enum PolicyAction {
    /// List the policy routes of a table, or of every table, in the order in which they are asked.
    List {
        /// Id of the route table.
        table: Option<String>,
    },
    /// Add a policy route, or replace the one of the same priority.
    Add {
        /// Id of the route table.
        table: String,
        /// Priority, 1 to 32767; of those that match, the lowest decides.
        priority: u32,
        #[command(flatten)]
        policy: Flags,
    },
    /// Delete a policy route.
    Delete {
        /// Id of the route table.
        table: String,
        /// Priority of the policy route.
        priority: u32,
    },
}

/// What a policy route matches, and where that goes.
#[derive(Debug, Args)]
pub(crate) struct Flags {
    /// Prefix of the source address.
    #[arg(long, default_value = "", hide_default_value = true)]
    source: String,
    /// Prefix of the destination address.
    #[arg(long, default_value = "", hide_default_value = true)]
    destination: String,
    /// Protocol: any, tcp, udp, icmp, icmpv6, sctp or a number.
    #[arg(long, default_value = "", hide_default_value = true)]
    protocol: String,
    /// Source port, or a range such as 8000-8999.
    #[arg(long, value_name = "PORT[-PORT]")]
    source_port: Option<Range>,
    /// Destination port, or a range.
    #[arg(long, value_name = "PORT[-PORT]")]
    destination_port: Option<Range>,
    /// DSCP, 0 to 63.
    #[arg(long)]
    dscp: Option<u32>,
    /// Leave the packets to the routes of the table: no later policy route is asked.
    #[arg(long, group = "Target")]
    default_routing: bool,
    #[command(flatten)]
    target: Target,
}

impl Flags {
    fn policy(&self, priority: u32) -> PolicyRoute {
        let bounds = |range: Option<Range>| range.map(Range::bounds).unzip();
        let (source_port_min, source_port_max) = bounds(self.source_port);
        let (destination_port_min, destination_port_max) = bounds(self.destination_port);
        let to = self.target.route("");
        // Where both are given, the controller says that it is one too many.
        let is_given = !self.default_routing || to != Target::default().route("");
        PolicyRoute {
            priority,
            source: self.source.clone(),
            destination: self.destination.clone(),
            protocol: self.protocol.clone(),
            source_port_min,
            source_port_max,
            destination_port_min,
            destination_port_max,
            dscp: self.dscp,
            to: is_given.then_some(to),
            default_routing: self.default_routing,
        }
    }
}

impl PolicyAction {
    pub(crate) async fn run(self, targets: &Targets, format: Format) -> Result<()> {
        let reply = match self {
            Self::List { table } => return list(targets, format, table).await,
            Self::Add {
                table,
                priority,
                policy,
            } => {
                let policy = policy.policy(priority);
                edit(targets, Kind::RouteTable, &table, |object| {
                    if let Object::RouteTable(o) = object {
                        o.policies.retain(|other| other.priority != priority);
                        o.policies.push(policy.clone());
                    }
                    Ok(())
                })
                .await?
            }
            Self::Delete { table, priority } => {
                edit(targets, Kind::RouteTable, &table, |object| {
                    if let Object::RouteTable(o) = object {
                        let before = o.policies.len();
                        o.policies.retain(|policy| policy.priority != priority);
                        if o.policies.len() == before {
                            bail!("route_table {table} has no policy route of priority {priority}");
                        }
                    }
                    Ok(())
                })
                .await?
            }
        };
        say_change(format, &reply)
    }
}

async fn list(targets: &Targets, format: Format, table: Option<String>) -> Result<()> {
    let objects = one_or_all(targets, Kind::RouteTable, table).await?;
    show(format, &brief(&objects)?, || {
        let mut rows = Table::new(&["TABLE", "PRIORITY", "MATCH", "TARGET"]);
        for table in &objects.route_tables {
            let mut policies: Vec<&PolicyRoute> = table.policies.iter().collect();
            policies.sort_by_key(|policy| policy.priority);
            for policy in policies {
                rows.row([
                    table.id.clone(),
                    policy.priority.to_string(),
                    matches(policy),
                    policy
                        .to
                        .as_ref()
                        .map_or("default routing".to_owned(), target),
                ]);
            }
        }
        rows.text()
    })
}

/// What a policy route matches, in words.
fn matches(policy: &PolicyRoute) -> String {
    let range = |min: Option<u32>, max: Option<u32>| match (min, max) {
        (Some(min), Some(max)) if min == max => Some(min.to_string()),
        (Some(min), Some(max)) => Some(format!("{min}-{max}")),
        _ => None,
    };
    let given = |text: &String| Some(text.clone()).filter(|text| !text.is_empty());
    let parts = [
        ("source", given(&policy.source)),
        ("destination", given(&policy.destination)),
        ("protocol", given(&policy.protocol)),
        (
            "source port",
            range(policy.source_port_min, policy.source_port_max),
        ),
        (
            "destination port",
            range(policy.destination_port_min, policy.destination_port_max),
        ),
        ("dscp", policy.dscp.map(|dscp| dscp.to_string())),
    ];
    let parts = parts.into_iter().filter_map(|(name, value)| {
        let value = value?;
        Some(format!("{name} {value}"))
    });
    parts.collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_match_reads_in_one_line() {
        let policy = PolicyRoute {
            source: "10.0.1.0/24".into(),
            protocol: "tcp".into(),
            source_port_min: Some(1024),
            source_port_max: Some(65535),
            destination_port_min: Some(443),
            destination_port_max: Some(443),
            dscp: Some(0),
            ..PolicyRoute::default()
        };
        assert_eq!(
            matches(&policy),
            "source 10.0.1.0/24, protocol tcp, source port 1024-65535, destination port 443, dscp 0"
        );
    }
}
