//! The demonstration: starts the site, runs the steps, prints a table.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use weft_tests::{GuestKind, Lab, Site, SiteOptions, guest::NicFeatures, put_in_guests};

use crate::balancer;
use crate::guest_steps;
use crate::inside;
use crate::outside;
use crate::steps::{self, Line};
use crate::topology::{MATRIX, topology};

const KEPT: &str = "weft-lab";

fn options() -> SiteOptions {
    SiteOptions {
        externals: BTreeMap::from(["h1", "h2"].map(|host| (host.to_owned(), "x0".to_owned()))),
        daemon: "sessions.capacity = 65536\nmemory.frames = 32768".into(),
        // Guests do not see the link go down while weftd restarts: `-device …,status=off`.
        guest_nic: NicFeatures {
            link_status: false,
            ..NicFeatures::default()
        },
        ..SiteOptions::default()
    }
}

/// Runs the demonstration. Returns whether every line passed.
pub(crate) fn demo(json: bool, keep: bool, guests: bool) -> anyhow::Result<bool> {
    let begun = Instant::now();
    let mut objects = topology()?;
    let mut steps = [
        steps::STEPS,
        balancer::STEPS,
        inside::STEPS,
        outside::STEPS,
        steps::LAST,
    ]
    .concat();
    if guests {
        let ports = ["blue", "red"]
            .map(|tenant| MATRIX.map(|port| format!("{tenant}-{port}")))
            .concat();
        let ports: Vec<&str> = ports.iter().map(String::as_str).collect();
        put_in_guests(&mut objects, GuestKind::VhostClient, &ports);
        steps = guest_steps::STEPS.to_vec();
    }
    eprintln!(
        "making two hosts, a controller, an Internet, and {} workloads of three tenants …",
        objects.ports.len()
    );
    let lab = if keep { Lab::kept(KEPT) } else { Lab::new()? };
    let mut site = Site::start(lab, &objects, &options())?;
    let internet = outside::start_internet(&site)?;
    let mut lines = vec![Line::pass(
        "site",
        begun.elapsed().as_secs_f64(),
        "s until every host has its state and every port is up",
    )];
    for (name, step) in steps {
        eprintln!("{name} …");
        let more = step(&mut site).unwrap_or_else(|error| vec![Line::fail(name, &error)]);
        for line in more.iter().filter(|line| !line.pass) {
            eprintln!("  {} failed: {} {}", line.name, line.figure, line.unit);
        }
        lines.extend(more);
    }
    let passed = lines.iter().all(|line| line.pass);
    if passed {
        eprintln!("done in {:.0} s", begun.elapsed().as_secs_f64());
    } else {
        eprintln!(
            "{}",
            site.explain(weft_tests::LabError::Deadline {
                what: "the demonstration".into(),
                within: Duration::ZERO
            })
        );
    }
    print_table(&lines);
    if keep {
        show_kept(&site);
        std::mem::forget(internet);
        site.keep();
    }
    if json {
        let rows: Vec<_> = lines.iter().map(Line::json).collect();
        println!("{}", serde_json::json!({ "lines": rows }));
    }
    Ok(passed)
}

fn print_table(lines: &[Line]) {
    let width = lines.iter().map(|line| line.name.len()).max().unwrap_or(0);
    for line in lines {
        let verdict = if line.pass { "pass" } else { "FAIL" };
        println!(
            "{verdict}  {:width$}  {:>10}  {}",
            line.name,
            format_figure(line.figure),
            line.unit
        );
    }
}

fn format_figure(figure: f64) -> String {
    if figure.fract() == 0.0 {
        format!("{figure:.0}")
    } else {
        format!("{figure:.2}")
    }
}

fn show_kept(site: &Site) {
    eprintln!("left running; `cargo xtask lab down` removes it. Look around with:");
    eprintln!(
        "  target/release/weftctl --controller unix:{}/controller.sock port list",
        site.directory().display()
    );
    for (id, host) in &site.hosts {
        eprintln!(
            "  target/release/weftctl --node unix:{}/{id}.sock session list   # in {}",
            site.directory().display(),
            host.namespace.name()
        );
    }
    for (id, workload) in &site.workloads {
        eprintln!(
            "  ip netns exec {} ping 10.0.1.12   # as {id}",
            workload.namespace.name()
        );
    }
}

/// Makes the site and leaves it running.
pub(crate) fn up() -> anyhow::Result<bool> {
    down()?;
    let site = Site::start(Lab::kept(KEPT), &topology()?, &options())?;
    let internet = outside::start_internet(&site)?;
    show_kept(&site);
    std::mem::forget(internet);
    site.keep();
    Ok(true)
}

/// Removes what was left running.
pub(crate) fn down() -> anyhow::Result<bool> {
    let removed = Lab::remove_named(KEPT)?;
    let directory = std::env::temp_dir().join(format!("{KEPT}-control"));
    match std::fs::remove_dir_all(&directory) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error.into()),
        _ => {}
    }
    eprintln!("{removed} namespaces removed");
    Ok(true)
}
