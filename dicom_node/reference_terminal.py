"""What the verbs ``dicom-node reference ...`` share: their options, whose batch, how it is said."""

from __future__ import annotations

import getpass
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from dicom_node import config, reference_verbs
from dicom_node.command_line import database_of
from dicom_node.errors import ConfigError
from dicom_node.grouping import Protocols
from dicom_node.protocol_config import Protocol
from dicom_node.reference import ReferenceBatch
from dicom_node.store import reference_table
from dicom_node.store.database import Database

out = Console()

ProtocolName = Annotated[
    str | None,
    typer.Option("--protocol", "-p", help="Whose batch; needed where there are several."),
]
Subject = Annotated[str, typer.Argument(help="A subject, as `reference list` names it.")]
Reason = Annotated[
    str, typer.Option("--reason", "-r", help="Why; it is kept and shown: name no patient.")
]
Person = Annotated[
    str | None, typer.Option("--by", help="Who decides; by default the user of this machine.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def batch_of(config_path: Path, protocol: str | None) -> ReferenceBatch:
    """Return the batch of the named protocol, or of the usual one; raises ConfigError."""
    protocols = protocols_of(config_path)
    return reference_verbs.current_batch(ledger(protocols), chosen(protocols, protocol))


def protocols_of(config_path: Path) -> Protocols:
    """Return the protocols of the node; raises ConfigError where it has never been started."""
    settings = config.load(config_path)
    return Protocols(settings, database_of(settings))


def ledger(protocols: Protocols) -> Database:
    """Return the ledger that the protocols were read from."""
    return protocols.database or database_of(protocols.config)


def usual(protocols: Protocols) -> Protocol | None:
    """Return the protocol that is meant where none is named: the only one of the configuration.

    Or the only discovered one, where the configuration has none.
    """
    named = protocols.config.protocol or protocols.all()
    return named[0] if len(named) == 1 else None


def usual_has_members(protocols: Protocols) -> bool:
    """Return whether a protocol is meant where none is named, and studies of it have come."""
    meant = usual(protocols)
    with ledger(protocols).read() as db:
        return meant is not None and bool(reference_table.fingerprints(db, meant.name))


def chosen(protocols: Protocols, name: str | None) -> Protocol:
    """Return the named protocol, or the usual one; raises ConfigError."""
    if name:
        return protocols.named(name)
    meant = usual(protocols)
    if meant is None:
        known = ", ".join(protocol.name for protocol in protocols.all())
        raise ConfigError(f"--protocol names one of: {known or '(the configuration has none)'}")
    return meant


def person(by: str | None) -> str:
    """Return who decides: the user of this machine where nobody is named."""
    return getpass.getuser() if by is None else by


def print_table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> None:
    """Print cells as they are: a table takes plain strings for markup."""
    table = Table(*head, box=None)
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    # what a script reads, or a file keeps, is not folded at the width of no terminal
    (out if out.is_terminal else Console(width=300)).print(table)


def say(text: str) -> None:
    """Print one line as it is, not wrapped: a script finds it whole."""
    out.print(Text(text), soft_wrap=True)
