//! Faults below a daemon while links stay up: transmit queues of uplinks and ports that stop, and XDP programs that another process
//! detaches. Everything else keeps working, losses are counted, and all recovers by itself. `WEFT_OUTAGE_REPORT` is the directory for the
//! figures.

#![allow(clippy::unwrap_used)]

use std::time::{Duration, Instant};

use weft_dataplane::port::{Attachment, PortError, Programs, Role};
use weft_proto::v1::Device;
use weft_tests::figures::leave_worst;
use weft_tests::{
    Lab, LabError, RawSocket, Relay, Site, SiteOptions, TapEnd, stalled_queue, tenants,
    traffic::NumberedStream,
    wait_until,
    xdp_detach::{Attached, Hook},
};

const SOON: Duration = Duration::from_secs(10);
const FIGURES: &str = "WEFT_OUTAGE_REPORT";
/// For how long a queue stands still.
const STILL: Duration = Duration::from_secs(3);
/// How soon traffic goes on when a queue does.
const AGAIN: Duration = Duration::from_secs(1);

fn site(hosts: usize, cores: Vec<Vec<usize>>) -> Site {
    let options = SiteOptions {
        cores,
        ..SiteOptions::default()
    };
    Site::start(Lab::new().unwrap(), &tenants(hosts).unwrap(), &options).unwrap()
}

/// The test's body, with what a person would look at first if it fails.
fn explained(site: &mut Site, body: impl FnOnce(&mut Site) -> Result<(), LabError>) {
    if let Err(error) = body(site) {
        panic!("{}", site.explain(error));
    }
}

/// A number that JSON may have as text.
fn number(value: &serde_json::Value) -> u64 {
    let text = value.as_str().and_then(|text| text.parse().ok());
    value.as_u64().or(text).unwrap_or(0)
}

/// What became of packets on their way to a place: a port, or `uplink:u0`.
#[derive(Debug, Clone, Copy)]
struct Books {
    /// Given to the device.
    out: u64,
    /// Dropped by name.
    dropped: u64,
    /// Lost by the device, and known to be.
    by_device: u64,
}

fn books(site: &Site, host: &str, place: &str) -> Result<Books, LabError> {
    let drops = site.node_json(host, &["drops"])?;
    let stats = site.node_json(host, &["stats"])?;
    let of_place = |list: &serde_json::Value, what: &str| -> u64 {
        let entries = list.as_array().into_iter().flatten();
        let ours = entries.filter(|entry| entry["port"] == place);
        ours.map(|entry| number(&entry[what])).sum()
    };
    Ok(Books {
        out: of_place(&stats["ports"], "tx_packets"),
        dropped: of_place(&drops["reasons"], "packets"),
        by_device: of_place(&stats["ports"], "kernel_drops"),
    })
}

/// Every packet of a stream that went to a place alone is in its books; few others are, such as of neighbour discovery.
fn are_balanced(before: Books, after: Books, sent: u64) -> bool {
    let entered = after.out + after.dropped - before.out - before.dropped;
    (sent..sent + 20).contains(&entered)
}

/// The watchdog blames nobody, and no worker spends its time on a queue that stands still.
fn workers_are_well(site: &Site, host: &str) -> Result<(), LabError> {
    let status = site.node_json(host, &["node", "status"])?;
    for worker in status["workers"].as_array().unwrap() {
        assert_eq!(number(&worker["stalls"]), 0, "{worker}");
    }
    Ok(())
}

/// Waits until nothing more comes of a stream, and says when the last of it came.
fn wait_for_silence(stream: &NumberedStream) -> Result<Instant, LabError> {
    let mut last = (stream.tally().received, Instant::now());
    wait_until("the stream stands still", SOON, || {
        let received = stream.tally().received;
        if received != last.0 {
            last = (received, Instant::now());
        }
        last.1.elapsed() > Duration::from_millis(300)
    })?;
    Ok(last.1)
}

/// Waits until a queue that stands still since some moment moves again, and a stream with it; says how long it took the stream.
fn wait_for_more(stream: &NumberedStream, since: Instant) -> Result<Duration, LabError> {
    let before = stream.tally().received;
    let moves = since + STILL;
    let left = moves.saturating_duration_since(Instant::now());
    wait_until("the stream goes on", left + AGAIN, || {
        stream.tally().received > before
    })?;
    Ok(Instant::now().saturating_duration_since(moves))
}

#[test]
fn an_uplinks_queue_stops_and_goes_on() {
    let mut site = site(3, Vec::new());
    let mut back = Duration::ZERO;
    explained(&mut site, |site| {
        let (host, bridge) = (
            site.hosts["h3"].namespace.clone(),
            site.underlay.clone().unwrap(),
        );
        let far = (&bridge, "b2");
        stalled_queue::prepare((&host, "u0"), far)?;
        let at_home = site.stream("red-3", "red-b", 9, 1000)?;
        // Not to the host at which what has waited arrives at once: its rings overflow for a moment.
        let others = site.stream("blue-2", "blue-1", 9, 1000)?;
        let before = books(site, "h3", "uplink:u0")?;
        let stream = site.stream("blue-3", "blue-2", 10, 2000)?;

        stalled_queue::set(far, STILL)?;
        let since = wait_for_silence(&stream)?;
        stalled_queue::set(far, Duration::ZERO)?;
        wait_until("what does not fit is dropped by name", STILL, || {
            books(site, "h3", "uplink:u0").is_ok_and(|now| now.dropped > before.dropped)
        })?;
        let frames = site.node_json("h3", &["stats"])?["frames"].clone();
        assert!(
            number(&frames["free"]) > number(&frames["transmit"]),
            "{frames}"
        );
        workers_are_well(site, "h3")?;
        back = wait_for_more(&stream, since)?;

        for tally in [at_home.end(), others.end()] {
            assert_eq!((tally.lost(), tally.twice), (0, 0), "{tally:?}");
        }
        let tally = stream.end();
        let after = books(site, "h3", "uplink:u0")?;
        // More is lost where what had waited arrives at once: at the other host.
        assert!(
            are_balanced(before, after, tally.sent),
            "{tally:?} {before:?} {after:?}"
        );
        assert_eq!((tally.twice, after.by_device), (0, before.by_device));
        workers_are_well(site, "h3")?;
        assert!(site.pings("red-3", "red-1") && site.pings("blue-2", "blue-3"));
        site.wait_for_frames()
    });
    leave_worst(FIGURES, "uplink_queue_moves_again", &[back]).unwrap();
}

#[test]
fn a_ports_queue_stops_and_goes_on() {
    let mut site = site(2, Vec::new());
    let mut back = Duration::ZERO;
    explained(&mut site, |site| {
        let (host, guest) = (
            site.hosts["h2"].namespace.clone(),
            site.workloads["blue-2"].namespace.clone(),
        );
        let far = (&guest, "eth0");
        stalled_queue::prepare((&host, "p-blue-2"), far)?;
        let others = [
            site.stream("red-b", "red-2", 9, 1000)?,
            site.stream("blue-1", "blue-b", 9, 1000)?,
        ];
        let before = books(site, "h2", "blue-2")?;
        let stream = site.stream("blue-1", "blue-2", 10, 2000)?;

        stalled_queue::set(far, STILL)?;
        let since = wait_for_silence(&stream)?;
        stalled_queue::set(far, Duration::ZERO)?;
        wait_until("what does not fit is dropped by name", STILL, || {
            books(site, "h2", "blue-2").is_ok_and(|now| now.dropped > before.dropped)
        })?;
        workers_are_well(site, "h2")?;
        back = wait_for_more(&stream, since)?;

        for tally in others.map(NumberedStream::end) {
            assert_eq!((tally.lost(), tally.twice), (0, 0), "{tally:?}");
        }
        let tally = stream.end();
        let after = books(site, "h2", "blue-2")?;
        assert!(
            are_balanced(before, after, tally.sent),
            "{tally:?} {before:?} {after:?}"
        );
        assert_eq!((tally.twice, after.by_device), (0, before.by_device));
        workers_are_well(site, "h2")?;
        assert!(site.pings("blue-2", "blue-1"));
        site.wait_for_frames()
    });
    leave_worst(FIGURES, "port_queue_moves_again", &[back]).unwrap();
}

#[test]
fn one_queue_of_two_of_an_uplink_is_left_unread() {
    let mut site = site(2, vec![vec![0, 1], vec![]]);
    let mut back = Duration::ZERO;
    explained(&mut site, |site| {
        let (one, two) = (
            site.hosts["h1"].namespace.clone(),
            site.hosts["h2"].namespace.clone(),
        );
        // In the place of the link between them, a tap with two queues, and somebody who carries frames between it and the other host.
        one.ip("link del u0")?;
        let ends = TapEnd::make(&one, "u0", 2, 0)?;
        let between = site.controller_namespace.clone();
        two.ip(&format!(
            "link add u0 type veth peer name r0 netns {}",
            between.name()
        ))?;
        between.ip("link set r0 up")?;
        two.ip("link set u0 up")?;
        for (namespace, address) in [(&one, "192.0.2.1"), (&two, "192.0.2.2")] {
            namespace.ip(&format!("address add {address}/24 dev u0"))?;
        }
        let relay = Relay::start(ends, RawSocket::open(&between, "r0")?)?;
        wait_until("traffic crosses", SOON, || {
            site.pings("blue-1", "blue-2") && site.pings("red-1", "red-2")
        })?;

        // Their ports are read by one worker each, and each worker sends by its own queue.
        let start = books(site, "h1", "uplink:u0")?;
        let streams = [
            site.stream("blue-1", "blue-2", 9, 1000)?,
            site.stream("red-1", "red-2", 9, 1000)?,
        ];
        let before = books(site, "h1", "uplink:u0")?;
        relay.halt(1, true);
        let received = || streams.each_ref().map(|stream| stream.tally().received);
        let mut moving = 0;
        wait_until("one of them stands still", SOON, || {
            let earlier = received();
            std::thread::sleep(Duration::from_millis(100));
            let now = received();
            let still = [now[0] == earlier[0], now[1] == earlier[1]];
            moving = usize::from(still[0]);
            still[0] != still[1]
        })?;
        let standing = 1 - moving;
        wait_until("what its device drops is counted", SOON, || {
            let now = books(site, "h1", "uplink:u0");
            now.is_ok_and(|now| now.by_device > before.by_device + 500)
        })?;
        streams[moving].wait_for_more(500)?;
        workers_are_well(site, "h1")?;
        let earlier = streams[standing].tally().received;
        relay.halt(1, false);
        let begun = Instant::now();
        wait_until("the stream goes on", AGAIN, || {
            streams[standing].tally().received > earlier
        })?;
        back = begun.elapsed();

        let tallies = streams.map(NumberedStream::end);
        let after = books(site, "h1", "uplink:u0")?;
        let by_device = after.by_device - before.by_device;
        assert_eq!(tallies[moving].lost(), 0, "{tallies:?}");
        // More is lost where what had waited arrives at once: at the other host.
        assert!(
            tallies[standing].lost() >= by_device,
            "{tallies:?} {after:?}"
        );
        let sent = tallies.iter().map(|tally| tally.sent).sum();
        assert!(
            are_balanced(start, after, sent),
            "{tallies:?} {start:?} {after:?}"
        );
        site.wait_for_frames()?;

        // What arrives by a queue that is new would reach nobody, had the uplink not been opened again.
        let opened = |site: &Site| {
            let log = site.hosts["h1"].daemon.as_ref().unwrap().log();
            log.matches("uplink open").count()
        };
        let before = opened(site);
        let _third = TapEnd::join(&one, "u0")?;
        wait_until("the uplink is opened again", SOON, || opened(site) > before)?;
        assert!(site.pings("blue-1", "blue-2") && site.pings("red-2", "red-1"));
        site.wait_for_frames()
    });
    leave_worst(FIGURES, "unread_queue_is_read_again", &[back]).unwrap();
}

#[test]
fn a_program_that_somebody_takes_off_is_attached_again() {
    let mut site = site(2, Vec::new());
    let (mut uplink, mut port) = (Duration::ZERO, Duration::ZERO);
    explained(&mut site, |site| {
        let host = site.hosts["h2"].namespace.clone();
        let pid = site.hosts["h2"].daemon.as_ref().unwrap().pid();
        let log = |site: &Site| site.hosts["h2"].daemon.as_ref().unwrap().log();
        let program = |interface: &'static str, hook| Attached {
            pid,
            namespace: &host,
            interface,
            hook,
        };
        let at_home = site.stream("red-2", "red-b", 9, 1000)?;
        let stream = site.stream("blue-1", "blue-2", 9, 1000)?;

        let time_until_it_is_back = |program: &Attached<'_>| -> Result<Duration, LabError> {
            program.take_off()?;
            let begun = Instant::now();
            wait_until("the program is attached again", SOON, || program.is_there())?;
            Ok(begun.elapsed())
        };
        uplink = time_until_it_is_back(&program("u0", Hook::Xdp))?;
        stream.wait_for_more(100)?;
        port = time_until_it_is_back(&program("p-blue-2", Hook::Xdp))?;
        assert!(site.pings("blue-2", "blue-1"), "what the port sends");

        // A tap has a second one, which keeps long frames from the host's stack.
        let mut tap = site.objects.ports[0].clone();
        tap.id = "blue-tap".into();
        (tap.host, tap.mac) = ("h2".into(), "02:00:00:00:01:77".into());
        tap.addresses = vec!["10.0.1.77".into()];
        tap.device = Some(Device {
            kind: "tap".into(),
            name: "t0".into(),
            ..Device::default()
        });
        site.change(|objects| objects.ports.push(tap))?;
        let guard = program("t0", Hook::Tcx);
        wait_until("the tap is there", SOON, || guard.is_there())?;
        let _far = TapEnd::of(&host, "t0")?;
        site.wait_for_ports()?;
        time_until_it_is_back(&guard)?;
        site.wait_for_ports()?;

        // Another program in its place: it stays there, weftd says so, and takes the place when it is free.
        let role = Role::Uplink { vteps: Vec::new() };
        let mut theirs = None;
        wait_until("somebody is quicker than weftd", SOON, || {
            // It may not have come back yet.
            let _ = program("u0", Hook::Xdp).take_off();
            let attached =
                host.enter(|| Attachment::attach(&Programs::default(), "u0", &role, None));
            theirs = attached.ok().and_then(Result::ok);
            theirs.is_some()
        })?;
        let theirs = theirs.unwrap();
        let state = |site: &Site| {
            let status = site.node_json("h2", &["node", "status"]);
            status.map_or_else(|_| String::new(), |status| status["uplinks"][0].to_string())
        };
        wait_until("weftd says so", SOON, || {
            state(site) == "\"u0 (no program)\""
        })?;
        let again = host.enter(|| Attachment::attach(&Programs::default(), "u0", &role, None))?;
        assert!(matches!(again, Err(PortError::ProgramBusy { .. })));
        let silent = stream.tally().received;
        assert!(theirs.holds(), "nobody is turned out");
        let told = |site: &Site| log(site).matches("our XDP program was detached").count();
        let before = told(site);
        drop(theirs);
        wait_until("the stream goes on", SOON, || {
            stream.tally().received > silent
        })?;
        wait_until("weftd says so", SOON, || state(site) == "\"u0 (native)\"")?;
        assert_eq!(told(site), before, "{}", log(site));

        let tally = at_home.end();
        assert_eq!((tally.lost(), tally.twice), (0, 0), "{tally:?}");
        assert!(stream.end().received > silent);
        assert!(site.pings("red-1", "red-2"));
        site.wait_for_frames()
    });
    leave_worst(FIGURES, "uplink_program_attached_again", &[uplink]).unwrap();
    leave_worst(FIGURES, "port_program_attached_again", &[port]).unwrap();
}
