"""Volume -> subject: placed on the canonical grid, encoded; and a map of it back to the source.

What the node and the command line share: neither knows more of a volume than its voxels and where
they lie. Nothing here reads DICOM, a ledger or a configuration.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from dicom_node.anomaly import anomaly_map, foreground, harmonisation, intensity, resample
from dicom_node.anomaly.encoder import Encoder
from dicom_node.anomaly.spec import IntensitySpec, MethodSpec
from dicom_node.anomaly.tokens import Progress, Tokens, tokenize
from dicom_node.errors import EmptyForeground, NonFiniteScores
from dicom_node.placement import Placing
from dicom_node.quality import Measures

_BY_ITSELF = Placing()


@dataclass(frozen=True, slots=True)
class Subject:
    """What is kept of one tokenized volume: enough to score it and to bring its map back."""

    #: one entry per scale, coarse to fine
    tokens: tuple[Tokens, ...]
    #: (depth, height, width) bool, foreground on the canonical grid
    foreground: Tensor
    #: (4, 4) canonical index -> LPS mm of the source
    affine: Tensor
    #: of the volume's quality; empty: it was not measured
    measures: Measures = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Canonical:
    """A volume on the canonical grid."""

    #: (depth, height, width) in [0, 1], 0 outside the foreground
    voxels: Tensor
    #: (depth, height, width) bool
    foreground: Tensor
    #: (4, 4) canonical index -> LPS mm of the source
    affine: Tensor


def make_canonical(
    voxels: Tensor, affine: Tensor, method: MethodSpec, placing: Placing = _BY_ITSELF
) -> Canonical:
    """Place (depth, height, width) voxels on the canonical grid and normalise them.

    Parameters
    ----------
    voxels
        Finite; of a CT in Hounsfield units, none below air.
    affine
        (4, 4), index of a voxel's centre -> LPS mm.

    Raises
    ------
    EmptyForeground
        There is too little foreground in it, or none.
    RegistrationFailed
        `placing` has a template, and the volume did not get there.
    """
    if not bool(voxels.isfinite().all()):
        raise EmptyForeground("the volume holds NaN or infinite voxels")
    try:
        placed = placing(voxels, affine, method.grid)
        canonical = _sampled(voxels, affine, placed.affine, method)
        mask = foreground.body_mask(canonical) if placed.mask is None else placed.mask
        return Canonical(_normalized(canonical, mask, method.intensity), mask, placed.affine)
    except ValueError as error:
        raise EmptyForeground(f"the volume cannot be scored: {error}") from error


def canonical_again(
    subject: Subject, voxels: Tensor, affine: Tensor, method: MethodSpec
) -> Canonical:
    """Place the volume of a kept subject as it was placed, without registration or mask.

    `voxels` and `affine` are those that `make_canonical` was given: so is the result.
    """
    canonical = _sampled(voxels, affine, subject.affine, method)
    mask = subject.foreground
    return Canonical(_normalized(canonical, mask, method.intensity), mask, subject.affine)


def _sampled(voxels: Tensor, affine: Tensor, target: Tensor, method: MethodSpec) -> Tensor:
    """(depth, height, width) voxels -> the same on the canonical grid that `target` places."""
    fill = float(voxels.min())  # beyond the source there is air
    return resample.sample(voxels, resample.index_map(target, affine), method.grid.shape, fill)


def make_subject(
    voxels: Tensor,
    affine: Tensor,
    method: MethodSpec,
    encoder: Encoder,
    progress: Progress | None = None,
    placing: Placing = _BY_ITSELF,
) -> Subject:
    """Place a volume on the canonical grid and encode it; arguments as of `make_canonical`.

    `progress` is told the share of the encoding that is done. Raises EmptyForeground where there is
    too little body for a token, NonFiniteScores where the encoder gave features that are no
    numbers.
    """
    placed = make_canonical(voxels, affine, method, placing)
    try:
        tokens = tokenize(placed.voxels, placed.foreground, encoder, method.tokens, progress)
    except ValueError as error:
        raise EmptyForeground(f"the volume cannot be scored: {error}") from error
    if not all(bool(scale.values.isfinite().all()) for scale in tokens):
        # kept, it would make every score NaN that is made with it as a reference
        raise NonFiniteScores("the encoder's features are not finite")
    return Subject(tokens, placed.foreground, placed.affine)


def _normalized(canonical: Tensor, mask: Tensor, how: IntensitySpec) -> Tensor:
    """(depth, height, width) -> [0, 1], 0 outside the body."""
    if how.kind == "hounsfield":
        return intensity.window_hounsfield(canonical, *how.window_hu) * mask
    normalised = intensity.normalize_percentiles(canonical, mask)
    if not how.landmarks:
        return normalised
    return harmonisation.harmonize(normalised, mask, how.landmarks)


def map_on_source(
    grid: Tensor,
    subject: Subject,
    method: MethodSpec,
    shape: tuple[int, int, int],
    affine: Tensor,
) -> Tensor:
    """(D, H, W) token scores -> (depth, height, width) anomaly map on the source grid.

    The grid is that of the finest tokens, NaN where there is none; `shape` and `affine`, (4, 4)
    index -> LPS mm, are the source's. What no token reaches, and what lies beyond the canonical
    grid, is 0.
    """
    pitch = subject.foreground.shape[0] // grid.shape[0]
    canonical = anomaly_map.upsample(grid, pitch)
    sigma = method.scoring.smoothing_mm / method.grid.spacing_mm
    smoothed = anomaly_map.smooth(canonical, subject.foreground, sigma)
    to_canonical = resample.index_map(affine, subject.affine)
    return resample.sample(smoothed, to_canonical, shape, 0.0)
