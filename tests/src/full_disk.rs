//! A small file system that a test can fill.

use std::{
    fs::{self, File},
    io::Write,
    path::{Path, PathBuf},
    process::Command,
};

use crate::{LabError, namespace::output};

/// A file system of its own over a directory, with what the directory held. Dropping it takes it off again.
#[derive(Debug)]
pub struct SmallDisk {
    directory: PathBuf,
}

impl SmallDisk {
    /// One of so many kilobytes. Programs that are started after it see it.
    pub fn over(directory: &Path, kilobytes: u32) -> Result<Self, LabError> {
        let read = |path: PathBuf| Ok((fs::read(&path)?, path));
        let entries = fs::read_dir(directory).and_then(|entries| {
            let paths = entries.map(|entry| Ok(entry?.path()));
            paths
                .map(|path: std::io::Result<PathBuf>| path.and_then(read))
                .collect::<std::io::Result<Vec<_>>>()
        });
        let files = entries.map_err(LabError::io(directory.display().to_string()))?;
        let size = format!("size={kilobytes}k");
        output(
            Command::new("mount")
                .args(["-t", "tmpfs", "-o", &size, "tmpfs"])
                .arg(directory),
        )?;
        let disk = Self {
            directory: directory.to_owned(),
        };
        for (bytes, path) in files {
            fs::write(&path, bytes).map_err(LabError::io(path.display().to_string()))?;
        }
        Ok(disk)
    }

    fn ballast(&self) -> PathBuf {
        self.directory.join("ballast")
    }

    /// Leaves no room on it.
    pub fn fill(&self) -> Result<(), LabError> {
        let path = self.ballast();
        let mut file = File::create(&path).map_err(LabError::io(path.display().to_string()))?;
        // Until it fails.
        while file.write_all(&[0x55; 4096]).is_ok() {}
        Ok(())
    }

    /// Makes it one of so many kilobytes.
    pub fn resize(&self, kilobytes: u32) -> Result<(), LabError> {
        let options = format!("remount,size={kilobytes}k");
        let mut mount = Command::new("mount");
        output(mount.args(["-o", &options]).arg(&self.directory)).map(drop)
    }

    /// Takes away what filled it.
    pub fn free(&self) -> Result<(), LabError> {
        let path = self.ballast();
        fs::remove_file(&path).map_err(LabError::io(path.display().to_string()))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Programs may still hold it.
        let _ = Command::new("umount")
            .arg("--lazy")
            .arg(&self.directory)
            .output();
    }
}
