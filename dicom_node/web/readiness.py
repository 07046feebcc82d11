"""Whether the node can do its work now, told without disturbing it.

Nothing is connected to: the receiver would record each probe as an association or a refusal. The
processes and the ports are read from ``/proc``.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator

from dicom_node import processes
from dicom_node.config import NodeConfig
from dicom_node.errors import DatabaseUnavailable
from dicom_node.store import ledger_counts
from dicom_node.store.database import Database


def siblings() -> frozenset[str]:
    """Return the parts that run under the supervisor of this process."""
    return processes.parts_of(os.getppid())


class Readiness:
    """Asks each time anew."""

    def __init__(
        self,
        config: NodeConfig,
        database: Database,
        parts: Callable[[], frozenset[str]] = siblings,
        ports: Callable[[], frozenset[int]] = processes.listening_ports,
    ) -> None:
        self._config, self._database = config, database
        self._parts, self._ports = parts, ports

    def faults(self) -> list[str]:
        """Return why the node is not ready, one sentence each; empty: it is."""
        return [*self._of_parts(), *self._of_ports(), *self._of_disk(), *self._of_ledger()]

    def _of_parts(self) -> Iterator[str]:
        workers = [f"worker-{n}" for n in range(1, self._config.scoring.workers + 1)]
        running = self._parts()
        for name in ("receiver", "dispatcher", *workers):
            if name not in running:
                yield f"{name} does not run"

    def _of_ports(self) -> Iterator[str]:
        receiver = self._config.receiver
        wanted = [receiver.port] if receiver.plain else []
        wanted += [receiver.tls.port] if receiver.tls else []
        for port in sorted(set(wanted) - self._ports()):
            yield f"nobody listens on port {port}"

    def _of_disk(self) -> Iterator[str]:
        reserve = self._config.storage.reserve
        free = shutil.disk_usage(self._config.node.data_dir).free
        if free < reserve:
            yield f"{free} bytes are free, storage.reserve is {reserve}"

    def _of_ledger(self) -> Iterator[str]:
        try:
            with self._database.read() as db:
                ledger_counts.n_associations(db)
        except DatabaseUnavailable as error:
            yield str(error)
