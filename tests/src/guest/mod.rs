//! Real guests: virtual machines under qemu with Debian's kernel and virtio cards, which run one line of shell after another for the test.
//!
//! A guest boots in two to three seconds without hardware's help. `WEFT_GUEST_ACCELERATOR=kvm` uses the processor's. Dropping a guest ends it.

mod console;
pub(crate) mod image;
mod monitor;
mod nic;

use std::{
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use serde_json::json;

pub use console::Output;
pub use nic::{Backend, Card, Nic, NicFeatures};

use crate::{Daemon, LabError, Namespace, wait_until};
use console::Console;
use monitor::Monitor;

/// How long a command in a guest may take by default.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long a boot may take when all of the machine's guests boot at once.
const BOOT: Duration = Duration::from_secs(60);

/// How a guest is made.
#[derive(Debug, Clone)]
pub struct GuestOptions {
    /// Mebibytes of memory.
    pub memory: u32,
    /// Processors.
    pub processors: u16,
    /// Its network cards: `eth0` and on.
    pub nics: Vec<Nic>,
}

impl Default for GuestOptions {
    fn default() -> Self {
        Self {
            memory: 128,
            processors: 1,
            nics: Vec::new(),
        }
    }
}

/// What a virtual machine is booted from, besides what [`GuestOptions`] says.
#[derive(Debug)]
pub(crate) struct Boot {
    pub(crate) kernel: PathBuf,
    pub(crate) initramfs: PathBuf,
    /// More arguments of its kernel's command line.
    pub(crate) append: String,
    /// More of qemu's arguments.
    pub(crate) more: Vec<String>,
}

/// A running guest.
#[derive(Debug)]
pub struct Guest {
    name: String,
    console: Mutex<Console>,
    monitor: Mutex<Monitor>,
    machine: Daemon,
    /// The console output of the guest's kernel.
    kernel_log: PathBuf,
    sockets: [PathBuf; 2],
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Guest {
    /// Starts a guest, its cards' back ends in `host`; returns without waiting for its boot ([`Guest::wait_up`]). Files of it are made in
    /// `directory`, with names that begin with `name`.
    ///
    /// A card that connects to a switch's socket waits for the switch: it must be there.
    pub fn start(
        host: &Namespace,
        name: &str,
        directory: &Path,
        options: &GuestOptions,
    ) -> Result<Self, LabError> {
        let image = image::image()?;
        let boot = Boot {
            kernel: image.kernel,
            initramfs: image.initramfs,
            append: String::new(),
            more: Vec::new(),
        };
        Self::launch(host, name, directory, options, &boot)
    }

    /// Starts a virtual machine whose initramfs has an agent that speaks as `init.sh` does.
    pub(crate) fn launch(
        host: &Namespace,
        name: &str,
        directory: &Path,
        options: &GuestOptions,
        boot: &Boot,
    ) -> Result<Self, LabError> {
        let file = |kind: &str| directory.join(format!("{name}.{kind}"));
        let (agent, control, kernel_log) = (file("agent"), file("qmp"), file("kernel"));
        let accelerator =
            std::env::var("WEFT_GUEST_ACCELERATOR").unwrap_or_else(|_| "tcg".to_owned());
        let mut line: Vec<String> = [
            "-nodefaults",
            "-no-user-config",
            "-display",
            "none",
            "-accel",
            &accelerator,
            "-M",
            "pc,memory-backend=memory",
            // Guests' memory is shared with the switch.
            "-object",
            &format!(
                "memory-backend-memfd,id=memory,size={}M,share=on",
                options.memory
            ),
            "-m",
            &options.memory.to_string(),
            "-smp",
            &options.processors.to_string(),
            "-kernel",
            &boot.kernel.display().to_string(),
            "-initrd",
            &boot.initramfs.display().to_string(),
            "-append",
            &format!("console=ttyS0 quiet panic=-1 net.ifnames=0 {}", boot.append),
            "-serial",
            &format!("file:{}", kernel_log.display()),
            "-chardev",
            &format!(
                "socket,id=agent,path={},server=on,wait=off",
                agent.display()
            ),
            "-serial",
            "chardev:agent",
            "-chardev",
            &format!(
                "socket,id=control,path={},server=on,wait=off",
                control.display()
            ),
            "-mon",
            "chardev=control,mode=control",
        ]
        .map(ToOwned::to_owned)
        .to_vec();
        line.extend_from_slice(&boot.more);
        for nic in &options.nics {
            if let Some((_, socket)) = nic.socket() {
                line.extend(["-chardev".to_owned(), socket]);
            }
            line.extend([
                "-netdev".to_owned(),
                nic.netdev().to_string(),
                "-device".to_owned(),
                nic.device().to_string(),
            ]);
        }
        let mut machine = host.spawn("qemu-system-x86_64", &line)?;
        let opened = Self::open(&mut machine, &agent, &control);
        let (console, monitor) = opened.map_err(|error| LabError::Explained {
            source: Box::new(error),
            text: format!("\n--- qemu of {name}\n{}", machine.log()),
        })?;
        Ok(Self {
            name: name.to_owned(),
            console: Mutex::new(console),
            monitor: Mutex::new(monitor),
            machine,
            kernel_log,
            sockets: [agent, control],
        })
    }

    fn open(
        machine: &mut Daemon,
        agent: &Path,
        control: &Path,
    ) -> Result<(Console, Monitor), LabError> {
        let mut console = None;
        let mut ended = false;
        wait_until("the guest's serial line", PATIENCE, || {
            ended = !machine.is_running();
            if console.is_none() {
                console = Console::open(agent).ok();
            }
            ended || console.is_some()
        })?;
        let gone = || LabError::Deadline {
            what: "qemu ended".to_owned(),
            within: Duration::ZERO,
        };
        let console = console.filter(|_| !ended).ok_or_else(gone)?;
        Ok((console, Monitor::open(control)?))
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The process of its virtual machine.
    pub fn pid(&self) -> u32 {
        self.machine.pid()
    }

    /// Waits until it has booted and can run commands.
    pub fn wait_up(&self) -> Result<(), LabError> {
        let up = locked(&self.console).wait_up(BOOT).map(drop);
        up.map_err(|error| self.explain(error))
    }

    /// Runs one line of shell in the guest, with the default patience.
    pub fn run(&self, line: &str) -> Result<Output, LabError> {
        self.run_within(line, PATIENCE)
    }

    /// Runs one line of shell in the guest; it is killed when the time is over (exit code 137).
    pub fn run_within(&self, line: &str, within: Duration) -> Result<Output, LabError> {
        let output = locked(&self.console).run(line, within);
        output.map_err(|error| self.explain(error))
    }

    /// Runs one line of shell that must succeed, and gives what it printed.
    pub fn succeed(&self, line: &str) -> Result<String, LabError> {
        self.succeed_within(line, PATIENCE)
    }

    /// The same for what may take longer, or shorter.
    pub fn succeed_within(&self, line: &str, within: Duration) -> Result<String, LabError> {
        let Output { code, text } = self.run_within(line, within)?;
        if code == 0 {
            return Ok(text);
        }
        Err(LabError::Failed {
            command: format!("{line} in {}", self.name),
            status: format!("exit code {code}"),
            output: text,
        })
    }

    /// Whether `count` pings to the address are all answered, each within a second.
    pub fn pings(&self, address: &str, count: u32) -> bool {
        let line = format!("/tools/ping -q -n -i 0.05 -W 1 -c {count} {address}");
        self.says(&line)
    }

    /// Has a file of so many random bytes from another guest by TCP (HTTP), and compares what both have: an error if that is not the same. An
    /// IPv6 address is in brackets.
    pub fn fetch(&self, from: &Self, address: &str, bytes: u64) -> Result<(), LabError> {
        from.succeed(&format!(
            "mkdir -p /tmp/www && head -c {bytes} /dev/urandom >/tmp/www/data && (pidof httpd >/dev/null || httpd -h /tmp/www)"
        ))?;
        let sent = from.succeed("sha256sum </tmp/www/data")?;
        let got = self.succeed(&format!("wget -q -O - http://{address}/data | sha256sum"))?;
        if got == sent {
            return Ok(());
        }
        Err(LabError::Failed {
            command: format!("{} fetches {bytes} bytes from {address}", self.name),
            status: "other bytes than were sent".to_owned(),
            output: format!("{sent}{got}"),
        })
    }

    /// Starts a program of the guest in the background, its output in `/tmp/served`; returns when something listens at the port. `table`: the one of
    /// `/proc/net` that shows it (`tcp6`, `udp6`).
    pub fn serve(&self, program: &str, table: &str, port: u16) -> Result<(), LabError> {
        self.succeed(&format!("{program} >/tmp/served 2>&1 &"))?;
        let listening = format!("grep -q ':{port:04X} 0*:0000 ' /proc/net/{table}");
        wait_until(program, PATIENCE, || self.says(&listening))
    }

    /// Gbit/s that one TCP stream carries to another guest's address, or back, over so many seconds (iperf3).
    pub fn throughput(
        &self,
        to: &Self,
        address: &str,
        reverse: bool,
        seconds: u32,
    ) -> Result<f64, LabError> {
        to.serve("/tools/iperf3 -s -1", "tcp6", 5201)?;
        let reverse = if reverse { "-R" } else { "" };
        let text = self.succeed(&format!(
            "/tools/iperf3 -J -t {seconds} {reverse} -c {address}"
        ))?;
        crate::load::gigabits(&text)
    }

    /// Restarts the guest's kernel, and waits until it can run commands again.
    pub fn reboot(&self) -> Result<(), LabError> {
        let mut console = locked(&self.console);
        console.send("reboot -f", PATIENCE)?;
        let up = console.wait_up(BOOT).map(drop);
        drop(console);
        up.map_err(|error| self.explain(error))
    }

    /// Plugs in a card while the guest runs, and waits until its driver has the interface.
    pub fn add_nic(&self, nic: &Nic, interface: &str) -> Result<(), LabError> {
        let mut monitor = locked(&self.monitor);
        if let Some((socket, _)) = nic.socket() {
            monitor.ask("chardev-add", &socket)?;
        }
        monitor.ask("netdev_add", &nic.netdev())?;
        monitor.ask("device_add", &nic.device())?;
        drop(monitor);
        let there = || self.says(&format!("test -e /sys/class/net/{interface}"));
        let what = format!("{interface} in {}", self.name);
        // A slot that has just been emptied may miss that it is filled again: then the guest is told to look.
        wait_until(&what, Duration::from_secs(5), there)
            .or_else(|_| {
                self.succeed("echo 1 >/sys/bus/pci/rescan")?;
                wait_until(&what, PATIENCE, there)
            })
            .map_err(|error| self.explain(error))
    }

    /// Whether a line of shell succeeds.
    pub fn says(&self, line: &str) -> bool {
        self.run(line).is_ok_and(|output| output.code == 0)
    }

    /// Takes a card out while the guest runs; returns when the guest has let it go.
    pub fn remove_nic(&self, nic: &Nic) -> Result<(), LabError> {
        let mut monitor = locked(&self.monitor);
        monitor.ask("device_del", &json!({ "id": nic.id }))?;
        monitor.wait_for("DEVICE_DELETED", &nic.id)?;
        // Its socket goes with it.
        let back = json!({ "id": format!("{}-back", nic.id) });
        monitor.ask("netdev_del", &back).map(drop)
    }

    /// Pulls a card's cable, or puts it back.
    pub fn set_link(&self, nic: &Nic, up: bool) -> Result<(), LabError> {
        locked(&self.monitor)
            .ask("set_link", &json!({ "name": nic.id, "up": up }))
            .map(drop)
    }

    /// Adds what a person would look at first to an error.
    pub fn explain(&self, error: LabError) -> LabError {
        LabError::Explained {
            source: Box::new(error),
            text: self.last_words(),
        }
    }

    /// The last output of the virtual machine and the guest's kernel.
    pub fn last_words(&self) -> String {
        let kernel = std::fs::read(&self.kernel_log).unwrap_or_default();
        let kernel = String::from_utf8_lossy(&kernel).into_owned();
        let lines: Vec<&str> = kernel.lines().collect();
        let last = lines[lines.len().saturating_sub(10)..].join("\n");
        format!(
            "\n--- qemu of {name}\n{}\n--- kernel of {name}\n{last}",
            self.machine.log(),
            name = self.name
        )
    }
}

/// The longest time between two answers in what `ping -D` printed, in seconds; none without two answers.
pub fn longest_gap(pings: &str) -> Option<f64> {
    let times: Vec<f64> = pings
        .lines()
        .filter(|line| line.contains("bytes from"))
        .filter_map(|line| line.strip_prefix('[')?.split(']').next()?.parse().ok())
        .collect();
    let gaps = times.windows(2).map(|pair| pair[1] - pair[0]);
    gaps.max_by(f64::total_cmp)
}

impl Drop for Guest {
    fn drop(&mut self) {
        // The machine is ended by its own drop; the files may be gone with their directory.
        for file in self.sockets.iter().chain([&self.kernel_log]) {
            let _ = std::fs::remove_file(file);
        }
    }
}
