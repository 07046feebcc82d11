"""Lanes against a real archive on loopback, and against peers that are not there or misbehave."""

import gc
import socket
import threading
import time
from contextlib import contextmanager

import pytest
from pydicom.uid import MRImageStorage
from pynetdicom import AE, evt
from sqlalchemy import select

from dicom_node import clock
from dicom_node.association import sockets
from dicom_node.association.collector import StorageCollector
from dicom_node.delivery import Lane
from dicom_node.network_config import Destination
from dicom_node.store import result_table
from dicom_node.store.tables import delivery
from tests.make import ledgers
from tests.make.instances import make_instance, write
from tests.make.ledgers import NOON, after

RETRY_FIRST_S, RETRY_MAX_S, GIVE_UP_S = 10.0, 40.0, 300.0


@pytest.fixture
def archive(tmp_path):
    collector = StorageCollector("PACS", 0, tmp_path / "archive")
    collector.start()
    yield collector
    collector.stop()


@pytest.fixture
def nowhere():
    """A port on which nobody listens: bound, so that nobody else takes it."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        yield held.getsockname()[1]
    gc.collect()


#: the library forgets the sockets that were never connected
unconnected = pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")


def lane(database, tmp_path, port, name="pacs"):
    destination = Destination(
        name=name,
        ae_title="PACS",
        host="127.0.0.1",
        port=port,
        timeout="5 s",
        retry_first=f"{RETRY_FIRST_S} s",
        retry_max=f"{RETRY_MAX_S} s",
        give_up=f"{GIVE_UP_S} s",
    )
    return Lane(database, tmp_path / "results", destination, "NODE")


def outbox(database, tmp_path, n=3, destinations=("pacs",), uid="1.2.1", **attributes):
    """Real objects of one score, queued; their SOP Instance UIDs in the order of sending."""
    number = ledgers.record_score(database, ledgers.score(uid))
    objects = []
    for index in range(n):
        ds = make_instance(index=index, seed=number, **attributes)
        ds.SOPInstanceUID = f"2.25.{number}.{index + 1}"
        item = ledgers.result_object(index + 1, number)
        write(ds, tmp_path / "results" / item.file_name)
        objects.append(item)
    with database.begin() as db:
        result_table.record_results(db, number, [], objects, destinations, NOON)
    return [item.sop_instance_uid for item in objects]


def path_of(tmp_path, uid):
    number, place = uid.split(".")[2:]
    return tmp_path / "results" / f"score-{number}" / f"sc-{int(place):04d}.dcm"


def rows(database, destination="pacs"):
    with database.read() as db:
        query = select(delivery).where(delivery.c.destination == destination)
        return {row.sop_instance_uid: row for row in db.execute(query)}


def states(database, destination="pacs"):
    return {uid: row.state for uid, row in rows(database, destination).items()}


def archived(tmp_path):
    return {path.stem for path in (tmp_path / "archive").rglob("*.dcm")}


def due_in(row, moment):
    """Seconds from `moment` until the row is tried again."""
    return (clock.parse(row.not_before) - after(moment)).total_seconds()


# -- what goes well ------------------------------------------------------------------------------


def test_what_is_due_arrives_and_is_recorded_with_its_status(database, tmp_path, archive, now):
    uids = outbox(database, tmp_path)
    sending = lane(database, tmp_path, archive.port)
    now[0] = 1.0
    assert sending.send_due()
    assert archived(tmp_path) == set(uids)
    for row in rows(database).values():
        assert (row.state, row.status, row.attempts, row.reason) == ("delivered", 0, 1, None)
        assert row.updated == clock.stamp(after(1))
    assert not sending.send_due()


def test_what_is_not_yet_due_stays(database, tmp_path, archive, now):
    uids = outbox(database, tmp_path)
    now[0] = -1.0
    assert not lane(database, tmp_path, archive.port).send_due()
    assert states(database) == dict.fromkeys(uids, "queued")


# -- what may pass -------------------------------------------------------------------------------


@unconnected
def test_a_peer_that_is_not_there_is_tried_again_ever_less_often(database, tmp_path, nowhere, now):
    uids = outbox(database, tmp_path, 2)
    sending = lane(database, tmp_path, nowhere)
    for attempt, delay in enumerate([10.0, 20.0, 40.0, 40.0], 1):
        assert sending.send_due()
        assert not sending.send_due()
        found = rows(database)
        for uid in uids:
            assert (found[uid].state, found[uid].attempts) == ("queued", attempt)
            assert due_in(found[uid], now[0]) == delay
            assert f"cannot connect to 127.0.0.1:{nowhere}" in found[uid].reason
        now[0] += delay


@unconnected
def test_after_its_time_a_delivery_is_given_up_and_retry_revives_it(
    database, tmp_path, nowhere, archive, now
):
    uids = outbox(database, tmp_path, 2)
    now[0] = GIVE_UP_S - 1
    lane(database, tmp_path, nowhere).send_due()
    assert states(database) == dict.fromkeys(uids, "queued")
    now[0] = GIVE_UP_S + RETRY_FIRST_S
    lane(database, tmp_path, nowhere).send_due()
    assert states(database) == dict.fromkeys(uids, "dead")
    assert not lane(database, tmp_path, archive.port).send_due()
    with database.begin() as db:
        result_table.retry_dead(db, clock.now())
    lane(database, tmp_path, archive.port).send_due()
    assert archived(tmp_path) == set(uids)


def test_a_full_archive_puts_off_and_refuses_nothing(database, tmp_path, archive, now):
    uids = outbox(database, tmp_path)
    (tmp_path / "archive").write_text("a file where the folder should be")
    lane(database, tmp_path, archive.port).send_due()
    for row in rows(database).values():
        assert (row.state, row.status, due_in(row, 0.0)) == ("queued", 0xA700, RETRY_FIRST_S)
        assert "out of resources" in row.reason
    (tmp_path / "archive").unlink()
    now[0] = RETRY_FIRST_S
    lane(database, tmp_path, archive.port).send_due()
    assert states(database) == dict.fromkeys(uids, "delivered")


# -- what concerns one object alone --------------------------------------------------------------


@pytest.mark.usefixtures("now")
def test_a_refused_object_is_set_aside_while_the_others_go(database, tmp_path, archive):
    (unwanted,) = outbox(database, tmp_path, 1, uid="1.2.1", SOPClassUID="1.2.3.4")
    wanted = outbox(database, tmp_path, 2, uid="1.2.2")
    lane(database, tmp_path, archive.port).send_due()
    assert states(database) == {unwanted: "dead"} | dict.fromkeys(wanted, "delivered")
    assert "does not accept 1.2.3.4" in rows(database)[unwanted].reason
    assert archived(tmp_path) == set(wanted)


@pytest.mark.parametrize("damage", ["missing", "no DICOM", "cut off in its file meta"])
def test_an_unreadable_file_is_put_off_while_the_others_go(
    database, tmp_path, archive, now, damage
):
    uids = outbox(database, tmp_path)
    path = path_of(tmp_path, uids[0])
    whole = path.read_bytes()
    path.unlink()
    if damage != "missing":
        path.write_bytes(b"no DICOM" if damage == "no DICOM" else whole[:180])
    lane(database, tmp_path, archive.port).send_due()
    row = rows(database)[uids[0]]
    assert (row.state, due_in(row, 0.0)) == ("queued", RETRY_FIRST_S)
    assert "cannot read" in row.reason
    assert archived(tmp_path) == set(uids[1:])
    path.write_bytes(whole)
    now[0] = RETRY_FIRST_S
    lane(database, tmp_path, archive.port).send_due()
    assert archived(tmp_path) == set(uids)


@contextmanager
def archive_that_dies_of(uid, stored):
    """An archive that aborts the association when it is sent one object, each time."""

    def on_c_store(event):
        if event.request.AffectedSOPInstanceUID == uid:
            event.assoc.abort()
        else:
            stored.append(event.request.AffectedSOPInstanceUID)
        return 0x0000

    entity = AE("PACS")
    entity.add_supported_context(MRImageStorage)
    server = entity.start_server(
        ("127.0.0.1", 0),
        block=False,
        evt_handlers=[*sockets.handlers(5.0), (evt.EVT_C_STORE, on_c_store)],
    )
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()


@pytest.mark.usefixtures("now")
def test_an_object_that_ends_the_association_holds_up_no_other(database, tmp_path):
    uids, stored = outbox(database, tmp_path, 4), []
    with archive_that_dies_of(uids[1], stored) as port:
        sending = lane(database, tmp_path, port)
        while sending.send_due():
            assert len(stored) < 10
    found = rows(database)
    assert stored == [uids[0], uids[2], uids[3]]
    assert (found[uids[1]].state, found[uids[1]].attempts) == ("queued", 1)
    assert "did not acknowledge" in found[uids[1]].reason
    assert {found[uid].attempts for uid in stored} == {1}


# -- the lane as it runs -------------------------------------------------------------------------


def until(condition, timeout_s=20.0):
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


@contextmanager
def running(*lanes):
    stop = threading.Event()
    threads = [threading.Thread(target=each.run, args=(stop,)) for each in lanes]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join(20)
    assert not any(thread.is_alive() for thread in threads)


@unconnected
@pytest.mark.usefixtures("now")
def test_a_dead_destination_holds_up_no_other_lane(database, tmp_path, archive, nowhere):
    uids = outbox(database, tmp_path, destinations=("dead", "pacs"))
    dead, alive = lane(database, tmp_path, nowhere, "dead"), lane(database, tmp_path, archive.port)
    with running(dead, alive):
        until(lambda: archived(tmp_path) == set(uids))
        until(lambda: all(row.attempts for row in rows(database, "dead").values()))
    assert states(database) == dict.fromkeys(uids, "delivered")
    assert states(database, "dead") == dict.fromkeys(uids, "queued")


def test_a_ledger_that_does_not_answer_ends_no_lane(tmp_path, archive, caplog):
    with ledgers.ledger(tmp_path, timeout_s=0.05) as database:
        uids = outbox(database, tmp_path, 1)
        with running(lane(database, tmp_path, archive.port)):
            with database.begin():
                until(lambda: "the ledger does not answer" in caplog.text)
            until(lambda: states(database) == {uids[0]: "delivered"})
