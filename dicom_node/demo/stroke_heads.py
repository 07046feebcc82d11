"""Real heads -> their brains, and where these lie seen from MNI space.

A head is read and looked at, and never resampled. One that cannot be brought to the template is
left out, whether it was to get a lesion or not.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dicom_node import nifti
from dicom_node.alignment import (
    LIMITS,
    Limits,
    Template,
    align,
    make_template,
    template_from_nifti,
)
from dicom_node.demo.cohort import load_template
from dicom_node.demo.stroke_lesions import Levels, tissue_levels
from dicom_node.errors import ConfigError, RegistrationFailed, SeriesRejected
from dicom_node.masks.brain import brain_mask

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Target:
    """What heads are registered to, and how well."""

    template: Template
    limits: Limits


@dataclass(frozen=True, slots=True)
class PlacedHead:
    """A head that may become a subject."""

    name: str
    #: (depth, height, width) as in the source
    voxels: NDArray[np.float32]
    affine: Floats
    brain: NDArray[np.bool_]
    levels: Levels
    #: (4, 4) LPS mm of the masks' space -> LPS mm of the head
    to_head: Floats


def target_of(mni: Path | None, cache: Path) -> Target:
    """Read the head in MNI space; raises ConfigError where it is no image."""
    if mni is None:
        built_in = load_template(cache)
        template = make_template(built_in.voxels, built_in.affine)
        # it is symmetric: which side is which is only in the files, and a registration that keeps
        # the other limits cannot exchange them
        return Target(template, replace(LIMITS["atlas"], mirror=math.inf))
    try:
        return Target(template_from_nifti(mni), LIMITS["atlas"])
    except SeriesRejected as error:
        raise ConfigError(f"{error}; name a skull-stripped T1 in the masks' space") from error


def placed_heads(
    paths: Sequence[Path], target: Target, cache: Path, note: Callable[[str], None]
) -> Iterator[PlacedHead]:
    """Yield the heads that can be brought to the masks' space; the others are named."""
    for path in paths:
        try:
            yield _place(path, target, cache)
        except RegistrationFailed as error:
            missed = f"{error.criterion} {error.value:.3f}, limit {error.limit:.3f}"
            note(f"{path.name} is left out: its brain does not fit the one in MNI space ({missed})")
        except (SeriesRejected, ValueError) as error:
            note(f"{path.name} is left out: {error}")


def _place(path: Path, target: Target, cache: Path) -> PlacedHead:
    """Read a head, find its brain, and register that.

    Raises SeriesRejected or ValueError with the reason why it cannot be used.
    """
    source = nifti.read(path)
    brain = brain_mask(source.voxels, source.affine, cache)
    levels = tissue_levels(source.voxels, brain)
    # the head in MNI space has no skull: nothing may hold on to that of this one
    stripped = np.where(brain, source.voxels, source.voxels.min())
    found = align(stripped, source.affine, target.template, "atlas", target.limits)
    name = re.sub(r"_t1w?$", "", nifti.stem(path), flags=re.IGNORECASE)
    return PlacedHead(name, source.voxels, source.affine, brain, levels, found.to_source)
