"""Scores of a batch that is not clean: who is left out of it, and which analogues do not count.

Both are off unless the method asks for them. They read the kept distances of every pair of the
batch, so that a study costs O(n^2) small files with them and O(n) without.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dicom_node.anomaly.calibration import UsualScores, calibrate, centred, to_grid
from dicom_node.anomaly.contamination import (
    average_of_known,
    linked,
    suspicious_links,
    without_shared,
)
from dicom_node.anomaly.similarity import n_nearest
from dicom_node.anomaly.spec import GuardSpec, ScoringSpec
from dicom_node.reference_files import ReferenceFiles, Scales


class GuardedFiles:
    """The averages of the subjects of one batch, without the analogues that they share.

    Takes the place of `ReferenceFiles` where token scores are made. Three passes over the kept
    distances, a subject at a time: memory grows with the batch, not with its pairs.
    """

    def __init__(
        self, files: ReferenceFiles, subjects: Sequence[str], spec: ScoringSpec, guard: GuardSpec
    ) -> None:
        """Find which of `subjects` (the study and its batch, three at least) share what."""
        self._files, self._subjects, self._guard = files, list(subjects), guard
        self._unusual = self._how_unusual(spec)
        counts = torch.stack([self._links_to(name) for name in self._subjects])
        self._linked = linked(counts, guard)

    def partners(self, name: str) -> list[str]:
        """Return the subjects that share something unusual with one of them."""
        row = self._linked[self._subjects.index(name)].tolist()
        return [other for other, link in zip(self._subjects, row, strict=True) if link]

    def token_places(self, name: str) -> tuple[tuple[Tensor, tuple[int, int, int]], ...]:
        """Return what `ReferenceFiles.token_places` does."""
        return self._files.token_places(name)

    def averages(self, name: str, others: Sequence[str], share: float) -> Scales:
        """Return per scale (layers, n): the mean distance to the nearest share of `others`.

        Analogues in a subject that shares the token's anomaly are left out, and the mean is over as
        many of the rest. `others` are of the batch that was given. Raises as
        `ReferenceFiles.averages` does.
        """
        partners = set(self.partners(name))
        if not partners.intersection(others):
            return self._files.averages(name, others, share)
        partner = torch.tensor([other in partners for other in others])
        k = n_nearest(len(others), share)
        return tuple(
            average_of_known(
                without_shared(distances, suspicious_links(distances, odd, self._guard), partner), k
            )
            for distances, odd in zip(
                self._files.distances(name, others), self._unusual[name], strict=True
            )
        )

    def _others(self, name: str) -> list[str]:
        return [other for other in self._subjects if other != name]

    def _how_unusual(self, spec: ScoringSpec) -> dict[str, Scales]:
        """Return per subject and scale (layers, n): the excess of its distance to the middle one.

        The nearest share is where a shared lesion hides; the middle subject does not have it, as
        long as a minority has.
        """
        grids, places = [], []
        for name in self._subjects:
            found = self._files.distances(name, self._others(name))
            places.append(self._files.token_places(name))
            middle = (distances.median(0).values for distances in found)
            grids.append(
                [to_grid(one, *place) for one, place in zip(middle, places[-1], strict=True)]
            )
        scales = [torch.stack(scale) for scale in zip(*grids, strict=True)]  # n layers D H W
        if spec.calibration != "none":
            scales = [_calibrated(scale, spec) for scale in scales]
        return {
            name: tuple(
                scale[at].flatten(-3)[..., index]
                for scale, (index, _) in zip(scales, places[at], strict=True)
            )
            for at, name in enumerate(self._subjects)
        }

    def _links_to(self, name: str) -> Tensor:
        """Return (n,) number of suspicious links to each subject of the batch."""
        others = self._others(name)
        found = torch.zeros(len(self._subjects))
        at = torch.tensor([self._subjects.index(other) for other in others])
        for distances, odd in zip(
            self._files.distances(name, others), self._unusual[name], strict=True
        ):
            found[at] += suspicious_links(distances, odd, self._guard).sum((1, 2)).float()
        return found


def _calibrated(grids: Tensor, spec: ScoringSpec) -> Tensor:
    """(n, layers, D, H, W) -> the same, each subject judged by the others at each place."""
    grids = centred(grids)
    usual = UsualScores.of(grids)
    return torch.stack([calibrate(own, *usual.of_others(own, spec)) for own in grids])
