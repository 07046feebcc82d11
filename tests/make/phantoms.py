"""A chest of simple bodies, of a child's size so that its masks are quickly made."""

from dataclasses import dataclass

import numpy as np

#: mm from slice to slice, between rows, between columns
SPACING = (3.0, 2.5, 2.5)
SHAPE = (68, 84, 104)
SOFT, LUNG, AIR, BONE, LIVER = 40.0, -850.0, -1000.0, 500.0, 60.0


@dataclass(frozen=True)
class Chest:
    """Voxels in HU, and where the parts are; arrays are (depth, height, width)."""

    voxels: np.ndarray
    #: index -> LPS mm; depth runs to the feet
    affine: np.ndarray
    #: (x, y, z) LPS mm of every voxel
    points: tuple[np.ndarray, np.ndarray, np.ndarray]
    #: of the patient's right and left, without the vessels and lesions in them counted out
    right: np.ndarray
    left: np.ndarray
    heart: np.ndarray
    trachea: np.ndarray
    gas: np.ndarray
    below: np.ndarray

    def ball(self, centre, radius):
        """Voxels within `radius` mm of `centre`, LPS mm."""
        squares = [(p - c) ** 2 for p, c in zip(self.points, centre, strict=True)]
        return sum(squares) <= radius**2

    def filled(self, where, hu=SOFT):
        """The voxels with `hu` where the mask says so."""
        voxels = self.voxels.copy()
        voxels[where] = hu
        return voxels


def make_chest(seed=0):
    """Body, two lungs over a diaphragm, heart, spine, ribs, trachea, gas in the stomach, table."""
    affine = np.zeros((4, 4))
    affine[2, 0], affine[1, 1], affine[0, 2] = -SPACING[0], SPACING[1], SPACING[2]
    affine[:, 3] = -129.0, -104.0, 201.0, 1.0
    index = np.indices(SHAPE).reshape(3, -1)
    x, y, z = (affine[:3, :3] @ index + affine[:3, 3:]).reshape(3, *SHAPE)

    def ellipsoid(centre, radii):
        return sum(((p - c) / r) ** 2 for p, c, r in zip((x, y, z), centre, radii, strict=True))

    heart = ellipsoid((20, -22, 85), (38, 32, 42)) <= 1
    lungs = []
    shells = np.zeros(SHAPE, bool)
    for side in (-58, 58):
        dome = ellipsoid((side, 0, 10), (44, 66, 55)) <= 1
        around = ellipsoid((side, 0, 100), (42, 60, 85))
        lungs.append((around <= 1) & ~dome & ~heart & (z > 25))
        shells |= (around > 1.15) & (around < 1.4) & (np.abs(x) > 40) & (z % 20 < 8)
    body = (x / 122) ** 2 + (y / 84) ** 2 <= 1
    spine = x**2 + (y - 58) ** 2 <= 14**2
    trachea = (x**2 + (y - 5) ** 2 <= 7**2) & (z > 120)
    gas = ellipsoid((45, -25, 12), (24, 24, 24)) <= 1
    voxels = np.full(SHAPE, AIR)
    voxels[body] = SOFT
    voxels[body & (shells | spine) & ~heart] = BONE
    for lung in lungs:
        voxels[lung] = LUNG
    voxels[trachea | (gas & body)] = AIR
    voxels[(y > 92) & (y < 98)] = 100.0  # the table, clear of the back
    noise = np.random.default_rng(seed).normal(0, 25, SHAPE)
    below = body & (z < 60) & ~lungs[0] & ~lungs[1] & (np.abs(x) < 90) & (np.abs(y) < 40)
    return Chest(
        (voxels + noise).astype(np.float32),
        affine,
        (x, y, z),
        *lungs,
        heart,
        trachea,
        gas,
        below & ~gas,
    )
