"""Claim -> run stage -> persist; where exceptions meet job states.

One of the four places at which an exception becomes an answer: whatever a stage raises is here
turned into a state of its job, with the reason for a person. A worker may be killed at any moment.
Its job is then due again when the lease is over, and the stages are such that running one twice
does no harm.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Callable
from datetime import timedelta

import torch

from dicom_node import clock, pipeline, rebuild
from dicom_node.errors import DatabaseUnavailable, Disposition, NodeError
from dicom_node.jobs import URGENT, Job, JobState, Stage
from dicom_node.line import Line
from dicom_node.store import job_table, part_table

_log = logging.getLogger(__name__)

#: a worker that gives no sign of life for this long is taken for dead: many heartbeats, so that a
#: locked ledger or a busy machine costs none its job, and yet short beside scoring on a CPU
LEASE_S = 120.0
_IDLE_S = 0.5
#: after a rebuild that failed: what failed it rarely passes in less
_PAUSE_S = 60.0

_STAGES: dict[Stage, Callable[[Line, str, pipeline.Progress, str], str]] = {
    Stage.TOKENIZE: pipeline.tokenize,
    Stage.SCORE: pipeline.score,
    Stage.REPORT: pipeline.report,
}


class Worker:
    """Runs one job after the other; one per GPU or CPU, the encoder loaded once.

    The process number is added to `name`, so that a worker that is started again never passes for
    its predecessor.
    """

    def __init__(self, line: Line, name: str) -> None:
        self._line = line
        self._name = f"{name}-{os.getpid()}"
        self._rebuild_from = 0.0

    def run(self, stop: threading.Event) -> None:
        """Work until `stop` is set; the job in hand is finished first.

        A ledger that does not answer is waited for: a new process would only load the encoder
        again.
        """
        while not stop.is_set():
            try:
                busy = self.run_one() or self.rebuild_one()
            except DatabaseUnavailable as error:
                # a job in hand is taken up again when its lease is over
                _log.warning("the work waits: %s", error)
                busy = False
            if not busy:
                stop.wait(_IDLE_S)

    def run_one(self) -> bool:
        """Run the next due job; returns whether there was one.

        Jobs whose worker died are taken back first. Raises DatabaseUnavailable: nothing was
        claimed, or the outcome could not be recorded and the job is run again.
        """
        attempts = self._line.config.scoring.max_attempts
        with self._line.database.begin() as db:
            job_table.requeue_expired(db, attempts, clock.now())
            job = job_table.claim(db, self._name, LEASE_S, clock.now())
        if job is None:
            return False
        _log.info("%s of series %s starts", job.stage, job.series_instance_uid)
        with _Heartbeat(self._line, job, self._name, lambda: self._hangs(job)):
            self._run(job)
        return True

    def rebuild_one(self) -> bool:
        """Do a step of a batch that moves into another space; returns whether there was one.

        For when no job is due: new studies go first. After a fault it pauses for a minute. Raises
        DatabaseUnavailable.
        """
        if time.monotonic() < self._rebuild_from:
            return False
        for of in self._line.config.protocol:
            try:
                if rebuild.step(self._line, of):
                    return True
            except DatabaseUnavailable:
                raise
            except Exception:  # noqa: BLE001 - boundary: again after a pause, as often as it may
                self._rebuild_from = time.monotonic() + _PAUSE_S
                _log.exception("the batch of protocol %s cannot be rebuilt now", of.name)
        return False

    def _run(self, job: Job) -> None:
        """Run one claimed job; whatever it raises becomes a state with a reason.

        An error of the device is raised again after that: the process ends, and the supervisor
        starts another.
        """
        try:
            run, uid = _STAGES[job.stage], job.series_instance_uid
            outcome = run(self._line, uid, lambda _share: None, job.part)
        except NodeError as error:
            self._settle(job, error, *self._disposed(job, error), reason=str(error))
        except Exception as error:  # boundary: a fault of ours becomes a job state
            _log.exception("%s of series %s failed", job.stage, job.series_instance_uid)
            state, delay = self._retried(job)
            self._settle(job, error, state, delay, reason=f"{type(error).__name__}: {error}")
            if isinstance(error, torch.AcceleratorError):
                # the device is lost to this process: every later job would fail of it too
                raise
        else:
            self._finish(job, outcome)

    def _hangs(self, job: Job) -> None:
        """End this process: a thread that hangs cannot be ended alone.

        The job is let go before, with its reason; the supervisor starts another worker.
        """
        limit = self._line.config.scoring.stage_limit
        reason = f"the stage did not end within {limit:g} s (scoring.stage_limit)"
        try:
            self._settle(job, TimeoutError(reason), *self._retried(job), reason=reason)
        except NodeError as error:  # then its lease runs out
            _log.warning("not recorded: %s", error)
        end_process()

    def _disposed(self, job: Job, error: NodeError) -> tuple[JobState, float]:
        """Turn the exception's disposition into a state and a delay in seconds."""
        if error.disposition is Disposition.WAIT:
            return JobState.WAITING, 0.0
        if error.disposition is Disposition.REJECT:
            return JobState.REJECTED, 0.0
        if error.disposition is Disposition.RETRY:
            return self._retried(job)
        return JobState.FAILED, 0.0

    def _retried(self, job: Job) -> tuple[JobState, float]:
        """Queue again with growing delay (5 s, 20 s, 80 s, ...), until the attempts are used up."""
        if job.attempts >= self._line.config.scoring.max_attempts:
            return JobState.FAILED, 0.0
        return JobState.QUEUED, 5.0 * 4 ** (job.attempts - 1)

    def _settle(
        self, job: Job, error: Exception, state: JobState, delay_s: float, *, reason: str
    ) -> None:
        """Record that the job did not get done; late instances may have superseded it by now."""
        log = _log.info if state is JobState.WAITING else _log.warning
        log("%s of series %s is %s: %s", job.stage, job.series_instance_uid, state, reason)
        at = clock.now()
        values = {"reason": reason, "fault": type(error).__name__}
        values["not_before"] = clock.stamp(at + timedelta(seconds=delay_s))
        with self._line.database.begin() as db:
            job_table.let_go(db, job.id, self._name, state, at, **values)
            # as it is now: the stage may have matched the series anew
            protocol = job_table.get(db, job.id).protocol
        if state is JobState.WAITING and protocol is not None:
            self._release(protocol)

    def _release(self, protocol: str) -> None:
        """Queue what waits for a batch that has grown since the job in hand looked at it.

        Whoever made it grow released the jobs that were waiting then; this one was still running.
        """
        if self._line.batch(self._line.protocols.named(protocol)).ready():
            with self._line.database.begin() as db:
                job_table.release_waiting(db, protocol, clock.now())

    def _finish(self, job: Job, outcome: str) -> None:
        """Record that it is done and queue what follows, in one transaction."""
        at = clock.now()
        uid, revision = job.series_instance_uid, job.revision
        with self._line.database.begin() as db:
            # what held several volumes goes on as its parts
            whole = job.stage is Stage.TOKENIZE and not job.part
            parts = part_table.keys(db, uid, revision) if whole else []
            # as it is now: the stage may have matched the series anew
            known = job_table.get(db, job.id).protocol
            protocol = outcome if job.stage is Stage.TOKENIZE and not parts else known
            # not done: superseded meanwhile, or another worker's by now; its next stage is not ours
            values = {"reason": outcome, "fault": None, "protocol": protocol}
            done = job_table.let_go(db, job.id, self._name, JobState.DONE, at, **values)
            if done and parts:
                job_table.enqueue_parts(db, uid, revision, parts, at, job.priority)
            elif done and job.stage.following is not None:
                following = job.stage.following
                priority = self._priority(job, protocol)
                job_table.enqueue(db, uid, revision, following, protocol, at, job.part, priority)
        _log.info("%s of series %s: %s", job.stage, job.series_instance_uid, outcome)

    def _priority(self, job: Job, protocol: str | None) -> int:
        """Return how urgent the next stage is: as the sender made it, or as its protocol is."""
        urgent = {entry.name for entry in self._line.config.protocol if entry.urgent}
        return max(job.priority, URGENT if protocol in urgent else 0)


def end_process() -> None:
    """End this process at once: whatever hangs in it answers to no other signal."""
    os.kill(os.getpid(), signal.SIGKILL)


class _Heartbeat:
    """Renews a job's lease from a thread of its own while the job runs, for a limited time.

    It says that the process lives, not that the stage gets anywhere: what takes longer than
    ``scoring.stage_limit`` is given up.
    """

    def __init__(self, line: Line, job: Job, worker: str, give_up: Callable[[], None]) -> None:
        self._line, self._job, self._worker, self._give_up = line, job, worker, give_up
        self._deadline = time.monotonic() + line.config.scoring.stage_limit
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_exc: object) -> None:
        self._done.set()
        self._thread.join()

    def _beat(self) -> None:
        """Renew until the job is let go; a lease that is lost is found out then, by its owner."""
        while not self._done.wait(max(0.0, min(LEASE_S / 4, self._deadline - time.monotonic()))):
            if time.monotonic() >= self._deadline:
                self._give_up()
                return
            try:
                with self._line.database.begin() as db:
                    job_table.renew_lease(db, self._job.id, self._worker, LEASE_S, clock.now())
            except NodeError as error:
                # the next beat comes well before the lease ends
                _log.warning("lease not renewed: %s", error)
