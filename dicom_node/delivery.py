"""Objects -> destination until acknowledged: a lane each, so a dead one blocks only itself.

What is to be sent stands in the ledger (the outbox of :mod:`dicom_node.store.result_table`); a lane
keeps nothing between two rounds and may be killed at any moment. An object is recorded as delivered
only after its C-STORE response. Killed between the two, a lane sends it again, which is harmless:
it is the same SOP Instance. What goes wrong is told apart by what it concerns:

- the destination at this moment (no association; 0xA7xx, PS3.4 B.2.3): all that is due is put off;
- one object (no presentation context, a failure status): it is set aside, the others go;
- one object that the association broke at: it alone is put off.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path

from dicom_node import clock
from dicom_node.association.requestor import Peer, send
from dicom_node.config import Destination
from dicom_node.errors import AssociationLost, DeliveryError, FileUnreadable, NodeError
from dicom_node.jobs import DeliveryState
from dicom_node.store import result_table
from dicom_node.store.database import Database
from dicom_node.store.result_table import DueDelivery

_log = logging.getLogger(__name__)

_IDLE_S = 0.5
#: at most this many objects travel on one association
_PER_ASSOCIATION = 500


class Lane:
    """Sends what is due for one destination.

    Parameters
    ----------
    results
        Folder below which the object files lie.
    destination
        Where to, how long one answer may take, and for how long to try.
    calling_ae_title
        The node's own, by which the destination knows it.
    """

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
        """Send until `stop` is set; the association in hand is finished first."""
        while not stop.is_set():
            try:
                busy = self.send_due()
            except NodeError as error:
                _log.warning("lane %s: %s", self._destination.name, error)
                busy = False
            if not busy:
                stop.wait(_IDLE_S)

    def send_due(self) -> bool:
        """Send what is due, over one association; returns whether there was anything.

        Raises DatabaseUnavailable when an outcome could not be recorded: the association is
        aborted, and what was acknowledged is sent once more.
        """
        name = self._destination.name
        with self._database.read() as db:
            due = result_table.due_deliveries(db, name, clock.now(), _PER_ASSOCIATION)
        if not due:
            return False
        # in the order of sending: whoever is first in it while sending is the one under way
        waiting = {self._results / item.file_name: item for item in due}
        try:
            send(
                self._peer,
                self._calling,
                list(waiting),
                self._destination.timeout,
                on_stored=lambda path, status: self._delivered(waiting.pop(path), status),
                on_refused=lambda path, error: self._refused(waiting.pop(path), error),
            )
        except DeliveryError as error:
            _log.warning("delivery to %s: %s", name, error)
            left = list(waiting.values())
            # lost while the first of them was under way: it may be what the peer dies of, each time
            self._put_off(error, left[:1] if isinstance(error, AssociationLost) else left)
        return True

    def _delivered(self, item: DueDelivery, status: int) -> None:
        """Record the acknowledgement as soon as it is there: a later loss cannot undo it."""
        with self._database.begin() as db:
            result_table.settle_delivery(
                db,
                self._destination.name,
                [item.sop_instance_uid],
                DeliveryState.DELIVERED,
                clock.now(),
                status=status,
            )

    def _refused(self, item: DueDelivery, error: DeliveryError) -> None:
        """Set aside what no retry can deliver: the object is refused, not the moment."""
        _log.warning("delivery to %s of %s: %s", self._destination.name, item.file_name, error)
        if isinstance(error, FileUnreadable):  # ours to mend: the report stage writes it again
            self._put_off(error, [item])
        else:
            self._settle(item, error, clock.now(), given_up=True)

    def _put_off(self, error: DeliveryError, waiting: Sequence[DueDelivery]) -> None:
        """Try again later what was not sent, until the destination's own limit.

        The limit counts from when the object was made, or revived by ``dicom-node retry``.
        """
        at = clock.now()
        longest = timedelta(seconds=self._destination.give_up)
        for item in waiting:
            self._settle(item, error, at, given_up=at - item.created >= longest)

    def _settle(
        self, item: DueDelivery, error: DeliveryError, at: datetime, *, given_up: bool
    ) -> None:
        """Record that an object was not delivered, and from when it is due again."""
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
