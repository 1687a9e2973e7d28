//! The kernel of the tests' guests: Debian's kernel for clouds, unpacked into `target/guest` and not installed. The guests' root file system
//! is made by the tests themselves (`tests/src/guest/image.rs`).

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};

use super::apt;
use crate::run;

const PACKAGE: &str = "linux-image-cloud-amd64";

/// The modules that a guest loads, in this order: what virtio's network device over PCI needs.
const MODULES: [&str; 8] = [
    "drivers/virtio/virtio_ring.ko",
    "drivers/virtio/virtio.ko",
    "drivers/virtio/virtio_pci_legacy_dev.ko",
    "drivers/virtio/virtio_pci_modern_dev.ko",
    "drivers/virtio/virtio_pci.ko",
    "net/core/failover.ko",
    "drivers/net/net_failover.ko",
    "drivers/net/virtio_net.ko",
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

fn copy(from: &Path, to: &PathBuf) -> Result<()> {
    fs::copy(from, to)
        .map(drop)
        .with_context(|| format!("cannot copy {} to {}", from.display(), to.display()))
}
