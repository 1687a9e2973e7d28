//! The step with a load balancer of blue: members on both hosts share connections, and one is taken out while they come.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Context;
use weft_proto::v1::{Listener, LoadBalancer, Member};
use weft_tests::{Site, wait_until};

use crate::steps::{Line, Step};

pub(crate) const STEPS: &[(&str, Step)] = &[("a load balancer", load_balancer)];

const MEMBERS: [&str; 3] = ["blue-n1", "blue-n2", "blue-n3"];
/// What blue's group lets in.
const SERVED: u16 = 5201;
const SOON: Duration = Duration::from_secs(10);
/// Connections before and after the member is taken out.
const ENOUGH: usize = 200;

/// Who answered each connection; nobody, where one failed.
type Answers = Mutex<Vec<Option<String>>>;

fn load_balancer(site: &mut Site) -> anyhow::Result<Vec<Line>> {
    site.change(|objects| {
        let members = MEMBERS.map(|port| Member {
            port: port.into(),
            to_port_min: SERVED.into(),
            ..Member::default()
        });
        objects.load_balancers = vec![LoadBalancer {
            id: "blue-web".into(),
            vpc: "blue".into(),
            addresses: vec!["10.0.1.200".into()],
            listeners: vec![Listener {
                protocol: "tcp".into(),
                port_min: 80,
                members: members.into(),
                ..Listener::default()
            }],
            ..LoadBalancer::default()
        }];
    })?;
    let line = take_out(site);
    site.change(|objects| objects.load_balancers.clear())?;
    Ok(vec![line?])
}

/// Connects all the time, from blue-a1, while a member drains and is removed.
fn take_out(site: &Site) -> anyhow::Result<Line> {
    let listeners = MEMBERS
        .iter()
        .map(|port| {
            let namespace = &site.workloads[*port].namespace;
            let listener = namespace.enter(|| TcpListener::bind(("0.0.0.0", SERVED)))??;
            listener.set_nonblocking(true)?;
            Ok((*port, listener))
        })
        .collect::<anyhow::Result<Vec<_>>>()?;
    let (is_over, answers) = (AtomicBool::new(false), Answers::default());
    let is_enough = AtomicBool::new(false);
    let after = std::thread::scope(|scope| {
        for (port, listener) in &listeners {
            scope.spawn(|| serve(port, listener, &is_over));
        }
        let client = &site.workloads["blue-a1"].namespace;
        let connecting = scope.spawn(|| client.enter(|| connect(&answers, &is_enough)));
        let after = watch(site, &answers);
        // The last connection is answered.
        is_enough.store(true, Ordering::Relaxed);
        let connected = connecting.join();
        is_over.store(true, Ordering::Relaxed);
        connected.map_err(|_| anyhow::anyhow!("the client panicked"))??;
        after
    })?;
    let answers = answers.into_inner().unwrap_or_default();
    let failed = answers.iter().filter(|answer| answer.is_none()).count();
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for member in answers.iter().flatten() {
        *counts.entry(member).or_default() += 1;
    }
    let late = answers[after..].iter().flatten();
    let late = late.filter(|member| *member == MEMBERS[0]).count();
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

/// How many connections there were when the member was out.
fn watch(site: &Site, answers: &Answers) -> anyhow::Result<usize> {
    let count = || answers.lock().map_or(0, |answers| answers.len());
    let wait = |wanted: usize| wait_until("connections are answered", SOON, || count() >= wanted);
    wait(ENOUGH)?;
    let member = ["blue-web", "tcp:80", MEMBERS[0]];
    site.ctl(&[&["lb", "member", "drain"][..], &member].concat())?;
    site.wait_for_hosts()?;
    // One connection may be under way.
    let after = count() + 1;
    wait(after + ENOUGH / 4)?;
    site.ctl(&[&["lb", "member", "remove"][..], &member].concat())?;
    site.wait_for_hosts()?;
    wait(after + ENOUGH)?;
    Ok(after)
}

/// Tells each client who answers.
fn serve(port: &str, listener: &TcpListener, is_over: &AtomicBool) {
    while !is_over.load(Ordering::Relaxed) {
        match listener.accept() {
            Ok((mut stream, _)) => drop(stream.write_all(port.as_bytes())),
            Err(_) => std::thread::sleep(Duration::from_millis(1)),
        }
    }
}

fn connect(answers: &Answers, is_enough: &AtomicBool) {
    let to = SocketAddr::from(([10, 0, 1, 200], 80));
    while !is_enough.load(Ordering::Relaxed) {
        let answer = ask(&to).ok().filter(|answer| !answer.is_empty());
        if let Ok(mut answers) = answers.lock() {
            answers.push(answer);
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
