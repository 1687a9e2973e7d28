"""The list of what changed and may not have reached the controller.

Rows are only ever added in the transaction of a change, so that two changes of one object wait for each other no longer than Neutron makes them. Who pushes an
object notes its rows first, then reads the object, and afterwards takes out these rows: a change in between leaves its own.
"""

import time
from collections.abc import Iterator

import sqlalchemy as sa
from neutron_lib.db import api as db_api

from networking_weft.db.models import Change

# Between attempts, in seconds: doubled with each, up to the most.
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 60.0


def mark(context: object, kind: str, object_id: str, delay: float = 0.0) -> None:
    """Notes a change, in the transaction that is open."""
    row = Change(kind=kind, object=object_id, due=time.time() + delay, attempts=0)
    context.session.add(row)


def rows(context: object, kind: str, object_id: str) -> list[int]:
    """The numbers of an object's rows. Not only the newest: what is committed later may have a lower number."""
    with db_api.CONTEXT_READER.using(context):
        query = context.session.query(Change.number).filter_by(kind=kind, object=object_id)
        return sorted(row.number for row in query)


@db_api.retry_db_errors
def clear(context: object, numbers: list[int]) -> None:
    """The controller has an object as it was after these changes."""
    # By their keys: a range would lock the gap where others add theirs.
    with db_api.CONTEXT_WRITER.using(context):
        for number in numbers:
            context.session.query(Change).filter_by(number=number).delete()


@db_api.retry_db_errors
def postpone(context: object, numbers: list[int]) -> None:
    """An object could not be pushed: later, and ever later."""
    with db_api.CONTEXT_WRITER.using(context):
        found = [context.session.get(Change, number) for number in numbers]
        known = [row for row in found if row is not None]
        attempts = max((row.attempts for row in known), default=0)
        pause = min(FIRST_PAUSE * 2.0 ** min(attempts, 16), LONGEST_PAUSE)
        for row in known:
            row.attempts = attempts + 1
            row.due = time.time() + pause


def due(context: object, settle: float, most: int = 1000) -> Iterator[tuple[str, str]]:
    """Objects that are due, the longest waiting first; who made the change has `settle` seconds to push it himself."""
    with db_api.CONTEXT_READER.using(context):
        query = context.session.query(Change.kind, Change.object, sa.func.max(Change.due))
        query = query.group_by(Change.kind, Change.object)
        query = query.having(sa.func.max(Change.due) <= time.time() - settle)
        rows = query.order_by(sa.func.min(Change.number)).limit(most).all()
    for kind, object_id, _ in rows:
        yield kind, object_id


def length(context: object) -> int:
    """How many rows there are."""
    with db_api.CONTEXT_READER.using(context):
        return context.session.query(sa.func.count(Change.number)).scalar()
