"""Jobs in the ledger: who gets which, and which changes of state are possible."""

import itertools
import threading

import pytest
from sqlalchemy import update

from dicom_node import clock
from dicom_node.jobs import TRANSITIONS, JobState, Stage
from dicom_node.store import job_table
from dicom_node.store.database import Database
from dicom_node.store.tables import job
from tests.make import ledgers
from tests.make.ledgers import NOON, after, enqueue

LEASE_S = 60.0


def claim(database, worker="one", at=NOON):
    with database.begin() as db:
        return job_table.claim(db, worker, LEASE_S, at)


def put(database, number, **values):
    with database.begin() as db:
        db.execute(update(job).where(job.c.id == number).values(**values))


def requeue(database, at, max_attempts=3):
    with database.begin() as db:
        return job_table.requeue_expired(db, max_attempts, at)


# -- who gets which ------------------------------------------------------------------------------


def test_what_is_nearly_done_goes_first_then_the_oldest(database):
    made = [
        enqueue(database, "1.1", Stage.TOKENIZE),
        enqueue(database, "1.2", Stage.SCORE),
        enqueue(database, "1.3", Stage.REPORT),
        enqueue(database, "1.4", Stage.REPORT),
    ]
    order = [claim(database).id for _ in made]
    assert order == [made[2], made[3], made[1], made[0]]
    assert claim(database) is None


def test_priority_goes_before_the_stage(database):
    enqueue(database, "1.1", Stage.REPORT)
    urgent = enqueue(database, "1.2", Stage.TOKENIZE, priority=1)
    assert claim(database).id == urgent


def test_a_job_is_not_claimed_before_its_time(database):
    put_off = enqueue(database, "1.1", Stage.REPORT, at=after(10))
    due = enqueue(database, "1.2", Stage.TOKENIZE)
    assert claim(database, at=after(9.999)).id == due
    assert claim(database, at=after(9.999)) is None
    assert claim(database, at=after(10)).id == put_off


def test_a_claimed_job_carries_its_worker_its_lease_and_its_attempt(database):
    number = enqueue(database, "1.1", Stage.SCORE, revision=2, protocol="t1")
    taken = claim(database, "one", after(5))
    assert (taken.id, taken.series_instance_uid, taken.revision) == (number, "1.1", 2)
    assert (taken.stage, taken.state, taken.protocol) == (Stage.SCORE, JobState.RUNNING, "t1")
    assert (taken.attempts, taken.reason, taken.updated) == (1, None, after(5))
    row = ledgers.job_row(database, number)
    assert (row.worker, row.lease_until) == ("one", clock.stamp(after(5 + LEASE_S)))


def test_queueing_a_stage_twice_is_queueing_it_once(database):
    first = enqueue(database, "1.1", Stage.SCORE)
    claim(database)
    assert enqueue(database, "1.1", Stage.SCORE) == first
    assert ledgers.states(database) == {first: "running"}
    assert enqueue(database, "1.1", Stage.SCORE, revision=2) != first


def test_several_workers_at_once_never_get_one_job(database, tmp_path):
    made = {enqueue(database, f"1.{n}", Stage.TOKENIZE) for n in range(24)}
    taken, together = [], threading.Barrier(4)

    def work(name):
        own = Database(tmp_path / "ledger.sqlite")
        together.wait()
        while (found := claim(own, name)) is not None:
            taken.append(found.id)
        own.close()

    threads = [threading.Thread(target=work, args=(f"worker-{n}",)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(taken) == len(made)
    assert set(taken) == made


# -- leases --------------------------------------------------------------------------------------


def test_what_a_dead_worker_left_is_queued_again_when_its_lease_is_over(database):
    number = enqueue(database, "1.1", Stage.SCORE)
    claim(database)
    assert requeue(database, after(LEASE_S)) == 0
    assert requeue(database, after(LEASE_S + 0.001)) == 1
    row = ledgers.job_row(database, number)
    assert (row.state, row.worker, row.attempts, row.reason) == ("queued", None, 1, None)


def test_a_job_that_ends_every_worker_fails_and_lets_the_next_one_through(database):
    deadly = enqueue(database, "1.1", Stage.SCORE)
    harmless = enqueue(database, "1.2", Stage.SCORE)
    for attempt in range(2):
        assert claim(database, at=after(100 * attempt)).id == deadly
        assert requeue(database, after(100 * attempt + LEASE_S + 1), max_attempts=2) == 1
    row = ledgers.job_row(database, deadly)
    assert (row.state, row.attempts) == ("failed", 2)
    assert "killed, or out of memory" in row.reason
    assert claim(database, at=after(300)).id == harmless


def test_only_its_own_worker_prolongs_a_lease(database):
    number = enqueue(database, "1.1", Stage.SCORE)
    claim(database, "one")
    with database.begin() as db:
        assert not job_table.renew_lease(db, number, "two", LEASE_S, after(50))
        assert job_table.renew_lease(db, number, "one", LEASE_S, after(50))
    assert requeue(database, after(50 + LEASE_S)) == 0
    assert requeue(database, after(50 + LEASE_S + 1)) == 1
    with database.begin() as db:
        assert not job_table.renew_lease(db, number, "one", LEASE_S, after(120))


def test_a_worker_that_lost_its_lease_has_no_say_any_more(database):
    number = enqueue(database, "1.1", Stage.SCORE)
    claim(database, "slow")
    requeue(database, after(LEASE_S + 1))
    claim(database, "next", after(LEASE_S + 2))
    with database.begin() as db:
        late = job_table.let_go(db, number, "slow", JobState.FAILED, after(70), reason="late")
        own = job_table.let_go(db, number, "next", JobState.DONE, after(71), reason="t1-abc")
    assert (late, own) == (False, True)
    row = ledgers.job_row(database, number)
    assert (row.state, row.reason, row.worker) == ("done", "t1-abc", None)


# -- changes of state ----------------------------------------------------------------------------


@pytest.mark.parametrize(("old", "new"), list(itertools.product(JobState, repeat=2)))
def test_a_job_moves_where_the_table_of_transitions_says_and_nowhere_else(database, old, new):
    number = enqueue(database, "1.1", Stage.SCORE)
    put(database, number, state=old.value)
    with database.begin() as db:
        moved = job_table.move(db, number, new, after(1), reason="moved")
    legal = new in TRANSITIONS[old]
    assert moved is legal
    row = ledgers.job_row(database, number)
    assert (row.state, row.reason) == ((new.value, "moved") if legal else (old.value, None))


def test_a_grown_batch_releases_the_jobs_that_wait_for_it_alone(database):
    names = {"waits": "t1", "of another": "ct", "runs": "t1"}
    made = {uid: enqueue(database, uid, Stage.SCORE, protocol=name) for uid, name in names.items()}
    for uid, state in (("waits", "waiting"), ("of another", "waiting"), ("runs", "running")):
        put(database, made[uid], state=state, attempts=3)
    with database.begin() as db:
        assert job_table.release_waiting(db, "t1", after(9)) == 1
    assert ledgers.states(database) == {
        made["waits"]: "queued",
        made["of another"]: "waiting",
        made["runs"]: "running",
    }
    row = ledgers.job_row(database, made["waits"])
    assert (row.attempts, row.not_before) == (0, clock.stamp(after(9)))


def test_retry_queues_what_failed_or_was_rejected_with_all_its_attempts(database):
    made = {state: enqueue(database, state.value, Stage.SCORE) for state in JobState}
    for state, number in made.items():
        put(database, number, state=state.value, attempts=3)
    with database.begin() as db:
        assert job_table.retry_failed(db, after(9)) == 2
    expected = {number: state.value for state, number in made.items()}
    expected |= {made[JobState.FAILED]: "queued", made[JobState.REJECTED]: "queued"}
    assert ledgers.states(database) == expected
    row = ledgers.job_row(database, made[JobState.FAILED])
    assert (row.attempts, row.not_before) == (0, clock.stamp(after(9)))


def test_jobs_that_need_a_look_are_shown_newest_first_and_all_are_counted(database):
    for place, state in enumerate(JobState):
        number = enqueue(database, state.value, Stage.SCORE)
        put(database, number, state=state.value, updated=clock.stamp(after(place)))
    with database.read() as db:
        shown = [found.state for found in job_table.unfinished(db, 10)]
        assert job_table.unfinished(db, 1)[0].state is JobState.FAILED
        assert job_table.counts(db) == {f"score {state}": 1 for state in JobState}
    assert shown == [JobState.FAILED, JobState.REJECTED, JobState.WAITING]
