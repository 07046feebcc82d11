"""The Verification and Storage SCU: every failure names the peer and what to look at.

Files are sent as they lie on disk: nothing is decoded, transcoded or changed on the way. When to
try again and when to give up is the caller's to decide; the exceptions tell what may pass from what
will not.

References
----------
PS3.4 B.2 (Storage, SCU behaviour and statuses), PS3.7 9.1.1 (C-STORE) and 9.1.5 (C-ECHO), PS3.8
9.3.4 (what a rejected association says).
"""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydicom.errors import InvalidDicomError
from pydicom.filereader import read_file_meta_info
from pynetdicom import _config, build_context, evt
from pynetdicom.association import Association
from pynetdicom.presentation import PresentationContext
from pynetdicom.sop_class import Verification

from dicom_node.association import sockets, tls
from dicom_node.association.contexts import readable
from dicom_node.association.entity import application_entity
from dicom_node.errors import (
    AssociationLost,
    AssociationRefused,
    ConfigError,
    ContextNotAccepted,
    DeliveryError,
    FileUnreadable,
    StoreFailed,
)
from dicom_node.network_config import Archive, Destination, PeerTls

#: stored, with a remark, like Bxxx (PS3.4 B.2.3; PS3.7 C.4)
_WARNINGS = (0x0001, 0x0107, 0x0116)
#: for the one connection that asks the network why there was none
_DIAGNOSIS_S = 2.0
#: high byte of the statuses A7xx, out of resources: they pass, other failures do not (PS3.4 B.2.3)
_OUT_OF_RESOURCES = 0xA7
#: by high byte, for peers that send no Error Comment
_MEANINGS = {
    0x01: "not authorized",
    _OUT_OF_RESOURCES: "out of resources",
    0xA9: "data set mismatch",
}


@dataclass(frozen=True, slots=True)
class Peer:
    """An application entity elsewhere."""

    #: ours for it, as in the configuration: "pacs"
    name: str
    #: what it must be called
    ae_title: str
    #: name or address
    host: str
    port: int
    #: None: in plain
    tls: PeerTls | None = None

    def __str__(self) -> str:
        """Return name, AE title and address, as every message says them."""
        return f"{self.name} ({self.ae_title} at {self.host}:{self.port})"


@dataclass(frozen=True, slots=True)
class _Outgoing:
    """A file and the context it needs."""

    path: Path
    sop_class_uid: str
    transfer_syntax_uid: str


def peer_of(of: Destination | Archive) -> Peer:
    """Return a destination or an archive of the configuration as the other end."""
    return Peer(of.name, of.ae_title, of.host, of.port, of.tls)


def echo(peer: Peer, calling_ae_title: str, timeout_s: float) -> None:
    """Verify that `peer` answers a C-ECHO.

    Parameters
    ----------
    calling_ae_title
        Ours, which the peer may have to know.
    timeout_s
        For the connection, and again for each answer.

    Raises
    ------
    AssociationRefused
        It cannot be reached, rejects the association, or answers with a failure; the message names
        what to check.
    AssociationLost
        It takes the association and then does not answer.
    """
    contexts = [build_context(Verification)]
    with open_association(peer, calling_ae_title, contexts, timeout_s) as assoc:
        # accepted, yet without a context for Verification: the library has aborted it
        if not assoc.is_established:
            raise AssociationLost(f"{peer} ended the association at once", destination=peer.name)
        status = assoc.send_c_echo()
        if "Status" not in status:
            raise AssociationLost(
                f"{peer} accepted the association and did not answer C-ECHO within {timeout_s:g} s",
                destination=peer.name,
            )
        if status.Status != 0:
            raise AssociationRefused(
                f"{peer} answered C-ECHO with 0x{status.Status:04X}", destination=peer.name
            )


def send(
    peer: Peer,
    calling_ae_title: str,
    files: Sequence[Path],
    timeout_s: float,
    *,
    on_stored: Callable[[Path, int], None] = lambda _path, _status: None,
    on_refused: Callable[[Path, DeliveryError], None],
) -> None:
    """Send Part 10 files over one association, encoded as they are.

    Parameters
    ----------
    files
        Sent in this order; files that cannot be read are left out. Without a readable one no
        association is opened.
    timeout_s
        For the connection, and again for each answer.
    on_stored
        Gets each file and its status, success or warning, as soon as it is acknowledged: what it
        records survives whatever happens to the rest.
    on_refused
        Gets each file that is not taken, and why: ContextNotAccepted, StoreFailed (``.status``), or
        FileUnreadable when it is this side's fault. It costs the other files nothing; an exception
        of either callback ends the association.

    Raises
    ------
    AssociationRefused
        There is no association, hence nothing was sent.
    AssociationLost
        It ended under way: files that neither callback got may or may not have arrived.
    StoreFailed
        The peer is out of resources (0xA7xx, PS3.4 B.2.3), which concerns all files and may pass.
    """
    outgoing = []
    for path in files:
        try:
            outgoing.append(_outgoing(peer, path))
        except FileUnreadable as error:
            on_refused(path, error)
    if not outgoing:
        return
    with open_association(peer, calling_ae_title, _contexts(outgoing), timeout_s) as assoc:
        accepted = {
            (str(context.abstract_syntax), str(context.transfer_syntax[0]))
            for context in assoc.accepted_contexts
        }
        for number, item in enumerate(outgoing):
            try:
                if (item.sop_class_uid, item.transfer_syntax_uid) not in accepted:
                    raise _not_accepted(peer, item)
                # Message ID (0000,0110) is US
                status = _store(assoc, peer, item, number % 65535 + 1)
            except (ContextNotAccepted, StoreFailed) as error:
                if _may_pass(error):
                    raise
                on_refused(item.path, error)
            else:
                on_stored(item.path, status)


def _may_pass(error: DeliveryError) -> bool:
    """Tell a full disk over there from an object that is not wanted."""
    return isinstance(error, StoreFailed) and error.status >> 8 == _OUT_OF_RESOURCES


def _outgoing(peer: Peer, path: Path) -> _Outgoing:
    """Read what negotiation needs from the file meta information, and nothing of the data set."""
    try:
        meta = read_file_meta_info(path)
        return _Outgoing(path, str(meta.MediaStorageSOPClassUID), str(meta.TransferSyntaxUID))
    except (OSError, AttributeError, ValueError, InvalidDicomError) as error:
        raise FileUnreadable(
            f"cannot read {path} to send it to {peer}: {error}", destination=peer.name
        ) from error


def _contexts(outgoing: Iterable[_Outgoing]) -> list[PresentationContext]:
    """Return one context per pair: from several syntaxes the acceptor takes one."""
    pairs = dict.fromkeys((item.sop_class_uid, item.transfer_syntax_uid) for item in outgoing)
    return [build_context(sop_class, syntax) for sop_class, syntax in pairs]


def _store(assoc: Association, peer: Peer, item: _Outgoing, message_id: int) -> int:
    """C-STORE one file; returns its status unless that is a failure."""
    if not assoc.is_established:
        raise _lost(peer, item.path)
    try:
        answer = assoc.send_c_store(item.path, msg_id=message_id)
    except RuntimeError as error:  # the association ended between the question and the call
        raise _lost(peer, item.path) from error
    if "Status" not in answer:
        raise _lost(peer, item.path)
    status = int(answer.Status)
    if is_stored(status):
        return status
    comment = str(answer.get("ErrorComment", "")).strip()
    meaning = comment or _MEANINGS.get(status >> 8, "cannot understand")
    raise StoreFailed(
        f"{peer} answered C-STORE with 0x{status:04X} ({meaning})",
        destination=peer.name,
        status=status,
    )


def is_stored(status: int) -> bool:
    """Return whether a C-STORE status says that the object was taken: success or a warning."""
    return status == 0 or status >> 12 == 0xB or status in _WARNINGS


def _lost(peer: Peer, path: Path) -> AssociationLost:
    return AssociationLost(
        f"{peer} did not acknowledge {path.name}: the association ended, or no answer came in time",
        destination=peer.name,
    )


def _not_accepted(peer: Peer, item: _Outgoing) -> ContextNotAccepted:
    return ContextNotAccepted(
        f"{peer} does not accept {readable(item.sop_class_uid)} in "
        f"{readable(item.transfer_syntax_uid)}: enable it there, or leave this object out of what "
        "is sent",
        destination=peer.name,
    )


@contextmanager
def open_association(
    peer: Peer,
    calling_ae_title: str,
    contexts: list[PresentationContext],
    timeout_s: float,
    handlers: Sequence[sockets.Handler] = (),
    roles: Sequence[Any] = (),
) -> Iterator[Association]:
    """Open an association; released at the end, aborted when the block raises.

    A release after a fault would wait for a peer that may be the fault.

    Parameters
    ----------
    handlers
        Of what the peer may ask on it, beside those of the socket.
    roles
        What this side wants to be of which SOP Class (PS3.7 D.3.3.4), where it is not the SCU.

    Raises
    ------
    AssociationRefused
        There is none. One that was accepted without a single context is given to the block.
    """
    assoc = _associate(peer, calling_ae_title, contexts, timeout_s, handlers, roles)
    try:
        yield assoc
    except BaseException:
        if assoc.is_established:
            assoc.abort()
        raise
    else:
        if assoc.is_established:
            _release(assoc, timeout_s)
    finally:
        sockets.close(assoc)


def _release(assoc: Association, timeout_s: float) -> None:
    """Release, or abort when that does not end.

    The library waits without limit for its own reactor to pause before it asks for the release.
    """
    releasing = threading.Thread(target=assoc.release, name=f"release {assoc.name}", daemon=True)
    releasing.start()
    releasing.join(2 * timeout_s)
    if releasing.is_alive():
        assoc.abort()


def _associate(
    peer: Peer,
    calling_ae_title: str,
    contexts: list[PresentationContext],
    timeout_s: float,
    more_handlers: Sequence[sockets.Handler],
    roles: Sequence[Any],
) -> Association:
    """Negotiate; returns also an association that was accepted without a single context.

    Such a one is no refusal of the node: its files are, one by one, for want of a context.
    """
    # the library then sends the bytes of the file; otherwise it decodes and encodes them again
    _config.STORE_SEND_CHUNKED_DATASET = True
    entity = application_entity(calling_ae_title, timeout_s)
    context = _context(peer)
    # tells "nobody there" from "there, and silent": the library's answer is the same
    connected: list[bool] = []
    handlers = [
        *sockets.handlers(timeout_s),
        *more_handlers,
        (evt.EVT_CONN_OPEN, lambda _event: connected.append(True)),
    ]
    try:
        assoc = entity.associate(
            peer.host,
            peer.port,
            contexts=contexts,
            ae_title=peer.ae_title,
            evt_handlers=handlers,
            ext_neg=list(roles),
            tls_args=None if context is None else (context, peer.host),
        )
    except socket.gaierror as error:
        raise AssociationRefused(
            f"{peer}: the host name {peer.host} is not known here; check the host",
            destination=peer.name,
        ) from error
    if not assoc.is_established and not _nothing_in_common(assoc):
        if connected:
            reason = _refusal(assoc, calling_ae_title, peer)
        else:
            reason = _unreachable(peer, context)
        raise AssociationRefused(f"{peer}: {reason}", destination=peer.name)
    return assoc


def _context(peer: Peer) -> ssl.SSLContext | None:
    """Return the TLS context for a peer, None for a plain association."""
    if peer.tls is None:
        return None
    try:
        return tls.client_context(peer.tls, peer.name)
    except ConfigError as error:  # a file was there when the node started
        raise AssociationRefused(f"{peer}: {error}", destination=peer.name) from error


def _nothing_in_common(assoc: Association) -> bool:
    """Tell an association that was accepted without a single context; the library aborts it."""
    answer = assoc.acceptor.primitive
    return answer is not None and answer.result == 0 and not assoc.accepted_contexts


def _refusal(assoc: Association, calling_ae_title: str, peer: Peer) -> str:
    """Say why a peer that is there gave no association (PS3.8 9.3.4)."""
    answer = assoc.acceptor.primitive
    if not assoc.is_rejected or answer is None:
        if peer.tls is not None:
            # with TLS 1.3 a refused client certificate is seen only after the handshake
            return (
                "the TLS connection was made, then no association came; check that it trusts this "
                "node's certificate, and its host and AE title lists"
            )
        return (
            "the connection was opened, then no association came; check that the port is a DICOM "
            "port, and its host and AE title lists"
        )
    match answer.result_source, answer.diagnostic:
        case 1, 3:
            return f"it does not know this node; add the AE title {calling_ae_title} there"
        case 1, 7:
            return f"it is not called {peer.ae_title}; check the AE title of the destination"
        case 3, _:
            return "it has too many associations at the moment"
    return (
        f"it rejected the association from {calling_ae_title} to {peer.ae_title} "
        f"(source {answer.result_source}, diagnostic {answer.diagnostic}); "
        "check both AE titles there"
    )


def _unreachable(peer: Peer, context: ssl.SSLContext | None) -> str:
    """Say what the network said; asked again, since the library keeps it to itself."""
    why = "the connection failed"
    try:
        with socket.create_connection((peer.host, peer.port), _DIAGNOSIS_S) as connection:
            fault = None if context is None else _handshake_fault(connection, context, peer.host)
    except OSError as error:
        fault, why = None, (error.strerror or str(error)).lower()
    if fault is not None:
        return (
            f"no TLS connection to {peer.host}:{peer.port} ({fault}); check that the port speaks "
            "TLS, and ca, certificate and check_host_name of its tls section"
        )
    return (
        f"cannot connect to {peer.host}:{peer.port} ({why}); check that it runs, "
        "host, port and firewall"
    )


def _handshake_fault(connection: socket.socket, context: ssl.SSLContext, host: str) -> str | None:
    """Return what a handshake ends with, None when it goes well."""
    try:
        context.wrap_socket(connection, server_hostname=host).close()
    except OSError as error:
        return tls.reason_of(error)
    return None
