"""Which delivered objects were found again at their destination, and the ticks of all.

An object is looked for from its delivery on, ever less often, and not for longer than the
destination's ``give_up``; ``updated`` of its row stays the moment of the delivery.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection, case, func, select, update

from dicom_node import clock
from dicom_node.jobs import DeliveryState
from dicom_node.store.tables import delivery, result, score, series


@dataclass(frozen=True, slots=True)
class Sought:
    """One delivered object that is to be looked for."""

    sop_instance_uid: str
    #: of the source, which is the result's too
    study_instance_uid: str
    #: of the result
    series_instance_uid: str
    delivered: datetime


def due(
    db: Connection, destination: str, at: datetime, since: datetime, limit: int
) -> list[Sought]:
    """Return at most `limit` objects delivered after `since` that are to be looked for now."""
    rows = db.execute(
        select(
            delivery.c.sop_instance_uid,
            delivery.c.updated,
            result.c.series_instance_uid,
            series.c.study_instance_uid,
        )
        .join(result, result.c.sop_instance_uid == delivery.c.sop_instance_uid)
        .join(score, score.c.id == result.c.score_id)
        .join(series, series.c.series_instance_uid == score.c.series_instance_uid)
        .where(
            delivery.c.destination == destination,
            delivery.c.state == DeliveryState.DELIVERED.value,
            delivery.c.found.is_(None),
            delivery.c.not_before <= clock.stamp(at),
            delivery.c.updated > clock.stamp(since),
        )
        .order_by(result.c.series_instance_uid, result.c.file_name)
        .limit(limit)
    )
    return [
        Sought(
            row.sop_instance_uid,
            row.study_instance_uid,
            row.series_instance_uid,
            clock.parse(row.updated),
        )
        for row in rows
    ]


def record_found(db: Connection, destination: str, uids: Sequence[str], at: datetime) -> None:
    """Record that these were found, in their study."""
    _update(db, destination, uids, {"found": clock.stamp(at), "reason": None})


def record_missing(
    db: Connection, destination: str, uids: Sequence[str], reason: str, not_before: datetime
) -> None:
    """Record why these were not found, and from when they are looked for again."""
    _update(db, destination, uids, {"reason": reason, "not_before": clock.stamp(not_before)})


def _update(
    db: Connection, destination: str, uids: Sequence[str], values: dict[str, str | None]
) -> None:
    db.execute(
        update(delivery)
        .where(
            delivery.c.destination == destination,
            delivery.c.sop_instance_uid.in_(uids),
            delivery.c.state == DeliveryState.DELIVERED.value,
        )
        .values(**values)
    )


def ticks(db: Connection) -> dict[str, dict[str, int]]:
    """Return, per destination, how many objects got how far.

    ``objects`` of all, ``stored`` (acknowledged), ``committed`` (the destination said so) and
    ``found`` (by C-FIND, in their study).
    """
    stored = delivery.c.state.in_((DeliveryState.STORED.value, DeliveryState.DELIVERED.value))
    rows = db.execute(
        select(
            delivery.c.destination,
            func.count().label("n"),
            func.sum(case((stored, 1), else_=0)).label("n_stored"),
            func.count(delivery.c.committed).label("n_committed"),
            func.count(delivery.c.found).label("n_found"),
        ).group_by(delivery.c.destination)
    )
    return {
        row.destination: {
            "objects": row.n,
            "stored": row.n_stored,
            "committed": row.n_committed,
            "found": row.n_found,
        }
        for row in rows
    }
