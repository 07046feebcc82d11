"""Settings -> runs -> outcomes, each run kept in a file of its own: that is how it resumes.

A run is one way to score the test subjects of one fold against one batch. Its file is named by all
that shapes its outcome, so that settings which ask for the same share it, and a run whose method,
batch or mask has changed is done again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from dicom_node.anomaly.anomaly_map import subject_score
from dicom_node.batch import products
from dicom_node.config import digest
from dicom_node.errors import NonFiniteScores
from dicom_node.evaluate import cohort as cohorts
from dicom_node.evaluate import outcomes, peers, splits, views
from dicom_node.evaluate.cohort import Cohort, Work
from dicom_node.evaluate.outcomes import Judged, Outcome
from dicom_node.evaluate.plan import Setting, Way
from dicom_node.evaluate.splits import Folds, Member
from dicom_node.reference_files import ReferenceFiles
from dicom_node.scoring import (
    MIN_REFERENCE,
    BatchScores,
    reference_scores,
    score_against,
    score_with,
    used_of,
)

#: raise it with every change that changes an outcome
_VERSION = 1


@dataclass(frozen=True, slots=True)
class Run:
    """One fold of one draw of one setting, scored one way."""

    setting: Setting
    way: Way
    draw: int
    fold: int


@dataclass(frozen=True, slots=True)
class Runner:
    """Makes the outcomes of runs, or reads them where they are kept."""

    work: Work
    cohort: Cohort
    #: by site
    folds: dict[int, Folds]
    #: gets a file per run; exists
    folder: Path
    seed: int

    def runs(self, settings: Sequence[Setting], n_draws: int) -> Iterator[Run]:
        """Yield every run, setting by setting."""
        for setting in settings:
            for way in setting.ways:
                for draw in range(n_draws):
                    for fold in range(len(self.folds[setting.tested])):
                        yield Run(setting, way, draw, fold)

    def outcomes(self, run: Run) -> list[Outcome]:
        """Return the outcomes of a run's test subjects, made unless they are kept.

        Raises NodeError where a subject cannot be scored: then none of the run is kept.
        """
        batch, tests = self.members(run)
        path = self.folder / f"{self._name(run, batch, tests)}.npz"
        if not path.exists():
            outcomes.save(path, self._made(run, batch, tests))
        return outcomes.load(path)

    def members(self, run: Run) -> tuple[list[Member], list[Member]]:
        """Return the batch of a run and its test subjects; encodes changed copies of them."""
        setting = run.setting
        tests = list(self.folds[setting.tested][run.fold])
        batch = list(
            splits.draw_batch(
                self.cohort.members,
                tests,
                setting.size,
                setting.n_lesioned,
                [self.seed, run.draw, run.fold],
                setting.n_second,
            )
        )
        if setting.change is None:
            return batch, tests
        if setting.changed == "test":
            return batch, cohorts.changed(self.work, tests, setting.change)
        other = splits.every_second(self.cohort.members)
        made = cohorts.changed(self.work, [m for m in batch if m.key in other], setting.change)
        return [*made, *(m for m in batch if m.key not in other)], tests

    def _name(self, run: Run, batch: Sequence[Member], tests: Sequence[Member]) -> str:
        """Return the hash of all that shapes the outcomes."""
        recipe = self.work.recipe
        return digest(
            _VERSION,
            recipe.token_fingerprint,
            [recipe.findings.threshold, recipe.findings.min_volume_ml],
            asdict(recipe.method.scoring),
            asdict(run.way),
            sorted(member.key for member in batch),
            [self.work.truth_name(member.key) for member in tests],
        )

    def _made(self, run: Run, batch: Sequence[Member], tests: Sequence[Member]) -> list[Outcome]:
        """Score the test subjects one after the other."""
        keys = sorted(member.key for member in batch)
        if run.way.peer:
            judge = peers.peer(run.way.peer, self.work, keys)
        else:
            judge = self._own_judge(run.way, keys)
        recipe = self.work.recipe
        size = recipe.method.grid.spacing_mm, recipe.findings.min_volume_ml
        made = []
        for member, original in zip(tests, self.folds[run.setting.tested][run.fold], strict=True):
            truth = self.work.truth(member.key)
            found = outcomes.outcome_of(original.key, judge.judge(member.key), truth, *size)
            made.append(found)
        return made

    def _own_judge(self, way: Way, batch: Sequence[str]) -> peers.Peer:
        root, n_axes = self.work.folder / "views", len(self.work.recipe.method.tokens.axes)
        files = views.open_view(self.work.files, root, way.view, way.search, n_axes)
        return _Method(self.work, files, way, batch)


class _Method:
    """The method itself, as a peer among the others."""

    def __init__(self, work: Work, files: ReferenceFiles, way: Way, batch: Sequence[str]) -> None:
        """Score the batch itself once for all test subjects, where these have no part in it."""
        self.work, self.files, self.way, self.batch = work, files, way, batch
        self._reference = None
        if way.scoring.guard is None and len(batch) >= MIN_REFERENCE:
            used = used_of(files, batch, way.scoring)
            self._reference = reference_scores(files, used, way.scoring)

    def _scores(self, key: str) -> BatchScores:
        if self._reference is None:
            return score_against(self.files, key, self.batch, self.way.scoring)
        return score_with(self.files, key, self._reference, self.way.scoring)

    def judge(self, key: str) -> Judged:
        """Return the calibrated map and the subject score of a kept subject."""
        scoring, scores = self.way.scoring, self._scores(key)
        try:
            score = subject_score(scores.calibrated, scoring.subject_share)
        except ValueError as error:
            raise NonFiniteScores(f"the scores of {key} are not finite: {error}") from error
        made = peers.map_of(self.work, scores.calibrated, key, scoring.smoothing_mm)
        return Judged(made, score, self._threshold(scores))

    def _threshold(self, scores: BatchScores) -> float:
        """Return from where the method calls a region a finding, as batch mode has it."""
        fixed = self.work.recipe.findings.threshold
        if fixed is not None and self.way.scoring.calibration != "none":
            return fixed
        return products.high(scores)
