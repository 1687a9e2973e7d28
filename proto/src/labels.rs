//! Labels: what people find objects by. Every object of the intent may have some; hosts are not told of them.
//!
//! Keys and values are as those of Kubernetes, so that what is labelled there can be labelled alike here.

use std::collections::BTreeMap;

use crate::state::{Change, Object};

/// Labels by key.
pub type Labels = BTreeMap<String, String>;

/// The longest name, and the longest value, in characters.
const NAME: usize = 63;
/// The longest prefix of a key: a DNS name (RFC 1035 §2.3.4).
const PREFIX: usize = 253;

static NONE: Labels = Labels::new();

/// One arm for each kind that has labels.
macro_rules! labelled {
    ($object:expr, $it:ident => $found:expr, $none:expr) => {
        match $object {
            Object::Host($it) => $found,
            Object::Vpc($it) => $found,
            Object::Quota($it) => $found,
            Object::Peering($it) => $found,
            Object::ExternalNetwork($it) => $found,
            Object::Subnet($it) => $found,
            Object::RouteTable($it) => $found,
            Object::NetworkAcl($it) => $found,
            Object::PrefixList($it) => $found,
            Object::SecurityGroup($it) => $found,
            Object::Port($it) => $found,
            Object::ElasticIp($it) => $found,
            Object::NatGateway($it) => $found,
            Object::LoadBalancer($it) => $found,
            Object::DnsZone($it) => $found,
            Object::GroupMembers(_)
            | Object::LearnedAddress(_)
            | Object::MemberHealth(_)
            | Object::PortHealth(_)
            | Object::MulticastListener(_)
            | Object::AddressHolder(_)
            | Object::PortName(_) => $none,
        }
    };
}

impl Object {
    /// The object's labels.
    pub fn labels(&self) -> &Labels {
        labelled!(self, it => &it.labels, &NONE)
    }

    /// The same, to be changed; none for what is no object of the intent.
    pub fn labels_mut(&mut self) -> Option<&mut Labels> {
        labelled!(self, it => Some(&mut it.labels), None)
    }

    /// The object as hosts are told of it: without labels.
    pub fn without_labels(mut self) -> Self {
        if let Some(labels) = self.labels_mut() {
            labels.clear();
        }
        self
    }
}

impl Change<'_> {
    /// Whether an object changes in its labels alone.
    pub fn is_of_labels(&self) -> bool {
        let (Some(old), Some(new)) = (self.old, self.new) else {
            return false;
        };
        old.labels() != new.labels() && old.clone().without_labels() == new.clone().without_labels()
    }
}

/// The rule that a key breaks, if it does.
pub fn broken_by_key(key: &str) -> Option<&'static str> {
    let (prefix, name) = match key.split_once('/') {
        Some((prefix, name)) => (Some(prefix), name),
        None => (None, key),
    };
    if !is_name(name) {
        return Some(
            "the name of a key is 1 to 63 characters of A-Z a-z 0-9 . _ - and begins and ends with a letter or a digit",
        );
    }
    let is_good = prefix.is_none_or(is_dns_name);
    (!is_good).then_some(
        "the prefix of a key is a DNS name: at most 253 characters of a-z 0-9 - in labels that are joined by dots",
    )
}

/// The rule that a value breaks, if it does.
pub fn broken_by_value(value: &str) -> Option<&'static str> {
    let is_good = value.is_empty() || is_name(value);
    (!is_good).then_some(
        "a value is empty, or at most 63 characters of A-Z a-z 0-9 . _ - and begins and ends with a letter or a digit",
    )
}

fn is_name(text: &str) -> bool {
    let is_end = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_alphanumeric);
    let bytes = text.as_bytes();
    let known = |byte: &u8| byte.is_ascii_alphanumeric() || b"._-".contains(byte);
    bytes.len() <= NAME && is_end(bytes.first()) && is_end(bytes.last()) && bytes.iter().all(known)
}

/// A DNS name as Kubernetes has it (RFC 1123 §2.1, in small letters).
fn is_dns_name(text: &str) -> bool {
    let is_label = |label: &str| {
        let known = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        let is_end = |byte: &u8| *byte != b'-';
        let bytes = label.as_bytes();
        (1..=NAME).contains(&bytes.len())
            && label.bytes().all(known)
            && bytes.first().is_some_and(is_end)
            && bytes.last().is_some_and(is_end)
    };
    text.len() <= PREFIX && text.split('.').all(is_label)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::v1;

    #[test]
    fn keys_and_values_are_as_those_of_kubernetes() {
        let long = "x".repeat(63);
        let prefix = format!("{0}.{0}.{0}.{1}", long, "y".repeat(61));
        for good in [
            "a",
            "app",
            "A.b_c-9",
            "example.com/app",
            "a/b",
            &long,
            &format!("{prefix}/{long}"),
        ] {
            assert_eq!(broken_by_key(good), None, "{good}");
        }
        for bad in [
            "",
            "/a",
            "a/",
            "a/b/c",
            "-a",
            "a-",
            ".a",
            "a b",
            "ä",
            "A.com/a",
            "a..b/c",
            "-a/b",
            "a-/b",
            &format!("{long}x"),
            &format!("{prefix}y/a"),
            &format!("{long}x/a"),
        ] {
            assert!(broken_by_key(bad).is_some(), "{bad}");
        }
        for good in ["", "1", "v1.2_3-x", &long] {
            assert_eq!(broken_by_value(good), None, "{good}");
        }
        for bad in ["-", "a/b", "a b", "a=", "x,", &format!("{long}x")] {
            assert!(broken_by_value(bad).is_some(), "{bad}");
        }
    }

    #[test]
    fn a_change_of_labels_alone_is_known_from_one_of_more() {
        let port = |mac: &str, app: &str| {
            Object::Port(v1::Port {
                id: "p".into(),
                mac: mac.into(),
                labels: Labels::from([("app".to_owned(), app.to_owned())]),
                ..v1::Port::default()
            })
        };
        let is_of_labels = |old: &Object, new: &Object| {
            let (old, new) = (Some(old), Some(new));
            Change { old, new }.is_of_labels()
        };
        assert!(is_of_labels(&port("a", "x"), &port("a", "y")));
        assert!(is_of_labels(
            &port("a", "x").without_labels(),
            &port("a", "y")
        ));
        assert!(!is_of_labels(&port("a", "x"), &port("b", "y")));
        assert!(!is_of_labels(&port("a", "x"), &port("b", "x")));
        let created = Change {
            old: None,
            new: Some(&port("a", "x")),
        };
        assert!(!created.is_of_labels());
    }
}
