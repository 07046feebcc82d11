"""Which scanner made a series, as far as a quota per scanner needs to know it."""

from __future__ import annotations

from pydicom.dataset import Dataset

from dicom_node.config import digest

#: of make and model: what an operator typed there must not fill the ledger
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


def _text(header: Dataset, name: str) -> str:
    """Return an attribute in one line, without the blanks that pad it."""
    printable = "".join(c if c.isprintable() else " " for c in str(header.get(name) or ""))
    return " ".join(printable.split())
