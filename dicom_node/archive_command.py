"""The verbs ``dicom-node archive ...``: what an archive holds, and fetching series from it.

No patient's name is asked for, and no patient data printed: studies and series are named by UIDs.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from datetime import date
from typing import Annotated, Literal

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from dicom_node import config
from dicom_node.archive import ArchiveAccess, missing, wait_for, where_to_send
from dicom_node.association.finder import Found
from dicom_node.association.query import SeriesQuery, SeriesRecord, StudyQuery, StudyRecord
from dicom_node.association.requestor import echo
from dicom_node.association.retriever import Counts, Target
from dicom_node.command_line import DEFAULT_CONFIG, ConfigPath, database_of, say
from dicom_node.config import NodeConfig
from dicom_node.doctor.ports import own_peers
from dicom_node.errors import ConfigError, ContextNotAccepted, DeliveryError, QueryFailed
from dicom_node.folders import Folders
from dicom_node.inbox import Inbox
from dicom_node.parts.receiver import Reception
from dicom_node.store.database import Database

app = typer.Typer(
    no_args_is_help=True,
    help="Look into archives and fetch series from them. Example: dicom-node archive find pacs",
)
_out = Console()
_err = Console(stderr=True)
#: for this node's own receiver
_ECHO_S = 10.0
#: after a C-MOVE, for instances that the archive is still sending
_LATE_S = 10.0
#: what the node scores; other series of a study are left there
_MODALITIES = ("CT", "MR", "")
#: characters of a row
_WIDEST = 400

Name = Annotated[str, typer.Argument(help="An [[archive]] of the configuration.")]
Limit = Annotated[int, typer.Option("--limit", min=1, help="Of studies, and of series.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


@app.command()
def find(
    name: Name,
    modality: Annotated[str, typer.Option("--modality", help="CT or MR.")] = "",
    dates: Annotated[
        str, typer.Option("--date", help="2024-01-31, 2024-01-01..2024-12-31, or an open end.")
    ] = "",
    description: Annotated[
        str, typer.Option("--description", help='Of the series, with * and ?: "*t1*".')
    ] = "",
    study_description: Annotated[
        str, typer.Option("--study-description", help="Of the study, with * and ?.")
    ] = "",
    body_part: Annotated[str, typer.Option("--body-part", help="HEAD takes in BRAIN.")] = "",
    patient_id: Annotated[str, typer.Option("--patient-id")] = "",
    study: Annotated[str, typer.Option("--study", help="Study Instance UID.")] = "",
    series: Annotated[str, typer.Option("--series", help="Series Instance UID.")] = "",
    least: Annotated[int, typer.Option("--least-instances", min=0)] = 0,
    most: Annotated[int | None, typer.Option("--most-instances", min=0)] = None,
    level: Annotated[str, typer.Option("--level", help="series or study.")] = "series",
    limit: Limit = 1000,
    as_json: AsJson = False,  # noqa: FBT002 - a flag
    config_path: ConfigPath = DEFAULT_CONFIG,
) -> None:
    """List series, or studies, that an archive holds (C-FIND).

    Example: dicom-node archive find pacs --modality MR --date 2024-01-01..2024-12-31
    """
    if level not in ("series", "study"):
        raise ConfigError(f'--level is "series" or "study", not {level!r}')
    first, last = _dates(dates)
    asked = StudyQuery(
        date_from=first,
        date_to=last,
        modality=modality,
        description=study_description,
        patient_id=patient_id,
        study_instance_uids=(study,) if study else (),
    )
    of_series = SeriesQuery(
        modality, description, body_part, least, most, (series,) if series else ()
    )
    settings = config.load(config_path)
    access = ArchiveAccess(settings, settings.archive_named(name))
    studies = access.studies(asked, limit=limit)
    if level == "study":
        _print(studies, as_json=as_json, cut=studies.cut)
        return
    uids = [one.study_instance_uid for one in studies.records]
    found = access.series(uids, of_series, limit=limit)
    _print(found, as_json=as_json, cut=studies.cut or found.cut)


@app.command()
def retrieve(
    name: Name,
    study: Annotated[str, typer.Option("--study", help="Study Instance UID.")],
    series: Annotated[
        str, typer.Option("--series", help="Series Instance UID; none: all CT and MR of the study.")
    ] = "",
    by: Annotated[
        str, typer.Option("--by", help="move or get; by default as the archive is configured.")
    ] = "",
    config_path: ConfigPath = DEFAULT_CONFIG,
) -> None:
    """Fetch series from an archive into this node; exit status 1 when something is missing.

    By C-MOVE the archive sends to the running node; by C-GET it need not run.

    Example: dicom-node archive retrieve pacs --study 1.2.3 --by get
    """
    settings = config.load(config_path)
    archive = settings.archive_named(name)
    how = _way(by or archive.retrieve)
    StudyQuery(study_instance_uids=(study,))  # refuses what is no UID, before it is sent
    SeriesQuery(series_instance_uids=(series,) if series else ())
    database = database_of(settings)
    if how == "move":
        _check_running(settings)
    access = ArchiveAccess(settings, archive)
    targets = [Target(study, series)] if series else _targets(access, study)
    whole = [_fetch(settings, database, access, target, how) for target in targets]
    raise typer.Exit(0 if whole and all(whole) else 1)


def _way(by: str) -> Literal["move", "get"]:
    if by == "get":
        return "get"
    if by == "move":
        return "move"
    raise ConfigError(f'--by is "move" or "get", not {by!r}')


def _check_running(settings: NodeConfig) -> None:
    """Raise ConfigError unless the node's receiver answers: this verb opens no port."""
    for peer in own_peers(settings):
        try:
            echo(peer, settings.node.ae_title, _ECHO_S)
        except DeliveryError:
            continue
        return
    raise ConfigError(
        "this node's receiver does not answer; with C-MOVE the archive sends to the running node "
        f"({where_to_send(settings)}): start it with dicom-node serve, or use --by get"
    )


def _targets(access: ArchiveAccess, study: str) -> list[Target]:
    """Return the CT and MR series of a study, or all of it where the archive cannot list them."""
    try:
        found = access.series([study], SeriesQuery())
    except (ContextNotAccepted, QueryFailed) as error:
        say(_err, "Note:", "yellow", f"{error}; the whole study is asked for")
        return [Target(study)]
    if not found.records:
        say(_err, "Error:", "bold red", f"the archive knows no series of study {study}")
    left = [one for one in found.records if one.modality not in _MODALITIES]
    if left:
        say(_err, "Note:", "yellow", f"{len(left)} series are neither CT nor MR, and are left")
    return [
        Target(study, one.series_instance_uid)
        for one in found.records
        if one.modality in _MODALITIES
    ]


def _fetch(
    settings: NodeConfig,
    database: Database,
    access: ArchiveAccess,
    target: Target,
    how: Literal["move", "get"],
) -> bool:
    """Fetch one target and say what came of it; returns whether all of it is here."""
    what = target.series_instance_uid or target.study_instance_uid
    reception = Reception(
        database, Inbox(Folders(settings.node.data_dir).inbox, settings.storage.reserve)
    )
    try:
        with _err.status(f"{what} ...") as shown:

            def progress(counts: Counts) -> None:
                shown.update(f"{what}: {counts.completed or 0} came, {counts.remaining} remain")

            done = access.retrieve(target, reception, by=how, on_progress=progress)
    except DeliveryError as error:
        say(_out, f"{what}:", "red", str(error))
        return False
    for refusal in done.refused:
        say(_out, f"{what}:", "red", refusal.reason)
    counts = done.counts
    said = f"the archive says {counts.completed or 0} sent, {counts.failed or 0} failed"
    return _compare(database, access, target, how, said, ok=done.status == 0)


def _compare(
    database: Database,
    access: ArchiveAccess,
    target: Target,
    how: str,
    said: str,
    *,
    ok: bool,
) -> bool:
    """Hold the ledger against the archive's list of instances, where there is one."""
    what = target.series_instance_uid or target.study_instance_uid
    try:
        there = access.instances(target) if target.series_instance_uid else None
    except DeliveryError:
        there = None
    if there is None:
        say(_out, f"{what}:", "green" if ok else "red", f"{said}; it gave no list to compare")
        return ok
    left = wait_for(database, there, _LATE_S) if how == "move" else missing(database, there)
    whole = bool(there) and not left
    text = f"{len(there) - len(left)} of {len(there)} instances are here ({said})"
    say(_out, f"{what}:", "green" if whole else "red", text)
    return whole


def _dates(text: str) -> tuple[date | None, date | None]:
    """Read a day, or two with dots between, of which one may be left out."""
    first, dots, last = text.partition("..")
    try:
        found = [date.fromisoformat(part) if part else None for part in (first, last)]
    except ValueError as error:
        raise ConfigError(f'--date {text!r}: write "2024-01-31" or a range with ".."') from error
    return found[0], found[1] if dots else found[0]


def _print(found: Found[StudyRecord] | Found[SeriesRecord], *, as_json: bool, cut: bool) -> None:
    rows = [_values(one) for one in found.records]
    if as_json:
        _out.print_json(json.dumps({"found": rows, "cut": cut}))
        return
    table = Table(*(rows[0] if rows else ("nothing found",)), box=None)
    for row in rows:
        table.add_row(*(Text(_cell(value)) for value in row.values()))
    # a UID that is cut off is of no use: the terminal breaks lines that are too long for it
    Console(width=_WIDEST).print(table, soft_wrap=True)
    unchecked = {keyword for one in found.records for keyword in one.unchecked}
    if unchecked:
        keys = ", ".join(sorted(unchecked))
        say(_err, "Note:", "yellow", f"the archive does not say {keys} of all of them: unchecked")
    if cut:
        say(_err, "Note:", "yellow", "there is more than --limit; narrow the query or raise it")


def _values(record: StudyRecord | SeriesRecord) -> dict[str, object]:
    """Return a record as JSON holds it, without patient data."""
    values = asdict(record)
    for keyword in ("patient_id", "accession_number"):
        values.pop(keyword, None)
    if "date" in values:
        values["date"] = None if values["date"] is None else values["date"].isoformat()
    return values


def _cell(value: object) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value))
    return "" if value is None else str(value)
