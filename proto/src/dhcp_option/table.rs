//! The DHCP and DHCPv6 options that have names: those that dnsmasq and Neutron know, with the type of each and its RFC.

use super::Code;

/// What an option's value is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Type {
    /// One address of the option's family.
    Address,
    /// Addresses of the option's family, separated by commas.
    Addresses,
    /// Pairs of IPv4 addresses, all separated by commas.
    AddressPairs,
    /// IPv4 prefixes, each followed by its next hop, all separated by commas (RFC 3442).
    Routes,
    /// Printable characters.
    Text,
    /// One domain name, as text.
    Domain,
    /// Domain names, separated by commas, as RFC 1035 §3.1 writes them.
    Domains,
    /// 0 to 255.
    U8,
    /// 0 to 65535.
    U16,
    /// 0 to 4294967295.
    U32,
    /// -2147483648 to 2147483647.
    I32,
    /// `true` or `false`.
    Bool,
    /// `hex:` and bytes.
    Bytes,
    /// Texts, separated by commas, each with its length ahead (RFC 5970 §3.2).
    Texts,
    /// NTP servers by IPv6 address or by name, separated by commas (RFC 5908).
    NtpServers,
    /// Printable characters, or `hex:` and bytes: an option that has no name here.
    Unknown,
}

/// An option that has a name.
#[derive(Debug, Clone, Copy)]
pub struct Known {
    /// Its number.
    pub code: Code,
    /// Its names, the usual one first.
    pub names: &'static [&'static str],
    /// What its value is made of.
    pub value: Type,
    /// Where it is defined.
    pub source: &'static str,
}

const fn v4(code: u8, names: &'static [&'static str], value: Type, source: &'static str) -> Known {
    Known {
        code: Code::V4(code),
        names,
        value,
        source,
    }
}

const fn v6(code: u16, names: &'static [&'static str], value: Type, source: &'static str) -> Known {
    Known {
        code: Code::V6(code),
        names,
        value,
        source,
    }
}

/// Every option that has a name, by family and number.
pub const KNOWN: &[Known] = &[
    Known {
        code: Code::NextServer,
        names: &["server-ip-address", "next-server"],
        value: Type::Address,
        source: "RFC 2131 2",
    },
    v4(2, &["time-offset"], Type::I32, "RFC 2132 3.4"),
    v4(4, &["time-server"], Type::Addresses, "RFC 2132 3.6"),
    v4(6, &["dns-server"], Type::Addresses, "RFC 2132 3.8"),
    v4(7, &["log-server"], Type::Addresses, "RFC 2132 3.9"),
    v4(9, &["lpr-server"], Type::Addresses, "RFC 2132 3.11"),
    v4(13, &["boot-file-size"], Type::U16, "RFC 2132 3.15"),
    v4(15, &["domain-name"], Type::Domain, "RFC 2132 3.17"),
    v4(16, &["swap-server"], Type::Address, "RFC 2132 3.18"),
    v4(17, &["root-path"], Type::Text, "RFC 2132 3.19"),
    v4(18, &["extension-path"], Type::Text, "RFC 2132 3.20"),
    v4(19, &["ip-forward-enable"], Type::Bool, "RFC 2132 4.1"),
    v4(
        20,
        &["non-local-source-routing"],
        Type::Bool,
        "RFC 2132 4.2",
    ),
    v4(21, &["policy-filter"], Type::AddressPairs, "RFC 2132 4.3"),
    v4(22, &["max-datagram-reassembly"], Type::U16, "RFC 2132 4.4"),
    v4(23, &["default-ttl"], Type::U8, "RFC 2132 4.5"),
    v4(26, &["mtu"], Type::U16, "RFC 2132 5.1"),
    v4(27, &["all-subnets-local"], Type::Bool, "RFC 2132 5.2"),
    v4(31, &["router-discovery"], Type::Bool, "RFC 2132 5.6"),
    v4(32, &["router-solicitation"], Type::Address, "RFC 2132 5.7"),
    v4(33, &["static-route"], Type::AddressPairs, "RFC 2132 5.8"),
    v4(34, &["trailer-encapsulation"], Type::Bool, "RFC 2132 6.1"),
    v4(35, &["arp-timeout"], Type::U32, "RFC 2132 6.2"),
    v4(36, &["ethernet-encap"], Type::Bool, "RFC 2132 6.3"),
    v4(37, &["tcp-ttl"], Type::U8, "RFC 2132 7.1"),
    v4(38, &["tcp-keepalive"], Type::U32, "RFC 2132 7.2"),
    v4(40, &["nis-domain"], Type::Text, "RFC 2132 8.1"),
    v4(41, &["nis-server"], Type::Addresses, "RFC 2132 8.2"),
    v4(42, &["ntp-server"], Type::Addresses, "RFC 2132 8.3"),
    v4(
        43,
        &["vendor-encap", "vendor-encapsulated-options"],
        Type::Bytes,
        "RFC 2132 8.4",
    ),
    v4(44, &["netbios-ns"], Type::Addresses, "RFC 2132 8.5"),
    v4(45, &["netbios-dd"], Type::Addresses, "RFC 2132 8.6"),
    v4(46, &["netbios-nodetype"], Type::U8, "RFC 2132 8.7"),
    v4(47, &["netbios-scope"], Type::Text, "RFC 2132 8.8"),
    v4(48, &["x-windows-fs"], Type::Addresses, "RFC 2132 8.9"),
    v4(49, &["x-windows-dm"], Type::Addresses, "RFC 2132 8.10"),
    v4(60, &["vendor-class"], Type::Text, "RFC 2132 9.13"),
    v4(64, &["nis+-domain"], Type::Text, "RFC 2132 8.11"),
    v4(65, &["nis+-server"], Type::Addresses, "RFC 2132 8.12"),
    v4(
        66,
        &["tftp-server", "tftp-server-name"],
        Type::Text,
        "RFC 2132 9.4",
    ),
    v4(67, &["bootfile-name"], Type::Text, "RFC 2132 9.5"),
    v4(68, &["mobile-ip-home"], Type::Addresses, "RFC 2132 8.13"),
    v4(69, &["smtp-server"], Type::Addresses, "RFC 2132 8.14"),
    v4(70, &["pop3-server"], Type::Addresses, "RFC 2132 8.15"),
    v4(71, &["nntp-server"], Type::Addresses, "RFC 2132 8.16"),
    v4(74, &["irc-server"], Type::Addresses, "RFC 2132 8.19"),
    v4(100, &["posix-timezone"], Type::Text, "RFC 4833 3"),
    v4(101, &["tzdb-timezone"], Type::Text, "RFC 4833 3"),
    v4(108, &["ipv6-only"], Type::U32, "RFC 8925 3.1"),
    v4(114, &["captive-portal"], Type::Text, "RFC 8910 2.1"),
    v4(119, &["domain-search"], Type::Domains, "RFC 3397 2"),
    v4(120, &["sip-server"], Type::Bytes, "RFC 3361 3"),
    v4(121, &["classless-static-route"], Type::Routes, "RFC 3442"),
    v4(125, &["vendor-id-encap"], Type::Bytes, "RFC 3925 4"),
    v4(150, &["tftp-server-address"], Type::Addresses, "RFC 5859 2"),
    v4(175, &["ipxe-encap"], Type::Bytes, "iPXE"),
    v4(209, &["pxe-config-file"], Type::Text, "RFC 5071 4"),
    v4(210, &["path-prefix"], Type::Text, "RFC 5071 5"),
    v4(211, &["reboot-time"], Type::U32, "RFC 5071 6"),
    v4(
        249,
        &["ms-classless-static-route"],
        Type::Routes,
        "MS-DHCPE 2.2.8",
    ),
    v4(252, &["wpad"], Type::Text, "draft-ietf-wrec-wpad-01"),
    v6(16, &["vendor-class"], Type::Bytes, "RFC 8415 21.16"),
    v6(17, &["vendor-opts"], Type::Bytes, "RFC 8415 21.17"),
    v6(21, &["sip-server-domain"], Type::Domains, "RFC 3319 3.1"),
    v6(22, &["sip-server"], Type::Addresses, "RFC 3319 3.2"),
    v6(23, &["dns-server"], Type::Addresses, "RFC 3646 3"),
    v6(24, &["domain-search"], Type::Domains, "RFC 3646 4"),
    v6(27, &["nis-server"], Type::Addresses, "RFC 3898 3"),
    v6(28, &["nis+-server"], Type::Addresses, "RFC 3898 4"),
    v6(29, &["nis-domain"], Type::Domains, "RFC 3898 5"),
    v6(30, &["nis+-domain"], Type::Domains, "RFC 3898 6"),
    v6(31, &["sntp-server"], Type::Addresses, "RFC 4075 4"),
    v6(
        32,
        &["information-refresh-time"],
        Type::U32,
        "RFC 8415 21.23",
    ),
    v6(41, &["posix-timezone"], Type::Text, "RFC 4833 3"),
    v6(42, &["tzdb-timezone"], Type::Text, "RFC 4833 3"),
    v6(56, &["ntp-server"], Type::NtpServers, "RFC 5908 4"),
    v6(59, &["bootfile-url"], Type::Text, "RFC 5970 3.1"),
    v6(60, &["bootfile-param"], Type::Texts, "RFC 5970 3.2"),
    v6(103, &["captive-portal"], Type::Text, "RFC 8910 2.2"),
];

/// Names of options that nobody may give, so that they are refused by what they are.
pub(super) const RESERVED_NAMES: &[(&str, Code)] = &[
    ("netmask", Code::V4(1)),
    ("router", Code::V4(3)),
    ("hostname", Code::V4(12)),
    ("lease-time", Code::V4(51)),
    ("server-id", Code::V4(54)),
    ("T1", Code::V4(58)),
    ("T2", Code::V4(59)),
    ("client-id", Code::V4(61)),
    ("user-class", Code::V4(77)),
    ("rapid-commit", Code::V4(80)),
    ("client-arch", Code::V4(93)),
    ("client-interface-id", Code::V4(94)),
    ("client-machine-id", Code::V4(97)),
    ("server-id", Code::V6(2)),
    ("user-class", Code::V6(15)),
];

/// Why an option is not for anybody to give; none if it is.
pub(super) fn reserved(code: Code) -> Option<&'static str> {
    let protocol = "belongs to the protocol";
    let client = "is what clients say of themselves";
    Some(match code {
        Code::V4(0 | 255) => "is no option: it fills up or ends them",
        Code::V4(1) => "is the mask of the subnet's prefix",
        Code::V4(3) => {
            "is the subnet's gateway: for another, give the subnet a route to 0.0.0.0/0, or give classless-static-route"
        }
        Code::V4(12) => "is the port's hostname",
        Code::V4(51) => "is the subnet's lease_seconds",
        Code::V4(58 | 59) => "follows from the subnet's lease_seconds",
        Code::V4(50 | 55 | 57 | 61 | 77 | 81 | 93 | 94 | 97 | 118) => client,
        Code::V4(52 | 53 | 54 | 56 | 80 | 82 | 90) => protocol,
        Code::V6(1 | 6 | 8 | 15 | 39 | 61 | 62) => client,
        Code::V6(0 | 2..=5 | 7 | 9 | 11..=14 | 18..=20 | 25 | 26) => protocol,
        Code::NextServer | Code::V4(_) | Code::V6(_) => return None,
    })
}
