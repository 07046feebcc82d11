"""What an archive sends on an association of our own (C-GET): negotiated, filed and answered.

References
----------
PS3.4 C.4.3 (C-GET), C.5.3 (its negotiation); PS3.7 D.3.3.4 (role selection); PS3.8 9.3.2.2 (at most
128 presentation contexts).
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pydicom.dataset import Dataset
from pynetdicom import build_context, build_role
from pynetdicom.association import Association
from pynetdicom.events import Event
from pynetdicom.presentation import PresentationContext
from pynetdicom.sop_class import StudyRootQueryRetrieveInformationModelGet

from dicom_node.association import storing
from dicom_node.association.contexts import SCORED_SOP_CLASSES, TRANSFER_SYNTAXES
from dicom_node.association.requestor import Peer
from dicom_node.association.storing import Refusal, StorageEvents
from dicom_node.errors import ContextNotAccepted, NodeError, StoreStatus

_log = logging.getLogger(__name__)

_GET = StudyRootQueryRetrieveInformationModelGet


def contexts() -> list[PresentationContext]:
    """Return C-GET and, for each SOP Class, a context per transfer syntax: 97 of at most 128.

    Of several syntaxes in one context the peer would take one, and what it holds in another could
    not come unless it transcodes.
    """
    pairs = [(uid, syntax) for uid in SCORED_SOP_CLASSES for syntax in TRANSFER_SYNTAXES]
    return [build_context(_GET), *(build_context(uid, syntax) for uid, syntax in pairs)]


def roles() -> list[Any]:
    """Return what this side is of each SOP Class: the SCP, though it opened the association."""
    return [build_role(uid, scu_role=False, scp_role=True) for uid in SCORED_SOP_CLASSES]


def check_accepted(peer: Peer, assoc: Association) -> None:
    """Raise ContextNotAccepted unless the peer answers C-GET and may send images on it."""
    accepted = assoc.accepted_contexts
    if not any(context.abstract_syntax == _GET for context in accepted):
        what = "answers no C-GET (Study Root)"
    elif not any(context.as_scp for context in accepted):
        what = "answers C-GET, and takes on no role to send CT or MR images on it"
    else:
        return
    raise ContextNotAccepted(
        f'{peer} {what}: enable it there, or set retrieve = "move" for this archive',
        destination=peer.name,
    )


class Incoming:
    """What comes on an association of our own; the ledger sees the archive as its sender."""

    def __init__(self, peer: Peer, events: StorageEvents) -> None:
        self._peer = peer
        self._events = events
        #: of the association in the ledger, while instances are taken
        self._number: int | None = None
        #: reasons already recorded: a full disk is one line, not one per instance
        self._reported: set[str] = set()
        self.filed: list[str] = []
        self.refused: list[Refusal] = []

    @property
    def n_came(self) -> int:
        """How many instances have been answered."""
        return len(self.filed) + len(self.refused)

    @contextmanager
    def recorded(self) -> Iterator[None]:
        """Take instances while the block runs; its series wait for its end, as for a sender's."""
        number = self._events.association_opened(self._peer.ae_title, self._peer.host)
        self._number = number
        try:
            yield
        finally:
            self._number = None
            try:
                self._events.association_closed(number)
            except NodeError:
                _log.exception("the end of association %d was not recorded", number)

    def on_c_store(self, event: Event) -> Dataset | int:
        """Answer one C-STORE request as the acceptor does."""
        number = self._number
        if number is None:  # after the last response nothing may come
            return int(StoreStatus.OUT_OF_RESOURCES)
        try:
            received = storing.received_instance(event, number, self._peer.ae_title)
            self._events.instance_received(received)
        except Exception as error:  # noqa: BLE001  # a boundary: the peer must get an answer
            return self._refuse(storing.refuse(event, error))
        self.filed.append(received.affected_sop_instance_uid)
        return int(StoreStatus.SUCCESS)

    def _refuse(self, refusal: Refusal) -> Dataset:
        self.refused.append(refusal)
        if refusal.reason not in self._reported:
            self._reported.add(refusal.reason)
            try:
                self._events.refused(self._peer.ae_title, self._peer.host, refusal.reason)
            except NodeError:  # the refusal stands, whether or not the ledger can take it
                _log.exception("a refusal was not recorded: %s", refusal.reason)
        return refusal.response()
