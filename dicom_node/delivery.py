"""Objects -> destination until acknowledged: a lane each, so a dead one blocks only itself."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path

from dicom_node import clock
from dicom_node.association.requestor import Peer, send
from dicom_node.config import Destination
from dicom_node.errors import ContextNotAccepted, DeliveryError, NodeError, StoreFailed
from dicom_node.jobs import DeliveryState
from dicom_node.store import result_table
from dicom_node.store.database import Database
from dicom_node.store.result_table import DueDelivery

_log = logging.getLogger(__name__)

_IDLE_S = 0.5
#: at most this many objects travel on one association
_PER_ASSOCIATION = 500
#: high byte of the C-STORE statuses that pass by themselves (PS3.4 B.2.3)
_OUT_OF_RESOURCES = 0xA7


class Lane:
    """Sends what is due for one destination."""

    def __init__(
        self, database: Database, results: Path, destination: Destination, calling_ae_title: str
    ) -> None:
        self._database = database
        self._results = results
        self._destination = destination
        self._calling = calling_ae_title
        self._peer = Peer(
            destination.name, destination.ae_title, destination.host, destination.port
        )

    def run(self, stop: threading.Event) -> None:
        """Send until `stop` is set."""
        while not stop.is_set():
            try:
                busy = self.send_due()
            except NodeError as error:
                _log.warning("lane %s: %s", self._destination.name, error)
                busy = False
            if not busy:
                stop.wait(_IDLE_S)

    def send_due(self) -> bool:
        """Send everything that is due, over one association; returns whether there was anything."""
        name = self._destination.name
        with self._database.read() as db:
            due = result_table.due_deliveries(db, name, clock.now(), _PER_ASSOCIATION)
        if not due:
            return False
        waiting = {self._results / item.file_name: item for item in due}
        try:
            send(
                self._peer,
                self._calling,
                list(waiting),
                lambda path, status: self._delivered(waiting.pop(path), status),
                self._destination.timeout,
            )
        except DeliveryError as error:
            _log.warning("delivery to %s: %s", name, error)
            self._failed(error, list(waiting.values()))
        return True

    def _delivered(self, item: DueDelivery, status: int) -> None:
        """Record the acknowledgement as soon as it is there."""
        with self._database.begin() as db:
            result_table.settle_delivery(
                db,
                self._destination.name,
                [item.sop_instance_uid],
                DeliveryState.DELIVERED,
                clock.now(),
                status=status,
            )

    def _failed(self, error: DeliveryError, waiting: Sequence[DueDelivery]) -> None:
        """Put off what was not sent; what the destination itself refused is dead at once."""
        at = clock.now()
        refused = self._refused(error, waiting)
        for item in waiting:
            given_up = item in refused or at - item.created >= timedelta(
                seconds=self._destination.give_up
            )
            self._settle(item, error, at, given_up=given_up)

    def _refused(
        self, error: DeliveryError, waiting: Sequence[DueDelivery]
    ) -> Sequence[DueDelivery]:
        """Return what no retry can deliver: the object is refused, not the moment.

        0xA7xx (out of resources, PS3.4 B.2.3) passes; any other failure status stays.
        """
        if isinstance(error, ContextNotAccepted):
            at_fault = {self._relative(path) for path in error.paths}
        elif isinstance(error, StoreFailed) and error.status >> 8 != _OUT_OF_RESOURCES:
            at_fault = {self._relative(error.path)}
        else:
            at_fault = set()
        return [item for item in waiting if item.file_name in at_fault]

    def _relative(self, path: Path) -> str:
        return path.relative_to(self._results).as_posix()

    def _settle(
        self, item: DueDelivery, error: DeliveryError, at: datetime, *, given_up: bool
    ) -> None:
        lane = self._destination
        delay = min(lane.retry_max, lane.retry_first * 2 ** min(item.attempts, 20))
        with self._database.begin() as db:
            result_table.settle_delivery(
                db,
                lane.name,
                [item.sop_instance_uid],
                DeliveryState.DEAD if given_up else DeliveryState.QUEUED,
                at,
                reason=str(error),
                status=getattr(error, "status", None),
                not_before=at + timedelta(seconds=delay),
            )
