"""Warnings of the drift watch and outcomes in the ledger, and the duty that keeps them true."""

import csv
import io
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from alembic import command
from alembic.config import Config
from sqlalchemy import create_engine, text
from sqlalchemy.exc import IntegrityError

from dicom_node import cli, clock, worker
from dicom_node.config import NodeConfig
from dicom_node.drift import SMALL_BATCH, TOKEN_SHIFT
from dicom_node.errors import InsufficientReference, RegistrationFailed
from dicom_node.folders import Folders
from dicom_node.jobs import JobState, Stage
from dicom_node.schedule import Duties
from dicom_node.status import collect_status
from dicom_node.store import database as database_module
from dicom_node.store import history, job_table, outcomes, series_table, warning_table
from dicom_node.store.database import Database, migrate
from dicom_node.store.outcomes import Outcome
from dicom_node.store.warning_table import Key, Notice, Settled
from tests.make import ledgers
from tests.make.drifts import NEW, OLD, PRISMA, SKYRA, draw, end, in_time, keep
from tests.make.ledgers import NOON, after

SMALL, SHIFT = Key("t1", SMALL_BATCH), Key("t1", TOKEN_SHIFT, SKYRA, NEW)

#: one series as the version before wrote it: a member, its score, a job that failed
OF_0002 = """
INSERT INTO series VALUES ('1.2.1', '1.2', 'MR', 1, 'complete', 't1', 1, '2026', '2026');
INSERT INTO batch VALUES ('t1-b', 't1', 'f', '[]', '2026');
INSERT INTO member
  (protocol, fingerprint, subject, series_instance_uid, patient_key, state, reason, added, scanner)
  VALUES ('t1', 'f', 's', '1.2.1', 'p', 'admitted', '', '', 'SIEMENS Skyra');
INSERT INTO score VALUES
  (1, '1.2.1', 1, 's', 't1', 'f', 't1-b', 15, 2.5, 80.0, '2026-01-02T12:00:00.000000+00:00');
INSERT INTO job VALUES
  (1, '1.2.1', 1, 'report', 'failed', 0, 't1', 3, '2026', NULL, NULL, 'odd', '2026', '2026')
"""


def settle(database, *notices, at=NOON):
    with database.begin() as db:
        return warning_table.settle(db, notices, at)


def rows(database):
    """(kind, text, looks, seconds first seen, last seen, closed) of every row, the oldest first."""
    with database.read() as db:
        found = db.execute(text("SELECT * FROM warning ORDER BY id")).all()
    seconds = lambda at: at and (clock.parse(at) - NOON).total_seconds()  # noqa: E731
    return [
        (r.kind, r.text, r.n_looks, *map(seconds, (r.first_seen, r.last_seen, r.closed)))
        for r in found
    ]


# -- a ledger of before ---------------------------------------------------------------------------


def test_a_ledger_of_the_version_before_keeps_its_rows_and_says_what_it_does_not_know(tmp_path):
    path = tmp_path / "ledger.sqlite"
    steps = Config()
    migrations = Path(database_module.__file__).parent / "migrations"
    steps.set_main_option("script_location", str(migrations))
    engine = create_engine(f"sqlite:///{path}")
    with engine.begin() as connection:
        steps.attributes["connection"] = connection
        command.upgrade(steps, "0002")
        for statement in OF_0002.split(";"):
            connection.execute(text(statement))
    engine.dispose()
    migrate(path)
    opened = Database(path)
    with opened.read() as db:
        (study,) = history.scored_studies(db, "t1", 10)
        (one,) = outcomes.outcomes(db)
    opened.close()
    assert (study.scanner, study.software, study.raw_distance) == ("SIEMENS Skyra", "", None)
    assert (one.outcome, one.fault, one.reason) == ("failed", "", "odd")


# -- one row while it is so ----------------------------------------------------------------------


def test_a_warning_is_one_row_while_it_is_so_and_another_when_it_comes_back(database):
    assert settle(database, Notice(SMALL, "two of three")).opened == (
        Notice(SMALL, "two of three"),
    )
    assert settle(database, Notice(SMALL, "now one"), at=after(60)) == Settled((), ())
    assert rows(database) == [(SMALL_BATCH, "now one", 2, 0, 60, None)]
    assert settle(database, at=after(120)) == Settled((), (SMALL,))
    assert settle(database, at=after(180)) == Settled((), ())
    assert rows(database) == [(SMALL_BATCH, "now one", 2, 0, 60, 120)]
    assert settle(database, Notice(SMALL, "again"), at=after(240)).opened
    assert rows(database)[1:] == [(SMALL_BATCH, "again", 1, 240, 240, None)]


def test_warnings_of_other_keys_are_rows_of_their_own(database):
    others = [replace(SHIFT, **{name: "x"}) for name in ("protocol", "kind", "scanner", "software")]
    keys = [SHIFT, *others]
    settle(database, *(Notice(key, "so") for key in keys))
    with database.read() as db:
        assert warning_table.open_keys(db) == set(keys)
    assert set(settle(database, Notice(SHIFT, "so")).closed) == set(others)


def test_the_ledger_itself_refuses_a_second_open_row(database):
    settle(database, Notice(SHIFT, "so"))
    again = text(
        "INSERT INTO warning (protocol, kind, scanner, software, text, first_seen, last_seen, "
        "n_looks, closed) SELECT protocol, kind, scanner, software, text, first_seen, last_seen, "
        "n_looks, :closed FROM warning"
    )
    with database.begin() as db:
        db.execute(again, {"closed": "2026"})
    with pytest.raises(IntegrityError), database.begin() as db:
        db.execute(again, {"closed": None})


def test_the_newest_warning_is_shown_first(database):
    settle(database, Notice(SHIFT, "old"))
    settle(database, Notice(SHIFT, "old"), Notice(SMALL, "new"), at=after(60))
    with database.read() as db:
        assert [row.text for row in warning_table.open_warnings(db)] == ["new", "old"]


# -- what is compared ----------------------------------------------------------------------------


def test_studies_come_out_as_they_were_scored_newest_first(database):
    rng = np.random.default_rng(0)
    kept = in_time(draw(rng, 3), draw(rng, 2, scanner=PRISMA, software=NEW))
    keep(database, kept)
    with database.read() as db:
        assert history.scored_studies(db, "t1", 10) == kept
        assert history.scored_studies(db, "t1", 2) == kept[:2]
        assert history.scored_studies(db, "other", 10) == []


def test_scores_of_other_settings_and_of_old_revisions_are_not_compared(database):
    kept = in_time(draw(np.random.default_rng(0), 2))
    keep(database, kept)
    newer = {"fingerprint": "other", "scored": after(10 * 86400)}
    ledgers.complete_series(database, "1.3")
    ledgers.record_score(database, ledgers.score("1.3", **newer))
    with database.read() as db:
        (found,) = history.scored_studies(db, "t1", 10)
    # no member has that subject: the study counts, and nothing is known of its scanner
    assert (found.scanner, found.admitted) == ("", False)
    ledgers.record(database, ledgers.filed(2, "1.3", ledgers.open_association(database)))
    with database.read() as db:
        assert history.scored_studies(db, "t1", 10) == []


# -- the duty ------------------------------------------------------------------------------------


def duties(database):
    return Duties(NodeConfig(protocol=(ledgers.protocol(max_reference=60),)), database)


def test_a_scanner_s_update_is_warned_of_once_shown_and_over_when_it_is_taken_back(
    database, monkeypatch, caplog
):
    """The story of the watch: a scanner is updated, and everything looks a little different."""
    rng = np.random.default_rng(4)
    before, other = draw(rng, 40), draw(rng, 15, scanner=PRISMA)
    since = draw(rng, 12, software=NEW, raw_shift=3.0)
    caplog.set_level("INFO", "dicom_node.schedule")
    monkeypatch.setattr(clock, "now", lambda: after(100 * 86400))
    studies = in_time(before, other, since)
    keep(database, studies[12:])
    duties(database).watch()
    assert caplog.text == ""
    keep(database, studies[:12], start=56)
    for _ in range(3):
        duties(database).watch()
    assert caplog.text.count("token shift of protocol t1: 12 studies") == 1
    (shown,) = collect_status(database)["warnings"]
    assert (shown["kind"], shown["scanner"], shown["software"]) == (TOKEN_SHIFT, SKYRA, NEW)
    assert f"with software {NEW} (before: {OLD}) since 2026-02-26" in shown["text"]
    assert "let them found a [[protocol]] of their own" in shown["text"]
    assert shown["count"] == 3
    # the old version is put back
    calm = in_time(before, other, since, draw(rng, 20))
    keep(database, calm[:20], start=68)
    duties(database).watch()
    assert collect_status(database)["warnings"] == []
    assert "token shift of protocol t1 is over" in caplog.text


def test_the_duty_says_when_a_batch_is_too_small_for_those_who_wait(database):
    keep(database, in_time(draw(np.random.default_rng(0), 2)))
    ledgers.complete_series(database, "1.9")
    end(database, "1.9", Stage.SCORE, JobState.WAITING, protocol="t1")
    duties(database).watch()
    (shown,) = collect_status(database)["warnings"]
    assert shown["text"].startswith(
        "1 studies wait for the reference batch: 2 patients are admitted"
    )


def test_warnings_of_a_protocol_that_is_gone_are_closed(database):
    settle(database, Notice(replace(SMALL, protocol="gone"), "so"))
    duties(database).watch()
    assert collect_status(database)["warnings"] == []


# -- what became of each series ------------------------------------------------------------------


@pytest.fixture
def ended(database):
    """A series of each outcome."""
    for number in range(1, 7):
        ledgers.complete_series(database, f"1.2.{number}")
        with database.begin() as db:
            if number != 3:
                series_table.set_protocol(db, f"1.2.{number}", "t1")
    end(database, "1.2.1", Stage.REPORT, JobState.DONE, reason="1 findings", at=after(60))
    waits = {"reason": "2 of 3", "fault": "InsufficientReference"}
    end(database, "1.2.2", Stage.SCORE, JobState.WAITING, protocol="t1", **waits)
    rejected = {"reason": "none, but", "fault": "NoMatchingProtocol"}
    end(database, "1.2.3", Stage.TOKENIZE, JobState.REJECTED, **rejected)
    failed = {"reason": "of an older version"}
    end(database, "1.2.4", Stage.REPORT, JobState.FAILED, **failed)
    again = {"reason": "of the attempt before", "fault": "DatabaseUnavailable"}
    end(database, "1.2.5", Stage.SCORE, JobState.QUEUED, **again)
    ledgers.record(database, ledgers.filed(2, "1.2.6", ledgers.open_association(database)))
    return database


def test_every_series_has_one_outcome(ended):
    with ended.read() as db:
        found = {one.series_instance_uid: one for one in outcomes.outcomes(db)}
        counts = outcomes.counts(db)
    assert found["1.2.1"] == Outcome("1.2.1", "t1", "scored", "", "", clock.stamp(after(60)))
    said = {uid: (one.protocol, one.outcome, one.fault, one.reason) for uid, one in found.items()}
    assert said == {
        "1.2.1": ("t1", "scored", "", ""),
        "1.2.2": ("t1", "waiting", "InsufficientReference", "2 of 3"),
        "1.2.3": ("", "rejected", "NoMatchingProtocol", "none, but"),
        "1.2.4": ("t1", "failed", "", "of an older version"),
        "1.2.5": ("t1", "under way", "", ""),
        "1.2.6": ("t1", "arriving", "", ""),
    }
    assert counts == {key[:3]: 1 for key in said.values()}


def test_counts_are_in_the_status_by_protocol_and_class(ended):
    found = json.loads(json.dumps(collect_status(ended)))["outcomes"]
    assert {"protocol": None, "outcome": "rejected", "fault": "NoMatchingProtocol", "n": 1} in found
    assert {"protocol": "t1", "outcome": "scored", "fault": None, "n": 1} in found


def test_a_worker_that_died_is_a_fault_with_a_name(database):
    ledgers.complete_series(database, "1.2.1")
    with database.begin() as db:
        job_table.claim(db, "dead", 1.0, NOON)
        job_table.requeue_expired(db, 1, after(60))
        assert outcomes.counts(db) == {("", "failed", "WorkerDied"): 1}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A configuration whose ledger is the one of `database`."""
    (tmp_path / "config.toml").write_text('[node]\ndata_dir = "."\n')
    monkeypatch.chdir(tmp_path)
    assert Folders(tmp_path).database == tmp_path / "ledger.sqlite"
    return tmp_path


@pytest.mark.usefixtures("folder")
def test_outcomes_are_exported_one_line_a_series(ended, capsys):
    cli.app(["outcomes", "--csv"], standalone_mode=False)
    lines = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    with ended.read() as db:
        assert [Outcome(**line) for line in lines] == list(outcomes.outcomes(db))


@pytest.mark.usefixtures("folder", "ended")
def test_outcomes_are_counted_for_a_person(capsys):
    cli.app(["outcomes"], standalone_mode=False)
    said = capsys.readouterr().out
    assert "no protocol rejected NoMatchingProtocol" in said
    assert "t1 scored" in said


@pytest.mark.usefixtures("folder")
def test_the_status_shows_a_warning_as_it_is(database, capsys):
    settle(database, Notice(SMALL, "[bold]4[/x] studies wait"))
    cli.app(["status"], standalone_mode=False)
    assert "small batch of t1: [bold]4[/x] studies wait" in capsys.readouterr().out.splitlines()


# -- the worker records the class ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "state", "fault"),
    [
        (RegistrationFailed("too far"), "rejected", "RegistrationFailed"),
        (InsufficientReference(), "waiting", "InsufficientReference"),
        (ValueError("odd"), "failed", "ValueError"),
        (None, "done", None),
    ],
)
def test_the_class_of_what_a_stage_raises_is_recorded(database, monkeypatch, error, state, fault):
    """With a line that has no encoder: the stage is what this test puts there."""

    def stage(*_):
        if error:
            raise error
        return "t1"

    ledgers.complete_series(database, "1.2.1")
    scoring = {"max_attempts": 1}
    line = SimpleNamespace(
        config=NodeConfig.model_validate({"scoring": scoring}), database=database
    )
    monkeypatch.setitem(worker._STAGES, Stage.TOKENIZE, stage)
    with database.begin() as db:  # what an attempt before left there
        db.execute(text("UPDATE job SET fault = 'DatabaseUnavailable'"))
    assert worker.Worker(line, "w").run_one()
    row = ledgers.job_row(database, 1)
    assert (row.state, row.fault) == (state, fault)
