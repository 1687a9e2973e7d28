//! Notifications to the service manager (sd_notify(3)): ready, stopping, and the watchdog's keep-alive. Does nothing when there is no
//! service manager.
//!
//! Not by the crate `sd-notify` (0.5): it cannot reach an abstract socket, and a manager that does not read blocks its caller.

use std::ffi::OsString;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::{Duration, Instant};

/// Connection to the service manager; does nothing if there is none.
#[derive(Debug)]
pub struct Supervisor {
    socket: Option<(UnixDatagram, SocketAddr)>,
    /// How often it wants to hear that we are well.
    every: Option<Duration>,
    told: Instant,
}

impl Supervisor {
    /// The one that the environment names.
    pub fn from_environment() -> Self {
        let variable = |name: &str| std::env::var_os(name);
        Self::new(
            variable("NOTIFY_SOCKET"),
            variable("WATCHDOG_USEC"),
            variable("WATCHDOG_PID"),
        )
    }

    fn new(socket: Option<OsString>, period: Option<OsString>, process: Option<OsString>) -> Self {
        let number = |text: OsString| text.to_str()?.parse::<u64>().ok();
        // Another process may be the one that is watched.
        let is_ours = process
            .and_then(number)
            .is_none_or(|id| id == u64::from(std::process::id()));
        let period = period.and_then(number).filter(|_| is_ours);
        Self {
            socket: socket.and_then(|name| open(name.as_bytes()).ok()),
            // Half the time, as sd_watchdog_enabled(3) recommends.
            every: period.map(|microseconds| Duration::from_micros(microseconds / 2)),
            told: Instant::now(),
        }
    }

    /// Reports that the process is ready for callers and packets.
    pub fn ready(&self) {
        self.say("READY=1");
    }

    /// The process is about to end.
    pub fn stopping(&self) {
        self.say("STOPPING=1");
    }

    /// Watchdog keep-alive, sent at the interval that the service manager wants. A process that stops calling this is restarted.
    pub fn well(&mut self) {
        if self.every.is_some_and(|every| self.told.elapsed() >= every) {
            self.say("WATCHDOG=1");
            self.told = Instant::now();
        }
    }

    fn say(&self, what: &str) {
        if let Some((socket, address)) = &self.socket
            && let Err(error) = socket.send_to_addr(what.as_bytes(), address)
        {
            tracing::warn!(%error, what, "the service manager does not hear");
        }
    }
}

fn open(name: &[u8]) -> io::Result<(UnixDatagram, SocketAddr)> {
    let address = match name.strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name)?,
        None => SocketAddr::from_pathname(std::ffi::OsStr::from_bytes(name))?,
    };
    let socket = UnixDatagram::unbound()?;
    // A manager that does not read is no reason to stand still.
    socket.set_nonblocking(true)?;
    Ok((socket, address))
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::thread;

    use super::*;

    fn heard(manager: &UnixDatagram) -> String {
        let mut text = [0; 64];
        let length = manager.recv(&mut text).unwrap();
        String::from_utf8(text[..length].to_vec()).unwrap()
    }

    #[test]
    fn a_manager_hears_what_it_wants_to_know() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("notify");
        let manager = UnixDatagram::bind(&path).unwrap();
        manager.set_nonblocking(true).unwrap();
        let own = std::process::id().to_string();
        let mut supervisor = Supervisor::new(
            Some(path.into_os_string()),
            Some("0".into()),
            Some(own.into()),
        );
        supervisor.ready();
        supervisor.well();
        supervisor.stopping();
        let said = [(); 3].map(|()| heard(&manager));
        assert_eq!(said, ["READY=1", "WATCHDOG=1", "STOPPING=1"]);
    }

    #[test]
    fn nothing_is_said_too_often_or_for_another_process_or_to_nobody() {
        let abstract_name = format!("@weft-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(&abstract_name[1..]).unwrap();
        let manager = UnixDatagram::bind_addr(&address).unwrap();
        manager.set_nonblocking(true).unwrap();
        let hour = Some("7200000000".into());
        let name = || Some(OsString::from(&abstract_name));
        Supervisor::new(name(), hour.clone(), None).well();
        Supervisor::new(name(), Some("0".into()), Some("1".into())).well();
        Supervisor::new(name(), None, None).well();
        Supervisor::new(None, hour, None).ready();
        let error = manager.recv(&mut [0; 8]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
    }

    #[test]
    fn a_manager_at_an_abstract_address_hears() {
        let name = format!("weft-heard-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(&name).unwrap();
        let manager = UnixDatagram::bind_addr(&address).unwrap();
        manager.set_nonblocking(true).unwrap();
        Supervisor::new(Some(format!("@{name}").into()), None, None).ready();
        assert_eq!(heard(&manager), "READY=1");
    }

    #[test]
    fn a_manager_that_does_not_read_holds_nothing_up() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("notify");
        let _manager = UnixDatagram::bind(&path).unwrap();
        let supervisor = Supervisor::new(Some(path.into_os_string()), None, None);
        let (done, is_done) = mpsc::channel();
        // More than the socket takes, whatever its limits.
        thread::spawn(move || {
            (0..4096).for_each(|_| supervisor.ready());
            done.send(())
        });
        is_done.recv_timeout(Duration::from_secs(10)).unwrap();
    }
}
