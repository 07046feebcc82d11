"""What the cohorts share: who has lesions, what subjects are called, and the files they become."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dicom_node import nifti


def spread(n_normal: int, n_lesioned: int) -> list[bool]:
    """Return for each subject whether it has lesions; those that have are spread evenly."""
    total = n_normal + n_lesioned
    # as many as are due by now
    return [
        (number + 1) * n_lesioned // total > number * n_lesioned // total for number in range(total)
    ]


def name_of(which: object, *, lesioned: bool) -> str:
    """Return a subject's name, which says first whether it has lesions."""
    return f"{'LESION' if lesioned else 'NORMAL'}-{which}"


def save(
    image: Path,
    voxels: NDArray[np.generic],
    label: NDArray[np.uint8],
    affine: NDArray[np.float64],
    what: str,
) -> None:
    """Write ``NAME_KIND.nii.gz`` and, beside it, ``NAME_label.nii.gz``.

    Parameters
    ----------
    image
        The first of the two; no other underscore comes after the name.
    voxels, label
        (depth, height, width). The label of a healthy subject is zero everywhere: that it has no
        lesion is known too.
    affine
        (4, 4) index -> LPS mm.
    what
        Goes into the header, as of `nifti.write`.
    """
    name = image.name.rpartition("_")[0]
    nifti.write(image, voxels, affine, what)
    nifti.write(image.with_name(f"{name}_label.nii.gz"), label, affine, "its lesions")


def table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> bytes:
    """Return a list of lesions as a CSV file."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([columns, *rows])
    return text.getvalue().encode()


def millimetres(point: Sequence[float]) -> list[str]:
    """Return the (x, y, z) LPS of a list."""
    return [f"{value:.1f}" for value in point]
