"""The figures of one experiment -> PNG pictures: curves, bars or intervals, and lesion sizes."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, NullLocator

from dicom_node.evaluate.report_measures import (
    OURS,
    SIZE_PREFIX,
    UNCHANGED,
    Condition,
    Experiment,
    Metric,
    Results,
)
from dicom_node.evaluate.report_panels import (
    BLUE,
    GREY,
    INK,
    RED,
    SMALL,
    USUAL,
    compare_with,
    intervals,
    limits,
    n_lines,
    name_rows,
    note,
    panels,
    scale_of,
)

#: of several curves in one panel; Okabe and Ito's, without yellow, which is lost on paper
_CURVES = ((BLUE, "o", "-"), (RED, "s", "--"), ("#009E73", "^", "-."), ("#CC79A7", "v", ":"))
#: of the bars of one group, in order
_SHADES = ("#4E9CC8", "#A9CFE6", "#0072B2", "#00476F")

#: of a setting's name what says only where it lies on the axis
_NUMBER = re.compile(r"^[\d.]+\s*%?\s*(abnormal|subjects)?[\s,:;]*")

#: x and the condition there, by x
Points = list[tuple[float, Condition]]


@dataclass(frozen=True, slots=True)
class Picture:
    """One figure as a PNG file."""

    #: of the file, without folder
    name: str
    png: bytes
    #: for those who do not see it
    alt: str


def names(experiment: Experiment) -> tuple[str, str]:
    """Return the files that an experiment may have: its metrics, and lesion sizes."""
    return f"{experiment.letter}_{experiment.slug}.png", f"{experiment.letter}_lesion_sizes.png"


def pictures(
    experiment: Experiment, results: Results, n_lesions: Mapping[str, str]
) -> tuple[Picture, ...]:
    """Draw an experiment: its metrics, and lesion sensitivity by size; none that has no value.

    `n_lesions` says how many lesions there are of each size class, where that is known.
    """
    draw = {"a": _curves, "c": _curves, "b": _bars}.get(experiment.letter, _forest)
    metrics, drawn = results.known_metrics(), []
    main, by_size = names(experiment)
    if metrics:
        png = draw(experiment, results, metrics)
        drawn.append(Picture(main, png, _alt(experiment, metrics, results)))
    sizes = [_of_size(name, n_lesions.get(name, "")) for name in results.sizes]
    if sizes:
        png = _lesion_sizes(experiment, results, sizes)
        drawn.append(Picture(by_size, png, _alt(experiment, sizes, results)))
    return tuple(drawn)


def _of_size(name: str, n_lesions: str) -> Metric:
    """Return the sensitivity in one size class as a metric."""
    return Metric(SIZE_PREFIX + name, f"Lesions {name}" + (n_lesions and f"\nn = {n_lesions}"))


def _alt(experiment: Experiment, metrics: Sequence[Metric], results: Results) -> str:
    named = ", ".join(metric.text for metric in metrics)
    return (
        f"{experiment.title}: one panel each for {named}; "
        f"{len(results.conditions)} settings. The values are in the tables of this section."
    )


def _title(experiment: Experiment) -> str:
    return f"({experiment.letter}) {experiment.title}"


def _by_chance(ax: Axes, results: Results, metric: Metric, *, upright: bool) -> None:
    """Draw what scores reach that know nothing."""
    value = results.by_chance(metric.key)
    if value is not None:
        draw = ax.axvline if upright else ax.axhline
        draw(value, color=GREY, linestyle=":", linewidth=1.0, zorder=0.6)


# --- (a) and (c): curves ------------------------------------------------------------------------


def _curves(experiment: Experiment, results: Results, metrics: Sequence[Metric]) -> bytes:
    """Draw each metric against the share of abnormal subjects, or against batch size."""
    log = experiment.letter == "c"
    axis = "Reference subjects (log scale)" if log else "Abnormal reference subjects (%)"
    curves = series(results, by_size=log)

    def panel(ax: Axes, metric: Metric) -> None:
        _by_chance(ax, results, metric, upright=False)
        for (name, points), style in zip(curves.items(), itertools.cycle(_CURVES), strict=False):
            _curve(ax, results, metric, points, name, style)
        shown = [results.measure(condition, metric.key) for condition in results.conditions]
        ax.set_ylim(*limits(metric, shown))
        ax.set_title(metric.label, fontsize=USUAL, color=INK)
        ax.set_xlabel(axis, fontsize=SMALL, color=INK)
        _ticks_at(ax, [x for points in curves.values() for x, _ in points], log=log)
        if len(curves) > 1 and metric is metrics[0]:
            ax.legend(fontsize=SMALL, frameon=False)

    keys = [metric.key for metric in metrics]
    drawn = any(results.draws(c, key) for c in results.conditions for key in keys)
    marks = ("Short strokes: single draws of the batch. " if drawn else "") + "Band and whiskers"
    return panels(_title(experiment), note(results, keys, marks), metrics, panel)


def series(results: Results, *, by_size: bool) -> dict[str, Points]:
    """Sort the conditions into curves: a setting's name without its number is the curve's.

    Conditions whose x is not in the file have no place on the axis, and are in the tables alone.
    """
    curves: dict[str, Points] = {}
    for condition in results.conditions:
        x = condition.n_reference if by_size else condition.share_abnormal
        if x is not None and (x > 0 or not by_size):  # the axis of (c) is logarithmic
            name = _NUMBER.sub("", condition.setting)
            curves.setdefault(name, []).append((x if by_size else 100 * x, condition))
    return {name: sorted(points, key=lambda point: point[0]) for name, points in curves.items()}


def _curve(
    ax: Axes,
    results: Results,
    metric: Metric,
    points: Points,
    name: str,
    style: tuple[str, str, str],
) -> None:
    """Draw one curve with its band, and whiskers where neighbours have no interval."""
    color, marker, line = style
    for at, condition in points:
        draws = results.draws(condition, metric.key)
        ax.plot([at] * len(draws), draws, "_", color=color, markersize=7, zorder=1)
    rows = [(at, results.measure(condition, metric.key)) for at, condition in points]
    known = [(at, row) for at, row in rows if row.is_known]
    x, y = [at for at, _ in known], [row.value for _, row in known]
    ax.plot(
        x,
        y,
        color=color,
        marker=marker,
        linestyle=line,
        markersize=4,
        label=name or "as configured",
    )
    spans = [(at, row.low, row.high) for at, row in known if row.has_interval]
    x, low, high = ([span[part] for span in spans] for part in range(3))
    ax.fill_between(x, low, high, color=color, alpha=0.15, linewidth=0)
    ax.vlines(x, low, high, color=color, linewidth=0.8)


def _ticks_at(ax: Axes, values: Sequence[float], *, log: bool) -> None:
    """Put ticks where there are values: nothing else was tried."""
    ticks = sorted(set(values))
    if log and ticks:
        ax.set_xscale("log")
        ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_locator(FixedLocator(ticks))
    ax.set_xticks(ticks, labels=[f"{tick:.0f}" for tick in ticks])


# --- (b): bars ----------------------------------------------------------------------------------


def _bars(experiment: Experiment, results: Results, metrics: Sequence[Metric]) -> bytes:
    """Draw bars per perturbation, grouped, with the unchanged batch as a line through all."""
    changed = grouped([c for c in results.conditions if c.setting != UNCHANGED])
    unchanged = [c for c in results.conditions if c.setting == UNCHANGED]
    places, shades = _places(changed), _shades(changed)

    def panel(ax: Axes, metric: Metric) -> None:
        shown = [results.measure(condition, metric.key) for condition in results.conditions]
        low, high = limits(metric, shown)
        _by_chance(ax, results, metric, upright=True)
        for condition in unchanged:
            compare_with(ax, results.measure(condition, metric.key), RED)
        for y, condition, shade in zip(places, changed, shades, strict=True):
            row = results.measure(condition, metric.key)
            if row.is_known:
                ax.barh(y, row.value - low, left=low, height=0.8, color=shade)
            if row.is_known and row.has_interval:
                ax.hlines(y, row.low, row.high, color=INK, linewidth=1)
        scale_of(ax.xaxis, metric, (low, high))
        ax.set_xlabel(metric.label, fontsize=USUAL, color=INK)
        name_rows(ax, places, results, changed)

    marks = "Dashed line and band: nothing changed. Whiskers and band"
    if not unchanged:
        marks = f"The setting '{UNCHANGED}' is not among the measures. Whiskers"
    text = note(results, [metric.key for metric in metrics], marks)
    n_rows = n_lines(results, changed) * (1 + max(places, default=0.0)) / max(len(changed), 1)
    return panels(_title(experiment), text, metrics, panel, n_rows=n_rows)


def grouped(conditions: Sequence[Condition]) -> list[Condition]:
    """Bring the settings of one perturbation together, weak first; else they stay in order."""
    groups = list(dict.fromkeys(condition.group for condition in conditions))
    return sorted(conditions, key=lambda c: (groups.index(c.group), c.amount or 0.0))


def _places(conditions: Sequence[Condition]) -> list[float]:
    """Return where each bar lies: 1 apart, and a little more between groups."""
    steps = [1.0 if a.group == b.group else 1.3 for a, b in itertools.pairwise(conditions)]
    return list(itertools.accumulate(steps, initial=0.0))[: len(conditions)]


def _shades(conditions: Sequence[Condition]) -> list[str]:
    """Return the colour of each bar by its rank in its group."""
    shades = []
    for condition in conditions:
        peers = [other for other in conditions if other.group == condition.group]
        shades.append(_SHADES[min(peers.index(condition), len(_SHADES) - 1)])
    return shades


# --- (d) and (e): intervals ---------------------------------------------------------------------


def _forest(experiment: Experiment, results: Results, metrics: Sequence[Metric]) -> bytes:
    """Draw value and interval of each setting, best on top, this method marked."""
    rows = results.ranked(metrics[0])

    def panel(ax: Axes, metric: Metric) -> None:
        shown = [results.measure(condition, metric.key) for condition in rows]
        _by_chance(ax, results, metric, upright=True)
        for condition, row in zip(rows, shown, strict=True):
            if condition.setting in OURS:
                compare_with(ax, row, RED)
        intervals(ax, results, rows, metric)
        scale_of(ax.xaxis, metric, limits(metric, shown))
        ax.set_xlabel(metric.label, fontsize=USUAL, color=INK)

    order = f"Sorted by {metrics[0].text[:1].lower()}{metrics[0].text[1:]}."
    marks = f"{order} Diamond, dashed line and band: this method. Bars and band"
    if all(condition.setting not in OURS for condition in rows):
        marks = f"{order} '{OURS[0]}' is not among the measures. Bars"
    text = note(results, [metric.key for metric in metrics], marks)
    return panels(_title(experiment), text, metrics, panel, n_rows=n_lines(results, rows))


# --- lesion sizes -------------------------------------------------------------------------------


def _lesion_sizes(experiment: Experiment, results: Results, sizes: Sequence[Metric]) -> bytes:
    """Draw the sensitivity for lesions of each size, one panel per class."""
    metrics = results.known_metrics()
    by_rank = experiment.letter in "de" and metrics
    rows = results.ranked(metrics[0]) if by_rank else grouped(results.conditions)

    def panel(ax: Axes, metric: Metric) -> None:
        intervals(ax, results, rows, metric)
        scale_of(ax.xaxis, metric, (0.0, 1.02))
        ax.set_xlabel("Sensitivity", fontsize=SMALL, color=INK)
        ax.set_title(metric.label, fontsize=USUAL, color=INK)

    marks = "Sensitivity at 1 false finding per study, by volume of the lesion. Bars"
    text = note(results, [metric.key for metric in sizes], marks)
    title = f"({experiment.letter}) Lesion sensitivity by lesion size"
    n_rows = n_lines(results, rows)
    return panels(title, text, sizes, panel, n_rows=n_rows, columns=len(sizes))
