"""Which processes of a node run on this machine, and which ports are listened on.

Read from ``/proc`` alone: nothing is connected to, for the receiver would record each visit, and no
lock is tried, for a node that starts at that moment would find it held.
"""

from __future__ import annotations

import os
from itertools import pairwise
from pathlib import Path

_PARTS = "dicom_node.parts."
#: state of a socket that listens (Linux, include/net/tcp_states.h)
_LISTEN = "0A"
_PROC = Path("/proc")


def holder(lock: Path) -> int | None:
    """Return the process that holds a file by flock(2), None where none does.

    Of a process that this user may not see the number is 0 or another's.
    """
    try:
        found = lock.stat()
    except OSError:
        return None
    device = f"{os.major(found.st_dev):02x}:{os.minor(found.st_dev):02x}:{found.st_ino}"
    for line in _lines(_PROC / "locks"):
        words = line.split()
        # "1: FLOCK  ADVISORY  WRITE 4711 fe:00:123 0 EOF"; "->" marks one that waits
        if len(words) >= 6 and words[1] == "FLOCK" and words[5] == device:
            return int(words[4])
    return None


def parts_of(supervisor: int) -> frozenset[str]:
    """Return the names of the parts that a supervisor has running: "receiver", "worker-1", ...

    As they stand in the parts' own command lines.
    """
    found = set()
    for folder in _PROC.iterdir():
        if folder.name.isdecimal():
            words = _command(folder)
            if _after(words, "--parent") == str(supervisor):
                found.add(_after(words, "--name") if _is_part(words) else "")
    return frozenset(found - {""})


def _is_part(words: list[str]) -> bool:
    return _after(words, "-m").startswith(_PARTS)


def _after(words: list[str], option: str) -> str:
    """Return the word after `option`, empty where there is none."""
    return next((value for name, value in pairwise(words) if name == option), "")


def _command(folder: Path) -> list[str]:
    """Return the command line of a process; empty of one that has ended or is another user's."""
    try:
        return (folder / "cmdline").read_bytes().decode("utf-8", "replace").split("\0")
    except OSError:
        return []


def listening_ports() -> frozenset[int]:
    """Return the TCP ports that some process listens on, whatever the address."""
    found = set()
    for table in ("tcp", "tcp6"):
        for line in _lines(_PROC / "net" / table)[1:]:
            words = line.split()
            if len(words) > 3 and words[3] == _LISTEN:
                found.add(int(words[1].rpartition(":")[2], 16))
    return frozenset(found)


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text("ascii", "replace").splitlines()
    except OSError:
        return []
