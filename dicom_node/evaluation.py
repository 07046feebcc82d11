"""How well maps and findings agree with masks that readers have drawn. numpy and scipy only.

Voxels of all subjects are pooled, inside the body alone: background would lift every figure. They
are counted, not kept: scores go into bins by the leading bits of their float32, about 0.05 % wide,
so that memory stays flat and no voxel is left out. Within a bin scores count as equal.

The yardstick is what anybody would try first: the z-score of each voxel among the other subjects.

References
----------
Davis and Goadrich, The relationship between precision-recall and ROC curves, 2006: AP is the sum
over thresholds of precision times gain in recall, without interpolation. Fawcett, An introduction
to ROC analysis, 2006: the area is the probability of a higher score, an equal one counting half.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from dicom_node.findings import Finding, LabelMap

#: sign, exponent and eleven bits of the fraction
_BITS = 20
#: added to the deviation among the others, in units where usual tissue spans 0.7: where all agree,
#: noise would divide by nothing. Set by hand, and not tuned on any data
_LEAST_DEVIATION = 0.05
#: upper bounds, ml; the first class is mostly specks that interpolation has torn off a lesion
SIZE_CLASSES = (
    *(("< 0.1 ml", 0.1), ("0.1 to 1 ml", 1.0), ("1 to 5 ml", 5.0), ("5 to 20 ml", 20.0)),
    ("> 20 ml", np.inf),
)
#: the ways to read a signed z-score
Z_FORMS = ("both", "bright", "dark")

Counts = NDArray[np.int64]


class ScoreCounts:
    """How many voxels inside and outside the masks have which score."""

    def __init__(self) -> None:
        self._counts = np.zeros((2, 1 << _BITS), dtype=np.int64)

    def add(self, scores: NDArray[np.floating], truth: NDArray[np.bool_]) -> None:
        """Count (n,) finite scores and whether each is inside a mask."""
        bins = ordered_bins(scores, _BITS)
        for inside, counts in ((False, self._counts[0]), (True, self._counts[1])):
            counts += np.bincount(bins[truth == inside], minlength=1 << _BITS)

    def metrics(self) -> Metrics:
        """Return average precision and area of what was counted, NaN where a class is empty."""
        seen = self._counts.any(axis=0)
        negatives, positives = self._counts[:, seen]
        return Metrics(
            average_precision(positives, negatives), area_under_roc(positives, negatives)
        )

    @property
    def n_inside(self) -> int:
        """Return the number of voxels inside masks."""
        return int(self._counts[1].sum())

    @property
    def n_voxels(self) -> int:
        """Return the number of all voxels."""
        return int(self._counts.sum())


@dataclass(frozen=True, slots=True)
class Metrics:
    """How well one map ranks voxels (or subjects); 1 is perfect."""

    #: a map that knows nothing has the share of voxels inside masks
    average_precision: float
    #: a map that knows nothing has 0.5
    auroc: float


def ordered_bins(scores: NDArray[np.floating], n_bits: int) -> NDArray[np.int64]:
    """(n,) finite scores -> (n,) bins, below 2^n_bits, in the same order.

    The bits of a float32 are ordered as a number when a positive one has its sign bit set and a
    negative one has all bits flipped.
    """
    bits = (scores.astype(np.float32) + np.float32(0)).view(np.uint32)  # -0 becomes 0
    flip = np.where(bits >> 31 == 1, np.uint32(0xFFFFFFFF), np.uint32(0x80000000))
    return ((bits ^ flip) >> np.uint32(32 - n_bits)).astype(np.int64)


def average_precision(positives: Counts, negatives: Counts) -> float:
    """(k,) counts per distinct score, ascending -> average precision; NaN without positives."""
    if not positives.sum():
        return float("nan")
    found = positives[::-1].cumsum()  # of the highest scores, down to each
    taken = found + negatives[::-1].cumsum()
    gain = positives[::-1] / found[-1]
    return float((gain * found / np.maximum(taken, 1)).sum())


def area_under_roc(positives: Counts, negatives: Counts) -> float:
    """(k,) counts per distinct score, ascending -> area under the ROC; NaN if a class is empty."""
    n_positive, n_negative = int(positives.sum()), int(negatives.sum())
    if not n_positive or not n_negative:
        return float("nan")
    below = negatives.cumsum() - negatives / 2  # an equal score is half a win
    return float((positives / n_positive * (below / n_negative)).sum())


# --- the yardstick ------------------------------------------------------------------------------


class Moments:
    """Mean and deviation of each voxel over subjects, without the subjects."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self._n = 0
        # fp64: each subject is taken out of the sums again
        self._sum = np.zeros(shape)
        self._squares = np.zeros(shape)

    def add(self, volume: NDArray[np.float32]) -> None:
        """Add one subject's volume, on the common grid."""
        self._n += 1
        self._sum += volume
        self._squares += np.square(volume, dtype=np.float64)

    def z_score(self, volume: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return how far an added volume lies from the others, in their deviations, signed.

        There must be two others at least. The deviation is enlarged by a small constant.
        """
        n = self._n - 1
        total, squares = self._sum - volume, self._squares - np.square(volume, dtype=np.float64)
        variance = np.maximum(squares - total * total / n, 0.0) / (n - 1)
        scores = (volume - total / n) / (np.sqrt(variance) + _LEAST_DEVIATION)
        return np.asarray(scores, dtype=np.float32)


# --- lesions ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class SizeClass:
    """The lesions of one range of sizes."""

    name: str
    n_lesions: int
    #: that a finding overlaps, by a voxel or more
    n_found: int


@dataclass(frozen=True, slots=True)
class Overlap:
    """What a subject's findings have in common with its mask."""

    #: of each lesion its volume, and whether a finding overlaps it
    lesions: tuple[tuple[float, bool], ...]
    #: findings that overlap no lesion
    n_false: int


def overlap(
    mask: NDArray[np.bool_],
    mask_affine: NDArray[np.float64],
    labels: LabelMap,
    labels_affine: NDArray[np.float64],
    findings: Sequence[Finding],
) -> Overlap:
    """Compare a mask and a label map of findings, each on its own grid, index -> LPS mm.

    A lesion is a 26-connected component of the mask, however small.
    """
    components, n = ndimage.label(mask, structure=np.ones((3, 3, 3), dtype=bool))
    where = np.argwhere(mask)  # (n_inside, 3)
    number = components[tuple(where.T)]
    ranks = _labels_at(where, mask_affine, labels, labels_affine)
    volumes = np.bincount(number, minlength=n + 1)[1:] * _voxel_ml(mask_affine)
    hit = np.bincount(number, weights=ranks > 0, minlength=n + 1)[1:] > 0
    touched = set(np.unique(ranks[ranks > 0]).tolist())
    return Overlap(
        tuple((float(size), bool(found)) for size, found in zip(volumes, hit, strict=True)),
        sum(finding.rank not in touched for finding in findings),
    )


def _labels_at(
    index: NDArray[np.int64],
    affine: NDArray[np.float64],
    labels: LabelMap,
    labels_affine: NDArray[np.float64],
) -> NDArray[np.uint8]:
    """(n, 3) voxels of one grid -> (n,) labels of the nearest voxels of another, 0 outside it."""
    matrix = np.linalg.solve(labels_affine, affine)
    nearest = np.rint(index @ matrix[:3, :3].T + matrix[:3, 3]).astype(np.int64)
    inside = ((nearest >= 0) & (nearest < labels.shape)).all(axis=1)
    found = np.zeros(len(index), dtype=np.uint8)
    found[inside] = labels[tuple(nearest[inside].T)]
    return found


def _voxel_ml(affine: NDArray[np.float64]) -> float:
    return abs(float(np.linalg.det(affine[:3, :3]))) / 1000.0


def _by_size(lesions: Sequence[tuple[float, bool]]) -> tuple[SizeClass, ...]:
    """Sort lesions into the classes; the lower bound belongs to a class."""
    classes, lower = [], 0.0
    for name, upper in SIZE_CLASSES:
        found = [hit for volume, hit in lesions if lower <= volume < upper]
        classes.append(SizeClass(name, len(found), sum(found)))
        lower = upper
    return tuple(classes)


# --- all of it ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Report:
    """The evaluation of one run."""

    n_subjects: int
    #: voxels that were compared, on the canonical grid inside the body
    n_voxels: int
    #: share of them inside masks: the average precision of a map that knows nothing
    prevalence: float
    #: share of the masks' voxels that lie outside what was scored, and count in no figure
    unscored_share: float
    calibrated: Metrics
    raw: Metrics
    #: in the form that ranks best, which one nobody could know before
    z_score: Metrics
    z_form: str
    lesions: tuple[SizeClass, ...]
    #: mean number per subject of findings that overlap no lesion
    false_findings: float
    #: of the subject score, between subjects with lesions and those without; NaN without either
    subject_auroc: float


@dataclass(slots=True)
class Evaluation:
    """Collects what the subjects with a mask have to say, one after the other."""

    _counts: dict[str, ScoreCounts] = field(default_factory=dict)
    _subjects: ScoreCounts = field(default_factory=ScoreCounts)
    _lesions: list[tuple[float, bool]] = field(default_factory=list)
    _n_false: int = 0
    _n_marked: int = 0

    def add(
        self,
        maps: Mapping[str, NDArray[np.float32]],
        truth: NDArray[np.bool_],
        body: NDArray[np.bool_],
    ) -> None:
        """Count the voxels of one subject.

        Parameters
        ----------
        maps
            "calibrated", "raw" and "z" (signed), on the canonical grid as `truth` and `body` are.
        """
        z = maps["z"][body]
        forms = {"both": np.abs(z), "bright": z, "dark": -z}
        scores = {name: maps[name][body] for name in ("calibrated", "raw")} | forms
        for name, values in scores.items():
            self._counts.setdefault(name, ScoreCounts()).add(values, truth[body])
        self._n_marked += int(np.count_nonzero(truth))

    def add_subject(self, score: float, compared: Overlap) -> None:
        """Count one subject's score and findings."""
        self._lesions += compared.lesions
        self._n_false += compared.n_false
        self._subjects.add(np.array([score]), np.array([bool(compared.lesions)]))

    def report(self) -> Report | None:
        """Return the figures; None when no subject had a mask."""
        if not self._counts:
            return None
        metrics = {name: counts.metrics() for name, counts in self._counts.items()}
        # NaN without any lesion: then no form is better than the first
        best = max(Z_FORMS, key=lambda form: np.nan_to_num(metrics[form].average_precision))
        counts = self._counts["calibrated"]
        return Report(
            n_subjects=self._subjects.n_voxels,
            n_voxels=counts.n_voxels,
            prevalence=counts.n_inside / max(counts.n_voxels, 1),
            unscored_share=(self._n_marked - counts.n_inside) / max(self._n_marked, 1),
            calibrated=metrics["calibrated"],
            raw=metrics["raw"],
            z_score=metrics[best],
            z_form=best,
            lesions=_by_size(self._lesions),
            false_findings=self._n_false / max(self._subjects.n_voxels, 1),
            subject_auroc=self._subjects.metrics().auroc,
        )
