"""An archive of the configuration: what it holds, and bringing series of it here.

The library behind ``dicom-node archive``, and for whoever goes through an archive series by series.
Raises what :mod:`dicom_node.association.finder` and :mod:`dicom_node.association.retriever` raise.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Literal

from dicom_node.association.finder import (
    LIMIT,
    Found,
    find_instances,
    find_series,
    find_studies,
)
from dicom_node.association.query import SeriesQuery, SeriesRecord, StudyQuery, StudyRecord
from dicom_node.association.requestor import peer_of
from dicom_node.association.retriever import (
    OnProgress,
    Retrieved,
    Target,
    Waits,
    get,
    move,
)
from dicom_node.association.storing import StorageEvents
from dicom_node.config import NodeConfig
from dicom_node.network_config import Archive
from dicom_node.store import owed_table
from dicom_node.store.database import Database

#: between two looks into the ledger
_LOOK_S = 0.25


class ArchiveAccess:
    """One archive, as the node asks it. Holds no connection; each call opens its own."""

    def __init__(self, config: NodeConfig, archive: Archive) -> None:
        self._config = config
        self._archive = archive
        self._peer = peer_of(archive)
        self._calling = config.node.ae_title

    def studies(self, query: StudyQuery, *, limit: int = LIMIT) -> Found[StudyRecord]:
        """Return the studies that are as asked for."""
        return find_studies(self._peer, self._calling, query, self._archive.timeout, limit=limit)

    def series(
        self, study_instance_uids: Sequence[str], query: SeriesQuery, *, limit: int = LIMIT
    ) -> Found[SeriesRecord]:
        """Return the series of these studies that are as asked for."""
        return find_series(
            self._peer,
            self._calling,
            study_instance_uids,
            query,
            self._archive.timeout,
            limit=limit,
        )

    def instances(self, target: Target) -> set[str]:
        """Return the SOP Instance UIDs that the archive knows of a series."""
        of = target.study_instance_uid, target.series_instance_uid
        return find_instances(self._peer, self._calling, [of], self._archive.timeout)[of]

    def retrieve(
        self,
        target: Target,
        events: StorageEvents,
        *,
        by: Literal["move", "get"] | None = None,
        on_progress: OnProgress = lambda _counts: None,
    ) -> Retrieved:
        """Bring a study or a series here.

        Parameters
        ----------
        events
            The node's reception, which files what comes by C-GET; C-MOVE needs the running node.
        by
            None: as the archive is configured.
        """
        archive, progress = self._archive, on_progress
        waits = Waits(archive.timeout, archive.retrieve_timeout)
        if (by or archive.retrieve) == "get":
            return get(self._peer, self._calling, target, waits, events, on_progress=progress)
        where = where_to_send(self._config)
        return move(self._peer, self._calling, target, waits, where=where, on_progress=progress)


def where_to_send(config: NodeConfig) -> str:
    """Return what an archive must know of this node to send to it, in words."""
    receiver = config.receiver
    ports = [f"port {receiver.port}"] if receiver.plain else []
    if receiver.tls is not None:
        ports.append(f"port {receiver.tls.port} over TLS")
    return f"AE title {config.node.ae_title}, this machine's host name, {' or '.join(ports)}"


def missing(database: Database, sop_instance_uids: set[str]) -> set[str]:
    """Return those that the ledger does not know: durable here is what it knows."""
    with database.read() as db:
        return sop_instance_uids - set(owed_table.received(db, sop_instance_uids))


def wait_for(database: Database, sop_instance_uids: set[str], quiet_s: float) -> set[str]:
    """Wait until all are here, or none has come for `quiet_s`; returns those that are missing.

    Some archives answer C-MOVE before they have sent.
    """
    left, deadline = missing(database, sop_instance_uids), time.monotonic() + quiet_s
    while left and time.monotonic() < deadline:
        time.sleep(_LOOK_S)
        now = missing(database, sop_instance_uids)
        if len(now) < len(left):
            deadline = time.monotonic() + quiet_s
        left = now
    return left
