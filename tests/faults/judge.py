"""What must hold when the work is done, whatever happened on the way."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, select

from dicom_node.config import NodeConfig
from dicom_node.folders import Folders
from dicom_node.invariants import check
from dicom_node.store.database import Database
from dicom_node.store.tables import delivery, instance, job, member, result, score, series


@dataclass(frozen=True)
class Witness:
    """What sender and archive remember."""

    #: SOP Instance UID -> the data set that was acknowledged, as sent
    acknowledged: Mapping[str, bytes]
    #: SOP Instance UID and digest of each object that came to the archive, in order
    archived: Sequence[tuple[str, str]]
    n_series: int


def violations(config: NodeConfig, witness: Witness) -> list[str]:
    """Name all that is wrong; empty is what every run must end with.

    What the node's own `verify` finds, and what it cannot know: what was acknowledged and sent.
    """
    folders = Folders(config.node.data_dir)
    database = Database(folders.database)
    try:
        with database.read() as db:
            found = [*_lost(witness, db, folders), *_jobs(db), *_scores(db, witness.n_series)]
            found += _sent(witness, db)
        own = check.verify(config, database).violations
    finally:
        database.close()
    found += [f"{one.kind}: {one.subject}: {one.text}" for one in own]
    return found + [f"left half written: {path.name}" for path in folders.root.rglob("*.part")]


def _lost(witness: Witness, db: Connection, folders: Folders):
    """Whatever was acknowledged is in the ledger and whole on the disk."""
    known = {row.sop_instance_uid: row for row in db.execute(select(instance))}
    for uid, encoded in witness.acknowledged.items():
        row = known.get(uid)
        if row is None:
            yield f"lost from the ledger: {uid}"
            continue
        path = folders.inbox / row.file_name
        content = path.read_bytes() if path.exists() else b""
        if not content.endswith(encoded) or len(content) != row.size_bytes:
            yield f"lost from the disk: {uid}"


def _jobs(db: Connection):
    for row in db.execute(select(job).where(job.c.state.not_in(["done", "superseded"]))):
        yield f"{row.stage} of revision {row.revision} is {row.state}: {row.reason}"


def _scores(db: Connection, n_expected: int):
    """Each series has one score of its last revision, and each patient one place in the batch."""
    n_series = 0
    for row in db.execute(select(series)):
        n_series += 1
        of = score.c.series_instance_uid == row.series_instance_uid
        found = db.execute(select(score.c.id).where(of, score.c.revision == row.revision)).all()
        if len(found) != 1:
            yield f"{len(found)} scores of series {row.series_instance_uid}"
    if n_series != n_expected:
        yield f"{n_series} series of {n_expected}"
    admitted = select(member.c.patient_key).where(member.c.state == "admitted")
    for patient, n in Counter(db.execute(admitted).scalars()).items():
        if n > 1:
            yield f"patient {patient} has {n} places in the batch"


def _sent(witness: Witness, db: Connection):
    """Every object reached the archive, under one UID, with one content, and nothing else did."""
    contents: dict[str, set[str]] = {}
    for uid, digest in witness.archived:
        contents.setdefault(uid, set()).add(digest)
    yield from (f"{len(c)} contents under {uid}" for uid, c in contents.items() if len(c) > 1)
    known = {row.sop_instance_uid: row for row in db.execute(select(result))}
    yield from (f"sent and not in the ledger: {uid}" for uid in contents.keys() - known.keys())
    for row in db.execute(select(delivery)):
        if row.state == "delivered" and row.sop_instance_uid not in contents:
            yield f"called delivered and not in the archive: {row.sop_instance_uid}"
        if row.state not in ("delivered", "superseded"):
            yield f"{row.sop_instance_uid} is {row.state}: {row.reason}"
    for (number, kind), n in Counter((row.score_id, row.kind) for row in known.values()).items():
        if kind in ("SEG", "SR") and n > 1:
            yield f"score {number} has {n} objects {kind}"
