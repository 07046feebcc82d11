"""Distances between the tokens of two subjects, scale by scale."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dicom_node.anomaly.coarse_to_fine import Blocks, Cells, alike, close, mutual_nearest_among
from dicom_node.anomaly.similarity import mutual_nearest
from dicom_node.anomaly.spec import SearchSpec
from dicom_node.anomaly.tokens import Tokens

#: compared with all keys at once: their distances stay in the processor's cache
_EXHAUSTIVE_ROWS = 512
#: per scale, coarse to fine, (layers, n)
Distances = tuple[Tensor, ...]


def match(
    queries: Sequence[Tokens], keys: Sequence[Tokens], search: SearchSpec
) -> tuple[Distances, Distances]:
    """Tokens of two subjects -> per scale (layers, n) distance to the other's nearest token.

    The second is that of the keys to the queries: one product gives both. Layers are matched each
    for itself. The coarsest tokens are compared with all others, finer ones too unless `search`
    restricts them to the cells of the next coarser. Works where the values of the tokens lie, which
    is one device; the indices are on the CPU. Raises ValueError for an empty set.
    """
    both = []
    for scale, (own, other) in enumerate(zip(queries, keys, strict=True)):
        if scale == 0 or search.n_cells == 0:
            both.append(_exhaustive(own, other, search.chunk))
        else:
            near = near_cells(queries[scale - 1], keys[scale - 1], search)
            blocks = blocks_of(own, queries[scale - 1]), blocks_of(other, keys[scale - 1])
            both.append(mutual_nearest_among(*blocks, near, search.chunk))
    return tuple(forward for forward, _ in both), tuple(backward for _, backward in both)


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
