"""Quantities as people write them, "60 s" or "20 GiB", and shares or counts, for `config`."""

from __future__ import annotations

import math
import re

_SECONDS = {"ms": 0.001, "s": 1, "min": 60, "h": 3600, "d": 86400}
_BYTES = {"B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}


def _quantity(value: object, units: dict[str, float], example: str) -> float:
    """Read "60 s" or "20 GiB"; raises ValueError naming the units.

    The unit is not optional: a bare number is what people guess wrong.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]+)\s*", str(value))
    if match is None or match[2] not in units:
        raise ValueError(
            f'{value!r} is not a quantity like "{example}" (units: {", ".join(units)})'
        )
    found = float(match[1]) * units[match[2]]
    if not math.isfinite(found):
        raise ValueError(f"{value!r} is too large")
    return found


def seconds(value: object) -> float:
    """Read a duration in seconds; raises ValueError that names the units."""
    return _quantity(value, dict(_SECONDS), "60 s")


def size_bytes(value: object) -> int:
    """Read a size in bytes; raises ValueError that names the units.

    Units are powers of 1024 and say so, for "GB" is read either way.
    """
    return int(_quantity(value, dict(_BYTES), "20 GiB"))


def share_or_count(value: object) -> float | int:
    """Read a share, a number with a point above 0 and up to 1.0, or a count, a whole number from 1.

    So 1 is one subject and 1.0 all of them. Raises ValueError that shows both.
    """
    is_share = isinstance(value, float) and 0 < value <= 1
    is_count = isinstance(value, int) and not isinstance(value, bool) and value >= 1
    if not (is_share or is_count):
        raise ValueError(f"{value!r} is neither a share (0.5; up to 1.0) nor a count (20)")
    return value  # type: ignore[return-value]  # one of the two
