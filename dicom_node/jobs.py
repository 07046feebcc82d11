"""Job, Stage, JobState and the table of legal transitions: words alone, for store and worker."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import Enum, StrEnum


class Stage(StrEnum):
    """The arrows of the line that a worker runs, in order.

    The order of the members is the order of the work: a stage that is done queues its
    :attr:`following`, and of two due jobs the later stage is claimed first. The values stand in the
    ledger; a renamed member needs a migration.
    """

    TOKENIZE = "tokenize"
    SCORE = "score"
    REPORT = "report"

    @property
    def following(self) -> Stage | None:
        """Return the stage after this one; None after the last."""
        stages = list(Stage)
        place = stages.index(self) + 1
        return stages[place] if place < len(stages) else None


class JobState(StrEnum):
    """Where a job stands; the values stand in the ledger.

    QUEUED is due at its time, for any worker; RUNNING is claimed under a lease; DONE has its
    product kept and the next stage queued.
    """

    QUEUED = "queued"
    RUNNING = "running"
    #: the reference batch is too small; released when it has grown
    WAITING = "waiting"
    DONE = "done"
    #: the data is at fault: recorded with its reason, never retried by itself
    REJECTED = "rejected"
    #: we are at fault, or all attempts are used up; `dicom-node retry` queues it again
    FAILED = "failed"
    #: late instances reopened the series: a job of the next revision takes its place
    SUPERSEDED = "superseded"


#: every legal change of state, the store refuses any other. Only a claim leads to RUNNING, since it
#: alone sets a lease; what is DONE stays so when late instances come: its results are out
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
    # rejected when the discovered protocol that it waits for is forgotten
    JobState.WAITING: frozenset({JobState.QUEUED, JobState.REJECTED, JobState.SUPERSEDED}),
    JobState.FAILED: frozenset({JobState.QUEUED, JobState.SUPERSEDED}),
    JobState.REJECTED: frozenset({JobState.QUEUED, JobState.SUPERSEDED}),
    JobState.DONE: frozenset(),
    JobState.SUPERSEDED: frozenset(),
}


#: priority of urgent work; of all other it is 0
URGENT = 1


class DeliveryState(Enum):
    """Where one object stands on its way to one destination; only what is QUEUED is sent."""

    QUEUED = "queued"
    #: acknowledged with a C-STORE status of success or warning (PS3.4 B.2.3); the destination is
    #: yet to say whether it commits
    STORED = "stored"
    #: acknowledged, and committed to where the destination is asked
    DELIVERED = "delivered"
    #: the destination refused it or gave no answer until the configured end; see `dicom-node retry`
    DEAD = "dead"
    #: a later revision was reported before this one was sent
    SUPERSEDED = "superseded"


@dataclass(frozen=True, slots=True)
class Job:
    """One stage of one revision of one series or part of it, as it was when it was read.

    There is at most one per series, revision, part and stage; that is what makes queueing
    idempotent. ``reason`` is the outcome of a job that is done, and of any other why it is not.
    """

    id: int
    series_instance_uid: str
    revision: int
    stage: Stage
    state: JobState
    #: None until the series is matched, which is the first stage's work
    protocol: str | None
    #: claims so far; the one in hand counts
    attempts: int
    reason: str | None
    updated: datetime
    #: key of the volume of its series; empty: the series as a whole
    part: str = ""
    #: a job of higher priority is claimed first
    priority: int = 0


def doubled_s(first_s: float, longest_s: float, attempts: int) -> float:
    """Return the wait after so many failed attempts: it doubles from the first to the longest."""
    return min(longest_s, first_s * 2.0 ** min(attempts, 20))
