"""Hosts as Neutron's agents: what `openstack network agent list` shows, and binding asks."""

from typing import Any

from neutron_lib.plugins import directory
from oslo_log import log as logging
from oslo_utils import timeutils

from networking_weft.client import Controller

LOG = logging.getLogger(__name__)

AGENT_TYPE = "weft host"
BINARY = "weftd"


def report(context: Any, controller: Controller) -> int:
    """Tells Neutron of the hosts that are attached to the controller; those that are not age out there. Returns how many are."""
    plugin = directory.get_plugin()
    known = {host.id: host for host in controller.objects("host")}
    count = 0
    for status in controller.hosts():
        host = known.get(status.host)
        if host is None or host.foreign or not status.attached:
            continue
        state = {
            "binary": BINARY,
            "host": host.id,
            "topic": "N/A",
            "agent_type": AGENT_TYPE,
            "availability_zone": host.labels.get("topology.kubernetes.io/zone", "") or None,
            "configurations": {
                "physical_networks": list(host.physical_networks),
                "tunnel_ips": list(host.vteps),
                "tunnel_type": host.encapsulation or "vxlan",
                "revision": status.acknowledged_revision,
                "held_back": len(status.held_back),
            },
        }
        if state["availability_zone"] is None:
            del state["availability_zone"]
        plugin.create_or_update_agent(context, state, timeutils.utcnow())
        count += 1
    return count
