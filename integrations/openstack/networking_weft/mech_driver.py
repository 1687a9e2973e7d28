"""The ML2 mechanism driver: networks, subnets and ports, and what ports rest on."""

from typing import Any

from neutron.db import provisioning_blocks
from neutron.services.logapi.common import sg_validate  # noqa: F401
from neutron_lib import constants
from neutron_lib.api.definitions import portbindings
from neutron_lib.callbacks import events, registry, resources
from neutron_lib.plugins import directory
from neutron_lib.plugins.ml2 import api
from oslo_config import cfg
from oslo_log import log as logging

from networking_weft import config, qos, translate, trunk
from networking_weft.agents import AGENT_TYPE
from networking_weft.db import segments
from networking_weft.sync import Sync
from networking_weft.units import (
    ADDRESS_GROUP,
    GROUP,
    LINK,
    NETWORK,
    PORT,
    ROUTER,
    ROUTER_PORTS,
    ROUTES,
    SEGMENT,
    Unit,
)
from networking_weft.worker import ENTITY, WeftWorker

LOG = logging.getLogger(__name__)

VNIC_TYPES = (portbindings.VNIC_NORMAL,)
# vif types that devices are to Nova.
VIF_TYPES = {
    "vhost-user": portbindings.VIF_TYPE_VHOST_USER,
    "tap": portbindings.VIF_TYPE_TAP,
    "netdev": portbindings.VIF_TYPE_TAP,
}


class WeftMechanismDriver(api.MechanismDriver):
    """Notes each change in its transaction, and pushes it when it is committed."""

    def initialize(self) -> None:
        config.register()
        self.sync = Sync()
        self.qos = qos.WeftQosDriver.create(self)
        self.trunk = trunk.WeftTrunkDriver.create(self)
        for resource in (resources.SECURITY_GROUP, resources.SECURITY_GROUP_RULE):
            for event in (events.PRECOMMIT_CREATE, events.PRECOMMIT_UPDATE, events.PRECOMMIT_DELETE):
                registry.subscribe(self._group_changes, resource, event)
            for event in (events.AFTER_CREATE, events.AFTER_UPDATE, events.AFTER_DELETE):
                registry.subscribe(self._changed, resource, event)
        for event in (events.AFTER_CREATE, events.AFTER_UPDATE, events.AFTER_DELETE):
            registry.subscribe(self._address_group_changed, resources.ADDRESS_GROUP, event)

    @property
    def connectivity(self) -> str:
        return portbindings.CONNECTIVITY_L2

    def get_workers(self) -> list[WeftWorker]:
        return [WeftWorker()]

    def check_vlan_transparency(self, context: api.NetworkContext) -> bool:
        return False

    def check_vlan_qinq(self, context: api.NetworkContext) -> bool:
        return False

    # Networks.

    def create_network_precommit(self, context: api.NetworkContext) -> None:
        translate.check_network(context.current)
        self._mark(context, Unit(NETWORK, context.current["id"]))

    def update_network_precommit(self, context: api.NetworkContext) -> None:
        translate.check_network(context.current)
        network, session = context.current["id"], context.plugin_context
        units = [Unit(NETWORK, network)]
        units += [Unit(SEGMENT, one) for one in segments.segments_of_network(session, network)]
        if context.current.get("qos_policy_id") != context.original.get("qos_policy_id"):
            ports = directory.get_plugin().get_ports(session, {"network_id": [network]}, fields=["id"])
            units += [Unit(PORT, port["id"]) for port in ports]
        self._mark(context, *units)

    def delete_network_precommit(self, context: api.NetworkContext) -> None:
        self._mark(context, Unit(NETWORK, context.current["id"]))

    # Subnets.

    def create_subnet_precommit(self, context: api.SubnetContext) -> None:
        subnet = context.current
        translate.check_subnet(subnet)
        segment = segments.join(
            context.plugin_context, subnet["network_id"], subnet["id"], subnet["ip_version"]
        )
        self._mark(context, Unit(NETWORK, subnet["network_id"]), Unit(SEGMENT, segment))

    def update_subnet_precommit(self, context: api.SubnetContext) -> None:
        subnet = context.current
        translate.check_subnet(subnet)
        segment = segments.segment_of(context.plugin_context, subnet["id"])
        units = [Unit(NETWORK, subnet["network_id"])]
        if segment is not None:
            units += [Unit(SEGMENT, segment)]
        self._mark(context, *units)

    def delete_subnet_precommit(self, context: api.SubnetContext) -> None:
        segment = segments.leave(context.plugin_context, context.current["id"])
        units = [Unit(NETWORK, context.current["network_id"])]
        if segment is not None:
            units += [Unit(SEGMENT, segment), Unit(ROUTES, segment)]
        self._mark(context, *units)

    # Ports.

    def create_port_precommit(self, context: api.PortContext) -> None:
        self._check_port(context)
        self._port_changes(context)
        self._await_host(context)

    def update_port_precommit(self, context: api.PortContext) -> None:
        self._check_port(context)
        self._port_changes(context)
        self._await_host(context)

    def delete_port_precommit(self, context: api.PortContext) -> None:
        self._port_changes(context)

    def _check_port(self, context: api.PortContext) -> None:
        port = context.current
        if port["device_owner"] in constants.ROUTER_INTERFACE_OWNERS:
            if not translate.is_tunnel(context.network.current):
                raise translate.refuse("a router's interfaces are on networks of the types vxlan and gre")
            return
        places = set()
        for fixed in port["fixed_ips"]:
            places.add(segments.segment_of(context.plugin_context, fixed["subnet_id"]))
        if len(places - {None}) > 1:
            raise translate.refuse(
                "a port has addresses of at most one IPv4 and one IPv6 subnet that go together:"
                " the first of each family of a network, the second of each, and so on"
            )
        translate.check_port(port)

    def _port_changes(self, context: api.PortContext) -> None:
        """A port that becomes a router's, or no longer is one, is both."""
        both = [context.original, context.current] if context.original else [context.current]
        units: list[Unit] = []
        for port in both:
            if port["device_owner"] in constants.ROUTER_INTERFACE_OWNERS:
                units += self._around_router(context, port)
        if any(port["device_owner"] not in ROUTER_PORTS for port in both):
            units.append(Unit(PORT, context.current["id"]))
            groups = {group for port in both for group in port["security_groups"]}
            network = context.network.current
            units += self.sync.units.copied(context.plugin_context, network, groups)
        self._mark(context, *units)

    def _around_router(self, context: api.PortContext, port: dict[str, Any]) -> list[Unit]:
        """What a router's interface changes: links between its network and the router's others, and the routes of all of them."""
        session = context.plugin_context.elevated()
        units = [Unit(ROUTER, port["device_id"])]
        own = Unit(NETWORK, port["network_id"])
        networks = {own.id}
        for interface in self.sync.units.interfaces(session, router=port["device_id"]):
            networks.add(interface.network)
        units += [Unit(LINK, translate.link_id(own.id, one)) for one in sorted(networks - {own.id})]
        for network in sorted(networks):
            for segment in segments.segments_of_network(session, network):
                units += [Unit(ROUTES, segment), Unit(SEGMENT, segment)]
        return units

    def _await_host(self, context: api.PortContext) -> None:
        """A port that gets a host is ACTIVE when packets pass there."""
        port = context.current
        original = context.original or {}
        host = port.get(portbindings.HOST_ID)
        if host and host != original.get(portbindings.HOST_ID) and self._is_ours(context):
            provisioning_blocks.add_provisioning_component(
                context.plugin_context, port["id"], resources.PORT, ENTITY
            )

    def _is_ours(self, context: api.PortContext) -> bool:
        return context.current.get(portbindings.VNIC_TYPE) in VNIC_TYPES

    # After the commit.

    def create_network_postcommit(self, context: api.NetworkContext) -> None:
        self.sync.push_marked()

    update_network_postcommit = create_network_postcommit
    delete_network_postcommit = create_network_postcommit
    create_subnet_postcommit = create_network_postcommit
    update_subnet_postcommit = create_network_postcommit
    delete_subnet_postcommit = create_network_postcommit
    create_port_postcommit = create_network_postcommit
    update_port_postcommit = create_network_postcommit
    delete_port_postcommit = create_network_postcommit

    def _mark(self, context: Any, *units: Unit) -> None:
        self.sync.mark(context.plugin_context, *units)

    def port_changed(self, context: Any, port: str) -> None:
        """What a port's record does not say has changed."""
        self.sync.mark_alone(context, Unit(PORT, port))
        self.sync.push_marked()

    # Groups.

    def _group_changes(self, resource: str, event: str, trigger: Any, payload: Any) -> None:
        context = payload.context
        if resource == resources.SECURITY_GROUP_RULE:
            rule = payload.latest_state if event == events.PRECOMMIT_CREATE else None
            if rule:
                translate.security_rule(rule)
                if self.sync.units.remote_is_strange(context, rule):
                    raise translate.refuse("a rule that names a group of another project is not supported")
            group = (payload.metadata or {}).get("security_group_id") or (rule or {}).get("security_group_id")
            if group:
                self.sync.mark(context, Unit(GROUP, group))
            return
        if event != events.PRECOMMIT_DELETE:
            wish = payload.latest_state or payload.desired_state or {}
            if wish.get("stateful") is False:
                raise translate.refuse("security groups that are not stateful are not supported")
        units = [Unit(GROUP, payload.resource_id)]
        if event == events.PRECOMMIT_DELETE:
            # Rules that name it go with it.
            units += [Unit(GROUP, one) for one in self.sync.units.rules_naming(context, payload.resource_id)]
        self.sync.mark(context, *units)

    def _changed(self, resource: str, event: str, trigger: Any, payload: Any) -> None:
        self.sync.push_marked(payload.context)

    def _address_group_changed(self, resource: str, event: str, trigger: Any, payload: Any) -> None:
        self.sync.mark_alone(payload.context, Unit(ADDRESS_GROUP, payload.resource_id))
        self.sync.push_marked()

    # Binding.

    def bind_port(self, context: api.PortContext) -> None:
        """A port is bound to a host that is alive, if that can have it. Without effects: the result may be thrown away."""
        port = context.current
        why = None
        if not self._is_ours(context):
            why = f"the vnic type {port[portbindings.VNIC_TYPE]} is not supported"
        elif not translate.has_vpc(context.network.current):
            why = "networks that routers lead into have no guests"
        else:
            agents = context.host_agents(AGENT_TYPE)
            alive = [agent for agent in agents if agent["alive"]]
            if not agents:
                why = "no weftd has ever reported from there"
            elif not alive:
                why = "weftd is not attached there"
        if why:
            LOG.error("port %s is not bound to host %s: %s", port["id"], context.host, why)
            return
        for segment in context.segments_to_bind:
            if self._bind(context, segment, alive[0]):
                return
        LOG.error("port %s is not bound to host %s: no segment that it can reach", port["id"], context.host)

    def _bind(self, context: api.PortContext, segment: dict[str, Any], agent: dict[str, Any]) -> bool:
        kind = segment[api.NETWORK_TYPE]
        configuration = agent["configurations"]
        if kind not in translate.TUNNELS + translate.WIRES:
            return False
        physical = segment[api.PHYSICAL_NETWORK]
        if kind in translate.WIRES and physical not in configuration["physical_networks"]:
            LOG.error("host %s has no interface on the physical network %s", context.host, physical)
            return False
        conf = cfg.CONF.weft
        port = context.current
        device = translate.device(port, conf)
        if device.kind not in VIF_TYPES:
            LOG.error("port %s: the device '%s' is not supported", port["id"], device.kind)
            return False
        details: dict[str, Any] = {
            portbindings.CAP_PORT_FILTER: True,
            portbindings.VIF_DETAILS_CONNECTIVITY: self.connectivity,
        }
        if device.kind == "vhost-user":
            details |= {
                portbindings.VHOST_USER_SOCKET: device.name,
                portbindings.VHOST_USER_MODE: conf.vhost_user_mode,
                portbindings.VHOST_USER_OVS_PLUG: False,
            }
        context.set_binding(segment[api.ID], VIF_TYPES[device.kind], details, constants.PORT_STATUS_DOWN)
        return True
