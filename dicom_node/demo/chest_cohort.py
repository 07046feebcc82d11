"""A cohort of chest CTs made from a real one: other shapes, breaths, doses, kernels, and lesions.

Everything is drawn from generators seeded per subject, so that a subject is the same on every run,
and the same with lesions as without them but for the lesions. The anatomy is one patient's: vessels
branch alike in all subjects, so that healthy lungs differ less than those of different patients.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dicom_node import durable
from dicom_node.batch import inputs
from dicom_node.demo import subject_files
from dicom_node.demo.chest_lesions import Lesion, draw_plans, plant
from dicom_node.demo.chest_scan import Scan, draw_scan, pose, scan_voxels
from dicom_node.demo.chest_template import Chest, make_template
from dicom_node.errors import ConfigError
from dicom_node.volume import Volume

#: of a folder of PASCAL VOC boxes, in the series' folder or beside it; one file per instance
_BOXES = "annotation_boxes"
_LIST = "lesions.csv"
_COLUMNS = ("name", "lesion", "kind", "diameter_mm", "volume_ml", "x", "y", "z")


@dataclass(frozen=True, slots=True)
class MadeChest:
    """One made subject."""

    name: str
    #: (depth, height, width) HU, towards S, P, L
    voxels: NDArray[np.float32]
    #: (4, 4) index -> LPS mm
    affine: NDArray[np.float64]
    #: (depth, height, width) both lungs with vessels and airways
    lungs: NDArray[np.bool_]
    scan: Scan
    lesions: tuple[Lesion, ...]


def load_chest(folder: Path) -> Chest:
    """Read the one CT series in a folder, and take out the tumour that a reader has marked.

    Boxes around it are read from a folder ``annotation_boxes`` in or beside the series' own, files
    named by SOP Instance UID; without them the lungs stay as they are.

    Raises
    ------
    ConfigError
        The folder does not exist, or holds no CT series, or several.
    SeriesRejected
        The series makes no axial volume, or has no lungs.
    """
    found = [scan for scan in inputs.find([folder], None, None).scans if scan.modality == "CT"]
    if len(found) != 1:
        names = f"{len(found)} CT series" if found else "no CT series"
        raise ConfigError(f"{folder} holds {names}; name the folder of one chest CT (DICOM)")
    volume = found[0].load()
    places = [folder / _BOXES, folder.resolve().parent / _BOXES]
    boxes = next((place for place in places if place.is_dir()), None)
    return make_template(volume, read_boxes(boxes, volume) if boxes else np.zeros((0, 2, 3)))


def read_boxes(folder: Path, volume: Volume) -> NDArray[np.float64]:
    """Read PASCAL VOC boxes, one file per instance, as the corners of boxes one slice thick.

    Returns
    -------
    (n, 2, 3) the lowest and the highest LPS corner, mm. Files of other series are passed over.
    """
    places = {str(ds.SOPInstanceUID): number for number, ds in enumerate(volume.headers)}
    boxes = []
    for path in sorted(folder.glob("*.xml")):
        text = path.read_text(encoding="utf-8", errors="replace")
        edges = [re.findall(rf"<{tag}>\s*(\d+)", text) for tag in ("xmin", "ymin", "xmax", "ymax")]
        if path.stem in places:
            boxes += [(places[path.stem], *map(int, box)) for box in zip(*edges, strict=True)]
    if not boxes:
        return np.zeros((0, 2, 3))
    z, left, top, right, bottom = np.array(boxes, dtype=float).T
    corners = np.array([[z - 0.5, top, left], [z + 0.5, bottom, right]])  # (2, 3, n)
    points = corners.transpose(2, 0, 1) @ volume.affine[:3, :3].T + volume.affine[:3, 3]
    return np.sort(points, axis=1)


def make_chests(chest: Chest, n_normal: int, n_lesioned: int, seed: int) -> Iterator[MadeChest]:
    """Make `n_normal` chests without lesions and `n_lesioned` with some, interleaved.

    Parameters
    ----------
    n_normal, n_lesioned
        How many of each; the lesioned ones are spread evenly among the others.
    seed
        Of the cohort; chest k has the seed 1000 * seed + k, and is made when it is asked for.
    """
    for number, lesioned in enumerate(subject_files.spread(n_normal, n_lesioned)):
        yield make_chest(chest, seed * 1000 + number, with_lesions=lesioned)


def make_chest(chest: Chest, seed: int, *, with_lesions: bool) -> MadeChest:
    """Make one subject.

    Parameters
    ----------
    with_lesions
        Plant one to three nodules and, in every third subject, a consolidation.

    Raises
    ------
    NodeError
        There is no place for a lesion.
    """
    # a generator each: with and without lesions a subject has the same shape and noise
    shape, noise, planting = np.random.default_rng(seed).spawn(3)
    scan = draw_scan(shape)
    posed = pose(chest, scan.breath_mm, shape)
    lesions = plant(posed, draw_plans(planting), planting) if with_lesions else ()
    voxels = scan_voxels(posed.voxels, scan, noise)
    name = subject_files.name_of(seed, lesioned=bool(lesions))
    return MadeChest(name, voxels, posed.affine, posed.lungs, scan, lesions)


def write_chests(
    chest: Chest, folder: Path, n_normal: int, n_lesioned: int, seed: int
) -> Iterator[MadeChest]:
    """Write each chest as ``NAME_ct.nii.gz`` beside ``NAME_label.nii.gz``, and yield it.

    The label of a healthy chest is zero everywhere; that of lesion k is k. At the end all lesions
    are in ``lesions.csv``, with their centres in LPS mm.
    """
    durable.make_folder(folder)
    rows: list[tuple[object, ...]] = []
    for made in make_chests(chest, n_normal, n_lesioned, seed):
        voxels = np.rint(made.voxels).astype(np.int16)
        label = np.zeros(voxels.shape, dtype=np.uint8)
        for number, lesion in enumerate(made.lesions, 1):
            label[lesion.mask] = number
            rows.append(_row(made.name, number, lesion))
        image = folder / f"{made.name}_ct.nii.gz"
        subject_files.save(image, voxels, label, made.affine, "made chest")
        yield made
    durable.write(folder / _LIST, subject_files.table(_COLUMNS, rows))


def _row(name: str, number: int, lesion: Lesion) -> tuple[object, ...]:
    """Return what the list says of one lesion."""
    sizes = (f"{lesion.diameter_mm:.2f}", f"{lesion.volume_ml:.4f}")
    return (name, number, lesion.kind, *sizes, *subject_files.millimetres(lesion.centre_mm))
