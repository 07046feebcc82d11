"""The demo's own parts: what it reads back, writes, finds and says, each on real files."""

import io
import re
import socket
from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import (
    BasicTextSRStorage,
    ExplicitVRLittleEndian,
    SecondaryCaptureImageStorage,
    generate_uid,
)
from rich.console import Console

from dicom_node import config, volume
from dicom_node.anomaly.spec import GridSpec, TokenSpec
from dicom_node.anomaly.tokens import default_scales
from dicom_node.association.collector import StorageCollector
from dicom_node.association.requestor import Peer, send
from dicom_node.config import Node, NodeConfig, digest
from dicom_node.demo import pacs as demo_pacs
from dicom_node.demo import run, settings, summary
from dicom_node.demo.check import lesion_ranks, rank_of, segment_masks, sort_returned
from dicom_node.demo.cohort import Head, Lesion
from dicom_node.demo.mr_series import Acquisition, write_mr_series
from dicom_node.demo.pacs import Pacs, stored_objects
from dicom_node.demo.run import Sent
from dicom_node.errors import ConfigError
from dicom_node.findings import Finding, ScoreSummary
from dicom_node.folders import Folders
from dicom_node.jobs import JobState, Stage
from dicom_node.objects.segmentation import make_segmentation
from dicom_node.store import job_table, result_table
from tests.make.instances import Geometry, make_enhanced, make_series, write
from tests.make.ledgers import NOON, complete_series, enqueue, ledger, record_score, score, states

SCORE = ScoreSummary(
    *("brain", 6.5, 97.0, 40, "brain-1", "0123456789abcdef", 3.0, "vit_small"),
    scored_at=datetime(2026, 1, 31, tzinfo=UTC),
)
SHAPE = (8, 20, 24)
AXIAL = np.array([[0, 0, 1.0, -12], [0, 1.0, 0, -10], [3.0, 0, 0, 5], [0, 0, 0, 1]])
TURN = np.array([[0.8, -0.6, 0, 0], [0.6, 0.8, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
GRIDS = {
    "axial": AXIAL,
    "from the top": AXIAL @ np.diag([-1.0, 1, 1, 1]),
    "oblique": TURN @ AXIAL,
}


def write_series(folder, affine, patient="A"):
    voxels = np.random.default_rng(0).integers(1, 900, SHAPE)
    return write_mr_series(voxels, affine, folder, Acquisition(patient, f"{patient}^Demo"))


def finding(rank):
    return Finding(rank, 1.0, 9.0 - rank, 4.0, (1.0, 2.0, 3.0), (1.0, 2.0, 3.0), 9.0)


def write_seg(path, files, labels):
    """A SEG of `labels` (on the slices in the order of `files`) as the node makes it."""
    built = volume.build(files)
    order = [str(pydicom.dcmread(f, stop_before_pixels=True).SOPInstanceUID) for f in files]
    place = [order.index(str(header.SOPInstanceUID)) for header in built.headers]
    found = [finding(rank) for rank in range(1, int(labels.max()) + 1)]
    ds = make_segmentation(
        *(built.headers, labels[place].astype(np.uint8), found, SCORE),
        node_id="n",
        series_number=9001,
        series_description="SEG",
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    ds.save_as(path, enforce_file_format=True)
    return path


@pytest.fixture
def labels():
    """Two segments on some of the slices; the outermost slices hold none."""
    made = np.zeros(SHAPE, dtype=int)
    made[2:5, 3:9, 4:8] = 1
    made[4:7, 12:15, 15:22] = 2
    return made


# -- check: what came back --------------------------------------------------------------------


@pytest.mark.parametrize("affine", GRIDS.values(), ids=GRIDS.keys())
def test_masks_lie_where_the_frames_say(tmp_path, labels, affine):
    path = write_seg(tmp_path / "seg.dcm", write_series(tmp_path / "mr", affine), labels)
    masks = segment_masks(path, SHAPE, affine)
    assert set(masks) == {1, 2}
    for number, mask in masks.items():
        np.testing.assert_array_equal(mask, labels == number)


def test_the_number_of_a_single_segment_may_stand_among_what_frames_share(tmp_path, labels):
    """Two writers, one meaning: the library writes it per frame, others once for all."""
    path = write_seg(tmp_path / "seg.dcm", write_series(tmp_path / "mr", AXIAL), labels == 1)
    ds = pydicom.dcmread(path)
    groups = list(ds.PerFrameFunctionalGroupsSequence)
    shared = ds.SharedFunctionalGroupsSequence[0]
    if "SegmentIdentificationSequence" not in shared:
        shared.SegmentIdentificationSequence = groups[0].SegmentIdentificationSequence
        for group in groups:
            del group.SegmentIdentificationSequence
        ds.save_as(path)
    masks = segment_masks(path, SHAPE, AXIAL)
    assert list(masks) == [1]
    np.testing.assert_array_equal(masks[1], labels == 1)


def test_a_seg_of_one_frame_is_read(tmp_path):
    labels = np.zeros(SHAPE, dtype=int)
    labels[5, 2:6, 3:9] = 1
    path = write_seg(tmp_path / "seg.dcm", write_series(tmp_path / "mr", AXIAL), labels)
    assert pydicom.dcmread(path).NumberOfFrames == 1
    np.testing.assert_array_equal(segment_masks(path, SHAPE, AXIAL)[1], labels == 1)


@pytest.mark.parametrize(
    "shift_mm",
    [(0, 0, 1.5), (0, 0, 0.3), (1, 0, 0), (0, -1, 0), (0, 0, -15), (0, 0, 24)],
    ids=["half a slice", "a tenth", "a column", "a row", "before the first", "beyond the last"],
)
def test_a_frame_off_the_grid_raises(tmp_path, labels, shift_mm):
    path = write_seg(tmp_path / "seg.dcm", write_series(tmp_path / "mr", AXIAL), labels)
    ds = pydicom.dcmread(path)
    plane = ds.PerFrameFunctionalGroupsSequence[0].PlanePositionSequence[0]
    plane.ImagePositionPatient = [
        float(a) + b for a, b in zip(plane.ImagePositionPatient, shift_mm, strict=True)
    ]
    ds.save_as(path)
    with pytest.raises(ValueError, match="does not lie on a source slice"):
        segment_masks(path, SHAPE, AXIAL)


def lesion_of(mask, volume_ml=1.5):
    return Lesion(mask, 1.7, volume_ml, (0.0, 0.0, 0.0))


def test_a_lesion_is_in_the_finding_that_covers_half_of_it():
    mask = np.zeros((1, 1, 10), dtype=bool)
    mask[0, 0, :8] = True
    half, less = np.zeros_like(mask), np.zeros_like(mask)
    half[0, 0, 4:] = True
    less[0, 0, :3] = True
    assert rank_of(lesion_of(mask), {3: half, 1: less}) == 3
    assert rank_of(lesion_of(mask), {1: less}) is None
    assert rank_of(lesion_of(mask), {}) is None


def test_nothing_came_back_and_every_lesion_has_no_rank(labels):
    head = Head("H", labels.astype(np.float32), AXIAL, (lesion_of(labels == 1),) * 2)
    assert lesion_ranks(head, None) == [None, None]


def test_lesions_have_the_ranks_of_their_findings(tmp_path, labels):
    path = write_seg(tmp_path / "seg.dcm", write_series(tmp_path / "mr", AXIAL), labels)
    elsewhere = np.zeros(SHAPE, dtype=bool)
    elsewhere[0, :3, :3] = True
    planted = (lesion_of(labels == 2), lesion_of(elsewhere), lesion_of(labels == 1))
    assert lesion_ranks(Head("H", labels.astype(np.float32), AXIAL, planted), path) == [2, None, 1]


# -- pacs: copies of what the PACS holds --------------------------------------------------------


def make_object(sop_class, study, series, number, modality="OT"):
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = sop_class
    ds.SOPInstanceUID = generate_uid(entropy_srcs=[study, series, str(number)])
    ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
    ds.StudyInstanceUID, ds.SeriesInstanceUID = study, series
    ds.InstanceNumber, ds.Modality = number, modality
    return ds


def save(ds, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    ds.save_as(path, enforce_file_format=True)
    return path


def test_stored_objects_are_those_of_the_study_under_readable_unique_names(tmp_path):
    sent = [
        make_object(SecondaryCaptureImageStorage, "1.2.1", series, number)
        for series in ("1.2.1.1", "1.2.1.2")
        for number in (1, 2)
    ]
    sent += [
        make_object(BasicTextSRStorage, "1.2.1", "1.2.1.3", 1, "SR"),
        make_object(SecondaryCaptureImageStorage, "1.2.2", "1.2.2.1", 1),
    ]
    files = [save(ds, tmp_path / "sent" / f"{n}.dcm") for n, ds in enumerate(sent)]
    collector = StorageCollector("PACS", 0, tmp_path / "pacs")
    collector.start()
    try:
        peer = Peer("pacs", "PACS", "127.0.0.1", collector.port)
        refused = []
        send(peer, "NODE", files, 10, on_refused=lambda path, error: refused.append((path, error)))
        pacs = Pacs("PACS", collector.port, str(tmp_path / "pacs"), None)
        found = stored_objects(pacs, "1.2.1", tmp_path / "returned" / "one")
    finally:
        collector.stop()
    assert refused == []
    assert len(found) == 5
    assert found == sorted(found)
    kinds = [re.fullmatch(r"(SC-0001|SC-0002|SR-0001)-[0-9a-f]{4}\.dcm", p.name)[1] for p in found]
    assert sorted(kinds) == ["SC-0001", "SC-0001", "SC-0002", "SC-0002", "SR-0001"]
    returned = {str(pydicom.dcmread(path).SOPInstanceUID) for path in found}
    assert returned == {ds.SOPInstanceUID for ds in sent[:5]}


def test_of_an_unknown_study_nothing_is_stored(tmp_path):
    pacs = Pacs("PACS", 1, str(tmp_path / "pacs"), None)
    assert stored_objects(pacs, "1.2.3", tmp_path / "returned") == []


def test_without_orthanc_a_collector_is_the_pacs_and_ends_with_the_block(tmp_path, monkeypatch):
    monkeypatch.setattr(demo_pacs, "find_orthanc", lambda: None)
    ds = make_object(SecondaryCaptureImageStorage, "1.2.1", "1.2.1.1", 1)
    path = save(ds, tmp_path / "one.dcm")
    with demo_pacs.running_pacs(tmp_path / "pacs", "NODE", 1) as pacs:
        send(
            *(Peer("pacs", pacs.ae_title, "127.0.0.1", pacs.port), "NODE", [path], 10),
            on_refused=lambda _path, error: pytest.fail(str(error)),
        )
        assert len(stored_objects(pacs, "1.2.1", tmp_path / "returned")) == 1
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", pacs.port), 1)


def test_free_ports_differ():
    ports = demo_pacs.free_ports(20)
    assert len(set(ports)) == 20


def test_sorting_finds_the_seg_and_the_captures_in_order(tmp_path, labels):
    seg = write_seg(tmp_path / "SEG.dcm", write_series(tmp_path / "mr", AXIAL), labels)
    captures = [
        save(make_object(SecondaryCaptureImageStorage, "1.2", "1.2.1", n), tmp_path / f"SC-{n}.dcm")
        for n in (1, 2)
    ]
    other = save(make_object(BasicTextSRStorage, "1.2", "1.2.2", 1, "SR"), tmp_path / "SR.dcm")
    returned = sort_returned([*captures, seg, other])
    assert returned.segmentation == seg
    assert returned.secondary_captures == tuple(captures)
    assert sort_returned([other]).segmentation is None


# -- settings: the configuration that is written ----------------------------------------------

PACS = Pacs("PACS", 4242, "somewhere", None)
#: edge of the coarsest token, in voxels of 1 mm, with the packaged weights
EDGE = TokenSpec(default_scales((8,))).pitches(14)[0]
DIAGONAL = (0.7071068, 0.7071068, 0.0, -0.7071068, 0.7071068, 0.0)
CORONAL = (1.0, 0.0, 0.0, 0.0, 0.0, -1.0)


def load_demo(tmp_path, own=None, n_own=0):
    text = settings.config_text(11113, 8043, PACS, own, n_own)
    (tmp_path / "config.toml").write_text(text, "utf-8")
    return config.load(tmp_path / "config.toml")


def write_own(folder, modality, geometry, **attributes):
    made = make_series(modality, geometry, **attributes)
    return [write(ds, folder / f"{n}.dcm") for n, ds in enumerate(made)]


def assert_whole_tokens(extent_mm):
    assert all(side > 0 and side % EDGE == 0 for side in GridSpec(extent_mm, 1.0).shape)


def test_the_configuration_for_the_cohort_loads(tmp_path):
    node = load_demo(tmp_path)
    assert node.node.ae_title == settings.AE_TITLE
    assert node.node.data_dir == tmp_path / "node"
    assert (node.receiver.port, node.web.port) == (11113, 8043)
    [protocol] = node.protocol
    assert (protocol.mode, protocol.match.modality, protocol.min_reference) == ("live", "MR", 10)
    assert_whole_tokens(protocol.extent_mm)
    [destination] = node.destination
    assert (destination.ae_title, destination.port) == ("PACS", 4242)


@pytest.mark.parametrize(("modality", "intensity"), [("MR", "percentiles"), ("CT", "hounsfield")])
@pytest.mark.parametrize(
    ("orientation", "sides"),
    [
        # sides are (feet-head, front-back, left-right) of 10 slices of 5 mm, 40 rows of 4 mm and
        # 30 columns of 2 mm
        ((1.0, 0.0, 0.0, 0.0, 1.0, 0.0), (45, 160, 60)),
        (CORONAL, (160, 45, 60)),
        # of a slice turned by 45 degrees both sides count: (160 + 60) / sqrt(2)
        (DIAGONAL, (45, 155.5, 155.5)),
    ],
    ids=["axial", "coronal", "turned"],
)
def test_the_extent_holds_the_series_in_whole_tokens(
    tmp_path, modality, intensity, orientation, sides
):
    geometry = Geometry(40, 30, 10, (4.0, 2.0), 5.0, orientation)
    own = write_own(tmp_path / "own", modality, geometry)
    [protocol] = load_demo(tmp_path, own, 5).protocol
    assert (protocol.match.modality, protocol.intensity) == (modality, intensity)
    assert_whole_tokens(protocol.extent_mm)
    for extent, side in zip(protocol.extent_mm, sides, strict=True):
        assert side <= extent + 0.01 < side + EDGE + 0.02


def test_a_single_slice_and_a_whole_body_make_a_grid_all_the_same(tmp_path):
    for name, geometry in {
        "slice": Geometry(32, 32, 1),
        "body": Geometry(8, 8, 3, (100.0, 100.0), 900.0),
    }.items():
        own = write_own(tmp_path / name, "CT", geometry)
        [protocol] = load_demo(tmp_path, own, 5).protocol
        assert_whole_tokens(protocol.extent_mm)
        assert max(protocol.extent_mm) <= 392


def test_an_enhanced_series_is_taken_for_a_head(tmp_path):
    path = write(make_enhanced("MR"), tmp_path / "own" / "enhanced.dcm")
    [protocol] = load_demo(tmp_path, [path], 5).protocol
    assert_whole_tokens(protocol.extent_mm)
    assert protocol.extent_mm == (196.0, 196.0, 196.0)


@pytest.mark.parametrize(("n_own", "smallest"), [(4, 3), (5, 4), (16, 15), (60, 15)])
def test_the_batch_is_all_the_others_within_bounds(tmp_path, n_own, smallest):
    own = write_own(tmp_path / "own", "MR", Geometry())
    assert load_demo(tmp_path, own, n_own).protocol[0].min_reference == smallest


# -- run: the user's own series, the folder, the end ------------------------------------------


def write_mixed(folder, n_series):
    """Series in folders of their own, as an export medium has them, and much that is none."""
    for number in range(n_series):
        write_own(folder / f"P{number}" / "IMAGES", "MR", Geometry(n_slices=2), seed=number)
    (folder / "README.TXT").write_text("a viewer lies beside the images")
    (folder / "empty.dcm").touch()
    (folder / "viewer.exe").write_bytes(b"MZ" + bytes(500))
    (folder / "damaged.dcm").write_bytes(bytes(128) + b"DICM" + b"\x02\x00\x00\x00UL\x04\x00")
    whole = (folder / "P0" / "IMAGES" / "0.dcm").read_bytes()
    (folder / "cut.dcm").write_bytes(whole[:150])
    save(make_object(BasicTextSRStorage, "1.2", "1.2.1", 1, "SR"), folder / "report.dcm")
    nameless = make_object(SecondaryCaptureImageStorage, "1.2", "1.2.9", 1, "MR")
    del nameless.SeriesInstanceUID
    save(nameless, folder / "nameless.dcm")
    return folder


def test_own_series_are_found_among_other_files(tmp_path):
    found = run._own_series(write_mixed(tmp_path, 4))
    assert [entry.name for entry in found] == ["series 1", "series 2", "series 3", "series 4"]
    for number, entry in enumerate(found):
        assert [path.name for path in entry.files] == ["0.dcm", "1.dcm"]
        assert {path.parents[1].name for path in entry.files} == {f"P{number}"}
        header = pydicom.dcmread(entry.files[0])
        assert entry.study_instance_uid == header.StudyInstanceUID
        assert entry.series_instance_uid == header.SeriesInstanceUID
        assert entry.head is None


def test_too_few_series_are_an_error_that_counts_them(tmp_path):
    with pytest.raises(ConfigError, match="holds 3 CT or MR series; at least 4"):
        run._own_series(write_mixed(tmp_path, 3))


def test_a_folder_that_is_not_there_holds_no_series(tmp_path):
    with pytest.raises(ConfigError, match="holds 0 CT or MR series"):
        run._own_series(tmp_path / "nowhere")


def test_the_demo_empties_its_own_folder_and_no_other(tmp_path):
    own = run._fresh_folder(tmp_path / "demo")
    (own / "old").mkdir()
    (own / "old" / "file").touch()
    assert [path.name for path in run._fresh_folder(own).iterdir()] == [run._MARKER]
    other = tmp_path / "thesis"
    other.mkdir()
    (other / "chapter1.tex").touch()
    with pytest.raises(ConfigError, match="holds other files"):
        run._fresh_folder(other)
    with pytest.raises(ConfigError, match="is a file"):
        run._fresh_folder(other / "chapter1.tex")
    assert (other / "chapter1.tex").exists()


def test_waiting_ends_when_nothing_moves_any_more(tmp_path, monkeypatch):
    """Too many of the user's series were rejected: the others would wait for good."""
    monkeypatch.setattr(run, "_LOOKS_AT_REST", 1)
    monkeypatch.setattr(run, "_LIMIT_S", 60.0)
    folders = Folders(tmp_path)
    folders.create()
    sent = [Sent(f"series {n}", "1.2", f"1.2.{n}", []) for n in (1, 2)]
    with ledger(tmp_path) as database:
        for entry, state in zip(sent, (JobState.WAITING, JobState.REJECTED), strict=True):
            complete_series(database, entry.series_instance_uid)
            number = enqueue(database, entry.series_instance_uid, Stage.TOKENIZE)
            with database.begin() as db:
                job_table.move(db, number, JobState.RUNNING, NOON)
                job_table.move(db, number, state, NOON, reason="so it is")
        started = datetime.now(UTC)
        console = Console(file=io.StringIO(), width=200)
        with run._progress(console) as progress:
            assert not run._wait(NodeConfig(node=Node(data_dir=tmp_path)), sent, progress)
    assert (datetime.now(UTC) - started).total_seconds() < 30


@pytest.mark.parametrize(
    ("received", "jobs", "deliveries", "at_rest"),
    [
        ({"complete": 2}, {"score waiting": 1, "report done": 1}, {("pacs", "dead"): 3}, True),
        ({"receiving": 1}, {}, {}, False),
        ({"complete": 1}, {"tokenize queued": 1}, {}, False),
        ({"complete": 1}, {"score running": 1}, {}, False),
        ({"complete": 1}, {"report done": 1}, {("pacs", "queued"): 1}, False),
    ],
)
def test_at_rest_is_when_nothing_can_move(received, jobs, deliveries, at_rest):
    assert run._at_rest(received, jobs, deliveries) is at_rest


# -- summary: the table and the verdict -------------------------------------------------------


@dataclass
class Story:
    """A demo that has run: ledger, PACS folder and what was sent."""

    folder: object
    node: NodeConfig
    pacs: Pacs
    database: object
    sent: list

    def tell(self):
        stream = io.StringIO()
        console = Console(file=stream, width=220)
        found = summary.show(self.folder, self.node, self.pacs, self.sent, console)
        return found, stream.getvalue()

    def add(self, name, subject_score, planted=(), segments=None, *, picture=True):
        """One study: `planted` masks, and the label map of the SEG that came back."""
        files = write_series(self.folder / "cohort" / name, AXIAL, name)
        header = pydicom.dcmread(files[0], stop_before_pixels=True)
        study, uid = str(header.StudyInstanceUID), str(header.SeriesInstanceUID)
        complete_series(self.database, uid)
        entry = score(uid, subject_score=subject_score, subject=name)
        score_id = record_score(self.database, entry)
        place = self.folder / "pacs" / name
        if segments is not None:
            write_seg(place / "seg.dcm", files, segments)
            found = [finding(rank) for rank in range(1, int(segments.max()) + 1)]
            with self.database.begin() as db:
                result_table.record_results(db, score_id, found, [], [], NOON)
        for number in (1, 2):
            ds = make_object(SecondaryCaptureImageStorage, study, f"{uid}.1", number)
            save(ds, place / f"sc{number}.dcm")
        if picture:
            name_of = digest(entry.subject, entry.fingerprint, entry.batch_version)
            results = Folders(self.node.node.data_dir).results / name_of
            results.mkdir(parents=True)
            (results / "summary.png").write_bytes(b"picture of " + name.encode())
        lesions = tuple(lesion_of(mask) for mask in planted)
        head = Head(name, np.zeros(SHAPE, np.float32), AXIAL, lesions)
        self.sent.append(Sent(name, study, uid, files, head))


@pytest.fixture
def story(tmp_path):
    node = NodeConfig(node=Node(data_dir=tmp_path / "node"))
    Folders(node.node.data_dir).create()
    pacs = Pacs("PACS", 1, str(tmp_path / "pacs"), None)
    with ledger(node.node.data_dir) as database:
        yield Story(tmp_path, node, pacs, database, [])


def add_normals(story):
    for number, value in enumerate((1.0, 2.0, 3.0)):
        story.add(f"NORMAL-{number}", value)


def test_the_table_says_where_the_copies_lie(story, labels):
    add_normals(story)
    story.add("LESION-1", 9.0, [labels == 1], labels)
    found, said = story.tell()
    assert found
    places = re.findall(r"returned/LESION-1/(?:SEG|SC)-0001-[0-9a-f]{4}\.dcm", said)
    assert len(places) == 2
    assert all((story.folder / place).is_file() for place in places)
    assert "and 1 more" in said
    assert "1: 1.0 ml at (1, 2, 3), peak 8.0" in said
    assert "none above the threshold" in said
    assert "1 of 1 planted lesions" in said
    assert "missed" not in said
    picture = story.folder / "pictures" / "LESION-1.png"
    assert picture.read_bytes() == b"picture of LESION-1"


def test_a_missed_lesion_fails_the_verdict_by_name(story, labels):
    add_normals(story)
    story.add("LESION-1", 9.0, [labels == 1, labels == 2], labels == 1)
    found, said = story.tell()
    assert not found
    assert "1 of 2 planted lesions" in said
    assert "missed: LESION-1: 1.5 ml, contrast 1.7, in finding None" in said


def test_a_lesion_below_the_three_highest_findings_is_missed(story):
    segments = np.zeros(SHAPE, dtype=int)
    for rank in (1, 2, 3, 4):
        segments[rank, 2:6, 3:9] = rank
    add_normals(story)
    story.add("LESION-1", 9.0, [segments == 4], segments)
    found, said = story.tell()
    assert not found
    assert "in finding 4" in said


def test_a_lesion_too_small_to_be_promised_is_not_missed(story, labels):
    add_normals(story)
    story.add("LESION-1", 9.0, [labels == 1], None)
    lesion = lesion_of(labels == 1, volume_ml=0.3)
    head = story.sent[-1].head
    story.sent[-1].head = Head(head.name, head.voxels, head.affine, (lesion,))
    assert story.tell()[0]


def test_a_study_with_lesions_that_ranks_low_fails_the_verdict(story, labels):
    add_normals(story)
    story.add("LESION-1", 2.0, [labels == 1], labels)
    found, said = story.tell()
    assert not found
    assert "0 of 1 studies with lesions score above the median" in said


def test_of_a_users_own_series_nothing_is_promised(story, labels):
    story.add("series 1", 2.0, [], labels)
    story.sent[-1].head = None
    found, said = story.tell()
    assert found
    assert "planted" not in said
    assert (story.folder / "pictures" / "series-1.png").is_file()


def test_a_study_without_score_shows_its_reason_as_it_is(story):
    uid = "1.2.3.4"
    complete_series(story.database, uid)
    [number] = states(story.database)
    with story.database.begin() as db:
        job_table.move(db, number, JobState.RUNNING, NOON)
        job_table.move(db, number, JobState.REJECTED, NOON, reason="no [[protocol]] has it [/red]")
    story.sent.append(Sent("series 1", "1.2", uid, []))
    story.sent.append(Sent("series 2", "1.3", "1.3.1", []))
    found, said = story.tell()
    assert found
    assert "no [[protocol]] has it [/red]" in said
    assert "not received" in said


def test_a_score_whose_report_failed_costs_the_table_nothing(story):
    story.add("NORMAL-1", 1.0, picture=False)
    found, said = story.tell()
    assert found
    assert "NORMAL-1" in said
    assert not (story.folder / "pictures" / "NORMAL-1.png").exists()
