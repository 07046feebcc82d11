"""Files that are whole or absent, also after a power cut: temporary name, sync, rename, sync."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

#: of a file that is being written; what a killed process left under it is worth nothing
PARTIAL_SUFFIX = ".part"


def write(target: Path, *chunks: bytes) -> None:
    """Write `chunks` one after the other as `target`, readable by the node's user alone.

    The folder must exist. Raises OSError (no space, no right); nothing is left behind then.
    """
    with replacing(target) as partial:
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as stream:
            for chunk in chunks:
                stream.write(chunk)


@contextlib.contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """Yield a path beside `target`; the file that the block writes there takes its place.

    Two writers of one target each have a path of their own, and the last to end wins. An exception
    of the block leaves the old content of `target` as it was.
    """
    partial = target.with_name(f"{target.name}.{uuid4().hex}{PARTIAL_SUFFIX}")
    try:
        yield partial
        descriptor = os.open(partial, os.O_RDONLY)
        try:
            os.fchmod(descriptor, 0o600)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        partial.replace(target)
    except BaseException:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise
    sync_folder(target.parent)


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


def sweep(root: Path) -> int:
    """Remove what killed processes left half written below `root`; returns how many files."""
    stale = list(root.rglob(f"*{PARTIAL_SUFFIX}"))
    for path in stale:
        path.unlink(missing_ok=True)
    return len(stale)
