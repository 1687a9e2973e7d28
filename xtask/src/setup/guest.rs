//! The kernels of the tests' virtual machines. That of guests: Debian's kernel for clouds, unpacked into `target/guest` and not installed. The guests' root file system
//! is made by the tests themselves (`tests/src/guest/image.rs`). Those of machines that are hosts come with all their modules.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};

use super::apt;
use crate::run;

const PACKAGE: &str = "linux-image-cloud-amd64";

/// The modules that a guest loads, in this order: what virtio's network device over PCI needs, and VLANs on it.
const MODULES: [&str; 13] = [
    "drivers/virtio/virtio_ring.ko",
    "drivers/virtio/virtio.ko",
    "drivers/virtio/virtio_pci_legacy_dev.ko",
    "drivers/virtio/virtio_pci_modern_dev.ko",
    "drivers/virtio/virtio_pci.ko",
    "net/core/failover.ko",
    "drivers/net/net_failover.ko",
    "drivers/net/virtio_net.ko",
    "net/llc/llc.ko",
    "net/802/stp.ko",
    "net/802/garp.ko",
    "net/802/mrp.ko",
    "net/8021q/8021q.ko",
];

/// Makes `target/guest/vmlinuz` and `target/guest/modules/NN-NAME.ko`, numbered in the order of loading, if they are not there.
pub(crate) fn kernel() -> Result<()> {
    let out = run::target().join("guest");
    // Written last: it says that all is there.
    let stamp = out.join("kernel.stamp");
    let wanted = MODULES.join("\n");
    if fs::read_to_string(&stamp).is_ok_and(|found| found.starts_with(&wanted)) {
        return Ok(());
    }
    eprintln!(
        "set-up: unpacking a kernel for guests into {}",
        out.display()
    );
    let unpacked = out.join("unpacked");
    let modules = out.join("modules");
    for directory in [&unpacked, &modules] {
        if directory.exists() {
            fs::remove_dir_all(directory)
                .with_context(|| format!("cannot remove {}", directory.display()))?;
        }
        fs::create_dir_all(directory)
            .with_context(|| format!("cannot make {}", directory.display()))?;
    }
    let name = apt::unpack(PACKAGE, &unpacked)?;
    let version = name.strip_prefix("linux-image-").unwrap_or(&name);
    copy(
        &unpacked.join("boot").join(format!("vmlinuz-{version}")),
        &out.join("vmlinuz"),
    )?;
    let tree = unpacked.join("lib/modules").join(version).join("kernel");
    for (number, module) in MODULES.iter().enumerate() {
        // One that is not there is built in.
        let from = tree.join(module);
        if let Some(file) = from.file_name().filter(|_| from.exists()) {
            let file = format!("{number:02}-{}", file.to_string_lossy());
            copy(&from, &modules.join(file))?;
        }
    }
    fs::remove_dir_all(&unpacked)
        .with_context(|| format!("cannot remove {}", unpacked.display()))?;
    fs::write(&stamp, format!("{wanted}\n{name}\n"))
        .with_context(|| format!("cannot write {}", stamp.display()))
}

/// Kernels of machines that are hosts (`tests/src/machine`), by the name that the tests have for them: the packages that stand for them.
const HOSTS: [(&str, &str); 2] = [("6.1", PACKAGE), ("6.12", "linux-image-6.12-cloud-amd64")];

/// Makes `target/guest/host-SERIES` with `vmlinuz` and `lib/modules/VERSION`, if it is not there.
pub(crate) fn hosts() -> Result<()> {
    for (series, package) in HOSTS {
        let out = run::target().join("guest").join(format!("host-{series}"));
        let stamp = out.join("stamp");
        if stamp.exists() {
            continue;
        }
        eprintln!(
            "set-up: unpacking Linux {series} for hosts into {}",
            out.display()
        );
        if out.exists() {
            fs::remove_dir_all(&out).with_context(|| format!("cannot remove {}", out.display()))?;
        }
        let unpacked = out.join("unpacked");
        fs::create_dir_all(&unpacked)
            .with_context(|| format!("cannot make {}", unpacked.display()))?;
        let name = apt::unpack(package, &unpacked)?;
        let version = name.strip_prefix("linux-image-").unwrap_or(&name);
        copy(
            &unpacked.join("boot").join(format!("vmlinuz-{version}")),
            &out.join("vmlinuz"),
        )?;
        fs::rename(unpacked.join("lib"), out.join("lib"))
            .with_context(|| format!("{name} has no modules"))?;
        run::step(
            "modules",
            run::command("depmod").arg("-b").arg(&out).arg(version),
        )?;
        fs::remove_dir_all(&unpacked)
            .with_context(|| format!("cannot remove {}", unpacked.display()))?;
        fs::write(&stamp, name).with_context(|| format!("cannot write {}", stamp.display()))?;
    }
    Ok(())
}

fn copy(from: &Path, to: &PathBuf) -> Result<()> {
    fs::copy(from, to)
        .map(drop)
        .with_context(|| format!("cannot copy {} to {}", from.display(), to.display()))
}
