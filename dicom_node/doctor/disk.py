"""The disk under the data folder: space, synced writing, and who may read."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

from dicom_node import durable
from dicom_node.config import NodeConfig
from dicom_node.doctor.checks import Check, Said, failed, note, ok
from dicom_node.folders import Folders

#: every instance that is received is synced: slower than this is felt by every sender
_SLOW_S = 0.5
#: as much as a large examination and what is made of it
_PROBE = b"dicom-node doctor" * 4096


def checks(settings: NodeConfig) -> list[Check]:
    """Return what is looked at on the disk."""
    root, reserve = settings.node.data_dir, settings.storage.reserve
    return [
        Check("disk", "disk space", lambda: space(root, reserve)),
        Check("disk", "disk write", lambda: synced_write(root)),
        Check("disk", "disk permissions", lambda: permissions(root)),
    ]


def space(root: Path, reserve: int) -> Said:
    """Compare what is free with `storage.reserve`, below which the receiver refuses."""
    free = shutil.disk_usage(existing(root)).free
    text = f"{gib(free)} free at {root}, storage.reserve is {gib(reserve)}"
    if free < reserve:
        return failed(
            text + ": C-STORE is refused",
            f"Free at least {gib(reserve - free)} there, or lower storage.reserve.",
        )
    if free < 2 * reserve:
        return note(text + ": reception stops soon", "Make room on that disk.")
    return ok(text)


def synced_write(root: Path) -> Said:
    """Write a file as the inbox does, read it back and remove it."""
    folder = existing(root)
    probe = folder / f"doctor-{uuid4().hex}{durable.PARTIAL_SUFFIX}"
    remedy = f"Let the node's user write to {folder}, on a disk that is mounted for writing."
    if folder != root:
        if not os.access(folder, os.W_OK | os.X_OK):
            return failed(f"{root} is not there and cannot be made in {folder}", remedy)
        return note(f"{root} is not there yet; the node makes it when it starts")
    started = time.monotonic()
    try:
        durable.write(probe, _PROBE)
        whole = probe.read_bytes() == _PROBE
    except OSError as error:
        return failed(f"{root} cannot be written: {error.strerror}", remedy)
    finally:
        probe.unlink(missing_ok=True)
    return _written(root, time.monotonic() - started, whole=whole)


def _written(root: Path, seconds: float, *, whole: bool) -> Said:
    if not whole:
        return failed(f"what was written to {root} reads otherwise", "Check that disk's health.")
    text = f"a synced write of {len(_PROBE) >> 10} KiB to {root} takes {seconds * 1e3:.0f} ms"
    if seconds > _SLOW_S:
        return note(text, "Put node.data_dir on a faster local disk: each instance is synced.")
    return ok(text)


def permissions(root: Path) -> Said:
    """Look for what others than the node's user may read: it is patient data."""
    if not root.exists():
        return note(f"{root} is not there yet; the node makes it with the rights 0700")
    open_to_others = [path for path in _guarded(root) if path.stat().st_mode & 0o077]
    if open_to_others:
        worst = open_to_others[0]
        right = "0700" if worst.is_dir() else "0600"
        others = f" (and {len(open_to_others) - 1} more)" if len(open_to_others) > 1 else ""
        return failed(
            f"others than its owner may read {worst}{others}, which holds patient data",
            f"Run: chmod {right} {worst}",
        )
    owner = root.stat().st_uid
    if owner != os.geteuid():
        return note(f"{root} belongs to user {owner}, and doctor runs as {os.geteuid()}")
    return ok(f"{root} is for its owner alone")


def _guarded(root: Path) -> Iterator[Path]:
    """Yield the folders that must be 0700 and the files that must be 0600."""
    yield root
    folders = Folders(root)
    yield from (folder for folder in (folders.inbox, folders.results) if folder.is_dir())
    yield from sorted(root.glob(f"{folders.database.name}*"))


def existing(path: Path) -> Path:
    """Return the nearest folder above that exists, `path` itself where it does."""
    while not path.exists():
        path = path.parent
    return path


def gib(n_bytes: float) -> str:
    """Write a size in GiB."""
    return f"{n_bytes / 2**30:.1f} GiB"
