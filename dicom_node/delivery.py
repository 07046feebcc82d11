"""Objects -> destination until acknowledged: a lane each, so a dead one blocks only itself.

What is to be sent stands in the ledger (the outbox of :mod:`dicom_node.store.result_table`); a lane
keeps nothing between two rounds and may be killed at any moment. An object is recorded as delivered
only after its C-STORE response. Killed between the two, a lane sends it again, which is harmless:
it is the same SOP Instance. What goes wrong is told apart by what it concerns:

- the destination at this moment (no association; 0xA7xx, PS3.4 B.2.3): all that is due is put off;
- one object (no presentation context, a failure status): it is set aside, the others go;
- one object that the association broke at: it alone is put off.

Where the destination is asked to commit (:mod:`dicom_node.commitment`), an acknowledged object is
stored and not delivered yet.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TypedDict, Unpack

from dicom_node import clock, dicomweb
from dicom_node.association.requestor import peer_of, send
from dicom_node.commitment import Commitments
from dicom_node.errors import AssociationLost, DeliveryError, FileUnreadable, NodeError
from dicom_node.network_config import AnyDestination, Destination
from dicom_node.outbox import Outbox
from dicom_node.store import result_table
from dicom_node.store.database import Database
from dicom_node.store.result_table import DueDelivery
from dicom_node.verification import Verification

_log = logging.getLogger(__name__)

_IDLE_S = 0.5
#: at most this many objects travel on one association
_PER_ASSOCIATION = 500


class _Callbacks(TypedDict):
    """What both ways of sending tell, file by file."""

    on_stored: Callable[[Path, int], None]
    on_refused: Callable[[Path, DeliveryError], None]


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
        self, database: Database, results: Path, destination: AnyDestination, calling_ae_title: str
    ) -> None:
        self._database = database
        self._results = results
        self._destination = destination
        self._calling = calling_ae_title
        self._outbox = Outbox(database, destination)
        self._commitments: Commitments | None = None
        self._verification: Verification | None = None
        if isinstance(destination, Destination):
            self._commitments = Commitments(database, results, destination, calling_ae_title)
            self._verification = Verification(database, destination, calling_ae_title)

    def run(self, stop: threading.Event) -> None:
        """Send until `stop` is set; the association in hand is finished first."""
        begun = False
        while not stop.is_set():
            try:
                if not begun and self._commitments is not None:
                    self._commitments.begin()
                begun = True
                busy = self.send_due()
                for after in (self._commitments, self._verification):
                    busy = (after is not None and after.step()) or busy
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
            self._send(
                list(waiting),
                on_stored=lambda path, status: self._outbox.acknowledged(waiting.pop(path), status),
                on_refused=lambda path, error: self._refused(waiting.pop(path), error),
            )
        except DeliveryError as error:
            _log.warning("delivery to %s: %s", name, error)
            left = list(waiting.values())
            # lost while the first of them was under way: it may be what the peer dies of, each time
            lost = isinstance(error, AssociationLost)
            self._outbox.put_off(error, left[:1] if lost else left)
        return True

    def _send(self, files: list[Path], **callbacks: Unpack[_Callbacks]) -> None:
        """Send files by what the destination speaks; raises DeliveryError."""
        of = self._destination
        if isinstance(of, Destination):
            send(peer_of(of), self._calling, files, of.timeout, **callbacks)
        else:
            dicomweb.send(dicomweb.peer_of(of), files, of.timeout, **callbacks)

    def _refused(self, item: DueDelivery, error: DeliveryError) -> None:
        """Set aside what no retry can deliver: the object is refused, not the moment."""
        _log.warning("delivery to %s of %s: %s", self._destination.name, item.file_name, error)
        if isinstance(error, FileUnreadable):  # ours to mend: the report stage writes it again
            self._outbox.put_off(error, [item])
        else:
            self._outbox.set_aside(item, error)
