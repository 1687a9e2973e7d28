//! Set-up: system packages, the eBPF toolchain and linker, the eBPF object, the kernels of virtual machines.
//!
//! Each part checks what is installed, prints what it installs or builds, and prints nothing otherwise.

mod apt;
mod ebpf;
mod guest;
pub(crate) mod openstack;
mod toolchain;
pub(crate) mod tools;

use anyhow::Result;

use crate::run;

/// Brings the machine to where the workspace builds and its tests run.
pub(crate) fn setup() -> Result<()> {
    apt::install("the build and the tests", apt::PACKAGES)?;
    let toolchain = toolchain::find_or_install()?;
    let linker = ebpf::linker(&toolchain)?;
    ebpf::build(&toolchain, &linker)?;
    guest::kernel()
}

/// Where LLVM's tools are that go with the compiler of the workspace, installed if they must be.
pub(crate) fn llvm_tools() -> Result<std::path::PathBuf> {
    let llvm = toolchain::llvm_of(&run::output(run::command("rustc").arg("-vV"))?)?;
    apt::install("coverage", &[&format!("llvm-{llvm}")])?;
    Ok(std::path::Path::new(&toolchain::llvm_prefix(llvm)).join("bin"))
}

/// The kernels of hosts that are virtual machines, which `lab vms` and `test machines` need besides [`setup`].
pub(crate) fn machines() -> Result<()> {
    guest::hosts()
}

/// What `bench --peers` needs besides [`setup`].
pub(crate) fn peers() -> Result<()> {
    apt::install("the benchmarks' peers", apt::PEERS)
}
