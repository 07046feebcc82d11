"""What came back, held against what was planted: read from the SEG itself.

The masks are put together from the object as a viewer would, by the position of each frame, and not
from the node's own files: a SEG that lies in the wrong place must not pass (PS3.3 C.8.20).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.uid import SecondaryCaptureImageStorage, SegmentationStorage

from dicom_node.demo.cohort import Head, Lesion


@dataclass(frozen=True, slots=True)
class Returned:
    """The result objects of one study that the PACS holds."""

    #: None where there was no finding, or nothing came back
    segmentation: Path | None
    #: in the order of their names, the summary page first
    secondary_captures: tuple[Path, ...]


def sort_returned(files: Sequence[Path]) -> Returned:
    """Pick the SEG (of several the last) and the SC instances among the objects of one study."""
    segmentation, captures = None, []
    for path in files:
        sop_class = pydicom.dcmread(path, stop_before_pixels=True).SOPClassUID
        if sop_class == SegmentationStorage:
            segmentation = path
        elif sop_class == SecondaryCaptureImageStorage:
            captures.append(path)
    return Returned(segmentation, tuple(captures))


def segment_masks(
    segmentation: Path, shape: tuple[int, int, int], affine: NDArray[np.float64]
) -> dict[int, NDArray[np.bool_]]:
    """Read a BINARY SEG: segment number -> (depth, height, width) mask on the grid of `affine`.

    Parameters
    ----------
    segmentation
        Its frames are slices of the grid; each is put where its own Image Position (Patient) says.
    affine
        (4, 4), index (depth, height, width) to LPS mm.

    Raises
    ------
    ValueError
        A frame lies between two slices, beside the grid, or beyond its ends.
    """
    ds = pydicom.dcmread(segmentation)
    # one frame comes as (height, width), several as (frames, height, width)
    frames = ds.pixel_array.reshape(-1, ds.Rows, ds.Columns).astype(bool)
    masks: dict[int, NDArray[np.bool_]] = {}
    inverse = np.linalg.inv(affine).astype(np.float64)
    shared = ds.SharedFunctionalGroupsSequence[0]
    for frame, groups in zip(frames, ds.PerFrameFunctionalGroupsSequence, strict=True):
        # with one segment only, its number stands among what all frames share
        named = groups if "SegmentIdentificationSequence" in groups else shared
        number = int(named.SegmentIdentificationSequence[0].ReferencedSegmentNumber)
        place = _slice_index(groups, inverse, shape[0])
        masks.setdefault(number, np.zeros(shape, dtype=bool))[place] = frame
    return masks


def _slice_index(groups: Dataset, inverse: NDArray[np.float64], depth: int) -> int:
    """Return the slice on which a frame lies; raises ValueError when it lies on none.

    The corner of a frame must be the corner of a slice, to a hundredth of a voxel: positions are
    decimal strings of at most 16 characters (PS3.5 6.2).
    """
    position = [float(value) for value in groups.PlanePositionSequence[0].ImagePositionPatient]
    index = inverse @ np.array([*position, 1.0])
    nearest = int(np.rint(index[0]))
    deviation = np.abs(index[:3] - [nearest, 0, 0]).max()
    # a negative index would count from the other end, unnoticed
    if deviation > 0.01 or not 0 <= nearest < depth:
        raise ValueError(f"a SEG frame at {position} does not lie on a source slice")
    return nearest


def rank_of(lesion: Lesion, masks: dict[int, NDArray[np.bool_]]) -> int | None:
    """Return the rank of the finding that covers at least half of the lesion, or None.

    `masks` are by segment number, which is the rank of the finding, and on the lesion's grid.
    """
    inside = {
        number: float((mask & lesion.mask).sum() / lesion.mask.sum())
        for number, mask in masks.items()
    }
    best = max(inside, key=lambda number: inside[number], default=None)
    return best if best is not None and inside[best] >= 0.5 else None


def lesion_ranks(head: Head, segmentation: Path | None) -> list[int | None]:
    """Return, for each planted lesion, the rank of the finding it lies in, or None."""
    depth, height, width = head.voxels.shape
    masks = segment_masks(segmentation, (depth, height, width), head.affine) if segmentation else {}
    return [rank_of(lesion, masks) for lesion in head.lesions]
