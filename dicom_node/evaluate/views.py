"""Parts of the tokens that are kept, as if only these had been made: nothing is encoded again.

A token is the projections of its axes side by side, each by the same Gaussian matrix. The columns
of that matrix are independent, so that the first k of an axis *are* a projection to k dimensions;
their distances are shorter by a constant factor, which no rank and no calibrated score sees.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from dicom_node.anomaly.spec import SearchSpec
from dicom_node.anomaly.tokens import Tokens
from dicom_node.reference_files import ReferenceFiles, Scales


@dataclass(frozen=True, slots=True)
class View:
    """Which columns and which scales of the tokens are used; an empty one takes all."""

    #: places among the axes of the tokens, not the axes themselves
    axes: tuple[int, ...] = ()
    #: first columns of each axis; 0 takes all
    k: int = 0
    #: places among the scales, coarse to fine. The search is that of all of them
    scales: tuple[int, ...] = ()

    @property
    def name(self) -> str:
        """Return what its folder is called."""
        axes = "".join(map(str, self.axes)) or "all"
        return f"axes-{axes}_k-{self.k or 'all'}"

    def columns(self, values: Tensor, n_axes: int) -> Tensor:
        """(..., dim) tokens of `n_axes` axes side by side -> (..., dim of the view).

        Raises RuntimeError where the axes do not divide the dimensions.
        """
        of_axis = values.unflatten(-1, (n_axes, -1))  # ... axes k
        chosen = list(self.axes) or list(range(n_axes))
        k = self.k or of_axis.shape[-1]
        made: Tensor = of_axis[..., chosen, :k].flatten(-2)
        return made


def open_view(
    files: ReferenceFiles, root: Path, view: View, search: SearchSpec, n_axes: int
) -> ReferenceFiles:
    """Return the files of a view of the tokens of `files`, to be scored as these are.

    Parameters
    ----------
    files
        Hold the whole tokens; nothing of them changes.
    root
        Gets the distances of views with fewer columns, each in a folder of its name. Views of
        scales have the distances of the whole, of the scales that they keep.
    search
        May be another than that of `files`: its distances lie apart by themselves.
    n_axes
        That the kept tokens hold.
    """
    if not (view.axes or view.k):
        found = ReferenceFiles(files.root, files.fingerprint, search)
    else:
        found = _OfColumns(files, root / view.name, view, search, n_axes)
    return _OfScales(found, view.scales, search) if view.scales else found


class _OfColumns(ReferenceFiles):
    """The tokens of other files, fewer columns of them, with distances of its own."""

    def __init__(
        self, base: ReferenceFiles, root: Path, view: View, search: SearchSpec, n_axes: int
    ) -> None:
        super().__init__(root, base.fingerprint, search)
        self._base, self._view, self._n_axes = base, view, n_axes

    def token_file(self, name: str) -> Path:
        """Return where the whole tokens lie: they are not kept twice."""
        return self._base.token_file(name)

    def load_tokens(self, name: str) -> tuple[Tokens, ...]:
        """Read the tokens of the view."""
        return tuple(
            replace(scale, values=self._view.columns(scale.values, self._n_axes))
            for scale in super().load_tokens(name)
        )


class _OfScales(ReferenceFiles):
    """Some scales of other files: their distances, so that the search stays the same."""

    def __init__(self, whole: ReferenceFiles, scales: Sequence[int], search: SearchSpec) -> None:
        super().__init__(whole.root, whole.fingerprint, search)
        self._whole, self._scales = whole, tuple(scales)

    def distances(self, name: str, others: Sequence[str]) -> Scales:
        """Return those of the scales; measured, where need be, of all."""
        found = self._whole.distances(name, others)
        return tuple(found[scale] for scale in self._scales)

    def analogues(self, name: str, others: Sequence[str]) -> tuple[Scales, Scales]:
        """Return those of the scales."""
        distances, places = self._whole.analogues(name, others)
        return (
            tuple(distances[scale] for scale in self._scales),
            tuple(places[scale] for scale in self._scales),
        )

    def averages(self, name: str, others: Sequence[str], share: float) -> Scales:
        """Return those of the scales."""
        found = self._whole.averages(name, others, share)
        return tuple(found[scale] for scale in self._scales)

    def token_places(self, name: str) -> tuple[tuple[Tensor, tuple[int, int, int]], ...]:
        """Return those of the scales."""
        found = self._whole.token_places(name)
        return tuple(found[scale] for scale in self._scales)


def fine_tokens(files: ReferenceFiles, name: str) -> Tokens:
    """Return the tokens of the finest scale alone."""
    return files.load_tokens(name)[-1]


def mean_of_layers(distances: Sequence[Tensor]) -> Tensor:
    """Per layer (n,) -> (n,): layers are of equal weight."""
    return torch.stack(list(distances)).mean(0)
