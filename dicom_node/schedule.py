"""APScheduler duties: they look at the ledger and queue rows; they never do the work themselves.

What is due stands in the ledger, not in the scheduler: a node that was down does at its first look
what it missed. A duty takes milliseconds, so that none can hold up another.
"""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import replace

from apscheduler.schedulers.background import BackgroundScheduler

from dicom_node import admission, clock, drift, durable, space_rules, weekly
from dicom_node.admission import Freezes
from dicom_node.config import NodeConfig
from dicom_node.errors import DatabaseUnavailable
from dicom_node.folders import Folders
from dicom_node.grouping import Protocols
from dicom_node.protocol_config import Protocol
from dicom_node.store import (
    admission_table,
    backup,
    history,
    job_table,
    reference_table,
    series_table,
    space_table,
    warning_table,
)
from dicom_node.store.database import Database
from dicom_node.store.reference_table import ADMITTED, CANDIDATE, RULE

_log = logging.getLogger(__name__)

#: between two looks of the drift watch: a study takes minutes, a drift days
_WATCH_S = 600.0
#: between two looks for a week that is over
_DIGEST_S = 3600.0
#: between two looks whether a batch has grown enough: it takes weeks
_RECHOOSE_S = 86400.0
#: studies of a protocol that it looks at: enough for some scanners' recent and earlier ones
_STUDIES = 1000


class Duties:
    """The node's standing duties, run in threads of the scheduler."""

    def __init__(self, config: NodeConfig, database: Database) -> None:
        self._config = config
        self._database = database
        self._protocols = Protocols(config, database)
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
        # at once too: what a node did while nobody looked is said when it starts
        self._scheduler.add_job(self.watch, "interval", seconds=_WATCH_S, next_run_time=clock.now())
        self._scheduler.add_job(
            self.digest, "interval", seconds=_DIGEST_S, next_run_time=clock.now()
        )
        self._scheduler.add_job(
            self.rechoose, "interval", seconds=_RECHOOSE_S, next_run_time=clock.now()
        )
        self._scheduler.add_job(self.sweep, "interval", seconds=durable.ABANDONED_S)
        every = self._config.storage.backup_every
        self._scheduler.add_job(self.backup, "interval", seconds=every, next_run_time=clock.now())
        self._scheduler.start()

    def stop(self) -> None:
        """Stop for good; a duty under way is finished."""
        self._scheduler.shutdown(wait=True)

    def complete(self) -> None:
        """Close the series that are complete and queue their first stage."""
        times = self._config.completion
        urgent = frozenset(self._config.receiver.urgent_calling_ae_titles)
        rule = series_table.Rule(times.quiet, times.cap, times.gap_quiet, urgent)
        try:
            with self._database.begin() as db:
                closed = series_table.complete_due(db, rule, clock.now())
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

    def digest(self) -> None:
        """Write what protocols in shadow mode would have sent, once a week is over."""
        try:
            of = weekly.due(self._config, clock.now())
            if of is not None:
                path = weekly.write(self._config, self._database, of)
                _log.info("digest of %s: %s", of, path)
        except (DatabaseUnavailable, OSError) as error:
            _log.warning("the weekly digest is put off: %s", error)

    def backup(self) -> None:
        """Copy the ledger, unless the newest copy is young: a node that restarts often has few."""
        storage, folders = self._config.storage, Folders(self._config.node.data_dir)
        try:
            if not folders.database.exists():  # opened, it would be made
                return
            newest = next(iter(backup.copies(folders.backups)), None)
            at = clock.now()
            if newest and at.timestamp() - newest.stat().st_mtime < storage.backup_every / 2:
                return
            path = backup.make(folders.database, folders.backups, storage.backups_kept, at)
            _log.info("the ledger is copied to %s", path.name)
        except (DatabaseUnavailable, OSError) as error:
            _log.error("the ledger is not copied: %s", error)

    def sweep(self) -> None:
        """Remove what killed processes left half written a while ago."""
        try:
            removed = durable.sweep(Folders(self._config.node.data_dir).root, durable.ABANDONED_S)
        except OSError as error:
            _log.warning("sweeping put off: %s", error)
            return
        if removed:
            _log.info("%d half-written files of killed processes removed", removed)

    def watch(self) -> None:
        """Compare recent studies with those before, and warn of what has changed.

        A warning is logged when it opens, and stands in ``status`` and on the page until it closes.
        """
        try:
            with self._database.read() as db:
                standing = warning_table.open_keys(db)
            seen = [_observed(self._database, protocol) for protocol in self._config.protocol]
            seen += [
                replace(_observed(self._database, entry.protocol), discovered=True)
                for entry in self._protocols.discovered()
            ]
            notices = drift.judge(seen, self._config.watch, standing)
            with self._database.begin() as db:
                settled = warning_table.settle(db, notices, clock.now())
        except DatabaseUnavailable as error:
            _log.warning("the drift watch is put off: %s", error)
            return
        for notice in settled.opened:
            _log.warning("%s of protocol %s: %s", notice.key.kind, notice.key.protocol, notice.text)
        for key in settled.closed:
            _log.info("%s of protocol %s is over", key.kind, key.protocol)

    def rechoose(self) -> None:
        """Ask for a better template and histogram where a batch has grown enough since.

        `space_rules` says when, and why seldom. Workers look, and rebuild the batch if it is worth
        it (:mod:`dicom_node.rebuild`).
        """
        for of in self._config.protocol:
            try:
                wanted = of.own and _wanted(self._database, of)
            except DatabaseUnavailable as error:
                _log.warning("the choice of a template is put off: %s", error)
                return
            if wanted:
                _log.info("protocol %s looks for a better template or histogram", of.name)


def _wanted(database: Database, of: Protocol) -> bool:
    """Ask for a look if one is due, and none is under way; returns whether it did."""
    with database.begin() as db:
        settings = space_rules.settings_of(of)
        looks = [row for row in space_table.history(db, of.name) if row.settings == settings]
        fingerprint = next(iter(reference_table.fingerprints(db, of.name)), "")
        members = reference_table.members(db, of.name, fingerprint, (ADMITTED,))
        n = len(admission.one_per_patient(members))
        frozen = Freezes.of(admission_table.freezes(db, of.name, fingerprint)).frozen
        if frozen or not space_rules.due(of, looks, n):
            return False
        reason = f"the batch has grown to {n} patients"
        row = space_table.want(db, of.name, settings, n, RULE, reason, clock.now())
        return row is not None


def _observed(database: Database, of: Protocol) -> drift.Observed:
    """Read what the ledger knows of a protocol, in the token space that it used last."""
    with database.read() as db:
        space = next(iter(reference_table.fingerprints(db, of.name)), "")
        members = reference_table.members(db, of.name, space, (ADMITTED, CANDIDATE))
        patients = Counter(entry.state for entry in admission.one_per_patient(members))
        return drift.Observed(
            of,
            history.scored_studies(db, of.name, _STUDIES),
            n_waiting=job_table.n_waiting(db, of.name),
            n_admitted=patients[ADMITTED],
            n_candidates=patients[CANDIDATE],
            frozen=Freezes.of(admission_table.freezes(db, of.name, space)).frozen,
        )
