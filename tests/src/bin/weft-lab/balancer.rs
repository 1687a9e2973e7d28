//! The step with a load balancer of blue: members on both hosts share connections, one is killed while they come, and one is taken out.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context;
use weft_proto::v1::{HealthCheck, Listener, LoadBalancer, Member};
use weft_tests::{Site, wait_until};

use crate::steps::{Line, Step};

pub(crate) const STEPS: &[(&str, Step)] = &[("a load balancer", load_balancer)];

const MEMBERS: [&str; 3] = ["blue-n1", "blue-n2", "blue-n3"];
/// What blue's group lets in.
const SERVED: u16 = 5201;
const SOON: Duration = Duration::from_secs(10);
/// Connections before and after the member is taken out.
const ENOUGH: usize = 200;

/// How long requests may fail once a member is killed: its hosts ask it every half second, and it is down after two failures.
const UNDETECTED: Duration = Duration::from_millis(1200);

/// A connection: when it was over, and who answered it; nobody, where it failed.
struct Answer {
    at: Instant,
    member: Option<String>,
}

type Answers = Mutex<Vec<Answer>>;

/// What members of a load balancer have to know, and their client.
#[derive(Default)]
struct Run {
    /// Members that have ended.
    ended: [AtomicBool; 3],
    is_enough: AtomicBool,
    answers: Answers,
}

fn load_balancer(site: &mut Site) -> anyhow::Result<Vec<Line>> {
    site.change(|objects| {
        let members = MEMBERS.map(|port| Member {
            port: port.into(),
            to_port_min: SERVED.into(),
            ..Member::default()
        });
        let health = HealthCheck {
            protocol: "tcp".into(),
            interval_ms: 500,
            ..HealthCheck::default()
        };
        objects.load_balancers = vec![LoadBalancer {
            id: "blue-web".into(),
            vpc: "blue".into(),
            addresses: vec!["10.0.1.200".into()],
            listeners: vec![Listener {
                protocol: "tcp".into(),
                port_min: 80,
                members: members.into(),
                health: Some(health),
                ..Listener::default()
            }],
            ..LoadBalancer::default()
        }];
    })?;
    let lines = killed(site).and_then(|line| Ok(vec![line, take_out(site)?]));
    site.change(|objects| objects.load_balancers.clear())?;
    lines
}

/// Connects all the time, from blue-a1, while something happens; what became of the connections, and what of that.
fn connecting<T>(
    site: &Site,
    work: impl FnOnce(&Run) -> anyhow::Result<T>,
) -> anyhow::Result<(T, Vec<Answer>)> {
    let run = Run::default();
    let listeners = MEMBERS.map(|port| {
        let namespace = &site.workloads[port].namespace;
        let listener = namespace.enter(|| TcpListener::bind(("0.0.0.0", SERVED)))??;
        listener.set_nonblocking(true)?;
        anyhow::Ok(listener)
    });
    let listeners = listeners.into_iter().collect::<anyhow::Result<Vec<_>>>()?;
    let done = std::thread::scope(|scope| {
        for ((port, listener), has_ended) in MEMBERS.iter().zip(listeners).zip(&run.ended) {
            scope.spawn(move || serve(port, listener, has_ended));
        }
        let done = wait_until("all members serve", SOON, || serving(site) == MEMBERS.len());
        let done = done.map_err(Into::into).and_then(|()| {
            let client = &site.workloads["blue-a1"].namespace;
            let connecting = scope.spawn(|| client.enter(|| connect(&run)));
            let done = work(&run);
            // The last connection is answered.
            run.is_enough.store(true, Ordering::Relaxed);
            let connected = connecting.join();
            connected.map_err(|_| anyhow::anyhow!("the client panicked"))??;
            done
        });
        let ended = run.ended.iter();
        ended.for_each(|member| member.store(true, Ordering::Relaxed));
        done
    })?;
    Ok((done, run.answers.into_inner().unwrap_or_default()))
}

/// So many of the answers, to each member.
fn by_member<'a>(answers: impl IntoIterator<Item = &'a Answer>) -> BTreeMap<&'a str, usize> {
    let mut counts = BTreeMap::new();
    for member in answers.into_iter().filter_map(|it| it.member.as_deref()) {
        *counts.entry(member).or_default() += 1;
    }
    counts
}

/// A member dies and its machine refuses connections, until it is found out.
fn killed(site: &Site) -> anyhow::Result<Line> {
    let (died, answers) = connecting(site, |run| {
        run.wait(ENOUGH)?;
        let died = Instant::now();
        run.ended[1].store(true, Ordering::Relaxed);
        wait_until("it is found out", SOON, || serving(site) == 2)?;
        run.wait(run.count() + ENOUGH)?;
        Ok(died)
    })?;
    let mut failed = answers.iter().filter(|it| it.member.is_none()).peekable();
    let is_early = failed.peek().is_some_and(|first| first.at < died);
    let (count, last) = failed.fold((0, died), |(count, _), answer| (count + 1, answer.at));
    let undetected = last.saturating_duration_since(died);
    let after = by_member(answers.iter().filter(|it| it.at > last));
    let passed = !is_early && undetected <= UNDETECTED && after.len() == MEMBERS.len() - 1;
    let unit = format!(
        "ms until the last failure; {count} of {} connections failed, all in between",
        answers.len()
    );
    let name = "load balancer, a member killed";
    Ok(Line::new(
        name,
        passed,
        undetected.as_secs_f64() * 1e3,
        &unit,
    ))
}

/// A member drains and is removed.
fn take_out(site: &Site) -> anyhow::Result<Line> {
    let (after, answers) = connecting(site, |run| watch(site, run))?;
    let failed = answers.iter().filter(|answer| answer.member.is_none());
    let failed = failed.count();
    let counts = by_member(&answers);
    let late = by_member(&answers[after..]).remove(MEMBERS[0]).unwrap_or(0);
    let shares: Vec<String> = counts.values().map(ToString::to_string).collect();
    let unit = format!(
        "of {} connections failed while a member was taken out; {} to each member, {late} to that one afterwards",
        answers.len(),
        shares.join(", ")
    );
    let passed = failed == 0 && late == 0 && counts.len() == MEMBERS.len();
    Ok(Line::new(
        "load balancer, a member taken out",
        passed,
        failed as f64,
        &unit,
    ))
}

impl Run {
    fn count(&self) -> usize {
        self.answers.lock().map_or(0, |answers| answers.len())
    }

    /// Waits for so many connections.
    fn wait(&self, wanted: usize) -> anyhow::Result<()> {
        let waited = wait_until("connections are over", SOON, || self.count() >= wanted);
        Ok(waited?)
    }
}

/// How many members serve, as far as is known.
fn serving(site: &Site) -> usize {
    let health = site.ctl(&["lb", "health", "blue-web"]).unwrap_or_default();
    let lines = health.lines().skip(1);
    let serves = lines.filter(|line| line.split_whitespace().nth(3) == Some("yes"));
    serves.count()
}

/// How many connections there were when the member was out.
fn watch(site: &Site, run: &Run) -> anyhow::Result<usize> {
    run.wait(ENOUGH)?;
    let member = ["blue-web", "tcp:80", MEMBERS[0]];
    site.ctl(&[&["lb", "member", "drain"][..], &member].concat())?;
    site.wait_for_hosts()?;
    // One connection may be under way.
    let after = run.count() + 1;
    run.wait(after + ENOUGH / 4)?;
    site.ctl(&[&["lb", "member", "remove"][..], &member].concat())?;
    site.wait_for_hosts()?;
    run.wait(after + ENOUGH)?;
    Ok(after)
}

/// Tells each client who answers, until it ends; then nobody listens.
fn serve(port: &str, listener: TcpListener, has_ended: &AtomicBool) {
    while !has_ended.load(Ordering::Relaxed) {
        match listener.accept() {
            Ok((mut stream, _)) => drop(stream.write_all(port.as_bytes())),
            Err(_) => std::thread::sleep(Duration::from_millis(1)),
        }
    }
    drop(listener);
}

fn connect(run: &Run) {
    let to = SocketAddr::from(([10, 0, 1, 200], 80));
    while !run.is_enough.load(Ordering::Relaxed) {
        let member = ask(&to).ok().filter(|answer| !answer.is_empty());
        let at = Instant::now();
        if let Ok(mut answers) = run.answers.lock() {
            answers.push(Answer { at, member });
        }
    }
}

fn ask(to: &SocketAddr) -> anyhow::Result<String> {
    let mut stream = TcpStream::connect_timeout(to, SOON)?;
    stream.set_read_timeout(Some(SOON))?;
    let mut answer = String::new();
    let read = stream.read_to_string(&mut answer);
    read.context("reading who answers")?;
    Ok(answer)
}
