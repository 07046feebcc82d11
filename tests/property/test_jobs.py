"""Any sequence of what the store can do keeps every job legal, and none is ever lost."""

import tempfile
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from sqlalchemy import select

from dicom_node import clock
from dicom_node.inbox import Inbox
from dicom_node.jobs import TRANSITIONS, JobState, Stage
from dicom_node.store import job_table, series_table
from dicom_node.store.tables import instance, job, series
from tests.make import ledgers
from tests.make.instances import make_instance, received
from tests.make.ledgers import after, filed

UIDS = ("1.2.1", "1.2.2")
WORKERS = ("one", "two")
LEASE_S, MAX_ATTEMPTS = 60.0, 2
#: how a worker can leave a job, besides being killed
ENDS = [JobState.DONE, JobState.QUEUED, JobState.WAITING, JobState.REJECTED, JobState.FAILED]


def holds(*states):
    """Skip a rule that would find nothing to do."""
    return precondition(lambda self: any(state in states for state in self.known.values()))


class Node(RuleBasedStateMachine):
    """One ledger under a receiver, workers that die, duties and an operator, in any order."""

    def __init__(self):
        super().__init__()
        self.exit = ExitStack()
        self.now = 0.0
        self.n_sent = 1
        #: what every job was when it was last looked at
        self.known: dict[int, JobState] = {}
        #: what each worker believes it holds
        self.held: dict[str, int] = {}

    @initialize()
    def open(self):
        folder = self.exit.enter_context(tempfile.TemporaryDirectory())
        self.database = self.exit.enter_context(ledgers.ledger(Path(folder)))
        for uid in UIDS:
            ledgers.complete_series(self.database, uid)

    def teardown(self):
        self.exit.close()

    @contextmanager
    def transaction(self):
        with self.database.begin() as db:
            yield db
        self.every_job_has_moved_as_the_table_allows_and_is_still_there()

    @rule(uid=st.sampled_from(UIDS))
    def an_instance_comes(self, uid):
        self.n_sent += 1
        with self.transaction() as db:
            series_table.record_instance(db, filed(self.n_sent, uid), after(self.now))

    @rule()
    def series_are_completed(self):
        with self.transaction() as db:
            series_table.complete_due(db, series_table.Rule(0.0, 300.0), after(self.now))

    @holds(JobState.QUEUED)
    @rule(worker=st.sampled_from(WORKERS))
    def a_worker_claims(self, worker):
        waiting = self._due()
        with self.transaction() as db:
            found = job_table.claim(db, worker, LEASE_S, after(self.now))
        assert (found is not None) == bool(waiting)
        if found is not None:
            assert found.id in waiting
            self.held[worker] = found.id

    def _due(self):
        with self.database.read() as db:
            rows = db.execute(select(job).where(job.c.state == "queued")).all()
        return [row.id for row in rows if row.not_before <= clock.stamp(after(self.now))]

    @holds(JobState.QUEUED, JobState.RUNNING)
    @rule(worker=st.sampled_from(WORKERS), state=st.sampled_from(ENDS))
    def a_worker_lets_go(self, worker, state):
        if worker not in self.held:
            self.a_worker_claims(worker)
        number = self.held.pop(worker, None)
        if number is None:
            return
        row = ledgers.job_row(self.database, number)
        with self.transaction() as db:
            still = job_table.let_go(db, number, worker, state, after(self.now), protocol="t1")
            following = Stage(row.stage).following
            if still and state is JobState.DONE and following is not None:
                uid, revision = row.series_instance_uid, row.revision
                job_table.enqueue(db, uid, revision, following, "t1", after(self.now))
        assert still == (row.state == "running" and row.worker == worker)

    @precondition(lambda self: self.held)
    @rule(worker=st.sampled_from(WORKERS))
    def a_worker_gives_a_sign_of_life(self, worker):
        if worker in self.held:
            with self.transaction() as db:
                number = self.held[worker]
                job_table.renew_lease(db, number, worker, LEASE_S, after(self.now))

    @holds(JobState.RUNNING)
    @rule(later=st.booleans())
    def the_leases_that_are_over_are_taken_back(self, later):
        self.now += (LEASE_S + 1) * later
        with self.transaction() as db:
            job_table.requeue_expired(db, MAX_ATTEMPTS, after(self.now))
        with self.database.read() as db:
            for row in db.execute(select(job).where(job.c.state == "running")):
                assert row.lease_until >= clock.stamp(after(self.now))

    @holds(JobState.WAITING)
    @rule()
    def the_batch_grows(self):
        with self.transaction() as db:
            job_table.release_waiting(db, "t1", after(self.now))
        assert "waiting" not in ledgers.states(self.database).values()

    @holds(JobState.FAILED, JobState.REJECTED)
    @rule()
    def the_operator_retries(self):
        with self.transaction() as db:
            job_table.retry_failed(db, after(self.now))
        assert not {"failed", "rejected"} & set(ledgers.states(self.database).values())

    @invariant()
    def every_job_has_moved_as_the_table_allows_and_is_still_there(self):
        found = {n: JobState(state) for n, state in ledgers.states(self.database).items()}
        for number, old in self.known.items():
            assert number in found, "a job was lost"
            new = found[number]
            assert new is old or new in TRANSITIONS[old], f"{old} became {new}"
        self.known = found

    @invariant()
    def every_step_of_the_way_is_queued_or_ended(self):
        with self.database.read() as db:
            jobs = db.execute(select(job)).all()
            found = {row.series_instance_uid: row for row in db.execute(select(series))}
        stages = {(row.series_instance_uid, row.revision, row.stage): row.state for row in jobs}
        for row in found.values():
            first = (row.series_instance_uid, row.revision, Stage.TOKENIZE)
            assert (row.state == "complete") == (first in stages)
        for (uid, revision, stage), state in stages.items():
            following = Stage(stage).following
            assert state != "done" or following is None or (uid, revision, following) in stages
            assert revision == found[uid].revision or state in ("done", "superseded")

    @invariant()
    def a_running_job_has_a_worker_and_a_lease(self):
        with self.database.read() as db:
            for row in db.execute(select(job).where(job.c.state == "running")):
                assert row.worker in WORKERS
                assert row.lease_until is not None


TestNode = Node.TestCase
TestNode.settings = settings(max_examples=40, stateful_step_count=25, deadline=None)


@pytest.fixture(scope="module")
def sent():
    """Two series of two instances each, as they came off the wire."""
    found = [make_instance("MR", index=i, seed=seed) for seed in (1, 2) for i in range(2)]
    return [received(ds) for ds in found]


def content(database, folder):
    """What the ledger and the inbox hold, but for the moments."""
    with database.read() as db:
        instances = db.execute(select(instance).order_by(instance.c.sop_instance_uid)).all()
        found = db.execute(select(series).order_by(series.c.series_instance_uid)).all()
    files = {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*.dcm")}
    return instances, found, files


def receive(instances):
    """File and record at one moment, as the receiver does; return what is then kept."""
    with tempfile.TemporaryDirectory() as folder, ledgers.ledger(Path(folder)) as database:
        inbox = Inbox(Path(folder) / "inbox", 0)
        ledgers.open_association(database)
        ledgers.record(database, *(inbox.file_instance(arrived) for arrived in instances))
        return content(database, Path(folder) / "inbox")


@settings(max_examples=15, deadline=None)
@given(st.permutations([0, 1, 2, 3]), st.lists(st.integers(0, 3), max_size=4))
def test_receiving_in_any_order_and_more_than_once_keeps_the_same(sent, order, again):
    assert receive([sent[i] for i in [*order, *again]]) == receive(sent)
