//! Least privilege: a process drops, permanently, every capability (capabilities(7)) that it does not need.
//!
//! Capabilities are per thread. Call [`keep_only`] while there is only one thread, so that all later threads inherit the result.

use rustix::io::Errno;
use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, capability_is_in_bounding_set,
    clear_ambient_capability_set, remove_capability_from_bounding_set, set_capabilities,
    set_no_new_privs,
};

pub use rustix::thread::CapabilitySet as Capabilities;

/// What weftd needs for as long as it runs: ports come and go, and each takes an XDP program (`BPF`, `NET_ADMIN`, and `PERFMON`, without
/// which the kernel's verifier refuses to compare pointers), AF_XDP and packet sockets (`NET_RAW`), and settings of interfaces and neighbours
/// (`NET_ADMIN`).
pub const DATAPLANE: CapabilitySet = CapabilitySet::NET_ADMIN
    .union(CapabilitySet::NET_RAW)
    .union(CapabilitySet::BPF)
    .union(CapabilitySet::PERFMON);

/// Gives up every capability but these, of those that the process has: permitted, effective and inheritable ones, and ambient ones; no
/// program that it starts can have more either (bounding set, `no_new_privs`). For a process of one thread.
///
/// # Errors
/// The kernel refuses, which does not happen for dropping capabilities.
pub fn keep_only(needed: CapabilitySet) -> std::io::Result<()> {
    let present = capabilities(None)?;
    // Only who may change the bounding set has anything to lose by it.
    if present.effective.contains(CapabilitySet::SETPCAP) {
        for number in 0..u64::BITS {
            let one = CapabilitySet::from_bits_retain(1 << number);
            match capability_is_in_bounding_set(one) {
                Ok(true) if !needed.contains(one) => remove_capability_from_bounding_set(one)?,
                Ok(_) => {}
                // Beyond the last one that this kernel knows.
                Err(Errno::INVAL) => break,
                Err(error) => return Err(error.into()),
            }
        }
    }
    clear_ambient_capability_set()?;
    let kept = present.permitted & needed;
    set_capabilities(
        None,
        CapabilitySets {
            effective: kept,
            permitted: kept,
            inheritable: CapabilitySet::empty(),
        },
    )?;
    set_no_new_privs(true)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_has_what_it_kept_and_nothing_else_for_good() {
        // Of this thread alone.
        std::thread::spawn(|| {
            let before = capabilities(None).unwrap().permitted;
            let kept = before & CapabilitySet::NET_RAW;
            keep_only(CapabilitySet::NET_RAW).unwrap();
            keep_only(DATAPLANE).unwrap();
            let now = capabilities(None).unwrap();
            assert_eq!((now.permitted, now.effective), (kept, kept));
            assert_eq!(now.inheritable, CapabilitySet::empty());
            let all = CapabilitySets {
                effective: before,
                permitted: before,
                inheritable: before,
            };
            if kept != before {
                assert_eq!(set_capabilities(None, all), Err(Errno::PERM));
            }
        })
        .join()
        .unwrap();
    }
}
