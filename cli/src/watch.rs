//! `weftctl watch`: changes as they happen.

use anyhow::{Result, bail};
use clap::Args;
use serde_json::{Value, json};
use weft_proto::state::{Object, collect, explode};
use weft_proto::v1::{WatchEvent, WatchRequest};

use crate::client::Targets;
use crate::history::kind;
use crate::kinds::row;
use crate::objects::Which;
use crate::output::{Format, brief, print};

/// Flags of `watch`.
#[derive(Debug, Args)]
pub(crate) struct Watch {
    /// Kind of the objects to watch [default: every kind].
    kind: Option<String>,
    #[command(flatten)]
    which: Which,
    /// Only changes after this revision [default: first the objects that there are].
    #[arg(
        long,
        value_name = "REVISION",
        default_value_t = 0,
        hide_default_value = true
    )]
    from: u64,
}

impl Watch {
    pub(crate) async fn run(self, targets: &Targets, format: Format) -> Result<()> {
        let kind = self.kind.as_deref().map(kind).transpose()?;
        let request = WatchRequest {
            kind: kind.map_or(String::new(), |kind| kind.name().to_owned()),
            vpc: self.which.vpc,
            from_revision: self.from,
            label_selector: self.which.labels.join(","),
            field_selector: self.which.fields.join(","),
        };
        let mut client = targets.intent().await?;
        let mut events = client.watch(request).await?.into_inner();
        while let Some(event) = events.message().await? {
            print(&text(format, event)?)?;
        }
        bail!("the controller has ended the watch")
    }
}

/// A line for each object, or a YAML document. Programs are also told each revision of which all is told.
fn text(format: Format, event: WatchEvent) -> Result<String> {
    let revision = event.revision;
    let mut text = String::new();
    let mut add = |value: Value, line: Vec<String>| -> Result<()> {
        match format {
            Format::Table => text.push_str(line.join("  ").trim_end()),
            Format::Json => text.push_str(&serde_json::to_string(&value)?),
            Format::Yaml => {
                text.push_str("---\n");
                text.push_str(serde_yaml_ng::to_string(&value)?.trim_end());
            }
        }
        text.push('\n');
        Ok(())
    };
    let line = |what: &str, kind: &str, rest: Vec<String>| {
        let start = [revision.to_string(), what.to_owned(), kind.to_owned()];
        start.into_iter().chain(rest).collect()
    };
    let is_whole = !event.more;
    for key in event.deletes {
        let value = json!({"revision": revision, "deleted": {"kind": key.kind, "id": key.id}});
        add(value, line("deleted", &key.kind, vec![key.id]))?;
    }
    let objects: Vec<Object> = explode(event.upserts.unwrap_or_default()).collect();
    for object in objects {
        let kind = object.kind().name();
        let put = brief(&collect(std::iter::once(object.clone())))?;
        let value = json!({"revision": revision, "put": put});
        add(value, line("put", kind, row(object)))?;
    }
    if is_whole && format != Format::Table {
        add(json!({"revision": revision}), Vec::new())?;
    }
    Ok(text)
}
