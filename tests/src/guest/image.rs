//! The guests' root file system: busybox, virtio's modules, a few programs of this machine and one of ours with their libraries, and `init.sh`,
//! which runs the test's commands.
//!
//! It is written as the kernel wants it: a cpio archive in the "new ASCII" format (Linux, Documentation/driver-api/early-userspace/
//! buffer-format.rst).

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
};

use crate::{LabError, namespace::output, site::program};

/// Programs that busybox has not, or not with the options that tests want. Called by their path, `/tools/ping`, since busybox prefers its own.
const TOOLS: [&str; 4] = ["dhclient", "ethtool", "iperf3", "ping"];

const DIRECTORY: u32 = 0o040_755;
const PROGRAM: u32 = 0o100_755;

/// Where set-up leaves the kernel and its modules.
pub(crate) fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/guest")
}

/// What a guest is booted from.
#[derive(Debug, Clone)]
pub(super) struct Image {
    pub(super) kernel: PathBuf,
    pub(super) initramfs: PathBuf,
}

/// The image; made once a process, and written only if it is not there as it should be.
pub(super) fn image() -> Result<Image, LabError> {
    static MADE: OnceLock<Image> = OnceLock::new();
    if let Some(image) = MADE.get() {
        return Ok(image.clone());
    }
    let image = Image {
        kernel: directory().join("vmlinuz"),
        initramfs: directory().join("initramfs"),
    };
    keep(&image.initramfs, &archive(&contents()?))?;
    Ok(MADE.get_or_init(|| image).clone())
}

/// Writes a file if it is not there as it should be.
pub(crate) fn keep(path: &Path, bytes: &[u8]) -> Result<(), LabError> {
    if fs::read(path).is_ok_and(|found| found == bytes) {
        return Ok(());
    }
    // Another process may be booting from the old one: it keeps its file.
    let new = path.with_extension(std::process::id().to_string());
    fs::write(&new, bytes)
        .and_then(|()| fs::rename(&new, path))
        .map_err(LabError::io(new.display().to_string()))
}

pub(crate) type Contents = BTreeMap<String, (u32, Vec<u8>)>;

fn contents() -> Result<Contents, LabError> {
    let mut all = Contents::new();
    add(&mut all, "init", include_bytes!("init.sh").to_vec());
    add(&mut all, "dhcp.sh", include_bytes!("dhcp.sh").to_vec());
    add(&mut all, "dhcp6.sh", include_bytes!("dhcp6.sh").to_vec());
    add(&mut all, "bin/busybox", read(Path::new("/bin/busybox"))?);
    let modules = directory().join("modules");
    let entries = fs::read_dir(&modules).map_err(LabError::io(format!(
        "{}: `cargo xtask setup` makes it",
        modules.display()
    )))?;
    for entry in entries {
        let path = entry
            .map_err(LabError::io(modules.display().to_string()))?
            .path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        add(&mut all, &format!("modules/{name}"), read(&path)?);
    }
    for tool in TOOLS {
        let path = output(Command::new("which").arg(tool))?;
        add_program(&mut all, tool, Path::new(path.trim()))?;
    }
    let own = "weft-guest";
    add_program(&mut all, own, &program(own)?)?;
    Ok(all)
}

/// Adds a program and the libraries that it is linked to.
fn add_program(all: &mut Contents, name: &str, path: &Path) -> Result<(), LabError> {
    add(all, &format!("tools/{name}"), read(path)?);
    for library in output(Command::new("ldd").arg(path))?
        .split_whitespace()
        .filter(|word| word.starts_with('/'))
    {
        let inside = library.trim_start_matches('/');
        add(all, inside, read(Path::new(library))?);
    }
    Ok(())
}

pub(crate) fn read(path: &Path) -> Result<Vec<u8>, LabError> {
    fs::read(path).map_err(LabError::io(path.display().to_string()))
}

/// Adds a file, and the directories that it is in.
pub(crate) fn add(all: &mut Contents, path: &str, data: Vec<u8>) {
    for (at, _) in path.match_indices('/') {
        all.entry(path[..at].to_owned())
            .or_insert((DIRECTORY, Vec::new()));
    }
    all.insert(path.to_owned(), (PROGRAM, data));
}

/// The archive of these files.
pub(crate) fn archive(all: &Contents) -> Vec<u8> {
    let mut out = Vec::new();
    // Sorted by name, so a directory comes before what is in it.
    for (inode, (name, (mode, data))) in (1..).zip(all) {
        append(&mut out, inode, name, *mode, data);
    }
    append(&mut out, 0, "TRAILER!!!", 0, &[]);
    out
}

fn append(out: &mut Vec<u8>, inode: usize, name: &str, mode: u32, data: &[u8]) {
    let pad = |out: &mut Vec<u8>| out.resize(out.len().next_multiple_of(4), 0);
    // Inode, mode, user, group, links, time, size, device (2), device that it stands for (2), length of the name with its zero, checksum.
    let fields = [
        inode,
        mode as usize,
        0,
        0,
        1,
        0,
        data.len(),
        0,
        0,
        0,
        0,
        name.len() + 1,
        0,
    ];
    out.extend_from_slice(b"070701");
    for field in fields {
        out.extend_from_slice(format!("{field:08X}").as_bytes());
    }
    out.extend_from_slice(name.as_bytes());
    out.push(0);
    pad(out);
    out.extend_from_slice(data);
    pad(out);
}
