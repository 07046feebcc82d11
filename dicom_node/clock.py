"""The only source of "now": aware datetimes in UTC."""

from __future__ import annotations

from datetime import UTC, datetime


def now() -> datetime:
    """Return the present moment, aware, in UTC."""
    return datetime.now(UTC)


def parse(text: str) -> datetime:
    """Read an ISO 8601 moment written by :func:`stamp`."""
    return datetime.fromisoformat(text)


def stamp(moment: datetime) -> str:
    """Write a moment as ISO 8601 in UTC; equal-length texts sort as the moments do."""
    return moment.astimezone(UTC).isoformat(timespec="microseconds")
