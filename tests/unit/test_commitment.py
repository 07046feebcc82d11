"""A destination that is asked whether it commits: what its answers, and its silence, lead to."""

import threading
import time
from contextlib import contextmanager

import pytest
from pydicom.dataset import Dataset
from pydicom.uid import MRImageStorage
from pynetdicom import AE, evt
from pynetdicom.sop_class import StorageCommitmentPushModel
from sqlalchemy import select

from dicom_node import clock
from dicom_node.association import sockets
from dicom_node.association.commitment import PUSH_MODEL_INSTANCE, Report
from dicom_node.commitment import Commitments, record_report
from dicom_node.delivery import Lane
from dicom_node.network_config import Destination
from dicom_node.store import result_table
from dicom_node.store.tables import commitment, delivery
from tests.make import ledgers
from tests.make.instances import make_instance, write
from tests.make.ledgers import NOON, after

RETRY_FIRST_S, TIMEOUT_S, GIVE_UP_S = 10.0, 600.0, 3000.0


class Archive:
    """A PACS that stores everything and answers requests for commitment as it is told."""

    def __init__(self):
        self.stored, self.requests = [], []
        #: of the N-ACTION response; what of a request it does not commit to; whether it reports
        self.status, self.failures, self.reports = 0x0000, {}, True
        self.port = 0

    @contextmanager
    def running(self, *, offers_commitment=True):
        entity = AE("PACS")
        entity.add_supported_context(MRImageStorage)
        if offers_commitment:
            entity.add_supported_context(StorageCommitmentPushModel)
        handlers = [
            *sockets.handlers(30.0),
            (evt.EVT_C_STORE, self._on_c_store),
            (evt.EVT_N_ACTION, self._on_n_action),
        ]
        server = entity.start_server(("127.0.0.1", 0), block=False, evt_handlers=handlers)
        self.port = server.server_address[1]
        try:
            yield self
        finally:
            server.shutdown()

    def _on_c_store(self, event):
        self.stored.append(event.request.AffectedSOPInstanceUID)
        return 0x0000

    def _on_n_action(self, event):
        request = event.action_information
        self.requests.append(request)
        if self.reports and not self.status:
            threading.Thread(target=self._report, args=(event.assoc, request)).start()
        return self.status, None

    def _report(self, assoc, request):
        """On the same association, after the response."""
        time.sleep(0.2)
        report, asked = Dataset(), request.ReferencedSOPSequence
        report.TransactionUID = request.TransactionUID
        failed = [item for item in asked if item.ReferencedSOPInstanceUID in self.failures]
        report.ReferencedSOPSequence = [item for item in asked if item not in failed]
        if failed:
            for item in failed:
                item.FailureReason = self.failures[item.ReferencedSOPInstanceUID]
            report.FailedSOPSequence = failed
        assoc.send_n_event_report(
            report, 2 if failed else 1, StorageCommitmentPushModel, PUSH_MODEL_INSTANCE
        )


@pytest.fixture
def archive():
    with Archive().running() as running:
        yield running


class Sender:
    """A lane and its commitments, one step at a time, as the lane runs them."""

    def __init__(self, database, tmp_path, port, **changes):
        values = {
            "name": "pacs",
            "ae_title": "PACS",
            "host": "127.0.0.1",
            "port": port,
            "timeout": "30 s",
            "retry_first": f"{RETRY_FIRST_S} s",
            "give_up": f"{GIVE_UP_S} s",
            "commitment": True,
            "commitment_timeout": f"{TIMEOUT_S} s",
        }
        self.destination = Destination(**(values | changes))
        arguments = (database, tmp_path / "results", self.destination, "NODE")
        self.lane, self.commitments = Lane(*arguments), Commitments(*arguments)

    def round(self):
        self.lane.send_due()
        return self.commitments.step()


def outbox(database, tmp_path, n=2):
    number = ledgers.record_score(database, ledgers.score())
    objects = []
    for index in range(n):
        item = ledgers.result_object(index + 1, number)
        write(
            make_instance(index=index, SOPInstanceUID=item.sop_instance_uid),
            tmp_path / "results" / item.file_name,
        )
        objects.append(item)
    with database.begin() as db:
        result_table.record_results(db, number, [], objects, ("pacs",), NOON)
    return [item.sop_instance_uid for item in objects]


def rows(database):
    with database.read() as db:
        return {row.sop_instance_uid: row for row in db.execute(select(delivery))}


def states(database):
    return {uid: row.state for uid, row in rows(database).items()}


def transactions(database):
    with database.read() as db:
        return list(db.execute(select(commitment).order_by(commitment.c.asked)))


def until(condition, timeout_s=60.0):
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)


def test_what_the_destination_commits_to_is_delivered_and_not_before(
    database, tmp_path, archive, now
):
    uids = outbox(database, tmp_path)
    sender = Sender(database, tmp_path, archive.port)
    sender.lane.send_due()
    assert states(database) == dict.fromkeys(uids, "stored")
    now[0] = 1.0
    assert sender.commitments.step()
    until(lambda: states(database) == dict.fromkeys(uids, "delivered"))
    for row in rows(database).values():
        assert (row.status, row.committed, row.reason) == (0, clock.stamp(after(1)), None)
    [request] = archive.requests
    assert {
        (item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID)
        for item in request.ReferencedSOPSequence
    } == {(MRImageStorage, uid) for uid in uids}
    assert not sender.round()
    assert len(archive.requests) == 1


def test_what_it_does_not_commit_to_is_sent_again(database, tmp_path, archive, now):
    kept, lost = outbox(database, tmp_path)
    archive.failures = {lost: 0x0112}
    sender = Sender(database, tmp_path, archive.port)
    sender.round()
    until(lambda: rows(database)[lost].failure == 0x0112)
    assert not sender.commitments.step()
    assert states(database) == {kept: "delivered", lost: "queued"}
    assert "does not commit to it: 0x0112 (no such object instance)" in rows(database)[lost].reason
    archive.failures = {}
    now[0] = 1000.0
    sender.round()
    until(lambda: states(database) == dict.fromkeys((kept, lost), "delivered"))
    assert archive.stored == [kept, lost, lost]


def test_silence_leads_to_another_try_and_at_last_aside(database, tmp_path, archive, now):
    (uid,) = outbox(database, tmp_path, 1)
    archive.reports = False
    sender = Sender(database, tmp_path, archive.port)
    sender.round()
    now[0] = TIMEOUT_S - 1
    assert not sender.round()
    assert states(database) == {uid: "stored"}
    now[0] = TIMEOUT_S
    sender.commitments.step()
    assert states(database) == {uid: "queued"}
    assert "did not report within 600 s" in rows(database)[uid].reason
    now[0] = GIVE_UP_S - 1
    assert sender.round()
    assert archive.stored == [uid, uid]
    assert states(database) == {uid: "stored"}
    now[0] = GIVE_UP_S + TIMEOUT_S
    sender.commitments.step()
    assert states(database) == {uid: "dead"}
    assert "did not report" in rows(database)[uid].reason


def test_a_report_finds_its_transaction_however_late(database, tmp_path, archive, now):
    uids = outbox(database, tmp_path)
    archive.reports = False
    sender = Sender(database, tmp_path, archive.port)
    sender.round()
    now[0] = TIMEOUT_S
    sender.commitments.step()
    now[0] = 2 * TIMEOUT_S
    sender.round()
    first, second = (row.transaction_uid for row in transactions(database))
    # of the earlier one a refusal is out of date, a commitment is not
    late = Report(first, (uids[0],), ((uids[1], 0x0112),))
    assert record_report(database, late)
    assert states(database) == {uids[0]: "delivered", uids[1]: "stored"}
    assert rows(database)[uids[1]].failure is None
    assert record_report(database, Report(second, (uids[1],), ()))
    assert states(database) == dict.fromkeys(uids, "delivered")
    assert not record_report(database, Report("2.25.1", tuple(uids), ()))


@pytest.mark.usefixtures("now")
def test_a_report_says_nothing_of_another_destination(database, tmp_path):
    (uid,) = outbox(database, tmp_path, 1)
    with database.begin() as db:
        db.execute(
            commitment.insert().values(
                transaction_uid="2.25.7", destination="other", asked=clock.stamp(clock.now())
            )
        )
    assert record_report(database, Report("2.25.7", (uid,), ()))
    assert states(database) == {uid: "queued"}


@pytest.mark.parametrize(
    ("offers", "status", "said"),
    [
        (False, 0, "does not offer storage commitment"),
        (True, 0x0213, "answered the storage commitment request with 0x0213"),
    ],
)
def test_a_destination_that_cannot_be_asked_is_asked_again(
    database, tmp_path, now, offers, status, said
):
    (uid,) = outbox(database, tmp_path, 1)
    archive = Archive()
    archive.status = status
    with archive.running(offers_commitment=offers):
        sender = Sender(database, tmp_path, archive.port)
        assert sender.round()
        row = rows(database)[uid]
        assert (row.state, row.transaction_uid) == ("stored", None)
        assert said in row.reason
        assert not sender.round()
        assert archive.stored == [uid]
        now[0] = GIVE_UP_S
        sender.round()
        assert states(database) == {uid: "dead"}
    # by `dicom-node retry` it goes the whole way again
    with database.begin() as db:
        result_table.retry_dead(db, clock.now())
    with Archive().running() as better:
        Sender(database, tmp_path, better.port).round()
        until(lambda: states(database) == {uid: "delivered"})
        assert better.stored == [uid]


def test_killed_before_the_request_has_left_nothing_is_lost(
    database, tmp_path, archive, now, monkeypatch
):
    (uid,) = outbox(database, tmp_path, 1)

    def killed(*_arguments):
        raise SystemExit

    with monkeypatch.context() as patch:
        patch.setattr("dicom_node.commitment.ask", killed)
        with pytest.raises(SystemExit):
            Sender(database, tmp_path, archive.port).round()
    assert states(database) == {uid: "stored"}
    now[0] = TIMEOUT_S
    after_restart = Sender(database, tmp_path, archive.port)
    after_restart.round()
    now[0] = 2 * TIMEOUT_S
    after_restart.round()
    until(lambda: states(database) == {uid: "delivered"})
    assert len(archive.requests) == 1


@pytest.mark.usefixtures("now")
def test_when_it_is_no_longer_asked_what_is_stored_is_delivered(database, tmp_path, archive):
    (uid,) = outbox(database, tmp_path, 1)
    archive.reports = False
    Sender(database, tmp_path, archive.port).round()
    without = Sender(database, tmp_path, archive.port, commitment=False)
    without.commitments.begin()
    assert states(database) == {uid: "delivered"}
    assert rows(database)[uid].committed is None
    assert not without.round()
