"""QoS policies: bandwidth, packet rates and DSCP of ports."""

from typing import Any

from neutron.objects import ports as port_objects
from neutron_lib import constants
from neutron_lib.api.definitions import portbindings
from neutron_lib.db import constants as db_constants
from neutron_lib.services.qos import base
from neutron_lib.services.qos import constants as qos_constants
from oslo_config import cfg

from networking_weft.units import PORT, Unit

ANY_NUMBER = {"type:range": [0, db_constants.DB_INTEGER_MAX_VALUE]}
RULES = {
    qos_constants.RULE_TYPE_BANDWIDTH_LIMIT: {
        qos_constants.MAX_KBPS: ANY_NUMBER,
        qos_constants.MAX_BURST: ANY_NUMBER,
        qos_constants.DIRECTION: {"type:values": constants.VALID_DIRECTIONS},
    },
    qos_constants.RULE_TYPE_PACKET_RATE_LIMIT: {
        qos_constants.MAX_KPPS: ANY_NUMBER,
        qos_constants.MAX_BURST_KPPS: ANY_NUMBER,
        qos_constants.DIRECTION: {"type:values": constants.VALID_DIRECTIONS},
    },
    qos_constants.RULE_TYPE_DSCP_MARKING: {
        qos_constants.DSCP_MARK: {"type:values": constants.VALID_DSCP_MARKS},
    },
}


class WeftQosDriver(base.DriverBase):
    """Pushes the ports that a policy is for when the policy changes."""

    @classmethod
    def create(cls, mechanism_driver: Any) -> "WeftQosDriver":
        driver = cls(
            name="weft",
            vif_types=[portbindings.VIF_TYPE_VHOST_USER, portbindings.VIF_TYPE_TAP],
            vnic_types=[portbindings.VNIC_NORMAL],
            supported_rules=RULES,
            requires_rpc_notifications=False,
        )
        driver.mechanism_driver = mechanism_driver
        return driver

    @property
    def is_loaded(self) -> bool:
        return "weft" in cfg.CONF.ml2.mechanism_drivers

    def update_policy_precommit(self, context: Any, policy: Any) -> None:
        ports = set(policy.get_bound_ports())
        for network in policy.get_bound_networks():
            for port in port_objects.Port.get_objects(context, network_id=network):
                ports.add(port.id)
        self.mechanism_driver.sync.mark(context, *(Unit(PORT, port) for port in sorted(ports)))

    def update_policy(self, context: Any, policy: Any) -> None:
        self.mechanism_driver.sync.push_marked()
