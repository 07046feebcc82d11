"""The worker: what a stage does or raises becomes the state of its job."""

import threading
import time
from datetime import timedelta

import pytest
import torch

from dicom_node import clock, errors, founding, pipeline, worker
from dicom_node.errors import Disposition, InsufficientReference, NodeError
from dicom_node.jobs import URGENT, Stage
from dicom_node.store import job_table, reference_table, result_table
from dicom_node.store.reference_table import ADMITTED
from dicom_node.store.tables import job
from dicom_node.worker import Worker
from tests.make import ledgers, lines
from tests.make.ledgers import NOON, after, enqueue, job_row

MAX_ATTEMPTS = 3
STATES = {
    Disposition.RETRY: "queued",
    Disposition.WAIT: "waiting",
    Disposition.REJECT: "rejected",
    Disposition.HALT: "failed",
}


@pytest.fixture(scope="session")
def weights(tmp_path_factory):
    return lines.tiny_weights(tmp_path_factory.mktemp("weights"))


@pytest.fixture
def line(database, tmp_path, weights):
    return lines.make_line(database, tmp_path, weights, scoring={"max_attempts": MAX_ATTEMPTS})


@pytest.fixture
def stage(monkeypatch):
    """Put a function in the place of one stage."""

    def put(which, run):
        monkeypatch.setitem(worker._STAGES, which, run)

    return put


def raising(error):
    def run(*_arguments):
        raise error

    return run


def every(kind=NodeError):
    for child in kind.__subclasses__():
        yield child
        yield from every(child)


# -- what a stage raises -------------------------------------------------------------------------


@pytest.mark.usefixtures("now")
@pytest.mark.parametrize("kind", list(every()), ids=lambda kind: kind.__name__)
def test_every_fault_becomes_the_state_that_its_disposition_says(line, stage, kind):
    number = enqueue(line.database, "1.2.1", Stage.SCORE, protocol="t1")
    stage(Stage.SCORE, raising(kind("what happened")))
    assert Worker(line, "one").run_one()
    row = job_row(line.database, number)
    assert (row.state, row.reason) == (STATES[kind.disposition], "what happened")
    assert (row.worker, row.protocol, row.attempts) == (None, "t1", 1)
    assert ledgers.states(line.database) == {number: row.state}


def test_a_lost_device_costs_its_worker_and_no_other_job(line, stage, now):
    number = enqueue(line.database, "1.2.1", Stage.SCORE)
    other = enqueue(line.database, "1.2.2", Stage.TOKENIZE)
    stage(Stage.SCORE, raising(torch.AcceleratorError("CUDA error: illegal memory access")))
    stage(Stage.TOKENIZE, lambda *_: "t1")
    with pytest.raises(torch.AcceleratorError):
        Worker(line, "one").run(threading.Event())
    row = job_row(line.database, number)
    assert (row.state, row.attempts, row.fault) == ("queued", 1, "AcceleratorError")
    stage(Stage.SCORE, lambda *_: "t1-abc")
    now[0] = 5.0
    again = Worker(line, "two")
    while again.run_one():
        pass
    states = ledgers.states(line.database)
    assert (states[number], states[other]) == ("done", "done")


def test_what_may_pass_is_tried_again_ever_later_until_the_attempts_are_used_up(line, stage, now):
    number = enqueue(line.database, "1.2.1", Stage.SCORE)
    stage(Stage.SCORE, raising(errors.InboxFull()))
    working = Worker(line, "one")
    for delay in (5.0, 20.0):
        assert working.run_one()
        row = job_row(line.database, number)
        assert (row.state, row.not_before) == ("queued", clock.stamp(after(now[0] + delay)))
        now[0] += delay - 0.001
        assert not working.run_one()
        now[0] += 0.001
    assert working.run_one()
    row = job_row(line.database, number)
    assert (row.state, row.attempts) == ("failed", MAX_ATTEMPTS)
    now[0] += 3600
    assert not working.run_one()


def test_a_fault_of_ours_is_recorded_with_its_type_and_logged_with_its_place(
    line, stage, now, caplog
):
    number = enqueue(line.database, "1.2.1", Stage.SCORE)
    stage(Stage.SCORE, raising(ZeroDivisionError("by nought")))
    for _attempt in range(MAX_ATTEMPTS):
        assert Worker(line, "one").run_one()
        now[0] += 3600
    row = job_row(line.database, number)
    assert (row.state, row.reason) == ("failed", "ZeroDivisionError: by nought")
    assert "in run\n    raise error" in caplog.text


def test_a_job_that_failed_keeps_no_other_from_its_turn(line, stage):
    enqueue(line.database, "1.2.1", Stage.SCORE)
    stage(Stage.SCORE, raising(errors.WeightsMissing()))
    stage(Stage.TOKENIZE, lambda *_: "t1")
    second = enqueue(line.database, "1.2.2", Stage.TOKENIZE)
    working = Worker(line, "one")
    assert working.run_one()
    assert working.run_one()
    assert job_row(line.database, second).state == "done"


# -- what a stage returns ------------------------------------------------------------------------


def test_a_stage_that_is_done_queues_the_next_one_until_the_last(line, stage):
    for which, outcome in (("tokenize", "t1"), ("score", "t1-abc"), ("report", "2 findings")):
        stage(Stage(which), lambda *_, said=outcome: said)
    enqueue(line.database, "1.2.1", Stage.TOKENIZE, revision=4)
    working = Worker(line, "one")
    while working.run_one():
        pass
    rows = [job_row(line.database, number) for number in sorted(ledgers.states(line.database))]
    assert [(row.stage, row.revision, row.state, row.reason, row.protocol) for row in rows] == [
        ("tokenize", 4, "done", "t1", "t1"),
        ("score", 4, "done", "t1-abc", "t1"),
        ("report", 4, "done", "2 findings", "t1"),
    ]


@pytest.mark.parametrize("outcome", [lambda *_: "t1", raising(errors.InconsistentSeries())])
def test_what_was_superseded_while_it_ran_stays_so_and_queues_nothing(line, stage, outcome):
    number = enqueue(line.database, "1.2.1", Stage.TOKENIZE)

    def run(*arguments):
        with line.database.begin() as db:
            job_table.supersede(db, "1.2.1", NOON)
        return outcome(*arguments)

    stage(Stage.TOKENIZE, run)
    assert Worker(line, "one").run_one()
    assert ledgers.states(line.database) == {number: "superseded"}


def test_what_another_worker_has_taken_over_is_not_ended_by_the_first(line, stage, now):
    number = enqueue(line.database, "1.2.1", Stage.TOKENIZE)

    def run(*_arguments):
        now[0] += worker.LEASE_S + 1
        with line.database.begin() as db:
            job_table.requeue_expired(db, MAX_ATTEMPTS, clock.now())
            assert job_table.claim(db, "two", worker.LEASE_S, clock.now()).id == number
        return "t1"

    stage(Stage.TOKENIZE, run)
    assert Worker(line, "one").run_one()
    row = job_row(line.database, number)
    assert (row.state, row.worker) == ("running", "two")
    assert ledgers.states(line.database) == {number: "running"}


# -- waiting for the batch -----------------------------------------------------------------------


def grow(line, n):
    """Make `n` subjects of other patients known, as the tokenizing of their series does."""
    batch = line.batch(line.config.protocol_named("t1"))
    for place in range(n):
        batch.add_candidate(f"s{place}", f"1.9.{place}", f"patient {place}", clock.now())


def test_a_job_waits_while_the_batch_is_too_small(line, stage):
    grow(line, 3)
    number = enqueue(line.database, "1.2.1", Stage.SCORE, protocol="t1")
    stage(Stage.SCORE, raising(InsufficientReference("2 of 3")))
    working = Worker(line, "one")
    assert working.run_one()
    assert not working.run_one()
    assert job_row(line.database, number).state == "waiting"


def test_a_batch_that_grew_while_the_job_ran_releases_it(line, stage):
    """Whoever made it grow released what waited then; this job was not waiting yet."""
    grow(line, 3)
    number = enqueue(line.database, "1.2.1", Stage.SCORE, protocol="t1")

    def run(*_arguments):
        grow(line, 4)
        with line.database.begin() as db:
            assert job_table.release_waiting(db, "t1", clock.now()) == 0
        raise InsufficientReference("2 of 3")

    stage(Stage.SCORE, run)
    working = Worker(line, "one")
    assert working.run_one()
    row = job_row(line.database, number)
    assert (row.state, row.attempts) == ("queued", 0)
    stage(Stage.SCORE, lambda *_: "t1-abc")
    assert working.run_one()
    assert job_row(line.database, number).state == "done"


# -- signs of life -------------------------------------------------------------------------------


def until(condition, timeout_s=20.0):
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


def test_a_long_stage_keeps_its_lease(line, stage, monkeypatch):
    monkeypatch.setattr(worker, "LEASE_S", 0.4)
    number = enqueue(line.database, "1.2.1", Stage.TOKENIZE)

    def run(*_arguments):
        first = clock.parse(job_row(line.database, number).lease_until)
        beyond = clock.stamp(first + timedelta(seconds=1))
        until(lambda: job_row(line.database, number).lease_until > beyond)
        return "t1"

    stage(Stage.TOKENIZE, run)
    assert Worker(line, "one").run_one()
    assert job_row(line.database, number).state == "done"
    assert not [thread for thread in threading.enumerate() if "_beat" in thread.name]


def test_a_ledger_that_is_locked_for_a_while_does_not_end_the_heartbeat(
    tmp_path, weights, stage, monkeypatch, caplog
):
    monkeypatch.setattr(worker, "LEASE_S", 0.4)
    with ledgers.ledger(tmp_path, timeout_s=0.05) as database:
        line = lines.make_line(database, tmp_path, weights)
        number = enqueue(database, "1.2.1", Stage.TOKENIZE)

        def run(*_arguments):
            with database.begin():
                until(lambda: "lease not renewed" in caplog.text)
            before = job_row(database, number).lease_until
            until(lambda: job_row(database, number).lease_until > before)
            return "t1"

        stage(Stage.TOKENIZE, run)
        assert Worker(line, "one").run_one()
        assert job_row(database, number).state == "done"


def test_a_stage_that_hangs_costs_its_worker_and_is_set_aside_in_the_end(
    database, tmp_path, weights, stage, monkeypatch
):
    limits = {"max_attempts": 2, "stage_limit": "200 ms"}
    line = lines.make_line(database, tmp_path, weights, scoring=limits)
    number = enqueue(database, "1.2.1", Stage.SCORE)
    other = enqueue(database, "1.2.2", Stage.TOKENIZE)
    for state in ("queued", "failed"):
        ended = threading.Event()
        monkeypatch.setattr(worker, "end_process", ended.set)
        stage(Stage.SCORE, lambda *_, ended=ended: ended.wait(20.0) and "t1-abc")
        assert Worker(line, "one").run_one()
        row = job_row(database, number)
        assert (row.state, row.fault) == (state, "TimeoutError")
        assert "did not end within 0.2 s (scoring.stage_limit)" in row.reason
        with database.begin() as db:  # its wait is over
            db.execute(job.update().values(not_before=clock.stamp(NOON)))
    stage(Stage.TOKENIZE, lambda *_: "t1")
    assert Worker(line, "one").run_one()
    assert job_row(database, other).state == "done"


def test_urgent_work_overtakes_what_waits(database, tmp_path, weights, stage):
    line = lines.make_line(database, tmp_path, weights, protocol={"urgent": True})
    order = []

    def run(_line, uid, *_):
        order.append(uid)
        return "other" if uid == "1.2.2" else "t1"

    for which in Stage:
        stage(which, run)
    enqueue(database, "1.2.1", Stage.TOKENIZE)  # of the urgent protocol, which is not known yet
    enqueue(database, "1.2.2", Stage.TOKENIZE)
    enqueue(database, "1.2.3", Stage.TOKENIZE, priority=URGENT)  # of an urgent sender
    working = Worker(line, "one")
    while working.run_one():
        pass
    assert order == [*["1.2.3"] * 3, *["1.2.1"] * 3, *["1.2.2"] * 3]
    with database.read() as db:
        priorities = {row.series_instance_uid: row.priority for row in db.execute(job.select())}
    assert priorities == {"1.2.1": URGENT, "1.2.2": 0, "1.2.3": URGENT}


def test_what_a_dead_worker_left_is_taken_up(line, stage, now):
    number = enqueue(line.database, "1.2.1", Stage.TOKENIZE)
    with line.database.begin() as db:
        job_table.claim(db, "dead", worker.LEASE_S, clock.now())
    stage(Stage.TOKENIZE, lambda *_: "t1")
    now[0] = worker.LEASE_S
    assert not Worker(line, "one").run_one()
    now[0] = worker.LEASE_S + 1
    assert Worker(line, "one").run_one()
    assert job_row(line.database, number).state == "done"


def test_a_worker_that_is_stopped_finishes_the_job_in_hand_and_begins_no_other(line, stage):
    first, second = (enqueue(line.database, f"1.2.{n}", Stage.TOKENIZE) for n in (1, 2))
    stop = threading.Event()
    stage(Stage.TOKENIZE, lambda *_: stop.set() or "t1")
    Worker(line, "one").run(stop)
    states = ledgers.states(line.database)
    assert (states[first], states[second]) == ("done", "queued")


def test_a_ledger_that_does_not_answer_does_not_end_the_worker(
    tmp_path, weights, stage, caplog, monkeypatch
):
    monkeypatch.setattr(worker, "_IDLE_S", 0.02)
    stop = threading.Event()
    with ledgers.ledger(tmp_path, timeout_s=0.05) as database:
        line = lines.make_line(database, tmp_path, weights)
        number = enqueue(database, "1.2.1", Stage.TOKENIZE)
        stage(Stage.TOKENIZE, lambda *_: stop.set() or "t1")
        thread = threading.Thread(target=Worker(line, "one").run, args=(stop,))
        with database.begin():
            thread.start()
            until(lambda: "the work waits: the ledger does not answer" in caplog.text)
        thread.join(20)
        assert not thread.is_alive()
        assert job_row(database, number).state == "done"


# -- with the real stages ------------------------------------------------------------------------


def work(line):
    working = Worker(line, "one")
    while working.run_one():
        pass


def by_stage(database):
    with database.read() as db:
        return job_table.counts(db)


def test_the_first_studies_wait_for_each_other_and_are_then_scored_and_reported(line):
    for seed in range(3):
        lines.receive_series(line, seed)
        work(line)
    assert by_stage(line.database) == {"tokenize done": 3, "score waiting": 3}
    uid = lines.receive_series(line, 3)
    work(line)
    assert by_stage(line.database) == {"tokenize done": 4, "score done": 4, "report done": 4}
    with line.database.read() as db:
        score_id, entry = result_table.get_score(db, uid, 1)
        assert entry.n_reference == 3
        findings = result_table.findings_of(db, score_id)
        objects = result_table.results_of(db, score_id)
        due = result_table.due_deliveries(db, "pacs", clock.now(), 100)
    assert [item.kind for item in objects] == (["SEG", "SR"] if findings else ["SR"])
    # a report says so where nothing is found, a segmentation of nothing is not made
    sent = {item.file_name for item in due if item.score_id == score_id}
    assert sent == {item.file_name for item in objects}
    assert all((line.folders.results / name).exists() for name in sent)


def test_tokens_that_are_kept_are_not_made_again(line, monkeypatch):
    uid = lines.receive_series(line, 1)
    assert pipeline.tokenize(line, uid, lambda _share: None) == "t1"
    kept = {path: path.stat().st_mtime_ns for path in line.folders.root.glob("tokens/*/*")}
    assert len(kept) == 1
    monkeypatch.setattr(founding, "make_subject", raising(AssertionError("made again")))
    assert pipeline.tokenize(line, uid, lambda _share: None) == "t1"
    assert {path: path.stat().st_mtime_ns for path in kept} == kept


def test_a_score_that_is_made_again_does_not_replace_the_first(line):
    uids = [lines.receive_series(line, seed) for seed in range(5)]
    for uid in uids[:4]:
        pipeline.tokenize(line, uid, lambda _share: None)
    first = pipeline.score(line, uids[0], lambda _share: None)
    pipeline.tokenize(line, uids[4], lambda _share: None)
    again = pipeline.score(line, uids[0], lambda _share: None)
    assert again != first
    with line.database.read() as db:
        _, entry = result_table.get_score(db, uids[0], 1)
    assert (entry.batch_version, entry.n_reference) == (first, 3)
    assert (pipeline.score_folder(line, entry) / "tokens.safetensors").exists()


def test_a_study_that_waits_while_the_token_space_changes_is_tokenized_anew(
    database, tmp_path, weights, stage
):
    """As after an upgrade, or a new seed: the tokens that it has are of no use any more."""
    stage(Stage.REPORT, lambda *_: "not looked at here")
    before = lines.make_line(database, tmp_path, weights, encoder={"seed": 1})
    for seed in range(2):
        lines.receive_series(before, seed)
    work(before)
    assert by_stage(database) == {"tokenize done": 2, "score waiting": 2}
    after_change = lines.make_line(database, tmp_path, weights, encoder={"seed": 2})
    for seed in range(2, 6):
        lines.receive_series(after_change, seed)
    work(after_change)
    assert by_stage(database) == {"tokenize done": 6, "score done": 6, "report done": 6}
    t1 = after_change.config.protocol_named("t1")
    where = ("t1", after_change.token_fingerprint(t1), (ADMITTED, reference_table.CANDIDATE))
    with database.read() as db:
        assert len(reference_table.members(db, *where)) >= 5
