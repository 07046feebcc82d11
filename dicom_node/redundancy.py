"""How much each subject of a batch adds to it: its distance to the one that is most like it."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from dicom_node.reference_files import ReferenceFiles


def nearest_distances(files: ReferenceFiles, subjects: Sequence[str]) -> list[float]:
    """Return of each subject the mean distance to the nearest other one, in the order given.

    The distance of two subjects is the mean over the tokens and layers of a scale, then over scales
    and both directions: it is the same seen from either, so that of two that are like each other
    none is preferred. A subject that is alone is infinitely far from the others.

    It reads the kept distances of all ordered pairs, and measures those that are not kept: of a
    batch that studies were scored with, none. Raises as `ReferenceFiles.distances` does.
    """
    n = len(subjects)
    between = torch.full((n, n), torch.inf, dtype=torch.float64)
    for row, name in enumerate(subjects):
        others = [other for other in subjects if other != name]
        if others:
            scales = files.distances(name, others)  # each others, layers, n
            means = [scale.double().mean((1, 2)) for scale in scales]
            elsewhere = torch.arange(n) != row
            between[row, elsewhere] = torch.stack(means).mean(0)
    return [min(row) for row in ((between + between.T) / 2).tolist()]
