"""Tiny subjects: random tokens of two scales on grids that not all of them cover."""

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as nnf
from torch import Tensor

from dicom_node.anomaly.spec import SearchSpec
from dicom_node.anomaly.tokens import Tokens
from dicom_node.reference_files import ReferenceFiles
from dicom_node.subject import Subject

#: coarse to fine: (depth, height, width) of the token grids, and the edge of a token in voxels
GRIDS = ((2, 2, 1), (4, 4, 2))
PITCHES = (8, 4)
#: layers of each scale
LAYERS = (1, 2)


def subject(seed: int, dim: int = 4) -> Subject:
    """About nine in ten places of the fine grid hold a token, and three in four coarse cells."""
    generator = torch.Generator().manual_seed(seed)
    cells = torch.rand(GRIDS[0], generator=generator) < 0.75
    cells[0, 0, 0] = True
    fine = torch.rand(GRIDS[1], generator=generator) < 0.9
    fine[0, 0, 0] = True
    fine &= enlarged(cells, PITCHES[0] // PITCHES[1])
    coarse = nnf.max_pool3d(fine.float()[None, None], PITCHES[0] // PITCHES[1])[0, 0] > 0
    tokens = []
    for kept, n_layers in zip((coarse, fine), LAYERS, strict=True):
        index = kept.flatten().nonzero()[:, 0]
        values = torch.randn(n_layers, len(index), dim, generator=generator)
        tokens.append(Tokens(values, index, tuple(kept.shape)))
    affine = torch.eye(4, dtype=torch.float64)
    affine[:3, 3] = torch.randn(3, generator=generator)
    return Subject(tuple(tokens), enlarged(fine, PITCHES[1]), affine)


def enlarged(mask: Tensor, times: int) -> Tensor:
    """(D, H, W) -> each place as a cube of `times` voxels."""
    for axis in range(3):
        mask = mask.repeat_interleave(times, axis)
    return mask


def keep(
    root: Path, seeds: Sequence[int], search: SearchSpec | None = None
) -> tuple[ReferenceFiles, list[str]]:
    """Files of the subjects of these seeds, and their names."""
    files = ReferenceFiles(root, "f", search or SearchSpec())
    names = [f"s{seed}" for seed in seeds]
    for seed, name in zip(seeds, names, strict=True):
        files.save_subject(name, subject(seed))
    return files, names
