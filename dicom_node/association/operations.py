"""One operation of Query/Retrieve on an association: its request, its responses, and their end.

The library's generators end quietly or with exceptions of every kind when a peer is silent, aborts,
or answers what is no answer; here all of that is one error that names the peer.

References
----------
PS3.4 C.4.1 (C-FIND), C.4.2 (C-MOVE), C.4.3 (C-GET); PS3.7 9.1.2 to 9.1.4.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

from pydicom.dataset import Dataset
from pynetdicom.association import Association

from dicom_node.association.requestor import Peer
from dicom_node.errors import AssociationLost
from dicom_node.header import DAMAGED

SUCCESS, CANCELLED = 0x0000, 0xFE00
#: more to come; and the same with keys that were not supported (PS3.4 C.4.1.1.4)
PENDING = (0xFF00, 0xFF01)
#: for the association's own thread to come to rest, which it does every millisecond
_REST_S = 10.0
#: by high byte, for peers that send no Error Comment
_MEANINGS = {
    0x01: "refused or not authorized",
    0xA7: "out of resources",
    0xA9: "the identifier does not match the SOP Class",
    0xC0: "unable to process",
    0xFE: "cancelled",
}

Response = tuple[Dataset, Dataset | None]


def responses(
    assoc: Association, peer: Peer, what: str, ask: Callable[[], Iterator[Response]]
) -> Iterator[Response]:
    """Send a request and yield its responses: a status that is there, and an identifier or None.

    Parameters
    ----------
    what
        The operation, for messages: "C-FIND".
    ask
        Calls the library, which sends the request at once.

    Raises
    ------
    AssociationLost
        The association has ended, the next response did not come in time, or was none.
    """
    lost = AssociationLost(f"{peer} did not answer {what}", destination=peer.name)
    _rest(assoc, lost)
    try:
        for status, identifier in ask():
            if "Status" not in status:
                raise lost
            yield status, identifier
    # the association ended before the call, or what came cannot be read
    except (RuntimeError, *DAMAGED) as error:
        raise lost from error


def _rest(assoc: Association, lost: AssociationLost) -> None:
    """Wait until the association's own thread rests, as the library does, but not for ever.

    When the peer ends the association at that moment, the library would wait for a thread that is
    gone.
    """
    resume, deadline = assoc._reactor_checkpoint, time.monotonic() + _REST_S  # noqa: SLF001
    resume.clear()
    while not assoc._is_paused:  # noqa: SLF001 - there is no public way to know
        if not (assoc.is_established and assoc.is_alive()) or time.monotonic() > deadline:
            resume.set()
            raise lost
        time.sleep(0.0005)


def meaning(status: Dataset) -> str:
    """Return a status in words: the peer's own comment, or what the standard says of the code."""
    code = int(status.Status)
    comment = str(status.get("ErrorComment", "")).strip()
    return f"0x{code:04X} ({comment or _MEANINGS.get(code >> 8, 'a failure')})"
