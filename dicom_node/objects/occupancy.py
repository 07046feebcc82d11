"""Anomaly map -> which share of a voxel's volume lies above the threshold. numpy and scipy only.

A label map counts voxels whole or not at all. Between the centres of the voxels the map is known as
well as an interpolation knows it: it is asked at places inside each voxel, and the share of those
above the threshold is the voxel's occupancy. It is a geometrical quantity: neither the score nor a
probability of anything.

References
----------
R. G. Keys, "Cubic convolution interpolation for digital image processing", IEEE Trans. ASSP 29(6),
1981: equation 15, with a = -1/2.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from dicom_node.findings import LabelMap

#: places inside a voxel along each axis, from its centre, in voxels: of three equal parts
_STEPS = (-1.0 / 3.0, 0.0, 1.0 / 3.0)
#: places in a voxel
PLACES = len(_STEPS) ** 3
#: voxels beyond the interpolated ones that the interpolation reaches
_REACH = 2

Box = tuple[slice, ...]


def occupancies(
    anomaly_map: NDArray[np.float32], labels: LabelMap, threshold: float
) -> Iterator[tuple[Box, NDArray[np.uint8]]]:
    """(depth, height, width) map and ranks -> per rank a box of the grid and counts inside it.

    A count is how many of the voxel's `PLACES` lie above the threshold and belong to the finding:
    those between whose neighbouring voxels, eight at most, is one of its own. Regions that are
    26-connected cannot both have one there, so that each place belongs to one finding. Every voxel
    of a finding counts 1 at least, by its centre.

    Interpolation is cubic. A linear one cuts off every bulge between the voxels: of a sphere of two
    voxels' radius it loses a tenth, where this loses a hundredth.

    Parameters
    ----------
    labels
        As `findings.locate` made them of the same map and threshold, ranks 1, 2, ...
    """
    for rank, box in enumerate(ndimage.find_objects(labels), 1):
        outer = _grown(box, 1 + _REACH, labels.shape)
        inner = _grown(box, 1, labels.shape)
        own = (labels[outer] == rank).astype(np.uint8)
        counts = _n_above(anomaly_map[outer], own, threshold, 0)
        yield inner, counts[_within(inner, outer)]


def _grown(box: Box, by: int, shape: tuple[int, ...]) -> Box:
    """Return a box with a margin, cut off at the edges of the grid."""
    return tuple(
        slice(max(0, edge.start - by), min(length, edge.stop + by))
        for edge, length in zip(box, shape, strict=True)
    )


def _within(inner: Box, outer: Box) -> Box:
    """Return where a box lies in an array of a larger one."""
    return tuple(
        slice(one.start - around.start, one.stop - around.start)
        for one, around in zip(inner, outer, strict=True)
    )


def _n_above(
    scores: NDArray[np.float32], own: NDArray[np.uint8], threshold: float, axis: int
) -> NDArray[np.uint8]:
    """Count the places above the threshold, over the steps along `axis` and those after it.

    `own` is above 0 where one of the voxels round the place is of the finding.
    """
    if axis == scores.ndim:
        return ((scores >= threshold) & (own > 0)).astype(np.uint8)
    counts = np.zeros(scores.shape, dtype=np.uint8)
    for step in _STEPS:
        counts += _n_above(*_moved(scores, own, axis, step), threshold, axis + 1)
    return counts


def _moved(
    scores: NDArray[np.float32], own: NDArray[np.uint8], axis: int, step: float
) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """Return the scores `step` voxels along an axis, and which of the finding's are round them.

    Beyond the edges of the grid the map goes on as it ends.
    """
    if step == 0.0:  # the centre: as it was when the finding was located
        return scores, own
    beside = (0, 1, 1) if step > 0 else (1, 1, 0)
    return (
        ndimage.correlate1d(scores, _cubic(step), axis, mode="nearest"),
        ndimage.correlate1d(own, beside, axis, mode="nearest"),
    )


def _cubic(step: float) -> NDArray[np.float64]:
    """Return the weights of the five voxels round a place, Keys' equation 15."""
    away = np.abs(np.arange(-_REACH, _REACH + 1) - step)
    near = 1.5 * away**3 - 2.5 * away**2 + 1.0
    far = -0.5 * away**3 + 2.5 * away**2 - 4.0 * away + 2.0
    return np.where(away <= 1.0, near, np.where(away < 2.0, far, 0.0))
