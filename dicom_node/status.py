"""The state of the node as plain values: what `status` prints and a script reads.

Read from the ledger alone, so that it tells as much of a node that is down.
"""

from __future__ import annotations

from typing import Any

from dicom_node import __version__, clock
from dicom_node.store import (
    found_table,
    job_table,
    outcomes,
    part_table,
    reference_table,
    result_table,
    series_table,
    warning_table,
)
from dicom_node.store.database import Database

#: the newest of each kind of trouble; the ledger keeps all
_FAULTS, _UNFINISHED, _REFUSALS = 20, 50, 20


def collect_status(database: Database) -> dict[str, Any]:
    """Return counts per state, and what needs a look, newest first; JSON can hold all of it.

    All counts are of one moment: one read transaction. Texts are UIDs, AE titles and reasons as
    they were recorded.

    Raises DatabaseUnavailable.
    """
    with database.read() as db:
        unfinished = job_table.unfinished(db, _UNFINISHED)
        named = part_table.names(db, [job.series_instance_uid for job in unfinished])
        return {
            "version": __version__,
            "at": clock.stamp(clock.now()),
            "received": series_table.counts(db),
            "jobs": job_table.counts(db),
            "reference": _joined(reference_table.counts(db)),
            "delivery": _joined(result_table.delivery_counts(db)),
            "ticks": found_table.ticks(db),
            "outcomes": [
                {"protocol": protocol or None, "outcome": outcome, "fault": fault or None, "n": n}
                for (protocol, outcome, fault), n in outcomes.counts(db).items()
            ],
            "warnings": [
                {
                    "protocol": row.protocol,
                    "kind": row.kind,
                    "scanner": row.scanner,
                    "software": row.software,
                    "text": row.text,
                    "first_seen": row.first_seen,
                    "last_seen": row.last_seen,
                    "count": row.n_looks,
                }
                for row in warning_table.open_warnings(db)
            ],
            "delivery_faults": [
                {"destination": f.destination, "state": f.state, "n": f.n, "reason": f.reason}
                for f in result_table.delivery_faults(db, _FAULTS)
            ],
            "unfinished": [
                {
                    "series": job.series_instance_uid,
                    "part": named.get((job.series_instance_uid, job.revision, job.part)),
                    "stage": job.stage.value,
                    "state": job.state.value,
                    "reason": job.reason,
                }
                for job in unfinished
            ],
            "refusals": [
                {"from": row.calling_ae_title, "at": row.happened, "reason": row.reason}
                for row in series_table.recent_refusals(db, _REFUSALS)
            ],
        }


def _joined(counts: dict[tuple[str, str], int]) -> dict[str, int]:
    """Name each count by one string: JSON has no other keys."""
    return {" ".join(key): number for key, number in counts.items()}
