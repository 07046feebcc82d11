"""NIfTI files <-> volumes, for whoever has research data instead of a PACS.

A file's own grid is kept: its axes are only read in reverse, so that the slices of an axial file
come first, as in a series. What the scores cannot rely on is refused by the reason; NIfTI has no
unit and no patient, so that no more than finite voxels and an invertible affine can be asked.

References
----------
nifti1.h (NIfTI-1 data format, 2003): the affine maps (i, j, k) to millimetres towards R, A, S.
"""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path

import nibabel
import numpy as np
from nibabel.filebasedimages import ImageFileError
from numpy.typing import NDArray

from dicom_node import durable
from dicom_node.errors import IrregularGeometry, UnsupportedPixels
from dicom_node.identity import MANUFACTURER, RESEARCH_ONLY
from dicom_node.volume import MIN_SLICES, Volume

SUFFIXES = (".nii", ".nii.gz")
#: x and y change sign; its own inverse
_RAS_TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
#: columns of the affine, for the axes of the array in reverse
_REVERSED = [2, 1, 0, 3]
#: what nibabel raises on files that are no image, or end too early
_UNREADABLE = (ImageFileError, OSError, EOFError, zlib.error, ValueError)


def is_nifti(path: Path) -> bool:
    """Return whether the name is that of a NIfTI file."""
    return path.name.lower().endswith(SUFFIXES)


def stem(path: Path) -> str:
    """Return the name without ``.nii`` or ``.nii.gz``."""
    name = path.name.removesuffix(".gz")
    return name[: -len(".nii")] if name.lower().endswith(".nii") else name


def read(path: Path) -> Volume:
    """Read one three-dimensional image.

    Returns
    -------
    Voxels with the file's scaling applied, (depth, height, width) for the file's (k, j, i), and the
    affine of that index to LPS mm; no headers. The axes of the affine may be sheared.

    Raises
    ------
    IrregularGeometry
        There are more than three axes (time, echoes, directions), too few voxels along one, or an
        affine that has no inverse.
    UnsupportedPixels
        The file cannot be read, or its voxels are colours, complex or not finite.
    """
    try:
        image = nibabel.load(path)
        shape, affine = _spatial(image.shape), image.affine
        _check_geometry(shape, affine)
        voxels = _voxels(image).reshape(shape).transpose(2, 1, 0)  # k j i
    except _UNREADABLE as error:
        raise UnsupportedPixels(f"the file cannot be read as NIfTI: {error}") from error
    bad = int(np.count_nonzero(~np.isfinite(voxels)))
    if bad:
        raise UnsupportedPixels(f"{bad} of {voxels.size} voxels are NaN or infinite")
    return Volume(np.ascontiguousarray(voxels), _RAS_TO_LPS @ affine[:, _REVERSED], ())


def _spatial(shape: tuple[int, ...]) -> tuple[int, int, int]:
    """Return the three spatial sides; trailing axes of one are left off, as many tools add them."""
    sides = [int(side) for side in shape]
    if len(sides) < 3 or any(side > 1 for side in sides[3:]):
        raise IrregularGeometry(
            f"the image has {len(sides)} axes ({' x '.join(map(str, sides))}), not 3: a series of "
            "volumes must be split first"
        )
    return sides[0], sides[1], sides[2]


def _check_geometry(shape: tuple[int, int, int], affine: NDArray[np.float64] | None) -> None:
    """Refuse what has no place in millimetres."""
    if min(shape) < MIN_SLICES:
        raise IrregularGeometry(
            f"the image has {' x '.join(map(str, shape))} voxels; a volume needs at least "
            f"{MIN_SLICES} along each axis"
        )
    if affine is None or not np.isfinite(affine).all() or not np.linalg.det(affine[:3, :3]):
        raise IrregularGeometry("the affine of the image has no inverse")


def _voxels(image: nibabel.Nifti1Image) -> NDArray[np.float32]:
    """Return the scaled voxels; refuses those that are no plain numbers."""
    if image.get_data_dtype().kind not in "iufb":
        raise UnsupportedPixels(f"the voxels are {image.get_data_dtype()}, not one number each")
    return np.asarray(image.dataobj, dtype=np.float32)


def write(path: Path, voxels: NDArray[np.generic], affine: NDArray[np.float64], what: str) -> None:
    """Write (depth, height, width) voxels, index -> LPS mm, as a compressed file, whole or absent.

    Parameters
    ----------
    path
        Ends in ``.nii.gz``; its folder exists.
    voxels
        Kept in their own type.
    affine
        As `read` gives it: a file that is read and written has its own affine again, to the bit.
    what
        Goes into the header beside the warning; 30 characters at most.

    Notes
    -----
    The same voxels make the same bytes: no time is in the file.
    """
    grid = (_RAS_TO_LPS @ affine)[:, _REVERSED]
    image = nibabel.Nifti1Image(np.ascontiguousarray(voxels.transpose(2, 1, 0)), grid)
    image.header.set_xyzt_units("mm")
    image.header["descrip"] = f"{MANUFACTURER} {what} {RESEARCH_ONLY}"[:79].encode()
    durable.write(path, gzip.compress(image.to_bytes(), compresslevel=4, mtime=0))
