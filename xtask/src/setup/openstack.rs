//! OpenStack's Neutron and the driver of `integrations/openstack`, in a Python environment of their own.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::{run, setup::apt};

/// MariaDB's server for Neutron's database, of which no instance is started, and Python's environments.
const PACKAGES: &[&str] = &["mariadb-client-core", "mariadb-server-core", "python3-venv"];

/// The environment's interpreter.
pub(crate) fn python() -> PathBuf {
    run::target().join("openstack/venv/bin/python")
}

/// Makes the environment, or brings it up to date: the driver is installed anew each time, which takes seconds.
pub(crate) fn install() -> Result<()> {
    apt::install("OpenStack", PACKAGES)?;
    let directory = run::target().join("openstack");
    let venv = directory.join("venv");
    let source = run::root().join("integrations/openstack");
    let wanted = source.join("requirements.txt");
    let requirements =
        fs::read_to_string(&wanted).with_context(|| format!("cannot read {}", wanted.display()))?;
    // What is installed says so itself, once all of it is.
    let stamp = directory.join("requirements.txt");
    if fs::read_to_string(&stamp).ok().as_ref() != Some(&requirements) {
        run::step(
            "a Python environment",
            run::command("python3")
                .args(["-m", "venv", "--clear"])
                .arg(&venv),
        )?;
        pip("OpenStack's Neutron", &["-r".as_ref(), wanted.as_os_str()])?;
        fs::write(&stamp, &requirements)
            .with_context(|| format!("cannot write {}", stamp.display()))?;
    }
    let own = ["--force-reinstall", "--no-deps", "--no-build-isolation"];
    let own: Vec<&std::ffi::OsStr> = own.iter().map(AsRef::as_ref).collect();
    pip(
        "weft's driver for Neutron",
        &[&own[..], &[source.as_os_str()]].concat(),
    )
}

fn pip(what: &str, args: &[&std::ffi::OsStr]) -> Result<()> {
    let fixed = [
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
    ];
    run::step(what, run::command(python()).args(fixed).args(args))
}
