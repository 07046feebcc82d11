"""Distances between the tokens of two subjects, scale by scale."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from dicom_node.anomaly.coarse_to_fine import Blocks, Cells, alike, close, mutual_nearest_among
from dicom_node.anomaly.similarity import mutual_analogues, mutual_nearest
from dicom_node.anomaly.spec import SearchSpec
from dicom_node.anomaly.tokens import Tokens

#: compared with all keys at once: their distances stay in the processor's cache
_EXHAUSTIVE_ROWS = 512
#: per scale, coarse to fine, (layers, n)
Distances = tuple[Tensor, ...]


@dataclass(frozen=True, slots=True)
class Analogues:
    """The nearest tokens of one subject in another."""

    #: per scale (layers, n)
    distances: Distances
    #: per scale (layers, n) int32, which of the other's tokens
    places: tuple[Tensor, ...]


@dataclass(frozen=True, slots=True)
class LaidOut:
    """One subject as it is compared: made once, whoever it meets."""

    #: per scale, coarse to fine
    tokens: tuple[Tokens, ...]
    #: per scale; None where every token of the other is a candidate
    blocks: tuple[Blocks | None, ...]


def lay_out(tokens: Sequence[Tokens], search: SearchSpec) -> LaidOut:
    """Lay the scales that `search` restricts out by the cells of the next coarser one.

    Raises ValueError as `Blocks.of` and `Cells.of` do.
    """
    finer = [
        blocks_of(fine, coarse) if search.n_cells else None for coarse, fine in pairwise(tokens)
    ]
    return LaidOut(tuple(tokens), (None, *finer))


def match(
    queries: Sequence[Tokens], keys: Sequence[Tokens], search: SearchSpec
) -> tuple[Distances, Distances]:
    """Match two subjects that are met once: `match_laid_out` of their tokens."""
    return match_laid_out(lay_out(queries, search), lay_out(keys, search), search)


def match_laid_out(
    queries: LaidOut, keys: LaidOut, search: SearchSpec
) -> tuple[Distances, Distances]:
    """Two subjects, laid out for `search` -> per scale (layers, n) distance to the nearest token.

    The second is that of the keys to the queries: one product gives both. Layers are matched each
    for itself. The coarsest tokens are compared with all others, finer ones too unless `search`
    restricts them to the cells of the next coarser. Works where the values of the tokens lie, which
    is one device; the indices are on the CPU. Raises ValueError for an empty set.
    """
    both = []
    for scale, (own, other) in enumerate(zip(queries.tokens, keys.tokens, strict=True)):
        blocks = queries.blocks[scale], keys.blocks[scale]
        if blocks[0] is None or blocks[1] is None:
            both.append(_exhaustive(own, other, search.chunk))
        else:
            near = near_cells(queries.tokens[scale - 1], keys.tokens[scale - 1], search)
            both.append(mutual_nearest_among(blocks[0], blocks[1], near, search.chunk))
    return tuple(forward for forward, _ in both), tuple(backward for _, backward in both)


def match_analogues(
    queries: LaidOut, keys: LaidOut, search: SearchSpec
) -> tuple[Analogues, Analogues]:
    """Return what `match_laid_out` does, all tokens compared, and which tokens the nearest are."""
    rows = min(search.chunk, _EXHAUSTIVE_ROWS)
    both = [
        [mutual_analogues(q, k, rows) for q, k in zip(own.values, other.values, strict=True)]
        for own, other in zip(queries.tokens, keys.tokens, strict=True)
    ]
    forward, backward = (
        Analogues(
            tuple(torch.stack([layer[side].distances for layer in scale]) for scale in both),
            tuple(torch.stack([layer[side].places for layer in scale]) for scale in both),
        )
        for side in (0, 1)
    )
    return forward, backward


def blocks_of(fine: Tokens, coarse: Tokens) -> Blocks:
    """Lay the tokens of a subject's fine scale out by the cells of its coarse one."""
    cells = Cells.of(fine.index, fine.grid_shape, coarse.index, coarse.grid_shape)
    return Blocks.of(fine.values, cells)


def near_cells(queries: Tokens, keys: Tokens, search: SearchSpec) -> Tensor:
    """Coarse tokens of two subjects -> (a, b) which cells' fine tokens are compared.

    Raises ValueError where there is a window and the grids differ: those places are not comparable.
    """
    near = alike(queries.values, keys.values, search.n_cells)
    if search.window_cells >= 0:
        if queries.grid_shape != keys.grid_shape:
            raise ValueError(f"no window about a place: {queries.grid_shape}, {keys.grid_shape}")
        here = close(queries.index, keys.index, queries.grid_shape, search.window_cells)
        near |= here.to(near.device)
    return near


def _exhaustive(queries: Tokens, keys: Tokens, chunk: int) -> tuple[Tensor, Tensor]:
    """Return (layers, n) and (layers, m) distances, every token of the other a candidate."""
    rows = min(chunk, _EXHAUSTIVE_ROWS)
    both = [mutual_nearest(q, k, rows) for q, k in zip(queries.values, keys.values, strict=True)]
    return torch.stack([one for one, _ in both]), torch.stack([two for _, two in both])
