"""The built-in cohort as NIfTI files with masks: something to try batch mode on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dicom_node import durable
from dicom_node.demo import subject_files
from dicom_node.demo.cohort import RADIUS_MM, Head, Template, make_cohort


def write_cohort(
    template: Template,
    folder: Path,
    n_normal: int,
    n_lesioned: int,
    seed: int,
    radius_mm: tuple[float, float] = RADIUS_MM,
    *,
    shared: bool = False,
) -> Iterator[Head]:
    """Write each head as ``NAME_t1.nii.gz`` beside ``NAME_label.nii.gz``, and yield it.

    The label of a healthy head is zero everywhere: that it has no lesion is known too.
    """
    durable.make_folder(folder)
    for head in make_cohort(template, n_normal, n_lesioned, seed, radius_mm, shared=shared):
        voxels = head.voxels.astype(np.int16)  # 0..4095
        image = folder / f"{head.name}_t1.nii.gz"
        subject_files.save(image, voxels, _label(head), head.affine, "made head")
        yield head


def _label(head: Head) -> NDArray[np.uint8]:
    """(depth, height, width) 1 inside any lesion, 0 elsewhere."""
    label = np.zeros(head.voxels.shape, dtype=np.uint8)
    for lesion in head.lesions:
        label[lesion.mask] = 1
    return label
