//! Stops one thread of a program while the others run.

#![allow(unsafe_code)]

use std::{
    fs, io, ptr,
    sync::mpsc::{Sender, channel},
    thread::{self, JoinHandle},
    time::Duration,
};

use crate::{LabError, wait_until};

/// A thread that is stopped until this is dropped: it is traced (ptrace(2)), and only its tracer, a thread of ours, may let it go on.
#[derive(Debug)]
pub struct HaltedThread {
    release: Option<Sender<()>>,
    tracer: Option<JoinHandle<io::Result<()>>>,
}

impl HaltedThread {
    /// Halts a process's thread of this name.
    pub fn of(pid: u32, name: &str) -> Result<Self, LabError> {
        let what = format!("halting {name} of process {pid}");
        let thread = find(pid, name).map_err(LabError::io(what.clone()))?;
        let (release, released) = channel();
        let tracer = thread::spawn(move || {
            request(libc::PTRACE_SEIZE, thread)?;
            request(libc::PTRACE_INTERRUPT, thread)?;
            // Until the sender goes. The kernel lets go of what a thread traces when the thread ends.
            let _: Result<(), _> = released.recv();
            Ok(())
        });
        let halted = Self {
            release: Some(release),
            tracer: Some(tracer),
        };
        let state = format!("/proc/{pid}/task/{thread}/status");
        wait_until(&what, Duration::from_secs(5), || {
            fs::read_to_string(&state).is_ok_and(|text| text.contains("State:\tt"))
        })?;
        Ok(halted)
    }
}

fn find(pid: u32, name: &str) -> io::Result<i32> {
    for entry in fs::read_dir(format!("/proc/{pid}/task"))? {
        let entry = entry?;
        if fs::read_to_string(entry.path().join("comm"))?.trim() == name
            && let Ok(thread) = entry.file_name().to_string_lossy().parse()
        {
            return Ok(thread);
        }
    }
    Err(io::Error::from(io::ErrorKind::NotFound))
}

fn request(request: libc::c_uint, thread: i32) -> io::Result<()> {
    let none: *mut libc::c_void = ptr::null_mut();
    // SAFETY: neither request reads or writes memory of ours.
    if unsafe { libc::ptrace(request, thread, none, none) } == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

impl Drop for HaltedThread {
    fn drop(&mut self) {
        self.release = None;
        if let Some(tracer) = self.tracer.take() {
            // It only waits.
            let _ = tracer.join();
        }
    }
}
