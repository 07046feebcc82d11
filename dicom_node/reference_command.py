"""The verbs ``dicom-node reference ...``: what belongs together, and what is in the batches.

A sub-application of the command line, which mounts it. Answers go to standard output, errors to
standard error, as there.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from dicom_node import config, member_command
from dicom_node.command_line import DEFAULT_CONFIG, say

if TYPE_CHECKING:
    from dicom_node.explanation import Explained

app = typer.Typer(
    no_args_is_help=True,
    help="Shows which series are compared with one another, and decides it.\n\n"
    "Example: dicom-node reference list --protocol head-t1",
)
# who is in the batches, beside what belongs together
member_command.mount(app)
_out = Console()
_err = Console(stderr=True)

#: fields of a signature that are said by themselves, or in the field that they explain
_APART = {"body_part_as_sent", "inferred"}


# --- signature ----------------------------------------------------------------------------------


@app.command("signature")
def signature_verb(
    path: Annotated[Path, typer.Argument(exists=True, help="A DICOM file, or a folder of series.")],
    config_path: Annotated[
        Path | None,
        typer.Option(
            "--config",
            "-c",
            help="Whose protocols are asked; by default config.toml, where there is one.",
            envvar="DICOM_NODE_CONFIG",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON array.")] = False,  # noqa: FBT002 - a flag
) -> None:
    """Explain which protocol each series would join and why, or why none, and what to add.

    Exit status 1 when a series could not be scored whatever the protocols.

    Example: dicom-node reference signature /exports/head-mr
    """
    # reads pixels, with a second of imports that no other verb needs
    from dicom_node.explanation import explain
    from dicom_node.grouping import of_node

    settings = _settings(config_path)
    found = explain(path, settings.protocol, of_node(settings).discovered())
    if as_json:
        _out.print_json(json.dumps([_as_values(entry) for entry in found]))
    else:
        for entry in found:
            _show(entry)
        _show_rules(found)
    for entry in found:
        if entry.fault:
            _print(f"series {_name(entry)}: {entry.fault}", "Error:", "bold red", _err)
    raise typer.Exit(1 if any(entry.fault for entry in found) else 0)


def _settings(path: Path | None) -> config.NodeConfig:
    """Read the named configuration; none is needed to see a signature."""
    if path is None and not DEFAULT_CONFIG.exists():
        return config.NodeConfig()
    return config.load(path or DEFAULT_CONFIG)


def _as_values(entry: Explained) -> dict[str, Any]:
    """Return an answer as JSON holds it."""
    values = asdict(entry)
    values["mismatches"] = {name: list(said) for name, said in entry.mismatches}
    if entry.signature is not None:
        values["signature"]["inferred"] = dict(entry.signature.inferred)
    return values


def _name(entry: Explained) -> str:
    """Return what tells a series from the others."""
    named = entry.series_instance_uid or "without SeriesInstanceUID"
    return f"{named}, volume {entry.part}" if entry.part else named


def _show(entry: Explained) -> None:
    """Print one series: how it was acquired, who claims it, and what speaks against the others."""
    _print(f"{_name(entry)}, {entry.n_instances} instances", "Series", "bold")
    for name, said in _fields(entry):
        _print(said, f"  {name}:", "cyan")
    for note in entry.notes:
        _print(note, "  Note:", "yellow")
    if entry.fault:
        _print("none; the node rejects the series", "  protocol:", "red")
    elif entry.protocol:
        _print(f"{entry.protocol}, for {', '.join(entry.asked)}", "  protocol:", "green")
    elif entry.joins:
        _print(f"none; joins discovered {entry.joins}, in shadow", "  protocol:", "green")
    else:
        _print("none", "  protocol:", "yellow")
    for name, faults in entry.mismatches:
        _print("; ".join(faults), f"    not {name}:", "dim")
    if entry.proposed:
        _print(entry.proposed.name, "  proposed name:", "green")


def _fields(entry: Explained) -> Iterator[tuple[str, str]]:
    """Yield (field, value) of the signature, and where an inferred one was found."""
    if entry.signature is None:
        return
    sources = dict(entry.signature.inferred)
    for name, value in asdict(entry.signature).items():
        if name in _APART or value in (None, ()):
            continue
        said = " x ".join(map(str, value)) if name == "spacing_mm" else _word(value)
        yield name, f"{said} ({sources[name]})" if name in sources else said


def _word(value: object) -> str:
    """Return a value as a person reads it."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _show_rules(found: Sequence[Explained]) -> None:
    """Print each proposed rule once, whatever number of series it is for."""
    rules = {entry.proposed.toml: entry.proposed for entry in found if entry.proposed}
    for rule, proposed in rules.items():
        if rule:
            _print(f"for {proposed.n_alike} of the series above:", "\nAdd to config.toml", "bold")
            _out.print(rule, markup=False, highlight=False, soft_wrap=True)


def _print(text: str, head: str, style: str, console: Console = _out) -> None:
    say(console, head, style, text)
