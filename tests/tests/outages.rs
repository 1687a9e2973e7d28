//! Faults around and inside running daemons: networks cut, disks full, processes and threads stopped, uplinks removed, a controller that is
//! not one. Forwarding continues or recovers by itself, and nothing is lost or left over. `WEFT_FAULT_ROUNDS` sets how often (a tenth of it
//! each); `WEFT_OUTAGE_REPORT` is the directory for the figures.

#![allow(clippy::unwrap_used)]

use std::{
    fs,
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    os::unix::net::UnixListener,
    sync::atomic::{AtomicBool, AtomicU32, Ordering},
    time::{Duration, Instant},
};

use weft_proto::v1::{Objects, SecurityRule};
use weft_tests::figures::leave_worst;
use weft_tests::{
    HaltedThread, Lab, LabError, Namespace, Site, SiteOptions, SmallDisk, site::DATABASE, tenants,
    wait_until,
};

const SOON: Duration = Duration::from_secs(10);
const FIGURES: &str = "WEFT_OUTAGE_REPORT";
/// Within this both ends know that the network between agent and controller is cut, and within this it is made up for.
const NOTICED: Duration = Duration::from_secs(15);

fn rounds() -> u32 {
    let given = std::env::var("WEFT_FAULT_ROUNDS").ok();
    given.map_or(1, |text| text.parse::<u32>().unwrap().div_ceil(10))
}

fn site(hosts: usize, options: &SiteOptions) -> Site {
    Site::start(Lab::new().unwrap(), &tenants(hosts).unwrap(), options).unwrap()
}

/// The test's body, with what a person would look at first if it fails.
fn explained(site: &mut Site, body: impl FnOnce(&mut Site) -> Result<(), LabError>) {
    if let Err(error) = body(site) {
        panic!("{}", site.explain(error));
    }
}

fn status(site: &Site, host: &str) -> serde_json::Value {
    site.node_json(host, &["node", "status"])
        .unwrap_or_default()
}

/// A number that JSON may have as text.
fn number(value: &serde_json::Value) -> u64 {
    let text = value.as_str().and_then(|text| text.parse().ok());
    value.as_u64().or(text).unwrap_or(0)
}

fn log(site: &Site, host: &str) -> String {
    site.hosts[host].daemon.as_ref().unwrap().log()
}

/// How long a condition takes to come true.
fn time_until(
    what: &str,
    within: Duration,
    holds: impl FnMut() -> bool,
) -> Result<Duration, LabError> {
    let begun = Instant::now();
    wait_until(what, within, holds)?;
    Ok(begun.elapsed())
}

/// A change that every host is told of, and that changes nothing for packets.
fn touch(objects: &mut Objects, number: u32) {
    for group in &mut objects.security_groups {
        group.rules.push(SecurityRule {
            direction: "ingress".into(),
            protocol: "tcp".into(),
            port_min: Some(number),
            port_max: Some(number),
            ..SecurityRule::default()
        });
    }
}

/// A TCP connection between two ports, over which bytes go there and back.
struct Connection {
    client: TcpStream,
    server: TcpStream,
}

impl Connection {
    fn open(site: &Site, from: &str, to: &str) -> Result<Self, LabError> {
        let address = site.service(to, false, 4242)?;
        let (near, far) = (
            &site.workloads[from].namespace,
            &site.workloads[to].namespace,
        );
        let listener = far.enter(|| TcpListener::bind(address))?.unwrap();
        let client = near
            .enter(|| TcpStream::connect_timeout(&address, SOON))?
            .unwrap();
        let (server, _) = listener.accept().unwrap();
        for stream in [&client, &server] {
            stream.set_read_timeout(Some(SOON)).unwrap();
        }
        Ok(Self { client, server })
    }

    fn works(&mut self) -> bool {
        let mut got = [0; 5];
        let there = self
            .client
            .write_all(b"there")
            .and_then(|()| self.server.read_exact(&mut got));
        there.is_ok()
            && self.server.write_all(&got).is_ok()
            && self.client.read_exact(&mut got).is_ok()
            && &got == b"there"
    }
}

/// Drops without a word what comes in by an interface, or no longer does.
fn set_deaf(namespace: &Namespace, interface: &str, deaf: bool) -> Result<(), LabError> {
    let rules = if deaf {
        format!(
            "add table inet deaf; add chain inet deaf in {{ type filter hook input priority 0; }}; add rule inet deaf in iifname {interface} drop"
        )
    } else {
        "delete table inet deaf".to_owned()
    };
    namespace.run(&["nft", &rules]).map(drop)
}

#[test]
fn the_network_to_the_controller_is_cut_and_comes_back() {
    let options = SiteOptions {
        remote_controller: true,
        ..SiteOptions::default()
    };
    let mut site = site(2, &options);
    let (mut noticed, mut dropped, mut made_up) = (Vec::new(), Vec::new(), Vec::new());
    explained(&mut site, |site| {
        let stream = site.stream("blue-1", "blue-2", 9, 1000)?;
        let (host, control) = (
            site.hosts["h1"].namespace.clone(),
            site.controller_namespace.clone(),
        );
        for round in 0..rounds() {
            let before = number(&status(site, "h1")["revision"]);
            let begun = Instant::now();
            set_deaf(&host, "m0", true)?;
            set_deaf(&control, "m-h1", true)?;
            wait_until("the host notices", NOTICED, || {
                status(site, "h1")["controller"] == "disconnected"
            })?;
            noticed.push(begun.elapsed());
            wait_until("the controller notices", NOTICED, || {
                let hosts = site.ctl(&["hosts"]).unwrap_or_default();
                let h1 = hosts.lines().find(|line| line.starts_with("h1"));
                h1.is_some_and(|line| line.split_whitespace().nth(1) == Some("no"))
            })?;
            dropped.push(begun.elapsed());
            let held = control.run(&["ss", "-Htn", "state", "established", "sport = :7470"])?;
            assert!(
                !held.contains("198.51.100.2:"),
                "a dead connection is held:\n{held}"
            );
            assert!(
                held.contains("198.51.100.6:"),
                "the other host's is not there:\n{held}"
            );

            let mut objects = site.objects.clone();
            touch(&mut objects, 1000 + round);
            site.apply_only(&objects)?;
            site.objects = objects;
            wait_until("the other host has the change", SOON, || {
                number(&status(site, "h2")["revision"]) > before
            })?;
            assert_eq!(number(&status(site, "h1")["revision"]), before);
            assert!(site.pings("red-1", "red-2"), "new flows meanwhile");

            set_deaf(&host, "m0", false)?;
            set_deaf(&control, "m-h1", false)?;
            let wanted = number(&status(site, "h2")["revision"]);
            made_up.push(time_until("the host is made up for", NOTICED, || {
                number(&status(site, "h1")["revision"]) == wanted
            })?);
            site.wait_for_hosts()?;
        }
        let tally = stream.end();
        assert_eq!((tally.lost(), tally.twice), (0, 0), "{tally:?}");
        Ok(())
    });
    leave_worst(FIGURES, "controller_cut_noticed_by_host", &noticed).unwrap();
    leave_worst(FIGURES, "controller_cut_noticed_by_controller", &dropped).unwrap();
    leave_worst(FIGURES, "controller_back_change_in_force", &made_up).unwrap();
}

#[test]
fn the_underlay_is_cut_and_comes_back() {
    let mut site = site(3, &SiteOptions::default());
    let mut back = Vec::new();
    explained(&mut site, |site| {
        let bridge = site.underlay.clone().unwrap();
        let stream = site.stream("blue-1", "blue-2", 9, 1000)?;
        let others = site.stream("red-3", "red-2", 9, 1000)?;
        let mut connection = Connection::open(site, "blue-1", "blue-2")?;
        assert!(connection.works());
        let unresolved = |site: &Site| {
            let drops = site.node("h1", &["drops"]).unwrap_or_default();
            drops.contains("underlay_unresolved")
        };
        for _ in 0..rounds() {
            // The bridge no longer forwards what h1 sends, nor anything to it; its link stays up.
            bridge.ip("link set b0 nomaster")?;
            wait_until("the stream ends", SOON, || {
                let before = stream.tally().received;
                std::thread::sleep(Duration::from_millis(50));
                stream.tally().received == before
            })?;
            // What the kernel would find out by itself within a minute: the next hop no longer answers.
            site.hosts["h1"].namespace.ip("neigh flush dev u0")?;
            wait_until("the next hop is given up", SOON, || unresolved(site))?;
            let before = stream.tally().received;
            bridge.ip("link set b0 master br0")?;
            back.push(time_until("the stream goes on", SOON, || {
                stream.tally().received > before
            })?);
            assert!(connection.works(), "the connection goes on");
        }
        assert!(stream.end().received > 0);
        let tally = others.end();
        assert_eq!((tally.lost(), tally.twice), (0, 0), "{tally:?}");
        assert!(site.pings("red-1", "red-2") && site.pings("blue-3", "blue-1"));
        site.wait_for_frames()
    });
    leave_worst(FIGURES, "underlay_back", &back).unwrap();
}

#[test]
fn an_uplink_goes_down_and_goes_and_is_made_again() {
    let mut site = site(2, &SiteOptions::default());
    let (mut up_again, mut made_again) = (Vec::new(), Vec::new());
    explained(&mut site, |site| {
        let (one, two) = (
            site.hosts["h1"].namespace.clone(),
            site.hosts["h2"].namespace.clone(),
        );
        let at_home = site.stream("red-2", "red-b", 9, 1000)?;
        let stream = site.stream("blue-1", "blue-2", 9, 1000)?;
        let mut connection = Connection::open(site, "blue-1", "blue-2")?;
        assert!(connection.works());
        for _ in 0..rounds() {
            one.ip("link set u0 down")?;
            wait_until("the underlay's end is noticed", SOON, || {
                let drops = site.node("h1", &["drops"]).unwrap_or_default();
                drops.contains("underlay_unresolved")
            })?;
            let before = stream.tally().received;
            one.ip("link set u0 up")?;
            up_again.push(time_until("the stream goes on", SOON, || {
                stream.tally().received > before + 10
            })?);
            assert!(connection.works());

            // It takes its other end with it.
            one.ip("link del u0")?;
            wait_until("the uplinks are missing", SOON, || {
                ["h1", "h2"]
                    .iter()
                    .all(|host| status(site, host)["uplinks"][0] == "u0 (missing)")
            })?;
            one.ip(&format!(
                "link add u0 mtu 1500 type veth peer name u0 mtu 1500 netns {}",
                two.name()
            ))?;
            let before = stream.tally().received;
            for (namespace, address) in [(&one, "192.0.2.1"), (&two, "192.0.2.2")] {
                namespace.ip("link set u0 up")?;
                namespace.ip(&format!("address add {address}/24 dev u0"))?;
            }
            made_again.push(time_until("the stream goes on", SOON, || {
                stream.tally().received > before + 10
            })?);
            assert!(connection.works(), "the connection goes on");
            assert!(one.pings("192.0.2.2", 2), "the host's own traffic");
        }
        assert!(stream.end().received > 0);
        let tally = at_home.end();
        assert_eq!((tally.lost(), tally.twice), (0, 0), "{tally:?}");
        assert!(site.pings("red-1", "red-2"));
        site.wait_for_frames()
    });
    leave_worst(FIGURES, "uplink_up_again", &up_again).unwrap();
    leave_worst(FIGURES, "uplink_made_again", &made_again).unwrap();
}

/// Makes a prefix list, of about 200 kilobytes; what the controller said.
fn create(site: &Site, id: &str) -> Result<String, String> {
    let prefixes: Vec<String> = (0..20_000)
        .map(|n| format!("10.{}.{}.{}/28", n >> 12, n >> 4 & 255, (n & 15) << 4))
        .collect();
    let list = serde_json::json!({"id": id, "vpc": "blue", "prefixes": prefixes});
    let file = site.directory().join("list.yaml");
    // YAML holds JSON.
    fs::write(
        &file,
        serde_json::json!({"prefix_lists": [list]}).to_string(),
    )
    .unwrap();
    site.ctl(&["apply", "-f", &file.display().to_string()])
        .map_err(|error| error.to_string())
}

fn end_controller(site: &mut Site, signal: i32) -> Result<(), LabError> {
    let mut controller = site.controller.take().unwrap();
    controller.signal(signal);
    controller.wait(SOON).map(drop)
}

/// The prefix lists that the controller has.
fn kept(site: &Site) -> Result<Vec<String>, LabError> {
    let text = site.ctl(&["prefix-list", "list"])?;
    let ids = text
        .lines()
        .filter_map(|line| line.split_whitespace().next());
    let mut ids: Vec<_> = ids
        .filter(|id| id.starts_with("x-"))
        .map(str::to_owned)
        .collect();
    ids.sort();
    Ok(ids)
}

#[test]
fn the_controllers_disk_is_full_and_its_file_torn() {
    let mut site = site(2, &SiteOptions::default());
    explained(&mut site, |site| {
        let stream = site.stream("blue-1", "blue-2", 9, 1000)?;
        end_controller(site, libc::SIGTERM)?;
        let disk = SmallDisk::over(&site.store(), 8 << 10)?;
        site.start_controller()?;
        let mut made = Vec::new();
        for round in 0..rounds() {
            disk.fill()?;
            // Some still fit into the file as it is.
            let refused = (0..100).find_map(|n| {
                let id = format!("x-{round}-{n:04}");
                match create(site, &id) {
                    Ok(_) => {
                        made.push(id);
                        None
                    }
                    Err(message) => Some((id, message)),
                }
            });
            let (id, message) = refused.unwrap();
            assert!(message.contains("No space left on device"), "{message}");
            assert_eq!(kept(site)?, made, "what was refused is not there");
            // It is not refused once alone, and it is as it was.
            let again = create(site, &id).unwrap_err();
            assert!(again.contains("No space left on device"), "{again}");
            assert!(site.pings("red-1", "red-2"));
            disk.free()?;
            create(site, &id).unwrap();
            made.push(id);
            end_controller(site, libc::SIGKILL)?;
            site.start_controller()?;
            assert_eq!(kept(site)?, made, "round {round}");
            site.wait_for_hosts()?;
        }

        // Full when it starts: what is stored can be read.
        disk.fill()?;
        end_controller(site, libc::SIGKILL)?;
        site.start_controller()?;
        assert_eq!(kept(site)?, made);
        disk.free()?;
        create(site, "x-last").unwrap();
        made.push("x-last".to_owned());

        end_controller(site, libc::SIGKILL)?;
        // A file with holes takes more room when it is written again.
        disk.resize(64 << 10)?;
        let file = site.store().join(DATABASE);
        let good = fs::read(&file).unwrap();
        for torn in [&good[..good.len() / 3], b"no database at all"] {
            fs::write(&file, torn).unwrap();
            site.launch_controller()?;
            let mut controller = site.controller.take().unwrap();
            assert_eq!(controller.wait(SOON)?.code(), Some(1));
            let said = controller.log();
            assert_eq!(said.lines().count(), 1, "{said}");
            assert!(
                said.starts_with("weft-controller: ") && said.contains(DATABASE),
                "{said}"
            );
        }
        fs::write(&file, good).unwrap();
        site.start_controller()?;
        assert_eq!(kept(site)?, made);
        site.wait_for_hosts()?;
        let tally = stream.end();
        assert_eq!((tally.lost(), tally.twice), (0, 0), "{tally:?}");
        Ok(())
    });
}

fn kill_daemon(site: &mut Site, host: &str) -> Result<(), LabError> {
    let mut daemon = site.hosts.get_mut(host).unwrap().daemon.take().unwrap();
    daemon.signal(libc::SIGKILL);
    daemon.wait(SOON).map(drop)
}

#[test]
fn a_hosts_disk_is_full_and_its_file_torn() {
    let mut site = site(2, &SiteOptions::default());
    explained(&mut site, |site| {
        let kept = site.directory().join("h1");
        kill_daemon(site, "h1")?;
        let disk = SmallDisk::over(&kept, 64)?;
        site.start_daemon("h1")?;
        site.wait_for_hosts()?;
        let older = number(&status(site, "h1")["revision"]);
        disk.fill()?;
        // The host takes the change; it only cannot keep it.
        site.change(|objects| touch(objects, 2000))?;
        let newer = number(&status(site, "h1")["revision"]);
        assert!(newer > older && site.pings("blue-1", "blue-2"));
        wait_until("it says so", SOON, || {
            log(site, "h1").contains("cannot write the state to disk")
        })?;
        // Killed now, it starts from what it kept before.
        end_controller(site, libc::SIGKILL)?;
        kill_daemon(site, "h1")?;
        site.start_daemon("h1")?;
        wait_until("it forwards", SOON, || site.pings("blue-1", "blue-2"))?;
        assert_eq!(number(&status(site, "h1")["revision"]), older);
        site.start_controller()?;
        site.wait_for_hosts()?;
        wait_until("it says so again", SOON, || {
            log(site, "h1").contains("cannot write the state to disk")
        })?;
        assert_eq!(
            log(site, "h1")
                .matches("cannot write the state to disk")
                .count(),
            1
        );
        // With room, what is in force is kept without another change, and without a controller.
        end_controller(site, libc::SIGKILL)?;
        disk.free()?;
        wait_until("it is kept", SOON, || {
            log(site, "h1").contains("the state is written to disk again")
        })?;
        kill_daemon(site, "h1")?;
        site.start_daemon("h1")?;
        wait_until("it forwards", SOON, || site.pings("blue-1", "blue-2"))?;
        assert_eq!(number(&status(site, "h1")["revision"]), newer);

        // A torn file is none, and is said to be.
        kill_daemon(site, "h1")?;
        let file = kept.join("state");
        let good = fs::read(&file).unwrap();
        fs::write(&file, &good[..good.len() / 2]).unwrap();
        site.start_daemon("h1")?;
        wait_until("it runs", SOON, || status(site, "h1")["host"] == "h1")?;
        assert_eq!(number(&status(site, "h1")["revision"]), 0);
        assert!(log(site, "h1").contains("the file is damaged"));
        site.start_controller()?;
        site.wait_for_hosts()?;
        wait_until("it forwards", SOON, || site.pings("blue-1", "blue-2"))?;
        assert!(fs::read(&file).unwrap().len() >= good.len());
        Ok(())
    });
}

/// A process that stood still finds that all its clocks have jumped.
#[test]
fn processes_that_stood_still_go_on() {
    let still = Duration::from_secs(5);
    let mut site = site(2, &SiteOptions::default());
    let mut back = Vec::new();
    explained(&mut site, |site| {
        let stream = site.stream("blue-1", "blue-2", 9, 1000)?;
        let mut connection = Connection::open(site, "blue-1", "blue-2")?;
        assert!(connection.works());
        for round in 0..rounds() {
            let pause = |site: &Site, paused| {
                site.hosts["h1"].daemon.as_ref().unwrap().pause(paused);
                site.controller.as_ref().unwrap().pause(paused);
            };
            pause(site, true);
            // This is what is tested, not a wait for something.
            std::thread::sleep(still);
            let before = stream.tally().received;
            pause(site, false);
            back.push(time_until("the stream goes on", SOON, || {
                stream.tally().received > before
            })?);
            assert!(connection.works(), "its session lives");
            site.wait_for_hosts()?;
            site.change(|objects| touch(objects, 3000 + round))?;
        }
        let workers = &status(site, "h1")["workers"];
        assert_eq!(number(&workers[0]["stalls"]), 0, "{workers}");
        assert!(stream.end().received > 0 && site.pings("red-1", "red-2"));
        site.wait_for_frames()
    });
    leave_worst(FIGURES, "process_continued", &back).unwrap();
}

#[test]
fn a_worker_that_is_stuck_holds_up_nobody_else() {
    let options = SiteOptions {
        daemon: "workers.watchdog_milliseconds = 400".into(),
        cores: vec![vec![0, 1], vec![]],
        ..SiteOptions::default()
    };
    let mut site = site(2, &options);
    explained(&mut site, |site| {
        for round in 0..rounds() {
            let streams = [
                site.stream("blue-1", "blue-2", 9, 500)?,
                site.stream("red-1", "red-2", 9, 500)?,
            ];
            let pid = site.hosts["h1"].daemon.as_ref().unwrap().pid();
            let worker = |site: &Site, index: usize| status(site, "h1")["workers"][index].clone();
            // The first one reads the uplink and the port of one tenant, the second one the port of the other.
            let halted = HaltedThread::of(pid, "worker-1")?;
            wait_until("the watchdog notices", SOON, || {
                number(&worker(site, 1)["stuck_milliseconds"]) > 0
            })?;
            assert_eq!(number(&worker(site, 0)["stuck_milliseconds"]), 0);
            let before = streams.each_ref().map(|stream| stream.tally().received);
            let went_on = |site: usize| streams[site].tally().received > before[site] + 200;
            wait_until("one tenant's stream goes on", SOON, || {
                went_on(0) || went_on(1)
            })?;
            let (moving, stuck) = if went_on(0) { (0, 1) } else { (1, 0) };
            let standing = streams[stuck].tally().received;
            assert!(standing - before[stuck] < 10, "the other's stands still");

            // A change: in force for whoever moves, and seen to wait for the one that does not.
            let good = site.objects.clone();
            let mut none = good.clone();
            none.security_groups
                .iter_mut()
                .for_each(|group| group.rules.clear());
            let begun = Instant::now();
            site.apply_only(&none)?;
            site.objects = none;
            site.wait_for_hosts()?;
            assert!(
                begun.elapsed() < Duration::from_secs(3),
                "{:?}",
                begun.elapsed()
            );
            let state = status(site, "h1");
            let generation = |index: usize| number(&state["workers"][index]["generation"]);
            assert_eq!(generation(0), number(&state["generation"]));
            assert!(generation(1) < generation(0), "{state}");
            wait_until("nothing of the other tenant comes any more", SOON, || {
                let before = streams[moving].tally().received;
                std::thread::sleep(Duration::from_millis(50));
                streams[moving].tally().received == before
            })?;

            // It goes on, and what waited at it is judged as all else is: but for what it had in hand.
            drop(halted);
            wait_until("the worker moves", SOON, || {
                number(&worker(site, 1)["stuck_milliseconds"]) == 0
                    && number(&worker(site, 1)["generation"]) == generation(0)
            })?;
            assert_eq!(number(&worker(site, 1)["stalls"]), u64::from(round) + 1);
            assert!(streams[stuck].tally().received - standing <= 64);
            site.change(|objects| *objects = good)?;
            for stream in &streams {
                stream.wait_for_more(100)?;
            }
            let said = log(site, "h1");
            for line in ["does not go round any more", "goes round again"] {
                assert_eq!(said.matches(line).count(), round as usize + 1, "{said}");
            }
            let _tallies = streams.map(weft_tests::traffic::NumberedStream::end);
        }
        site.wait_for_frames()
    });
}

/// Answers whoever connects with bytes that are no HTTP/2, until it is told to stop; says how many came.
fn babble(listener: &UnixListener, stop: &AtomicBool, visitors: &AtomicU32) {
    listener.set_nonblocking(true).unwrap();
    while !stop.load(Ordering::Relaxed) {
        match listener.accept() {
            Ok((mut stream, _)) => {
                visitors.fetch_add(1, Ordering::Relaxed);
                // The other end may have gone.
                let _ = stream.write_all(&[0xa5; 4096]);
            }
            Err(_) => std::thread::sleep(Duration::from_millis(5)),
        }
    }
}

#[test]
fn what_stands_in_the_controllers_place_and_is_none_is_not_obeyed() {
    let mut site = site(2, &SiteOptions::default());
    let mut back = Vec::new();
    explained(&mut site, |site| {
        let stream = site.stream("blue-1", "blue-2", 9, 1000)?;
        let socket = site.directory().join("controller.sock");
        end_controller(site, libc::SIGKILL)?;
        fs::remove_file(&socket).unwrap();
        let listener = UnixListener::bind(&socket).unwrap();
        let (stop, visitors) = (AtomicBool::new(false), AtomicU32::new(0));
        std::thread::scope(|scope| {
            scope.spawn(|| babble(&listener, &stop, &visitors));
            let begun = Instant::now();
            let came = wait_until("both hosts come again", SOON, || {
                visitors.load(Ordering::Relaxed) >= 12
            });
            stop.store(true, Ordering::Relaxed);
            // Without pauses it would be thousands a second.
            assert!(
                begun.elapsed() > Duration::from_secs(1),
                "{:?}",
                begun.elapsed()
            );
            came
        })?;
        drop(listener);
        let said = log(site, "h1");
        assert!(said.contains("forwarding continues"), "{said}");
        assert!(site.pings("red-1", "red-2"), "new flows meanwhile");
        fs::remove_file(&socket).unwrap();
        site.start_controller()?;
        back.push(time_until("the hosts take a good one", SOON, || {
            ["h1", "h2"]
                .iter()
                .all(|host| status(site, host)["controller"] == "connected")
        })?);
        site.change(|objects| touch(objects, 4000))?;
        let tally = stream.end();
        assert_eq!((tally.lost(), tally.twice), (0, 0), "{tally:?}");
        Ok(())
    });
    leave_worst(FIGURES, "good_controller_taken", &back).unwrap();
}
