"""The inbox: what is whole becomes a durable file once, what is not is refused with its reason."""

import hashlib
import shutil
import stat
from io import BytesIO

import numpy as np
import pydicom
import pytest
from pydicom import uid

from dicom_node.errors import DataSetMismatch, InboxFull, StoreStatus, UnreadableDataSet
from dicom_node.identity import IMPLEMENTATION_CLASS_UID
from dicom_node.inbox import Inbox
from tests.make.instances import encode, make_instance, received

SYNTAXES = [
    uid.ExplicitVRLittleEndian,
    uid.ImplicitVRLittleEndian,
    uid.DeflatedExplicitVRLittleEndian,
    uid.ExplicitVRBigEndian,
    uid.RLELossless,
    uid.JPEGLSLossless,
    uid.JPEG2000Lossless,
]


@pytest.fixture
def inbox(tmp_path):
    return Inbox(tmp_path / "inbox", 0)


def files(tmp_path):
    return sorted(p for p in tmp_path.rglob("*") if p.is_file())


@pytest.mark.parametrize("syntax", SYNTAXES, ids=lambda s: s.name)
def test_filed_file_is_part_10_and_keeps_every_byte(inbox, tmp_path, syntax):
    ds = make_instance("CT")
    arrived = received(ds, syntax)
    filed = inbox.file_instance(arrived)
    path = tmp_path / "inbox" / filed.file_name
    content = path.read_bytes()
    assert content.endswith(arrived.encoded)
    assert filed.size_bytes == len(content)
    assert filed.sha256 == hashlib.sha256(arrived.encoded).hexdigest()
    back = pydicom.dcmread(path)
    assert back.file_meta.TransferSyntaxUID == syntax
    assert back.file_meta.MediaStorageSOPInstanceUID == ds.SOPInstanceUID
    assert back.file_meta.SourceApplicationEntityTitle == "SCANNER"
    pixels = np.frombuffer(ds.PixelData, "<i2").reshape(ds.Rows, ds.Columns)
    np.testing.assert_array_equal(back.pixel_array, pixels)
    assert (filed.modality, filed.series_instance_uid, filed.study_instance_uid) == (
        "CT",
        ds.SeriesInstanceUID,
        ds.StudyInstanceUID,
    )


def test_file_meta_is_what_pydicom_would_write(inbox, tmp_path):
    ds = make_instance()
    filed = inbox.file_instance(received(ds))
    content = (tmp_path / "inbox" / filed.file_name).read_bytes()
    meta = pydicom.dcmread(BytesIO(content)).file_meta
    assert meta.ImplementationClassUID == IMPLEMENTATION_CLASS_UID
    assert meta.ImplementationClassUID.is_valid
    out = BytesIO()
    pydicom.filewriter.write_file_meta_info(out, meta, enforce_standard=False)
    assert content[132 : 132 + len(out.getvalue())] == out.getvalue()


@pytest.mark.parametrize("syntax", SYNTAXES, ids=lambda s: s.name)
def test_the_place_of_a_slice_and_the_count_are_read(inbox, syntax):
    ds = make_instance(index=2, ImagesInAcquisition=12)
    filed = inbox.file_instance(received(ds, syntax))
    assert filed.slice.along_mm == pytest.approx(float(ds.ImagePositionPatient[2]))
    assert filed.n_expected == 12


def test_an_image_that_does_not_say_where_it_lies_is_filed_all_the_same(inbox):
    ds = make_instance(ImagesInAcquisition="")
    del ds.ImagePositionPatient
    filed = inbox.file_instance(received(ds))
    assert (filed.slice, filed.n_expected) == (None, None)


def test_filing_twice_is_filing_once(inbox, tmp_path):
    arrived = received(make_instance())
    first = inbox.file_instance(arrived)
    written = (tmp_path / "inbox" / first.file_name).stat()
    assert inbox.file_instance(arrived) == first
    again = (tmp_path / "inbox" / first.file_name).stat()
    assert (again.st_ino, again.st_mtime_ns) == (written.st_ino, written.st_mtime_ns)
    assert len(files(tmp_path)) == 1


def test_only_the_user_may_read(inbox, tmp_path):
    filed = inbox.file_instance(received(make_instance()))
    path = tmp_path / "inbox" / filed.file_name
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert stat.S_IMODE(path.parent.parent.stat().st_mode) == 0o700


@pytest.mark.parametrize("kept", [0.3, 0.9, 0.999])
@pytest.mark.parametrize("syntax", SYNTAXES, ids=lambda s: s.name)
def test_cut_off_anywhere_is_refused(inbox, tmp_path, syntax, kept):
    ds = make_instance()
    whole = encode(ds, syntax)
    with pytest.raises(UnreadableDataSet):
        inbox.file_instance(received(ds, syntax, encoded=whole[: int(len(whole) * kept)]))
    assert files(tmp_path) == []


def test_cut_off_says_expected_and_found(inbox):
    ds = make_instance()
    cut = encode(ds)[:-100]
    with pytest.raises(UnreadableDataSet, match="2048 bytes expected, 1948 found") as caught:
        inbox.file_instance(received(ds, encoded=cut))
    assert caught.value.status == StoreStatus.CANNOT_UNDERSTAND


def test_pixels_shorter_than_the_image_are_refused(inbox):
    ds = make_instance(Rows=64)
    with pytest.raises(UnreadableDataSet, match="4096 bytes expected, 2048 found"):
        inbox.file_instance(received(ds))


def test_too_few_fragments_are_refused(inbox):
    ds = make_instance(NumberOfFrames=2, PixelData=bytes(4096))
    encoded = encode(ds, uid.RLELossless).replace(b"2 ", b"9 ")
    with pytest.raises(UnreadableDataSet, match="9 frames expected, 2 fragments"):
        inbox.file_instance(received(ds, uid.RLELossless, encoded=encoded))


@pytest.mark.parametrize(
    "keyword", ["StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "Rows", "BitsAllocated"]
)
def test_missing_attribute_is_named(inbox, keyword):
    ds = make_instance()
    lacking = make_instance()
    delattr(lacking, keyword)
    with pytest.raises(UnreadableDataSet, match=f"{keyword} is missing"):
        inbox.file_instance(received(ds, encoded=encode_anyway(lacking)))


def encode_anyway(ds):
    ds["PixelData"].VR = "OW"  # the library asks Bits Allocated otherwise
    stream = pydicom.filebase.DicomBytesIO()
    stream.is_implicit_VR, stream.is_little_endian = False, True
    pydicom.filewriter.write_dataset(stream, ds)
    return stream.getvalue()


@pytest.mark.parametrize(
    "change",
    [
        {"affected_sop_class_uid": str(uid.CTImageStorage)},
        {"affected_sop_instance_uid": "1.2.3.4"},
    ],
)
def test_other_than_announced_is_a_mismatch(inbox, tmp_path, change):
    with pytest.raises(DataSetMismatch) as caught:
        inbox.file_instance(received(make_instance(), **change))
    assert caught.value.status == StoreStatus.DATA_SET_MISMATCH
    assert files(tmp_path) == []


@pytest.mark.parametrize("hostile", [b"../../../evil", b"/etc/evil", b"1.2\0/../../x", b"..\\evil"])
def test_hostile_uid_names_nothing(inbox, tmp_path, hostile):
    ds = make_instance()
    value = str(ds.SeriesInstanceUID).encode()
    padded = hostile.ljust(len(value) + len(value) % 2, b"\0")
    encoded = encode(ds)
    assert value in encoded
    changed = encoded.replace(value.ljust(len(padded), b"\0"), padded)
    with pytest.raises(UnreadableDataSet, match="SeriesInstanceUID is not a UID"):
        inbox.file_instance(received(ds, encoded=changed))
    assert files(tmp_path) == []


@pytest.mark.parametrize("syntax", SYNTAXES, ids=lambda s: s.name)
def test_noise_is_refused_and_nothing_else(inbox, syntax):
    noise = np.random.default_rng(1)
    ds = make_instance()
    whole = encode(ds, syntax)
    for _ in range(40):
        damaged = bytearray(whole)
        for at in noise.integers(0, 600, 12):
            damaged[min(at, len(damaged) - 1)] = noise.integers(256)
        try:
            inbox.file_instance(received(ds, syntax, encoded=bytes(damaged)))
        except (UnreadableDataSet, DataSetMismatch):
            continue
    for n_bytes in (0, 1, 7, 500):
        with pytest.raises((UnreadableDataSet, DataSetMismatch)):
            inbox.file_instance(received(ds, syntax, encoded=noise.bytes(n_bytes)))


def test_wrong_transfer_syntax_is_refused(inbox):
    ds = make_instance()
    with pytest.raises(UnreadableDataSet):
        inbox.file_instance(received(ds, uid.ImplicitVRLittleEndian, encoded=encode(ds)))
    with pytest.raises(UnreadableDataSet, match="not encapsulated"):
        inbox.file_instance(received(ds, uid.RLELossless, encoded=encode(ds)))


def test_full_disk_is_known_beforehand(tmp_path):
    free = shutil.disk_usage(tmp_path).free
    full = Inbox(tmp_path / "inbox", free * 2)
    with pytest.raises(InboxFull, match="disk reserve") as caught:
        full.file_instance(received(make_instance()))
    assert caught.value.status == StoreStatus.OUT_OF_RESOURCES
    assert files(tmp_path) == []


def test_failed_write_leaves_nothing(inbox, tmp_path, monkeypatch):
    def fail(_descriptor):
        raise OSError(28, "No space left on device")

    arrived = received(make_instance())
    with monkeypatch.context() as patched:
        patched.setattr("dicom_node.durable.os.fsync", fail)
        with pytest.raises(OSError, match="No space left"):
            inbox.file_instance(arrived)
    assert files(tmp_path) == []
    assert inbox.file_instance(arrived).size_bytes == files(tmp_path)[0].stat().st_size
