"""What this node says when a sender asks whether it is responsible for instances.

Yes is said of what is recorded, on disk and synced, which is what a C-STORE status of success means
here as well. The report is owed from the moment the request is answered until the sender has taken
it; the ledger holds it, so that it outlives a restart.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path

from pydicom.dataset import Dataset

from dicom_node import clock
from dicom_node.association.commitment import Report
from dicom_node.association.commitment_reports import Request, information, send_report
from dicom_node.association.requestor import Peer, peer_of
from dicom_node.config import NodeConfig
from dicom_node.errors import DeliveryError, NodeError
from dicom_node.jobs import doubled_s
from dicom_node.store import owed_table, series_table
from dicom_node.store.database import Database
from dicom_node.store.owed_table import DEAD, OWED, SENT, Owed

_log = logging.getLogger(__name__)

#: Failure Reason (0008,1197), PS3.3 C.14.1.1
_NO_SUCH_INSTANCE, _CLASS_CONFLICT = 0x0112, 0x0119
#: for the report on the sender's own association, before another way is tried
_ON_THE_LINE_S = 20.0
_IDLE_S = 0.5
_AT_ONCE = 20
#: between two attempts: doubles from the first to the last; then a report is given up
_FIRST_S, _LAST_S, _GIVE_UP_S = 30.0, 3600.0, 86400.0


class Pledges:
    """Records what is asked, and says what is true of it. Raises DatabaseUnavailable."""

    def __init__(self, database: Database, inbox: Path) -> None:
        self._database = database
        self._inbox = inbox

    def asked(self, request: Request) -> int:
        """Record a request; returns the number of the report that is now owed."""
        at = clock.now()
        with self._database.begin() as db:
            return owed_table.record(
                db,
                request.calling_ae_title,
                request.peer_host,
                request.transaction_uid,
                [(item.sop_class_uid, item.sop_instance_uid) for item in request.references],
                at,
                at + timedelta(seconds=_ON_THE_LINE_S),
            )

    def information(self, number: int) -> Dataset | None:
        """Return the Event Information of a report, None when it is owed no more."""
        with self._database.read() as db:
            found = owed_table.get(db, number)
        return None if found is None else self.information_of(found)

    def information_of(self, of: Owed) -> Dataset:
        """Return what is true now of the instances that were asked for."""
        classes = {uid: sop_class for sop_class, uid in of.instances}
        with self._database.read() as db:
            received = owed_table.received(db, classes)
        committed, failed = [], []
        for uid, sop_class in classes.items():
            failure = self._failure(received.get(uid), sop_class)
            if failure is None:
                committed.append(uid)
            else:
                failed.append((uid, failure))
        return information(Report(of.transaction_uid, tuple(committed), tuple(failed)), classes)

    def _failure(self, found: tuple[str, str, int] | None, sop_class: str) -> int | None:
        """Return why an instance is not committed to, None if it is."""
        if found is None:
            return _NO_SUCH_INSTANCE
        received_class, file_name, size_bytes = found
        if received_class != sop_class:
            return _CLASS_CONFLICT
        path = self._inbox / file_name
        whole = path.is_file() and path.stat().st_size == size_bytes
        return None if whole else _NO_SUCH_INSTANCE

    def sent(self, number: int) -> None:
        """Record that the sender has taken its report."""
        with self._database.begin() as db:
            owed_table.settle(db, number, SENT, clock.now())

    def elsewhere(self, number: int) -> None:
        """Let the reporter send it on a new association."""
        with self._database.begin() as db:
            owed_table.hasten(db, number, clock.now())


class Reporter:
    """Sends what is owed on new associations, to the addresses of the configuration."""

    def __init__(self, database: Database, inbox: Path, config: NodeConfig) -> None:
        self._database = database
        self._pledges = Pledges(database, inbox)
        self._calling = config.node.ae_title
        self._peers = _addresses(config)

    def run(self, stop: threading.Event) -> None:
        """Send until `stop` is set; the report in hand is finished first."""
        while not stop.is_set():
            try:
                busy = self.send_due()
            except NodeError as error:
                _log.warning("storage commitment reports: %s", error)
                busy = False
            if not busy:
                stop.wait(_IDLE_S)

    def send_due(self) -> bool:
        """Send what is due, one after the other; returns whether there was anything."""
        with self._database.read() as db:
            due = owed_table.due(db, clock.now(), _AT_ONCE)
        for report in due:
            self._send(report)
        return bool(due)

    def _send(self, report: Owed) -> None:
        known = self._peers.get(report.calling_ae_title)
        if known is None:
            self._give_up(
                report,
                f"{report.calling_ae_title} asked for storage commitment and its address is not "
                "known: add a [[peer]] with its ae_title, host and port",
            )
            return
        peer, timeout_s = known
        try:
            send_report(peer, self._calling, self._pledges.information_of(report), timeout_s)
        except DeliveryError as error:
            _log.warning("storage commitment report %d: %s", report.id, error)
            if clock.now() - report.asked >= timedelta(seconds=_GIVE_UP_S):
                self._give_up(report, str(error))
            else:
                self._put_off(report, str(error))
        else:
            self._pledges.sent(report.id)

    def _put_off(self, report: Owed, reason: str) -> None:
        at = clock.now()
        delay = doubled_s(_FIRST_S, _LAST_S, report.attempts)
        later = at + timedelta(seconds=delay)
        with self._database.begin() as db:
            owed_table.settle(db, report.id, OWED, at, reason=reason, not_before=later)

    def _give_up(self, report: Owed, reason: str) -> None:
        """Set it aside, where `status` shows it."""
        _log.warning("storage commitment report %d is given up: %s", report.id, reason)
        said = f"no storage commitment report: {reason}"
        at = clock.now()
        with self._database.begin() as db:
            owed_table.settle(db, report.id, DEAD, at, reason=reason)
            series_table.record_refusal(db, report.calling_ae_title, report.peer_host, said, at)


def _addresses(config: NodeConfig) -> Mapping[str, tuple[Peer, float]]:
    """Return peer and time-out by AE title: ``[[peer]]``, and destinations it does not name."""
    found = {of.ae_title: (peer_of(of), of.timeout) for of in config.destination}
    for of in config.peer:
        peer = Peer(of.ae_title, of.ae_title, of.host, of.port, of.tls)
        found[of.ae_title] = (peer, of.timeout)
    return found
