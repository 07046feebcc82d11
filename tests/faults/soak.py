"""A whole node for a long time, at most of its rate, while its processes are killed at random.

    python -m tests.faults.soak --seconds 1800 --kill-every 20

Real processes and associations: a sender that comes again until it has Success, an archive that
remembers every object, and kill -9 for any part of the node, its supervisor included.
"""

import argparse
import hashlib
import logging
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import psutil
from pynetdicom import AllStoragePresentationContexts, evt

from dicom_node import config, durable
from dicom_node.association import sockets
from dicom_node.association.contexts import storage_contexts
from dicom_node.association.entity import application_entity
from dicom_node.association.requestor import Peer, send
from dicom_node.demo.pacs import free_ports
from dicom_node.errors import DeliveryError
from dicom_node.folders import Folders
from dicom_node.status import collect_status
from dicom_node.store.database import Database
from tests.acceptance.test_wrong_input import CONFIG, small_series
from tests.benchmark.measure import say
from tests.faults.judge import Witness, violations
from tests.make.nodes import COMMAND, tiny_encoder_section

#: of what the node does undisturbed
_SHARE = 0.7
#: series that found the batch, and those by which the rate is measured
_FOUNDERS, _MEASURED = 6, 12
#: without a report or a delivery in this time the work has stopped; a dead worker's lease is over
_STALLED_S = 420.0
_PARTS = ("receiver", "control", "dispatcher", "scorer")


class Archive:
    """A PACS in this process: it outlives the node, and remembers what it was sent."""

    def __init__(self, port: int):
        self.kept: list[tuple[str, str]] = []
        entity = application_entity("PACS", 30.0)
        entity.supported_contexts = storage_contexts(
            context.abstract_syntax for context in AllStoragePresentationContexts
        )
        handlers = [*sockets.handlers(30.0), (evt.EVT_C_STORE, self._on_c_store)]
        self._server = entity.start_server(("127.0.0.1", port), block=False, evt_handlers=handlers)

    def _on_c_store(self, event):
        digest = hashlib.sha256(event.request.DataSet.getvalue()).hexdigest()
        self.kept.append((str(event.request.AffectedSOPInstanceUID), digest))
        return 0x0000

    def stop(self):
        self._server.shutdown()


class Serving:
    """`dicom-node serve`, started again when it is gone; and a look at its processes."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.memory: dict[str, list[tuple[float, int]]] = defaultdict(list)
        self.process: subprocess.Popen | None = None

    def start(self):
        with (self.folder / "node.log").open("ab") as log:
            command = [*COMMAND, "serve", "--config", str(self.folder / "config.toml")]
            self.process = subprocess.Popen(command, stdout=log, stderr=log)

    def parts(self) -> dict[str, psutil.Process]:
        found = {}
        for child in psutil.Process(self.process.pid).children():
            for name in _PARTS:
                if f"dicom_node.parts.{name}" in " ".join(child.cmdline()):
                    found[name] = child
        return found

    def kill(self, name: str) -> bool:
        """kill -9 of a part, or of the supervisor, after which the node is started again."""
        try:
            parts = self.parts()
            if name != "supervisor":
                if name not in parts:
                    return False
                parts[name].kill()
                return True
            self.process.kill()
            self.process.wait()
            psutil.wait_procs(list(parts.values()), timeout=60)
        except psutil.Error:
            return False
        self.start()
        return True

    def look(self, at: float):
        """Note how much memory each part has."""
        try:
            for name, process in self.parts().items():
                self.memory[name].append((at, process.memory_info().rss))
        except psutil.Error:
            return

    def stop(self):
        self.process.terminate()
        self.process.wait(timeout=120)


@dataclass
class Sender:
    """Sends series one after the other; each until all of it is acknowledged."""

    folder: Path
    port: int
    acknowledged: dict[str, bytes] = field(default_factory=dict)
    n_series: int = 0
    n_failed: int = 0

    def one(self):
        files = small_series(self.folder, self.n_series)
        self.n_series += 1
        left = {path: _data_set(path) for path in files}
        peer = Peer("node", "DICOM_NODE", "127.0.0.1", self.port)
        while left:
            done: list[Path] = []
            try:
                send(
                    peer,
                    "SCANNER",
                    list(left),
                    10.0,
                    on_stored=lambda path, _status, done=done: done.append(path),
                    on_refused=lambda *_: None,
                )
            except DeliveryError:
                self.n_failed += 1
                time.sleep(0.5)
            for path in done:
                uid, encoded = left.pop(path)
                self.acknowledged[uid] = encoded
                path.unlink()


def _data_set(path: Path) -> tuple[str, bytes]:
    """Return the SOP Instance UID of a Part 10 file, and the bytes after its file meta."""
    import pydicom

    with path.open("rb") as stream:
        meta = pydicom.filereader.read_file_meta_info(path)
        content = stream.read()
    start = 128 + 4 + 12 + int(meta.FileMetaInformationGroupLength)
    return str(meta.MediaStorageSOPInstanceUID), content[start:]


@dataclass
class Soak:
    """The run."""

    folder: Path
    seconds: float
    kill_every_s: float
    seed: int
    killed: Counter = field(default_factory=Counter)

    def run(self) -> list[str]:
        """Run it; returns the violations."""
        port, web_port, archive_port = free_ports(3)
        text = CONFIG.format(
            port=port,
            web_port=web_port,
            dead_port=archive_port,
            encoder=tiny_encoder_section(self.folder),
            # what a study costs must not grow while its rate is compared
        ).replace("min_reference = 3", "min_reference = 3\nmax_reference = 6")
        (self.folder / "config.toml").write_text(text, "utf-8")
        self.folders = Folders(self.folder / "node")
        archive, self.node = Archive(archive_port), Serving(self.folder)
        self.sender = Sender(self.folder / "sent", port)
        self.node.start()
        try:
            rate = self._rate()
            self._disturbed(rate * _SHARE)
            settled = self._settled()
        finally:
            self.node.stop()
            archive.stop()
        self.sent_again = len(archive.kept) - len(set(archive.kept))
        self.n_objects = len(set(archive.kept))
        # a killed worker's half file is there until it is old, or the node starts again
        durable.sweep(self.folders.root)
        witness = Witness(self.sender.acknowledged, archive.kept, self.sender.n_series)
        return [
            *([] if settled else ["the work did not end"]),
            *violations(config.load(self.folder / "config.toml"), witness),
        ]

    def _rate(self) -> float:
        """Return how many series a second the node takes from reception to delivery."""
        for _ in range(_FOUNDERS):
            self.sender.one()
        assert self._settled(), "the batch was not founded"
        start = time.monotonic()
        for _ in range(_MEASURED):
            self.sender.one()
        assert self._settled(), "the node does not score"
        rate = _MEASURED / (time.monotonic() - start)
        say(f"undisturbed: {rate * 60:.1f} series a minute; sent at {_SHARE:.0%} of it")
        return rate

    def _disturbed(self, rate: float):
        random = np.random.default_rng(self.seed)
        start = time.monotonic()
        stop = threading.Event()
        thread = threading.Thread(target=self._send, args=(stop, rate))
        thread.start()
        next_kill = start + self.kill_every_s
        while (at := time.monotonic()) < start + self.seconds:
            self.node.look(at - start)
            if at >= next_kill:
                name = str(random.choice([*_PARTS, "supervisor"]))
                self.killed[name] += self.node.kill(name)
                next_kill = at + self.kill_every_s * random.uniform(0.5, 1.5)
            time.sleep(1.0)
        stop.set()
        thread.join()

    def _send(self, stop: threading.Event, rate: float):
        due = time.monotonic()
        while not stop.is_set():
            self.sender.one()
            due = max(due + 1 / rate, time.monotonic() - 1 / rate)
            stop.wait(max(0.0, due - time.monotonic()))

    def _settled(self) -> bool:
        """Wait until every series is scored and every object delivered, while there is progress."""
        moved, done = time.monotonic(), -1
        while time.monotonic() < moved + _STALLED_S:
            time.sleep(1.0)
            if not self.folders.database.exists():
                continue
            n_done, idle = self._progress()
            if idle:
                return True
            if n_done != done:
                moved, done = time.monotonic(), n_done
        return False

    def _progress(self) -> tuple[int, bool]:
        """Return how many steps are done, and whether none is left."""
        database = Database(self.folders.database)
        try:
            found = collect_status(database)
        finally:
            database.close()
        reported = found["jobs"].get("report done", 0)
        under_way = {"queued", "running", "waiting", "stored"}
        busy = [
            name for name in (*found["jobs"], *found["delivery"]) if set(name.split()) & under_way
        ]
        done = (*found["jobs"].items(), *found["delivery"].items())
        n_done = sum(n for name, n in done if {"done", "delivered"} & set(name.split()))
        return n_done, not busy and reported >= self.sender.n_series

    def memory(self) -> list[str]:
        """Say what each part had at most in the first and in the last third."""
        said = []
        for name, seen in sorted(self.node.memory.items()):
            thirds = [
                max((rss for at, rss in seen if low <= at / self.seconds < low + 1 / 3), default=0)
                for low in (0.0, 2 / 3)
            ]
            said.append(f"{name}: {thirds[0] / 2**20:.0f} MiB, then {thirds[1] / 2**20:.0f} MiB")
        return said


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=1800.0)
    parser.add_argument("--kill-every", type=float, default=20.0)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    logging.disable(logging.CRITICAL)
    with tempfile.TemporaryDirectory() as folder:
        soak = Soak(Path(folder), arguments.seconds, arguments.kill_every, arguments.seed)
        wrong = soak.run()
        log = (Path(folder) / "node.log").read_text("utf-8")
    say(f"killed: {dict(sorted(soak.killed.items()))}")
    say(
        f"{len(soak.sender.acknowledged)} instances of {soak.sender.n_series} series acknowledged, "
        f"{soak.sender.n_failed} associations failed; {soak.n_objects} objects at the archive, "
        f"{soak.sent_again} of them sent again"
    )
    for line in soak.memory():
        say(f"  memory of {line}")
    say(f"{len(wrong)} violations")
    for text in wrong[:40]:
        say(f"  VIOLATION {text}")
    if wrong:
        say(log[-4000:])
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
