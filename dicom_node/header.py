"""Values of a header as they compare, of a classic instance or of an enhanced image alike.

What an enhanced image holds per frame stands in macros two levels down, and senders leave out, pad
and misspell values. A value that cannot be read counts as missing: what it was meant to be is a
guess.

References
----------
PS3.3 C.7.6.16 (functional groups), PS3.5 6.2 (value representations).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

from pydicom.dataset import Dataset
from pydicom.errors import BytesLengthException
from pydicom.multival import MultiValue

#: what pydicom raises when a value is asked for that its representation forbids
DAMAGED = (
    *(ValueError, TypeError, LookupError, NotImplementedError, OverflowError),
    BytesLengthException,
)
#: above it a field strength is no tesla: old headers are in gauss
_MOST_TESLA = 30.0
_GAUSS_PER_TESLA = 10_000.0


def levels(header: Dataset) -> Iterator[Dataset]:
    """Yield the header, then the macros of an enhanced image: shared, then of its first frame."""
    yield header
    # a macro stands in one of the two, as the scanner likes
    for groups in ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"):
        for item in (header.get(groups) or [])[:1]:
            # private groups repeat public attributes, with values of the vendor's own meaning
            macros = [e for e in item if e.VR == "SQ" and not e.tag.is_private]
            yield from (macro.value[0] for macro in macros if macro.value)


def value(header: Dataset, *keywords: str) -> object:
    """Return the first value that is there under one of the keywords, at any level; else None."""
    for level in levels(header):
        for keyword in keywords:
            try:
                found = level.get(keyword)
            except DAMAGED:
                continue
            if found is not None and found != "" and found != []:
                return found
    return None


def text(found: object) -> str:
    """Return a value as it compares, without blanks and case; empty for None."""
    return "" if found is None else str(found).strip().upper()


def codes(header: Dataset, *keywords: str) -> list[str]:
    """Return the values under the first keyword that is there, in order, empty ones too.

    Their places mean something (Image Type). Empty where there is none.
    """
    found = value(header, *keywords)
    if found is None:
        return []
    # the library hands out one value as itself, several as a list
    several: Iterable[object] = found if isinstance(found, MultiValue | list | tuple) else [found]
    return [text(entry) for entry in several]


def number(header: Dataset, *keywords: str) -> float | None:
    """Return the first value as a number above 0, to four digits; else None.

    Scanners write 0 where a parameter does not apply; further digits are their arithmetic.
    """
    for word in codes(header, *keywords)[:1]:
        try:
            found = float(word)
        except ValueError:
            return None
        return rounded(found) if math.isfinite(found) and found > 0 else None
    return None


def tesla(header: Dataset) -> float | None:
    """Return Magnetic Field Strength in T to two digits: 1.494, 1.5 and 15000 (gauss) are one."""
    found = number(header, "MagneticFieldStrength")
    if found is None:
        return None
    return float(f"{found if found < _MOST_TESLA else found / _GAUSS_PER_TESLA:.2g}")


def rounded(found: float) -> float:
    """Return a number to four significant digits."""
    return float(f"{found:.4g}")
