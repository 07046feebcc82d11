"""Findings -> Measurement Report (TID 1500): what was measured, of which segment, against whom.

It is for machines and registries: the numbers of the pictures, coded. It states scores and the
reference batch behind them; without findings it says that nothing lies above the threshold, and
never that a study is normal.

References
----------
PS3.3 A.35.13 (Comprehensive 3D SR); PS3.16 TID 1500, 1411 (Volumetric ROI), 1501 (Measurement
Group), 300 (Measurement), 4019 (Algorithm Identification); PS3.3 C.12.1.1.2 for codes of our own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import highdicom as hd
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code

from dicom_node import __version__
from dicom_node.errors import ObjectError
from dicom_node.findings import Finding, ScoreSummary
from dicom_node.identity import MANUFACTURER, MODEL_NAME, RESEARCH_ONLY
from dicom_node.objects import provenance
from dicom_node.objects.segmentation import CATEGORY, TYPE

_SCHEME, SCORE = provenance.CODING_SCHEME, provenance.SCORE
PERCENTILE = Code("percentile", _SCHEME, "Percentile among the reference subjects")
THRESHOLD = Code("threshold", _SCHEME, "Anomaly score from which a region is a finding")
N_REFERENCE = Code("reference-subjects", _SCHEME, "Number of reference subjects")
N_FINDINGS = Code("findings", _SCHEME, "Number of regions above the threshold")
ABOVE = Code("above", _SCHEME, "Regions above the threshold")
NONE_ABOVE = Code("none-above", _SCHEME, "No region above the threshold; says nothing of normality")
#: patient coordinates of the frame of reference (PS3.3 C.7.6.2.1.1)
PEAK = (
    Code("peak-x", _SCHEME, "Place of the highest score, towards the patient's left"),
    Code("peak-y", _SCHEME, "Place of the highest score, towards the patient's back"),
    Code("peak-z", _SCHEME, "Place of the highest score, towards the patient's head"),
)
_VOLUME = Code("118565006", "SCT", "Volume")
#: PS3.16 CID 100
_PROCEDURES = {
    "CT": Code("25045-6", "LN", "CT unspecified body region"),
    "MR": Code("25056-3", "LN", "MRI unspecified body region"),
}


def make_report(
    headers: Sequence[Dataset],
    segmentation: Dataset | None,
    findings: Sequence[Finding],
    score: ScoreSummary,
    *,
    node_id: str,
    series_number: int,
    series_description: str,
    tracked: Mapping[int, str] | None = None,
    previous: Dataset | None = None,
) -> hd.sr.Comprehensive3DSR:
    """Return the report of a score, not yet a file.

    Parameters
    ----------
    headers
        Of the source series; they are its evidence.
    segmentation
        That of the same findings, whose segments the measurements are of. A finding without a
        segment, or all without a segmentation, are named by the place of the highest score alone.
    findings
        Ranks 1, 2, ... in order.
    tracked
        Tracking UIDs of findings that were seen before, by rank.
    previous
        The report that this one supersedes, of the same study.

    Raises
    ------
    ObjectError
        There are no headers, or the segmentation is of other findings.
    """
    if segmentation is not None and len(segmentation.SegmentSequence) > len(findings):
        raise ObjectError(
            f"{len(findings)} findings, and {len(segmentation.SegmentSequence)} segments"
        )
    uids = provenance.identifiers(headers, score, "report", tracked)
    common = provenance.common_arguments(headers, score, node_id)
    evidence = provenance.sanitized_headers(headers)
    report = hd.sr.Comprehensive3DSR(
        evidence=[*evidence, segmentation] if segmentation is not None else evidence,
        content=_content(headers[0], segmentation, findings, score, node_id, uids),
        series_instance_uid=uids.series_uid,
        series_number=series_number,
        sop_instance_uid=uids.instance_uid(1),
        instance_number=1,
        is_complete=True,
        series_description=series_description[:64],
        previous_versions=[previous] if previous is not None else None,
        **common,
    )
    report.CodingSchemeIdentificationSequence = [_scheme()]
    provenance.finish(report, headers[0], score, uids)
    return report


def _scheme() -> Dataset:
    """Say whose the private codes are (PS3.3 C.12.1.1.2)."""
    item = Dataset()
    item.CodingSchemeDesignator = _SCHEME
    item.CodingSchemeName = "dicom_node anomaly detection"
    item.CodingSchemeVersion = __version__
    item.CodingSchemeResponsibleOrganization = MANUFACTURER
    return item


def _content(
    header: Dataset,
    segmentation: Dataset | None,
    findings: Sequence[Finding],
    score: ScoreSummary,
    node_id: str,
    uids: provenance.Identifiers,
) -> hd.sr.MeasurementReport:
    """Return the content tree: the subject first, then a group per finding."""
    algorithm = _algorithm(score)
    regions = [_region(f, header, segmentation, algorithm, uids) for f in findings]
    return hd.sr.MeasurementReport(
        observation_context=hd.sr.ObservationContext(
            observer_device_context=provenance.observer(node_id)
        ),
        procedure_reported=_PROCEDURES.get(str(header.Modality), codes.cid100.ImagingProcedure),
        imaging_measurements=[_subject(findings, score, algorithm, uids), *regions],
        title=codes.DCM.ImagingMeasurementReport,
        language_of_content_item_and_descendants=hd.sr.LanguageOfContentItemAndDescendants(
            Code("en", "RFC5646", "English")
        ),
    )


def _algorithm(score: ScoreSummary) -> hd.sr.AlgorithmIdentification:
    """Return what scored, and by what, as the segments have it (TID 4019).

    Its family is left out: readers take that code for an evaluation of the group.
    """
    parameters = [
        f"{name} = {value}" for name, value in provenance.scoring_parameters(score).items()
    ]
    return hd.sr.AlgorithmIdentification(
        name=MODEL_NAME,
        version=score.fingerprint,
        parameters=[*parameters, RESEARCH_ONLY],
        manufacturer=MANUFACTURER,
    )


def _subject(
    findings: Sequence[Finding],
    score: ScoreSummary,
    algorithm: hd.sr.AlgorithmIdentification,
    uids: provenance.Identifiers,
) -> hd.sr.MeasurementsAndQualitativeEvaluations:
    """Return what was measured of the whole subject."""
    one = codes.UCUM.NoUnits
    measured: tuple[tuple[Code, float, Code], ...] = (
        (SCORE, score.subject_score, one),
        (PERCENTILE, score.percentile, codes.UCUM.Percent),
        (N_REFERENCE, score.n_reference, one),
        (THRESHOLD, score.threshold, one),
        (N_FINDINGS, len(findings), one),
    )
    return hd.sr.MeasurementsAndQualitativeEvaluations(
        tracking_identifier=hd.sr.TrackingIdentifier(uids.tracking_uid(0), "Subject"),
        finding_type=ABOVE if findings else NONE_ABOVE,
        algorithm_id=algorithm,
        measurements=[
            hd.sr.Measurement(name, float(value), unit) for name, value, unit in measured
        ],
    )


def _region(
    finding: Finding,
    header: Dataset,
    segmentation: Dataset | None,
    algorithm: hd.sr.AlgorithmIdentification,
    uids: provenance.Identifiers,
) -> hd.sr.MeasurementsAndQualitativeEvaluations:
    """Return what was measured of one finding."""
    identifier = hd.sr.TrackingIdentifier(
        uids.tracking_uid(finding.rank), f"Suspected anomaly {finding.rank}"
    )
    measurements = _measurements(finding)
    if segmentation is None or finding.rank > len(segmentation.SegmentSequence):
        return hd.sr.MeasurementsAndQualitativeEvaluations(
            tracking_identifier=identifier,
            finding_category=CATEGORY,
            finding_type=TYPE,
            algorithm_id=algorithm,
            measurements=measurements,
        )
    return hd.sr.VolumetricROIMeasurementsAndQualitativeEvaluations(
        tracking_identifier=identifier,
        referenced_segment=hd.sr.ReferencedSegment(
            sop_class_uid=segmentation.SOPClassUID,
            sop_instance_uid=segmentation.SOPInstanceUID,
            segment_number=finding.rank,
            source_series=hd.sr.SourceSeriesForSegmentation(str(header.SeriesInstanceUID)),
        ),
        finding_category=CATEGORY,
        finding_type=TYPE,
        algorithm_id=algorithm,
        measurements=measurements,
    )


def _measurements(finding: Finding) -> list[hd.sr.Measurement]:
    """Return volume, largest extent along a patient axis, scores, and where the highest is.

    The place is three lengths: TID 1411 has no coordinates but those of the region itself.
    """
    one, mm = codes.UCUM.NoUnits, codes.UCUM.Millimeter
    maximum, mean = codes.SCT.Maximum, codes.SCT.Mean
    return [
        hd.sr.Measurement(_VOLUME, 1000.0 * finding.volume_ml, codes.UCUM.CubicMillimeter),
        hd.sr.Measurement(codes.SCT.Diameter, finding.diameter_mm, mm, derivation=maximum),
        hd.sr.Measurement(SCORE, finding.max_score, one, derivation=maximum),
        hd.sr.Measurement(SCORE, finding.mean_score, one, derivation=mean),
        *(
            hd.sr.Measurement(name, float(at), mm)
            for name, at in zip(PEAK, finding.peak_mm, strict=True)
        ),
    ]
