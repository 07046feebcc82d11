"""Folders of tiny scans, as batch mode is given them, and what scores them quickly."""

from pathlib import Path

import numpy as np

from dicom_node import nifti
from dicom_node.config import NodeConfig
from tests.make.encoders import TINY
from tests.make.instances import make_series, write
from tests.make.lines import GEOMETRY, head

#: index (depth, height, width) -> LPS mm
AFFINE = np.array([[0, 0, 1, -15], [0, 1, 0, -15], [2, 0, 0, 40], [0, 0, 0, 1]], dtype=float)


def config(weights, **protocol) -> NodeConfig:
    """A configuration with a tiny encoder and one protocol, `t1`."""
    settings = {"name": "t1", "match": {"modality": "MR"}, "extent_mm": [32.0, 32.0, 32.0]}
    encoder = {
        "model": TINY,
        "weights": "file",
        "file": weights,
        "axes": ["axial"],
        "projection_dim": 8,
    }
    return NodeConfig.model_validate({"encoder": encoder, "protocol": [settings | protocol]})


def write_scan(folder: Path, name: str, voxels, affine=AFFINE) -> Path:
    """One NIfTI file; `voxels` is (depth, height, width)."""
    path = folder / f"{name}.nii.gz"
    path.parent.mkdir(parents=True, exist_ok=True)
    nifti.write(path, np.asarray(voxels, dtype=np.float32), affine, "made for a test")
    return path


def write_heads(folder: Path, n: int, first: int = 0) -> list[Path]:
    """`n` different heads, `head0_t1.nii.gz` and so on."""
    return [write_scan(folder, f"head{k}_t1", head(k)) for k in range(first, first + n)]


def write_series(folder: Path, seed: int, modality: str = "MR", geometry=GEOMETRY, **attributes):
    """One DICOM series, a file per slice, of a patient called P and the seed."""
    folder.mkdir(parents=True, exist_ok=True)
    pixels = head(seed)[: geometry.n_slices]
    named = {"PatientID": f"P{seed}", "SeriesNumber": 3, "StudyDate": "20260101"} | attributes
    for number, ds in enumerate(make_series(modality, geometry, pixels, seed, **named)):
        write(ds, folder / f"{number:03d}.dcm")
