"""A folder's scans -> the template and the histogram that a protocol takes from its own batch.

Here all scans are at hand at once: what the node founds by its first series and chooses again as
the batch grows, is chosen of the folder before the first scan is encoded.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from dicom_node import durable
from dicom_node.anomaly.harmonisation import mean_landmarks
from dicom_node.batch import products
from dicom_node.batch.inputs import Scan
from dicom_node.batch.recipe import Own, Recipe
from dicom_node.config import digest
from dicom_node.errors import ConfigError, NodeError
from dicom_node.learning import MOST, landmarks_of, most_typical, picture
from dicom_node.protocol_config import OWN_HISTOGRAM, OWN_TEMPLATE
from dicom_node.space import Space, SpaceFiles
from dicom_node.subject import make_canonical


def learnt(
    by: Recipe, scans: Sequence[Scan], note: Callable[[str], None], work: Path | None = None
) -> Recipe:
    """Return the recipe with the space of these scans; one that takes nothing from them as it is.

    In the folder `work` it is kept: the same scans have the same space, and are not read again.

    The template is the medoid of at most `learning.MOST` of them, spread over the folder; the
    landmarks are the mean of all. Scans are read one at a time, and placed by themselves for it (or
    by the template file that the protocol names). What cannot be read is passed over: its reason is
    told when it is encoded.

    Raises ConfigError where no scan could be placed.
    """
    if by.own is None:
        return by
    if work is None:
        return by.own.taken(_learnt(by, by.own, scans, note))
    files, of_scans = SpaceFiles(work), sorted(scan.content() for scan in scans)
    index = work / "spaces" / f"of-{digest(by.token_fingerprint, by.own.parts, of_scans)}"
    if index.exists():
        return by.own.taken(files.load(index.read_text("ascii")))
    space = _learnt(by, by.own, scans, note)
    name = files.save(space)
    durable.write(index, name.encode("ascii"))
    return by.own.taken(space)


def _learnt(by: Recipe, own: Own, scans: Sequence[Scan], note: Callable[[str], None]) -> Space:
    """Choose the template among the scans, and average their landmarks."""
    note(f"{' and '.join(own.parts)} of {by.name} are learnt of {len(scans)} scans first")
    seen = _seen(by, scans)
    if not seen:
        raise ConfigError(f"no scan could be read for the template or histogram of {by.name}")
    template = None
    if OWN_TEMPLATE in own.parts:
        among = seen[:: -(-len(seen) // MOST)]
        scan = among[most_typical([one.picture for one in among])].scan
        template = by.placing.as_template(*_load(by, scan))
        note(f"{scan.name} is the template: of {len(among)} scans it is most like the others")
    landmarks: tuple[float, ...] = ()
    if OWN_HISTOGRAM in own.parts:
        landmarks = mean_landmarks([one.landmarks for one in seen])
    return Space(template, landmarks)


@dataclass(frozen=True, slots=True)
class _Seen:
    """What is kept of one scan."""

    scan: Scan
    picture: Tensor
    landmarks: tuple[float, ...]


def _seen(by: Recipe, scans: Sequence[Scan]) -> list[_Seen]:
    found = []
    for scan in scans:
        try:
            placed = make_canonical(*_load(by, scan), by.method, by.placing)
        except (NodeError, OSError):
            continue
        small = picture(placed, by.method.grid.spacing_mm)
        found.append(_Seen(scan, small, landmarks_of(placed)))
    return found


def _load(by: Recipe, scan: Scan) -> tuple[Tensor, Tensor]:
    """Read the voxels of a scan and their affine; raises NodeError, also for another protocol's."""
    source = scan.load()
    by.check_match(source)
    return products.scored_voxels(by, scan, source), torch.from_numpy(source.affine)
