"""A labelled folder of tiny heads: some with a dark cube, all with a mask."""

from pathlib import Path

import numpy as np

from tests.make import lines, scans


def write_cohort(folder: Path, n_normal: int, n_lesioned: int, first: int = 0) -> None:
    """`normalK_t1` with empty masks and `illK_t1` with a cube of 1.2 ml or less, and its mask."""
    for k in range(first, first + n_normal + n_lesioned):
        voxels = lines.head(k).copy()
        inside = np.zeros(voxels.shape, dtype=bool)
        ill = k - first >= n_normal
        if ill:
            at = 4 + k % 3
            inside[at : at + 6, 10 : 20 - k % 2, 12:22] = True
            voxels[inside] = 0
        name = f"{'ill' if ill else 'normal'}{k}"
        scans.write_scan(folder, f"{name}_t1", voxels)
        scans.write_scan(folder, f"{name}_label", inside)
