"""Raw distance -> excess over what is usual at this place among the reference subjects.

Ours, beyond the paper: raw maps are dominated by anatomy that varies (gyri, edges), so each place
is judged by the reference subjects' own leave-one-out scores there. Needs subjects in one space.
"""

from __future__ import annotations

import torch
import torch.nn.functional as nnf
from torch import Tensor

#: sigma of a normal distribution over its median absolute deviation
_MAD_TO_SIGMA = 1.4826


def to_grid(scores: Tensor, index: Tensor, grid_shape: tuple[int, int, int]) -> Tensor:
    """(n,) scores at flat `index` -> (D, H, W) fp32, NaN where there is no token."""
    grid = torch.full((grid_shape[0] * grid_shape[1] * grid_shape[2],), torch.nan)
    grid[index] = scores.float()
    return grid.view(grid_shape)


def smoothed(grid: Tensor) -> Tensor:
    """(D, H, W) -> (D, H, W): mean over each place and its 26 neighbours, NaN left out."""
    known = grid.isfinite()
    both = torch.stack([torch.where(known, grid, torch.zeros_like(grid)), known.float()])[None]
    # padded first: the pooling refuses a side that is shorter than its window
    total = nnf.avg_pool3d(nnf.pad(both, (1,) * 6), 3, 1, divisor_override=1)[0]
    return torch.where(total[1] > 0, total[0] / total[1], torch.full_like(grid, torch.nan))


def location_and_scale(grids: Tensor, scale_floor: float) -> tuple[Tensor, Tensor]:
    """(n, D, H, W) leave-one-out scores -> (D, H, W) usual score and robust scale of each place.

    Median and MAD (as a normal sigma) over the subjects, then smoothed over the neighbouring
    places; the scale is at least `scale_floor` times its median. A place that fewer than half of
    the subjects cover is no place of the batch's anatomy: it takes the median place's values.

    Both are finite everywhere, and the scale is above 0, if any place is covered. Of an even number
    of values the median is the lower middle one.
    """
    # robust, since any of the reference subjects may be abnormal at a place
    covered = grids.isfinite().sum(0) * 2 >= grids.shape[0]
    nan = torch.full(covered.shape, torch.nan)
    median = torch.where(covered, grids.nanmedian(0).values, nan)
    spread = torch.where(covered, (grids - median).abs().nanmedian(0).values * _MAD_TO_SIGMA, nan)
    location, scale = smoothed(median), smoothed(spread)
    usual, typical = location.nanmedian(), scale.nanmedian().clamp(min=1e-6)
    location = torch.where(location.isfinite(), location, usual)
    scale = torch.where(scale.isfinite(), scale, typical)
    return location, scale.clamp(min=float(scale_floor * typical))


def calibrate(grid: Tensor, location: Tensor, scale: Tensor) -> Tensor:
    """(D, H, W) raw scores -> the same in units of what is usual; NaN stays NaN."""
    return (grid - location) / scale
