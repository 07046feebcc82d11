"""Which scanner made a series, with which software: for a quota per scanner and the drift watch."""

from __future__ import annotations

from pydicom.dataset import Dataset
from pydicom.multival import MultiValue

from dicom_node.config import digest

#: of make and model, and of versions: what an operator typed there must not fill the ledger
_LONGEST = 64


def scanner_of(header: Dataset) -> str:
    """Return make, model and a digest of what tells two scanners of one model apart.

    That is the serial number, or else the station name (PS3.3 C.7.5.1), of which only the digest is
    kept. Empty where the series says nothing: such series are under no quota.
    """
    model = " ".join(_text(header, name) for name in ("Manufacturer", "ManufacturerModelName"))
    apart = _text(header, "DeviceSerialNumber") or _text(header, "StationName")
    named = model.strip()[:_LONGEST].strip()
    return f"{named} #{digest(apart)}".strip() if apart else named


def software_of(header: Dataset) -> str:
    """Return Software Versions (PS3.3 C.7.5.1) as sent, its values joined by blanks; else empty."""
    return _text(header, "SoftwareVersions")[:_LONGEST].strip()


def _text(header: Dataset, name: str) -> str:
    """Return an attribute in one line, its values one after the other, without padding blanks."""
    value = header.get(name) or ""
    text = " ".join(map(str, value)) if isinstance(value, MultiValue) else str(value)
    printable = "".join(c if c.isprintable() else " " for c in text)
    return " ".join(printable.split())
