//! A region: a controller as users run it, the intent of a whole region in it, and thousands of simulated hosts attached. What is measured: how
//! long a change takes until it is stored and until every host that it concerns has acknowledged it, how many changes a second are stored,
//! what the controller needs for that, and how it and its hosts come back.
//!
//! The controller is a process of its own, with its store on the disk of the temporary directory (`TMPDIR`); the hosts share this process.
//! Sizes are from the environment ([`settings`]). With peers, a port more is also measured in OVN, in turns with ours.

mod controller;
mod fleet;
mod ovn;
mod run;
mod settings;
mod topology;
mod wire;

use settings::Settings;
use topology::Region;

use crate::Row;

pub(crate) fn rows(peers: bool) -> anyhow::Result<Vec<Row>> {
    let settings = Settings::read(|name| std::env::var(name).ok())?;
    let scenarios = [(settings.one_vpc, 1), (settings.many_vpcs, settings.vpcs)];
    let runtime = tokio::runtime::Runtime::new()?;
    let mut rows = Vec::new();
    for (is_asked, vpcs) in scenarios {
        if is_asked {
            let region = Region::new(settings.ports, vpcs, settings.hosts, settings.group);
            rows.extend(runtime.block_on(run::scenario(region, &settings, peers))?);
        }
    }
    Ok(rows)
}
