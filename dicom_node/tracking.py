"""Findings of an earlier revision seen again: they keep the Tracking UID by which others know them.

A late slice makes a series anew, and with it all objects; a registry that follows a finding must
not take it for another one.

References
----------
PS3.3 C.8.20.2 (Tracking UID: the same for the same finding in several objects).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from dicom_node.findings import Finding, LabelMap


def seen_again(
    earlier: Sequence[Finding], labels: LabelMap, affine: NDArray[np.float64]
) -> dict[int, int]:
    """Return rank now -> rank before, of findings that hold the peak of an earlier one.

    Parameters
    ----------
    earlier
        By rank; of several whose peaks lie in one region now the highest is meant.
    labels, affine
        (depth, height, width) ranks now, and the (4, 4) of index -> LPS mm.
    """
    inverse = np.linalg.inv(affine)
    found: dict[int, int] = {}
    for finding in earlier:
        index = np.rint((inverse @ [*finding.peak_mm, 1.0])[:3]).astype(int)
        if ((index < 0) | (index >= labels.shape)).any():
            continue
        rank = int(labels[tuple(index)])
        if rank:
            found.setdefault(rank, finding.rank)
    return found
