"""When a protocol's template and histogram are chosen again: the rules, on rows alone.

They change rarely, for each change costs the encoding of every member anew, new scores cannot be
compared with old ones, and a template that is a little more typical gains little. So one look
follows the founding, when the batch is large enough to be scored with, and another each time that
the batch has grown by the protocol's ``rechoose_growth``: with 15 to 60 members and the default of
2, at 15, 30 and 60. A look that finds nothing better changes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

from dicom_node.config import digest
from dicom_node.protocol_config import Protocol
from dicom_node.store.space_table import SpaceRow

#: a landmark that moves by less is no reason to encode all members anew: a hundredth of the
#: encoder's range, a few grey levels of 255
LANDMARK_STEP = 0.01


def settings_of(protocol: Protocol) -> str:
    """Return the digest of the settings under which a space is learnt.

    Under others another is founded, and with the old ones the old one serves again. A template file
    is none of them: landmarks that were learnt with another one are as good.
    """
    return digest(
        protocol.own,
        protocol.alignment,
        protocol.foreground,
        protocol.extent_mm,
        protocol.spacing_mm,
    )


def due(protocol: Protocol, looks: Sequence[SpaceRow], n_admitted: int) -> bool:
    """Return whether a look is due.

    Parameters
    ----------
    looks
        All of the protocol under its present settings, the newest first.
    n_admitted
        Patients in the batch.
    """
    if not looks or not protocol.rechoose_growth or n_admitted < protocol.min_reference:
        return False
    return n_admitted >= protocol.rechoose_growth * looks[0].n_members


def moved_far(one: Sequence[float], other: Sequence[float]) -> bool:
    """Return whether two sets of landmarks differ by more than `LANDMARK_STEP`, or in number."""
    if len(one) != len(other):
        return True
    return any(abs(a - b) > LANDMARK_STEP for a, b in zip(one, other, strict=True))
