"""Token scores of one scan -> maps on its own grid, findings, and the files of both."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from dicom_node import durable, findings, nifti, volume
from dicom_node.batch.inputs import Scan
from dicom_node.batch.recipe import Recipe
from dicom_node.batch.results import Scored
from dicom_node.findings import Finding, LabelMap
from dicom_node.objects.overlay import render_summary
from dicom_node.scoring import BatchScores
from dicom_node.subject import Subject, map_on_source
from dicom_node.threshold import Rule, batch_threshold
from dicom_node.volume import Volume

#: where a method does not calibrate: the share of the other subjects' own token scores below what
#: is called high
_HIGH_SHARE = 0.995
FOLDERS = ("maps", "raw", "pictures")


def is_ct(by: Recipe, scan: Scan) -> bool:
    """Return whether voxels are Hounsfield units; of a NIfTI file only the method can tell."""
    return scan.modality == "CT" or by.method.intensity.kind == "hounsfield"


def scored_voxels(by: Recipe, scan: Scan, source: Volume) -> Tensor:
    """(depth, height, width) voxels of the source, none of a CT below air."""
    voxels = volume.not_below_air(source.voxels) if is_ct(by, scan) else source.voxels
    return torch.from_numpy(voxels)


@dataclass(frozen=True, slots=True)
class Mapped:
    """The maps of one scan on its own grid, and what they are made of."""

    source: Volume
    subject: Subject
    scores: BatchScores
    #: (depth, height, width)
    calibrated: NDArray[np.float32]
    raw: NDArray[np.float32]
    threshold: float
    found: tuple[Finding, ...]
    labels: LabelMap


def map_scores(by: Recipe, source: Volume, subject: Subject, scores: BatchScores) -> Mapped:
    """Bring token scores back to the source's grid, and find what is high there."""
    depth, height, width = source.voxels.shape
    place = (depth, height, width), torch.from_numpy(source.affine)
    calibrated = map_on_source(scores.calibrated, subject, by.method, *place).numpy()
    raw = map_on_source(scores.raw, subject, by.method, *place).numpy()
    threshold = threshold_of(by, scores)
    found, labels = findings.locate(
        calibrated,
        source.affine,
        threshold=threshold,
        min_volume_ml=by.findings.min_volume_ml,
        max_findings=by.findings.max_findings,
    )
    return Mapped(source, subject, scores, calibrated, raw, threshold, found, labels)


def threshold_of(by: Recipe, scores: BatchScores) -> float:
    """Return from where on a map has findings, as the method and the other subjects say."""
    rule = by.findings
    if rule.threshold is None:
        return high(scores)
    found = Rule(rule.threshold, rule.min_volume_ml, rule.per_normal)
    return batch_threshold(scores.reference, found, by.method)


def high(scores: BatchScores) -> float:
    """Return what is high among the other subjects' own token scores."""
    known = torch.cat([grid[grid.isfinite()] for grid in scores.reference]).sort().values
    return float(known[round(_HIGH_SHARE * (known.numel() - 1))])


def write(folder: Path, by: Recipe, scan: Scan, mapped: Mapped, scored: Scored) -> None:
    """Write both maps and the picture under the scan's name into the `FOLDERS` of `folder`.

    Each file is whole or absent; one that was there is replaced.
    """
    file, affine = f"{scan.name}.nii.gz", mapped.source.affine
    nifti.write(folder / "maps" / file, mapped.calibrated, affine, "anomaly map")
    nifti.write(folder / "raw" / file, mapped.raw, affine, "raw distance")
    picture = render_summary(
        mapped.source.voxels,
        mapped.calibrated,
        mapped.labels,
        affine,
        mapped.found,
        scored.summary(by),
        modality="CT" if is_ct(by, scan) else "",
    )
    with durable.replacing(folder / "pictures" / f"{scan.name}.png") as partial:
        Image.fromarray(picture).save(partial, "PNG")
