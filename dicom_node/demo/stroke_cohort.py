"""A cohort of real T1 heads, some of them with lesions of real strokes' shapes.

A lesion mask in MNI space is brought to a head by an affine registration of its brain to the
template of that space, and the tissue inside is made darker at a stated contrast. The template must
have the size of the space, not only its pose: a head that was brought there by a rigid registration
keeps its own size, and the lesions would lie too far out.

Lesioned and normal subjects go through the same steps, so that no score can tell them by how they
were processed: every head, whether it is to get a lesion or not, must have a brain mask and a
registration that keeps all limits, stays on its own grid without any resampling, and is written
with the same scale and type. Only voxels of a lesion differ from the source. Who gets one is drawn
among all heads.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dicom_node import durable, nifti
from dicom_node.demo import subject_files
from dicom_node.demo.stroke_heads import PlacedHead, Target, placed_heads, target_of
from dicom_node.demo.stroke_lesions import darken, weight_on
from dicom_node.errors import ConfigError, NodeError, SeriesRejected
from dicom_node.volume import Volume

CONTRASTS = (0.3, 0.5, 0.7, 0.9)
VOLUME_ML = (1.0, 60.0)

_LIST = "lesions.csv"
_COLUMNS = (
    *("name", "mask_file", "volume_ml", "contrast", "achieved_contrast", "share_in_brain"),
    *("x", "y", "z"),
)
#: the largest value of every head as it is written: the built-in heads have 12 bits too
_LARGEST = 4095

Voxels = NDArray[np.float32]
Mask = NDArray[np.bool_]
Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class StrokePlan:
    """What is to be made, and of what."""

    #: folder of whole-head T1 as NIfTI files, one per subject
    heads: Path
    #: folder of lesion masks in MNI space, as NIfTI files
    lesion_masks: Path
    #: a skull-stripped T1 of the masks' space, as large as its brain is; None: the MNI152 template
    mni: Path | None
    #: where the networks of the brain mask lie, or are fetched to
    cache: Path
    n_normal: int
    n_lesioned: int
    seed: int
    #: the lesioned subjects take them in turn: 0 to 1 of the way to the target intensity
    contrasts: tuple[float, ...] = CONTRASTS
    #: least and greatest volume of a lesion in the head
    volume_ml: tuple[float, float] = VOLUME_ML


@dataclass(frozen=True, slots=True)
class StrokeLesion:
    """One lesion and where it is."""

    #: (depth, height, width), True where at least half of a voxel is lesion
    mask: Mask
    #: file name of the mask that gave the shape
    mask_file: str
    volume_ml: float
    #: as planned, 0 to 1
    contrast: float
    #: mean change inside, in units of the level of white matter: small where the tissue was dark
    achieved: float
    #: of the lesion as it came to the head, in its brain: the rest was cut off
    share_in_brain: float
    #: (x, y, z) LPS
    centre_mm: tuple[float, float, float]


@dataclass(frozen=True, slots=True)
class StrokeHead:
    """One subject."""

    name: str
    #: (depth, height, width), 0..4095
    voxels: NDArray[np.int16]
    #: (4, 4) index -> LPS mm, as in the source
    affine: Floats
    #: one or none
    lesions: tuple[StrokeLesion, ...]


@dataclass(frozen=True, slots=True)
class _Shape:
    """A lesion mask that no subject has yet."""

    path: Path
    #: in its own space
    volume_ml: float


def write_strokes(
    plan: StrokePlan, folder: Path, note: Callable[[str], None]
) -> Iterator[StrokeHead]:
    """Write each head as ``NAME_t1.nii.gz`` beside ``NAME_label.nii.gz``, and yield it.

    The label of a head without a lesion is zero everywhere. At the end, also where it was reached
    too soon, the lesions are in ``lesions.csv``, with their centres in LPS mm.

    Raises
    ------
    ConfigError, NodeError
        As `make_strokes` does.
    """
    rows: list[tuple[object, ...]] = []
    made = make_strokes(plan, note)
    durable.make_folder(folder)
    try:
        for head in made:
            label = np.zeros(head.voxels.shape, dtype=np.uint8)
            for lesion in head.lesions:
                label[lesion.mask] = 1
                rows.append(_row(head.name, lesion))
            image = folder / f"{head.name}_t1.nii.gz"
            subject_files.save(image, head.voxels, label, head.affine, "real head")
            yield head
    finally:
        durable.write(folder / _LIST, subject_files.table(_COLUMNS, rows))


def _row(name: str, lesion: StrokeLesion) -> tuple[object, ...]:
    """Return what the list says of one lesion."""
    contrasts = (f"{lesion.contrast:g}", f"{lesion.achieved:.4f}", f"{lesion.share_in_brain:.3f}")
    where = subject_files.millimetres(lesion.centre_mm)
    return (name, lesion.mask_file, f"{lesion.volume_ml:.3f}", *contrasts, *where)


def make_strokes(plan: StrokePlan, note: Callable[[str], None]) -> Iterator[StrokeHead]:
    """Make `n_normal` heads without a lesion and `n_lesioned` with one, spread among them.

    The seed decides in which order heads and masks are taken; each is taken once at most. A head
    that is refused is named to `note` with the reason, and the next one takes its place.

    Raises
    ------
    ConfigError
        A folder is missing or empty, or holds fewer heads or masks than are asked for; the head in
        MNI space cannot be used; the limits of volume are no range. Before anything is made.
    NodeError
        So many heads were refused, or so few masks have a volume within the limits, that not all
        subjects could be made. Those that could are whole.
    """
    if plan.volume_ml[0] > plan.volume_ml[1]:
        raise ConfigError("the least volume of a lesion is above the greatest: exchange the two")
    heads = _files(plan.heads, "heads", plan.n_normal + plan.n_lesioned)
    masks = _files(plan.lesion_masks, "lesion masks", plan.n_lesioned)
    return _made(plan, heads, masks, target_of(plan.mni, plan.cache), note)


def _files(folder: Path, what: str, n_needed: int) -> list[Path]:
    """Return the NIfTI files of a folder by name; raises ConfigError where they are too few."""
    if not folder.is_dir():
        raise ConfigError(f"{folder} is no folder; name that of the {what}")
    found = sorted(path for path in folder.iterdir() if nifti.is_nifti(path))
    if len(found) < max(1, n_needed):
        raise ConfigError(
            f"{folder} holds {len(found)} {what} (NIfTI files), and {n_needed} are needed; ask for "
            "fewer subjects or name another folder"
        )
    return found


def _made(
    plan: StrokePlan,
    heads: Sequence[Path],
    masks: Sequence[Path],
    target: Target,
    note: Callable[[str], None],
) -> Iterator[StrokeHead]:
    random = np.random.default_rng(plan.seed)
    placed = placed_heads(_shuffled(heads, random), target, plan.cache, note)
    shapes = [_shape_of(path) for path in _shuffled(masks, random)]
    contrasts = itertools.cycle(plan.contrasts)
    for number, lesioned in enumerate(subject_files.spread(plan.n_normal, plan.n_lesioned)):
        head = next(placed, None)
        if head is None:
            total = plan.n_normal + plan.n_lesioned
            raise NodeError(
                f"only {number} of {total} subjects were made: the other heads of {plan.heads} "
                "were refused; ask for fewer, or add heads"
            )
        if lesioned:
            yield _lesioned(head, shapes, next(contrasts), plan.volume_ml)
        else:
            yield _subject(head, head.voxels, ())


def _shuffled(paths: Sequence[Path], random: np.random.Generator) -> list[Path]:
    return [paths[at] for at in random.permutation(len(paths))]


def _read_mask(path: Path) -> Volume:
    """Read a lesion mask; what it raises names the file."""
    try:
        return nifti.read(path)
    except SeriesRejected as error:
        raise type(error)(f"lesion mask {path}: {error}") from error


def _shape_of(path: Path) -> _Shape:
    """Measure a lesion mask in its own space."""
    mask = _read_mask(path)
    return _Shape(path, float((mask.voxels > 0.5).sum()) * _voxel_ml(mask.affine))


def _voxel_ml(affine: Floats) -> float:
    return abs(float(np.linalg.det(affine[:3, :3]))) / 1000


def _lesioned(
    head: PlacedHead, shapes: list[_Shape], contrast: float, limits_ml: tuple[float, float]
) -> StrokeHead:
    """Give the head the first lesion that fits, which `shapes` then has no more."""
    scale = abs(float(np.linalg.det(head.to_head[:3, :3])))
    for shape in shapes:
        # what is out of range by far is not even brought there
        if not limits_ml[0] <= shape.volume_ml * scale <= limits_ml[1]:
            continue
        mask = _read_mask(shape.path)
        whole = weight_on(mask, head.voxels.shape, head.affine, head.to_head)
        label = (whole >= 0.5) & head.brain
        if limits_ml[0] <= float(label.sum()) * _voxel_ml(head.affine) <= limits_ml[1]:
            shapes.remove(shape)
            return _planted(head, whole, shape.path.name, contrast)
    raise NodeError(
        f"no lesion mask is left whose lesion has {limits_ml[0]:g} to {limits_ml[1]:g} ml in "
        f"{head.name}; ask for fewer lesioned subjects, wider limits, or add masks"
    )


def _planted(head: PlacedHead, whole: Voxels, mask_file: str, contrast: float) -> StrokeHead:
    """Plant a lesion of weight `whole`, of which what is not in the brain is cut off."""
    weight = np.where(head.brain, whole, np.float32(0))
    made = darken(head.voxels, head.brain, weight, contrast, head.levels)
    label = weight >= 0.5
    change = float(np.abs(made[label] - head.voxels[label]).mean())
    x, y, z = (head.affine @ np.append(np.argwhere(label).mean(axis=0), 1.0))[:3]
    lesion = StrokeLesion(
        mask=label,
        mask_file=mask_file,
        volume_ml=float(label.sum()) * _voxel_ml(head.affine),
        contrast=contrast,
        achieved=change / (head.levels.white - float(head.voxels.min())),
        share_in_brain=float(label.sum() / (whole >= 0.5).sum()),
        centre_mm=(float(x), float(y), float(z)),
    )
    return _subject(head, made, (lesion,))


def _subject(head: PlacedHead, voxels: Voxels, lesions: tuple[StrokeLesion, ...]) -> StrokeHead:
    """Scale a head as all are scaled: by its own values before there was a lesion."""
    low, high = float(head.voxels.min()), float(head.voxels.max())
    scaled = np.rint((voxels - low) * (_LARGEST / (high - low))).astype(np.int16)
    name = subject_files.name_of(head.name, lesioned=bool(lesions))
    return StrokeHead(name, scaled, head.affine, lesions)
