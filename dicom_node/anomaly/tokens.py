"""Patch features of three axes -> volumetric tokens (CoDeGraph3D, arXiv 2602.15315, eqs. 1-3).

Deviation, ours: slices are enlarged in-plane and the depth of a block is shortened alike, so that a
token's cube is smaller than the encoder's patch (7 mm instead of 14 mm at 1 mm voxels).

References
----------
Eq. 1: z_a, features of axis a averaged over a block of slices, then L2-normalised. Eq. 2: v_a = R^T
z_a, one Gaussian R for all axes. Eq. 3: the token is the three axes' v_a side by side.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as nnf
from torch import Tensor

from dicom_node.anomaly.encoder import Encoder
from dicom_node.anomaly.slices import slice_positions, take_slices
from dicom_node.anomaly.spec import TokenSpec

_EPS = 1e-6

#: called with the share of the work that is done
Progress = Callable[[float], None]


@dataclass(frozen=True, slots=True)
class Tokens:
    """The tokens of one subject: those places of its token grid that hold foreground."""

    #: (layers, n, dim) fp32
    values: Tensor
    #: (n,) flat index of each token in the token grid
    index: Tensor
    #: (D, H, W) of the token grid
    grid_shape: tuple[int, int, int]

    def __len__(self) -> int:
        return int(self.index.numel())


def projection_matrix(features: int, dim: int, seed: int) -> Tensor:
    """Return (features, dim) of N(0, 1/dim), the same for all axes and layers (eq. 2).

    It keeps distances on average; one rule for all layers keeps them comparable. The same seed
    gives the same matrix in every process, which the kept tokens rely on.
    """
    generator = torch.Generator().manual_seed(seed)
    matrix: Tensor = torch.randn(features, dim, generator=generator) / dim**0.5
    return matrix


def foreground_share(foreground: Tensor, pitch: int) -> Tensor:
    """(depth, height, width) mask -> (D, H, W) share of foreground (0..1) in each token's cube."""
    share: Tensor = nnf.avg_pool3d(foreground.float()[None, None], pitch, pitch)[0, 0]
    return share


def kept_tokens(share: Tensor, spec: TokenSpec) -> Tensor:
    """(D, H, W) share of foreground in each token's cube -> which of them become tokens."""
    return share >= max(spec.min_foreground, 1e-6)


def check_grid(shape: tuple[int, ...], pitch: int) -> None:
    """Raise ValueError unless every side of the canonical grid is a multiple of the token pitch."""
    if any(side % pitch or side == 0 for side in shape):
        raise ValueError(f"grid {tuple(shape)} is not a multiple of the token pitch {pitch}")


def axis_features(
    volume: Tensor, share: Tensor, axis: int, encoder: Encoder, spec: TokenSpec
) -> Tensor:
    """(depth, height, width) -> (layers, D, H, W, features): pooled, then normalised (eq. 1).

    Slices and patches without a kept token are not encoded; their places stay zero. (D, H, W) is in
    the order of the volume whatever the axis, so that the three can be put side by side.
    """
    pitch = spec.pitch_voxels(encoder.spec.patch_size)
    foreground = kept_tokens(share, spec).movedim(axis, 0)  # the stack's tokens, rows, columns
    kept = foreground.flatten(1).any(1).nonzero()[:, 0]
    positions = slice_positions(share.shape[axis], pitch, spec.slices_per_token)[kept]
    slices = take_slices(volume, axis, positions.flatten())
    patches = foreground[kept].repeat_interleave(spec.slices_per_token, 0)
    encoded = encoder.encode(slices, patches, spec.upsampling)  # L n*s R C F
    pooled = encoded.unflatten(1, (len(kept), spec.slices_per_token)).mean(2)  # z, L n R C F
    pooled = pooled / (pooled.norm(dim=-1, keepdim=True) + _EPS)
    grid = [pooled.shape[0], share.shape[axis], *pooled.shape[2:]]
    full = pooled.new_zeros(grid)
    full[:, kept] = pooled
    placed: Tensor = full.movedim(1, axis + 1)  # L D H W F
    return placed


def tokenize(
    volume: Tensor,
    foreground: Tensor,
    encoder: Encoder,
    spec: TokenSpec,
    progress: Progress | None = None,
) -> Tokens:
    """(depth, height, width) in [0, 1] and mask on the canonical grid -> tokens of the foreground.

    `progress` is told the share that is done, once per axis. Raises ValueError when the grid does
    not fit the pitch or no token holds enough foreground.
    """
    pitch = spec.pitch_voxels(encoder.spec.patch_size)
    check_grid(tuple(volume.shape), pitch)
    share = foreground_share(foreground, pitch)
    index = kept_tokens(share, spec).flatten().nonzero()[:, 0]
    if index.numel() == 0:
        raise ValueError("no token holds enough foreground")
    parts = []
    for done, axis in enumerate(spec.axes):
        features = axis_features(volume, share, axis, encoder, spec).flatten(1, 3)[:, index]
        parts.append(_project(features, spec))  # v_a = R^T z_a
        if progress is not None:
            progress((done + 1) / len(spec.axes))
    depth, height, width = share.shape
    return Tokens(torch.cat(parts, dim=-1), index, (depth, height, width))  # eq. 3


def _project(features: Tensor, spec: TokenSpec) -> Tensor:
    """(layers, n, features) -> (layers, n, k); k = 0 keeps the features."""
    if spec.projection_dim == 0:
        return features
    return features @ projection_matrix(features.shape[-1], spec.projection_dim, spec.seed)
