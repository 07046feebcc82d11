"""Senders that ask whether this node is responsible: what they are told, and by which way."""

import time
from contextlib import contextmanager

import pytest
from pydicom.dataset import Dataset
from pydicom.uid import CTImageStorage, MRImageStorage
from pynetdicom import AE, evt
from pynetdicom.sop_class import StorageCommitmentPushModel
from sqlalchemy import select

from dicom_node import clock
from dicom_node.association import sockets
from dicom_node.association.acceptor import Acceptor, AcceptorSettings
from dicom_node.association.commitment import PUSH_MODEL_INSTANCE, Reference
from dicom_node.association.commitment_reports import Request
from dicom_node.config import Node, NodeConfig
from dicom_node.demo.pacs import free_ports
from dicom_node.inbox import Inbox
from dicom_node.network_config import KnownPeer
from dicom_node.parts.receiver import Reception
from dicom_node.pledges import Reporter
from dicom_node.store import series_table
from dicom_node.store.tables import owed, refusal
from tests.make import ledgers
from tests.make.instances import make_instance, received

#: the library forgets the sockets that were never connected
pytestmark = pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")


@pytest.fixture
def reception(database, tmp_path):
    return Reception(database, Inbox(tmp_path / "inbox", 0))


@pytest.fixture
def acceptor(reception):
    started = Acceptor(AcceptorSettings("NODE", "127.0.0.1", 0, 10, 30.0, (), False), reception)
    started.start()
    yield started
    started.stop()


@pytest.fixture
def series(reception):
    """Two MR instances of one series, received over an association that has ended."""
    instances = [make_instance(index=index) for index in range(2)]
    number = reception.association_opened("MR1", "127.0.0.1")
    for ds in instances:
        reception.instance_received(received(ds, association_id=number))
    reception.association_closed(number)
    return instances


class Told:
    """The reports that a sender got."""

    def __init__(self):
        self.reports = []
        self.status = 0x0000

    def handler(self, event):
        self.reports.append((event.event_type, event.event_information))
        return self.status, None


def request(*pairs, transaction_uid="2.25.11"):
    ds = Dataset()
    if transaction_uid:
        ds.TransactionUID = transaction_uid
    ds.ReferencedSOPSequence = []
    for sop_class, uid in pairs:
        item = Dataset()
        item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = sop_class, uid
        ds.ReferencedSOPSequence.append(item)
    return ds


def pairs_of(series):
    return [(ds.SOPClassUID, ds.SOPInstanceUID) for ds in series]


@contextmanager
def asking(acceptor, told, calling="MR1"):
    """An association of a sender that knows storage commitment."""
    entity = AE(calling)
    entity.acse_timeout = entity.dimse_timeout = entity.network_timeout = 60
    entity.add_requested_context(StorageCommitmentPushModel)
    assoc = entity.associate(
        "127.0.0.1",
        acceptor.port,
        ae_title="NODE",
        evt_handlers=[*sockets.handlers(60), (evt.EVT_N_EVENT_REPORT, told.handler)],
    )
    assert assoc.is_established
    try:
        yield assoc
    finally:
        assoc.release()
        sockets.close(assoc)


def ask(assoc, ds, action=1, instance=PUSH_MODEL_INSTANCE):
    status, _ = assoc.send_n_action(ds, action, StorageCommitmentPushModel, instance)
    return status.Status


@contextmanager
def listening(told):
    """A sender that takes reports on associations to it; its port."""
    entity = AE("MR1")
    entity.add_supported_context(StorageCommitmentPushModel, scu_role=True, scp_role=True)
    server = entity.start_server(
        ("127.0.0.1", 0),
        block=False,
        evt_handlers=[*sockets.handlers(60), (evt.EVT_N_EVENT_REPORT, told.handler)],
    )
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()


def reporter(database, tmp_path, port=None):
    peers = () if port is None else (KnownPeer(ae_title="MR1", host="127.0.0.1", port=port),)
    config = NodeConfig(node=Node(ae_title="NODE"), peer=peers)
    return Reporter(database, tmp_path / "inbox", config)


def until(condition, timeout_s=60.0):
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)


def owed_rows(database):
    with database.read() as db:
        return list(db.execute(select(owed)))


def states(database):
    return [row.state for row in owed_rows(database)]


def said(report):
    event_type, ds = report
    committed = {item.ReferencedSOPInstanceUID for item in ds.get("ReferencedSOPSequence") or ()}
    failed = {
        item.ReferencedSOPInstanceUID: item.FailureReason
        for item in ds.get("FailedSOPSequence") or ()
    }
    return event_type, ds.TransactionUID, committed, failed


def test_on_an_association_that_stays_a_sender_is_told_what_is_there(
    acceptor, database, series, tmp_path
):
    kept, lost = series
    for path in (tmp_path / "inbox").rglob("*.dcm"):
        if lost.SOPInstanceUID.encode() in path.read_bytes():
            path.unlink()
    told = Told()
    with asking(acceptor, told) as assoc:
        pairs = [*pairs_of(series), (MRImageStorage, "1.2.3")]
        assert ask(assoc, request(*pairs)) == 0x0000
        assert states(database) == ["owed"]
        until(lambda: states(database) == ["sent"])
    [report] = told.reports
    gone = {lost.SOPInstanceUID: 0x0112, "1.2.3": 0x0112}
    assert said(report) == (2, "2.25.11", {kept.SOPInstanceUID}, gone)


def test_another_class_than_was_received_is_a_conflict(acceptor, database, series):
    told = Told()
    with asking(acceptor, told) as assoc:
        [first, second] = pairs_of(series)
        assert ask(assoc, request(first, (CTImageStorage, second[1]))) == 0x0000
        until(lambda: states(database) == ["sent"])
    assert said(told.reports[0]) == (2, "2.25.11", {first[1]}, {second[1]: 0x0119})


def test_a_sender_that_has_gone_is_told_at_its_address_after_a_restart_too(
    acceptor, database, series, tmp_path
):
    told = Told()
    with asking(acceptor, Told()) as assoc:
        assert ask(assoc, request(*pairs_of(series))) == 0x0000
    until(lambda: owed_rows(database)[0].not_before <= clock.stamp(clock.now()))
    with listening(told) as port:
        # nothing but the ledger tells this one of it
        assert reporter(database, tmp_path, port).send_due()
    assert states(database) == ["sent"]
    every = {uid for _, uid in pairs_of(series)}
    assert [said(report) for report in told.reports] == [(1, "2.25.11", every, {})]
    assert not reporter(database, tmp_path).send_due()


def test_a_sender_that_is_down_or_refuses_is_told_later(database, reception, tmp_path, monkeypatch):
    moment = [0.0]
    monkeypatch.setattr(clock, "now", lambda: ledgers.after(moment[0]))
    told = Told()
    record(reception)
    moment[0] = 60.0
    (nowhere,) = free_ports(1)
    reporter(database, tmp_path, nowhere).send_due()
    assert "cannot connect" in owed_rows(database)[0].reason
    with listening(told) as port:
        assert not reporter(database, tmp_path, port).send_due()
        moment[0], told.status = 100.0, 0x0110
        assert reporter(database, tmp_path, port).send_due()
        assert "answered the storage commitment report with 0x0110" in owed_rows(database)[0].reason
        moment[0], told.status = 1000.0, 0x0000
        assert reporter(database, tmp_path, port).send_due()
    assert states(database) == ["sent"]


def record(reception, calling="MR1"):
    references = (Reference(MRImageStorage, "1.2.3"),)
    return reception.commitment_asked(Request(calling, "127.0.0.1", "2.25.11", references))


def test_a_sender_whose_address_is_not_known_is_named_with_the_remedy(
    database, reception, tmp_path
):
    number = record(reception, "CT9")
    reception.commitment_told(number, told=False)
    assert reporter(database, tmp_path).send_due()
    assert states(database) == ["dead"]
    with database.read() as db:
        [row] = db.execute(select(refusal))
    assert row.calling_ae_title == "CT9"
    assert "add a [[peer]]" in row.reason


def test_asked_again_it_is_told_again(database, reception):
    number = record(reception)
    reception.commitment_told(number, told=True)
    assert states(database) == ["sent"]
    assert reception.commitment_information(number) is None
    assert record(reception) == number
    assert states(database) == ["owed"]


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({"action": 2}, 0x0123),
        ({"instance": "1.2.3"}, 0x0112),
        ({"transaction_uid": ""}, 0x0115),
        ({"pairs": ()}, 0x0115),
    ],
)
def test_what_is_no_request_is_refused_with_its_status(acceptor, database, changes, status):
    pairs = changes.pop("pairs", [(MRImageStorage, "1.2.3")])
    ds = request(*pairs, transaction_uid=changes.pop("transaction_uid", "2.25.11"))
    with asking(acceptor, Told()) as assoc:
        assert ask(assoc, ds, **changes) == status
    assert owed_rows(database) == []


def test_the_association_serves_on_while_reports_are_owed(acceptor, database, series, tmp_path):
    """Its next requests are not taken for answers, and every transaction is reported."""
    told = Told()
    with listening(told) as port, asking(acceptor, told) as assoc:
        for number in range(6):
            ds = request(*pairs_of(series), transaction_uid=f"2.25.{100 + number}")
            assert ask(assoc, ds) == 0x0000
            time.sleep(0.4 * number)  # some find it quiet

        def all_told():
            reporter(database, tmp_path, port).send_due()
            return set(states(database)) == {"sent"}

        until(all_told)
        assert assoc.is_established
    assert {said(report)[1] for report in told.reports} == {f"2.25.{100 + n}" for n in range(6)}


# -- when a series is complete --------------------------------------------------------------------


def complete(database, at):
    with database.begin() as db:
        return series_table.complete_due(db, series_table.Rule(30.0, 600.0), at)


def ask_for(reception, instances):
    references = tuple(Reference(*pair) for pair in pairs_of(instances))
    reception.commitment_asked(Request("MR1", "127.0.0.1", "2.25.11", references))


def test_a_series_that_was_asked_for_whole_waits_no_longer(database, reception, series):
    uid = series[0].SeriesInstanceUID
    assert complete(database, clock.now()) == []
    ask_for(reception, series[:1])
    assert complete(database, clock.now()) == []
    ask_for(reception, series)
    assert complete(database, clock.now()) == [uid]


def test_an_open_association_or_another_instance_keeps_it_open(database, reception, series):
    ask_for(reception, series)
    number = reception.association_opened("MR1", "127.0.0.1")
    reception.instance_received(received(series[0], association_id=number))
    assert complete(database, clock.now()) == []
    reception.instance_received(received(make_instance(index=2), association_id=number))
    reception.association_closed(number)
    assert complete(database, clock.now()) == []
