"""A small made chest: a body with two lungs, vessels in them, and a heart; or as a CT series."""

from pathlib import Path

import numpy as np

from dicom_node.demo.chest_template import GRID_MM, Chest
from tests.make.instances import Geometry, make_series, write

#: (depth, height, width) of a series: half of the slices of the template's grid, and its rows
SERIES = Geometry(90, 130, 56, (2.0, 2.0), 4.0)
#: what a CT stores instead of HU, here
_INTERCEPT = -1024


def chest_hu(shape, spacing):
    """(depth, height, width) HU: body, lungs, vessels along depth, heart; no noise."""
    z, y, x = (
        (axis - (n - 1) / 2) * mm
        for axis, n, mm in zip(np.ogrid[tuple(map(slice, shape))], shape, spacing, strict=True)
    )
    voxels = np.full(shape, -1000.0, dtype=np.float32)
    voxels[np.broadcast_to((x / 115) ** 2 + (y / 75) ** 2 < 1, shape)] = 40
    for side in (-1, 1):
        lung = ((x - side * 52) / 42) ** 2 + (y / 58) ** 2 + (z / 95) ** 2 < 1
        voxels[lung] = -860
        # one wide vessel, and some that are thinner
        for at, radius in ((30, 5), (50, 2), (62, 2), (72, 2)):
            voxels[lung & ((x - side * at) ** 2 + (y - 0.1 * z) ** 2 < radius**2)] = 40
    return voxels


def small_chest() -> Chest:
    """A chest as the template is, on its grid."""
    shape = (110, 110, 165)
    voxels = chest_hu(shape, GRID_MM)
    lungs = chest_hu(shape, GRID_MM) < -500
    body = np.zeros(shape, dtype=bool)
    body[:, 12:-12, 22:-22] = True
    inside = lungs & body & _near_middle(shape)
    affine = np.array([[0, 0, 1.5, -120], [0, 1.5, 0, -80], [2, 0, 0, 50], [0, 0, 0, 1]])
    return Chest(voxels, inside, inside, affine)


def _near_middle(shape):
    """Inside the ellipse of the body: the air around it is no lung."""
    _, y, x = (
        (axis - (n - 1) / 2) * mm
        for axis, n, mm in zip(np.ogrid[tuple(map(slice, shape))], shape, GRID_MM, strict=True)
    )
    return (x / 112) ** 2 + (y / 72) ** 2 < 1


def write_chest(folder: Path, hu=None, **attributes) -> list:
    """One CT series of a made chest, from the feet up; returns its instances."""
    shape = (SERIES.n_slices, SERIES.rows, SERIES.columns)
    hu = chest_hu(shape, (4.0, 2.0, 2.0)) if hu is None else hu
    noisy = hu + np.random.default_rng(0).normal(0, 10, hu.shape)
    stored = np.rint(np.maximum(noisy, _INTERCEPT) - _INTERCEPT)
    datasets = make_series("CT", SERIES, stored, **attributes)
    for number, ds in enumerate(datasets):
        write(ds, folder / f"{number:03d}.dcm")
    return datasets
