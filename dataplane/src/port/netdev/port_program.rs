//! The port program, loaded once for all ports of a network namespace.
//!
//! Verifying a program takes the kernel some milliseconds, and it waits for a grace period whenever it attaches or detaches a program that no
//! other interface has. With one program for all ports, a host with many ports restarts fast. The program finds the port of a packet by its
//! interface: each has a [`Place`] in the maps.

use std::collections::BTreeMap;
use std::os::fd::RawFd;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use aya::Ebpf;
use aya::maps::{HashMap, MapData, MapError, XskMap};
use aya::programs::{ProgramFd, Xdp};
use aya::util::KernelVersion;
use weft_ebpf_types::{
    Counter, MAX_PORT_QUEUES, PORT_PROGRAM, PORT_SOCKETS_MAP, PORTS_MAP, PortEntry,
};

use super::guard::{self, Guard, Pair};
use super::object::{ALL, Loader, counters, descriptor, missing, program, program_error};
use crate::port::{Interface, PortError};

/// Linux before this has no `tcx`.
const TCX: KernelVersion = KernelVersion::new(6, 6, 0);
/// `BPF_NOEXIST` of `linux/bpf.h`.
const NO_EXIST: u64 = 1;

/// The port program of a network namespace, and the guard of ports.
#[derive(Debug, Default)]
pub(super) struct PortProgram {
    loaded: Mutex<Option<Loaded>>,
    guard: OnceLock<Arc<Pair>>,
}

#[derive(Debug)]
struct Loaded {
    ebpf: Ebpf,
    sockets: Runs,
}

impl PortProgram {
    /// Loads it, unless it is loaded.
    ///
    /// # Errors
    /// The loader fails, or the kernel refuses.
    pub(super) fn load(
        &self,
        object: impl FnOnce() -> Result<Ebpf, PortError>,
    ) -> Result<(), PortError> {
        let mut loaded = self.lock();
        if loaded.is_none() {
            let mut ebpf = object()?;
            let xdp: &mut Xdp = program(&mut ebpf, PORT_PROGRAM, ALL)?;
            xdp.load().map_err(|error| program_error(ALL, &error))?;
            let sockets = Runs::new(MAX_PORT_QUEUES);
            *loaded = Some(Loaded { ebpf, sockets });
        }
        Ok(())
    }

    /// Takes over the guard that an earlier process left, if the process may still ask for it.
    pub(super) fn find_guard(&self) {
        if let Some(pair) = Pair::find() {
            let _ = self.guard.set(Arc::new(pair));
        }
    }

    /// Loads the guard, unless there is one.
    ///
    /// # Errors
    /// The loader fails, or the kernel refuses.
    pub(super) fn load_guard(&self) -> Result<&Arc<Pair>, PortError> {
        if let Some(pair) = self.guard.get() {
            return Ok(pair);
        }
        self.load(|| Loader::new().load(ALL))?;
        let pair = self.with(|loaded| Pair::load(&mut loaded.ebpf))?;
        Ok(self.guard.get_or_init(|| Arc::new(pair)))
    }

    /// Whether an interface is closed by the guard that was taken over or loaded.
    pub(super) fn is_closed(&self, interface: &Interface) -> bool {
        let pair = self.guard.get();
        pair.is_some_and(|pair| pair.is_at(interface.index))
    }

    /// Keeps an interface and the host's stack apart from now on, also when this process is gone. None on a kernel without `tcx`: what arrives is
    /// dropped all the same.
    ///
    /// # Errors
    /// The kernel refuses.
    pub(super) fn close(&self, interface: &Interface) -> Result<Option<Guard>, PortError> {
        match self.load_guard()?.close(interface.index) {
            Ok(guard) => Ok(Some(guard)),
            Err(error) if is_old(&error) => {
                self.close_by_filter(&interface.name)?;
                Ok(None)
            }
            Err(error) => Err(program_error(&interface.name, &error)),
        }
    }

    /// As above, in the way of kernels without `tcx`.
    ///
    /// # Errors
    /// The kernel refuses.
    pub(super) fn close_by_filter(&self, interface: &str) -> Result<(), PortError> {
        self.load(|| Loader::new().load(ALL))?;
        self.with(|loaded| guard::close_by_filter(&mut loaded.ebpf, interface))
    }

    /// Gives an interface its place, with no socket yet.
    ///
    /// # Errors
    /// It has one ([`PortError::ProgramBusy`]), there is no more room, or the kernel refuses.
    pub(super) fn admit(
        self: &Arc<Self>,
        interface: &Interface,
        headroom: u16,
    ) -> Result<Place, PortError> {
        self.load(|| Loader::new().load(ALL))?;
        let queues = interface.receive_queues.max(1);
        let mut place = Place {
            program: Arc::clone(self),
            interface: interface.name.clone(),
            index: interface.index,
            entry: [0, 0, u32::from(headroom), 0],
        };
        self.with(|loaded| {
            let room = loaded.sockets.take(queues).ok_or(PortError::Setting {
                what: "number of receive queues of all ports",
                value: u64::from(MAX_PORT_QUEUES) + u64::from(queues),
                rule: "more than 65536",
            })?;
            let [first, count, ..] = &mut place.entry;
            (*first, *count) = (room, queues);
            let entered = ports(loaded).and_then(|mut ports| {
                let entered = ports.insert(place.index, place.entry, NO_EXIST);
                entered.map_err(|error| match io_kind(&error) {
                    Some(libc::EEXIST) => PortError::ProgramBusy {
                        interface: place.interface.clone(),
                    },
                    _ => program_error(&place.interface, &error),
                })
            });
            if entered.is_err() {
                // Nothing was entered: there is nothing to take out.
                loaded.sockets.give(room, queues);
                place.entry[1] = 0;
            }
            entered
        })?;
        Ok(place)
    }

    fn lock(&self) -> MutexGuard<'_, Option<Loaded>> {
        // What a thread that panicked has left is at worst a place that nobody has.
        self.loaded.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn with<T>(
        &self,
        act: impl FnOnce(&mut Loaded) -> Result<T, PortError>,
    ) -> Result<T, PortError> {
        let mut loaded = self.lock();
        act(loaded.as_mut().ok_or_else(|| missing(ALL, PORT_PROGRAM))?)
    }
}

/// What a port has of the program. Dropped when nothing of the interface runs the program any more.
#[derive(Debug)]
pub(super) struct Place {
    program: Arc<PortProgram>,
    interface: String,
    index: u32,
    entry: PortEntry,
}

impl Place {
    /// Sends the packets of a queue to the socket `fd`, or nowhere.
    pub(super) fn set_socket(&mut self, queue: u32, fd: Option<RawFd>) -> Result<(), PortError> {
        let [first, queues, ..] = self.entry;
        if queue >= queues {
            return Err(PortError::Setting {
                what: "receive queue",
                value: u64::from(queue),
                rule: "beyond those of the interface",
            });
        }
        self.program.with(|loaded| {
            let mut sockets = sockets(loaded)?;
            match fd {
                Some(fd) => sockets.set(first + queue, fd, 0),
                None => sockets.unset(first + queue),
            }
            .map_err(|error| program_error(&self.interface, &error))
        })
    }

    /// Passes frames longer than this to packet sockets.
    pub(super) fn set_longest(&mut self, bytes: u32) -> Result<(), PortError> {
        self.entry[3] = bytes;
        self.program.with(|loaded| {
            let entered = ports(loaded)?.insert(self.index, self.entry, 0);
            entered.map_err(|error| program_error(&self.interface, &error))
        })
    }

    /// The program, to attach it.
    pub(super) fn program(&self) -> Result<ProgramFd, PortError> {
        self.program.with(|loaded| {
            let xdp: &mut Xdp = program(&mut loaded.ebpf, PORT_PROGRAM, ALL)?;
            descriptor(xdp.fd(), ALL)
        })
    }

    /// What the program counted, of all ports together.
    pub(super) fn counters(&self) -> Result<Vec<(Counter, u64)>, PortError> {
        self.program.with(|loaded| counters(&loaded.ebpf, ALL))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let [first, queues, ..] = self.entry;
        if queues == 0 {
            return;
        }
        let left = self.program.with(|loaded| {
            ports(loaded)?
                .remove(&self.index)
                .map_err(|error| program_error(&self.interface, &error))?;
            let mut sockets = sockets(loaded)?;
            for at in first..first + queues {
                // A socket that was closed is no longer there.
                let _ = sockets.unset(at);
            }
            loaded.sockets.give(first, queues);
            Ok(())
        });
        if let Err(error) = left {
            tracing::warn!(interface = self.interface, %error, "cannot free its entry in the port program");
        }
    }
}

/// Whether this is the error of a kernel without `tcx`.
fn is_old(error: &std::io::Error) -> bool {
    error.raw_os_error() == Some(libc::EINVAL)
        && KernelVersion::current().is_ok_and(|kernel| kernel < TCX)
}

/// Parts of a row of numbers that are free.
#[derive(Debug)]
struct Runs(BTreeMap<u32, u32>);

impl Runs {
    fn new(count: u32) -> Self {
        Self(BTreeMap::from([(0, count)]))
    }

    /// Takes so many side by side, the first that there are.
    fn take(&mut self, count: u32) -> Option<u32> {
        let (&first, &free) = self.0.iter().find(|(_, free)| **free >= count)?;
        self.0.remove(&first);
        if free > count {
            self.0.insert(first + count, free - count);
        }
        Some(first)
    }

    /// Gives them back.
    fn give(&mut self, mut first: u32, mut count: u32) {
        if let Some(after) = self.0.remove(&(first + count)) {
            count += after;
        }
        if let Some((&before, &free)) = self.0.range(..first).next_back()
            && before + free == first
        {
            (first, count) = (before, count + free);
        }
        self.0.insert(first, count);
    }
}

fn ports(loaded: &mut Loaded) -> Result<HashMap<&mut MapData, u32, PortEntry>, PortError> {
    let map = loaded.ebpf.map_mut(PORTS_MAP);
    let map = map.ok_or_else(|| missing(ALL, PORTS_MAP))?;
    HashMap::try_from(map).map_err(|error| program_error(ALL, &error))
}

fn sockets(loaded: &mut Loaded) -> Result<XskMap<&mut MapData>, PortError> {
    let map = loaded.ebpf.map_mut(PORT_SOCKETS_MAP);
    let map = map.ok_or_else(|| missing(ALL, PORT_SOCKETS_MAP))?;
    XskMap::try_from(map).map_err(|error| program_error(ALL, &error))
}

fn io_kind(error: &MapError) -> Option<i32> {
    crate::port::error::io_error_of(error).raw_os_error()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_are_taken_once_and_grow_together_again() {
        let mut runs = Runs::new(10);
        assert_eq!(
            [runs.take(3), runs.take(3), runs.take(3)],
            [Some(0), Some(3), Some(6)]
        );
        assert_eq!(
            (runs.take(2), runs.take(1), runs.take(1)),
            (None, Some(9), None)
        );
        for (first, count, most) in [(3, 3, 3), (0, 3, 6), (9, 1, 6), (6, 3, 10)] {
            runs.give(first, count);
            let longest = runs.0.values().max().copied();
            assert_eq!(longest, Some(most), "{runs:?}");
        }
        assert_eq!(runs.take(10), Some(0));
    }
}
