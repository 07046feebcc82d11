"""A labelled folder -> how the method behaves when the batch varies: ``dicom-node evaluate``.

Every scan is encoded once; the settings of the experiments are then runs over kept tokens. Stopped
at any moment, it goes on where it was: scans, distances between pairs and runs are each kept whole.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dicom_node import __version__, clock, durable
from dicom_node.batch import inputs, own_space, recipe
from dicom_node.batch.inputs import Found
from dicom_node.batch.recipe import Recipe
from dicom_node.batch_mode import Listener
from dicom_node.config import NodeConfig
from dicom_node.errors import ConfigError, NodeError
from dicom_node.evaluate import plan, splits, tables
from dicom_node.evaluate.cohort import Cohort, Work, gather
from dicom_node.evaluate.measures import N_RESAMPLES
from dicom_node.evaluate.outcomes import Outcome
from dicom_node.evaluate.plan import Plan, Setting
from dicom_node.evaluate.running import Runner
from dicom_node.evaluate.tables import Measured
from dicom_node.identity import RESEARCH_ONLY

N_FOLDS = 5
_REPORT = "dicom_node.evaluate.report"


@dataclass(frozen=True, slots=True)
class Options:
    """What is run; the same options and files give the same figures."""

    #: some of the letters "abcde"
    experiments: str = plan.EXPERIMENTS
    #: of each batch; None: 3, or 1 when quick
    draws: int | None = None
    #: size of the batches, where the cohort allows it
    size: int = plan.SIZE
    quick: bool = False
    #: names of the changes of (b); none takes all, or every second one when quick
    changes: tuple[str, ...] = ()
    seed: int = 0
    #: of the bootstrap
    resamples: int = N_RESAMPLES

    @property
    def n_draws(self) -> int:
        """Return how often each batch is drawn."""
        return self.draws or (1 if self.quick else 3)


@dataclass(frozen=True, slots=True)
class Result:
    """What came of it."""

    recipe: Recipe
    cohort: Cohort
    measured: tuple[Measured, ...]
    #: settings that the cohort cannot offer, or that failed, and why
    left_out: tuple[str, ...]


def evaluate(
    places: Sequence[Path],
    out: Path,
    cache: Path,
    *,
    second_site: Path | None = None,
    config: NodeConfig | None = None,
    protocol_name: str | None = None,
    preset: str | None = None,
    images: str | None = None,
    masks: str | None = None,
    options: Options | None = None,
    listener: Listener | None = None,
) -> Result:
    """Run the experiments on a labelled folder and write the tables to `out`.

    Parameters
    ----------
    places
        Folders and files, as `batch_mode.score_batch` takes them. A scan with an empty mask is
        normal; one without a mask serves in batches as if it were, and is not tested.
    out
        Gets ``measures.csv``, ``summary.json``, ``runs/`` and ``work/``.
    cache
        Where the encoder's weights lie.
    second_site
        Normal scans of another site, for experiment (b).
    config, protocol_name, preset, images, masks
        As of `batch_mode.score_batch`.

    Raises
    ------
    ConfigError
        No experiment of that letter, no lesioned scan, too few scans for a batch, or arguments that
        do not fit together.
    WeightsMissing, WeightsMismatch
        The encoder cannot be loaded.
    """
    found = inputs.find(places, images, masks, out)
    second = inputs.find([second_site], images, masks, out) if second_site else None
    listener = listener or Listener()
    by = _recipe(found, config or NodeConfig(), protocol_name, preset, cache)
    by = own_space.learnt(by, found.scans, listener.note, out / "work")
    about = {"folders": [place.name for place in places]}
    if second_site:
        about["second_site"] = [second_site.name]
    return run(by, found, second, out, options or Options(), listener, about)


def _recipe(
    found: Found, config: NodeConfig, protocol_name: str | None, preset: str | None, cache: Path
) -> Recipe:
    """Choose the method, as batch mode does; raises ConfigError for scans of two kinds."""
    modalities = {scan.modality for scan in found.scans} - {""}
    if len(modalities) > 1:
        raise ConfigError("CT and MR series cannot be compared: evaluate them in two runs")
    if protocol_name is not None:
        if preset is not None:
            raise ConfigError("a protocol is a method, and so is a preset: name one of them")
        return recipe.of_protocol(config, protocol_name, cache)
    return recipe.of_preset(config, preset or ("ct" if modalities == {"CT"} else "mr"), cache)


def run(
    by: Recipe,
    found: Found,
    second: Found | None,
    out: Path,
    options: Options,
    listener: Listener,
    about: dict[str, Any] | None = None,
) -> Result:
    """Do what `evaluate` does, with the method and the scans given."""
    _check(options, by)
    if not any(scan.mask for scan in found.scans):
        raise ConfigError(
            "no scan has a mask, and without masks there is nothing to measure: put "
            "NAME_label.nii.gz beside NAME.nii.gz (all zero for a normal scan), or name the masks "
            "with --masks"
        )
    for path in found.stray_masks:
        listener.note(f"the mask {path} belongs to no image: their names do not begin alike")
    durable.make_folder(out / "runs")
    work = Work(by, out / "work", listener)
    cohort = gather(work, found, second)
    runner = _runner(work, cohort, out, options)
    made = _plan(runner, options)
    for text in made.left_out:
        listener.note(f"left out: {text}")
    measured, failed = _measured(runner, made, options, listener)
    result = Result(by, cohort, tuple(measured), (*made.left_out, *failed))
    tables.write(out, measured, _about(result, options) | (about or {}))
    _write_report(out)
    return result


def _check(options: Options, by: Recipe) -> None:
    """Raise ConfigError for an experiment or a change that does not exist."""
    if not options.experiments or set(options.experiments) - set(plan.EXPERIMENTS):
        raise ConfigError(f"--experiments takes letters of {plan.EXPERIMENTS!r}")
    possible = plan.possible_changes(_is_ct(by))
    if unknown := [name for name in options.changes if name not in possible]:
        raise ConfigError(
            f"--changes knows no {unknown[0]!r} for these scans: choose of {', '.join(possible)}"
        )


def _is_ct(by: Recipe) -> bool:
    return by.method.intensity.kind == "hounsfield"


def _runner(work: Work, cohort: Cohort, out: Path, options: Options) -> Runner:
    """Split the cohort; raises ConfigError where there is nothing to test."""
    n_lesioned = len(cohort.of_kind("lesioned"))
    if not n_lesioned:
        raise ConfigError(
            f"none of the {len(cohort.members)} scans has a lesion: masks are all empty or missing"
        )
    folds = {
        site: splits.folds([m for m in cohort.members if m.site == site], N_FOLDS, options.seed)
        for site in (1, 2)
    }
    return Runner(work, cohort, folds, out / "runs", options.seed)


def _plan(runner: Runner, options: Options) -> Plan:
    """Choose the settings; raises ConfigError where no batch can be drawn."""
    members, method = runner.cohort.members, runner.work.recipe.method
    made = plan.make(
        options.experiments,
        method,
        splits.room(members, runner.folds[1] + runner.folds[2]),
        ct=_is_ct(runner.work.recipe),
        quick=options.quick,
        limit=options.size,
        changes=options.changes,
    )
    if made is None:
        raise ConfigError(
            f"{len(members)} scans leave fewer than {plan.LEAST} for a batch when a fold of them "
            "is tested: add scans"
        )
    return made


def _measured(
    runner: Runner, made: Plan, options: Options, listener: Listener
) -> tuple[list[Measured], list[str]]:
    """Run all settings and measure each as soon as its runs are done."""
    runs = list(runner.runs(made.settings, options.n_draws))
    listener.start("run", len(runs))
    found: dict[Setting, list[list[list[Outcome]]]] = {
        setting: [[[] for _ in range(options.n_draws)] for _ in setting.ways]
        for setting in made.settings
    }
    failed: dict[Setting, str] = {}
    left = Counter(one.setting for one in runs)
    measured = []
    for number, one in enumerate(runs):
        name = f"{one.setting.experiment} {one.setting.name}"
        if one.setting not in failed:
            try:
                at = one.setting.ways.index(one.way)
                found[one.setting][at][one.draw] += runner.outcomes(one)
            except NodeError as error:
                failed[one.setting] = f"{name}: {error}"
                listener.note(f"failed: {name}: {error}")
        left[one.setting] -= 1
        if not left[one.setting]:
            outcomes = found.pop(one.setting)  # measured and let go: memory stays flat
            if one.setting not in failed:
                measured.append(
                    tables.measure(one.setting, outcomes, options.seed, options.resamples)
                )
        listener.progress("run", number, 1.0, name)
    return measured, list(failed.values())


def _about(result: Result, options: Options) -> dict[str, Any]:
    """Return how the figures were made; names of scans may hold a Patient ID and stay out."""
    by, members = result.recipe, result.cohort.members
    counts = Counter(f"{m.kind}{'' if m.site == 1 else ' of the second site'}" for m in members)
    return {
        "method": by.name,
        "encoder": by.encoder_name,
        "fingerprint": by.fingerprint,
        "token_fingerprint": by.token_fingerprint,
        "version": __version__,
        "notice": RESEARCH_ONLY,
        "written": clock.stamp(clock.now()),
        "specification": asdict(by.method),
        "options": asdict(options) | {"n_draws": options.n_draws, "n_folds": N_FOLDS},
        "subjects": dict(counts),
        "n_failed_scans": len(result.cohort.failed),
        "left_out": _by_experiment(result.left_out),
    }


def _by_experiment(left_out: Sequence[str]) -> dict[str, str]:
    """Return per letter of an experiment what of it is left out, and why."""
    found: dict[str, list[str]] = {}
    for text in left_out:
        found.setdefault(text[0], []).append(text[1:].lstrip(", "))
    return {letter: "; ".join(texts) for letter, texts in found.items()}


def _write_report(out: Path) -> None:
    """Draw the pictures and the page of the tables, where that part is installed."""
    if importlib.util.find_spec(_REPORT):
        importlib.import_module(_REPORT).write(out)
