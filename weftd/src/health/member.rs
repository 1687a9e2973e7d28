//! What is known of one member or appliance: it serves until it has failed so often in a row, and then not until it has answered so often.

use std::net::IpAddr;
use std::time::Duration;

use weft_proto::v1::{HealthCheck, Port};

use super::question::{Ends, Failure, Kind};
use crate::guest::Identity;

/// Whom to ask, what, and how often.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Plan {
    /// The id of the VPC of the port: what was found in one says nothing of another.
    pub(super) vpc: String,
    /// The id of the port that the member is at.
    pub(super) port: String,
    pub(super) kind: Kind,
    /// Who asks; none: the gateway of the port's subnet.
    pub(super) from: Option<IpAddr>,
    /// Where it is asked: an address, and a port unless it is an echo.
    pub(super) to: (IpAddr, u16),
    pub(super) interval: Duration,
    pub(super) timeout: Duration,
    pub(super) rise: u32,
    pub(super) fall: u32,
}

impl Plan {
    /// None if what is asked is unknown.
    pub(super) fn new(
        check: &HealthCheck,
        port: &Port,
        from: Option<IpAddr>,
        to: (IpAddr, u16),
    ) -> Option<Self> {
        Some(Self {
            vpc: port.vpc.clone(),
            port: port.id.clone(),
            kind: Kind::of(check, to.0)?,
            from,
            to,
            interval: check.interval(),
            timeout: check.timeout(),
            rise: check.rise_or_default(),
            fall: check.fall_or_default(),
        })
    }

    /// From whom the question comes, and whom it goes to; none if the port has no gateway of the address's family.
    pub(super) fn ends(&self, port: &Identity) -> Option<Ends> {
        let (to, number) = self.to;
        let gateway = || {
            let all = port.gateways.iter();
            // The first is the subnet's; the link-local one comes last.
            all.copied().find(|it| it.is_ipv4() == to.is_ipv4())
        };
        Some(Ends {
            from: self.from.or_else(gateway)?,
            to,
            port: number,
        })
    }
}

/// How a member stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Standing {
    pub(super) up: bool,
    /// What was wrong with the last answer; empty: nothing.
    pub(super) reason: Failure,
    /// Answers or failures in a row that speak against how it stands.
    against: u32,
    /// Whether it was ever asked.
    is_known: bool,
}

impl Standing {
    /// How one stands that was not asked yet.
    pub(super) fn new(up: bool) -> Self {
        Self {
            up,
            reason: Failure::new(),
            against: 0,
            is_known: false,
        }
    }

    /// Takes an answer up. Whether others have to know.
    pub(super) fn take(&mut self, plan: &Plan, answer: Result<(), Failure>) -> bool {
        let is_right = answer.is_ok();
        let is_first = !std::mem::replace(&mut self.is_known, true);
        self.reason = answer.err().unwrap_or_default();
        if is_right == self.up {
            self.against = 0;
            return is_first;
        }
        self.against += 1;
        let needed = if self.up { plan.fall } else { plan.rise };
        if self.against < needed {
            return is_first;
        }
        (self.up, self.against) = (is_right, 0);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_takes_several_answers_in_a_row_to_change() {
        let from = Some([10, 0, 0, 200].into());
        let to = ([10, 0, 0, 11].into(), 80);
        let check = HealthCheck {
            protocol: "tcp".into(),
            rise: 3,
            fall: 2,
            ..HealthCheck::default()
        };
        let plan = Plan::new(&check, &Port::default(), from, to).unwrap();
        let mut standing = Standing::new(true);
        let mut take = |answers: &str| {
            let answer = |it| (it == '+').then_some(()).ok_or_else(|| "no".to_owned());
            let mut all = answers.chars();
            let news = all.any(|it| standing.take(&plan, answer(it)));
            (news, standing.up)
        };
        assert_eq!(take("+"), (true, true), "it was not known before");
        assert_eq!(take("-+-+"), (false, true));
        assert_eq!(take("--"), (true, false));
        assert_eq!(take("++-++"), (false, false));
        assert_eq!(take("+"), (true, true));
        assert_eq!(standing.reason, "");
    }
}
