"""The slow twin of `objects.occupancy`: place by place, neighbour by neighbour."""

from itertools import product

import numpy as np


def keys(away):
    """The cubic kernel, a = -1/2."""
    away = abs(away)
    if away <= 1:
        return 1.5 * away**3 - 2.5 * away**2 + 1
    if away < 2:
        return -0.5 * away**3 + 2.5 * away**2 - 4 * away + 2
    return 0.0


def inside(values, index):
    """The value at an index; beyond the edges that of the edge."""
    return values[tuple(min(max(at, 0), n - 1) for at, n in zip(index, values.shape, strict=True))]


def interpolated(values, place):
    base = [int(np.floor(at)) for at in place]
    total = 0.0
    for offset in product((-1, 0, 1, 2), repeat=3):
        index = [at + by for at, by in zip(base, offset, strict=True)]
        weight = np.prod([keys(at - to) for at, to in zip(place, index, strict=True)])
        total += weight * float(inside(values, index))
    return total


def corners(place):
    """Indices of the voxel centres round a place: eight, or fewer where it lies between fewer."""
    along = [sorted({int(np.floor(at)), int(np.ceil(at))}) for at in place]
    return list(product(*along))


def share(scores, labels, rank, threshold, index):
    """Of 27 places in a voxel, how many lie above the threshold in a cell of the finding."""
    count = 0
    for step in product((-1, 0, 1), repeat=3):
        place = [at + by / 3 for at, by in zip(index, step, strict=True)]
        owned = any(inside(labels, corner) == rank for corner in corners(place))
        count += owned and interpolated(scores, place) >= threshold
    return count
