//! The object file with all programs, and what is common to loading them and reading their maps.

use aya::maps::{MapData, MapError, PerCpuArray};
use aya::programs::{ProgramError, ProgramFd};
use aya::{Ebpf, EbpfLoader};
use weft_ebpf_types::{COUNTERS_MAP, Counter};

use crate::port::{PortError, error::io_error_of};

/// What errors name instead of a port when they concern none in particular.
pub(super) const ALL: &str = "all ports";

static OBJECT: &[u8] = aya::include_bytes_aligned!(env!("WEFT_EBPF_OBJECT"));

/// What loads the object, as often as one likes. To make it takes longer than to use it: it reads all types of the kernel.
#[derive(Debug)]
pub(super) struct Loader(EbpfLoader<'static>);

impl Loader {
    pub(super) fn new() -> Self {
        Self(EbpfLoader::new())
    }

    /// Reads the object and makes its maps. `whose` is for errors, here and below.
    pub(super) fn load(&mut self, whose: &str) -> Result<Ebpf, PortError> {
        let loaded = self.0.load(OBJECT);
        loaded.map_err(|error| program_error(whose, &error))
    }
}

/// A program of the object.
pub(super) fn program<'e, P>(
    ebpf: &'e mut Ebpf,
    name: &str,
    whose: &str,
) -> Result<&'e mut P, PortError>
where
    &'e mut P: TryFrom<&'e mut aya::programs::Program, Error = ProgramError>,
{
    ebpf.program_mut(name)
        .ok_or_else(|| missing(whose, name))?
        .try_into()
        .map_err(|error| program_error(whose, &error))
}

/// A descriptor of a loaded program, for attaching it.
pub(super) fn descriptor(
    fd: Result<&ProgramFd, ProgramError>,
    whose: &str,
) -> Result<ProgramFd, PortError> {
    fd.map_err(|error| program_error(whose, &error))?
        .try_clone()
        .map_err(|error| program_error(whose, &error))
}

/// What its programs counted, summed over the processors.
pub(super) fn counters(ebpf: &Ebpf, whose: &str) -> Result<Vec<(Counter, u64)>, PortError> {
    let problem = |error: MapError| program_error(whose, &error);
    let map = ebpf.map(COUNTERS_MAP);
    let map = map.ok_or_else(|| missing(whose, COUNTERS_MAP))?;
    let map: PerCpuArray<&MapData, u64> = PerCpuArray::try_from(map).map_err(problem)?;
    Counter::ALL
        .into_iter()
        .map(|counter| {
            let cells = map.get(&(counter as u32), 0).map_err(problem)?;
            Ok((counter, cells.iter().sum()))
        })
        .collect()
}

pub(super) fn missing(interface: &str, what: &str) -> PortError {
    PortError::Program {
        interface: interface.to_owned(),
        problem: format!("the object has no {what}"),
    }
}

pub(super) fn program_error(
    interface: &str,
    error: &(dyn std::error::Error + 'static),
) -> PortError {
    let source = io_error_of(error);
    if source.raw_os_error() == Some(libc::EPERM) {
        return PortError::from_io(
            format!("XDP program for {interface}: loading it"),
            "CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON",
            source,
        );
    }
    // The verifier's listing has hundreds of lines; they are for the one who changes the program.
    let text = error.to_string();
    let (problem, listing) = text.split_once("Verifier output").unwrap_or((&text, ""));
    tracing::debug!(interface, listing, "XDP program refused");
    PortError::Program {
        interface: interface.to_owned(),
        problem: problem.trim_end_matches([' ', '.', ':']).to_owned(),
    }
}
