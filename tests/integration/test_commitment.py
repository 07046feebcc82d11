"""Storage commitment with a real Orthanc, both ways."""

import json
import time
import urllib.request
from contextlib import contextmanager

import pytest
from sqlalchemy import select

from dicom_node import clock
from dicom_node.association.acceptor import Acceptor, AcceptorSettings
from dicom_node.commitment import Commitments
from dicom_node.config import Node, NodeConfig
from dicom_node.delivery import Lane
from dicom_node.demo.pacs import free_ports, get_json, running_orthanc
from dicom_node.inbox import Inbox
from dicom_node.network_config import Destination, KnownPeer
from dicom_node.parts.receiver import Reception
from dicom_node.pledges import Reporter
from dicom_node.store import result_table
from dicom_node.store.tables import delivery
from tests.make import ledgers
from tests.make.instances import make_instance, received, write

ORTHANC = "/usr/sbin/Orthanc"


@pytest.fixture
def database(tmp_path):
    with ledgers.ledger(tmp_path) as opened:
        yield opened


@contextmanager
def receiving(database, tmp_path, port):
    """The node's receiver, to which Orthanc reports and sends."""
    reception = Reception(database, Inbox(tmp_path / "inbox", 0))
    acceptor = Acceptor(AcceptorSettings("NODE", "127.0.0.1", port, 10, 30.0, (), True), reception)
    acceptor.start()
    try:
        yield acceptor
    finally:
        acceptor.stop()


def until(condition, timeout_s=120.0):
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.1)


def states(database):
    with database.read() as db:
        return {row.sop_instance_uid: row.state for row in db.execute(select(delivery))}


def outbox(database, tmp_path, n=2):
    number = ledgers.record_score(database, ledgers.score())
    objects = [ledgers.result_object(index + 1, number) for index in range(n)]
    for index, item in enumerate(objects):
        ds = make_instance(index=index, SOPInstanceUID=item.sop_instance_uid)
        write(ds, tmp_path / "results" / item.file_name)
    with database.begin() as db:
        result_table.record_results(db, number, [], objects, ("pacs",), clock.now())
    return [item.sop_instance_uid for item in objects]


def test_orthanc_commits_to_what_it_holds_and_gets_again_what_it_lost(database, tmp_path):
    (port,) = free_ports(1)
    kept, lost = outbox(database, tmp_path)
    with (
        receiving(database, tmp_path, port),
        running_orthanc(ORTHANC, tmp_path, "NODE", port) as pacs,
    ):
        destination = Destination(
            name="pacs",
            ae_title=pacs.ae_title,
            host="127.0.0.1",
            port=pacs.port,
            retry_first="0.1 s",
            commitment=True,
        )
        arguments = (database, tmp_path / "results", destination, "NODE")
        lane, commitments = Lane(*arguments), Commitments(*arguments)
        lane.send_due()
        assert states(database) == {kept: "stored", lost: "stored"}
        [match] = get_json(f"{pacs.url}/tools/lookup", lost.encode())
        gone = urllib.request.Request(f"{pacs.url}{match['Path']}", method="DELETE")  # noqa: S310
        urllib.request.urlopen(gone, timeout=30).close()  # noqa: S310
        assert commitments.step()
        until(lambda: states(database)[kept] == "delivered")
        commitments.step()
        assert states(database)[lost] == "queued"

        def delivered():
            lane.send_due()
            commitments.step()
            return states(database)[lost] == "delivered"

        until(delivered)
        assert len(get_json(f"{pacs.url}/instances")) == 2


def test_orthanc_is_told_what_the_node_holds(database, tmp_path):
    (port,) = free_ports(1)
    here, unknown = make_instance(index=0), make_instance(index=1)
    with (
        receiving(database, tmp_path, port),
        running_orthanc(ORTHANC, tmp_path, "NODE", port) as pacs,
    ):
        reception = Reception(database, Inbox(tmp_path / "inbox", 0))
        number = reception.association_opened("ORTHANC", "127.0.0.1")
        reception.instance_received(received(here, association_id=number))
        known = KnownPeer(ae_title="ORTHANC", host="127.0.0.1", port=pacs.port)
        config = NodeConfig(node=Node(ae_title="NODE"), peer=(known,))
        reporter = Reporter(database, tmp_path / "inbox", config)

        def answer(*instances):
            asked = [
                {"SOPClassUID": ds.SOPClassUID, "SOPInstanceUID": ds.SOPInstanceUID}
                for ds in instances
            ]
            body = json.dumps({"DicomInstances": asked}).encode()
            made = get_json(f"{pacs.url}/modalities/node/storage-commitment", body)
            place = f"{pacs.url}/storage-commitment/{made['ID']}"

            def told():
                reporter.send_due()
                return get_json(place)["Status"] != "Pending"

            until(told)
            return get_json(place)

        assert answer(here)["Status"] == "Success"
        found = answer(here, unknown)
        assert found["Status"] == "Failure"
        assert [one["SOPInstanceUID"] for one in found["Success"]] == [here.SOPInstanceUID]
        assert [one["SOPInstanceUID"] for one in found["Failures"]] == [unknown.SOPInstanceUID]
