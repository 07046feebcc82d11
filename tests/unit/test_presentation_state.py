"""Outlines as a presentation state, and the bookmark: valid, in the right place, the same twice."""

import subprocess

import numpy as np
import pytest
from pydicom.dataset import Dataset

from dicom_node.objects.key_objects import make_key_objects
from dicom_node.objects.presentation_state import make_presentation_states, outlines
from tests.make.instances import Geometry, make_enhanced, write
from tests.make.results import SCORE, SOURCES, EnhancedSource, Source, errors_of, to_bytes

NAMED = {"node_id": "node-1", "series_number": 9008, "series_description": "research use only"}


def states(source, **changed):
    options = {"window": (40.0, 100.0), **NAMED, **changed}
    found = (source.headers, source.labels, source.findings, SCORE)
    return list(make_presentation_states(*found, **options))


def state(source, **changed):
    (made,) = states(source, **changed)
    return made


def enhanced(folder):
    made = make_enhanced("MR", Geometry(rows=24, columns=20, n_slices=9), range(9))
    return EnhancedSource(write(made, folder / "enhanced.dcm"))


@pytest.mark.parametrize("kind", sorted(SOURCES))
def test_states_have_no_error(kind, tmp_path):
    source = Source(kind)
    for header in source.headers:
        header.RescaleIntercept, header.RescaleSlope = -1024.0, 1.0
    made = state(source)
    assert errors_of(made, tmp_path) == []
    path = tmp_path / "pr.dcm"
    path.write_bytes(to_bytes(made))
    run = subprocess.run(
        ["/usr/bin/dcmpschk", str(path)], capture_output=True, text=True, check=False
    )
    assert "Test passed" in run.stdout + run.stderr


def test_of_an_enhanced_source_the_frame_is_named(tmp_path):
    made = state(enhanced(tmp_path))
    assert errors_of(made, tmp_path) == []
    (annotation,) = made.GraphicAnnotationSequence
    assert annotation.ReferencedImageSequence[0].ReferencedFrameNumber == 2


def test_the_outline_runs_round_the_finding_in_the_slice_it_names():
    source = Source()
    made = state(source)
    k, i, j = source.planted
    of_slice = [
        item
        for item in made.GraphicAnnotationSequence
        if item.ReferencedImageSequence[0].ReferencedSOPInstanceUID
        == source.headers[k].SOPInstanceUID
    ]
    (annotation,) = of_slice
    assert annotation.GraphicLayer == "ANOMALY_1"
    (line,) = annotation.GraphicObjectSequence
    points = np.array(line.GraphicData).reshape(-1, 2)
    # five by five pixels round the planted one, whose centre is half a pixel beyond its number
    assert points.mean(axis=0) == pytest.approx([j + 0.5, i + 0.5], abs=0.3)
    assert np.ptp(points, axis=0) == pytest.approx([5.0, 5.0])
    (text,) = annotation.TextObjectSequence
    assert text.UnformattedTextValue == "1"
    segment = source.segmentation().SegmentSequence[0]
    assert line.TrackingUID == segment.TrackingUID


def test_of_each_rescale_with_a_finding_there_is_a_state(tmp_path):
    source = Source()
    marked = np.flatnonzero(source.labels.any(axis=(1, 2))).tolist()
    for at, header in enumerate(source.headers):
        header.RescaleIntercept, header.RescaleSlope = 0.0, 1.5 if at == marked[-1] else 2.0
    source.headers[0].RescaleSlope = 3.0
    made = states(source)
    assert [float(ds.RescaleSlope) for ds in made] == [2.0, 1.5]
    assert [len(ds.ReferencedSeriesSequence[0].ReferencedImageSequence) for ds in made] == [10, 1]
    assert [ds.InstanceNumber for ds in made] == [1, 2]
    assert len({ds.SeriesInstanceUID for ds in made}) == 1
    assert len({ds.SOPInstanceUID for ds in made}) == 2
    drawn = [
        item.ReferencedImageSequence[0].ReferencedSOPInstanceUID
        for ds in made
        for item in ds.GraphicAnnotationSequence
    ]
    assert sorted(drawn) == sorted(source.headers[at].SOPInstanceUID for at in marked)
    for ds in made:
        assert errors_of(ds, tmp_path) == []


def test_frames_with_rescales_of_their_own_have_states_of_their_own(tmp_path):
    source = enhanced(tmp_path)
    (header,) = source.headers
    for shared in header.SharedFunctionalGroupsSequence:
        shared.pop("PixelValueTransformationSequence", None)
    for at, groups in enumerate(header.PerFrameFunctionalGroupsSequence):
        groups.PixelValueTransformationSequence = [Dataset()]
        groups.PixelValueTransformationSequence[0].RescaleIntercept = 0.0
        groups.PixelValueTransformationSequence[0].RescaleSlope = 2.0 if at < 3 else 4.0
    made = state(source)
    assert float(made.RescaleSlope) == 2.0
    (image,) = made.ReferencedSeriesSequence[0].ReferencedImageSequence
    assert list(image.ReferencedFrameNumber) == [1, 2, 3]
    assert errors_of(made, tmp_path) == []


def test_outlines_are_closed_and_reach_the_border():
    mask = np.zeros((6, 8), bool)
    mask[0:2, 0:3] = True
    mask[4, 7] = True
    lines = outlines(mask)
    assert len(lines) == 2
    for line in lines:
        assert np.array_equal(line[0], line[-1])
    corner = next(line for line in lines if line.min() == 0.0)
    assert corner.max(axis=0) == pytest.approx([3.0, 2.0])
    assert outlines(np.zeros((4, 4), bool)) == []


def test_without_findings_there_is_neither():
    source = Source()
    source.findings, source.labels = (), np.zeros_like(source.labels)
    assert states(source) == []
    assert make_key_objects(source.headers, [], SCORE, **NAMED) is None


def test_the_bookmark_names_what_it_was_given_and_has_no_error(tmp_path):
    source = Source()
    objects = [source.segmentation(), *source.captures()][:3]
    made = make_key_objects(source.headers, objects, SCORE, **NAMED)
    assert errors_of(made, tmp_path) == []
    named = {
        item.ReferencedSOPInstanceUID
        for study in made.CurrentRequestedProcedureEvidenceSequence
        for series in study.ReferencedSeriesSequence
        for item in series.ReferencedSOPSequence
    }
    assert named == {ds.SOPInstanceUID for ds in objects}
    assert made.ConceptNameCodeSequence[0].CodeValue == "113000"
    texts = [str(item.TextValue) for item in made.ContentSequence if "TextValue" in item]
    assert any("NOT FOR DIAGNOSIS" in text for text in texts)


def test_both_are_the_same_bytes_when_made_again():
    one, two = Source(), Source()
    assert to_bytes(state(one)) == to_bytes(state(two))
    made = [make_key_objects(s.headers, [s.segmentation()], SCORE, **NAMED) for s in (one, two)]
    assert to_bytes(made[0]) == to_bytes(made[1])
