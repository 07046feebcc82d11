"""Frozen specifications of the method; their fields, hashed, name a token space.

What the configuration does not set keeps the default that it has here.
"""

from __future__ import annotations

from dataclasses import dataclass

#: part of the fingerprint of tokens: raise it with every change of this package that changes a
#: token (`test_tokens_are_those_of_their_version` notices), and reference batches are founded anew
TOKEN_VERSION = 1


@dataclass(frozen=True, slots=True)
class GridSpec:
    """The canonical grid: isotropic, axes along the patient's, centred on the foreground."""

    #: (depth, height, width) extent, millimetres
    extent_mm: tuple[float, float, float]
    spacing_mm: float

    @property
    def shape(self) -> tuple[int, int, int]:
        """Return (depth, height, width) in voxels, each rounded to a whole one."""
        depth, height, width = (round(extent / self.spacing_mm) for extent in self.extent_mm)
        return depth, height, width


@dataclass(frozen=True, slots=True)
class EncoderSpec:
    """A frozen 2D vision transformer and what its weights need."""

    timm_name: str
    #: 0-based blocks whose output becomes a feature
    layers: tuple[int, ...]
    patch_size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    #: pass block outputs through the final LayerNorm; the paper does not say whether it does
    final_norm: bool = True


@dataclass(frozen=True, slots=True)
class TokenSpec:
    """How patch features of three axes become volumetric tokens."""

    #: subset of (0, 1, 2): depth (axial), height (coronal), width (sagittal)
    axes: tuple[int, ...] = (0, 1, 2)
    #: in-plane enlargement of a slice before it is encoded
    upsampling: int = 2
    #: slices encoded per token along the slicing axis, pooled by their mean (eq. 1)
    slices_per_token: int = 1
    #: k of the random projection (eq. 2); 0 keeps the features as they are
    projection_dim: int = 128
    seed: int = 0
    #: least share of foreground in a token's cube
    min_foreground: float = 0.25

    def pitch_voxels(self, patch_size: int) -> int:
        """Return the edge of a token's cube in canonical voxels.

        Raises ValueError where the enlargement does not divide the patch.
        """
        if patch_size % self.upsampling:
            message = f"upsampling {self.upsampling} must divide the patch size {patch_size}"
            raise ValueError(message)
        return patch_size // self.upsampling


@dataclass(frozen=True, slots=True)
class ScoringSpec:
    """Mutual similarity, calibration and map; none of it changes a token."""

    #: share rho of the other subjects that is averaged: K = max(1, ceil(rho (B - 1)))
    nearest_share: float = 0.3
    #: queries compared at once; bounds memory, never changes a distance
    chunk: int = 2048
    #: "position" (what is usual at that place among the reference) or "none" (raw distance)
    calibration: str = "position"
    #: least scale of the calibration, as a share of the median scale over the foreground
    scale_floor: float = 0.5
    smoothing_mm: float = 3.0
