"""Scores as they come, for whoever counts them."""

from __future__ import annotations

from sqlalchemy import Connection, select

from dicom_node.store.tables import score


def after(db: Connection, number: int) -> list[tuple[int, str, float]]:
    """Return (number, protocol, percentile) of every score after that one, in their order."""
    rows = db.execute(
        select(score.c.id, score.c.protocol, score.c.percentile)
        .where(score.c.id > number)
        .order_by(score.c.id)
    )
    return [(row.id, row.protocol, row.percentile) for row in rows]
