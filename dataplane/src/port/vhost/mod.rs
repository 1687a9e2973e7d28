//! Ports of virtual machines by vhost-user: the monitor (qemu) shares its guest's memory over a socket, and a worker serves the guest's virtio
//! rings in it directly.
//!
//! - `control` speaks the protocol, on a thread for each port; `enable` handles one message of it that the library refuses.
//! - `link` hands rings to the worker and takes them back.
//! - `queue` is what the worker serves, over `split` or `packed` rings (virtio 1.2, §2.7, §2.8).
//! - `memory` maps and translates; `guard` handles memory that vanishes.
//!
//! The header ahead of each packet is in [`virtio`](super::virtio).

mod control;
mod enable;
mod guard;
mod link;
mod memory;
mod packed;
mod queue;
mod ring;
mod split;

#[cfg(feature = "fuzzing")]
pub use queue::fuzzing;

use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use vhost::vhost_user::{BackendReqHandler, VhostUserBackendReqHandlerMut};
use weft_proto::v1;

use self::control::Control;
use self::link::Link;
use self::queue::VhostQueue;
use super::device::{Description, Device, Queue};
use super::event::{self, Event};
use super::{Opening, PortError};

/// How long to wait before connecting again.
const RETRY: Duration = Duration::from_millis(20);

/// A guest's port.
#[derive(Debug)]
pub(super) struct VhostUser {
    path: PathBuf,
    queues: Vec<Box<dyn Queue>>,
    links: Vec<Arc<Link>>,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

/// What the port and its thread share.
#[derive(Debug)]
struct Shared {
    stop: AtomicBool,
    wake: Event,
    connected: AtomicBool,
    /// The connection, to be shut from here.
    stream: Mutex<Option<UnixStream>>,
}

impl Shared {
    fn set_stream(&self, stream: Option<UnixStream>) {
        self.connected.store(stream.is_some(), Ordering::Relaxed);
        *self.stream.lock().unwrap_or_else(PoisonError::into_inner) = stream;
    }

    fn stops(&self) -> bool {
        self.stop.load(Ordering::Acquire)
    }
}

impl VhostUser {
    /// Listens at the port's socket, or begins to connect to it.
    ///
    /// # Errors
    /// The socket cannot be created, or another process listens there.
    pub(super) fn open(_opening: &Opening, spec: &v1::Device) -> Result<Self, PortError> {
        let path = PathBuf::from(&spec.name);
        let failed = |source| {
            PortError::from_io(
                format!("socket {}", spec.name),
                "the right to write to its directory",
                source,
            )
        };
        let way = if spec.mode == "client" {
            Way::Connect(path.clone())
        } else {
            Way::Listen(listen(&path).map_err(failed)?)
        };
        let links = (0..spec.queues.max(1))
            .map(|_| Link::new().map(Arc::new))
            .collect::<io::Result<Vec<_>>>()
            .map_err(failed)?;
        let queues = (0u32..)
            .zip(&links)
            .map(|(number, link)| {
                Box::new(VhostQueue::new(number, Arc::clone(link))) as Box<dyn Queue>
            })
            .collect();
        let shared = Arc::new(Shared {
            stop: AtomicBool::new(false),
            wake: Event::new().map_err(failed)?,
            connected: AtomicBool::new(false),
            stream: Mutex::new(None),
        });
        let (theirs, to_serve) = (Arc::clone(&shared), links.clone());
        let thread = std::thread::Builder::new()
            .name("vhost-user".to_owned())
            .spawn(move || serve(&way, &theirs, &to_serve))
            .map_err(failed)?;
        Ok(Self {
            path,
            queues,
            links,
            shared,
            thread: Some(thread),
        })
    }
}

impl Device for VhostUser {
    fn take_queues(&mut self) -> Vec<Box<dyn Queue>> {
        std::mem::take(&mut self.queues)
    }

    fn is_up(&self) -> bool {
        for (number, link) in self.links.iter().enumerate() {
            if let Some(fault) = link.take_fault() {
                tracing::warn!(socket = %self.path.display(), queue = number, %fault, "the guest's driver violated the ring's rules; the queue is stopped until the driver restarts");
            }
        }
        self.links.first().is_some_and(|link| link.is_running())
    }

    fn is_stale(&self) -> bool {
        false
    }

    fn describe(&self) -> Description {
        let state = if self.shared.connected.load(Ordering::Relaxed) {
            "vhost-user"
        } else {
            "vhost-user (not connected)"
        };
        Description {
            mode: state.to_owned(),
            zero_copy: false,
        }
    }
}

impl Drop for VhostUser {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        self.shared.wake.signal();
        // Queues that no worker took go first, so that nobody waits for them.
        self.queues.clear();
        let stream = self.shared.stream.lock();
        if let Some(stream) = &*stream.unwrap_or_else(PoisonError::into_inner) {
            // It may be shut already.
            let _ = stream.shutdown(std::net::Shutdown::Both);
        }
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("a vhost-user thread panicked");
        }
    }
}

/// How the connection comes about.
#[derive(Debug)]
enum Way {
    Listen(Listening),
    Connect(PathBuf),
}

/// A socket that we listen at, removed with us.
#[derive(Debug)]
struct Listening {
    listener: UnixListener,
    path: PathBuf,
}

impl Drop for Listening {
    fn drop(&mut self) {
        // Somebody else may have removed it.
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Listens at a path. A socket that a dead process left there is replaced; anything else is not.
fn listen(path: &Path) -> io::Result<Listening> {
    match std::fs::symlink_metadata(path) {
        Ok(meta) if meta.file_type().is_socket() => {
            if UnixStream::connect(path).is_ok() {
                return Err(io::ErrorKind::AddrInUse.into());
            }
            std::fs::remove_file(path)?;
        }
        Ok(_) => return Err(io::ErrorKind::AlreadyExists.into()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            if let Some(directory) = path.parent() {
                std::fs::create_dir_all(directory)?;
            }
        }
        Err(error) => return Err(error),
    }
    let listener = UnixListener::bind(path)?;
    listener.set_nonblocking(true)?;
    Ok(Listening {
        listener,
        path: path.to_owned(),
    })
}

/// The thread of a port: one connection after another, until it is stopped.
fn serve(way: &Way, shared: &Shared, links: &[Arc<Link>]) {
    while !shared.stops() {
        let stream = match way {
            Way::Listen(listening) => accept(listening, shared),
            Way::Connect(path) => UnixStream::connect(path).ok(),
        };
        let Some(stream) = stream else {
            if matches!(way, Way::Connect(_)) {
                // An interrupted wait is a short one.
                let _ = event::wait(&[shared.wake.fd()], Some(RETRY));
            }
            continue;
        };
        converse(stream, shared, links);
    }
}

/// Waits for a connection.
fn accept(listening: &Listening, shared: &Shared) -> Option<UnixStream> {
    // An interrupted wait is a short one.
    let _ = event::wait(&[listening.listener.as_raw_fd(), shared.wake.fd()], None);
    let (stream, _) = listening.listener.accept().ok()?;
    stream.set_nonblocking(false).ok()?;
    Some(stream)
}

/// Serves one connection until it ends.
fn converse(stream: UnixStream, shared: &Shared, links: &[Arc<Link>]) {
    let (Ok(copy), Ok(mut early)) = (stream.try_clone(), stream.try_clone()) else {
        return;
    };
    shared.set_stream(Some(copy));
    if shared.stops() {
        return;
    }
    let control = Arc::new(Mutex::new(Control::new(links.to_vec())));
    let mut handler = BackendReqHandler::from_stream(stream, Arc::clone(&control));
    let end = loop {
        let locked = || control.lock().unwrap_or_else(PoisonError::into_inner);
        match enable::take(&mut early, |ring, on| {
            locked().set_vring_enable(ring, on).is_ok()
        }) {
            Ok(true) => continue,
            Ok(false) => {}
            Err(error) => break vhost::vhost_user::Error::SocketError(error),
        }
        if let Err(error) = handler.handle_request() {
            break error;
        }
    };
    shared.set_stream(None);
    control
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .close();
    tracing::debug!(%end, "the connection to a virtual machine ended");
}
