"""The structured report: valid, of the segments beside it, the same numbers to every reader."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import highdicom as hd
import pytest

from dicom_node.errors import ObjectError
from dicom_node.identity import RESEARCH_ONLY
from dicom_node.objects.measurement_report import ABOVE, NONE_ABOVE, PEAK, SCORE, make_report
from tests.make.instances import Geometry, make_enhanced, write
from tests.make.results import SCORE as SUMMARY
from tests.make.results import SOURCES, EnhancedSource, Source, errors_of, reread, to_bytes

READER = Path(sys.prefix) / "bin" / "tid1500reader"


def report(source, segmentation=None, findings=None, **changed):
    options = {
        "node_id": "node-1",
        "series_number": 9007,
        "series_description": "dicom_node anomaly report (research use only)",
    }
    found = source.findings if findings is None else findings
    return make_report(source.headers, segmentation, found, SUMMARY, **(options | changed))


def content(ds):
    return hd.sr.Comprehensive3DSR.from_dataset(reread(ds)).content


def numbers(group):
    """Value by (code, derivation); each occurs once."""
    found = [
        ((m.name.value, m.derivation.value if m.derivation else ""), m.value)
        for m in group.get_measurements()
    ]
    assert len(dict(found)) == len(found)
    return dict(found)


@pytest.mark.parametrize("kind", sorted(SOURCES))
def test_reports_have_no_error(kind, tmp_path):
    source = Source(kind)
    assert errors_of(report(source, source.segmentation()), tmp_path) == []
    assert errors_of(report(source), tmp_path) == []
    assert errors_of(report(source, findings=()), tmp_path) == []


def test_each_finding_is_measured_on_its_segment():
    source = Source("oblique")
    segmentation = source.segmentation()
    groups = content(report(source, segmentation)).get_volumetric_roi_measurement_groups()
    assert len(groups) == len(source.findings) == 2
    for group, finding, segment in zip(
        groups, source.findings, segmentation.SegmentSequence, strict=True
    ):
        seen = numbers(group)
        assert seen["118565006", ""] == pytest.approx(1000 * finding.volume_ml)
        assert seen["81827009", "56851009"] == pytest.approx(finding.diameter_mm)
        assert seen[SCORE.value, "56851009"] == pytest.approx(finding.max_score)
        assert seen[SCORE.value, "373098007"] == pytest.approx(finding.mean_score)
        peak = [seen[name.value, ""] for name in PEAK]
        assert peak == pytest.approx(finding.peak_mm)
        image = group.referenced_segment
        assert image.referenced_sop_instance_uid == segmentation.SOPInstanceUID
        assert list(image.referenced_segment_numbers) == [segment.SegmentNumber]
        assert group.tracking_uid == segment.TrackingUID
        assert group.tracking_identifier == segment.TrackingID


def test_the_subject_is_measured_too_and_the_batch_is_named():
    source = Source()
    made = report(source, source.segmentation())
    (group,) = content(made).get_image_measurement_groups()
    seen = {code: value for (code, _), value in numbers(group).items()}
    assert seen["anomaly-score"] == SUMMARY.subject_score
    assert seen["percentile"] == SUMMARY.percentile
    assert seen["reference-subjects"] == SUMMARY.n_reference
    assert seen["threshold"] == SUMMARY.threshold
    assert seen["findings"] == 2
    texts = [str(item.TextValue) for item in group[0].ContentSequence if "TextValue" in item]
    assert f"reference_batch = {SUMMARY.batch_version}" in texts
    assert SUMMARY.fingerprint in texts
    assert RESEARCH_ONLY in texts


@pytest.mark.parametrize("found", [True, False])
def test_it_states_what_is_above_the_threshold_and_never_normality(found):
    source = Source()
    made = report(source, findings=None if found else ())
    groups = content(made).get_image_measurement_groups()
    assert groups[0].finding_type == (ABOVE if found else NONE_ABOVE)
    assert "says nothing of normality" in NONE_ABOVE.meaning
    assert len(groups) == 1 + (len(source.findings) if found else 0)


def test_the_evidence_is_the_source_and_the_segmentation():
    source = Source()
    segmentation = source.segmentation()
    (study,) = report(source, segmentation).CurrentRequestedProcedureEvidenceSequence
    of_series = {
        series.SeriesInstanceUID: {
            item.ReferencedSOPInstanceUID for item in series.ReferencedSOPSequence
        }
        for series in study.ReferencedSeriesSequence
    }
    assert of_series == {
        "1.2.3.2": {header.SOPInstanceUID for header in source.headers},
        segmentation.SeriesInstanceUID: {segmentation.SOPInstanceUID},
    }


def test_it_is_the_same_bytes_when_made_again_and_carries_the_identity():
    first, second = Source(), Source()
    one = report(first, first.segmentation())
    assert to_bytes(one) == to_bytes(report(second, second.segmentation()))
    assert (one.PatientID, str(one.PatientName)) == ("P-1", "Doe^Jane")
    assert one.ContentQualification == "RESEARCH"
    assert one.VerificationFlag == "UNVERIFIED"
    assert one.SeriesInstanceUID != first.segmentation().SeriesInstanceUID


def test_it_names_the_report_that_it_supersedes(tmp_path):
    source = Source()
    before = report(source)
    source.headers = source.headers[:-1]
    after = report(source, previous=reread(before))
    (study,) = after.PredecessorDocumentsSequence
    (series,) = study.ReferencedSeriesSequence
    (item,) = series.ReferencedSOPSequence
    assert item.ReferencedSOPInstanceUID == before.SOPInstanceUID != after.SOPInstanceUID
    assert errors_of(after, tmp_path) == []


def test_an_enhanced_source_is_evidence(tmp_path):
    enhanced = make_enhanced("MR", Geometry(rows=24, columns=20, n_slices=9), range(9))
    source = EnhancedSource(write(enhanced, tmp_path / "enhanced.dcm"))
    made = report(source, source.segmentation())
    assert errors_of(made, tmp_path) == []
    (study,) = made.CurrentRequestedProcedureEvidenceSequence
    named = {
        item.ReferencedSOPInstanceUID
        for series in study.ReferencedSeriesSequence
        for item in series.ReferencedSOPSequence
    }
    assert source.headers[0].SOPInstanceUID in named


def test_a_segmentation_of_other_findings_is_refused():
    source = Source()
    with pytest.raises(ObjectError, match="1 findings, and 2 segments"):
        report(source, source.segmentation(), source.findings[:1])


def test_dcmqi_reads_the_same_numbers(tmp_path):
    source = Source()
    path, read = tmp_path / "sr.dcm", tmp_path / "sr.json"
    path.write_bytes(to_bytes(report(source, source.segmentation())))
    call = [str(READER), "--inputDICOM", str(path), "--outputMetadata", str(read)]
    subprocess.run(call, check=True, capture_output=True)
    groups = json.loads(read.read_text())["Measurements"]
    assert len(groups) == 3
    for group, finding in zip(groups[1:], source.findings, strict=True):
        assert group["ReferencedSegment"] == finding.rank
        seen = [float(item["value"]) for item in group["measurementItems"]]
        expected = (1000 * finding.volume_ml, finding.diameter_mm)
        assert seen[:2] == pytest.approx(expected)
        assert seen[2:4] == pytest.approx((finding.max_score, finding.mean_score))


def test_a_space_of_the_batch_is_named():
    made = make_report(
        (source := Source()).headers,
        None,
        source.findings,
        replace(SUMMARY, space="5f3a0c1b9d2e"),
        node_id="node-1",
        series_number=9007,
        series_description="report",
    )
    (group, *_) = content(made).get_image_measurement_groups()
    texts = [str(item.TextValue) for item in group[0].ContentSequence if "TextValue" in item]
    assert "space = 5f3a0c1b9d2e" in texts
