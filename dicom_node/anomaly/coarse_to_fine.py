"""Mutual similarity of fine tokens, restricted by their coarse cells.

Comparing every fine token with every other is what makes a finer grid dear. Here two fine tokens
are compared only if their coarse cells are near: alike in feature space, or close in space where
the subjects lie in one space. What is left out are candidate matches, never a token to be scored: a
lesion that its coarse token dilutes still gets its distance.

The restricted distance is a least over a subset: never below the exhaustive one, and equal to it
where all cells are near, as the formula is that of `similarity.mutual_nearest`. Ours: what is
published of CS3F names a fine resolution "without exhaustive matching", but not how.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

GridShape = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class Cells:
    """Which coarse cell holds which fine token of one subject, and where in the cell's block."""

    #: number of coarse cells, those without a fine token among them
    n_cells: int
    #: places per cell: the most fine tokens that one of them holds
    width: int
    #: (n,) place of each fine token among the `n_cells * width`
    slot: Tensor

    @classmethod
    def of(
        cls, fine: Tensor, fine_shape: GridShape, coarse: Tensor, coarse_shape: GridShape
    ) -> Cells:
        """(n,) and (c,) flat places in two (D, H, W) grids -> the fine tokens, cell by cell.

        Parameters
        ----------
        fine, coarse
            The `index` of the tokens: each place once, in any order.
        fine_shape, coarse_shape
            Of grids over one volume; the fine one is a whole number of times the coarse one.

        Raises
        ------
        ValueError
            No fine token, grids that do not nest, or a fine token whose cell is no coarse token.
        """
        if fine.numel() == 0:
            raise ValueError("there are no fine tokens to lay out in cells")
        number = torch.full((math.prod(coarse_shape),), -1)
        number[coarse] = torch.arange(len(coarse))
        parent = number[_place_of_parent(fine, fine_shape, coarse_shape)]
        if bool((parent < 0).any()):
            raise ValueError("a fine token has no coarse token as its parent")
        held = parent.bincount()
        order = parent.argsort(stable=True)
        rank = torch.empty_like(parent)  # of a token among those of its cell
        rank[order] = torch.arange(len(parent)) - _starts(held)[parent[order]]
        width = int(held.max())
        return cls(len(coarse), width, parent * width + rank)


def _starts(counts: Tensor) -> Tensor:
    """(k,) lengths of runs -> (k,) where each begins."""
    return counts.cumsum(0) - counts


def _place_of_parent(index: Tensor, fine: GridShape, coarse: GridShape) -> Tensor:
    """(n,) flat places in the fine grid -> (n,) flat places of the coarse cells around them."""
    if any(c == 0 or f == 0 or f % c for f, c in zip(fine, coarse, strict=True)):
        raise ValueError(f"the fine grid {fine} is not a multiple of the coarse grid {coarse}")
    sides = zip(_coordinates(index, fine), fine, coarse, strict=True)
    depth, height, width = (at // (f // c) for at, f, c in sides)
    place: Tensor = (depth * coarse[1] + height) * coarse[2] + width
    return place


def _coordinates(index: Tensor, shape: GridShape) -> tuple[Tensor, Tensor, Tensor]:
    """(n,) flat places in a (D, H, W) grid -> (n,) depths, heights and widths."""
    _, height, width = shape
    return index // (height * width), index // width % height, index % width


@dataclass(frozen=True, slots=True)
class Blocks:
    """The fine tokens of one subject, a block per cell, so that fetching a cell is one copy."""

    cells: Cells
    #: per layer, (cells + 1, width, dim) fp32; 0 where there is no token: all of the last block
    values: tuple[Tensor, ...]
    #: per layer, (cells + 1, width) squared norms; infinite where there is no token
    norms: tuple[Tensor, ...]

    @classmethod
    def of(cls, tokens: Tensor, cells: Cells) -> Blocks:
        """(layers, n, dim) fine tokens in the order of `cells` -> blocks, to be made once.

        Raises ValueError when `cells` does not have n places, and when a token is NaN, infinite or
        so large that a squared distance may be no fp32 number.
        """
        if tokens.shape[1] != cells.slot.numel():
            raise ValueError(f"{tokens.shape[1]} tokens for {cells.slot.numel()} places in cells")
        # a layer at a time: memory of that size is used again, that of all layers asked for anew
        values, norms = zip(*(_laid_out(layer.float(), cells) for layer in tokens), strict=True)
        return cls(cells, values, norms)


def _laid_out(tokens: Tensor, cells: Cells) -> tuple[Tensor, Tensor]:
    """(n, dim) -> (cells + 1, width, dim) values and (cells + 1, width) squared norms."""
    shape = (cells.n_cells + 1, cells.width)
    values = tokens.new_zeros(*shape, tokens.shape[1])
    norms = tokens.new_full(shape, math.inf)
    slot = cells.slot.to(tokens.device)
    values.view(-1, tokens.shape[1])[slot] = tokens
    norms.view(-1)[slot] = _finite_norms(tokens)
    return values, norms


def _finite_norms(tokens: Tensor) -> Tensor:
    """(..., dim) -> (...) squared norms; ValueError where a squared distance may overflow."""
    norms = tokens.square().sum(-1)
    # the norms are needed anyway, and one that is NaN is not below the bound either
    if not bool((norms < torch.finfo(norms.dtype).max / 4).all()):
        raise ValueError("the tokens hold NaN, infinite or too large values")
    return norms


def alike(queries: Tensor, keys: Tensor, n_cells: int) -> Tensor:
    """(layers, q, dim) and (layers, k, dim) coarse tokens -> (q, k) which cells are near.

    Distances between all of them are held at once: 64 MiB for 4096 cells on either side.

    Parameters
    ----------
    queries, keys
        In the order of the coarse `index`. Squared distances are summed over the layers.
    n_cells
        M: cells are near if either is among the M nearest of the other. One search then serves both
        directions, and its result does not depend on who is called the query.

    Raises
    ------
    ValueError
        No token on a side, M below 1, or a token that is NaN, infinite or too large.
    """
    if queries.shape[1] == 0 or keys.shape[1] == 0:
        raise ValueError("coarse cells are matched with tokens on both sides")
    if n_cells < 1:
        raise ValueError(f"the {n_cells} nearest coarse cells are none to search")
    queries, keys = (side.float().movedim(0, 1).flatten(1) for side in (queries, keys))  # q L*dim
    squared = torch.addmm(_finite_norms(keys)[None], queries, keys.T, alpha=-2.0)  # q k
    squared += _finite_norms(queries)[:, None]
    near = torch.zeros_like(squared, dtype=torch.bool)
    for distances, found in ((squared, near), (squared.T, near.T)):
        nearest = distances.topk(min(n_cells, distances.shape[1]), largest=False, sorted=False)
        found.scatter_(1, nearest.indices, value=True)
    return near


def close(queries: Tensor, keys: Tensor, shape: GridShape, radius: int) -> Tensor:
    """(q,) and (k,) flat places in one (D, H, W) grid of cells -> (q, k): at most `radius` apart.

    Along every axis, in cells. Needs subjects in one space.
    """
    near = torch.ones(len(queries), len(keys), dtype=torch.bool)
    for own, other in zip(_coordinates(queries, shape), _coordinates(keys, shape), strict=True):
        near &= (own.int()[:, None] - other.int()[None]).abs() <= radius
    return near


def mutual_nearest_among(
    queries: Blocks, keys: Blocks, near: Tensor, chunk: int
) -> tuple[Tensor, Tensor]:
    """Blocks of n and m tokens -> (layers, n) and (layers, m) distance to the nearest near one.

    Parameters
    ----------
    queries, keys
        Of two subjects, with the same layers; each layer is matched for itself.
    near
        (cells, cells) which of them are compared, from `alike` and `close`. A cell whose near cells
        hold no token is compared with all: every distance is finite.
    chunk
        Keys laid side by side at once. It bounds memory and never changes a distance; fastest
        where so many tokens fit the processor's cache.

    Raises
    ------
    ValueError
        `near` does not have the size of the cells, or the layers differ in number.
    """
    if near.shape != (queries.cells.n_cells, keys.cells.n_cells):
        raise ValueError(f"near cells {tuple(near.shape)} are not those of the blocks")
    chunks = _chunks(_with_tokens(queries, keys, near), chunk // keys.cells.width)
    both = [
        _nearest_of_layer(*layer, chunks)
        for layer in zip(queries.values, queries.norms, keys.values, keys.norms, strict=True)
    ]
    slots = [side.cells.slot.to(near.device) for side in (queries, keys)]
    forward, backward = (
        torch.stack([squared.view(-1)[slot] for squared in side])
        for side, slot in zip(zip(*both, strict=True), slots, strict=True)
    )
    return forward.clamp_(min=0).sqrt_(), backward.clamp_(min=0).sqrt_()


def _with_tokens(queries: Blocks, keys: Blocks, near: Tensor) -> Tensor:
    """(q, k) near cells -> those with tokens in both; all such pairs of a cell that has none."""
    held, other = (side.norms[0][:-1].isfinite().any(1) for side in (queries, keys))
    both = held[:, None] & other[None]
    near = near & both
    alone = ~near.any(1, keepdim=True) | ~near.any(0, keepdim=True)
    return torch.where(alone, both, near)


_Chunk = tuple[Tensor, Tensor]


def _chunks(near: Tensor, n_blocks: int) -> list[_Chunk]:
    """(q, k) near cells -> chunks of (r,) rows and (r, l) the cells near to each, on its device.

    Rows with about as many near cells go together, so that little is filled up: with k, the block
    without tokens. r * l is at most `n_blocks` unless r is 1.
    """
    device, near = near.device, near.cpu()  # a loop over sizes: each would be a wait for the device
    row, column = near.nonzero(as_tuple=True)
    counts = row.bincount(minlength=near.shape[0])
    counts_down, order = counts.sort(descending=True)
    lists = torch.full((near.shape[0], int(counts_down[0])), near.shape[1])
    lists[row, torch.arange(len(row)) - _starts(counts)[row]] = column
    sizes, start, chunks = counts_down.tolist(), 0, []
    order, lists = order.to(device), lists[order].to(device)
    while start < len(sizes) and sizes[start]:  # a row without a token is near to no cell
        end = start + max(1, n_blocks // sizes[start])
        chunks.append((order[start:end], lists[start:end, : sizes[start]]))
        start = end
    return chunks


def _nearest_of_layer(
    queries: Tensor, query_norms: Tensor, keys: Tensor, key_norms: Tensor, chunks: Sequence[_Chunk]
) -> tuple[Tensor, Tensor]:
    """Blocks of two subjects -> (cells + 1, width) least squared distances of both.

    Infinite where there is no token.
    """
    width, dim = keys.shape[1:]
    forward, backward = (torch.full_like(norms, math.inf) for norms in (query_norms, key_norms))
    # one space for all chunks: fresh memory for each took a fifth of the time
    space = keys.new_empty(max(listed.numel() for _, listed in chunks), width, dim)
    for rows, listed in chunks:
        cells = listed.flatten()  # r*l
        beside = torch.index_select(keys, 0, cells, out=space[: len(cells)])
        norms = key_norms.index_select(0, cells).view(len(rows), 1, -1)  # r 1 l*width
        # ||q||^2 + ||k||^2 - 2 q.k, the sum in one pass of the product
        squared = torch.baddbmm(
            norms, queries.index_select(0, rows), beside.view(len(rows), -1, dim).mT, alpha=-2.0
        )  # r width l*width
        squared += query_norms.index_select(0, rows)[..., None]
        forward[rows] = squared.amin(2)
        least = squared.amin(1).view(-1, width)  # r*l width
        backward.scatter_reduce_(0, cells[:, None].expand_as(least), least, "amin")
    return forward, backward


def work_share(near: Tensor, queries: Cells, keys: Cells) -> float:
    """(q, k) near cells -> multiply-adds of the restricted search over those of the exhaustive one.

    Counted as they are spent: whole blocks, places without a token too, and the matching of the
    coarse cells. Above 1 where almost all cells are near.
    """
    spent = int(near.count_nonzero()) * queries.width * keys.width + near.numel()
    return spent / (queries.slot.numel() * keys.slot.numel())
