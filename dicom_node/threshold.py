"""The threshold of findings that knows its batch: so high that usual subjects have few findings.

Calibrated scores are in robust deviations of the reference subjects' own scores, and deviations of
few subjects are uncertain: the same threshold makes many times the false findings against a small
batch. So the batch's subjects, each scored by the others, say how many findings a usual one has.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage, stats
from torch import Tensor

from dicom_node.anomaly.anomaly_map import smooth, upsample
from dicom_node.anomaly.spec import MethodSpec

#: the batch raises the threshold to this multiple of the fixed one at most: in a batch that is
#: abnormal throughout no threshold is high enough, and nothing would be found without a word
HIGHEST = 2.0
#: thresholds that are tried, from the fixed one to the highest
_LEVELS = 21
#: the subjects with the most findings, which may be abnormal themselves, do not count
TRIMMED = 0.25
#: voxels along the edge of the finest token: a bare token grid has no slopes to smooth
_FINER = 2


@dataclass(frozen=True, slots=True)
class Rule:
    """What a finding is, and how many of them a usual subject may have."""

    #: calibrated units; the batch may raise it
    threshold: float
    min_volume_ml: float
    #: findings of a usual subject on average; 0: the threshold is fixed
    per_normal: float


def batch_threshold(reference: Iterable[Tensor], rule: Rule, method: MethodSpec) -> float:
    """(D, H, W) own scores of each reference subject -> the threshold, `rule.threshold` or above.

    The lowest one from which on they have at most ``rule.per_normal`` findings each on average,
    whatever is higher. The average is trimmed: the quarter of the subjects with the most findings
    is left out, and the rest is compared with the same part of a Poisson distribution of that mean.
    As long as no more than a quarter is abnormal, their lesions raise the threshold little; never
    beyond `HIGHEST` times the fixed one. Findings are counted about as `findings.locate` does, on a
    grid of half a token.

    Parameters
    ----------
    reference
        On the grid of the finest tokens, NaN where there is none; one at least. Each by the others.
    """
    if rule.per_normal <= 0 or rule.threshold <= 0:
        return rule.threshold
    levels = np.linspace(rule.threshold, HIGHEST * rule.threshold, _LEVELS)
    counts = np.array([_counts(grid, levels, rule, method) for grid in reference])  # n levels
    n_counted = len(counts) - math.ceil(TRIMMED * len(counts))
    usual = np.sort(counts, axis=0)[: max(1, n_counted)].mean(0)
    allowed = _trimmed_poisson(rule.per_normal, max(1, n_counted) / len(counts))
    over = np.flatnonzero(usual > allowed)
    first = int(over[-1]) + 1 if over.size else 0
    return float(round(levels[min(first, _LEVELS - 1)], 6))


def _trimmed_poisson(mean: float, share: float) -> float:
    """Return the mean of the lowest `share` of a Poisson distribution."""
    numbers = np.arange(int(stats.poisson.ppf(share, mean)) + 1)
    below = np.minimum(stats.poisson.cdf(numbers, mean), share)
    return float((numbers * np.diff(below, prepend=0.0)).sum() / share)


def _counts(
    grid: Tensor, levels: NDArray[np.float64], rule: Rule, method: MethodSpec
) -> NDArray[np.int64]:
    """(D, H, W) -> (levels,) regions of at least the least volume above each level."""
    edge_mm = method.grid.extent_mm[0] / grid.shape[0] / _FINER
    mask = grid.isfinite()
    for axis in range(3):
        mask = mask.repeat_interleave(_FINER, axis)
    scores = smooth(upsample(grid, _FINER), mask, method.scoring.smoothing_mm / edge_mm).numpy()
    least = rule.min_volume_ml * 1000.0 / edge_mm**3 * (1.0 - 1e-9)
    found = np.zeros(len(levels), dtype=np.int64)
    touching = np.ones((3, 3, 3), dtype=bool)  # 26-connected, as findings are
    # what is above a level lies in a region above the first: each is looked at alone
    labels, _ = ndimage.label(scores >= levels[0], structure=touching)
    for number, box in enumerate(ndimage.find_objects(labels), 1):
        inside = np.where(labels[box] == number, scores[box], -np.inf)
        found += [_n_large(inside >= level, touching, least) for level in levels]
    return found


def _n_large(mask: NDArray[np.bool_], touching: NDArray[np.bool_], least: float) -> int:
    """Return how many regions of the mask have `least` voxels or more."""
    if mask.sum() < max(1.0, least):
        return 0
    labels, _ = ndimage.label(mask, structure=touching)
    return int((np.bincount(labels.ravel())[1:] >= least).sum())
