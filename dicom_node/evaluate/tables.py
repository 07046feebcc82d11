"""Outcomes of the settings -> ``measures.csv``, and ``summary.json`` with what made it."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, astuple, dataclass, fields
from pathlib import Path
from typing import Any

from dicom_node import durable
from dicom_node.evaluate.measures import FALSE_PER_STUDY, N_RESAMPLES, Figure, Pool, measured
from dicom_node.evaluate.outcomes import Outcome
from dicom_node.evaluate.plan import Setting

MEASURES, SUMMARY = "measures.csv", "summary.json"
#: what the figures are, for whoever reads the tables without this program
METRICS = {
    "voxel_auroc": "area under the ROC of voxels inside the body, pooled over the test subjects",
    "voxel_ap": "their average precision; a map that knows nothing has the prevalence",
    "dice_oracle": "best Dice of the pooled voxels; its threshold is an oracle's, chosen by the "
    "masks that it is measured with",
    "lesion_sensitivity": "share of lesions whose highest score reaches the threshold at which a "
    "study has one finding that overlaps no lesion, on the mean over the test subjects; then by "
    "size of the lesion",
    "threshold": "that threshold, chosen with the masks",
    "subject_auroc": "of the subject score, between subjects with lesions and those without",
    "false_findings_per_normal": "findings a normal study at the method's own threshold, which is "
    "fixed before; peers have none",
    "prevalence": "share of marked voxels among those inside the body",
    "unscored_share": "share of the marked voxels that lie outside the body, and in no figure",
}
INTERVALS = (
    "95 % percentile bootstrap over test subjects; voxel scores counted in bins 0.8 % wide; "
    "resamples in which a figure does not exist are left out; with draw = all, "
    "the mean over the draws of the batch, the same subjects resampled in each"
)


@dataclass(frozen=True, slots=True)
class Row:
    """One line of ``measures.csv``."""

    experiment: str
    setting: str
    strength: str
    n_reference: int
    #: of the batch, 0..1
    share_abnormal: float
    #: number of the draw, or "all"
    draw: str
    n_test: int
    metric: str
    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Measured:
    """One setting's figures."""

    setting: Setting
    rows: tuple[Row, ...]
    #: tested, by size
    n_lesions: dict[str, int]


def measure(
    setting: Setting,
    by_way: Sequence[Sequence[Sequence[Outcome]]],
    seed: int,
    resamples: int = N_RESAMPLES,
) -> Measured:
    """Return the figures of a setting from the outcomes of its ways, a list per draw in each.

    Of several ways that with the highest average precision over the draws is reported, and named.
    """
    pools = [[Pool(outcomes) for outcomes in draws] for draws in by_way]
    if len(pools) == 1:
        best = 0
    else:
        exact = [measured(of_way, seed, 0)["voxel_ap"][-1].value for of_way in pools]
        best = max(range(len(pools)), key=lambda at: exact[at] if exact[at] == exact[at] else -1.0)
    strength = setting.strength
    if len(pools) > 1:
        strength = f"{setting.ways[best].peer}; {strength}"
    chosen = pools[best]
    figures = measured(chosen, seed, resamples)
    rows = tuple(_rows(setting, strength, len(chosen[0].keys), figures))
    return Measured(setting, rows, chosen[0].n_lesions())


def _rows(
    setting: Setting, strength: str, n_test: int, figures: dict[str, list[Figure]]
) -> Iterator[Row]:
    """Yield a row per figure and draw; those that do not exist are left out."""
    for metric, of_draws in figures.items():
        for number, figure in enumerate(of_draws):
            if math.isnan(figure.value):
                continue
            yield Row(
                setting.experiment,
                setting.name,
                strength,
                setting.size,
                round(setting.n_lesioned / setting.size, 4),
                "all" if number == len(of_draws) - 1 else str(number + 1),
                n_test,
                metric,
                figure.value,
                figure.low,
                figure.high,
            )


def write(folder: Path, found: Sequence[Measured], about: dict[str, Any]) -> None:
    """Write both tables; `about` says how the figures were made and goes into the summary."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(field.name for field in fields(Row))
    for one in found:
        writer.writerows(_rounded(astuple(row)) for row in one.rows)
    durable.write(folder / MEASURES, text.getvalue().encode())
    summary = about | {
        "metrics": METRICS,
        "intervals": INTERVALS,
        "false_findings_per_study": FALSE_PER_STUDY,
        "settings": [_described(one) for one in found],
    }
    dumped = json.dumps(summary, indent=2, ensure_ascii=False, default=str)
    durable.write(folder / SUMMARY, f"{dumped}\n".encode())


def _described(one: Measured) -> dict[str, Any]:
    """Return what a setting is, as plain values."""
    setting = one.setting
    return {
        "experiment": setting.experiment,
        "setting": setting.name,
        "strength": one.rows[0].strength if one.rows else setting.strength,
        "n_reference": setting.size,
        "n_abnormal": setting.n_lesioned,
        "n_second_site": setting.n_second,
        "n_lesions": one.n_lesions,
        "ways": [asdict(way) for way in setting.ways],
    }


def _rounded(values: tuple[Any, ...]) -> list[Any]:
    """Return the cells of a row: six digits say more than the figures mean."""
    return [f"{value:.6g}" if isinstance(value, float) else value for value in values]
