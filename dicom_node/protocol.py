"""Which protocol, hence which reference batch, claims a series: rules on DICOM attributes.

A score compares a study with its like, so that the wrong protocol makes a wrong score without any
other sign of it. The rules are the site's (``[protocol.match]``); an attribute that the rule asks
for and the series lacks is a mismatch, never a match by default.

It reads one header, which `volume` has found to agree with the others. What it says goes into the
ledger, the log and the page: values of free text stay out of it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
from pydicom.dataset import Dataset

from dicom_node.body_parts import normalised
from dicom_node.config import digest
from dicom_node.errors import NoMatchingProtocol
from dicom_node.header import codes, number, tesla, value
from dicom_node.protocol_config import Match, Protocol
from dicom_node.several_volumes import trait_number

#: what stands in Contrast/Bolus Agent when none was given
_NO_AGENT = {"", "NO", "NONE", "N", "NATIVE", "WITHOUT"}
PLANES = ("sagittal", "coronal", "axial")


def orientation(ds: Dataset) -> str | None:
    """Return the patient plane nearest to the slices, None without geometry.

    An oblique stack counts as the plane that it was tilted from; of an enhanced image the first
    frame speaks for all.

    References
    ----------
    PS3.3 C.7.6.2.1.1: the six values are the directions, in LPS, of a row and of a column.
    """
    values = codes(ds, "ImageOrientationPatient")
    if len(values) != 6:
        return None
    row, column = np.asarray(values[:3], float), np.asarray(values[3:], float)
    return PLANES[int(np.abs(np.cross(row, column)).argmax())]


def has_contrast(ds: Dataset) -> bool:
    """Return whether a contrast agent is named, as text or as a code.

    An attribute that is missing or empty counts as "native": scanners leave it out when no agent
    was given, or write that there is none.
    """
    # enhanced images have the codes alone (PS3.3 C.7.6.4b), classic ones text or both (C.7.6.4)
    named = str(ds.get("ContrastBolusAgent") or "").strip().upper()
    return named not in _NO_AGENT or bool(ds.get("ContrastBolusAgentSequence"))


def mismatches(match: Match, ds: Dataset, slice_spacing_mm: float) -> list[str]:
    """Return why `match` does not claim the series of `ds`; empty when it does.

    A phrase for each field that does not match, all of them: a rule is mended in one step. The
    spacing is that of the slice positions, which no header says reliably.
    """
    checks = (
        ("modality", match.modality, ds.get("Modality")),
        ("body_part", _region(match.body_part), _region(value(ds, "BodyPartExamined"))),
        ("orientation", match.orientation, orientation(ds)),
        ("contrast_agent", match.contrast_agent, has_contrast(ds)),
    )
    faults = [
        f"{name} is {found or 'missing'}, not {wanted}"
        for name, wanted, found in checks
        if wanted is not None and wanted != found
    ]
    # what stands in the description is not repeated: sites write names into it
    description = str(ds.get("SeriesDescription") or "")
    pattern = match.series_description
    if pattern is not None and not re.search(pattern, description, re.IGNORECASE):
        faults.append(f"series_description has no {pattern!r}")
    faults += _sequence_faults(match, ds)
    if match.kernel is not None:
        kernel = "-".join(codes(ds, "ConvolutionKernel"))
        if not re.search(match.kernel, kernel, re.IGNORECASE):
            faults.append(f"kernel is {kernel or 'missing'}, not like {match.kernel!r}")
    return faults + _range_faults(match, ds, slice_spacing_mm)


def _range_faults(match: Match, ds: Dataset, slice_spacing_mm: float) -> list[str]:
    """Compare what a rule gives a range for, at any level of the header."""
    numbers = (
        ("slice spacing", " mm", match.slice_spacing_mm, slice_spacing_mm),
        ("echo_time_ms", "", match.echo_time_ms, number(ds, "EchoTime", "EffectiveEchoTime")),
        ("repetition_time_ms", "", match.repetition_time_ms, number(ds, "RepetitionTime")),
        (
            "inversion_time_ms",
            "",
            match.inversion_time_ms,
            number(ds, "InversionTime", "InversionTimes"),
        ),
        ("field_strength_t", "", match.field_strength_t, tesla(ds)),
        ("kvp", "", match.kvp, number(ds, "KVP")),
        ("b_value", "", match.b_value, trait_number(ds, "DiffusionBValue")),
        ("temporal_position", "", match.temporal_position, trait_number(ds, "TemporalPosition")),
    )
    faults = []
    for name, unit, wanted, found in numbers:
        if wanted is not None and (found is None or not wanted[0] <= found <= wanted[1]):
            what = "missing" if found is None else f"{found:.5g}{unit}"
            faults.append(f"{name} is {what}, not {wanted[0]:g} to {wanted[1]:g}")
    return faults


def _sequence_faults(match: Match, ds: Dataset) -> list[str]:
    """Compare Scanning Sequence (PS3.3 C.8.3.1, one or more values of SE, IR, GR, EP, RM)."""
    missing = set(match.scanning_sequence) - set(codes(ds, "ScanningSequence"))
    return [f"scanning_sequence has no {', '.join(sorted(missing))}"] if missing else []


def _region(found: object) -> str | None:
    """Return one word for a body part: senders pad it, vary its case, and call a head a brain."""
    return normalised(str(found)) if found else None


def match(protocols: Sequence[Protocol], ds: Dataset, slice_spacing_mm: float) -> Protocol:
    """Return the first protocol whose rule claims the series.

    The order is the file's: a narrow rule has to stand before a wide one.

    Raises
    ------
    NoMatchingProtocol
        Its message says, per protocol, what did not match.
    """
    reasons = []
    for candidate in protocols:
        faults = mismatches(candidate.match, ds, slice_spacing_mm)
        if not faults:
            return candidate
        reasons.append(f"{candidate.name}: {'; '.join(faults)}")
    raise NoMatchingProtocol(
        "no [[protocol]] matches; " + (" | ".join(reasons) or "the configuration has none")
    )


def patient_key(header: Dataset) -> str:
    """Return a digest of the patient's identity (Patient ID and its issuer, else the study).

    A Patient ID is unique within its issuer alone (PS3.3 C.7.1.1). Without one each study is a
    patient: two studies of an unknown patient may then meet in a batch.
    """
    identity = str(header.get("PatientID") or "").strip()
    issuer = str(header.get("IssuerOfPatientID") or "").strip()
    return digest(identity or str(header.StudyInstanceUID), issuer)
