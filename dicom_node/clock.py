"""The only source of "now": aware datetimes in UTC.

Zones are for people: they come in where a page or a DICOM object is written, and nowhere before.
"""

from __future__ import annotations

from datetime import UTC, datetime


def now() -> datetime:
    """Return the present moment, aware, in UTC."""
    return datetime.now(UTC)


def parse(text: str) -> datetime:
    """Read an ISO 8601 moment written by :func:`stamp`; raises ValueError on other text."""
    return datetime.fromisoformat(text)


def stamp(moment: datetime) -> str:
    """Write a moment as ISO 8601 in UTC, to the microsecond: the texts sort as the moments do.

    The ledger compares them as text. A moment without a zone is taken for local time.
    """
    return moment.astimezone(UTC).isoformat(timespec="microseconds")
