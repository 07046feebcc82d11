"""A series of several volumes -> its parts, each the files or the frames of one volume.

Headers alone are read. The attributes of :mod:`dicom_node.several_volumes` part a series, one
after the other, until no slice lies at the place of another; what none of them tells apart stays
together, and is refused by name when it is stacked.

References
----------
PS3.3 C.7.6.16 (functional groups), C.7.6.16.2.2.4 (concatenations).
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pydicom
from pydicom.dataset import Dataset

from dicom_node import protocol, slice_planes, volume
from dicom_node.config import digest
from dicom_node.errors import IrregularGeometry, SeriesRejected
from dicom_node.series import Part
from dicom_node.several_volumes import (
    TIMES,
    TOLD_BY,
    Traits,
    by_place,
    by_size,
    traits_of,
    traits_of_frame,
)
from dicom_node.slice_planes import Plane

#: names that a sentence lists
_NAMED = 6


@dataclass(frozen=True, slots=True)
class SingleVolume:
    """What belongs to one volume of a series."""

    #: what tells it from the other volumes of the series; empty where there is no other
    traits: Traits
    files: tuple[Path, ...]
    #: their SOP Instance UIDs
    instances: tuple[str, ...] = ()
    #: slices or frames
    n_slices: int = 0
    #: numbers, from 1, of its frames in the one file; empty: all
    frames: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class _Member:
    """One slice of a series."""

    path: Path
    uid: str
    plane: Plane
    traits: Traits
    #: its number, from 1, in a multi-frame image; 0: it is an instance
    frame: int = 0


# --- the parts of a series ----------------------------------------------------------------------


def parts_of(files: Sequence[Path]) -> tuple[Part, ...]:
    """Return the volumes of a series that holds several, in the order of what tells them apart.

    Parameters
    ----------
    files
        All instances of the series, in any order.

    Returns
    -------
    Two or more, each slice or frame in exactly one; one at least has the slices of a volume.
    None where the series is one volume, and where it is none for a reason that is not this one:
    `volume.build` says it. So it is with a concatenation, one image in several instances.
    """
    found = volumes_of(files)
    if len(found) < 2 or max(one.n_slices for one in found) < volume.MIN_SLICES:
        return ()
    names = _names([one.traits for one in found])
    return tuple(
        Part(digest(sorted(one.traits.items())), number, name, one.instances, one.frames)
        for number, (one, name) in enumerate(zip(found, names, strict=True), 1)
    )


def files_of(part: Part, files: Sequence[Path]) -> tuple[Path, ...]:
    """Return which of the files of its series a part is of, in their order."""
    own = set(part.instances)
    tags = ["SOPInstanceUID"]
    read = (pydicom.dcmread(path, stop_before_pixels=True, specific_tags=tags) for path in files)
    return tuple(
        path for path, ds in zip(files, read, strict=True) if str(ds.SOPInstanceUID) in own
    )


def volumes_of(files: Sequence[Path]) -> tuple[SingleVolume, ...]:
    """Part a series as `split` does; none where its headers are not those of CT or MR volumes."""
    try:
        with volume.unvalidated():
            headers = _headers(files)
            volume.check_images([ds for _, ds in headers])
            return () if any(ds.get("ConcatenationUID") for _, ds in headers) else _split(headers)
    except (SeriesRejected, *volume.LIBRARY_ERRORS, OSError):
        return ()


def told_by(parts: Sequence[Part]) -> str:
    """Say by what so many volumes are told apart: "2 volumes: EchoTime 10; EchoTime 80"."""
    names = "; ".join(one.name for one in parts[:_NAMED])
    more = f"; and {len(parts) - _NAMED} more" if len(parts) > _NAMED else ""
    return f"{len(parts)} volumes: {names}{more}"


def _names(every: Sequence[Traits]) -> list[str]:
    """Return traits in words, without the values that all volumes share."""
    kinds = [one["ImageType"].split("\\") for one in every if "ImageType" in one]
    shared = {n for n, words in enumerate(zip(*kinds, strict=False)) if len(set(words)) == 1}
    # people write into it what they like: it is told by a number
    agents = sorted({one["ContrastBolusAgent"] for one in every if "ContrastBolusAgent" in one})
    said: dict[str, Callable[[str], str]] = {
        "ImageType": lambda text: _worded(text, shared),
        "ContrastBolusAgent": lambda text: str(agents.index(text) + 1),
    }
    return [
        ", ".join(f"{name} {said.get(name, _worded)(text)}" for name, text in one.items())
        for one in every
    ]


def _worded(text: str, left_out: Collection[int] = ()) -> str:
    """Return values in one line; a backslash would part the text that they stand in."""
    words = [word for n, word in enumerate(text.split("\\")) if n not in left_out]
    return "".join(c for c in "/".join(words or text.split("\\")) if c.isprintable())


# --- files -> volumes ---------------------------------------------------------------------------


def split(files: Sequence[Path]) -> tuple[SingleVolume, ...]:
    """Part the files of a series into single volumes by the attributes that differ.

    Parameters
    ----------
    files
        All instances of one series, in any order; headers alone are read.

    Returns
    -------
    At least one group, ordered by its traits, each slice or frame in exactly one, no two with the
    same traits. What no attribute tells apart stays together: `volume.build` then refuses the group
    by name, as it does what is no volume for another reason. No group holds two multi-frame images.

    Raises
    ------
    IrregularGeometry
        A single-frame instance does not say where it lies.
    """
    return _split(_headers(files))


def _headers(files: Sequence[Path]) -> list[tuple[Path, Dataset]]:
    return [(path, pydicom.dcmread(path, stop_before_pixels=True)) for path in files]


def _split(headers: Sequence[tuple[Path, Dataset]]) -> tuple[SingleVolume, ...]:
    singles = [(path, ds) for path, ds in headers if int(ds.get("NumberOfFrames") or 1) == 1]
    multi = [(path, ds) for path, ds in headers if int(ds.get("NumberOfFrames") or 1) > 1]
    members = [
        _Member(path, str(ds.get("SOPInstanceUID")), slice_planes.of_instance(ds), traits_of(ds))
        for path, ds in singles
    ]
    groups = [_single_volume(traits, part) for traits, part in _groups(members)]
    for path, ds in multi:
        groups += _of_image(path, ds, _told(ds, [other for _, other in multi]))
    groups.sort(key=lambda one: ([*map(by_size, one.traits.values())], min(one.instances)))
    return tuple(_distinct(groups))


def _single_volume(traits: Traits, part: Sequence[_Member]) -> SingleVolume:
    return SingleVolume(
        traits,
        tuple(member.path for member in part),
        tuple(sorted(member.uid for member in part)),
        len(part),
    )


def _of_image(path: Path, ds: Dataset, told: Traits) -> list[SingleVolume]:
    """Part the frames of a multi-frame image whose frames lie at the places of others."""
    uid = str(ds.get("SOPInstanceUID"))
    groups = list(_groups(_frames(path, ds)))
    if len(groups) < 2:
        return [SingleVolume(told, (path,), (uid,), int(ds.NumberOfFrames))]
    return [
        replace(
            _single_volume({**told, **traits}, part),
            files=(path,),
            instances=(uid,),
            frames=tuple(sorted(member.frame for member in part)),
        )
        for traits, part in groups
    ]


def _frames(path: Path, ds: Dataset) -> list[_Member]:
    """Return the frames of an image; none of one that is a stack, or does not describe them all."""
    items, uid = list(ds.get("PerFrameFunctionalGroupsSequence") or []), str(ds.SOPInstanceUID)
    if len(items) != int(ds.NumberOfFrames):
        return []
    planes = [slice_planes.of_frame(ds, item) for item in items]
    try:
        slice_planes.check_parallel(planes)
        if len(set(slice_planes.places(planes))) == len(planes):
            return []
    except IrregularGeometry:
        pass  # several stacks
    every = (traits_of_frame(ds, item) for item in items)
    return [
        _Member(path, uid, plane, traits, number)
        for number, (plane, traits) in enumerate(zip(planes, every, strict=True), 1)
    ]


def _distinct(groups: Sequence[SingleVolume]) -> Iterator[SingleVolume]:
    """Yield the groups; those whose traits are the same are told apart by a number."""
    alike = Counter(tuple(one.traits.items()) for one in groups)
    seen: Counter[tuple[tuple[str, str], ...]] = Counter()
    for one in groups:
        traits = tuple(one.traits.items())
        seen[traits] += 1
        several = alike[traits] > 1
        yield replace(one, traits={**one.traits, "Volume": str(seen[traits])}) if several else one


def _told(ds: Dataset, others: Sequence[Dataset]) -> Traits:
    """Return the traits of a multi-frame image that not all of the others have."""
    every = [traits_of(other) for other in others]
    own = traits_of(ds)
    return {name: text for name, text in own.items() if any(one.get(name) != text for one in every)}


# --- slices -> groups ---------------------------------------------------------------------------


def _groups(members: Sequence[_Member]) -> Iterator[tuple[Traits, list[_Member]]]:
    """Part slices by their plane, and then those that lie in one."""
    stacks = list(_parallel(members))
    names = _plane_names(stacks)
    for stack, name in zip(stacks, names, strict=True):
        yield from _parts(stack, {"Plane": name} if len(stacks) > 1 else {})


def _parallel(members: Sequence[_Member]) -> Iterator[list[_Member]]:
    """Part slices by their plane: those that are not parallel are never one volume."""
    left = list(members)
    while left:
        axes = left[0].plane.axes
        near = [np.abs(member.plane.axes - axes).max() <= slice_planes.PARALLEL for member in left]
        yield [member for member, one in zip(left, near, strict=True) if one]
        left = [member for member, one in zip(left, near, strict=True) if not one]


def _plane_names(stacks: Sequence[Sequence[_Member]]) -> list[str]:
    """Name the plane of each stack; with its normal where two are nearest to the same one."""
    normals = [stack[0].plane.normal for stack in stacks]
    words = [protocol.PLANES[int(np.abs(normal).argmax())] for normal in normals]
    return [
        word
        if words.count(word) == 1
        else f"{word} {'/'.join(f'{value + 0.0:.2f}' for value in np.round(normal, 2))}"
        for word, normal in zip(words, normals, strict=True)
    ]


def _parts(members: list[_Member], taken: Traits) -> Iterator[tuple[Traits, list[_Member]]]:
    """Part parallel slices until none lies at the place of another, or nothing tells them apart."""
    places = slice_planes.places([member.plane for member in members])
    at = by_place(members, places)
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
    for name in TOLD_BY:
        yield name, _grouped((member.traits.get(name, "missing"), member) for member in members)
    for name in TIMES:
        orders = [_order(place, name) for place in at]
        if all(orders):
            yield name, _grouped((str(rank), member) for order in orders for member, rank in order)


def _order(place: list[_Member], name: str) -> list[tuple[_Member, int]]:
    """Return the slices at one place with their rank in time; empty where a time is not its own."""
    times = sorted({member.traits.get(name, "") for member in place}, key=by_size)
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
