"""The verb ``dicom-node digest``: what protocols in shadow mode would have sent in a week."""

from __future__ import annotations

import sys
from typing import Annotated

import typer
from rich.console import Console

from dicom_node import clock, config, weekly
from dicom_node.command_line import DEFAULT_CONFIG, ConfigPath, database_of, say
from dicom_node.errors import ConfigError
from dicom_node.weekly import Week

_out = Console()


def digest(
    week: Annotated[
        str | None, typer.Option("--week", help="As 2026-W48; by default this week, so far.")
    ] = None,
    config_path: ConfigPath = DEFAULT_CONFIG,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print the table as CSV instead.")] = False,  # noqa: FBT002 - a flag
) -> None:
    """Write what the protocols in shadow mode would have sent in a week, as a page and a table.

    Example: dicom-node digest --week 2026-W48
    """
    of = Week.named(week) if week else Week.of(clock.now())
    settings = config.load(config_path)
    database = database_of(settings)
    if as_csv:
        sys.stdout.write(weekly.as_csv(weekly.collect(settings, database, of), settings))
        return
    for one in weekly.collect(settings, database, of):
        n_found = sum(study.n_findings > 0 for study in one.studies)
        n_missing = sum(row.n for row in one.missing)
        text = f"{len(one.studies)} scored, {n_found} with findings, {n_missing} without a result. "
        say(_out, f"{one.name}:", "bold", text + one.to_go_live)
    try:
        say(_out, "Written:", "green", str(weekly.write(settings, database, of)))
    except OSError as error:
        raise ConfigError(f"node.data_dir: the digest cannot be written: {error}") from error
