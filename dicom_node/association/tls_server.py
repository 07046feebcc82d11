"""An association server over TLS whose handshakes keep nobody waiting.

The library's own wraps the connection in the thread that accepts all of them, without a time limit:
one silent TCP connection would keep every sender out.
"""

from __future__ import annotations

import select
import socket
import ssl
import threading
import time
from collections.abc import Callable
from typing import Any

from pynetdicom import AE
from pynetdicom.transport import ThreadedAssociationServer

from dicom_node.association import tls

#: for a handshake as a whole, however few bytes a peer sends at a time
_HANDSHAKE_S = 10.0


class TlsServer(ThreadedAssociationServer):  # type: ignore[misc] # the library is not typed
    """Accepts connections at once; each handshake is done in the connection's own thread."""

    #: a handshake under way does not hold up the end of the node
    daemon_threads = True

    def __init__(
        self,
        *arguments: Any,  # noqa: ANN401 - the library's own
        on_failed: Callable[[str, str], None],
        **keywords: Any,  # noqa: ANN401 - the library's own
    ) -> None:
        super().__init__(*arguments, **keywords)
        self._on_failed = on_failed

    def get_request(self) -> tuple[ssl.SSLSocket, Any]:
        """Accept a connection; not a byte is exchanged yet."""
        connection, address = self.socket.accept()
        wrapped = self.ssl_context.wrap_socket(
            connection, server_side=True, do_handshake_on_connect=False
        )
        return wrapped, address

    def process_request_thread(self, request: ssl.SSLSocket, client_address: Any) -> None:  # noqa: ANN401 - IPv4 or IPv6
        """Shake hands, then hand the connection to an association."""
        try:
            shake_hands(request, _HANDSHAKE_S)
        except OSError as error:
            request.close()
            # who closes or says nothing is a port scan or a load balancer's probe, and no sender
            if isinstance(error, ssl.SSLError) and not isinstance(error, ssl.SSLEOFError):
                self._on_failed(str(client_address[0]), tls.reason_of(error))
            return
        super().process_request_thread(request, client_address)


def shake_hands(connection: ssl.SSLSocket, timeout_s: float) -> None:
    """Do a TLS handshake within `timeout_s`; raises TimeoutError or another OSError."""
    deadline = time.monotonic() + timeout_s
    connection.settimeout(0.0)
    while True:
        try:
            connection.do_handshake()
            break
        except ssl.SSLWantReadError:
            waiting: tuple[list[socket.socket], list[socket.socket]] = ([connection], [])
        except ssl.SSLWantWriteError:
            waiting = ([], [connection])
        left = deadline - time.monotonic()
        if left <= 0 or not any(select.select(*waiting, [], left)):
            raise TimeoutError(f"no TLS handshake within {timeout_s:g} s")
    connection.settimeout(timeout_s)


def serve_in_thread(
    entity: AE,
    address: tuple[str, int],
    context: ssl.SSLContext,
    handlers: list[Any],
    on_failed: Callable[[str, str], None],
) -> TlsServer:
    """Listen over TLS without blocking, as the library's ``start_server`` does in plain.

    Parameters
    ----------
    on_failed
        Gets the address of a peer whose handshake failed, and why.

    Raises
    ------
    OSError
        The address cannot be had.
    """
    server: TlsServer = entity.make_server(
        address,
        ssl_context=context,
        evt_handlers=handlers,
        server_class=TlsServer,
        on_failed=on_failed,
    )
    threading.Thread(target=server.serve_forever, daemon=True).start()
    # its shutdown takes it off this list; there is no public way onto it
    entity._servers.append(server)  # noqa: SLF001
    return server
