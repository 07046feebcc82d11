"""Look at ledger and disk, beside a node that works: what is wrong in two looks is wrong.

The ledger is read in one transaction, the disk after it. Files come before their rows, so a row
without a file is no race; a job under way, or a file that is put back, may still be caught in
between. Hence a second look, with a new snapshot, before anything is said.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

from dicom_node.config import NodeConfig
from dicom_node.errors import DatabaseUnavailable
from dicom_node.folders import Folders
from dicom_node.invariants import received, references, sent, work
from dicom_node.invariants.violation import Kind, Seen, Violation
from dicom_node.store import inspection
from dicom_node.store.database import Database

#: before the second look: longer than a file is on its way to its row
_PAUSE_S = 1.0


@dataclass(frozen=True, slots=True)
class Verified:
    """What was found."""

    violations: tuple[Violation, ...]
    #: files of the inbox without a row: no Success was answered for them, so nothing is lost
    strays: tuple[str, ...]
    n_instances: int
    n_jobs: int
    n_results: int
    n_deliveries: int


def verify(config: NodeConfig, database: Database, *, quick: bool = False) -> Verified:
    """Check every invariant; a ledger that cannot be read is a violation too.

    Parameters
    ----------
    quick
        Leaves out the digests of received instances, which read all that was ever received.
    """
    first = _look(config, database, quick=quick)
    if not first.violations and not first.strays:
        return first
    time.sleep(_PAUSE_S)
    again = _look(config, database, quick=quick)
    return Verified(
        tuple(one for one in first.violations if one in set(again.violations)),
        tuple(one for one in first.strays if one in set(again.strays)),
        again.n_instances,
        again.n_jobs,
        again.n_results,
        again.n_deliveries,
    )


def _look(config: NodeConfig, database: Database, *, quick: bool) -> Verified:
    """Look once."""
    folders = Folders(config.node.data_dir)
    # before the ledger: what comes in between has its row, and is no stray
    files = received.inbox_files(folders.inbox)
    try:
        with database.read() as db:
            damage, rows = inspection.damage(db), inspection.snapshot(db)
    except DatabaseUnavailable as error:
        found = Violation(Kind.LEDGER_DAMAGED, folders.database.name, str(error))
        return Verified((found,), (), 0, 0, 0, 0)
    seen = Seen(rows, folders, config.destinations, quick)
    violations = [Violation(Kind.LEDGER_DAMAGED, folders.database.name, text) for text in damage]
    for module in (received, work, sent, references):
        violations.extend(module.check(seen))
    strays = files - {row.file_name for row in rows.instances}
    return Verified(
        tuple(violations),
        tuple(sorted(strays)),
        len(rows.instances),
        len(rows.jobs),
        len(rows.results),
        len(rows.deliveries),
    )
