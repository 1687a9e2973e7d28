//! Health checks of load balancer members and of appliances: their defaults, and what is found by them.

use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::time::Duration;

use crate::v1::{HealthCheck, Listener, LoadBalancer, MemberHealth, PortHealth};

/// What an interval is where none is given, in milliseconds.
const INTERVAL_MS: u32 = 5000;
/// What a timeout is where none is given and the interval is no less, in milliseconds.
const TIMEOUT_MS: u32 = 2000;
/// What `rise` and `fall` are where none is given.
const TIMES: u32 = 2;

impl HealthCheck {
    /// From one question to the next.
    pub fn interval(&self) -> Duration {
        Duration::from_millis(self.interval_or_default().into())
    }

    pub(crate) fn interval_or_default(&self) -> u32 {
        match self.interval_ms {
            0 => INTERVAL_MS,
            given => given,
        }
    }

    /// How long an answer may take.
    pub fn timeout(&self) -> Duration {
        let timeout = match self.timeout_ms {
            0 => TIMEOUT_MS.min(self.interval_or_default()),
            given => given,
        };
        Duration::from_millis(timeout.into())
    }

    /// How many right answers in a row it takes to serve again.
    pub fn rise_or_default(&self) -> u32 {
        or_default(self.rise)
    }

    /// How many failures in a row it takes to serve no more.
    pub fn fall_or_default(&self) -> u32 {
        or_default(self.fall)
    }

    /// The path that is asked for.
    pub fn path_or_default(&self) -> &str {
        if self.path.is_empty() {
            "/"
        } else {
            &self.path
        }
    }

    /// The HTTP codes that are right; none if the text is no list of them.
    pub fn codes(&self) -> Option<Vec<RangeInclusive<u16>>> {
        if self.expected.is_empty() {
            return Some(vec![200..=399]);
        }
        let code = |text: &str| {
            let is_code = text.len() == 3 && text.bytes().all(|it| it.is_ascii_digit());
            let code = text.parse().ok().filter(|_| is_code)?;
            (100..=599).contains(&code).then_some(code)
        };
        let range = |text: &str| {
            let (first, last) = text.split_once('-').unwrap_or((text, text));
            let (first, last) = (code(first)?, code(last)?);
            (first <= last).then_some(first..=last)
        };
        self.expected.split(',').map(range).collect()
    }
}

fn or_default(times: u32) -> u32 {
    match times {
        0 => TIMES,
        given => given,
    }
}

impl MemberHealth {
    /// What is found of a member of a load balancer's listener, that serves at an address and at a port which the listener's first one becomes.
    pub fn of(
        balancer: &LoadBalancer,
        listener: &Listener,
        (address, port): (IpAddr, u32),
    ) -> Self {
        let mut health = Self {
            vpc: balancer.vpc.clone(),
            load_balancer: balancer.id.clone(),
            protocol: listener.protocol.clone(),
            port: listener.port_min,
            address: address.to_string(),
            member_port: port,
            ..Self::default()
        };
        health.id = health.own_id();
        health
    }

    /// The id that its fields make.
    pub fn own_id(&self) -> String {
        format!(
            "{}/{}/{}/{}/{}",
            self.load_balancer, self.protocol, self.port, self.address, self.member_port
        )
    }

    /// What hosts are told: of a member that serves nothing.
    pub fn told(&self) -> Option<Self> {
        (!self.up).then(|| Self {
            reason: String::new(),
            since_ms: 0,
            ..self.clone()
        })
    }
}

impl PortHealth {
    /// What hosts are told: of an appliance that does not live.
    pub fn told(&self) -> Option<Self> {
        (!self.up).then(|| Self {
            reason: String::new(),
            since_ms: 0,
            ..self.clone()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_lists_of_codes_and_ranges() {
        let codes = |expected: &str| {
            let check = HealthCheck {
                expected: expected.into(),
                ..HealthCheck::default()
            };
            check.codes()
        };
        assert_eq!(codes(""), Some(vec![200..=399]));
        assert_eq!(codes("200,301-308"), Some(vec![200..=200, 301..=308]));
        for bad in [
            "2xx", "200-", "-200", "300-200", "99", "600", "200,,201", "+20", "200 ",
        ] {
            assert_eq!(codes(bad), None, "{bad}");
        }
    }

    #[test]
    fn what_is_not_given_has_defaults() {
        let check = HealthCheck::default();
        let times = (check.rise_or_default(), check.fall_or_default());
        assert_eq!(times, (2, 2));
        let periods = |check: &HealthCheck| [check.interval(), check.timeout()];
        assert_eq!(periods(&check), [5, 2].map(Duration::from_secs));
        let often = HealthCheck {
            interval_ms: 500,
            ..check
        };
        assert_eq!(periods(&often), [500, 500].map(Duration::from_millis));
    }
}
