"""Job, Stage, JobState and the table of legal transitions."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import Enum, StrEnum


class Stage(StrEnum):
    """The arrows of the line that a worker runs, in order."""

    TOKENIZE = "tokenize"
    SCORE = "score"
    REPORT = "report"

    @property
    def following(self) -> Stage | None:
        """Return the stage after this one."""
        stages = list(Stage)
        place = stages.index(self) + 1
        return stages[place] if place < len(stages) else None


class JobState(StrEnum):
    """Where a job stands."""

    QUEUED = "queued"
    RUNNING = "running"
    #: the reference batch is too small; released when it has grown
    WAITING = "waiting"
    DONE = "done"
    #: the data is at fault: recorded with its reason, never retried by itself
    REJECTED = "rejected"
    #: we are at fault, or all attempts are used up; `dicom-node retry` queues it again
    FAILED = "failed"
    #: late instances reopened the series
    SUPERSEDED = "superseded"


#: every legal change of state; anything else is refused by the store
TRANSITIONS: dict[JobState, frozenset[JobState]] = {
    JobState.QUEUED: frozenset({JobState.RUNNING, JobState.SUPERSEDED}),
    JobState.RUNNING: frozenset(
        {
            JobState.DONE,
            JobState.QUEUED,
            JobState.WAITING,
            JobState.REJECTED,
            JobState.FAILED,
            JobState.SUPERSEDED,
        }
    ),
    JobState.WAITING: frozenset({JobState.QUEUED, JobState.SUPERSEDED}),
    JobState.FAILED: frozenset({JobState.QUEUED, JobState.SUPERSEDED}),
    JobState.REJECTED: frozenset({JobState.QUEUED, JobState.SUPERSEDED}),
    JobState.DONE: frozenset(),
    JobState.SUPERSEDED: frozenset(),
}


class DeliveryState(Enum):
    """Where one object stands on its way to one destination."""

    QUEUED = "queued"
    DELIVERED = "delivered"
    #: the destination refused it or gave no answer until the configured end
    DEAD = "dead"
    SUPERSEDED = "superseded"


@dataclass(frozen=True, slots=True)
class Job:
    """One stage of one revision of one series."""

    id: int
    series_instance_uid: str
    revision: int
    stage: Stage
    state: JobState
    protocol: str | None
    attempts: int
    reason: str | None
    updated: datetime
