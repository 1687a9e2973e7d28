//! DPDK's libraries as peers of our tables: small C programs in `bench/peers`, compiled against libdpdk and run on the core that our own
//! figures are taken on.
//!
//! A program prints one figure per line, `name value`; every other line is ignored. It gets huge pages, as DPDK is meant to have, where the
//! kernel has any to give.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use anyhow::{Context, bail};

/// Huge pages of 2 MiB that a program may take.
const HUGE_PAGES: u32 = 1024;
/// MiB that it may take without them.
const MEMORY: u32 = 4096;
const HUGE_PAGES_FILE: &str = "/proc/sys/vm/nr_hugepages";

/// The core of component benchmarks, ours and the peers': the last one, which has least to do with interrupts.
pub(crate) fn core() -> usize {
    // Asked for once, by a thread that may run anywhere.
    static CORE: OnceLock<usize> = OnceLock::new();
    *CORE.get_or_init(|| {
        std::thread::available_parallelism().map_or(0, |cores| usize::from(cores) - 1)
    })
}

/// Measures on [`core()`] alone.
pub(crate) fn pinned<T: Send>(
    measure: impl FnOnce() -> anyhow::Result<T> + Send,
) -> anyhow::Result<T> {
    pinned_to(core(), measure)
}

/// Measures on one core alone.
pub(crate) fn pinned_to<T: Send>(
    id: usize,
    measure: impl FnOnce() -> anyhow::Result<T> + Send,
) -> anyhow::Result<T> {
    core();
    // In a thread of its own, since what it starts inherits its core.
    let pinned = || {
        let bound = core_affinity::set_for_current(core_affinity::CoreId { id });
        anyhow::ensure!(bound, "cannot run on core {id} alone");
        measure()
    };
    std::thread::scope(|scope| scope.spawn(pinned).join())
        .unwrap_or_else(|_| bail!("a benchmark panicked"))
}

/// Compiles `bench/peers/<program>.c`, runs it with the arguments after the environment layer's own, and reads its figures.
///
/// # Errors
/// There is no compiler or no DPDK (`cargo xtask bench --peers` installs them), or the program fails; what it printed is in the message.
pub(crate) fn run(program: &str, arguments: &[String]) -> anyhow::Result<BTreeMap<String, f64>> {
    let path = compile(program)?;
    let pages = HugePages::reserve(HUGE_PAGES);
    let mut command = Command::new(&path);
    command.args(["--no-pci", "--no-telemetry", "--log-level", "error"]);
    command.args(["-l", &core().to_string()]);
    // Else DPDK leaves out the widest instructions that the processor has.
    command.arg("--force-max-simd-bitwidth=512");
    if pages.is_some() {
        command.arg("--in-memory");
    } else {
        command.args(["--no-shconf", "--no-huge", "-m", &MEMORY.to_string()]);
    }
    let out = command
        .arg("--")
        .args(arguments)
        .output()
        .with_context(|| format!("cannot start {}", path.display()))?;
    let printed = String::from_utf8_lossy(&out.stdout);
    if !out.status.success() {
        let complaints = String::from_utf8_lossy(&out.stderr);
        bail!("{program} failed ({}): {printed}{complaints}", out.status);
    }
    Ok(figures(&printed))
}

fn compile(program: &str) -> anyhow::Result<PathBuf> {
    let bench = Path::new(env!("CARGO_MANIFEST_DIR"));
    let source = bench.join("peers").join(format!("{program}.c"));
    let directory = bench.join("../target/peers");
    fs::create_dir_all(&directory)?;
    let path = directory.join(program);
    let flags = output(Command::new("pkg-config").args(["--cflags", "--libs", "libdpdk"]))
        .context("DPDK is not installed: run `cargo xtask bench --peers`")?;
    output(
        Command::new("cc")
            .args(["-O3", "-march=native", "-Wall", "-o"])
            .arg(&path)
            .arg(&source)
            .args(flags.split_whitespace())
            .arg("-lm"),
    )?;
    Ok(path)
}

fn output(command: &mut Command) -> anyhow::Result<String> {
    let out = command.output()?;
    let complaints = String::from_utf8_lossy(&out.stderr);
    anyhow::ensure!(
        out.status.success(),
        "{:?} failed: {complaints}",
        command.get_program()
    );
    Ok(String::from_utf8_lossy(&out.stdout).into_owned())
}

fn figures(printed: &str) -> BTreeMap<String, f64> {
    let figure = |line: &str| {
        let (name, value) = line.trim().rsplit_once(' ')?;
        Some((name.to_owned(), value.parse().ok()?))
    };
    printed.lines().filter_map(figure).collect()
}

/// Huge pages that the kernel keeps for a peer while this lives.
pub(crate) struct HugePages {
    before: String,
}

impl HugePages {
    /// None when the kernel has not that many to give.
    pub(crate) fn reserve(count: u32) -> Option<Self> {
        let before = fs::read_to_string(HUGE_PAGES_FILE).ok()?;
        let pages = Self { before };
        let had: u32 = pages.before.trim().parse().ok()?;
        fs::write(HUGE_PAGES_FILE, (had + count).to_string()).ok()?;
        let has: u32 = fs::read_to_string(HUGE_PAGES_FILE)
            .ok()?
            .trim()
            .parse()
            .ok()?;
        (has >= had + count).then_some(pages)
    }
}

impl Drop for HugePages {
    fn drop(&mut self) {
        // What cannot be given back stays reserved; the next run says so by finding fewer.
        let _ = fs::write(HUGE_PAGES_FILE, self.before.trim());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_lines_of_a_name_and_a_number() {
        let read = figures("EAL: hello\nfib_ns 3.5\nnot a figure x\n bytes 64000000\n");
        let wanted = [("fib_ns".to_owned(), 3.5), ("bytes".to_owned(), 64e6)];
        assert_eq!(read, BTreeMap::from(wanted));
    }
}
