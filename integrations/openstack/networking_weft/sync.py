"""Brings Neutron's objects to the controller: at once where it can, later where it must.

Whatever happens between the commit of a change and its push, the journal still has the change, and whoever looks next pushes the object as it is then: objects
are states, not steps. Each carries its revision in Neutron, so that a slower push never puts an older state over a newer one.
"""

import threading
import time
from collections.abc import Callable, Iterable
from typing import Any

from neutron_lib import context as neutron_context
from neutron_lib.db import api as db_api
from oslo_config import cfg
from oslo_log import log as logging
from weft.v1 import objects_pb2 as weft

from networking_weft import translate
from networking_weft.client import Changed, Controller, ControllerError, Key, key_of
from networking_weft.db import journal
from networking_weft.units import ADDRESS_GROUP, GROUP, KINDS, NETWORK, PORT, Unit, Units

LOG = logging.getLogger(__name__)

# Seconds for which API calls leave everything to the worker after the controller did not answer.
AWAY = 5.0
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
        self._away_until = 0.0

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

    def push_marked(self, context: Any = None) -> None:
        """Pushes what this thread marked. What cannot be pushed now is left to the worker: the change is committed, and nothing that fails here is to look to
        Neutron as if it were not."""
        if context is not None and db_api.is_session_active(context.session):
            # Within another change, which will push with its own.
            return
        marked, self._marked.units = getattr(self._marked, "units", None) or {}, {}
        if time.monotonic() < self._away_until:
            return
        try:
            if not self._try_all(neutron_context.get_admin_context(), marked):
                # No user waits for a controller that the one before has waited for in vain.
                self._away_until = time.monotonic() + AWAY
        except Exception:
            LOG.exception("%d changes are not at the controller yet", len(marked))

    def _try_all(self, context: Any, units: Iterable[Unit]) -> bool:
        """Pushes what is there of units in the order in which things are made, and what is gone in the opposite one."""
        ordered = in_order(units)
        gone = [unit for unit in ordered if self._is_gone(context, unit)]
        return all(
            self.try_push(context, unit)
            for unit in [*(unit for unit in ordered if unit not in gone), *reversed(gone)]
        )

    def _is_gone(self, context: Any, unit: Unit) -> bool:
        try:
            return not self._wanted(context, unit)
        except (translate.Unsupported, Changed):
            return False

    def try_push(self, context: Any, unit: Unit) -> bool:
        """Pushes a unit if something of it is due; returns whether it makes sense to go on with others."""
        numbers = journal.rows(context, unit.kind, unit.id)
        if not numbers:
            return True
        try:
            self.push(context, unit)
        except (ControllerError, translate.Unsupported, Changed) as error:
            LOG.warning("%s %s is not at the controller yet: %s", unit.kind, unit.id, error)
            journal.postpone(context, numbers)
            return not getattr(error, "transient", False)
        except Exception:
            LOG.exception("%s %s is not at the controller yet", unit.kind, unit.id)
            journal.postpone(context, numbers)
            return True
        journal.clear(context, numbers)
        return True

    def push(self, context: Any, unit: Unit) -> None:
        """Makes the controller's objects of a unit what they should be."""
        try:
            wanted = self._put(lambda: self._wanted(context, unit))
        except ControllerError as error:
            if error.transient:
                raise
            LOG.info("%s %s is put with what it rests on, after: %s", unit.kind, unit.id, error)
            units = [*self.units.rests_on(context, unit), unit]
            self._put(lambda: [item for one in units for item in self._wanted(context, one)])
            wanted = self._wanted(context, unit)
        # What went while it was pushed goes again: who deleted it found nothing then. What came back is put again.
        kept = {key_of(item) for item in self._wanted(context, unit)} if wanted else set()
        self._delete(unit, kept)
        if {key_of(item) for item in self._wanted(context, unit)} - kept:
            raise Changed("it was made again meanwhile")

    def _wanted(self, context: Any, unit: Unit) -> list[object]:
        # What was read before in this session would not be read again.
        context.session.expire_all()
        return self.units.wanted(context, unit)

    def _put(self, read: Callable[[], list[object]]) -> list[object]:
        """Puts what is read; returns it."""
        wanted = read()
        for _ in range(ATTEMPTS):
            keys = {key_of(item) for item in wanted}
            known = {key: self.controller.get(key) for key in keys}
            # Read again, so that it is never older than what it is to replace.
            wanted = read()
            if not {key_of(item) for item in wanted} <= keys:
                continue
            changes: dict[Key, tuple[object, int]] = {}
            for item in wanted:
                there = known[key_of(item)]
                if there is None:
                    changes[key_of(item)] = (item, 0)
                elif is_newer(item, there[0]):
                    changes[key_of(item)] = (item, there[1])
            try:
                if changes:
                    self.controller.put(changes)
            except Changed:
                continue
            self._accept(wanted)
            return wanted
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
        if unit.kind in (GROUP, ADDRESS_GROUP):
            copies = self.controller.objects(keys[0].kind, f"{translate.COPY_OF}={unit.id}")
            keys = [key_of(copy) for copy in copies]
        elif unit.kind == NETWORK and Key("vpc", unit.id) not in kept:
            self._empty(unit.id)
        for key in keys:
            if key not in kept and self.controller.get(key) is not None:
                self.controller.delete(key)

    def _empty(self, vpc: str) -> None:
        """Deletes the copies of groups that a VPC has: together, since they name each other."""
        kinds = ("security_group", "prefix_list")
        inside = [item for kind in kinds for item in self.controller.objects(kind, vpc=vpc)]
        if inside:
            self.controller.delete(*(key_of(item) for item in inside))

    # Repair.

    def drain(self, context: Any, settle: float) -> int:
        """Pushes what is due; returns how many units were pushed or tried."""
        units = [Unit(kind, one) for kind, one in journal.due(context, settle)]
        self._try_all(context, units)
        return len(units)

    def differences(self, context: Any) -> list[Unit]:
        """Units whose objects at the controller are missing, of another revision, or too many."""
        wanted = self.units.all(context)
        there: dict[Unit, dict[Key, Any]] = {}
        for kind, unit_kind in UNIT_OF.items():
            for item in self.controller.objects(kind, translate.REVISION):
                name = item.labels.get(translate.COPY_OF) if unit_kind in (GROUP, ADDRESS_GROUP) else item.id
                if name is not None:
                    there.setdefault(Unit(unit_kind, name), {})[key_of(item)] = item
                elif item.vpc:
                    there.setdefault(Unit(NETWORK, item.vpc), {})[key_of(item)] = item
        differing = []
        for unit in in_order(wanted.keys() | there.keys()):
            try:
                if self._differs(context, unit, wanted.get(unit), there.get(unit, {})):
                    differing.append(unit)
            except (translate.Unsupported, Changed) as error:
                LOG.warning("%s %s cannot be compared: %s", unit.kind, unit.id, error)
        return differing

    def _differs(self, context: Any, unit: Unit, revision: int | None, there: dict[Key, Any]) -> bool:
        """Whether a unit differs. One object of the revision that it should have is right without a closer look, where all that it is has that revision."""
        if unit.kind == PORT and revision is not None and len(there) == 1:
            (known,) = there.values()
            if revision and known.labels[translate.REVISION] == str(revision):
                return False
        wanted = {key_of(item): item for item in self._wanted(context, unit)}
        wanted = {key: item for key, item in wanted.items() if key.kind in UNIT_OF}
        return wanted.keys() != there.keys() or any(
            not same(item, there[key]) for key, item in wanted.items()
        )

    def resync(self, context: Any) -> int:
        """Compares everything, and pushes what differs; returns how many units did."""
        differing = self.differences(context)
        gone = [unit for unit in differing if self._is_gone(context, unit)]
        for unit in [*(unit for unit in differing if unit not in gone), *reversed(gone)]:
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
    # The controller keeps a deleted peering while routes lead there: putting it makes it live again.
    is_over = getattr(known, "requester_state", "") in ("deleted", "rejected")
    return mine >= its and (is_over or not same(item, known))


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
