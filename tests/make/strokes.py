"""Folders of made heads and lesion masks in an anchor's space, whose truth is known."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from dicom_node import nifti
from tests.make.bodies import AFFINE, SHAPE, body, pose_of

#: of the masks: 2 mm voxels, (depth, height, width) towards S, P, R
MASK_SHAPE = (80, 90, 75)
MASK_AFFINE = np.array([[0, 0, -2, 74], [0, 2, 0, -88], [2, 0, 0, -76], [0, 0, 0, 1]], dtype=float)
#: LPS mm of the anchor's space and radius: in the right and the left half of the brain
RIGHT, LEFT = ((-32.0, 8.0, 22.0), 9.0), ((30.0, 38.0, 20.0), 10.0)
SPECK = ((-30.0, 30.0, 20.0), 3.0)
#: half of it outside the brain
CORTICAL = ((-57.0, 2.0, 8.0), 12.0)
POSES = (
    pose_of((6, -8, 3), (6, 0, -10), (1.08, 0.97, 1.0)),
    pose_of((-5, 4, 10), (-8, 5, 6), (0.95, 1.04, 1.06)),
    pose_of((3, 6, -7), (4, -9, 2), (1.03, 1.03, 0.96)),
)


def points(shape, affine):
    """(n, 3) LPS mm of all voxels, in order."""
    index = np.indices(shape).reshape(3, -1).T
    return index @ affine[:3, :3].T + affine[:3, 3]


def brain_of(pose, shape=SHAPE, affine=AFFINE):
    """(depth, height, width) bool: the brain of `body`, with its cerebellum's part left off."""
    at_rest = np.linalg.inv(pose)
    places = points(shape, affine) @ at_rest[:3, :3].T + at_rest[:3, 3]
    return (np.linalg.norm((places - (0, 2, 6)) / (58, 76, 66), axis=1) < 1).reshape(shape)


@dataclass
class Sources:
    """Three folders on disk, and the brain masks that a network would find."""

    root: Path
    brains: dict[bytes, np.ndarray] = field(default_factory=dict)

    def __post_init__(self):
        self.heads, self.masks = self.root / "heads", self.root / "masks"
        self.mni = self.root / "anchor.nii.gz"
        self.heads.mkdir()
        self.masks.mkdir()
        brain = brain_of(np.eye(4))
        nifti.write(self.mni, np.where(brain, body(seed=99), 0), AFFINE, "anchor")

    def add_head(self, name, pose, seed=0):
        """Add a whole head; returns what the file holds."""
        voxels = np.rint(body(pose, seed=seed) / 3).astype(np.uint8)  # coarse, as public data is
        nifti.write(self.heads / f"{name}.nii.gz", voxels, AFFINE, "head")
        self.brains[voxels.astype(np.float32).tobytes()] = brain_of(pose)
        return voxels

    def add_mask(self, name, ball):
        """Add a ball as a lesion mask."""
        centre, radius = ball
        inside = np.linalg.norm(points(MASK_SHAPE, MASK_AFFINE) - centre, axis=1) < radius
        voxels = inside.reshape(MASK_SHAPE).astype(np.uint8)
        nifti.write(self.masks / f"{name}.nii.gz", voxels, MASK_AFFINE, "mask")

    def brain_mask(self, voxels, _affine, _cache):
        """Stand in for the network: the brain of a head that was added."""
        try:
            return self.brains[voxels.tobytes()]
        except KeyError:
            raise ValueError("no brain was found") from None
