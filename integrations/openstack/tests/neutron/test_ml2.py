"""Neutron's own tests of ML2 plugins, with weft's driver as the only one. The controller is away all the time, which no user notices.

python -m testtools.run tests.neutron.test_ml2
"""

from neutron.conf.plugins.ml2 import config
from neutron.conf.plugins.ml2.drivers import driver_type
from neutron.services.revisions import revision_plugin
from neutron.tests.unit.plugins.ml2 import test_plugin
from neutron_lib.api.definitions import portbindings
from oslo_config import cfg

from networking_weft.db import models  # noqa: F401


class WeftBase(test_plugin.Ml2PluginV2TestCase):
    """A plugin with weft's driver."""

    _mechanism_drivers = ("weft",)

    def setUp(self) -> None:
        config.register_ml2_plugin_opts()
        driver_type.register_ml2_drivers_vxlan_opts()
        cfg.CONF.set_override("project_network_types", ["vxlan"], group="ml2")
        cfg.CONF.set_override("vni_ranges", ["1:5000"], group="ml2_type_vxlan")
        super().setUp()
        revision_plugin.RevisionPlugin()


class TestWeftBasicGet(test_plugin.TestMl2BasicGet, WeftBase):
    pass


class TestWeftV2HTTPResponse(test_plugin.TestMl2V2HTTPResponse, WeftBase):
    pass


class TestWeftNetworks(test_plugin.TestMl2NetworksV2, WeftBase):
    pass


class TestWeftSubnets(test_plugin.TestMl2SubnetsV2, WeftBase):
    pass


class TestWeftPorts(test_plugin.TestMl2PortsV2, WeftBase):
    pass


class TestWeftPortBinding(test_plugin.TestMl2PortBinding, WeftBase):
    """No host has reported there, so that no port can be bound."""

    VIF_TYPE = portbindings.VIF_TYPE_UNBOUND
    HAS_PORT_FILTER = False
