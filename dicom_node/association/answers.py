"""Values of an identifier that a peer answered with, read without the library's validation.

Archives hold decades of odd values. What breaks its representation would raise, or be repeated in a
warning, a patient's value perhaps; what cannot be read counts as missing.

References
----------
PS3.5 6.1 (character sets) and 6.2 (value representations).
"""

from __future__ import annotations

import re
from datetime import date, datetime
from typing import Any

from pydicom import charset
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.tag import Tag

from dicom_node.header import DAMAGED


def text_of(ds: Dataset, keyword: str) -> str:
    """Return a value as text of printable characters, several joined by backslashes.

    Empty where there is none. A value that breaks its representation is read as it came: the
    library would refuse it, or repeat it, a patient's perhaps, in a warning.
    """
    element: Any = ds.get_item(Tag(keyword))
    value = None if element is None else element.value
    if isinstance(element, RawDataElement) and isinstance(value, bytes):
        found = _decoded(value, ds)
    elif value is None:
        found = ""
    else:
        found = value if isinstance(value, str) else "\\".join(map(str, _several(value)))
    return "".join(c if c.isprintable() else " " for c in found).strip()


def _several(value: object) -> list[object]:
    try:
        return list(value)  # type: ignore[call-overload, no-any-return]
    except TypeError:
        return [value]


def _decoded(value: bytes, ds: Dataset) -> str:
    """Decode a value in the character set that the answer states; a wrong one costs letters."""
    stated: Any = ds.get_item(Tag("SpecificCharacterSet"))
    raw = None if stated is None else stated.value
    names = raw.decode("ascii", "replace").split("\\") if isinstance(raw, bytes) else _several(raw)
    try:
        encodings = charset.convert_encodings([str(name or "").strip(" \0") for name in names])
        return charset.decode_bytes(value, encodings, set())
    except DAMAGED:
        return value.decode("ascii", "replace")


def codes_of(ds: Dataset, keyword: str) -> tuple[str, ...]:
    """Return the values in capitals, empty ones left out."""
    words = (word.strip().upper() for word in text_of(ds, keyword).split("\\"))
    return tuple(word for word in words if word)


def count_of(ds: Dataset, keyword: str) -> int | None:
    """Return a number of things; None for what is none."""
    found = text_of(ds, keyword)
    return int(found) if re.fullmatch(r"[0-9]{1,9}", found) else None


def date_of(ds: Dataset, keyword: str) -> date | None:
    """Return a date, also of ACR-NEMA's form with dots; None for what is none."""
    try:
        return datetime.strptime(text_of(ds, keyword).replace(".", ""), "%Y%m%d").date()  # noqa: DTZ007 - a day, of no zone
    except ValueError:
        return None


def holds_any_text(ds: Dataset) -> bool:
    """Return whether an answer is in a character set with every letter there is."""
    return text_of(ds, "SpecificCharacterSet") in ("ISO_IR 192", "GB18030")
