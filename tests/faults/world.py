"""What outlives the node: the sender, the archive, and what they remember."""

import hashlib
import json
import os
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pydicom

from dicom_node.config import NodeConfig
from tests.make.encoders import TINY
from tests.make.instances import make_series, received
from tests.make.lines import GEOMETRY, head

#: as many as score each other
N_SERIES = 4
SLICES = replace(GEOMETRY, n_slices=8)


@dataclass(frozen=True)
class Sent:
    """One C-STORE request that the sender makes until it is acknowledged."""

    uid: str
    series: str
    request: object


def requests(late: bool) -> tuple[list[Sent], list[Sent]]:
    """What is sent at first, and one slice that comes when its series was scored already."""
    first = []
    for seed in range(N_SERIES):
        voxels = head(seed)[: SLICES.n_slices]
        first += [_sent(ds) for ds in make_series("MR", SLICES, voxels, seed)]
    more = replace(SLICES, n_slices=SLICES.n_slices + 1)
    volume = head(0)[: more.n_slices]
    afterwards = [_sent(make_series("MR", more, volume, 0)[-1])] if late else []
    return first, afterwards


def _sent(ds) -> Sent:
    return Sent(str(ds.SOPInstanceUID), str(ds.SeriesInstanceUID), received(ds))


@dataclass
class World:
    """A folder: the node's data in it, and beside them the memory of sender and archive."""

    folder: Path
    weights: Path
    seed: int

    def __post_init__(self):
        self.first, self.late = requests(late=self.seed % 3 == 0)
        np.random.default_rng(self.seed).shuffle(self.first)

    @property
    def config(self) -> NodeConfig:
        return NodeConfig.model_validate(
            {
                "node": {"data_dir": self.folder / "data"},
                "encoder": {
                    "model": TINY,
                    "weights": "file",
                    "file": self.weights,
                    "axes": ["axial"],
                    "projection_dim": 8,
                },
                "scoring": {"max_attempts": 20, "threads": 1},
                "completion": {"quiet": "1 s", "cap": "10 s"},
                "protocol": [
                    {
                        "name": "t1",
                        "mode": "live",
                        "match": {"modality": "MR"},
                        "min_reference": N_SERIES - 1,
                        "max_reference": N_SERIES + 1,
                        "extent_mm": [32.0, 32.0, 32.0],
                        "finding_threshold": 0.5,
                    }
                ],
                "destination": [
                    {"name": "pacs", "ae_title": "PACS", "host": "127.0.0.1", "port": 104}
                ],
            }
        )

    # appended to by one write each: a kill leaves a line whole or absent

    def acknowledge(self, uid: str) -> None:
        _append(self.folder / "acknowledged", uid)

    def acknowledged(self) -> set[str]:
        return set(_lines(self.folder / "acknowledged"))

    def archive(self, path: Path) -> None:
        """What a PACS keeps of an object: its UID and its content."""
        content = path.read_bytes()
        ds = pydicom.dcmread(path, stop_before_pixels=True)
        digest = hashlib.sha256(content).hexdigest()
        _append(self.folder / "archive", json.dumps([str(ds.SOPInstanceUID), digest]))

    def archived(self) -> list[tuple[str, str]]:
        return [tuple(json.loads(line)) for line in _lines(self.folder / "archive")]

    def note(self, text: str) -> None:
        """What happened in a life, for the counts."""
        _append(self.folder / "notes", text)

    def notes(self) -> list[str]:
        return _lines(self.folder / "notes")


def _append(path: Path, line: str) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(descriptor, f"{line}\n".encode())
    finally:
        os.close(descriptor)


def _lines(path: Path) -> list[str]:
    return path.read_text("utf-8").splitlines() if path.exists() else []
