"""Several volumes in one series: what differs between slices at one place, and copies.

Scanners put echoes, b-values, time points and components into one series. Which slices belong
together is said by attributes, the vendors' own among them; nothing is decided by the order in
which slices came, or by their number.

References
----------
PS3.3 C.7.6.1 (General Image), C.8.3.1 (MR Image), C.8.13.5.9 (MR Diffusion), C.7.6.16.2.2 (Frame
Content). Private b-values: as dcm2niix reads them (github.com/rordenlab/dcm2niix).
"""

from __future__ import annotations

import struct
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar

import numpy as np
from pydicom.dataset import Dataset

from dicom_node import header, slice_planes
from dicom_node.slice_planes import Plane

T = TypeVar("T")

#: name of what differs -> value as text
Traits = Mapping[str, str]

#: attributes that tell the volumes of a series apart, the most telling first; of several keywords
#: the first that is there
TOLD_BY = {
    "ImageType": ("ImageType", "FrameType"),
    "EchoTime": ("EchoTime", "EffectiveEchoTime"),
    "EchoNumbers": ("EchoNumbers",),
    "InversionTime": ("InversionTime", "InversionTimes"),
    "DiffusionBValue": ("DiffusionBValue",),
    "DiffusionGradientOrientation": ("DiffusionGradientOrientation",),
    "TemporalPosition": ("TemporalPositionIdentifier", "TemporalPositionIndex"),
    "AcquisitionNumber": ("AcquisitionNumber",),
    "RepetitionTime": ("RepetitionTime",),
    "FlipAngle": ("FlipAngle",),
    "ContrastBolusAgent": ("ContrastBolusAgent",),
    "ConvolutionKernel": ("ConvolutionKernel",),
    "KVP": ("KVP",),
}
#: they differ from slice to slice too: the first, second, ... at each place make a volume
TIMES = {
    "TriggerTime": ("TriggerTime", "NominalCardiacTriggerDelayTime"),
    "AcquisitionTime": ("AcquisitionDateTime", "FrameAcquisitionDateTime", "AcquisitionTime"),
}
#: the b-value before it was standard: creator, group, element, format of the bytes where the
#: representation is unknown (implicit VR)
_PRIVATE_B_VALUES = (
    ("SIEMENS MR HEADER", 0x0019, 0x0C, ""),
    ("GEMS_PARM_01", 0x0043, 0x39, ""),
    ("Philips Imaging DD 001", 0x2001, 0x03, "<f"),
)
#: what stands in Manufacturer
_VENDORS = {
    "SIEMENS MR HEADER": "SIEMENS",
    "GEMS_PARM_01": "GE",
    "Philips Imaging DD 001": "PHILIPS",
}
#: GE adds it to say that there are several directions
_GE_OFFSET = 1_000_000_000
#: values and attributes that a message names
_NAMED_VALUES = 6
_NAMED_TRAITS = 3


# --- what differs -------------------------------------------------------------------------------


def traits_of(ds: Dataset) -> dict[str, str]:
    """Return what may tell an image from another at its place, as text; without what is missing."""
    found = {name: _text(ds, keywords) for name, keywords in TIMES.items()}
    for name, keywords in TOLD_BY.items():
        found[name] = "\\".join(_plain(word) for word in header.codes(ds, *keywords))
    found["DiffusionBValue"] = found["DiffusionBValue"] or _private_b_value(ds)
    return {name: text for name, text in found.items() if text}


def trait_number(ds: Dataset, name: str) -> float | None:
    """Return one of `traits_of` as a number, 0 too; None where it is none."""
    try:
        found = float(traits_of(ds).get(name, ""))
    except ValueError:
        return None
    return found if np.isfinite(found) else None


def traits_of_frame(ds: Dataset, frame: Dataset) -> dict[str, str]:
    """Return the same of one frame of an enhanced image."""
    view = Dataset()
    view.SharedFunctionalGroupsSequence = ds.get("SharedFunctionalGroupsSequence") or []
    view.PerFrameFunctionalGroupsSequence = [frame]
    return traits_of(view)


def _text(ds: Dataset, keywords: tuple[str, ...]) -> str:
    return "\\".join(header.codes(ds, *keywords))


def _plain(word: str) -> str:
    """Return a number as it is written without needless zeros, and any other word as it is."""
    try:
        return f"{float(word):.12g}"
    except ValueError:
        return word


def _private_b_value(ds: Dataset) -> str:
    """Return the b-value of a vendor's own element; empty without."""
    for creator, group, element, layout in _PRIVATE_B_VALUES:
        try:
            found = _private(ds, creator, group, element)
            return f"{_number(found, layout) % _GE_OFFSET:g}"
        except (*header.DAMAGED, struct.error):
            continue
    return ""


def _private(ds: Dataset, creator: str, group: int, element: int) -> object:
    """Return a private value; where a sender took the creators out, by the usual tag.

    Raises KeyError without it.
    """
    tag = (group, 0x1000 + element)
    if (
        (group, 0x0010) not in ds
        and tag in ds
        and _VENDORS[creator] in _text(ds, ("Manufacturer",))
    ):
        return ds[tag].value
    return ds.private_block(group, creator)[element].value


def _number(found: object, layout: str) -> float:
    """Return the first number of a private element, whatever form it came in."""
    if isinstance(found, bytes):
        if layout:
            return float(struct.unpack_from(layout, found)[0])
        found = found.decode("ascii", "replace").strip("\0 ").split("\\")
    first = found if isinstance(found, int | float | str) else next(iter(_several(found)))
    return float(str(first))


def _several(found: object) -> Iterable[object]:
    return found if isinstance(found, Iterable) else ()


def at_one_place(planes: Sequence[Plane], traits: Sequence[Traits]) -> list[list[Traits]]:
    """Return the traits of parallel slices that lie at the place of another, place by place."""
    at = by_place(traits, slice_planes.places(planes))
    return [members for members in at if len(members) > 1]


def difference(alike: Sequence[Sequence[Traits]]) -> str:
    """Say in words what differs between images that lie at one place, for several places.

    Times are named only where nothing else differs: they do between any two acquisitions.
    """
    for names in (TOLD_BY, TIMES):
        words = [
            f"{name} ({_listed(one.get(name, 'missing') for members in alike for one in members)})"
            for name in names
            if any(len({one.get(name) for one in members}) > 1 for members in alike)
        ]
        if words:
            return f"{', '.join(words[:_NAMED_TRAITS])} differs between them"
    return "no attribute says what differs between them"


def _listed(values: Iterable[str]) -> str:
    """Return different values, in order of size, the first few."""
    different = sorted(set(values), key=by_size)
    more = len(different) - _NAMED_VALUES
    return ", ".join(different[:_NAMED_VALUES]) + (f" and {more} more" if more > 0 else "")


def by_size(text: str) -> tuple[bool, float, str]:
    """Sort numbers as such, before words."""
    try:
        return False, float(text), ""
    except ValueError:
        return True, 0.0, text


def by_place(members: Iterable[T], places: Iterable[int]) -> list[list[T]]:
    """Put what lies at one place together."""
    found: dict[int, list[T]] = defaultdict(list)
    for member, place in zip(members, places, strict=True):
        found[place].append(member)
    return list(found.values())


# --- copies -------------------------------------------------------------------------------------


def copies(datasets: Sequence[Dataset], planes: Sequence[Plane]) -> list[int]:
    """Return which of parallel slices are copies of another: they add nothing.

    A copy has the place, the acquisition (`traits_of`, times included), the rescale and the decoded
    pixels of another and a SOP Instance UID of its own. Of each set the lowest UID stays.
    """
    found: list[int] = []
    for members in by_place(range(len(planes)), slice_planes.places(planes)):
        kept: list[int] = []
        # by UID and not as they came: the same stays whatever the order
        for index in sorted(members, key=lambda index: str(datasets[index].get("SOPInstanceUID"))):
            alike = (_is_copy(datasets, planes, index, other) for other in kept)
            (found if any(alike) else kept).append(index)
    return sorted(found)


def _is_copy(datasets: Sequence[Dataset], planes: Sequence[Plane], one: int, other: int) -> bool:
    first, second = datasets[one], datasets[other]
    if not np.allclose(planes[one].position, planes[other].position, rtol=0, atol=1e-3):
        return False
    rescales = [
        _text(ds, ("RescaleSlope",)) + "|" + _text(ds, ("RescaleIntercept",))
        for ds in (first, second)
    ]
    if rescales[0] != rescales[1] or traits_of(first) != traits_of(second):
        return False
    # the bytes first: decoding costs, and a copy seldom comes in another encoding
    return first.PixelData == second.PixelData or np.array_equal(
        first.pixel_array, second.pixel_array
    )
