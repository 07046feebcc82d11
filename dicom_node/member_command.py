"""The verbs ``dicom-node reference ...`` by which people steer a batch: a table, or one line each.

What they decide is in :mod:`dicom_node.reference_verbs`; this module asks and answers. Only
`export` and `import` need the encoder's weights, for the fingerprint, and the time to load torch.
"""

from __future__ import annotations

import getpass
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from dicom_node import clock, config, discovered_command, reference_verbs
from dicom_node.command_line import DEFAULT_CONFIG, ConfigPath, ledger_of
from dicom_node.errors import ConfigError
from dicom_node.folders import cache_folder
from dicom_node.grouping import Protocols
from dicom_node.protocol_config import Protocol
from dicom_node.reference import ReferenceBatch
from dicom_node.store import reference_table
from dicom_node.store.admission_table import Event
from dicom_node.store.database import Database, migrate
from dicom_node.store.reference_table import Member
from dicom_node.store.space_table import BEHIND, THERE, Moved, SpaceRow

if TYPE_CHECKING:
    from dicom_node.line import Line

_out = Console()

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


def mount(app: typer.Typer) -> None:
    """Add the verbs to the command line's ``reference``."""
    app.command("list")(list_)
    app.command()(show)
    app.command()(history)
    for name, (verb, text) in _DECISIONS.items():
        app.command(name, help=text)(verb)
    app.command()(undo)
    discovered_command.mount(app)
    app.command()(space)
    app.command()(rebuild)
    app.command()(export)
    app.command("import")(import_)


# --- to look at ---------------------------------------------------------------------------------


def list_(
    config_path: ConfigPath = DEFAULT_CONFIG,
    protocol: ProtocolName = None,
    as_json: AsJson = False,  # noqa: FBT002 - a flag
) -> None:
    """List who is known to a protocol's reference batch, and the protocols the node discovered.

    Example: dicom-node reference list --protocol head-t1
    """
    protocols = _protocols(config_path)
    empty = protocol is None and not as_json and not _usual_has_members(protocols)
    if empty and protocols.discovered():
        discovered_command.print_discovered(protocols)
        names = ", ".join(entry.name for entry in protocols.all())
        _say(f"--protocol names one of them to list who is in its batch: {names}")
        return
    batch = reference_verbs.current_batch(_ledger(protocols), _chosen(protocols, protocol))
    found = reference_verbs.list_members(batch)
    if as_json:
        _out.print_json(json.dumps([_described(entry) for entry in found]))
        return
    rows = ((m.subject, _state(m), _percent(m), m.scanner, m.decided_by, m.reason) for m in found)
    _print_table(("subject", "state", "percentile", "scanner", "decided by", "reason"), rows)
    if batch.protocol.own:
        _say(f"space: {_space_name(batch)}")
    if batch.frozen():
        _say("The batch is frozen: nobody comes or leaves by rule.")
    if discovered_command.find(protocols, batch.protocol.name):
        _say(f"{batch.protocol.name} is {discovered_command.MARK}: nothing is sent.")
    elif protocol is None:
        discovered_command.print_discovered(protocols)


def show(
    subject: Annotated[
        str, typer.Argument(help="A subject, or a discovered protocol, as `list` names it.")
    ],
    config_path: ConfigPath = DEFAULT_CONFIG,
    protocol: ProtocolName = None,
    as_json: AsJson = False,  # noqa: FBT002 - a flag
) -> None:
    """Show a subject and all that was decided of it, or a protocol that the node discovered.

    Example: dicom-node reference show 5f3a0c1b9d2e
    """
    protocols = _protocols(config_path)
    entry = discovered_command.find(protocols, subject)
    if entry is not None:
        discovered_command.print_one(protocols, entry, as_json=as_json)
        return
    batch = reference_verbs.current_batch(_ledger(protocols), _chosen(protocols, protocol))
    found = reference_verbs.show(batch, subject)
    described = _described(found.member) | {"space": _space_name(batch)}
    if as_json:
        events = [_summary(event) for event in found.events]
        _out.print_json(json.dumps(described | {"decisions": events}))
        return
    for name, value in described.items():
        _say(f"{name}: {value}")
    _print_events(found.events)


def history(
    config_path: ConfigPath = DEFAULT_CONFIG,
    protocol: ProtocolName = None,
    limit: Annotated[int, typer.Option(min=1, help="So many of the newest.")] = 30,
) -> None:
    """List the decisions about a batch, newest first, with the numbers that `undo` takes.

    Example: dicom-node reference history --protocol head-t1
    """
    _print_events(reference_verbs.history(_batch(config_path, protocol), limit))


# --- to decide ----------------------------------------------------------------------------------


def _of_subject(decide: Callable[[ReferenceBatch, str, str, str], Event]) -> Callable[..., None]:
    """Return the verb by which a person decides of one subject."""

    def verb(
        subject: Subject,
        reason: Reason,
        by: Person = None,
        config_path: ConfigPath = DEFAULT_CONFIG,
        protocol: ProtocolName = None,
    ) -> None:
        batch = _batch(config_path, protocol)
        _say_event(decide(batch, subject, _person(by), reason))

    return verb


def _of_batch(decide: Callable[[ReferenceBatch, str, str], Event]) -> Callable[..., None]:
    """Return the verb by which a person decides of the whole batch."""

    def verb(
        reason: Reason,
        by: Person = None,
        config_path: ConfigPath = DEFAULT_CONFIG,
        protocol: ProtocolName = None,
    ) -> None:
        batch = _batch(config_path, protocol)
        _say_event(decide(batch, _person(by), reason))

    return verb


#: name -> verb and its help text
_DECISIONS = {
    "include": (
        _of_subject(reference_verbs.include),
        (
            "Admit a subject whatever its score; the oldest leaves a full batch for it.\n\n"
            'Example: dicom-node reference include 5f3a0c1b9d2e --reason "rare, but normal"'
        ),
    ),
    "exclude": (
        _of_subject(reference_verbs.exclude),
        (
            "Keep a subject out of the batch, whatever its score.\n\n"
            'Example: dicom-node reference exclude 5f3a0c1b9d2e --reason "resection cavity"'
        ),
    ),
    "pin": (
        _of_subject(reference_verbs.pin),
        (
            "Let an admitted subject never leave by rule.\n\n"
            'Example: dicom-node reference pin 5f3a0c1b9d2e --reason "a good example"'
        ),
    ),
    "unpin": (
        _of_subject(reference_verbs.unpin),
        (
            "Let a pinned subject leave by rule again.\n\n"
            'Example: dicom-node reference unpin 5f3a0c1b9d2e --reason "others are as good"'
        ),
    ),
    "freeze": (
        _of_batch(reference_verbs.freeze),
        (
            "Stop the automatic changes of a batch: nobody comes or leaves but by a person.\n\n"
            'Example: dicom-node reference freeze --protocol head-t1 --reason "reader study"'
        ),
    ),
    "unfreeze": (
        _of_batch(reference_verbs.unfreeze),
        (
            "Let a frozen batch roll again.\n\n"
            'Example: dicom-node reference unfreeze --protocol head-t1 --reason "study is over"'
        ),
    ),
}


def undo(
    number: Annotated[
        int, typer.Argument(help="Of the decision, as `reference history` lists it.")
    ],
    reason: Reason,
    by: Person = None,
    config_path: ConfigPath = DEFAULT_CONFIG,
    protocol: ProtocolName = None,
) -> None:
    """Put everything back as it was before a decision, of a person or of the rule.

    Example: dicom-node reference undo 17 --reason "wrong subject"
    """
    batch = _batch(config_path, protocol)
    _say_event(reference_verbs.undo(batch, number, _person(by), reason))


# --- the batch's own space ----------------------------------------------------------------------


def space(
    config_path: ConfigPath = DEFAULT_CONFIG,
    protocol: ProtocolName = None,
    as_json: AsJson = False,  # noqa: FBT002 - a flag
) -> None:
    """List the templates and histograms that a batch chose of its own, newest first, and why.

    Example: dicom-node reference space --protocol head-t1
    """
    protocols = _protocols(config_path)
    found = reference_verbs.spaces(_ledger(protocols), _chosen(protocols, protocol))
    values = [_space_values(row, moved) for row, moved in found]
    if as_json:
        _out.print_json(json.dumps(values))
        return
    names = ("number", "state", "asked", "by", "space", "template", "reason", "members")
    _print_table(names, ((str(one[name]) for name in names) for one in values))
    for one in values:
        for entry in one["left_behind"]:
            _say(f"{one['number']}: {entry['subject']} was left behind: {entry['reason']}")


def rebuild(
    reason: Reason,
    by: Person = None,
    config_path: ConfigPath = DEFAULT_CONFIG,
    protocol: ProtocolName = None,
) -> None:
    """Have the node look for a better template and histogram of a batch's own, and move into it.

    Example: dicom-node reference rebuild --protocol head-t1 --reason "the first was too short"
    """
    row = reference_verbs.rebuild(_batch(config_path, protocol), _person(by), reason)
    _say(
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


def _space_name(batch: ReferenceBatch) -> str:
    """Return which template or histogram of its own the batch has, in words."""
    row = reference_verbs.space_of(batch)
    if row is None or row.chosen is None:
        return "none of the batch's own"
    template = f", template {row.chosen.template}" if row.chosen.template else ""
    return f"{row.chosen.digest}{template}, since {row.since}: {row.reason}"


# --- to other nodes -----------------------------------------------------------------------------


def export(
    path: Annotated[Path, typer.Argument(help="The zip file to write.")],
    config_path: ConfigPath = DEFAULT_CONFIG,
    protocol: ProtocolName = None,
    version: Annotated[
        str | None, typer.Option("--batch", help="A batch of a score; by default as it is now.")
    ] = None,
) -> None:
    """Write a batch to a file for another node, without patient data.

    Example: dicom-node reference export head-t1.zip --protocol head-t1
    """
    from dicom_node.reference_exchange import export_batch

    line, chosen = _line(config_path, protocol)
    version = version or line.batch(chosen).snapshot("", "", clock.now()).version
    made = export_batch(line.files(chosen), line.database, version, path)
    _say(f"{path}: batch {version}, {len(made.subjects)} subjects, fingerprint {made.fingerprint}")


def import_(
    path: Annotated[Path, typer.Argument(help="A file that `reference export` wrote.")],
    by: Person = None,
    config_path: ConfigPath = DEFAULT_CONFIG,
    protocol: ProtocolName = None,
) -> None:
    """Admit the subjects of a batch that another node exported; once is enough.

    Example: dicom-node reference import head-t1.zip --protocol head-t1
    """
    from dicom_node.reference_exchange import import_batch

    line, chosen = _line(config_path, protocol)
    done = import_batch(line.files(chosen), line.batch(chosen), path, _person(by))
    if done.event is None:
        _say(f"All {len(done.subjects)} subjects of {path} are known here: nothing changed.")
    else:
        _say_event(done.event)


def _line(config_path: Path, protocol: str | None) -> tuple[Line, Protocol]:
    """Return what the stages of a worker share, and the protocol."""
    from dicom_node.line import Line

    settings = config.load(config_path)
    line = Line(settings, _database(settings), cache_folder())
    return line, _chosen(line.protocols, protocol)


# --- what all share -----------------------------------------------------------------------------


def _batch(config_path: Path, protocol: str | None) -> ReferenceBatch:
    protocols = _protocols(config_path)
    return reference_verbs.current_batch(_ledger(protocols), _chosen(protocols, protocol))


def _protocols(config_path: Path) -> Protocols:
    """Return the protocols of the node; raises ConfigError where it has never been started."""
    settings = config.load(config_path)
    return Protocols(settings, _database(settings))


def _ledger(protocols: Protocols) -> Database:
    return protocols.database or _database(protocols.config)


def _usual(protocols: Protocols) -> Protocol | None:
    """Return the protocol that is meant where none is named: the only one of the configuration.

    Or the only discovered one, where the configuration has none.
    """
    named = protocols.config.protocol or protocols.all()
    return named[0] if len(named) == 1 else None


def _usual_has_members(protocols: Protocols) -> bool:
    """Return whether a protocol is meant where none is named, and studies of it have come."""
    usual = _usual(protocols)
    with _ledger(protocols).read() as db:
        return usual is not None and bool(reference_table.fingerprints(db, usual.name))


def _chosen(protocols: Protocols, name: str | None) -> Protocol:
    """Return the named protocol, or the usual one; raises ConfigError."""
    if name:
        return protocols.named(name)
    usual = _usual(protocols)
    if usual is None:
        known = ", ".join(protocol.name for protocol in protocols.all())
        raise ConfigError(f"--protocol names one of: {known or '(the configuration has none)'}")
    return usual


def _database(settings: config.NodeConfig) -> Database:
    """Open the ledger, brought up to date; raises ConfigError where there is none."""
    path = ledger_of(settings)
    migrate(path)
    return Database(path)


def _person(by: str | None) -> str:
    return getpass.getuser() if by is None else by


def _described(entry: Member) -> dict[str, object]:
    """Return a member as it is shown, without the key of its patient."""
    return {name: value for name, value in asdict(entry).items() if name != "patient_key"}


def _summary(event: Event) -> dict[str, object]:
    decision = event.decision
    return {
        "number": event.id,
        "at": clock.stamp(event.at),
        "by": decision.actor,
        "verb": decision.verb,
        "undoes": decision.undoes,
        "reason": decision.reason,
        "subjects": [change.subject for change in event.changes],
    }


def _state(entry: Member) -> str:
    return f"{entry.state}, pinned" if entry.pinned else entry.state


def _percent(entry: Member) -> str:
    return "" if entry.percentile is None else f"{entry.percentile:.0f}"


def _print_events(events: Iterable[Event]) -> None:
    names = ("number", "at", "by", "verb", "reason", "subjects")
    rows = [_summary(event) for event in events]
    _print_table(names, ((_cell(row[name]) for name in names) for row in rows))


def _cell(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _print_table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> None:
    """Print cells as they are: a table takes plain strings for markup."""
    table = Table(*head, box=None)
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    # what a script reads, or a file keeps, is not folded at the width of no terminal
    (_out if _out.is_terminal else Console(width=300)).print(table)


def _say_event(event: Event) -> None:
    """Say what was decided, of whom, and how to take it back."""
    changed = ", ".join(
        f"{change.subject} {change.old.state if change.old else 'new'} -> "
        f"{_state(change.new) if change.new else 'gone'}"
        for change in event.changes
    )
    what = event.decision.verb + (f": {changed}" if changed else "")
    _say(f"Decision {event.id}, {what} (dicom-node reference undo {event.id} takes it back)")


def _say(text: str) -> None:
    """Print one line as it is, not wrapped: a script finds it whole."""
    _out.print(Text(text), soft_wrap=True)
