"""The Storage and Verification SCP: never raises, never decodes, never scores.

Every association has a thread of its own (the library's), which calls the handlers here one after
the other. What they do with an instance is behind :class:`AssociationEvents`; what that raises
becomes a C-STORE status here and nowhere else. C-ECHO is answered by the library itself.

References
----------
PS3.4 Annex A (Verification) and Annex B (Storage); PS3.7 9.1.1 (C-STORE); PS3.8 9.3 (PDUs).
"""

from __future__ import annotations

import errno
import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

from pydicom.dataset import Dataset
from pynetdicom import AE, evt
from pynetdicom.association import Association
from pynetdicom.events import Event
from pynetdicom.pdu_primitives import A_ASSOCIATE

from dicom_node.association import sockets, storing, tls, tls_server
from dicom_node.association.commitment import Report, take_report
from dicom_node.association.commitment_reports import Line, Request, take_request
from dicom_node.association.contexts import (
    FILED_SOP_CLASSES,
    SCORED_SOP_CLASSES,
    acceptor_contexts,
    readable,
)
from dicom_node.association.entity import application_entity
from dicom_node.association.storing import StorageEvents
from dicom_node.errors import NodeError, PartFailed, StoreStatus
from dicom_node.identity import RESULT_SOP_CLASSES
from dicom_node.network_config import ReceiverTls

_log = logging.getLogger(__name__)

#: a sender that proposes more than this proposes all it knows, not what it is about to send
_FEW_CLASSES = 8
#: for associations to end by themselves when the acceptor stops
_GRACE_S = 2.0
_ACCEPTED = ", ".join(uid.name for uid in (*SCORED_SOP_CLASSES, *FILED_SOP_CLASSES))


@dataclass(frozen=True, slots=True)
class AcceptorSettings:
    """Where and from whom the acceptor takes associations, as the configuration validated it."""

    ae_title: str
    #: address of the interface; "0.0.0.0" is all of IPv4
    bind: str
    #: 0 picks a free port; None: no plain one
    port: int | None
    #: more at once are rejected as transient, local limit exceeded (PS3.8 9.3.4)
    max_associations: int
    #: an idle association and a stalled PDU end after it
    network_timeout_s: float
    #: empty: any
    allowed_calling_ae_titles: tuple[str, ...]
    require_called_ae_title: bool
    #: None: no port that speaks TLS
    tls: ReceiverTls | None = None


class AssociationEvents(StorageEvents, Protocol):
    """What the acceptor tells the node; called from the association's own thread."""

    def commitment_reported(self, report: Report) -> bool:
        """Record what a destination commits to; returns whether it was asked.

        Raises StoreError when there is no ledger at the moment.
        """

    def commitment_asked(self, request: Request) -> int:
        """Record that a sender is owed a report; returns its number. Raises StoreError."""

    def commitment_information(self, number: int) -> Dataset | None:
        """Return what a report says, None when it is owed no more. Raises StoreError."""

    def commitment_told(self, number: int, *, told: bool) -> None:
        """Record that the sender took its report, or that it must be told elsewhere."""


@dataclass(slots=True)
class _Link:
    """One open association, and what was already said about it."""

    number: int
    calling_ae_title: str
    peer_host: str
    n_instances: int = 0
    #: reasons already given: a full disk is one refusal, not one per instance
    reported: set[str] = field(default_factory=set)
    #: what to report if the association ends without an instance
    suspected: str = ""
    watcher: threading.Thread | None = None
    #: of a sender that has asked for storage commitment
    line: Line | None = None


class Acceptor:
    """Listens in plain, over TLS or both, and answers C-ECHO and C-STORE.

    `events` decides by what it raises. The limit of associations is one for both ports.
    """

    def __init__(self, settings: AcceptorSettings, events: AssociationEvents) -> None:
        self._settings = settings
        self._events = events
        # written by the associations' threads and by their watchers, hence the lock
        self._links: dict[Association, _Link] = {}
        self._lock = threading.Lock()
        self._plain: Any = None
        self._tls: Any = None

    def start(self) -> None:
        """Listen, without blocking.

        Raises
        ------
        PartFailed
            A port is taken, privileged, or the address is not this machine's; the message names
            the key to change, and the attribute ``port`` is the port.
        ConfigError
            A certificate file cannot be loaded.
        """
        settings = self._settings
        handlers = [
            *sockets.handlers(settings.network_timeout_s),
            (evt.EVT_ACCEPTED, self._on_accepted),
            (evt.EVT_REJECTED, self._on_rejected),
            (evt.EVT_C_STORE, self._on_c_store),
            (evt.EVT_N_EVENT_REPORT, self._on_report),
            (evt.EVT_N_ACTION, self._on_request),
        ]
        try:
            self._listen(self._application_entity(), handlers)
        except BaseException:
            self.stop()
            raise

    def _listen(self, entity: AE, handlers: list[Any]) -> None:
        settings = self._settings
        if settings.port is not None:
            with _listening(settings.bind, settings.port, "receiver.port"):
                self._plain = entity.start_server(
                    (settings.bind, settings.port), block=False, evt_handlers=handlers
                )
        if settings.tls is not None:
            context = tls.server_context(settings.tls)
            with _listening(settings.bind, settings.tls.port, "receiver.tls.port"):
                self._tls = tls_server.serve_in_thread(
                    entity,
                    (settings.bind, settings.tls.port),
                    context,
                    handlers,
                    self._on_handshake_failed,
                )

    @property
    def port(self) -> int | None:
        """The plain port it listens on; before `start`, and after `stop`, the one it was given."""
        if self._plain is None:
            return self._settings.port
        return int(self._plain.server_address[1])

    def stop(self) -> None:
        """Stop listening; associations get a moment to end, then they are aborted.

        It waits for their ends to be reported, so that no series waits for an association that is
        no more. A second call does nothing.
        """
        servers = [server for server in (self._plain, self._tls) if server is not None]
        self._plain = self._tls = None
        for server in servers:
            server.shutdown()
        deadline = time.monotonic() + _GRACE_S
        while any(s.active_associations for s in servers) and time.monotonic() < deadline:
            time.sleep(0.02)
        for server in servers:
            for assoc in server.active_associations:
                assoc.abort()
        # a watcher removes its own link while this goes on: hence the copy
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
        """Record the association, and what of its proposal was not accepted.

        Whoever proposes a few SOP Classes means to send them: a refused one is worth a line at
        once. Whoever proposes all that exist is suspected only if no instance comes.
        """
        link = self._link(event.assoc)
        reason, n_refused = _refused_contexts(event.assoc)
        if reason and n_refused <= _FEW_CLASSES:
            self._report(link, reason)
        else:
            link.suspected = reason

    def _on_rejected(self, event: Event) -> None:
        """Record a rejected association; it never becomes a link, and has no end to wait for."""
        requestor = event.assoc.requestor
        called = event.assoc.requestor.primitive.called_ae_title
        reason = self._rejection(event.assoc.acceptor.primitive, requestor.ae_title, called)
        self._refuse(requestor.ae_title, requestor.address, reason)

    def _on_handshake_failed(self, peer_host: str, why: str) -> None:
        """Record a connection that never became an association: nobody has said its name."""
        self._refuse("(TLS)", peer_host, f"no TLS connection: {why}")

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
        """Return the open association; it is recorded at the first call that succeeds.

        The ledger may be locked when the association opens: the first instance then tries again.
        """
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
        # the library may have dropped the socket without closing it: one descriptor per association
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

    def _on_report(self, event: Event) -> tuple[int, None]:
        """Take what a destination says of its commitment, on an association that it opened."""
        return take_report(event, self._events.commitment_reported)

    def _on_request(self, event: Event) -> tuple[int, None]:
        """Take a sender's request; it is told when its association has gone quiet."""

        def record(request: Request) -> None:
            link = self._link(event.assoc)
            number = self._events.commitment_asked(request)
            # the library handles one request of an association after the other
            link.line = link.line or Line(event)
            if link.line.owe(number):
                threading.Thread(target=self._tell, args=(link.line,), daemon=True).start()

        return take_request(event, record), None

    def _tell(self, line: Line) -> None:
        """Report on the association that asked, while it stays; else somebody else does."""
        while numbers := line.owed():
            open_still = line.is_quiet()
            for number in numbers:
                try:
                    ds = self._events.commitment_information(number)
                    open_still = open_still and ds is not None and line.report(ds, number)
                    self._events.commitment_told(number, told=open_still)
                except NodeError:
                    _log.exception("storage commitment report %d is left over", number)

    # -- instances -------------------------------------------------------------------------

    def _on_c_store(self, event: Event) -> Dataset | int:
        """Answer one C-STORE request: 0x0000 only when the instance is durable and recorded."""
        link = None
        try:
            link = self._link(event.assoc)
            self._events.instance_received(
                storing.received_instance(event, link.number, link.calling_ae_title)
            )
            link.n_instances += 1
        except Exception as error:  # noqa: BLE001  # a boundary: the peer must get an answer
            return self._failure(event, link, error)
        return int(StoreStatus.SUCCESS)

    def _failure(self, event: Event, link: _Link | None, error: Exception) -> Dataset:
        """Answer with the status that tells the sender whose fault it is."""
        refusal = storing.refuse(event, error)
        if link is not None:
            self._report(link, refusal.reason)
        return refusal.response()

    def _report(self, link: _Link, reason: str) -> None:
        """Report a reason once per association, however many instances it strikes."""
        if reason not in link.reported:
            link.reported.add(reason)
            self._refuse(link.calling_ae_title, link.peer_host, reason)

    def _refuse(self, calling_ae_title: str, peer_host: str, reason: str) -> None:
        try:
            self._events.refused(calling_ae_title, peer_host, reason)
        except NodeError:  # the refusal stands, whether or not the ledger can take it
            _log.exception("a refusal was not recorded: %s", reason)


def _refused_contexts(assoc: Association) -> tuple[str, int]:
    """Return what to say of the refused SOP Classes, and how many they are.

    A SOP Class counts as refused when none of its presentation contexts was accepted: senders often
    propose one class in several contexts, with a transfer syntax each.
    """
    accepted = {context.abstract_syntax for context in assoc.accepted_contexts}
    proposed = {context.abstract_syntax for context in assoc.rejected_contexts}
    refused = sorted(proposed - accepted)
    if not refused:
        return "", 0
    names = ", ".join(readable(uid) for uid in refused[:_FEW_CLASSES])
    if len(refused) > _FEW_CLASSES:
        names += f" and {len(refused) - _FEW_CLASSES} more"
    # a class that we take elsewhere failed for its encoding alone: another remedy, another text
    known = set(refused) <= {*SCORED_SOP_CLASSES, *FILED_SOP_CLASSES, *RESULT_SOP_CLASSES}
    if known:
        return f"no transfer syntax in common for {names}", len(refused)
    reason = (
        f"SOP Class not accepted: {names}. This node accepts {_ACCEPTED}; "
        "other objects should not be routed here."
    )
    return reason, len(refused)


@contextmanager
def _listening(bind: str, port: int, key: str) -> Iterator[None]:
    """Turn what the operating system says of a port into PartFailed."""
    try:
        yield
    except OSError as error:
        raise PartFailed(_cannot_listen(bind, port, key, error), port=port) from error


def _cannot_listen(bind: str, port: int, key: str, error: OSError) -> str:
    """Say why the port cannot be had, and which key of the configuration mends it."""
    where = f"receiver: cannot listen on {bind} port {port}"
    if error.errno == errno.EADDRINUSE:
        return f"{where}: the port is in use; stop the program that holds it, or set another {key}"
    if error.errno == errno.EACCES:
        return f"{where}: ports below 1024 need a privilege; set {key} to 11112 or so"
    if error.errno == errno.EADDRNOTAVAIL:
        return f"{where}: this machine has no such address; set receiver.bind"
    return f"{where}: {error.strerror or error}; set receiver.bind and {key}"
