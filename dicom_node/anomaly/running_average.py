"""The interval average of a growing and shrinking set of distances, without the whole set.

The mean of the K smallest of n distances changes little when one distance comes or goes. Kept are
the sum of the smallest, and a window of single values around the K-th: enough to follow the average
while K = ceil(rho n) wanders inside the window, at a cost that does not depend on n. Where it has
left the window, only the whole set can tell, and `average` says so.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dicom_node.anomaly.similarity import n_nearest


@dataclass(frozen=True, slots=True)
class RunningAverage:
    """State of the interval average of tokens, each with a set of `n_others` distances."""

    #: number of distances in each token's set
    n_others: int
    #: (...) int32, how many of the smallest are known by their sum alone, and fp64, that sum
    n_below: Tensor
    below: Tensor
    #: (width, ...) fp32 ascending: the next larger ones, infinite where fewer are known
    window: Tensor

    @classmethod
    def of(cls, distances: Tensor, share: float, width: int) -> RunningAverage:
        """(others, ...) distances -> the state whose window lies around the K-th smallest.

        The distances are finite.
        """
        n_others = distances.shape[0]
        n_below = max(0, min(n_nearest(n_others, share) - width // 2, n_others - width))
        ascending = distances.sort(dim=0).values
        window = ascending.new_full((width, *distances.shape[1:]), torch.inf)
        known = ascending[n_below : n_below + width]
        window[: len(known)] = known
        below = ascending[:n_below].double().sum(0)
        return cls(n_others, torch.full_like(below, n_below, dtype=torch.int32), below, window)

    def insert(self, distance: Tensor, share: float) -> RunningAverage:
        """(...) one more distance of each token -> the state with it, centred on K."""
        known = self.window.isfinite().sum(0)
        all_known = self.n_below + known == self.n_others
        under = (distance < self.window[0]) & (self.n_below > 0)
        last = torch.where(all_known, torch.inf, self._largest(known))
        inside = ~under & (distance <= last)
        joined = torch.cat([self.window, torch.where(inside, distance, torch.inf)[None]])
        joined = joined.sort(dim=0).values  # width + 1
        n_below = self.n_below + under
        below = self.below + torch.where(under, distance, 0.0).double()
        # a full window gives up its lowest value if it lies too low around K, its highest if not
        middle = n_nearest(self.n_others + 1, share) - len(self.window) // 2
        upwards = joined[-1].isfinite() & (n_below < middle)
        below = below + torch.where(upwards, joined[0], 0.0).double()
        window = torch.where(upwards, joined[1:], joined[:-1])
        return RunningAverage(self.n_others + 1, n_below + upwards.int(), below, window)

    def remove(self, distance: Tensor) -> RunningAverage:
        """(...) a distance of each token that is in its set, to the bit -> the state without it."""
        known = self.window.isfinite().sum(0)
        under = distance < self.window[0]
        inside = ~under & (distance <= self._largest(known))
        n_smaller = (self.window < distance).sum(0)  # place of the value in the window
        place = torch.arange(len(self.window)).view(-1, *[1] * distance.dim())
        shifted = torch.cat([self.window[1:], torch.full_like(self.window[:1], torch.inf)])
        window = torch.where(inside & (place >= n_smaller), shifted, self.window)
        below = self.below - torch.where(under, distance, 0.0).double()
        return RunningAverage(self.n_others - 1, self.n_below - under.int(), below, window)

    def _largest(self, known: Tensor) -> Tensor:
        """(...) number of known values -> the largest of them, minus infinity where none is."""
        top = self.window.gather(0, (known - 1).clamp(min=0)[None])[0]
        return torch.where(known > 0, top, -torch.inf)

    def average(self, share: float) -> Tensor | None:
        """Return (...) the mean of the K smallest, or None where the window cannot tell it.

        Equal to `similarity.interval_average` of the whole set, up to rounding.
        """
        k = n_nearest(self.n_others, share)
        wanted = k - self.n_below  # of the window
        known = self.window.isfinite().sum(0)
        all_known = self.n_below + known == self.n_others
        # an empty window below unknown values could not place the next distance
        told = (wanted >= 0) & (wanted <= known) & (all_known | (known > 0))
        if not bool(told.all()):
            return None
        place = torch.arange(len(self.window)).view(-1, *[1] * self.below.dim())
        of_window = torch.where(place < wanted, self.window, 0.0).double().sum(0)
        return ((self.below + of_window) / k).float()
