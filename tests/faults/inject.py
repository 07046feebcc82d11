"""Faults: each strikes at the n-th effect of the node, so that a seed repeats it.

An effect is what another process could see, or the next life: a statement of the ledger and its
commit, a sync, a name that is made, changed or removed. What happens between two of them is lost
with the process, so that to be killed there is to be killed at the first of them.
"""

import errno
import os
import signal
import sqlite3
import sys

import sqlalchemy.exc
from sqlalchemy import Engine, event

_AUDITED = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate"}
_STATEMENTS = ("before_cursor_execute", "after_cursor_execute", "commit", "rollback")


class Effects:
    """Counts the effects of one life; begun once, in the process that lives it.

    The base itself strikes never: it is how an undisturbed life is counted.
    """

    def __init__(self, at: int = 0):
        self.at, self.n = at, 0
        self._on = False

    def start(self):
        self._on = True
        self._fsync, os.fsync = os.fsync, self._sync
        for name in _STATEMENTS:
            event.listen(Engine, name, lambda *_, name=name: self._effect(name))
        sys.addaudithook(self._audit)

    def stop(self):
        self._on = False

    def _audit(self, name, _arguments):
        if name in _AUDITED:
            self._effect(name)

    def _sync(self, descriptor):
        self._effect("fsync")
        self._fsync(descriptor)
        self._effect("fsynced")

    def _effect(self, name):
        if self._on and self.counts(name):
            self.n += 1
            self.reached()

    def counts(self, _name) -> bool:
        """Whether this kind of fault can strike there."""
        return True

    def reached(self):
        """Strike if it is time."""


class Kill(Effects):
    """kill -9."""

    def reached(self):
        if self.n == self.at:
            os.kill(os.getpid(), signal.SIGKILL)


class OutOfMemory(Effects):
    """An allocation fails."""

    def reached(self):
        if self.n == self.at:
            raise MemoryError("injected")


class DiskFull(Effects):
    """From the n-th sync on some more fail: ENOSPC, until somebody makes room."""

    n_times = 4

    def counts(self, name):
        return name == "fsync"

    def reached(self):
        if self.at and self.at <= self.n < self.at + self.n_times:
            raise OSError(errno.ENOSPC, "injected: no space left on device")


class Locked(Effects):
    """From the n-th statement on some more fail: another writer holds the ledger."""

    n_times = 3

    def counts(self, name):
        return name == "before_cursor_execute"

    def reached(self):
        if self.at and self.at <= self.n < self.at + self.n_times:
            fault = sqlite3.OperationalError("injected: database is locked")
            raise sqlalchemy.exc.OperationalError("a statement", None, fault)


KINDS = {"kill": Kill, "memory": OutOfMemory, "disk full": DiskFull, "locked": Locked}
