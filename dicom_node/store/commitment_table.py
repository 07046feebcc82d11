"""What destinations were asked to commit to, and what they said.

A transaction is recorded before the destination hears of it: whatever is killed, its report finds
it. The report is recorded as what it says; what follows from it (sending again, setting aside) is
the lane's to decide, which reads it here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection, or_, select, update

from dicom_node import clock
from dicom_node.jobs import DeliveryState
from dicom_node.store.result_table import DueDelivery, deliveries, delivery_of
from dicom_node.store.tables import commitment, delivery, result

#: what a report makes delivered, however late it is; one that is superseded stays so
_OPEN = (DeliveryState.QUEUED.value, DeliveryState.STORED.value, DeliveryState.DEAD.value)


@dataclass(frozen=True, slots=True)
class Uncommitted:
    """A stored object to which its destination does not commit."""

    item: DueDelivery
    #: Failure Reason (0008,1197); None: it has not answered in time
    failure: int | None


def due(db: Connection, destination: str, at: datetime, limit: int) -> list[DueDelivery]:
    """Return at most `limit` stored objects for which the destination is to be asked now."""
    rows = db.execute(
        deliveries(destination, DeliveryState.STORED)
        .where(
            delivery.c.transaction_uid.is_(None),
            delivery.c.not_before <= clock.stamp(at),
        )
        .order_by(result.c.score_id, result.c.file_name)
        .limit(limit)
    )
    return [delivery_of(row) for row in rows]


def record_request(
    db: Connection, transaction_uid: str, destination: str, uids: Sequence[str], at: datetime
) -> None:
    """Record that the destination is being asked for these of its stored objects."""
    db.execute(
        commitment.insert().values(
            transaction_uid=transaction_uid, destination=destination, asked=clock.stamp(at)
        )
    )
    db.execute(
        update(delivery)
        .where(
            delivery.c.destination == destination,
            delivery.c.sop_instance_uid.in_(uids),
            delivery.c.state == DeliveryState.STORED.value,
        )
        .values(transaction_uid=transaction_uid, failure=None)
    )


def record_report(
    db: Connection,
    transaction_uid: str,
    committed: Sequence[str],
    failed: Sequence[tuple[str, int]],
    at: datetime,
) -> bool:
    """Record what a destination said; returns False when the transaction is none of ours.

    What it commits to is delivered, by a late report of an earlier transaction too. What it does
    not commit to counts only from the transaction that waits for it.
    """
    destination = db.execute(
        select(commitment.c.destination).where(commitment.c.transaction_uid == transaction_uid)
    ).scalar_one_or_none()
    if destination is None:
        return False
    moment = clock.stamp(at)
    mine = delivery.c.destination == destination
    for uid in committed:
        db.execute(
            update(delivery)
            .where(mine, delivery.c.sop_instance_uid == uid, delivery.c.state.in_(_OPEN))
            .values(
                state=DeliveryState.DELIVERED.value,
                committed=moment,
                not_before=moment,
                updated=moment,
                reason=None,
            )
        )
    for uid, failure in failed:
        db.execute(
            update(delivery)
            .where(
                mine,
                delivery.c.sop_instance_uid == uid,
                delivery.c.transaction_uid == transaction_uid,
                delivery.c.state == DeliveryState.STORED.value,
            )
            .values(failure=failure)
        )
    db.execute(
        update(commitment)
        .where(commitment.c.transaction_uid == transaction_uid)
        .values(answered=moment)
    )
    return True


def uncommitted(db: Connection, destination: str, asked_before: datetime) -> list[Uncommitted]:
    """Return what the destination does not commit to, or was asked for long ago in vain."""
    rows = db.execute(
        deliveries(destination, DeliveryState.STORED)
        .join(commitment, commitment.c.transaction_uid == delivery.c.transaction_uid)
        .where(
            or_(
                delivery.c.failure.is_not(None),
                commitment.c.asked <= clock.stamp(asked_before),
            )
        )
    )
    return [Uncommitted(delivery_of(row), row.failure) for row in rows]


def release(db: Connection, destination: str, at: datetime) -> int:
    """Count what is stored as delivered: the destination is asked no more; returns how many."""
    return db.execute(
        update(delivery)
        .where(
            delivery.c.destination == destination,
            delivery.c.state == DeliveryState.STORED.value,
        )
        .values(state=DeliveryState.DELIVERED.value, updated=clock.stamp(at), reason=None)
    ).rowcount
