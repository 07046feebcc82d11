"""The verbs ``dicom-node reference ...`` about the space that a batch takes from itself.

What a space is, and when it is chosen anew, is in :mod:`dicom_node.space_rules`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import typer

from dicom_node import reference_verbs
from dicom_node.command_line import DEFAULT_CONFIG, ConfigPath
from dicom_node.reference import ReferenceBatch
from dicom_node.reference_terminal import (
    AsJson,
    Person,
    ProtocolName,
    Reason,
    batch_of,
    chosen,
    ledger,
    out,
    person,
    print_table,
    protocols_of,
    say,
)
from dicom_node.store.space_table import BEHIND, THERE, Moved, SpaceRow


def mount(app: typer.Typer) -> None:
    """Add the verbs to the command line's ``reference``."""
    app.command()(space)
    app.command()(rebuild)


def space(
    config_path: ConfigPath = DEFAULT_CONFIG,
    protocol: ProtocolName = None,
    as_json: AsJson = False,  # noqa: FBT002 - a flag
) -> None:
    """List the templates and histograms that a batch chose of its own, newest first, and why.

    Example: dicom-node reference space --protocol head-t1
    """
    protocols = protocols_of(config_path)
    found = reference_verbs.spaces(ledger(protocols), chosen(protocols, protocol))
    values = [_space_values(row, moved) for row, moved in found]
    if as_json:
        out.print_json(json.dumps(values))
        return
    names = ("number", "state", "asked", "by", "space", "template", "reason", "members")
    print_table(names, ((str(one[name]) for name in names) for one in values))
    for one in values:
        for entry in one["left_behind"]:
            say(f"{one['number']}: {entry['subject']} was left behind: {entry['reason']}")


def rebuild(
    reason: Reason,
    by: Person = None,
    config_path: ConfigPath = DEFAULT_CONFIG,
    protocol: ProtocolName = None,
) -> None:
    """Have the node look for a better template and histogram of a batch's own, and move into it.

    Example: dicom-node reference rebuild --protocol head-t1 --reason "the first was too short"
    """
    row = reference_verbs.rebuild(batch_of(config_path, protocol), person(by), reason)
    say(
        f"Number {row.id}: the node looks among {row.n_members} patients when it has nothing else "
        "to do, and encodes the members anew if it finds a better space; the batch serves as it is "
        "meanwhile (dicom-node reference space shows how far it is)"
    )


def _space_values(row: SpaceRow, moved: Sequence[Moved]) -> dict[str, Any]:
    """Return a look for a space as it is shown."""
    n_there = sum(one.state == THERE for one in moved)
    behind = [one for one in moved if one.state == BEHIND]
    return {
        "number": row.id,
        "state": row.state,
        "asked": row.asked,
        "by": row.actor,
        "since": row.since,
        "space": row.chosen.digest if row.chosen else "",
        "template": row.chosen.template if row.chosen else "",
        "chosen_of": list(row.chosen.subjects) if row.chosen else [],
        "reason": row.reason,
        "members": f"{n_there} there, {len(behind)} left behind" if moved else "",
        "left_behind": [{"subject": one.subject, "reason": one.reason} for one in behind],
    }


def space_name(batch: ReferenceBatch) -> str:
    """Return which template or histogram of its own the batch has, in words."""
    row = reference_verbs.space_of(batch)
    if row is None or row.chosen is None:
        return "none of the batch's own"
    template = f", template {row.chosen.template}" if row.chosen.template else ""
    return f"{row.chosen.digest}{template}, since {row.since}: {row.reason}"
