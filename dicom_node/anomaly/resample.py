"""Source grid <-> canonical grid, by affine maps from index to LPS millimetres.

An affine is (4, 4), maps an index (depth, height, width, 1) of voxel centres to patient coordinates
(x, y, z, 1) and is kept in fp64; values are fp32.
"""

from __future__ import annotations

import torch
import torch.nn.functional as nnf
from torch import Tensor

from dicom_node.anomaly.spec import GridSpec


def canonical_affine(grid: GridSpec, centre_mm: Tensor) -> Tensor:
    """(3,) centre in LPS mm -> (4, 4) affine of the canonical grid.

    Index (depth, height, width) runs towards S, P, L: LPS z, y, x. The grid's middle lies at the
    centre, between two voxels where its side is even.
    """
    affine = torch.zeros(4, 4, dtype=torch.float64)
    for axis, row in enumerate((2, 1, 0)):
        affine[row, axis] = grid.spacing_mm
    half = torch.tensor(grid.shape, dtype=torch.float64).sub(1).div(2)
    affine[:3, 3] = centre_mm.double() - affine[:3, :3] @ half
    affine[3, 3] = 1.0
    return affine


def sample(voxels: Tensor, to_source: Tensor, shape: tuple[int, int, int], fill: float) -> Tensor:
    """(depth, height, width) voxels -> `shape`, trilinear; `to_source` maps target to source index.

    What lies outside the source is `fill`; within a voxel of its outermost centres the two are
    mixed. There is no smoothing before a coarser target. Runs slab by slab, so that the sampling
    grid never outweighs the volume.
    """
    size = torch.tensor(voxels.shape, dtype=torch.float64)
    matrix = to_source.double()
    # the sampler pads with zeros: made relative to it, `fill` is that zero
    source = (voxels.float() - fill)[None, None]  # 1 1 D H W
    height, width = torch.meshgrid(
        torch.arange(shape[1], dtype=torch.float64),
        torch.arange(shape[2], dtype=torch.float64),
        indexing="ij",
    )
    out = torch.empty(shape, dtype=torch.float32)
    for start in range(0, shape[0], 16):
        depth = torch.arange(start, min(start + 16, shape[0]), dtype=torch.float64)
        index = torch.stack(
            [
                depth[:, None, None].expand(-1, *height.shape),
                height.expand(len(depth), -1, -1),
                width.expand(len(depth), -1, -1),
            ],
            dim=-1,
        )  # slab H W 3
        source_index = index @ matrix[:3, :3].T + matrix[:3, 3]  # slab H W 3
        # grid_sample wants (x, y, z) in [-1, 1]; align_corners=False puts -1 half a voxel outside
        normal = ((source_index + 0.5) / size * 2 - 1).flip(-1).float()
        out[start : start + len(depth)] = nnf.grid_sample(
            source, normal[None], mode="bilinear", padding_mode="zeros", align_corners=False
        )[0, 0]
    return out + fill


def index_map(target_affine: Tensor, source_affine: Tensor) -> Tensor:
    """(4, 4) index->LPS of target and source -> (4, 4) target index to source index.

    Raises RuntimeError for a source affine that has no inverse.
    """
    matrix: Tensor = torch.linalg.solve(source_affine.double(), target_affine.double())
    return matrix
