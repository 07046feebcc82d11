"""The experiments for a person at a terminal: bars while they run, and a table at the end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from dicom_node.evaluate.experiment import Options, Result, evaluate
from dicom_node.evaluate.tables import MEASURES, SUMMARY, Measured
from dicom_node.folder_terminal import Bars, listening, settings_of
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
    settings = settings_of(arguments.config_path, arguments.protocol)
    with listening(console, _STAGES, bars=_Bars) as listener:
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


class _Bars(Bars):
    """Copies are encoded in the middle of runs: they move no bar, and show a name."""

    def progress(self, stage: str, number: int, share: float, name: str) -> None:
        """Move the bar of the stage, or say what holds up the runs."""
        if stage == "encode" and "run" in self._tasks:
            self._progress.update(self._tasks["run"], name=f"encoding {name}")
        else:
            super().progress(stage, number, share, name)


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
