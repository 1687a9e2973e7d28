//! Virtual addresses: those of allowed pairs that ports announce (services, "Virtual addresses that move").

use std::net::IpAddr;

use crate::address::{parse_mac, parse_prefix_or_address};
use crate::v1::{AddressHolder, Port, Subnet};

impl AddressHolder {
    /// The id of that of an address in a VPC. No id has its separator in it.
    pub fn id_of(vpc: &str, address: &str) -> String {
        format!("{vpc}|{address}")
    }

    /// The id that its fields make.
    pub fn own_id(&self) -> String {
        Self::id_of(&self.vpc, &self.address)
    }

    /// Whether its fields fit together, wherever it comes from.
    pub fn is_well_formed(&self) -> bool {
        let address = self.address.parse::<IpAddr>();
        self.id == self.own_id()
            && address.is_ok_and(|address| address.to_string() == self.address)
            && parse_mac(&self.mac).is_ok()
    }

    /// Whether it is newer than what else is known of the address.
    pub fn outdoes(&self, known: &Self) -> bool {
        (self.since_ms, self.moves) > (known.since_ms, known.moves)
    }
}

impl Port {
    /// Whether the port may hold an address by announcing it with a MAC: one of its pairs has both, and the address is within its subnet.
    pub fn may_hold(&self, subnet: &Subnet, address: IpAddr, mac: &str) -> bool {
        let Ok(mac) = parse_mac(mac) else {
            return false;
        };
        let contains =
            |text: &str| parse_prefix_or_address(text).is_ok_and(|it| it.contains(address));
        let mut pairs = self.allowed_pairs.iter();
        subnet.cidrs.iter().any(|cidr| contains(cidr))
            && pairs.any(|pair| {
                let of_pair = match pair.mac.is_empty() {
                    true => &self.mac,
                    false => &pair.mac,
                };
                contains(&pair.cidr) && parse_mac(of_pair) == Ok(mac)
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::v1::AddressPair;

    #[test]
    fn a_port_may_hold_what_a_pair_and_its_subnet_have() {
        let subnet = Subnet {
            cidrs: vec!["10.0.0.0/24".into()],
            ..Subnet::default()
        };
        let pair = |cidr: &str, mac: &str| AddressPair {
            cidr: cidr.into(),
            mac: mac.into(),
        };
        let vmac = "00:00:5E:00:01:07";
        let port = Port {
            mac: "02:00:00:00:00:01".into(),
            allowed_pairs: vec![
                pair("10.0.0.99", ""),
                pair("10.0.0.100/31", vmac),
                pair("10.0.0.0/8", ""),
            ],
            ..Port::default()
        };
        let may = |address: &str, mac: &str| port.may_hold(&subnet, address.parse().unwrap(), mac);
        assert!(may("10.0.0.99", "02:00:00:00:00:01") && may("10.0.0.101", "00:00:5e:00:01:07"));
        assert!(!may("10.0.0.99", vmac) && !may("10.0.1.1", "02:00:00:00:00:01"));
        assert!(!may("10.0.0.99", "no MAC"));
    }

    #[test]
    fn who_announced_it_later_holds_it() {
        let holder = |moves, since_ms| AddressHolder {
            moves,
            since_ms,
            ..AddressHolder::default()
        };
        assert!(holder(1, 9).outdoes(&holder(2, 0)) && holder(2, 8).outdoes(&holder(1, 8)));
        assert!(!holder(1, 8).outdoes(&holder(1, 8)) && !holder(2, 1).outdoes(&holder(1, 99)));
    }
}
