//! `cargo xtask openstack`: the driver by which OpenStack's Neutron drives weft.

use anyhow::Result;

use crate::{binaries, run, setup};

/// Neutron and the driver are installed where the tests look for them.
pub(crate) fn install() -> Result<()> {
    setup::setup()?;
    setup::openstack::install()
}

/// What needs no other program: style, and translation into weft's words.
pub(crate) fn unit_tests() -> Result<()> {
    setup::openstack::install()?;
    let python = || {
        let mut python = run::command(setup::openstack::python());
        python.current_dir(run::root().join("integrations/openstack"));
        python
    };
    run::step(
        "style of the Neutron driver",
        python().args(["-m", "ruff", "check", "-q", "."]),
    )?;
    run::step(
        "tests of the Neutron driver",
        python().args([
            "-W",
            "ignore",
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            "tests/unit",
        ]),
    )
}

/// These, and a real Neutron with hosts in namespaces.
pub(crate) fn test() -> Result<()> {
    setup::setup()?;
    unit_tests()?;
    binaries::build(&[])?;
    run::step(
        "Neutron with hosts in namespaces",
        run::cargo().args([
            "test",
            "--release",
            "--package",
            "weft-tests",
            "--test",
            "openstack",
            "--",
            "--test-threads=1",
        ]),
    )
}
