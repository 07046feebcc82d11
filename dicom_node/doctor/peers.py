"""Who is on the other end: everybody that is configured must answer."""

from __future__ import annotations

from functools import partial

from dicom_node import dicomweb
from dicom_node.association.requestor import Peer, echo, peer_of
from dicom_node.config import NodeConfig
from dicom_node.doctor.checks import Check, Said, failed, note, ok
from dicom_node.errors import DeliveryError
from dicom_node.network_config import WebDestination

_TIMEOUT_S = 5.0
_LIMIT_S = 30.0


def checks(settings: NodeConfig) -> list[Check]:
    """Return a check of every destination, archive, DICOMweb server and peer."""
    own = settings.node.ae_title
    called = [(f"destination {of.name}", peer_of(of)) for of in settings.destination]
    called += [(f"archive {of.name}", peer_of(of)) for of in settings.archive]
    called += [
        (f"peer {of.ae_title}", Peer(of.ae_title, of.ae_title, of.host, of.port, of.tls))
        for of in settings.peer
    ]
    found = [
        Check("peers", name, partial(answers_echo, name, peer, own), limit_s=_LIMIT_S)
        for name, peer in called
    ]
    found += [
        Check("peers", f"web_destination {of.name}", partial(answers_web, of), limit_s=_LIMIT_S)
        for of in settings.web_destination
    ]
    return found or [Check("peers", "destinations", lambda: note("nobody is configured"))]


def answers_echo(section: str, peer: Peer, own: str) -> Said:
    """Send one C-ECHO under the node's own AE title."""
    try:
        echo(peer, own, _TIMEOUT_S)
    except DeliveryError as error:
        return failed(
            str(error),
            f"Start that application, and let host, port and AE title of [[{section.split()[0]}]] "
            f"and its list of known AE titles ({own}) agree.",
        )
    return ok(f"{peer} answers C-ECHO")


def answers_web(of: WebDestination) -> Said:
    """Ask a DICOMweb server for one study."""
    try:
        dicomweb.reach(dicomweb.peer_of(of), _TIMEOUT_S)
    except DeliveryError as error:
        return failed(
            str(error),
            f"Start that server; check url, token_file and ca of [[web_destination]] {of.name}.",
        )
    return ok(f"{of.name} ({of.url}) answers QIDO-RS")
