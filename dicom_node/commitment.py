"""Asks a destination whether it commits to what it has stored; only then is an object delivered.

Everything stands in the ledger, so a lane may be killed at any moment: a transaction is recorded
before the destination hears of it, and one that stays unanswered for ``commitment_timeout`` (the
report was lost, or the request never left) is followed by sending the objects again, which is
harmless: they are the same SOP Instances.
"""

from __future__ import annotations

import logging
import uuid
from datetime import timedelta
from pathlib import Path

from pydicom.errors import InvalidDicomError
from pydicom.filereader import read_file_meta_info

from dicom_node import clock
from dicom_node.association.commitment import Reference, Report, ask
from dicom_node.association.requestor import peer_of
from dicom_node.errors import CommitmentRefused, DeliveryError, FileUnreadable
from dicom_node.jobs import DeliveryState
from dicom_node.network_config import Destination
from dicom_node.outbox import Outbox
from dicom_node.store import commitment_table
from dicom_node.store.commitment_table import Uncommitted
from dicom_node.store.database import Database
from dicom_node.store.result_table import DueDelivery

_log = logging.getLogger(__name__)

#: at most this many objects are asked for in one transaction
_PER_TRANSACTION = 500
#: Failure Reason (0008,1197), PS3.3 C.14.1.1
_FAILURES = {
    0x0110: "processing failure",
    0x0112: "no such object instance",
    0x0119: "class/instance conflict",
    0x0122: "referenced SOP Class not supported",
    0x0131: "duplicate transaction UID",
    0x0213: "resource limitation",
}


def record_report(database: Database, report: Report) -> bool:
    """Record what a destination says of a transaction; False: it is none of ours.

    Raises DatabaseUnavailable.
    """
    with database.begin() as db:
        return commitment_table.record_report(
            db, report.transaction_uid, report.committed, report.failed, clock.now()
        )


class Commitments:
    """The storage commitment of one destination."""

    def __init__(
        self, database: Database, results: Path, destination: Destination, calling_ae_title: str
    ) -> None:
        self._database = database
        self._results = results
        self._destination = destination
        self._calling = calling_ae_title
        self._outbox = Outbox(database, destination)

    def begin(self) -> None:
        """Let nothing wait for an answer that is asked for no more; called when a lane starts."""
        if not self._destination.commitment:
            with self._database.begin() as db:
                commitment_table.release(db, self._destination.name, clock.now())

    def step(self) -> bool:
        """Send again what is not committed, then ask once; returns whether anything was asked.

        Raises DatabaseUnavailable.
        """
        if not self._destination.commitment:
            return False
        self._take_back()
        return self._ask_due()

    def _take_back(self) -> None:
        """Queue again what the destination does not commit to, or does not answer for."""
        at, name = clock.now(), self._destination.name
        timeout = timedelta(seconds=self._destination.commitment_timeout)
        with self._database.read() as db:
            found = commitment_table.uncommitted(db, name, at - timeout)
        for entry in found:
            error = self._refusal(entry)
            _log.warning("commitment of %s to %s: %s", name, entry.item.file_name, error)
            self._outbox.put_off(error, [entry.item], state=DeliveryState.STORED)

    def _refusal(self, entry: Uncommitted) -> CommitmentRefused:
        of = self._destination
        if entry.failure is None:
            return CommitmentRefused(
                f"{of.name} took the storage commitment request and did not report within "
                f"{of.commitment_timeout:g} s; check that it knows this node's host and port",
                destination=of.name,
            )
        meaning = _FAILURES.get(entry.failure, "no known reason")
        return CommitmentRefused(
            f"{of.name} stored the object and does not commit to it: 0x{entry.failure:04X} "
            f"({meaning})",
            destination=of.name,
        )

    def _ask_due(self) -> bool:
        name = self._destination.name
        with self._database.read() as db:
            items = commitment_table.due(db, name, clock.now(), _PER_TRANSACTION)
        asked = {item: reference for item in items if (reference := self._reference(item))}
        if not asked:
            return False
        transaction_uid = f"2.25.{uuid.uuid4().int}"
        uids = [item.sop_instance_uid for item in asked]
        with self._database.begin() as db:
            commitment_table.record_request(db, transaction_uid, name, uids, clock.now())
        try:
            ask(
                peer_of(self._destination),
                self._calling,
                transaction_uid,
                list(asked.values()),
                self._destination.timeout,
                lambda report: record_report(self._database, report),
            )
        except DeliveryError as error:
            _log.warning("storage commitment of %s: %s", name, error)
            stored = DeliveryState.STORED
            self._outbox.put_off(error, list(asked), state=stored, next_state=stored)
        return True

    def _reference(self, item: DueDelivery) -> Reference | None:
        """Return what names the object; one whose file is gone is put off, and None."""
        path = self._results / item.file_name
        try:
            meta = read_file_meta_info(path)
            return Reference(str(meta.MediaStorageSOPClassUID), item.sop_instance_uid)
        except (OSError, AttributeError, ValueError, InvalidDicomError) as error:
            # sending says the same of it, and the report stage writes it again
            unreadable = FileUnreadable(
                f"cannot read {path} to ask for its commitment: {error}",
                destination=self._destination.name,
            )
            self._outbox.put_off(unreadable, [item], state=DeliveryState.STORED)
            return None
