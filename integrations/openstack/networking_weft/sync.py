"""Brings Neutron's objects to the controller: at once where it can, later where it must.

Whatever happens between the commit of a change and its push, the journal still has the change, and whoever looks next pushes the object as it is then: objects
are states, not steps. Each carries its revision in Neutron, so that a slower push never puts an older state over a newer one.
"""

import threading
from collections.abc import Iterable
from typing import Any

from neutron_lib import context as neutron_context
from neutron_lib.db import api as db_api
from oslo_config import cfg
from oslo_log import log as logging
from weft.v1 import objects_pb2 as weft

from networking_weft import translate
from networking_weft.client import Changed, Controller, ControllerError, Key, key_of
from networking_weft.db import journal
from networking_weft.units import ADDRESS_GROUP, GROUP, KINDS, Unit, Units

LOG = logging.getLogger(__name__)

# How often a push is tried again that another one crossed.
ATTEMPTS = 5
# Kinds of the controller's objects, and of what unit each is.
UNIT_OF = {
    "vpc": "network",
    "external_network": "network",
    "subnet": "segment",
    "port": "port",
    "security_group": "security_group",
    "prefix_list": "address_group",
    "peering": "link",
    "route_table": "routes",
    "nat_gateway": "router",
    "elastic_ip": "floating_ip",
}


class Sync:
    """What pushes. Safe to use from several threads and processes."""

    def __init__(self, conf: cfg.ConfigOpts = cfg.CONF) -> None:
        self.controller = Controller(conf)
        self.units = Units(self.controller, conf.weft)
        self._marked = threading.local()

    def mark(self, context: Any, *units: Unit) -> None:
        """Notes that units change, in the transaction that is open; [`Sync.push_marked`] follows when it is committed."""
        for unit in units:
            journal.mark(context, unit.kind, unit.id)
        marked = getattr(self._marked, "units", None) or {}
        marked.update(dict.fromkeys(units))
        self._marked.units = marked

    def mark_alone(self, context: Any, *units: Unit) -> None:
        """The same, in a transaction of its own: for what Neutron tells only after the commit."""
        with db_api.CONTEXT_WRITER.using(context):
            self.mark(context, *units)

    def push_marked(self) -> None:
        """Pushes what this thread marked. What cannot be pushed now is left to the worker: the change is committed."""
        marked, self._marked.units = getattr(self._marked, "units", None) or {}, {}
        context = neutron_context.get_admin_context()
        for unit in in_order(marked):
            if not self.try_push(context, unit):
                return

    def try_push(self, context: Any, unit: Unit) -> bool:
        """Pushes a unit if something of it is due; returns whether it makes sense to go on with others."""
        number = journal.newest(context, unit.kind, unit.id)
        if number is None:
            return True
        try:
            self.push(context, unit)
        except (ControllerError, translate.Unsupported, Changed) as error:
            LOG.warning("%s %s is not at the controller yet: %s", unit.kind, unit.id, error)
            journal.postpone(context, unit.kind, unit.id, number)
            return not getattr(error, "transient", False)
        journal.clear(context, unit.kind, unit.id, number)
        return True

    def push(self, context: Any, unit: Unit) -> None:
        """Makes the controller's objects of a unit what they should be."""
        wanted = self._wanted(context, unit)
        try:
            self._put(wanted)
        except ControllerError as error:
            if error.transient or not wanted:
                raise
            self._put_with_what_it_rests_on(context, unit)
        if wanted:
            # Deleted while it was pushed: whoever deleted it found nothing then.
            wanted = self._wanted(context, unit)
        self._delete(unit, {key_of(item) for item in wanted})

    def _put_with_what_it_rests_on(self, context: Any, unit: Unit) -> None:
        units = [*self.units.rests_on(context, unit), unit]
        LOG.info("pushing %s %s with what it rests on", unit.kind, unit.id)
        together: dict[Key, object] = {}
        for one in units:
            together |= {key_of(item): item for item in self._wanted(context, one)}
        self._put(list(together.values()))

    def _wanted(self, context: Any, unit: Unit) -> list[object]:
        # What was read before in this session would not be read again.
        context.session.expire_all()
        return self.units.wanted(context, unit)

    def _put(self, wanted: list[object]) -> None:
        for _ in range(ATTEMPTS):
            changes: dict[Key, tuple[object, int]] = {}
            for item in wanted:
                key = key_of(item)
                known = self.controller.get(key)
                if known is None:
                    changes[key] = (item, 0)
                elif is_newer(item, known[0]):
                    changes[key] = (item, known[1])
            if not changes:
                return
            try:
                self.controller.put(changes)
            except Changed:
                continue
            self._accept(item for item, _ in changes.values())
            return
        raise Changed(f"{len(wanted)} objects keep changing")

    def _accept(self, items: Iterable[object]) -> None:
        """Routers join networks of several projects: the operator's driver says yes for both sides."""
        for item in items:
            if isinstance(item, weft.Peering):
                known = self.controller.get(key_of(item))
                if known is not None and known[0].accepter_state == "accepting":
                    self.controller.accept(item.id)

    def _delete(self, unit: Unit, kept: set[Key]) -> None:
        keys = self.units.keys(unit)
        if unit.kind in (GROUP, ADDRESS_GROUP) and not kept:
            kind = keys[0].kind
            copies = self.controller.objects(kind, f"{translate.COPY_OF}={unit.id}")
            keys = [key_of(copy) for copy in copies]
        for key in keys:
            if key not in kept and (not kept or self.controller.get(key) is not None):
                self.controller.delete(key)

    # Repair.

    def drain(self, context: Any, settle: float) -> int:
        """Pushes what is due; returns how many units were pushed or tried."""
        count = 0
        units = [Unit(kind, one) for kind, one in journal.due(context, settle)]
        for unit in in_order(units):
            count += 1
            if not self.try_push(context, unit):
                break
        return count

    def differences(self, context: Any) -> list[Unit]:
        """Units whose objects at the controller are missing, of another revision, or too many."""
        wanted = self.units.all(context)
        there: dict[Unit, int] = {}
        for kind, unit_kind in UNIT_OF.items():
            for item in self.controller.objects(kind, translate.REVISION):
                unit = Unit(unit_kind, item.id)
                if unit_kind == GROUP and item.labels.get(translate.COPY_OF) is None:
                    continue
                if unit_kind in (GROUP, ADDRESS_GROUP):
                    unit = Unit(unit_kind, item.labels[translate.COPY_OF])
                revision = int(item.labels[translate.REVISION])
                there[unit] = min(revision, there.get(unit, revision))
        differing = {
            unit
            for unit, revision in wanted.items()
            if there.get(unit) != revision and self._is_anything(context, unit)
        }
        computed = {"link", "routes", "router"}
        for unit in there:
            if unit not in wanted and (unit.kind not in computed or not self.units.wanted(context, unit)):
                differing.add(unit)
        return in_order(differing)

    def _is_anything(self, context: Any, unit: Unit) -> bool:
        return bool(self.units.wanted(context, unit))

    def resync(self, context: Any) -> int:
        """Compares everything, and pushes what differs; returns how many units did."""
        differing = self.differences(context)
        for unit in differing:
            try:
                self.push(context, unit)
            except (ControllerError, translate.Unsupported, Changed) as error:
                LOG.warning("%s %s differs at the controller: %s", unit.kind, unit.id, error)
        return len(differing)


def in_order(units: Iterable[Unit]) -> list[Unit]:
    """Units in the order in which they are made."""
    return sorted(units, key=lambda unit: KINDS.index(unit.kind))


def is_newer(item: Any, known: Any) -> bool:
    """Whether an object is to take the place of the one that the controller has: not if that is of a later revision, or the same."""
    mine = int(item.labels.get(translate.REVISION, "0")) if hasattr(item, "labels") else 0
    its = int(known.labels.get(translate.REVISION, "0")) if hasattr(known, "labels") else 0
    return mine >= its and not same(item, known)


def same(item: Any, known: Any) -> bool:
    """Whether two objects say the same, apart from what the controller itself writes."""
    ours, theirs = type(item)(), type(known)()
    ours.CopyFrom(item)
    theirs.CopyFrom(known)
    if isinstance(item, weft.Vpc) and ours.vni == 0:
        theirs.vni = 0
    if isinstance(item, weft.Port):
        theirs.moved_from = ""
    if isinstance(item, weft.Peering):
        for field in ("requester_state", "accepter_state"):
            setattr(theirs, field, "")
            setattr(ours, field, "")
    return ours == theirs
