"""What goes on beside the API: repair, the state of ports and hosts. Runs in `neutron-periodic-workers`; several do no harm."""

import threading
import time
from collections.abc import Callable
from typing import Any

from neutron.db import provisioning_blocks
from neutron_lib import constants, worker
from neutron_lib import context as neutron_context
from neutron_lib.api.definitions import portbindings
from neutron_lib.callbacks import resources
from neutron_lib.plugins import directory
from oslo_config import cfg
from oslo_log import log as logging

from networking_weft import agents, config, translate
from networking_weft.client import ControllerError
from networking_weft.sync import Sync

LOG = logging.getLogger(__name__)

# Who it is that a port waits for before it is ACTIVE.
ENTITY = "weft"
# Seconds after which a watch that ended begins anew.
PAUSE = 1.0
# Seconds between looks for ports that are DOWN at Neutron though packets pass: they were bound again, and nothing changed on their host.
LOOK = 5.0
# Seconds that who made a change has to push it.
SETTLE = 1.0


class WeftWorker(worker.BaseWorker):
    """Threads, each with one task, until the process ends."""

    def __init__(self) -> None:
        super().__init__(worker_process_count=1, desc="weft")
        self._stopping = threading.Event()
        self._threads: list[threading.Thread] = []

    def start(self, name: str = "neutron-server", desc: str | None = None) -> None:
        super().start(name=name, desc=desc or "weft worker")
        config.register()
        self.sync = Sync()
        conf = cfg.CONF.weft
        tasks: list[tuple[Callable[[Any], None], float]] = [
            (self._repair, conf.repair_interval),
            (self._report, conf.report_interval),
            (self._resync, conf.resync_interval),
            (self._follow_ports, PAUSE),
            (self._look_at_ports, LOOK),
        ]
        for task, interval in tasks:
            thread = threading.Thread(
                target=self._again_and_again, args=(task, interval), name=task.__name__, daemon=True
            )
            thread.start()
            self._threads.append(thread)

    def stop(self) -> None:
        self._stopping.set()

    def wait(self) -> None:
        for thread in self._threads:
            thread.join(timeout=1)

    @staticmethod
    def reset() -> None:
        config.register()

    def _again_and_again(self, task: Callable[[Any], None], interval: float) -> None:
        while not self._stopping.is_set():
            try:
                task(neutron_context.get_admin_context())
            except ControllerError as error:
                LOG.warning("%s: %s", task.__name__.strip("_"), error)
            except Exception:
                LOG.exception("%s", task.__name__.strip("_"))
            self._stopping.wait(interval)

    def _repair(self, context: Any) -> None:
        count = self.sync.drain(context, SETTLE)
        if count:
            LOG.info("%d changes brought to the controller that it had not got", count)

    def _report(self, context: Any) -> None:
        agents.report(context, self.sync.controller)

    def _resync(self, context: Any) -> None:
        begun = time.monotonic()
        count = self.sync.resync(context)
        LOG.info("%d objects differed at the controller, in %.1f s", count, time.monotonic() - begun)

    def _follow_ports(self, context: Any) -> None:
        """Ports are ACTIVE when packets pass, and DOWN when they do not."""
        for conditions in self.sync.controller.watch_ports(translate.REVISION):
            if self._stopping.is_set():
                return
            for condition in conditions.ports:
                self._take_over(condition)

    def _look_at_ports(self, context: Any) -> None:
        filters = {"status": [constants.PORT_STATUS_DOWN], "admin_state_up": [True]}
        ports = directory.get_plugin().get_ports(context, filters)
        down = {port["id"] for port in ports if port.get(portbindings.VIF_TYPE) in translate.VIF_TYPES}
        if not down:
            return
        for conditions in self.sync.controller.port_conditions(translate.REVISION):
            for condition in conditions.ports:
                if condition.port in down and condition.state == "up":
                    self._take_over(condition)

    def _take_over(self, condition: Any) -> None:
        try:
            set_status(neutron_context.get_admin_context(), condition)
        except Exception:
            LOG.exception("port %s is %s, and Neutron was not told", condition.port, condition.state)


def set_status(context: Any, condition: Any) -> None:
    """Takes over a port's state from the host that Neutron has it on."""
    plugin = directory.get_plugin()
    if condition.state == "up":
        if plugin.port_bound_to_host(context, condition.port, condition.host):
            provisioning_blocks.provisioning_complete(context, condition.port, resources.PORT, ENTITY)
    elif condition.state in ("down", "unbound"):
        plugin.update_port_status(context, condition.port, constants.PORT_STATUS_DOWN, condition.host)
