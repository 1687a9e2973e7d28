use super::*;

fn option(family: &str, name: &str, value: &str) -> v1::DhcpOption {
    v1::DhcpOption {
        name: name.into(),
        value: value.into(),
        family: family.into(),
        force: false,
    }
}

#[track_caller]
fn v4(name: &str, value: &str) -> (Code, Vec<u8>) {
    let parsed = parse(&option("", name, value)).unwrap();
    (parsed.code, parsed.value)
}

#[track_caller]
fn v6(name: &str, value: &str) -> (Code, Vec<u8>) {
    let parsed = parse(&option("ipv6", name, value)).unwrap();
    (parsed.code, parsed.value)
}

#[track_caller]
fn refused(family: &str, name: &str, value: &str, expected: &str) {
    let error = parse(&option(family, name, value)).unwrap_err().to_string();
    assert!(error.contains(expected), "{error} lacks {expected}");
}

#[test]
fn values_of_dhcp_are_written_by_their_types() {
    for (name, value, code, bytes) in [
        ("tftp-server", "boot.example", 66, &b"boot.example"[..]),
        ("tftp-server-name", "10.0.0.9", 66, b"10.0.0.9"),
        ("66", "10.0.0.9", 66, b"10.0.0.9"),
        (
            "150",
            "10.0.0.9, 10.0.0.10",
            150,
            &[10, 0, 0, 9, 10, 0, 0, 10],
        ),
        ("ntp-server", "192.0.2.1", 42, &[192, 0, 2, 1]),
        ("mtu", "1400", 26, &[5, 120]),
        ("default-ttl", "64", 23, &[64]),
        ("arp-timeout", "65536", 35, &[0, 1, 0, 0]),
        ("time-offset", "-3600", 2, &[0xff, 0xff, 0xf1, 0xf0]),
        ("ip-forward-enable", "true", 19, &[1]),
        ("vendor-encap", "hex:0A0b", 43, &[10, 11]),
        ("224", "hex:00ff", 224, &[0, 255]),
        ("224", "plain", 224, b"plain"),
        ("wpad", "http://w/wpad.dat", 252, b"http://w/wpad.dat"),
        (
            "static-route",
            "10.9.0.1,10.0.0.1",
            33,
            &[10, 9, 0, 1, 10, 0, 0, 1],
        ),
        (
            "domain-search",
            "a.bc,d",
            119,
            &[1, b'a', 2, b'b', b'c', 0, 1, b'd', 0],
        ),
        (
            "classless-static-route",
            "0.0.0.0/0,10.0.0.2,10.9.128.0/17,10.0.0.3",
            121,
            &[0, 10, 0, 0, 2, 17, 10, 9, 128, 10, 0, 0, 3],
        ),
    ] {
        assert_eq!(v4(name, value), (Code::V4(code), bytes.to_vec()), "{name}");
    }
    let next_server = (Code::NextServer, vec![10, 0, 0, 9]);
    assert_eq!(v4("server-ip-address", "10.0.0.9"), next_server);
    assert_eq!(v4("mtu", ""), (Code::V4(26), vec![]));
}

#[test]
fn values_of_dhcpv6_are_written_by_their_types() {
    let one = [&[0x20, 1, 0xd, 0xb8][..], &[0; 11], &[1]].concat();
    assert_eq!(v6("dns-server", "2001:db8::1"), (Code::V6(23), one.clone()));
    let search = vec![1, b'a', 0];
    assert_eq!(v6("domain-search", "a"), (Code::V6(24), search.clone()));
    assert_eq!(
        v6("59", "tftp://[::1]/f"),
        (Code::V6(59), b"tftp://[::1]/f".to_vec())
    );
    let params = vec![0, 1, b'a', 0, 2, b'b', b'c'];
    assert_eq!(v6("bootfile-param", "a,bc"), (Code::V6(60), params));
    let ntp = [&[0, 1, 0, 16][..], &one, &[0, 3, 0, 3], &search].concat();
    assert_eq!(v6("ntp-server", "2001:db8::1,a"), (Code::V6(56), ntp));
    assert_eq!(v6("65535", "x"), (Code::V6(65535), b"x".to_vec()));
}

#[test]
fn what_is_not_for_anybody_to_give_is_refused_by_its_name() {
    for (name, expected) in [
        ("router", "name: 'router' is the subnet's gateway"),
        ("1", "name: '1' is the mask"),
        ("hostname", "is the port's hostname"),
        ("lease-time", "is the subnet's lease_seconds"),
        ("58", "follows from"),
        ("53", "belongs to the protocol"),
        ("61", "is what clients say"),
        ("client-machine-id", "is what clients say"),
        ("0", "name: 0 is outside 1 to 254"),
        ("255", "name: 255 is outside 1 to 254"),
        ("99999999999999999999", "is outside 1 to 254"),
        (
            "bootfile",
            "name: 'bootfile' is not the name of a DHCP option",
        ),
        ("", "name: '' is not the name"),
        ("bootfile-url", "is not the name of a DHCP option"),
    ] {
        refused("ipv4", name, "x", expected);
    }
    refused("ipv6", "2", "x", "belongs to the protocol");
    refused("ipv6", "0", "x", "name: 0 is outside 1 to 65535");
    refused("ipv6", "wpad", "x", "is not the name of a DHCPv6 option");
    refused("inet", "66", "x", "family: 'inet' is not one of ipv4, ipv6");
}

#[test]
fn values_of_the_wrong_type_or_length_are_refused() {
    let long = "x".repeat(256);
    for (name, value, expected) in [
        (
            "ntp-server",
            "pool.ntp.org",
            "value: of ntp-server: 'pool.ntp.org' is not an IPv4",
        ),
        ("ntp-server", "10.0.0.1,", "'' is not an IPv4 address"),
        ("ntp-server", "fd00::1", "'fd00::1' is not an IPv4"),
        ("mtu", "67", "67 is outside 68 to 65535"),
        ("mtu", "65536", "'65536' is not a number from 0 to 65535"),
        ("default-ttl", "0", "0 is outside 1 to 255"),
        ("ip-forward-enable", "yes", "'yes' is not true or false"),
        ("vendor-encap", "0a0b", "'0a0b' is not hex: and bytes"),
        ("vendor-encap", "hex:0a0", "is not hex: and bytes"),
        ("vendor-encap", "hex:+a", "is not hex: and bytes"),
        ("vendor-encap", "hex:", "no bytes"),
        (
            "66",
            "a\nb",
            "'a\\nb' is not a text without control characters",
        ),
        ("67", &long, "256 bytes are more than an option's 255"),
        ("domain-search", "a..b", "'a..b' is not a domain name"),
        (
            "classless-static-route",
            "10.0.0.0/8",
            "every prefix needs a next hop",
        ),
        ("classless-static-route", "10.0.0.1/8,10.0.0.1", "host bits"),
        ("static-route", "10.0.0.1", "addresses come in pairs"),
        ("ipv6-only", "299", "299 is outside 300"),
    ] {
        refused("", name, value, expected);
    }
    refused("ipv6", "dns-server", "10.0.0.1", "is not an IPv6 address");
    let forced = v1::DhcpOption {
        force: true,
        ..option("", "server-ip-address", "10.0.0.1")
    };
    assert_eq!(parse(&forced).unwrap_err().field, "force");
}

#[test]
fn every_name_is_of_one_option_and_none_is_reserved() {
    let mut seen = std::collections::HashSet::new();
    for known in KNOWN {
        assert_eq!(table::reserved(known.code), None, "{:?}", known.names);
        let is_v6 = matches!(known.code, Code::V6(_));
        for name in known.names {
            assert!(seen.insert((*name, is_v6)), "{name} is given twice");
        }
    }
    for (name, code) in table::RESERVED_NAMES {
        assert!(table::reserved(*code).is_some(), "{name}");
        assert!(seen.insert((*name, matches!(code, Code::V6(_)))), "{name}");
    }
}

/// What is read as nothing is no way to store as much as one likes.
#[test]
fn texts_have_bounds_whatever_is_read_of_them() {
    for (name, value, field) in [
        ("0".repeat(100) + "42", "192.0.2.1".to_owned(), "name"),
        (
            "42".to_owned(),
            "192.0.2.1".to_owned() + &" ".repeat(5000),
            "value",
        ),
        ("mtu".to_owned(), "0".repeat(5000) + "1400", "value"),
    ] {
        let option = v1::DhcpOption {
            name,
            value,
            ..v1::DhcpOption::default()
        };
        let refused = parse(&option).unwrap_err();
        assert_eq!(refused.field, field);
        assert!(refused.rule.len() < 100, "{}", refused.rule);
    }
}
