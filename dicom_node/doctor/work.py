"""What waits for a person in the ledger: dead letters, failed jobs, open warnings."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from dicom_node.config import NodeConfig
from dicom_node.doctor.checks import Check, Said, failed, note, ok
from dicom_node.folders import Folders
from dicom_node.jobs import DeliveryState, JobState
from dicom_node.store import ledger_counts, warning_table
from dicom_node.store.database import Database

_NOTHING = "there is no ledger yet"


def checks(settings: NodeConfig) -> list[Check]:
    """Return what is looked at in the ledger."""
    path = Folders(settings.node.data_dir).database
    return [
        Check("work", "dead letters", lambda: asked(path, dead_letters)),
        Check("work", "failed jobs", lambda: asked(path, failed_jobs)),
        Check("work", "open warnings", lambda: asked(path, open_warnings)),
    ]


def asked(path: Path, of: Callable[[Database], Said]) -> Said:
    """Ask the ledger where there is one; raises DatabaseUnavailable."""
    if not path.exists():
        return note(_NOTHING)
    database = Database(path, 5.0)
    try:
        return of(database)
    finally:
        database.close()


def dead_letters(database: Database) -> Said:
    """Count objects that no destination will get unless somebody decides."""
    with database.read() as db:
        open_now = ledger_counts.open_deliveries(db)
    dead = {
        destination: n
        for (destination, state), n in open_now.items()
        if state == DeliveryState.DEAD.value
    }
    if dead:
        named = ", ".join(f"{n} for {destination}" for destination, n in sorted(dead.items()))
        return failed(
            f"objects are set aside: {named}",
            "Read the reasons with dicom-node status, put them right, then run: dicom-node retry",
        )
    return ok("no object is set aside")


def failed_jobs(database: Database) -> Said:
    """Count jobs whose attempts are used up; what was rejected is the data's fault and no fault."""
    n_of = {"failed": 0, "rejected": 0}
    with database.read() as db:
        open_now = ledger_counts.open_jobs(db)
    for (_stage, state), n in open_now.items():
        if state in n_of:
            n_of[state] += n
    if n_of[JobState.FAILED.value]:
        return failed(
            f"{n_of['failed']} jobs have failed",
            "Read the reasons with dicom-node status, put them right, then run: dicom-node retry",
        )
    return ok(f"no job has failed; {n_of['rejected']} series were rejected for what they are")


def open_warnings(database: Database) -> Said:
    """Say which warnings of the drift watch are open."""
    with database.read() as db:
        found = warning_table.open_warnings(db)
    if not found:
        return ok("no warning is open")
    named = sorted({f"{row.kind} of {row.protocol}" for row in found})
    return note(", ".join(named), "Read what to do with dicom-node status.")
