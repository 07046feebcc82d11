"""Signatures of usual series, changed at will, and headers of them."""

from dicom_node.signature import Signature

HEAD_T1 = {
    "modality": "MR",
    "body_part": "HEAD",
    "scanning_sequence": ("GR", "IR"),
    "sequence_variant": ("MP", "SK", "SP"),
    "image_type": ("ORIGINAL", "M"),
    "contrast_agent": False,
    "echo_time_ms": 2.4,
    "repetition_time_ms": 1900.0,
    "inversion_time_ms": 900.0,
    "kvp": None,
    "kernel": None,
    "orientation": "sagittal",
    "spacing_mm": (1.0, 1.0),
    "slice_spacing_mm": 1.0,
    "field_strength_t": 3.0,
}
CHEST_CT = {
    "modality": "CT",
    "body_part": "CHEST",
    "scanning_sequence": (),
    "sequence_variant": (),
    "image_type": ("ORIGINAL", "AXIAL"),
    "contrast_agent": False,
    "echo_time_ms": None,
    "repetition_time_ms": None,
    "inversion_time_ms": None,
    "kvp": 120.0,
    "kernel": "LUNG",
    "orientation": "axial",
    "spacing_mm": (0.75, 0.75),
    "slice_spacing_mm": 1.5,
    "field_strength_t": None,
}


def head_t1(**changes):
    """An MPRAGE at 3 T."""
    return Signature(**(HEAD_T1 | changes))


def chest_ct(**changes):
    """A native chest CT in the lung kernel."""
    return Signature(**(CHEST_CT | changes))


def spin_echo(echo_ms, repetition_ms, **changes):
    """A 2D spin echo of a head."""
    times = {"echo_time_ms": echo_ms, "repetition_time_ms": repetition_ms}
    kind = {"scanning_sequence": ("SE",), "sequence_variant": (), "inversion_time_ms": None}
    return head_t1(**(times | kind | changes))
