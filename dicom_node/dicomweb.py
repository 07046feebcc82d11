"""Result objects -> a DICOMweb server, one STOW-RS request each (only importer of dicomweb_client).

The same promises as of C-STORE in :mod:`dicom_node.association.requestor`: what is acknowledged is
told at once, an object that is not wanted costs the others nothing, and a server that does not
answer is told apart from one that says no.

References
----------
PS3.18 10.5 (Store Transaction), table 10.5.3-1 (status codes), annex I.2.2 (failure reasons).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from xml.etree.ElementTree import ParseError

import pydicom
import requests
from dicomweb_client.api import DICOMwebClient
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError

from dicom_node.errors import AssociationRefused, DeliveryError, FileUnreadable, StoreFailed
from dicom_node.network_config import WebDestination

#: of the object or of its encoding; any other status of failure concerns the server or the address
_REFUSES_OBJECT = frozenset({400, 406, 409, 413, 415, 422})
#: there is no answer, a file of ours is missing, or what came is neither JSON nor XML of PS3.18
_NO_ANSWER = (OSError, ValueError, LookupError, TypeError, AttributeError, ParseError)
#: larger bodies are sent in chunks, which not every server takes
_WHOLE_BODY = 1 << 30


@dataclass(frozen=True, slots=True)
class WebPeer:
    """A DICOMweb server."""

    name: str
    #: of its STOW-RS service, without "/studies"
    url: str
    #: sent as a bearer token; empty: none is
    token: str = ""
    #: file of the certificate authority; None: those of the system
    ca_file: Path | None = None
    #: files of our own certificate and its key; None: we show none
    client_certificate: tuple[Path, Path] | None = None

    def __str__(self) -> str:
        """Name it as messages do."""
        return f"{self.name} ({self.url})"


def peer_of(of: WebDestination) -> WebPeer:
    """Return a destination of the configuration as a server; reads its token.

    Raises FileUnreadable, which passes when the file is put right.
    """
    token = ""
    if of.token_file is not None:
        try:
            token = of.token_file.read_text("ascii").strip()
        except (OSError, ValueError) as error:
            raise FileUnreadable(
                f"web_destination {of.name}: token_file = {of.token_file}: {error}",
                destination=of.name,
            ) from error
    pair = (of.certificate, of.key) if of.certificate and of.key else None
    return WebPeer(of.name, of.url, token, of.ca, pair)


def send(
    peer: WebPeer,
    files: Sequence[Path],
    timeout_s: float,
    *,
    on_stored: Callable[[Path, int], None] = lambda _path, _status: None,
    on_refused: Callable[[Path, DeliveryError], None],
) -> None:
    """Store Part 10 files, one request after the other over one session.

    Parameters
    ----------
    files
        Sent in this order.
    timeout_s
        For the connection, and again for each answer.
    on_stored
        Gets each file and its HTTP status as soon as it is acknowledged.
    on_refused
        Gets each file that is not taken, and why: StoreFailed (``.status`` of HTTP), or
        FileUnreadable when it is this side's fault. It costs the other files nothing.

    Raises
    ------
    AssociationRefused
        The server cannot be reached, does not know the address, does not let us in, or fails: this
        concerns all files and may pass.
    """
    with requests.Session() as session:
        client = _client(peer, session, timeout_s)
        for path in files:
            try:
                status = _store(client, peer, path)
            except (FileUnreadable, StoreFailed) as error:
                on_refused(path, error)
            else:
                on_stored(path, status)


def reach(peer: WebPeer, timeout_s: float) -> None:
    """Ask the server for one study, as C-ECHO asks whether anybody is there.

    Raises AssociationRefused with what it answered.
    """
    with requests.Session() as session:
        try:
            _client(peer, session, timeout_s).search_for_studies(limit=1)
        except _NO_ANSWER as error:
            raise _unreachable(peer, error) from error


def server_time(peer: WebPeer, timeout_s: float) -> datetime | None:
    """Return the time that the server's answers bear (RFC 9110 6.6.1), None where they bear none.

    Whether it lets us in does not matter. Raises AssociationRefused where nobody answers.
    """
    with requests.Session() as session:
        _client(peer, session, timeout_s)
        try:
            answer = session.get(peer.url, timeout=timeout_s, stream=True, allow_redirects=False)
            answer.close()
        except _NO_ANSWER as error:
            raise _unreachable(peer, error) from error
    try:
        told = parsedate_to_datetime(answer.headers.get("Date", ""))
    except ValueError:
        return None
    return told.astimezone(UTC)


def _client(peer: WebPeer, session: requests.Session, timeout_s: float) -> DICOMwebClient:
    """Return a client that tries once: trying again is the lane's own business."""
    # variables of the environment and ~/.netrc would take the place of what is configured here
    session.trust_env = False
    if peer.token:
        session.headers["Authorization"] = f"Bearer {peer.token}"
    if peer.ca_file is not None:
        session.verify = str(peer.ca_file)
    if peer.client_certificate is not None:
        certificate, key = peer.client_certificate
        session.cert = str(certificate), str(key)
    client = DICOMwebClient(peer.url, session=session, timeout=timeout_s, chunk_size=_WHOLE_BODY)
    client.set_http_retry_params(retry=False)
    return client


def _store(client: DICOMwebClient, peer: WebPeer, path: Path) -> int:
    """Store one file; returns the HTTP status, a warning's too."""
    try:
        ds = pydicom.dcmread(path)
    except (OSError, InvalidDicomError, ValueError) as error:
        raise FileUnreadable(
            f"cannot read {path} to send it to {peer}: {error}", destination=peer.name
        ) from error
    try:
        answer = client.store_instances([ds])
    except requests.HTTPError as error:
        raise _answered(peer, error) from error
    except _NO_ANSWER as error:
        raise _unreachable(peer, error) from error
    _check_taken(peer, answer)
    return 200


def _check_taken(peer: WebPeer, answer: Dataset) -> None:
    """Raise StoreFailed for an object that stands among the failed ones of a 202."""
    for item in answer.get("FailedSOPSequence") or []:
        reason = int(item.get("FailureReason") or 0)
        raise StoreFailed(
            f"{peer} did not store the object: failure reason 0x{reason:04X}",
            destination=peer.name,
            status=reason,
        )


def _answered(peer: WebPeer, error: requests.HTTPError) -> DeliveryError:
    """Tell an object that is not wanted from a server or an address that does not work."""
    status = error.response.status_code if error.response is not None else 0
    if status in _REFUSES_OBJECT:
        return StoreFailed(
            f"{peer} answered STOW-RS with HTTP {status}", destination=peer.name, status=status
        )
    return _unreachable(peer, error)


def _unreachable(peer: WebPeer, error: Exception) -> AssociationRefused:
    response = getattr(error, "response", None)
    status = response.status_code if response is not None else None
    hints = {401: "its token is not accepted", 403: "we may not store there", 404: "check its url"}
    if status:
        said = f"answered HTTP {status}"
    elif isinstance(error, requests.RequestException):
        said = f"cannot be reached: {type(error).__name__}"
    elif isinstance(error, OSError):  # a certificate file that is not there
        said = f"cannot be asked: {error}"
    else:
        said = f"answered what is no answer of DICOMweb: {type(error).__name__}"
    hint = f" ({hints[status]})" if status in hints else ""
    return AssociationRefused(f"{peer} {said}{hint}", destination=peer.name)
