//! What hosts tell each other of multicast listeners.

use std::net::IpAddr;

use crate::v1::MulticastListener;

/// Sources that a [`MulticastListener`] names at most.
pub const SOURCES: usize = 16;

impl MulticastListener {
    /// That a host tells what its ports in a VPC have joined.
    pub fn tells(vpc: &str, host: &str) -> Self {
        let mut told = Self {
            vpc: vpc.to_owned(),
            host: host.to_owned(),
            ..Self::default()
        };
        told.id = told.own_id();
        told
    }

    /// What ports of a host in a subnet have joined of a group: all sources but some (`exclude`), or some alone. All sources, if there are more than
    /// [`SOURCES`].
    pub fn of(
        (vpc, host, subnet): (&str, &str, &str),
        group: IpAddr,
        (exclude, sources): (bool, &[IpAddr]),
    ) -> Self {
        let is_long = sources.len() > SOURCES;
        let sources = if is_long { &[] } else { sources };
        let mut listener = Self {
            subnet: subnet.to_owned(),
            group: group.to_string(),
            exclude: exclude || is_long,
            sources: sources.iter().map(IpAddr::to_string).collect(),
            ..Self::tells(vpc, host)
        };
        listener.id = listener.own_id();
        listener
    }

    /// The id that its fields make. No id has its separator in it.
    pub fn own_id(&self) -> String {
        let Self {
            vpc,
            host,
            subnet,
            group,
            ..
        } = self;
        match subnet.is_empty() {
            true => format!("{vpc}|{host}"),
            false => format!("{vpc}|{host}|{subnet}|{group}"),
        }
    }

    /// Whether its fields fit together, wherever it comes from.
    pub fn is_well_formed(&self) -> bool {
        let group = self.group.parse::<IpAddr>();
        let is_joined = match group {
            Ok(group) => !self.subnet.is_empty() && group.is_multicast(),
            Err(_) => self.subnet.is_empty() && self.group.is_empty() && self.sources.is_empty(),
        };
        let mut sources = self.sources.iter().map(|it| it.parse::<IpAddr>());
        let of_family = |source: Result<IpAddr, _>| {
            source.is_ok_and(|it| group.as_ref().is_ok_and(|g| g.is_ipv4() == it.is_ipv4()))
        };
        self.id == self.own_id()
            && is_joined
            && self.sources.len() <= SOURCES
            && sources.all(of_family)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn what_is_made_is_well_formed_and_much_of_it_is_widened() {
        let place = ("blue", "h1", "blue-a");
        let tells = MulticastListener::tells("blue", "h1");
        let some = MulticastListener::of(place, ip("ff05::9"), (false, &[ip("fd00::1")]));
        let many: Vec<IpAddr> = (0..17).map(|n| IpAddr::from([10, 0, 0, n])).collect();
        let all = MulticastListener::of(place, ip("239.1.1.1"), (false, &many));
        assert!(all.exclude && all.sources.is_empty());
        assert!(tells.is_well_formed() && some.is_well_formed() && all.is_well_formed());
        let breaks: [fn(&mut MulticastListener); 6] = [
            |it| it.id.push('x'),
            |it| it.vpc = "red".into(),
            |it| it.group = "10.0.0.1".into(),
            |it| it.sources = vec!["10.0.0.1".into()],
            |it| it.sources = vec!["no address".into()],
            |it| it.subnet = String::new(),
        ];
        for break_it in breaks {
            let mut bad = some.clone();
            break_it(&mut bad);
            assert!(!bad.is_well_formed(), "{bad:?}");
        }
    }
}
