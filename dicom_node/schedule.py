"""APScheduler duties: they look at the ledger and queue rows; they never do the work themselves.

What is due stands in the ledger, not in the scheduler: a node that was down does at its first look
what it missed. A duty takes milliseconds, so that none can hold up another.
"""

from __future__ import annotations

import logging

from apscheduler.schedulers.background import BackgroundScheduler

from dicom_node import clock
from dicom_node.config import NodeConfig
from dicom_node.errors import DatabaseUnavailable
from dicom_node.store import job_table, series_table
from dicom_node.store.database import Database

_log = logging.getLogger(__name__)


class Duties:
    """The node's standing duties, run in threads of the scheduler."""

    def __init__(self, config: NodeConfig, database: Database) -> None:
        self._config = config
        self._database = database
        # coalesce: after a pause one look is as good as all that were missed
        self._scheduler = BackgroundScheduler(
            timezone="UTC",
            job_defaults={"coalesce": True, "max_instances": 1, "misfire_grace_time": None},
        )

    def start(self) -> None:
        """Start the duties in threads of their own; returns at once."""
        # four looks in the quiet time: a series is late by a quarter of it at most
        quiet = self._config.completion.quiet
        self._scheduler.add_job(self.complete, "interval", seconds=max(0.5, min(5.0, quiet / 4)))
        self._scheduler.add_job(self.requeue, "interval", seconds=30)
        self._scheduler.start()

    def stop(self) -> None:
        """Stop for good; a duty under way is finished."""
        self._scheduler.shutdown(wait=True)

    def complete(self) -> None:
        """Close the series that are complete and queue their first stage."""
        rule = self._config.completion
        try:
            with self._database.begin() as db:
                closed = series_table.complete_quiet(db, rule.quiet, rule.cap, clock.now())
        except DatabaseUnavailable as error:
            _log.warning("completion put off: %s", error)
            return
        for uid in closed:
            _log.info("series %s is complete", uid)

    def requeue(self) -> None:
        """Queue again what a dead worker left running, or fail it when its attempts are used up.

        Workers do the same at each claim; this is for when no worker is left to do so, so that
        ``status`` does not go on saying "running".
        """
        try:
            with self._database.begin() as db:
                attempts = self._config.scoring.max_attempts
                found = job_table.requeue_expired(db, attempts, clock.now())
        except DatabaseUnavailable as error:
            _log.warning("requeueing put off: %s", error)
            return
        if found:
            _log.warning("%d jobs of a dead worker are taken up again", found)
