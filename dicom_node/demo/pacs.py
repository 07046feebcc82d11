"""The demo's PACS: a real Orthanc where it is installed, otherwise a storage SCP of ours.

Both listen on free ports, live in the demo's folder, and end with the block that runs them. What
they hold is read back the way each allows: by REST, or from the collector's folder.
"""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import pydicom
from pydicom.uid import SecondaryCaptureImageStorage, SegmentationStorage

from dicom_node.association.collector import StorageCollector
from dicom_node.config import digest
from dicom_node.errors import PartFailed

_START_S = 30.0
_KINDS = {SegmentationStorage: "SEG", SecondaryCaptureImageStorage: "SC"}


@dataclass(frozen=True, slots=True)
class Pacs:
    """A running PACS on the loopback interface."""

    ae_title: str
    port: int
    #: where a person finds what it holds
    place: str
    #: Orthanc's REST address; None for the collector
    url: str | None


def free_ports(count: int) -> list[int]:
    """Return ports that are free now, all different.

    All are held at once while they are drawn; between then and their use another program may still
    take one.
    """
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [int(one.getsockname()[1]) for one in sockets]


def find_orthanc() -> str | None:
    """Return the path of Orthanc, None where it is not installed.

    Debian puts it where only root's PATH leads.
    """
    return shutil.which("Orthanc") or shutil.which("Orthanc", path="/usr/sbin:/usr/local/sbin")


@contextmanager
def running_pacs(folder: Path, node_ae_title: str, node_port: int) -> Iterator[Pacs]:
    """Run the best PACS there is until the block ends.

    Parameters
    ----------
    folder
        Made where it is missing; gets configuration, log and storage of the PACS.
    node_ae_title, node_port
        The node, which alone may store in Orthanc.

    Raises
    ------
    PartFailed
        It does not start within half a minute, or its port is taken.
    """
    folder.mkdir(parents=True, exist_ok=True)
    program = find_orthanc()
    if program is None:
        collector = StorageCollector("DEMOPACS", 0, folder)
        collector.start()
        try:
            yield Pacs("DEMOPACS", collector.port, str(folder), None)
        finally:
            collector.stop()
        return
    with running_orthanc(program, folder, node_ae_title, node_port) as pacs:
        yield pacs


@contextmanager
def running_orthanc(
    program: str,
    folder: Path,
    node_ae_title: str,
    node_port: int,
    plugins: Sequence[str] = (),
    more: Mapping[str, Any] | None = None,
) -> Iterator[Pacs]:
    """Run an Orthanc that takes objects from the node on this machine alone.

    `plugins` are paths of its shared libraries, `more` takes the place of settings of its own
    (JSON values by their names in its configuration).

    Raises PartFailed, naming its log, when it does not answer within half a minute.
    """
    dicom_port, http_port = free_ports(2)
    settings = {
        "Name": "dicom_node demo",
        "StorageDirectory": str(folder / "storage"),
        "IndexDirectory": str(folder / "storage"),
        "Plugins": list(plugins),
        "HttpPort": http_port,
        "RemoteAccessAllowed": False,
        "AuthenticationEnabled": False,
        "DicomAet": "ORTHANC",
        "DicomPort": dicom_port,
        "DicomCheckCalledAet": True,
        "DicomAlwaysAllowEcho": False,
        "DicomAlwaysAllowStore": False,
        # this Orthanc listens on all addresses: only the node, from this machine, may store
        "DicomCheckModalityHost": True,
        "DicomModalities": {"node": [node_ae_title, "127.0.0.1", node_port]},
        **(more or {}),
    }
    path = folder / "orthanc.json"
    path.write_text(json.dumps(settings, indent=1), "utf-8")
    with (folder / "orthanc.log").open("wb") as log:
        process = subprocess.Popen([program, str(path)], stdout=log, stderr=log)  # noqa: S603
    url = f"http://127.0.0.1:{http_port}"
    try:
        _wait_for(url, process, folder / "orthanc.log")
        yield Pacs("ORTHANC", dicom_port, f"{url}/app/explorer.html", url)
    finally:
        process.terminate()
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait_for(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + _START_S
    while process.poll() is None and time.monotonic() < deadline:
        try:
            get_json(f"{url}/system")
        except OSError:
            time.sleep(0.1)
        else:
            return
    raise PartFailed(f"Orthanc does not answer at {url}; its log is {log}")


def get_bytes(url: str, data: bytes | None = None) -> bytes:
    """Ask the loopback REST interface of Orthanc, with POST where there is `data`.

    Raises OSError when nobody answers within 30 s, or with an HTTP error.
    """
    with urllib.request.urlopen(url, data=data, timeout=30) as answer:  # noqa: S310 - our own Orthanc
        content: bytes = answer.read()
    return content


def get_json(url: str, data: bytes | None = None) -> Any:  # noqa: ANN401 - JSON
    """Ask for JSON; raises OSError as `get_bytes` does, ValueError when it is none."""
    return json.loads(get_bytes(url, data))


def stored_objects(pacs: Pacs, study_instance_uid: str, folder: Path) -> list[Path]:
    """Return copies of what the PACS holds of a study, in `folder` under names a person can read.

    Returns
    -------
    The files, sorted by name: ``SC-0001-xxxx.dcm``, ... ``SEG-0001-xxxx.dcm``, where xxxx is of the
    series.

    Raises
    ------
    OSError
        The PACS does not answer.
    """
    folder.mkdir(parents=True, exist_ok=True)
    found = []
    for content in _contents(pacs, study_instance_uid):
        path = folder / f"{_readable_name(content)}.dcm"
        path.write_bytes(content)
        found.append(path)
    return sorted(found)


def _contents(pacs: Pacs, study_instance_uid: str) -> Iterator[bytes]:
    """Yield the files of a study, one after the other: a study may be large."""
    if pacs.url is None:
        # the collector has no index: every header is read
        for path in sorted(Path(pacs.place).rglob("*.dcm")):
            if (
                pydicom.dcmread(path, stop_before_pixels=True).StudyInstanceUID
                == study_instance_uid
            ):
                yield path.read_bytes()
        return
    for match in get_json(f"{pacs.url}/tools/lookup", study_instance_uid.encode()):
        if match["Type"] == "Study":
            for instance in get_json(f"{pacs.url}/studies/{match['ID']}/instances"):
                yield get_bytes(f"{pacs.url}/instances/{instance['ID']}/file")


def _readable_name(content: bytes) -> str:
    """Return kind and number; the digest keeps two results of one study apart."""
    ds = pydicom.dcmread(BytesIO(content), stop_before_pixels=True)
    kind = _KINDS.get(ds.SOPClassUID, ds.Modality)
    return f"{kind}-{int(ds.InstanceNumber):04d}-{digest(str(ds.SeriesInstanceUID))[:4]}"
