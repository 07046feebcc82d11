"""The verbs ``dicom-node reference ...`` by which people steer a batch: a table, or one line each.

What they decide is in :mod:`dicom_node.reference_verbs`; this module asks and answers. Only
`export` and `import` need the encoder's weights, for the fingerprint, and the time to load torch.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dicom_node import clock, config, discovered_command, reference_verbs, space_command
from dicom_node.command_line import DEFAULT_CONFIG, ConfigPath, database_of
from dicom_node.folders import cache_folder
from dicom_node.protocol_config import Protocol
from dicom_node.reference import ReferenceBatch
from dicom_node.reference_terminal import (
    AsJson,
    Person,
    ProtocolName,
    Reason,
    Subject,
    batch_of,
    chosen,
    ledger,
    out,
    person,
    print_table,
    protocols_of,
    say,
    usual_has_members,
)
from dicom_node.store.admission_table import Event
from dicom_node.store.reference_table import Member

if TYPE_CHECKING:
    from dicom_node.line import Line


def mount(app: typer.Typer) -> None:
    """Add the verbs to the command line's ``reference``."""
    app.command("list")(list_)
    app.command()(show)
    app.command()(history)
    for name, (verb, text) in _DECISIONS.items():
        app.command(name, help=text)(verb)
    app.command()(undo)
    discovered_command.mount(app)
    space_command.mount(app)
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
    protocols = protocols_of(config_path)
    empty = protocol is None and not as_json and not usual_has_members(protocols)
    if empty and protocols.discovered():
        discovered_command.print_discovered(protocols)
        names = ", ".join(entry.name for entry in protocols.all())
        say(f"--protocol names one of them to list who is in its batch: {names}")
        return
    batch = reference_verbs.current_batch(ledger(protocols), chosen(protocols, protocol))
    found = reference_verbs.list_members(batch)
    if as_json:
        out.print_json(json.dumps([_described(entry) for entry in found]))
        return
    rows = ((m.subject, _state(m), _percent(m), m.scanner, m.decided_by, m.reason) for m in found)
    print_table(("subject", "state", "percentile", "scanner", "decided by", "reason"), rows)
    if batch.protocol.own:
        say(f"space: {space_command.space_name(batch)}")
    if batch.frozen():
        say("The batch is frozen: nobody comes or leaves by rule.")
    if discovered_command.find(protocols, batch.protocol.name):
        say(f"{batch.protocol.name} is {discovered_command.MARK}: nothing is sent.")
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
    protocols = protocols_of(config_path)
    entry = discovered_command.find(protocols, subject)
    if entry is not None:
        discovered_command.print_one(protocols, entry, as_json=as_json)
        return
    batch = reference_verbs.current_batch(ledger(protocols), chosen(protocols, protocol))
    found = reference_verbs.show(batch, subject)
    described = _described(found.member) | {"space": space_command.space_name(batch)}
    if as_json:
        events = [_summary(event) for event in found.events]
        out.print_json(json.dumps(described | {"decisions": events}))
        return
    for name, value in described.items():
        say(f"{name}: {value}")
    _print_events(found.events)


def history(
    config_path: ConfigPath = DEFAULT_CONFIG,
    protocol: ProtocolName = None,
    limit: Annotated[int, typer.Option(min=1, help="So many of the newest.")] = 30,
) -> None:
    """List the decisions about a batch, newest first, with the numbers that `undo` takes.

    Example: dicom-node reference history --protocol head-t1
    """
    _print_events(reference_verbs.history(batch_of(config_path, protocol), limit))


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
        batch = batch_of(config_path, protocol)
        _say_event(decide(batch, subject, person(by), reason))

    return verb


def _of_batch(decide: Callable[[ReferenceBatch, str, str], Event]) -> Callable[..., None]:
    """Return the verb by which a person decides of the whole batch."""

    def verb(
        reason: Reason,
        by: Person = None,
        config_path: ConfigPath = DEFAULT_CONFIG,
        protocol: ProtocolName = None,
    ) -> None:
        batch = batch_of(config_path, protocol)
        _say_event(decide(batch, person(by), reason))

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
    batch = batch_of(config_path, protocol)
    _say_event(reference_verbs.undo(batch, number, person(by), reason))


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
    say(f"{path}: batch {version}, {len(made.subjects)} subjects, fingerprint {made.fingerprint}")


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
    done = import_batch(line.files(chosen), line.batch(chosen), path, person(by))
    if done.event is None:
        say(f"All {len(done.subjects)} subjects of {path} are known here: nothing changed.")
    else:
        _say_event(done.event)


def _line(config_path: Path, protocol: str | None) -> tuple[Line, Protocol]:
    """Return what the stages of a worker share, and the protocol."""
    from dicom_node.line import Line

    settings = config.load(config_path)
    line = Line(settings, database_of(settings), cache_folder())
    return line, chosen(line.protocols, protocol)


# --- what all share -----------------------------------------------------------------------------


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
    print_table(names, ((_cell(row[name]) for name in names) for row in rows))


def _cell(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _say_event(event: Event) -> None:
    """Say what was decided, of whom, and how to take it back."""
    changed = ", ".join(
        f"{change.subject} {change.old.state if change.old else 'new'} -> "
        f"{_state(change.new) if change.new else 'gone'}"
        for change in event.changes
    )
    what = event.decision.verb + (f": {changed}" if changed else "")
    say(f"Decision {event.id}, {what} (dicom-node reference undo {event.id} takes it back)")
