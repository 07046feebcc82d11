"""Token scores of subjects that lie in no common space, calibrated by their analogues.

Takes the place of `scoring.ReferenceScores`. It reads which tokens are the nearest for every pair
of the batch: O(n^2) small files a score, where the calibration by place reads n.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from torch import Tensor

from dicom_node.anomaly.analogues import location_and_scale, log_excess, scores_of_analogues
from dicom_node.anomaly.anomaly_map import fuse
from dicom_node.anomaly.calibration import to_grid
from dicom_node.anomaly.spec import ScoringSpec
from dicom_node.reference_files import ReferenceFiles, Scales


class AnalogueScores:
    """Each reference subject's own token scores, in the batch's order: (D, H, W), made when asked.

    In robust deviations of the excess over all tokens of the batch.
    """

    def __init__(
        self,
        files: ReferenceFiles,
        names: Sequence[str],
        spec: ScoringSpec,
        progress: Callable[[float], None] = lambda _share: None,
    ) -> None:
        """Score each of `names`, three at least, against the others; raises as `files` does."""
        self.names = tuple(names)
        self._files, self._share = files, spec.nearest_share
        self._raw = {
            name: files.averages(name, self._others(name), self._share) for name in self.names
        }
        self._excesses: list[Scales] = []
        for done, name in enumerate(self.names, 1):
            self._excesses.append(self._excess(name))
            progress(done / len(self.names))
        by_scale = zip(*self._excesses, strict=True)
        self._usual = [location_and_scale(excesses) for excesses in by_scale]

    def _others(self, name: str) -> list[str]:
        return [other for other in self.names if other != name]

    def _excess(self, name: str) -> Scales:
        """Return per scale (layers, n) how a subject compares with the others of the batch."""
        others = self._others(name)
        distances, places = self._files.analogues(name, others)
        return tuple(
            log_excess(
                distances[scale],
                scores_of_analogues([self._raw[other][scale] for other in others], places[scale]),
                self._share,
            )
            for scale in range(len(distances))
        )

    def __len__(self) -> int:
        """Return the number of reference subjects."""
        return len(self.names)

    def judged(self, name: str, _own: Sequence[Tensor] = ()) -> Tensor:
        """Return the (D, H, W) scores of a study, NaN where it has no token."""
        return self._placed(name, self._excess(name))

    def __iter__(self) -> Iterator[Tensor]:
        """Yield the scores of each subject."""
        return (self[place] for place in range(len(self)))

    def __getitem__(self, place: int) -> Tensor:
        """Return the scores of one reference subject against the others."""
        return self._placed(self.names[place], self._excesses[place])

    def _placed(self, name: str, excess: Scales) -> Tensor:
        """Per scale (layers, n) excesses -> (D, H, W), standardised and fused."""
        scales = zip(excess, self._usual, self._files.token_places(name), strict=True)
        return fuse([to_grid((one - at) / scale, *where) for one, (at, scale), where in scales])
