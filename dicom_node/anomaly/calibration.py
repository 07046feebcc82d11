"""Raw distance -> excess over what is usual at this place among the reference subjects.

Ours, beyond the paper: raw maps are dominated by anatomy that varies (gyri, edges), so each place
is judged by the reference subjects' own leave-one-out scores there. Needs subjects in one space.

A subject's scores are first centred on its own median: a subject that was scanned a little
differently is a little further from everybody everywhere, which says nothing of any place.
"""

from __future__ import annotations

import torch
import torch.nn.functional as nnf
from torch import Tensor

from dicom_node.anomaly.spec import ScoringSpec

#: sigma of a normal distribution over its median absolute deviation
_MAD_TO_SIGMA = 1.4826


def to_grid(scores: Tensor, index: Tensor, grid_shape: tuple[int, int, int]) -> Tensor:
    """(..., n) scores at flat `index` -> (..., D, H, W) fp32, NaN where there is no token."""
    grid = torch.full(
        (*scores.shape[:-1], grid_shape[0] * grid_shape[1] * grid_shape[2]), torch.nan
    )
    grid[..., index] = scores.float()
    placed: Tensor = grid.unflatten(-1, grid_shape)
    return placed


def centred(grids: Tensor) -> Tensor:
    """(..., D, H, W) -> the same, each grid less its own median; NaN stays NaN."""
    median = grids.flatten(-3).nanmedian(-1).values
    return grids - median[..., None, None, None]


def smoothed(grids: Tensor) -> Tensor:
    """(..., D, H, W) -> the same: mean over each place and its 26 neighbours, NaN left out."""
    known = grids.isfinite()
    filled = torch.where(known, grids, torch.zeros_like(grids))
    both = torch.stack([filled, known.float()]).view(2, -1, *grids.shape[-3:])  # 2 n D H W
    # padded first: the pooling refuses a side that is shorter than its window
    total = nnf.avg_pool3d(nnf.pad(both, (1,) * 6), 3, 1, divisor_override=1)
    mean = torch.where(total[1] > 0, total[0] / total[1], torch.nan)
    return mean.view(grids.shape)


def location_and_scale(grids: Tensor, spec: ScoringSpec) -> tuple[Tensor, Tensor]:
    """(n, D, H, W) leave-one-out scores -> (D, H, W) usual score and robust scale of each place.

    Median and MAD (as a normal sigma) over the subjects, smoothed over the neighbouring places and
    drawn towards those of the median place, as if ``spec.prior_subjects`` more subjects had shown
    these; the scale is at least ``spec.scale_floor`` of the median place's. A place that fewer than
    half of the subjects cover is no place of the batch's anatomy: it takes the median place's
    values.

    Both are finite everywhere, and the scale is above 0, if any place is covered. Of an even number
    of values the median is the lower middle one.
    """
    # robust, since any of the reference subjects may be abnormal at a place
    covered = grids.isfinite().sum(0) * 2 >= grids.shape[0]
    median = torch.where(covered, grids.nanmedian(0).values, torch.nan)
    spread = torch.where(covered, (grids - median).abs().nanmedian(0).values, torch.nan)
    return _finished(median, spread * _MAD_TO_SIGMA, grids.shape[0], spec)


def _finished(median: Tensor, sigma: Tensor, n: int, spec: ScoringSpec) -> tuple[Tensor, Tensor]:
    """(..., D, H, W) of n subjects, NaN where uncovered -> smoothed, filled, drawn and floored."""
    location, scale = smoothed(median), smoothed(sigma)
    usual = location.flatten(-3).nanmedian(-1).values[..., None, None, None]
    typical = scale.flatten(-3).nanmedian(-1).values.clamp(min=1e-6)[..., None, None, None]
    prior = spec.prior_subjects / (n + spec.prior_subjects)
    location = torch.where(location.isfinite(), location, usual).lerp(usual, prior)
    scale = torch.where(scale.isfinite(), scale, typical).lerp(typical, prior)
    return location, torch.maximum(scale, spec.scale_floor * typical)


def leave_one_out(grids: Tensor, spec: ScoringSpec) -> tuple[Tensor, Tensor]:
    """(n, D, H, W) -> (n, D, H, W) each: location and scale of every subject by the n - 1 others.

    Equal to `location_and_scale` of the others, one subject after the other, but O(n log n): when
    one of n sorted values is taken out, the median of the others is one of two of them.
    """
    n = grids.shape[0]
    known = grids.isfinite()
    n_others = known.sum(0) - known.long()  # n D H W: finite values of the others
    covered = n_others * 2 >= n - 1
    values, rank = _sorted(grids)
    which = _others_middle(rank, n_others, known)  # n D H W: place among all sorted values
    median = values.gather(0, which)
    spread = torch.full_like(grids, torch.nan)
    lowest = which.amin(0, keepdim=True)
    for candidate in (lowest, (lowest + 1).clamp(max=n - 1)):
        about = values.gather(0, candidate)
        deviation, rank = _sorted((grids - about).abs())
        middle = deviation.gather(0, _others_middle(rank, n_others, known))
        spread = torch.where(which == candidate, middle, spread)
    median = torch.where(covered, median, torch.nan)
    spread = torch.where(covered, spread, torch.nan)
    return _finished(median, spread * _MAD_TO_SIGMA, n - 1, spec)


def _sorted(grids: Tensor) -> tuple[Tensor, Tensor]:
    """(n, ...) -> ascending over n, NaN last as infinity, and each value's place in that order."""
    values, order = torch.where(grids.isfinite(), grids, torch.inf).sort(dim=0, stable=True)
    return values, order.argsort(0)


def _others_middle(rank: Tensor, n_others: Tensor, known: Tensor) -> Tensor:
    """Return where, among all sorted values, the lower middle one of the others of each stands."""
    middle = ((n_others - 1).clamp(min=0)) // 2
    return torch.where(known & (rank <= middle), middle + 1, middle).clamp(max=rank.shape[0] - 1)


def calibrate(grid: Tensor, location: Tensor, scale: Tensor) -> Tensor:
    """(..., D, H, W) centred scores -> in units of what is usual; NaN stays NaN."""
    return (grid - location) / scale
