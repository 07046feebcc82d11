"""Named methods: ours for MR and for CT, and the predecessor's recipe to measure against."""

from __future__ import annotations

from collections.abc import Callable

from dicom_node.anomaly.spec import (
    ALIGNED_SEARCH,
    ANALOGUE_SEARCH,
    GridSpec,
    IntensitySpec,
    MethodSpec,
    ScaleSpec,
    ScoringSpec,
    TokenSpec,
)
from dicom_node.anomaly.tokens import default_scales


def preset(name: str, layers: tuple[int, ...], depth: int) -> MethodSpec:
    """Return the method called `name`: "mr", "ct" or "published".

    Parameters
    ----------
    layers
        The encoder's useful blocks, as its weights' card says.
    depth
        Number of blocks of the encoder.

    Raises
    ------
    ValueError
        There is no preset of that name; the message lists them.
    """
    if name not in PRESETS:
        raise ValueError(f"there is no preset {name!r}; known: {', '.join(PRESETS)}")
    return PRESETS[name](layers, depth)


def _mr(layers: tuple[int, ...], _depth: int) -> MethodSpec:
    """Heads in one space: coarse and fine tokens, calibrated by place."""
    return MethodSpec(
        GridSpec((168.0, 196.0, 168.0), 1.0),
        TokenSpec(default_scales(layers)),
        search=ALIGNED_SEARCH,
    )


def _ct(layers: tuple[int, ...], _depth: int) -> MethodSpec:
    """Lungs that lie in no common space: fine tokens alone, calibrated by their analogues.

    With tokens of 14 mm beside them, less was found in every measure: what is looked for is small.
    """
    return MethodSpec(
        GridSpec((336.0, 280.0, 364.0), 1.0),
        TokenSpec(default_scales(layers)[-1:]),
        IntensitySpec("hounsfield", (-600.0, 1500.0)),
        search=ANALOGUE_SEARCH,
        scoring=ScoringSpec(calibration="analogue"),
    )


def _published(_layers: tuple[int, ...], depth: int) -> MethodSpec:
    """CoDeGraph3D as printed (arXiv 2602.15315, sections 3.1 and 4.1), without its graph filter.

    156 mm cubed on a 224^3 grid, all 14 slices of a block encoded whole and averaged, four layers
    (at each quarter of the encoder's depth), 128 dimensions per axis, the nearest tenth of the
    other subjects, the mean over the layers, no calibration, no smoothing, the highest token as the
    subject score. The encoder is the configured one: the paper's is a DINOv2 ViT-L/14.
    """
    quarters = tuple(depth * quarter // 4 - 1 for quarter in (1, 2, 3, 4))
    return MethodSpec(
        GridSpec((156.0, 156.0, 156.0), 156.0 / 224.0),
        TokenSpec(
            (ScaleSpec(upsampling=1, slices_per_token=14, layers=quarters),),
            min_foreground=0.0,
            whole_slices=True,
        ),
        scoring=ScoringSpec(
            nearest_share=0.1, calibration="none", smoothing_mm=0.0, subject_share=0.0
        ),
    )


PRESETS: dict[str, Callable[[tuple[int, ...], int], MethodSpec]] = {
    "mr": _mr,
    "ct": _ct,
    "published": _published,
}
