"""Neutron's objects in weft's words. Pure functions of dictionaries as Neutron's API has them; what weft cannot do is refused with [`Unsupported`]."""

import ipaddress
import re
from collections.abc import Iterable
from typing import Any

from neutron_lib import constants, exceptions
from weft.v1 import objects_pb2 as weft

Item = dict[str, Any]

# What says that an object is Neutron's, and of which revision there.
REVISION = "openstack.org/revision"
# On groups: which of Neutron's it is, or is a copy of.
COPY_OF = "openstack.org/group"
# Types of networks whose packets go through tunnels, and those that are on a wire.
TUNNELS = ("vxlan", "gre")
WIRES = ("flat", "vlan")
# vif types of ports that this driver binds.
VIF_TYPES = ("vhostuser", "tap")
# Security groups of a port, at most.
PORT_GROUPS = 16
# Gateway hosts of a network, at most.
GATEWAY_HOSTS = 16
# Devices as the driver's configuration and a binding's profile name them.
PROFILE_DEVICE = "weft_device"
# An IP protocol that nobody uses (IANA: reserved). As the only egress rule it admits nothing: without one, weft admits everything.
NO_PROTOCOL = "255"
METADATA = "169.254.169.254"
# Where a limit of zero would mean none at weft.
LEAST_BITS = 8000
# DHCP options that weft makes of other settings.
OWN_OPTIONS = {"0", "1", "3", "12", *map(str, range(50, 60)), "61", "77", "80", "81", "82", "255"}
# Names by which Neutron's users know options that weft calls otherwise, or by number.
OPTION_NAMES = {
    "router": "3",
    "dns-nameserver": "dns-server",
    "interface-mtu": "mtu",
    "tftp-server-name": "tftp-server",
    "bootfile": "bootfile-name",
    "domain-name-servers": "dns-server",
    "ntp-servers": "ntp-server",
}


class Unsupported(exceptions.InvalidInput):
    """What Neutron allows and weft does not."""

    message = "weft: %(error_message)s"


def refuse(text: str) -> Unsupported:
    return Unsupported(error_message=text)


def revision(item: Item) -> int:
    """How often an object changed: without Neutron's plugin `revisions`, nobody counts."""
    return item.get("revision_number", 0)


def labels(number: int) -> dict[str, str]:
    return {REVISION: str(number)}


def is_tunnel(network: Item) -> bool:
    return network["provider:network_type"] in TUNNELS


def is_external(network: Item) -> bool:
    return bool(network.get("router:external"))


def has_vpc(network: Item) -> bool:
    """Whether ports can be in a network: one on a wire that routers lead into is an external network alone."""
    return is_tunnel(network) or not is_external(network)


def check_network(network: Item) -> None:
    """Raises if weft has no such networks."""
    kind = network.get("provider:network_type")
    if kind is None:
        raise refuse("a network with several segments is not supported")
    if kind not in TUNNELS + WIRES:
        known = ", ".join(TUNNELS + WIRES)
        raise refuse(f"networks of the type '{kind}' are not supported: use one of {known}")
    if network.get("vlan_transparent"):
        raise refuse("vlan_transparent is not supported: tags of guests do not cross tunnels")
    if network.get("vlan_qinq"):
        raise refuse("vlan_qinq is not supported")


def check_subnet(subnet: Item) -> None:
    """Raises if weft has no such subnets."""
    prefix = ipaddress.ip_network(subnet["cidr"])
    if prefix.num_addresses < 4:
        raise refuse(f"{prefix} is too small: a subnet has a gateway and a port at least")
    gateway = subnet["gateway_ip"]
    if gateway and ipaddress.ip_address(gateway) not in prefix:
        raise refuse(f"the gateway {gateway} is not in {prefix}")
    for route in subnet["host_routes"]:
        if ipaddress.ip_address(route["nexthop"]) not in prefix:
            raise refuse(f"the next hop {route['nexthop']} of {route['destination']} is not in {prefix}")


def check_port(port: Item) -> None:
    """Raises if weft has no such ports."""
    if len(port.get("security_groups") or ()) > PORT_GROUPS:
        raise refuse(f"a port is in at most {PORT_GROUPS} security groups")
    for option in port.get("extra_dhcp_opts") or ():
        name = str(option["opt_name"]).removeprefix("option:").removeprefix("option6:")
        if not re.fullmatch(r"[a-z0-9+-]+", OPTION_NAMES.get(name, name)):
            raise refuse(f"the DHCP option '{option['opt_name']}' is not supported")
        if OPTION_NAMES.get(name, name) in OWN_OPTIONS:
            raise refuse(f"the DHCP option '{option['opt_name']}' is the subnet's: set it there")


def vpc(network: Item) -> weft.Vpc:
    """A network's VPC. That of a network on a wire has a number that the controller chooses: no tunnel carries it."""
    vni = network["provider:segmentation_id"] if is_tunnel(network) else 0
    return weft.Vpc(
        id=network["id"],
        vni=vni,
        tenant=network["project_id"],
        labels=labels(revision(network)),
    )


def open_group(network: Item) -> weft.SecurityGroup:
    """Of ports without port security: everything passes."""
    anything = weft.SecurityRule(direction="ingress")
    return weft.SecurityGroup(
        id=open_group_id(network["id"]),
        vpc=network["id"],
        rules=[anything],
        labels=labels(revision(network)),
    )


def closed_group(network: Item) -> weft.SecurityGroup:
    """Of ports that are in no group: nothing passes."""
    nothing = weft.SecurityRule(direction="egress", protocol=NO_PROTOCOL)
    return weft.SecurityGroup(
        id=closed_group_id(network["id"]),
        vpc=network["id"],
        rules=[nothing],
        labels=labels(revision(network)),
    )


def open_group_id(network: str) -> str:
    return f"{network}.open"


def closed_group_id(network: str) -> str:
    return f"{network}.closed"


def external_network(network: Item, subnets: Iterable[Item], hosts: list[str]) -> weft.ExternalNetwork:
    """What a network on a wire is to weft. Only one that routers lead into has addresses there: else its ports have them."""
    external = weft.ExternalNetwork(
        id=network["id"],
        physical_network=network["provider:physical_network"],
        vlan=network["provider:segmentation_id"] or 0,
        mtu=network["mtu"] or 0,
        labels=labels(revision(network)),
    )
    if is_external(network):
        external.gateway_hosts.extend(hosts)
        families = set()
        for subnet in subnets:
            external.prefixes.append(subnet["cidr"])
            if subnet["gateway_ip"] and subnet["ip_version"] not in families:
                families.add(subnet["ip_version"])
                external.gateways.append(subnet["gateway_ip"])
    return external


def _gateway(subnet: Item) -> tuple[str, bool]:
    """The address of the virtual router, and whether guests are told of it. Where a subnet has none, weft needs one to answer DHCP from: the last."""
    if subnet["gateway_ip"]:
        return subnet["gateway_ip"], True
    prefix = ipaddress.ip_network(subnet["cidr"])
    last = prefix.broadcast_address if subnet["ip_version"] == 6 else prefix.broadcast_address - 1
    return str(last), False


IPV6_MODES = {
    constants.IPV6_SLAAC: "slaac",
    constants.DHCPV6_STATELESS: "dhcpv6-stateless",
    constants.DHCPV6_STATEFUL: "dhcpv6-stateful",
}


def segment(segment_id: str, network: Item, subnets: list[Item], routes: bool) -> weft.Subnet:
    """Weft's subnet for at most one subnet of each family."""
    subnets = sorted(subnets, key=lambda subnet: subnet["ip_version"])
    made = weft.Subnet(
        id=segment_id,
        vpc=network["id"],
        mtu=network["mtu"] or 0,
        labels=labels(revision(network)),
    )
    if is_tunnel(network):
        made.route_table = segment_id if routes else ""
    else:
        made.external_network = network["id"]
    dhcp = made.dhcp
    for subnet in subnets:
        made.cidrs.append(subnet["cidr"])
        gateway, is_told = _gateway(subnet)
        if is_tunnel(network):
            made.gateways.append(gateway)
            if not is_told and subnet["ip_version"] == 4:
                dhcp.options.add(
                    name="classless-static-route", value=_routes_without_gateway(subnet, gateway)
                )
        elif is_told:
            made.gateways.append(gateway)
        dhcp.dns_servers.extend(
            server for server in subnet["dns_nameservers"] if server not in ("0.0.0.0", "::")
        )
        if subnet["ip_version"] == 4 and is_told:
            for route in subnet["host_routes"]:
                dhcp.routes.add(prefix=route["destination"], next_hop=route["nexthop"])
        if subnet["ip_version"] == 6:
            dhcp.ipv6_mode = IPV6_MODES.get(subnet["ipv6_address_mode"], "dhcpv6-stateful")
    dhcp.disabled = not any(subnet["enable_dhcp"] for subnet in subnets)
    return made


def _routes_without_gateway(subnet: Item, gateway: str) -> str:
    """All routes of a guest whose subnet has no gateway: its own, and the one to the metadata service."""
    pairs = [f"{route['destination']},{route['nexthop']}" for route in subnet["host_routes"]]
    return ",".join([*pairs, f"{METADATA}/32,{gateway}"])


def security_group(group: Item, group_id: str, vpc_id: str | None, remote: Any) -> weft.SecurityGroup:
    """A group; of its project's networks, or with `vpc_id` the copy for another project's. `remote` says how another group is called there."""
    made = weft.SecurityGroup(
        id=group_id,
        vpc=vpc_id or "",
        tenant="" if vpc_id else group["project_id"],
        labels=labels(revision(group)) | {COPY_OF: group["id"]},
    )
    rules = sorted(group["security_group_rules"], key=lambda rule: rule["id"])
    made.rules.extend(security_rule(rule, remote) for rule in rules)
    if not any(rule.direction == "egress" for rule in made.rules):
        made.rules.add(direction="egress", protocol=NO_PROTOCOL)
    return made


def copy_id(group: str, network: str) -> str:
    """What the copy of a group is called that a network of another project has."""
    return f"{group}.{network}"


def protocol_of(rule: Item) -> str:
    """A rule's protocol in weft's words."""
    name = rule["protocol"]
    if name is None or str(name).lower() in ("any", "-1"):
        return "any"
    name = str(name).lower()
    number = constants.IP_PROTOCOL_MAP.get(name, name)
    number = int(number)
    if number == constants.PROTO_NUM_ICMP and rule["ethertype"] == constants.IPv6:
        number = constants.PROTO_NUM_IPV6_ICMP
    known = {
        constants.PROTO_NUM_TCP: "tcp",
        constants.PROTO_NUM_UDP: "udp",
        constants.PROTO_NUM_SCTP: "sctp",
        constants.PROTO_NUM_ICMP: "icmp",
        constants.PROTO_NUM_IPV6_ICMP: "icmpv6",
    }
    return known.get(number, str(number))


def security_rule(rule: Item, remote: Any = str) -> weft.SecurityRule:
    """A rule of a group."""
    protocol = protocol_of(rule)
    made = weft.SecurityRule(
        direction=rule["direction"],
        protocol=protocol,
        family=rule["ethertype"].lower(),
    )
    if rule.get("remote_group_id"):
        made.remote_group = remote(rule["remote_group_id"])
    elif rule.get("remote_address_group_id"):
        made.remote_prefix_list = remote(rule["remote_address_group_id"])
    elif rule.get("remote_ip_prefix"):
        made.remote_cidr = str(ipaddress.ip_network(rule["remote_ip_prefix"], strict=False))
    least, most = rule.get("port_range_min"), rule.get("port_range_max")
    if protocol in ("icmp", "icmpv6"):
        if least is not None:
            made.icmp_type = least
        if most is not None:
            made.icmp_code = most
    elif least is not None or most is not None:
        if protocol not in ("tcp", "udp", "sctp"):
            raise refuse(f"a rule for ports of the protocol {rule['protocol']} is not supported")
        made.port_min = least if least is not None else most
        made.port_max = most if most is not None else least
    return made


def prefix_list(group: Item, list_id: str, vpc_id: str | None) -> weft.PrefixList:
    """An address group, or with `vpc_id` the copy of it for another project's network."""
    prefixes = {str(ipaddress.ip_network(prefix, strict=False)) for prefix in group["addresses"]}
    return weft.PrefixList(
        id=list_id,
        vpc=vpc_id or "",
        tenant="" if vpc_id else group["project_id"],
        prefixes=sorted(prefixes),
        labels=labels(revision(group)) | {COPY_OF: group["id"]},
    )


def dhcp_options(options: Iterable[Item]) -> list[weft.DhcpOption]:
    """What a port's guest is told besides."""
    made = []
    for option in options or []:
        name = str(option["opt_name"]).removeprefix("option:")
        if int(option.get("ip_version") or 4) == 6:
            name, family = name.removeprefix("option6:"), "ipv6"
        else:
            family = "ipv4"
        name = OPTION_NAMES.get(name, name)
        made.append(weft.DhcpOption(name=name, value=option["opt_value"] or "", family=family))
    return made


def limits(rules: Iterable[Item]) -> weft.RateLimits | None:
    """The rate limits of a QoS policy."""
    made, found = weft.RateLimits(), False
    for rule in rules:
        limit = made.egress if rule.get("direction", "egress") == "egress" else made.ingress
        if rule["type"] == "bandwidth_limit":
            limit.bits_per_second = max(rule["max_kbps"] * 1000, LEAST_BITS)
            limit.burst_bits = _burst(rule.get("max_burst_kbps") or 0, limit.bits_per_second)
            found = True
        elif rule["type"] == "packet_rate_limit":
            limit.packets_per_second = max(rule["max_kpps"] * 1000, 1)
            found = True
    if not found:
        return None
    for name in ("egress", "ingress"):
        if not (getattr(made, name).bits_per_second or getattr(made, name).packets_per_second):
            made.ClearField(name)
    return made


def _burst(kilobits: int, rate: int) -> int:
    """A burst that weft takes: what the rate gives in 10 milliseconds to a minute. Neutron's 0 is "as you think fit"."""
    return min(max(kilobits * 1000, rate // 100), rate * 60) if kilobits else 0


def dscp(rules: Iterable[Item]) -> int | None:
    """What a QoS policy marks packets with."""
    marks = [rule["dscp_mark"] for rule in rules if rule["type"] == "dscp_marking"]
    return marks[0] if marks else None


def device(port: Item, conf: Any) -> weft.Device:
    """Where a port's machine or container is attached on its host."""
    profile = port.get("binding:profile") or {}
    kind = profile.get(PROFILE_DEVICE) or conf.device
    if kind == "vhost-user":
        # QEMU's side of the socket is the other one.
        mode = "client" if conf.vhost_user_mode == "server" else "server"
        return weft.Device(kind=kind, name=socket_path(port["id"], conf), mode=mode)
    return weft.Device(kind=kind, name=tap_name(port["id"]))


def tap_name(port_id: str) -> str:
    """As Nova calls it."""
    return ("tap" + port_id)[:14]


def socket_path(port_id: str, conf: Any) -> str:
    return f"{conf.vhost_user_directory}/{('vhu' + port_id)[:14]}"


def port(
    item: Item,
    network: Item,
    segment_id: str,
    groups: list[str],
    rules: Iterable[Item],
    conf: Any,
) -> weft.Port:
    """A port, in the groups of these names, with the rules of its QoS policy."""
    rules = list(rules)
    made = weft.Port(
        id=item["id"],
        vpc=network["id"],
        subnet=segment_id,
        mac=item["mac_address"],
        addresses=[fixed["ip_address"] for fixed in item["fixed_ips"]],
        dhcp_options=dhcp_options(item.get("extra_dhcp_opts")),
        labels=labels(revision(item)),
    )
    for pair in item.get("allowed_address_pairs") or []:
        prefix = ipaddress.ip_network(pair["ip_address"], strict=False)
        mac = pair["mac_address"]
        made.allowed_pairs.add(cidr=str(prefix), mac="" if mac == item["mac_address"] else mac)
    if item.get("port_security_enabled", True):
        made.security_groups.extend(groups or [closed_group_id(network["id"])])
    else:
        made.unguarded = True
        made.security_groups.append(open_group_id(network["id"]))
    # Before Neutron has bound it, and where another driver or nobody has, nothing is attached.
    is_ours = item.get("binding:vif_type") in VIF_TYPES
    if item.get("binding:host_id") and item.get("admin_state_up", True) and is_ours:
        made.host = item["binding:host_id"]
        made.device.CopyFrom(device(item, conf))
    name = (item.get("dns_name") or "").rstrip(".")
    if name and "." not in name:
        made.hostname = name
    bounds = limits(rules)
    if bounds is not None:
        made.limits.CopyFrom(bounds)
    mark = dscp(rules)
    if mark is not None:
        made.dscp = mark
    return made


def link_id(one: str, other: str) -> str:
    """What joins the VPCs of two networks."""
    first, second = sorted((one, other))
    return f"{first}.{second}"


def link(one: str, other: str) -> weft.Peering:
    first, second = sorted((one, other))
    peering = link_id(one, other)
    return weft.Peering(id=peering, requester=first, accepter=second, labels=labels(0))
