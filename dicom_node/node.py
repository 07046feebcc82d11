"""Supervisor: config -> processes. Starts the parts, restarts what dies, drains on SIGTERM."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

from dicom_node import durable
from dicom_node.config import NodeConfig
from dicom_node.folders import Folders
from dicom_node.store import database

_log = logging.getLogger(__name__)

#: parts.process.CANNOT_START: not imported, the supervisor knows its parts by module name alone
_CANNOT_START = 78
_DRAIN_S = 60.0
_LONGEST_BACKOFF_S = 60.0


@dataclass(slots=True)
class _Process:
    """One supervised process."""

    name: str
    module: str
    popen: subprocess.Popen[bytes] | None = None
    failures: int = 0
    started: float = 0.0
    not_before: float = field(default=0.0)

    def start(self, config_path: Path) -> None:
        """Start it in a session of its own, so that Ctrl-C reaches the supervisor alone."""
        command = [sys.executable, "-m", f"dicom_node.parts.{self.module}"]
        command += ["--config", str(config_path), "--name", self.name]
        command += ["--parent", str(os.getpid())]
        self.popen = subprocess.Popen(command, start_new_session=True)  # noqa: S603 - our own module
        self.started = time.monotonic()


class Supervisor:
    """Runs all parts of a node."""

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
        """Run until SIGTERM or SIGINT; returns the exit status (1 when a part cannot start)."""
        self._folders.create()
        durable.sweep(self._folders.root)
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
        """Start the process where it does not run; returns False when it cannot start at all."""
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
        """Wait longer before each new start; a process that had run for a while starts afresh."""
        lasted = time.monotonic() - process.started
        process.failures = 1 if lasted > _LONGEST_BACKOFF_S else process.failures + 1
        delay = min(_LONGEST_BACKOFF_S, 0.5 * 2 ** (process.failures - 1))
        process.not_before = time.monotonic() + delay
        process.popen = None
        _log.error("%s ended with status %s; next start in %.1f s", process.name, code, delay)

    def _drain(self) -> None:
        """Let every part finish what it has in hand, then make sure that none is left."""
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
