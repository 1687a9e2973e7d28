"""Neutron's objects in weft's words."""

import types

import pytest

from networking_weft import translate
from networking_weft.client import Key, key_of, together
from networking_weft.sync import in_order, is_newer, same
from networking_weft.units import GROUP, NETWORK, PORT, Unit

PROJECT = "0123456789abcdef0123456789abcdef"
CONF = types.SimpleNamespace(
    device="vhost-user", vhost_user_directory="/run/weft/vhost", vhost_user_mode="server"
)


def network(**more):
    return {
        "id": "11111111-0000-0000-0000-000000000000",
        "project_id": PROJECT,
        "mtu": 1450,
        "revision_number": 3,
        "router:external": False,
        "provider:network_type": "vxlan",
        "provider:segmentation_id": 4711,
        "provider:physical_network": None,
    } | more


def subnet(**more):
    return {
        "id": "22222222-0000-0000-0000-000000000000",
        "ip_version": 4,
        "cidr": "10.0.0.0/24",
        "gateway_ip": "10.0.0.1",
        "enable_dhcp": True,
        "dns_nameservers": [],
        "host_routes": [],
        "ipv6_address_mode": None,
    } | more


def rule(**more):
    return {
        "id": "r",
        "direction": "ingress",
        "ethertype": "IPv4",
        "protocol": None,
        "port_range_min": None,
        "port_range_max": None,
        "remote_ip_prefix": None,
        "remote_group_id": None,
        "remote_address_group_id": None,
    } | more


def group(*rules):
    return {"id": "g", "project_id": PROJECT, "revision_number": 1, "security_group_rules": list(rules)}


def port(**more):
    return {
        "id": "975ba69c-e211-4b7c-9d4f-2d1d7f0e1b11",
        "mac_address": "fa:16:3e:34:37:a6",
        "fixed_ips": [{"subnet_id": "s", "ip_address": "10.0.0.5"}],
        "revision_number": 7,
        "binding:host_id": "h1",
        "binding:vif_type": "vhostuser",
        "binding:profile": {},
    } | more


def made(item, groups=(), rules=()):
    return translate.port(item, network(), "s", list(groups), rules, CONF)


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        ({"provider:network_type": "geneve"}, "networks of the type 'geneve'"),
        ({"provider:network_type": "local"}, "networks of the type 'local'"),
        ({"provider:network_type": None}, "several segments"),
        ({"vlan_transparent": True}, "vlan_transparent"),
        ({"vlan_qinq": True}, "vlan_qinq"),
    ],
)
def test_networks_that_weft_has_not_are_refused_by_name(wrong, text):
    with pytest.raises(translate.Unsupported, match=text):
        translate.check_network(network(**wrong))


@pytest.mark.parametrize("kind", ["vxlan", "gre", "flat", "vlan"])
def test_other_networks_are_not_refused(kind):
    assert translate.check_network(network(**{"provider:network_type": kind})) is None


def test_a_network_is_a_vpc_of_its_project_with_its_number():
    vpc = translate.vpc(network())
    assert (vpc.id, vpc.vni, vpc.tenant) == (network()["id"], 4711, PROJECT)
    assert vpc.labels[translate.REVISION] == "3"


def test_the_number_of_a_vlan_is_no_vni():
    on_a_wire = network(**{"provider:network_type": "vlan", "provider:segmentation_id": 100})
    assert translate.vpc(on_a_wire).vni == 0
    on_a_wire["provider:physical_network"] = "physnet1"
    external = translate.external_network(on_a_wire, [subnet()], ["h1"])
    assert (external.vlan, external.physical_network) == (100, "physnet1")
    assert not external.prefixes and not external.gateway_hosts


def test_a_network_that_routers_lead_into_has_addresses_and_gateways():
    outside = network(
        **{"provider:network_type": "flat", "provider:segmentation_id": None, "router:external": True},
        **{"provider:physical_network": "physnet1"},
    )
    both = [subnet(), subnet(ip_version=6, cidr="2001:db8::/64", gateway_ip="2001:db8::1")]
    external = translate.external_network(outside, both, ["h1", "h2"])
    assert list(external.prefixes) == ["10.0.0.0/24", "2001:db8::/64"]
    assert list(external.gateways) == ["10.0.0.1", "2001:db8::1"]
    assert list(external.gateway_hosts) == ["h1", "h2"]


def test_subnets_of_both_families_are_one():
    six = subnet(
        ip_version=6,
        cidr="fd00::/64",
        gateway_ip="fd00::",
        ipv6_address_mode="slaac",
        dns_nameservers=["fd00::53"],
    )
    four = subnet(
        dns_nameservers=["10.0.0.53", "0.0.0.0"],
        host_routes=[{"destination": "10.9.0.0/16", "nexthop": "10.0.0.9"}],
    )
    segment = translate.segment("s", network(), [six, four], routes=True)
    assert list(segment.cidrs) == ["10.0.0.0/24", "fd00::/64"]
    assert list(segment.gateways) == ["10.0.0.1", "fd00::"]
    assert (segment.route_table, segment.mtu) == ("s", 1450)
    assert list(segment.dhcp.dns_servers) == ["10.0.0.53", "fd00::53"]
    assert segment.dhcp.ipv6_mode == "slaac"
    assert [(route.prefix, route.next_hop) for route in segment.dhcp.routes] == [("10.9.0.0/16", "10.0.0.9")]


def test_guests_are_told_of_no_router_where_a_subnet_has_none():
    lonely = subnet(gateway_ip=None, host_routes=[{"destination": "10.9.0.0/16", "nexthop": "10.0.0.9"}])
    segment = translate.segment("s", network(), [lonely], routes=False)
    assert list(segment.gateways) == ["10.0.0.254"]
    option = segment.dhcp.options[0]
    assert option.name == "classless-static-route"
    assert option.value == "10.9.0.0/16,10.0.0.9,169.254.169.254/32,10.0.0.254"


def test_a_subnet_without_dhcp_answers_nothing():
    assert translate.segment("s", network(), [subnet(enable_dhcp=False)], False).dhcp.disabled


@pytest.mark.parametrize(
    ("wish", "protocol"),
    [
        ({"protocol": None}, "any"),
        ({"protocol": "tcp"}, "tcp"),
        ({"protocol": "6"}, "tcp"),
        ({"protocol": "icmp"}, "icmp"),
        ({"protocol": "icmp", "ethertype": "IPv6"}, "icmpv6"),
        ({"protocol": "ipv6-icmp", "ethertype": "IPv6"}, "icmpv6"),
        ({"protocol": "esp"}, "50"),
        ({"protocol": "112"}, "112"),
    ],
)
def test_protocols(wish, protocol):
    assert translate.security_rule(rule(**wish)).protocol == protocol


def test_ports_and_icmp_types():
    web = translate.security_rule(rule(protocol="tcp", port_range_min=80, port_range_max=81))
    assert (web.port_min, web.port_max, web.family) == (80, 81, "ipv4")
    ping = translate.security_rule(rule(protocol="icmp", port_range_min=8, port_range_max=0))
    assert (ping.icmp_type, ping.icmp_code) == (8, 0)
    assert not ping.HasField("port_min")
    with pytest.raises(translate.Unsupported, match="dccp"):
        translate.security_rule(rule(protocol="dccp", port_range_min=1, port_range_max=2))


def test_remotes():
    assert translate.security_rule(rule(remote_ip_prefix="10.0.0.5/24")).remote_cidr == "10.0.0.0/24"
    assert translate.security_rule(rule(remote_group_id="g")).remote_group == "g"
    assert translate.security_rule(rule(remote_address_group_id="a")).remote_prefix_list == "a"


def test_what_no_rule_admits_does_not_leave():
    closed = translate.security_group(group(rule()), "g", None, str)
    assert [(one.direction, one.protocol) for one in closed.rules][1:] == [("egress", "255")]
    opened = translate.security_group(group(rule(direction="egress")), "g", None, str)
    assert len(opened.rules) == 1


def test_a_copy_of_a_group_is_of_the_network_and_names_copies():
    copied = translate.security_group(
        group(rule(remote_group_id="g")), "g.n", "n", lambda one: translate.copy_id(one, network="n")
    )
    assert (copied.vpc, copied.tenant, copied.rules[0].remote_group) == ("n", "", "g.n")
    assert copied.labels[translate.COPY_OF] == "g"


def test_a_port_on_a_host_has_a_device_there():
    bound = made(port(), ["g"])
    assert (bound.host, bound.device.kind, bound.device.mode) == ("h1", "vhost-user", "client")
    assert bound.device.name == "/run/weft/vhost/vhu975ba69c-e2"
    container = made(port(**{"binding:profile": {"weft_device": "netdev"}}))
    assert (container.device.kind, container.device.name) == ("netdev", "tap975ba69c-e2")
    assert not made(port(**{"binding:host_id": ""})).HasField("device")


@pytest.mark.parametrize("kind", ["unbound", "binding_failed", "hw_veb"])
def test_a_port_that_is_not_bound_by_this_driver_is_on_no_host(kind):
    other = made(port(**{"binding:vif_type": kind}), ["g"])
    assert other.host == "" and not other.HasField("device")
    assert list(other.security_groups) == ["g"]


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        ({"gateway_ip": "10.0.1.1"}, "the gateway 10.0.1.1 is not in 10.0.0.0/24"),
        ({"host_routes": [{"destination": "10.9.0.0/16", "nexthop": "10.1.0.9"}]}, "the next hop 10.1.0.9"),
        ({"cidr": "10.0.0.0/31", "gateway_ip": None}, "too small"),
    ],
)
def test_subnets_that_weft_has_not_are_refused_by_name(wrong, text):
    with pytest.raises(translate.Unsupported, match=text):
        translate.check_subnet(subnet(**wrong))
    assert translate.check_subnet(subnet()) is None


@pytest.mark.parametrize("name", ["tag:ipxe,bootfile-name", "router", "option:3", "51"])
def test_dhcp_options_that_weft_has_not_are_refused_by_name(name):
    with pytest.raises(translate.Unsupported, match="DHCP option"):
        translate.check_port(port(extra_dhcp_opts=[{"opt_name": name, "opt_value": "x"}]))


def test_ports_with_usual_options_and_groups_are_not_refused():
    options = [
        {"opt_name": name, "opt_value": "x"} for name in ("bootfile-name", "150", "option6:dns-server")
    ]
    usual = port(extra_dhcp_opts=options, security_groups=["g"] * 16)
    assert translate.check_port(usual) is None
    with pytest.raises(translate.Unsupported, match="16 security groups"):
        translate.check_port(port(security_groups=["g"] * 17))


def test_a_port_that_is_administratively_down_is_on_no_host():
    down = made(port(admin_state_up=False))
    assert down.host == "" and not down.HasField("device")


def test_ports_without_groups_and_without_port_security():
    assert list(made(port()).security_groups) == [translate.closed_group_id(network()["id"])]
    free = made(port(port_security_enabled=False), ["g"])
    assert free.unguarded
    assert list(free.security_groups) == [translate.open_group_id(network()["id"])]


def test_allowed_pairs_keep_another_mac_alone():
    pairs = [
        {"ip_address": "10.0.0.7", "mac_address": "fa:16:3e:34:37:a6"},
        {"ip_address": "10.1.0.0/16", "mac_address": "00:00:5e:00:01:07"},
    ]
    told = [(pair.cidr, pair.mac) for pair in made(port(allowed_address_pairs=pairs)).allowed_pairs]
    assert told == [("10.0.0.7/32", ""), ("10.1.0.0/16", "00:00:5e:00:01:07")]


def test_dhcp_options_by_neutrons_names():
    options = [
        {"opt_name": "bootfile-name", "opt_value": "pxelinux.0", "ip_version": 4},
        {"opt_name": "option:tftp-server-name", "opt_value": "10.0.0.9", "ip_version": 4},
        {"opt_name": "option6:dns-server", "opt_value": "fd00::53", "ip_version": 6},
    ]
    told = [(one.name, one.value, one.family) for one in translate.dhcp_options(options)]
    assert told == [
        ("bootfile-name", "pxelinux.0", "ipv4"),
        ("tftp-server", "10.0.0.9", "ipv4"),
        ("dns-server", "fd00::53", "ipv6"),
    ]


def test_qos_rules_are_limits_and_marks():
    rules = [
        {"type": "bandwidth_limit", "direction": "egress", "max_kbps": 1000, "max_burst_kbps": 1},
        {"type": "packet_rate_limit", "direction": "ingress", "max_kpps": 5},
        {"type": "dscp_marking", "dscp_mark": 26},
    ]
    limited = made(port(), rules=rules)
    assert limited.limits.egress.bits_per_second == 1_000_000
    # Not less than what the rate gives in 10 milliseconds.
    assert limited.limits.egress.burst_bits == 10_000
    assert limited.limits.ingress.packets_per_second == 5000
    assert limited.dscp == 26
    nothing = made(port(), rules=[])
    assert not nothing.HasField("limits") and not nothing.HasField("dscp")


def test_names_in_any_script_do_not_reach_the_controller():
    assert "Ünïcode" not in str(made(port(name='Ünïcode "quoted"\n')))


def test_objects_are_sent_by_their_kinds():
    objects = together([translate.vpc(network()), made(port())])
    assert [vpc.vni for vpc in objects.vpcs] == [4711]
    assert key_of(objects.ports[0]) == Key("port", port()["id"])


def test_an_older_state_does_not_take_the_place_of_a_newer_one():
    older, newer = made(port(revision_number=6)), made(port(revision_number=7), ["g"])
    assert is_newer(newer, older)
    assert not is_newer(older, newer)
    assert not is_newer(newer, newer)


def test_a_peering_that_is_over_is_put_again():
    live, over = translate.link("a", "b"), translate.link("b", "a")
    over.requester_state = over.accepter_state = "active"
    assert not is_newer(live, over)
    over.requester_state = over.accepter_state = "deleted"
    assert is_newer(live, over)


def test_what_the_controller_writes_itself_makes_no_difference():
    wire = network(**{"provider:network_type": "flat"})
    ours, theirs = translate.vpc(wire), translate.vpc(wire)
    theirs.vni = 17
    assert same(ours, theirs)
    moved = made(port())
    moved.moved_from = "h2"
    assert same(made(port()), moved)


def test_units_are_made_in_order():
    units = [Unit(PORT, "p"), Unit(NETWORK, "n"), Unit(GROUP, "g")]
    assert [unit.kind for unit in in_order(units)] == [NETWORK, GROUP, PORT]
