"""Rolling reference batch: its files on disk, who is in it, and the frozen batch of one score.

A study is judged by its distance to other studies of its protocol, so the batch decides what is
usual. It rolls: usual studies are admitted after they were scored, unusual ones are kept out, the
oldest leave. Each score is made with a frozen batch whose name is its content.

Distances are kept per ordered pair of subjects, so that a subject added to a batch of n costs O(n)
and every leave-one-out map follows from files that exist. Who is in the batch, rows alone say.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from dicom_node import durable
from dicom_node.anomaly.calibration import calibrate, location_and_scale, to_grid
from dicom_node.anomaly.similarity import interval_average, mutual_nearest
from dicom_node.anomaly.spec import ScoringSpec
from dicom_node.anomaly.tokens import Tokens
from dicom_node.config import Protocol, digest
from dicom_node.errors import InsufficientReference, NonFiniteScores
from dicom_node.store import reference_table
from dicom_node.store.database import Database
from dicom_node.store.reference_table import ADMITTED, CANDIDATE, EVICTED, EXCLUDED, Member

#: a study above this percentile of the batch's own scores is not admitted: that keeps out about one
#: usual study of twenty, which costs less than an abnormal one that hides its like
ADMISSION_PERCENTILE = 95.0


@dataclass(frozen=True, slots=True)
class Subject:
    """What is kept of one tokenized volume: enough to score it and to bring its map back."""

    tokens: Tokens
    #: (depth, height, width) bool, foreground on the canonical grid
    foreground: Tensor
    #: (4, 4) canonical index -> LPS mm
    affine: Tensor


@dataclass(frozen=True, slots=True)
class Batch:
    """A frozen reference batch; its version is the digest of its content."""

    version: str
    subjects: tuple[str, ...]


class ReferenceFiles:
    """Tokens and pair distances of one fingerprint, as safetensors files.

    Several workers may use one folder: every file is replaced whole, and distances that one of them
    overwrites unseen are measured again when they are asked for.
    """

    def __init__(self, root: Path, fingerprint: str) -> None:
        self._tokens = root / "tokens" / fingerprint
        self._distances = root / "distances" / fingerprint

    def save_subject(self, name: str, subject: Subject) -> None:
        """Keep a subject; tokens are rounded to bf16, and scores are made from the kept ones."""
        packed = subject.foreground.to(torch.uint8).flatten()
        _save(
            {
                "values": subject.tokens.values.to(torch.bfloat16),
                "index": subject.tokens.index,
                "grid_shape": torch.tensor(subject.tokens.grid_shape),
                "foreground": _pack_bits(packed),
                "shape": torch.tensor(subject.foreground.shape),
                "affine": subject.affine,
            },
            self._tokens / f"{name}.safetensors",
        )

    def has_subject(self, name: str) -> bool:
        """Return whether the subject's tokens are kept."""
        return (self._tokens / f"{name}.safetensors").exists()

    def load_subject(self, name: str) -> Subject:
        """Read a kept subject, its tokens as fp32; raises FileNotFoundError when it is not."""
        data = load_file(self._tokens / f"{name}.safetensors")
        depth, height, width = data["grid_shape"].tolist()
        tokens = Tokens(data["values"].float(), data["index"], (depth, height, width))
        shape = data["shape"].tolist()
        bits = _unpack_bits(data["foreground"])[: shape[0] * shape[1] * shape[2]]
        return Subject(tokens, bits.view(shape).bool(), data["affine"])

    def token_places(self, name: str) -> tuple[Tensor, tuple[int, int, int]]:
        """Return (n,) flat indices and (D, H, W) of a subject's tokens, not their values."""
        with safe_open(self._tokens / f"{name}.safetensors", framework="pt") as opened:
            depth, height, width = opened.get_tensor("grid_shape").tolist()
            return opened.get_tensor("index"), (depth, height, width)

    def distances(self, name: str, others: Sequence[str], chunk: int) -> Tensor:
        """Return (others, layers, n): distance of each own token to each other subject.

        What is not kept yet is measured, in both directions, and kept: one product of the tokens
        serves both, and the leave-one-out maps want the other. `others` is not empty and does not
        hold `name`; `chunk` bounds the memory of a product.
        """
        kept = self._load_distances(name)
        missing = [other for other in others if other not in kept]
        if missing:
            own = self.load_subject(name).tokens.values
            for other in missing:
                kept[other], back = _pair(own, self.load_subject(other).tokens.values, chunk)
                self._keep_distances(other, {**self._load_distances(other), name: back})
            self._keep_distances(name, kept)
        return torch.stack([kept[other] for other in others])

    def _load_distances(self, name: str) -> dict[str, Tensor]:
        path = self._distances / f"{name}.safetensors"
        return load_file(path) if path.exists() else {}

    def _keep_distances(self, name: str, distances: dict[str, Tensor]) -> None:
        _save(distances, self._distances / f"{name}.safetensors")


def _pair(queries: Tensor, keys: Tensor, chunk: int) -> tuple[Tensor, Tensor]:
    """(layers, n, dim) and (layers, m, dim) -> (layers, n) and (layers, m) nearest distances."""
    both = [mutual_nearest(q, k, chunk) for q, k in zip(queries, keys, strict=True)]
    return torch.stack([one for one, _ in both]), torch.stack([two for _, two in both])


def _save(tensors: dict[str, Tensor], path: Path) -> None:
    """Write a safetensors file that is whole or absent, also after a power cut."""
    durable.make_folder(path.parent)
    with durable.replacing(path) as partial:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, partial)


def _pack_bits(flags: Tensor) -> Tensor:
    """(n,) 0/1 uint8 -> (ceil(n / 8),) uint8."""
    padded = torch.nn.functional.pad(flags, (0, -flags.numel() % 8)).view(-1, 8)
    return (padded << torch.arange(8, dtype=torch.uint8)).sum(1, dtype=torch.uint8)


def _unpack_bits(packed: Tensor) -> Tensor:
    """(k,) uint8 -> (8 k,) 0/1 uint8."""
    return ((packed[:, None] >> torch.arange(8, dtype=torch.uint8)) & 1).flatten()


@dataclass(frozen=True, slots=True)
class BatchScores:
    """The token scores of one subject against one batch; higher is more anomalous."""

    #: (D, H, W) mean distance to the nearest share of the batch, NaN where there is no token
    raw: Tensor
    #: (D, H, W) the same, calibrated; equal to raw where calibration is off
    calibrated: Tensor
    #: per reference subject in the batch's order, its leave-one-out scores calibrated by the others
    reference: tuple[Tensor, ...]


def score_against(
    files: ReferenceFiles,
    name: str,
    batch: Sequence[str],
    spec: ScoringSpec,
    progress: Callable[[float], None] = lambda _share: None,
) -> BatchScores:
    """Score subject `name` against the subjects of `batch` (which does not hold it).

    One code path for a new study and for leave-one-out: a reference subject's own map is its score
    against the others of the batch, calibrated by the others' maps.

    Parameters
    ----------
    batch
        Three subjects or more, all in `files`; their order never changes a score.
    progress
        Called with the share that is done, once per reference subject.

    References
    ----------
    CoDeGraph3D, arXiv 2602.15315, section 3.1; the calibration by place is ours.
    """
    raw = _grid(files, name, batch, spec)
    grids = []
    for done, member in enumerate(batch):
        others = [other for other in batch if other != member]
        grids.append(_grid(files, member, others, spec))
        progress((done + 1) / len(batch))
    if spec.calibration == "none":
        return BatchScores(raw, raw, tuple(grids))
    usual = torch.stack(grids)
    calibrated = calibrate(raw, *location_and_scale(usual, spec.scale_floor))
    own = []
    # without its own map: a subject would pass as usual at the very place where it is not
    for place in range(len(batch)):
        rest = torch.cat([usual[:place], usual[place + 1 :]])
        own.append(calibrate(usual[place], *location_and_scale(rest, spec.scale_floor)))
    return BatchScores(raw, calibrated, tuple(own))


def _grid(
    files: ReferenceFiles,
    name: str,
    others: Sequence[str],
    spec: ScoringSpec,
) -> Tensor:
    """Return (D, H, W): mean over layers of the interval average over `others`."""
    distances = files.distances(name, others, spec.chunk)  # others L n
    scores = interval_average(distances, spec.nearest_share).mean(0)  # n
    if not bool(scores.isfinite().all()):
        # in the grid a NaN would pass for a place without a token: nothing unusual there
        raise NonFiniteScores(f"token scores of subject {name} against its batch are not finite")
    return to_grid(scores, *files.token_places(name))


class ReferenceBatch:
    """Who is in the reference batch of one protocol, in one token space.

    The protocol's ``min_reference`` and ``max_reference`` bound it, in patients.
    """

    def __init__(self, database: Database, protocol: Protocol, fingerprint: str) -> None:
        self._database = database
        self._protocol = protocol
        self._fingerprint = fingerprint

    def add_candidate(self, subject: str, uid: str, patient_key: str, at: datetime) -> None:
        """Make a tokenized subject known; it serves while the batch is founded.

        One that is known already keeps its state; earlier revisions of its series leave.
        """
        entry = Member(subject, uid, patient_key, CANDIDATE, "tokenized, not yet scored")
        with self._database.begin() as db:
            reference_table.add_candidate(db, self._protocol.name, self._fingerprint, entry, at)

    def snapshot(self, subject: str, patient_key: str, at: datetime) -> Batch:
        """Freeze the batch that `subject` is scored with: one subject per other patient.

        Candidates serve until enough are admitted: a new protocol is founded by its first studies,
        each scored against the others. The patient's own earlier studies never serve: the lesion
        that was there before would be the nearest match, and hide the one that is there now.

        Raises
        ------
        InsufficientReference
            Fewer than ``min_reference`` subjects of other patients; the message says how many.
        """
        found = self._members((ADMITTED,), subject, patient_key)
        if len(found) < self._protocol.min_reference:
            found = self._members((ADMITTED, CANDIDATE), subject, patient_key)
        if len(found) < self._protocol.min_reference:
            raise InsufficientReference(
                f"{len(found)} of {self._protocol.min_reference} reference subjects of protocol "
                f"{self._protocol.name!r}; the study is scored by itself when there are enough"
            )
        subjects = tuple(sorted(found[-self._protocol.max_reference :]))
        version = f"{self._protocol.name}-{digest(self._fingerprint, subjects)}"
        with self._database.begin() as db:
            reference_table.freeze(
                db, version, self._protocol.name, self._fingerprint, subjects, at
            )
        return Batch(version, subjects)

    def _members(self, states: Sequence[str], subject: str, patient_key: str) -> list[str]:
        """Return members, oldest first, one per patient, without the subject and its patient."""
        with self._database.read() as db:
            found = reference_table.members(db, self._protocol.name, self._fingerprint, states)
        return [
            entry.subject
            for entry in _newest_per_patient(found)
            if entry.patient_key != patient_key and entry.subject != subject
        ]

    def ready(self) -> bool:
        """Return whether every member could be scored now, whoever it is.

        The job that waits for the batch belongs to a member, who may not serve in its own batch:
        hence one patient more than the batch needs.
        """
        states = (ADMITTED, CANDIDATE)
        return len(self._members(states, "", "")) > self._protocol.min_reference

    def decide(self, subject: str, percentile: float) -> str:
        """Admit a scored subject, or not, by its percentile; returns the reason.

        While the batch is being founded nobody is turned away: a study above the limit goes on
        serving as a candidate until enough others are admitted, or a small site would never get
        its first batch. A full batch loses its oldest subject.
        """
        where = (self._protocol.name, self._fingerprint)
        with self._database.begin() as db:
            left = reference_table.members(db, *where, (EVICTED,))
            if any(entry.subject == subject for entry in left):
                # while it was scored a newer revision of its series came: that one counts
                return "not admitted: it has left the batch"
            admitted = reference_table.members(db, *where, (ADMITTED,))
            state, reason = self._judged(percentile, len(admitted))
            reference_table.set_state(db, *where, subject, state, reason)
            admitted = reference_table.members(db, *where, (ADMITTED,))
            for leaving, why in _leaving(admitted, self._protocol.max_reference):
                reference_table.set_state(db, *where, leaving, EVICTED, why)
        return reason

    def _judged(self, percentile: float, n_admitted: int) -> tuple[str, str]:
        """Return the state that a percentile earns, and why."""
        limit = f"percentile {percentile:.0f}, limit {ADMISSION_PERCENTILE:.0f}"
        if percentile <= ADMISSION_PERCENTILE:
            return ADMITTED, f"admitted: {limit}"
        if n_admitted < self._protocol.min_reference:
            return CANDIDATE, f"not admitted ({limit}); serves while the batch is founded"
        return EXCLUDED, f"kept out: {limit}"


def _leaving(admitted: Sequence[Member], longest: int) -> list[tuple[str, str]]:
    """Return which of the admitted leave, oldest first, and why.

    Only the newest study of a patient serves. The others would take the places of other patients:
    a ward that scans one patient daily would empty the batch.
    """
    serving = _newest_per_patient(admitted)
    older = [entry for entry in admitted if entry not in serving]
    oldest = serving[: max(0, len(serving) - longest)]
    return [
        *((entry.subject, "a newer study of the patient is in the batch") for entry in older),
        *((entry.subject, "the batch is full: the oldest leaves") for entry in oldest),
    ]


def _newest_per_patient(found: Sequence[Member]) -> list[Member]:
    """Keep of each patient the last entry; the order stays."""
    newest = {entry.patient_key: entry.subject for entry in found}
    return [entry for entry in found if newest[entry.patient_key] == entry.subject]
