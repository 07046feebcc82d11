"""Anomaly map -> findings: connected regions above the threshold, measured in millimetres.

It runs on the source grid, so that volumes and places are those of the patient, and knows nothing
of DICOM: `objects` turns ranks into segments. Its slow twin is ``tests/oracle/components.py``.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage


@dataclass(frozen=True, slots=True)
class Finding:
    """One region of the anomaly map, measured: where the score is high, not what is there."""

    #: 1 is the highest; also the label of its voxels and the number of its segment
    rank: int
    #: of all its voxels, each counted as a whole
    volume_ml: float
    #: score at the region's peak and its mean, in calibrated units
    max_score: float
    mean_score: float
    #: (x, y, z), LPS, millimetres; not weighted by score, and perhaps outside a hollow region
    centroid_mm: tuple[float, float, float]
    #: centre of the voxel with the highest score, the first in memory among equals
    peak_mm: tuple[float, float, float]
    #: largest extent along a patient axis
    diameter_mm: float


@dataclass(frozen=True, slots=True)
class PartOf:
    """Which volume of its series a score is of, as a result object says it."""

    #: its place among the volumes of the series, from 1
    number: int
    #: what tells it from them, in words
    name: str
    #: name of its content; another revision of the series has another
    subject: str
    #: numbers, from 1, of its frames where it is some of those of a multi-frame image; else empty
    frames: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class ScoreSummary:
    """What a result object says about the score it shows; all that it knows of the scoring."""

    protocol: str
    subject_score: float
    #: rank of the subject score among the reference subjects' own, 0..100
    percentile: float
    n_reference: int
    #: name of the frozen reference batch
    batch_version: str
    #: hash of everything that shapes a token or a score
    fingerprint: str
    #: calibrated units
    threshold: float
    encoder: str
    scored_at: datetime
    #: name of the batch's own template and histogram; empty: it has none
    space: str = ""
    #: which volume of a series that holds several; None: the only one
    part: PartOf | None = None


LabelMap = NDArray[np.uint8]

#: labels are uint8 and 0 is background
MAX_FINDINGS = 255


@dataclass(frozen=True, slots=True)
class _Regions:
    """The 26-connected regions of one map, numbered from 1."""

    #: (depth, height, width) int32, 0 outside
    labels: NDArray[np.int32]
    #: (n_regions,) voxels in each region, highest score of each region
    n_voxels: NDArray[np.int64]
    maxima: NDArray[np.float64]


def locate(
    anomaly_map: NDArray[np.float32],
    affine: NDArray[np.float64],
    *,
    threshold: float,
    min_volume_ml: float,
    max_findings: int,
) -> tuple[tuple[Finding, ...], LabelMap]:
    """(depth, height, width) map, (4, 4) index -> LPS mm -> findings and their label map.

    Parameters
    ----------
    anomaly_map
        Higher is more anomalous; in the units of `threshold`.
    affine
        Index (depth, height, width) of a voxel's centre -> (x, y, z).
    threshold
        A finding is a 26-connected region of ``anomaly_map >= threshold``.
    min_volume_ml
        Smaller regions are no finding; one of exactly this volume is.
    max_findings
        The highest are kept, 0 to 255.

    Returns
    -------
    Findings by rank: the highest score first, equal scores by volume, then by position; and
    (depth, height, width) uint8 ranks on the same grid, 0 where there is no finding.

    Raises
    ------
    ValueError
        Map, affine or threshold is not finite or of the wrong shape, or `max_findings` does not fit
        the label map.
    """
    _check_arguments(anomaly_map, affine, threshold, max_findings)
    labels: LabelMap = np.zeros(anomaly_map.shape, dtype=np.uint8)
    regions = _regions(anomaly_map, threshold)
    if regions is None:
        return (), labels
    voxel_ml = abs(float(np.linalg.det(affine[:3, :3]))) / 1000.0
    boxes = ndimage.find_objects(regions.labels)
    found = []
    for rank, region in enumerate(_ranked(regions, voxel_ml, min_volume_ml, max_findings), 1):
        box = boxes[region - 1]
        inside = regions.labels[box] == region
        labels[box][inside] = rank
        found.append(_measure(rank, anomaly_map[box], inside, box, affine))
    return tuple(found), labels


def _check_arguments(
    anomaly_map: NDArray[np.float32],
    affine: NDArray[np.float64],
    threshold: float,
    max_findings: int,
) -> None:
    """Raise ValueError for what would make a finding without a place or a size."""
    if anomaly_map.ndim != 3:
        raise ValueError(f"the anomaly map has {anomaly_map.ndim} axes, not 3")
    if not np.isfinite(anomaly_map).all():
        raise ValueError("the anomaly map holds NaN or infinite values")
    if affine.shape != (4, 4) or not np.isfinite(affine).all():
        raise ValueError("the affine is not a finite 4 x 4 matrix")
    if not np.isfinite(threshold):
        raise ValueError(f"the threshold {threshold} is not finite")
    if not 0 <= max_findings <= MAX_FINDINGS:
        raise ValueError(f"max_findings {max_findings} is outside 0..{MAX_FINDINGS}")


def _regions(anomaly_map: NDArray[np.float32], threshold: float) -> _Regions | None:
    """Label the regions; None when no voxel reaches the threshold."""
    # by the corners too: a thin lesion that runs obliquely through the grid is one
    touching = np.ones((3, 3, 3), dtype=bool)  # 26-connected: faces, edges and corners
    labels = np.empty(anomaly_map.shape, dtype=np.int32)
    n_regions = int(ndimage.label(anomaly_map >= threshold, structure=touching, output=labels))
    if not n_regions:
        return None
    where = np.flatnonzero(labels)  # (n_inside,): the map is mostly background
    numbers = labels.ravel()[where]
    scores = anomaly_map.ravel()[where].astype(np.float64)
    maxima = np.full(n_regions, -np.inf)
    np.maximum.at(maxima, numbers - 1, scores)
    n_voxels = np.bincount(numbers, minlength=n_regions + 1)[1:]
    return _Regions(labels, n_voxels, maxima)


def _ranked(
    regions: _Regions, voxel_ml: float, min_volume_ml: float, max_findings: int
) -> list[int]:
    """Return the region numbers worth a finding, highest score first."""
    # the tolerance keeps a region of exactly the minimum volume in spite of rounding
    large = np.flatnonzero(regions.n_voxels * voxel_ml >= min_volume_ml * (1.0 - 1e-9))
    order = np.lexsort((large, -regions.n_voxels[large], -regions.maxima[large]))
    return [int(region) + 1 for region in large[order][:max_findings]]


def _measure(
    rank: int,
    scores: NDArray[np.float32],
    inside: NDArray[np.bool_],
    box: tuple[slice, ...],
    affine: NDArray[np.float64],
) -> Finding:
    """Measure one region from the map and mask inside its bounding box."""
    start = np.array([edge.start for edge in box], dtype=np.float64)
    index = np.argwhere(inside) + start  # (n, 3): depth, height, width
    points = index @ affine[:3, :3].T + affine[:3, 3]  # (n, 3): x, y, z
    values = scores[inside].astype(np.float64)  # (n,), in the order of argwhere
    # voxels are boxes, not points: a region of one voxel is as long as the voxel
    extent = np.ptp(points, axis=0) + np.abs(affine[:3, :3]).sum(axis=1)
    voxel_ml = abs(float(np.linalg.det(affine[:3, :3]))) / 1000.0
    return Finding(
        rank=rank,
        volume_ml=len(points) * voxel_ml,
        max_score=float(values.max()),
        mean_score=float(values.mean()),
        centroid_mm=_point(points.mean(axis=0)),
        peak_mm=_point(points[values.argmax()]),
        diameter_mm=float(extent.max()),
    )


def _point(values: NDArray[np.float64]) -> tuple[float, float, float]:
    x, y, z = (float(value) for value in values)
    return x, y, z
