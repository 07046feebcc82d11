"""The standing duties, at moments of our choice."""

import os
import threading
import time

import pytest

from dicom_node.config import NodeConfig
from dicom_node.jobs import Stage
from dicom_node.schedule import Duties
from dicom_node.store import job_table, series_table
from tests.make import ledgers
from tests.make.ledgers import NOON, after

QUIET_S, CAP_S, LEASE_S = 30.0, 600.0, 60.0


@pytest.fixture
def database(tmp_path):
    with ledgers.ledger(tmp_path, timeout_s=0.05) as opened:
        yield opened


def duties(database, quiet="30 s", max_attempts=2):
    sections = {
        "completion": {"quiet": quiet, "cap": "600 s"},
        "scoring": {"max_attempts": max_attempts},
    }
    return Duties(NodeConfig.model_validate(sections), database)


def stages(database):
    found = [ledgers.job_row(database, number) for number in ledgers.states(database)]
    return {(row.series_instance_uid, row.stage, row.state) for row in found}


def test_a_quiet_series_is_completed_at_its_moment_and_not_before(database, now, caplog):
    number = ledgers.open_association(database)
    ledgers.record(database, ledgers.filed(1), at=NOON)
    with database.begin() as db:
        series_table.close_association(db, number, NOON)
    now[0] = QUIET_S - 0.001
    duties(database).complete()
    assert stages(database) == set()
    now[0] = QUIET_S
    with caplog.at_level("INFO"):
        duties(database).complete()
    assert stages(database) == {("1.2.1", "tokenize", "queued")}
    assert "series 1.2.1 is complete" in caplog.text


def test_a_series_whose_association_stays_open_is_completed_at_the_cap(database, now):
    ledgers.open_association(database)
    ledgers.record(database, ledgers.filed(1), at=NOON)
    now[0] = CAP_S - 0.001
    duties(database).complete()
    assert stages(database) == set()
    now[0] = CAP_S
    duties(database).complete()
    assert stages(database) == {("1.2.1", "tokenize", "queued")}


def claim(database, at):
    with database.begin() as db:
        return job_table.claim(db, "dead worker", LEASE_S, at)


def test_the_job_of_a_dead_worker_is_taken_up_again_until_its_attempts_are_used_up(
    database, now, caplog
):
    ledgers.enqueue(database, "1.2.1", Stage.SCORE)
    claim(database, NOON)
    now[0] = LEASE_S
    duties(database).requeue()
    assert stages(database) == {("1.2.1", "score", "running")}
    assert caplog.text == ""
    now[0] = LEASE_S + 1
    duties(database).requeue()
    assert stages(database) == {("1.2.1", "score", "queued")}
    assert "1 jobs of a dead worker" in caplog.text
    claim(database, after(now[0]))
    now[0] += LEASE_S + 1
    duties(database).requeue()
    assert stages(database) == {("1.2.1", "score", "failed")}


def test_a_duty_that_meets_a_locked_ledger_is_put_off(database, now, caplog):
    ledgers.open_association(database)
    ledgers.record(database, ledgers.filed(1), at=NOON)
    ledgers.enqueue(database, "1.2.9", Stage.SCORE)
    claim(database, NOON)
    now[0] = CAP_S
    with database.begin():
        duties(database).complete()
        duties(database).requeue()
        duties(database).watch()
    assert stages(database) == {("1.2.9", "score", "running")}
    assert "completion put off: the ledger does not answer" in caplog.text
    assert "requeueing put off: the ledger does not answer" in caplog.text
    assert "the drift watch is put off: the ledger does not answer" in caplog.text
    duties(database).complete()
    duties(database).requeue()
    assert stages(database) == {("1.2.1", "tokenize", "queued"), ("1.2.9", "score", "queued")}


def test_started_duties_run_by_themselves_until_they_are_stopped(database, monkeypatch):
    """The shortest interval is half a second; how often is not measured here, only that."""
    done = threading.Semaphore(0)
    standing = duties(database, quiet="1 s")
    monkeypatch.setattr(standing, "complete", done.release)
    before = set(threading.enumerate())
    standing.start()
    assert done.acquire(timeout=10)
    assert done.acquire(timeout=10)
    standing.stop()
    while done.acquire(blocking=False):
        pass
    time.sleep(0.8)
    assert not done.acquire(blocking=False)
    assert set(threading.enumerate()) <= before


@pytest.mark.parametrize(("quiet", "expected"), [("1 s", 0.5), ("8 s", 2.0), ("60 s", 5.0)])
def test_completion_is_looked_at_four_times_in_the_quiet_time(database, quiet, expected):
    standing = duties(database, quiet)
    standing.start()
    jobs = standing._scheduler.get_jobs()
    standing.stop()
    found = {job.func.__name__: job.trigger.interval.total_seconds() for job in jobs}
    daily = {"rechoose": 86400.0}
    hourly = {"digest": 3600.0, "backup": 3600.0, "sweep": 3600.0}
    assert found == {"complete": expected, "requeue": 30.0, "watch": 600.0} | hourly | daily


def test_a_half_file_of_a_killed_process_is_removed_when_it_is_old(database, tmp_path):
    config = NodeConfig.model_validate({"node": {"data_dir": tmp_path / "data"}})
    folder = tmp_path / "data" / "results" / "score"
    folder.mkdir(parents=True)
    old, young = folder / "seg.dcm.1.part", folder / "seg.dcm.2.part"
    for path in (old, young):
        path.write_bytes(b"half")
    os.utime(old, (1.0, 1.0))
    Duties(config, database).sweep()
    assert list(folder.iterdir()) == [young]
