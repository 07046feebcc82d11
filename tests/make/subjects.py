"""Tiny subjects: a few random tokens on a token grid that not all of them cover."""

import torch

from dicom_node.anomaly.tokens import Tokens
from dicom_node.reference import Subject

GRID = (2, 3, 2)
PITCH = 4


def subject(seed: int, layers: int = 2, dim: int = 4) -> Subject:
    """About nine in ten places of the grid hold a token."""
    generator = torch.Generator().manual_seed(seed)
    covered = torch.rand(GRID, generator=generator) < 0.9
    covered[0, 0, 0] = True
    index = covered.flatten().nonzero()[:, 0]
    values = torch.randn(layers, len(index), dim, generator=generator)
    foreground = covered
    for axis in range(3):
        foreground = foreground.repeat_interleave(PITCH, axis)
    affine = torch.eye(4, dtype=torch.float64)
    affine[:3, 3] = torch.randn(3, generator=generator)
    return Subject(Tokens(values, index, GRID), foreground, affine)
