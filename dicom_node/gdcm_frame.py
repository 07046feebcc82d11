"""One frame decoded by GDCM, in this process or in one of its own.

On damaged JPEG-LS GDCM throws what no binding catches, and the whole process is aborted; yet it
reads some JPEG-LS of real scanners that the better decoder refuses. There it works apart: a process
a frame, which costs 0.2 s and is rare.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import gdcm

if TYPE_CHECKING:
    from pydicom.pixels.decoders.base import DecodeRunner

_TIMEOUT_S = 60.0


@dataclass(frozen=True, slots=True)
class FrameFormat:
    """What GDCM needs to know of a frame (PS3.3 C.7.6.3)."""

    transfer_syntax_uid: str
    rows: int
    columns: int
    samples: int
    photometric: str
    bits_allocated: int
    bits_stored: int
    pixel_representation: int


def decode(form: FrameFormat, codestream: bytes) -> bytes:
    """Decode one codestream to native pixels, samples of a pixel side by side."""
    fragment, fragments = gdcm.Fragment(), gdcm.SequenceOfFragments.New()
    fragment.SetByteStringValue(codestream)
    fragments.AddFragment(fragment)
    element = gdcm.DataElement(gdcm.Tag(0x7FE0, 0x0010))
    element.SetValue(fragments.__ref__())
    image = gdcm.Image()
    image.SetNumberOfDimensions(2)
    image.SetDimensions((form.columns, form.rows, 1))
    image.SetDataElement(element)
    kind = gdcm.PhotometricInterpretation.GetPIType(form.photometric)
    image.SetPhotometricInterpretation(gdcm.PhotometricInterpretation(kind))
    syntax = gdcm.TransferSyntax.GetTSType(form.transfer_syntax_uid)
    image.SetTransferSyntax(gdcm.TransferSyntax(syntax))
    bits, sign = (form.bits_allocated, form.bits_stored), form.pixel_representation
    image.SetPixelFormat(gdcm.PixelFormat(form.samples, *bits, form.bits_stored - 1, sign))
    # GDCM returns bytes as text
    return bytes(image.GetBuffer().encode("utf-8", "surrogateescape"))


def decode_apart(form: FrameFormat, codestream: bytes) -> bytes:
    """Decode as `decode` does, in a process of its own; raises RuntimeError where that fails."""
    command = [sys.executable, "-m", "dicom_node.gdcm_frame"]
    question = json.dumps(asdict(form)).encode() + b"\n" + codestream
    try:
        done = subprocess.run(  # noqa: S603 - our own module
            command, input=question, capture_output=True, timeout=_TIMEOUT_S, check=True
        )
    except subprocess.SubprocessError as error:
        raise RuntimeError("GDCM cannot decode the frame") from error
    return done.stdout


# --- as a decoder of pydicom --------------------------------------------------------------------


def is_available(_uid: str) -> bool:
    """Say, as pydicom asks of its plugins, that it can be used."""
    return True


def decode_jpeg_ls(codestream: bytes, runner: DecodeRunner) -> bytes:
    """Decode a JPEG-LS frame apart, and tell the runner how its samples lie."""
    stored = int(runner.get_option("jls_precision", runner.bits_stored))
    runner.set_option("planar_configuration", 0)
    runner.set_option("bits_allocated", 8 if stored <= 8 else 16)
    form = FrameFormat(
        str.__str__(runner.transfer_syntax),
        runner.rows,
        runner.columns,
        runner.samples_per_pixel,
        str(runner.photometric_interpretation),
        runner.bits_allocated,
        stored,
        runner.pixel_representation,
    )
    return decode_apart(form, codestream)


def main() -> None:
    """Decode what standard input holds: a line of JSON, then the codestream."""
    form = FrameFormat(**json.loads(sys.stdin.buffer.readline()))
    sys.stdout.buffer.write(decode(form, sys.stdin.buffer.read()))


if __name__ == "__main__":
    main()
