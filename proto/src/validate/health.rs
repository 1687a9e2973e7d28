//! Health checks of load balancer members and of appliances, and what hosts find by them.

use super::{At, Index, Report, Scope, check_reference, is_domain, wire};
use crate::address::parse_address;
use crate::state::Kind;
use crate::v1::{HealthCheck, Listener, MemberHealth, Port, PortHealth};

const MAX_PORT: u32 = 65535;
/// The times between two questions, in milliseconds.
const INTERVALS: (u32, u32) = (200, 300_000);
/// The shortest and the longest time that an answer may take, in milliseconds.
const SHORTEST_TIMEOUT: u32 = 50;
const LONGEST_TIMEOUT: u32 = 10_000;
/// The highest `rise` and `fall`.
const MOST_TIMES: u32 = 10;
/// Bytes of a path, and of what is sent and expected.
const PATH: usize = 1024;
const TEXT: usize = 256;

/// The health check of a listener.
pub(super) fn check_listener(at: At<'_>, i: usize, listener: &Listener, report: &mut Report) {
    if let Some(health) = &listener.health {
        check_question(at, &format!("listeners[{i}].health"), health, report);
    }
}

/// The health check of a port. Unlike a listener it has no port number of its own. The port's host asks, from the gateway's address: a weftd, and a gateway of weft's.
pub(super) fn check_port(
    at: At<'_>,
    port: &Port,
    (index, scope): (&Index<'_>, Scope<'_>),
    report: &mut Report,
) {
    let Some(health) = &port.health else {
        return;
    };
    if scope == Scope::Intent {
        wire::check_tunnelled(at, ("health", &port.vpc), index, report);
        if index.host(&port.host).is_some_and(|host| host.foreign) {
            let rule = format!("host '{}' is foreign: no weftd there asks", port.host);
            report.add(at, "health", rule);
        }
    }
    check_question(at, "health", health, report);
    if matches!(&*health.protocol, "tcp" | "http" | "udp") && health.port == 0 {
        let rule = format!("give the port that is asked by {}", health.protocol);
        report.add(at, "health.port", rule);
    }
    if port.addresses.is_empty() {
        report.add(at, "health", "a port that is asked has an address");
    }
}

fn check_question(at: At<'_>, field: &str, health: &HealthCheck, report: &mut Report) {
    let mut refuse = |name: &str, rule: String| {
        report.add(at, format!("{field}.{name}"), rule);
    };
    let protocol = health.protocol.as_str();
    if !matches!(protocol, "tcp" | "http" | "icmp" | "udp") {
        refuse(
            "protocol",
            format!("'{protocol}' is none of tcp, http, icmp and udp"),
        );
        return;
    }
    if health.port > MAX_PORT {
        refuse(
            "port",
            format!("{} is outside 1 to {MAX_PORT}", health.port),
        );
    }
    if protocol == "icmp" && health.port != 0 {
        refuse("port", "an echo goes to no port".to_owned());
    }
    let (shortest, longest) = INTERVALS;
    let interval = health.interval_or_default();
    if !(shortest..=longest).contains(&interval) {
        refuse(
            "interval_ms",
            format!("{interval} is outside {shortest} to {longest}"),
        );
    }
    let (timeout, longest) = (health.timeout_ms, interval.min(LONGEST_TIMEOUT));
    if timeout != 0 && !(SHORTEST_TIMEOUT..=longest).contains(&timeout) {
        refuse(
            "timeout_ms",
            format!("{timeout} is outside {SHORTEST_TIMEOUT} to {longest}, and up to the interval"),
        );
    }
    for (name, times) in [("rise", health.rise), ("fall", health.fall)] {
        if times > MOST_TIMES {
            refuse(name, format!("{times} is outside 1 to {MOST_TIMES}"));
        }
    }
    check_texts(protocol, health, refuse);
}

fn check_texts(protocol: &str, health: &HealthCheck, mut refuse: impl FnMut(&str, String)) {
    let only = |name: &str| format!("is for {name} alone");
    let path = &health.path;
    if protocol == "http" {
        let is_path = path.starts_with('/') && path.bytes().all(|it| it.is_ascii_graphic());
        if !path.is_empty() && (!is_path || path.len() > PATH) {
            let rule = format!(
                "is at most {PATH} printable characters of ASCII without spaces, the first one a slash"
            );
            refuse("path", rule);
        }
        let host = &health.host;
        if !host.is_empty() && !is_domain(host) && parse_address(host).is_err() {
            refuse("host", "is neither a name nor an address".to_owned());
        }
        if health.expected.len() > TEXT || health.codes().is_none() {
            let rule = "is a list of codes from 100 to 599 and ranges of them, such as 200,301-308";
            refuse("expected", rule.to_owned());
        }
    } else {
        if !path.is_empty() {
            refuse("path", only("http"));
        }
        if !health.host.is_empty() {
            refuse("host", only("http"));
        }
    }
    if protocol == "udp" {
        for (name, text) in [("expected", &health.expected), ("payload", &health.payload)] {
            if text.len() > TEXT {
                refuse(name, format!("{} bytes exceed {TEXT}", text.len()));
            }
        }
    } else {
        if !health.payload.is_empty() {
            refuse("payload", only("udp"));
        }
        if protocol != "http" && !health.expected.is_empty() {
            refuse("expected", only("http and udp"));
        }
    }
}

/// What a host found of a member. Of a load balancer that is not there any more it says nothing.
pub(super) fn check(
    at: At<'_>,
    health: &MemberHealth,
    index: &Index<'_>,
    scope: Scope<'_>,
    report: &mut Report,
) {
    if scope == Scope::Intent {
        report.add(at, "id", "hosts find out whether members serve");
        return;
    }
    if health.id != health.own_id() {
        let rule = format!("is that of its other fields, '{}'", health.own_id());
        report.add(at, "id", rule);
    }
    let vpc = &*health.vpc;
    check_reference(index, (Kind::Vpc, vpc), vpc, (at, "vpc"), report);
    report.take(at, "address", parse_address(&health.address));
    for (field, port) in [("port", health.port), ("member_port", health.member_port)] {
        if port == 0 || port > MAX_PORT {
            report.add(at, field, format!("{port} is outside 1 to {MAX_PORT}"));
        }
    }
}

/// What a host found of an appliance. Of a port that is not there any more it says nothing.
pub(super) fn check_port_health(
    at: At<'_>,
    health: &PortHealth,
    index: &Index<'_>,
    scope: Scope<'_>,
    report: &mut Report,
) {
    if scope == Scope::Intent {
        report.add(at, "id", "hosts find out whether appliances live");
        return;
    }
    let vpc = &*health.vpc;
    check_reference(index, (Kind::Vpc, vpc), vpc, (at, "vpc"), report);
}
