"""Kept subjects -> the token scores of one of them against a batch of the others.

One code path for both modes of the method: a folder's subjects are each scored against all others,
and a new study against a frozen batch. A reference subject's own map is its score against the rest
of the batch, calibrated by the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dicom_node.analogue_scores import AnalogueScores
from dicom_node.anomaly.anomaly_map import fuse, subject_score
from dicom_node.anomaly.calibration import UsualScores, calibrate, centred, to_grid
from dicom_node.anomaly.contamination import outliers
from dicom_node.anomaly.spec import ScoringSpec
from dicom_node.errors import InsufficientReference, NonFiniteScores
from dicom_node.guard import GuardedFiles
from dicom_node.reference_files import ReferenceFiles

#: each needs two others for its own leave-one-out scores
MIN_REFERENCE = 3


class ReferenceScores:
    """Each reference subject's own token scores, in the batch's order: (D, H, W), made when asked.

    A subject is judged by the others alone: with its own map among them it would pass as usual at
    the very place where it is not.
    """

    def __init__(self, names: Sequence[str], scales: Sequence[Tensor], spec: ScoringSpec) -> None:
        """Take per scale (n, layers, D, H, W) leave-one-out scores, centred where calibrated."""
        #: of the subjects, in the order of their scores
        self.names = tuple(names)
        self._scales, self._spec = scales, spec
        self._usual: list[UsualScores] | None = None
        if spec.calibration != "none":
            self._usual = [UsualScores.of(scale) for scale in scales]

    def __len__(self) -> int:
        """Return the number of reference subjects."""
        return len(self.names)

    def judged(self, _name: str, own: Sequence[Tensor]) -> Tensor:
        """Per scale (layers, D, H, W) scores of a study -> (D, H, W), calibrated by all here."""
        if self._usual is None:
            return fuse(own)
        return fuse(
            [
                calibrate(centred(scale), *usual.of_all(self._spec))
                for scale, usual in zip(own, self._usual, strict=True)
            ]
        )

    def __iter__(self) -> Iterator[Tensor]:
        """Yield the scores of each subject, one in memory at a time."""
        return (self[place] for place in range(len(self)))

    def __getitem__(self, place: int) -> Tensor:
        """Return the scores of one subject, NaN where it has no token."""
        own = [scale[place] for scale in self._scales]
        if self._usual is None:
            return fuse(own)
        return fuse(
            [
                calibrate(scale, *usual.of_others(scale, self._spec))
                for scale, usual in zip(own, self._usual, strict=True)
            ]
        )


@dataclass(frozen=True, slots=True)
class BatchScores:
    """The token scores of one subject against one batch; higher is more anomalous.

    On the grid of the finest tokens, the mean over scales and layers.
    """

    #: (D, H, W) mean distance to the nearest share of the batch, NaN where there is no token
    raw: Tensor
    #: (D, H, W) each scale and layer calibrated, then fused; equal to raw without calibration
    calibrated: Tensor
    #: per reference subject (D, H, W) its leave-one-out scores, calibrated by the others
    reference: ReferenceScores | AnalogueScores | Sequence[Tensor]
    #: of the batch, in its order: outliers among them are left out, if the method says so
    used: tuple[str, ...] = ()


def score_against(
    files: ReferenceFiles,
    name: str,
    batch: Sequence[str],
    spec: ScoringSpec,
    progress: Callable[[float], None] = lambda _share: None,
) -> BatchScores:
    """Score subject `name` against the subjects of `batch` (which does not hold it).

    Parameters
    ----------
    batch
        `MIN_REFERENCE` subjects or more, all in `files`; their order never changes a score.
    progress
        Called with the share that is done, once per reference subject.

    Raises
    ------
    InsufficientReference
        Fewer than `MIN_REFERENCE` reference subjects.
    NonFiniteScores
        A distance is no number: in a grid it would pass for a place without a token.

    References
    ----------
    CoDeGraph3D, arXiv 2602.15315, section 3.1; the calibration by place is ours.
    """
    if len(batch) < MIN_REFERENCE:
        raise InsufficientReference(
            f"{len(batch)} reference subjects for {name}: the method needs {MIN_REFERENCE} at least"
        )
    used = used_of(files, batch, spec)
    source = GuardedFiles(files, [name, *used], spec, spec.guard) if spec.guard else files
    return score_with(source, name, reference_scores(source, used, spec, progress), spec)


def score_with(
    source: ReferenceFiles | GuardedFiles,
    name: str,
    reference: ReferenceScores | AnalogueScores,
    spec: ScoringSpec,
) -> BatchScores:
    """Score a subject against a batch whose own scores are there: they are the same for each.

    Not with the guard, which looks at the subject and its batch together. Raises as
    `score_against`.
    """
    own = _grids(source, name, reference.names, spec)
    return BatchScores(fuse(own), reference.judged(name, own), reference, reference.names)


def reference_scores(
    source: ReferenceFiles | GuardedFiles,
    batch: Sequence[str],
    spec: ScoringSpec,
    progress: Callable[[float], None] = lambda _share: None,
) -> ReferenceScores | AnalogueScores:
    """Return each subject's own scores against the others of the batch.

    Raises ValueError for the guard together with the calibration by analogues: an analogue that the
    guard left out would still say what is usual.
    """
    if spec.calibration == "analogue":
        if isinstance(source, GuardedFiles):
            raise ValueError("the guard does not go with the calibration by analogues")
        return AnalogueScores(source, batch, spec, progress)
    scales: list[Tensor] = []
    for done, member in enumerate(batch):
        others = [other for other in batch if other != member]
        grids = _grids(source, member, others, spec)
        if not scales:  # laid out once: stacked afterwards they would be held twice
            scales = [grid.new_empty(len(batch), *grid.shape) for grid in grids]
        for scale, grid in zip(scales, grids, strict=True):
            scale[done] = grid if spec.calibration == "none" else centred(grid)
        progress((done + 1) / len(batch))
    return ReferenceScores(batch, scales, spec)


def used_of(files: ReferenceFiles, batch: Sequence[str], spec: ScoringSpec) -> tuple[str, ...]:
    """Return which of the batch judge: all, or `without_outliers` if the method says so."""
    return without_outliers(files, batch, spec) if spec.outlier_limit > 0 else tuple(batch)


def without_outliers(
    files: ReferenceFiles, batch: Sequence[str], spec: ScoringSpec
) -> tuple[str, ...]:
    """Return the batch without the subjects that are unusual among its others, in its order.

    Repeated until nobody else is: with the first out, the next may show. The highest alone leaves
    each time, since it widens what the others are judged by; at least half of the batch stays, and
    `MIN_REFERENCE`.
    """
    used, least = list(batch), max(MIN_REFERENCE, (len(batch) + 1) // 2)
    while len(used) > least:
        reference = reference_scores(files, used, spec)
        scores = torch.tensor([subject_score(grid, spec.subject_share) for grid in reference])
        if not bool(outliers(scores, spec.outlier_limit).any()):
            break
        del used[int(scores.argmax())]
    return tuple(used)


def _grids(
    files: ReferenceFiles | GuardedFiles, name: str, others: Sequence[str], spec: ScoringSpec
) -> list[Tensor]:
    """Return per scale (L, D, H, W): the interval average over `others`, NaN without a token."""
    averages = files.averages(name, others, spec.nearest_share)  # per scale L n
    places = files.token_places(name)
    return [to_grid(scores, *place) for scores, place in zip(averages, places, strict=True)]


def subject_scores(scores: BatchScores, share: float) -> tuple[float, float]:
    """Return the subject score and its percentile (0..100) among the reference subjects' own.

    Raises as `all_scores`.
    """
    own, reference = all_scores(scores, share)
    return own, percentile_among(own, reference)


def percentile_among(score: float, others: Sequence[float]) -> float:
    """Return the share of lower scores among `others`, 0..100.

    100 means above all of them; n others give n + 1 different values.
    """
    return 100.0 * sum(other < score for other in others) / len(others)


def all_scores(scores: BatchScores, share: float) -> tuple[float, list[float]]:
    """Return the subject score, and the reference subjects' own, in their order.

    Raises NonFiniteScores: such a score never leaves the node.
    """
    try:
        own = subject_score(scores.calibrated, share)
        reference = [subject_score(grid, share) for grid in scores.reference]
    except ValueError as error:
        raise NonFiniteScores(f"the calibrated scores are not finite: {error}") from error
    return own, reference
