"""Batch mode: every scan of a folder scored against all the others, as in the paper; no node.

One volume is in memory at a time: scans are encoded one after the other, what is kept of them lies
on disk, and each is read again when its map is made. Tokens are kept under the content of the scan
and the fingerprint of the method, so that a second run encodes only what is new.

A scan that cannot be scored is named with its reason and does not stop the others. Everything that
goes wrong for all of them is raised before the first is encoded.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from dicom_node import clock, durable
from dicom_node.batch import inputs, own_space, products, recipe
from dicom_node.batch.comparison import Comparison
from dicom_node.batch.inputs import Found, Scan
from dicom_node.batch.products import Mapped
from dicom_node.batch.recipe import Recipe
from dicom_node.batch.results import BatchResult, Scored, write_tables
from dicom_node.config import NodeConfig, digest
from dicom_node.errors import ConfigError, InsufficientReference, NodeError, SeriesRejected
from dicom_node.reference_files import ReferenceFiles
from dicom_node.scoring import score_against, subject_scores
from dicom_node.subject import make_subject

#: each is compared with three others at least
MIN_SUBJECTS = 4


class Listener:
    """Told how far a run is. This one keeps it to itself.

    Names of series hold a Patient ID, which must not reach a log: who listens decides where it may.
    """

    def start(self, stage: str, n_scans: int) -> None:
        """Begin a stage, "encode" or "score", of so many scans."""

    def progress(self, stage: str, number: int, share: float, name: str) -> None:
        """Go on: `share` (0..1) of scan `number` (from 0) is done; at 1 the scan is."""

    def note(self, text: str) -> None:
        """Say what a person should know: a scan left out, a mask that belongs to nothing."""


@dataclass(frozen=True, slots=True)
class _Kept:
    """An encoded scan."""

    scan: Scan
    #: of its files of tokens
    key: str
    #: scans of one patient share it, and copies of one scan
    patient: str
    encode_s: float


@dataclass(slots=True)
class _Run:
    """What the steps of one run share, and what they find."""

    recipe: Recipe
    files: ReferenceFiles
    out: Path
    listener: Listener
    #: None without masks
    comparison: Comparison | None
    failed: list[tuple[str, str]] = field(default_factory=list)
    left_out: list[tuple[str, str]] = field(default_factory=list)


def score_batch(
    places: Sequence[Path],
    out: Path,
    cache: Path,
    *,
    config: NodeConfig | None = None,
    protocol_name: str | None = None,
    preset: str | None = None,
    images: str | None = None,
    masks: str | None = None,
    listener: Listener | None = None,
) -> BatchResult:
    """Score every scan in `places` against all the others and write maps and pictures to `out`.

    Parameters
    ----------
    places
        Folders, searched recursively, and files: NIfTI files and DICOM series of CT or MR.
    out
        Gets ``maps/`` (calibrated) and ``raw/``, on each scan's own grid, ``pictures/``,
        ``scores.csv``, ``scores.json``, and ``work/``, the kept tokens.
    cache
        Where the encoder's weights lie.
    config, protocol_name
        A node's configuration, for its encoder and, where a protocol is named, the method too.
    preset
        "mr", "ct" or "published"; by default "ct" for series of CT and else "mr".
    images, masks
        Patterns, as `inputs.find` takes them.
    listener
        Is told how far it is, and what is worth a note.

    Raises
    ------
    ConfigError
        Fewer than four patients, CT and MR in one batch, or arguments that do not fit together.
    WeightsMissing, WeightsMismatch
        The encoder cannot be loaded.
    """
    listener = listener or Listener()
    settings = config or NodeConfig()
    found = inputs.find(places, images, masks, out, settings.scoring.max_volumes)
    _note_what_is_odd(found, listener)
    _check_enough(len(found.scans), len(found.scans))
    chosen = _recipe(found.scans, settings, protocol_name, preset, cache)
    durable.make_folder(out)
    chosen = own_space.learnt(chosen, found.scans, listener.note, out / "work")
    any_mask = any(scan.mask for scan in found.scans)
    run = _Run(
        recipe=chosen,
        files=ReferenceFiles(out / "work", chosen.token_fingerprint, chosen.method.search),
        out=out,
        listener=listener,
        comparison=Comparison(chosen) if any_mask else None,
    )
    kept = _encode_all(run, found.scans)
    _check_enough(len(kept), len({entry.patient for entry in kept}))
    scored = _score_all(run, kept)
    ordered = tuple(sorted(scored, key=lambda entry: -entry.score))
    report = run.comparison.report() if run.comparison else None
    result = BatchResult(chosen, ordered, tuple(run.failed), tuple(run.left_out), report)
    write_tables(result, out)
    return result


def _note_what_is_odd(found: Found, listener: Listener) -> None:
    """Say what is allowed and yet hardly meant."""
    for path in found.stray_masks:
        listener.note(f"the mask {path} belongs to no image: their names do not begin alike")
    # the volumes of one series are never compared with one another
    studies = Counter(scan.study for scan in found.scans if scan.study and not scan.volume)
    n_several = sum(n > 1 for n in studies.values())
    if n_several:
        listener.note(
            f"in {n_several} of {len(studies)} studies there are several series: what is compared "
            "must be scanned alike; choose by Series Description with --images"
        )


def _check_enough(n_scans: int, n_patients: int) -> None:
    """Refuse a batch in which a scan could not be compared with three others."""
    if n_patients < MIN_SUBJECTS:
        raise ConfigError(
            f"{n_scans} scans of {n_patients} patients can be scored, and at least {MIN_SUBJECTS} "
            "patients are needed: each scan is compared with three others or more. Add scans of "
            "the same kind (15 or more make a good batch)"
        )


def _recipe(
    scans: Sequence[Scan],
    config: NodeConfig,
    protocol_name: str | None,
    preset: str | None,
    cache: Path,
) -> Recipe:
    """Choose the method; raises ConfigError where the scans are of two kinds."""
    modalities = sorted({scan.modality for scan in scans} - {""})
    if len(modalities) > 1:
        raise ConfigError("CT and MR series cannot be compared: score them in two runs")
    if protocol_name is not None:
        if preset is not None:
            raise ConfigError("a protocol is a method, and so is a preset: name one of them")
        return recipe.of_protocol(config, protocol_name, cache)
    return recipe.of_preset(config, preset or ("ct" if modalities == ["CT"] else "mr"), cache)


# --- encode -------------------------------------------------------------------------------------


def _encode_all(run: _Run, scans: Sequence[Scan]) -> list[_Kept]:
    """Encode every scan whose tokens are not kept; returns those that can be scored."""
    run.listener.start("encode", len(scans))
    kept = []
    for number, scan in enumerate(scans):
        try:
            kept.append(_encode(run, scan, number))
        except (NodeError, OSError) as error:
            # of a series a refusal is no fault: an export is full of localizers
            if isinstance(error, SeriesRejected) and scan.modality:
                _tell(run, run.left_out, scan.name, "left out", error)
            else:
                _tell(run, run.failed, scan.name, "failed", error)
        run.listener.progress("encode", number, 1.0, scan.name)
    return kept


def _tell(run: _Run, where: list[tuple[str, str]], name: str, how: str, error: Exception) -> None:
    """Note what became of a scan, and why."""
    where.append((name, str(error)))
    run.listener.note(f"{name} {how}: {error}")


def _encode(run: _Run, scan: Scan, number: int) -> _Kept:
    """Read a scan, and encode it unless its tokens are kept."""
    source, started = scan.load(), time.monotonic()
    run.recipe.check_match(source)
    key, encode_s = scan.content(), 0.0
    if not run.files.has_subject(key):
        made = make_subject(
            products.scored_voxels(run.recipe, scan, source),
            torch.from_numpy(source.affine),
            run.recipe.method,
            run.recipe.encoder,
            lambda share: run.listener.progress("encode", number, min(share, 0.99), scan.name),
            run.recipe.placing,
        )
        run.files.save_subject(key, made)
        encode_s = time.monotonic() - started
    if run.comparison is not None:
        run.comparison.add(scan, source, run.files.load_subject(key))
    return _Kept(scan, key, scan.patient or key, encode_s)


# --- score --------------------------------------------------------------------------------------


def _score_all(run: _Run, kept: Sequence[_Kept]) -> list[Scored]:
    """Score each scan against the others and write what is made of it."""
    run.listener.start("score", len(kept))
    for folder in products.FOLDERS:
        durable.make_folder(run.out / folder)
    scored = []
    for number, entry in enumerate(kept):
        try:
            scored.append(_score(run, kept, number))
        except (NodeError, OSError, ValueError) as error:
            _tell(run, run.failed, entry.scan.name, "failed", error)
        run.listener.progress("score", number, 1.0, entry.scan.name)
    return scored


def _batch_of(kept: Sequence[_Kept], own: _Kept) -> tuple[list[str], list[str]]:
    """Return the keys of the batch of a scan, and the names of its own patient's other scans.

    Of each other patient the newest scan, and of a series of several volumes the same one: an echo
    is compared with no other. The own patient's others never serve: the lesion that is in them too
    would be the nearest match, and hide the one that is sought. Raises InsufficientReference.
    """
    alike = [entry for entry in kept if entry.scan.volume == own.scan.volume]
    newest = {entry.patient: entry for entry in sorted(alike, key=lambda e: e.scan.scanned)}
    others = [entry.key for patient, entry in newest.items() if patient != own.patient]
    same = [e.scan.name for e in alike if e.patient == own.patient and e is not own]
    if own.scan.volume and len(others) < MIN_SUBJECTS - 1:
        raise InsufficientReference(
            f"{len(others)} other patients have a volume {own.scan.volume}, and at least "
            f"{MIN_SUBJECTS - 1} are needed"
        )
    return sorted(others), same


def _score(run: _Run, kept: Sequence[_Kept], number: int) -> Scored:
    """Score one scan, write its maps and its picture, and compare it with its mask."""
    started, own = time.monotonic(), kept[number]
    batch, same_patient = _batch_of(kept, own)
    if same_patient:
        run.listener.note(
            f"{own.scan.name} is not compared with {', '.join(same_patient)}, of the same patient: "
            "what is in both would pass as usual"
        )
    scoring = run.recipe.method.scoring
    scores = score_against(
        run.files,
        own.key,
        batch,
        scoring,
        lambda share: run.listener.progress("score", number, min(share, 0.99), own.scan.name),
    )
    score, percentile = subject_scores(scores, scoring.subject_share)
    subject = run.files.load_subject(own.key)
    mapped = products.map_scores(run.recipe, own.scan.load(), subject, scores)
    made = Scored(
        name=own.scan.name,
        source=str(own.scan.files[0] if not own.scan.modality else own.scan.files[0].parent),
        score=score,
        percentile=percentile,
        n_reference=len(scores.used),
        threshold=mapped.threshold,
        findings=mapped.found,
        same_patient=tuple(same_patient),
        batch_version=f"{run.recipe.name}-{digest(run.recipe.token_fingerprint, batch)}",
        scored_at=clock.now(),
        encode_s=own.encode_s,
        score_s=time.monotonic() - started,
    )
    products.write(run.out, run.recipe, own.scan, mapped, made)
    _compare(run, own.scan, mapped, score)
    return made


def _compare(run: _Run, scan: Scan, mapped: Mapped, score: float) -> None:
    """Compare a scored scan with its mask, if it has one; a bad mask does not undo the score."""
    if run.comparison is None:
        return
    try:
        run.comparison.compare(scan, mapped, score)
    except SeriesRejected as error:
        _tell(run, run.failed, f"the mask of {scan.name}", "failed", error)
