"""Supervisor: config -> processes. Starts the parts, restarts what dies, drains on SIGTERM.

It must outlive every part, so it does none of their work and imports none of them: no torch, no
socket, the ledger only to migrate it before anybody opens it. Parts are processes rather than
threads, so that a crash in native code, or the kernel's memory killer, costs one of them.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from dicom_node import durable, recovery
from dicom_node.config import NodeConfig
from dicom_node.errors import ConfigError
from dicom_node.folders import Folders
from dicom_node.store import database

_log = logging.getLogger(__name__)

#: parts.process.CANNOT_START: not imported, the supervisor knows its parts by module name alone
_CANNOT_START = 78
#: for all parts together, below systemd's default of 90 s before it kills
_DRAIN_S = 60.0
_LOCK = "node.lock"
#: between two starts of a part, and how long one must run to count as sound
_LONGEST_BACKOFF_S = 60.0


@dataclass(slots=True)
class _Process:
    """One supervised process and its history; moments are of the monotonic clock."""

    #: of the part in the log: "worker-1"
    name: str
    #: below ``dicom_node.parts``
    module: str
    #: None before the first start, and while the next one is put off
    popen: subprocess.Popen[bytes] | None = None
    #: ends in a row, each soon after its start
    failures: int = 0
    started: float = 0.0
    not_before: float = field(default=0.0)

    def command(self, config_path: Path) -> list[str]:
        """Return how it is started; the part is told who its supervisor is."""
        command = [sys.executable, "-m", f"dicom_node.parts.{self.module}"]
        command += ["--config", str(config_path), "--name", self.name]
        return [*command, "--parent", str(os.getpid())]

    def start(self, config_path: Path) -> None:
        """Start it in a session of its own, so that Ctrl-C reaches the supervisor alone."""
        self.popen = subprocess.Popen(self.command(config_path), start_new_session=True)  # noqa: S603 - our own module
        self.started = time.monotonic()


@contextlib.contextmanager
def alone(root: Path) -> Iterator[None]:
    """Hold the data folder while the block runs; raises ConfigError when another node does.

    A second node would sweep away what the first is writing and close its associations in the
    ledger, before it found the ports taken. The kernel lets go of the lock when the process ends,
    however it ends; the parts do not inherit it.
    """
    with (root / _LOCK).open("w", encoding="ascii") as held:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConfigError(
                f"node.data_dir: a node runs on {root} already; stop it, or name another folder"
            ) from error
        yield


class Supervisor:
    """Runs all parts of a node; they read the file at `config_path` for themselves."""

    def __init__(self, config: NodeConfig, config_path: Path) -> None:
        self._config_path = config_path
        self._folders = Folders(config.node.data_dir)
        self._processes = [
            _Process("receiver", "receiver"),
            _Process("control", "control"),
            _Process("dispatcher", "dispatcher"),
            *(_Process(f"worker-{n}", "scorer") for n in range(1, config.scoring.workers + 1)),
        ]
        self._stop = threading.Event()

    def run(self) -> int:
        """Run until SIGTERM or SIGINT, from the main thread, whose signals it takes.

        Returns
        -------
        The exit status: 0 after a signal, 1 when a part cannot start as configured. All parts have
        ended by then.

        Raises
        ------
        ConfigError
            The data folder cannot be made, or another node runs on it.
        """
        self._folders.create()
        with alone(self._folders.root):
            return self._supervise()

    def _supervise(self) -> int:
        """Bring files and ledger in order, then keep all parts up until told to stop."""
        # before any part runs: what is half written now is nobody's
        durable.sweep(self._folders.root)
        recovery.recover(self._folders)
        database.migrate(self._folders.database)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: self._stop.set())
        status = 0
        while not self._stop.is_set():
            if not all(self._keep_up(process) for process in self._processes):
                status = 1
                break
            self._stop.wait(0.2)
        self._drain()
        return status

    def _keep_up(self, process: _Process) -> bool:
        """Start the process where it does not run; returns False when it cannot start at all.

        Such a part has said why. To start it again would only repeat that, and to go on without it
        would be a node that looks healthy and, say, delivers nothing.
        """
        code = None if process.popen is None else process.popen.poll()
        if process.popen is not None and code is None:
            return True
        if code == _CANNOT_START:
            _log.critical("%s cannot start (its reason is above); the node stops", process.name)
            return False
        if process.popen is not None:
            self._note_death(process, code)
        if time.monotonic() >= process.not_before:
            process.start(self._config_path)
        return True

    def _note_death(self, process: _Process, code: int | None) -> None:
        """Wait longer before each new start; a process that had run for a while starts afresh.

        0.5 s, 1 s, 2 s, ... up to a minute: a part that dies at once must not fill log and machine.
        """
        lasted = time.monotonic() - process.started
        process.failures = 1 if lasted > _LONGEST_BACKOFF_S else process.failures + 1
        delay = min(_LONGEST_BACKOFF_S, 0.5 * 2 ** (process.failures - 1))
        process.not_before = time.monotonic() + delay
        process.popen = None
        _log.error("%s ended with status %s; next start in %.1f s", process.name, code, delay)

    def _drain(self) -> None:
        """Let every part finish what it has in hand, then make sure that none is left.

        A job may take longer than there is time; its lease runs out and it is taken up again.
        """
        running = [
            p.popen for p in self._processes if p.popen is not None and p.popen.poll() is None
        ]
        for popen in running:
            popen.terminate()
        deadline = time.monotonic() + _DRAIN_S
        for popen in running:
            try:
                popen.wait(timeout=max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                _log.error("process %d does not end; killed (its job is taken up again)", popen.pid)
                popen.kill()
                popen.wait()
