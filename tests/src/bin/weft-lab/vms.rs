//! `cargo xtask lab vms`: the fabric of `vagrant/`, on qemu's machines.

use std::time::Instant;

use anyhow::bail;
use weft_tests::{
    Lab,
    guest::{Card, NicFeatures},
    machine::{Fabric, HostPlan, Kernel},
};

/// Makes the machines, provisions them, and prints what the drivers do and what crosses. Returns whether every line passed.
pub(crate) fn vms(kernel: Option<&str>, vmxnet3: bool) -> anyhow::Result<bool> {
    let begun = Instant::now();
    let kernels = match kernel {
        None => [Kernel::Linux6_12, Kernel::Linux6_1],
        Some("6.12") => [Kernel::Linux6_12; 2],
        Some("6.1") => [Kernel::Linux6_1; 2],
        Some(other) => bail!("no kernel {other}: there are 6.1 and 6.12"),
    };
    let features = NicFeatures {
        // VMware's has its queues in the card; behind it is one.
        queues: if vmxnet3 { 1 } else { 2 },
        card: if vmxnet3 { Card::Vmxnet3 } else { Card::Virtio },
        ..NicFeatures::default()
    };
    let plans = kernels.map(|kernel| HostPlan {
        kernel,
        cards: vec![features.clone()],
    });
    eprintln!("booting three machines …");
    let fabric = Fabric::start(Lab::new()?, &plans)?;
    let booted = begun.elapsed().as_secs_f64();
    eprintln!("provisioning them …");
    let drivers = fabric.provision()?;
    let provisioned = begun.elapsed().as_secs_f64();
    eprintln!("what crosses …");
    let table = fabric.table()?;
    for (host, driver) in drivers {
        println!("{host}\n{driver}");
    }
    print!("{table}");
    eprintln!(
        "booted in {booted:.0} s, provisioned in {:.0} s, the table took {:.0} s",
        provisioned - booted,
        begun.elapsed().as_secs_f64() - provisioned
    );
    Ok(!table.contains("FAIL "))
}
