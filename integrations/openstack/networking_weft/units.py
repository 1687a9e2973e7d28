"""What the controller is to have of each of Neutron's objects.

A unit is what changes together: it is named in the journal, and [`Units.wanted`] reads Neutron's database and says which of weft's objects it is now, none if
it is gone. Which objects it may have been before is known by their ids alone ([`Units.keys`]).
"""

import collections
import functools
import time
from typing import Any, NamedTuple

from neutron.db import models_v2
from neutron.db.models import securitygroup as group_models
from neutron.objects.qos import policy as qos_policies
from neutron_lib import constants
from neutron_lib import exceptions as lib_exceptions
from neutron_lib.db import api as db_api
from neutron_lib.plugins import constants as plugin_constants
from neutron_lib.plugins import directory
from weft.v1 import objects_pb2 as weft

from networking_weft import translate, trunk
from networking_weft.client import Changed, Controller, Key, key_of
from networking_weft.db import segments

NETWORK, SEGMENT, PORT = "network", "segment", "port"
GROUP, ADDRESS_GROUP = "security_group", "address_group"
LINK, ROUTES, FLOATING_IP, ROUTER = "link", "routes", "floating_ip", "router"
# The order in which they are made; they are deleted in the opposite one.
KINDS = (NETWORK, LINK, ROUTER, ROUTES, SEGMENT, ADDRESS_GROUP, GROUP, PORT, FLOATING_IP)
# How many objects a project may have: as many as Neutron's own quotas allow.
QUOTA_KINDS = (
    "vpc",
    "subnet",
    "route_table",
    "prefix_list",
    "security_group",
    "port",
    "peering",
    "elastic_ip",
    "nat_gateway",
)
QUOTA = 2**31 - 1
# Ports that are routers' own, and not guests'.
ROUTER_PORTS = (
    *constants.ROUTER_INTERFACE_OWNERS,
    constants.DEVICE_OWNER_ROUTER_GW,
    constants.DEVICE_OWNER_FLOATINGIP,
)
# Seconds for which the hosts' physical networks are remembered.
HOSTS_KEPT = 30.0


class Unit(NamedTuple):
    """One of [`KINDS`], and what it is of."""

    kind: str
    id: str


class Interface(NamedTuple):
    """A router's interface on a network."""

    router: str
    network: str
    subnets: tuple[str, ...]
    addresses: tuple[str, ...]


class Units:
    """Reads Neutron's database in the words of [`translate`]."""

    def __init__(self, controller: Controller, conf: Any) -> None:
        self._controller = controller
        self._conf = conf
        self._hosts: tuple[float, list[weft.Host]] = (0.0, [])

    @property
    def plugin(self) -> Any:
        return directory.get_plugin()

    def wanted(self, context: Any, unit: Unit) -> list[object]:
        """The objects that a unit is now."""
        try:
            return getattr(self, "_" + unit.kind)(context, unit.id)
        except lib_exceptions.NotFound as error:
            if self._exists(context, unit):
                raise Changed(f"it changed while it was read: {error}") from error
            return []

    def _exists(self, context: Any, unit: Unit) -> bool:
        """Whether what a unit is of is there; what is computed of several is gone with any of them."""
        read = {
            NETWORK: self.plugin.get_network,
            PORT: self.plugin.get_port,
            GROUP: self.plugin.get_security_group,
            ADDRESS_GROUP: self.plugin.get_address_group,
        }.get(unit.kind)
        if read is None:
            return False
        try:
            read(context, unit.id)
        except lib_exceptions.NotFound:
            return False
        return True

    def keys(self, unit: Unit) -> list[Key]:
        """The objects that a unit may have been, those that others rest on last."""
        ids: dict[str, list[Key]] = {
            NETWORK: [
                Key("security_group", translate.open_group_id(unit.id)),
                Key("security_group", translate.closed_group_id(unit.id)),
                Key("external_network", unit.id),
                Key("vpc", unit.id),
            ],
            SEGMENT: [Key("subnet", unit.id)],
            PORT: [Key("port", unit.id)],
            GROUP: [Key("security_group", unit.id)],
            ADDRESS_GROUP: [Key("prefix_list", unit.id)],
            LINK: [Key("peering", unit.id)],
            ROUTES: [Key("route_table", unit.id)],
            ROUTER: [Key("nat_gateway", unit.id)],
            FLOATING_IP: [Key("elastic_ip", unit.id)],
        }
        return ids[unit.kind]

    def rests_on(self, context: Any, unit: Unit) -> list[Unit]:
        """Units without which the controller refuses this one, in the order in which they are made."""
        found: dict[Unit, None] = {}
        try:
            self._rests_on(context, unit, found)
        except lib_exceptions.NotFound:
            return []
        return sorted(found, key=lambda one: KINDS.index(one.kind))

    def _rests_on(self, context: Any, unit: Unit, found: dict[Unit, None]) -> None:
        if unit.kind == PORT:
            item = self.plugin.get_port(context, unit.id)
            found[Unit(NETWORK, item["network_id"])] = None
            for fixed in item["fixed_ips"]:
                segment = segments.segment_of(context, fixed["subnet_id"])
                if segment is not None:
                    self._rests_on(context, Unit(SEGMENT, segment), found)
            for group in item["security_groups"]:
                self._groups_together(context, group, found)
            place = trunk.trunk_of(context, unit.id)
            if place is not None:
                self._rests_on(context, Unit(PORT, place[0]), found)
                found[Unit(PORT, place[0])] = None
        elif unit.kind == SEGMENT:
            place = segments.network_of(context, unit.id)
            if place is not None:
                found[Unit(NETWORK, place[0])] = None
                self._rests_on(context, Unit(ROUTES, unit.id), found)
                found[Unit(ROUTES, unit.id)] = None
                found[unit] = None
        elif unit.kind in (GROUP, ADDRESS_GROUP):
            if unit.kind == GROUP:
                self._groups_together(context, unit.id, found)
            groups = {one.id for one in found if one.kind == GROUP}
            found.update(dict.fromkeys(Unit(NETWORK, one) for one in self._strange_networks(context, groups)))
        elif unit.kind == ROUTES:
            place = segments.network_of(context, unit.id)
            if place is not None:
                found[Unit(NETWORK, place[0])] = None
                for interface in self.interfaces(context, network=place[0]):
                    found[Unit(ROUTER, interface.router)] = None
                    self._rests_on(context, Unit(ROUTER, interface.router), found)
                    for other in self.interfaces(context, router=interface.router):
                        if other.network != place[0]:
                            found[Unit(NETWORK, other.network)] = None
                            found[Unit(LINK, translate.link_id(place[0], other.network))] = None
        elif unit.kind == ROUTER:
            for interface in self.interfaces(context, router=unit.id):
                found[Unit(NETWORK, interface.network)] = None
            gateway = (self._router_item(context, unit.id) or {}).get("external_gateway_info")
            if gateway:
                found[Unit(NETWORK, gateway["network_id"])] = None
        elif unit.kind == FLOATING_IP:
            item = directory.get_plugin(plugin_constants.L3).get_floatingip(context, unit.id)
            found[Unit(NETWORK, item["floating_network_id"])] = None
            if item["port_id"]:
                self._rests_on(context, Unit(PORT, item["port_id"]), found)
                found[Unit(PORT, item["port_id"])] = None
        elif unit.kind == LINK:
            found.update(dict.fromkeys(Unit(NETWORK, one) for one in unit.id.split(".")))

    def _groups_together(self, context: Any, group: str, found: dict[Unit, None]) -> None:
        """A group, and those that its rules name, which may name it."""
        if Unit(GROUP, group) in found:
            return
        found[Unit(GROUP, group)] = None
        for rule in self.plugin.get_security_group(context, group)["security_group_rules"]:
            if rule["remote_group_id"]:
                self._groups_together(context, rule["remote_group_id"], found)
            elif rule["remote_address_group_id"]:
                found[Unit(ADDRESS_GROUP, rule["remote_address_group_id"])] = None

    def all(self, context: Any) -> dict[Unit, int]:
        """Every unit of Neutron's that can be listed, with its revision there."""
        found: dict[Unit, int] = {}
        for network in self.plugin.get_networks(context):
            found[Unit(NETWORK, network["id"])] = translate.revision(network)
            for segment in segments.segments_of_network(context, network["id"]):
                found[Unit(SEGMENT, segment)] = translate.revision(network)
        for item in self.plugin.get_ports(context):
            if self._is_guest(item):
                found[Unit(PORT, item["id"])] = translate.revision(item)
        for group in self.plugin.get_security_groups(context):
            found[Unit(GROUP, group["id"])] = translate.revision(group)
        for group in self.plugin.get_address_groups(context):
            found[Unit(ADDRESS_GROUP, group["id"])] = translate.revision(group)
        for interface in self.interfaces(context):
            found[Unit(ROUTER, interface.router)] = 0
            for other in self.interfaces(context, router=interface.router):
                if other.network != interface.network:
                    found[Unit(LINK, translate.link_id(interface.network, other.network))] = 0
            for segment in segments.segments_of_network(context, interface.network):
                found[Unit(ROUTES, segment)] = 0
        routers = directory.get_plugin(plugin_constants.L3)
        if routers is not None:
            for item in routers.get_floatingips(context):
                found[Unit(FLOATING_IP, item["id"])] = translate.revision(item)
        return found

    # What each kind is.

    def _network(self, context: Any, network_id: str) -> list[object]:
        network = self.plugin.get_network(context, network_id)
        made: list[object] = []
        if not translate.is_tunnel(network):
            hosts = self._gateway_hosts(network["provider:physical_network"])
            made.append(translate.external_network(network, self._subnets(context, network_id), hosts))
            if not translate.has_vpc(network):
                return made
        made.append(translate.vpc(network))
        made.append(translate.open_group(network))
        made.append(translate.closed_group(network))
        project = network["project_id"]
        if project:
            made[0:0] = [
                weft.Quota(id=f"{project}/{kind}", tenant=project, kind=kind, limit=QUOTA)
                for kind in QUOTA_KINDS
            ]
        return made

    def _segment(self, context: Any, segment_id: str) -> list[object]:
        place = segments.network_of(context, segment_id)
        if place is None:
            return []
        network = self.plugin.get_network(context, place[0])
        if not translate.has_vpc(network):
            return []
        subnets = [self.plugin.get_subnet(context, subnet) for subnet in place[1]]
        has_routes = bool(self._routes(context, segment_id))
        return [translate.segment(segment_id, network, subnets, has_routes)]

    def _security_group(self, context: Any, group_id: str) -> list[object]:
        """A group is its project's, and its project's networks know it; each network of another project with ports in it has a copy."""
        group = self.plugin.get_security_group(context, group_id)
        # One that weft refuses would keep the others from changing: what names another project's group admits nothing.
        rules = group["security_group_rules"]
        group["security_group_rules"] = [rule for rule in rules if not self.remote_is_strange(context, rule)]
        made: list[object] = [translate.security_group(group, group_id, None, str)]
        for network in self._strange_networks(context, {group_id}):
            name = functools.partial(translate.copy_id, network=network)
            made.append(translate.security_group(group, name(group_id), network, name))
        return made

    def _address_group(self, context: Any, group_id: str) -> list[object]:
        group = self.plugin.get_address_group(context, group_id)
        made: list[object] = [translate.prefix_list(group, group_id, None)]
        model = group_models.SecurityGroupRule
        with db_api.CONTEXT_READER.using(context):
            query = context.session.query(model.security_group_id).filter_by(remote_address_group_id=group_id)
            users = {row.security_group_id for row in query}
        for network in self._strange_networks(context, users):
            made.append(translate.prefix_list(group, translate.copy_id(group_id, network=network), network))
        return made

    def remote_is_strange(self, context: Any, rule: dict[str, Any]) -> bool:
        """Whether a rule's remote is a group of another project."""
        context = context.elevated()
        project = self.plugin.get_security_group(context, rule["security_group_id"], ["project_id"])[
            "project_id"
        ]
        if rule.get("remote_group_id"):
            remote = self.plugin.get_security_group(context, rule["remote_group_id"], ["project_id"])
        elif rule.get("remote_address_group_id"):
            remote = self.plugin.get_address_group(context, rule["remote_address_group_id"], ["project_id"])
        else:
            return False
        return remote["project_id"] != project

    def copied(self, context: Any, network: dict[str, Any], groups: set[str]) -> list[Unit]:
        """Groups of other projects than a network's, and the address groups that they name: what the network has copies of."""
        group, rule = group_models.SecurityGroup, group_models.SecurityGroupRule
        if not groups:
            return []
        with db_api.CONTEXT_READER.using(context):
            query = context.session.query(group.id).filter(group.id.in_(groups))
            strange = [row.id for row in query.filter(group.project_id != network["project_id"])]
            query = context.session.query(rule.remote_address_group_id, rule.remote_group_id)
            rows = query.filter(rule.security_group_id.in_(strange)).all() if strange else []
        named = {row.remote_address_group_id for row in rows} - {None}
        also = {row.remote_group_id for row in rows} - {None}
        units = [Unit(ADDRESS_GROUP, one) for one in sorted(named)]
        return units + [Unit(GROUP, one) for one in sorted({*strange, *also})]

    def _strange_networks(self, context: Any, groups: set[str]) -> list[str]:
        """Networks of other projects with ports in one of the groups, or in one that names one of them."""
        rule, port = group_models.SecurityGroupRule, models_v2.Port
        found, known, network = set(), set(), models_v2.Network
        binding, group = group_models.SecurityGroupPortBinding, group_models.SecurityGroup
        with db_api.CONTEXT_READER.using(context):
            while groups:
                known |= groups
                query = context.session.query(port.network_id).distinct()
                query = query.join(binding, binding.port_id == port.id)
                query = query.join(group, group.id == binding.security_group_id)
                query = query.join(network, network.id == port.network_id)
                query = query.filter(group.id.in_(groups), network.project_id != group.project_id)
                found |= {row.network_id for row in query}
                query = context.session.query(rule.security_group_id).filter(rule.remote_group_id.in_(groups))
                groups = {row.security_group_id for row in query} - known
        # One that routers lead into has no VPC.
        networks = (self.plugin.get_network(context, one) for one in sorted(found))
        return [one["id"] for one in networks if translate.has_vpc(one)]

    def _port(self, context: Any, port_id: str) -> list[object]:
        item = self.plugin.get_port(context, port_id)
        if not self._is_guest(item):
            return []
        network = self.plugin.get_network(context, item["network_id"])
        if not translate.has_vpc(network):
            return []
        places = {segments.segment_of(context, fixed["subnet_id"]) for fixed in item["fixed_ips"]}
        places.discard(None)
        if len(places) != 1:
            # Without addresses it is in no subnet, and weft has no place for it yet.
            return []
        policy = item.get("qos_policy_id") or item.get("qos_network_policy_id")
        groups = [self._group_name(context, group, network) for group in item["security_groups"]]
        made = translate.port(item, network, places.pop(), groups, self._rules(context, policy), self._conf)
        place = trunk.trunk_of(context, port_id)
        if place is not None:
            made.trunk.parent, made.trunk.vlan = place
            made.ClearField("device")
        return [made]

    def _group_name(self, context: Any, group_id: str, network: dict[str, Any]) -> str:
        """How a group is called in a network."""
        group = self.plugin.get_security_group(context, group_id, fields=["project_id"])
        if group["project_id"] == network["project_id"]:
            return group_id
        return translate.copy_id(group_id, network=network["id"])

    def _rules(self, context: Any, policy_id: str | None) -> list[dict[str, Any]]:
        policy = qos_policies.QosPolicy.get_object(context, id=policy_id) if policy_id else None
        return [rule.to_dict() for rule in policy.rules] if policy else []

    def _link(self, context: Any, link: str) -> list[object]:
        one, other = link.split(".")
        routers = {interface.router for interface in self.interfaces(context, network=one)}
        routers &= {interface.router for interface in self.interfaces(context, network=other)}
        if not routers:
            return []
        return [translate.link(one, other)]

    def _routes(self, context: Any, segment_id: str) -> list[object]:
        place = segments.network_of(context, segment_id)
        if place is None:
            return []
        network_id, own = place
        subnets = {one: self.plugin.get_subnet(context, one) for one in own}
        gateways = {subnet["gateway_ip"] for subnet in subnets.values()}
        found: dict[str, weft.Route] = {}
        # Where several routers have interfaces, the one that guests send to comes first.
        ordered = sorted(
            self.interfaces(context, network=network_id),
            key=lambda one: (not set(one.addresses) & gateways, one),
        )
        for interface in ordered:
            families = {subnets[one]["ip_version"] for one in interface.subnets if one in subnets}
            for route in self._routes_of(context, interface.router, network_id, families):
                found.setdefault(route.prefix, route)
        if not found:
            return []
        table = weft.RouteTable(id=segment_id, vpc=network_id, labels=translate.labels(0))
        table.routes.extend(found[prefix] for prefix in sorted(found))
        return [table]

    def _routes_of(
        self, context: Any, router_id: str, network_id: str, families: set[int]
    ) -> list[weft.Route]:
        """Where a router leads from one of its networks."""
        router = self._router_item(context, router_id)
        if router is None or not router["admin_state_up"]:
            return []
        made = []
        for other in self.interfaces(context, router=router_id):
            if other.network == network_id:
                continue
            for subnet_id in other.subnets:
                subnet = self.plugin.get_subnet(context, subnet_id)
                if subnet["ip_version"] in families:
                    peering = translate.link_id(network_id, other.network)
                    made.append(weft.Route(prefix=subnet["cidr"], peering=peering))
        gateway = router.get("external_gateway_info")
        if gateway and 4 in families:
            route = weft.Route(prefix="0.0.0.0/0")
            if self._router(context, router_id) and self._snat_network(context, router_id) == network_id:
                route.nat = router_id
            else:
                route.external = gateway["network_id"]
            made.append(route)
        return made

    def _router(self, context: Any, router_id: str) -> list[object]:
        router = self._router_item(context, router_id)
        gateway = (router or {}).get("external_gateway_info")
        network_id = self._snat_network(context, router_id)
        if not gateway or not gateway["enable_snat"] or network_id is None or not router["admin_state_up"]:
            return []
        addresses = [
            fixed["ip_address"] for fixed in gateway["external_fixed_ips"] if ":" not in fixed["ip_address"]
        ]
        if not addresses:
            return []
        nat = weft.NatGateway(
            id=router_id,
            vpc=network_id,
            external_network=gateway["network_id"],
            addresses=addresses[:1],
            labels=translate.labels(translate.revision(router)),
        )
        return [nat]

    def _router_item(self, context: Any, router_id: str) -> dict[str, Any] | None:
        routers = directory.get_plugin(plugin_constants.L3)
        if routers is None:
            return None
        try:
            return routers.get_router(context, router_id)
        except lib_exceptions.NotFound:
            return None

    def _snat_network(self, context: Any, router_id: str) -> str | None:
        """The network that has the router's own address outside: a NAT gateway is of one VPC. That of the router's oldest interface."""
        filters = {"device_owner": list(constants.ROUTER_INTERFACE_OWNERS), "device_id": [router_id]}
        ports = self.plugin.get_ports(context, filters, fields=["created_at", "id", "network_id"])
        first = min(ports, key=lambda port: (port["created_at"], port["id"]), default=None)
        return first["network_id"] if first else None

    def _floating_ip(self, context: Any, floating_id: str) -> list[object]:
        item = directory.get_plugin(plugin_constants.L3).get_floatingip(context, floating_id)
        if not item["port_id"]:
            return []
        router = self._router_item(context, item["router_id"]) if item["router_id"] else None
        if router is None or not router["admin_state_up"]:
            return []
        port = self.plugin.get_port(context, item["port_id"])
        network = self.plugin.get_network(context, port["network_id"])
        elastic = weft.ElasticIp(
            id=floating_id,
            tenant=network["project_id"],
            external_network=item["floating_network_id"],
            address=item["floating_ip_address"],
            port=item["port_id"],
            private_address=item["fixed_ip_address"],
            labels=translate.labels(translate.revision(item)),
        )
        return [elastic]

    # Reading.

    def interfaces(
        self, context: Any, router: str | None = None, network: str | None = None
    ) -> list[Interface]:
        """Interfaces of a router, or on a network: the ports that are these."""
        filters: dict[str, list[str]] = {"device_owner": list(constants.ROUTER_INTERFACE_OWNERS)}
        if router is not None:
            filters["device_id"] = [router]
        if network is not None:
            filters["network_id"] = [network]
        found: dict[tuple[str, str], set[tuple[str, str]]] = collections.defaultdict(set)
        for item in self.plugin.get_ports(context, filters):
            places = {(fixed["subnet_id"], fixed["ip_address"]) for fixed in item["fixed_ips"]}
            found[item["device_id"], item["network_id"]] |= places
        return [
            Interface(
                one, net, tuple(sorted({place[0] for place in places})), tuple(sorted(p[1] for p in places))
            )
            for (one, net), places in sorted(found.items())
        ]

    def _subnets(self, context: Any, network: str) -> list[dict[str, Any]]:
        subnets = self.plugin.get_subnets(context, {"network_id": [network]})
        return sorted(subnets, key=lambda subnet: subnet["id"])

    def _is_guest(self, item: dict[str, Any]) -> bool:
        return item["device_owner"] not in ROUTER_PORTS

    def _gateway_hosts(self, physical_network: str) -> list[str]:
        when, hosts = self._hosts
        if time.monotonic() - when > HOSTS_KEPT:
            hosts = self._controller.objects("host")
            self._hosts = (time.monotonic(), hosts)
        known = sorted(host.id for host in hosts if physical_network in host.physical_networks)
        return known[: translate.GATEWAY_HOSTS]

    def rules_naming(self, context: Any, group: str) -> list[str]:
        """Groups whose rules name a group."""
        model = group_models.SecurityGroupRule
        with db_api.CONTEXT_READER.using(context):
            query = context.session.query(model.security_group_id).filter_by(remote_group_id=group)
            return sorted({row.security_group_id for row in query} - {group})


def keys_of(items: list[object]) -> dict[Key, object]:
    """Objects by their keys."""
    return {key_of(item): item for item in items}
