"""How a series was acquired, in comparable terms; series without a rule group themselves by it.

A site need not write a ``[[protocol]]`` before it knows what it receives. What shapes the look of
an image is normalised into a :class:`Signature`: one word per body part, one way of writing a field
strength, the attributes of classic and of enhanced images alike. Series of near signatures are one
group, and a group is a proposal for a protocol (see :mod:`dicom_node.proposal`).

A signature says nothing of the patient: no description, no name, no UID goes into it.
"""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from pydicom.dataset import Dataset

from dicom_node import body_parts, protocol
from dicom_node.errors import NotScorable
from dicom_node.header import DAMAGED, codes, number, rounded, tesla, text, value
from dicom_node.several_volumes import trait_number

#: a stack that is tilted further from every plane of the body belongs to none; heads are tilted by
#: up to 25 degrees, to the line of the skull base or of the commissures
_OBLIQUE_DEGREES = 30.0


@dataclass(frozen=True, slots=True)
class Signature:
    """How a series was acquired. None and empty mean that the header does not say.

    Equal signatures come from one way of scanning; near ones do too, see `differences`.
    """

    #: "CT" or "MR"
    modality: str
    #: one word per region, as `body_parts.normalised`
    body_part: str | None
    #: Scanning Sequence (PS3.3 C.8.3.1), sorted: SE, IR, GR, EP, RM
    scanning_sequence: tuple[str, ...]
    #: Sequence Variant, sorted, without NONE: SK, MTC, SS, TRSS, SP, MP, OSP
    sequence_variant: tuple[str, ...]
    #: first and third value of Image Type (PS3.3 C.7.6.1.1.2): ("ORIGINAL", "AXIAL")
    image_type: tuple[str, ...]
    contrast_agent: bool
    echo_time_ms: float | None
    repetition_time_ms: float | None
    inversion_time_ms: float | None
    kvp: float | None
    #: Convolution Kernel in capitals, its values joined by "-"
    kernel: str | None
    #: "axial", "coronal", "sagittal" or "oblique"
    orientation: str | None
    #: between rows, between columns
    spacing_mm: tuple[float, float]
    #: from slice to slice, not Slice Thickness
    slice_spacing_mm: float
    field_strength_t: float | None
    #: Body Part Examined as the sender wrote it: what a rule is compared with
    body_part_as_sent: str | None = field(default=None, compare=False)
    #: (field, where it was found) of what does not stand in the attribute that rules look at
    inferred: tuple[tuple[str, str], ...] = field(default=(), compare=False)
    #: in s/mm2
    b_value: float | None = None


@dataclass(frozen=True, slots=True)
class Tolerances:
    """How far two series of one group may differ: shares of the larger value, 0..1.

    What a technologist changes from patient to patient stays inside: the field of view with the
    patient's size, and repetition time with the number of slices. What makes another contrast or
    another sharpness stays outside: 100 and 120 kVp, 3 and 5 mm slices, 1.5 and 3 T.
    """

    echo_time: float = 0.15
    #: short echoes follow the field of view; in and out of phase at 3 T lie 1.15 ms apart
    echo_time_floor_ms: float = 1.0
    repetition_time: float = 0.2
    inversion_time: float = 0.1
    kvp: float = 0.05
    #: chests are reconstructed to fields of view from 30 to 45 cm
    spacing: float = 0.35
    slice_spacing: float = 0.1
    field_strength: float = 0.1
    b_value: float = 0.1
    #: what is called 0 is up to 10 s/mm2
    b_value_floor: float = 10.0


DEFAULT_TOLERANCES = Tolerances()

#: fields that are alike or not
_EXACT = (
    *("modality", "body_part", "scanning_sequence", "sequence_variant", "image_type"),
    *("contrast_agent", "kernel", "orientation"),
)


@dataclass(frozen=True, slots=True)
class Group:
    """Series that were acquired alike."""

    #: what its members are compared with; it does not change when others come
    founder: Signature
    #: places in what was grouped, ascending
    members: tuple[int, ...]


# --- header -> signature ------------------------------------------------------------------------


def signature(header: Dataset, spacing_mm: tuple[float, float, float]) -> Signature:
    """Return the signature of the series of which `header` is one instance.

    Parameters
    ----------
    header
        Of a classic instance, or of an enhanced image: its functional groups are read as they
        stand, of several frames the first.
    spacing_mm
        Distance of (slices, rows, columns), as `volume.Volume.spacing_mm`: no header says the first
        reliably.

    Raises
    ------
    NotScorable
        The modality is neither CT nor MR.

    Notes
    -----
    A value that its representation forbids counts as missing: what it was meant to be is a guess.

    References
    ----------
    PS3.3 C.8.3.1 (MR Image), C.8.2.1 (CT Image), C.8.13.5 and C.8.15.3 (the same per frame).
    """
    modality = text(value(header, "Modality"))
    if modality not in {"CT", "MR"}:
        raise NotScorable(f"Modality is {modality or 'missing'}: only CT and MR are scored")
    sequence, variant, inferred = _sequence(header) if modality == "MR" else ((), (), [])
    part, source = body_parts.of_header(header)
    if source:
        inferred.append(("body_part", source))
    slices, rows, columns = (rounded(distance) for distance in spacing_mm)
    return Signature(
        modality=modality,
        body_part=part,
        scanning_sequence=sequence,
        sequence_variant=variant,
        image_type=_image_type(header),
        contrast_agent=protocol.has_contrast(header),
        echo_time_ms=number(header, "EchoTime", "EffectiveEchoTime"),
        repetition_time_ms=number(header, "RepetitionTime"),
        inversion_time_ms=number(header, "InversionTime", "InversionTimes"),
        kvp=number(header, "KVP"),
        kernel="-".join(filter(None, codes(header, "ConvolutionKernel"))) or None,
        orientation=_orientation(header),
        spacing_mm=(rows, columns),
        slice_spacing_mm=slices,
        field_strength_t=tesla(header),
        body_part_as_sent=text(value(header, "BodyPartExamined")) or None,
        inferred=tuple(sorted(inferred)),
        b_value=trait_number(header, "DiffusionBValue"),
    )


def _image_type(header: Dataset) -> tuple[str, ...]:
    """Return first and third value; of a frame where the image has none of its own."""
    values = codes(header, "ImageType", "FrameType")
    # Philips appends the sequence to the component: M_FFE, M_SE, M_IR are magnitude
    third = re.sub(r"^([MPRI])_.+", r"\1", values[2]) if len(values) > 2 else ""
    return tuple(word for word in (*values[:1], third) if word)


def _orientation(header: Dataset) -> str | None:
    """Return the plane of the slices, "oblique" beyond `_OBLIQUE_DEGREES` from all of them."""
    try:
        axes = np.asarray(codes(header, "ImageOrientationPatient"), dtype=float).reshape(2, 3)
    except DAMAGED:
        return None
    normal = np.cross(axes[0], axes[1])
    length = float(np.linalg.norm(normal))
    if not math.isfinite(length) or length < 0.1:
        return None
    nearest = float(np.abs(normal).max()) / length
    if nearest < math.cos(math.radians(_OBLIQUE_DEGREES)):
        return "oblique"
    return ("sagittal", "coronal", "axial")[int(np.abs(normal).argmax())]


def _sequence(
    header: Dataset,
) -> tuple[tuple[str, ...], tuple[str, ...], list[tuple[str, str]]]:
    """Return Scanning Sequence, Sequence Variant, and what of them was inferred.

    Enhanced images have attributes of their own for each (PS3.3 C.8.13.4, MR Pulse Sequence).
    """
    sequence = set(codes(header, "ScanningSequence")) - {""}
    variant = set(codes(header, "SequenceVariant")) - {"", "NONE"}
    if sequence:
        return tuple(sorted(sequence)), tuple(sorted(variant)), []
    echo = text(value(header, "EchoPulseSequence"))
    found = {"SPIN": {"SE"}, "GRADIENT": {"GR"}, "BOTH": {"SE", "GR"}}.get(echo, set())
    found |= {"EP"} if _is_on(header, "EchoPlanarPulseSequence") else set()
    found |= {"IR"} if _is_on(header, "InversionRecovery") else set()
    variant |= {"SS"} if _is_on(header, "SteadyStatePulseSequence") else set()
    variant |= {"SP"} if _is_on(header, "Spoiling") else set()
    variant |= {"SK"} if _is_on(header, "SegmentedKSpaceTraversal") else set()
    variant |= {"MTC"} if _is_on(header, "MagnetizationTransfer") else set()
    source = "the attributes of enhanced images"
    named = {"scanning_sequence": found, "sequence_variant": variant}
    inferred = [(name, source) for name, values in named.items() if values]
    return tuple(sorted(found)), tuple(sorted(variant)), inferred


def _is_on(header: Dataset, keyword: str) -> bool:
    """Return whether an attribute names something that was done, not that it was not."""
    return text(value(header, keyword)) not in {"", "NO", "NONE", "SINGLE"}


# --- two signatures -----------------------------------------------------------------------------


def differences(
    one: Signature, other: Signature, tolerances: Tolerances = DEFAULT_TOLERANCES
) -> tuple[str, ...]:
    """Return why two series are of two groups, a phrase per field; empty when they are of one.

    Symmetric. What one header says and the other does not is a difference, but for the b-value:
    nobody knows how the silent one was scanned.
    """
    found = []
    for name in _EXACT:
        words = sorted((_word(getattr(one, name)), _word(getattr(other, name))))
        if getattr(one, name) != getattr(other, name):
            found.append(f"{name} is {words[0]} in one and {words[1]} in the other")
    for name, first, second, allowed in _measured(one, other, tolerances):
        if _excess(first, second, allowed) > 1:
            low, high = sorted((first, second), key=lambda distance: distance or 0.0)
            limit = f", more than {allowed:.3g} apart" if None not in {first, second} else ""
            found.append(f"{name} is {_word(low)} in one and {_word(high)} in the other{limit}")
    return tuple(found)


def _word(found: object) -> str:
    """Return a value as a person reads it."""
    if found is None or found == ():
        return "missing"
    if isinstance(found, tuple):
        return "/".join(map(str, found))
    return f"{found:g}" if isinstance(found, float) else str(found)


def _measured(
    one: Signature, other: Signature, tolerances: Tolerances
) -> Iterator[tuple[str, float | None, float | None, float]]:
    """Yield (field, value, value, how far apart they may be) of each field with a tolerance."""
    shares = {
        "echo_time_ms": tolerances.echo_time,
        "repetition_time_ms": tolerances.repetition_time,
        "inversion_time_ms": tolerances.inversion_time,
        "kvp": tolerances.kvp,
        "slice_spacing_mm": tolerances.slice_spacing,
        "field_strength_t": tolerances.field_strength,
    }
    for name, share in shares.items():
        first, second = getattr(one, name), getattr(other, name)
        allowed = share * max(first or 0.0, second or 0.0)
        if name == "echo_time_ms":
            allowed = max(allowed, tolerances.echo_time_floor_ms)
        yield name, first, second, allowed
    # founders of before it was read do not say it: there one alone is no difference
    if one.b_value is not None and other.b_value is not None:
        allowed = tolerances.b_value * max(one.b_value, other.b_value)
        yield "b_value", one.b_value, other.b_value, max(allowed, tolerances.b_value_floor)
    for first, second in zip(one.spacing_mm, other.spacing_mm, strict=True):
        yield "spacing_mm", first, second, tolerances.spacing * max(first, second)


def _excess(first: float | None, second: float | None, allowed: float) -> float:
    """Return how far two values are apart in units of what is allowed; infinite beside a None."""
    if first == second:
        return 0.0
    if first is None or second is None:
        return math.inf
    # a hair of room: a value on the limit must not depend on how its digits round
    return abs(first - second) / (allowed * (1 + 1e-9)) if allowed > 0 else math.inf


def _distance(one: Signature, other: Signature, tolerances: Tolerances) -> float:
    """Return the largest of the fields' excesses; at most 1 exactly when there is no difference."""
    if any(getattr(one, name) != getattr(other, name) for name in _EXACT):
        return math.inf
    measured = _measured(one, other, tolerances)
    return max(_excess(first, second, allowed) for _, first, second, allowed in measured)


# --- many signatures ----------------------------------------------------------------------------


def group(
    signatures: Sequence[Signature],
    founders: Sequence[Signature] = (),
    tolerances: Tolerances = DEFAULT_TOLERANCES,
) -> tuple[Group, ...]:
    """Put series into groups round founders; no member differs from its founder.

    Parameters
    ----------
    founders
        Of the groups that a node already has. They keep what is theirs whatever else comes.

    Returns
    -------
    The groups that have members, in an order that their founders alone determine.

    Notes
    -----
    A node sees series one at a time, and a reference batch is compared with whatever joined it
    before. So the founder is one signature that was seen and stays as it is: a mean would drift
    with each member, and linking near to near would chain a repetition time of 500 ms to one of
    2000 in steps of 20 %. Complete linkage bounds the spread too, but a newcomer may split its
    groups, which moves series out of batches that have scored. Members of one group differ from
    each other by at most two tolerances.

    A series joins the nearest of `founders`. Where none is near, new ones are found among the rest:
    the signature with the most series within tolerance first, so that the usual scan founds the
    group and not the odd one. Within one call the result does not depend on the order of
    `signatures`, nor of `founders`; over several calls it depends on which came in which.
    """
    known = list(dict.fromkeys(sorted(founders, key=repr)))
    owners = [_nearest(entry, known, tolerances) for entry in signatures]
    rest = [entry for entry, owner in zip(signatures, owners, strict=True) if owner is None]
    fresh = [founder for bucket in _buckets(rest) for founder in _found(bucket, tolerances)]
    fresh.sort(key=repr)
    members: dict[Signature, list[int]] = defaultdict(list)
    for index, (entry, owner) in enumerate(zip(signatures, owners, strict=True)):
        chosen = owner or _nearest(entry, fresh, tolerances)
        if chosen is not None:
            members[chosen].append(index)
    ordered = sorted(members.items(), key=lambda item: repr(item[0]))
    return tuple(Group(founder, tuple(places)) for founder, places in ordered)


def _nearest(
    entry: Signature, founders: Sequence[Signature], tolerances: Tolerances
) -> Signature | None:
    """Return the nearest founder within tolerance, of two alike the first; None without."""
    ranked = [
        (_distance(entry, founder, tolerances), place) for place, founder in enumerate(founders)
    ]
    distance, place = min(ranked, default=(math.inf, 0))
    return founders[place] if distance <= 1 else None


def _buckets(signatures: Iterable[Signature]) -> Iterable[list[Signature]]:
    """Split by the fields without tolerance: only within a bucket is anything near."""
    found: dict[tuple[object, ...], list[Signature]] = defaultdict(list)
    for entry in signatures:
        found[tuple(getattr(entry, name) for name in _EXACT)].append(entry)
    return found.values()


def _found(bucket: Sequence[Signature], tolerances: Tolerances) -> list[Signature]:
    """Choose founders until every signature is within tolerance of one."""
    # the smallest text speaks for equal ones, which may differ in how they were inferred
    count = Counter(sorted(bucket, key=repr))
    entries = list(count)
    near = [
        [place for place, other in enumerate(entries) if _distance(one, other, tolerances) <= 1]
        for one in entries
    ]
    weights = [count[entry] for entry in entries]
    founders, left = [], dict.fromkeys(range(len(entries)))
    while left:
        # of as many the first by its text: a maximum is the first of its like
        best = max(left, key=lambda place: sum(weights[other] for other in near[place]))
        founders.append(entries[best])
        for place in near[best]:
            weights[place] = 0
            left.pop(place, None)
    return founders
