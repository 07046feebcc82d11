"""Whole nodes and their peers, as subprocesses on free loopback ports, ended with the test."""

import contextlib
import functools
import os
import shutil
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import timm
import torch
from safetensors.torch import save_file

from dicom_node import config
from dicom_node.association.requestor import Peer, echo
from dicom_node.folders import Folders
from dicom_node.status import collect_status
from dicom_node.store.database import Database
from tests.make.encoders import TINY

COMMAND = [sys.executable, "-m", "dicom_node"]


def require(program: str) -> str:
    """The path of a peer program; a missing one fails the run (deploy/test installs it)."""
    path = program if Path(program).exists() else shutil.which(program, path="/usr/sbin:/usr/bin")
    assert path, f"{program} is not installed: run deploy/test, which installs it"
    return path


def run_cli(*arguments, timeout=120, env=None):
    """Run the command line as a user would."""
    return subprocess.run(
        [*COMMAND, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=timeout,
        env={**os.environ, "COLUMNS": "200", **(env or {})},
        check=False,
    )


def storescu(port: int, folder_or_files, *, called="DICOM_NODE", calling="STORESCU"):
    """Send with the real DCMTK; returns the finished process."""
    files = [folder_or_files] if isinstance(folder_or_files, Path) else list(folder_or_files)
    command = [require("/usr/bin/storescu"), "-v", "-R", "-xs", "-aet", calling, "-aec", called]
    command += ["+sd", "+r", "127.0.0.1", str(port), *map(str, files)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


@functools.cache
def _tiny_weights(folder: str) -> Path:
    path = Path(folder) / "tiny.safetensors"
    torch.manual_seed(11)
    model = timm.create_model(TINY, pretrained=False, num_classes=0)
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, path)
    return path


def tiny_encoder_section(folder: Path) -> str:
    """`[encoder]` with a tiny ViT of random weights: the same code path, a fraction of the time."""
    path = _tiny_weights(str(folder))
    return (
        f'[encoder]\nmodel = "{TINY}"\nweights = "file"\nfile = "{path}"\nprojection_dim = 32\n'
        "scales = [{upsampling = 1, layers = [0]}, {upsampling = 2, layers = [2]}]\n"
    )


@dataclass
class Node:
    """A node that runs."""

    folder: Path
    port: int
    web_port: int
    process: subprocess.Popen

    @property
    def config(self) -> Path:
        return self.folder / "config.toml"

    @property
    def log(self) -> str:
        return (self.folder / "node.log").read_text("utf-8")

    def status(self) -> dict:
        """What `dicom-node status --json` prints, without the start of a process."""
        database = Database(Folders(config.load(self.config).node.data_dir).database)
        try:
            return collect_status(database)
        finally:
            database.close()

    def wait_for(self, condition, what: str, timeout: float = 300):
        """Poll `status` until `condition` holds of it."""
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            found = self.status()
            if condition(found):
                return found
            assert self.process.poll() is None, f"the node ended\n{self.log[-3000:]}"
            time.sleep(0.5)
        raise AssertionError(f"{what} did not happen: {found}\n{self.log[-3000:]}")


@contextlib.contextmanager
def running_node(folder: Path, text: str, port: int, web_port: int, tls=None):
    """Run `serve` on the configuration `text`; its log is printed when the block fails.

    With `tls` (a PeerTls) `port` is that of its TLS.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.toml").write_text(text, "utf-8")
    with (folder / "node.log").open("ab") as log:
        process = subprocess.Popen(
            [*COMMAND, "serve", "--config", str(folder / "config.toml")], stdout=log, stderr=log
        )
    node = Node(folder, port, web_port, process)
    try:
        _wait_until_up(node, tls)
        yield node
    except BaseException:
        print(node.log[-6000:])  # noqa: T201 - shown by pytest with the failure
        raise
    finally:
        process.terminate()
        process.wait(timeout=90)


def _wait_until_up(node: Node, tls=None) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and node.process.poll() is None:
        try:
            socket.create_connection(("127.0.0.1", node.port), timeout=1).close()
        except OSError:
            time.sleep(0.2)
            continue
        echo(Peer("node", "DICOM_NODE", "127.0.0.1", node.port, tls), "TEST", 5.0)
        return
    raise AssertionError(f"the node does not answer\n{node.log[-3000:]}")
