"""The line as code: one function per arrow, in order. The file a newcomer reads first.

``tokenize``  series -> its volumes, where it holds several: each goes on by itself, as a *part*
              volume -> protocol -> canonical grid -> slices -> frozen ViT -> tokens
``score``     tokens -> mutual similarity against the frozen batch -> calibrated token scores
``report``    token scores -> map on the source grid -> findings -> SEG, SR and SC -> outbox

Each runs on a series that is one volume, or on one part of a series. Each is idempotent: its
product lies on disk under a name made from its input, so that a node killed anywhere re-runs at
most one of them. Each reads what it needs from the ledger and the disk, and hands nothing to the
next but rows and files. It returns a short text for the ledger, without patient data; what is wrong
is raised, and the worker makes a state of it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file

from dicom_node import admission, clock, durable, findings, founding, quality, splitting, volume
from dicom_node.arrival import is_one_stack
from dicom_node.batch_mode import score_batch as score_batch
from dicom_node.config import digest
from dicom_node.errors import SeriesRejected, TooManyVolumes
from dicom_node.findings import PartOf, ScoreSummary
from dicom_node.line import Line
from dicom_node.protocol import patient_key
from dicom_node.protocol_config import Protocol
from dicom_node.result_objects import Found, write_objects
from dicom_node.scanner import scanner_of, software_of
from dicom_node.scoring import BatchScores, all_scores, percentile_among, score_against
from dicom_node.series import Part
from dicom_node.store import (
    history,
    job_table,
    part_table,
    reference_table,
    result_table,
    series_table,
    space_table,
)
from dicom_node.store.result_table import Score
from dicom_node.subject import map_on_source
from dicom_node.threshold import Rule, batch_threshold
from dicom_node.volume import Volume

#: called with the share of the stage that is done, 0..1
Progress = Callable[[float], None]


# --- tokenize -----------------------------------------------------------------------------------


def tokenize(line: Line, uid: str, progress: Progress, part: str = "") -> str:
    """Turn a complete series into tokens and make it known to its batch; returns the protocol.

    A series that holds several volumes is parted instead: the ledger then has its parts, which the
    worker queues, and what they are told apart by is returned. Raises SeriesRejected, as the rest
    does: the series is no volume, or holds too many.
    """
    if not part:
        parts = _part(line, uid)
        if parts:
            return splitting.told_by(parts)
    return _tokenize(line, uid, progress, part)


def _part(line: Line, uid: str) -> tuple[Part, ...]:
    """Look for the volumes of a series, and keep what is found; none: it is one volume.

    Headers are read only where the places of the slices leave a doubt. Raises TooManyVolumes.
    """
    series, _ = line.series(uid)
    with line.database.read() as db:
        known = part_table.parts(db, uid, series.revision)
        plain = is_one_stack(series_table.slices(db, uid))
    found = () if plain else splitting.parts_of(series.files)
    most = line.config.scoring.max_volumes
    kept = found if len(found) <= most else ()
    if list(kept) != known:
        with line.database.begin() as db:
            part_table.record(db, uid, series.revision, kept)
            series_table.clear_protocol(db, [(uid, "")])
    if len(found) > most:
        raise TooManyVolumes(
            f"the series holds {splitting.told_by(found)}; at most {most} of one series are scored "
            "(scoring.max_volumes): have those that matter sent as series of their own, or raise "
            "the limit, then `dicom-node retry`"
        )
    return found


def _tokenize(line: Line, uid: str, progress: Progress, part: str) -> str:
    """Turn one volume into tokens and make it known to its batch; returns the protocol.

    A series like none before founds a protocol (:mod:`dicom_node.grouping`); the first of one that
    takes its template or histogram from its own batch founds the batch's space. Tokens that are
    kept are not made again. Where the batch is now large enough, the jobs that wait for it are
    released. Raises SeriesRejected: the series is no volume, no protocol claims it and none may be
    founded, or there is no body in it.
    """
    series, name = line.series(uid, part)
    line.refuse_own(uid)
    source = volume.build_series(series)
    claimed = line.protocols.claim(source.headers[0], source.spacing_mm)
    with line.database.begin() as db:  # before it may be rejected: the outcome names its protocol
        series_table.set_protocol(db, uid, claimed.name, part)
        job_table.set_protocol(db, uid, series.revision, claimed.name, part)
    if claimed.own and line.look(claimed) is None:
        founding.found_space(line, claimed, name, source, progress)
    files = line.files(claimed)
    if not files.has_subject(name):
        space = line.space(claimed)
        try:
            files.save_subject(name, founding.subject_of(line, claimed, source, space, progress))
        except SeriesRejected:
            line.protocols.withdraw(claimed.name, uid, part)
            raise
    at, header = clock.now(), source.headers[0]
    made_by = (scanner_of(header), software_of(header))
    line.batch(claimed).add_candidate(
        *(name, uid, patient_key(header), at, *made_by), part=part, beside=line.subjects(series)
    )
    if line.batch(claimed).ready():
        with line.database.begin() as db:
            job_table.release_waiting(db, claimed.name, at)
    return claimed.name


# --- score --------------------------------------------------------------------------------------


def score(line: Line, uid: str, progress: Progress, part: str = "") -> str:
    """Score a tokenized volume against its frozen reference batch; returns the batch's version.

    The file comes before the row, and admission after both: killed in between, it is done again and
    the row's first content stays.

    Raises
    ------
    InsufficientReference
        The batch is too small yet.
    NonFiniteScores
        A fault of ours; nothing is kept.
    ConfigError
        The volume's protocol is no longer in the configuration.
    """
    series, name = line.series(uid, part)
    claimed = line.protocols.named(series.protocol) if series.protocol else None
    ready = claimed is not None and _has_subject(line, claimed, name)
    if claimed is None or (series.state == series_table.COMPLETE and not ready):
        # tokenized before an upgrade, for another encoder, in another space or for a protocol that
        # is forgotten, and waiting since
        claimed = line.protocols.named(_tokenize(line, uid, progress, part))
    at, patient = clock.now(), _patient_of(line, claimed, name)
    batch = line.batch(claimed).snapshot(name, patient, at)
    spec = line.method(claimed).scoring
    scores = score_against(line.files(claimed), name, batch.subjects, spec, progress)
    own, reference = all_scores(scores, spec.subject_share)
    percentile = percentile_among(own, reference)
    entry = Score(
        series_instance_uid=uid,
        revision=series.revision,
        part=part,
        subject=name,
        protocol=claimed.name,
        fingerprint=line.fingerprint(claimed),
        batch_version=batch.version,
        n_reference=len(scores.used),
        subject_score=own,
        percentile=percentile,
        scored=at,
        raw_distance=float(scores.raw.nanmedian()),
        finding_threshold=_threshold(line, claimed, scores),
    )
    folder = score_folder(line, entry)
    durable.make_folder(folder)
    with durable.replacing(folder / "tokens.safetensors") as partial:
        save_file({"raw": scores.raw, "calibrated": scores.calibrated}, partial)
    with line.database.begin() as db:
        result_table.record_score(db, entry)
        # each patient counts once, and those who come often have several
        studies = history.scored_studies(db, claimed.name, 2 * admission.RECENT, entry.fingerprint)
    recent = admission.recent_scores(studies, patient, len(scores.used))
    line.batch(claimed).decide(
        name,
        percentile,
        _faults(line, claimed, name, batch.subjects),
        standing=admission.standing(own, reference, recent),
    )
    return batch.version


def _threshold(line: Line, claimed: Protocol, scores: BatchScores) -> float:
    """Return from where on a score's map has findings: the batch may raise what is configured."""
    rule = Rule(
        claimed.finding_threshold, claimed.finding_min_volume_ml, claimed.findings_per_normal
    )
    return batch_threshold(scores.reference, rule, line.method(claimed))


def _faults(line: Line, claimed: Protocol, subject: str, batch: Sequence[str]) -> list[str]:
    """Return why a scored subject is not fit to be a reference, beside the batch it was scored by.

    They keep it out of the batch, and change nothing of its score.
    """
    files = line.files(claimed)
    members = [files.load_measures(name) for name in batch]
    return quality.faults(files.load_measures(subject), members, claimed.quality_limit)


def _has_subject(line: Line, claimed: Protocol, name: str) -> bool:
    """Return whether a series' tokens are kept, in the space that serves its protocol now."""
    founded = line.look(claimed) is not None or not claimed.own
    return founded and line.files(claimed).has_subject(name)


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


def report(line: Line, uid: str, progress: Progress, part: str = "") -> str:
    """Make findings and result objects of a score and queue their delivery; returns a summary.

    The objects are durable before they are recorded. Their UIDs are derived from what they show, so
    that a second run writes the same instances and queues nothing twice. A protocol in shadow mode
    is reported here and sent nowhere.

    Raises LookupError where the current revision has no score, ObjectError for an object that is
    not valid.
    """
    series, _ = line.series(uid, part)
    with line.database.read() as db:
        score_id, entry = result_table.get_score(db, uid, series.revision, part)
    claimed = line.protocols.named(entry.protocol)
    line.look(claimed)
    source = volume.build_series(series)
    _name_body_part(source, claimed)
    voxel_map = source_map(line, claimed, entry, source)
    summary = _summary(line, claimed, entry, series.part)
    found, labels = findings.locate(
        voxel_map,
        source.affine,
        threshold=summary.threshold,
        min_volume_ml=claimed.finding_min_volume_ml,
        max_findings=claimed.max_findings,
    )
    progress(0.5)
    shown = Found(source, voxel_map, labels, found, summary)
    made = write_objects(line, score_folder(line, entry), entry, shown)
    destinations = [d.name for d in line.config.destinations] if claimed.mode == "live" else []
    with line.database.begin() as db:
        result_table.record_results(db, score_id, found, made, destinations, clock.now())
        result_table.supersede_deliveries(db, uid, series.revision, clock.now(), part)
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
    # tokens of the score's own space: the protocol may have changed over to another since
    with line.database.read() as db:
        fingerprint = reference_table.get_batch(db, entry.batch_version).fingerprint
    subject = line.files(claimed, fingerprint).load_subject(entry.subject)
    grid = load_file(score_folder(line, entry) / "tokens.safetensors")["calibrated"]
    depth, height, width = source.voxels.shape
    affine = torch.from_numpy(source.affine)
    mapped = map_on_source(grid, subject, line.method(claimed), (depth, height, width), affine)
    result: NDArray[np.float32] = mapped.numpy()
    return result


def _summary(line: Line, claimed: Protocol, entry: Score, part: Part | None) -> ScoreSummary:
    """Gather what a result object says about its score."""
    kept = entry.finding_threshold
    with line.database.read() as db:
        fingerprint = reference_table.get_batch(db, entry.batch_version).fingerprint
        space = space_table.of_fingerprint(db, claimed.name, fingerprint)
    return ScoreSummary(
        protocol=claimed.name,
        subject_score=entry.subject_score,
        percentile=entry.percentile,
        n_reference=entry.n_reference,
        batch_version=entry.batch_version,
        fingerprint=entry.fingerprint,
        threshold=claimed.finding_threshold if kept is None else kept,
        encoder=line.config.encoder.model,
        scored_at=entry.scored,
        space=space.chosen.digest if space and space.chosen else "",
        part=PartOf(part.number, part.name, entry.subject, part.frames) if part else None,
    )
