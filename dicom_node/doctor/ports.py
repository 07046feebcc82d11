"""The node's own ports: free, or held by the node that runs on this data folder."""

from __future__ import annotations

import errno
import http.client
import socket
import ssl
from collections.abc import Callable

from dicom_node import processes
from dicom_node.association import tls
from dicom_node.association.requestor import Peer, echo
from dicom_node.config import NodeConfig
from dicom_node.doctor.checks import Check, Said, failed, ok
from dicom_node.errors import DeliveryError
from dicom_node.network_config import ReceiverTls

_LOCK = "node.lock"
_TIMEOUT_S = 5.0


def own_peers(settings: NodeConfig) -> list[Peer]:
    """Return the node itself as others call it, once per port."""
    receiver = settings.receiver
    own, bind, found = settings.node.ae_title, receiver.bind, []
    if receiver.plain:
        found.append(Peer("this-node", own, bind, receiver.port))
    if receiver.tls is not None:
        by = tls.own_port(receiver.tls)
        found.append(Peer("this-node-tls", own, bind, receiver.tls.port, by))
    return found


def checks(settings: NodeConfig) -> list[Check]:
    """Return what is looked at of every port that the configuration names."""
    receiver, web = settings.receiver, settings.web
    found = []
    if receiver.plain:
        of = Port("receiver.port", "receiver.bind", receiver.bind, receiver.port)
        found.append(_check("port receiver", settings, of, lambda: _is_node(settings)))
    secure = receiver.tls
    if secure is not None:
        of = Port("receiver.tls.port", "receiver.bind", receiver.bind, secure.port)
        found.append(
            _check("port receiver TLS", settings, of, lambda: _is_certified(receiver.bind, secure))
        )
    page = Port("web.port", "web.bind", web.bind, web.port)
    found.append(_check("port page", settings, page, lambda: _is_page(web.bind, web.port)))
    return found


class Port:
    """A port of the configuration: its keys, and the address it is bound to."""

    def __init__(self, key: str, bind_key: str, bind: str, number: int) -> None:
        self.key, self.bind_key, self.bind, self.number = key, bind_key, bind, number

    def __str__(self) -> str:
        """Name it as a person writes it."""
        return f"{self.bind}:{self.number}"


def _check(name: str, settings: NodeConfig, of: Port, is_ours: Callable[[], bool]) -> Check:
    lock = settings.node.data_dir / _LOCK
    return Check("ports", name, lambda: port(of, processes.holder(lock), is_ours))


def port(of: Port, node: int | None, is_ours: Callable[[], bool]) -> Said:
    """Try to bind the port; where it is taken, ask whether our own node has it.

    Parameters
    ----------
    node
        The process that holds the data folder; None: no node runs on it.
    is_ours
        Whether who answers there is the node of this configuration.
    """
    fault = _bind_fault(of)
    if fault is None and node is not None:
        # a dead part is started again in seconds: then it is free for a moment
        return failed(
            f"a node runs (process {node}), and nobody listens on {of}",
            f"Read the node's log; restart it if {of.key} was changed since it started.",
        )
    if fault is None:
        return ok(f"{of} is free")
    if fault != errno.EADDRINUSE:
        return _cannot_bind(of, fault)
    if node is not None and is_ours():
        return ok(f"{of} is held by the node that runs (process {node})")
    whose = "another program" if node is None else "somebody who does not answer as this node"
    return failed(
        f"{of} is held by {whose}",
        f"End it (ss -ltnp 'sport = :{of.number}' names it), or set {of.key} to a free port.",
    )


def _cannot_bind(of: Port, fault: int) -> Said:
    text = f"{of} cannot be bound: {errno.errorcode.get(fault, str(fault))}"
    if fault == errno.EACCES:
        return failed(text, f"Set {of.key} to 1024 or more, or give the service the right to bind.")
    return failed(
        text, f'Set {of.bind_key} to an address of this machine (ip addr), or to "0.0.0.0".'
    )


def _bind_fault(of: Port) -> int | None:
    """Return the error number of a bind that is undone at once, None where it succeeds."""
    try:
        found = socket.getaddrinfo(of.bind, of.number, type=socket.SOCK_STREAM)
    except OSError:
        return errno.EADDRNOTAVAIL
    family, kind, _, _, address = found[0]
    with socket.socket(family, kind) as probe:
        # connections that ended lately keep no listener away
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(address)
        except OSError as error:
            return error.errno
    return None


def _is_node(settings: NodeConfig) -> bool:
    """Tell whether a C-ECHO is answered under our AE title, by a caller that may store."""
    allowed = settings.receiver.allowed_calling_ae_titles
    try:
        own = next(peer for peer in own_peers(settings) if peer.tls is None)
        echo(own, allowed[0] if allowed else settings.node.ae_title, _TIMEOUT_S)
    except DeliveryError:
        return False
    return True


def _is_certified(host: str, settings: ReceiverTls) -> bool:
    """Tell whether the port shows our certificate; we show none, and may not be let in."""
    try:
        shown = ssl.get_server_certificate((host, settings.port), timeout=_TIMEOUT_S)
        return ssl.PEM_cert_to_DER_cert(shown) in ders(settings.certificate.read_text("ascii"))
    except (OSError, ValueError):
        return False


def ders(pem: str) -> list[bytes]:
    """Return the certificates of a PEM text, each as DER."""
    ends = pem.split(ssl.PEM_HEADER)[1:]
    blocks = [block.split(ssl.PEM_FOOTER)[0] for block in ends]
    return [
        ssl.PEM_cert_to_DER_cert(f"{ssl.PEM_HEADER}\n{block.strip()}\n{ssl.PEM_FOOTER}")
        for block in blocks
    ]


def _is_page(host: str, number: int) -> bool:
    """Tell whether the port answers as the node's page does."""
    asked = http.client.HTTPConnection(host, number, timeout=_TIMEOUT_S)
    try:
        asked.request("GET", "/healthz", headers={"Host": f"127.0.0.1:{number}"})
        return asked.getresponse().read(16).strip() == b"ok"
    except (OSError, http.client.HTTPException):
        return False
    finally:
        asked.close()
