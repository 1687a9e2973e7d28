//! Threaded NAPI for virtual devices.
//!
//! A veth pair has no interrupt. What one end sends is received by the other end's NAPI in the sender's context, packet by packet, within the
//! system call of an AF_XDP socket in copy mode. With a thread of its own (Linux 5.12, `/sys/class/net/*/threaded`), NAPI receives what has
//! gathered meanwhile, and the scheduler can run it on another core than the worker's. Devices with hardware batch by themselves and are left
//! alone.

use std::fs;
use std::path::{Path, PathBuf};

/// A device whose NAPI runs in a thread. Dropped, the device is as it was.
#[derive(Debug)]
pub struct ThreadedNapi {
    path: PathBuf,
    before: String,
}

impl ThreadedNapi {
    /// Moves the NAPI of a virtual device to a thread. None where that is not possible, or not sensible: the device works as well without.
    pub fn enable(interface: &str, index: u32) -> Option<Self> {
        Self::enable_in(Path::new("/sys/class/net"), interface, index)
    }

    fn enable_in(class: &Path, interface: &str, index: u32) -> Option<Self> {
        let device = class.join(interface);
        let read = |name: &str| fs::read_to_string(device.join(name)).ok();
        // A sysfs that was mounted for another network namespace shows other devices.
        let same = read("ifindex")?.trim().parse() == Ok(index);
        if !same || device.join("device").exists() {
            return None;
        }
        let path = device.join("threaded");
        let before = fs::read_to_string(&path).ok()?;
        fs::write(&path, "1").ok()?;
        Some(Self { path, before })
    }
}

impl Drop for ThreadedNapi {
    fn drop(&mut self) {
        // The device may be gone by now.
        let _ = fs::write(&self.path, self.before.trim());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn virtual_devices_alone_are_changed_and_are_as_before_in_the_end() {
        let class = tempfile::tempdir().unwrap();
        for (name, physical) in [("veth0", false), ("nic0", true)] {
            let device = class.path().join(name);
            fs::create_dir(&device).unwrap();
            fs::write(device.join("ifindex"), "7\n").unwrap();
            fs::write(device.join("threaded"), "0\n").unwrap();
            if physical {
                fs::create_dir(device.join("device")).unwrap();
            }
        }
        let threaded = || fs::read_to_string(class.path().join("veth0/threaded")).unwrap();
        assert!(ThreadedNapi::enable_in(class.path(), "nic0", 7).is_none());
        assert!(
            ThreadedNapi::enable_in(class.path(), "veth0", 8).is_none(),
            "another namespace's device"
        );
        assert!(ThreadedNapi::enable_in(class.path(), "none", 7).is_none());
        assert_eq!(threaded(), "0\n");
        let napi = ThreadedNapi::enable_in(class.path(), "veth0", 7).unwrap();
        assert_eq!(threaded(), "1");
        drop(napi);
        assert_eq!(threaded(), "0");
    }
}
