"""Slices that have come -> whether any is still missing, by what they say of themselves.

Of the texts of a few attributes, without pixels and without a library: the receiver looks at each
instance once. What cannot be read says nothing, and then time alone decides.

References
----------
PS3.3 C.7.6.2.1.1 (Image Position and Orientation), C.7.6.16 and 10.3 (Images in Acquisition).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median

#: fewer slices are a localizer, or have just begun to come
_LEAST_SLICES = 4
#: a step so much longer than the usual one is a gap
GAP = 1.5
#: nearer ones lie at one position: echoes, time points
_SAME_MM = 1e-2
#: and those nearer than this share of the usual step
_SAME_SHARE = 0.1


@dataclass(frozen=True, slots=True)
class Slice:
    """Where a slice lies in its stack."""

    #: distance along its own normal, LPS mm
    along_mm: float
    #: of the plane, rounded: those of one stack have the same
    plane: str


def slice_of(position: str, orientation: str) -> Slice | None:
    """Read Image Position and Image Orientation (Patient), as sent; None where they say nothing."""
    at, axes = _numbers(position, 3), _numbers(orientation, 6)
    if at is None or axes is None:
        return None
    row, column = axes[:3], axes[3:]
    normal = tuple(row[i] * column[j] - row[j] * column[i] for i, j in ((1, 2), (2, 0), (0, 1)))
    length = math.hypot(*normal)
    if length < 0.5:  # no two directions
        return None
    along = sum(n * p for n, p in zip(normal, at, strict=True)) / length
    return Slice(along, "\\".join(f"{n / length + 0.0:.2f}" for n in normal))


def has_gap(slices: Sequence[Slice]) -> bool:
    """Return whether a slice is missing between others: at the ends nobody can know.

    Never of slices in several planes: they are no stack.
    """
    if len({one.plane for one in slices}) != 1:
        return False
    places = sorted(one.along_mm for one in slices)
    steps = [b - a for a, b in pairwise(places) if b - a > _SAME_MM]
    return len(steps) + 1 >= _LEAST_SLICES and max(steps) > GAP * median(steps)


def is_one_stack(slices: Sequence[Slice | None]) -> bool:
    """Return whether all say where they lie, in one plane, each at a place of its own."""
    known = [one for one in slices if one is not None]
    if len(known) < len(slices) or len({one.plane for one in known}) != 1:
        return False
    places = sorted(one.along_mm for one in known)
    steps = [b - a for a, b in pairwise(places)]
    return not steps or min(steps) > max(_SAME_MM, _SAME_SHARE * median(steps))


def _numbers(text: str, n: int) -> list[float] | None:
    """Return the finite numbers of a decimal string, None unless there are `n`."""
    try:
        values = [float(part) for part in text.split("\\")]
    except ValueError:
        return None
    return values if len(values) == n and all(map(math.isfinite, values)) else None
