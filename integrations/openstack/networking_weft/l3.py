"""The router plugin: Neutron's own records of routers and floating IPs, and weft's hosts as what routes."""

from typing import Any

from neutron.db import (
    dns_db,
    extraroute_db,
    l3_db,
    l3_fip_pools_db,
    l3_fip_port_details,
    l3_fip_qos,
    l3_gateway_ip_qos,
)
from neutron.db.models import l3 as l3_models
from neutron.quota import resource_registry
from neutron_lib import constants
from neutron_lib.api.definitions import (
    dns,
    extraroute,
    extraroute_atomic,
    fip_port_details,
    floatingip_pools,
    l3,
    l3_ext_gw_mode,
    l3_port_ip_change_not_allowed,
    qos_fip,
    qos_gateway_ip,
)
from neutron_lib.callbacks import events, registry, resources
from neutron_lib.plugins import constants as plugin_constants
from neutron_lib.plugins import directory
from neutron_lib.services import base
from oslo_log import log as logging

from networking_weft import config
from networking_weft.db import segments
from networking_weft.sync import Sync
from networking_weft.units import FLOATING_IP, ROUTER, ROUTES, SEGMENT, Unit

LOG = logging.getLogger(__name__)

ALIASES = [
    l3.ALIAS,
    l3_ext_gw_mode.ALIAS,
    extraroute.ALIAS,
    extraroute_atomic.ALIAS,
    dns.ALIAS,
    fip_port_details.ALIAS,
    floatingip_pools.ALIAS,
    l3_port_ip_change_not_allowed.ALIAS,
    qos_fip.ALIAS,
    qos_gateway_ip.ALIAS,
]


class WeftL3Plugin(
    base.ServicePluginBase,
    extraroute_db.ExtraRoute_dbonly_mixin,
    l3_db.L3NotifierMixin,
    dns_db.DNSDbMixin,
    l3_fip_port_details.Fip_port_details_db_mixin,
    l3_fip_qos.FloatingQoSDbMixin,
    l3_gateway_ip_qos.L3_gw_ip_qos_dbonly_mixin,
    l3_fip_pools_db.FloatingIPPoolsMixin,
):
    """Routers join the VPCs of their networks (decision 022), floating IPs are elastic IPs, and gateways with SNAT are NAT gateways."""

    @resource_registry.tracked_resources(router=l3_models.Router, floatingip=l3_models.FloatingIP)
    def __init__(self) -> None:
        super().__init__()
        self._sync: Sync | None = None
        for resource in (resources.ROUTER, resources.ROUTER_GATEWAY, resources.FLOATING_IP):
            for event in (events.PRECOMMIT_CREATE, events.PRECOMMIT_UPDATE, events.PRECOMMIT_DELETE):
                registry.subscribe(self._changes, resource, event)
            for event in (events.AFTER_CREATE, events.AFTER_UPDATE, events.AFTER_DELETE):
                registry.subscribe(self._changed, resource, event)
        for event in (events.AFTER_CREATE, events.AFTER_DELETE):
            registry.subscribe(self._interface_changed, resources.ROUTER_INTERFACE, event)

    @property
    def supported_extension_aliases(self) -> list[str]:
        aliases = list(ALIASES)
        if directory.get_plugin(plugin_constants.QOS) is None:
            aliases = [alias for alias in aliases if alias not in (qos_fip.ALIAS, qos_gateway_ip.ALIAS)]
        return aliases

    @classmethod
    def get_plugin_type(cls) -> str:
        return plugin_constants.L3

    def get_plugin_description(self) -> str:
        return "Routers and floating IPs on weft"

    @property
    def sync(self) -> Sync:
        """The mechanism driver's, so that what one marks the other pushes."""
        if self._sync is None:
            manager = getattr(directory.get_plugin(), "mechanism_manager", None)
            if manager is None or "weft" not in manager.mech_drivers:
                LOG.warning("the mechanism driver 'weft' is not loaded: its networks are unknown to weft")
                config.register()
                self._sync = Sync()
            else:
                self._sync = manager.mech_drivers["weft"].obj.sync
        return self._sync

    def _changes(self, resource: str, event: str, trigger: Any, payload: Any) -> None:
        context, identifier = payload.context, payload.resource_id
        if resource == resources.FLOATING_IP:
            self.sync.mark(context, Unit(FLOATING_IP, floating_ip_of(event, payload)))
            return
        if identifier:
            self.sync.mark(context, *self._around(context, identifier))

    def _around(self, context: Any, router: str) -> list[Unit]:
        """What a router's own settings change."""
        units = [Unit(ROUTER, router)]
        floating = self.get_floatingips(context.elevated(), {"router_id": [router]}, fields=["id"])
        units += [Unit(FLOATING_IP, one["id"]) for one in floating]
        for interface in self.sync.units.interfaces(context.elevated(), router=router):
            for segment in segments.segments_of_network(context, interface.network):
                units += [Unit(ROUTES, segment), Unit(SEGMENT, segment)]
        return units

    def _changed(self, resource: str, event: str, trigger: Any, payload: Any) -> None:
        self.sync.push_marked(payload.context)
        if resource == resources.FLOATING_IP and event != events.AFTER_DELETE:
            self._set_floating_ip_status(payload)

    def _set_floating_ip_status(self, payload: Any) -> None:
        context = payload.context.elevated()
        identifier = payload.resource_id or payload.latest_state["id"]
        floating = self.get_floatingip(context, identifier)
        wanted = (
            constants.FLOATINGIP_STATUS_ACTIVE if floating["port_id"] else constants.FLOATINGIP_STATUS_DOWN
        )
        if floating["status"] != wanted:
            self.update_floatingip_status(context, identifier, wanted)

    def _interface_changed(self, resource: str, event: str, trigger: Any, payload: Any) -> None:
        """A router's port has no device that could come up: it is there when its subnet is."""
        port = (payload.metadata or {}).get("port")
        if event == events.AFTER_CREATE and port:
            plugin = directory.get_plugin()
            plugin.update_port_status(payload.context.elevated(), port["id"], constants.PORT_STATUS_ACTIVE)
        self.sync.push_marked()


def floating_ip_of(event: str, payload: Any) -> str:
    """The floating IP that an event before the commit is of. Neutron says it in a different place each time."""
    if event == events.PRECOMMIT_DELETE:
        # The payload is that of its port.
        return payload.latest_state["device_id"]
    if payload.resource_id is not None:
        return payload.resource_id
    return payload.desired_state.id
