"""What all pictures of the report share: panels side by side, their scales, marks and notes.

Colours are those of Okabe and Ito (Color Universal Design, 2008), apart also in grey; what a colour
says, a marker, a label or a place says too. Figures are made without pyplot: nothing global is
changed or kept.
"""

from __future__ import annotations

import io
import textwrap
from collections.abc import Callable, Sequence

from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, StrMethodFormatter

from dicom_node.evaluate.report_measures import (
    OURS,
    UNCHANGED,
    Condition,
    Measure,
    Metric,
    Results,
)

BLUE, RED, GREY, INK = "#0072B2", "#D55E00", "#8A8A8A", "#222222"
SMALL, USUAL = 8.0, 9.0  # points
_ROW, _HEAD = 0.21, 0.8  # inches: of one named row of a panel, and of its title and axis
_WIDTH = 8.0  # inches
_DOTS_PER_INCH = 150
#: letters in a line of the note, and of a row's name
_NOTE, _NAME = 134, 30

#: draws one metric
Panel = Callable[[Axes, Metric], None]


def panels(
    title: str,
    note: str,
    metrics: Sequence[Metric],
    panel: Panel,
    *,
    n_rows: float | None = None,
    columns: int = 3,
) -> bytes:
    """Draw one panel per metric, `columns` of them side by side -> PNG.

    Panels with `n_rows` named lines are as high as these need; their names stand on the left only.
    """
    columns = min(columns, len(metrics))
    lines = textwrap.wrap(note, _NOTE)
    height = 2.2 if n_rows is None else _HEAD + _ROW * max(n_rows, 3)
    size = (_WIDTH, -(-len(metrics) // columns) * height + 0.4 + 0.17 * len(lines))
    figure = Figure(figsize=size, dpi=_DOTS_PER_INCH, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, x=0.01, ha="left", fontsize=11, fontweight="bold", color=INK)
    axes = figure.subplots(-(-len(metrics) // columns), columns, squeeze=False)
    for ax in axes.flat[len(metrics) :]:
        ax.set_axis_off()
    for place, (ax, metric) in enumerate(zip(axes.flat, metrics, strict=False)):
        panel(ax, metric)
        _plain(ax, named=n_rows is not None, first=place % columns == 0)
    # unlike figure.text, it is given room by the layout
    figure.supxlabel("\n".join(lines), x=0.01, ha="left", fontsize=SMALL, color=INK)
    return _png(figure)


def _plain(ax: Axes, *, named: bool, first: bool) -> None:
    """Take away what carries nothing; a panel beside another with the same rows needs no names."""
    ax.spines[["top", "right"]].set_visible(False)
    ax.tick_params(labelsize=SMALL, colors=INK)
    ax.grid(visible=True, axis="x" if named else "both", color="#DDDDDD", linewidth=0.6)
    ax.set_axisbelow(True)
    if named:
        ax.tick_params(axis="y", length=0, labelleft=first)


def _png(figure: Figure) -> bytes:
    stream = io.BytesIO()
    # no version of the library in it: the same figures give the same file
    figure.savefig(stream, format="png", metadata={"Software": None})
    figure.clear()
    return stream.getvalue()


def note(results: Results, metrics: Sequence[str], marks: str) -> str:
    """Say what every picture must: how many, what the marks are, and what Best Dice assumes."""
    low, high = results.n_test(metrics)
    n = f"{low}" if low == high else f"{low} to {high}"
    text = f"n = {n} test subjects. {marks}: 95 % bootstrap over subjects."
    if any(results.by_chance(metric) is not None for metric in metrics):
        text += " Dotted line, or a scale's lower end of 0.5: scores that know nothing."
    if "dice_oracle" in metrics:
        text += (
            " Best Dice: at the threshold that the masks themselves choose (an oracle's), which"
            " nobody has in use."
        )
    return text


def scale_of(axis: Axis, metric: Metric, ends: tuple[float, float]) -> None:
    """Put few round ticks on a rate's axis: those of the next panel are near."""
    if metric.bounded:
        low = ends[0]
        axis.set_major_locator(FixedLocator([low, (low + 1) / 2, 1.0]))
        axis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.set_view_interval(*ends, ignore=True)


def limits(metric: Metric, measures: Sequence[Measure]) -> tuple[float, float]:
    """Return the scale: 0 to 1, 0.5 to 1 where all is better than chance, or 0 to what is needed.

    A rate has the same scale in every run, so that the pictures of two can be laid side by side.
    """
    known = [measure for measure in measures if measure.is_known]
    ends = [end for row in known if row.has_interval for end in (row.low, row.high)]
    values = [row.value for row in known] + ends
    if not metric.bounded:
        return 0.0, 1.08 * max([*values, 0.5])
    chance = metric.chance
    # a little more than 1: half of a marker would be cut off
    return (chance if chance is not None and min(values) >= chance else 0.0), 1.02


def intervals(ax: Axes, results: Results, rows: Sequence[Condition], metric: Metric) -> None:
    """Draw value and interval of each row, the first on top."""
    for y, condition in enumerate(rows):
        row, ours = results.measure(condition, metric.key), condition.setting in (*OURS, UNCHANGED)
        color, marker, size = (RED, "D", 5) if ours else (BLUE, "o", 4)
        if row.is_known and row.has_interval:
            ax.hlines(y, row.low, row.high, color=color, linewidth=1.3)
        if row.is_known:
            ax.plot(row.value, y, marker, color=color, markersize=size, clip_on=False)
    name_rows(ax, list(range(len(rows))), results, rows)


def names_of(results: Results, rows: Sequence[Condition]) -> list[str]:
    """Return the names of rows, in two lines where they are long."""
    return [
        "\n".join(textwrap.wrap(results.name(row), _NAME, max_lines=2, placeholder=" …"))
        for row in rows
    ]


def n_lines(results: Results, rows: Sequence[Condition]) -> float:
    """Return how many rows of one line take the room of these, all of the same height."""
    return len(rows) * (1.4 if any("\n" in name for name in names_of(results, rows)) else 1.0)


def name_rows(
    ax: Axes, places: Sequence[float], results: Results, rows: Sequence[Condition]
) -> None:
    """Write the name of each row beside it, from the top down."""
    # a name is no formula, whatever it holds
    ax.set_yticks(places, labels=names_of(results, rows), parse_math=False)
    ax.set_ylim(max(places, default=0) + 0.7, -0.7)
    for text, condition in zip(ax.get_yticklabels(), rows, strict=True):
        if condition.setting in OURS:
            text.set_fontweight("bold")


def compare_with(ax: Axes, row: Measure, color: str) -> None:
    """Draw what the other rows are compared with as a line and a band through all of them."""
    if row.is_known:
        ax.axvline(row.value, color=color, linewidth=0.9, linestyle="--", zorder=1.5)
    if row.is_known and row.has_interval:
        ax.axvspan(row.low, row.high, color=color, alpha=0.09, linewidth=0, zorder=0)
