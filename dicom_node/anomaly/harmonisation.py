"""The grey levels of one MR subject -> those that are usual in its batch, by landmarks.

MR has no absolute unit. The robust range of `intensity.normalize_percentiles` makes the ends of two
histograms agree; where another scanner, coil or sequence has shifted the tissues between them, the
landmarks bring those together too.

References
----------
L. G. Nyul, J. K. Udupa, On standardizing the MR image intensity scale, Magn Reson Med 42 (1999);
L. G. Nyul et al., New variants of a method of MRI scale standardization, IEEE TMI 19 (2000), whose
variant with deciles this is. Ours: beyond the ends nothing is stretched, so that what is brighter
than all usual tissue keeps its distance to it.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from dicom_node.anomaly.intensity import quantiles

#: the shares of the foreground that lie below the landmarks; the ends are those of the robust range
SHARES = (0.01, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.99)


def landmarks(normalised: Tensor, foreground: Tensor) -> tuple[float, ...]:
    """(depth, height, width) values and mask -> the `SHARES` quantiles inside the foreground.

    They ascend. Raises ValueError for an empty foreground, or where a value in it is no number.
    """
    inside = normalised[foreground].float()
    if not bool(inside.isfinite().all()):
        raise ValueError("the foreground holds NaN or infinite values")
    # as the robust range itself is found, so that the ends are the same voxels
    return tuple(map(float, quantiles(inside, SHARES)))


def mean_landmarks(found: Sequence[Sequence[float]]) -> tuple[float, ...]:
    """Return the mean of several subjects' landmarks; raises ValueError where there is none."""
    if not found:
        raise ValueError("landmarks are learnt of one subject at least")
    return tuple(torch.tensor(found, dtype=torch.float64).mean(0).tolist())


def harmonize(normalised: Tensor, foreground: Tensor, standard: Sequence[float]) -> Tensor:
    """(depth, height, width) values in [0, 1] and mask -> the same, its landmarks at `standard`.

    Piecewise linear between the subject's own landmarks, and monotone. What lies beyond the first
    and the last one moves with it: after `intensity.normalize_percentiles` not at all, for there
    the ends of every subject, and so those of their mean, are the same. Where own landmarks
    coincide, as in a foreground that is constant in large part, they go to the mean of theirs, and
    to the end's where an end is among them. Outside the foreground the values stay.

    Raises
    ------
    ValueError
        The foreground is empty or holds what is no number; `standard` are not as many ascending
        numbers as `SHARES`.
    """
    _check_standard(standard)
    knots, levels = _distinct(landmarks(normalised, foreground), standard)
    x, y = torch.tensor(knots, dtype=torch.float64), torch.tensor(levels, dtype=torch.float64)
    values = normalised[foreground].double()
    moved = torch.where(values < x[0], values + (y[0] - x[0]), values + (y[-1] - x[-1]))
    if len(knots) > 1:
        place = torch.searchsorted(x, values, right=True).clamp(1, len(knots) - 1)
        share = (values - x[place - 1]) / (x[place] - x[place - 1])
        between = y[place - 1] + share * (y[place] - y[place - 1])
        moved = torch.where((values < x[0]) | (values > x[-1]), moved, between)
    result = normalised.clone()
    result[foreground] = moved.clamp(0, 1).to(normalised.dtype)
    return result


def _check_standard(standard: Sequence[float]) -> None:
    """Raise ValueError for what are no landmarks."""
    fits = len(standard) == len(SHARES) and bool(torch.tensor(standard).isfinite().all())
    if not fits or any(one > other for one, other in pairwise(standard)):
        raise ValueError(f"landmarks are {len(SHARES)} ascending numbers, not {tuple(standard)}")


def _distinct(
    own: Sequence[float], standard: Sequence[float]
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return each of the own landmarks once, with the level to which it goes."""
    groups: dict[float, list[float]] = {}
    for knot, level in zip(own, standard, strict=True):
        groups.setdefault(knot, []).append(level)
    levels = {knot: sum(found) / len(found) for knot, found in groups.items()}
    levels[own[-1]] = standard[-1]
    levels[own[0]] = standard[0]
    return tuple(levels), tuple(levels.values())
