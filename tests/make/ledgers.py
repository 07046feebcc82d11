"""Ledgers with rows: made once by the migrations, copied for each test."""

import functools
import tempfile
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

from sqlalchemy import update

from dicom_node.protocol_config import Match, Protocol
from dicom_node.series import FiledInstance
from dicom_node.store import job_table, reference_table, result_table, series_table
from dicom_node.store.database import Database, migrate
from dicom_node.store.result_table import ResultObject, Score
from dicom_node.store.tables import job

#: the moment at which everything in these tests begins
NOON = datetime(2026, 1, 2, 12, 0, 0, tzinfo=UTC)


def after(seconds: float) -> datetime:
    """The moment `seconds` after NOON."""
    return NOON + timedelta(seconds=seconds)


@functools.cache
def _migrated() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        migrate(Path(folder) / "ledger.sqlite")
        return (Path(folder) / "ledger.sqlite").read_bytes()


@contextmanager
def ledger(folder: Path, timeout_s: float = 30.0):
    """An empty ledger of its own in `folder`."""
    path = folder / "ledger.sqlite"
    path.write_bytes(_migrated())
    database = Database(path, timeout_s)
    try:
        yield database
    finally:
        database.close()


def open_association(database, calling_ae_title="SCANNER", at=NOON) -> int:
    with database.begin() as db:
        return series_table.open_association(db, calling_ae_title, "127.0.0.1", at)


def filed(number=1, series="1.2.1", association_id=1, **changes) -> FiledInstance:
    """Instance `number` of a series as the inbox hands it to the ledger."""
    values = {
        "sop_instance_uid": f"{series}.{number}",
        "sop_class_uid": "1.2.840.10008.5.1.4.1.1.4",
        "series_instance_uid": series,
        "study_instance_uid": "1.2",
        "modality": "MR",
        "transfer_syntax_uid": "1.2.840.10008.1.2.1",
        "file_name": f"{number:02d}/{series}.dcm",
        "size_bytes": 100,
        "sha256": f"{series} {number}",
        "association_id": association_id,
        "calling_ae_title": "SCANNER",
    }
    return FiledInstance(**(values | changes))


def record(database, *instances, at=NOON) -> list[bool]:
    """Record instances, each in a transaction of its own, as the receiver does."""
    found = []
    for instance in instances:
        with database.begin() as db:
            found.append(series_table.record_instance(db, instance, at))
    return found


def complete_series(database, uid, at=NOON, *, number=1) -> None:
    """Receive one instance over an association that is closed again, then complete the series."""
    association_id = open_association(database, at=at)
    record(database, filed(number, uid, association_id), at=at)
    with database.begin() as db:
        series_table.close_association(db, association_id, at)
        assert uid in series_table.complete_due(db, series_table.Rule(0.0, 3600.0), at)


def enqueue(database, uid, stage, *, priority=0, revision=1, protocol=None, at=NOON) -> int:
    """Queue a job and return its number."""
    with database.begin() as db:
        job_table.enqueue(db, uid, revision, stage, protocol, at)
        number = db.execute(
            job.select().where(
                job.c.series_instance_uid == uid,
                job.c.revision == revision,
                job.c.stage == stage.value,
            )
        ).one()
        db.execute(update(job).where(job.c.id == number.id).values(priority=priority))
        return number.id


def states(database) -> dict[int, str]:
    """The state of every job."""
    with database.read() as db:
        return {row.id: row.state for row in db.execute(job.select())}


def job_row(database, number):
    with database.read() as db:
        return db.execute(job.select().where(job.c.id == number)).one()


def score(uid="1.2.1", revision=1, **changes) -> Score:
    values = {
        "series_instance_uid": uid,
        "revision": revision,
        "subject": f"subject-{uid}",
        "protocol": "t1",
        "fingerprint": "f",
        "batch_version": "t1-batch",
        "n_reference": 15,
        "subject_score": 2.5,
        "percentile": 80.0,
        "scored": NOON,
    }
    return Score(**(values | changes))


def result_object(number=1, score_id=1, **changes) -> ResultObject:
    values = {
        "sop_instance_uid": f"2.25.{score_id}.{number}",
        "kind": "SC",
        "series_instance_uid": f"2.25.{score_id}",
        "file_name": f"score-{score_id}/sc-{number:04d}.dcm",
    }
    return ResultObject(**(values | changes))


def record_score(database, entry: Score) -> int:
    """Record a score, and the batch that it names."""
    with database.begin() as db:
        reference_table.freeze(db, entry.batch_version, entry.protocol, "f", ["a", "b"], NOON)
        return result_table.record_score(db, entry)


def protocol(name="t1", **changes) -> Protocol:
    """A protocol that needs three others and keeps five."""
    values = {"min_reference": 3, "max_reference": 5, "match": Match(modality="MR")}
    return Protocol(name=name, **(values | changes))
