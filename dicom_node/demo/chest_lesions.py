"""Lesions of the lung: nodules, solid or part-solid, and consolidations, planted where they may be.

A lesion has exactly the volume that was planned: its edge lies where as many voxels as it needs are
nearest to its centre, measured by an irregular distance.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from dicom_node.demo.chest_scan import Posed
from dicom_node.demo.chest_template import GRID_MM
from dicom_node.demo.fields import smooth_field
from dicom_node.errors import NodeError

Voxels = NDArray[np.float32]
Mask = NDArray[np.bool_]

#: between the edges of two lesions
_APART_MM = 10.0
#: smaller ones have no room for a core and a rim
_MIN_PART_SOLID_MM = 8.0
#: a radius of the core of a part-solid nodule, in radii of the nodule
_CORE = 0.55
#: weights below this change nothing that anybody could see
_LEAST_WEIGHT = 0.02
#: how far an irregular lesion reaches, in radii, and beyond that in mm
_REACH = (2.2, 4.0)


@dataclass(frozen=True, slots=True)
class Plan:
    """One lesion to plant."""

    #: "solid", "part-solid" or "consolidation"
    kind: str
    #: of a ball of the same volume
    diameter_mm: float


@dataclass(frozen=True, slots=True)
class Lesion:
    """One planted lesion and where it is."""

    #: (depth, height, width), True inside
    mask: Mask
    #: "solid", "part-solid" or "consolidation"
    kind: str
    #: of a ball of the same volume
    diameter_mm: float
    volume_ml: float
    #: (x, y, z) LPS, of all voxels inside
    centre_mm: tuple[float, float, float]


@dataclass(frozen=True, slots=True)
class _Place:
    """The surroundings of a lesion to be."""

    box: tuple[slice, ...]
    #: (depth, height, width) of the box: mm from the centre, in a lesion's own irregular measure
    distance: Voxels
    #: the lung that the lesion is in; it does not cross the pleura
    lung: Mask
    #: unit vector in the box from the centre to the hilum, (depth, height, width)
    hilum: NDArray[np.float64]


def draw_plans(random: np.random.Generator) -> tuple[Plan, ...]:
    """Draw one to three nodules of 3 to 15 mm, and every third time a consolidation before them."""
    plans = []
    if random.random() < 1 / 3:
        plans.append(Plan("consolidation", random.uniform(10, 40)))
    for _ in range(random.integers(1, 4)):
        diameter = random.uniform(3, 15)
        part_solid = diameter >= _MIN_PART_SOLID_MM and random.random() < 0.3
        plans.append(Plan("part-solid" if part_solid else "solid", diameter))
    return tuple(plans)


def plant(posed: Posed, plans: Sequence[Plan], random: np.random.Generator) -> tuple[Lesion, ...]:
    """Plant lesions in `posed.voxels`, in place, apart from one another.

    Raises
    ------
    NodeError
        There is no place for one of them.
    """
    lesions: list[Lesion] = []
    # mm to the nearest vessel, airway or pleura
    depth = _depth(posed.parenchyma)
    middle = np.argwhere(posed.lungs).mean(axis=0)
    for plan in plans:
        centre = _choose_centre(depth, plan, random)
        place = _survey(posed.lungs, centre, middle, plan, random)
        lesion = _fill(posed, place, plan, random)
        _keep_away(depth, lesion)
        lesions.append(lesion)
    return tuple(lesions)


def _depth(parenchyma: Mask) -> Voxels:
    """(depth, height, width) mm from each voxel to the nearest that is no parenchyma."""
    box = ndimage.find_objects(parenchyma.view(np.uint8))
    depth = np.zeros(parenchyma.shape, dtype=np.float32)
    if box:
        # one voxel of something else around the box is as far as a nearest one can be
        padded = np.pad(parenchyma[box[0]], 1)
        inner = slice(1, -1)
        depth[box[0]] = ndimage.distance_transform_edt(padded, sampling=GRID_MM)[
            inner, inner, inner
        ]
    return depth


def _choose_centre(depth: Voxels, plan: Plan, random: np.random.Generator) -> NDArray[np.int64]:
    """Return an index with room for the lesion; raises NodeError without one.

    A nodule needs room all round, and touches the pleura at most. A consolidation takes in vessels,
    and may lie against the pleura, which flattens it.
    """
    radius = plan.diameter_mm / 2
    least = 0.25 * radius if plan.kind == "consolidation" else radius + 0.5
    places = np.flatnonzero(depth > least)
    if not places.size:
        raise NodeError(f"no place in the lungs for a {plan.kind} lesion of {radius:.1f} mm radius")
    chosen = places[random.integers(places.size)]
    return np.array(np.unravel_index(chosen, depth.shape))


def _survey(
    lungs: Mask,
    centre: NDArray[np.int64],
    middle: NDArray[np.float64],
    plan: Plan,
    random: np.random.Generator,
) -> _Place:
    """Measure the surroundings of a centre."""
    radius = plan.diameter_mm / 2
    reach = ((_REACH[0] * radius + _REACH[1]) / GRID_MM).astype(int) + 1
    box = tuple(
        slice(max(0, at - far), min(n, at + far + 1))
        for at, far, n in zip(centre, reach, lungs.shape, strict=True)
    )
    from_centre = [
        (axis - at) * mm for axis, at, mm in zip(np.ogrid[box], centre, GRID_MM, strict=True)
    ]
    distance = np.sqrt(sum(part**2 for part in from_centre)).astype(np.float32)
    uneven = 0.25 if plan.kind == "consolidation" else 0.15
    field = smooth_field(distance.shape, GRID_MM, max(2.0, radius / 2), random)
    # within bounds: a factor near zero would tear the lesion apart
    distance /= np.clip(1 + uneven * field, 1 - 2 * uneven, 1 + 2 * uneven)
    labels, _ = ndimage.label(lungs[box])
    here = tuple(at - part.start for at, part in zip(centre, box, strict=True))
    towards = (middle - centre) * GRID_MM
    hilum = towards / max(float(np.linalg.norm(towards)), 1e-6)
    return _Place(box, distance, labels == labels[here], hilum)


def _fill(posed: Posed, place: _Place, plan: Plan, random: np.random.Generator) -> Lesion:
    """Change the voxels of one lesion, and describe it."""
    edge, inside = _edge(place, plan.diameter_mm)
    voxels = posed.voxels[place.box]
    texture = smooth_field(voxels.shape, GRID_MM, 3.0, random)
    if plan.kind == "consolidation":
        level = random.uniform(-50, 50) + 12 * texture
        weight = _weight(place, edge, min(1.5, edge / 8))
        airways = _airways(place, edge, random)
        voxels += weight * (level * (1 - airways) - 870 * airways - voxels)
    else:
        if plan.kind == "part-solid":
            # vessels go on through ground glass
            glass = np.maximum(voxels, random.uniform(-600, -450) + 30 * texture)
            voxels += _weight(place, edge, 0.8) * (glass - voxels)
            edge *= _CORE
        level = random.uniform(0, 60) + 8 * texture
        voxels += _weight(place, edge, 0.6) * (level - voxels)
    mask = np.zeros(posed.voxels.shape, dtype=bool)
    mask[place.box] = inside
    return _describe(mask, plan.kind, posed.affine)


def _edge(place: _Place, diameter_mm: float) -> tuple[float, Mask]:
    """Return the distance within which lies the planned volume, and the voxels within it."""
    n = max(1, round(np.pi / 6 * diameter_mm**3 / float(GRID_MM.prod())))
    distances = np.sort(place.distance[place.lung])
    n = min(n, len(distances) - 1)
    # between the last voxel inside and the first outside
    edge = float(distances[n - 1] + distances[n]) / 2
    return edge, (place.distance <= edge) & place.lung


def _weight(place: _Place, edge: float, soft_mm: float) -> Voxels:
    """Return weights: 1 inside, 1/2 at the edge, 0 outside and beyond the pleura."""
    weight = place.lung / (1 + np.exp(np.minimum((place.distance - edge) / soft_mm, 50)))
    weights: Voxels = np.where(weight < _LEAST_WEIGHT, 0, weight).astype(np.float32)
    return weights


def _airways(place: _Place, edge: float, random: np.random.Generator) -> Voxels:
    """Return weights of the bronchi that stay open in a consolidation: rays from its hilar side."""
    shape = place.distance.shape
    points = np.moveaxis(np.indices(shape, dtype=np.float32), 0, -1) * GRID_MM.astype(np.float32)
    centre = np.array(np.unravel_index(place.distance.argmin(), shape)) * GRID_MM
    start = centre + 0.8 * edge * place.hilum
    airways = np.zeros(shape, dtype=np.float32)
    for _ in range(2 + int(edge / 6)):
        ray = -place.hilum + 0.5 * random.standard_normal(3)
        ray /= np.linalg.norm(ray)
        along = np.clip((points - start) @ ray, 0, 1.7 * edge)
        apart = np.linalg.norm(points - start - along[..., None] * ray, axis=-1)
        # bronchi of the third to fifth order are 2 to 4 mm wide
        width = min(random.uniform(0.9, 1.6), edge / 8)
        airways = np.maximum(airways, np.exp(-((apart / width) ** 2)))
    streaks: Voxels = (airways * (place.distance < 0.9 * edge)).astype(np.float32)
    return streaks


def _describe(mask: Mask, kind: str, affine: NDArray[np.float64]) -> Lesion:
    """Measure a lesion by its mask."""
    volume_mm3 = float(mask.sum() * GRID_MM.prod())
    x, y, z = (affine @ np.append(np.argwhere(mask).mean(axis=0), 1.0))[:3]
    diameter = float(np.cbrt(6 * volume_mm3 / np.pi))
    return Lesion(mask, kind, diameter, volume_mm3 / 1000, (float(x), float(y), float(z)))


def _keep_away(depth: Voxels, lesion: Lesion) -> None:
    """Leave no room for another lesion near this one, in place."""
    far = (_APART_MM / GRID_MM).astype(int) + 2
    box = tuple(
        slice(max(0, part.start - more), part.stop + more)
        for part, more in zip(ndimage.find_objects(lesion.mask.view(np.uint8))[0], far, strict=True)
    )
    apart = ndimage.distance_transform_edt(~lesion.mask[box], sampling=GRID_MM)
    # what is left is the room up to the zone about this lesion
    depth[box] = np.minimum(depth[box], np.maximum(apart - _APART_MM, 0))
