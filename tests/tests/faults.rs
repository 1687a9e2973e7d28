//! Every process is killed under traffic, repeatedly: forwarding resumes soon, no acknowledged change is lost, nothing is left in the
//! kernel, and nothing crosses tenants. `WEFT_FAULT_ROUNDS` sets how often each is killed, `WEFT_FAULT_REPORT` the file for the figures.

#![allow(clippy::unwrap_used)]

use std::net::UdpSocket;
use std::time::{Duration, Instant};

use weft_proto::v1::Vpc;
use weft_tests::{Lab, LabError, Site, SiteOptions, tenants, wait_until};

const SOON: Duration = Duration::from_secs(10);

fn rounds() -> u32 {
    let given = std::env::var("WEFT_FAULT_ROUNDS").ok();
    given.map_or(2, |text| text.parse().unwrap())
}

/// XDP programs of ours that the kernel holds, whoever loaded them.
fn programs() -> usize {
    let all = aya::programs::loaded_programs().filter_map(Result::ok);
    all.filter(|program| {
        program
            .name_as_str()
            .is_some_and(|name| name.starts_with("weft_"))
    })
    .count()
}

/// What came of killing one kind of process.
#[derive(Debug, Default)]
struct Figures {
    kills: u32,
    /// Times until the stream went on, in milliseconds, sorted in the end.
    gaps: Vec<f64>,
}

impl Figures {
    fn quantile(&self, part: f64) -> f64 {
        let at = (self.gaps.len().saturating_sub(1) as f64 * part).round() as usize;
        self.gaps.get(at).copied().unwrap_or_default()
    }

    fn json(&self) -> serde_json::Value {
        serde_json::json!({
            "kills": self.kills,
            "gap_ms_median": self.quantile(0.5),
            "gap_ms_p99": self.quantile(0.99),
            "gap_ms_worst": self.quantile(1.0),
        })
    }
}

/// Makes a change that the controller acknowledges; answers its revision.
fn change(site: &Site, number: u32) -> Result<u64, LabError> {
    let (id, vni) = (format!("extra-{number}"), (5000 + number).to_string());
    let said = site.ctl(&["vpc", "create", &id, "--vni", &vni, "-o", "json"])?;
    let said: serde_json::Value = serde_json::from_str(&said).unwrap_or_default();
    let revision = &said["revision"];
    let revision = revision
        .as_u64()
        .or_else(|| revision.as_str()?.parse().ok());
    Ok(revision.unwrap_or_default())
}

#[test]
fn kill_9_of_any_process_is_survived_without_a_hand() {
    let loaded = programs();
    let mut site = Site::start(
        Lab::new().unwrap(),
        &tenants(2).unwrap(),
        &SiteOptions::default(),
    )
    .unwrap();
    let mut figures = [("h1", Figures::default()), ("h2", Figures::default())];
    let mut controller = Figures::default();
    let (mut made, mut lost) = (0, 0);
    let mut body = |site: &mut Site| -> Result<(), LabError> {
        // The other tenant has the same address, and listens at the same port.
        let red = &site.workloads["red-2"].namespace;
        let stranger = red.enter(|| UdpSocket::bind("10.0.1.12:9"))?.unwrap();
        stranger.set_nonblocking(true).unwrap();
        let stream = site.stream("blue-1", "blue-2", 9, 1000)?;
        for _ in 0..rounds() {
            for (host, figures) in &mut figures {
                made += 1;
                let revision = change(site, made)?;
                let begun = Instant::now();
                let mut daemon = site.hosts.get_mut(*host).unwrap().daemon.take().unwrap();
                daemon.signal(libc::SIGKILL);
                daemon.wait(SOON)?;
                let before = stream.tally().received;
                site.start_daemon(host)?;
                wait_until("the stream goes on", SOON, || {
                    stream.tally().received > before
                })?;
                figures.gaps.push(begun.elapsed().as_secs_f64() * 1e3);
                figures.kills += 1;
                wait_until("the host is attached again", SOON, || {
                    let status = site
                        .node_json(host, &["node", "status"])
                        .unwrap_or_default();
                    status["controller"] == "connected"
                })?;
                assert!(revision > 0, "it was acknowledged");
            }
            made += 1;
            change(site, made)?;
            let mut killed = site.controller.take().unwrap();
            killed.signal(libc::SIGKILL);
            killed.wait(SOON)?;
            stream.wait_for_more(20)?;
            site.start_controller()?;
            controller.kills += 1;
            let kept = site.ctl(&["vpc", "list", "-o", "json"])?;
            lost += (1..=made)
                .filter(|number| !kept.contains(&format!("\"extra-{number}\"")))
                .count();
            assert_eq!(lost, 0, "{kept}");
            site.wait_for_hosts()?;
        }
        // A change still gets to everybody.
        site.objects.vpcs.push(Vpc {
            id: "last".into(),
            vni: 4999,
            ..Vpc::default()
        });
        let objects = site.objects.clone();
        site.apply_only(&objects)?;
        site.wait_for_hosts()?;
        assert!(site.pings("blue-1", "blue-2") && site.pings("red-2", "red-1"));
        stream.end();
        let heard = stranger.recv(&mut [0; 64]).map_err(|error| error.kind());
        assert_eq!(
            heard,
            Err(std::io::ErrorKind::WouldBlock),
            "red hears nothing of blue"
        );
        site.wait_for_frames()
    };
    if let Err(error) = body(&mut site) {
        panic!("{}", site.explain(error));
    }
    for (_, figures) in &mut figures {
        figures.gaps.sort_by(f64::total_cmp);
    }
    drop(site);
    // What processes that were killed had loaded went with them.
    wait_until("no program is left", SOON, || programs() <= loaded).unwrap();
    let [(_, sender), (_, receiver)] = &figures;
    let report = serde_json::json!({
        "faults": {
            "weftd of the sender": sender.json(),
            "weftd of the receiver": receiver.json(),
            "weft-controller": {"kills": controller.kills, "acknowledged_changes": made, "lost": lost},
            "cross_tenant_packets": 0,
            "programs_left": programs().saturating_sub(loaded),
        }
    });
    println!("{report}");
    if let Ok(path) = std::env::var("WEFT_FAULT_REPORT") {
        std::fs::write(path, format!("{report}\n")).unwrap();
    }
}
