"""Volume -> where its canonical grid lies, and what of it is scored: as its protocol says.

By itself a volume is placed by the middle of its foreground, along the patient's axes. With a
template it is brought to the template's place and pose first, so that a token has the same anatomy
in every subject. What is foreground says the protocol too: the body, the brain, the lungs, or what
the template has.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dicom_node.alignment import Kind, Template, align, make_template
from dicom_node.anomaly import foreground, resample
from dicom_node.anomaly.spec import GridSpec
from dicom_node.errors import EmptyForeground
from dicom_node.masks.brain import brain_mask
from dicom_node.masks.lung import lung_mask

Foreground = Literal["body", "brain", "lung", "template"]


@dataclass(frozen=True, slots=True)
class Placement:
    """Where one volume's canonical grid lies."""

    #: (4, 4) canonical index -> LPS mm of the source; with an affine registration it may be sheared
    affine: Tensor
    #: (depth, height, width) bool on the canonical grid; None: the body, found on that grid
    mask: Tensor | None


@dataclass(frozen=True)
class Placing:
    """How the volumes of one protocol are placed."""

    foreground: Foreground = "body"
    kind: Literal["none"] | Kind = "none"
    #: needed by every kind but "none", and by the foreground "template"
    template: Template | None = None
    #: where the networks of the brain mask lie, or are fetched to
    cache: Path = Path()

    @cached_property
    def space(self) -> tuple[str, str, str | None]:
        """What names the space: tokens of two spaces are never compared.

        Kept: it is asked for with every job, and reads the whole template.
        """
        template = None if self.template is None else self.template.digest()
        return self.foreground, self.kind, template

    def __call__(self, voxels: Tensor, affine: Tensor, grid: GridSpec) -> Placement:
        """Place (depth, height, width) voxels, whose (4, 4) affine maps index -> LPS mm.

        Raises
        ------
        EmptyForeground
            There is too little foreground, or none of the kind that is asked for.
        RegistrationFailed
            The volume did not get to the template; the message names the limit that was missed.
        NodeError
            The networks of the brain mask cannot be fetched.
        """
        own = self._own_mask(voxels, affine)
        if self.template is None or self.kind == "none":
            centre = foreground_centre(voxels, affine, own)
            target = resample.canonical_affine(grid, centre)
        else:
            to_source = torch.from_numpy(self._aligned(voxels, affine, own, self.template))
            target = to_source @ self._on_template(grid, self.template)
        mask = own
        if mask is not None:
            mask = _moved(mask, resample.index_map(target, affine), grid)
        elif self.foreground == "template" and self.template is not None:
            there = torch.from_numpy(self.template.affine)
            on_template = resample.index_map(self._on_template(grid, self.template), there)
            mask = _moved(torch.from_numpy(self.template.foreground), on_template, grid)
        if mask is not None and not bool(mask.any()):
            raise EmptyForeground(f"no {self.foreground} lies within the canonical grid")
        return Placement(target, mask)

    def as_template(self, voxels: Tensor, affine: Tensor) -> Template:
        """Make a template of a volume; arguments and errors as of a call.

        Of an organ it has the organ alone, as all that is registered to it.
        """
        own = self._own_mask(voxels, affine)
        if own is not None:
            voxels = torch.where(own, voxels, voxels.min())
        return make_template(voxels.float().numpy(), affine.numpy())

    def _own_mask(self, voxels: Tensor, affine: Tensor) -> Tensor | None:
        """Return the volume's own mask on its own grid, where the protocol asks for an organ."""
        if self.foreground not in {"brain", "lung"}:
            return None
        array, where = voxels.float().numpy(), affine.numpy()
        try:
            if self.foreground == "lung":
                return torch.from_numpy(lung_mask(array, where))
            return torch.from_numpy(brain_mask(array, where, self.cache))
        except ValueError as error:
            raise EmptyForeground(f"the {self.foreground} was not found: {error}") from error

    def _aligned(
        self, voxels: Tensor, affine: Tensor, own: Tensor | None, template: Template
    ) -> NDArray[np.float64]:
        """Return (4, 4) template LPS mm -> source LPS mm."""
        assert self.kind != "none"  # noqa: S101 - the caller has asked
        if own is not None:
            # a template of a brain has no scalp: nothing of the volume may hold on to it
            voxels = torch.where(own, voxels, voxels.min())
        return align(voxels.float().numpy(), affine.numpy(), template, self.kind).to_source

    @staticmethod
    def _on_template(grid: GridSpec, template: Template) -> Tensor:
        """Return (4, 4) canonical index -> LPS mm of the template: the same for every subject."""
        where = torch.from_numpy(template.affine)
        centre = foreground.centroid_mm(torch.from_numpy(template.foreground), where)
        return resample.canonical_affine(grid, centre)


def _moved(mask: Tensor, to_mask: Tensor, grid: GridSpec) -> Tensor:
    """(depth, height, width) bool -> the same on the canonical grid."""
    return resample.sample(mask.float(), to_mask, grid.shape, 0.0) >= 0.5


def foreground_centre(voxels: Tensor, affine: Tensor, mask: Tensor | None = None) -> Tensor:
    """Return (3,) LPS mm of the centroid of the mask, or of the body, on a subsample of about 3 mm.

    The grid is placed by it, before there is a mask on the grid; a few millimetres do. Raises
    ValueError where all voxels have one value.
    """
    spacing = affine[:3, :3].norm(dim=0)
    steps = [max(1, int(3.0 / float(edge))) for edge in spacing]
    every = tuple(slice(None, None, step) for step in steps)
    scaled = affine.clone()
    scaled[:3, :3] = affine[:3, :3] * torch.tensor(steps, dtype=affine.dtype)
    found = foreground.body_mask(voxels[every]) if mask is None else mask[every]
    return foreground.centroid_mm(found, scaled)
