"""How a picture is drawn: colours, outlines, letters, bars. numpy and PIL only.

Pictures are (rows, columns, 3) uint8 RGB. Nothing of the patient's identity reaches them: they are
burned in, and no de-identification downstream would find it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from dicom_node.errors import ObjectError
from dicom_node.findings import LabelMap
from dicom_node.identity import RESEARCH_ONLY

Picture = NDArray[np.uint8]
Color = tuple[int, int, int]

BACKGROUND: Color = (12, 14, 18)
TEXT: Color = (225, 228, 232)
WARNING: Color = (255, 196, 64)
#: heat map from the threshold to the top: luminance rises all the way, so it survives grey printing
_HEAT_POINTS = np.array(
    [(92, 16, 100), (158, 28, 104), (212, 54, 72), (242, 106, 36), (250, 172, 40), (252, 244, 150)]
)
#: outlines: cool colours, so that they stand off the warm heat map
_FINDING_COLORS: tuple[Color, ...] = (
    (0, 229, 255),
    (118, 255, 122),
    (120, 160, 255),
    (255, 128, 255),
    (255, 255, 255),
)
#: opacity of the heat map at the threshold and at the top: the anatomy shows through
_ALPHA = (0.30, 0.75)
#: margin of the legend, pixels
_PAD = 8
#: width of the dark rim of letters, pixels
_RIM = 2


def finding_color(rank: int) -> Color:
    """Return the RGB colour of a finding of rank 1 or more, the same in every object.

    From the sixth rank on colours repeat; the number beside the outline does not.
    """
    return _FINDING_COLORS[(rank - 1) % len(_FINDING_COLORS)]


def heat_table() -> Picture:
    """Return the (256, 3) colour table of the heat map, of strictly rising luminance."""
    at = np.linspace(0.0, 1.0, len(_HEAT_POINTS))
    steps = np.linspace(0.0, 1.0, 256)
    channels = [np.interp(steps, at, _HEAT_POINTS[:, channel]) for channel in range(3)]
    return np.round(np.stack(channels, axis=1)).astype(np.uint8)


_HEAT = heat_table()


@dataclass(frozen=True, slots=True)
class Scale:
    """How scores become colours; one for all slices of a series."""

    #: nothing is drawn below
    threshold: float
    #: the last colour and everything above
    top: float

    def share(self, scores: NDArray[np.floating]) -> NDArray[np.float64]:
        """Return 0 at the threshold, 1 at the top, clipped; of the shape of `scores`."""
        span = max(self.top - self.threshold, 1e-9)
        return np.clip((np.asarray(scores, dtype=np.float64) - self.threshold) / span, 0.0, 1.0)


def scale_for(threshold: float, peak: float) -> Scale:
    """Return the scale up to the peak, but never so short that a marginal score glows.

    At least as long again as the threshold is high: the last colour means twice the threshold or
    more, in every series.
    """
    return Scale(threshold, max(peak, threshold + max(abs(threshold), 1e-3)))


def grey_levels(pixels: NDArray[np.floating], window: tuple[float, float]) -> Picture:
    """(height, width) values -> 0..255 through a linear window.

    The centre of the window becomes mid-grey, as LINEAR_EXACT has it, without the half units of
    LINEAR (PS3.3 C.11.2.1.3).
    """
    center, width = window
    share = (np.asarray(pixels, dtype=np.float64) - center) / max(width, 1e-6) + 0.5
    return np.round(np.clip(share, 0.0, 1.0) * 255.0).astype(np.uint8)


def resized(array: NDArray[np.generic], shape: tuple[int, int]) -> NDArray[np.float32]:
    """(height, width) -> shape, linear, area to area: pixel edges stay where they are.

    Both grids cover the same rectangle, so that the centre of the first pixel moves and its outer
    corner does not. Where the picture is smaller, all source pixels under a target pixel count.
    """
    image = Image.fromarray(np.ascontiguousarray(array, dtype=np.float32))
    resized = image.resize((shape[1], shape[0]), Image.Resampling.BILINEAR)
    return np.asarray(resized, dtype=np.float32)


def blend(
    pixels2d: NDArray[np.floating],
    map2d: NDArray[np.floating],
    labels2d: LabelMap,
    *,
    window: tuple[float, float],
    scale: Scale,
    shape: tuple[int, int],
) -> Picture:
    """(height, width) slices -> (rows, columns, 3): grey, heat map, outlines and rank numbers.

    Scores below the threshold of `scale` leave the source grey as it is, whatever the finding.
    """
    # windowed before it is enlarged: one bright voxel must not spread over its dark neighbours
    grey = resized(grey_levels(pixels2d, window), shape)
    scores = resized(map2d, shape)
    share = scale.share(scores)
    low, high = _ALPHA
    alpha = np.where(scores >= scale.threshold, low + (high - low) * share, 0.0)[..., None]
    heat = _HEAT[np.round(share * 255.0).astype(np.intp)].astype(np.float64)
    mixed = grey[..., None] * (1.0 - alpha) + heat * alpha
    picture: Picture = np.clip(np.round(mixed), 0, 255).astype(np.uint8)
    return _outlined(picture, labels2d)


def _outlined(picture: Picture, labels2d: LabelMap) -> Picture:
    """Draw the outline and the rank of each finding in the slice; ranks last, over all outlines."""
    ranks = [int(rank) for rank in np.unique(labels2d) if rank]
    places = []
    for rank in ranks:
        share = resized(labels2d == rank, (picture.shape[0], picture.shape[1]))
        # a region of one voxel survives a smaller picture
        mask = share >= min(0.5, 0.5 * float(share.max()))
        picture[_rim(mask)] = finding_color(rank)
        places.append((rank, mask))
    image = Image.fromarray(picture)
    for rank, mask in places:
        _write_rank(image, rank, mask)
    return np.array(image)


def _rim(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return the pixels just outside a mask: the heat map below stays visible."""
    padded = np.pad(mask, 1)
    near = padded[:-2, 1:-1] | padded[2:, 1:-1] | padded[1:-1, :-2] | padded[1:-1, 2:]
    result: NDArray[np.bool_] = near & ~mask
    return result


def _write_rank(image: Image.Image, rank: int, mask: NDArray[np.bool_]) -> None:
    """Write the rank beside the upper right corner of the outline, inside the picture."""
    rows, columns = np.nonzero(mask)
    if not rows.size:
        return
    x = min(int(columns.max()) + 5, image.width - 22)
    y = max(int(rows.min()) - 16, 2)
    write_text(image, (x, y), str(rank), 16, finding_color(rank))


def write_text(
    image: Image.Image, at: tuple[float, float], text: str, size: int, color: Color = TEXT
) -> None:
    """Write into `image`, with a dark rim, to be read on any ground.

    `at` is the upper left corner as (x, y); text that leaves the image is cut off there.
    """
    if text:
        stamp = _stamp(text, size, color)
        image.paste(stamp, (round(at[0]) - _RIM, round(at[1]) - _RIM), stamp)


@lru_cache(maxsize=512)
def _stamp(text: str, size: int, color: Color) -> Image.Image:
    """Return the text on a transparent ground; a legend is the same on hundreds of slices."""
    font = _font(size)
    right, bottom = font.getbbox(text, stroke_width=_RIM)[2:]
    stamp = Image.new("RGBA", (round(right) + 2 * _RIM, round(bottom) + 2 * _RIM))
    ImageDraw.Draw(stamp).text(
        (_RIM, _RIM), text, fill=color, font=font, stroke_width=_RIM, stroke_fill=(0, 0, 0)
    )
    return stamp


@cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    """Return PIL's own font, so that a picture is the same on every machine."""
    font = ImageFont.load_default(size)
    if not isinstance(font, ImageFont.FreeTypeFont):
        raise ObjectError("Pillow was built without FreeType: no legend can be written")
    return font


def direction_letter(vector: NDArray[np.floating]) -> str:
    """Return where a (3,) LPS direction mostly points: R, L, A, P, S or I."""
    axis = int(np.abs(vector).argmax())
    return ("RL", "AP", "IS")[axis][int(vector[axis] > 0)]


def edge_letters(
    down: NDArray[np.floating], right: NDArray[np.floating]
) -> tuple[str, str, str, str]:
    """Return the letters at (left, right, top, bottom) of a picture.

    `down` and `right` are (3,) LPS directions in which its rows and its columns follow each other.
    """
    return (
        direction_letter(-right),
        direction_letter(right),
        direction_letter(-down),
        direction_letter(down),
    )


def write_letters(picture: Picture, letters: tuple[str, str, str, str]) -> Picture:
    """Write the orientation letters at the middles of the edges; the picture given is kept."""
    image = Image.fromarray(picture)
    width, height, size = image.width, image.height, 16
    places = (
        (4, height / 2 - size / 2),
        (width - size + 2, height / 2 - size / 2),
        (width / 2 - size / 2, 2),
        (width / 2 - size / 2, height - size - 6),
    )
    for place, letter in zip(places, letters, strict=True):
        write_text(image, place, letter, size)
    return np.array(image)


def legend_strip(width: int, lines: Sequence[str], scale: Scale, pixel_mm: float) -> Picture:
    """Return (rows, width, 3): colour bar, scale bar, the lines, the warning.

    Parameters
    ----------
    lines
        Wrapped where they are wider: nothing is cut off, and the strip grows.
    pixel_mm
        Size of a pixel of the picture above, for the scale bar.
    """
    # the warning is not an option: no picture leaves the node without it
    wrapped = [part for line in lines for part in wrap(line, width - 2 * _PAD, 13)]
    warning = wrap(RESEARCH_ONLY, width - 2 * _PAD, 15)
    height = 48 + 18 * len(wrapped) + 21 * len(warning) + _PAD
    image = Image.new("RGB", (width, height), BACKGROUND)
    _color_bar(image, (_PAD, 8), min(160, width // 2 - 2 * _PAD), scale)
    _scale_bar(image, width, pixel_mm)
    y = 46
    for line in wrapped:
        write_text(image, (_PAD, y), line, 13)
        y += 18
    for line in warning:
        write_text(image, (_PAD, y), line, 15, WARNING)
        y += 21
    return np.array(image)


def wrap(line: str, width: int, size: int) -> list[str]:
    """Break a line at spaces, and inside a word that is too long, so that it fits the width.

    Batch versions and encoder names have no spaces. No character but a space at a break is lost.
    """
    font = _font(size)
    done, current = [], ""
    for word in line.split(" "):
        joined = f"{current} {word}" if current else word
        if font.getlength(joined) <= width:
            current = joined
            continue
        if current:
            done.append(current.rstrip())
        current = word
        while font.getlength(current) > width and len(current) > 1:
            # an estimate from the mean width of a character, one less to be safe, at least one
            n_fit = max(1, int(len(current) * width / font.getlength(current)) - 1)
            done.append(current[:n_fit])
            current = current[n_fit:]
    return [*done, current.rstrip()] if current.strip() else done


def _color_bar(image: Image.Image, at: tuple[int, int], width: int, scale: Scale) -> None:
    """Draw the colour table with its scores."""
    ramp = np.linspace(0, 255, width).round().astype(np.intp)
    bar = np.repeat(_HEAT[ramp][None], 12, axis=0)
    image.paste(Image.fromarray(bar), at)
    y = at[1] + 15
    top = f"{scale.top:.1f}"
    write_text(image, (at[0], y), f"{scale.threshold:.1f}", 12)
    write_text(image, (at[0] + width - _font(12).getlength(top), y), top, 12)
    write_text(image, (at[0] + width / 2 - 14, y), "score", 12)


def _scale_bar(image: Image.Image, width: int, pixel_mm: float) -> None:
    """Draw a round length of at most two fifths of the width, at the right; 1 mm at the least."""
    room = 0.4 * width * pixel_mm
    length = next((mm for mm in (100, 50, 20, 10, 5, 2) if mm <= room), 1)
    n_pixels = length / pixel_mm
    draw = ImageDraw.Draw(image)
    left, right = width - _PAD - n_pixels, width - _PAD
    draw.line([(left, 18), (right, 18)], fill=TEXT, width=2)
    for x in (left, right):
        draw.line([(x, 12), (x, 24)], fill=TEXT, width=2)
    label = f"{length} mm"
    write_text(image, (right - _font(12).getlength(label), 24), label, 12)
