"""Every acknowledged instance is on disk as it was received; what else lies in the inbox.

References
----------
PS3.10 7.1 (file meta information, whose length is its first element's value).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

from dicom_node.inbox import data_set_start
from dicom_node.invariants.violation import Kind, Seen, Violation
from dicom_node.store.inspection import Entry

_CHUNK_BYTES = 1 << 20


def check(seen: Seen) -> Iterator[Violation]:
    """Yield what is wrong with the files of instances that were answered with Success."""
    for row in seen.rows.instances:
        path = seen.folders.inbox / row.file_name
        wrong = _wrong(path, row, quick=seen.quick)
        if wrong is not None:
            kind, text = wrong
            yield Violation(kind, row.sop_instance_uid, f"inbox/{row.file_name}: {text}")


def inbox_files(inbox: Path) -> set[str]:
    """Return the names of the instances that lie in the inbox, relative to it."""
    return {str(path.relative_to(inbox)) for path in inbox.glob("*/*.dcm")}


def data_set_digest(path: Path) -> str:
    """Return the SHA-256 of the data set behind the file meta information.

    Raises OSError, and ValueError for a file that is not of the inbox.
    """
    start = data_set_start(path)
    with path.open("rb") as stream:
        stream.seek(start)
        found = hashlib.sha256()
        while chunk := stream.read(_CHUNK_BYTES):
            found.update(chunk)
    return found.hexdigest()


def _wrong(path: Path, row: Entry, *, quick: bool) -> tuple[Kind, str] | None:
    """Hold one file against its row: presence, size, content."""
    try:
        size = path.stat().st_size
        if size != row.size_bytes:
            text = f"{size} bytes, received were {row.size_bytes}"
            return Kind.INSTANCE_CHANGED, text
        if quick:
            return None
        found = data_set_digest(path)
    except FileNotFoundError:
        return Kind.INSTANCE_LOST, "the file is not there"
    except OSError as error:
        return Kind.INSTANCE_LOST, f"the file cannot be read: {error.strerror}"
    except ValueError as error:
        return Kind.INSTANCE_CHANGED, str(error)
    if found != row.sha256:
        return Kind.INSTANCE_CHANGED, f"SHA-256 is {found}, received was {row.sha256}"
    return None
