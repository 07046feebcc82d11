"""The mean over layers of two scales, in plain loops: the slow twin of `anomaly_map.fuse`.

Grids are dictionaries from (depth, height, width) to a score; a place without a token is absent.
"""

import math
from itertools import product


def fused(scales, shapes):
    """Per scale, coarse to fine, a grid per layer -> the mean at each place of the finest grid."""
    finest = shapes[-1]
    n_layers = sum(len(layers) for layers in scales)
    found = {}
    for place in scales[-1][0]:
        total = 0.0
        for layers, shape in zip(scales, shapes, strict=True):
            ratio = finest[0] // shape[0]
            total += sum(interpolated(grid, shape, place, ratio) for grid in layers)
        found[place] = total / n_layers
    return found


def interpolated(grid, shape, place, ratio):
    """The value of a coarse grid at the centre of a fine place: linear between known centres."""
    total = weights = 0.0
    for corner in product((0, 1), repeat=3):
        at, weight = [], 1.0
        for p, upper, side in zip(place, corner, shape, strict=True):
            # beyond the outermost centre its value holds
            centre = max(0.0, (p + 0.5) / ratio - 0.5)
            below = math.floor(centre)
            at.append(min(below + upper, side - 1))
            weight *= centre - below if upper else 1 - (centre - below)
        if tuple(at) in grid:
            total += weight * grid[tuple(at)]
            weights += weight
    return total / weights if weights else 0.0
