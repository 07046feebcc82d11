"""measures.csv and summary.json -> pictures, tables and one HTML page that stands alone.

The page holds its pictures and its style; it has no script and asks for no other file, so that it
can be mailed, archived and opened where there is no network. Names in it are escaped. Figures are
shown as they were measured, weak ones too.
"""

from __future__ import annotations

import base64
import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

from dicom_node import __version__, durable
from dicom_node.evaluate import report_measures, report_plots, report_summary
from dicom_node.evaluate.report_measures import (
    EXPERIMENTS,
    METRICS,
    OURS,
    SIZE_PREFIX,
    UNCHANGED,
    Condition,
    Experiment,
    Measure,
    Metric,
    Results,
)
from dicom_node.evaluate.report_summary import Summary

#: what cannot be told
_NONE = "-"
PAGE, PLOTS, TABLES = "report.html", "plots", "tables"


@dataclass(frozen=True, slots=True)
class _Picture:
    uri: str
    alt: str


@dataclass(frozen=True, slots=True)
class _Figure:
    """One cell: a value, and its interval below."""

    value: str
    span: str


@dataclass(frozen=True, slots=True)
class _Row:
    setting: str
    strength: str
    counts: tuple[str, ...]
    figures: tuple[_Figure, ...]
    #: this method, or the batch that nothing was done to
    ours: bool


@dataclass(frozen=True, slots=True)
class _Table:
    caption: str
    heads: tuple[str, ...]
    rows: tuple[_Row, ...]


@dataclass(frozen=True, slots=True)
class _Section:
    """One experiment on the page."""

    experiment: Experiment
    fixed: str
    table_name: str
    left_out: list[str]
    #: why there is nothing to show; empty where there is
    missing: str = ""
    readings: tuple[str, ...] = ()
    untold: tuple[str, ...] = ()
    pictures: tuple[_Picture, ...] = ()
    tables: tuple[_Table, ...] = ()


def write(folder: Path) -> None:
    """Write `folder`/report.html, plots/*.png and tables/*.csv from what lies in `folder`.

    Files of an earlier report are replaced; those of an experiment that is missing now are removed.

    Raises
    ------
    ConfigError
        measures.csv is missing, or a row of it is malformed; summary.json is no JSON object. The
        message names file, row and column, and nothing was written.
    """
    found = report_measures.read(folder / "measures.csv")
    summary = report_summary.read(folder / "summary.json")
    for name in (PLOTS, TABLES):
        (folder / name).mkdir(exist_ok=True)
    sections = [
        _section(folder, experiment, found.get(experiment.letter), summary)
        for experiment in EXPERIMENTS
    ]
    durable.write(folder / PAGE, _page(sections, summary).encode())


def _page(sections: Sequence[_Section], summary: Summary) -> str:
    environment = Environment(
        loader=PackageLoader("dicom_node.evaluate"),
        autoescape=select_autoescape(default=True),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html").render(
        sections=sections,
        summary=summary,
        version=__version__,
        n_found=sum(not section.missing for section in sections),
    )


def _section(
    folder: Path, experiment: Experiment, results: Results | None, summary: Summary
) -> _Section:
    """Write the files of one experiment, and return what the page says of it."""
    letter, table_name = experiment.letter, f"{experiment.letter}_{experiment.slug}.csv"
    for name in report_plots.names(experiment):
        (folder / PLOTS / name).unlink(missing_ok=True)
    (folder / TABLES / table_name).unlink(missing_ok=True)
    if results is None:
        missing = summary.why_missing(letter)
        return _Section(experiment, experiment.fixed, table_name, [], missing=missing)
    pictures = report_plots.pictures(experiment, results, summary.n_lesions(letter))
    for picture in pictures:
        durable.write(folder / PLOTS / picture.name, picture.png)
    durable.write(folder / TABLES / table_name, _csv(results))
    return _Section(
        experiment,
        _fixed(experiment, results),
        table_name,
        summary.left_out(letter),
        readings=tuple(_readings(experiment, results)),
        untold=tuple(metric.text for metric in METRICS if not results.knows(metric.key)),
        pictures=tuple(_Picture(_uri(picture.png), picture.alt) for picture in pictures),
        tables=tuple(_tables(results, summary.n_lesions(letter))),
    )


def _uri(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode('ascii')}"


# --- sentences ----------------------------------------------------------------------------------


def _fixed(experiment: Experiment, results: Results) -> str:
    """Say what was held fixed, with the numbers where all settings have the same."""
    parts = [experiment.fixed]
    sizes = {condition.n_reference for condition in results.conditions}
    shares = {condition.share_abnormal for condition in results.conditions}
    if len(sizes) == 1 and (size := sizes.pop()) is not None:
        parts.append(f"{size:g} reference subjects")
    if len(shares) == 1 and (share := shares.pop()) is not None:
        parts.append(f"{_percent(share)} of them abnormal")
    return "; ".join(parts)


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"


def _readings(experiment: Experiment, results: Results) -> list[str]:
    """Say in a sentence per metric what its figures come to; the first one sums up."""
    metrics = results.known_metrics()
    if experiment.letter in "ac":
        found = [_from_to(experiment, results, metric) for metric in metrics]
    elif experiment.letter == "b":
        found = [_worst(results, metric) for metric in metrics]
    else:
        found = [_rank(results, metric) for metric in metrics]
    return [reading for reading in found if reading]


def _from_to(experiment: Experiment, results: Results, metric: Metric) -> str:
    """Compare both ends of what was varied, on the curve with the most settings."""
    series = report_plots.series(results, by_size=experiment.letter == "c")
    points = max(series.values(), key=len, default=[])
    known = [(at, results.measure(c, metric.key)) for at, c in points]
    known = [(at, row) for at, row in known if row.is_known]
    if not known:
        return ""
    unit, short = (" reference subjects", "") if experiment.letter == "c" else (" % abnormal", " %")
    (start, first), (end, last) = known[0], known[-1]
    text = f"{metric.text}: {_said(metric, first)} with {start:.3g}{unit}"
    if len(known) == 1:
        return f"{text}, the only setting."
    return f"{text}, {_said(metric, last)} with {end:.3g}{short}."


def _worst(results: Results, metric: Metric) -> str:
    """Name the worst setting beside the one where nothing was changed."""
    changed = [c for c in results.ranked(metric) if c.setting != UNCHANGED]
    known = [c for c in changed if results.measure(c, metric.key).is_known]
    plain = [results.measure(c, metric.key) for c in results.conditions if c.setting == UNCHANGED]
    if not known:
        return ""
    worst, name = results.measure(known[-1], metric.key), results.name(known[-1])
    beside = f"with nothing changed {_said(metric, plain[0])}" if plain else "no unchanged batch"
    if plain and not plain[0].is_known:
        beside = "with nothing changed it cannot be told"
    return f"{metric.text} at its worst {_said(metric, worst)} ({name}); {beside}."


def _rank(results: Results, metric: Metric) -> str:
    """Say which place this method has, and who is first, or next after it.

    Among the settings with the same kind of batch: others say nothing of the method.
    """
    known = [c for c in results.ranked(metric) if results.measure(c, metric.key).is_known]
    ours = next((c for c in known if c.setting in OURS), None)
    ranked = [c for c in known if ours is not None and c.batch == ours.batch]
    if ours is None or len(ranked) < 2:
        return ""
    value = results.measure(ours, metric.key).value
    sign = 1 if metric.higher_is_better else -1
    better = sum(sign * results.measure(c, metric.key).value > sign * value for c in ranked)
    other = ranked[0] if better else next(c for c in ranked if c is not ours)
    place = f"place {better + 1} of {len(ranked)}"
    place += " with batches alike" if len(ranked) < len(known) else ""
    word = "first is" if better else "next is"
    here, there = (_said(metric, results.measure(c, metric.key)) for c in (ours, other))
    return f"{metric.text}: {ours.setting} {here}, {place}; {word} {results.name(other)}, {there}."


# --- tables -------------------------------------------------------------------------------------


def _number(metric: Metric, value: float) -> str:
    return f"{value:.3f}" if metric.bounded else f"{value:.2f}"


def _figure(metric: Metric, measure: Measure) -> _Figure:
    if not measure.is_known:
        return _Figure(_NONE, "")
    if not measure.has_interval:
        return _Figure(_number(metric, measure.value), "")
    span = f"{measure.low:.2f} to {measure.high:.2f}"
    return _Figure(_number(metric, measure.value), span)


def _said(metric: Metric, measure: Measure) -> str:
    figure = _figure(metric, measure)
    return f"{figure.value} ({figure.span})" if figure.span else figure.value


def _tables(results: Results, n_lesions: Mapping[str, str]) -> list[_Table]:
    """Return the table of the metrics, and that of lesion sizes, of what has a value."""
    # hard spaces: a number must not be parted from its n
    numbers = {
        name: f" (n\u00a0=\u00a0{n_lesions[name]})" for name in results.sizes if name in n_lesions
    }
    sizes = [Metric(SIZE_PREFIX + name, name + numbers.get(name, "")) for name in results.sizes]
    tables = (
        ("Value and 95 % interval (bootstrap over subjects).", results.known_metrics()),
        ("Lesion sensitivity at 1 false finding per study, by volume of the lesion.", sizes),
    )
    return [_table(caption, results, metrics) for caption, metrics in tables if metrics]


def _table(caption: str, results: Results, metrics: Sequence[Metric]) -> _Table:
    """Return a table; numbers of subjects that are the same in all rows stand in its caption."""
    counts = [_counts(results, condition, metrics) for condition in results.conditions]
    varied = [name for name in counts[0] if len({row[name] for row in counts}) > 1]
    same = [f"{name}: {text}." for name, text in counts[0].items() if name not in varied]
    rows = tuple(
        _Row(
            condition.setting,
            condition.strength,
            tuple(texts[name] for name in varied),
            tuple(_figure(m, results.measure(condition, m.key)) for m in metrics),
            ours=condition.setting in (*OURS, UNCHANGED),
        )
        for condition, texts in zip(results.conditions, counts, strict=True)
    )
    heads = ("Setting", *varied, *(metric.text for metric in metrics))
    return _Table(" ".join([caption, *same]), heads, rows)


def _counts(results: Results, condition: Condition, metrics: Sequence[Metric]) -> dict[str, str]:
    size, share = condition.n_reference, condition.share_abnormal
    n_test = max(results.measure(condition, metric.key).n_test for metric in metrics)
    return {
        "Reference subjects": _NONE if size is None else f"{size:g}",
        "Of them abnormal": _NONE if share is None else _percent(share),
        "Test subjects": f"{n_test}" if n_test else _NONE,
    }


def _csv(results: Results) -> bytes:
    """Return one line per setting, with value, low and high of every metric; unknown ones empty."""
    text = io.StringIO()
    writer = csv.writer(text)
    metrics = results.metrics
    ends = [f"{metric}{end}" for metric in metrics for end in ("", " low", " high")]
    writer.writerow(("setting", "strength", "n_reference", "share_abnormal", "n_test", *ends))
    for condition in results.conditions:
        rows = [results.measure(condition, metric) for metric in metrics]
        plain = (condition.n_reference, condition.share_abnormal, max(r.n_test for r in rows))
        values = [number for row in rows for number in (row.value, row.low, row.high)]
        writer.writerow((condition.setting, condition.strength, *map(_cell, (*plain, *values))))
    return text.getvalue().encode()


def _cell(number: float | None) -> str:
    return "" if number is None or number != number else f"{number:.6g}"
