"""Trunks: subports are VLANs on the device of another port."""

from typing import Any

from neutron.objects import trunk as trunk_objects
from neutron.services.trunk.drivers import base
from neutron_lib.api.definitions import portbindings
from neutron_lib.callbacks import events, registry, resources
from neutron_lib.plugins import directory
from neutron_lib.services.trunk import constants as trunk_constants
from oslo_config import cfg

SUBPORT = "trunk:subport"


def trunk_of(context: Any, port: str) -> tuple[str, int] | None:
    """The parent of a subport, and its VLAN there."""
    subport = trunk_objects.SubPort.get_object(context, port_id=port)
    if subport is None:
        return None
    trunk = trunk_objects.Trunk.get_object(context, id=subport.trunk_id)
    return (trunk.port_id, subport.segmentation_id) if trunk else None


class WeftTrunkDriver(base.DriverBase):
    """Subports are bound to their parent's host, and live there when the parent does."""

    @classmethod
    def create(cls, mechanism_driver: Any) -> "WeftTrunkDriver":
        driver = cls(
            "weft",
            [portbindings.VIF_TYPE_VHOST_USER, portbindings.VIF_TYPE_TAP],
            [trunk_constants.SEGMENTATION_TYPE_VLAN],
            None,
            can_trunk_bound_port=True,
        )
        driver.mechanism_driver = mechanism_driver
        return driver

    @property
    def is_loaded(self) -> bool:
        return "weft" in cfg.CONF.ml2.mechanism_drivers

    @registry.receives(resources.TRUNK_PLUGIN, [events.AFTER_INIT])
    def register(self, resource: str, event: str, trigger: Any, payload: Any = None) -> None:
        super().register(resource, event, trigger, payload=payload)
        registry.subscribe(self._trunk_created, resources.TRUNK, events.AFTER_CREATE)
        registry.subscribe(self._trunk_deleted, resources.TRUNK, events.AFTER_DELETE)
        registry.subscribe(self._subports_added, resources.SUBPORTS, events.AFTER_CREATE)
        registry.subscribe(self._subports_removed, resources.SUBPORTS, events.AFTER_DELETE)
        registry.subscribe(self._port_updated, resources.PORT, events.AFTER_UPDATE)

    def _trunk_created(self, resource: str, event: str, trigger: Any, payload: Any) -> None:
        trunk = payload.states[0]
        self._bind(payload.context, trunk, trunk.sub_ports)
        self._follow_parent(payload.context, trunk)

    def _subports_added(self, resource: str, event: str, trigger: Any, payload: Any) -> None:
        self._bind(payload.context, payload.states[0], payload.metadata["subports"])
        self._follow_parent(payload.context, payload.latest_state)

    def _trunk_deleted(self, resource: str, event: str, trigger: Any, payload: Any) -> None:
        self._unbind(payload.context, payload.states[0].sub_ports)

    def _subports_removed(self, resource: str, event: str, trigger: Any, payload: Any) -> None:
        self._unbind(payload.context, payload.metadata["subports"])
        self._follow_parent(payload.context, payload.latest_state)

    def _port_updated(self, resource: str, event: str, trigger: Any, payload: Any) -> None:
        """The parent moved, or came up."""
        port = payload.latest_state
        details = port.get("trunk_details")
        if not details:
            return
        original = payload.states[0]
        if port.get(portbindings.HOST_ID) != original.get(portbindings.HOST_ID):
            trunk = trunk_objects.Trunk.get_object(payload.context, id=details["trunk_id"])
            if trunk is not None:
                self._bind(payload.context, trunk, trunk.sub_ports)
        if port["status"] != original["status"]:
            trunk = trunk_objects.Trunk.get_object(payload.context, id=details["trunk_id"])
            if trunk is not None:
                self._follow_parent(payload.context, trunk)

    def _follow_parent(self, context: Any, trunk: Any) -> None:
        """A trunk is as its parent is."""
        context = context.elevated()
        parent = directory.get_plugin().get_port(context, trunk.port_id)
        known = trunk_objects.Trunk.get_object(context, id=trunk.id)
        if known is not None and known.status != parent["status"]:
            known.update(status=parent["status"])

    def _bind(self, context: Any, trunk: Any, subports: Any) -> None:
        context, plugin = context.elevated(), directory.get_plugin()
        host = plugin.get_port(context, trunk.port_id).get(portbindings.HOST_ID) or ""
        for subport in subports:
            wish = {"device_owner": SUBPORT, "device_id": trunk.id, portbindings.HOST_ID: host}
            plugin.update_port(context, subport.port_id, {"port": wish})
            self._push(context, subport.port_id)

    def _unbind(self, context: Any, subports: Any) -> None:
        context, plugin = context.elevated(), directory.get_plugin()
        for subport in subports:
            wish = {"device_owner": "", "device_id": "", portbindings.HOST_ID: ""}
            plugin.update_port(context, subport.port_id, {"port": wish})
            self._push(context, subport.port_id)

    def _push(self, context: Any, port: str) -> None:
        self.mechanism_driver.port_changed(context, port)
