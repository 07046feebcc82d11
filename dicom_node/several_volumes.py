"""Several volumes in one series: what differs between slices at one place, copies, and the parts.

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
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import pydicom
from pydicom.dataset import Dataset

from dicom_node import header, slice_planes
from dicom_node.slice_planes import Plane

T = TypeVar("T")

#: name of what differs -> value as text
Traits = Mapping[str, str]

#: attributes that tell the volumes of a series apart, the most telling first; of several keywords
#: the first that is there
_TOLD_BY = {
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
_TIMES = {
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


@dataclass(frozen=True, slots=True)
class SingleVolume:
    """The files of one volume of a series."""

    #: what tells it from the other volumes of the series; empty where there is no other
    traits: Traits
    files: tuple[Path, ...]


@dataclass(frozen=True, slots=True)
class _Member:
    """One slice of a series."""

    path: Path
    plane: Plane
    traits: Traits


# --- what differs -------------------------------------------------------------------------------


def traits_of(ds: Dataset) -> dict[str, str]:
    """Return what may tell an image from another at its place, as text; without what is missing."""
    found = {name: _text(ds, keywords) for name, keywords in _TIMES.items()}
    for name, keywords in _TOLD_BY.items():
        found[name] = "\\".join(_plain(word) for word in header.codes(ds, *keywords))
    found["DiffusionBValue"] = found["DiffusionBValue"] or _private_b_value(ds)
    return {name: text for name, text in found.items() if text}


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
    at = _by_place(traits, slice_planes.places(planes))
    return [members for members in at if len(members) > 1]


def difference(alike: Sequence[Sequence[Traits]]) -> str:
    """Say in words what differs between images that lie at one place, for several places.

    Times are named only where nothing else differs: they do between any two acquisitions.
    """
    for names in (_TOLD_BY, _TIMES):
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
    different = sorted(set(values), key=_by_size)
    more = len(different) - _NAMED_VALUES
    return ", ".join(different[:_NAMED_VALUES]) + (f" and {more} more" if more > 0 else "")


def _by_size(text: str) -> tuple[bool, float, str]:
    """Sort numbers as such, before words."""
    try:
        return False, float(text), ""
    except ValueError:
        return True, 0.0, text


def _by_place(members: Iterable[T], places: Iterable[int]) -> list[list[T]]:
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
    for members in _by_place(range(len(planes)), slice_planes.places(planes)):
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


# --- the parts ----------------------------------------------------------------------------------


def split(files: Sequence[Path]) -> tuple[SingleVolume, ...]:
    """Part the files of a series into single volumes by the attributes that differ.

    Parameters
    ----------
    files
        All instances of one series, in any order; headers alone are read.

    Returns
    -------
    At least one group, ordered by its traits, each file in exactly one. What no attribute tells
    apart stays together: `volume.build` then refuses the group by name, as it does what is no
    volume for another reason. Each multi-frame image is a group of its own and is not looked into.

    Raises
    ------
    IrregularGeometry
        A single-frame instance does not say where it lies.
    """
    headers = [(path, pydicom.dcmread(path, stop_before_pixels=True)) for path in files]
    singles = [(path, ds) for path, ds in headers if int(ds.get("NumberOfFrames") or 1) == 1]
    multi = [(path, ds) for path, ds in headers if int(ds.get("NumberOfFrames") or 1) > 1]
    members = [_Member(path, slice_planes.of_instance(ds), traits_of(ds)) for path, ds in singles]
    groups = [
        SingleVolume(traits, tuple(member.path for member in part))
        for parallel in _parallel(members)
        for traits, part in _parts(parallel, {})
    ]
    groups += [SingleVolume(_told(ds, [ds for _, ds in multi]), (path,)) for path, ds in multi]
    return tuple(sorted(groups, key=lambda group: [*map(_by_size, group.traits.values())]))


def _told(ds: Dataset, others: Sequence[Dataset]) -> Traits:
    """Return the traits of a multi-frame image that not all of the others have."""
    every = [traits_of(other) for other in others]
    own = traits_of(ds)
    return {name: text for name, text in own.items() if any(one.get(name) != text for one in every)}


def _parallel(members: Sequence[_Member]) -> Iterator[list[_Member]]:
    """Part slices by their plane: those that are not parallel are never one volume."""
    left = list(members)
    while left:
        axes = left[0].plane.axes
        near = [np.abs(member.plane.axes - axes).max() <= slice_planes.PARALLEL for member in left]
        yield [member for member, one in zip(left, near, strict=True) if one]
        left = [member for member, one in zip(left, near, strict=True) if not one]


def _parts(members: list[_Member], taken: Traits) -> Iterator[tuple[Traits, list[_Member]]]:
    """Part parallel slices until none lies at the place of another, or nothing tells them apart."""
    places = slice_planes.places([member.plane for member in members])
    at = _by_place(members, places)
    if len(at) == len(members):
        yield taken, members
        return
    for name, parts in _ways(members, at):
        if _are_volumes(list(parts.values()), len(at)):
            for value, part in parts.items():
                yield from _parts(part, {**taken, name: value})
            return
    yield taken, members


def _ways(
    members: list[_Member], at: list[list[_Member]]
) -> Iterator[tuple[str, dict[str, list[_Member]]]]:
    """Yield each attribute with the slices that share a value, then the times by their order."""
    for name in _TOLD_BY:
        yield name, _grouped((member.traits.get(name, "missing"), member) for member in members)
    for name in _TIMES:
        orders = [_order(place, name) for place in at]
        if all(orders):
            yield name, _grouped((str(rank), member) for order in orders for member, rank in order)


def _order(place: list[_Member], name: str) -> list[tuple[_Member, int]]:
    """Return the slices at one place with their rank in time; empty where a time is not its own."""
    times = sorted({member.traits.get(name, "") for member in place}, key=_by_size)
    if len(times) < len(place) or "" in times:
        return []
    return [(member, times.index(member.traits[name]) + 1) for member in place]


def _grouped(pairs: Iterable[tuple[str, _Member]]) -> dict[str, list[_Member]]:
    found: dict[str, list[_Member]] = defaultdict(list)
    for value, member in pairs:
        found[value].append(member)
    return found


def _are_volumes(parts: Sequence[Sequence[_Member]], n_places: int) -> bool:
    """Tell whether most parts reach over most places: else the attribute differs within volumes."""
    if len(parts) < 2:
        return False
    reach = [len(set(slice_planes.places([m.plane for m in part]))) for part in parts]
    return sum(2 * n >= n_places for n in reach) * 2 > len(parts)
