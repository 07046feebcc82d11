"""Pictures: the anomaly map as a heat map over the source image. numpy and PIL only.

Two kinds: one per source slice, which keeps the slice's geometry so that a viewer can scroll both
together, and one summary page, which shows the volume standing up however it was acquired. Patient
right is at the left of the page, as radiologists look at it.

Window and scale are chosen once per series: a slice must not look brighter than its neighbour
because it was looked at alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dicom_node import __version__
from dicom_node.findings import Finding, LabelMap, ScoreSummary
from dicom_node.objects.drawing import (
    BACKGROUND,
    TEXT,
    Color,
    Picture,
    Scale,
    blend,
    edge_letters,
    finding_color,
    grey_levels,
    legend_strip,
    scale_for,
    wrap,
    write_letters,
    write_text,
)

#: no picture is enlarged beyond this, however narrow it is
_MAX_ENLARGED_PX = 1024
#: the summary: edge of a panel, width of the notes beside three of them, rows after the first
_PANEL_PX = 256
_NOTES_PX = 268
_TOP_FINDINGS = 3
#: characters of the name of a volume that a legend has room for
_NAME = 40


def default_window(voxels: NDArray[np.float32], modality: str) -> tuple[float, float]:
    """Return (center, width) for a volume: by tissue for CT in HU, by percentiles otherwise.

    The source's own window is not used: it may be one slice's, and not every MR has one that fits.
    """
    # a million voxels are enough for percentiles
    sample = voxels.ravel()[:: max(1, voxels.size // 1_000_000)]
    if modality == "CT":
        return _hounsfield_window(sample)
    body = sample[sample > sample.min() + 0.02 * np.ptp(sample)]
    low, high = np.percentile(body if body.size else sample, (1.0, 99.5))
    # air stays black, also where the body fills the field of view
    low = min(float(low), float(np.percentile(sample, 1.0)))
    return (low + float(high)) / 2.0, max(float(high) - low, 1e-3)


def _hounsfield_window(sample: NDArray[np.float32]) -> tuple[float, float]:
    """Choose between lung with soft tissue, body and brain by how much lung and fat there is."""
    # below -950 HU is the air around the patient, up to -500 lung, from -130 to -60 fat
    body = sample[sample > -950.0]
    n_body = max(body.size, 1)
    if np.count_nonzero(body < -500.0) / n_body > 0.10:
        return -250.0, 1500.0
    if np.count_nonzero((body > -130.0) & (body < -60.0)) / n_body > 0.08:
        return 40.0, 400.0
    return 40.0, 100.0


def picture_shape(
    shape: tuple[int, int], spacing_mm: tuple[float, float], min_size_px: int = 384
) -> tuple[int, int]:
    """Return the (rows, columns) of the enlarged picture area: square pixels, nothing shrunk.

    The shorter edge of a small slice becomes `min_size_px`, unless the longer one would pass 1024.
    Rows and columns are whole: pixels are square to within one part in the shorter edge.
    """
    finest = min(spacing_mm)
    height, width = (n * edge / finest for n, edge in zip(shape, spacing_mm, strict=True))
    factor = max(1.0, min(min_size_px / min(height, width), _MAX_ENLARGED_PX / max(height, width)))
    return round(height * factor), round(width * factor)


def legend_lines(score: ScoreSummary, number: int, n_slices: int) -> list[str]:
    """Return the legend of one slice, numbered from 1: no identity of the patient, ever."""
    return [
        f"anomaly score {score.subject_score:.2f}",
        f"percentile {score.percentile:.0f} of {score.n_reference} reference subjects",
        f"dicom_node {__version__}   {score.encoder}",
        f"reference batch {score.batch_version}",
        # the same number of lines on every slice: pictures of one series have one size
        f"slice {number}/{n_slices}" + (f" of {score.part.name[:_NAME]}" if score.part else ""),
    ]


def render_slice(
    pixels2d: NDArray[np.floating],
    map2d: NDArray[np.floating],
    labels2d: LabelMap,
    *,
    window: tuple[float, float],
    threshold: float,
    spacing_mm: tuple[float, float],
    letters: tuple[str, str, str, str],
    legend: Sequence[str],
    peak: float | None = None,
    min_size_px: int = 384,
) -> Picture:
    """(height, width) slices -> (rows + legend, columns, 3) RGB; the legend lies below the picture.

    The first ``picture_shape(...)`` rows show the source area and nothing else, so that they keep
    its geometry.

    Parameters
    ----------
    window
        Centre and width of the grey values, those of the series.
    threshold
        Of the findings; the heat map begins there.
    spacing_mm
        Between rows, between columns.
    letters
        Orientation at (left, right, top, bottom).
    legend
        Lines of text below; the warning is added.
    peak
        Score of the last colour, the slice's own maximum if left out.
    """
    highest = float(np.max(map2d)) if peak is None else peak
    scale = scale_for(threshold, highest)
    shape = picture_shape((pixels2d.shape[0], pixels2d.shape[1]), spacing_mm, min_size_px)
    area = blend(pixels2d, map2d, labels2d, window=window, scale=scale, shape=shape)
    pixel_mm = pixels2d.shape[1] * spacing_mm[1] / shape[1]
    strip = legend_strip(shape[1], legend, scale, pixel_mm)
    return np.concatenate([write_letters(area, letters), strip], axis=0)


# --- summary ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Standing:
    """A volume turned so that its axes run superior -> inferior, anterior -> posterior, R -> L."""

    voxels: NDArray[np.float32]
    scores: NDArray[np.float32]
    labels: LabelMap
    affine: NDArray[np.float64]

    @property
    def spacing_mm(self) -> NDArray[np.float64]:
        """Return the (3,) voxel size."""
        size: NDArray[np.float64] = np.linalg.norm(self.affine[:3, :3], axis=0)
        return size

    @property
    def extent_mm(self) -> float:
        """Return the longest side."""
        return float((self.spacing_mm * self.voxels.shape).max())

    def index(self, point_mm: tuple[float, float, float]) -> tuple[int, int, int]:
        """Return the voxel nearest to an LPS point, the outermost one if it lies outside."""
        place = np.linalg.inv(self.affine) @ np.append(point_mm, 1.0)
        clipped = np.clip(np.round(place[:3]), 0, np.array(self.voxels.shape) - 1).astype(int)
        return int(clipped[0]), int(clipped[1]), int(clipped[2])


@dataclass(frozen=True, slots=True)
class _Style:
    """What all panels of one summary share."""

    window: tuple[float, float]
    scale: Scale
    pixel_mm: float


def _stand(
    voxels: NDArray[np.float32],
    anomaly_map: NDArray[np.float32],
    labels: LabelMap,
    affine: NDArray[np.float64],
) -> _Standing:
    """Permute and flip whole axes (views, no resampling) to the nearest standing position.

    An oblique volume stays oblique: every voxel shown is a voxel that was measured.
    """
    # of the six permutations the one whose axes together point most along z, y and x: of each axis
    # alone two could claim the same patient axis
    cosines = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    order = max(
        permutations(range(3)),
        key=lambda axes: sum(abs(cosines[2 - i, axis]) for i, axis in enumerate(axes)),
    )
    turned = affine.astype(np.float64)
    turned[:3, :3] = affine[:3, list(order)]
    flips = []
    for axis, (patient, wanted) in enumerate(((2, -1), (1, 1), (0, 1))):
        if turned[patient, axis] * wanted < 0:
            flips.append(axis)
            # the last voxel becomes the first, and the axis runs back from it
            turned[:3, 3] += turned[:3, axis] * (voxels.shape[order[axis]] - 1)
            turned[:3, axis] *= -1.0
    return _Standing(
        np.flip(voxels.transpose(order), tuple(flips)),
        np.flip(anomaly_map.transpose(order), tuple(flips)),
        np.flip(labels.transpose(order), tuple(flips)),
        turned,
    )


def render_summary(
    voxels: NDArray[np.float32],
    anomaly_map: NDArray[np.float32],
    labels: LabelMap,
    affine: NDArray[np.float64],
    findings: Sequence[Finding],
    score: ScoreSummary,
    *,
    modality: str = "",
) -> Picture:
    """(depth, height, width) volumes on one grid -> (rows, columns, 3) RGB, one page.

    Projections of the map on top, then three slices through the peak of each of the first findings.
    Columns are axial, coronal, sagittal; superior or anterior is up, patient right is left.

    Parameters
    ----------
    affine
        (4, 4) index -> LPS mm; axes perpendicular, in any order and direction.
    findings
        By rank; the first three are shown.
    modality
        "CT" for values in HU; anything else has an arbitrary unit.
    """
    standing = _stand(voxels, anomaly_map, labels, affine)
    style = _Style(
        default_window(voxels, modality),
        scale_for(score.threshold, float(anomaly_map.max())),
        standing.extent_mm / _PANEL_PX,
    )
    rows = [_row(_projections(standing, style), _overview(findings, score), TEXT)]
    for finding in findings[:_TOP_FINDINGS]:
        panels = _slices_through(standing, finding, style)
        rows.append(_row(panels, _finding_lines(finding), finding_color(finding.rank)))
    title = _title(rows[0].shape[1], score)
    footer = legend_strip(title.shape[1], [], style.scale, style.pixel_mm)
    return np.concatenate([title, *rows, footer], axis=0)


def _title(width: int, score: ScoreSummary) -> Picture:
    """Return the strip that says what this is."""
    image = Image.new("RGB", (width, 52), BACKGROUND)
    of_part = f"   {score.part.name[:_NAME]}" if score.part else ""
    write_text(image, (10, 6), f"dicom_node anomaly summary   {score.protocol}{of_part}", 18)
    columns = ("axial", "coronal", "sagittal")
    for number, name in enumerate(columns):
        write_text(image, (10 + number * (_PANEL_PX + 2), 32), name, 13)
    return np.array(image)


def _row(panels: Sequence[Picture], notes: Sequence[str], color: Color) -> Picture:
    """Set three panels and a column of notes side by side; the first note is in colour."""
    width = 3 * (_PANEL_PX + 2) + _NOTES_PX
    image = Image.new("RGB", (width, _PANEL_PX + 2), BACKGROUND)
    for number, panel in enumerate(panels):
        left = number * (_PANEL_PX + 2) + (_PANEL_PX - panel.shape[1]) // 2
        image.paste(Image.fromarray(panel), (left, (_PANEL_PX - panel.shape[0]) // 2))
    y = 10
    for number, line in enumerate(notes):
        size = 16 if number == 0 else 13
        for part in wrap(line, _NOTES_PX - 20, size):
            ink = color if number == 0 else TEXT
            write_text(image, (3 * (_PANEL_PX + 2) + 10, y), part, size, ink)
            y += size + 5
        y += 4
    return np.array(image)


def _overview(findings: Sequence[Finding], score: ScoreSummary) -> list[str]:
    """Return the notes beside the projections."""
    found = f"{len(findings)} regions" if len(findings) != 1 else "1 region"
    return [
        f"score {score.subject_score:.2f}   percentile {score.percentile:.0f}",
        f"of {score.n_reference} reference subjects",
        f"{found if findings else 'no region'} above threshold {score.threshold:g}",
        f"reference batch {score.batch_version}",
        f"encoder {score.encoder}   dicom_node {__version__}",
        f"scored {score.scored_at:%Y-%m-%d %H:%M %Z}",
        "this row: highest score along each direction, over the mean image",
    ]


def _finding_lines(finding: Finding) -> list[str]:
    """Return the notes beside the slices of a finding; the place in words, with L, P, S or R, A, I.

    LPS coordinates without their letters would be read as indices or as RAS.
    """
    places = (
        f"{abs(value):.0f} mm {'RAI'[axis] if value < 0 else 'LPS'[axis]}"
        for axis, value in enumerate(finding.peak_mm)
    )
    return [
        f"#{finding.rank}   score {finding.max_score:.2f}",
        f"mean score {finding.mean_score:.2f}",
        f"volume {finding.volume_ml:.2f} ml",
        f"largest extent {finding.diameter_mm:.0f} mm",
        f"peak at {', '.join(places)}",
    ]


def _plane(axis: int) -> tuple[int, int]:
    """Return the axes that run down and to the right in a picture across an axis."""
    down, right = (other for other in range(3) if other != axis)
    return down, right


def _panel(
    standing: _Standing,
    axis: int,
    style: _Style,
    layers: tuple[NDArray[np.float32], NDArray[np.float32], LabelMap],
) -> Picture:
    """Draw the (rows, columns) layers across an axis: grey values, scores, ranks; one mm scale."""
    down, right = _plane(axis)
    grey, scores, labels = layers
    spacing = standing.spacing_mm
    rows, columns = (
        max(1, round(n * spacing[which] / style.pixel_mm))
        for n, which in zip(grey.shape, (down, right), strict=True)
    )
    picture = blend(
        grey, scores, labels, window=style.window, scale=style.scale, shape=(rows, columns)
    )
    return write_letters(
        picture, edge_letters(standing.affine[:3, down], standing.affine[:3, right])
    )


def _slices_through(standing: _Standing, finding: Finding, style: _Style) -> list[Picture]:
    """Return the three slices through a finding's peak."""
    panels = []
    for axis, index in enumerate(standing.index(finding.peak_mm)):
        layers = (
            np.moveaxis(standing.voxels, axis, 0)[index],
            np.moveaxis(standing.scores, axis, 0)[index],
            np.moveaxis(standing.labels, axis, 0)[index],
        )
        panels.append(_panel(standing, axis, style, layers))
    return panels


def _projections(standing: _Standing, style: _Style) -> list[Picture]:
    """Return the maximum of the map over the dimmed mean image, along each axis."""
    panels = []
    for axis in range(3):
        mean = standing.voxels.mean(axis=axis, dtype=np.float32)
        low, high = (float(edge) for edge in np.percentile(mean, (1.0, 99.5)))
        dimmed = 0.6 * grey_levels(mean, ((low + high) / 2.0, max(high - low, 1e-3)))
        peak = standing.scores.max(axis=axis)
        nothing = np.zeros(peak.shape, dtype=np.uint8)
        # grey levels already: the window leaves them as they are
        flat = _Style((127.5, 255.0), style.scale, style.pixel_mm)
        panels.append(_panel(standing, axis, flat, (dimmed.astype(np.float32), peak, nothing)))
    return panels
