"""What one test subject's map says against its mask: counts, lesions, false findings; kept as file.

Everything that a figure needs, and little more: scores are counted in bins by the leading bits of
their float32 (sign, exponent, seven bits of the fraction: 0.8 % wide or less), so that any set of
subjects can be pooled, and resampled, by adding counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from dicom_node import durable
from dicom_node.evaluation import ordered_bins

#: of the bins of `evaluation.ordered_bins`
N_BITS = 16
#: thresholds at which false findings are counted: every so many bins, 32 to each doubling
_STEP = 4
#: and down to where a subject has so many, or to this share of its voxels
_MOST_FALSE, _LOWEST = 20, 0.95
#: regions are counted on a grid of about so many millimetres: a map has no finer detail
_REGION_MM = 2.0
_NEIGHBOURS = np.ones((3, 3, 3), dtype=bool)

Map = NDArray[np.float32]
Mask = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Truth:
    """What a reader has marked in one subject, on its canonical grid."""

    #: (depth, height, width)
    body: Mask
    inside: Mask
    lesioned: bool


@dataclass(frozen=True, slots=True)
class Judged:
    """What a method says of one subject."""

    #: (depth, height, width) on the canonical grid, higher is more anomalous
    scores: Map
    subject_score: float
    #: from which the method itself calls a region a finding; NaN where it has none
    threshold: float


@dataclass(frozen=True, slots=True)
class Outcome:
    """What is kept of one test subject in one run."""

    key: str
    lesioned: bool
    subject_score: float
    #: voxels inside the mask that are outside of the body, and in no count
    n_unscored: int
    #: findings that overlap no lesion at the method's own threshold; -1 where it has none
    n_false: int
    #: (k,) bins of scores, ascending, and how many voxels outside and inside of the mask
    bins: NDArray[np.int64]
    outside: NDArray[np.int64]
    inside: NDArray[np.int64]
    #: (n_lesions,) volumes and highest scores, -inf where none of a lesion is scored
    lesions_ml: NDArray[np.float64]
    lesion_scores: NDArray[np.float64]
    #: (j,) thresholds as bins, descending, and findings there that overlap no lesion
    ladder: NDArray[np.int64]
    ladder_false: NDArray[np.int64]


def bin_edge(number: int) -> float:
    """Return the least score of a bin of `N_BITS`: what is at least that is in it or above.

    Of the lowest bins it is no number: no finite score falls into them.
    """
    flipped = np.uint32(number << (32 - N_BITS))
    bits = flipped ^ np.uint32(0x80000000) if number >> (N_BITS - 1) else ~flipped
    return float(np.asarray(bits, dtype=np.uint32).view(np.float32))


def outcome_of(
    key: str, judged: Judged, truth: Truth, spacing_mm: float, min_volume_ml: float
) -> Outcome:
    """Compare a map with the mask, both on the canonical grid.

    Parameters
    ----------
    key
        Names the subject in every setting, changed copies of it too.
    judged, truth
        (depth, height, width), of one shape. Outside of the body nothing is compared.
    spacing_mm
        Edge of a voxel of that grid.
    min_volume_ml
        Smaller regions are no finding.

    Notes
    -----
    Findings are 26-connected regions, lesions 26-connected components of the mask, however small. A
    finding that overlaps a lesion by a cell or more is not false. Regions are those of every second
    voxel where voxels are of 1 mm: a map is smoothed by more than that.
    """
    bins, outside, inside = _counted(judged.scores, truth)
    volumes, highest = _lesions(judged.scores, truth, spacing_mm)
    regions = _Regions.of(judged.scores, truth, spacing_mm, min_volume_ml)
    ladder, false = regions.ladder()
    known = np.isfinite(judged.threshold)
    return Outcome(
        key=key,
        lesioned=truth.lesioned,
        subject_score=judged.subject_score,
        n_unscored=int(np.count_nonzero(truth.inside & ~truth.body)),
        n_false=regions.n_false(judged.threshold) if known else -1,
        bins=bins,
        outside=outside,
        inside=inside,
        lesions_ml=volumes,
        lesion_scores=highest,
        ladder=ladder,
        ladder_false=false,
    )


def _counted(
    scores: Map, truth: Truth
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Return the bins that occur, and the voxels of the body outside and inside of the mask."""
    binned, marked = ordered_bins(scores[truth.body], N_BITS), truth.inside[truth.body]
    outside, inside = (
        np.bincount(binned[marked == which], minlength=1 << N_BITS) for which in (False, True)
    )
    seen = np.flatnonzero(outside + inside)
    return seen, outside[seen].astype(np.int64), inside[seen].astype(np.int64)


def _lesions(
    scores: Map, truth: Truth, spacing_mm: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return volume, ml, and highest score of each component of the mask."""
    where = np.argwhere(truth.inside)
    if not len(where):
        return np.zeros(0), np.zeros(0)
    components, n = ndimage.label(truth.inside, structure=_NEIGHBOURS)
    number = components[tuple(where.T)]
    scored = np.where(truth.body, scores, -np.inf)[tuple(where.T)]
    highest = np.full(n + 1, -np.inf)
    np.maximum.at(highest, number, scored)
    sizes = np.bincount(number, minlength=n + 1)[1:].astype(np.float64)
    return sizes * (spacing_mm**3 / 1000.0), highest[1:]


@dataclass(frozen=True, slots=True)
class _Regions:
    """A map and its mask, thinned out to what regions need."""

    #: (d, h, w), -inf outside of the body
    scores: Map
    #: (d, h, w) any marked voxel in the cell
    marked: Mask
    least_voxels: float

    @classmethod
    def of(cls, scores: Map, truth: Truth, spacing_mm: float, min_volume_ml: float) -> _Regions:
        step = max(1, round(_REGION_MM / spacing_mm))
        every = (slice(None, None, step),) * 3
        inside = np.where(truth.body, scores, np.float32(-np.inf))[every]
        size = [side * step for side in inside.shape]
        filled = np.zeros(size, dtype=bool)
        filled[tuple(slice(0, side) for side in truth.inside.shape)] = truth.inside
        cells = filled.reshape(*(n for side in inside.shape for n in (side, step)))
        least = min_volume_ml * 1000.0 / (spacing_mm * step) ** 3
        (box,) = ndimage.find_objects((inside > -np.inf).astype(np.int8)) or ((),)  # of the body
        marked = np.asarray(cells.any(axis=(1, 3, 5)))
        return cls(inside[box], marked[box], least * (1.0 - 1e-9))

    def n_false(self, threshold: float) -> int:
        """Return the number of regions that are large enough and hold no marked voxel."""
        labels, n = ndimage.label(self.scores >= threshold, structure=_NEIGHBOURS)
        large = np.bincount(labels.ravel(), minlength=n + 1) >= self.least_voxels
        large[0] = False
        large[np.unique(labels[self.marked])] = False
        return int(large.sum())

    def ladder(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return thresholds, from the highest score down, and the false findings at each."""
        known = self.scores[np.isfinite(self.scores)]
        if not known.size:
            return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)
        top, low = ordered_bins(np.array([known.max(), np.quantile(known, _LOWEST)]), N_BITS)
        steps, found = [], []
        for number in range(top // _STEP * _STEP, int(low) - 1, -_STEP):
            steps.append(number)
            found.append(self.n_false(bin_edge(number)))
            if found[-1] > _MOST_FALSE:
                break
        return np.array(steps, dtype=np.int64), np.array(found, dtype=np.int64)


# --- files --------------------------------------------------------------------------------------


def save(path: Path, outcomes: Sequence[Outcome]) -> None:
    """Keep the outcomes of a run, whole or not at all; the folder exists."""
    arrays = {
        f"{number}.{field.name}": np.asarray(getattr(outcome, field.name))
        for number, outcome in enumerate(outcomes)
        for field in fields(Outcome)
    }
    with durable.replacing(path) as partial, partial.open("wb") as stream:
        np.savez_compressed(stream, **arrays)  # type: ignore[arg-type]


def load(path: Path) -> list[Outcome]:
    """Read what `save` kept."""
    with np.load(path, allow_pickle=False) as kept:
        n = sum(name.endswith(".key") for name in kept.files)
        return [
            _outcome({f.name: kept[f"{i}.{f.name}"] for f in fields(Outcome)}) for i in range(n)
        ]


def _outcome(kept: dict[str, NDArray[np.generic]]) -> Outcome:
    """Make plain values of arrays of no axis."""
    return Outcome(**{name: v.item() if v.ndim == 0 else v for name, v in kept.items()})  # type: ignore[arg-type]
