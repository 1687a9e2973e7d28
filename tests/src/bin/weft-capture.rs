//! Makes the captures of `tests/captures` again: each program of `tests/programs` between two namespaces that a plain link joins, with no weft
//! between, recorded. Frames are whole, of at most the MTU, and have their checksums; a capture ends after so many frames.
#![forbid(unsafe_code)]

use std::{fs, net::IpAddr, path::Path, process::Command};

use anyhow::{Context, Result, bail};
use weft_tests::programs::{Exchange, Program};
use weft_tests::{Lab, LinkOptions, wait_until};

/// MAC and addresses of client and server: those of the ports that replay them.
const ENDS: [(&str, &str, &str); 2] = [
    ("02:00:00:00:01:01", "10.0.1.11", "fd00:1::11"),
    ("02:00:00:00:01:02", "10.0.1.12", "fd00:1::12"),
];
/// What a capture may have.
const FRAMES: &str = "120";
const SOON: std::time::Duration = std::time::Duration::from_secs(5);

fn capture(program: &Program, ipv6: bool, file: &Path) -> Result<()> {
    let mut lab = Lab::new()?;
    let ends = [lab.host("client")?, lab.host("server")?];
    let options = LinkOptions {
        mtu: 1430,
        ..LinkOptions::default()
    };
    lab.link((&ends[0], "eth0"), (&ends[1], "eth0"), options)?;
    for (end, (mac, v4, v6)) in ends.iter().zip(ENDS) {
        end.offloads("eth0", "tx off tso off gso off gro off")?;
        end.ip(&format!("link set eth0 address {mac}"))?;
        end.ip(&format!("address add {v4}/24 brd + dev eth0"))?;
        end.ip(&format!("address add {v6}/64 dev eth0"))?;
    }
    let path = file.display().to_string();
    let arguments = ["-i", "eth0", "-n", "-U", "--immediate-mode", "-Z", "root"];
    let mut recorder = ends[0].spawn(
        "tcpdump",
        &[&arguments[..], &["-c", FRAMES, "-w", &path]].concat(),
    )?;
    recorder.wait_for_output("listening on", SOON)?;
    let address = |end: usize| -> Result<IpAddr> {
        let (_, v4, v6) = ENDS[end];
        Ok(if ipv6 { v6 } else { v4 }.parse()?)
    };
    Exchange::start(program, (&ends[0], address(0)?), (&ends[1], address(1)?))?.succeed()?;
    if recorder.is_running() {
        recorder.signal(2);
        wait_until("the recorder ends", SOON, || !recorder.is_running())?;
    }
    Ok(())
}

fn main() -> Result<()> {
    let names: Vec<String> = std::env::args().skip(1).collect();
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("captures");
    fs::create_dir_all(&directory)?;
    let mut failed = Vec::new();
    for program in Program::all()? {
        if !names.is_empty() && !names.contains(&program.name) {
            continue;
        }
        for ipv6 in program.families.clone() {
            let digit = if ipv6 { 6 } else { 4 };
            let file = directory.join(format!("{}-{digit}.pcap", program.name));
            match capture(&program, ipv6, &file) {
                Ok(()) => println!("{}", file.display()),
                Err(error) => failed.push(format!("{}-{digit}: {error:#}", program.name)),
            }
        }
    }
    let size = Command::new("du")
        .arg("-sh")
        .arg(&directory)
        .output()
        .context("du")?;
    print!("{}", String::from_utf8_lossy(&size.stdout));
    if !failed.is_empty() {
        bail!("not captured:\n{}", failed.join("\n"));
    }
    Ok(())
}
