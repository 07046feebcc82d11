"""The verb ``dicom-node doctor``: what keeps the node from working, and the remedies."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from dicom_node import __version__, clock
from dicom_node.command_line import DEFAULT_CONFIG, ConfigPath, say
from dicom_node.doctor.all_checks import examine
from dicom_node.doctor.checks import Checked, Verdict

_out = Console()
_STYLES = {Verdict.OK: "green", Verdict.NOTE: "yellow", Verdict.FAILED: "bold red"}


def doctor(
    config_path: ConfigPath = DEFAULT_CONFIG,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,  # noqa: FBT002 - a flag
) -> None:
    """Look for what keeps the node from working, and say what to do; it changes nothing.

    Disk, memory, versions, weights, clock, ports, certificates, peers, and what waits for a person
    in the ledger, whether the node runs or not. Exit status 1 when a check fails.

    Example: dicom-node doctor
    """
    with _out.status("Looking ..."):
        found = examine(config_path)
    faults = [one for one in found if one.said.verdict is Verdict.FAILED]
    if as_json:
        _out.print_json(json.dumps(_as_json(found)))
    else:
        _print(found)
        _summarise(len(found), len(faults))
    raise typer.Exit(1 if faults else 0)


def _as_json(found: Sequence[Checked]) -> dict[str, Any]:
    """Return one flat object per check."""
    return {
        "version": __version__,
        "at": clock.stamp(clock.now()),
        "healthy": all(one.said.verdict is not Verdict.FAILED for one in found),
        "checks": [
            {
                "part": one.part,
                "name": one.name,
                **asdict(one.said),
                "seconds": round(one.seconds, 3),
            }
            for one in found
        ],
    }


def _print(found: Sequence[Checked]) -> None:
    """Print a row per check, and below it what to do."""
    table = Table("check", "", "what was found, and what to do", box=None)
    for one in found:
        said = one.said
        text = Text(said.text)
        if said.remedy:
            text.append(f"\n{said.remedy}", _STYLES[said.verdict])
        table.add_row(Text(one.name), Text(said.verdict.value, _STYLES[said.verdict]), text)
    _out.print(table)


def _summarise(n_checks: int, n_failed: int) -> None:
    if n_failed:
        say(_out, f"{n_failed} of {n_checks} checks failed.", "bold red", "")
    else:
        say(_out, "Nothing keeps the node from working.", "green", f"{n_checks} checks.")
