"""Neutron's own tests of routers, their gateways and routes, with weft's plugin. The controller is away all the time.

python -m testtools.run tests.neutron.test_l3
"""

from neutron.conf.db import extraroute_db
from neutron.services.revisions import revision_plugin
from neutron.tests.unit.api import test_extensions
from neutron.tests.unit.extensions import test_extraroute, test_l3
from neutron.tests.unit.extensions import test_l3_ext_gw_mode as test_gateways
from neutron_lib.plugins import constants, directory
from oslo_config import cfg

from networking_weft.db import models  # noqa: F401


class TestWeftL3(
    test_gateways.ExtGwModeIntTestCase,
    test_l3.L3BaseForIntTests,
    test_l3.L3NatTestCaseBase,
    test_extraroute.ExtraRouteDBTestCaseBase,
):
    """As Neutron sets up the tests of its plugin for OVN."""

    def setUp(self) -> None:
        extraroute_db.register_db_extraroute_opts()
        cfg.CONF.set_default("max_routes", 3)
        super(test_l3.L3BaseForIntTests, self).setUp(
            plugin="neutron.tests.unit.extensions.test_l3.TestOVNL3Plugin",
            ext_mgr=test_extraroute.ExtraRouteTestExtensionManager(),
            service_plugins={"l3_plugin_name": "networking_weft.l3.WeftL3Plugin"},
        )
        revision_plugin.RevisionPlugin()
        test_extensions.setup_extensions_middleware(test_gateways.TestExtensionManager())
        self.l3_inst = directory.get_plugin(constants.L3)
