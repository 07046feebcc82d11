"""A head-like body as a function of place: any grid, any pose, nothing interpolated."""

import numpy as np

#: index (depth, height, width) -> LPS mm; 4 mm voxels, the body's middle at the grid's
SHAPE = (60, 60, 50)
AFFINE = np.array([[0, 0, 4, -98], [0, 4, 0, -118], [4, 0, 0, -118], [0, 0, 0, 1]], dtype=float)

#: centre and half axes (mm), and what is added inside; later ones lie in earlier ones
_ELLIPSOIDS = (
    ((0, 0, 0), (72, 92, 84), 300.0),  # scalp
    ((0, 0, 2), (64, 84, 76), -220.0),  # skull
    ((0, 2, 6), (58, 76, 66), 420.0),  # brain
    ((-14, 0, 12), (7, 26, 9), -330.0),  # ventricles
    ((14, 0, 12), (7, 26, 9), -330.0),
    ((0, 52, -36), (36, 20, 18), 120.0),  # cerebellum
    ((0, -94, -34), (10, 14, 18), 260.0),  # nose
    ((0, 30, -100), (40, 42, 60), 280.0),  # neck
    ((36, -30, 10), (12, 16, 14), -200.0),  # what makes left and right differ
)


def intensity(points):
    """(n, 3) LPS mm of the body at rest -> (n,) values from 0 (air) to about 600."""
    values = np.zeros(len(points))
    for centre, axes, step in _ELLIPSOIDS:
        # an edge about 4 mm wide, as of a voxel that holds both tissues
        depth = (1 - np.linalg.norm((points - centre) / np.array(axes), axis=1)) * min(axes)
        values += step / (1 + np.exp(-np.clip(depth / 1.5, -50, 50)))
    folds = np.sin(points @ [0.21, 0.07, 0.03]) * np.sin(points @ [-0.05, 0.19, 0.11])
    return values + 60 * folds * (values > 250)


def body(pose=None, shape=SHAPE, affine=AFFINE, seed=0):
    """(depth, height, width) float32 of the body moved by `pose`, (4, 4) LPS mm, with noise."""
    index = np.indices(shape).reshape(3, -1).T
    to_rest = np.linalg.inv(np.eye(4) if pose is None else pose) @ affine
    values = intensity(index @ to_rest[:3, :3].T + to_rest[:3, 3])
    noise = np.random.default_rng(seed).normal(0, 8, len(values))
    return np.abs(values + noise).reshape(shape).astype(np.float32)


def pose_of(angles_deg=(0, 0, 0), shift_mm=(0, 0, 0), scale=(1, 1, 1)):
    """(4, 4): scaled, turned about x, then y, then z, and shifted, all about the origin."""
    turn = np.eye(3)
    for axis, angle in enumerate(np.radians(angles_deg)):
        one = np.eye(3)
        i, j = (k for k in range(3) if k != axis)
        one[i, i] = one[j, j] = np.cos(angle)
        one[i, j], one[j, i] = -np.sin(angle), np.sin(angle)
        turn = one @ turn
    pose = np.eye(4)
    pose[:3, :3], pose[:3, 3] = turn * np.array(scale), shift_mm
    return pose


def random_pose(rng, *, affine):
    """A displacement of at most 30 degrees about each axis, 40 mm and, if affine, 15 % of scale."""
    scale = rng.uniform(0.85, 1.15, 3) if affine else (1, 1, 1)
    shift = rng.normal(size=3)
    shift *= rng.uniform(0, 40) / np.linalg.norm(shift)
    return pose_of(rng.uniform(-30, 30, 3), shift, scale)


def error_mm(found, true, mask, affine):
    """(n,) distances of where two (4, 4) maps send a mask's voxels; every seventh is taken."""
    points = np.argwhere(mask)[::7] @ affine[:3, :3].T + affine[:3, 3]
    return np.linalg.norm(points @ (found - true)[:3, :3].T + (found - true)[:3, 3], axis=1)
