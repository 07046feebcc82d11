"""The parts of a series in the ledger, and a ledger of before there were any."""

import sqlite3
from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from sqlalchemy import create_engine, text
from sqlalchemy.exc import IntegrityError

from dicom_node.errors import StoreError
from dicom_node.jobs import Stage
from dicom_node.series import Part
from dicom_node.store import database as database_module
from dicom_node.store import job_table, part_table, reference_table, result_table, series_table
from dicom_node.store.database import Database, migrate
from dicom_node.store.tables import metadata
from tests.make import ledgers
from tests.make.ledgers import NOON, after

ONE = Part("k1", 1, "EchoTime 10", ("1.2.1.1",))
TWO = Part("k2", 2, "EchoTime 80", ("1.2.1.2",), (3, 4))

# -- the ledger of before there were parts ------------------------------------------------------

OF_0008 = """
INSERT INTO series VALUES
  ('1.2.1', '1.2', 'MR', 2, 'complete', 't1', 20, '2026-01-02', '2026-01-02', NULL);
INSERT INTO job (id, series_instance_uid, revision, stage, state, priority, protocol, attempts,
  not_before, created, updated) VALUES
  (7, '1.2.1', 2, 'report', 'done', 0, 't1', 1, '', '', '2026-01-02T12:00:00.000000+00:00');
INSERT INTO batch VALUES ('t1-b', 't1', 'f', '["a", "b"]', '2026-01-02T12:00:00.000000+00:00');
INSERT INTO member (protocol, fingerprint, subject, series_instance_uid, patient_key, state, reason,
  added) VALUES ('t1', 'f', 's', '1.2.1', 'p', 'admitted', 'usual', '2026-01-02');
INSERT INTO score (id, series_instance_uid, revision, subject, protocol, fingerprint, batch_version,
  n_reference, subject_score, percentile, scored) VALUES
  (3, '1.2.1', 2, 's', 't1', 'f', 't1-b', 15, 2.5, 80.0, '2026-01-02T12:00:00.000000+00:00');
INSERT INTO finding VALUES (3, 1, 1.5, 4.0, 3.5, 12.0, '[1, 2, 3]', '[1, 2, 3]');
INSERT INTO result VALUES ('2.25.1', 3, 'SEG', '2.25.2', 'score/seg.dcm');
INSERT INTO delivery (sop_instance_uid, destination, state, attempts, created, not_before, updated)
  VALUES ('2.25.1', 'pacs', 'queued', 0, '2026-01-02', '2026-01-02', '2026-01-02')
"""


def upgraded(path, statements):
    """A ledger of version 0008 with rows, brought up to date."""
    steps, engine = Config(), create_engine(f"sqlite:///{path}")
    migrations = Path(database_module.__file__).parent / "migrations"
    steps.set_main_option("script_location", str(migrations))
    with engine.begin() as connection:
        steps.attributes["connection"] = connection
        command.upgrade(steps, "0008")
        for statement in statements.split(";"):
            connection.execute(text(statement))
    engine.dispose()
    migrate(path)
    return Database(path)


def test_a_ledger_of_before_there_were_parts_keeps_every_row(tmp_path):
    opened = upgraded(tmp_path / "ledger.sqlite", OF_0008)
    with opened.read() as db:
        number, entry = result_table.get_score(db, "1.2.1", 2)
        assert (number, entry.subject, entry.part) == (3, "s", "")
        assert [found.rank for found in result_table.findings_of(db, 3)] == [1]
        (due,) = result_table.due_deliveries(db, "pacs", NOON, 10)
        assert (due.score_id, due.file_name) == (3, "score/seg.dcm")
        assert job_table.get(db, 7).part == ""
        (member,) = reference_table.members(db, "t1", "f")
        assert (member.subject, member.part) == ("s", "")
        row = result_table.series_row(db, "1.2.1")
        assert (row.part, row.protocol, row.subject_score, row.job_state) == ("", "t1", 2.5, "done")
        context = MigrationContext.configure(db, opts={"compare_type": True})
        assert compare_metadata(context, metadata) == []
    with opened.begin() as db:
        # references hold again, and the new keys tell parts from one another
        with pytest.raises(IntegrityError):
            db.execute(text("DELETE FROM score"))
        job_table.enqueue(db, "1.2.1", 2, Stage.REPORT, "t1", NOON)
        job_table.enqueue(db, "1.2.1", 2, Stage.REPORT, "t1", NOON, "abc")
        assert job_table.counts(db) == {"report done": 1, "report queued": 1}
    opened.close()


def test_a_ledger_whose_rows_refer_to_nothing_is_left_as_it_was(tmp_path):
    path = tmp_path / "ledger.sqlite"
    with pytest.raises(StoreError, match="rows of finding in the ledger refer to rows"):
        upgraded(path, "INSERT INTO finding VALUES (9, 1, 1.5, 4.0, 3.5, 12.0, '[]', '[]')")
    with sqlite3.connect(path) as raw:
        assert raw.execute("SELECT version_num FROM alembic_version").fetchall() == [("0008",)]
    raw.close()


# -- parts ---------------------------------------------------------------------------------------


@pytest.fixture
def parted(database):
    """A series of two instances, each a part."""
    number = ledgers.open_association(database)
    ledgers.record(database, *(ledgers.filed(n, association_id=number) for n in (1, 2)))
    with database.begin() as db:
        part_table.record(db, "1.2.1", 1, [ONE, TWO])
    return database


def test_a_part_is_its_own_files_and_its_own_protocol(parted):
    with parted.begin() as db:
        series_table.set_protocol(db, "1.2.1", "t2", "k2")
        found = series_table.load(db, "1.2.1", Path("/inbox"), "k2")
        whole = series_table.load(db, "1.2.1", Path("/inbox"))
        assert series_table.claimed(db, "t2") == [("1.2.1", "k2")]
        assert part_table.names(db, ["1.2.1"]) == {
            ("1.2.1", 1, "k1"): "EchoTime 10",
            ("1.2.1", 1, "k2"): "EchoTime 80",
        }
    assert (found.part, found.protocol) == (TWO, "t2")
    assert [path.name[:2] for path in found.files] == ["1."]
    assert [path.parent.name for path in found.files] == ["02"]
    assert (whole.part, whole.protocol, len(whole.files)) == (None, None, 2)


def test_what_is_found_of_another_revision_takes_no_part_of_this_one(parted):
    with parted.begin() as db:
        part_table.record(db, "1.2.1", 2, [ONE])
        assert part_table.parts(db, "1.2.1", 1) == [ONE, TWO]
        part_table.record(db, "1.2.1", 1, [])
        assert part_table.keys(db, "1.2.1", 1) == []
        assert part_table.keys(db, "1.2.1", 2) == ["k1"]
        with pytest.raises(LookupError, match="revision 1 has no part k1"):
            series_table.load(db, "1.2.1", Path("/inbox"), "k1")


def test_a_part_reported_anew_stops_what_was_queued_of_it_and_of_what_is_no_part_now(parted):
    for number, key in enumerate(("", "k1", "k2", "gone"), 1):
        made = ledgers.record_score(parted, ledgers.score(subject=key, part=key))
        assert made == number
        with parted.begin() as db:
            item = ledgers.result_object(1, number)
            result_table.record_results(db, number, [], [item], ["pacs"], NOON)
    with parted.begin() as db:
        part_table.record(db, "1.2.1", 2, [ONE, TWO])
        result_table.supersede_deliveries(db, "1.2.1", 2, after(1), "k1")
        due = result_table.due_deliveries(db, "pacs", after(2), 10)
        assert result_table.earlier_score(db, "1.2.1", 2, "k1") == 2
        assert result_table.earlier_score(db, "1.2.1", 2) == 1
    assert [one.score_id for one in due] == [3]
