"""The demo: start a PACS and a node, send a cohort, wait for the overlays, show what came back.

The node is a process of its own, started by the command line that a user would type; series reach
it by C-STORE and results leave it by C-STORE. The ledger is read to draw the progress, and not to
help anything along.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pydicom
from pydicom.errors import InvalidDicomError
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from dicom_node import config
from dicom_node.association.requestor import Peer, echo, send
from dicom_node.config import NodeConfig
from dicom_node.demo import settings
from dicom_node.demo.cohort import Head, load_template, make_cohort
from dicom_node.demo.mr_series import Acquisition, write_mr_series
from dicom_node.demo.pacs import free_ports, running_pacs
from dicom_node.demo.summary import show
from dicom_node.errors import ConfigError, DeliveryError, PartFailed
from dicom_node.folders import Folders, cache_folder
from dicom_node.store import job_table, result_table, series_table
from dicom_node.store.database import Database

#: in a folder that the demo made, and may therefore empty
_MARKER = ".dicom_node_demo"
#: calling AE title of the sender
_SENDER = "DEMOSENDER"
#: for the receiver to answer a C-ECHO
_START_S = 60.0
#: for all results together
_LIMIT_S = 3600.0
_SEED = 1
#: looks at the ledger, half a second apart, at which nothing may move before the demo gives up
_LOOKS_AT_REST = 20
#: of a job or a delivery that moves by itself
_BUSY = ("queued", "running")


@dataclass(frozen=True, slots=True)
class DemoArguments:
    """What the command line asked for."""

    #: everything the demo makes lies below it
    folder: Path
    #: the user's own series; None makes the built-in cohort
    dicom: Path | None
    #: leave node, page and PACS up until Ctrl-C
    keep_running: bool


@dataclass(slots=True)
class Sent:
    """One series on its way through the node."""

    #: for tables and folders; of a user's series only its number, never the patient
    name: str
    study_instance_uid: str
    series_instance_uid: str
    files: list[Path] = field(repr=False)
    #: the made head, with its planted lesions; None for a user's own series
    head: Head | None = None


def run_demo(arguments: DemoArguments, console: Console) -> int:
    """Run the demo from nothing to the table of results.

    Parameters
    ----------
    console
        Gets progress, table and verdict; one that is no terminal gets plain lines.

    Returns
    -------
    The exit status: 0 when every series got a delivered result and, with the built-in cohort, the
    planted lesions were found; otherwise 1.

    Raises
    ------
    ConfigError
        The folder holds what the demo did not make, or the user's series are too few.
    PartFailed
        PACS or node does not start, or the node refuses an instance.
    NodeError
        The template cannot be fetched.
    """
    started = time.monotonic()
    folder = _fresh_folder(arguments.folder)
    own = _own_series(arguments.dicom) if arguments.dicom else None
    # node and PACS name each other in their configurations: ports must be known before either runs
    node_port, web_port = free_ports(2)
    with running_pacs(folder / "pacs", settings.AE_TITLE, node_port) as pacs:
        text = settings.config_text(
            node_port, web_port, pacs, own[0].files if own else None, len(own or ())
        )
        (folder / "config.toml").write_text(text, "utf-8")
        node = config.load(folder / "config.toml")
        with _running_node(folder, node):
            console.print(
                f"The node receives on port {node_port}; its page: http://127.0.0.1:{web_port}/"
            )
            where = f"The PACS is {pacs.ae_title}: {pacs.place}"
            console.print(where, soft_wrap=True, markup=False)
            with _progress(console) as progress:
                sent = _send_all(folder, node, own, progress)
                complete = _wait(node, sent, progress)
            found = show(folder, node, pacs, sent, console)
            console.print(f"Done in {time.monotonic() - started:.0f} s.")
            _stay(arguments, folder, web_port, console)
    return 0 if complete and found else 1


def _fresh_folder(folder: Path) -> Path:
    """Empty the demo's own folder; raises ConfigError rather than delete somebody's data."""
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"--out {folder} is a file; name a folder")
    if folder.exists() and any(folder.iterdir()):
        if not (folder / _MARKER).exists():
            raise ConfigError(f"--out {folder} holds other files; name a new folder")
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / _MARKER).touch()
    return folder.resolve()


def _own_series(folder: Path) -> list[Sent]:
    """Find the CT and MR series below `folder`; raises ConfigError when they are too few.

    Files of other kinds lie beside images on every export medium (DICOMDIR, viewers, reports): they
    are passed over, as is what is too damaged to say which series it is of.
    """
    found: dict[str, Sent] = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        try:
            ds = pydicom.dcmread(path, stop_before_pixels=True)
        except (InvalidDicomError, OSError):
            continue
        study, uid = (str(ds.get(name, "")) for name in ("StudyInstanceUID", "SeriesInstanceUID"))
        if ds.get("Modality") in {"CT", "MR"} and study and uid:
            entry = found.setdefault(uid, Sent(f"series {len(found) + 1}", study, uid, []))
            entry.files.append(path)
    if len(found) < settings.FEWEST_SUBJECTS:
        raise ConfigError(
            f"--dicom {folder} holds {len(found)} CT or MR series; at least "
            f"{settings.FEWEST_SUBJECTS} subjects of one protocol are needed"
        )
    return list(found.values())


@contextmanager
def _running_node(folder: Path, node: NodeConfig) -> Iterator[None]:
    """Run the node as a user would, until the block ends; its log is ``node.log``."""
    command = [sys.executable, "-m", "dicom_node", "serve", "--config", str(folder / "config.toml")]
    with (folder / "node.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)  # noqa: S603 - our own module
    try:
        _wait_until_up(node, process, folder / "node.log")
        yield
    finally:
        process.terminate()
        process.wait()


def _wait_until_up(node: NodeConfig, process: subprocess.Popen[bytes], log: Path) -> None:
    """Wait until the receiver answers C-ECHO; raises PartFailed with the end of the log."""
    peer = Peer("node", node.node.ae_title, node.receiver.bind, node.receiver.port)
    deadline = time.monotonic() + _START_S
    while time.monotonic() < deadline and process.poll() is None:
        try:
            echo(peer, _SENDER, 5.0)
        except DeliveryError:
            time.sleep(0.3)
        else:
            return
    raise PartFailed(
        f"the node does not answer; its log is {log}:\n{log.read_text('utf-8')[-2000:]}"
    )


def _progress(console: Console) -> Progress:
    """Return the bars: what, how far, how many, since when."""
    columns = (
        TextColumn("{task.description:<28}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    return Progress(*columns, console=console)


def _send_all(
    folder: Path, node: NodeConfig, own: list[Sent] | None, progress: Progress
) -> list[Sent]:
    """Send the user's series, or make the cohort and send each head as soon as it is made."""
    peer = Peer("node", node.node.ae_title, node.receiver.bind, node.receiver.port)
    total = len(own) if own else settings.N_NORMAL + settings.N_LESIONED
    task = progress.add_task("Series sent by C-STORE", total=total)
    sent = []
    for entry in own if own else _cohort(folder):
        send(peer, _SENDER, entry.files, 60.0, on_refused=_give_up)
        sent.append(entry)
        progress.advance(task)
        _say_plainly(progress, "")
    return sent


def _give_up(path: Path, error: DeliveryError) -> None:
    """End the demo at the first instance that the node refuses, by name."""
    raise PartFailed(f"the node refused {path}: {error}") from error


def _cohort(folder: Path) -> Iterator[Sent]:
    """Make the built-in heads and write them as MR series."""
    template = load_template(cache_folder())
    for head in make_cohort(template, settings.N_NORMAL, settings.N_LESIONED, _SEED):
        acquisition = Acquisition(patient_id=head.name, patient_name=f"Demo^{head.name}")
        files = write_mr_series(
            head.voxels, head.affine, folder / "cohort" / head.name, acquisition
        )
        first = pydicom.dcmread(files[0], stop_before_pixels=True)
        yield Sent(
            head.name, str(first.StudyInstanceUID), str(first.SeriesInstanceUID), files, head
        )


def _wait(node: NodeConfig, sent: Sequence[Sent], progress: Progress) -> bool:
    """Wait until nothing is left to do; returns whether every series got a delivered result.

    Nothing is left when each series has come to an end, or when nothing moves any more: series of
    which too many were rejected leave a batch too small, for which the others would wait for good.
    """
    database = Database(Folders(node.node.data_dir).database)
    names = ("Series encoded", "Series scored", "Series with results in PACS")
    tasks = [progress.add_task(name, total=len(sent)) for name in names]
    deadline = time.monotonic() + _LIMIT_S
    said, n_at_rest = "", 0
    while time.monotonic() < deadline:
        with database.read() as db:
            jobs = job_table.counts(db)
            delivered, ended = result_table.progress_of(db)
            deliveries = result_table.delivery_counts(db)
            at_rest = _at_rest(series_table.counts(db), jobs, deliveries)
        n_at_rest = n_at_rest + 1 if at_rest else 0
        for task, value in zip(
            tasks, (jobs.get("tokenize done", 0), jobs.get("score done", 0), delivered), strict=True
        ):
            progress.update(task, completed=value)
        said = _say_plainly(progress, said)
        if ended >= len(sent) or n_at_rest > _LOOKS_AT_REST:
            return delivered >= len(sent)
        time.sleep(0.5)
    return False


def _at_rest(
    received: Mapping[str, int], jobs: Mapping[str, int], deliveries: Mapping[tuple[str, str], int]
) -> bool:
    """Tell whether the node has nothing to do, by counts of one moment.

    A job that goes to wait may be released by the next transaction: one look is not enough.
    """
    return not (
        received.get(series_table.RECEIVING)
        or any(name.endswith(_BUSY) for name in jobs)
        or any(state in _BUSY for _, state in deliveries)
    )


def _say_plainly(progress: Progress, said: str) -> str:
    """Where no terminal draws the bars, print a line whenever they have moved; returns it."""
    line = ", ".join(
        f"{task.description} {task.completed:.0f}/{task.total:.0f}" for task in progress.tasks
    )
    if not progress.console.is_terminal and line != said:
        progress.console.print(line, soft_wrap=True)
    return line


def _stay(arguments: DemoArguments, folder: Path, web_port: int, console: Console) -> None:
    """Say where the page is; keep the node up until Ctrl-C, or say how to start it again."""
    page = f"http://127.0.0.1:{web_port}/"
    if not arguments.keep_running:
        console.print(
            f"The node's page: {page} after: dicom-node serve --config {folder / 'config.toml'}\n"
            "(or run the demo with --keep-running)",
            soft_wrap=True,
            markup=False,
        )
        return
    console.print(f"The node's page: {page}\nThe node stays up. Ctrl-C ends it.")
    try:
        while True:
            time.sleep(1)
    except KeyboardInterrupt:
        return
