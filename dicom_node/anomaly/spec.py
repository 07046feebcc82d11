"""Frozen specifications of the method; their fields, hashed, name a token space.

What the configuration does not set keeps the default that it has here.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

#: part of the fingerprint of tokens: raise it with every change of this package that changes a
#: token (`test_tokens_are_those_of_their_version` notices), and reference batches are founded anew
TOKEN_VERSION = 2


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
    patch_size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    #: pass block outputs through the final LayerNorm; the paper does not say whether it does
    final_norm: bool = True


@dataclass(frozen=True, slots=True)
class ScaleSpec:
    """One size of token: coarse ones see large lesions whole, fine ones keep small ones visible."""

    #: in-plane enlargement of a slice before it is encoded; the token's edge is the patch over it
    upsampling: int
    #: slices encoded per token along the slicing axis, pooled by their mean (eq. 1)
    slices_per_token: int
    #: 0-based blocks whose output becomes a feature; each is matched and calibrated for itself
    layers: tuple[int, ...]

    def pitch_voxels(self, patch_size: int) -> int:
        """Return the edge of a token's cube in canonical voxels.

        Raises ValueError where the enlargement does not divide the patch.
        """
        if patch_size % self.upsampling:
            message = f"upsampling {self.upsampling} must divide the patch size {patch_size}"
            raise ValueError(message)
        return patch_size // self.upsampling


@dataclass(frozen=True, slots=True)
class TokenSpec:
    """How patch features of three axes become volumetric tokens of one or more scales."""

    #: coarse to fine; the edge of each is a multiple of the next one's
    scales: tuple[ScaleSpec, ...]
    #: subset of (0, 1, 2): depth (axial), height (coronal), width (sagittal)
    axes: tuple[int, ...] = (0, 1, 2)
    #: k of the random projection (eq. 2); 0 keeps the features as they are
    projection_dim: int = 128
    seed: int = 0
    #: least share of foreground in a token's cube; 0 takes any foreground at all
    min_foreground: float = 0.25
    #: encode patches of the background too, as the paper does; they never become tokens
    whole_slices: bool = False

    def pitches(self, patch_size: int) -> tuple[int, ...]:
        """Return the edge of a token's cube in canonical voxels, scale by scale.

        Raises ValueError where a scale does not fit the patch, or not the next finer one.
        """
        found = tuple(scale.pitch_voxels(patch_size) for scale in self.scales)
        for coarse, fine in pairwise(found):
            if coarse <= fine or coarse % fine:
                raise ValueError(
                    f"token edges {found} do not nest: each must be a multiple of the next"
                )
        return found


@dataclass(frozen=True, slots=True)
class SearchSpec:
    """Where a token looks for its nearest analogue in another subject (ours, not the paper's)."""

    #: coarse cells whose fine tokens are searched, the nearest to the token's own; 0 searches all
    n_cells: int = 0
    #: coarse cells all round the token's own place that are searched too (-1: none); only where the
    #: subjects lie in one space
    window_cells: int = -1
    #: queries compared at once; bounds memory, never changes a distance
    chunk: int = 2048
    #: keep which token is the nearest, too, as the calibration by analogues needs; all tokens are
    #: compared then
    keep_analogues: bool = False


#: for subjects in one space: measured rank correlation with the exhaustive search 0.997 and above
#: at 6 to 8 % of its multiply-adds
ALIGNED_SEARCH = SearchSpec(n_cells=8, window_cells=1)
#: for subjects in no common space: 0.985 at 8 to 12 %
FREE_SEARCH = SearchSpec(n_cells=32)
#: for the calibration by analogues
ANALOGUE_SEARCH = SearchSpec(keep_analogues=True)


@dataclass(frozen=True, slots=True)
class GuardSpec:
    """What counts as a link between two subjects that share something unusual (ours)."""

    #: an analogue is suspicious below this share of the distance to the middle subject
    endurance: float = 0.7
    #: and if its token is among this share of its subject's, the most unusual
    unusual_share: float = 0.05
    #: links of two subjects that chance does not explain: at this level over all pairs together
    significance: float = 1e-3
    #: and at least so many of them: a lesion of a token or two is not told from a chance likeness
    min_links: int = 4


@dataclass(frozen=True, slots=True)
class ScoringSpec:
    """Mutual similarity, calibration and map; none of it changes a token."""

    #: share rho of the other subjects that is averaged: K = max(1, ceil(rho (B - 1)))
    nearest_share: float = 0.3
    #: "position" (what is usual at that place among the reference), "analogue" (how unusual the
    #: nearest tokens are themselves, wherever they lie) or "none" (raw distance)
    calibration: str = "position"
    #: least scale of the calibration, as a share of the median scale over the foreground
    scale_floor: float = 0.5
    #: weight, in subjects, of what is usual anywhere against what is usual at the place: a median
    #: and a spread of few reference subjects are uncertain
    prior_subjects: float = 5.0
    smoothing_mm: float = 3.0
    #: share of the tokens whose mean is the subject score; 0 takes the highest one alone
    subject_share: float = 0.002
    #: leave reference subjects out whose own score is so many robust deviations above the batch's
    #: median, until no more are; 0 leaves none out
    outlier_limit: float = 0.0
    #: take no analogue from a subject that shares what is unusual; None takes all
    guard: GuardSpec | None = None


@dataclass(frozen=True, slots=True)
class IntensitySpec:
    """How the voxels of a canonical volume become [0, 1]."""

    #: "percentiles" (MR: robust range inside the foreground) or "hounsfield" (CT: a window)
    kind: str = "percentiles"
    #: centre and width, only for "hounsfield"
    window_hu: tuple[float, float] = (-600.0, 1500.0)
    #: only for "percentiles": where `harmonisation.SHARES` come to lie in [0, 1]; empty: they stay
    landmarks: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class MethodSpec:
    """The whole method, apart from the encoder's weights."""

    grid: GridSpec
    tokens: TokenSpec
    intensity: IntensitySpec = IntensitySpec()
    search: SearchSpec = SearchSpec()
    scoring: ScoringSpec = ScoringSpec()
