//! Virtual machines as hosts: under qemu, with one of Debian's kernels and all its modules, real drivers of network cards, and systemd as process 1, for
//! the units of `packaging/` to run in.
//!
//! Such a machine reads the file system of the one that it runs on (virtiofs), and what it writes lies over that and is lost with it: so it has its
//! programs, the repository, and what was built. It boots in ten to fifteen seconds without hardware's help, and then runs lines of shell for the test
//! as any [`Guest`] does.

mod fabric;

use std::{
    ops::Deref,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

pub use fabric::{Fabric, HostPlan};

use crate::guest::{Boot, Guest, GuestOptions, image};
use crate::namespace::output;
use crate::{Daemon, LabError, Namespace, wait_until};

/// Where Debian has the program that shares a file system with a virtual machine.
const SHARERS: [&str; 2] = ["/usr/lib/qemu/virtiofsd", "/usr/libexec/virtiofsd"];
/// What a machine needs to see its root.
const MODULES: [&str; 3] = ["virtio_pci", "virtiofs", "overlay"];
const PATIENCE: Duration = Duration::from_secs(20);

/// Which kernel a machine runs; set-up unpacks them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kernel {
    /// That of Debian 12.
    Linux6_1,
    /// The newer one that Debian 12 has as a backport.
    Linux6_12,
}

impl Kernel {
    /// Its name, such as `6.12`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Linux6_1 => "6.1",
            Self::Linux6_12 => "6.12",
        }
    }

    fn directory(self) -> Result<PathBuf, LabError> {
        let directory = image::directory().join(format!("host-{}", self.name()));
        // The machine is told the name, which is to be the same for all.
        directory.canonicalize().map_err(LabError::io(format!(
            "{}: `cargo xtask setup` makes it",
            directory.display()
        )))
    }

    /// What it is booted from, made if it is not there.
    fn boot(self, name: &str) -> Result<Boot, LabError> {
        let directory = self.directory()?;
        let modules = directory.join("lib/modules");
        let version = std::fs::read_dir(&modules)
            .and_then(|mut entries| entries.next().transpose())
            .map_err(LabError::io(modules.display().to_string()))?
            .map(|entry| entry.file_name())
            .unwrap_or_default();
        let mut all = image::Contents::new();
        image::add(&mut all, "init", include_bytes!("init.sh").to_vec());
        image::add(&mut all, "agent.sh", include_bytes!("agent.sh").to_vec());
        image::add(
            &mut all,
            "bin/busybox",
            image::read(Path::new("/bin/busybox"))?,
        );
        let mut shown = Command::new("modprobe");
        shown.arg("-d").arg(&directory).arg("-S").arg(&version);
        let needed = output(shown.args(["--show-depends", "-a"]).args(MODULES))?;
        // "insmod PATH ARGS" for a module, in the order of loading, and "builtin NAME" for what needs none. Names sort by their number.
        for (number, file) in needed
            .lines()
            .filter_map(|line| line.strip_prefix("insmod "))
            .filter_map(|line| line.split_whitespace().next())
            .enumerate()
        {
            let (path, bytes) = match file.strip_suffix(".xz") {
                Some(path) => (path, uncompressed(file)?),
                None => (file, image::read(Path::new(file))?),
            };
            let base = path.rsplit('/').next().unwrap_or(path);
            image::add(&mut all, &format!("modules/{number:02}-{base}"), bytes);
        }
        let initramfs = directory.join("initramfs");
        image::keep(&initramfs, &image::archive(&all))?;
        Ok(Boot {
            kernel: directory.join("vmlinuz"),
            initramfs,
            append: format!("weft.name={name} weft.modules={}", modules.display()),
            more: Vec::new(),
        })
    }
}

fn uncompressed(file: &str) -> Result<Vec<u8>, LabError> {
    let out = Command::new("xz")
        .args(["-dc", file])
        .output()
        .map_err(LabError::io(format!("xz -dc {file}")))?;
    Ok(out.stdout)
}

/// A running machine. Dropping it ends it.
#[derive(Debug)]
pub struct Machine {
    guest: Guest,
    // After the machine that reads by it.
    _files: Daemon,
}

impl Machine {
    /// Starts a machine, its cards' back ends in `host`, and returns without waiting for its boot ([`Guest::wait_up`]). Files of it are made in
    /// `directory`, with names that begin with `name`.
    pub fn start(
        host: &Namespace,
        name: &str,
        directory: &Path,
        kernel: Kernel,
        options: &GuestOptions,
    ) -> Result<Self, LabError> {
        let mut boot = kernel.boot(name)?;
        let socket = directory.join(format!("{name}.files"));
        let sharer = SHARERS.into_iter().find(|path| Path::new(path).exists());
        let files = host.spawn(
            sharer.unwrap_or("virtiofsd"),
            &[
                "-f".to_owned(),
                format!("--socket-path={}", socket.display()),
                "-o".to_owned(),
                "source=/,cache=always,sandbox=chroot,log_level=err".to_owned(),
            ],
        )?;
        wait_until("the socket of virtiofsd", PATIENCE, || socket.exists())?;
        boot.more = [
            "-chardev".to_owned(),
            format!("socket,id=files,path={}", socket.display()),
            "-device".to_owned(),
            // As for cards over vhost-user: qemu 7.2 crashes under its translator with vectors.
            "vhost-user-fs-pci,chardev=files,tag=root,vectors=0".to_owned(),
        ]
        .to_vec();
        let guest = Guest::launch(host, name, directory, options, &boot)?;
        Ok(Self {
            guest,
            _files: files,
        })
    }
}

impl Deref for Machine {
    type Target = Guest;

    fn deref(&self) -> &Guest {
        &self.guest
    }
}
