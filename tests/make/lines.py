"""A whole line in one process: real ledger, inbox and series, a tiny encoder of random weights."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import timm
import torch
import torch.nn.functional as nnf
from safetensors.torch import save_file

from dicom_node.config import NodeConfig
from dicom_node.inbox import Inbox
from dicom_node.line import Line
from dicom_node.store import series_table
from dicom_node.weight_files import card_path
from dicom_node.wheel_files import sha256_of
from tests.make import ledgers
from tests.make.encoders import TINY
from tests.make.instances import Geometry, make_series, received

#: 32 mm cubed: two coarse tokens of 16 mm, four fine ones of 8 mm along each axis
GEOMETRY = Geometry(rows=32, columns=32, n_slices=16, slice_spacing=2.0)
#: of its voxels, what a lesion takes
CUBE = (slice(5, 11), slice(12, 22), slice(12, 22))


def tiny_weights(folder: Path) -> Path:
    """Weights of random numbers with their card, so that nothing has to be asked of timm."""
    path = folder / "tiny.safetensors"
    torch.manual_seed(11)
    model = timm.create_model(TINY, pretrained=False, num_classes=0)
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, path)
    card = {
        "name": "tiny",
        "timm_name": TINY,
        "sha256": sha256_of(path),
        "patch_size": 16,
        "mean": [0.5, 0.5, 0.5],
        "std": [0.5, 0.5, 0.5],
        "layers": [0],
        "source": "made for this test",
        "licence": "none",
    }
    card_path(path).write_text(json.dumps(card), "utf-8")
    return path


def make_line(database, folder, weights, *, several=({},), **sections) -> Line:
    """A line with one protocol, `t1`, that needs three others; `sections` go over its settings.

    `several` has what each of several protocols changes of it.
    """
    settings = {
        "node": {"data_dir": folder / "data"},
        "encoder": {
            "model": TINY,
            "weights": "file",
            "file": weights,
            "axes": ["axial"],
            "projection_dim": 8,
        },
        "grouping": {},
        "scoring": {},
        "results": {"secondary_capture": False},
        "protocol": {
            "name": "t1",
            "mode": "live",
            "match": {"modality": "MR"},
            "min_reference": 3,
            "max_reference": 5,
            "extent_mm": [32.0, 32.0, 32.0],
        },
    }
    for name, changes in sections.items():
        settings[name] |= changes
    settings["protocol"] = [settings["protocol"] | changes for changes in several]
    pacs = {"name": "pacs", "ae_title": "PACS", "host": "127.0.0.1", "port": 104}
    config = NodeConfig.model_validate(settings | {"destination": [pacs]})
    line = Line(config, database, folder / "cache")
    line.folders.create()
    return line


def head(seed):
    """(slices, rows, columns): a body of smooth random texture in noise."""
    generator = torch.Generator().manual_seed(seed)
    shape = (GEOMETRY.n_slices, GEOMETRY.rows, GEOMETRY.columns)
    coarse = torch.rand(1, 1, 4, 8, 8, generator=generator)
    texture = nnf.interpolate(coarse, shape, mode="trilinear", align_corners=False)[0, 0]
    volume = torch.rand(shape, generator=generator) * 5
    volume[1:-1, 3:-3, 3:-3] += 300 + 400 * texture[1:-1, 3:-3, 3:-3]
    return volume.numpy()


def receive_series(
    line, seed, at=ledgers.NOON, modality="MR", geometry=GEOMETRY, **attributes
) -> str:
    """File a whole series of a patient of its own, complete it, and return its UID."""
    # stored values of a CT are 1024 above HU: tissue from -24 to 376 HU in air
    voxels = head(seed) if modality == "MR" else head(seed) + 700 * (head(seed) > 100)
    return receive(line, make_series(modality, geometry, voxels, seed, **attributes), at)


def echoes(seed, times, *, planted=(), geometry=GEOMETRY, anatomy=None):
    """The slices of one series of several echoes; those in `planted` have a dark cube (`CUBE`).

    Each has an anatomy of its own, or noise of its own over that of another seed.
    """
    made = []
    for number, time in enumerate(times):
        voxels = head(seed if anatomy is None else anatomy) + 50 * number
        if anatomy is not None:
            voxels = voxels + np.random.default_rng((seed, number)).uniform(0, 20, voxels.shape)
        above = geometry.n_slices - len(voxels)
        voxels = np.concatenate([voxels, *(voxels[-1:],) * above])
        if time in planted:
            voxels[CUBE] = 0
        for ds in make_series("MR", geometry, voxels, seed, EchoTime=time):
            ds.SOPInstanceUID = f"{ds.SOPInstanceUID}.{number + 1}"[-64:].lstrip(".0")
            made.append(ds)
    return made


def receive(line, made, at=ledgers.NOON) -> str:
    """File instances of one series, complete it, and return its UID."""
    number = ledgers.open_association(line.database, at=at)
    inbox, uid = Inbox(line.folders.inbox, 0), str(made[0].SeriesInstanceUID)
    filed = [inbox.file_instance(received(ds, association_id=number)) for ds in made]
    ledgers.record(line.database, *filed, at=at)
    with line.database.begin() as db:
        series_table.close_association(db, number, at)
        assert series_table.complete_due(db, series_table.Rule(0.0, 3600.0), at) == [uid]
    return uid


def receive_late_slice(line, seed, at=ledgers.NOON) -> None:
    """File one slice more of an MR series of `receive_series`, on top, and complete it again."""
    voxels = head(seed)
    more = replace(GEOMETRY, n_slices=GEOMETRY.n_slices + 1)
    late = make_series("MR", more, np.concatenate([voxels, voxels[-1:]]), seed)[-1]
    receive(line, [late], at)
