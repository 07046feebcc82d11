"""What the library leaves undone on its sockets: no delays, no stalls, no endless PDUs.

Everything is bound through the library's public events, from the opening of a connection on.
"""

from __future__ import annotations

import errno
import socket
import time
from collections.abc import Callable
from typing import Any

from pynetdicom import evt
from pynetdicom.association import Association
from pynetdicom.events import Event

#: what this side asks its peers to send at most in one P-DATA-TF PDU (PS3.8 D.1)
MAX_PDU_BYTES = 131072
#: beyond it a PDU length is not believed: the field on the wire goes to 4 GiB
MAX_BELIEVED_BYTES = 16 * 2**20
_CHUNK_BYTES = 65536
#: of an association: its socket, kept when the library has let go of it
_ATTRIBUTE = "opened_socket"

Handler = tuple[Any, Callable[[Any], Any]]


def handlers(timeout_s: float) -> list[Handler]:
    """Return the event handlers both roles bind; a PDU must arrive within `timeout_s`."""
    return [
        (evt.EVT_CONN_OPEN, lambda event: _opened(event, timeout_s)),
        (evt.EVT_DATA_RECV, _acknowledge_at_once),
        (evt.EVT_DATA_SENT, _acknowledge_at_once),
        (evt.EVT_CONN_CLOSE, lambda event: close(event.assoc)),
    ]


def close(assoc: Association) -> None:
    """Close what the library only shuts down: it forgets the descriptor if the peer was first.

    Closing twice is closing once, so every way an association may end can call this.
    """
    sock = getattr(assoc, _ATTRIBUTE, None)
    if sock is not None:
        sock.close()


def _opened(event: Event, timeout_s: float) -> None:
    connection = event.assoc.dul.socket
    sock = connection.socket
    setattr(event.assoc, _ATTRIBUTE, sock)
    # accepted sockets have no timeout: a peer that stalls inside a PDU would keep its slot forever
    sock.settimeout(timeout_s)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    _acknowledge_at_once(event)
    # the library's own loop reads 4 KiB at a time and believes any length
    connection.recv = lambda n_bytes: receive_exactly(sock, n_bytes, timeout_s)


def _acknowledge_at_once(event: Event) -> None:
    """Re-arm TCP_QUICKACK, which the kernel drops by itself.

    A peer with Nagle's algorithm on waits for our delayed acknowledgement after every instance:
    12 to 19 instances per second instead of some hundred.
    """
    sock = event.assoc.dul.socket.socket
    if sock is None or not hasattr(socket, "TCP_QUICKACK"):
        return
    try:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
    except OSError:  # the peer has closed: the next read will say so
        return


def receive_exactly(sock: socket.socket, n_bytes: int, timeout_s: float) -> bytearray:
    """Read `n_bytes`, or what came before the peer closed.

    Parameters
    ----------
    n_bytes
        As the PDU's length field says; believed up to 16 MiB.
    timeout_s
        For all of them together: a peer that drips one byte at a time is a stalled peer.

    Raises
    ------
    TimeoutError
        They are not there in time.
    OSError
        The length cannot be true, or the connection is lost.
    """
    if n_bytes > MAX_BELIEVED_BYTES:
        raise OSError(errno.EMSGSIZE, f"the peer announces a PDU of {n_bytes} bytes")
    deadline = time.monotonic() + timeout_s
    received = bytearray()
    while len(received) < n_bytes:
        if time.monotonic() > deadline:
            raise TimeoutError(f"{len(received)} of {n_bytes} bytes after {timeout_s} s")
        chunk = sock.recv(min(n_bytes - len(received), _CHUNK_BYTES))
        if not chunk:
            break
        received += chunk
    return received
