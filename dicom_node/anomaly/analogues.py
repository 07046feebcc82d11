"""Raw distance -> excess over what is usual for the tokens that are most alike, wherever they lie.

For subjects that lie in no common space, such as chests: what is usual is asked of a token's own
analogues, not of its place. A vessel has few close analogues, and so have its analogues; a nodule
has few, and what comes nearest to it, vessel or wall, is itself quite usual. Ours, beyond CS3F,
after the local outlier factor.

References
----------
Breunig, Kriegel, Ng and Sander, LOF: identifying density-based local outliers, SIGMOD 2000: how
isolated a point is, relative to its neighbours. Here neighbours are nearest tokens in the nearest
share of the other subjects, and isolation is the interval average (CoDeGraph3D, section 3.1).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dicom_node.anomaly.calibration import MAD_TO_SIGMA
from dicom_node.anomaly.similarity import n_nearest

#: of the median: less is taken for so much, so that a copy of a subject has a score too
_LEAST = 1e-3


def log_excess(distances: Tensor, usual: Tensor, share: float) -> Tensor:
    """(others, layers, n) -> (layers, n) log ratio of a token's score to its analogues' own scores.

    Parameters
    ----------
    distances
        Of each token to the nearest token of each other subject.
    usual
        Raw score of that nearest token, in its own subject's comparison with the batch.
    share
        Of the other subjects, the nearest, over which both are averaged.
    """
    k = n_nearest(distances.shape[0], share)
    nearest = distances.topk(k, dim=0, largest=False, sorted=False)
    own, expected = nearest.values.mean(0), usual.gather(0, nearest.indices).mean(0)
    return _log(own) - _log(expected)


def _log(scores: Tensor) -> Tensor:
    """(layers, n) scores >= 0 -> their logarithms, those next to 0 raised a little."""
    least = scores.median(-1, keepdim=True).values * _LEAST
    return torch.maximum(scores, least.clamp(min=torch.finfo(scores.dtype).tiny)).log()


def scores_of_analogues(scores: Sequence[Tensor], places: Tensor) -> Tensor:
    """Per subject (layers, m) scores and (others, layers, n) places -> (others, layers, n)."""
    return torch.stack(
        [one.gather(1, where.long()) for one, where in zip(scores, places, strict=True)]
    )


def location_and_scale(excesses: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Per reference subject (layers, n) excesses -> (layers, 1) median and robust deviation.

    Over the tokens of all of them: no place is compared with itself. The deviation is above 0.
    """
    pooled = torch.cat(list(excesses), dim=1)
    location = pooled.median(1, keepdim=True).values
    spread = (pooled - location).abs().median(1, keepdim=True).values * MAD_TO_SIGMA
    return location, spread.clamp(min=1e-6)
