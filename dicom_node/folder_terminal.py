"""What the verbs that work through folders of scans share at a terminal: settings and progress."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from dicom_node import config
from dicom_node.batch_mode import Listener
from dicom_node.config import NodeConfig
from dicom_node.errors import ConfigError


def settings_of(config_path: Path | None, protocol: str | None) -> NodeConfig | None:
    """Read the configuration that the call names, if it names one.

    Raises ConfigError where it is not valid, or a protocol is named and no configuration.
    """
    if protocol is not None and config_path is None:
        raise ConfigError("--protocol names a protocol of a configuration: name that with --config")
    return config.load(config_path) if config_path else None


class Bars(Listener):
    """A bar per stage, under the words of `stages`."""

    def __init__(self, progress: Progress, stages: Mapping[str, str]) -> None:
        self._progress, self._stages = progress, stages
        self._tasks: dict[str, TaskID] = {}

    def start(self, stage: str, n_scans: int) -> None:
        """Add the bar of a stage."""
        self._tasks[stage] = self._progress.add_task(self._stages[stage], total=n_scans, name="")

    def progress(self, stage: str, number: int, share: float, name: str) -> None:
        """Move it, within a scan too: one takes ten seconds and more."""
        self._progress.update(self._tasks[stage], completed=number + share, name=name)

    def note(self, text: str) -> None:
        """Print above the bars."""
        self._progress.console.print(Text(text, style="yellow"), soft_wrap=True)


class Lines(Listener):
    """A line per step that is done, for logs and pipes."""

    def __init__(self, console: Console, stages: Mapping[str, str]) -> None:
        self._console, self._stages = console, stages
        self._n = 0
        self._started = 0.0

    def start(self, stage: str, n_scans: int) -> None:
        """Begin to count and to measure, and say so: the first scan takes a while."""
        self._n, self._started = n_scans, time.monotonic()
        self.note(f"{self._stages[stage]} 0/{n_scans}")

    def progress(self, stage: str, number: int, share: float, name: str) -> None:
        """Print a step that is done, and how long the others will take at this rate."""
        if share >= 1:
            done, elapsed = number + 1, time.monotonic() - self._started
            rest = elapsed / done * (self._n - done)
            self.note(f"{self._stages[stage]} {done}/{self._n} {name} ({rest:.0f} s to go)")

    def note(self, text: str) -> None:
        """Print a line as it is."""
        self._console.print(text, soft_wrap=True, markup=False, highlight=False)


@contextmanager
def listening(
    console: Console,
    stages: Mapping[str, str],
    *columns: ProgressColumn,
    bars: type[Bars] = Bars,
) -> Iterator[Listener]:
    """Draw `bars` on a terminal, with more columns after the count; elsewhere print lines."""
    if not console.is_terminal:
        yield Lines(console, stages)
        return
    all_columns = (
        TextColumn("{task.description:<8}"),
        BarColumn(),
        MofNCompleteColumn(),
        *columns,
        TimeRemainingColumn(),
        TextColumn("{task.fields[name]}", markup=False),
    )
    with Progress(*all_columns, console=console) as progress:
        yield bars(progress, stages)
