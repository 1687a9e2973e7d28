//! Changes within one object: a route of a table, a rule of a group or an ACL.
//!
//! Each is a read, a change and a conditional write, which is retried when the object changed in between.

use anyhow::{Result, bail};
use clap::Subcommand;
use tonic::Code;
use weft_proto::state::{Kind, Object, collect};
use weft_proto::v1::{ApplyRequest, ChangeReply, ObjectRevision};

use crate::client::Targets;
use crate::kinds;
use crate::objects::{Action, get, key, one_or_all, say_change};
use crate::output::{Format, Table, brief, show};
use crate::policy::PolicyAction;
use crate::rules::{AclRuleFlags, GroupRule, Target, same, target};

/// What can be done with routes.
#[derive(Debug, Subcommand)]
pub(crate) enum RouteAction {
    /// List the routes of a table, or of every table.
    List {
        /// Id of the route table.
        table: Option<String>,
    },
    /// Add a route, or replace the one of the same prefix.
    Add {
        /// Id of the route table.
        table: String,
        /// Destination prefix, such as 10.9.0.0/16.
        prefix: String,
        #[command(flatten)]
        target: Target,
    },
    /// Delete a route.
    Delete {
        /// Id of the route table.
        table: String,
        /// Destination prefix of the route.
        prefix: String,
    },
    /// List, add and delete policy routes: what comes before the routes, by more than the destination.
    #[command(subcommand)]
    Policy(PolicyAction),
}

/// What can be done with security groups.
#[derive(Debug, Subcommand)]
pub(crate) enum GroupAction {
    #[command(flatten)]
    Any(Action<kinds::SecurityGroup>),
    /// Add or delete a rule.
    #[command(subcommand)]
    Rule(GroupRuleAction),
}

/// What can be done with a group's rules.
#[derive(Debug, Subcommand)]
pub(crate) enum GroupRuleAction {
    /// Add a rule.
    Add {
        /// Id of the security group.
        group: String,
        #[command(flatten)]
        rule: GroupRule,
    },
    /// Delete the rule that these flags describe.
    Delete {
        /// Id of the security group.
        group: String,
        #[command(flatten)]
        rule: GroupRule,
    },
}

/// What can be done with network ACLs.
#[derive(Debug, Subcommand)]
pub(crate) enum AclAction {
    #[command(flatten)]
    Any(Action<kinds::NetworkAcl>),
    /// Add or delete a rule.
    #[command(subcommand)]
    Rule(AclRuleAction),
}

/// What can be done with an ACL's rules.
#[derive(Debug, Subcommand)]
pub(crate) enum AclRuleAction {
    /// Add a rule, or replace the one of the same direction and number.
    Add {
        /// Id of the network ACL.
        acl: String,
        /// Number of the rule, 1 to 32767; the matching rule with the lowest number decides.
        number: u32,
        #[command(flatten)]
        rule: AclRuleFlags,
    },
    /// Delete a rule.
    Delete {
        /// Id of the network ACL.
        acl: String,
        /// Number of the rule.
        number: u32,
        /// Direction: ingress or egress.
        #[arg(long, default_value = "ingress")]
        direction: String,
    },
}

impl RouteAction {
    pub(crate) async fn run(self, targets: &Targets, format: Format) -> Result<()> {
        match self {
            Self::List { table } => list_routes(targets, format, table).await,
            Self::Policy(action) => action.run(targets, format).await,
            Self::Add {
                table,
                prefix,
                target,
            } => {
                let reply = edit(targets, Kind::RouteTable, &table, |object| {
                    if let Object::RouteTable(o) = object {
                        o.routes.retain(|route| route.prefix != prefix);
                        o.routes.push(target.route(&prefix));
                    }
                    Ok(())
                });
                say_change(format, &reply.await?)
            }
            Self::Delete { table, prefix } => {
                let reply = edit(targets, Kind::RouteTable, &table, |object| {
                    if let Object::RouteTable(o) = object {
                        let before = o.routes.len();
                        o.routes.retain(|route| route.prefix != prefix);
                        if o.routes.len() == before {
                            bail!("route_table {table} has no route to {prefix}");
                        }
                    }
                    Ok(())
                });
                say_change(format, &reply.await?)
            }
        }
    }
}

async fn list_routes(targets: &Targets, format: Format, table: Option<String>) -> Result<()> {
    let objects = one_or_all(targets, Kind::RouteTable, table).await?;
    show(format, &brief(&objects)?, || {
        let mut rows = Table::new(&["TABLE", "VPC", "PREFIX", "TARGET"]);
        for table in &objects.route_tables {
            for route in &table.routes {
                rows.row([
                    table.id.clone(),
                    table.vpc.clone(),
                    route.prefix.clone(),
                    target(route),
                ]);
            }
        }
        rows.text()
    })
}

impl GroupAction {
    pub(crate) async fn run(self, targets: &Targets, format: Format) -> Result<()> {
        let rule_action = match self {
            Self::Any(action) => return action.run(targets, format).await,
            Self::Rule(action) => action,
        };
        let reply = match rule_action {
            GroupRuleAction::Add { group, rule } => {
                let rule = rule.rule();
                edit(targets, Kind::SecurityGroup, &group, |object| {
                    if let Object::SecurityGroup(o) = object {
                        if o.rules.iter().any(|other| same(other, &rule)) {
                            bail!("security_group {group} already has this rule");
                        }
                        o.rules.push(rule.clone());
                    }
                    Ok(())
                })
                .await?
            }
            GroupRuleAction::Delete { group, rule } => {
                let rule = rule.rule();
                edit(targets, Kind::SecurityGroup, &group, |object| {
                    if let Object::SecurityGroup(o) = object {
                        let before = o.rules.len();
                        o.rules.retain(|other| !same(other, &rule));
                        if o.rules.len() == before {
                            bail!("security_group {group} has no such rule; `weftctl sg show {group}` lists them");
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

impl AclAction {
    pub(crate) async fn run(self, targets: &Targets, format: Format) -> Result<()> {
        let rule_action = match self {
            Self::Any(action) => return action.run(targets, format).await,
            Self::Rule(action) => action,
        };
        let reply = match rule_action {
            AclRuleAction::Add { acl, number, rule } => {
                let rule = rule.rule(number);
                edit(targets, Kind::NetworkAcl, &acl, |object| {
                    if let Object::NetworkAcl(o) = object {
                        o.rules
                            .retain(|r| (r.number, &r.direction) != (number, &rule.direction));
                        o.rules.push(rule.clone());
                    }
                    Ok(())
                })
                .await?
            }
            AclRuleAction::Delete {
                acl,
                number,
                direction,
            } => {
                edit(targets, Kind::NetworkAcl, &acl, |object| {
                    if let Object::NetworkAcl(o) = object {
                        let before = o.rules.len();
                        o.rules
                            .retain(|r| (r.number, &r.direction) != (number, &direction));
                        if o.rules.len() == before {
                            bail!("network_acl {acl} has no {direction} rule {number}");
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

/// Reads an object, changes it and writes it back; retries when the object changed in between.
pub(crate) async fn edit(
    targets: &Targets,
    kind: Kind,
    id: &str,
    change: impl Fn(&mut Object) -> Result<()>,
) -> Result<ChangeReply> {
    let mut client = targets.intent().await?;
    loop {
        let (revision, mut object) = get(&mut client, key(kind, id)).await?;
        change(&mut object)?;
        let unchanged = ObjectRevision {
            object: Some(key(kind, id)),
            revision,
        };
        let request = ApplyRequest {
            objects: Some(collect(std::iter::once(object))),
            if_object_revisions: vec![unchanged],
            ..ApplyRequest::default()
        };
        match client.apply(request).await {
            Ok(reply) => return Ok(reply.into_inner()),
            Err(status) if status.code() == Code::Aborted => {}
            Err(status) => return Err(status.into()),
        }
    }
}
