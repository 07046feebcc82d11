"""Siemens mosaics: all slices of a volume as the tiles of one image.

An instance says where the whole grid of tiles lies, not where a slice does: that stands in the
vendor's private header. So mosaics are recognised, and refused.
"""

from __future__ import annotations

import re

from pydicom.dataset import Dataset

from dicom_node import header

#: (creator, group, element) of the number of tiles, and of the headers that may hold it by name
_TILES = ("SIEMENS MR HEADER", 0x0019, 0x0A)
_CSA = (("SIEMENS CSA HEADER", 0x0029, 0x10), ("SIEMENS CSA HEADER", 0x0029, 0x20))
#: of a CSA element: name padded to 64 bytes, four numbers and the representation (20 bytes), then
#: items, each after four numbers (16 bytes)
_TAG = re.compile(rb"NumberOfImagesInMosaic\0.{41}.{20}.{16}\s*(\d{1,5})", re.DOTALL)


def n_tiles(ds: Dataset) -> int | None:
    """Return the number of slices in a mosaic, 0 where it is not said; None: it is no mosaic."""
    tiles = _number(_private(ds, *_TILES))
    tiles = tiles or next(filter(None, (_csa(_private(ds, *place)) for place in _CSA)), 0)
    if tiles > 1 or "MOSAIC" in header.codes(ds, "ImageType"):
        return tiles
    return None


def _private(ds: Dataset, creator: str, group: int, element: int) -> object:
    """Return the value of a private element; None where it is not there."""
    try:
        return ds.private_block(group, creator)[element].value
    except header.DAMAGED:
        return None


def _number(found: object) -> int:
    """Return a count, also of an element whose representation is unknown (implicit VR); else 0."""
    if isinstance(found, bytes):
        return int.from_bytes(found[:2], "little")
    return found if isinstance(found, int) else 0


def _csa(found: object) -> int:
    """Return the count that a CSA header names; 0 without."""
    match = _TAG.search(found) if isinstance(found, bytes) else None
    return int(match[1]) if match else 0
