//! How large the region is, from the environment.

use std::str::FromStr;
use std::time::Duration;

use anyhow::Context;

/// The sizes of a run. Each is a variable of the environment; [`Settings::read`] has their names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Settings {
    /// Ports in all.
    pub(super) ports: usize,
    /// VPCs in the scenario of many.
    pub(super) vpcs: usize,
    /// Simulated hosts.
    pub(super) hosts: usize,
    /// Ports in a security group.
    pub(super) group: usize,
    /// Changes of each kind whose time is taken one by one; fewer if they take longer than `time`.
    pub(super) changes: usize,
    /// How long changes of one kind may take in all, and how long clients change at once.
    pub(super) time: Duration,
    /// Hosts that share a connection.
    pub(super) streams: usize,
    /// Every so many hosts one checks digests.
    pub(super) check_every: usize,
    /// With more ports in a VPC, hosts learn them; 0: they are told all.
    pub(super) learn_above: usize,
    /// Whether there is one VPC.
    pub(super) one_vpc: bool,
    /// Whether there are many VPCs.
    pub(super) many_vpcs: bool,
}

impl Settings {
    /// Reads the environment.
    ///
    /// # Errors
    /// A value is none of those that the variable takes.
    pub(super) fn read(get: impl Fn(&str) -> Option<String>) -> anyhow::Result<Self> {
        let number = |name: &str, default: usize, least: usize, most: usize| {
            number(&get, name, default, least, most)
        };
        let hosts = number("WEFT_REGION_HOSTS", 100, 1, 100_000)?;
        // Every host has a port.
        let ports = number("WEFT_REGION_PORTS", 10_000.max(hosts), hosts, 4_000_000)?;
        let scenario = get("WEFT_REGION_SCENARIO").unwrap_or_else(|| "both".to_owned());
        let (one_vpc, many_vpcs) = match scenario.as_str() {
            "one" => (true, false),
            "many" => (false, true),
            "both" => (true, true),
            other => anyhow::bail!("WEFT_REGION_SCENARIO: '{other}' is not one, many or both"),
        };
        Ok(Self {
            ports,
            vpcs: number("WEFT_REGION_VPCS", ports.div_ceil(10), 1, ports)?,
            hosts,
            group: number("WEFT_REGION_GROUP", 1000, 1, ports.max(1000))?,
            changes: number("WEFT_REGION_CHANGES", 100, 1, 100_000)?,
            time: Duration::from_secs(number("WEFT_REGION_SECONDS", 15, 1, 3600)? as u64),
            streams: number("WEFT_REGION_STREAMS", 16, 1, 100)?,
            check_every: number("WEFT_REGION_CHECK_EVERY", 50, 1, 100_000)?,
            learn_above: number("WEFT_REGION_LEARN", 0, 0, 4_000_000)?,
            one_vpc,
            many_vpcs,
        })
    }
}

fn number(
    get: impl Fn(&str) -> Option<String>,
    name: &str,
    default: usize,
    least: usize,
    most: usize,
) -> anyhow::Result<usize> {
    let Some(text) = get(name) else {
        return Ok(default);
    };
    let value = usize::from_str(&text).with_context(|| format!("{name}: '{text}' is no number"))?;
    anyhow::ensure!(
        (least..=most).contains(&value),
        "{name}: {value} is not from {least} to {most}"
    );
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(set: &[(&str, &str)]) -> anyhow::Result<Settings> {
        Settings::read(|name| {
            let found = set.iter().find(|(known, _)| *known == name);
            found.map(|(_, value)| (*value).to_owned())
        })
    }

    #[test]
    fn sizes_follow_from_each_other_and_have_ranges() {
        let short = read(&[]).unwrap();
        assert_eq!((short.ports, short.vpcs, short.hosts), (10_000, 1000, 100));
        let large = read(&[
            ("WEFT_REGION_PORTS", "1000000"),
            ("WEFT_REGION_HOSTS", "2000"),
        ]);
        assert_eq!(large.unwrap().vpcs, 100_000);
        for wrong in [
            ("WEFT_REGION_PORTS", "99"),
            ("WEFT_REGION_VPCS", "10001"),
            ("WEFT_REGION_STREAMS", "many"),
            ("WEFT_REGION_SCENARIO", "two"),
        ] {
            let refused = read(&[wrong]).unwrap_err().to_string();
            assert!(refused.starts_with(wrong.0), "{refused}");
        }
    }
}
