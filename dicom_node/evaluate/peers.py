"""Other ways to score, on the same subjects, tokens and grid: what the method has to beat.

Each peer is made for one batch and judges one test subject after the other. None of them is
calibrated. Token peers work on the finest scale, all axes, the layers averaged, and their maps are
upsampled and smoothed as the method's own; voxel peers work on the canonical volumes.

References
----------
Li et al., MuSc, ICLR 2024 (arXiv 2401.16753). Roth et al., Towards Total Recall in Industrial
Anomaly Detection (PatchCore), CVPR 2022 (arXiv 2106.08265). Both written from the papers, and
changed as their classes say.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from dicom_node.anomaly import anomaly_map
from dicom_node.anomaly.calibration import to_grid
from dicom_node.anomaly.similarity import interval_average, mutual_nearest
from dicom_node.anomaly.tokens import Tokens
from dicom_node.evaluate.cohort import Work
from dicom_node.evaluate.outcomes import Judged, Map
from dicom_node.evaluate.views import View, fine_tokens, mean_of_layers
from dicom_node.evaluation import Moments

#: MuSc averages the nearest 30 % of the other images
MUSC_SHARE = 0.3
#: PatchCore keeps a tenth of its bank
CORESET_SHARE = 0.1
#: the greedy choice is from so many tokens at the most, at random: its cost grows with the square
CORESET_FROM = 30_000
#: columns an axis that the greedy choice looks at, as PatchCore's own random projection
_CORESET_K = 42
_CHUNK = 512


class Peer(Protocol):
    """One way to score, with its batch."""

    def judge(self, key: str) -> Judged:
        """Return the map and the subject score of a kept subject."""


def map_of(work: Work, grid: Tensor, key: str, smoothing_mm: float) -> Map:
    """(D, H, W) token scores -> (depth, height, width) map on the canonical grid."""
    body = torch.from_numpy(work.truth(key).body)
    up = anomaly_map.upsample(grid, body.shape[0] // grid.shape[0])
    sigma = smoothing_mm / work.recipe.method.grid.spacing_mm
    return np.asarray(anomaly_map.smooth(up, body, sigma).numpy(), dtype=np.float32)


def judged_tokens(work: Work, tokens: Tokens, scores: Tensor, key: str) -> Judged:
    """(n,) raw scores of a subject's tokens -> what is judged, by the method's own rules."""
    scoring = work.recipe.method.scoring
    grid = to_grid(scores, tokens.index, tokens.grid_shape)
    score = anomaly_map.subject_score(grid, scoring.subject_share)
    return Judged(map_of(work, grid, key, scoring.smoothing_mm), score, math.nan)


class SliceWise:
    """MuSc by slices: a token is compared with those of one slice of tokens of each other subject.

    The slice lies at the same relative position between the lowest and the highest slice that holds
    a token. Mean distance to the nearest 30 % of the subjects. Unlike MuSc's, a token has seen all
    three axes; its neighbourhood aggregation (LNAMD) and its re-scoring by class tokens (RsCIN) are
    left out.
    """

    def __init__(self, work: Work, batch: Sequence[str]) -> None:
        """Compare with the subjects of `batch`, read one at a time."""
        self._work, self._batch = work, batch

    def judge(self, key: str) -> Judged:
        """Return the map and the subject score of a kept subject."""
        own = fine_tokens(self._work.files, key)
        found = torch.stack(
            [slice_distances(own, fine_tokens(self._work.files, other)) for other in self._batch]
        )  # others layers n
        scores = mean_of_layers(list(interval_average(found, MUSC_SHARE)))
        return judged_tokens(self._work, own, scores, key)


def slice_distances(own: Tokens, other: Tokens) -> Tensor:
    """Return (layers, n): the distance of each own token to the nearest in the slice it meets."""
    here, there = (tokens.index // math.prod(tokens.grid_shape[1:]) for tokens in (own, other))
    found = own.values.new_empty(own.values.shape[:2])
    for depth in here.unique():
        row, column = here == depth, there == _meets(int(depth), here, there)
        for layer, (queries, keys) in enumerate(zip(own.values, other.values, strict=True)):
            found[layer, row] = mutual_nearest(queries[row], keys[column], _CHUNK)[0]
    return found


def _meets(depth: int, here: Tensor, there: Tensor) -> int:
    """Return the slice with tokens that lies nearest to the same relative position."""
    first, last = int(here.min()), int(here.max())
    share = (depth - first) / (last - first) if last > first else 0.5
    slices = there.unique()
    at = int(slices[0]) + share * (int(slices[-1]) - int(slices[0]))
    return int(slices[(slices - at).abs().argmin()])


class MemoryBank:
    """PatchCore: the distance to the nearest token of one bank, a coreset of all reference tokens.

    A bank a layer. The coreset is a greedy tenth (farthest point first), chosen from 30 000 tokens
    at random at the most, by the distances of the first 42 columns an axis. The re-weighting of the
    image score is left out.
    """

    def __init__(self, work: Work, batch: Sequence[str]) -> None:
        """Fill the bank with the tokens of `batch`."""
        self._work = work
        self._banks = _banks(work, batch)

    def judge(self, key: str) -> Judged:
        """Return the map and the subject score of a kept subject."""
        own = fine_tokens(self._work.files, key)
        found = [
            mutual_nearest(queries, bank, _CHUNK)[0]
            for queries, bank in zip(own.values, self._banks, strict=True)
        ]
        return judged_tokens(self._work, own, mean_of_layers(found), key)


def _banks(work: Work, batch: Sequence[str]) -> list[Tensor]:
    """Return a coreset of the tokens of the batch for each layer, (m, dim)."""
    n_axes = len(work.recipe.method.tokens.axes)
    generator = torch.Generator().manual_seed(0)
    share_of_each = CORESET_FROM // len(batch)
    parts = []
    for key in batch:  # thinned out as they are read: the whole bank is never in memory
        values = fine_tokens(work.files, key).values
        if values.shape[1] > share_of_each:
            chosen = torch.randperm(values.shape[1], generator=generator)[:share_of_each]
            values = values[:, chosen]
        parts.append(values)
    every = torch.cat(parts, dim=1)  # layers n dim
    n = max(1, round(CORESET_SHARE * every.shape[1]))
    return [layer[coreset(_narrow(layer, n_axes), n)] for layer in every]


def _narrow(tokens: Tensor, n_axes: int) -> Tensor:
    """(n, dim) -> (n, fewer): the first columns of each axis."""
    k = min(_CORESET_K, tokens.shape[-1] // n_axes)
    return View(k=k).columns(tokens, n_axes)


def coreset(tokens: Tensor, n: int) -> Tensor:
    """(m, dim) -> (n,) places of tokens: the first, then always the farthest from those chosen."""
    norms = tokens.square().sum(1)
    nearest = torch.full((len(tokens),), math.inf)
    chosen = [0]
    while len(chosen) < n:
        last = chosen[-1]
        squared = norms + norms[last] - 2 * (tokens @ tokens[last])
        nearest = torch.minimum(nearest, squared)
        nearest[last] = -1.0  # rounding must not choose it again
        chosen.append(int(nearest.argmax()))
    return torch.tensor(chosen)


class ZScore:
    """The z-score of each voxel among the batch, as `dicom_node score` reports it; one reading."""

    def __init__(self, work: Work, batch: Sequence[str], reading: str) -> None:
        """Read it as "both" (its size), "bright" or "dark"."""
        self._work, self._reading = work, reading
        self._moments = Moments(work.recipe.method.grid.shape)
        for key in batch:
            self._moments.add(work.smoothed(key))

    def judge(self, key: str) -> Judged:
        """Return the map and the subject score of a kept subject."""
        volume, moments = self._work.smoothed(key), copy.deepcopy(self._moments)
        moments.add(volume)  # it judges one of those that were added, by the others
        z = moments.z_score(volume)
        return judged_voxels(self._work, READINGS[self._reading](z), key)


READINGS: dict[str, Callable[[Map], Map]] = {
    "both": np.abs,
    "bright": lambda z: z,
    "dark": np.negative,
}


class MeanDifference:
    """How far each voxel is from the mean of the batch; the volumes are smoothed by 2 mm."""

    def __init__(self, work: Work, batch: Sequence[str]) -> None:
        """Average the volumes of the batch."""
        self._work = work
        total = np.zeros(work.recipe.method.grid.shape)
        for key in batch:
            total += work.smoothed(key)
        self._mean = (total / len(batch)).astype(np.float32)

    def judge(self, key: str) -> Judged:
        """Return the map and the subject score of a kept subject."""
        return judged_voxels(self._work, np.abs(self._work.smoothed(key) - self._mean), key)


def judged_voxels(work: Work, scores: Map, key: str) -> Judged:
    """(depth, height, width) -> what is judged: the subject score is by the method's own rule."""
    inside = np.where(work.truth(key).body, scores, np.float32(np.nan))
    share = work.recipe.method.scoring.subject_share
    score = anomaly_map.subject_score(torch.from_numpy(inside), share)
    return Judged(np.nan_to_num(inside), score, math.nan)


def peer(name: str, work: Work, batch: Sequence[str]) -> Peer:
    """Return a peer by name: see `PEERS`."""
    return PEERS[name](work, batch)


PEERS: dict[str, Callable[[Work, Sequence[str]], Peer]] = {
    "slice-wise": SliceWise,
    "memory bank": MemoryBank,
    "z both": lambda work, batch: ZScore(work, batch, "both"),
    "z bright": lambda work, batch: ZScore(work, batch, "bright"),
    "z dark": lambda work, batch: ZScore(work, batch, "dark"),
    "mean difference": MeanDifference,
}
