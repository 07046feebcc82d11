"""The verb ``dicom-node verify``: what must be true of ledger and disk, and where it is not."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated

import typer
from rich.console import Console

from dicom_node import config
from dicom_node.command_line import DEFAULT_CONFIG, ConfigPath, ledger_of, say
from dicom_node.invariants.check import verify as run_verify
from dicom_node.store.database import Database

_out = Console()


def verify(
    config_path: ConfigPath = DEFAULT_CONFIG,
    quick: Annotated[  # noqa: FBT002 - a flag
        bool, typer.Option("--quick", help="Do not read what received files hold.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,  # noqa: FBT002 - a flag
) -> None:
    """Prove that nothing is lost: instances, jobs, results, deliveries, members; changes nothing.

    Beside a running node too. Exit status 1 with violations, each named.

    Example: dicom-node verify --quick
    """
    settings = config.load(config_path)
    database = Database(ledger_of(settings))
    try:
        found = run_verify(settings, database, quick=quick)
    finally:
        database.close()
    if as_json:
        _out.print_json(json.dumps(asdict(found)))
    else:
        for violation in found.violations:
            say(_out, f"{violation.kind}:", "red", f"{violation.subject}: {violation.text}")
        for name in found.strays:
            say(_out, "stray:", "yellow", f"inbox/{name} was never acknowledged; nothing is lost")
        counts = f"{found.n_instances} instances, {found.n_jobs} jobs, {found.n_results} results, "
        counts += f"{found.n_deliveries} deliveries; {len(found.violations)} violations"
        say(_out, "Verified:", "red" if found.violations else "green", counts)
    raise typer.Exit(1 if found.violations else 0)
