"""Files -> which protocol each of their series would join and why, or why none.

It asks what the line asks, in the same order: is it a volume, and whose rule claims it. The answers
are plain values; the command line and others print them. No patient data is among them.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pydicom
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError

from dicom_node import proposal, protocol, splitting, volume
from dicom_node.errors import (
    InconsistentSeries,
    IrregularGeometry,
    NotScorable,
    SeriesRejected,
    UnreadableDataSet,
    UnsupportedPixels,
)
from dicom_node.grouping import Discovered, joined, unfit
from dicom_node.header import DAMAGED, codes, number, value
from dicom_node.protocol_config import Protocol
from dicom_node.series import Part
from dicom_node.signature import Signature, group, signature

#: what pydicom raises on what is no DICOM file, or a damaged one: nobody has checked these
_UNREADABLE = (InvalidDicomError, OSError, EOFError, *DAMAGED)


@dataclass(frozen=True, slots=True)
class Proposed:
    """What a site could write for a series that no rule claims."""

    name: str
    #: the ``[[protocol]]``; empty for a series that the node rejects
    toml: str
    #: series of the same folder that it would claim, this one among them
    n_alike: int


@dataclass(frozen=True, slots=True)
class Explained:
    """What becomes of one series, or of one volume of a series that holds several."""

    #: empty where the instances have none
    series_instance_uid: str
    n_instances: int
    #: None where its instances have none in common
    signature: Signature | None
    #: the protocol that claims it, and all that its rule asks for
    protocol: str | None = None
    #: the protocol that the node discovered and that it joins, where no rule of the file claims it
    joins: str | None = None
    asked: tuple[str, ...] = ()
    #: (protocol, what of its rule does not match), in the file's order; nothing of the claiming one
    mismatches: tuple[tuple[str, tuple[str, ...]], ...] = ()
    proposed: Proposed | None = None
    #: why the node rejects it
    fault: str | None = None
    notes: tuple[str, ...] = ()
    #: which volume of the series, in words; empty: the only one
    part: str = ""


@dataclass(frozen=True, slots=True)
class _Asked:
    """Whose rules are asked: those of the file, then what the node found by itself."""

    protocols: Sequence[Protocol]
    discovered: Sequence[Discovered]


@dataclass(frozen=True, slots=True)
class _Instances:
    """The instances of one series, or of one part of it."""

    uid: str
    part: Part | None = None
    files: list[Path] = field(default_factory=list)
    headers: list[Dataset] = field(default_factory=list)
    seen: set[str] = field(default_factory=set)


def explain(
    path: Path, protocols: Sequence[Protocol], discovered: Sequence[Discovered] = ()
) -> tuple[Explained, ...]:
    """Explain every CT and MR series of a folder, or the one that a file belongs to.

    Parameters
    ----------
    path
        A folder, searched recursively, in which series lie whole; or one file. A classic instance
        alone does not show the distance of slices: that is then taken from its header.
    protocols
        In the configuration's order.
    discovered
        What the node found by itself, the oldest first.

    Raises
    ------
    UnreadableDataSet
        The file is no DICOM file.
    NotScorable
        There is no CT or MR instance.
    """
    alone = path.is_file()
    asked = _Asked(protocols, discovered)
    series = [one for whole in _read(path) for one in _parted(whole)]
    found = [_explain(entry, asked, alone=alone) for entry in series]
    taken = {entry.name for entry in protocols} | {entry.protocol.name for entry in discovered}
    return _with_proposals(found, taken)


# --- files -> series ----------------------------------------------------------------------------


def _read(path: Path) -> list[_Instances]:
    """Group the CT and MR instances by series, in the order of their paths."""
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    found: dict[str, _Instances] = {}
    n_other = 0
    for file in files:
        header = _header(file)
        if header is None or str(value(header, "Modality")) not in {"CT", "MR"}:
            n_other += 1
            continue
        uid = str(header.get("SeriesInstanceUID") or "")
        _add(found.setdefault(uid, _Instances(uid)), file, header)
    if not found and path.is_file():
        _refuse_file(path)
    if not found:
        raise NotScorable(
            f"{path} holds no CT or MR instance ({n_other} other files); "
            "name a folder of DICOM files as they come from the scanner or the PACS"
        )
    return list(found.values())


def _header(file: Path) -> Dataset | None:
    """Read a file without its pixels; None where it is no DICOM file."""
    try:
        return pydicom.dcmread(file, stop_before_pixels=True)
    except _UNREADABLE:
        return None


def _add(series: _Instances, file: Path, header: Dataset) -> None:
    """Add an instance once: an export may hold it twice, and the inbox files it once."""
    uid = str(header.get("SOPInstanceUID") or file)
    if uid not in series.seen:
        series.seen.add(uid)
        series.files.append(file)
        series.headers.append(header)


def _parted(series: _Instances) -> list[_Instances]:
    """Return the parts of a series that holds several volumes, or the series."""
    parts = splitting.parts_of(series.files)
    found = []
    for part in parts:
        pairs = zip(series.files, series.headers, strict=True)
        own = [pair for pair in pairs if str(pair[1].SOPInstanceUID) in part.instances]
        files, headers = [file for file, _ in own], [header for _, header in own]
        found.append(_Instances(series.uid, part, files, headers))
    return found or [series]


def _refuse_file(path: Path) -> None:
    """Say what a file is that is no CT or MR instance."""
    header = _header(path)
    if header is None:
        raise UnreadableDataSet(
            f"{path} is no DICOM file; name a file or a folder of CT or MR series"
        )
    kind = header.get("Modality") or "missing"
    raise NotScorable(f"{path}: Modality is {kind}; only CT and MR images are scored")


# --- one series ---------------------------------------------------------------------------------


def _explain(instances: _Instances, asked: _Asked, *, alone: bool) -> Explained:
    """Say what becomes of one series; what the node would reject it for is a fault."""
    part = instances.part
    entry = Explained(instances.uid, len(instances.files), None, part=part.name if part else "")
    try:
        header, spacing_mm = _common(instances.headers)
    except SeriesRejected as error:
        return replace(entry, fault=str(error))
    if alone and "NumberOfFrames" not in header:
        note = "one instance: slice spacing is its header's, and the stack was not checked"
        entry = replace(entry, notes=(note,))
    else:
        try:
            built = _build(instances)
        except SeriesRejected as error:
            return replace(entry, signature=signature(header, spacing_mm), fault=str(error))
        header, spacing_mm = built.headers[0], built.spacing_mm
    return _judged(entry, header, spacing_mm, asked)


def _build(instances: _Instances) -> volume.Volume:
    """Stack the files as the line does; raises SeriesRejected with the reason."""
    part = instances.part
    try:
        return volume.build(instances.files, part.frames if part else ())
    except _UNREADABLE as error:
        raise UnsupportedPixels(f"an instance cannot be read: {error}") from error


def _judged(
    entry: Explained,
    header: Dataset,
    spacing_mm: tuple[float, float, float],
    asked: _Asked,
) -> Explained:
    """Ask every rule, as `grouping.Protocols.claim` does, and keep what each says."""
    faults = [
        (p.name, tuple(protocol.mismatches(p.match, header, spacing_mm[0])))
        for p in asked.protocols
    ]
    pairs = zip(asked.protocols, faults, strict=True)
    claiming = next((p for p, (_, said) in pairs if not said), None)
    made, derived = signature(header, spacing_mm), None if claiming else unfit(header)
    entered = None
    if claiming is None and derived is None:
        entered = joined(asked.discovered, made, header, spacing_mm[0])
    return replace(
        entry,
        signature=made,
        protocol=claiming.name if claiming else None,
        joins=entered.protocol.name if entered else None,
        asked=_asked(claiming) if claiming else (),
        notes=(*entry.notes, derived) if derived else entry.notes,
        mismatches=tuple((name, said) for name, said in faults if said),
    )


def _asked(claiming: Protocol) -> tuple[str, ...]:
    """Return what a rule asks for, as the file has it."""
    rule = claiming.match.model_dump(mode="json", exclude_none=True, exclude_defaults=True)
    return tuple(f"{name} = {json.dumps(wanted)}" for name, wanted in rule.items())


def _common(headers: Sequence[Dataset]) -> tuple[Dataset, tuple[float, float, float]]:
    """Return a header that speaks for all, and the (slice, row, column) spacing that headers say.

    Raises
    ------
    NotScorable
        A localizer: Image Type says so (PS3.3 C.8.2.1.1.1), of MR too by habit.
    InconsistentSeries
        The instances lie on several planes or grids.
    IrregularGeometry
        There is no spacing.
    """
    if any("LOCALIZER" in codes(header, "ImageType", "FrameType") for header in headers):
        raise NotScorable("a localizer, by its ImageType; only volumes are scored")
    geometries = {_geometry(header) for header in headers}
    if len(geometries) > 1:
        raise InconsistentSeries(
            f"{len(geometries)} geometries in one series: orientation, pixel spacing or matrix "
            "differs between its instances; send each stack as a series of its own"
        )
    header = headers[0]
    rows_columns = _numbers(header, "PixelSpacing")
    slices = _slice_spacing(headers)
    if len(rows_columns) != 2 or slices is None:
        missing = "slice spacing" if len(rows_columns) == 2 else "PixelSpacing"
        raise IrregularGeometry(f"no instance says its {missing}")
    return header, (slices, rows_columns[0], rows_columns[1])


def _geometry(header: Dataset) -> tuple[object, ...]:
    """Return what the slices of one stack share; directions to 1 %, as `volume` takes them."""
    # a header's last digits wander; adding 0 makes -0.0 and 0.0 one
    directions = [round(entry, 2) + 0.0 for entry in _numbers(header, "ImageOrientationPatient")]
    spacing = [round(entry, 3) for entry in _numbers(header, "PixelSpacing")]
    return (*directions, *spacing, header.get("Rows"), header.get("Columns"))


def _numbers(header: Dataset, keyword: str) -> list[float]:
    """Return the values of a decimal string; none where one of them is no number."""
    try:
        found = [float(word) for word in codes(header, keyword)]
    except ValueError:
        return []
    return found if np.isfinite(found).all() else []


def _slice_spacing(headers: Sequence[Dataset]) -> float | None:
    """Return the usual distance of slices by their positions, else what one header says."""
    axes, first = _numbers(headers[0], "ImageOrientationPatient"), headers[0]
    positions = [_numbers(header, "ImagePositionPatient") for header in headers]
    if len(axes) == 6 and all(len(position) == 3 for position in positions):
        along = np.sort(np.asarray(positions) @ np.cross(axes[:3], axes[3:]))
        steps = np.diff(along)
        steps = steps[steps > 1e-3]  # several images of one place: echoes, b-values, time points
        if steps.size:
            return float(np.median(steps))
    return number(first, "SpacingBetweenSlices") or number(first, "SliceThickness")


# --- proposals ----------------------------------------------------------------------------------


def _with_proposals(found: Sequence[Explained], taken: set[str]) -> tuple[Explained, ...]:
    """Give each series without a protocol a name, and one rule to all that are alike."""
    answers = list(found)
    taken = set(taken)
    unclaimed = [n for n, entry in enumerate(found) if _wants_proposal(entry)]
    signatures = [entry.signature for entry in (found[n] for n in unclaimed) if entry.signature]
    for alike in group(signatures):
        name = proposal.unused_name(proposal.proposed_name(alike.founder), taken)
        taken.add(name)
        shared = _shared([signatures[member] for member in alike.members], alike.founder)
        proposed = Proposed(name, proposal.toml(shared, name), len(alike.members))
        for member in alike.members:
            answers[unclaimed[member]] = replace(answers[unclaimed[member]], proposed=proposed)
    for n, entry in enumerate(answers):
        if entry.fault and entry.signature:
            name = proposal.proposed_name(entry.signature)
            answers[n] = replace(entry, proposed=Proposed(name, "", 1))
    return tuple(answers)


def _shared(members: Sequence[Signature], founder: Signature) -> Signature:
    """Return the founder without what a rule would not find in every member as the founder has it.

    That is Body Part Examined where senders differ (HEAD, BRAIN), and what was inferred in any.
    """
    written = {entry.body_part_as_sent for entry in members}
    inferred = {pair for entry in members for pair in entry.inferred}
    return replace(
        founder,
        body_part_as_sent=founder.body_part_as_sent if len(written) == 1 else None,
        inferred=tuple(sorted(inferred)),
    )


def _wants_proposal(entry: Explained) -> bool:
    """Return whether a series could be scored if only a rule claimed it."""
    claimed = entry.protocol or entry.joins
    return entry.signature is not None and not claimed and entry.fault is None
