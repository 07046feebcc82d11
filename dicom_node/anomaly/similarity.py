"""Cross-subject mutual similarity, in chunks.

What is usual finds its like in most other subjects, what is abnormal in few: a token's score is its
mean distance to the nearest token of the subjects that are nearest to it. From CoDeGraph3D (arXiv
2602.15315, section 3.1), after MuSc. Every token of another subject is a candidate match: there is
no search window.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor


def mutual_nearest(queries: Tensor, keys: Tensor, chunk: int) -> tuple[Tensor, Tensor]:
    """(n, d) and (m, d) -> (n,) and (m,) Euclidean distance to the nearest of the other set.

    One product serves both directions; no (n, m) matrix outlives its chunk. Squared distances are
    accumulated in fp32 and clamped at 0 against cancellation: equal tokens come out up to some
    thousandths of their norm apart. Raises ValueError on an empty set.
    """
    if queries.shape[0] == 0 or keys.shape[0] == 0:
        raise ValueError("mutual similarity needs tokens on both sides")
    forward = queries.new_empty(queries.shape[0], dtype=torch.float32)
    backward = keys.new_full((keys.shape[0],), math.inf, dtype=torch.float32)
    for start, squared in _squared_distances(queries.float(), keys.float(), chunk):
        forward[start : start + len(squared)] = squared.amin(1)
        backward = torch.minimum(backward, squared.amin(0))
    return forward.clamp_(min=0).sqrt_(), backward.clamp_(min=0).sqrt_()


@dataclass(frozen=True, slots=True)
class Nearest:
    """The nearest tokens of another subject."""

    #: (n,) Euclidean, fp32
    distances: Tensor
    #: (n,) int32, which of the other's tokens it is; the first of equals in its chunk
    places: Tensor


def mutual_analogues(queries: Tensor, keys: Tensor, chunk: int) -> tuple[Nearest, Nearest]:
    """Return what `mutual_nearest` does, and which tokens the nearest are; raises as it does."""
    if queries.shape[0] == 0 or keys.shape[0] == 0:
        raise ValueError("mutual similarity needs tokens on both sides")
    forward: list[Tensor] = []
    found: list[Tensor] = []
    backward = keys.new_full((keys.shape[0],), math.inf, dtype=torch.float32)
    places = torch.zeros_like(backward, dtype=torch.int64)
    for start, squared in _squared_distances(queries.float(), keys.float(), chunk):
        where = squared.argmin(1)
        forward.append(squared.gather(1, where[:, None])[:, 0])
        found.append(where)
        least = squared.amin(0)
        # which it is, only where this chunk has a nearer one: after the first ones that is seldom
        nearer = (least < backward).nonzero()[:, 0]
        backward[nearer] = least[nearer]
        places[nearer] = squared.index_select(1, nearer).argmin(0) + start
    return (
        Nearest(torch.cat(forward).clamp_(min=0).sqrt_(), torch.cat(found).int()),
        Nearest(backward.clamp_(min=0).sqrt_(), places.int()),
    )


def _squared_distances(queries: Tensor, keys: Tensor, chunk: int) -> Iterator[tuple[int, Tensor]]:
    """Yield where each chunk of the queries begins, and its (rows, m) distances to all keys.

    They are overwritten by the next chunk's.
    """
    key_norm = keys.square().sum(1)
    # one space for all chunks: fresh memory for each costs more than the sums
    space = queries.new_empty(min(chunk, queries.shape[0]), keys.shape[0])
    for start in range(0, queries.shape[0], chunk):
        part = queries[start : start + chunk]
        # ||q||^2 + ||k||^2 - 2 q.k, the sum in one pass of the product
        squared = torch.addmm(key_norm[None], part, keys.T, alpha=-2.0, out=space[: len(part)])
        squared += part.square().sum(1, keepdim=True)
        yield start, squared


def n_nearest(n_others: int, share: float) -> int:
    """Return K = max(1, ceil(rho (B - 1))) for B - 1 other subjects; ValueError for none."""
    if n_others < 1:
        raise ValueError("mutual similarity needs at least one other subject")
    # less the rounding of the product: 0.07 * 100 is above 7
    return min(n_others, max(1, math.ceil(share * n_others - 1e-9)))


def interval_average(distances: Tensor, share: float) -> Tensor:
    """(others, ..., n) distances -> (..., n): mean of the K smallest over the other subjects."""
    k = n_nearest(distances.shape[0], share)
    return distances.topk(k, dim=0, largest=False).values.mean(0)
