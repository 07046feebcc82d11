"""The pixels of a source image as the scanner meant them, whatever the sender left out.

What is missing of the description is filled in where only one value makes sense, and refused by
name where two do. Bits beside the stored ones are no part of a value (PS3.5 8.1.1): some senders
leave the sign out of them, old ones kept overlays there.

References
----------
PS3.3 C.7.6.3 (Image Pixel), C.7.6.1.1.5 (Lossy Image Compression); PS3.5 8.1.1 and Annex A.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from pydicom import uid
from pydicom.dataset import Dataset
from pydicom.encaps import generate_frames
from pydicom.pixels.decoders.base import get_decoder
from pydicom.pixels.utils import pixel_array

from dicom_node import gdcm_frame
from dicom_node.errors import UnsupportedPixels
from dicom_node.gdcm_frame import FrameFormat

#: whose decoded values differ from what was encoded (near-lossless among them)
LOSSY = {
    uid.JPEGBaseline8Bit,
    uid.JPEGExtended12Bit,
    uid.JPEGLSNearLossless,
    uid.JPEG2000,
    uid.HTJ2K,
}
#: on which GDCM, which pydicom asks last, may abort the process
_JPEG_LS = (uid.JPEGLSLossless, uid.JPEGLSNearLossless)
#: no image is decoded without them, and nothing says what they would be
_NEEDED = ("Rows", "Columns", "BitsAllocated")


def _keep_gdcm_apart() -> None:
    """Let GDCM decode JPEG-LS in a process of its own, for every reader of this process."""
    for syntax in _JPEG_LS:
        decoder = get_decoder(syntax)
        if "gdcm" in decoder.available_plugins:
            decoder.remove_plugin("gdcm")
            decoder.add_plugin("gdcm apart", ("dicom_node.gdcm_frame", "decode_jpeg_ls"))


_keep_gdcm_apart()


def prepare(ds: Dataset) -> None:
    """Complete the description of one image's pixels, and rewrite those that would be misread.

    Changed in place: attributes that are missing, Lossy Image Compression, and where the stored
    values do not fill their words the pixels themselves, which then are native little endian with
    all bits stored.

    Raises
    ------
    UnsupportedPixels
        An attribute is missing that cannot be derived from the others.
    ValueError, RuntimeError, AttributeError, NotImplementedError
        The library cannot decode the pixels.
    """
    _complete(ds)
    _mark_lossy(ds)
    if not _reads_right(ds):
        _rewrite(ds)


def _complete(ds: Dataset) -> None:
    """Fill in what is missing of the Image Pixel module."""
    for keyword in _NEEDED:
        if not ds.get(keyword):
            raise UnsupportedPixels(f"instance {ds.get('SOPInstanceUID')} has no {keyword}")
    for keyword, usual in (("SamplesPerPixel", 1), ("PhotometricInterpretation", "MONOCHROME2")):
        if not ds.get(keyword):
            setattr(ds, keyword, usual)
    # 0 is as good as missing: no pixel has no bits
    stored = int(ds.get("BitsStored") or ds.BitsAllocated)
    ds.BitsStored = min(stored, int(ds.BitsAllocated))
    if ds.get("HighBit") is None or not ds.BitsStored - 1 <= ds.HighBit < ds.BitsAllocated:
        ds.HighBit = ds.BitsStored - 1
    if ds.get("PixelRepresentation") is None:
        _complete_sign(ds)


def _complete_sign(ds: Dataset) -> None:
    """Take pixels for unsigned where no value has the sign's bit set; refuse them else."""
    ds.PixelRepresentation = 0
    pixels = _stored_values(ds)
    if pixels.max() >= 1 << (int(ds.BitsStored) - 1):
        raise UnsupportedPixels(
            f"instance {ds.get('SOPInstanceUID')} has no PixelRepresentation, and its values "
            "could be signed or unsigned"
        )


def _mark_lossy(ds: Dataset) -> None:
    """Say so where the transfer syntax alone does: derived pictures have to repeat it."""
    if ds.file_meta.TransferSyntaxUID in LOSSY:
        ds.LossyImageCompression = "01"


def _reads_right(ds: Dataset) -> bool:
    """Tell whether pydicom and highdicom decode this to the stored values by themselves.

    pydicom masks the bits beside the stored ones, wherever the high bit is, and what overshoots
    after lossy compression would turn from white to black. highdicom masks nothing, and reads no
    big endian.
    """
    syntax = ds.file_meta.TransferSyntaxUID
    multi_frame = "NumberOfFrames" in ds
    if multi_frame and not syntax.is_little_endian:
        return False
    full = ds.BitsStored == ds.BitsAllocated and not _is_twelve_bit_jpeg(ds)
    plain = not multi_frame and syntax not in LOSSY and ds.HighBit == ds.BitsStored - 1
    return full or plain


def _rewrite(ds: Dataset) -> None:
    """Replace the pixels by native ones whose values fill their words."""
    pixels = _stored_values(ds)
    ds.PixelData = pixels.astype(pixels.dtype.newbyteorder("<")).tobytes()
    ds["PixelData"].VR = "OW"
    ds.BitsStored, ds.HighBit = ds.BitsAllocated, ds.BitsAllocated - 1
    ds.file_meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian


def _stored_values(ds: Dataset) -> NDArray[np.integer]:
    """Decode all frames of an image to its stored values, sign extended, without other bits."""
    syntax = ds.file_meta.TransferSyntaxUID
    pixels = _decoded(ds)
    allocated, stored = int(ds.BitsAllocated), int(ds.BitsStored)
    if syntax in LOSSY and not ds.PixelRepresentation:
        pixels[pixels >= 1 << stored] = (1 << stored) - 1  # it overshoots, and stays white
        return pixels
    # a codec keeps values in its low bits; native and RLE words are as they were
    native = not syntax.is_encapsulated or syntax == uid.RLELossless
    high = int(ds.HighBit) if native else stored - 1
    pixels <<= allocated - 1 - high
    pixels >>= allocated - stored  # of signed numbers it repeats the sign
    return pixels


def _decoded(ds: Dataset) -> NDArray[np.integer]:
    """Decode all frames of an image; the bits beside the stored ones stay as they were."""
    if _is_twelve_bit_jpeg(ds):
        return _decoded_by_gdcm(ds)
    pixels: NDArray[np.integer] = np.array(pixel_array(ds, raw=True, correct_unused_bits=False))
    return pixels


def _is_twelve_bit_jpeg(ds: Dataset) -> bool:
    """Tell whether pydicom would refuse to decode: it did not trust the GDCM of its time to."""
    extended = ds.file_meta.TransferSyntaxUID == uid.JPEGExtended12Bit
    return bool(extended and ds.BitsAllocated == 16)


def _decoded_by_gdcm(ds: Dataset) -> NDArray[np.integer]:
    """Decode the frames of a JPEG image of 16 bits allocated with GDCM itself.

    Right in GDCM 3.2 (github.com/tfmoraes/python-gdcm/issues/35; compared with DCMTK in the tests).
    """
    n_frames = int(ds.get("NumberOfFrames") or 1)
    codestreams = generate_frames(ds.PixelData, number_of_frames=n_frames)
    form = _format_of(ds)
    kind = np.dtype("<i2" if ds.PixelRepresentation else "<u2")
    frames = [np.frombuffer(gdcm_frame.decode(form, frame), kind) for frame in codestreams]
    shape = (int(ds.Rows), int(ds.Columns))
    return np.stack(frames).reshape(shape if n_frames == 1 else (n_frames, *shape))


def _format_of(ds: Dataset) -> FrameFormat:
    return FrameFormat(
        str.__str__(ds.file_meta.TransferSyntaxUID),
        int(ds.Rows),
        int(ds.Columns),
        1,
        str(ds.PhotometricInterpretation),
        int(ds.BitsAllocated),
        int(ds.BitsStored),
        int(ds.PixelRepresentation),
    )
