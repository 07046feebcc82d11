"""The Storage and Verification SCP: never raises, never decodes, never scores."""

from __future__ import annotations

import errno
import logging
import threading
import time
from dataclasses import dataclass, field
from typing import Any, Protocol

from pydicom.dataset import Dataset
from pynetdicom import AE, evt
from pynetdicom.association import Association
from pynetdicom.events import Event
from pynetdicom.pdu_primitives import A_ASSOCIATE

from dicom_node.association import sockets
from dicom_node.association.contexts import (
    FILED_SOP_CLASSES,
    SCORED_SOP_CLASSES,
    acceptor_contexts,
    readable,
)
from dicom_node.association.entity import application_entity
from dicom_node.errors import InstanceRejected, NodeError, PartFailed, StoreError, StoreStatus
from dicom_node.series import ReceivedInstance

_log = logging.getLogger(__name__)

#: Error: Cannot understand (PS3.4 B.2.3, Cxxx); told apart from 0xC000, which blames the data set
HANDLER_FAILED = 0xC211
#: Error Comment (0000,0902) is LO (PS3.5 6.2)
_COMMENT_CHARS = 64
#: a sender that proposes more than this proposes all it knows, not what it is about to send
_FEW_CLASSES = 8
_GRACE_S = 2.0
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
_ACCEPTED = ", ".join(uid.name for uid in (*SCORED_SOP_CLASSES, *FILED_SOP_CLASSES))


@dataclass(frozen=True, slots=True)
class AcceptorSettings:
    """Where and from whom the acceptor takes associations."""

    ae_title: str
    bind: str
    #: 0 picks a free port
    port: int
    max_associations: int
    #: an idle association and a stalled PDU end after it
    network_timeout_s: float
    #: empty: any
    allowed_calling_ae_titles: tuple[str, ...]
    require_called_ae_title: bool


class AssociationEvents(Protocol):
    """What the acceptor tells the node; called from the association's own thread."""

    def association_opened(self, calling_ae_title: str, peer_host: str) -> int:
        """Record an association; returns its ledger number."""

    def association_closed(self, association_id: int) -> None:
        """Record its end: released, aborted or lost; called once, after its last instance."""

    def instance_received(self, received: ReceivedInstance) -> None:
        """Take one instance; what it raises decides the status that goes back."""

    def refused(self, calling_ae_title: str, peer_host: str, reason: str) -> None:
        """Record a refused association, SOP Class or instance."""


@dataclass(slots=True)
class _Link:
    """One open association."""

    number: int
    calling_ae_title: str
    peer_host: str
    n_instances: int = 0
    #: reasons already given: a full disk is one refusal, not one per instance
    reported: set[str] = field(default_factory=set)
    #: what to report if the association ends without an instance
    suspected: str = ""
    watcher: threading.Thread | None = None


class Acceptor:
    """Listens on one port and answers C-ECHO and C-STORE."""

    def __init__(self, settings: AcceptorSettings, events: AssociationEvents) -> None:
        self._settings = settings
        self._events = events
        self._links: dict[Association, _Link] = {}
        self._lock = threading.Lock()
        self._server: Any = None

    def start(self) -> None:
        """Listen, without blocking; raises PartFailed that names the port and the way out."""
        settings = self._settings
        handlers = [
            *sockets.handlers(settings.network_timeout_s),
            (evt.EVT_ACCEPTED, self._on_accepted),
            (evt.EVT_REJECTED, self._on_rejected),
            (evt.EVT_C_STORE, self._on_c_store),
        ]
        try:
            self._server = self._application_entity().start_server(
                (settings.bind, settings.port), block=False, evt_handlers=handlers
            )
        except OSError as error:
            raise PartFailed(_cannot_listen(settings, error), port=settings.port) from error

    @property
    def port(self) -> int:
        """The port it listens on."""
        if self._server is None:
            return self._settings.port
        return int(self._server.server_address[1])

    def stop(self) -> None:
        """Stop listening; associations get a moment to end, then they are aborted."""
        if self._server is None:
            return
        server, self._server = self._server, None
        server.shutdown()
        deadline = time.monotonic() + _GRACE_S
        while server.active_associations and time.monotonic() < deadline:
            time.sleep(0.02)
        for assoc in server.active_associations:
            assoc.abort()
        for link in list(self._links.values()):
            if link.watcher is not None:
                link.watcher.join(_GRACE_S)

    def _application_entity(self) -> AE:
        settings = self._settings
        entity = application_entity(settings.ae_title, settings.network_timeout_s)
        entity.supported_contexts = acceptor_contexts()
        entity.maximum_associations = settings.max_associations
        entity.require_called_aet = settings.require_called_ae_title
        entity.require_calling_aet = list(settings.allowed_calling_ae_titles)
        return entity

    # -- opening and closing ---------------------------------------------------------------

    def _on_accepted(self, event: Event) -> None:
        link = self._link(event.assoc)
        reason, n_refused = _refused_contexts(event.assoc)
        if reason and n_refused <= _FEW_CLASSES:
            self._report(link, reason)
        else:
            link.suspected = reason

    def _on_rejected(self, event: Event) -> None:
        requestor = event.assoc.requestor
        called = event.assoc.requestor.primitive.called_ae_title
        reason = self._rejection(event.assoc.acceptor.primitive, requestor.ae_title, called)
        self._refuse(requestor.ae_title, requestor.address, reason)

    def _rejection(self, answer: A_ASSOCIATE, calling: str, called: str) -> str:
        """Say why in the words of the configuration (PS3.8 9.3.4)."""
        settings = self._settings
        match answer.result_source, answer.diagnostic:
            case 1, 3:
                why = f"{calling} is not in receiver.allowed_calling_ae_titles"
            case 1, 7:
                why = f"it calls {called}, this node is {settings.ae_title}"
            case 3, 2:
                why = (
                    f"more than {settings.max_associations} associations at once "
                    "(receiver.max_associations)"
                )
            case source, diagnostic:
                why = f"source {source}, diagnostic {diagnostic}"
        return f"association rejected: {why}"

    def _link(self, assoc: Association) -> _Link:
        """Return the open association; it is recorded at the first call that succeeds."""
        with self._lock:
            link = self._links.get(assoc)
        if link is not None:
            return link
        calling, host = assoc.requestor.ae_title, assoc.requestor.address
        link = _Link(self._events.association_opened(calling, host), calling, host)
        link.watcher = threading.Thread(target=self._await_end, args=(assoc, link), daemon=True)
        with self._lock:
            self._links[assoc] = link
        link.watcher.start()
        return link

    def _await_end(self, assoc: Association, link: _Link) -> None:
        """Report the end once, however it came, when no handler of the association runs any more.

        The library's events do not do: a lost connection is seen while an instance is being filed,
        an abort fires up to two of them, and a fault in the library fires none.
        """
        assoc.join()
        sockets.close(assoc)
        if link.suspected and not link.n_instances:
            self._report(link, link.suspected)
        try:
            self._events.association_closed(link.number)
        except NodeError:
            _log.exception("the end of association %d was not recorded", link.number)
        finally:
            with self._lock:
                self._links.pop(assoc, None)

    # -- instances -------------------------------------------------------------------------

    def _on_c_store(self, event: Event) -> Dataset | int:
        link = None
        try:
            link = self._link(event.assoc)
            self._events.instance_received(_received(event, link))
            link.n_instances += 1
        except Exception as error:  # noqa: BLE001  # a boundary: the peer must get an answer
            return self._failure(event, link, error)
        return int(StoreStatus.SUCCESS)

    def _failure(self, event: Event, link: _Link | None, error: Exception) -> Dataset:
        """Answer with the status that tells the sender whose fault it is."""
        uid = str(event.request.AffectedSOPInstanceUID)
        status, comment = _status_of(error)
        if isinstance(error, NodeError) or status != HANDLER_FAILED:
            _log.warning("instance %s refused with 0x%04X: %s", uid, status, error)
        else:
            _log.error("instance %s: the node failed", uid, exc_info=error)
        if link is not None:
            whose = f" {uid}" if isinstance(error, InstanceRejected) else "s"
            self._report(link, f"instance{whose} refused with 0x{status:04X}: {comment}")
        answer = Dataset()
        answer.Status = status
        answer.ErrorComment = _as_long_string(comment)
        return answer

    def _report(self, link: _Link, reason: str) -> None:
        if reason not in link.reported:
            link.reported.add(reason)
            self._refuse(link.calling_ae_title, link.peer_host, reason)

    def _refuse(self, calling_ae_title: str, peer_host: str, reason: str) -> None:
        try:
            self._events.refused(calling_ae_title, peer_host, reason)
        except NodeError:  # the refusal stands, whether or not the ledger can take it
            _log.exception("a refusal was not recorded: %s", reason)


def _received(event: Event, link: _Link) -> ReceivedInstance:
    request = event.request
    return ReceivedInstance(
        association_id=link.number,
        calling_ae_title=link.calling_ae_title,
        affected_sop_class_uid=str(request.AffectedSOPClassUID),
        affected_sop_instance_uid=str(request.AffectedSOPInstanceUID),
        transfer_syntax_uid=str(event.context.transfer_syntax),
        encoded=event.encoded_dataset(include_meta=False),
    )


def _status_of(error: Exception) -> tuple[int, str]:
    """Return status and comment; a fault of ours is not explained to the sender."""
    if isinstance(error, InstanceRejected):
        return int(error.status), str(error)
    if isinstance(error, StoreError):  # full or locked: the sender may try again later
        return int(StoreStatus.OUT_OF_RESOURCES), str(error)
    if isinstance(error, OSError) and error.errno in _DISK_FULL:
        return int(StoreStatus.OUT_OF_RESOURCES), "the disk of the node is full"
    return HANDLER_FAILED, "the node failed; its log says why"


def _as_long_string(text: str) -> str:
    r"""Make any text a value of LO: one line of ASCII, no backslash, at most 64 characters."""
    line = " ".join(text.split()).replace("\\", "/")
    return line.encode("ascii", "replace").decode("ascii")[:_COMMENT_CHARS].strip()


def _refused_contexts(assoc: Association) -> tuple[str, int]:
    """Return what to say of the refused SOP Classes, and how many they are."""
    accepted = {context.abstract_syntax for context in assoc.accepted_contexts}
    proposed = {context.abstract_syntax for context in assoc.rejected_contexts}
    refused = sorted(proposed - accepted)
    if not refused:
        return "", 0
    names = ", ".join(readable(uid) for uid in refused[:_FEW_CLASSES])
    if len(refused) > _FEW_CLASSES:
        names += f" and {len(refused) - _FEW_CLASSES} more"
    known = set(refused) <= {*SCORED_SOP_CLASSES, *FILED_SOP_CLASSES}
    if known:
        return f"no transfer syntax in common for {names}", len(refused)
    reason = (
        f"SOP Class not accepted: {names}. This node accepts {_ACCEPTED}; "
        "other objects should not be routed here."
    )
    return reason, len(refused)


def _cannot_listen(settings: AcceptorSettings, error: OSError) -> str:
    where = f"receiver: cannot listen on {settings.bind} port {settings.port}"
    if error.errno == errno.EADDRINUSE:
        return (
            f"{where}: the port is in use; stop the program that holds it, "
            "or set another receiver.port"
        )
    if error.errno == errno.EACCES:
        return f"{where}: ports below 1024 need a privilege; set receiver.port to 11112 or so"
    if error.errno == errno.EADDRNOTAVAIL:
        return f"{where}: this machine has no such address; set receiver.bind"
    return f"{where}: {error.strerror or error}; set receiver.bind and receiver.port"
