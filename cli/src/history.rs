//! What changed when and by whom: `weftctl history`, `diff` and `undo`.

use anyhow::{Result, bail};
use clap::Args;
use serde_json::Value;
use weft_process::controllers::Controllers;
use weft_process::services::intent_client::IntentClient;
use weft_proto::state::{Key, Kind};
use weft_proto::v1::{
    ChangeRecord, HistoryReply, HistoryRequest, ObjectChange, ObjectForm, ObjectKey, UndoRequest,
};

use crate::Usage;
use crate::client::Targets;
use crate::objects::say_change;
use crate::output::{Format, Table, brief, difference, print, show};

/// Changes that are listed when nobody says how many.
const LISTED: u32 = 20;

/// Objects that are named in a line of the list.
const NAMED: usize = 4;

/// The most changes that are asked for at a time.
const STEP: u32 = 1000;

/// Flags of `history`.
#[derive(Debug, Args)]
pub(crate) struct History {
    /// Only changes of objects of this kind.
    kind: Option<String>,
    /// Only changes of this object.
    id: Option<String>,
    /// Only changes of objects of this VPC.
    #[arg(long, default_value = "", hide_default_value = true)]
    vpc: String,
    /// All changes after this revision [default: the newest 20].
    #[arg(long, value_name = "REVISION")]
    since: Option<u64>,
    /// The most changes to list.
    #[arg(long, value_name = "NUMBER")]
    limit: Option<u32>,
}

/// Flags of `diff`.
#[derive(Debug, Args)]
pub(crate) struct Diff {
    /// What the change to this revision did; with a second one: what changed after this revision.
    revision: u64,
    /// Up to this revision.
    to: Option<u64>,
}

/// Flags of `undo`.
#[derive(Debug, Args)]
pub(crate) struct Undo {
    /// The revision that the change led to.
    revision: u64,
    /// Print what would change, and change nothing.
    #[arg(long)]
    dry_run: bool,
}

/// The kind of that name, as objects or commands are called.
///
/// # Errors
/// There is none.
pub(crate) fn kind(name: &str) -> Result<Kind> {
    let full = match name {
        "sg" => "security_group",
        "acl" => "network_acl",
        name => &name.replace('-', "_"),
    };
    let names = || Kind::ALL.map(Kind::name).join(", ");
    let unknown = || Usage(format!("'{name}' is not one of {}", names()));
    Ok(Kind::from_name(full).ok_or_else(unknown)?)
}

impl History {
    pub(crate) async fn run(self, targets: &Targets, format: Format) -> Result<()> {
        let kind = self.kind.as_deref().map(kind).transpose()?;
        let object = kind.map(|kind| ObjectKey {
            kind: kind.name().to_owned(),
            id: self.id.unwrap_or_default(),
        });
        let all = self.since.map_or(LISTED, |_| u32::MAX);
        let request = HistoryRequest {
            object,
            vpc: self.vpc,
            after: self.since.unwrap_or_default(),
            limit: self.limit.unwrap_or(all),
            ..HistoryRequest::default()
        };
        let mut client = targets.intent().await?;
        let reply = read(&mut client, request).await?;
        if let Some(since) = self.since
            && reply.oldest > since.saturating_add(1)
        {
            let oldest = reply.oldest;
            eprintln!("weftctl: the history begins at revision {oldest}");
        }
        show(format, &brief(&reply.changes)?, || {
            let mut table = Table::new(&["REVISION", "TIME", "CALLER", "METHOD", "CHANGED"]);
            for change in &reply.changes {
                table.row([
                    change.revision.to_string(),
                    time(change.time_ms),
                    change.caller.clone(),
                    change.method.clone(),
                    changed(change),
                ]);
            }
            table.text()
        })
    }
}

/// The changes that a request asks for, however many answers they take.
async fn read(
    client: &mut IntentClient<Controllers>,
    mut request: HistoryRequest,
) -> Result<HistoryReply> {
    let wanted = usize::try_from(request.limit)?;
    let mut all = HistoryReply::default();
    loop {
        let left = wanted.saturating_sub(all.changes.len());
        request.limit = u32::try_from(left).unwrap_or(u32::MAX).min(STEP);
        if request.limit == 0 {
            return Ok(all);
        }
        let reply = client.history(request.clone()).await?.into_inner();
        all.changes.extend(reply.changes);
        all.oldest = reply.oldest;
        all.revision = reply.revision;
        request.before = reply.next_before;
        if request.before == 0 {
            return Ok(all);
        }
    }
}

/// Which objects a change created (+), changed (~) and deleted (-), as far as a line is long.
fn changed(change: &ChangeRecord) -> String {
    let name = |object: &ObjectChange| {
        let sign = match (&object.before, &object.after) {
            (None, _) => '+',
            (_, None) => '-',
            _ => '~',
        };
        let key = object.object.clone().unwrap_or_default();
        format!("{sign}{} {}", key.kind, key.id)
    };
    let mut names: Vec<String> = change.objects.iter().take(NAMED).map(name).collect();
    let count = usize::try_from(change.count).unwrap_or(usize::MAX);
    if count > names.len() {
        names.push(format!("and {} more", count - names.len()));
    }
    names.join(", ")
}

/// A time as RFC 3339 has it, in UTC and whole seconds.
pub(crate) fn time(ms: u64) -> String {
    let seconds = ms / 1000;
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    // Days since 0000-03-01, in eras of 400 years (H. Hinnant, "chrono-Compatible Low-Level Date Algorithms").
    let days = days + 719_468;
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let (year, month) = match month {
        0..10 => (year + era * 400, month + 3),
        _ => (year + era * 400 + 1, month - 9),
    };
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

/// An object before and after, as people write it.
struct Changed {
    key: ObjectKey,
    before: Option<Value>,
    after: Option<Value>,
}

impl Diff {
    pub(crate) async fn run(self, targets: &Targets, format: Format) -> Result<()> {
        let (after, last) = match self.to {
            Some(to) => (self.revision, to),
            None => (self.revision.saturating_sub(1), self.revision),
        };
        if after >= last {
            bail!(Usage(
                "the second revision is to be later than the first".to_owned()
            ));
        }
        let mut client = targets.intent().await?;
        let request = HistoryRequest {
            after,
            before: last.saturating_add(1),
            limit: u32::MAX,
            forms: true,
            ..HistoryRequest::default()
        };
        let reply = read(&mut client, request).await?;
        if last > reply.revision {
            bail!("the intent is at revision {}", reply.revision);
        }
        if reply.oldest == 0 || reply.oldest > after + 1 {
            let first = match reply.oldest {
                0 => "no change is kept".to_owned(),
                oldest => format!("the oldest that is kept is {oldest}"),
            };
            bail!("not all changes up to revision {last} are kept: {first}");
        }
        for change in reply.changes.iter().filter(|change| change.keys_only) {
            let (revision, names) = (change.revision, changed(change));
            eprintln!("weftctl: revision {revision} changed too much to be kept whole: {names}");
        }
        let changed = summed(reply.changes)?;
        if format != Format::Table {
            let list: Vec<Value> = changed.iter().map(Changed::value).collect();
            return show(format, &list, String::new);
        }
        let texts: Result<Vec<String>> = changed.iter().map(Changed::text).collect();
        print(&texts?.concat())
    }
}

/// What several changes, the newest first, did together.
fn summed(changes: Vec<ChangeRecord>) -> Result<Vec<Changed>> {
    let mut all: std::collections::BTreeMap<Key, Changed> = std::collections::BTreeMap::new();
    let form = |form: Option<ObjectForm>| -> Result<Option<Value>> {
        let Some(objects) = form.and_then(|form| form.object) else {
            return Ok(None);
        };
        let lists = brief(&objects)?;
        // One list, of one object.
        let lists = lists.as_object().and_then(|lists| lists.values().next());
        Ok(lists.and_then(|list| list.get(0)).cloned())
    };
    let kept = changes.into_iter().filter(|change| !change.keys_only);
    for object in kept.flat_map(|change| change.objects) {
        let key = object.object.unwrap_or_default();
        let (before, after) = (form(object.before)?, form(object.after)?);
        match all.entry(Key::from_wire(&key)?) {
            std::collections::btree_map::Entry::Vacant(entry) => {
                entry.insert(Changed { key, before, after });
            }
            // An earlier change of it.
            std::collections::btree_map::Entry::Occupied(mut entry) => {
                entry.get_mut().before = before;
            }
        }
    }
    let all = all.into_values();
    Ok(all.filter(|it| it.before != it.after).collect())
}

impl Changed {
    fn value(&self) -> Value {
        let mut value = serde_json::json!({"kind": self.key.kind, "id": self.key.id});
        for (name, form) in [("before", &self.before), ("after", &self.after)] {
            if let Some(form) = form {
                value[name] = form.clone();
            }
        }
        value
    }

    /// A heading, and a line for each field that differs.
    fn text(&self) -> Result<String> {
        let name = format!("{} {}", self.key.kind, self.key.id);
        let (sign, form) = match (&self.before, &self.after) {
            (Some(before), Some(after)) => {
                return Ok(format!("{name}\n{}", difference(before, after)?));
            }
            (None, Some(after)) => ('+', after),
            (Some(before), None) => ('-', before),
            (None, None) => return Ok(String::new()),
        };
        let mut text = format!("{sign} {name}\n");
        for line in serde_yaml_ng::to_string(form)?.lines() {
            text.push_str(&format!("{sign}   {line}\n"));
        }
        Ok(text)
    }
}

impl Undo {
    pub(crate) async fn run(self, targets: &Targets, format: Format) -> Result<()> {
        let request = UndoRequest {
            revision: self.revision,
            dry_run: self.dry_run,
        };
        let mut client = targets.intent().await?;
        let reply = client.undo(request).await?.into_inner();
        say_change(format, &reply)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_those_of_the_calendar() {
        for (seconds, expected) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_399, "2000-02-28T23:59:59Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (1_735_689_599, "2024-12-31T23:59:59Z"),
            (1_740_787_200, "2025-03-01T00:00:00Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
        ] {
            assert_eq!(time(seconds * 1000), expected);
        }
    }

    #[test]
    fn kinds_are_named_as_objects_or_commands_are() {
        assert_eq!(kind("sg").unwrap(), Kind::SecurityGroup);
        assert_eq!(kind("route-table").unwrap(), Kind::RouteTable);
        assert_eq!(kind("elastic_ip").unwrap(), Kind::ElasticIp);
        assert!(kind("ports").is_err());
    }
}
