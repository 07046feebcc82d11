"""Kept subjects -> the token scores of one of them against a batch of the others.

One code path for both modes of the method: a folder's subjects are each scored against all others,
and a new study against a frozen batch. A reference subject's own map is its score against the rest
of the batch, calibrated by the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from dicom_node.anomaly.anomaly_map import fuse, subject_score
from dicom_node.anomaly.calibration import UsualScores, calibrate, centred, to_grid
from dicom_node.anomaly.spec import ScoringSpec
from dicom_node.errors import InsufficientReference, NonFiniteScores
from dicom_node.reference_files import ReferenceFiles

#: each needs two others for its own leave-one-out scores
MIN_REFERENCE = 3


class ReferenceScores(Sequence[Tensor]):
    """Each reference subject's own token scores, in the batch's order: (D, H, W), made when asked.

    A subject is judged by the others alone: with its own map among them it would pass as usual at
    the very place where it is not.
    """

    def __init__(
        self, scales: Sequence[Tensor], usual: Sequence[UsualScores] | None, spec: ScoringSpec
    ) -> None:
        """Hold per scale (n, layers, D, H, W) leave-one-out scores; without `usual`, unjudged."""
        self._scales, self._usual, self._spec = scales, usual, spec

    def __len__(self) -> int:
        """Return the number of reference subjects."""
        return len(self._scales[0])

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
    reference: Sequence[Tensor]


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
    own = _grids(files, name, batch, spec)
    # laid out once: stacked afterwards they would be held twice
    members = [grid.new_empty(len(batch), *grid.shape) for grid in own]
    for done, member in enumerate(batch):
        others = [other for other in batch if other != member]
        for scale, grid in zip(members, _grids(files, member, others, spec), strict=True):
            scale[done] = grid if spec.calibration == "none" else centred(grid)
        progress((done + 1) / len(batch))
    raw = fuse(own)
    if spec.calibration == "none":
        return BatchScores(raw, raw, ReferenceScores(members, None, spec))
    usual = [UsualScores.of(scale) for scale in members]
    judged = [
        calibrate(centred(scale), *here.of_all(spec))
        for scale, here in zip(own, usual, strict=True)
    ]
    return BatchScores(raw, fuse(judged), ReferenceScores(members, usual, spec))


def _grids(
    files: ReferenceFiles, name: str, others: Sequence[str], spec: ScoringSpec
) -> list[Tensor]:
    """Return per scale (L, D, H, W): the interval average over `others`, NaN without a token."""
    averages = files.averages(name, others, spec.nearest_share)  # per scale L n
    places = files.token_places(name)
    return [to_grid(scores, *place) for scores, place in zip(averages, places, strict=True)]


def subject_scores(scores: BatchScores, share: float) -> tuple[float, float]:
    """Return the subject score and its percentile (0..100) among the reference subjects' own.

    100 means above all of them; a batch of n gives n + 1 different values. Raises NonFiniteScores:
    such a score never leaves the node.
    """
    try:
        own = subject_score(scores.calibrated, share)
        reference = [subject_score(grid, share) for grid in scores.reference]
    except ValueError as error:
        raise NonFiniteScores(f"the calibrated scores are not finite: {error}") from error
    return own, 100.0 * sum(other < own for other in reference) / len(reference)
