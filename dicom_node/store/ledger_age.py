"""When the ledger was written last, by its own moments."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import Connection, func, select

from dicom_node import clock
from dicom_node.store.tables import association, job, refusal, score

#: of tables that are numbered as they grow: the row of the highest number is the newest
_NUMBERED = (
    (association.c.id, association.c.opened),
    (refusal.c.id, refusal.c.happened),
    (score.c.id, score.c.scored),
    (job.c.id, job.c.created),
)


def newest_moment(db: Connection) -> datetime | None:
    """Return the newest of the last association, refusal, score and job; None of an empty ledger.

    By the tables' own numbers and an index: it does not depend on their size.
    """
    found = [
        db.execute(select(moment).order_by(number.desc()).limit(1)).scalar_one_or_none()
        for number, moment in _NUMBERED
    ]
    found.append(db.execute(select(func.max(association.c.closed))).scalar_one())
    return max((clock.parse(text) for text in found if text), default=None)
