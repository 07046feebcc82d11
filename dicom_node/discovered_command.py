"""The verbs ``dicom-node reference ...`` about protocols that the node discovered by itself.

What they are is in :mod:`dicom_node.grouping`; this module shows them, prints what a site pastes
into its configuration, and has one forgotten.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated

import typer
from rich.text import Text

from dicom_node import reference_verbs
from dicom_node.command_line import DEFAULT_CONFIG, ConfigPath
from dicom_node.errors import ConfigError
from dicom_node.grouping import Discovered, Protocols, described
from dicom_node.reference_terminal import (
    Person,
    Reason,
    out,
    person,
    print_table,
    protocols_of,
    say,
)
from dicom_node.store import discovered_table, reference_table
from dicom_node.store.discovered_table import Tally

#: how a discovered protocol is marked wherever it is shown
MARK = "discovered, shadow"
_REVIEW = """\
# Adopted from what the node discovered on {founded}: {described}.
# Review before you paste it into config.toml:
# - the name: as long as it stays, the reference batch and all that was scored stay with it, and so
#   they do while extent_mm, spacing_mm, scales, intensity, window_hu, alignment, foreground stay;
# - [protocol.match]: no rule can ask for image type, sequence variant or in-plane spacing, by which
#   the node told its series apart; series_description narrows a rule that claims too much;
# - finding_threshold, by the scores that it has (the node's page, `dicom-node outcomes`);
# - mode: "live" sends results to the destinations; "shadow" goes on without sending.
# Put it before any wider [[protocol]], then start the node anew.
"""

Name = Annotated[str, typer.Argument(help="A discovered protocol, as `reference list` names it.")]


def mount(app: typer.Typer) -> None:
    """Add the verbs to the command line's ``reference``."""
    app.command()(adopt)
    app.command()(forget)


# --- to look at ---------------------------------------------------------------------------------


def find(protocols: Protocols, name: str) -> Discovered | None:
    """Return the discovered protocol of this name, None where none in force has it."""
    return next((entry for entry in protocols.discovered() if entry.protocol.name == name), None)


def print_discovered(protocols: Protocols) -> None:
    """Print a line for each discovered protocol; nothing where there is none."""
    found = protocols.discovered()
    if not found:
        return
    tallies = _tallies(protocols)
    rows = []
    for entry in found:
        name = entry.protocol.name
        tally = tallies.get(name, Tally())
        cells = (name, MARK, entry.founded[:16], str(tally.n_series), tally.last_seen[:16])
        rows.append((*cells, described(entry.founder)))
    print_table(("protocol", "what", "since", "series", "last seen", "acquired as"), rows)


def print_one(protocols: Protocols, entry: Discovered, *, as_json: bool) -> None:
    """Print all that is known of a discovered protocol."""
    values = _values(protocols, entry)
    if as_json:
        out.print_json(json.dumps(values))
        return
    for name in ("name", "what", "since", "n_series", "last_seen", "members", "acquired_as"):
        say(f"{name.replace('_', ' ')}: {values[name]}")
    say(f"\n{entry.rule}")


def _values(protocols: Protocols, entry: Discovered) -> dict[str, object]:
    """Return what is known of a discovered protocol as JSON holds it."""
    name = entry.protocol.name
    tally = _tallies(protocols).get(name, Tally())
    members = {}
    if protocols.database is not None:
        with protocols.database.read() as db:
            members = {
                state: n for (of, state), n in reference_table.counts(db).items() if of == name
            }
    return {
        "name": name,
        "what": MARK,
        "since": entry.founded,
        "n_series": tally.n_series,
        "last_seen": tally.last_seen,
        "members": members,
        "acquired_as": described(entry.founder),
        "signature": asdict(entry.founder),
        "rule": entry.rule,
    }


def _tallies(protocols: Protocols) -> dict[str, Tally]:
    if protocols.database is None:
        return {}
    with protocols.database.read() as db:
        return discovered_table.tallies(db)


# --- to decide ----------------------------------------------------------------------------------


def adopt(name: Name, config_path: ConfigPath = DEFAULT_CONFIG) -> None:
    """Print a discovered protocol as the text to paste into the configuration.

    Example: dicom-node reference adopt mr-head-t1-axial-1mm >> config.toml
    """
    protocols = protocols_of(config_path)
    entry = _known(protocols, name)
    review = _REVIEW.format(founded=entry.founded[:10], described=described(entry.founder))
    out.print(Text(f"\n{review}{entry.rule}"), soft_wrap=True, end="")


def forget(
    name: Name,
    reason: Reason,
    by: Person = None,
    config_path: ConfigPath = DEFAULT_CONFIG,
) -> None:
    """Let a discovered protocol claim nothing any more; its members leave its batch.

    Example: dicom-node reference forget mr-knee-t2-sagittal-3mm --reason "research sequence"
    """
    protocols = protocols_of(config_path)
    done = reference_verbs.forget(protocols, name, person(by), reason)
    text = (
        f"Forgotten: {name}. {done.n_members} members have left, and {done.n_waiting} studies that "
        "waited are rejected. Its series are unclaimed from now on: "
    )
    if protocols.config.grouping.discover:
        text += (
            "the next one founds a protocol of another name, unless a [[protocol]] claims it or "
            "grouping.discover is false."
        )
    else:
        text += "they are rejected until a [[protocol]] claims them."
    say(text)


def _known(protocols: Protocols, name: str) -> Discovered:
    """Return the discovered protocol of this name; raises ConfigError with those that there are."""
    entry = find(protocols, name)
    if entry is None:
        known = ", ".join(found.protocol.name for found in protocols.discovered())
        raise ConfigError(f"no discovered protocol is named {name!r}; there are: {known or 'none'}")
    return entry
