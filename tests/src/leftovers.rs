//! Finds and removes what a killed program leaves in a network namespace (interfaces, addresses, routes, rules), before the next program
//! runs there.

use std::{collections::BTreeSet, time::Duration};

use crate::{LabError, Namespace, wait_until};

/// Interfaces of a process go a moment after it.
const SOON: Duration = Duration::from_secs(10);

/// Lists of the kernel, as `ip` is asked for them, with the words to take an entry out.
const LISTS: [(&str, &str); 6] = [
    ("-o link show", "link delete"),
    ("-o address show", "address delete"),
    ("-4 route show table main", "-4 route delete"),
    ("-6 route show table main", "-6 route delete"),
    ("-4 rule show", "-4 rule delete"),
    ("-6 rule show", "-6 rule delete"),
];

/// What a namespace has: how to take out each entry.
pub(crate) type Inventory = BTreeSet<String>;

/// An entry of a list, as `ip` is told to take it out.
fn entry(list: &str, line: &str) -> Option<String> {
    let words: Vec<&str> = line.split_whitespace().collect();
    Some(match list {
        "-o link show" => {
            let name = words.get(1)?.trim_end_matches(':');
            name.split('@').next()?.to_owned()
        }
        "-o address show" => {
            // Of a tunnel the other end's address, with the prefix length, comes after its own.
            let (name, address) = (words.get(1)?, words.get(3)?);
            let peer = words.iter().position(|word| *word == "peer");
            let peer = peer.and_then(|at| words.get(at + 1));
            let peer = peer.map_or_else(String::new, |peer| format!(" peer {peer}"));
            format!("{address}{peer} dev {name}")
        }
        "-4 rule show" | "-6 rule show" => {
            format!("priority {}", words.first()?.trim_end_matches(':'))
        }
        // A word on the state of its interface, not of the route.
        _ => words
            .into_iter()
            .filter(|word| *word != "linkdown")
            .collect::<Vec<_>>()
            .join(" "),
    })
}

pub(crate) fn inventory(namespace: &Namespace) -> Result<Inventory, LabError> {
    let mut all = Inventory::new();
    for (list, take_out) in LISTS {
        let text = namespace.ip(list)?;
        let entries = text.lines().filter_map(|line| entry(list, line));
        all.extend(entries.map(|entry| format!("{take_out} {entry}")));
    }
    Ok(all)
}

/// Takes out what was not there before, until the namespace is as it was.
///
/// # Errors
/// Something stays, or something that was there is gone.
pub(crate) fn clear(namespace: &Namespace, before: &Inventory) -> Result<(), LabError> {
    let mut differs = String::new();
    let what = format!("{} is as it was", namespace.label());
    let done = wait_until(&what, SOON, || {
        let Ok(now) = inventory(namespace) else {
            return false;
        };
        for more in now.difference(before) {
            // It may be gone by now, with its interface or its process.
            let _ = namespace.ip(more);
        }
        let other: Vec<_> = now.symmetric_difference(before).cloned().collect();
        differs = other.join(", ");
        other.is_empty()
    });
    done.map_err(|error| LabError::Explained {
        source: Box::new(error),
        text: format!(": {differs}"),
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::Lab;

    #[test]
    fn what_was_added_is_taken_out() {
        let mut lab = Lab::new().unwrap();
        let host = lab.host("left").unwrap();
        host.ip("link add e0 type veth peer name e1").unwrap();
        host.ip("link set e0 up").unwrap();
        host.ip("address add 10.0.1.1/24 dev e0").unwrap();
        let before = inventory(&host).unwrap();
        assert!(before.contains("address delete 10.0.1.1/24 dev e0"));
        for line in [
            "address add 10.0.1.99/32 dev e0",
            "address add fe80::99/128 dev e0",
            "address add 10.96.0.1/32 dev lo",
            "link add v0 type vxlan id 7 local 10.0.1.1 remote 10.0.1.2 dstport 4789 dev e0",
            "link set v0 up",
            "address add 10.98.0.1 peer 10.98.0.2 dev v0",
            "route add unreachable 10.99.0.0/16",
            "-6 route add unreachable fd99::/16",
            "route add 10.97.0.0/16 via 10.0.1.7",
            "rule add priority 220 lookup 220",
            "-6 rule add priority 220 lookup 220",
        ] {
            host.ip(line).unwrap();
        }
        clear(&host, &before).unwrap();
        assert_eq!(inventory(&host).unwrap(), before);
    }
}
