"""A plain Storage SCP that keeps what it gets: the demonstration's archive when there is none.

It stands in for a PACS on the loopback interface and must not be used as one: it checks nothing,
syncs nothing, and answers no query.
"""

from __future__ import annotations

import logging
import re
from hashlib import sha256
from pathlib import Path
from typing import Any

from pynetdicom import AllStoragePresentationContexts, evt
from pynetdicom.events import Event
from pynetdicom.sop_class import Verification

from dicom_node.association import sockets
from dicom_node.association.contexts import storage_contexts
from dicom_node.association.entity import application_entity
from dicom_node.errors import PartFailed, StoreStatus

_log = logging.getLogger(__name__)

_TIMEOUT_S = 30.0
#: digits and dots alone, no empty component: nothing that a file system could read as a path
_UID = re.compile(r"[0-9]+(\.[0-9]+)*")


class StorageCollector:
    """Accepts every storage SOP Class; writes ``<folder>/<series>/<instance>.dcm``.

    Callers are not held to its AE title. Port 0 picks a free one.
    """

    def __init__(self, ae_title: str, port: int, folder: Path) -> None:
        self._ae_title = ae_title
        self._port = port
        self._folder = folder
        self._server: Any = None

    def start(self) -> None:
        """Listen on the loopback interface, without blocking; raises PartFailed (port taken)."""
        entity = application_entity(self._ae_title, _TIMEOUT_S)
        entity.supported_contexts = storage_contexts(
            context.abstract_syntax for context in AllStoragePresentationContexts
        )
        entity.add_supported_context(Verification)
        handlers = [*sockets.handlers(_TIMEOUT_S), (evt.EVT_C_STORE, self._on_c_store)]
        try:
            self._server = entity.start_server(
                ("127.0.0.1", self._port), block=False, evt_handlers=handlers
            )
        except OSError as error:
            raise PartFailed(
                f"the archive of the demonstration cannot listen on 127.0.0.1 port {self._port}: "
                f"{error.strerror or error}; choose another port",
                port=self._port,
            ) from error

    @property
    def port(self) -> int:
        """The port it listens on; before `start`, the one it was given."""
        return self._port if self._server is None else int(self._server.server_address[1])

    def stop(self) -> None:
        """Stop listening and abort what is open."""
        if self._server is None:
            return
        server, self._server = self._server, None
        server.shutdown()
        for assoc in server.active_associations:
            assoc.abort()

    def _on_c_store(self, event: Event) -> int:
        """Write one instance as Part 10; a second one of the same UID takes its place."""
        try:
            series = _file_stem(str(event.dataset.get("SeriesInstanceUID", "")))
            folder = self._folder / series
            folder.mkdir(parents=True, exist_ok=True)
            name = f"{_file_stem(str(event.request.AffectedSOPInstanceUID))}.dcm"
            # whoever lists the folder meanwhile sees whole files only
            partial = folder / f"{name}.part"
            partial.write_bytes(event.encoded_dataset())
            partial.replace(folder / name)
        except OSError:
            _log.exception("the archive of the demonstration cannot write to %s", self._folder)
            return int(StoreStatus.OUT_OF_RESOURCES)
        return int(StoreStatus.SUCCESS)


def _file_stem(uid: str) -> str:
    """Return the UID if it is one, else its hash: a name from the wire may point anywhere."""
    if len(uid) <= 64 and _UID.fullmatch(uid):
        return uid
    return sha256(uid.encode()).hexdigest()
