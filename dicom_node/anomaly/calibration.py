"""Raw distance -> excess over what is usual at this place among the reference subjects.

Ours, beyond the paper: raw maps are dominated by anatomy that varies (gyri, edges), so each place
is judged by the reference subjects' own leave-one-out scores there. Needs subjects in one space.

A subject's scores are first centred on its own median: a subject that was scanned a little
differently is a little further from everybody everywhere, which says nothing of any place.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as nnf
from torch import Tensor

from dicom_node.anomaly.spec import ScoringSpec

#: sigma of a normal distribution over its median absolute deviation
MAD_TO_SIGMA = 1.4826


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


@dataclass(frozen=True, slots=True)
class UsualScores:
    """What the subjects of a batch score at each place: enough for all, and for all but one.

    When one of some sorted values is taken out, the median of the others is one of two of them; so
    is the median of their distances from it. These few are kept, and no subject's scores.
    """

    #: subjects in the batch
    n: int
    #: (..., D, H, W) how many of them have a score there
    known: Tensor
    #: (2, ..., D, H, W) the two scores about the middle
    values: Tensor
    #: (2, 2, ..., D, H, W) for each of these, the two distances from it about the middle
    deviations: Tensor

    @classmethod
    def of(cls, grids: Tensor) -> UsualScores:
        """(n, ..., D, H, W) leave-one-out scores, NaN where a subject has no token."""
        # sorted a slab at a time: the order of all places takes twice the memory of the scores
        slabs = [_about_the_middle(slab) for slab in grids.split(1, dim=-3)]
        known, values, deviations = zip(*slabs, strict=True)
        return cls(
            grids.shape[0], torch.cat(known, -3), torch.cat(values, -3), torch.cat(deviations, -3)
        )

    def of_all(self, spec: ScoringSpec) -> tuple[Tensor, Tensor]:
        """Return (..., D, H, W) usual score and robust scale of each place.

        Median and MAD (as a normal sigma) over the subjects, smoothed over the neighbouring places
        and drawn towards those of the median place, as if ``spec.prior_subjects`` more subjects had
        shown these; the scale is at least ``spec.scale_floor`` of the median place's. A place that
        fewer than half of the subjects cover is no place of the batch's anatomy: it takes the
        median place's values.

        Both are finite everywhere, and the scale is above 0, if any place is covered. Of an even
        number of values the median is the lower middle one.
        """
        return self._told(torch.full_like(self.values[0], torch.nan), self.n, spec)

    def of_others(self, own: Tensor, spec: ScoringSpec) -> tuple[Tensor, Tensor]:
        """(..., D, H, W) scores of one of the subjects -> `of_all` of a batch without it."""
        return self._told(own, self.n - 1, spec)

    def _told(self, own: Tensor, n: int, spec: ScoringSpec) -> tuple[Tensor, Tensor]:
        """Location and scale of n subjects: without `own`, wherever it has a score."""
        out = own.isfinite()
        upper = (self.known % 2 == 1) & (self.known > 1)  # which is the middle, with none out
        second = torch.where(out, own <= self.values[0], upper)
        median = torch.where(second, self.values[1], self.values[0])
        nearest, next_nearest = torch.where(second, self.deviations[1], self.deviations[0])
        second = torch.where(out, (own - median).abs() <= nearest, upper)
        # robust, since any of the reference subjects may be abnormal at a place
        spread = torch.where(second, next_nearest, nearest) * MAD_TO_SIGMA
        covered = (self.known - out.int()) * 2 >= n
        median = torch.where(covered, median, torch.nan)
        return _finished(median, torch.where(covered, spread, torch.nan), n, spec)


def _about_the_middle(grids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(n, ...) -> (...) number of scores, (2, ...) two of them, (2, 2, ...) distances from these.

    The two that stand where the lower middle one of all but one may be; infinite where there are
    too few.
    """
    known = grids.isfinite().sum(0)
    lower = ((known - 2) // 2).clamp(min=0)
    which = torch.stack([lower, (lower + 1).clamp(max=grids.shape[0] - 1)])
    filled = torch.where(grids.isfinite(), grids, torch.inf)
    values = filled.sort(0).values.gather(0, which)
    deviations = [(filled - about).abs().sort(0).values.gather(0, which) for about in values]
    return known, values, torch.stack(deviations)


def _finished(median: Tensor, sigma: Tensor, n: int, spec: ScoringSpec) -> tuple[Tensor, Tensor]:
    """(..., D, H, W) of n subjects, NaN where uncovered -> smoothed, filled, drawn and floored."""
    location, scale = smoothed(median), smoothed(sigma)
    usual = location.flatten(-3).nanmedian(-1).values[..., None, None, None]
    typical = scale.flatten(-3).nanmedian(-1).values.clamp(min=1e-6)[..., None, None, None]
    prior = spec.prior_subjects / (n + spec.prior_subjects)
    location = torch.where(location.isfinite(), location, usual).lerp(usual, prior)
    scale = torch.where(scale.isfinite(), scale, typical).lerp(typical, prior)
    return location, torch.maximum(scale, spec.scale_floor * typical)


def calibrate(grid: Tensor, location: Tensor, scale: Tensor) -> Tensor:
    """(..., D, H, W) centred scores -> in units of what is usual; NaN stays NaN."""
    return (grid - location) / scale
