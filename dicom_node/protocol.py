"""Which protocol, hence which reference batch, claims a series: rules on DICOM attributes."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue

from dicom_node.config import Match, Protocol
from dicom_node.errors import NoMatchingProtocol

_PLANES = ("sagittal", "coronal", "axial")


def orientation(ds: Dataset) -> str | None:
    """Return the patient plane nearest to the slices (PS3.3 C.7.6.2.1.1), None without geometry."""
    values = ds.get("ImageOrientationPatient") or _shared_orientation(ds)
    if not values or len(values) != 6:
        return None
    row, column = np.asarray(values[:3], float), np.asarray(values[3:], float)
    return _PLANES[int(np.abs(np.cross(row, column)).argmax())]


def _shared_orientation(ds: Dataset) -> Sequence[float] | None:
    """Return the orientation of an enhanced image's first frame."""
    for groups in ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"):
        for item in (ds.get(groups) or [])[:1]:
            for plane in item.get("PlaneOrientationSequence") or []:
                return list(plane.ImageOrientationPatient)
    return None


def has_contrast(ds: Dataset) -> bool:
    """Return whether a contrast agent is named, as text or as a code."""
    # enhanced images have the codes alone (PS3.3 C.7.6.4b), classic ones text or both (C.7.6.4)
    named = str(ds.get("ContrastBolusAgent") or "").strip()
    return bool(named or ds.get("ContrastBolusAgentSequence"))


def mismatches(match: Match, ds: Dataset, slice_spacing_mm: float) -> list[str]:
    """Return why `match` does not claim the series of `ds`; empty when it does."""
    checks = (
        ("modality", match.modality, ds.get("Modality")),
        ("body_part", _upper(match.body_part), _upper(ds.get("BodyPartExamined"))),
        ("orientation", match.orientation, orientation(ds)),
        ("contrast_agent", match.contrast_agent, has_contrast(ds)),
    )
    faults = [
        f"{name} is {found or 'missing'}, not {wanted}"
        for name, wanted, found in checks
        if wanted is not None and wanted != found
    ]
    description = str(ds.get("SeriesDescription") or "")
    pattern = match.series_description
    if pattern is not None and not re.search(pattern, description, re.IGNORECASE):
        faults.append(f"series_description has no {pattern!r}")
    faults += _sequence_faults(match, ds)
    if match.slice_spacing_mm is not None:
        low, high = match.slice_spacing_mm
        if not low <= slice_spacing_mm <= high:
            faults.append(f"slice spacing is {slice_spacing_mm:.2f} mm, not {low} to {high}")
    return faults


def _sequence_faults(match: Match, ds: Dataset) -> list[str]:
    """Compare Scanning Sequence (PS3.3 C.8.3.1, one or more values)."""
    value = ds.get("ScanningSequence") or ()
    found = set(value) if isinstance(value, MultiValue) else {str(value)} if value else set()
    missing = set(match.scanning_sequence) - found
    return [f"scanning_sequence has no {', '.join(sorted(missing))}"] if missing else []


def _upper(value: object) -> str | None:
    return str(value).strip().upper() if value else None


def match(protocols: Sequence[Protocol], ds: Dataset, slice_spacing_mm: float) -> Protocol:
    """Return the first protocol whose rule claims the series.

    Raises NoMatchingProtocol that says, per protocol, what did not match. The description itself is
    not repeated: sites write names into it.
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
