"""The line as code: one function per arrow, in order. The file a newcomer reads first.

``tokenize``  series -> volume -> protocol -> canonical grid -> slices -> frozen ViT -> tokens
``score``     tokens -> mutual similarity against the frozen batch -> calibrated token scores
``report``    token scores -> anomaly map on the source grid -> findings -> SEG and SC -> outbox

Each is idempotent: its product lies on disk under a name made from its input, so that a node killed
anywhere re-runs at most one of them. Each reads what it needs from the ledger and the disk, and
hands nothing to the next but rows and files. It returns a short text for the ledger, without
patient data; what is wrong is raised, and the worker makes a state of it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from pydicom.dataset import Dataset
from safetensors.torch import load_file, save_file
from torch import Tensor

from dicom_node import clock, durable, findings, protocol, volume
from dicom_node.anomaly import anomaly_map, foreground, intensity, resample
from dicom_node.anomaly.tokens import tokenize as make_tokens
from dicom_node.config import Protocol, digest
from dicom_node.errors import EmptyForeground, NonFiniteScores
from dicom_node.findings import Finding, LabelMap, ScoreSummary
from dicom_node.line import Line
from dicom_node.objects.drawing import Picture
from dicom_node.objects.overlay import render_summary
from dicom_node.objects.secondary_capture import make_secondary_captures
from dicom_node.objects.segmentation import make_segmentation
from dicom_node.reference import BatchScores, Subject, score_against
from dicom_node.store import job_table, reference_table, result_table, series_table
from dicom_node.store.result_table import ResultObject, Score
from dicom_node.volume import Volume

#: called with the share of the stage that is done, 0..1
Progress = Callable[[float], None]

_AIR_HU = -1000.0


def patient_key(header: Dataset) -> str:
    """Return a digest of the patient's identity (Patient ID and its issuer, else the study).

    A Patient ID is unique within its issuer alone (PS3.3 C.7.1.1). Without one each study is a
    patient: two studies of an unknown patient may then meet in a batch.
    """
    identity = str(header.get("PatientID") or "").strip()
    issuer = str(header.get("IssuerOfPatientID") or "").strip()
    return digest(identity or str(header.StudyInstanceUID), issuer)


# --- tokenize -----------------------------------------------------------------------------------


def tokenize(line: Line, uid: str, progress: Progress) -> str:
    """Turn a complete series into tokens and make it known to its batch; returns the protocol.

    Tokens that are kept are not made again. Where the batch is now large enough, the jobs that wait
    for it are released. Raises SeriesRejected: the series is no volume, no protocol claims it, or
    there is no body in it.
    """
    series, name = line.series(uid)
    source = volume.build(series.files)
    claimed = protocol.match(line.config.protocol, source.headers[0], source.spacing_mm[0])
    files = line.files(claimed)
    if not files.has_subject(name):
        files.save_subject(name, make_subject(line, claimed, source, progress))
    at = clock.now()
    line.batch(claimed).add_candidate(name, uid, patient_key(source.headers[0]), at)
    with line.database.begin() as db:
        series_table.set_protocol(db, uid, claimed.name)
    if line.batch(claimed).ready():
        with line.database.begin() as db:
            job_table.release_waiting(db, claimed.name, at)
    return claimed.name


def make_subject(line: Line, claimed: Protocol, source: Volume, progress: Progress) -> Subject:
    """Place a volume on the protocol's canonical grid and encode it.

    Raises EmptyForeground where there is too little body for a token, NonFiniteScores where the
    encoder gave features that are no numbers.
    """
    voxels = _without_padding(source)
    affine = torch.from_numpy(source.affine)
    grid = line.grid_spec(claimed)
    try:
        target = resample.canonical_affine(grid, _foreground_centre(voxels, affine))
        fill = float(voxels.min())  # beyond the source there is air
        canonical = resample.sample(voxels, resample.index_map(target, affine), grid.shape, fill)
        mask = foreground.body_mask(canonical)
        normal = _normalized(canonical, mask, claimed)
        tokens = make_tokens(normal, mask, line.encoder, line.token_spec, progress)
    except ValueError as error:
        raise EmptyForeground(f"the volume cannot be scored: {error}") from error
    if not bool(tokens.values.isfinite().all()):
        # kept, it would make every score NaN that is made with it as a reference
        raise NonFiniteScores("the encoder's features are not finite")
    return Subject(tokens, mask, target)


def _without_padding(source: Volume) -> Tensor:
    """(depth, height, width) voxels of the source; none of a CT is below air.

    Outside its field of view a CT is padded, often with values far below air (Pixel Padding Value,
    PS3.3 C.7.5.1.1.2): beside them the threshold would take the air for body.
    """
    voxels = torch.from_numpy(source.voxels)
    is_ct = source.headers[0].get("Modality") == "CT"
    return voxels.clamp(min=_AIR_HU) if is_ct else voxels


def _foreground_centre(voxels: Tensor, affine: Tensor) -> Tensor:
    """Return (3,) LPS mm of the body's centroid, found on a coarse subsample (about 3 mm).

    The grid is placed by it, before there is a mask on the grid; a few millimetres do.
    """
    spacing = affine[:3, :3].norm(dim=0)
    steps = [max(1, int(3.0 / float(edge))) for edge in spacing]
    coarse = voxels[:: steps[0], :: steps[1], :: steps[2]]
    scaled = affine.clone()
    scaled[:3, :3] = affine[:3, :3] * torch.tensor(steps, dtype=affine.dtype)
    return foreground.centroid_mm(foreground.body_mask(coarse), scaled)


def _normalized(canonical: Tensor, mask: Tensor, claimed: Protocol) -> Tensor:
    """(depth, height, width) -> [0, 1] as the protocol says, 0 outside the body."""
    if claimed.intensity == "hounsfield":
        return intensity.window_hounsfield(canonical, *claimed.window_hu) * mask
    return intensity.normalize_percentiles(canonical, mask)


# --- score --------------------------------------------------------------------------------------


def score(line: Line, uid: str, progress: Progress) -> str:
    """Score a tokenized series against its frozen reference batch; returns the batch's version.

    The file comes before the row, and admission after both: killed in between, it is done again and
    the row's first content stays.

    Raises
    ------
    InsufficientReference
        The batch is too small yet.
    NonFiniteScores
        A fault of ours; nothing is kept.
    ConfigError
        The series' protocol is no longer in the configuration.
    """
    series, name = line.series(uid)
    claimed = line.config.protocol_named(str(series.protocol))
    if series.state == series_table.COMPLETE and not line.files(claimed).has_subject(name):
        # tokenized before an upgrade, or for another encoder, and waiting since
        claimed = line.config.protocol_named(tokenize(line, uid, progress))
    at = clock.now()
    batch = line.batch(claimed).snapshot(name, _patient_of(line, claimed, name), at)
    spec = line.scoring_spec(claimed)
    scores = score_against(line.files(claimed), name, batch.subjects, spec, progress)
    own, percentile = subject_scores(scores)
    entry = Score(
        series_instance_uid=uid,
        revision=series.revision,
        subject=name,
        protocol=claimed.name,
        fingerprint=line.fingerprint(claimed),
        batch_version=batch.version,
        n_reference=len(batch.subjects),
        subject_score=own,
        percentile=percentile,
        scored=at,
    )
    folder = score_folder(line, entry)
    durable.make_folder(folder)
    with durable.replacing(folder / "tokens.safetensors") as partial:
        save_file({"raw": scores.raw, "calibrated": scores.calibrated}, partial)
    with line.database.begin() as db:
        result_table.record_score(db, entry)
    line.batch(claimed).decide(name, percentile)
    return batch.version


def subject_scores(scores: BatchScores) -> tuple[float, float]:
    """Return the subject score and its percentile (0..100) among the reference subjects' own.

    100 means above all of them; a batch of n gives n + 1 different values. Raises NonFiniteScores:
    such a score never leaves the node.
    """
    try:
        own = anomaly_map.subject_score(scores.calibrated)
        reference = [anomaly_map.subject_score(grid) for grid in scores.reference]
    except ValueError as error:
        raise NonFiniteScores(f"the calibrated scores are not finite: {error}") from error
    return own, 100.0 * sum(other < own for other in reference) / len(reference)


def _patient_of(line: Line, claimed: Protocol, subject: str) -> str:
    """Return the patient key under which the subject was made known."""
    states = (
        reference_table.CANDIDATE,
        reference_table.ADMITTED,
        reference_table.EXCLUDED,
        reference_table.EVICTED,
    )
    with line.database.read() as db:
        found = reference_table.members(db, claimed.name, line.token_fingerprint(claimed), states)
    return next((entry.patient_key for entry in found if entry.subject == subject), "")


def score_folder(line: Line, entry: Score) -> Path:
    """Return where a score's products lie; another batch or setting is another folder."""
    return line.folders.results / digest(entry.subject, entry.fingerprint, entry.batch_version)


# --- report -------------------------------------------------------------------------------------


def report(line: Line, uid: str, progress: Progress) -> str:
    """Make findings and result objects of a score and queue their delivery; returns a summary.

    The objects are durable before they are recorded. Their UIDs are derived from what they show, so
    that a second run writes the same instances and queues nothing twice. A protocol in shadow mode
    is reported here and sent nowhere.

    Raises LookupError where the current revision has no score, ObjectError for an object that is
    not valid.
    """
    series, _ = line.series(uid)
    with line.database.read() as db:
        score_id, entry = result_table.get_score(db, uid, series.revision)
    claimed = line.config.protocol_named(entry.protocol)
    source = volume.build(series.files)
    _name_body_part(source, claimed)
    voxel_map = source_map(line, claimed, entry, source)
    found, labels = findings.locate(
        voxel_map,
        source.affine,
        threshold=claimed.finding_threshold,
        min_volume_ml=claimed.finding_min_volume_ml,
        max_findings=claimed.max_findings,
    )
    progress(0.5)
    summary = _summary(line, claimed, entry)
    made = _write_objects(line, entry, source, voxel_map, labels, found, summary)
    destinations = [d.name for d in line.config.destination] if claimed.mode == "live" else []
    with line.database.begin() as db:
        result_table.record_results(db, score_id, found, made, destinations, clock.now())
        result_table.supersede_deliveries(db, uid, series.revision, clock.now())
    return f"{len(found)} findings, {len(made)} objects"


def _name_body_part(source: Volume, claimed: Protocol) -> None:
    """Let the protocol say which body part it is of, where the series itself does not.

    Without it a viewer, and the General Series module (PS3.3 C.7.3.1), would ask for a laterality.
    """
    for header in source.headers:
        if claimed.body_part and not header.get("BodyPartExamined"):
            header.BodyPartExamined = claimed.body_part


def source_map(line: Line, claimed: Protocol, entry: Score, source: Volume) -> NDArray[np.float32]:
    """Return the (depth, height, width) calibrated anomaly map on the source grid.

    What no token reaches, and what lies beyond the canonical grid, is 0 and makes no finding.
    """
    subject = line.files(claimed).load_subject(entry.subject)
    grid = load_file(score_folder(line, entry) / "tokens.safetensors")["calibrated"]
    pitch = line.token_spec.pitch_voxels(line.encoder_spec.patch_size)
    canonical = anomaly_map.upsample(grid, pitch)
    sigma = line.config.scoring.smoothing_mm / claimed.spacing_mm
    smoothed = anomaly_map.smooth(canonical, subject.foreground, sigma)
    to_canonical = resample.index_map(torch.from_numpy(source.affine), subject.affine)
    depth, height, width = source.voxels.shape
    mapped = resample.sample(smoothed, to_canonical, (depth, height, width), 0.0)
    result: NDArray[np.float32] = mapped.numpy()
    return result


def _summary(line: Line, claimed: Protocol, entry: Score) -> ScoreSummary:
    """Gather what a result object says about its score."""
    return ScoreSummary(
        protocol=claimed.name,
        subject_score=entry.subject_score,
        percentile=entry.percentile,
        n_reference=entry.n_reference,
        batch_version=entry.batch_version,
        fingerprint=entry.fingerprint,
        threshold=claimed.finding_threshold,
        encoder=line.config.encoder.model,
        scored_at=entry.scored,
    )


def _write_objects(
    line: Line,
    entry: Score,
    source: Volume,
    voxel_map: NDArray[np.float32],
    labels: LabelMap,
    found: Sequence[Finding],
    summary: ScoreSummary,
) -> list[ResultObject]:
    """Write the configured objects and the summary picture; returns what is to be sent."""
    # made by the score stage, which keeps its grid there
    folder = score_folder(line, entry)
    picture = render_summary(
        source.voxels,
        voxel_map,
        labels,
        source.affine,
        found,
        summary,
        modality=str(source.headers[0].get("Modality", "")),
    )
    with durable.replacing(folder / "summary.png") as partial:
        Image.fromarray(picture).save(partial, "PNG")
    made: list[ResultObject] = []
    if line.config.results.segmentation:
        made += _write_segmentation(line, folder, source, labels, found, summary)
    if line.config.results.secondary_capture:
        made += _write_captures(line, folder, source, voxel_map, labels, picture, summary)
    return made


def _write_segmentation(
    line: Line,
    folder: Path,
    source: Volume,
    labels: LabelMap,
    found: Sequence[Finding],
    summary: ScoreSummary,
) -> list[ResultObject]:
    """Write one SEG with a segment per finding; none where there is no finding."""
    segmentation = make_segmentation(
        source.headers,
        labels,
        found,
        summary,
        node_id=line.config.node.node_id,
        series_number=line.config.results.series_number_segmentation,
        series_description="dicom_node anomaly SEG (research use only)",
    )
    return [] if segmentation is None else [_save_object(segmentation, "SEG", folder / "seg.dcm")]


def _write_captures(
    line: Line,
    folder: Path,
    source: Volume,
    voxel_map: NDArray[np.float32],
    labels: LabelMap,
    picture: Picture,
    summary: ScoreSummary,
) -> list[ResultObject]:
    """Write the overlay series, the summary picture first."""
    captures = make_secondary_captures(
        source.headers,
        source.voxels,
        voxel_map,
        labels,
        source.affine,
        picture,
        summary,
        node_id=line.config.node.node_id,
        series_number=line.config.results.series_number_secondary_capture,
        series_description="dicom_node anomaly overlay (research use only)",
        slices=line.config.results.secondary_capture_slices,
    )
    return [
        _save_object(capture, "SC", folder / f"sc-{number:04d}.dcm")
        for number, capture in enumerate(captures, 1)
    ]


def _save_object(ds: Dataset, kind: str, path: Path) -> ResultObject:
    """Write a Part 10 file (PS3.10 section 7) that is whole or absent."""
    with durable.replacing(path) as partial:
        ds.save_as(partial, enforce_file_format=True)
    name = f"{path.parent.name}/{path.name}"
    return ResultObject(str(ds.SOPInstanceUID), kind, str(ds.SeriesInstanceUID), name)
