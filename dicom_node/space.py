"""A protocol's *space*: what it takes from its own batch, as an immutable file.

A template to which the subjects are brought, and the landmarks of a histogram at which their grey
levels come to lie; either or both. Tokens of two spaces are never compared: the contents are part
of the fingerprint of tokens. Which space a protocol uses, and since when, says the ledger
(:mod:`dicom_node.store.space_table`). The file holds a patient's volume: it never leaves the node.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from dicom_node import durable
from dicom_node.alignment import Template
from dicom_node.config import digest
from dicom_node.errors import SpaceMissing


@dataclass(frozen=True)
class Space:
    """What a protocol takes from its own batch."""

    #: None: the protocol has none, or names a file
    template: Template | None = None
    #: where `anomaly.harmonisation.SHARES` lie in [0, 1]; empty: nothing is harmonised
    landmarks: tuple[float, ...] = ()

    @cached_property
    def name(self) -> str:
        """Digest of the content, which names it."""
        return digest(self.template and _digest(self.template), self.landmarks)


def _digest(template: Template) -> list[str]:
    foreground = np.packbits(template.foreground)
    return [template.digest(), hashlib.sha256(foreground.tobytes()).hexdigest()]


class SpaceFiles:
    """The spaces of one node, as safetensors files named by their content."""

    def __init__(self, root: Path) -> None:
        """Use the files below `root`, the node's data folder."""
        self._folder = root / "spaces"

    def save(self, space: Space) -> str:
        """Keep a space; returns its name. What is kept already is the same."""
        path = self._path(space.name)
        if not path.exists():
            tensors = {"landmarks": np.array(space.landmarks, dtype=np.float64)}
            if space.template is not None:
                tensors["voxels"] = np.ascontiguousarray(space.template.voxels)
                tensors["affine"] = np.ascontiguousarray(space.template.affine)
                tensors["foreground"] = np.ascontiguousarray(space.template.foreground)
            durable.make_folder(self._folder)
            with durable.replacing(path) as partial:
                save_file(tensors, partial)
        return space.name

    def load(self, name: str) -> Space:
        """Read a kept space; raises SpaceMissing where it is not as it was kept."""
        try:
            found = load_file(self._path(name))
        except (OSError, SafetensorError) as error:
            raise SpaceMissing(_missing(self._path(name), "cannot be read")) from error
        template = None
        if "voxels" in found:
            template = Template(found["voxels"], found["affine"], found["foreground"])
        space = Space(template, tuple(found.get("landmarks", np.zeros(0)).tolist()))
        if space.name != name:
            raise SpaceMissing(_missing(self._path(name), "is not what was written"))
        return space

    def _path(self, name: str) -> Path:
        return self._folder / f"{name}.safetensors"


def _missing(path: Path, what: str) -> str:
    return (
        f"the template and histogram of the protocol's batch, {path}, {what}: put the file back "
        "from a backup of the data folder, then `dicom-node retry`"
    )
