"""Scores, result objects and the outbox: nothing is queued that is not kept, nothing twice."""

import pytest
from sqlalchemy import select, update
from sqlalchemy.exc import IntegrityError

from dicom_node.findings import Finding
from dicom_node.jobs import DeliveryState, JobState, Stage
from dicom_node.store import job_table, result_table
from dicom_node.store.tables import delivery, job, result
from tests.make import ledgers
from tests.make.ledgers import NOON, after, record_score, result_object, score

FINDINGS = [
    Finding(1, 2.5, 9.0, 6.0, (1.0, -2.0, 3.5), (1.5, -2.5, 3.0), 12.0),
    Finding(2, 0.5, 5.0, 4.0, (10.0, 20.0, 30.0), (11.0, 21.0, 31.0), 4.0),
]


def outbox(database, score_id, numbers=(1, 2), destinations=("pacs",), at=NOON, findings=()):
    objects = [result_object(number, score_id) for number in numbers]
    with database.begin() as db:
        result_table.record_results(db, score_id, findings, objects, destinations, at)
    return objects


def due(database, destination="pacs", at=NOON, limit=10):
    with database.read() as db:
        found = result_table.due_deliveries(db, destination, at, limit)
    return [item.file_name for item in found]


def settle(database, uids, state, destination="pacs", at=NOON, **values):
    with database.begin() as db:
        result_table.settle_delivery(db, destination, uids, state, at, **values)


def rows(database):
    with database.read() as db:
        found = db.execute(select(delivery)).all()
    return {(row.sop_instance_uid, row.destination): row for row in found}


# -- scores and findings -------------------------------------------------------------------------


def test_the_first_score_of_a_revision_stays(database):
    first = record_score(database, score(subject_score=2.5))
    assert record_score(database, score(subject_score=9.9, batch_version="t1-later")) == first
    second = record_score(database, score(revision=2, subject_score=3.5))
    with database.read() as db:
        assert result_table.get_score(db, "1.2.1", 1) == (first, score(subject_score=2.5))
        assert result_table.get_score(db, "1.2.1", 2)[0] == second
        with pytest.raises(LookupError, match="revision 3 has no score"):
            result_table.get_score(db, "1.2.1", 3)
        identity = result_table.score_identity(db, first)
    assert identity == ("subject-1.2.1", "f", "t1-batch")


def test_a_score_names_a_batch_that_is_kept(database):
    with pytest.raises(IntegrityError), database.begin() as db:
        result_table.record_score(db, score(batch_version="never frozen"))


def test_findings_and_objects_come_back_as_they_were_made(database):
    number = record_score(database, score())
    objects = outbox(database, number, (2, 1), findings=FINDINGS[::-1])
    with database.read() as db:
        assert result_table.findings_of(db, number) == FINDINGS
        assert result_table.results_of(db, number) == objects[::-1]


# -- the outbox ----------------------------------------------------------------------------------


def test_results_and_their_deliveries_are_kept_together_or_not_at_all(database):
    number = record_score(database, score())
    good, broken = result_object(1), result_object(2, file_name=None)
    with pytest.raises(IntegrityError), database.begin() as db:
        result_table.record_results(db, number, FINDINGS, [good, broken], ["pacs"], NOON)
    with database.read() as db:
        assert db.execute(select(result)).all() == []
        assert result_table.findings_of(db, number) == []
    assert rows(database) == {}


def test_each_object_is_queued_for_each_destination(database):
    number = record_score(database, score())
    outbox(database, number, (1, 2), ("pacs", "research"))
    assert due(database, "pacs") == due(database, "research")
    assert due(database, "pacs") == [f"score-{number}/sc-0001.dcm", f"score-{number}/sc-0002.dcm"]
    assert due(database, "elsewhere") == []


def test_reporting_again_queues_nothing_that_was_delivered(database):
    number = record_score(database, score())
    first, _ = outbox(database, number)
    settle(database, [first.sop_instance_uid], DeliveryState.DELIVERED, status=0)
    outbox(database, number, at=after(60))
    assert due(database, at=after(60)) == [f"score-{number}/sc-0002.dcm"]


def test_the_oldest_score_is_sent_first_and_not_beyond_the_limit(database):
    numbers = [record_score(database, score(uid)) for uid in ("1.2.1", "1.2.2")]
    for number in reversed(numbers):
        outbox(database, number)
    expected = [f"score-{number}/sc-000{place}.dcm" for number in numbers for place in (1, 2)]
    assert due(database) == expected
    assert due(database, limit=3) == expected[:3]


def test_what_was_put_off_is_due_again_at_its_time(database):
    number = record_score(database, score())
    one, two = outbox(database, number)
    settle(
        *(database, [one.sop_instance_uid], DeliveryState.QUEUED),
        reason="refused",
        status=0xA700,
        not_before=after(30),
    )
    assert due(database, at=after(29.9)) == [two.file_name]
    assert due(database, at=after(30)) == [one.file_name, two.file_name]
    row = rows(database)[one.sop_instance_uid, "pacs"]
    assert (row.attempts, row.reason, row.status) == (1, "refused", 0xA700)
    assert rows(database)[two.sop_instance_uid, "pacs"].attempts == 0


def test_an_outcome_is_of_one_destination_and_of_what_is_still_queued(database):
    number = record_score(database, score())
    one, two = outbox(database, number, destinations=("pacs", "research"))
    settle(database, [one.sop_instance_uid], DeliveryState.DEAD, reason="not wanted")
    both = [one.sop_instance_uid, two.sop_instance_uid]
    settle(database, both, DeliveryState.DELIVERED, status=0)
    states = {key: row.state for key, row in rows(database).items()}
    assert states == {
        (one.sop_instance_uid, "pacs"): "dead",
        (two.sop_instance_uid, "pacs"): "delivered",
        (one.sop_instance_uid, "research"): "queued",
        (two.sop_instance_uid, "research"): "queued",
    }


def test_a_new_revision_stops_what_is_still_queued_of_the_earlier_ones_alone(database):
    old, new = (record_score(database, score(revision=revision)) for revision in (1, 2))
    other = record_score(database, score("1.2.2"))
    sent, unsent = outbox(database, old)
    outbox(database, new)
    outbox(database, other)
    settle(database, [sent.sop_instance_uid], DeliveryState.DELIVERED, status=0)
    with database.begin() as db:
        result_table.supersede_deliveries(db, "1.2.1", 2, after(5))
    found = rows(database)
    assert found[sent.sop_instance_uid, "pacs"].state == "delivered"
    assert found[unsent.sop_instance_uid, "pacs"].state == "superseded"
    assert len(due(database)) == 4


def test_retry_gives_a_dead_delivery_its_whole_time_again(database):
    number = record_score(database, score())
    dead, queued = outbox(database, number)
    settle(database, [dead.sop_instance_uid], DeliveryState.DEAD, reason="gone", status=0xA900)
    with database.begin() as db:
        assert result_table.retry_dead(db, after(90)) == 1
    assert due(database, at=after(89)) == [queued.file_name]
    with database.read() as db:
        found = result_table.due_deliveries(db, "pacs", after(90), 10)
    assert [(item.attempts, item.created) for item in found] == [(0, after(90)), (0, NOON)]


# -- what is shown -------------------------------------------------------------------------------


def test_faults_are_counted_per_destination_and_reason_and_end_with_the_delivery(database):
    number = record_score(database, score())
    one, two, three = outbox(database, number, (1, 2, 3))
    pair = [one.sop_instance_uid, two.sop_instance_uid]
    settle(database, pair, DeliveryState.QUEUED, reason="cannot connect", at=after(1))
    settle(
        *(database, [three.sop_instance_uid], DeliveryState.DEAD),
        reason="not wanted",
        at=after(2),
    )
    with database.read() as db:
        faults = result_table.delivery_faults(db, 10)
        assert [(f.destination, f.state, f.reason, f.n) for f in faults] == [
            ("pacs", "dead", "not wanted", 1),
            ("pacs", "queued", "cannot connect", 2),
        ]
        assert len(result_table.delivery_faults(db, 1)) == 1
        assert result_table.delivery_counts(db) == {("pacs", "dead"): 1, ("pacs", "queued"): 2}
        (shown,) = [row for row in result_table.deliveries_of(db, number) if row.state == "dead"]
    assert (shown.kind, shown.destination, shown.reason, shown.n) == ("SC", "pacs", "not wanted", 1)
    settle(database, pair, DeliveryState.DELIVERED, status=0)
    with database.read() as db:
        assert [f.reason for f in result_table.delivery_faults(db, 10)] == ["not wanted"]


def test_the_worklist_shows_the_newest_series_with_its_current_score_and_last_job(database):
    ledgers.complete_series(database, "1.2.1", NOON)
    ledgers.complete_series(database, "1.2.2", after(10))
    old = record_score(database, score("1.2.1"))
    outbox(database, old, findings=FINDINGS)
    ledgers.enqueue(database, "1.2.1", Stage.SCORE)
    with database.read() as db:
        first, second = result_table.worklist(db, 10)
        assert [row.series_instance_uid for row in result_table.worklist(db, 1)] == ["1.2.2"]
        assert result_table.series_row(db, "9.9") is None
        assert result_table.series_row(db, "1.2.1") == second
    assert (first.series_instance_uid, first.score_id, first.n_findings) == ("1.2.2", None, 0)
    assert (second.score_id, second.n_findings, second.subject_score) == (old, 2, 2.5)
    assert (second.stage, second.job_state) == ("score", "queued")
    ledgers.record(database, ledgers.filed(2, "1.2.1", 1), at=after(20))
    with database.read() as db:
        reopened = result_table.series_row(db, "1.2.1")
    assert (reopened.revision, reopened.score_id) == (2, None)


@pytest.mark.parametrize(
    ("report", "sent", "expected"),
    [
        ("running", "queued", (0, 0)),
        ("done", "queued", (0, 0)),
        ("done", "delivered", (1, 1)),
        ("done", "dead", (0, 1)),
        ("rejected", None, (0, 1)),
    ],
)
def test_a_series_is_at_an_end_when_nothing_of_it_is_under_way(database, report, sent, expected):
    ledgers.complete_series(database, "1.2.1")
    number = ledgers.enqueue(database, "1.2.1", Stage.REPORT)
    with database.begin() as db:
        db.execute(update(job).where(job.c.id == number).values(state=report))
    if sent is not None:
        outbox(database, record_score(database, score()), (1,))
        with database.begin() as db:
            db.execute(update(delivery).values(state=sent))
    with database.read() as db:
        assert result_table.progress_of(db) == expected


def test_a_series_without_a_report_is_not_at_an_end(database):
    ledgers.complete_series(database, "1.2.1")
    with database.begin() as db:
        found = job_table.claim(db, "one", 60, NOON)
        job_table.move(db, found.id, JobState.DONE, NOON)
    with database.read() as db:
        assert result_table.progress_of(db) == (0, 0)
