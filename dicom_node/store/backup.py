"""Copies of the ledger: made of one moment while the node writes, checked, newest first.

References
----------
SQLite documentation: Online Backup API, PRAGMA quick_check; Write-Ahead Logging (the log and the
shared-memory file belong to the file beside which they lie).
"""

from __future__ import annotations

import sqlite3
from contextlib import closing
from datetime import datetime
from pathlib import Path

from dicom_node import durable
from dicom_node.errors import DatabaseUnavailable

_PREFIX, _SUFFIX = "ledger-", ".sqlite"
#: what belongs to a ledger in WAL mode, beside the file itself
_COMPANIONS = ("-wal", "-shm", "-journal")


def make(ledger: Path, folder: Path, keep: int, at: datetime) -> Path:
    """Copy the ledger as it is at one moment, durably, and drop all but the newest `keep` copies.

    Writers go on meanwhile. A copy that is not sound is not kept, and no older one is dropped for
    it.

    Raises
    ------
    DatabaseUnavailable
        The ledger cannot be read, or is damaged.
    OSError
        The disk is full or read-only.
    """
    durable.make_folder(folder)
    target = folder / f"{_PREFIX}{at:%Y%m%dT%H%M%S%fZ}{_SUFFIX}"
    with durable.replacing(target) as partial:
        try:
            with (
                closing(sqlite3.connect(ledger)) as source,
                closing(sqlite3.connect(partial)) as copy,
            ):
                source.backup(copy)
                # one file that needs nothing beside it
                copy.execute("PRAGMA journal_mode=DELETE")
        except sqlite3.Error as error:
            raise DatabaseUnavailable(f"the ledger cannot be copied: {error}") from error
        wrong = damage(partial)
        if wrong:
            raise DatabaseUnavailable(f"the ledger is damaged, no copy is kept: {wrong}")
    for old in copies(folder)[keep:]:
        old.unlink(missing_ok=True)
    return target


def copies(folder: Path) -> list[Path]:
    """Return the copies there are, the newest first."""
    # the moment in the name sorts as it passes
    return sorted(folder.glob(f"{_PREFIX}*{_SUFFIX}"), reverse=True)


def damage(path: Path) -> str:
    """Return what is wrong with a ledger file, empty where it is sound.

    Raises DatabaseUnavailable where that cannot be known now: another process holds it, or it may
    not be read.
    """
    try:
        with closing(sqlite3.connect(path)) as opened:
            (found,) = opened.execute("PRAGMA quick_check(1)").fetchone()
            known = opened.execute("SELECT 1 FROM sqlite_master WHERE name = 'instance'").fetchone()
    except sqlite3.DatabaseError as error:
        if isinstance(error, sqlite3.OperationalError) and not _is_damage(error):
            raise DatabaseUnavailable(f"the ledger {path} cannot be opened: {error}") from error
        return str(error)
    if found != "ok":
        # its own words are of several lines
        return str(found).splitlines()[0]
    return "" if known else "it holds no tables of this node"


def _is_damage(error: sqlite3.OperationalError) -> bool:
    """Tell a damaged file from one that is locked, or that this user may not read."""
    code = (error.sqlite_errorcode or 0) & 0xFF
    return code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR)


def set_aside(ledger: Path, at: datetime) -> Path | None:
    """Rename a ledger, with its log, so that somebody may look at it; returns its new path.

    None where there is none.
    """
    aside = ledger.with_name(f"{ledger.name}.damaged-{at:%Y%m%dT%H%M%S%fZ}")
    for end in _COMPANIONS:
        # first: beside a restored file the old log would be played into it
        beside = ledger.with_name(ledger.name + end)
        if beside.exists():
            beside.replace(aside.with_name(aside.name + end))
    there = ledger.exists()
    if there:
        ledger.replace(aside)
    durable.sync_folder(ledger.parent)
    return aside if there else None


def remove(ledger: Path) -> None:
    """Remove what a killed recovery left half made."""
    for end in ("", *_COMPANIONS):
        ledger.with_name(ledger.name + end).unlink(missing_ok=True)


def fold(ledger: Path) -> None:
    """Make a ledger that nobody has open one file without a log beside it, and durable."""
    with closing(sqlite3.connect(ledger)) as opened:
        opened.execute("PRAGMA synchronous=FULL")
        opened.execute("PRAGMA journal_mode=DELETE")
    durable.sync_file(ledger)


def put_back(copy: Path, ledger: Path) -> None:
    """Make a copy the ledger, whole or not at all; the copy stays."""
    durable.write(ledger, copy.read_bytes())
