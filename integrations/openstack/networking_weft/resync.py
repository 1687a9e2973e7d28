"""`neutron-weft-resync`: compares Neutron's objects with the controller's, and repairs what differs."""

import sys

from neutron.common import config as neutron_config
from neutron_lib import context as neutron_context
from neutron_lib.plugins import directory
from oslo_config import cfg

from networking_weft import config
from networking_weft.sync import Sync

OPTIONS = [cfg.BoolOpt("dry-run", default=False, help="Say what differs, and change nothing.")]


def main() -> int:
    """Returns 0 if nothing differed, or everything was repaired."""
    cfg.CONF.register_cli_opts(OPTIONS)
    neutron_config.register_common_config_options()
    neutron_config.init(sys.argv[1:])
    neutron_config.setup_logging()
    config.register()
    from neutron import manager

    manager.init()
    assert directory.get_plugin() is not None
    sync, context = Sync(), neutron_context.get_admin_context()
    if cfg.CONF.dry_run:
        differing = sync.differences(context)
    else:
        sync.resync(context)
        differing = sync.differences(context)
    for unit in differing:
        print(f"{unit.kind} {unit.id} differs")
    print(f"{len(differing)} differences")
    return 1 if differing else 0


if __name__ == "__main__":
    sys.exit(main())
