//! A load balancer of nginx under load: requests at a steady rate while a member is killed, many connections while members come and go, and HAProxy on
//! either side of it. `WEFT_SERVICES_RATE` sets the requests a second, `WEFT_SERVICES_CONNECTIONS` how many connections there are at once,
//! `WEFT_SERVICES_SECONDS` for how long, `WEFT_SERVICES_ROUNDS` how often a member is killed; `WEFT_SERVICES_REPORT` is the directory for the figures.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use weft_proto::v1::Objects;
use weft_tests::figures::{leave, leave_worst};
use weft_tests::{
    Daemon, Lab, LabError, Site, SiteOptions, holds, nginx, tenants, topology, wait_until,
};

const FIGURES: &str = "WEFT_SERVICES_REPORT";
const SOON: Duration = Duration::from_secs(10);
/// A request that is not answered within this has failed.
const PATIENCE: Duration = Duration::from_secs(5);
/// A member that is dead is found out within this, on however slow a machine; the figure says how fast it was.
const FOUND_OUT: Duration = Duration::from_secs(4);
/// Threads of a client that sends requests at a rate.
const THREADS: usize = 4;
const CLIENTS: [&str; 2] = ["client-1", "client-2"];
const MEMBERS: [&str; 3] = ["blue-1", "blue-2", "blue-b"];
const VIRTUAL: &str = "10.0.1.200";

const MORE: &str = r#"
ports:
  - {id: client-1, vpc: blue, subnet: blue-a, host: h1, mac: "02:00:00:00:01:31", addresses: [10.0.1.31, "fd00:1::31"]}
  - {id: client-2, vpc: blue, subnet: blue-b, host: h2, mac: "02:00:00:00:01:32", addresses: [10.0.2.32, "fd00:2::32"]}
load_balancers:
  - id: web
    vpc: blue
    addresses: [10.0.1.200]
    listeners:
      - protocol: tcp
        port_min: 80
        members: [{port: blue-1}, {port: blue-2}, {port: blue-b}]
        health: {protocol: tcp, interval_ms: 500, fall: 2, rise: 1}
"#;

fn objects() -> Objects {
    let mut objects = tenants(2).unwrap();
    let more = topology(MORE).unwrap();
    objects.ports.extend(more.ports);
    objects.load_balancers = more.load_balancers;
    objects
}

fn setting(name: &str, default: usize) -> usize {
    let given = std::env::var(name).ok();
    given.map_or(default, |text| text.parse().unwrap())
}

/// Runs `body` where every member serves, and says what a person would ask for if it fails.
fn on_site(daemon: &str, body: impl FnOnce(&Site, &mut Vec<Daemon>) -> Result<(), LabError>) {
    let options = SiteOptions {
        daemon: daemon.to_owned(),
        ..SiteOptions::default()
    };
    let site = Site::start(Lab::new().unwrap(), &objects(), &options).unwrap();
    let mut servers = MEMBERS
        .map(|port| nginx::serve(&site, port).unwrap())
        .into();
    let result = all_serve(&site)
        .and_then(|()| body(&site, &mut servers))
        .and_then(|()| site.wait_for_frames());
    if let Err(error) = result {
        panic!("{}", site.explain(error));
    }
}

/// How many members are found to serve.
fn serving(site: &Site) -> usize {
    let health = site.ctl(&["lb", "health", "web"]).unwrap_or_default();
    let lines = health.lines().skip(1);
    let serves = lines.filter(|line| line.split_whitespace().nth(3) == Some("yes"));
    serves.count()
}

/// Waits until they do, on every host.
fn all_serve(site: &Site) -> Result<(), LabError> {
    wait_until("all members are found to serve", SOON, || {
        serving(site) == MEMBERS.len() && hosts_know_of(site, 0)
    })
}

/// Whether every host knows that so many members do not serve.
fn hosts_know_of(site: &Site, down: usize) -> bool {
    ["h1", "h2"].iter().all(|host| {
        let state = site.node_json(host, &["node", "state"]).unwrap_or_default();
        let known = state["state"]["member_health"].as_array();
        known.map_or(0, Vec::len) == down
    })
}

/// Changes the load balancer, and waits until the hosts have it in force.
fn lb(site: &Site, words: &str) -> Result<(), LabError> {
    let words: Vec<&str> = ["lb"].into_iter().chain(words.split_whitespace()).collect();
    site.ctl(&words)?;
    site.wait_for_hosts()
}

/// Requests at a steady rate, until told to stop.
#[derive(Default)]
struct Load {
    is_over: AtomicBool,
    count: AtomicUsize,
    /// When each request began that has failed.
    failed: Mutex<Vec<Instant>>,
}

impl Load {
    /// Sends one request after the other, each on a connection of its own, so far apart.
    fn run(&self, pause: Duration) {
        let to = SocketAddr::new(VIRTUAL.parse().unwrap(), 80);
        let mut due = Instant::now();
        while !self.is_over.load(Ordering::Relaxed) {
            let begun = Instant::now();
            if !matches!(request(&to), Ok(answer) if answer.starts_with("HTTP/1.1 200")) {
                self.failed.lock().unwrap().push(begun);
            }
            self.count.fetch_add(1, Ordering::Relaxed);
            due = (due + pause).max(begun);
            thread::sleep(due.saturating_duration_since(Instant::now()));
        }
    }

    /// Waits for so many requests more.
    fn go_on(&self, more: usize) -> Result<(), LabError> {
        let wanted = self.count.load(Ordering::Relaxed) + more;
        wait_until("requests are made", 6 * SOON, || {
            self.count.load(Ordering::Relaxed) >= wanted
        })
    }
}

fn request(to: &SocketAddr) -> std::io::Result<String> {
    let mut stream = TcpStream::connect_timeout(to, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(b"GET / HTTP/1.1\r\nHost: web\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

#[test]
fn requests_fail_only_until_a_dead_member_is_found_out() {
    let rate = setting("WEFT_SERVICES_RATE", 200);
    let rounds = setting("WEFT_SERVICES_ROUNDS", 1);
    on_site("", |site, servers| {
        let load = Load::default();
        let pause = Duration::from_secs_f64((CLIENTS.len() * THREADS) as f64 / rate as f64);
        thread::scope(|scope| {
            for client in CLIENTS {
                let namespace = &site.workloads[client].namespace;
                for _ in 0..THREADS {
                    scope.spawn(|| namespace.enter(|| load.run(pause)));
                }
            }
            let killed = (0..rounds).try_fold(Vec::new(), |mut all, round| {
                all.push(kill(site, servers, &load, (round % MEMBERS.len(), rate))?);
                Ok::<_, LabError>(all)
            });
            load.is_over.store(true, Ordering::Relaxed);
            killed.and_then(|times| leave_worst(FIGURES, "requests_fail_after_a_member", &times))
        })?;
        let requests = load.count.load(Ordering::Relaxed);
        leave(FIGURES, "requests_while_members_die", &requests.into())
    });
}

/// Kills a member under load and has it come back. Returns how long after its death the last request began that failed.
fn kill(
    site: &Site,
    servers: &mut Vec<Daemon>,
    load: &Load,
    (member, rate): (usize, usize),
) -> Result<Duration, LabError> {
    load.go_on(rate)?;
    let before = load.failed.lock().unwrap().len();
    holds("nothing fails while all serve", before == 0)?;
    let died = Instant::now();
    drop(servers.remove(member));
    wait_until("both hosts know it", SOON, || hosts_know_of(site, 1))?;
    println!(
        "{} is known to be dead after {:?}",
        MEMBERS[member],
        died.elapsed()
    );
    load.go_on(2 * rate)?;
    let failed = std::mem::take(&mut *load.failed.lock().unwrap());
    let last = failed
        .iter()
        .max()
        .map(|last| last.saturating_duration_since(died));
    println!(
        "{} requests failed, the last began {last:?} after it died",
        failed.len()
    );
    let last = last.unwrap_or_default();
    holds(
        "what fails began before it was found out",
        last <= FOUND_OUT,
    )?;
    servers.insert(member, nginx::serve(site, MEMBERS[member])?);
    all_serve(site)?;
    Ok(last)
}

/// Waits until a member has no connection any more, and longer than a client waits that sends its SYN again (RFC 6298 §5.7: a second).
fn is_unused(site: &Site, member: &str) -> Result<(), LabError> {
    let namespace = &site.workloads[member].namespace;
    let line = "ss -Htn state connected exclude time-wait sport = :80";
    let line: Vec<&str> = line.split(' ').collect();
    let mut since = Instant::now();
    wait_until("its connections are over", 6 * SOON, || {
        let said = namespace.run(&line);
        // Its health is still asked.
        if !said.is_ok_and(|said| said.lines().all(|line| line.contains(VIRTUAL))) {
            since = Instant::now();
        }
        since.elapsed() > Duration::from_millis(1500)
    })
}

#[test]
fn everything_is_served_while_members_come_and_go() {
    let connections = setting("WEFT_SERVICES_CONNECTIONS", 300);
    let duration = format!("{}s", setting("WEFT_SERVICES_SECONDS", 8));
    on_site("sessions.capacity = 1048576", |site, _| {
        let each = (connections / CLIENTS.len()).to_string();
        let url = format!("http://{VIRTUAL}/");
        let mut clients = Vec::new();
        for client in CLIENTS {
            let line = ["-t", "1", "-d", &duration, "--timeout", "10s"];
            let line = [&line[..], &["-c", &each, "-H", "Connection: close", &url]].concat();
            let namespace = &site.workloads[client].namespace;
            clients.push(namespace.spawn_with_many_files("wrk", &line)?);
        }
        let mut rounds = 0;
        while clients.iter_mut().any(Daemon::is_running) {
            let member = MEMBERS[rounds % MEMBERS.len()];
            lb(site, &format!("member drain web tcp:80 {member}"))?;
            is_unused(site, member)?;
            lb(site, &format!("member remove web tcp:80 {member}"))?;
            lb(
                site,
                &format!("member add web tcp:80 {member} --weight {}", 1 + rounds % 5),
            )?;
            all_serve(site)?;
            rounds += 1;
        }
        let mut requests = 0;
        for client in &mut clients {
            client.wait(SOON)?;
            let said = client.log();
            println!("{said}");
            holds(
                "no request failed",
                !said.contains("errors") && !said.contains("Non-2xx"),
            )?;
            let line = said.lines().find(|line| line.contains("requests in"));
            let count = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
            requests += count.unwrap_or(0);
        }
        holds("members came and went", rounds > 1)?;
        let figure = serde_json::json!({"connections": connections, "rounds": rounds, "requests": requests, "failed": 0});
        leave(FIGURES, "members_come_and_go", &figure)
    });
}

/// HAProxy at a port, which hands what comes at a TCP port on to these servers, as an HTTP proxy.
fn haproxy(site: &Site, port: &str, listen: u16, servers: &[String]) -> Result<Daemon, LabError> {
    let file = site.directory().join(format!("haproxy-{port}.cfg"));
    let servers = servers.iter().enumerate().map(|(number, server)| {
        format!("    server s{number} {server} check inter 200ms rise 1 fall 2\n")
    });
    let text = format!(
        "defaults\n    mode http\n    timeout connect 2s\n    timeout client 10s\n    timeout server 10s\n\
         frontend web\n    bind :{listen}\n    default_backend app\n\
         backend app\n    option httpchk GET /\n{}",
        servers.collect::<String>()
    );
    std::fs::write(&file, text).map_err(LabError::io("writing HAProxy's configuration"))?;
    let namespace = &site.workloads[port].namespace;
    namespace.spawn("haproxy", &["-db", "-f", &file.display().to_string()])
}

#[test]
fn haproxy_is_a_member_and_a_client() {
    on_site("", |site, servers| {
        // The one at blue-b serves what the nginx of the others say at another of their ports, and is a member like them.
        let at = MEMBERS
            .iter()
            .position(|member| *member == "blue-b")
            .unwrap();
        drop(servers.remove(at));
        let behind = ["blue-1", "blue-2"].map(|port| {
            let address = site.address(port, false).unwrap();
            format!("{address}:8000")
        });
        let _proxy = haproxy(site, "blue-b", 80, &behind)?;
        // The one at client-1 knows of the load balancer alone.
        let _front = haproxy(site, "client-1", 8080, &[format!("{VIRTUAL}:80")])?;
        let ask = |client: &str, url: &str| {
            let namespace = &site.workloads[client].namespace;
            let line = ["curl", "-sS", "-m", "5", "-H", "Connection: close", url];
            let said = namespace.run(&line)?;
            Ok::<_, LabError>(said.trim().to_owned())
        };
        let (own, proxy) = (
            "http://10.0.1.31:8080/",
            site.address("blue-b", false).unwrap(),
        );
        wait_until("the first answer comes", SOON, || {
            ask("client-1", own).is_ok_and(|said| said.starts_with("blue-"))
        })?;
        all_serve(site)?;
        let mut seen = BTreeSet::new();
        for _ in 0..60 {
            for said in [
                ask("client-1", own)?,
                ask("client-2", &format!("http://{VIRTUAL}/"))?,
            ] {
                let words: Vec<&str> = said.split_whitespace().collect();
                let [server, client, port] = words[..] else {
                    return holds(&format!("an answer: {said}"), false);
                };
                let is_right = match port {
                    // By the proxy behind the load balancer.
                    "8000" => client == proxy.to_string(),
                    _ => client == "10.0.1.31" || client == "10.0.2.32",
                };
                holds(&said, is_right)?;
                seen.insert((server.to_owned(), port.to_owned()));
            }
        }
        println!("{seen:?}");
        holds(
            "every server served, by itself and behind the proxy",
            seen.len() == 4,
        )
    });
}
