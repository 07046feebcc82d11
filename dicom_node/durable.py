"""Files that are whole or absent, also after a power cut: temporary name, sync, rename, sync.

A stage that finds a file may trust it, and C-STORE is answered with success only once the instance
would survive. It relies on rename being atomic within one file system (POSIX), so the temporary
file lies beside its target.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

#: of a file that is being written; what a killed process left under it is worth nothing
PARTIAL_SUFFIX = ".part"
#: no file is under way for so long
ABANDONED_S = 3600.0


def write(target: Path, *chunks: bytes) -> None:
    """Write `chunks` one after the other as `target`, readable by the node's user alone.

    The folder must exist. Several chunks save the copy that joining a large one to a small one
    would take.

    Raises
    ------
    OSError
        No space, no right: nothing is left behind, and an old `target` stays as it was.
    """
    with replacing(target) as partial:
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as stream:
            for chunk in chunks:
                stream.write(chunk)


@contextlib.contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """Yield a path beside `target`; the file that the block writes there takes its place.

    For libraries that write to a path of their own accord. Two writers of one target each have a
    path of their own, and the last to end wins. An exception of the block leaves the old content of
    `target` as it was.
    """
    # random: a process number may come again, and a killed writer left its file behind
    partial = target.with_name(f"{target.name}.{uuid4().hex}{PARTIAL_SUFFIX}")
    try:
        yield partial
        # through a descriptor of our own: the library's is closed, and its mode is the umask's
        descriptor = os.open(partial, os.O_RDONLY)
        try:
            os.fchmod(descriptor, 0o600)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        partial.replace(target)
    except BaseException:  # KeyboardInterrupt too: a half file must not outlive a stop
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise
    sync_folder(target.parent)


def sync_file(path: Path) -> None:
    """Make what a library wrote to `path` survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_folder(folder: Path) -> None:
    """Make the names in `folder` survive a power cut: a rename alone does not."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_folder(folder: Path) -> None:
    """Make `folder` and its parents for the node's user alone, so that they survive a power cut."""
    if folder.is_dir():
        return
    make_folder(folder.parent)
    folder.mkdir(mode=0o700, exist_ok=True)
    sync_folder(folder.parent)


def sweep(root: Path, age_s: float = 0.0) -> int:
    """Remove what killed processes left half written below `root`; returns how many files.

    A partial file does not show whether its writer lives: where somebody may be writing, only those
    are removed that were touched last more than `age_s` ago.
    """
    now, removed = time.time(), 0
    for path in root.rglob(f"*{PARTIAL_SUFFIX}"):
        with contextlib.suppress(FileNotFoundError):  # renamed meanwhile: it was under way
            if now - path.stat().st_mtime >= age_s:
                path.unlink()
                removed += 1
    return removed
