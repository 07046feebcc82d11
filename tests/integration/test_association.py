"""The wire side against real peers: DCMTK's tools, and a socket that misbehaves."""

import errno
import gc
import re
import socket
import subprocess
import threading
import time
from contextlib import contextmanager
from io import BytesIO

import pydicom
import pytest
from pydicom import uid
from pydicom.dataset import Dataset
from pynetdicom import AE, build_context
from pynetdicom.dimse_primitives import C_STORE

from dicom_node.association import sockets
from dicom_node.association.acceptor import Acceptor, AcceptorSettings
from dicom_node.association.collector import StorageCollector
from dicom_node.association.requestor import Peer, echo, send
from dicom_node.association.storing import HANDLER_FAILED
from dicom_node.errors import (
    AssociationRefused,
    ContextNotAccepted,
    DatabaseUnavailable,
    PartFailed,
    StoreFailed,
)
from dicom_node.inbox import Inbox
from tests.make.instances import Geometry, encode, make_instance, make_series, write

STORESCU, DCMSEND, STORESCP, ECHOSCU = (
    f"/usr/bin/{name}" for name in ("storescu", "dcmsend", "storescp", "echoscu")
)


class Recorder:
    """The node behind the acceptor: an inbox and a list of what happened."""

    def __init__(self, inbox):
        self.inbox = inbox
        self.opened, self.closed, self.filed, self.refusals = [], [], [], []
        self.error = None

    def association_opened(self, calling_ae_title, peer_host):
        self.opened.append((calling_ae_title, peer_host))
        return len(self.opened)

    def association_closed(self, association_id):
        self.closed.append(association_id)

    def instance_received(self, received):
        if self.error is not None:
            raise self.error
        self.filed.append(self.inbox.file_instance(received))

    def refused(self, calling_ae_title, peer_host, reason):
        self.refusals.append((calling_ae_title, peer_host, reason))


@pytest.fixture
def recorder(tmp_path):
    return Recorder(Inbox(tmp_path / "inbox", 0))


@contextmanager
def running(recorder, **changes):
    values = {
        "ae_title": "NODE",
        "bind": "127.0.0.1",
        "port": 0,
        "max_associations": 10,
        "network_timeout_s": 10.0,
        "allowed_calling_ae_titles": (),
        "require_called_ae_title": False,
    }
    acceptor = Acceptor(AcceptorSettings(**(values | changes)), recorder)
    acceptor.start()
    try:
        yield acceptor
    finally:
        acceptor.stop()


@pytest.fixture
def acceptor(recorder):
    with running(recorder) as started:
        yield started


def until(condition, timeout_s=10.0):
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


def tool(*arguments):
    return subprocess.run(
        [str(a) for a in arguments], capture_output=True, text=True, timeout=60, check=False
    )


@contextmanager
def association(acceptor, *contexts, calling="SCU", called="NODE"):
    entity = AE(calling)
    entity.acse_timeout = entity.dimse_timeout = entity.network_timeout = 20
    assoc = entity.associate(
        "127.0.0.1",
        acceptor.port,
        ae_title=called,
        contexts=list(contexts),
        evt_handlers=sockets.handlers(20),
    )
    try:
        yield assoc
    finally:
        if assoc.is_established:
            assoc.release()
        sockets.close(assoc)


MR = build_context(uid.MRImageStorage, uid.ExplicitVRLittleEndian)


# -- receiving --------------------------------------------------------------------------------


@pytest.mark.parametrize("sender", [STORESCU, DCMSEND])
@pytest.mark.parametrize("modality", ["MR", "CT"])
def test_a_series_arrives_whole(acceptor, recorder, tmp_path, sender, modality):
    series = make_series(modality, Geometry(n_slices=5))
    paths = [write(ds, tmp_path / "out" / f"{i}.dcm") for i, ds in enumerate(series)]
    done = tool(sender, "-aet", "SCANNER", "-aec", "NODE", "127.0.0.1", acceptor.port, *paths)
    assert done.returncode == 0, done.stderr
    assert {f.sop_instance_uid for f in recorder.filed} == {ds.SOPInstanceUID for ds in series}
    assert {f.calling_ae_title for f in recorder.filed} == {"SCANNER"}
    for filed, ds in zip(recorder.filed, series, strict=True):
        back = pydicom.dcmread(tmp_path / "inbox" / filed.file_name)
        assert back.PixelData == ds.PixelData
    assert recorder.opened == [("SCANNER", "127.0.0.1")]
    until(lambda: recorder.closed == [1])


@pytest.mark.parametrize(
    ("syntax", "option"),
    [
        (uid.JPEGLSLossless, "-xt"),
        (uid.JPEG2000Lossless, "-xv"),
        (uid.RLELossless, "-xr"),
        (uid.DeflatedExplicitVRLittleEndian, "-xd"),
        (uid.ExplicitVRBigEndian, "-xb"),
        (uid.ImplicitVRLittleEndian, "-xi"),
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_every_encoding_is_kept_as_it_came(acceptor, recorder, tmp_path, syntax, option):
    path = write(make_instance("MR"), tmp_path / "out.dcm", syntax)
    done = tool(STORESCU, option, "127.0.0.1", acceptor.port, path)
    assert done.returncode == 0, done.stderr
    assert [f.transfer_syntax_uid for f in recorder.filed] == [syntax]
    back = pydicom.dcmread(tmp_path / "inbox" / recorder.filed[0].file_name)
    assert back.pixel_array.astype("<u2").tobytes() == make_instance("MR").PixelData


def test_echo_from_another_program(acceptor, recorder):
    done = tool(ECHOSCU, "127.0.0.1", acceptor.port)
    assert done.returncode == 0, done.stderr
    until(lambda: recorder.closed == [1])
    assert recorder.refusals == []


def test_truncated_instance_is_refused_and_the_rest_arrives(acceptor, recorder):
    good, bad = make_instance(index=0), make_instance(index=1)
    with association(acceptor, MR) as assoc:
        assert store_bytes(assoc, good, encode(good)).Status == 0
        answer = store_bytes(assoc, bad, encode(bad)[:-100])
        assert answer.Status == 0xC000
        assert answer.ErrorComment == "PixelData is cut off: 2048 bytes expected, 1948 found"
        assert store_bytes(assoc, bad, encode(bad)).Status == 0
    assert len(recorder.filed) == 2
    [(_, _, reason)] = recorder.refusals
    assert str(bad.SOPInstanceUID) in reason
    assert "0xC000" in reason


def test_mismatch_is_answered_a900(acceptor, recorder):
    ds = make_instance()
    with association(acceptor, MR) as assoc:
        answer = store_bytes(assoc, ds, encode(ds), instance="1.2.3.4")
    assert answer.Status == 0xA900
    assert 0 < len(answer.ErrorComment) <= 64
    assert recorder.filed == []


@contextmanager
def hostile_uids():
    """The library refuses to make what it takes from the wire."""
    settings = pydicom.config.settings
    before = settings.reading_validation_mode, settings.writing_validation_mode
    settings.reading_validation_mode = settings.writing_validation_mode = pydicom.config.IGNORE
    try:
        yield
    finally:
        settings.reading_validation_mode, settings.writing_validation_mode = before


def store_bytes(assoc, ds, encoded, instance=None):
    """C-STORE bytes that no library would write."""
    request = C_STORE()
    request.MessageID = 1
    request.Priority = 2
    request.AffectedSOPClassUID = ds.SOPClassUID
    request.AffectedSOPInstanceUID = instance or ds.SOPInstanceUID
    request.DataSet = BytesIO(encoded)
    assoc._reactor_checkpoint.clear()
    until(lambda: assoc._is_paused)
    assoc.dimse.send_msg(request, assoc.accepted_contexts[0].context_id)
    _, response = assoc.dimse.get_msg(block=True)
    assoc._reactor_checkpoint.set()
    assert response is not None, "no answer to C-STORE"
    answer = Dataset()
    answer.Status = response.Status
    answer.ErrorComment = response.ErrorComment or ""
    return answer


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), 0xA700),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), 0xA700),
        (DatabaseUnavailable("the ledger is locked"), 0xA700),
        (RuntimeError("patient Müller\nis in the message"), HANDLER_FAILED),
        (PermissionError(errno.EACCES, "Permission denied"), HANDLER_FAILED),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else hex(value),
)
def test_what_the_node_raises_becomes_a_status(acceptor, recorder, error, status):
    recorder.error = error
    ds = make_instance()
    with association(acceptor, MR) as assoc:
        answer = store_bytes(assoc, ds, encode(ds))
        again = store_bytes(assoc, ds, encode(ds))
        assert assoc.is_established
    assert (answer.Status, again.Status) == (status, status)
    assert 0 < len(answer.ErrorComment) <= 64
    assert "patient" not in answer.ErrorComment
    assert len(recorder.refusals) == 1  # a full disk is one refusal, not one per instance


def test_disk_reserve_is_answered_a700(tmp_path):
    recorder = Recorder(Inbox(tmp_path / "inbox", 2**60))
    ds = make_instance()
    with running(recorder) as acceptor, association(acceptor, MR) as assoc:
        answer = store_bytes(assoc, ds, encode(ds))
    assert answer.Status == 0xA700
    assert "disk reserve" in answer.ErrorComment


# -- refusing ---------------------------------------------------------------------------------


def test_other_objects_are_refused_by_name(acceptor, recorder):
    pdf = build_context(uid.EncapsulatedPDFStorage, uid.ExplicitVRLittleEndian)
    with association(acceptor, MR, pdf) as assoc:
        assert [c.abstract_syntax for c in assoc.accepted_contexts] == [uid.MRImageStorage]
        until(lambda: recorder.refusals)
    [(calling, host, reason)] = recorder.refusals
    assert (calling, host) == ("SCU", "127.0.0.1")
    assert "Encapsulated PDF Storage (1.2.840.10008.5.1.4.1.1.104.1)" in reason
    assert "MR Image Storage" in reason
    assert "should not be routed here" in reason


def test_a_sender_that_proposes_everything_is_no_refusal(acceptor, recorder, tmp_path):
    path = write(make_instance(), tmp_path / "out.dcm")
    done = tool(STORESCU, "127.0.0.1", acceptor.port, path)  # proposes some sixty classes
    assert done.returncode == 0, done.stderr
    until(lambda: recorder.closed == [1])
    assert recorder.refusals == []


def test_a_sender_that_proposes_everything_and_sends_nothing_is_one(acceptor, recorder):
    classes = [f"1.2.840.10008.5.1.4.1.1.104.{i}" for i in range(1, 12)]
    with association(acceptor, MR, *(build_context(c) for c in classes)):
        pass
    until(lambda: recorder.closed == [1])
    [(_, _, reason)] = recorder.refusals
    assert "and 3 more" in reason


def test_allowed_calling_ae_titles(recorder):
    with running(recorder, allowed_calling_ae_titles=("MR1", "MR2")) as acceptor:
        with association(acceptor, MR, calling="MR2") as assoc:
            assert assoc.is_established
        with association(acceptor, MR, calling="STRANGER") as assoc:
            assert assoc.is_rejected
        until(lambda: recorder.refusals)
    [(calling, _, reason)] = recorder.refusals
    assert calling == "STRANGER"
    assert "receiver.allowed_calling_ae_titles" in reason
    assert len(recorder.opened) == 1


def test_called_ae_title(recorder):
    with running(recorder, require_called_ae_title=True) as acceptor:
        with association(acceptor, MR, called="OTHER") as assoc:
            assert assoc.is_rejected
        until(lambda: recorder.refusals)
    assert "it calls OTHER, this node is NODE" in recorder.refusals[0][2]


def test_too_many_associations(recorder):
    with (
        running(recorder, max_associations=1) as acceptor,
        association(acceptor, MR),
        association(acceptor, MR) as second,
    ):
        assert second.is_rejected
        until(lambda: recorder.refusals)
    assert "receiver.max_associations" in recorder.refusals[0][2]


def test_port_in_use_says_which_and_what_to_do(recorder, acceptor):
    wanted = rf"{acceptor.port}: the port is in use.*receiver\.port"
    with pytest.raises(PartFailed, match=wanted), running(recorder, port=acceptor.port):
        pass


def test_foreign_address_says_so(recorder):
    wanted = r"no such address; set receiver\.bind"
    with pytest.raises(PartFailed, match=wanted), running(recorder, bind="192.0.2.1"):
        pass


# -- peers that fail --------------------------------------------------------------------------


def test_aborted_and_lost_associations_are_closed_once(acceptor, recorder):
    with association(acceptor, MR) as assoc:
        until(lambda: len(recorder.opened) == 1)
        assoc.abort()
    until(lambda: recorder.closed == [1])
    with association(acceptor, MR) as assoc:
        until(lambda: len(recorder.opened) == 2)
        assoc.dul.socket.socket.shutdown(socket.SHUT_RDWR)
        until(lambda: recorder.closed == [1, 2])
    time.sleep(0.2)
    assert recorder.closed == [1, 2]


@pytest.mark.parametrize(
    "start",
    [
        b"\x04\x00" + (1000).to_bytes(4, "big") + b"half a PDU",
        b"\x04\x00" + (2**32 - 1).to_bytes(4, "big") + b"four GiB",
        b"\x04\x00\x00",
    ],
    ids=["inside", "endless", "header"],
)
def test_stalled_peer_is_freed(recorder, start):
    with (
        running(recorder, network_timeout_s=1.0, max_associations=1) as acceptor,
        association(acceptor, MR) as assoc,
    ):
        until(lambda: recorder.opened)
        assoc.dul.socket.socket.sendall(start)
        until(lambda: recorder.closed == [1], 5.0)
        with association(acceptor, MR) as second:
            assert second.is_established


def test_dripping_peer_is_freed(recorder):
    with running(recorder, network_timeout_s=1.0) as acceptor, association(acceptor, MR) as assoc:
        until(lambda: recorder.opened)
        sock = assoc.dul.socket.socket
        sock.sendall(b"\x04\x00" + (1000).to_bytes(4, "big"))
        stop = threading.Event()
        drip = threading.Thread(target=drip_into, args=(sock, stop))
        drip.start()
        try:
            until(lambda: recorder.closed == [1], 5.0)
        finally:
            stop.set()
            drip.join()


def drip_into(sock, stop):
    while not stop.wait(0.1):
        try:
            sock.send(b"\0")
        except OSError:
            return


def test_stop_ends_open_associations(recorder):
    with running(recorder) as acceptor, association(acceptor, MR):
        until(lambda: recorder.opened)
        acceptor.stop()
        assert recorder.closed == [1]


def fail(path, error):
    raise AssertionError(f"{path} was refused: {error}")


# -- sending ----------------------------------------------------------------------------------


def free_port():
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


@contextmanager
def storescp(folder, *options):
    folder.mkdir()
    port = free_port()
    command = [STORESCP, "-aet", "PACS", "-od", str(folder), *options, str(port)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        try:
            until(lambda: answers(port))
            yield Peer("pacs", "PACS", "127.0.0.1", port)
        finally:
            process.terminate()


def answers(port):
    with socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", port)) == 0


def test_send_keeps_the_encoding(tmp_path):
    syntaxes = [uid.ExplicitVRLittleEndian, uid.RLELossless, uid.JPEGLSLossless]
    series = make_series("MR", Geometry(n_slices=3))
    paths = [
        write(ds, tmp_path / f"{i}.dcm", syntax)
        for i, (ds, syntax) in enumerate(zip(series, syntaxes, strict=True))
    ]
    stored = []
    with storescp(tmp_path / "pacs", "+xa", "-B") as peer:
        echo(peer, "NODE", 10)
        send(
            *(peer, "NODE", paths, 10),
            on_stored=lambda path, status: stored.append((path, status)),
            on_refused=fail,
        )
    assert stored == [(path, 0) for path in paths]
    arrived = {
        (ds.SOPInstanceUID, ds.file_meta.TransferSyntaxUID, ds.PixelData)
        for ds in map(pydicom.dcmread, (tmp_path / "pacs").iterdir())
    }
    assert arrived == {
        (ds.SOPInstanceUID, ds.file_meta.TransferSyntaxUID, ds.PixelData)
        for ds in map(pydicom.dcmread, paths)
    }


def test_what_is_not_accepted_does_not_hold_up_the_rest(tmp_path):
    paths = [
        write(make_instance(index=0), tmp_path / "0.dcm", uid.JPEG2000Lossless),
        write(make_instance(index=1), tmp_path / "1.dcm"),
    ]
    with storescp(tmp_path / "pacs") as peer:
        stored, refused = sent_to(peer, paths)
        assert stored == [paths[1]]
        assert list(refused) == [paths[0]]
        assert isinstance(refused[paths[0]], ContextNotAccepted)
        assert refused[paths[0]].destination == "pacs"
        assert re.search(r"pacs .*MR Image Storage.*JPEG 2000", str(refused[paths[0]]))
        assert sent_to(peer, paths[:1])[0] == []


def sent_to(peer, paths):
    stored, refused = [], {}
    send(
        *(peer, "OWN", paths, 10),
        on_stored=lambda path, _status: stored.append(path),
        on_refused=refused.__setitem__,
    )
    return stored, refused


def test_a_refused_or_unreadable_file_costs_the_others_nothing(acceptor, recorder, tmp_path):
    series = make_series("MR", Geometry(n_slices=4))
    del series[1].StudyInstanceUID
    paths = [write(ds, tmp_path / f"{i}.dcm") for i, ds in enumerate(series)]
    paths[2].write_bytes(b"no DICOM")
    stored, refused = sent_to(here(acceptor), [*paths, tmp_path / "gone.dcm"])
    assert stored == [paths[0], paths[3]]
    assert set(refused) == {paths[1], paths[2], tmp_path / "gone.dcm"}
    assert isinstance(refused[paths[1]], StoreFailed)
    assert refused[paths[1]].status == 0xC000
    assert "StudyInstanceUID is missing" in str(refused[paths[1]])
    assert refused[paths[1]].destination == "here"
    assert "cannot read" in str(refused[paths[2]])
    until(lambda: recorder.closed == [1])


def test_a_peer_out_of_resources_ends_the_sending(acceptor, recorder, tmp_path):
    paths = [
        write(ds, tmp_path / f"{ds.InstanceNumber}.dcm")
        for ds in make_series("MR", Geometry(n_slices=3))
    ]
    recorder.error = DatabaseUnavailable()
    with pytest.raises(StoreFailed, match="0xA700") as caught:
        sent_to(here(acceptor), paths)
    assert caught.value.status == 0xA700
    recorder.error = None
    assert sent_to(here(acceptor), paths) == (paths, {})


def here(acceptor, ae_title="NODE", host="127.0.0.1"):
    return Peer("here", ae_title, host, acceptor.port)


@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")  # the library's, never connected
def test_unreachable_destination_says_what_to_check(tmp_path):
    port = free_port()
    peer = Peer("pacs", "PACS", "127.0.0.1", port)
    wanted = rf"pacs \(PACS at 127.0.0.1:{port}\): cannot connect .*refused.*check"
    with pytest.raises(AssociationRefused, match=wanted) as caught:
        echo(peer, "NODE", 5)
    assert caught.value.destination == "pacs"
    with pytest.raises(AssociationRefused, match=wanted):
        send(peer, "NODE", [write(make_instance(), tmp_path / "0.dcm")], 5, on_refused=fail)
    del caught
    gc.collect()


def test_unknown_host_says_so():
    with pytest.raises(AssociationRefused, match=r"host name no-such-host\.invalid is not known"):
        echo(Peer("pacs", "PACS", "no-such-host.invalid", 104), "NODE", 5)


def test_rejections_name_the_ae_title_to_add(recorder):
    with running(
        recorder, allowed_calling_ae_titles=("MR1",), require_called_ae_title=True
    ) as acceptor:
        with pytest.raises(AssociationRefused, match="add the AE title STRANGER there"):
            echo(here(acceptor), "STRANGER", 5)
        with pytest.raises(AssociationRefused, match="not called OTHER"):
            echo(here(acceptor, "OTHER"), "MR1", 5)
        echo(here(acceptor), "MR1", 5)


def test_port_that_is_no_dicom():
    with socket.create_server(("127.0.0.1", 0)) as silent:
        peer = Peer("pacs", "PACS", "127.0.0.1", silent.getsockname()[1])
        with pytest.raises(AssociationRefused, match="check that the port is a DICOM port"):
            echo(peer, "NODE", 1)


def test_collector_keeps_results_and_foreign_names_stay_inside(tmp_path):
    collector = StorageCollector("ARCHIVE", 0, tmp_path / "archive")
    collector.start()
    try:
        ds = make_instance(SOPClassUID=uid.SegmentationStorage)
        path = write(ds, tmp_path / "0.dcm")
        peer = Peer("archive", "ARCHIVE", "127.0.0.1", collector.port)
        send(peer, "NODE", [path], 10, on_refused=fail)
        kept = tmp_path / "archive" / ds.SeriesInstanceUID / f"{ds.SOPInstanceUID}.dcm"
        assert pydicom.dcmread(kept).PixelData == ds.PixelData
        segmentation = build_context(uid.SegmentationStorage, uid.ExplicitVRLittleEndian)
        with hostile_uids(), association(collector, segmentation) as assoc:
            assert store_bytes(assoc, ds, encode(ds), instance="../../evil").Status == 0
        names = {
            p.relative_to(tmp_path / "archive").parts[0]
            for p in tmp_path.rglob("*.dcm")
            if p != path
        }
        assert names == {ds.SeriesInstanceUID}
    finally:
        collector.stop()
