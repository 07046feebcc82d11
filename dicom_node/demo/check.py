"""What came back, held against what was planted: read from the SEG itself."""

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

    segmentation: Path | None
    secondary_captures: tuple[Path, ...]


def sort_returned(files: Sequence[Path]) -> Returned:
    """Pick the SEG and the SC instances among the objects of one study."""
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

    Each frame is put where its own Image Position (Patient) says.
    """
    ds = pydicom.dcmread(segmentation)
    frames = ds.pixel_array.reshape(-1, ds.Rows, ds.Columns).astype(bool)
    masks: dict[int, NDArray[np.bool_]] = {}
    inverse = np.linalg.inv(affine).astype(np.float64)
    shared = ds.SharedFunctionalGroupsSequence[0]
    for frame, groups in zip(frames, ds.PerFrameFunctionalGroupsSequence, strict=True):
        # with one segment only, its number stands among what all frames share
        named = groups if "SegmentIdentificationSequence" in groups else shared
        number = int(named.SegmentIdentificationSequence[0].ReferencedSegmentNumber)
        masks.setdefault(number, np.zeros(shape, dtype=bool))[_slice_index(groups, inverse)] = frame
    return masks


def _slice_index(groups: Dataset, inverse: NDArray[np.float64]) -> int:
    """Return the slice on which a frame lies; raises ValueError when it lies between slices."""
    position = [float(value) for value in groups.PlanePositionSequence[0].ImagePositionPatient]
    index = inverse @ np.array([*position, 1.0])
    if np.abs(index[:3] - [np.rint(index[0]), 0, 0]).max() > 0.01:
        raise ValueError(f"a SEG frame at {position} does not lie on a source slice")
    return int(np.rint(index[0]))


def rank_of(lesion: Lesion, masks: dict[int, NDArray[np.bool_]]) -> int | None:
    """Return the rank of the finding that covers at least half of the lesion, or None."""
    inside = {
        number: float((mask & lesion.mask).sum() / lesion.mask.sum())
        for number, mask in masks.items()
    }
    best = max(inside, key=lambda number: inside[number], default=None)
    return best if best is not None and inside[best] >= 0.5 else None


def lesion_ranks(head: Head, segmentation: Path | None) -> list[int | None]:
    """Return, for each planted lesion, the rank of the finding it lies in."""
    depth, height, width = head.voxels.shape
    masks = segment_masks(segmentation, (depth, height, width), head.affine) if segmentation else {}
    return [rank_of(lesion, masks) for lesion in head.lesions]
