"""The ledger: its tables and file, what is received into it, and when a series is complete."""

import sqlite3
import stat
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError

from dicom_node.arrival import Slice
from dicom_node.errors import DatabaseUnavailable, StoreError
from dicom_node.jobs import JobState, Stage
from dicom_node.store import job_table, series_table
from dicom_node.store.database import Database, migrate
from dicom_node.store.tables import metadata
from tests.make import ledgers
from tests.make.ledgers import NOON, after, filed, open_association, record

QUIET_S, CAP_S = 30.0, 600.0


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


# -- the file -----------------------------------------------------------------------------------


def test_the_migrations_make_exactly_the_tables_of_the_code(database):
    with database.read() as db:
        context = MigrationContext.configure(db, opts={"compare_type": True})
        assert compare_metadata(context, metadata) == []
        names = set(db.execute(text("SELECT name FROM sqlite_master WHERE type='table'")).scalars())
    assert names == {*metadata.tables, "alembic_version"}


def test_migrating_twice_keeps_what_is_recorded(tmp_path):
    path = tmp_path / "deep" / "ledger.sqlite"
    migrate(path)
    database = Database(path)
    open_association(database)
    database.close()
    migrate(path)
    with database.read() as db:
        assert db.execute(text("SELECT count(*) FROM association")).scalar_one() == 1
    database.close()


def test_only_the_node_s_user_may_read_the_ledger_and_its_write_ahead_log(tmp_path):
    path = tmp_path / "deep" / "ledger.sqlite"
    migrate(path)
    database = Database(path)
    open_association(database)
    assert {mode(file) for file in path.parent.iterdir()} == {0o600}
    assert len(list(path.parent.iterdir())) == 3  # ledger, -wal, -shm
    assert mode(path.parent) == 0o700
    database.close()


@pytest.mark.parametrize(
    ("pragma", "expected"), [("journal_mode", "wal"), ("synchronous", 2), ("foreign_keys", 1)]
)
def test_every_connection_is_durable_and_checks_its_references(database, pragma, expected):
    with database.begin() as first, database.read() as second:
        for connection in (first, second):
            assert connection.exec_driver_sql(f"PRAGMA {pragma}").scalar_one() == expected


def test_a_ledger_of_a_newer_version_is_refused_in_plain_words(tmp_path):
    path = tmp_path / "ledger.sqlite"
    migrate(path)
    with sqlite3.connect(path) as raw:
        raw.execute("UPDATE alembic_version SET version_num = '9999'")
    raw.close()
    with pytest.raises(StoreError, match="newer version of this node"):
        migrate(path)


def test_a_ledger_that_cannot_be_opened_is_unavailable(tmp_path):
    (tmp_path / "ledger.sqlite").mkdir()
    with pytest.raises(DatabaseUnavailable, match="unable to open"):
        migrate(tmp_path / "ledger.sqlite")


def test_a_damaged_ledger_is_unavailable(tmp_path):
    (tmp_path / "damaged.sqlite").write_bytes(b"no database " * 100)
    damaged = Database(tmp_path / "damaged.sqlite")
    with pytest.raises(DatabaseUnavailable, match="not a database"), damaged.begin():
        pytest.fail("it was opened")
    damaged.close()


def test_a_locked_ledger_can_be_read_and_says_that_it_cannot_be_written(tmp_path):
    with ledgers.ledger(tmp_path, timeout_s=0.05) as database, database.begin() as holder:
        number = series_table.open_association(holder, "SCANNER", "127.0.0.1", NOON)
        with pytest.raises(DatabaseUnavailable, match="locked"), database.begin():
            pytest.fail("two writers at once")
        with database.read() as db:
            series_table.close_association(holder, number, NOON)
            assert db.execute(text("SELECT count(*) FROM association")).scalar_one() == 0


def test_a_transaction_that_fails_leaves_nothing_and_is_no_outage(database):
    of_no_association = filed(association_id=99)
    with pytest.raises(IntegrityError):  # the series' own row comes first
        record(database, of_no_association)
    with database.read() as db:
        assert series_table.counts(db) == {"instances": 0}


# -- receiving ----------------------------------------------------------------------------------


def load(database, uid="1.2.1"):
    with database.read() as db:
        return series_table.load(db, uid, Path("/inbox"))


def test_recording_an_instance_twice_is_recording_it_once(database):
    open_association(database)
    again = filed(1, sha256="other content", file_name="99/other.dcm")
    assert record(database, filed(1), again, at=NOON) == [True, False]
    found = load(database)
    assert found.n_instances == 1
    assert found.files == (Path("/inbox/01/1.2.1.dcm"),)
    with database.read() as db:
        assert series_table.counts(db) == {"receiving": 1, "instances": 1}
        assert series_table.instances_digest_source(db, "1.2.1") == [("1.2.1.1", "1.2.1 1")]


def test_a_series_is_loaded_in_an_order_that_is_its_content_s(database):
    open_association(database)
    record(database, filed(3), filed(1), filed(2))
    assert [path.parent.name for path in load(database).files] == ["01", "02", "03"]
    with pytest.raises(LookupError, match="not in the ledger"):
        load(database, "9.9")


def test_a_late_instance_reopens_a_complete_series_under_the_next_revision(database):
    ledgers.complete_series(database, "1.2.1")
    ledgers.complete_series(database, "1.2.2")
    with database.begin() as db:
        first = job_table.claim(db, "worker", 60, NOON)
        job_table.move(db, first.id, JobState.DONE, NOON)
    waiting = ledgers.enqueue(database, "1.2.1", Stage.SCORE)
    other = ledgers.enqueue(database, "1.2.2", Stage.SCORE)
    record(database, filed(2, association_id=1), at=after(100))
    found = load(database)
    assert (found.revision, found.state, found.n_instances) == (2, "receiving", 2)
    assert (found.first_received, found.last_received) == (after(100), after(100))
    states = ledgers.states(database)
    assert (states[first.id], states[waiting], states[other]) == ("done", "superseded", "queued")


def test_the_next_instance_of_a_reopened_series_raises_no_further_revision(database):
    ledgers.complete_series(database, "1.2.1")
    record(database, filed(2), filed(3), at=after(1))
    assert load(database).revision == 2


def test_sending_a_complete_series_again_changes_nothing(database):
    ledgers.complete_series(database, "1.2.1")
    before, jobs = load(database), ledgers.states(database)
    again = open_association(database, at=after(50))
    assert record(database, filed(1, association_id=again), at=after(50)) == [False]
    assert load(database) == before
    assert ledgers.states(database) == jobs


# -- completion ---------------------------------------------------------------------------------


def complete(database, at):
    with database.begin() as db:
        return series_table.complete_due(db, series_table.Rule(QUIET_S, CAP_S), at)


def close(database, number, at):
    with database.begin() as db:
        series_table.close_association(db, number, at)


def test_a_series_is_complete_when_it_has_been_quiet(database):
    number = open_association(database)
    record(database, filed(1), at=NOON)
    record(database, filed(2), at=after(20))
    close(database, number, after(21))
    assert complete(database, after(20 + QUIET_S - 0.001)) == []
    assert complete(database, after(20 + QUIET_S)) == ["1.2.1"]
    assert complete(database, after(1000)) == []
    (job,) = ledgers.states(database)
    row = ledgers.job_row(database, job)
    assert (row.series_instance_uid, row.revision, row.stage, row.state) == (
        *("1.2.1", 1, "tokenize", "queued"),
    )


def test_a_second_revision_is_completed_and_queued_as_such(database):
    ledgers.complete_series(database, "1.2.1")
    record(database, filed(2), at=after(10))
    assert complete(database, after(10 + QUIET_S)) == ["1.2.1"]
    queued = [n for n, state in ledgers.states(database).items() if state == "queued"]
    assert [ledgers.job_row(database, number).revision for number in queued] == [2]


def test_an_open_association_keeps_only_the_series_that_it_carries_incomplete(database):
    first, second = open_association(database), open_association(database)
    record(database, filed(1, "1.2.1", first), filed(1, "1.2.2", second))
    close(database, second, after(1))
    assert complete(database, after(QUIET_S)) == ["1.2.2"]
    close(database, first, after(QUIET_S))
    assert complete(database, after(QUIET_S)) == ["1.2.1"]


def test_one_of_two_associations_of_a_series_is_enough_to_wait_for(database):
    first, second = open_association(database), open_association(database)
    record(database, filed(1, association_id=first), filed(2, association_id=second))
    close(database, first, after(1))
    assert complete(database, after(QUIET_S)) == []


def test_the_cap_completes_a_series_whose_association_never_ends(database):
    open_association(database)
    record(database, filed(1), at=NOON)
    record(database, filed(2), at=after(CAP_S - 1))
    assert complete(database, after(CAP_S - 0.001)) == []
    assert complete(database, after(CAP_S)) == ["1.2.1"]
    record(database, filed(3), at=after(CAP_S + 1))
    assert complete(database, after(2 * CAP_S)) == []
    assert complete(database, after(2 * CAP_S + 1)) == ["1.2.1"]


GAP_S = 300.0


def complete_looking(database, at):
    """As `complete`, with an eye on gaps."""
    with database.begin() as db:
        return series_table.complete_due(db, series_table.Rule(QUIET_S, CAP_S, GAP_S), at)


def at_mm(number, place, **changes):
    return filed(number, slice=Slice(float(place), "0\\0\\1"), **changes)


def test_a_series_with_a_gap_waits_longer_for_the_missing_slice(database):
    number = open_association(database)
    record(database, *(at_mm(n, n) for n in (1, 2, 3, 5, 6)))
    close(database, number, NOON)
    assert complete_looking(database, after(QUIET_S)) == []
    record(database, at_mm(4, 4), at=after(QUIET_S + 1))
    assert complete_looking(database, after(2 * QUIET_S)) == []
    assert complete_looking(database, after(2 * QUIET_S + 1)) == ["1.2.1"]
    assert load(database).revision == 1


def test_a_gap_that_is_never_filled_does_not_keep_a_series_for_ever(database):
    number = open_association(database)
    record(database, *(at_mm(n, n) for n in (1, 2, 3, 5, 6)))
    close(database, number, NOON)
    assert complete_looking(database, after(GAP_S - 1)) == []
    assert complete_looking(database, after(GAP_S)) == ["1.2.1"]


def test_slices_that_do_not_say_where_they_lie_wait_for_nothing(database):
    number = open_association(database)
    record(database, *(filed(n) for n in (1, 2, 3, 5, 6)))
    close(database, number, NOON)
    assert complete_looking(database, after(QUIET_S)) == ["1.2.1"]


def test_a_series_of_an_urgent_sender_goes_first(database):
    for number, sender in enumerate(("MR1", "ER_CT"), 1):
        opened = ledgers.open_association(database, sender)
        ledgers.record(database, ledgers.filed(1, f"1.2.{number}", opened))
        with database.begin() as db:
            series_table.close_association(db, opened, NOON)
    rule = series_table.Rule(0.0, 3600.0, urgent_senders=frozenset({"ER_CT"}))
    with database.begin() as db:
        assert series_table.complete_due(db, rule, NOON) == ["1.2.1", "1.2.2"]
        assert job_table.claim(db, "one", 60.0, NOON).series_instance_uid == "1.2.2"


def test_as_many_as_the_sender_says_there_are_need_no_quiet_time(database):
    open_association(database)
    record(database, *(at_mm(n, n, n_expected=9) for n in range(1, 9)))
    assert complete_looking(database, NOON) == []
    record(database, at_mm(9, 9, n_expected=9))
    assert complete_looking(database, NOON) == ["1.2.1"]


def test_a_count_that_differs_or_leaves_a_gap_ends_nothing_early(database):
    open_association(database)
    record(database, *(at_mm(n, n, n_expected=9) for n in range(1, 9)))
    record(database, at_mm(9, 12, n_expected=9))
    assert complete_looking(database, NOON) == []
    record(database, *(filed(n, "1.2.2", n_expected=8 + n // 8) for n in range(1, 9)))
    record(database, *(filed(n, "1.2.3", n_expected=3) for n in range(1, 4)))
    assert complete_looking(database, NOON) == []


def test_a_receiver_that_starts_ends_what_its_killed_predecessor_left_open(database):
    open_association(database)
    record(database, filed(1))
    with database.begin() as db:
        series_table.close_all_associations(db, after(5))
    assert complete(database, after(QUIET_S)) == ["1.2.1"]


def test_a_series_of_which_only_known_instances_came_is_never_queued(database):
    open_association(database)
    record(database, filed(1, "1.2.1"), filed(1, "1.2.9", sop_instance_uid="1.2.1.1"))
    assert load(database, "1.2.9").n_instances == 0
    assert complete(database, after(CAP_S)) == ["1.2.1"]


def test_refusals_are_shown_newest_first_and_not_beyond_the_limit(database):
    with database.begin() as db:
        for number in range(3):
            series_table.record_refusal(db, "SCANNER", "10.0.0.1", f"reason {number}", NOON)
    with database.read() as db:
        shown = [row.reason for row in series_table.recent_refusals(db, 2)]
    assert shown == ["reason 2", "reason 1"]
