//! What can be done with DNS zones: what can be done with any object, and changes of one record.

use anyhow::{Result, bail};
use clap::{Args, Subcommand};
use weft_proto::state::{Kind, Object};
use weft_proto::v1::{self, DnsRecord};

use crate::client::Targets;
use crate::edit::edit;
use crate::kinds::{Flags, InVpc};
use crate::objects::{Action, one_or_all, say_change};
use crate::output::{Format, Table, brief, show};

/// Flags of `dns-zone create`.
#[derive(Debug, Args)]
pub(crate) struct DnsZone {
    #[command(flatten)]
    place: InVpc,
    /// Domain of the zone, such as db.example or 2.0.10.in-addr.arpa.
    #[arg(
        long,
        default_value = "",
        hide_default_value = true,
        required_unless_present = "file"
    )]
    domain: String,
}

impl Flags for DnsZone {
    const KIND: Kind = Kind::DnsZone;

    fn object(self, id: String) -> Object {
        Object::DnsZone(v1::DnsZone {
            id,
            vpc: self.place.vpc,
            domain: self.domain,
            ..v1::DnsZone::default()
        })
    }
}

/// What can be done with DNS zones.
#[derive(Debug, Subcommand)]
pub(crate) enum ZoneAction {
    #[command(flatten)]
    Any(Action<DnsZone>),
    /// List, add and remove records.
    #[command(subcommand)]
    Record(RecordAction),
}

/// What can be done with records.
#[derive(Debug, Subcommand)]
pub(crate) enum RecordAction {
    /// List the records of a zone, or of every zone.
    List {
        /// Id of the zone.
        zone: Option<String>,
    },
    /// Add a record, or replace the one of the same name and type.
    Add {
        #[command(flatten)]
        at: At,
        /// What it says: an address; a name (CNAME, PTR); "10 mail.example" (MX); "0 5 443 web.example" (SRV); a text. Repeat for several.
        #[arg(required = true)]
        data: Vec<String>,
        /// Seconds that answers may be kept, at most 604800 [default: 300].
        #[arg(long, default_value_t = 0, hide_default_value = true)]
        ttl: u32,
        /// Leave out addresses of load balancers none of whose members serves, and of members that are found not to (A and AAAA).
        #[arg(long)]
        serving_only: bool,
    },
    /// Remove a record.
    #[command(visible_alias = "delete")]
    Remove {
        #[command(flatten)]
        at: At,
    },
}

/// Which record.
#[derive(Debug, Clone, Args)]
pub(crate) struct At {
    /// Id of the zone.
    zone: String,
    /// Name in the zone's domain; @ for the domain itself.
    name: String,
    /// A, AAAA, CNAME, SRV, PTR, MX or TXT.
    #[arg(value_name = "TYPE")]
    kind: String,
}

impl At {
    /// The record's name and type, as the zone has them.
    fn key(&self) -> (String, String) {
        let name = if self.name == "@" { "" } else { &self.name };
        (name.to_owned(), self.kind.to_ascii_uppercase())
    }
}

fn is_at(record: &DnsRecord, (name, kind): &(String, String)) -> bool {
    record.name.eq_ignore_ascii_case(name) && record.r#type == *kind
}

impl ZoneAction {
    pub(crate) async fn run(self, targets: &Targets, format: Format) -> Result<()> {
        let action = match self {
            Self::Any(action) => return action.run(targets, format).await,
            Self::Record(action) => action,
        };
        let reply = match action {
            RecordAction::List { zone } => return list(targets, format, zone).await,
            RecordAction::Add {
                at,
                data,
                ttl,
                serving_only,
            } => {
                let key = at.key();
                edit(targets, Kind::DnsZone, &at.zone, |object| {
                    if let Object::DnsZone(o) = object {
                        o.records.retain(|record| !is_at(record, &key));
                        o.records.push(DnsRecord {
                            name: key.0.clone(),
                            r#type: key.1.clone(),
                            ttl,
                            data: data.clone(),
                            serving_only,
                        });
                    }
                    Ok(())
                })
                .await?
            }
            RecordAction::Remove { at } => {
                let key = at.key();
                edit(targets, Kind::DnsZone, &at.zone, |object| {
                    if let Object::DnsZone(o) = object {
                        let before = o.records.len();
                        o.records.retain(|record| !is_at(record, &key));
                        if o.records.len() == before {
                            bail!("dns_zone {} has no record {} {}", at.zone, at.name, key.1);
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

async fn list(targets: &Targets, format: Format, zone: Option<String>) -> Result<()> {
    let objects = one_or_all(targets, Kind::DnsZone, zone).await?;
    show(format, &brief(&objects)?, || {
        let mut rows = Table::new(&["ZONE", "NAME", "TYPE", "TTL", "SERVING ONLY", "DATA"]);
        for zone in &objects.dns_zones {
            for record in &zone.records {
                let name = if record.name.is_empty() {
                    "@"
                } else {
                    &record.name
                };
                rows.row([
                    zone.id.clone(),
                    name.to_owned(),
                    record.r#type.clone(),
                    record.seconds().to_string(),
                    if record.serving_only { "yes" } else { "no" }.to_owned(),
                    record.data.join(", "),
                ]);
            }
        }
        rows.text()
    })
}
