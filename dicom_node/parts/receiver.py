"""The receiver: C-STORE and C-ECHO SCP, inbox and ledger; no torch, no pixel work.

File first, then record, then answer Success: whatever is cut off in between is sent again by the
sender and filed under the same name.
"""

from __future__ import annotations

import logging
import threading
from functools import partial

from pydicom.dataset import Dataset

from dicom_node import clock, durable
from dicom_node.association.acceptor import Acceptor, AcceptorSettings
from dicom_node.association.commitment import Report
from dicom_node.association.commitment_reports import Request
from dicom_node.commitment import record_report
from dicom_node.config import NodeConfig
from dicom_node.folders import Folders
from dicom_node.inbox import Inbox
from dicom_node.parts.process import run
from dicom_node.pledges import Pledges
from dicom_node.series import ReceivedInstance
from dicom_node.store import result_table, series_table
from dicom_node.store.database import Database

# run as a program its __name__ is "__main__", which is not below the node's log level
_log = logging.getLogger("dicom_node.parts.receiver")


class Reception:
    """Answers the acceptor's events: files an instance, then records it.

    Each call is one transaction of its own. All raise DatabaseUnavailable when the ledger does not
    answer.
    """

    def __init__(self, database: Database, inbox: Inbox) -> None:
        self._database = database
        self._inbox = inbox
        self._pledges = Pledges(database, inbox.root)

    def association_opened(self, calling_ae_title: str, peer_host: str) -> int:
        """Record it; returns its number in the ledger."""
        with self._database.begin() as db:
            return series_table.open_association(db, calling_ae_title, peer_host, clock.now())

    def association_closed(self, association_id: int) -> None:
        """Record its end."""
        with self._database.begin() as db:
            series_table.close_association(db, association_id, clock.now())

    def instance_received(self, received: ReceivedInstance) -> None:
        """File and record one instance; durable and in the ledger when this returns.

        Raises
        ------
        InstanceRejected
            The instance is at fault.
        StoreError
            The disk reserve is reached, or the ledger does not answer.
        """
        filed = self._inbox.file_instance(received)
        with self._database.begin() as db:
            series_table.record_instance(db, filed, clock.now())

    def commitment_reported(self, report: Report) -> bool:
        """Record what a destination commits to; returns whether it was asked."""
        return record_report(self._database, report)

    def commitment_asked(self, request: Request) -> int:
        """Record that a sender is owed a report; returns its number."""
        return self._pledges.asked(request)

    def commitment_information(self, number: int) -> Dataset | None:
        """Return what a report says, None when it is owed no more."""
        return self._pledges.information(number)

    def commitment_told(self, number: int, *, told: bool) -> None:
        """Record that the sender took its report, or leave it to the dispatcher."""
        if told:
            self._pledges.sent(number)
        else:
            self._pledges.elsewhere(number)

    def refused(self, calling_ae_title: str, peer_host: str, reason: str) -> None:
        """Record what was refused, so that `status` shows it."""
        _log.warning("refused from %s at %s: %s", calling_ae_title, peer_host, reason)
        with self._database.begin() as db:
            series_table.record_refusal(db, calling_ae_title, peer_host, reason, clock.now())


def is_result(database: Database, sop_instance_uid: str, series_instance_uid: str) -> bool:
    """Tell whether an instance is one of our results, or of a series of them."""
    with database.read() as db:
        return result_table.is_result(db, sop_instance_uid, series_instance_uid)


def receiver(config: NodeConfig, stop: threading.Event, _name: str) -> None:
    """Receive until `stop` is set; raises PartFailed when a port cannot be had."""
    folders = Folders(config.node.data_dir)
    database = Database(folders.database)
    # of a killed predecessor: its series would wait for them until the cap
    with database.begin() as db:
        series_table.close_all_associations(db, clock.now())
    inbox = Inbox(folders.inbox, config.storage.reserve, partial(is_result, database))
    durable.sweep(folders.inbox, durable.ABANDONED_S)  # `archive retrieve` files there too
    settings = AcceptorSettings(
        ae_title=config.node.ae_title,
        bind=config.receiver.bind,
        port=config.receiver.port if config.receiver.plain else None,
        max_associations=config.receiver.max_associations,
        network_timeout_s=config.receiver.network_timeout,
        allowed_calling_ae_titles=config.receiver.allowed_calling_ae_titles,
        require_called_ae_title=config.receiver.require_called_ae_title,
        tls=config.receiver.tls,
    )
    acceptor = Acceptor(settings, Reception(database, inbox))
    acceptor.start()
    if acceptor.port is not None:
        _log.info("receiving as %s on %s:%d", settings.ae_title, settings.bind, acceptor.port)
    if settings.tls is not None:
        own, port = settings.ae_title, settings.tls.port
        _log.info("receiving as %s on %s:%d, over TLS", own, settings.bind, port)
    stop.wait()
    acceptor.stop()


if __name__ == "__main__":
    run(receiver)
