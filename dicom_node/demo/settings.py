"""The configuration that the demo writes: the defaults, on free loopback ports, in a hurry."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pydicom
from numpy.typing import NDArray

from dicom_node.demo.pacs import Pacs

AE_TITLE = "DICOM_NODE"
N_NORMAL, N_LESIONED = 8, 3
#: fewer make no batch
FEWEST_SUBJECTS = 4
#: token edge at 1 mm voxels and the default encoder, mm
_TOKEN_EDGE_MM = 7.0
_LARGEST_EXTENT_MM = 399.0

_TEXT = """# Written by `dicom-node demo`. The keys are explained in config.example.toml.
[node]
ae_title = "{ae_title}"
data_dir = "node"

[receiver]
port = {node_port}

[storage]
reserve = "500 MiB"

[completion]
quiet = "2 s"

[web]
port = {web_port}

[[protocol]]
name = "demo"
mode = "live"
min_reference = {min_reference}
extent_mm = [{extent}]
intensity = "{intensity}"

[protocol.match]
modality = "{modality}"

[[destination]]
name = "pacs"
ae_title = "{pacs_ae_title}"
host = "127.0.0.1"
port = {pacs_port}
retry_first = "1 s"
"""


def config_text(
    node_port: int, web_port: int, pacs: Pacs, own: Sequence[Path] | None, n_own: int
) -> str:
    """Return the demo's configuration, for the built-in cohort or a user's own series."""
    n_subjects = n_own or N_NORMAL + N_LESIONED
    modality, extent = _fit(own) if own else ("MR", (161.0, 196.0, 161.0))
    return _TEXT.format(
        ae_title=AE_TITLE,
        node_port=node_port,
        web_port=web_port,
        # a batch of all the others, as in the paper
        min_reference=max(3, min(15, n_subjects - 1)),
        extent=", ".join(str(side) for side in extent),
        modality=modality,
        intensity="hounsfield" if modality == "CT" else "percentiles",
        pacs_ae_title=pacs.ae_title,
        pacs_port=pacs.port,
    )


def _fit(files: Sequence[Path]) -> tuple[str, tuple[float, float, float]]:
    """Return modality and (feet-head, front-back, left-right) extent that holds the series."""
    datasets = [pydicom.dcmread(path, stop_before_pixels=True) for path in files]
    corners = [corner for ds in datasets for corner in _corners(ds)]
    x, y, z = np.ptp(np.array(corners), axis=0)
    tokens = [math.ceil(side / _TOKEN_EDGE_MM) for side in (z, y, x)]
    depth, height, width = (min(n * _TOKEN_EDGE_MM, _LARGEST_EXTENT_MM) for n in tokens)
    return str(datasets[0].Modality), (depth, height, width)


def _corners(ds: pydicom.Dataset) -> list[NDArray[np.float64]]:
    """Return two opposite corners of a slice in LPS mm (PS3.3 C.7.6.2.1.1)."""
    if "ImagePositionPatient" not in ds or "ImageOrientationPatient" not in ds:
        return [np.zeros(3), np.full(3, 196.0)]
    position = np.asarray(ds.ImagePositionPatient, float)
    row = np.asarray(ds.ImageOrientationPatient[:3], float) * float(ds.PixelSpacing[1]) * ds.Columns
    column = np.asarray(ds.ImageOrientationPatient[3:], float) * float(ds.PixelSpacing[0]) * ds.Rows
    return [position, position + row + column]
