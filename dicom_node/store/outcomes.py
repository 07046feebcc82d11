"""What became of each series: scored, or not and why. A study that is not scored is a result too.

Of a series of several volumes each part has an outcome. The outcome is that of the last job. A
person reads the reason; the *fault*, the class of the error, is for counting:
`InsufficientReference`, `RegistrationFailed`, `UnsupportedPixels`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Connection, Select, and_, case, func, select

from dicom_node.jobs import JobState, Stage
from dicom_node.store.series_table import COMPLETE
from dicom_node.store.tables import job, part, series
from dicom_node.store.worklist import newest_jobs, of_volume, volumes

ARRIVING, UNDER_WAY, SCORED = "arriving", "under way", "scored"
#: named as the states of the job are: waiting (for the reference batch), rejected, failed
_STOPPED = (JobState.WAITING, JobState.REJECTED, JobState.FAILED)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one series, or of one part of it, so far."""

    series_instance_uid: str
    #: empty where none claims it, or it was stopped before one could
    protocol: str
    #: "arriving", "under way", "scored", "waiting", "rejected" or "failed"
    outcome: str
    #: class of the error it stopped at; empty where it did not, or before this was recorded
    fault: str
    reason: str
    #: moment (ISO 8601) of the last change
    at: str
    #: which volume of the series, in words; empty: the only one
    part: str = ""


def outcomes(db: Connection) -> Iterator[Outcome]:
    """Yield the outcome of every series, part by part, in the order in which they came."""
    asked = _joined(
        series.c.series_instance_uid,
        _protocol(),
        _outcome(),
        _if_stopped(job.c.fault),
        _if_stopped(job.c.reason),
        func.coalesce(job.c.updated, series.c.last_received),
        func.coalesce(part.c.name, ""),
    )
    order = (series.c.first_received, series.c.series_instance_uid, part.c.number)
    for row in db.execute(asked.order_by(*order)):
        yield Outcome(*row)


def counts(db: Connection) -> dict[tuple[str, str, str], int]:
    """Return the number of series and parts per (protocol, outcome, fault), in that order."""
    keys = (_protocol(), _outcome(), _if_stopped(job.c.fault))
    asked = _joined(*keys, func.count()).group_by(*keys).order_by(*keys)
    return {(protocol, outcome, fault): int(n) for protocol, outcome, fault, n in db.execute(asked)}


def _protocol() -> ColumnElement[str]:
    return func.coalesce(part.c.protocol, series.c.protocol, "")


def _outcome() -> ColumnElement[str]:
    reported = and_(job.c.stage == list(Stage)[-1].value, job.c.state == JobState.DONE.value)
    return case(
        # late instances reopen a series that had an outcome: it will have another
        (series.c.state != COMPLETE, ARRIVING),
        (reported, SCORED),
        *((job.c.state == state.value, state.value) for state in _STOPPED),
        else_=UNDER_WAY,
    )


def _if_stopped(column: ColumnElement[str]) -> ColumnElement[str]:
    """Return the job's text where it stopped: that of an attempt before is no outcome."""
    stopped = job.c.state.in_([state.value for state in _STOPPED])
    return case((and_(series.c.state == COMPLETE, stopped), func.coalesce(column, "")), else_="")


def _joined(*columns: ColumnElement[Any]) -> Select:  # type: ignore[type-arg]
    newest = newest_jobs()
    return (
        select(*columns)
        .select_from(volumes())
        .outerjoin(newest, of_volume(newest))
        .outerjoin(job, job.c.id == newest.c.job_id)
    )
