//! The clock of the benchmarks: the time stamp counter, whose rate is constant.

#![allow(unsafe_code)]

use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// Cycles of the time stamp counter; nanoseconds where there is none.
pub(crate) fn cycles() -> u64 {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: RDTSC reads a register and has no other effect; every x86-64 processor has it.
    unsafe {
        core::arch::x86_64::_rdtsc()
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        static BEGUN: std::sync::OnceLock<std::time::Instant> = std::sync::OnceLock::new();
        let begun = BEGUN.get_or_init(std::time::Instant::now);
        begun.elapsed().as_nanos() as u64
    }
}

/// Cycles of the counter in a second.
pub(crate) fn hertz() -> f64 {
    static HERTZ: OnceLock<f64> = OnceLock::new();
    *HERTZ.get_or_init(|| {
        let (begun, first) = (Instant::now(), cycles());
        while begun.elapsed() < Duration::from_millis(50) {}
        (cycles() - first) as f64 / begun.elapsed().as_secs_f64()
    })
}

/// Core cycles per counter cycle, now: more than 1 while the core is clocked above the counter's rate, less when another process has
/// its time. By a chain of multiplications, three cycles each on the processors that this runs on.
pub(crate) fn pace() -> f64 {
    const LINKS: u64 = 300_000;
    let begun = cycles();
    let end = (0..LINKS).fold(begun | 1, |x, _| {
        std::hint::black_box(x).wrapping_mul(0x9e37_79b9_7f4a_7c15)
    });
    std::hint::black_box(end);
    (3 * LINKS) as f64 / (cycles() - begun) as f64
}

/// Keeps this thread on a core.
pub(crate) fn pin(core: usize) -> anyhow::Result<()> {
    anyhow::ensure!(
        core_affinity::set_for_current(core_affinity::CoreId { id: core }),
        "this process may not run on core {core}"
    );
    Ok(())
}

/// The machine in words: processor, cores, kernel.
pub(crate) fn machine() -> String {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let processors = read("/proc/cpuinfo");
    let model = processors
        .lines()
        .find_map(|line| line.strip_prefix("model name"))
        .and_then(|rest| rest.split(':').nth(1))
        .unwrap_or("unknown processor");
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    format!(
        "{}, {cores} cores, Linux {}",
        model.trim(),
        read("/proc/sys/kernel/osrelease").trim()
    )
}
