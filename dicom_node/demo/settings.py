"""The configuration that the demo writes: the defaults, on free loopback ports, in a hurry.

It is a file like any other, read by the node like any other, and may be edited and run again. Only
what must differ from the defaults stands in it: ports, short times, and one protocol in live mode
that fits the series at hand.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pydicom
from numpy.typing import NDArray

from dicom_node.demo.pacs import Pacs

AE_TITLE = "DICOM_NODE"
#: of the built-in cohort: eleven, which makes ten the batch's minimum
N_NORMAL, N_LESIONED = 8, 3
#: fewer make no batch
FEWEST_SUBJECTS = 4
#: token edge at 1 mm voxels and the default encoder, mm
_TOKEN_EDGE_MM = 14.0
#: 57 tokens; what reaches further from the body's centre is left out
_LARGEST_EXTENT_MM = 392.0

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

[grouping]
discover = false

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
    """Return the demo's configuration, for the built-in cohort or a user's own series.

    Parameters
    ----------
    own
        Files of one of the user's series, after which extent and modality are chosen; None with the
        built-in cohort.
    n_own
        How many series the user has; 0 with the built-in cohort.
    """
    n_subjects = n_own or N_NORMAL + N_LESIONED
    modality, extent = _fit(own) if own else ("MR", (168.0, 196.0, 168.0))
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
    """Return modality and (feet-head, front-back, left-right) extent that holds the series.

    Each side is a multiple of the coarsest token's edge, in mm, at least one token and at most 392.
    """
    datasets = [pydicom.dcmread(path, stop_before_pixels=True) for path in files]
    # (4 per slice, 3)
    corners = [corner for ds in datasets for corner in _corners(ds)]
    x, y, z = np.ptp(np.array(corners), axis=0)
    # one token at least: the first series found may be a single slice
    tokens = [max(1, math.ceil(side / _TOKEN_EDGE_MM)) for side in (z, y, x)]
    depth, height, width = (min(n * _TOKEN_EDGE_MM, _LARGEST_EXTENT_MM) for n in tokens)
    return str(datasets[0].Modality), (depth, height, width)


def _corners(ds: pydicom.Dataset) -> list[NDArray[np.float64]]:
    """Return the four corners of a slice in LPS mm (PS3.3 C.7.6.2.1.1).

    All four, since in an oblique slice any of them may reach furthest. Enhanced instances keep
    their geometry per frame; they are taken for a head's size.
    """
    if "ImagePositionPatient" not in ds or "ImageOrientationPatient" not in ds:
        return [np.zeros(3), np.full(3, 196.0)]
    position = np.asarray(ds.ImagePositionPatient, float)
    row = np.asarray(ds.ImageOrientationPatient[:3], float) * float(ds.PixelSpacing[1]) * ds.Columns
    column = np.asarray(ds.ImageOrientationPatient[3:], float) * float(ds.PixelSpacing[0]) * ds.Rows
    return [position, position + row, position + column, position + row + column]
