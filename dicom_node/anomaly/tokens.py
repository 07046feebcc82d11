"""Patch features of three axes -> volumetric tokens (CoDeGraph3D, arXiv 2602.15315, eqs. 1-3).

Ours, beyond the predecessor: tokens of several scales. A coarse token is the paper's block; for a
fine one slices are enlarged in-plane and the depth of a block is shortened alike, so that its cube
is smaller than the encoder's patch (7 mm instead of 14 mm at 1 mm voxels).

References
----------
Eq. 1: z_a, features of axis a averaged over a block of slices, then L2-normalised. Eq. 2: v_a = R^T
z_a, one Gaussian R for all axes. Eq. 3: the token is the three axes' v_a side by side.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as nnf
from torch import Tensor

from dicom_node.anomaly.encoder import Encoder
from dicom_node.anomaly.slices import slice_positions, take_slices
from dicom_node.anomaly.spec import ScaleSpec, TokenSpec

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


def default_scales(layers: tuple[int, ...]) -> tuple[ScaleSpec, ...]:
    """Return coarse tokens of an early layer beside fine ones of `layers`, the useful late ones.

    An early layer sees intensity and texture: large bright lesions stand out in it. A late one sees
    structure. A third of the way to the late ones is block 2 of a ViT-S with useful block 8.
    """
    early = max(0, (min(layers) + 1) // 3 - 1)
    return (
        ScaleSpec(upsampling=1, slices_per_token=4, layers=(early,)),
        ScaleSpec(upsampling=2, slices_per_token=1, layers=layers),
    )


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


def kept_tokens(foreground: Tensor, pitches: Sequence[int], least: float) -> list[Tensor]:
    """(depth, height, width) mask -> per pitch, coarse to fine, (D, H, W) which cubes are tokens.

    Those that hold `least` of foreground, and every coarse one in which a fine one is kept: each
    fine token then has a coarse parent.
    """
    kept: list[Tensor] = []
    for pitch in reversed(pitches):
        here = foreground_share(foreground, pitch) >= max(least, 1e-6)
        if kept:
            ratio = kept[0].shape[0] // here.shape[0]
            here |= nnf.max_pool3d(kept[0].float()[None, None], ratio)[0, 0] > 0
        kept.insert(0, here)
    return kept


def check_grid(shape: tuple[int, ...], pitch: int) -> None:
    """Raise ValueError unless every side of the canonical grid is a multiple of the token pitch."""
    if any(side % pitch or side == 0 for side in shape):
        raise ValueError(f"grid {tuple(shape)} is not a multiple of the token pitch {pitch}")


def axis_features(
    volume: Tensor,
    kept: Tensor,
    axis: int,
    encoder: Encoder,
    scale: ScaleSpec,
    *,
    whole_slices: bool = False,
) -> Tensor:
    """(depth, height, width) -> (layers, D, H, W, features): pooled, then normalised (eq. 1).

    Slices without a token of `kept`, (D, H, W), are not encoded, nor are the patches without one
    unless `whole_slices`; their places stay zero. (D, H, W) is in the order of the volume whatever
    the axis, so that the three can be put side by side.
    """
    pitch = scale.pitch_voxels(encoder.spec.patch_size)
    stack = kept.movedim(axis, 0)  # the stack's tokens, rows, columns
    used = stack.flatten(1).any(1).nonzero()[:, 0]
    positions = slice_positions(kept.shape[axis], pitch, scale.slices_per_token)[used]
    slices = take_slices(volume, axis, positions.flatten())
    patches = torch.ones_like(stack[used]) if whole_slices else stack[used]
    patches = patches.repeat_interleave(scale.slices_per_token, 0)
    encoded = encoder.encode(slices, patches, scale)  # L n*s R C F
    pooled = encoded.unflatten(1, (len(used), scale.slices_per_token)).mean(2)  # z, L n R C F
    pooled = pooled / (pooled.norm(dim=-1, keepdim=True) + _EPS)
    full = pooled.new_zeros([pooled.shape[0], kept.shape[axis], *pooled.shape[2:]])
    full[:, used] = pooled
    placed: Tensor = full.movedim(1, axis + 1)  # L D H W F
    return placed


def tokenize(
    volume: Tensor,
    foreground: Tensor,
    encoder: Encoder,
    spec: TokenSpec,
    progress: Progress | None = None,
) -> tuple[Tokens, ...]:
    """(depth, height, width) in [0, 1] and mask on the canonical grid -> tokens, coarse to fine.

    One entry per scale of `spec`, of the foreground alone. `progress` is told the share that is
    done, once per stack of slices. Raises ValueError when the grid does not fit the pitch, no token
    holds enough foreground, or a voxel of the volume is no number.
    """
    pitches = spec.pitches(encoder.spec.patch_size)
    for pitch in pitches:
        check_grid(tuple(volume.shape), pitch)
    if not bool(volume.isfinite().all()):
        raise ValueError("the volume holds NaN or infinite voxels")
    kept = kept_tokens(foreground, pitches, spec.min_foreground)
    if not bool(kept[-1].any()):
        raise ValueError("no token holds enough foreground")
    made = []
    for place, (scale, here) in enumerate(zip(spec.scales, kept, strict=True)):
        done = _Stages(progress, place, len(spec.scales))
        made.append(_tokens_of_scale(volume, here, encoder, spec, scale, done))
    return tuple(made)


@dataclass(frozen=True, slots=True)
class _Stages:
    """Tells the share of all scales that is done, from the share of one."""

    told: Progress | None
    place: int
    n_scales: int

    def __call__(self, share: float) -> None:
        if self.told is not None:
            self.told((self.place + share) / self.n_scales)


def _tokens_of_scale(
    volume: Tensor,
    kept: Tensor,
    encoder: Encoder,
    spec: TokenSpec,
    scale: ScaleSpec,
    progress: Progress,
) -> Tokens:
    """(depth, height, width) and which tokens are kept, (D, H, W) -> the tokens of one scale."""
    index = kept.flatten().nonzero()[:, 0]
    parts = []
    for done, axis in enumerate(spec.axes):
        features = axis_features(
            volume, kept, axis, encoder, scale, whole_slices=spec.whole_slices
        ).flatten(1, 3)[:, index]
        parts.append(_project(features, spec))  # v_a = R^T z_a
        progress((done + 1) / len(spec.axes))
    depth, height, width = kept.shape
    return Tokens(torch.cat(parts, dim=-1), index, (depth, height, width))  # eq. 3


def _project(features: Tensor, spec: TokenSpec) -> Tensor:
    """(layers, n, features) -> (layers, n, k); k = 0 keeps the features."""
    if spec.projection_dim == 0:
        return features
    return features @ projection_matrix(features.shape[-1], spec.projection_dim, spec.seed)
