"""Is a volume fit to be a reference? Measures of it, compared with those of the batch's members.

A study that was cut, blurred or badly reconstructed is scored like any other, but it must not say
what is usual. Each measure is one number, cheap beside the encoding, and is judged by the members'
own numbers alone: what a protocol's pictures are like, the protocol's pictures say. Nothing here
reads a file or a ledger.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

import torch
import torch.nn.functional as nnf
from torch import Tensor

from dicom_node.anomaly.calibration import MAD_TO_SIGMA
from dicom_node.anomaly.foreground import otsu_threshold

#: name of a measure -> its value; what could not be measured is not there
Measures = Mapping[str, float]

#: with fewer members nothing is judged: their spread is not known
LEAST_MEMBERS = 8

#: slices that noise and sharpness are measured in, and in-plane pixels along a side for the rest
_PLANES, _SIDE = 32, 256
#: taps of the box filter of the blur measure
_TAPS = 9


@dataclass(frozen=True, slots=True)
class _Check:
    """How one measure is judged."""

    name: str
    #: what the value is of, as a clause
    said: str
    #: 1: too high is a fault; -1: too low is
    sign: int
    #: least spread, in units of the scale below: members that all but agree would refuse anything
    least_spread: float
    #: compared by ratio, not by difference
    by_ratio: bool = False

    @property
    def scale(self) -> Callable[[float], float]:
        """Value -> where it is compared."""
        return (lambda value: math.log(max(value, 1e-9))) if self.by_ratio else float

    @property
    def value(self) -> Callable[[float], float]:
        """The inverse of `scale`."""
        return math.exp if self.by_ratio else float


_CHECKS = (
    _Check("tokens", "tokens in the foreground", -1, 0.06, by_ratio=True),
    _Check("cut_sides", "sides of the volume that cut the body", 1, 0.15),
    _Check("noise", "noise, as a share of the intensity range", 1, 0.1, by_ratio=True),
    _Check("sharpness", "sharpness", -1, 0.06, by_ratio=True),
    _Check("clipped", "share of the foreground at the highest value", 1, 0.002),
    _Check(
        "jumps", "change to the next slice over change to the one after", 1, 0.05, by_ratio=True
    ),
)


# --- to judge -----------------------------------------------------------------------------------


def faults(own: Measures, members: Sequence[Measures], limit: float) -> list[str]:
    """Return why a study is not fit to be a reference, each with value and limit; empty: it is.

    Parameters
    ----------
    own
        Of the study; empty where it was tokenized by an older version, and then it is not judged.
    members
        Of the subjects of its batch; of fewer than `LEAST_MEMBERS` that have it a measure is not
        judged.
    limit
        Robust standard deviations (MAD) from the members' median; 0 judges nothing.
    """
    if limit <= 0:
        return []
    found = (_fault(check, own, members, limit) for check in _CHECKS if check.name in own)
    return [fault for fault in found if fault]


def _fault(check: _Check, own: Measures, members: Sequence[Measures], limit: float) -> str:
    """Return what is wrong with one measure; empty: nothing, or it cannot be known."""
    known = [check.scale(one[check.name]) for one in members if check.name in one]
    if len(known) < LEAST_MEMBERS:
        return ""
    middle = median(known)
    mad = MAD_TO_SIGMA * median(abs(value - middle) for value in known)
    edge = middle + check.sign * limit * max(mad, check.least_spread)
    if check.sign * (check.scale(own[check.name]) - edge) <= 0:
        return ""
    side = "above" if check.sign > 0 else "below"
    return (
        f"{check.said}: {own[check.name]:.3g}, {side} the limit {check.value(edge):.3g} "
        f"(median of {len(known)} members: {check.value(middle):.3g})"
    )


def as_text(measured: Measures) -> str:
    """Return measures as JSON, the same for the same measures."""
    return json.dumps(dict(measured), sort_keys=True)


def from_text(text: str) -> dict[str, float]:
    """Read what `as_text` wrote; of anything else nothing is known, and nothing returned."""
    try:
        found = {str(name): float(value) for name, value in json.loads(text).items()}
    except (ValueError, TypeError, AttributeError):
        return {}
    return {name: value for name, value in found.items() if math.isfinite(value)}


# --- to measure ---------------------------------------------------------------------------------


def measures(voxels: Tensor, n_tokens: int) -> dict[str, float]:
    """(depth, height, width) voxels as they were stacked, slices first -> the measures of `faults`.

    Parameters
    ----------
    voxels
        Finite, of the source grid: an interpolation would hide noise and what differs per slice.
    n_tokens
        Finest tokens that the volume gave.

    Raises ValueError for a volume of one value.
    """
    step = -(-max(voxels.shape[1:]) // _SIDE)
    thin = voxels[:, ::step, ::step].float()
    low = float(thin.min())
    # half of Otsu's threshold, as for the body: dark tissue is foreground too
    threshold = low + 0.5 * (otsu_threshold(thin) - low)
    planes = _planes(voxels).float()
    found = {
        "tokens": float(n_tokens),
        "cut_sides": cut_sides(thin > threshold),
        "noise": noise(planes, threshold),
        "sharpness": sharpness(planes, planes > threshold),
        "clipped": clipped(planes, threshold, float(voxels.max())),
        "jumps": jumps(thin, thin > threshold),
    }
    return {name: value for name, value in found.items() if math.isfinite(value)}


def _planes(voxels: Tensor) -> Tensor:
    """(depth, height, width) -> the same with `_PLANES` slices at most, evenly spread."""
    depth = voxels.shape[0]
    return voxels[torch.linspace(0, depth - 1, min(depth, _PLANES)).round().long()]


def cut_sides(mask: Tensor) -> float:
    """(depth, height, width) body -> how many of the six sides of the volume cut it, 0..6.

    Each counts by the body's area there over its largest area along that axis.
    """
    total = 0.0
    for axis in range(3):
        others = [other for other in range(3) if other != axis]
        area = mask.sum(others).double()
        total += float((area[0] + area[-1]) / area.max()) if bool(area.any()) else 0.0
    return total


def noise(planes: Tensor, threshold: float) -> float:
    """(n, height, width) -> sigma of the noise over the range of the foreground; NaN: not known.

    From the finest diagonal wavelet coefficients, in which there is little anatomy (Donoho and
    Johnstone, Biometrika 81:425, 1994); the range is that of the middle 96 %.
    """
    height, width = (side // 2 * 2 for side in planes.shape[1:])
    blocks = planes[:, :height, :width].unflatten(1, (-1, 2)).unflatten(3, (-1, 2))  # n h 2 w 2
    inside = (blocks > threshold).all(4).all(2)
    signs = torch.tensor([[1.0, -1.0], [-1.0, 1.0]])
    diagonal = (blocks * signs[:, None]).sum((2, 4))[inside] / 2
    values = planes[planes > threshold][::4].sort().values  # enough for two quantiles
    if not diagonal.numel():
        return math.nan
    low, high = (float(values[round(q * (values.numel() - 1))]) for q in (0.02, 0.98))
    return float(diagonal.abs().median()) / 0.6745 / (high - low) if high > low else math.nan


def sharpness(planes: Tensor, mask: Tensor) -> float:
    """(n, height, width) -> 0..1, what of the change between neighbours a blur takes; NaN: none.

    Of the two in-plane axes the blurrier one: a patient's motion blurs along one. It is one less
    the blur measure of Crete et al., Proc SPIE 6492 (2007).
    """
    found = []
    for axis in (1, 2):
        lines, inside = planes.transpose(axis, 2), mask.transpose(axis, 2)
        blurred = nnf.avg_pool1d(lines, _TAPS, 1, _TAPS // 2, count_include_pad=False)
        pairs = inside[..., 1:] & inside[..., :-1]
        change = lines.diff(dim=2).abs()[pairs]
        left = blurred.diff(dim=2).abs()[pairs]
        total = float(change.sum())
        found.append(float((change - left).clamp(min=0).sum()) / total if total else math.nan)
    return min(found)


def clipped(planes: Tensor, threshold: float, highest: float) -> float:
    """(n, height, width) -> the share of the foreground at the volume's highest value."""
    inside = planes[planes > threshold]
    return float((inside >= highest).double().mean())  # of nothing it is NaN


def jumps(voxels: Tensor, mask: Tensor) -> float:
    """(depth, height, width) -> change to the next slice over change to the one after; NaN: none.

    Anatomy changes less over one slice than over two. Above 1, slices that were scanned one after
    the other (odd, then even) differ: the patient moved between them, or they are brighter.
    """
    one, two, three = voxels[:-2], voxels[1:-1], voxels[2:]
    inside = mask[:-2] & mask[1:-1] & mask[2:]
    near = (((two - one).abs() + (three - two).abs()) / 2 * inside).sum((1, 2))
    far = ((three - one).abs() * inside).sum((1, 2))
    n_inside = inside.sum((1, 2))
    # the ends of a body are small, and anything there
    usable = (far > 0) & (n_inside > 0.1 * n_inside.amax()) if n_inside.numel() else far > 0
    return float((near[usable] / far[usable]).median()) if bool(usable.any()) else math.nan
