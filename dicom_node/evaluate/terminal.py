"""The experiments for a person at a terminal: bars while they run, and a table at the end."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from dicom_node import config
from dicom_node.batch_mode import Listener
from dicom_node.errors import ConfigError
from dicom_node.evaluate.experiment import Options, Result, evaluate
from dicom_node.evaluate.tables import MEASURES, SUMMARY, Measured
from dicom_node.folders import cache_folder
from dicom_node.identity import RESEARCH_ONLY

_STAGES = {"encode": "Encoded", "run": "Runs"}
#: columns of the printed table; all figures are in measures.csv
_SHOWN = {
    "voxel_ap": "voxel AP",
    "voxel_auroc": "voxel AUROC",
    "dice_oracle": "oracle's Dice",
    "lesion_sensitivity": "lesions at 1 false",
    "subject_auroc": "subject AUROC",
}


@dataclass(frozen=True, slots=True)
class EvaluateArguments:
    """What the command line was given."""

    places: Sequence[Path]
    out: Path
    second_site: Path | None = None
    preset: str | None = None
    #: a node's configuration and one of its protocols
    config_path: Path | None = None
    protocol: str | None = None
    images: str | None = None
    masks: str | None = None
    options: Options = field(default_factory=Options)


def run_evaluate(arguments: EvaluateArguments, console: Console) -> int:
    """Run the experiments and print what came of them.

    Returns
    -------
    The exit status: 1 where a scan could not be encoded, otherwise 0.

    Raises
    ------
    ConfigError, WeightsMissing, WeightsMismatch
        As `experiment.evaluate`, or the configuration is not valid.
    """
    if arguments.protocol is not None and arguments.config_path is None:
        raise ConfigError("--protocol names a protocol of a configuration: name that with --config")
    settings = config.load(arguments.config_path) if arguments.config_path else None
    with _listener(console) as listener:
        result = evaluate(
            arguments.places,
            arguments.out,
            cache_folder(),
            second_site=arguments.second_site,
            config=settings,
            protocol_name=arguments.protocol,
            preset=arguments.preset,
            images=arguments.images,
            masks=arguments.masks,
            options=arguments.options,
            listener=listener,
        )
    _show(result, arguments.out, console)
    return 1 if result.cohort.failed else 0


@contextmanager
def _listener(console: Console) -> Iterator[Listener]:
    """Draw bars on a terminal; elsewhere print a line per step."""
    if not console.is_terminal:
        yield _Lines(console)
        return
    columns = (
        TextColumn("{task.description:<8}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[name]}", markup=False),
    )
    with Progress(*columns, console=console) as progress:
        yield _Bars(progress)


class _Bars(Listener):
    """A bar per stage."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._tasks: dict[str, TaskID] = {}

    def start(self, stage: str, n_scans: int) -> None:
        """Add the bar of a stage."""
        self._tasks[stage] = self._progress.add_task(_STAGES[stage], total=n_scans, name="")

    def progress(self, stage: str, number: int, share: float, name: str) -> None:
        """Move it. Copies are encoded in the middle of runs: they move no bar, and show a name."""
        if stage == "encode" and "run" in self._tasks:
            self._progress.update(self._tasks["run"], name=f"encoding {name}")
        else:
            self._progress.update(self._tasks[stage], completed=number + share, name=name)

    def note(self, text: str) -> None:
        """Print above the bars."""
        self._progress.console.print(Text(text, style="yellow"), soft_wrap=True)


class _Lines(Listener):
    """A line per step, for logs and pipes."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._n = 0
        self._started = 0.0

    def start(self, stage: str, n_scans: int) -> None:
        """Begin to count and to measure."""
        self._n, self._started = n_scans, time.monotonic()
        self.note(f"{_STAGES[stage]} 0/{n_scans}")

    def progress(self, stage: str, number: int, share: float, name: str) -> None:
        """Print a step that is done, and how long the others will take at this rate."""
        if share >= 1:
            done, elapsed = number + 1, time.monotonic() - self._started
            rest = elapsed / done * (self._n - done)
            self.note(f"{_STAGES[stage]} {done}/{self._n} {name} ({rest:.0f} s to go)")

    def note(self, text: str) -> None:
        """Print a line as it is."""
        self._console.print(text, soft_wrap=True, markup=False, highlight=False)


def _show(result: Result, out: Path, console: Console) -> None:
    """Print a row per setting, what was left out, and where everything lies."""
    table = Table("", "setting", "batch", *_SHOWN.values(), box=None)
    for one in result.measured:
        table.add_row(*map(Text, _cells(one)))
    console.print(table)
    lines = [f"left out: {text}" for text in result.left_out]
    lines.append(
        "In brackets: 95 % of bootstrap resamples of the test subjects. The oracle's Dice takes "
        "its threshold from the masks it is measured with"
    )
    by = f"{result.recipe.name} {result.recipe.fingerprint}"
    lines += [f"By {by}. {MEASURES} and {SUMMARY} are in {out}", RESEARCH_ONLY]
    for line in lines:
        console.print(line, soft_wrap=True, markup=False, highlight=False)


def _cells(one: Measured) -> list[str]:
    """Return a row of the table: the figures over all draws."""
    of_all = {row.metric: row for row in one.rows if row.draw == "all"}
    setting = one.setting
    cells = [setting.experiment, setting.name, f"{setting.size} ({setting.n_lesioned} abnormal)"]
    for metric in _SHOWN:
        row = of_all.get(metric)
        cells.append(f"{row.value:.3f} ({row.low:.2f}-{row.high:.2f})" if row else "")
    return cells
