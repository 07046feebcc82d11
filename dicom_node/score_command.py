"""The verb ``score``: batch mode for a person at a terminal, with bars and tables.

Its own module because it loads torch, which no other verb of the command line needs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import ProgressColumn, Task
from rich.table import Table
from rich.text import Text

from dicom_node.batch.results import BatchResult, Scored
from dicom_node.batch_mode import score_batch
from dicom_node.evaluation import Metrics, Report
from dicom_node.folder_terminal import listening, settings_of
from dicom_node.folders import cache_folder
from dicom_node.identity import RESEARCH_ONLY

_STAGES = {"encode": "Encoded", "score": "Scored"}
#: how the z-score was read
_FORMS = {"both": "either way", "bright": "brighter", "dark": "darker"}
#: rows of the table of scans; all of them are in scores.csv
_MOST_ROWS = 30


@dataclass(frozen=True, slots=True)
class ScoreArguments:
    """What the command line was given."""

    places: Sequence[Path]
    out: Path
    preset: str | None = None
    #: a node's configuration and one of its protocols
    config_path: Path | None = None
    protocol: str | None = None
    images: str | None = None
    masks: str | None = None


def run_score(arguments: ScoreArguments, console: Console) -> int:
    """Score folders and print what came of it.

    Returns
    -------
    The exit status: 1 where a scan failed that should have been scored, otherwise 0.

    Raises
    ------
    ConfigError, WeightsMissing, WeightsMismatch
        As `batch_mode.score_batch`, or the configuration is not valid.
    """
    settings = settings_of(arguments.config_path, arguments.protocol)
    with listening(console, _STAGES, _RateColumn()) as listener:
        result = score_batch(
            arguments.places,
            arguments.out,
            cache_folder(),
            config=settings,
            protocol_name=arguments.protocol,
            preset=arguments.preset,
            images=arguments.images,
            masks=arguments.masks,
            listener=listener,
        )
    _show(result, arguments.out, console)
    return 1 if result.failed else 0


# --- progress -----------------------------------------------------------------------------------


class _RateColumn(ProgressColumn):
    """Scans per minute."""

    def render(self, task: Task) -> Text:
        """Return the rate of the last while, once there is one."""
        speed = task.finished_speed or task.speed
        return Text(f"{speed * 60:.1f}/min" if speed else "")


# --- tables -------------------------------------------------------------------------------------


def _show(result: BatchResult, out: Path, console: Console) -> None:
    """Print the scores, what the masks say of them, and where everything lies."""
    console.print(_scores(result.scored[:_MOST_ROWS]))
    if len(result.scored) > _MOST_ROWS:
        console.print(f"and {len(result.scored) - _MOST_ROWS} more, all of them in scores.csv")
    if result.evaluation is not None:
        _show_evaluation(result.evaluation, console)
    said = f"{len(result.scored)} scored, {len(result.failed)} failed, {len(result.left_out)} left"
    lines = [f"{said} out, by {result.recipe.name} {result.recipe.fingerprint}"]
    lines += [f"Maps, pictures, scores.csv and scores.json are in {out}", RESEARCH_ONLY]
    for line in lines:
        console.print(line, soft_wrap=True, markup=False, highlight=False)


def _scores(scored: Sequence[Scored]) -> Table:
    """Return a row per scan, the highest score first."""
    table = Table("scan", "score", "percentile", "findings", "highest", "ml", box=None)
    for entry in scored:
        top = entry.findings[0] if entry.findings else None
        cells = (
            entry.name,
            f"{entry.score:.2f}",
            f"{entry.percentile:.0f}",
            str(len(entry.findings)),
            f"{top.max_score:.2f}" if top else "",
            f"{sum(finding.volume_ml for finding in entry.findings):.1f}",
        )
        table.add_row(*map(Text, cells))  # a name is no markup
    return table


def _show_evaluation(report: Report, console: Console) -> None:
    """Print how maps and findings agree with the masks."""
    said = (
        f"\nAgainst the masks of {report.n_subjects} scans: {report.n_voxels / 1e6:.1f} million "
        f"voxels of the canonical grid inside the body, {report.prevalence:.2%} of them marked"
    )
    console.print(said, highlight=False, soft_wrap=True)
    if report.unscored_share > 0.001:
        console.print(
            f"{report.unscored_share:.1%} of the marked voxels lie outside what is scored"
        )
    table = Table("map", "voxel AP", "voxel AUROC", box=None)
    z_name = f"z-score ({_FORMS[report.z_form]})"
    rows: dict[str, Metrics] = {
        "calibrated": report.calibrated,
        "raw": report.raw,
        z_name: report.z_score,
    }
    for name, metrics in rows.items():
        table.add_row(name, f"{metrics.average_precision:.3f}", f"{metrics.auroc:.3f}")
    console.print(table)
    lesions = Table("lesions", "found by a finding", box=None)
    for size in report.lesions:
        lesions.add_row(size.name, f"{size.n_found} of {size.n_lesions}")
    console.print(lesions)
    console.print(f"{report.false_findings:.1f} findings per scan overlap no lesion")
    if report.subject_auroc == report.subject_auroc:  # no NaN: both kinds of scans are there
        console.print(f"AUROC of the subject score: {report.subject_auroc:.3f}")
