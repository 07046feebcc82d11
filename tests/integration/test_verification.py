"""Delivered objects are looked for at a real Orthanc: found again, missed, or not to be asked."""

import time
import urllib.request
from contextlib import closing

import pytest
from sqlalchemy import select, update

from dicom_node import clock
from dicom_node.association.collector import StorageCollector
from dicom_node.delivery import Lane
from dicom_node.demo.pacs import free_ports, get_json, running_orthanc
from dicom_node.network_config import Destination
from dicom_node.store import found_table, result_table
from dicom_node.store.tables import delivery, series
from dicom_node.verification import Verification
from tests.make import ledgers
from tests.make.instances import make_instance, write

ORTHANC = "/usr/sbin/Orthanc"


@pytest.fixture
def database(tmp_path):
    with ledgers.ledger(tmp_path) as opened:
        yield opened


def outbox(database, tmp_path, n=2):
    """Results in the study of their source, which the ledger knows."""
    number = ledgers.open_association(database)
    source = make_instance()
    study, uid = str(source.StudyInstanceUID), "1.2.1"
    ledgers.record(database, ledgers.filed(1, uid, association_id=number, study_instance_uid=study))
    number = ledgers.record_score(database, ledgers.score(uid))
    objects = [
        ledgers.result_object(index + 1, number, series_instance_uid=str(source.SeriesInstanceUID))
        for index in range(n)
    ]
    for index, item in enumerate(objects):
        ds = make_instance(index=index, SOPInstanceUID=item.sop_instance_uid)
        write(ds, tmp_path / "results" / item.file_name)
    with database.begin() as db:
        result_table.record_results(db, number, [], objects, ("pacs",), clock.now())
    return [item.sop_instance_uid for item in objects]


def rows(database):
    with database.read() as db:
        return {row.sop_instance_uid: row for row in db.execute(select(delivery))}


def sending(database, tmp_path, ae_title, port, **changes):
    destination = Destination(
        name="pacs",
        ae_title=ae_title,
        host="127.0.0.1",
        port=port,
        retry_first="0.1 s",
        verify=True,
        **changes,
    )
    lane = Lane(database, tmp_path / "results", destination, "NODE")
    return lane, Verification(database, destination, "NODE")


def look(verification, until, timeout_s=60.0):
    deadline = time.monotonic() + timeout_s
    while not until():
        assert time.monotonic() < deadline, "it did not happen in time"
        verification.step()
        time.sleep(0.1)


def test_what_orthanc_keeps_is_found_and_what_it_drops_or_misfiles_is_missed(database, tmp_path):
    kept, lost = outbox(database, tmp_path)
    (port,) = free_ports(1)
    with running_orthanc(ORTHANC, tmp_path, "NODE", port) as pacs:
        lane, verification = sending(database, tmp_path, pacs.ae_title, pacs.port)
        lane.send_due()
        [match] = get_json(f"{pacs.url}/tools/lookup", lost.encode())
        gone = urllib.request.Request(f"{pacs.url}{match['Path']}", method="DELETE")  # noqa: S310
        with closing(urllib.request.urlopen(gone, timeout=30)):  # noqa: S310
            pass
        # the right instance in another study is not found either
        with database.begin() as db:
            study = db.execute(select(series.c.study_instance_uid)).scalar_one()
            db.execute(update(series).values(study_instance_uid="1.2.3.4"))
        assert verification.step()
        assert rows(database)[kept].found is None
        assert "does not know it in study 1.2.3.4" in rows(database)[kept].reason
        with database.begin() as db:
            db.execute(update(series).values(study_instance_uid=study))
        look(verification, lambda: rows(database)[kept].found is not None)
        assert rows(database)[kept].reason is None
        assert rows(database)[lost].found is None
        assert f"does not know it in study {study}" in rows(database)[lost].reason
        with database.read() as db:
            assert found_table.ticks(db) == {
                "pacs": {"objects": 2, "stored": 2, "committed": 0, "found": 1}
            }
            [fault] = result_table.delivery_faults(db, 10)
            assert (fault.state, fault.n) == ("delivered", 1)
            [group] = result_table.deliveries_of(db, 1)
            assert (group.n, group.n_committed, group.n_found) == (2, 0, 1)


def test_a_destination_without_queries_says_so_and_delivers_all_the_same(database, tmp_path):
    (uid,) = outbox(database, tmp_path, 1)
    collector = StorageCollector("PACS", 0, tmp_path / "archive")
    collector.start()
    try:
        lane, verification = sending(database, tmp_path, "PACS", collector.port, give_up="1 h")
        lane.send_due()
        assert verification.step()
    finally:
        collector.stop()
    row = rows(database)[uid]
    assert (row.state, row.found) == ("delivered", None)
    assert "answers no queries" in row.reason
