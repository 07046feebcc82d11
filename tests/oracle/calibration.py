"""What is usual at each place, in plain loops: the slow twin of anomaly/calibration.py.

Grids are dictionaries from (depth, height, width) to a score; a place without a token is absent.
"""

from itertools import product

MAD_TO_SIGMA = 1.4826
STEPS = list(product((-1, 0, 1), repeat=3))


def lower_median(values):
    """The middle value; of two middle ones the lower, as torch has it."""
    return sorted(values)[(len(values) - 1) // 2]


def centred(grid):
    """Every score less the median of its own grid."""
    median = lower_median(grid.values())
    return {place: value - median for place, value in grid.items()}


def smoothed(grid):
    """Mean of each place and its neighbours, over those that there are."""
    found = {}
    for place in product(*(range(-1, 1 + max(p[axis] for p in grid) + 1) for axis in range(3))):
        around = [tuple(p + s for p, s in zip(place, step, strict=True)) for step in STEPS]
        values = [grid[p] for p in around if p in grid]
        if values:
            found[place] = sum(values) / len(values)
    return found


def location_and_scale(grids, shape, spec):
    """Usual score and robust scale of every place of a grid of `shape`."""
    inside = set(product(*map(range, shape)))
    at = {place: [grid[place] for grid in grids if place in grid] for place in inside}
    covered = {place: v for place, v in at.items() if 2 * len(v) >= len(grids)}
    median = {place: lower_median(values) for place, values in covered.items()}
    spread = {
        place: MAD_TO_SIGMA * lower_median([abs(v - median[place]) for v in values])
        for place, values in covered.items()
    }
    location = {p: v for p, v in smoothed(median).items() if p in inside}
    scale = {p: v for p, v in smoothed(spread).items() if p in inside}
    usual = lower_median(location.values())
    typical = max(lower_median(scale.values()), 1e-6)
    n, prior = len(grids), spec.prior_subjects
    found = {p: (n * location.get(p, usual) + prior * usual) / (n + prior) for p in inside}
    wide = {p: (n * scale.get(p, typical) + prior * typical) / (n + prior) for p in inside}
    return found, {p: max(value, spec.scale_floor * typical) for p, value in wide.items()}


def calibrated(grid, location, scale):
    return {place: (value - location[place]) / scale[place] for place, value in grid.items()}
