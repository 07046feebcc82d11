"""Maps and findings of a run against the masks of its scans, with the z-score as the yardstick."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dicom_node import nifti
from dicom_node.anomaly import anomaly_map, resample
from dicom_node.anomaly.spec import MethodSpec
from dicom_node.batch.inputs import Scan
from dicom_node.batch.products import Mapped, scored_voxels
from dicom_node.batch.recipe import Recipe
from dicom_node.evaluation import Evaluation, Moments, Report, overlap
from dicom_node.subject import Subject, canonical_again, map_on_source
from dicom_node.volume import Volume

#: smoothing before the z-score: neighbouring heads do not fit to the voxel
_Z_SIGMA_MM = 2.0


class Comparison:
    """Compares the scans of one run with their masks, one after the other.

    All scans have to be `add`-ed before the first is compared: each is judged by all the others,
    those without a mask too.
    """

    def __init__(self, by: Recipe) -> None:
        self._by = by
        self._moments = Moments(by.method.grid.shape)
        self._evaluation = Evaluation()

    def add(self, scan: Scan, source: Volume, subject: Subject) -> None:
        """Make a scan one of those that the z-score is relative to."""
        self._moments.add(self._smoothed(scan, source, subject))

    def compare(self, scan: Scan, mapped: Mapped, score: float) -> None:
        """Count what maps, findings and subject score say of a scan that has a mask.

        Voxels are compared on the canonical grid: the z-score is made there, and voxels of all
        scans are of one size. Raises SeriesRejected where the mask cannot be read.
        """
        if scan.mask is None:
            return
        mask = nifti.read(scan.mask)
        inside = mask.voxels > 0.5  # labels are whole numbers, interpolated masks are shares
        subject, method = mapped.subject, self._by.method
        shape = method.grid.shape
        truth = on_canonical(inside, mask, subject, method)
        maps = {
            name: map_on_source(grid, subject, method, shape, subject.affine).numpy()
            for name, grid in (
                ("calibrated", mapped.scores.calibrated),
                ("raw", mapped.scores.raw),
            )
        }
        maps["z"] = self._moments.z_score(self._smoothed(scan, mapped.source, subject))
        self._evaluation.add(maps, truth, subject.foreground.numpy())
        common = overlap(inside, mask.affine, mapped.labels, mapped.source.affine, mapped.found)
        self._evaluation.add_subject(score, common)

    def _smoothed(self, scan: Scan, source: Volume, subject: Subject) -> NDArray[np.float32]:
        voxels = scored_voxels(self._by, scan, source)
        return smoothed(self._by, voxels, torch.from_numpy(source.affine), subject)

    def report(self) -> Report | None:
        """Return the figures; None when no scan was compared."""
        return self._evaluation.report()


def on_canonical(
    inside: NDArray[np.bool_], mask: Volume, subject: Subject, method: MethodSpec
) -> NDArray[np.bool_]:
    """(depth, height, width) marked voxels of a mask -> those of the canonical grid."""
    to_mask = resample.index_map(subject.affine, torch.from_numpy(mask.affine))
    marked = torch.from_numpy(inside).float()
    return np.asarray((resample.sample(marked, to_mask, method.grid.shape, 0.0) >= 0.5).numpy())


def smoothed(by: Recipe, voxels: Tensor, affine: Tensor, subject: Subject) -> NDArray[np.float32]:
    """(depth, height, width) voxels of a kept subject -> its canonical volume, for the z-score.

    Normalised as for tokens, and smoothed. Made again each time rather than kept in memory, which a
    batch of them would not fit into.
    """
    placed = canonical_again(subject, voxels, affine, by.method)
    sigma = _Z_SIGMA_MM / by.method.grid.spacing_mm
    made = anomaly_map.smooth(placed.voxels, placed.foreground, sigma)
    return np.asarray(made.numpy(), dtype=np.float32)
