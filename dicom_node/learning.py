"""Volumes of a batch -> the space that they share: the most typical one, their mean histogram.

The same for the node, which learns of its members, and for a folder of scans. Nothing here reads
DICOM, a ledger or a configuration.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from dicom_node.alignment import medoid
from dicom_node.anomaly import harmonisation
from dicom_node.subject import Canonical

#: subjects among which the most typical one is sought: their volumes are read for it, and the
#: medoid of a dozen lies as near to the middle of the batch as registration can tell
MOST = 12
#: edge of the voxels that are compared, about: what registration begins with
_EDGE_MM = 4.0


def picture(placed: Canonical, spacing_mm: float) -> Tensor:
    """Return a canonical volume at about 4 mm, flat: what `most_typical` compares."""
    step = max(1, round(_EDGE_MM / spacing_mm))
    return torch.nn.functional.avg_pool3d(placed.voxels[None], step, ceil_mode=True).flatten()


def most_typical(pictures: Sequence[Tensor]) -> int:
    """(n) flat pictures of one length -> index of the one that is most like the others.

    The medoid of 1 - r, the correlation of two pictures with all their voxels, so that the outline
    counts as the inside does. Raises ValueError for none.
    """
    if not pictures:
        raise ValueError("the most typical of no subject is asked for")
    if len(pictures) == 1:
        return 0
    between = 1.0 - np.corrcoef(torch.stack(list(pictures)).double().numpy())
    return medoid((between + between.T) / 2)


def landmarks_of(placed: Canonical) -> tuple[float, ...]:
    """Return the landmarks of a canonical volume that is not harmonised."""
    return harmonisation.landmarks(placed.voxels, placed.foreground)
