//! What can be done with load balancers: what can be done with any object, and changes of one listener or member.

use std::collections::BTreeMap;
use std::net::IpAddr;

use anyhow::{Result, bail};
use clap::{Args, Subcommand};
use tonic::Code;
use weft_proto::state::{Kind, Object};
use weft_proto::v1::{self, ChangeReply};

use crate::Usage;
use crate::client::Targets;
use crate::edit::edit;
use crate::external::split_target;
use crate::history::time;
use crate::kinds::{Flags, InVpc};
use crate::objects::{Action, get, key, one_or_all, say_change};
use crate::output::{Format, Table, brief, show};
use crate::rules::Range;

/// Flags of `load-balancer create`.
#[derive(Debug, Args)]
pub(crate) struct LoadBalancer {
    #[command(flatten)]
    place: InVpc,
    /// Address that clients connect to, in a subnet of the VPC; at most one of IPv4 and one of IPv6.
    #[arg(long = "address", required_unless_present = "file")]
    addresses: Vec<String>,
}

impl Flags for LoadBalancer {
    const KIND: Kind = Kind::LoadBalancer;

    fn object(self, id: String) -> Object {
        Object::LoadBalancer(v1::LoadBalancer {
            id,
            vpc: self.place.vpc,
            addresses: self.addresses,
            ..v1::LoadBalancer::default()
        })
    }
}

/// What can be done with load balancers.
#[derive(Debug, Subcommand)]
pub(crate) enum BalancerAction {
    #[command(flatten)]
    Any(Action<LoadBalancer>),
    /// List, add and remove listeners: the ports that a load balancer serves.
    #[command(subcommand)]
    Listener(ListenerAction),
    /// List, add, drain and remove members of a listener.
    #[command(subcommand)]
    Member(MemberAction),
    /// Show whether members serve, as the hosts of their ports have found out by health checks.
    Health {
        /// Id of the load balancer; of all that there are if it is not given.
        balancer: Option<String>,
    },
}

/// What can be done with listeners.
#[derive(Debug, Subcommand)]
pub(crate) enum ListenerAction {
    /// List the listeners of a load balancer, or of every load balancer.
    List {
        /// Id of the load balancer.
        balancer: Option<String>,
    },
    /// Add a listener.
    Add {
        #[command(flatten)]
        at: At,
        /// Member, a port of the VPC or an address of one, with the port that the listener's first one becomes; repeat for several.
        #[arg(long = "to", value_name = "PORT|ADDRESS[:PORT]")]
        members: Vec<Target>,
        /// How members are chosen: maglev (by a hash of the flow, every host alike), round-robin, or least-connections (who has the fewest sessions) [default: maglev].
        #[arg(long, default_value = "", hide_default_value = true)]
        algorithm: String,
        /// What the hash is of: five-tuple, or source (all flows of a client go to one member) [default: five-tuple].
        #[arg(long, default_value = "", hide_default_value = true)]
        affinity: String,
        /// How members get what is sent to them: nat (with their own address and port), or dsr (as the client sent it; they have the load balancer's address besides their own, and answer with it) [default: nat].
        #[arg(long, default_value = "", hide_default_value = true)]
        mode: String,
        /// Drop what is for a member that is there no more, in place of a TCP reset to the client.
        #[arg(long)]
        drop_lost: bool,
        #[command(flatten)]
        check: HealthFlags,
    },
    /// Say how it is found out whether the members of a listener serve, or that it is not.
    Check {
        #[command(flatten)]
        at: At,
        #[command(flatten)]
        check: HealthFlags,
        /// Do not find out: all members serve.
        #[arg(
            long,
            conflicts_with = "protocol",
            required_unless_present = "protocol"
        )]
        none: bool,
    },
    /// Remove a listener with its members.
    #[command(visible_alias = "delete")]
    Remove {
        #[command(flatten)]
        at: At,
    },
}

/// How it is found out whether members serve.
#[derive(Debug, Clone, Args)]
pub(crate) struct HealthFlags {
    /// Ask members, or the appliance at a port, whether they serve: by a connection (tcp), a GET (http), an echo (icmp) or a datagram (udp).
    #[arg(long = "check", value_name = "tcp|http|icmp|udp")]
    protocol: Option<String>,
    /// Port to ask at [default for members: the one that the listener's first port becomes].
    #[arg(
        long = "check-port",
        value_name = "PORT",
        requires = "protocol",
        default_value_t = 0,
        hide_default_value = true
    )]
    port: u32,
    /// Milliseconds from one question to the next, 200 to 300000 [default: 5000].
    #[arg(
        long = "check-interval",
        value_name = "MS",
        requires = "protocol",
        default_value_t = 0,
        hide_default_value = true
    )]
    interval_ms: u32,
    /// Milliseconds that an answer may take, 50 to 10000 and up to the interval [default: 2000, or the interval if that is less].
    #[arg(
        long = "check-timeout",
        value_name = "MS",
        requires = "protocol",
        default_value_t = 0,
        hide_default_value = true
    )]
    timeout_ms: u32,
    /// Answers in a row that make a member serve again, 1 to 10 [default: 2].
    #[arg(
        long = "check-rise",
        value_name = "TIMES",
        requires = "protocol",
        default_value_t = 0,
        hide_default_value = true
    )]
    rise: u32,
    /// Failures in a row that make it serve no more, 1 to 10 [default: 2].
    #[arg(
        long = "check-fall",
        value_name = "TIMES",
        requires = "protocol",
        default_value_t = 0,
        hide_default_value = true
    )]
    fall: u32,
    /// Path to ask for by http [default: /].
    #[arg(
        long = "check-path",
        value_name = "PATH",
        requires = "protocol",
        default_value = "",
        hide_default_value = true
    )]
    path: String,
    /// Host to ask for by http [default: the member's address].
    #[arg(
        long = "check-host",
        value_name = "HOST",
        requires = "protocol",
        default_value = "",
        hide_default_value = true
    )]
    check_host: String,
    /// HTTP codes that are right, such as 200,301-308 [default: 200-399]; by udp, what the answer begins with [default: whatever there is, or nothing].
    #[arg(
        long = "check-expect",
        value_name = "CODES|TEXT",
        requires = "protocol",
        default_value = "",
        hide_default_value = true
    )]
    expected: String,
    /// What to send by udp [default: nothing].
    #[arg(
        long = "check-send",
        value_name = "TEXT",
        requires = "protocol",
        default_value = "",
        hide_default_value = true
    )]
    payload: String,
}

impl HealthFlags {
    /// None if there is to be no health check.
    pub(crate) fn health(&self) -> Option<v1::HealthCheck> {
        Some(v1::HealthCheck {
            protocol: self.protocol.clone()?,
            port: self.port,
            interval_ms: self.interval_ms,
            timeout_ms: self.timeout_ms,
            rise: self.rise,
            fall: self.fall,
            path: self.path.clone(),
            host: self.check_host.clone(),
            expected: self.expected.clone(),
            payload: self.payload.clone(),
        })
    }
}

/// What can be done with members.
#[derive(Debug, Subcommand)]
pub(crate) enum MemberAction {
    /// List the members of a load balancer, or of every load balancer.
    List {
        /// Id of the load balancer.
        balancer: Option<String>,
    },
    /// Add a member, or replace the same one.
    Add {
        #[command(flatten)]
        at: At,
        #[command(flatten)]
        who: Who,
        /// Share of flows, 1 to 256 [default: 1].
        #[arg(long, default_value_t = 0, hide_default_value = true)]
        weight: u32,
    },
    /// Remove a member: its connections end.
    #[command(visible_alias = "delete")]
    Remove {
        #[command(flatten)]
        at: At,
        #[command(flatten)]
        who: Who,
    },
    /// Give a member no new flows; it keeps those that it has.
    Drain {
        #[command(flatten)]
        at: At,
        #[command(flatten)]
        who: Who,
    },
    /// Give a member new flows again.
    Undrain {
        #[command(flatten)]
        at: At,
        #[command(flatten)]
        who: Who,
    },
}

/// Which listener of which load balancer.
#[derive(Debug, Args)]
pub(crate) struct At {
    /// Id of the load balancer.
    balancer: String,
    /// Protocol and port, or range of ports, of the listener, such as tcp:80.
    #[arg(value_name = "PROTOCOL:PORT[-PORT]")]
    listener: ListenerName,
}

/// Which member of a listener.
#[derive(Debug, Args)]
pub(crate) struct Who {
    /// Port of the VPC or address of one, and the port that the listener's first one becomes [default: the same]; an IPv6 address before a port in brackets.
    #[arg(value_name = "PORT|ADDRESS[:PORT]")]
    target: Target,
}

/// A listener as it is written on the command line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ListenerName {
    protocol: String,
    ports: (u32, u32),
}

impl std::str::FromStr for ListenerName {
    type Err = Usage;

    fn from_str(text: &str) -> Result<Self, Usage> {
        let (protocol, ports) = text
            .split_once(':')
            .ok_or_else(|| Usage(format!("'{text}' is not PROTOCOL:PORT[-PORT]")))?;
        Ok(Self {
            protocol: protocol.to_owned(),
            ports: ports.parse::<Range>()?.bounds(),
        })
    }
}

impl ListenerName {
    fn of(listener: &v1::Listener) -> Self {
        Self {
            protocol: listener.protocol.clone(),
            ports: listener.ports(),
        }
    }

    /// The listener of that name, in a load balancer that has it.
    fn find<'a>(&self, balancer: &'a mut v1::LoadBalancer) -> Result<&'a mut v1::Listener> {
        match self.place(balancer) {
            Some(place) => Ok(&mut balancer.listeners[place]),
            None => bail!(
                "load_balancer {id} has no listener {self}; `weftctl lb listener list {id}` lists them",
                id = balancer.id
            ),
        }
    }

    fn place(&self, balancer: &v1::LoadBalancer) -> Option<usize> {
        let mut listeners = balancer.listeners.iter();
        listeners.position(|listener| Self::of(listener) == *self)
    }
}

impl std::fmt::Display for ListenerName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.ports {
            (first, last) if first == last => write!(f, "{}:{first}", self.protocol),
            (first, last) => write!(f, "{}:{first}-{last}", self.protocol),
        }
    }
}

/// A member as it is written on the command line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Target {
    port: String,
    address: String,
    to_port_min: u32,
}

impl std::str::FromStr for Target {
    type Err = Usage;

    fn from_str(text: &str) -> Result<Self, Usage> {
        let (target, to) = split_target(text)
            .ok_or_else(|| Usage(format!("'{text}' is not PORT|ADDRESS[:PORT]")))?;
        let number = |text: &str| {
            text.parse()
                .map_err(|_| Usage(format!("'{text}' is not a port number")))
        };
        let (port, address) = match target.parse::<IpAddr>() {
            Ok(address) => (String::new(), address.to_string()),
            Err(_) => (target.to_owned(), String::new()),
        };
        Ok(Self {
            port,
            address,
            to_port_min: to.map_or(Ok(0), number)?,
        })
    }
}

impl Target {
    fn of(member: &v1::Member) -> Self {
        let address = match member.address.parse::<IpAddr>() {
            Ok(address) => address.to_string(),
            Err(_) => member.address.clone(),
        };
        Self {
            port: member.port.clone(),
            address,
            to_port_min: member.to_port_min,
        }
    }

    fn member(&self, weight: u32) -> v1::Member {
        v1::Member {
            port: self.port.clone(),
            address: self.address.clone(),
            to_port_min: self.to_port_min,
            weight,
            draining: false,
        }
    }

    /// The members of a listener that it names; without a port, whatever theirs is.
    fn places(&self, listener: &v1::Listener) -> Vec<usize> {
        let is_named = |member: &v1::Member| {
            let own = Self::of(member);
            let is_at = self.to_port_min == 0 || listener.first_port_at(member) == self.to_port_min;
            (own.port, own.address) == (self.port.clone(), self.address.clone()) && is_at
        };
        let members = listener.members.iter().enumerate();
        let named = members.filter(|(_, member)| is_named(member));
        named.map(|(place, _)| place).collect()
    }

    /// The only one that it names.
    fn find(&self, balancer: &str, name: &ListenerName, listener: &v1::Listener) -> Result<usize> {
        match self.places(listener)[..] {
            [place] => Ok(place),
            [] => bail!(
                "listener {name} of load_balancer {balancer} has no member {self}; `weftctl lb member list {balancer}` lists them"
            ),
            _ => bail!(
                "listener {name} of load_balancer {balancer} has {self} at several ports: say at which, as {self}:PORT"
            ),
        }
    }
}

impl std::fmt::Display for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let is_ipv6 = self.address.contains(':');
        match (&*self.port, self.to_port_min) {
            ("", 0) => write!(f, "{}", self.address),
            ("", to) if is_ipv6 => write!(f, "[{}]:{to}", self.address),
            ("", to) => write!(f, "{}:{to}", self.address),
            (port, 0) => write!(f, "{port}"),
            (port, to) => write!(f, "{port}:{to}"),
        }
    }
}

impl BalancerAction {
    pub(crate) async fn run(self, targets: &Targets, format: Format) -> Result<()> {
        match self {
            Self::Any(action) => action.run(targets, format).await,
            Self::Listener(action) => action.run(targets, format).await,
            Self::Member(action) => action.run(targets, format).await,
            Self::Health { balancer } => list_health(targets, format, balancer).await,
        }
    }
}

impl ListenerAction {
    async fn run(self, targets: &Targets, format: Format) -> Result<()> {
        let reply = match self {
            Self::List { balancer } => return list_listeners(targets, format, balancer).await,
            Self::Add {
                at: At { balancer, listener },
                members,
                algorithm,
                affinity,
                mode,
                drop_lost,
                check,
            } => {
                let (port_min, last) = listener.ports;
                let new = v1::Listener {
                    protocol: listener.protocol.clone(),
                    port_min,
                    port_max: if last == port_min { 0 } else { last },
                    algorithm,
                    affinity,
                    members: members.iter().map(|target| target.member(0)).collect(),
                    drop_lost,
                    health: check.health(),
                    mode,
                };
                edit_balancer(targets, &balancer, |it| {
                    if listener.place(it).is_some() {
                        bail!("load_balancer {balancer} already has a listener {listener}");
                    }
                    it.listeners.push(new.clone());
                    Ok(())
                })
                .await?
            }
            Self::Check {
                at: At { balancer, listener },
                check,
                none: _,
            } => {
                edit_balancer(targets, &balancer, |it| {
                    listener.find(it)?.health = check.health();
                    Ok(())
                })
                .await?
            }
            Self::Remove {
                at: At { balancer, listener },
            } => {
                edit_balancer(targets, &balancer, |it| {
                    listener.find(it)?;
                    it.listeners
                        .retain(|other| ListenerName::of(other) != listener);
                    Ok(())
                })
                .await?
            }
        };
        say_change(format, &reply)
    }
}

impl MemberAction {
    async fn run(self, targets: &Targets, format: Format) -> Result<()> {
        let reply = match self {
            Self::List { balancer } => return list_members(targets, format, balancer).await,
            Self::Add { at, who, weight } => {
                let new = who.target.member(weight);
                edit_balancer(targets, &at.balancer, |it| {
                    let listener = at.listener.find(it)?;
                    let first = listener.first_port_at(&new);
                    let is_same = |place: &usize| {
                        let member = &listener.members[*place];
                        listener.first_port_at(member) == first
                    };
                    let same = who.target.places(listener).into_iter().find(is_same);
                    match same {
                        Some(place) => listener.members[place] = new.clone(),
                        None => listener.members.push(new.clone()),
                    }
                    Ok(())
                })
                .await?
            }
            Self::Remove { at, who } => {
                edit_balancer(targets, &at.balancer, |it| {
                    let listener = at.listener.find(it)?;
                    let place = who.target.find(&at.balancer, &at.listener, listener)?;
                    listener.members.remove(place);
                    Ok(())
                })
                .await?
            }
            Self::Drain { at, who } => set_draining(targets, &at, &who, true).await?,
            Self::Undrain { at, who } => set_draining(targets, &at, &who, false).await?,
        };
        say_change(format, &reply)
    }
}

async fn set_draining(
    targets: &Targets,
    at: &At,
    who: &Who,
    draining: bool,
) -> Result<ChangeReply> {
    edit_balancer(targets, &at.balancer, |it| {
        let listener = at.listener.find(it)?;
        let place = who.target.find(&at.balancer, &at.listener, listener)?;
        listener.members[place].draining = draining;
        Ok(())
    })
    .await
}

async fn edit_balancer(
    targets: &Targets,
    id: &str,
    change: impl Fn(&mut v1::LoadBalancer) -> Result<()>,
) -> Result<ChangeReply> {
    edit(targets, Kind::LoadBalancer, id, |object| match object {
        Object::LoadBalancer(balancer) => change(balancer),
        other => bail!("{} is no load_balancer", other.key()),
    })
    .await
}

async fn list_listeners(targets: &Targets, format: Format, id: Option<String>) -> Result<()> {
    let all = one_or_all(targets, Kind::LoadBalancer, id).await?;
    show(format, &brief(&all)?, || {
        let mut rows = Table::new(&[
            "LOAD-BALANCER",
            "LISTENER",
            "MODE",
            "ALGORITHM",
            "AFFINITY",
            "LOST",
            "CHECK",
            "MEMBERS",
        ]);
        let or =
            |text: &str, default: &str| if text.is_empty() { default } else { text }.to_owned();
        for balancer in &all.load_balancers {
            for listener in &balancer.listeners {
                let affinity = match &*listener.algorithm {
                    "round-robin" | "least-connections" => "-",
                    _ => "five-tuple",
                };
                rows.row([
                    balancer.id.clone(),
                    ListenerName::of(listener).to_string(),
                    or(&listener.mode, "nat"),
                    or(&listener.algorithm, "maglev"),
                    or(&listener.affinity, affinity),
                    if listener.drop_lost { "drop" } else { "reset" }.to_owned(),
                    listener
                        .health
                        .as_ref()
                        .map_or_else(|| "-".to_owned(), |check| check.protocol.clone()),
                    listener.members.len().to_string(),
                ]);
            }
        }
        rows.text()
    })
}

async fn list_members(targets: &Targets, format: Format, id: Option<String>) -> Result<()> {
    let all = one_or_all(targets, Kind::LoadBalancer, id).await?;
    show(format, &brief(&all)?, || {
        let mut rows = Table::new(&["LOAD-BALANCER", "LISTENER", "MEMBER", "WEIGHT", "DRAINING"]);
        for balancer in &all.load_balancers {
            for listener in &balancer.listeners {
                for member in &listener.members {
                    rows.row([
                        balancer.id.clone(),
                        ListenerName::of(listener).to_string(),
                        Target::of(member).to_string(),
                        member.share().to_string(),
                        if member.draining { "yes" } else { "no" }.to_owned(),
                    ]);
                }
            }
        }
        rows.text()
    })
}

/// What is known by the controllers of the members of a load balancer, or of all.
async fn list_health(targets: &Targets, format: Format, id: Option<String>) -> Result<()> {
    if let Some(id) = &id {
        // That there is none is said as for any other question.
        get(&mut targets.intent().await?, key(Kind::LoadBalancer, id)).await?;
    }
    let request = v1::ListMemberHealthRequest {
        load_balancer: id.unwrap_or_default(),
    };
    let mut all: BTreeMap<String, v1::MemberHealth> = BTreeMap::new();
    for mut client in targets.each().await? {
        let reply = match client.list_member_health(request.clone()).await {
            Ok(reply) => reply.into_inner(),
            Err(status) if matches!(status.code(), Code::Unimplemented | Code::Unavailable) => {
                continue;
            }
            Err(status) => return Err(status.into()),
        };
        for health in reply.member_health {
            let known = all.get(&health.id);
            if known.is_none_or(|known| known.since_ms < health.since_ms) {
                all.insert(health.id.clone(), health);
            }
        }
    }
    let reply = v1::MemberHealthReply {
        member_health: all.into_values().collect(),
        port_health: Vec::new(),
    };
    show(format, &reply, || {
        let mut rows = Table::new(&[
            "LOAD-BALANCER",
            "LISTENER",
            "MEMBER",
            "SERVES",
            "SINCE",
            "LAST",
        ]);
        for it in &reply.member_health {
            let member = Target {
                port: String::new(),
                address: it.address.clone(),
                to_port_min: it.member_port,
            };
            rows.row([
                it.load_balancer.clone(),
                format!("{}:{}", it.protocol, it.port),
                member.to_string(),
                if it.up { "yes" } else { "no" }.to_owned(),
                time(it.since_ms),
                or_ok(&it.reason),
            ]);
        }
        rows.text()
    })
}

pub(crate) fn or_ok(reason: &str) -> String {
    if reason.is_empty() { "ok" } else { reason }.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn listeners_and_members_read_as_they_are_written() {
        for text in ["tcp:80", "udp:5000-5099"] {
            assert_eq!(text.parse::<ListenerName>().unwrap().to_string(), text);
        }
        for text in ["tcp", "80", "tcp:", "tcp:a", "tcp:80-"] {
            assert!(text.parse::<ListenerName>().is_err(), "{text}");
        }
        for text in [
            "web-1",
            "web-1:8080",
            "10.0.0.5",
            "10.0.0.5:8080",
            "fd00::5",
            "[fd00::5]:8080",
        ] {
            assert_eq!(text.parse::<Target>().unwrap().to_string(), text);
        }
        let long = "FD00:0::5".parse::<Target>().unwrap();
        assert_eq!(long, "fd00::5".parse().unwrap());
        for text in ["", "web-1:x", "web-1:", "[fd00::5"] {
            assert!(text.parse::<Target>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_member_without_a_port_is_any_of_that_name() {
        let listener = v1::Listener {
            port_min: 80,
            members: ["web-1", "web-1:81", "10.0.0.5"]
                .map(|text| text.parse::<Target>().unwrap().member(0))
                .into(),
            ..v1::Listener::default()
        };
        let places = |text: &str| text.parse::<Target>().unwrap().places(&listener);
        assert_eq!(places("web-1"), [0, 1]);
        assert_eq!(places("web-1:80"), [0]);
        assert_eq!(places("web-1:81"), [1]);
        assert_eq!(places("10.0.0.5:80"), [2]);
        assert_eq!(places("web-2"), [] as [usize; 0]);
    }
}
