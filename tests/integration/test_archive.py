"""Query and retrieve: real Orthanc and DCMTK, and archives that misbehave."""

import contextlib
import json
import subprocess
import threading
import time
import urllib.request
from contextlib import contextmanager
from datetime import date

import pytest
from pydicom import dcmread, uid
from pynetdicom.dimse_primitives import C_FIND, C_MOVE
from pynetdicom.sop_class import StudyRootQueryRetrieveInformationModelFind

from dicom_node.association.acceptor import Acceptor, AcceptorSettings
from dicom_node.association.finder import find_instances, find_series, find_studies
from dicom_node.association.query import SeriesQuery, StudyQuery
from dicom_node.association.requestor import Peer, send
from dicom_node.association.retriever import Target, Waits, get, move
from dicom_node.demo.pacs import free_ports, running_orthanc
from dicom_node.errors import (
    AssociationLost,
    ContextNotAccepted,
    DatabaseUnavailable,
    NodeError,
    QueryFailed,
    RetrieveFailed,
)
from dicom_node.inbox import Inbox
from dicom_node.network_config import PeerTls, ReceiverTls
from dicom_node.parts.receiver import Reception
from dicom_node.store import owed_table, series_table
from tests.make import ledgers
from tests.make.archives import answer, archive, sendable
from tests.make.certificates import authority
from tests.make.instances import Geometry, make_instance, make_series, write
from tests.make.nodes import require

ORTHANC = "/usr/sbin/Orthanc"
WAITS = Waits(20, 30)
#: connections that failed are forgotten by the library, not closed
pytestmark = pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")


@pytest.fixture
def database(tmp_path):
    with ledgers.ledger(tmp_path) as opened:
        yield opened


@pytest.fixture
def reception(database, tmp_path):
    return Reception(database, Inbox(tmp_path / "inbox", 0))


def target_of(ds):
    return Target(str(ds.StudyInstanceUID), str(ds.SeriesInstanceUID))


def uids(series):
    return {str(ds.SOPInstanceUID) for ds in series}


def here(database, series):
    """The instances that the ledger knows, each with its file."""
    with database.read() as db:
        return set(owed_table.received(db, uids(series)))


def refusals(database):
    with database.read() as db:
        return [row.reason for row in series_table.recent_refusals(db, 10)]


@contextmanager
def receiving(reception, port, tls=None):
    settings = AcceptorSettings("NODE", "127.0.0.1", port, 10, 30.0, (), True, tls)
    acceptor = Acceptor(settings, reception)
    acceptor.start()
    try:
        yield
    finally:
        acceptor.stop()


def stored(peer, folder, *series, syntax=uid.ExplicitVRLittleEndian):
    paths = [
        write(ds, folder / f"{a}-{b}.dcm", syntax)
        for a, one in enumerate(series)
        for b, ds in enumerate(one)
    ]
    send(peer, "NODE", paths, 60, on_refused=lambda path, error: pytest.fail(f"{path}: {error}"))


# -- Orthanc --------------------------------------------------------------------------------------


def test_orthanc_is_asked_and_sends_both_ways(database, reception, tmp_path):
    (port,) = free_ports(1)
    mr = make_series("MR", Geometry(n_slices=3), StudyDescription="Schädel nativ")
    ct = make_series("CT", Geometry(n_slices=4), seed=1, BodyPartExamined="BRAIN")
    mr_target, ct_target = target_of(mr[0]), target_of(ct[0])
    with running_orthanc(ORTHANC, tmp_path, "NODE", port) as pacs:
        peer = Peer("pacs", pacs.ae_title, "127.0.0.1", pacs.port)
        stored(peer, tmp_path / "out", mr)
        stored(peer, tmp_path / "more", ct, syntax=uid.JPEG2000Lossless)

        def studies(**query):
            found = find_studies(peer, "NODE", StudyQuery(**query), 30)
            return [one.study_instance_uid for one in found.records]

        both = {mr_target.study_instance_uid, ct_target.study_instance_uid}
        day = date(2024, 1, 2)
        assert set(studies(date_from=day, date_to=day)) == both
        assert studies(date_from=date(2024, 1, 3)) == []
        assert studies(modality="CT") == [ct_target.study_instance_uid]
        assert studies(description="*Schädel*") == [mr_target.study_instance_uid]
        assert studies(patient_id="P1") == [ct_target.study_instance_uid]
        cut = find_studies(peer, "NODE", StudyQuery(), 30, limit=1)
        assert (len(cut.records), cut.cut) == (1, True)
        query = SeriesQuery(body_part="head", least_instances=4)
        [one] = find_series(peer, "NODE", sorted(both), query, 30).records
        assert (one.series_instance_uid, one.n_instances) == (ct_target.series_instance_uid, 4)
        found = find_instances(
            peer, "NODE", [(mr_target.study_instance_uid, mr_target.series_instance_uid)], 30
        )
        assert list(found.values()) == [uids(mr)]

        seen = []
        done = get(peer, "NODE", ct_target, WAITS, reception, on_progress=seen.append)
        assert (done.status, done.counts.completed, set(done.filed)) == (0, 4, uids(ct))
        assert [counts.completed for counts in seen][-1] == 4
        assert here(database, ct) == uids(ct)
        # as it is stored there: nothing was transcoded for us
        syntaxes = {
            dcmread(path).file_meta.TransferSyntaxUID
            for path in (tmp_path / "inbox").rglob("*.dcm")
        }
        assert syntaxes == {uid.JPEG2000Lossless}

        with receiving(reception, port):
            done = move(peer, "NODE", mr_target, WAITS, where="AE title NODE")
        assert (done.status, done.counts.completed) == (0, 3)
        assert here(database, mr) == uids(mr)


def test_over_tls_orthanc_is_asked_and_sends(database, reception, tmp_path):
    site = authority(tmp_path / "site")
    (certificate, key), (port,) = site.sign("pacs"), free_ports(1)
    ours, own_key = site.sign("node")
    series = make_series("MR", Geometry(n_slices=3))
    more = {
        "DicomTlsEnabled": True,
        "DicomTlsCertificate": str(certificate),
        "DicomTlsPrivateKey": str(key),
        "DicomTlsTrustedCertificates": str(site.certificate),
        "DicomModalities": {
            "node": {"AET": "NODE", "Host": "127.0.0.1", "Port": port, "UseDicomTls": True}
        },
    }
    receiver = ReceiverTls(port=port, certificate=ours, key=own_key, ca=site.certificate)
    other = make_series("CT", Geometry(n_slices=2), seed=1)
    with orthanc_with(tmp_path, port, more) as at:
        by = PeerTls(ca=site.certificate, certificate=ours, key=own_key)
        peer = Peer("pacs", "ORTHANC", "127.0.0.1", at, by)
        stored(peer, tmp_path / "out", series, other)
        [found] = find_studies(peer, "NODE", StudyQuery(modality="MR"), 30).records
        [one] = find_series(peer, "NODE", [found.study_instance_uid], SeriesQuery(), 30).records
        assert one.n_instances == 3
        done = get(peer, "NODE", Target(*one.key), WAITS, reception)
        with receiving(reception, None, receiver):
            moved = move(peer, "NODE", target_of(other[0]), WAITS, where="")
    assert set(done.filed) == uids(series) == here(database, series)
    assert (moved.status, moved.counts.completed) == (0, 2)
    assert here(database, other) == uids(other)


@contextmanager
def orthanc_with(folder, node_port, more):
    dicom_port, http_port = free_ports(2)
    settings = {
        "StorageDirectory": str(folder / "storage"),
        "IndexDirectory": str(folder / "storage"),
        "HttpPort": http_port,
        "DicomAet": "ORTHANC",
        "DicomPort": dicom_port,
        "DicomModalities": {"node": ["NODE", "127.0.0.1", node_port]},
        **more,
    }
    path = folder / "orthanc.json"
    path.write_text(json.dumps(settings), "utf-8")
    with (folder / "orthanc.log").open("wb") as log:
        process = subprocess.Popen([ORTHANC, str(path)], stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 60
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{http_port}/system", timeout=5).close()
                break
            except OSError:
                assert time.monotonic() < deadline, (folder / "orthanc.log").read_text()
                time.sleep(0.2)
        yield dicom_port
    finally:
        process.terminate()
        process.wait(timeout=30)


# -- DCMTK ----------------------------------------------------------------------------------------


def test_dcmqrscp_is_asked_and_sends_both_ways(database, reception, tmp_path):
    node_port, port = free_ports(2)
    (tmp_path / "db").mkdir()
    path = tmp_path / "dcmqrscp.cfg"
    path.write_text(
        "NetworkTCPPort = {}\nMaxPDUSize = 16384\nMaxAssociations = 8\n"
        "HostTable BEGIN\nnode = (NODE, 127.0.0.1, {})\nHostTable END\n"
        "VendorTable BEGIN\nVendorTable END\n"
        "AETable BEGIN\nQR {} RW (50, 1024mb) ANY\nAETable END\n".format(
            port, node_port, tmp_path / "db"
        )
    )
    series = make_series("MR", Geometry(n_slices=3))
    process = subprocess.Popen([require("/usr/bin/dcmqrscp"), "-c", str(path)])
    peer = Peer("qr", "QR", "127.0.0.1", port)
    try:
        deadline = time.monotonic() + 30
        while True:
            try:
                stored(peer, tmp_path / "out", series)
                break
            except NodeError:
                assert time.monotonic() < deadline
                time.sleep(0.2)
        # it knows neither ModalitiesInStudy nor the numbers: said, not taken for a no
        found = find_studies(peer, "NODE", StudyQuery(modality="MR"), 30)
        [study] = found.records
        assert study.study_instance_uid == series[0].StudyInstanceUID
        [one] = find_series(peer, "NODE", [study.study_instance_uid], SeriesQuery("MR"), 30).records
        done = get(peer, "NODE", Target(*one.key), WAITS, reception)
        assert (done.status, set(done.filed)) == (0, uids(series))
        assert here(database, series) == uids(series)
        with receiving(reception, node_port):
            done = move(peer, "NODE", Target(*one.key), WAITS, where="AE title NODE")
        assert (done.status, done.counts.completed) == (0, 3)
        with pytest.raises(
            RetrieveFailed, match=r"0xA801.*add this node there, AE title X"
        ) as error:
            move(peer, "STRANGER", Target(*one.key), WAITS, where="AE title X")
        assert error.value.status == 0xA801
    finally:
        process.terminate()
        process.wait(timeout=30)


# -- archives that misbehave ----------------------------------------------------------------------

MATCH = {"StudyInstanceUID": "1.2", "SeriesInstanceUID": "1.2.3", "Modality": "MR"}


def test_keys_that_are_not_supported_are_told_and_studies_are_kept_once():
    def find(_event):
        for _ in range(2):
            yield 0xFF01, answer(StudyInstanceUID="1.2")

    with archive(find=find) as peer:
        found = find_studies(peer, "NODE", StudyQuery(modality="MR"), 20)
    assert (len(found.records), found.keys_unsupported) == (1, True)


def test_beyond_the_limit_the_query_is_cancelled():
    sent, cancelled = [], []

    def find(event):
        for number in range(500):
            if event.is_cancelled:
                cancelled.append(number)
                yield 0xFE00, None
                return
            sent.append(number)
            yield 0xFF00, answer(StudyInstanceUID=f"1.{number}")
            time.sleep(0.02)

    with archive(find=find) as peer:
        found = find_studies(peer, "NODE", StudyQuery(), 20, limit=5)
    assert (len(found.records), found.cut) == (5, True)
    assert cancelled
    assert len(sent) < 500


def test_a_query_that_fails_names_status_and_comment():
    def find(_event):
        yield answer(Status=0xA700, ErrorComment="too many matches"), None

    with (
        archive(find=find) as peer,
        pytest.raises(QueryFailed, match=r"0xA700 \(too many matches\)") as error,
    ):
        find_studies(peer, "NODE", StudyQuery(), 20)
    assert error.value.status == 0xA700


def test_an_archive_that_hangs_up_or_is_silent_is_lost():
    def aborts(event):
        yield 0xFF00, answer(**MATCH)
        event.assoc.abort()
        yield 0x0000, None

    def silent(_event):
        time.sleep(4)
        yield 0x0000, None

    with archive(find=aborts) as peer, pytest.raises(AssociationLost, match="C-FIND"):
        find_series(peer, "NODE", ["1.2"], SeriesQuery(), 20)
    with archive(find=silent) as peer, pytest.raises(AssociationLost, match="C-FIND"):
        find_series(peer, "NODE", ["1.2"], SeriesQuery(), 1)


def test_services_that_are_not_offered_are_named(reception):
    only_find = [StudyRootQueryRetrieveInformationModelFind]
    with archive(models=only_find) as peer:
        with pytest.raises(ContextNotAccepted, match=r'no C-MOVE.*retrieve = "get"'):
            move(peer, "NODE", Target("1.2"), WAITS, where="")
        with pytest.raises(ContextNotAccepted, match=r'no C-GET.*retrieve = "move"'):
            get(peer, "NODE", Target("1.2"), WAITS, reception)
    with archive(sends=False) as peer, pytest.raises(ContextNotAccepted, match="no role to send"):
        get(peer, "NODE", Target("1.2"), WAITS, reception)


def test_a_damaged_instance_costs_only_itself_and_the_ledger_is_told(database, reception):
    good, bad, last = (make_instance(index=index) for index in range(3))
    bad.PixelData = bad.PixelData[:-100]

    def sends(_event):
        yield 3
        for ds in (good, bad, last):
            yield 0xFF00, sendable(ds)

    with archive(get=sends) as peer:
        done = get(peer, "NODE", target_of(good), WAITS, reception)
    assert set(done.filed) == uids([good, last]) == here(database, [good, bad, last])
    [refused] = done.refused
    assert (refused.sop_instance_uid, refused.status) == (bad.SOPInstanceUID, 0xC000)
    assert (done.status, done.counts.completed, done.counts.failed) == (0xB000, 2, 1)
    assert done.failed_uids == (bad.SOPInstanceUID,)
    assert any(str(bad.SOPInstanceUID) in reason for reason in refusals(database))
    with database.read() as db:
        rows = db.exec_driver_sql("select calling_ae_title, closed from association").all()
    assert [(row.calling_ae_title, row.closed is not None) for row in rows] == [("ARCHIVE", True)]


def test_what_came_before_an_archive_hung_up_is_here(database, reception):
    first, second = (make_instance(index=index) for index in range(2))

    def sends(event):
        yield 2
        yield 0xFF00, sendable(first)
        event.assoc.abort()
        yield 0xFF00, sendable(second)

    with archive(get=sends) as peer, pytest.raises(AssociationLost, match="C-GET"):
        get(peer, "NODE", target_of(first), WAITS, reception)
    assert here(database, [first, second]) == uids([first])


def test_without_a_ledger_nothing_is_taken(reception, monkeypatch):
    asked = []

    def sends(_event):
        asked.append(1)
        yield 0

    def fails(*_):
        raise DatabaseUnavailable

    monkeypatch.setattr(reception, "association_opened", fails)
    with archive(get=sends) as peer, pytest.raises(DatabaseUnavailable):
        get(peer, "NODE", Target("1.2"), WAITS, reception)
    assert asked == []


def test_an_archive_that_says_the_same_for_too_long_is_given_up():
    def same(event):
        for _ in range(40):
            response = C_MOVE()
            response.MessageIDBeingRespondedTo = event.message_id
            response.AffectedSOPClassUID = event.request.AffectedSOPClassUID
            response.Status = 0xFF00
            response.NumberOfRemainingSuboperations = 1
            event.assoc.dimse.send_msg(response, event.context.context_id)
            time.sleep(0.1)
        yield None, None

    with archive(move=same) as peer, pytest.raises(AssociationLost, match="no progress for 1 s"):
        move(peer, "NODE", Target("1.2"), Waits(20, 1), where="")


def test_what_comes_after_the_last_response_is_not_taken(database, reception):
    late = sendable(make_instance())
    answered = threading.Event()

    def sends(event):
        def store():
            time.sleep(0.05)
            # the association is being released, or is gone
            with contextlib.suppress(Exception):
                event.assoc.send_c_store(late)
            answered.set()

        threading.Thread(target=store, daemon=True).start()
        yield 0

    with archive(get=sends) as peer:
        started = time.monotonic()
        done = get(peer, "NODE", Target("1.2"), WAITS, reception)
        assert time.monotonic() - started < 30
    assert done.filed == ()
    assert here(database, [late]) == set()


def test_a_response_of_another_service_is_none(reception):
    def confuses(event):
        response = C_FIND()
        response.MessageIDBeingRespondedTo = 1
        response.AffectedSOPClassUID = StudyRootQueryRetrieveInformationModelFind
        response.Status = 0x0000
        event.assoc.dimse.send_msg(response, event.context.context_id)
        time.sleep(1)
        yield 0

    with archive(get=confuses) as peer, pytest.raises(AssociationLost, match="C-GET"):
        get(peer, "NODE", Target("1.2"), WAITS, reception)


def test_an_archive_without_progress_is_given_up():
    def stuck(_event):
        time.sleep(4)
        yield None, None

    with archive(move=stuck) as peer, pytest.raises(AssociationLost, match="C-MOVE"):
        move(peer, "NODE", Target("1.2"), Waits(20, 1), where="")


def test_an_unknown_move_destination_says_what_to_add():
    def unknown(_event):
        yield None, None

    with (
        archive(move=unknown) as peer,
        pytest.raises(RetrieveFailed, match="add this node there, AE title NODE, port 1"),
    ):
        move(peer, "NODE", Target("1.2"), WAITS, where="AE title NODE, port 1")
