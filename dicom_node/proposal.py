"""What a site could write for a group of series that no rule claims: a name and a ``[[protocol]]``.

A proposal is read by a person before it counts. It is in shadow mode: whatever it claims is scored
and recorded, and nothing is sent.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Container
from dataclasses import dataclass

from dicom_node.protocol_config import Protocol
from dicom_node.signature import DEFAULT_TOLERANCES, Signature, Tolerances

#: names of protocols are no longer (`protocol_config.Protocol`)
_LONGEST_NAME = 40
#: regions in which subjects can be laid over one another, so that a place means something
_ALIGNED = {"HEAD"}
#: what fits into 168 mm: an extremity's field of view
_SMALL = {"KNEE", "ANKLE", "FOOT", "WRIST", "HAND", "ELBOW", "CSPINE", "NECK"}
#: extent and voxel of the canonical grid, mm: of a head or an extremity, of lungs, and of a trunk
_SMALL_GRID = ((168.0, 196.0, 168.0), 1.0)
_LUNG_GRID = ((336.0, 280.0, 364.0), 1.0)
_TRUNK_GRID = ((392.0, 392.0, 392.0), 2.0)
#: centre and width in HU, as a radiologist sets them for the region
_WINDOWS_HU = {"HEAD": (40.0, 80.0), "CHEST": (-600.0, 1500.0)}
_SOFT_TISSUE_HU = (40.0, 400.0)
#: vendors' words for a kernel -> what it is for; the first that fits speaks
_KERNELS = {
    # GE LUNG, Siemens Bl57, Philips L, Canon FC50 to FC59
    "lung": r"LUNG|BL\d.*|L|FC5\d",
    # GE BONE and BONEPLUS, Canon FC30 to FC35
    "bone": r"BONE.*|FC3[0-5]",
    # Siemens from 50 on (B70f, Br59), Philips D and E
    "sharp": r"EDGE|[A-Z]{1,2}[5-9]\d[A-Z]*|[DE]",
    # Siemens below 50, Canon FC01 to FC29, Philips A to C
    "soft": r"SOFT|STANDARD|STND|[A-Z]{1,2}[0-4]\d[A-Z]*|[ABC]",
}
#: third value of the Image Type of an enhanced MR image (PS3.3 C.8.16.1.3) -> weighting
_FLAVOURS = {
    "T1": "t1",
    "T2": "t2",
    "T2_STAR": "t2s",
    "PROTON_DENSITY": "pd",
    "STIR": "stir",
    "FLUID_ATTENUATED": "flair",
    "DIFFUSION": "dwi",
    "FMRI": "epi",
    "ADC": "adc",
}


@dataclass(frozen=True, slots=True)
class Setting:
    """What a proposal takes from the node that it is for."""

    #: edge of its coarsest token in canonical voxels; each side of a grid is a multiple of it
    token_edge: int = 14
    #: least number of other patients that a study is compared with
    min_reference: int = Protocol.model_fields["min_reference"].default


DEFAULT_SETTING = Setting()


# --- the name -----------------------------------------------------------------------------------


def proposed_name(signature: Signature) -> str:
    """Return a name for a protocol, like ``mr-head-t1-axial-1mm`` or ``ct-chest-lung-1_5mm``.

    It has the form that `protocol_config.Protocol` wants: lower case, at most 40 characters, and
    ``_`` for a decimal point. The plane of a CT is named where it is not axial. Two groups may get
    one name: see `unused_name`.
    """
    is_ct = signature.modality == "CT"
    look = kernel_kind(signature.kernel) if is_ct else weighting(signature)
    slices_mm = signature.slice_spacing_mm
    rest = [
        _slug(look)[:8],
        "contrast" if signature.contrast_agent else "",
        "" if is_ct and signature.orientation == "axial" else signature.orientation or "",
        f"{round(slices_mm, 1 if slices_mm >= 2 else 2):g}mm".replace(".", "_"),
    ]
    tail = "-".join(word for word in rest if word)
    # the region gives way: the thickness tells more of two protocols of one region
    room = max(0, _LONGEST_NAME - len(f"{signature.modality}--{tail}"))
    words = (signature.modality, _slug(signature.body_part)[:room], tail)
    return "-".join(word for word in words if word).lower()


def unused_name(name: str, taken: Container[str]) -> str:
    """Return `name`, with a number behind it where it is taken."""
    found, number = name, 2
    while found in taken:
        end = f"-{number}"
        found, number = name[: _LONGEST_NAME - len(end)].rstrip("-_") + end, number + 1
    return found


def _slug(word: str | None) -> str:
    """Return the letters and digits of a word."""
    return re.sub(r"[^A-Za-z0-9]", "", word or "")


def kernel_kind(kernel: str | None) -> str:
    """Return what a convolution kernel is for: "lung", "bone", "soft", or the kernel itself."""
    first = (kernel or "").split("-")[0]
    for kind, pattern in _KERNELS.items():
        if re.fullmatch(pattern, first):
            return kind
    return first


def weighting(signature: Signature) -> str:
    """Return the contrast of an MR series as a radiologist reads it off its times; "" if unclear.

    One of t1, t2, pd, t2s (T2*), flair, stir, dwi, epi (BOLD and perfusion) and adc; what an
    enhanced image says itself goes first. It names things and decides nothing: of TE, TR and TI
    alone it is a guess, and flip angles and preparation pulses are not looked at.

    References
    ----------
    The bounds are those of textbook protocols at 1.5 and 3 T: T1 by a short TR and TE, T2 by a long
    one of each, density by a long TR and a short TE; TI near 0.69 T1 of what is to vanish, so
    2 to 2.5 s for fluid and 150 to 220 ms for fat.
    """
    kinds = set(signature.scanning_sequence)
    echo = signature.echo_time_ms or 0.0
    stated = _FLAVOURS.get(signature.image_type[-1] if signature.image_type else "")
    if stated:
        return stated
    if "EP" in kinds:
        return "dwi" if echo >= 50 else "epi"
    prepared = _by_inversion(echo, signature.inversion_time_ms)
    if prepared:
        return prepared
    if not echo or not signature.repetition_time_ms:
        return ""
    is_gradient = "GR" in kinds or ("SE" not in kinds and signature.repetition_time_ms < 200)
    by_times = _of_gradient_echo if is_gradient else _of_spin_echo
    return by_times(echo, signature.repetition_time_ms)


def _by_inversion(echo_ms: float, inversion_ms: float | None) -> str:
    """Return what an inversion pulse makes of the contrast; "" where there is none."""
    if inversion_ms is None or not echo_ms:
        return ""
    if inversion_ms <= 300:
        return "stir"
    # at 0.064 T fluid vanishes after 1.4 s
    return "flair" if inversion_ms >= 1300 and echo_ms >= 60 else "t1"


def _of_spin_echo(echo_ms: float, repetition_ms: float) -> str:
    """Read TE and TR of a spin echo."""
    if repetition_ms <= 1200:
        return "t1" if echo_ms <= 40 else ""
    return "t2" if echo_ms >= 60 else "pd"


def _of_gradient_echo(echo_ms: float, repetition_ms: float) -> str:
    """Read TE and TR of a gradient echo."""
    if echo_ms >= 12:
        return "t2s"
    return "t1" if repetition_ms <= 400 else "pd"


# --- the rule -----------------------------------------------------------------------------------


def toml(
    signature: Signature,
    name: str,
    tolerances: Tolerances = DEFAULT_TOLERANCES,
    setting: Setting = DEFAULT_SETTING,
) -> str:
    """Return a ``[[protocol]]`` that claims the series of `signature`, ready for ``config.toml``.

    It asks for what the header says in the attribute that rules look at (`protocol_config.Match`),
    numbers within tolerance: what was inferred is left out, for no rule would find it. A comment
    names the word that Series Description may hold, should other series fit too.

    Parameters
    ----------
    name
        As `proposed_name` makes it; anything that `protocol_config.Protocol` takes.
    setting
        Of the node; the default one has the packaged weights.
    """
    lines = ["[[protocol]]", f"name = {_quoted(name)}", 'mode = "shadow"']
    lines += [*_reference(setting), *_method(signature, setting.token_edge)]
    lines += ["", "[protocol.match]", f"modality = {_quoted(signature.modality)}"]
    if signature.body_part_as_sent:
        lines.append(f"body_part = {_quoted(signature.body_part_as_sent)}")
    if signature.scanning_sequence and "scanning_sequence" not in dict(signature.inferred):
        lines.append(
            f"scanning_sequence = [{', '.join(map(_quoted, signature.scanning_sequence))}]"
        )
    lines.append(f"contrast_agent = {str(signature.contrast_agent).lower()}")
    # a rule names the nearest plane, of which an oblique stack is none
    if signature.orientation not in {None, "oblique"}:
        lines.append(f"orientation = {_quoted(str(signature.orientation))}")
    lines.append(
        f"slice_spacing_mm = {_range(signature.slice_spacing_mm, tolerances.slice_spacing)}"
    )
    return "\n".join([*lines, *_contrast(signature, tolerances), *_hints(signature)]) + "\n"


def _contrast(signature: Signature, tolerances: Tolerances) -> list[str]:
    """Return the keys that ask for what shapes the contrast, as far as the header says it."""
    echo = signature.echo_time_ms or 0.0
    # the floor as a share, so that all numbers have one rule
    echo_share = max(tolerances.echo_time, tolerances.echo_time_floor_ms / (echo + 1e-6))
    numbers = (
        ("echo_time_ms", signature.echo_time_ms, min(echo_share, 0.5)),
        ("repetition_time_ms", signature.repetition_time_ms, tolerances.repetition_time),
        ("inversion_time_ms", signature.inversion_time_ms, tolerances.inversion_time),
        ("field_strength_t", signature.field_strength_t, tolerances.field_strength),
        ("kvp", signature.kvp, tolerances.kvp),
    )
    lines = [f"{name} = {_range(found, share)}" for name, found, share in numbers if found]
    if signature.b_value is not None:
        spread = max(tolerances.b_value * signature.b_value, tolerances.b_value_floor)
        low, high = max(0.0, signature.b_value - spread), signature.b_value + spread
        lines.append(f"b_value = [{low:.6g}, {high:.6g}]")
    if signature.kernel:
        lines.append(f"kernel = {_quoted(f'^{re.escape(signature.kernel)}$')}")
    return lines


def _quoted(text: str) -> str:
    """Return a TOML basic string: JSON's, but for DEL, and without its pairs for one character."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007F")


def _range(found: float, share: float) -> str:
    """Return [smallest, largest] within a share of the larger value, rounded outwards."""
    low = math.floor(found * (1 - share) * 100) / 100
    high = math.ceil(found / (1 - share) * 100) / 100
    return f"[{low}, {high}]"


def _reference(setting: Setting) -> list[str]:
    """Return how large its batch has to be, where that differs from the default."""
    usual = DEFAULT_SETTING.min_reference
    wanted = setting.min_reference
    return [] if wanted == usual else [f"min_reference = {wanted}"]


def _method(signature: Signature, token_edge: int) -> list[str]:
    """Return the keys that say how it is scored, where they differ from the defaults.

    As the presets of batch mode: heads are compared place by place, what cannot be laid over one
    another with its analogues, on a grid that holds a trunk; of a chest CT the lungs, in detail.
    """
    lines = []
    part = signature.body_part or ""
    if "body_part" in dict(signature.inferred) and re.fullmatch(r"[A-Z0-9]{1,16}", part):
        lines.append(f'body_part = "{part}"   # for results: the source names none')
    if signature.modality == "CT":
        centre, width = _WINDOWS_HU.get(part, _SOFT_TISSUE_HU)
        lines += ['intensity = "hounsfield"', f"window_hu = [{centre}, {width}]"]
    if part in _ALIGNED:
        return [*lines, *_grid(_SMALL_GRID, token_edge)]
    lines.append('calibration = "analogue"')
    if signature.modality == "CT" and part == "CHEST":
        lines += ['foreground = "lung"', "scales = [{ upsampling = 2 }]"]
        return [*lines, *_grid(_LUNG_GRID, token_edge)]
    return [*lines, *_grid(_SMALL_GRID if part in _SMALL else _TRUNK_GRID, token_edge)]


def _grid(grid: tuple[tuple[float, float, float], float], token_edge: int) -> list[str]:
    """Return the keys of a canonical grid whose sides are whole tokens, as near as they come."""
    sides, spacing_mm = grid
    edge_mm = token_edge * spacing_mm
    extent = [max(1, round(side / edge_mm)) * edge_mm for side in sides]
    lines = []
    if tuple(extent) != Protocol.model_fields["extent_mm"].default:
        lines.append(f"extent_mm = {extent}")
    if spacing_mm != Protocol.model_fields["spacing_mm"].default:
        lines.append(f"spacing_mm = {spacing_mm}")
    return lines


def _hints(signature: Signature) -> list[str]:
    """Return comments that help a person to narrow the rule."""
    lines = []
    if not signature.body_part_as_sent:
        lines.append("# the rule does not ask for Body Part Examined: it claims every region")
    if signature.modality == "MR":
        word = weighting(signature) or "..."
        lines += ["# if other series fit too, add", f'# series_description = "{word}"']
    return lines
