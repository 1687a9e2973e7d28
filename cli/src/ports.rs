//! What can be done with ports: what can be done with any object, and whether packets pass them.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use anyhow::{Result, bail};
use clap::{Args, Subcommand};
use tokio::time::{Instant, timeout_at};
use tonic::{Code, Status, Streaming};
use weft_process::controllers::Controllers;
use weft_process::services::intent_client::IntentClient;
use weft_proto::state::{Kind, Object};
use weft_proto::v1::{
    ListMemberHealthRequest, MemberHealthReply, PortCondition, PortConditions,
    PortConditionsRequest, PortHealth,
};

use crate::balancer::{HealthFlags, or_ok};
use crate::client::Targets;
use crate::edit::edit;
use crate::history::time;
use crate::kinds;
use crate::objects::{Action, Which, get, key, list_ports, say_change};
use crate::output::{Format, Table, print, show};

/// How long to wait before a watch that was cut off is begun again.
const AGAIN: Duration = Duration::from_millis(200);

/// What can be done with ports.
// Made once.
#[allow(clippy::large_enum_variant)]
#[derive(Debug, Subcommand)]
pub(crate) enum PortAction {
    #[command(flatten)]
    Any(Action<kinds::Port>),
    /// Show whether packets pass ports, since when, and why not.
    Status(PortStatus),
    /// Wait until packets pass ports, or do not. Fails when the time is up.
    Wait(Wait),
    /// Say how it is found out whether the appliance at a port lives, or that it is not.
    Check(Check),
    /// Show which appliances live, as was found by health checks.
    Health {
        /// Id of the port [default: all].
        id: Option<String>,
    },
    /// Mark what a port's guest sends with a DSCP, or leave it as it is.
    Dscp(Dscp),
}

/// Flags of `port check`.
#[derive(Debug, Args)]
pub(crate) struct Check {
    /// Id of the port.
    id: String,
    #[command(flatten)]
    check: HealthFlags,
    /// Do not find out: routes take it to live.
    #[arg(
        long,
        conflicts_with = "protocol",
        required_unless_present = "protocol"
    )]
    none: bool,
}

/// Flags of `port dscp`.
#[derive(Debug, Args)]
pub(crate) struct Dscp {
    /// Id of the port.
    id: String,
    /// DSCP, 0 to 63; none: packets keep their own.
    #[arg(value_name = "DSCP|none", value_parser = dscp)]
    dscp: Mark,
}

/// What a port marks with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Mark(Option<u32>);

fn dscp(text: &str) -> Result<Mark, String> {
    match text {
        "none" => Ok(Mark(None)),
        number => match number.parse() {
            Ok(dscp) => Ok(Mark(Some(dscp))),
            Err(_) => Err("a DSCP is a number, 0 to 63, or none".to_owned()),
        },
    }
}

/// Flags of `port status`.
#[derive(Debug, Args)]
pub(crate) struct PortStatus {
    /// Id of the port [default: all].
    #[arg(default_value = "", hide_default_value = true)]
    id: String,
    #[command(flatten)]
    which: Which,
    /// Go on with each change.
    #[arg(long)]
    watch: bool,
}

/// Flags of `port wait`.
#[derive(Debug, Args)]
pub(crate) struct Wait {
    /// Ids of the ports.
    #[arg(required = true)]
    ids: Vec<String>,
    /// Until packets pass.
    #[arg(long, required_unless_present = "down", conflicts_with = "down")]
    up: bool,
    /// Until they do not, as their host says.
    #[arg(long)]
    down: bool,
    /// The most to wait for all of them, such as 500ms, 30s or 2m.
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = duration)]
    timeout: Duration,
}

fn duration(text: &str) -> Result<Duration, String> {
    let units = [("ms", 1), ("s", 1000), ("m", 60_000), ("", 1000)];
    let known = units.into_iter().find_map(|(unit, milliseconds)| {
        let number: u32 = text.strip_suffix(unit)?.parse().ok()?;
        Some(Duration::from_millis(u64::from(number) * milliseconds))
    });
    known.ok_or_else(|| "a time is a number of ms, s or m, such as 30s".to_owned())
}

impl PortAction {
    pub(crate) async fn run(self, targets: &Targets, format: Format) -> Result<()> {
        match self {
            Self::Any(Action::List {
                which,
                show_labels,
                revisions,
            }) if format == Format::Table => {
                list_ports(targets, which, (show_labels, revisions)).await
            }
            Self::Any(action) => action.run(targets, format).await,
            Self::Status(status) => status.run(targets, format).await,
            Self::Wait(wait) => wait.run(targets).await,
            Self::Check(Check { id, check, none: _ }) => {
                let reply = edit(targets, Kind::Port, &id, |object| {
                    if let Object::Port(port) = object {
                        port.health = check.health().map(Box::new);
                    }
                    Ok(())
                });
                say_change(format, &reply.await?)
            }
            Self::Health { id } => list_health(targets, format, id.as_deref()).await,
            Self::Dscp(Dscp { id, dscp }) => {
                let reply = edit(targets, Kind::Port, &id, |object| {
                    if let Object::Port(port) = object {
                        port.dscp = dscp.0;
                    }
                    Ok(())
                });
                say_change(format, &reply.await?)
            }
        }
    }
}

/// What is known by the controllers of an appliance, or of all.
async fn list_health(targets: &Targets, format: Format, id: Option<&str>) -> Result<()> {
    if let Some(id) = id {
        // That there is none is said as for any other question.
        get(&mut targets.intent().await?, key(Kind::Port, id)).await?;
    }
    let mut all: BTreeMap<String, PortHealth> = BTreeMap::new();
    for mut client in targets.each().await? {
        let request = ListMemberHealthRequest::default();
        let reply = match client.list_member_health(request).await {
            Ok(reply) => reply.into_inner(),
            Err(status) if matches!(status.code(), Code::Unimplemented | Code::Unavailable) => {
                continue;
            }
            Err(status) => return Err(status.into()),
        };
        let wanted = reply.port_health.into_iter();
        for health in wanted.filter(|it| id.is_none_or(|id| it.id == id)) {
            let known = all.get(&health.id);
            if known.is_none_or(|known| known.since_ms < health.since_ms) {
                all.insert(health.id.clone(), health);
            }
        }
    }
    let reply = MemberHealthReply {
        member_health: Vec::new(),
        port_health: all.into_values().collect(),
    };
    show(format, &reply, || {
        let mut rows = Table::new(&["PORT", "VPC", "LIVES", "SINCE", "LAST"]);
        for it in &reply.port_health {
            rows.row([
                it.id.clone(),
                it.vpc.clone(),
                if it.up { "yes" } else { "no" }.to_owned(),
                time(it.since_ms),
                or_ok(&it.reason),
            ]);
        }
        rows.text()
    })
}

fn request(id: String, which: Which) -> PortConditionsRequest {
    PortConditionsRequest {
        port: id,
        vpc: which.vpc,
        label_selector: which.labels.join(","),
        field_selector: which.fields.join(","),
        from_revision: 0,
    }
}

/// The cells of a condition.
fn row(condition: &PortCondition) -> [String; 6] {
    let or_dash = |text: &str| if text.is_empty() { "-" } else { text }.to_owned();
    let since = match condition.since_ms {
        0 => String::new(),
        since => time(since),
    };
    [
        condition.port.clone(),
        condition.vpc.clone(),
        or_dash(&condition.host),
        condition.state.clone(),
        or_dash(&since),
        or_dash(&condition.reason),
    ]
}

impl PortStatus {
    async fn run(self, targets: &Targets, format: Format) -> Result<()> {
        if self.watch {
            let mut client = targets.intent().await?;
            let request = request(self.id.clone(), self.which);
            let mut events = client.watch_port_conditions(request).await?.into_inner();
            while let Some(event) = events.message().await? {
                print(&text(format, &event)?)?;
            }
            bail!("the controller has ended the watch");
        }
        let asked = request(self.id.clone(), self.which);
        let all = conditions(&mut targets.each().await?, &asked).await?;
        if !self.id.is_empty() && all.is_empty() {
            bail!("port {} does not exist, or is not selected", self.id);
        }
        show(format, &all, || {
            let mut table = Table::new(&["PORT", "VPC", "HOST", "STATUS", "SINCE", "REASON"]);
            all.iter().for_each(|condition| table.row(row(condition)));
            table.text()
        })
    }
}

/// A line for each port, or the whole event as a document.
fn text(format: Format, event: &PortConditions) -> Result<String> {
    Ok(match format {
        Format::Json => serde_json::to_string(event)? + "\n",
        Format::Yaml => format!("---\n{}", serde_yaml_ng::to_string(event)?),
        Format::Table => {
            let deleted = event.deletes.iter().map(|id| format!("{id}  deleted\n"));
            let put = event
                .ports
                .iter()
                .map(|condition| row(condition).join("  ") + "\n");
            deleted.chain(put).collect()
        }
    })
}

/// What several controllers say of ports, by id: each knows those of the hosts that are attached to it.
async fn conditions(
    clients: &mut [IntentClient<Controllers>],
    asked: &PortConditionsRequest,
) -> Result<Vec<PortCondition>, Status> {
    let mut all: BTreeMap<String, PortCondition> = BTreeMap::new();
    let mut failure = None;
    let mut has_answered = false;
    for client in clients {
        match conditions_of(client, asked.clone()).await {
            Ok(found) => {
                has_answered = true;
                for condition in found {
                    let known = all.remove(&condition.port);
                    all.insert(condition.port.clone(), better(known, condition));
                }
            }
            Err(status) if status.code() == Code::Unavailable => failure = Some(status),
            Err(status) => return Err(status),
        }
    }
    match failure {
        Some(failure) if !has_answered => Err(failure),
        _ => Ok(all.into_values().collect()),
    }
}

async fn conditions_of(
    client: &mut IntentClient<Controllers>,
    asked: PortConditionsRequest,
) -> Result<Vec<PortCondition>, Status> {
    let mut all = Vec::new();
    let mut stream = client.list_port_conditions(asked).await?.into_inner();
    while let Some(part) = stream.message().await? {
        all.extend(part.ports);
    }
    Ok(all)
}

/// Of two conditions of a port the one that is known, or changed last.
fn better(known: Option<PortCondition>, other: PortCondition) -> PortCondition {
    let rank = |condition: &PortCondition| (condition.state != "unknown", condition.since_ms);
    match known {
        Some(known) if rank(&known) >= rank(&other) => known,
        _ => other,
    }
}

/// How a watch for one port ended.
enum End {
    Reached,
    Missing,
    /// The time is up; what the port was like last.
    Late(Option<PortCondition>),
}

impl Wait {
    async fn run(self, targets: &Targets) -> Result<()> {
        let deadline = Instant::now() + self.timeout;
        let wanted = if self.up { "up" } else { "down" };
        let mut clients = targets.each().await?;
        for id in &self.ids {
            let end = match &mut clients[..] {
                [client] => wait(client, id, wanted, deadline).await?,
                clients => ask(clients, id, wanted, deadline).await?,
            };
            match end {
                End::Reached => {}
                End::Missing => bail!("port {id} does not exist"),
                End::Late(last) => {
                    let last = last.unwrap_or_default();
                    let state = match &*last.state {
                        "" => "not known to the controller",
                        state => state,
                    };
                    let reason = match &*last.reason {
                        "" => String::new(),
                        reason => format!(": {reason}"),
                    };
                    let most = self.timeout;
                    bail!("port {id} is {state} after {most:?}, and not {wanted}{reason}");
                }
            }
        }
        Ok(())
    }
}

async fn wait(
    client: &mut IntentClient<Controllers>,
    id: &str,
    wanted: &str,
    deadline: Instant,
) -> Result<End> {
    let mut last = None;
    loop {
        let followed = follow(client, id, wanted, &mut last);
        match timeout_at(deadline, followed).await {
            Err(_) => return Ok(End::Late(last)),
            Ok(Ok(end)) => return Ok(end),
            // It may have been stopped, or killed in mid-stream, and be back before the time is up.
            Ok(Err(status)) if is_passing(&status) => {
                let again = Instant::now() + AGAIN;
                if again >= deadline {
                    return Err(status.into());
                }
                tokio::time::sleep_until(again).await;
            }
            Ok(Err(status)) => return Err(status.into()),
        }
    }
}

/// Whether a call failed for want of a controller, or of one that ended it.
fn is_passing(status: &Status) -> bool {
    use Code::{Cancelled, Internal, Unavailable, Unknown};
    matches!(status.code(), Unavailable | Unknown | Internal | Cancelled)
}

/// Asks several controllers again and again.
async fn ask(
    clients: &mut [IntentClient<Controllers>],
    id: &str,
    wanted: &str,
    deadline: Instant,
) -> Result<End> {
    let asked = request(id.to_owned(), Which::default());
    let mut last = None;
    loop {
        match timeout_at(deadline, conditions(clients, &asked)).await {
            Err(_) => return Ok(End::Late(last)),
            Ok(found) => match found?.pop() {
                None => return Ok(End::Missing),
                Some(condition) if condition.state == wanted => return Ok(End::Reached),
                condition => last = condition,
            },
        }
        let again = Instant::now() + AGAIN;
        if again >= deadline {
            return Ok(End::Late(last));
        }
        tokio::time::sleep_until(again).await;
    }
}

async fn follow(
    client: &mut IntentClient<Controllers>,
    id: &str,
    wanted: &str,
    last: &mut Option<PortCondition>,
) -> Result<End, Status> {
    let request = request(id.to_owned(), Which::default());
    let mut events = client.watch_port_conditions(request).await?.into_inner();
    while let Some(event) = events.message().await? {
        if !event.deletes.is_empty() || (event.anew && event.ports.is_empty()) {
            return Ok(End::Missing);
        }
        for condition in event.ports {
            if condition.state == wanted {
                return Ok(End::Reached);
            }
            *last = Some(condition);
        }
    }
    Err(Status::unavailable("the controller has ended the watch"))
}

/// The conditions of ports that are listed, which come in the same order, from each controller.
pub(crate) struct Conditions(Vec<Source>);

/// What one controller says.
struct Source {
    stream: Streaming<PortConditions>,
    next: VecDeque<PortCondition>,
}

impl Conditions {
    /// Those of some ports, from the controllers that know of any.
    pub(crate) async fn of(targets: &Targets, which: &Which) -> Result<Self> {
        let mut sources = Vec::new();
        for mut client in targets.each().await? {
            let asked = request(String::new(), which.clone());
            match client.list_port_conditions(asked).await {
                Ok(stream) => sources.push(Source {
                    stream: stream.into_inner(),
                    next: VecDeque::new(),
                }),
                Err(status) if matches!(status.code(), Code::Unimplemented | Code::Unavailable) => {
                }
                Err(status) => return Err(status.into()),
            }
        }
        Ok(Self(sources))
    }

    /// The state of a port. Ask in order of the ids.
    pub(crate) async fn state(&mut self, id: &str) -> Result<String> {
        let mut known = None;
        for source in &mut self.0 {
            if let Some(condition) = source.condition(id).await? {
                known = Some(better(known, condition));
            }
        }
        Ok(known.map_or_else(|| "-".to_owned(), |condition| condition.state))
    }
}

impl Source {
    async fn condition(&mut self, id: &str) -> Result<Option<PortCondition>, Status> {
        loop {
            while self.next.front().is_some_and(|next| *next.port < *id) {
                self.next.pop_front();
            }
            if let Some(next) = self.next.front() {
                // One that was made or deleted in between is in one list alone.
                return Ok(Some(next).filter(|next| next.port == id).cloned());
            }
            match self.stream.message().await? {
                Some(part) => self.next.extend(part.ports),
                None => return Ok(None),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_what_two_controllers_say_the_known_and_newer_counts() {
        let condition = |state: &str, since_ms| PortCondition {
            state: state.into(),
            since_ms,
            ..PortCondition::default()
        };
        let [up, down, unknown] =
            [("up", 5), ("down", 7), ("unknown", 9)].map(|(state, since)| condition(state, since));
        assert_eq!(better(None, unknown.clone()), unknown);
        for [a, b, best] in [
            [&up, &unknown, &up],
            [&unknown, &up, &up],
            [&up, &down, &down],
        ] {
            assert_eq!(better(Some(a.clone()), b.clone()), *best);
        }
    }

    #[test]
    fn times_have_units() {
        for (text, milliseconds) in [
            ("500ms", 500),
            ("30s", 30_000),
            ("2m", 120_000),
            ("7", 7000),
        ] {
            assert_eq!(duration(text), Ok(Duration::from_millis(milliseconds)));
        }
        for text in ["", "s", "-1s", "1h", "1.5s", "99999999999s"] {
            assert!(duration(text).is_err(), "{text}");
        }
    }
}
