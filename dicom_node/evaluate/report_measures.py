"""measures.csv -> checked figures, in the order that the report shows them.

A row is one figure of one setting. Rows whose draw is "all" are pooled over the draws and are what
is reported; those of single draws only show how much the choice of the batch matters.
"""

from __future__ import annotations

import csv
import math
import re
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from dicom_node.errors import ConfigError

COLUMNS = (
    *("experiment", "setting", "strength", "n_reference", "share_abnormal", "draw", "n_test"),
    *("metric", "value", "low", "high"),
)
#: of the column `draw`: over all draws
POOLED = "all"
#: settings that the others are compared with, in (b), and in (e) and (d)
UNCHANGED, OURS = "none", ("this method", "whole method")
#: before the name of a size class
SIZE_PREFIX = "lesion_sensitivity "
#: metrics by the other name that they may have
_OTHER_NAMES = {
    "sensitivity@1fp": "lesion_sensitivity",
    "false_per_normal": "false_findings_per_normal",
}
NAN = float("nan")


@dataclass(frozen=True, slots=True)
class Metric:
    """How a metric is named and drawn."""

    key: str
    #: on axes and in table heads
    label: str
    #: what a map or score has that knows nothing, where it is the same in every cohort
    chance: float | None = None
    higher_is_better: bool = True
    #: the scale ends at 1
    bounded: bool = True

    @property
    def text(self) -> str:
        """Return the label as one line."""
        return self.label.replace("\n", " ")


#: in the order of panels and columns; the first that can be told sorts and sums up
METRICS = (
    Metric("voxel_ap", "Voxel average precision"),
    Metric("dice_oracle", "Best Dice (oracle threshold)"),
    Metric("voxel_auroc", "Voxel AUROC", chance=0.5),
    Metric("lesion_sensitivity", "Lesion sensitivity\nat 1 false finding per study"),
    Metric("subject_auroc", "Subject AUROC", chance=0.5),
    Metric(
        *("false_findings_per_normal", "False findings\nper normal study"),
        higher_is_better=False,
        bounded=False,
    ),
)


@dataclass(frozen=True, slots=True)
class Experiment:
    """What one experiment is about; names the files that the report writes of it."""

    letter: str
    slug: str
    title: str
    varied: str
    fixed: str


EXPERIMENTS = (
    Experiment(
        *("a", "share_abnormal", "Share of abnormal subjects in the batch"),
        varied="the share of the reference subjects that have lesions",
        fixed="the method and the test subjects",
    ),
    Experiment(
        *("b", "acquisition", "Acquisition differences inside the batch"),
        varied="how part of the subjects were acquired: one perturbation of their voxels at a "
        "time, or subjects of a second site",
        fixed="the method, the subjects of each batch and the test subjects",
    ),
    Experiment(
        *("c", "batch_size", "Batch size"),
        varied="the number of reference subjects",
        fixed="the method and the test subjects",
    ),
    Experiment(
        *("d", "parts", "Parts of the method, one at a time"),
        varied="one part of the method, the others as they are",
        fixed="the batches and the test subjects",
    ),
    Experiment(
        *("e", "peers", "Other methods on the same subjects"),
        varied="the method",
        fixed="the encoder's tokens or the voxels, the batches and the test subjects",
    ),
)
LETTERS = tuple(experiment.letter for experiment in EXPERIMENTS)


@dataclass(frozen=True, slots=True)
class Condition:
    """What a figure was measured under; None where the column is empty."""

    setting: str
    #: a number, or words; "" where the column is empty
    strength: str
    n_reference: float | None
    #: 0 to 1
    share_abnormal: float | None

    @property
    def amount(self) -> float | None:
        """Return the strength where it is a number."""
        try:
            return float(self.strength)
        except ValueError:
            return None

    @property
    def label(self) -> str:
        """Return the setting, and its strength where that is a number: a name on an axis."""
        return self.setting if self.amount is None else f"{self.setting} {self.amount:g}"

    @property
    def batch(self) -> tuple[float | None, float | None]:
        """Return what kind of batch it is: size and share of abnormal subjects."""
        return self.n_reference, self.share_abnormal

    @property
    def group(self) -> str:
        """Return the perturbation, of a setting that says after a comma who has it."""
        return self.setting.partition(",")[0]


@dataclass(frozen=True, slots=True)
class Measure:
    """One figure; NaN where it, or its interval, cannot be told."""

    n_test: int
    value: float
    #: ends of the 95 % interval, bootstrap over test subjects
    low: float = NAN
    high: float = NAN

    @property
    def is_known(self) -> bool:
        """Return whether there is a value."""
        return not math.isnan(self.value)

    @property
    def has_interval(self) -> bool:
        """Return whether there is an interval."""
        return not math.isnan(self.low)


class Results:
    """The figures of one experiment."""

    def __init__(self) -> None:
        self._pooled: dict[tuple[Condition, str], Measure] = {}
        self._draws: dict[tuple[Condition, str], list[float]] = {}

    def add(self, condition: Condition, metric: str, draw: str, measure: Measure) -> bool:
        """Keep one row; False if a pooled one of the same condition and metric is here."""
        key = condition, metric
        if draw != POOLED:
            self._draws.setdefault(key, []).append(measure.value)
            return True
        return self._pooled.setdefault(key, measure) is measure

    @property
    def conditions(self) -> tuple[Condition, ...]:
        """Return the conditions that have a pooled figure, in the order of the file."""
        return tuple(dict.fromkeys(condition for condition, _ in self._pooled))

    @property
    def metrics(self) -> tuple[str, ...]:
        """Return the metrics of the pooled rows, known ones first, as `METRICS` has them."""
        return tuple(sorted({metric for _, metric in self._pooled}, key=_place))

    @property
    def sizes(self) -> tuple[str, ...]:
        """Return the names of the size classes in which a sensitivity is known, small to large."""
        names = (metric for metric in self.metrics if metric.startswith(SIZE_PREFIX))
        return tuple(name.removeprefix(SIZE_PREFIX) for name in names if self.knows(name))

    def knows(self, metric: str) -> bool:
        """Return whether any pooled row of the metric has a value."""
        return any(
            measure.is_known for (_, name), measure in self._pooled.items() if name == metric
        )

    def measure(self, condition: Condition, metric: str) -> Measure:
        """Return the pooled figure; one without a value where the file has none."""
        return self._pooled.get((condition, metric), Measure(0, NAN))

    def draws(self, condition: Condition, metric: str) -> tuple[float, ...]:
        """Return the known values of the single draws."""
        values = self._draws.get((condition, metric), [])
        return tuple(value for value in values if not math.isnan(value))

    def n_test(self, metrics: Iterable[str]) -> tuple[int, int]:
        """Return the least and the greatest number of test subjects behind these figures."""
        wanted = set(metrics)
        found = [row.n_test for (_, name), row in self._pooled.items() if name in wanted]
        return min(found, default=0), max(found, default=0)

    def known_metrics(self) -> tuple[Metric, ...]:
        """Return the metrics of `METRICS` that have a value here."""
        return tuple(metric for metric in METRICS if self.knows(metric.key))

    def by_chance(self, metric: str) -> float | None:
        """Return what scores reach that know nothing; None where it is not told.

        Of average precision it is the share of voxels inside masks, where the file has that.
        """
        if metric == "voxel_ap":
            found = [self.measure(condition, "prevalence") for condition in self.conditions]
            return next((measure.value for measure in found if measure.is_known), None)
        return next((known.chance for known in METRICS if known.key == metric), None)

    def name(self, condition: Condition) -> str:
        """Return a condition's label, and what it does not say of a batch unlike the first one."""
        first, share, text = self.conditions[0], condition.share_abnormal, condition.label
        if share is not None and share != first.share_abnormal and "%" not in text:
            text += f" ({100 * share:.3g} % abnormal)"
        if condition.n_reference is not None and condition.n_reference != first.n_reference:
            number = f"{condition.n_reference:g}"
            text += "" if number in condition.setting else f" (batch of {number})"
        return text

    def ranked(self, metric: Metric) -> list[Condition]:
        """Sort the conditions, best first; those without a value last."""
        sign = -1 if metric.higher_is_better else 1

        def place(condition: Condition) -> tuple[bool, float]:
            row = self.measure(condition, metric.key)
            return not row.is_known, sign * row.value if row.is_known else 0.0

        return sorted(self.conditions, key=place)


def _place(metric: str) -> tuple[int, float, str]:
    """Sort by `METRICS`, then size classes by size, then by name what is not ours."""
    known = [known.key for known in METRICS]
    if metric in known:
        return 0, known.index(metric), metric
    if metric.startswith(SIZE_PREFIX):
        bounds = re.findall(r"\d+(?:\.\d+)?", metric.removeprefix(SIZE_PREFIX))
        # "< 0.1" and "0.1 to 1" share their first number
        step = -1e-6 if "<" in metric else 0.0
        return 1, float(bounds[0] if bounds else 0) + step, metric
    return 2, 0.0, metric


# --- measures.csv -------------------------------------------------------------------------------


def read(path: Path) -> dict[str, Results]:
    """Read measures.csv; experiment letter -> its figures, only of those that have a pooled one.

    Raises
    ------
    ConfigError
        The file cannot be read, lacks a column, or a row is not what the columns promise; the
        message names file, row (a spreadsheet's number: the head is row 1) and column.
    """
    found = {letter: Results() for letter in LETTERS}
    try:
        with path.open(encoding="utf-8", newline="") as stream:
            reader = csv.DictReader(stream)
            _check_head(path, reader.fieldnames)
            for fields in reader:
                _add(found, _Row(path, reader.line_num, fields))
    except FileNotFoundError as error:
        raise ConfigError(f"{path} does not exist; run `dicom-node evaluate` first") from error
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"{path} cannot be read as CSV: {error}") from error
    return {letter: results for letter, results in found.items() if results.conditions}


def _check_head(path: Path, names: Iterable[str] | None) -> None:
    missing = [column for column in COLUMNS if column not in (names or ())]
    if missing:
        text = ", ".join(missing)
        raise ConfigError(f"{path}, row 1: no column {text}; the head must be {','.join(COLUMNS)}")


_RATE, _COUNT, _ANY = (0.0, 1.0), (0.0, sys.float_info.max), (-math.inf, math.inf)
_BOUNDS = {_RATE: "from 0 to 1", _COUNT: "from 0 up, and finite", _ANY: ""}


class _Row:
    """One line of the file, whose faults are named with their place."""

    def __init__(self, path: Path, number: int, fields: Mapping[str, str | None]) -> None:
        self._place = f"{path}, row {number}"
        self._fields = fields

    def fault(self, column: str, wanted: str) -> ConfigError:
        found = self._fields.get(column)
        return ConfigError(f"{self._place}, column {column}: {found!r} is not {wanted}")

    def text(self, column: str, *, required: bool = True) -> str:
        found = (self._fields[column] or "").strip()
        if required and not found:
            raise self.fault(column, "a name")
        return found

    def number(self, column: str, bounds: tuple[float, float]) -> float:
        """Return a number within bounds, NaN for an empty field or "nan"."""
        found = (self._fields[column] or "").strip()
        try:
            number = float(found or "nan")
        except ValueError as error:
            raise self.fault(column, "a number") from error
        if number < bounds[0] or number > bounds[1]:
            raise self.fault(column, f"a number {_BOUNDS[bounds]}")
        return number

    def optional(self, column: str, bounds: tuple[float, float]) -> float | None:
        number = self.number(column, bounds)
        return None if math.isnan(number) else number


def _add(found: dict[str, Results], row: _Row) -> None:
    letter, metric = row.text("experiment"), _name(row.text("metric"))
    if letter not in found:
        raise row.fault("experiment", f"one of {', '.join(LETTERS)}")
    condition = Condition(
        row.text("setting"),
        row.text("strength", required=False),
        row.optional("n_reference", _COUNT),
        row.optional("share_abnormal", _RATE),
    )
    if not found[letter].add(condition, metric, row.text("draw"), _measure(row, metric)):
        raise row.fault("metric", "new: an earlier row has the same setting, draw and metric")


def _name(metric: str) -> str:
    """Return a metric's name as `METRICS` has it, or as it is."""
    first, colon, size = metric.partition(":")
    if colon and _OTHER_NAMES.get(first) == SIZE_PREFIX.strip():
        return SIZE_PREFIX + size.strip()
    return _OTHER_NAMES.get(metric, metric)


def _scale(metric: str) -> tuple[float, float]:
    """Return what values a metric can have; one that is not ours may be anything."""
    bounded = {known.key: known.bounded for known in METRICS}
    if metric.startswith(SIZE_PREFIX) or bounded.get(metric):
        return _RATE
    return _COUNT if metric in bounded else _ANY


def _measure(row: _Row, metric: str) -> Measure:
    n_test, scale = row.number("n_test", _COUNT), _scale(metric)
    if not n_test.is_integer():  # nor is NaN, an empty field
        raise row.fault("n_test", "a whole number")
    low, high = row.number("low", scale), row.number("high", scale)
    if math.isnan(low) != math.isnan(high):
        raise row.fault("low" if math.isnan(low) else "high", "given, and the other end is")
    if low > high:
        raise row.fault("high", f"at least low, which is {low:g}")
    return Measure(int(n_test), row.number("value", scale), low, high)
