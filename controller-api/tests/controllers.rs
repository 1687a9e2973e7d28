//! Several controllers with one store in etcd: one writes, all serve; and processes that are killed under a stream of changes lose nothing.

#![allow(clippy::unwrap_used)]

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::path::PathBuf;
use std::process::{Child, Command};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use support::etcd::Members;
use support::{Controller, DEADLINE, FakeHost, key, list, topology, until, within};
use tempfile::TempDir;
use tonic::Code;
use weft_controller::store::Etcd;
use weft_process::controllers::{Controllers, WRITER};
use weft_process::services::intent_client::IntentClient;
use weft_proto::state::{Kind, Object, State};
use weft_proto::v1::{
    ApplyRequest, CreateRequest, DeleteRequest, GetRequest, Hello, ListHostStatusRequest,
    ListMemberHealthRequest, MemberHealth, Objects, Subnet, Vpc, WatchRequest,
};

/// Until a change is taken again after any kill.
const BACK: Duration = Duration::from_secs(5);

fn create(objects: Objects) -> CreateRequest {
    CreateRequest {
        objects: Some(objects),
    }
}

fn vpc(id: &str, vni: u32) -> Objects {
    let vpc = Vpc {
        id: id.into(),
        vni,
        ..Vpc::default()
    };
    Objects {
        vpcs: vec![vpc],
        ..Objects::default()
    }
}

fn get(kind: &str, id: &str) -> GetRequest {
    GetRequest {
        object: Some(key(kind, id)),
    }
}

async fn start(members: &Members) -> Controller {
    Controller::start_shared(Arc::new(members.store()), "127.0.0.1:0").await
}

async fn client(controllers: &[&Controller]) -> IntentClient<Controllers> {
    let addresses = controllers.iter().map(|it| it.address.clone()).collect();
    IntentClient::new(Controllers::connect(addresses, None).await.unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn one_writes_and_all_serve_readers_and_hosts() {
    let members = Members::started(1).await;
    let writer = start(&members).await;
    writer.is_writer(true).await;
    let follower = start(&members).await;
    follower.is_writer(false).await;
    writer
        .intent()
        .await
        .create(create(topology()))
        .await
        .unwrap();
    // A reader is told what was stored before it asked, wherever it asks.
    let mut reader = follower.intent().await;
    let port = reader.get(get("port", "b1")).await.unwrap().into_inner();
    assert_eq!(port.revision, 1);
    // A change is refused by name of the writer, and a client of both finds it.
    let hinted = || async {
        let refused = follower.intent().await.create(create(vpc("x", 90))).await;
        refused.unwrap_err()
    };
    let refused = until(hinted, |it| {
        it.metadata()
            .get(WRITER)
            .is_some_and(|hint| hint == writer.address.as_str())
    })
    .await;
    assert_eq!(refused.code(), Code::Unavailable);
    assert!(refused.message().contains(&writer.address), "{refused}");
    let mut both = client(&[&follower, &writer]).await;
    both.create(create(vpc("x", 90))).await.unwrap();
    let mut only_follower = client(&[&follower]).await;
    only_follower.create(create(vpc("y", 91))).await.unwrap();
    let taken = both.create(create(vpc("y", 92))).await.unwrap_err();
    assert_eq!(taken.code(), Code::AlreadyExists);

    // A host that is attached to the follower is told of changes, and the writer knows how far it is.
    let mut host = FakeHost::attach(&follower.address, "h1", 0, vec![]).await;
    host.take_and_acknowledge().await;
    let mut more = topology();
    more.ports.retain(|port| port.id == "b1");
    more.ports[0].id = "b9".into();
    more.ports[0].mac = "02:00:00:00:00:09".into();
    more.ports[0].addresses = vec!["10.0.0.19".into()];
    more.ports[0].device.as_mut().unwrap().name = "b9".into();
    let only = Objects {
        ports: more.ports,
        ..Objects::default()
    };
    let revision = both
        .create(create(only))
        .await
        .unwrap()
        .into_inner()
        .revision;
    host.take_and_acknowledge().await;
    assert_eq!(host.revision, revision);
    for controller in [&writer, &follower] {
        let ask = || async {
            let mut client = controller.intent().await;
            let request = ListHostStatusRequest {};
            client.list_host_status(request).await.unwrap().into_inner()
        };
        let is_known = |it: &weft_proto::v1::HostStatusReply| {
            let h1 = it.hosts.iter().find(|it| it.host == "h1").unwrap();
            h1.attached && h1.acknowledged_revision >= revision
        };
        until(ask, is_known).await;
    }
    // A clean stop leaves the role to the other, which continues where the writer was.
    writer.stop().await;
    follower.is_writer(true).await;
    let next = both.create(create(vpc("z", 93))).await.unwrap();
    assert_eq!(next.into_inner().revision, revision + 1);
    drop(host);
    follower.stop().await;
}

/// Also of a change of which the store keeps the keys alone.
#[tokio::test(flavor = "multi_thread")]
async fn a_watch_at_a_follower_tells_each_change() {
    let members = Members::started(1).await;
    let writer = start(&members).await;
    writer.is_writer(true).await;
    let follower = start(&members).await;
    follower.is_writer(false).await;
    let request = WatchRequest {
        kind: "vpc".into(),
        ..WatchRequest::default()
    };
    let mut client = follower.intent().await;
    let mut events = client.watch(request).await.unwrap().into_inner();
    let start = within(events.message()).await.unwrap().unwrap();
    assert_eq!((start.revision, start.more), (0, false));
    let mut both = self::client(&[&writer, &follower]).await;
    let long = |n: u32| Vpc {
        id: format!("{}{n:05}", "x".repeat(120)),
        vni: n + 1,
        ..Vpc::default()
    };
    let many = Objects {
        vpcs: (0..20_000).map(long).collect(),
        ..Objects::default()
    };
    both.create(create(vpc("first", 50_000))).await.unwrap();
    both.create(create(many)).await.unwrap();
    let mut told = BTreeSet::new();
    loop {
        let event = within(events.message()).await.unwrap().unwrap();
        assert!(event.deletes.is_empty());
        let put = event.upserts.unwrap_or_default().vpcs;
        told.extend(put.into_iter().map(|vpc| vpc.id));
        if event.revision == 2 && !event.more {
            break;
        }
    }
    assert_eq!(told.len(), 20_001);
    // A program that comes from the writer goes on where it was.
    let request = WatchRequest {
        from_revision: 2,
        ..WatchRequest::default()
    };
    let mut events = client.watch(request).await.unwrap().into_inner();
    both.create(create(vpc("last", 50_001))).await.unwrap();
    let event = within(events.message()).await.unwrap().unwrap();
    assert_eq!((event.revision, event.more), (3, false));
    assert_eq!(event.upserts.unwrap().vpcs[0].id, "last");
    drop(events);
    follower.stop().await;
    writer.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_keeps_its_state_when_it_moves_to_another_controller() {
    let members = Members::started(1).await;
    let writer = start(&members).await;
    writer.is_writer(true).await;
    let follower = start(&members).await;
    let mut client = writer.intent().await;
    client.create(create(topology())).await.unwrap();
    let mut host = FakeHost::attach(&writer.address, "h1", 0, vec![]).await;
    host.take_and_acknowledge().await;
    let (revision, digest) = (host.revision, host.state.digest().to_vec());
    drop(host);
    // It is not told anything, as nothing is new.
    let mut host = FakeHost::attach(&follower.address, "h1", revision, digest).await;
    let silence = tokio::time::timeout(Duration::from_millis(300), host.stream.message()).await;
    assert!(silence.is_err(), "{silence:?}");
    drop(host);
    follower.stop().await;
    writer.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peering_settles_when_hosts_of_other_controllers_know() {
    let members = Members::started(1).await;
    let writer = start(&members).await;
    writer.is_writer(true).await;
    let follower = start(&members).await;
    let mut client = writer.intent().await;
    let mut apart = topology();
    apart.subnets[1].cidrs = vec!["10.1.0.0/24".into()];
    apart.ports[2].addresses = vec!["10.1.0.11".into()];
    client.create(create(apart)).await.unwrap();
    let peering = support::yaml("peerings: [{id: p, requester: blue, accepter: red}]");
    client.create(create(peering)).await.unwrap();
    let act =
        |action: weft_proto::v1::PeeringAction, vpc: &str| weft_proto::v1::ChangePeeringRequest {
            id: "p".into(),
            action: action.into(),
            vpc: vpc.into(),
        };
    let freeze = weft_proto::v1::PeeringAction::Freeze;
    let hosts = ["h1", "h2"].map(|id| {
        let address = follower.address.clone();
        tokio::spawn(async move {
            let mut host = FakeHost::attach(&address, id, 0, vec![]).await;
            loop {
                host.take_and_acknowledge().await;
            }
        })
    });
    client.change_peering(act(freeze, "blue")).await.unwrap();
    let ask = || async {
        let mut client = writer.intent().await;
        let reply = client.get(get("peering", "p")).await.unwrap();
        let peering = reply.into_inner().objects.unwrap().peerings.remove(0);
        peering.requester_state
    };
    until(ask, |state| state == "frozen").await;
    for host in hosts {
        host.abort();
    }
    follower.stop().await;
    writer.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_hosts_find_reaches_those_of_other_controllers() {
    let members = Members::started(1).await;
    let writer = start(&members).await;
    writer.is_writer(true).await;
    let follower = start(&members).await;
    let mut client = writer.intent().await;
    client.create(create(topology())).await.unwrap();
    let balancer = support::yaml(
        "load_balancers: [{id: lb, vpc: blue, addresses: [10.0.0.200], listeners: [{protocol: tcp, port_min: 80, members: [{port: b1}], health: {protocol: tcp}}]}]",
    );
    let lb = balancer.load_balancers[0].clone();
    client.create(create(balancer)).await.unwrap();
    let hello = |host: &str, capabilities: &[&str]| Hello {
        host: host.into(),
        capabilities: capabilities.iter().map(|it| (*it).to_owned()).collect(),
        ..Hello::default()
    };
    let able = [weft_proto::LOAD_BALANCER, weft_proto::FINDINGS];
    // Members' health is found by the host of b1, and told to the other one, and to no old one.
    let mut finder = FakeHost::attach_as(&follower.address, hello("h1", &able)).await;
    let mut other = FakeHost::attach_as(&writer.address, hello("h2", &able)).await;
    for host in [&mut finder, &mut other] {
        while host.state.find(Kind::LoadBalancer, "lb").is_none() {
            host.take_and_acknowledge().await;
        }
    }
    let address = "10.0.0.11".parse().unwrap();
    let down = MemberHealth::of(&lb, &lb.listeners[0], (address, 80));
    let up = MemberHealth {
        up: true,
        since_ms: 7,
        ..down.clone()
    };
    let told = |host: &FakeHost| host.state.of_kind(Kind::MemberHealth).count();
    for (found, count) in [
        (vec![down.clone()], 1),
        (vec![up], 0),
        (vec![down.clone()], 1),
        (vec![], 0),
    ] {
        let known = finder.revision;
        finder.tell_health(found.clone()).await;
        for host in [&mut finder, &mut other] {
            if told(host) != count {
                host.take_and_acknowledge().await;
            }
            assert_eq!((told(host), host.revision), (count, known), "{found:?}");
        }
        let mut client = follower.intent().await;
        let request = ListMemberHealthRequest::default();
        let reply = client.list_member_health(request).await.unwrap();
        assert_eq!(reply.into_inner().member_health, found);
    }
    // It stays known when its finder goes, and one of an earlier release is not told of it.
    finder.tell_health(vec![down]).await;
    other.take_and_acknowledge().await;
    drop(finder);
    drop(other);
    let mut other = FakeHost::attach_as(&follower.address, hello("h2", &able)).await;
    other.take_and_acknowledge().await;
    assert_eq!(told(&other), 1);
    let mut old = FakeHost::attach_as(&follower.address, hello("h2", &able[..1])).await;
    old.take_and_acknowledge().await;
    let object = old.state.find(Kind::LoadBalancer, "lb").unwrap();
    let Object::LoadBalancer(balancer) = object else {
        panic!("{object:?}")
    };
    assert_eq!((told(&old), &balancer.listeners[0].health), (0, &None));
    follower.stop().await;
    writer.stop().await;
}

/// A controller as users run it.
struct Program {
    config: PathBuf,
    address: String,
    child: Option<Child>,
}

impl Program {
    fn new(directory: &TempDir, name: &str, members: &Members) -> Self {
        let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let listen = taken.local_addr().unwrap().to_string();
        let config = directory.path().join(format!("{name}.toml"));
        let text = format!(
            "listen = '{listen}'\nstore = {{ kind = 'etcd', endpoints = {:?} }}\n",
            members.endpoints()
        );
        std::fs::write(&config, text).unwrap();
        Self {
            config,
            address: format!("http://{listen}"),
            child: None,
        }
    }

    fn run(&mut self) {
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.config.with_extension("log"))
            .unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_weft-controller"))
            .arg("--config")
            .arg(&self.config)
            .env("RUST_LOG", "info,weft::audit=warn")
            .stderr(log)
            .spawn()
            .unwrap();
        self.child = Some(child);
    }

    fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    fn log(&self) -> String {
        let text = std::fs::read_to_string(self.config.with_extension("log")).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(30)..].join("\n")
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        self.kill();
    }
}

/// What became of the changes of one client; each makes a VPC and a subnet of it at once, and later deletes both at once.
#[derive(Debug, Default)]
struct Account {
    there: BTreeSet<u32>,
    gone: BTreeSet<u32>,
    /// Of which the answer was an error: done or not.
    open: BTreeSet<u32>,
    acknowledged: u64,
    /// When the newest request began that was acknowledged.
    newest: Option<Instant>,
}

const CLIENTS: u32 = 8;
/// Changes a second, of all clients together.
const RATE: u32 = 200;
/// Pairs that a client leaves there.
const KEPT: usize = 200;

async fn change(
    addresses: Vec<String>,
    own: u32,
    account: Arc<Mutex<Account>>,
    stop: Arc<AtomicBool>,
) {
    let connect = || Controllers::connect(addresses.clone(), None);
    let mut client = IntentClient::new(until(connect, Result::is_ok).await.unwrap());
    let mut ticks = tokio::time::interval(Duration::from_secs(1) * CLIENTS / RATE);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut n = own;
    while !stop.load(Ordering::SeqCst) {
        ticks.tick().await;
        let surplus = {
            let account = account.lock().unwrap();
            let first = account.there.first().copied();
            first.filter(|_| account.there.len() > KEPT)
        };
        let begun = Instant::now();
        let (of, done) = if let Some(old) = surplus {
            let objects = vec![
                key("subnet", &format!("s{old}")),
                key("vpc", &format!("v{old}")),
            ];
            (old, client.delete(DeleteRequest { objects }).await)
        } else {
            n += CLIENTS;
            let mut objects = vpc(&format!("v{n}"), n);
            objects.subnets.push(Subnet {
                id: format!("s{n}"),
                vpc: format!("v{n}"),
                cidrs: vec!["10.0.0.0/24".into()],
                ..Subnet::default()
            });
            let request = ApplyRequest {
                objects: Some(objects),
                ..ApplyRequest::default()
            };
            (n, client.apply(request).await)
        };
        let mut account = account.lock().unwrap();
        match done {
            Ok(_) => {
                if surplus.is_some() {
                    account.there.remove(&of);
                    account.gone.insert(of);
                } else {
                    account.there.insert(of);
                }
                account.acknowledged += 1;
                account.newest = account.newest.max(Some(begun));
            }
            Err(status) => {
                assert_eq!(status.code(), Code::Unavailable, "{status}");
                account.there.remove(&of);
                account.open.insert(of);
            }
        }
    }
}

fn rounds() -> usize {
    let rounds = std::env::var("WEFT_CONTROLLER_ROUNDS");
    rounds.map_or(4, |text| text.parse().unwrap())
}

/// Kills the writer, any controller, or a member of etcd, one after the other under changes.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_acknowledged_is_lost_and_nothing_is_half_done_when_processes_are_killed() {
    let directory = tempfile::tempdir().unwrap();
    let mut members = Members::started(3).await;
    let mut programs: Vec<Program> = ["a", "b", "c"]
        .map(|name| Program::new(&directory, name, &members))
        .into();
    programs.iter_mut().for_each(Program::run);
    let addresses: Vec<String> = programs.iter().map(|it| it.address.clone()).collect();
    let accounts: Vec<Arc<Mutex<Account>>> = (0..CLIENTS).map(|_| Arc::default()).collect();
    let stop = Arc::new(AtomicBool::new(false));
    let clients: Vec<_> = (0..CLIENTS)
        .map(|own| {
            let account = Arc::clone(&accounts[own as usize]);
            let mut addresses = addresses.clone();
            addresses.rotate_left(own as usize % 3);
            tokio::spawn(change(addresses, own, account, Arc::clone(&stop)))
        })
        .collect();
    // Of a request that began after a moment.
    let acknowledged_since = |moment: Instant| {
        let newest = accounts.iter().map(|it| it.lock().unwrap().newest);
        newest.max().flatten() > Some(moment)
    };
    let back = async |since: Instant| {
        while !acknowledged_since(since) && since.elapsed() < DEADLINE {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        since.elapsed()
    };
    back(Instant::now()).await;
    let store = members.store();
    let mut times: Vec<(String, Duration)> = Vec::new();
    for round in 0..rounds() {
        let any = rand::random_range(0..3);
        let since = Instant::now();
        let victim = if round % 2 == 0 {
            let writer = within_blocking(&store).await;
            let of_writer = programs
                .iter()
                .position(|it| Some(&it.address) == writer.as_ref());
            let victim = if round % 4 == 0 {
                of_writer.unwrap_or(any)
            } else {
                any
            };
            programs[victim].kill();
            format!("controller {victim}, writer {of_writer:?}")
        } else {
            members.kill(any);
            format!("member {any}")
        };
        let took = back(since).await;
        times.push((victim, took));
        if took > BACK {
            let logs: Vec<String> = programs.iter().map(Program::log).collect();
            panic!(
                "changes are not taken: {times:?}\n{}",
                logs.join("\n----\n")
            );
        }
        if round % 2 == 0 {
            let dead = programs.iter_mut().find(|it| it.child.is_none());
            dead.unwrap().run();
        } else {
            members.run(any);
            let alone = Etcd::open(&members.endpoints()[any..=any], "weft/", None).unwrap();
            within_deadline(move || alone.is_empty().is_ok()).await;
        }
        let acknowledged = || -> u64 {
            let all = accounts.iter().map(|it| it.lock().unwrap().acknowledged);
            all.sum()
        };
        let wanted = acknowledged() + rand::random_range(u64::from(RATE / 4)..u64::from(RATE));
        let is_there = || async { acknowledged() >= wanted };
        until(is_there, |it| *it).await;
    }
    stop.store(true, Ordering::SeqCst);
    for client in clients {
        within(client).await.unwrap();
    }
    let longest = times.iter().map(|(_, took)| *took).max();
    check(&addresses, &accounts).await;
    let all: u64 = accounts
        .iter()
        .map(|it| it.lock().unwrap().acknowledged)
        .sum();
    let open: usize = accounts
        .iter()
        .map(|it| it.lock().unwrap().open.len())
        .sum();
    let figures = format!(
        "{{\"kills\": {}, \"acknowledged\": {all}, \"unknown\": {open}, \"longest_ms\": {}}}",
        times.len(),
        longest.unwrap_or_default().as_millis()
    );
    println!("{figures}");
    if let Ok(path) = std::env::var("WEFT_CONTROLLER_REPORT") {
        std::fs::write(path, figures).unwrap();
    }
}

async fn within_blocking(store: &Etcd) -> Option<String> {
    tokio::task::block_in_place(|| store.writer().unwrap_or_default())
}

async fn within_deadline(is_so: impl Fn() -> bool + Send + 'static) {
    let start = Instant::now();
    let asked = tokio::task::spawn_blocking(move || {
        while !is_so() {
            assert!(start.elapsed() < DEADLINE, "the member does not come back");
        }
    });
    asked.await.unwrap();
}

/// All controllers have the same: what was acknowledged, and of the rest each change whole or not at all.
async fn check(addresses: &[String], accounts: &[Arc<Mutex<Account>>]) {
    let mut seen: BTreeMap<String, (u64, State)> = BTreeMap::new();
    for address in addresses {
        let connect = || Controllers::connect(vec![address.clone()], None);
        let mut client = IntentClient::new(until(connect, Result::is_ok).await.unwrap());
        let mut objects = Objects::default();
        let replies = list(&mut client, "", "").await;
        let revision = replies[0].revision;
        for reply in replies {
            let more = reply.objects.unwrap();
            objects.vpcs.extend(more.vpcs);
            objects.subnets.extend(more.subnets);
        }
        let state = State::from_objects(objects).unwrap();
        seen.insert(address.clone(), (revision, state));
    }
    let first = seen.values().next().unwrap();
    assert!(seen.values().all(|it| it == first), "they differ");
    use weft_proto::state::Kind::{Subnet, Vpc};
    let is_there = |n: u32| {
        let both = [
            first.1.find(Vpc, &format!("v{n}")).is_some(),
            first.1.find(Subnet, &format!("s{n}")).is_some(),
        ];
        assert_eq!(both[0], both[1], "change {n} is half there");
        both[0]
    };
    let (mut known, mut open) = (0, 0);
    for account in accounts {
        let account = account.lock().unwrap();
        for n in &account.there {
            assert!(is_there(*n), "acknowledged change {n} is lost");
        }
        for n in &account.gone {
            assert!(!is_there(*n), "acknowledged deletion {n} is lost");
        }
        known += account.there.len();
        open += account.open.iter().filter(|n| is_there(**n)).count();
    }
    assert_eq!(first.1.len(), 2 * (known + open), "there is something else");
}
