//! Set-up: system packages, the eBPF toolchain and linker, the eBPF object, the kernel for guests.
//!
//! Each part checks what is there, says what it does when it does something, and is silent otherwise.

mod apt;
mod ebpf;
mod guest;
mod toolchain;

use anyhow::Result;

/// Brings the machine to where the workspace builds and its tests run.
pub(crate) fn setup() -> Result<()> {
    apt::install("the build and the tests", apt::PACKAGES)?;
    let toolchain = toolchain::find_or_install()?;
    let linker = ebpf::linker(&toolchain)?;
    ebpf::build(&toolchain, &linker)?;
    guest::kernel()
}

/// What `bench --peers` needs besides [`setup`].
pub(crate) fn peers() -> Result<()> {
    apt::install("the benchmarks' peers", apt::PEERS)
}
