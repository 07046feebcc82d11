"""Outcomes of the test subjects -> figures with their confidence intervals.

Counts of all test subjects are pooled, and the subjects are what is resampled: voxels of one
subject are not independent. A figure over several draws of the batch is the mean over the draws,
and its interval comes from the same resampled subjects in each.

References
----------
Efron and Tibshirani, An Introduction to the Bootstrap, 1993, section 13.3: percentile intervals.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dicom_node.evaluate.outcomes import Outcome, bin_edge
from dicom_node.evaluation import SIZE_CLASSES, area_under_roc, average_precision

N_RESAMPLES = 500
#: in percent: 95 % lie between
_ENDS = (2.5, 97.5)
#: findings that overlap no lesion, a study: where the sensitivity is read
FALSE_PER_STUDY = 1.0

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Figure:
    """One measured value and its 95 % interval; NaN where it does not exist."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class _Ranked:
    """Counts per distinct value, ascending, of each subject."""

    #: (n, k)
    outside: Ints
    inside: Ints


class Pool:
    """The outcomes of one draw, laid side by side so that any weighing of the subjects is quick."""

    def __init__(self, outcomes: Sequence[Outcome]) -> None:
        """Take each test subject once."""
        ordered = sorted(outcomes, key=lambda outcome: outcome.key)
        self.keys = tuple(outcome.key for outcome in ordered)
        self._voxels = _voxels(ordered)
        self._subjects = _subjects(ordered)
        self._thresholds, self._false = _ladders(ordered)
        n_lesions = [len(outcome.lesions_ml) for outcome in ordered]
        self._owner = np.repeat(np.arange(len(ordered)), n_lesions)
        self._ml = np.concatenate([outcome.lesions_ml for outcome in ordered])
        self._highest = np.concatenate([outcome.lesion_scores for outcome in ordered])
        self._normal = np.array([not o.lesioned and o.n_false >= 0 for o in ordered])
        self._n_false = np.array([outcome.n_false for outcome in ordered])
        self._unscored = np.array([outcome.n_unscored for outcome in ordered])

    def figures(self, weights: Ints) -> dict[str, float]:
        """Return every figure, by name, NaN where it does not exist.

        Parameters
        ----------
        weights
            (n,) how often each subject counts, in the order of `keys`.

        Notes
        -----
        `tables.METRICS` says what each of them is. Voxels count once for each time that their
        subject does; the threshold of the sensitivities is chosen anew.
        """
        outside, inside = weights @ self._voxels.outside, weights @ self._voxels.inside
        n_inside, n_all = int(inside.sum()), int(inside.sum() + outside.sum())
        unscored = int(weights @ self._unscored)
        found = {
            "voxel_auroc": area_under_roc(inside, outside),
            "voxel_ap": average_precision(inside, outside),
            "dice_oracle": best_dice(inside, outside),
            "subject_auroc": area_under_roc(
                weights @ self._subjects.inside, weights @ self._subjects.outside
            ),
            "false_findings_per_normal": _mean(self._n_false, weights * self._normal),
            "prevalence": n_inside / n_all if n_all else np.nan,
            "unscored_share": unscored / (n_inside + unscored) if n_inside + unscored else np.nan,
        }
        return found | self._sensitivities(weights)

    def _sensitivities(self, weights: Ints) -> dict[str, float]:
        """Return the share of lesions that a finding reaches where one a study is false."""
        threshold = self.threshold(weights)
        hit = (self._highest >= threshold).astype(np.float64)
        of_lesion = weights[self._owner]
        found = {"lesion_sensitivity": _mean(hit, of_lesion), "threshold": threshold}
        lower = 0.0
        for name, upper in SIZE_CLASSES:
            here = (self._ml >= lower) & (self._ml < upper)
            found[f"lesion_sensitivity {name}"] = _mean(hit, of_lesion * here)
            lower = upper
        return found

    def threshold(self, weights: Ints) -> float:
        """Return the lowest threshold down to which a study has one false finding at most.

        On the mean; infinite where the first step has more.
        """
        mean = weights @ self._false / max(int(weights.sum()), 1)
        too_many = np.flatnonzero(mean > FALSE_PER_STUDY)
        last = (too_many[0] if len(too_many) else len(mean)) - 1
        return bin_edge(int(self._thresholds[last])) if last >= 0 else np.inf

    def n_lesions(self) -> dict[str, int]:
        """Return how many lesions there are of each size."""
        edges = [0.0, *(upper for _, upper in SIZE_CLASSES)]
        counts = np.histogram(self._ml, bins=edges)[0]
        return {name: int(n) for (name, _), n in zip(SIZE_CLASSES, counts, strict=True)}


def best_dice(inside: Ints, outside: Ints) -> float:
    """(k,) counts per score, ascending -> the highest Dice of any threshold; NaN without a mask.

    The threshold is chosen by the masks that it is measured with: an oracle's, which no user has.
    """
    if not inside.sum():
        return float("nan")
    found = inside[::-1].cumsum()
    taken = found + outside[::-1].cumsum()
    return float((2 * found / (taken + inside.sum())).max())


def measured(pools: Sequence[Pool], seed: int, n: int = N_RESAMPLES) -> dict[str, list[Figure]]:
    """Return per figure its value in each draw and, last, its mean over the draws.

    Parameters
    ----------
    pools
        One for each draw of the batch; all test the same subjects.
    seed
        Of the resamples: the same one draws the same subjects in every setting.
    n
        Number of resamples; with 0 there are values and no intervals.

    Raises
    ------
    ValueError
        The draws do not test the same subjects.

    Notes
    -----
    Resamples in which a figure does not exist (none of a class was drawn) are left out of its
    interval. With few subjects of a class an interval is too narrow: it cannot hold what none of
    them shows.
    """
    if len({pool.keys for pool in pools}) != 1:
        raise ValueError("the draws of one setting must test the same subjects")
    n_subjects = len(pools[0].keys)
    every = np.ones(n_subjects, dtype=np.int64)
    exact = [pool.figures(every) for pool in pools]
    drawn = [
        [pool.figures(weights) for pool in pools] for weights in resamples(n_subjects, seed, n)
    ]
    return {name: _figures(exact, drawn, name) for name in exact[0]}


def resamples(n_subjects: int, seed: int, n: int) -> Ints:
    """Return (n, n_subjects) how often each subject is drawn, with replacement."""
    rng = np.random.default_rng(seed)
    return rng.multinomial(n_subjects, np.full(n_subjects, 1.0 / n_subjects), size=n)


def _figures(
    exact: Sequence[Mapping[str, float]],
    drawn: Sequence[Sequence[Mapping[str, float]]],
    name: str,
) -> list[Figure]:
    """Return a figure's value and interval of each draw, and of their mean."""
    values = np.array([one[name] for one in exact])
    table = np.array([[one[name] for one in row] for row in drawn])  # resamples draws
    values = np.append(values, values.mean())
    table = np.column_stack([table, table.mean(axis=1)]) if len(drawn) else table
    return [
        Figure(float(value), *_interval(table[:, at] if len(drawn) else np.zeros(0)))
        for at, value in enumerate(values)
    ]


def _interval(values: Floats) -> tuple[float, float]:
    known = values[np.isfinite(values)]
    if not known.size:
        return np.nan, np.nan
    low, high = np.percentile(known, _ENDS)
    return float(low), float(high)


def _mean(values: NDArray[np.generic], weights: Ints) -> float:
    """Return the weighed mean, NaN where nothing has a weight."""
    total = int(weights.sum())
    return float((np.asarray(values) * weights).sum() / total) if total else float("nan")


def _voxels(outcomes: Sequence[Outcome]) -> _Ranked:
    """Lay the counts of the subjects out over the bins that occur in any of them."""
    bins = np.unique(np.concatenate([outcome.bins for outcome in outcomes]))
    outside, inside = (np.zeros((len(outcomes), len(bins)), dtype=np.int64) for _ in range(2))
    for row, outcome in enumerate(outcomes):
        at = np.searchsorted(bins, outcome.bins)
        outside[row, at], inside[row, at] = outcome.outside, outcome.inside
    return _Ranked(outside, inside)


def _subjects(outcomes: Sequence[Outcome]) -> _Ranked:
    """Lay the subject scores out over their distinct values: one count a subject."""
    _, rank = np.unique([outcome.subject_score for outcome in outcomes], return_inverse=True)
    one_each = np.zeros((len(outcomes), len(outcomes)), dtype=np.int64)
    one_each[np.arange(len(outcomes)), rank] = 1
    ill = np.array([[outcome.lesioned] for outcome in outcomes])
    return _Ranked(one_each * ~ill, one_each * ill)


def _ladders(outcomes: Sequence[Outcome]) -> tuple[Ints, Ints]:
    """Return (t,) thresholds as bins, descending, and (n, t) false findings of each subject.

    Above a subject's highest score it has none; below the lowest threshold that was counted, as
    many as there: it counts as too many already, or its map is used up.
    """
    every = [outcome.ladder for outcome in outcomes]
    thresholds = np.unique(np.concatenate(every))[::-1]
    false = np.zeros((len(outcomes), len(thresholds)), dtype=np.int64)
    for row, outcome in enumerate(outcomes):
        if len(outcome.ladder):
            at = np.searchsorted(-outcome.ladder, -thresholds, side="right") - 1
            false[row] = np.where(at >= 0, outcome.ladder_false[at.clip(0)], 0)
    return thresholds, false
