"""What the stages make of a volume and of scores, apart from the worker that runs them."""

import numpy as np
import pydicom
import pytest
import torch
from pydicom.dataset import Dataset

from dicom_node import clock, founding, pipeline
from dicom_node.errors import EmptyForeground, NonFiniteScores
from dicom_node.protocol import patient_key
from dicom_node.store import result_table
from dicom_node.subject import make_subject
from dicom_node.volume import Volume
from tests.make import ledgers, lines


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return lines.tiny_weights(tmp_path_factory.mktemp("weights"))


@pytest.fixture
def make(tmp_path, weights):
    """A line with changes in its sections."""
    with ledgers.ledger(tmp_path) as database:
        yield lambda **sections: lines.make_line(database, tmp_path, weights, **sections)


def quiet(_share):
    """Progress that nobody looks at."""


# -- tokenize ------------------------------------------------------------------------------------


def chest(padding):
    """A CT of 32 mm cubed: a body in air, in a round field of view; `padding` lies outside it."""
    rows = np.arange(32.0)[:, None] - 15.5
    columns = np.arange(32.0)[None] - 15.5
    noise = np.random.default_rng(1).normal(0, 10, (32, 32, 32))
    voxels = np.full((32, 32, 32), -1000.0) + noise
    body = (rows / 8) ** 2 + (columns / 11) ** 2 < 1
    voxels[:, body] += 1040
    if padding is not None:
        voxels[:, rows**2 + columns**2 > 15**2] = padding
    header = Dataset()
    header.Modality = "CT"
    affine = np.eye(4)
    affine[:3, :3] = np.eye(3)[::-1]
    return Volume(voxels.astype(np.float32), affine, (header,)), body


def subject_of(line, source):
    """The subject of a volume as the tokenize stage makes it."""
    method = line.method(line.config.protocol[0])
    affine = torch.from_numpy(source.affine)
    return make_subject(founding.without_padding(source), affine, method, line.encoder)


@pytest.mark.parametrize("padding", [None, -1024, -2000, -3024])
def test_what_pads_a_ct_outside_its_field_of_view_makes_no_air_body(make, padding):
    line = make(protocol={"intensity": "hounsfield", "match": {"modality": "CT"}})
    source, body = chest(padding)
    made = subject_of(line, source)
    # a voxel more all round, where the edge is interpolated
    assert made.foreground.float().mean() == pytest.approx(body.mean(), rel=0.2)


def test_a_volume_of_one_value_is_said_to_have_no_foreground(make):
    line = make()
    source, _ = chest(None)
    flat = Volume(np.zeros_like(source.voxels), source.affine, source.headers)
    with pytest.raises(EmptyForeground, match="one value"):
        subject_of(line, flat)


def test_features_that_are_no_numbers_are_never_kept(make):
    line = make()
    line.encoder._std = torch.zeros(1, 3, 1, 1)
    uid = lines.receive_series(line, 1)
    with pytest.raises(NonFiniteScores, match="features"):
        pipeline.tokenize(line, uid, quiet)
    assert list(line.folders.root.glob("tokens/*/*")) == []


# -- whose study it is ---------------------------------------------------------------------------


def header(patient=None, issuer=None, study="1.2.3"):
    ds = Dataset()
    ds.StudyInstanceUID = study
    if patient is not None:
        ds.PatientID = patient
    if issuer is not None:
        ds.IssuerOfPatientID = issuer
    return ds


def test_a_patient_is_known_by_id_and_issuer_whatever_the_study():
    assert patient_key(header("P1", study="1.1")) == patient_key(header(" P1 ", study="1.2"))
    assert patient_key(header("P1")) != patient_key(header("P2"))
    assert patient_key(header("P1", "CLINIC")) != patient_key(header("P1", "OTHER"))
    assert "P1" not in patient_key(header("P1"))


@pytest.mark.parametrize("unknown", [None, "", " "])
def test_without_an_id_each_study_is_a_patient_of_its_own(unknown):
    one, two = (patient_key(header(unknown, study=study)) for study in ("1.1", "1.2"))
    assert one != two
    assert one == patient_key(header(study="1.1"))


# -- report --------------------------------------------------------------------------------------


def report_one(line):
    """Tokenize, score and report; return what is then queued for the destination."""
    uids = [lines.receive_series(line, seed) for seed in range(4)]
    for uid in uids:
        pipeline.tokenize(line, uid, quiet)
    pipeline.score(line, uids[0], quiet)
    said = pipeline.report(line, uids[0], quiet)
    with line.database.read() as db:
        due = result_table.due_deliveries(db, "pacs", clock.now(), 1000)
        score_id, _ = result_table.get_score(db, uids[0], 1)
        made = result_table.results_of(db, score_id)
    return uids[0], said, due, made


def test_reporting_twice_makes_the_same_objects_and_queues_each_once(make):
    line = make(results={"secondary_capture": True}, protocol={"finding_min_volume_ml": 0.0})
    uid, said, due, made = report_one(line)
    assert said == pipeline.report(line, uid, quiet)
    with line.database.read() as db:
        again = result_table.due_deliveries(db, "pacs", clock.now(), 1000)
    assert made
    assert {item.sop_instance_uid for item in due} == {item.sop_instance_uid for item in made}
    assert again == due
    assert all((line.folders.results / item.file_name).exists() for item in made)


def test_a_report_goes_with_the_segmentation(make):
    line = make(protocol={"finding_min_volume_ml": 0.0, "finding_threshold": 0.5})
    _, _, _, made = report_one(line)
    assert [item.kind for item in made] == ["SEG", "SR"]
    segmentation, report = (pydicom.dcmread(line.folders.results / m.file_name) for m in made)
    assert len(segmentation.SegmentSequence) >= 1
    assert "PredecessorDocumentsSequence" not in report
    named = {
        item.ReferencedSOPInstanceUID
        for study in report.CurrentRequestedProcedureEvidenceSequence
        for series in study.ReferencedSeriesSequence
        for item in series.ReferencedSOPSequence
    }
    assert segmentation.SOPInstanceUID in named


def test_a_parametric_map_is_made_where_it_is_asked_for(make):
    line = make(results={"parametric_map": True}, protocol={"finding_min_volume_ml": 0.0})
    _, _, due, made = report_one(line)
    (item,) = [item for item in made if item.kind == "PM"]
    assert item.sop_instance_uid in {one.sop_instance_uid for one in due}
    ds = pydicom.dcmread(line.folders.results / item.file_name)
    assert ds.NumberOfFrames == lines.GEOMETRY.n_slices
    assert ds.SeriesNumber == 9005


def test_other_kinds_of_segmentation_are_made_where_they_are_asked_for(make):
    wanted = {"labelmap_segmentation": True, "occupancy_segmentation": True}
    line = make(results=wanted, protocol={"finding_min_volume_ml": 0.0, "finding_threshold": 0.5})
    _, _, due, made = report_one(line)
    read = {m.kind: pydicom.dcmread(line.folders.results / m.file_name) for m in made}
    assert list(read) == ["SEG", "SEG labelmap", "SEG occupancy", "SR"]
    assert {item.sop_instance_uid for item in due} == {ds.SOPInstanceUID for ds in read.values()}
    numbers = {kind: ds.SeriesNumber for kind, ds in read.items() if kind != "SR"}
    assert numbers == {"SEG": 9001, "SEG labelmap": 9002, "SEG occupancy": 9003}
    tracked = [
        [s.TrackingUID for s in ds.SegmentSequence if s.SegmentNumber > 0]
        for kind, ds in read.items()
        if kind != "SR"
    ]
    assert tracked[0] == tracked[1] == tracked[2]


def test_outlines_and_a_bookmark_of_what_is_worth_a_look(make):
    line = make(
        results={"presentation_state": True, "key_objects": True, "secondary_capture": True},
        protocol={"finding_min_volume_ml": 0.0, "finding_threshold": 0.5},
    )
    _, _, _, made = report_one(line)
    of_kind = {kind: [m for m in made if m.kind == kind] for kind in ("SEG", "PR", "KO", "SC")}
    (segmentation,), (_,), (selection,) = of_kind["SEG"], of_kind["PR"], of_kind["KO"]
    ds = pydicom.dcmread(line.folders.results / selection.file_name)
    named = {
        item.ReferencedSOPInstanceUID
        for study in ds.CurrentRequestedProcedureEvidenceSequence
        for series in study.ReferencedSeriesSequence
        for item in series.ReferencedSOPSequence
    }
    captures = {item.sop_instance_uid for item in of_kind["SC"]}
    summary = min(of_kind["SC"], key=lambda item: item.file_name)
    assert {segmentation.sop_instance_uid, summary.sop_instance_uid} < named
    assert named - {segmentation.sop_instance_uid} <= captures


def test_no_report_where_none_is_wanted(make):
    line = make(results={"measurement_report": False}, protocol={"finding_min_volume_ml": 0.0})
    _, _, _, made = report_one(line)
    assert "SR" not in {item.kind for item in made}


def test_after_a_late_slice_findings_keep_their_names_and_the_report_its_predecessor(make):
    line = make(protocol={"finding_min_volume_ml": 0.0, "finding_threshold": 0.5})
    uid, _, _, made = report_one(line)
    old, before = made
    lines.receive_late_slice(line, 0)
    for stage in (pipeline.tokenize, pipeline.score, pipeline.report):
        stage(line, uid, quiet)
    with line.database.read() as db:
        score_id, _ = result_table.get_score(db, uid, 2)
        new, after = result_table.results_of(db, score_id)
    names, again = (
        {segment.TrackingUID for segment in pydicom.dcmread(path).SegmentSequence}
        for path in (line.folders.results / item.file_name for item in (old, new))
    )
    assert names & again
    assert old.sop_instance_uid != new.sop_instance_uid
    report = pydicom.dcmread(line.folders.results / after.file_name)
    (study,) = report.PredecessorDocumentsSequence
    (item,) = study.ReferencedSeriesSequence[0].ReferencedSOPSequence
    assert item.ReferencedSOPInstanceUID == before.sop_instance_uid != after.sop_instance_uid


def test_a_protocol_in_shadow_mode_is_reported_and_sent_nowhere(make):
    line = make(results={"secondary_capture": True}, protocol={"mode": "shadow"})
    _, _, due, made = report_one(line)
    assert made
    assert due == []
