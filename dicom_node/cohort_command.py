"""The verb ``cohort``: made subjects with known lesions, as NIfTI files, to try the others on.

What it takes from the command line; the work is imported when it is called, since it loads much.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from dicom_node.errors import ConfigError
from dicom_node.folders import cache_folder

_out = Console()
#: normal, lesioned, seed
_Sizes = tuple[int, int, int]
#: heads, lesion masks, a head in their space
_Sources = tuple[Path, Path, Path | None]


def cohort(
    folder: Annotated[Path, typer.Argument(help="Where the files go.")],
    n_normal: Annotated[int, typer.Option("--normal", min=0, help="Subjects without lesion.")] = 10,
    n_lesioned: Annotated[
        int, typer.Option("--lesioned", min=0, help="Subjects with lesions.")
    ] = 4,
    seed: Annotated[int, typer.Option("--seed", help="Another one makes other subjects.")] = 1,
    chest: Annotated[
        Path | None,
        typer.Option(
            help="Folder of one chest CT series (DICOM): makes chests from it instead of heads. A "
            "tumour in an annotation_boxes folder there (PASCAL VOC) is replaced by lung first."
        ),
    ] = None,
    radius_mm: Annotated[
        tuple[float, float],
        typer.Option(min=1.0, max=11.0, help="Least and greatest radius of lesions in heads."),
    ] = (6.5, 11.0),
    shared: Annotated[  # noqa: FBT002 - a flag
        bool, typer.Option("--shared", help="The lesioned made heads all have the same lesion.")
    ] = False,
    heads: Annotated[
        Path | None,
        typer.Option(
            help="Folder of real whole heads, T1-weighted (NIfTI): takes these instead, and plants "
            "lesions of the shapes in --lesion-masks."
        ),
    ] = None,
    lesion_masks: Annotated[
        Path | None,
        typer.Option(help="With --heads: folder of lesion masks in MNI space (NIfTI)."),
    ] = None,
    mni: Annotated[
        Path | None,
        typer.Option(
            help="With --heads: a skull-stripped T1 in that space, and of its size (NIfTI); by "
            "default the built-in template."
        ),
    ] = None,
    contrast: Annotated[
        list[float] | None,
        typer.Option(
            min=0.0,
            max=1.0,
            help="With --heads: how much of the way to the darkness of an infarct. Several are "
            "taken in turn; by default 0.3, 0.5, 0.7, 0.9.",
        ),
    ] = None,
    lesion_ml: Annotated[
        tuple[float, float],
        typer.Option(min=0.0, help="With --heads: least and greatest volume of a lesion."),
    ] = (1.0, 60.0),
) -> None:
    """Write made subjects and their lesions as NIfTI files, to try `score` on.

    Heads from the built-in MR template, or chests from a CT of yours, with a list in lesions.csv;
    or real heads with lesions of real shapes, with that list too.

    Example: dicom-node cohort heads

    Example: dicom-node cohort chests --chest series-folder

    Example: dicom-node cohort strokes --heads t1 --lesion-masks masks
    """
    sizes = (n_normal, n_lesioned, seed)
    if heads or lesion_masks or mni:
        sources = _stroke_sources(chest, heads, lesion_masks, mni)
        _make_strokes(folder, sources, sizes, tuple(contrast or ()), lesion_ml)
    elif chest:
        _make_chests(folder, chest, sizes)
    else:
        _make_heads(folder, sizes, radius_mm, shared=shared)
    preset = " --preset ct" if chest else ""
    _out.print(f"Score them: dicom-node score {folder}{preset}", markup=False, soft_wrap=True)


def _make_heads(
    folder: Path, sizes: _Sizes, radius_mm: tuple[float, float], *, shared: bool
) -> None:
    from dicom_node.demo.cohort import load_template
    from dicom_node.demo.cohort_files import write_cohort

    template = load_template(cache_folder())
    _say_made(write_cohort(template, folder, *sizes, radius_mm, shared=shared), sizes)


def _make_chests(folder: Path, chest: Path, sizes: _Sizes) -> None:
    from dicom_node.demo.chest_cohort import load_chest, write_chests

    _say_made(write_chests(load_chest(chest), folder, *sizes), sizes)


def _stroke_sources(
    chest: Path | None, heads: Path | None, lesion_masks: Path | None, mni: Path | None
) -> _Sources:
    """Return what real heads with lesions are made of; raises ConfigError where a part lacks."""
    if chest:
        raise ConfigError("--chest makes chests, and --heads, --lesion-masks and --mni heads")
    if heads is None or lesion_masks is None:
        raise ConfigError("--heads and --lesion-masks need one another: name both folders")
    return heads, lesion_masks, mni


def _make_strokes(
    folder: Path,
    sources: _Sources,
    sizes: _Sizes,
    contrasts: tuple[float, ...],
    lesion_ml: tuple[float, float],
) -> None:
    # torch and all: the brain is found by a network
    from dicom_node.demo.stroke_cohort import CONTRASTS, StrokePlan, write_strokes

    plan = StrokePlan(*sources, cache_folder(), *sizes, contrasts or CONTRASTS, lesion_ml)
    _say_made(write_strokes(plan, folder, _note), sizes)


def _note(text: str) -> None:
    """Print a line as it is: names of files may hold anything."""
    _out.print(text, markup=False, highlight=False, soft_wrap=True)


def _say_made(made: Iterator[Any], sizes: _Sizes) -> None:
    """Make the subjects of a cohort one after the other, and say so."""
    total = sizes[0] + sizes[1]
    for n, one in enumerate(made, 1):
        _note(f"{n}/{total} {one.name}, lesions: {len(one.lesions)}")
