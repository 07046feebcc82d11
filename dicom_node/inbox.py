"""Received bytes -> durable file, once per content; nothing is named by a UID as it came.

An instance is looked at only as far as is needed to refuse what could never be used: identity, and
whether all pixels are there. Values are read as bytes, without the library's validation: an odd
patient name must not cost an examination. No pixel is decoded, since one busy Python thread beside
the receiver's would cut its rate.

References
----------
PS3.5 Annex A (transfer syntaxes) and 8 (pixel data); PS3.10 7.1 (file meta information).
"""

from __future__ import annotations

import re
import shutil
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from io import BytesIO
from pathlib import Path

from pydicom.datadict import keyword_for_tag
from pydicom.dataelem import RawDataElement
from pydicom.errors import BytesLengthException, InvalidDicomError
from pydicom.filereader import data_element_generator
from pydicom.tag import BaseTag
from pydicom.uid import UID

from dicom_node import durable
from dicom_node.arrival import slice_of
from dicom_node.errors import (
    DataSetMismatch,
    InboxFull,
    UnreadableDataSet,
    UnsupportedSOPClass,
)
from dicom_node.identity import IMPLEMENTATION_CLASS_UID, RESULT_SOP_CLASSES, is_own
from dicom_node.series import FiledInstance, ReceivedInstance

_CREATOR = 0x00080014
_SOP_CLASS = 0x00080016
_SOP_INSTANCE = 0x00080018
_MODALITY = 0x00080060
_MANUFACTURER = 0x00080070
_MODEL = 0x00081090
_STUDY = 0x0020000D
_SERIES = 0x0020000E
_POSITION = 0x00200032
_ORIENTATION = 0x00200037
_IN_ACQUISITION = 0x00201002
_SAMPLES = 0x00280002
_PHOTOMETRIC = 0x00280004
_FRAMES = 0x00280008
_ROWS = 0x00280010
_COLUMNS = 0x00280011
_BITS = 0x00280100
_PIXEL_DATA = 0x7FE00010
#: the values of all other elements are passed over
_KEPT: list[BaseTag | int] = [
    BaseTag(tag)
    for tag in (
        *(_SOP_CLASS, _SOP_INSTANCE, _MODALITY, _STUDY, _SERIES),
        *(_CREATOR, _MANUFACTURER, _MODEL),
        *(_POSITION, _ORIENTATION, _IN_ACQUISITION),
        *(_SAMPLES, _PHOTOMETRIC, _FRAMES, _ROWS, _COLUMNS, _BITS),
    )
]

#: preamble, prefix, and the element that holds the length of the rest of the file meta information
_META_START = 128 + 4 + 12
#: undefined length; group FFFE's elements Item and Sequence Delimitation Item (PS3.5 7.5)
_UNDEFINED = 0xFFFFFFFF
_ITEM = 0xE000
_SEQUENCE_DELIMITER = 0xE0DD
#: looser than PS3.5 9.1 (no component may start with 0): scanners err, and nothing is named by it
_UID = re.compile(r"[0-9.]{1,64}")
#: a deflated data set that grows beyond this is an attack, not an image
_MAX_INFLATED_BYTES = 2 * 2**30
#: what pydicom raises on bytes that are no data set
_PARSE_ERRORS = (
    *(ValueError, LookupError, TypeError, AttributeError, NotImplementedError, OverflowError),
    *(EOFError, OSError, struct.error, RecursionError, UserWarning),
    *(InvalidDicomError, BytesLengthException),
)


#: tells of (SOP Instance UID, Series Instance UID) whether the ledger has them among the results
Known = Callable[[str, str], bool]


@dataclass(frozen=True, slots=True)
class _PixelElement:
    """Where Pixel Data (7FE0,0010) begins."""

    length: int
    #: of its value, in the inflated data set
    offset: int


class _Header:
    """The few attributes the inbox needs, and the place of the pixels.

    Top level only: what stands in sequences is passed over. Raises UnreadableDataSet on bytes that
    are no data set in `syntax`.
    """

    def __init__(self, data: bytes, syntax: UID) -> None:
        self._little_endian = syntax.is_little_endian
        self._values: dict[int, bytes] = {}
        self.pixels: _PixelElement | None = None
        #: where the last element must end, whose value is passed over; None: it does not say
        self.n_bytes: int | None = None
        stream = BytesIO(data)

        # reading ends before the pixels, however many they are
        def at_pixels(tag: BaseTag, _vr: str | None, length: int) -> bool:
            self.n_bytes = None if length == _UNDEFINED else stream.tell() + length
            if tag == _PIXEL_DATA:
                self.pixels = _PixelElement(length, stream.tell())
            return int(tag) >= _PIXEL_DATA

        try:
            elements = data_element_generator(
                stream,
                syntax.is_implicit_VR,
                syntax.is_little_endian,
                at_pixels,
                specific_tags=_KEPT,
            )
            for element in elements:
                if isinstance(element, RawDataElement) and isinstance(element.value, bytes):
                    self._values[int(element.tag)] = element.value
        except _PARSE_ERRORS as error:
            raise UnreadableDataSet("the data set cannot be parsed") from error

    def text(self, tag: int) -> str:
        """Return a value as text, empty when it is absent; without the global validation."""
        return self._values.get(tag, b"").decode("ascii", "replace").strip(" \0")

    def uid(self, tag: int) -> str:
        """Return a UID; raises UnreadableDataSet that names the attribute."""
        value = self.text(tag)
        if not value:
            raise UnreadableDataSet(f"{keyword_for_tag(tag)} is missing")
        if not _UID.fullmatch(value):
            raise UnreadableDataSet(f"{keyword_for_tag(tag)} is not a UID")
        return value

    def number(self, tag: int) -> int:
        """Return a US value; raises UnreadableDataSet that names the attribute."""
        value = self._values.get(tag, b"")
        if len(value) < 2:
            raise UnreadableDataSet(f"{keyword_for_tag(tag)} is missing")
        return int.from_bytes(value[:2], "little" if self._little_endian else "big")

    def n_frames(self) -> int:
        """Return Number of Frames (0028,0008), an IS; 1 when it is absent or empty."""
        text = self.text(_FRAMES).split("\\")[0] or "1"
        if not text.isdigit() or len(text) > 9:
            raise UnreadableDataSet("NumberOfFrames is not a number")
        return int(text)

    def n_in_acquisition(self) -> int | None:
        """Return Images in Acquisition (0020,1002), an IS; None where it is absent or no number."""
        text = self.text(_IN_ACQUISITION)
        return int(text) if text.isdigit() and 0 < len(text) <= 9 else None


class Inbox:
    """The folder of received instances: ``<first two digits>/<SHA-256 of the data set>.dcm``.

    Several associations file at once, each in its own thread; nothing is shared but the disk. Below
    `reserve_bytes` of free space nothing more is taken: the ledger and the results need some too.
    `known` tells of a SOP Instance and a Series Instance UID whether they are of our results.
    """

    def __init__(self, root: Path, reserve_bytes: int, known: Known | None = None) -> None:
        self._root = root
        self._reserve_bytes = reserve_bytes
        self._known = known or (lambda _instance, _series: False)
        root.mkdir(parents=True, exist_ok=True, mode=0o700)

    @property
    def root(self) -> Path:
        """The folder that file names are relative to."""
        return self._root

    @staticmethod
    def name_of(received: ReceivedInstance) -> str:
        """Return the name of an instance's file, relative to the folder: that of its content."""
        digest = sha256(received.encoded).hexdigest()
        return f"{digest[:2]}/{digest}.dcm"

    def file_instance(self, received: ReceivedInstance) -> FiledInstance:
        """Check one instance and make it durable; the same content again changes nothing.

        Returns
        -------
        What the ledger keeps of it. The file and its name are synced to disk by then, so that
        Success may be answered.

        Raises
        ------
        InboxFull
            The disk would be left with less than the reserve.
        DataSetMismatch
            The data set is not what the C-STORE request says.
        UnreadableDataSet
            It is damaged, incomplete, or without identity.
        UnsupportedSOPClass
            It is of a class that only results of ours are taken of, and is none of them.
        OSError
            The disk fails.
        """
        self._check_space(len(received.encoded))
        header = _checked(received, self._known)
        digest = sha256(received.encoded).hexdigest()
        target = self._root / digest[:2] / f"{digest}.dcm"
        start = _file_start(received)
        size_bytes = len(start) + len(received.encoded)
        if target.exists():
            # another association may have put it there this moment: not yet for good
            durable.sync_folder(target.parent)
        else:
            durable.make_folder(target.parent)
            durable.write(target, start, received.encoded)
        return FiledInstance(
            sop_instance_uid=received.affected_sop_instance_uid,
            sop_class_uid=received.affected_sop_class_uid,
            series_instance_uid=header.uid(_SERIES),
            study_instance_uid=header.uid(_STUDY),
            modality=header.text(_MODALITY),
            transfer_syntax_uid=received.transfer_syntax_uid,
            file_name=f"{digest[:2]}/{digest}.dcm",
            size_bytes=size_bytes,
            sha256=digest,
            association_id=received.association_id,
            calling_ae_title=received.calling_ae_title,
            slice=slice_of(header.text(_POSITION), header.text(_ORIENTATION)),
            n_expected=header.n_in_acquisition(),
        )

    def _check_space(self, n_bytes: int) -> None:
        """Refuse before the disk is full: a half-written file is the sender's time lost."""
        free = shutil.disk_usage(self._root).free
        if free - n_bytes < self._reserve_bytes:
            raise InboxFull(
                f"disk reserve reached: {free >> 20} MiB free, {self._reserve_bytes >> 20} MiB kept"
            )


def _checked(received: ReceivedInstance, known: Known) -> _Header:
    """Return the header of an instance that is whole and is what its sender says.

    Both UIDs of the request must be those of the data set (PS3.4 B.2.3, status A900): the file meta
    information is written from the request.
    """
    syntax = UID(received.transfer_syntax_uid)
    data = _inflated(received.encoded) if syntax.is_deflated else received.encoded
    header = _Header(data, syntax)
    if header.uid(_SOP_CLASS) != received.affected_sop_class_uid:
        raise DataSetMismatch("SOPClassUID differs from the Affected SOP Class UID")
    if header.uid(_SOP_INSTANCE) != received.affected_sop_instance_uid:
        raise DataSetMismatch("SOPInstanceUID differs from the Affected SOP Instance UID")
    for tag in (_STUDY, _SERIES):
        header.uid(tag)
    if received.affected_sop_class_uid in RESULT_SOP_CLASSES:
        _check_own(header, known, len(data))
    else:
        _check_pixels(header, data, syntax)
    return header


def _check_own(header: _Header, known: Known, n_bytes: int) -> None:
    """Take of the classes of our results only those that came back: nothing is done with others."""
    made_by = (header.text(tag) for tag in (_CREATOR, _MANUFACTURER, _MODEL))
    if not is_own(*made_by) and not known(header.uid(_SOP_INSTANCE), header.uid(_SERIES)):
        name = UID(header.uid(_SOP_CLASS)).name
        raise UnsupportedSOPClass(f"{name} of others is not taken here")
    if header.n_bytes not in (None, n_bytes):
        raise UnreadableDataSet(f"the data set is cut off after {n_bytes} bytes")


def _inflated(encoded: bytes) -> bytes:
    """Return the data set behind Deflated Explicit VR Little Endian (PS3.5 A.5)."""
    # no zlib header: a raw deflate stream (RFC 1951)
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        data = inflater.decompress(encoded, _MAX_INFLATED_BYTES)
    except zlib.error as error:
        raise UnreadableDataSet("the deflated data set is damaged") from error
    if not inflater.eof:
        raise UnreadableDataSet(f"the deflated data set is cut off after {len(encoded)} bytes")
    return data


def _check_pixels(header: _Header, data: bytes, syntax: UID) -> None:
    """Raise UnreadableDataSet unless every frame is there.

    Native pixels have a length, encapsulated ones have none and end with a delimiter (PS3.5 A.4).
    """
    if header.pixels is None:
        raise UnreadableDataSet(f"no PixelData: the data set ends after {len(data)} bytes")
    encapsulated = syntax.is_encapsulated
    if encapsulated != (header.pixels.length == _UNDEFINED):
        kind = "encapsulated" if encapsulated else "native"
        raise UnreadableDataSet(f"PixelData is not {kind}, as its transfer syntax says")
    if encapsulated:
        _check_fragments(data, header.pixels.offset, header.n_frames())
    else:
        _check_native(header, header.pixels, len(data))


def _check_native(header: _Header, pixels: _PixelElement, n_bytes: int) -> None:
    """Hold the bytes that came against the element's length and against what the frames need."""
    found = min(pixels.length, n_bytes - pixels.offset)
    expected = max(pixels.length, _native_bytes(header))
    if found < expected:
        raise UnreadableDataSet(f"PixelData is cut off: {expected} bytes expected, {found} found")


def _native_bytes(header: _Header) -> int:
    """Return the length of the frames (PS3.5 8.1.1, without the padding byte)."""
    samples = header.number(_SAMPLES)
    # in bits: with Bits Allocated 1 pixels are packed, and frames do not start at bytes
    n_bits = header.number(_ROWS) * header.number(_COLUMNS) * header.number(_BITS) * samples
    if header.text(_PHOTOMETRIC) == "YBR_FULL_422":
        n_bits = n_bits * 2 // 3  # two chroma samples for every second pixel (PS3.3 C.7.6.3.1.2)
    return (n_bits * header.n_frames() + 7) // 8


def _check_fragments(data: bytes, offset: int, n_frames: int) -> None:
    """Walk the items of encapsulated pixels, little endian, to the delimiter (PS3.5 A.4)."""
    n_items = 0
    while offset + 8 <= len(data):
        group, element, length = struct.unpack_from("<HHL", data, offset)
        if (group, element) == (0xFFFE, _SEQUENCE_DELIMITER):
            # the first item is the offset table; a frame has at least one fragment
            if n_items - 1 < n_frames:
                raise UnreadableDataSet(
                    f"PixelData: {n_frames} frames expected, {max(n_items - 1, 0)} fragments found"
                )
            return
        if (group, element) != (0xFFFE, _ITEM) or length == _UNDEFINED:
            raise UnreadableDataSet("PixelData holds something that is no fragment")
        offset += 8 + length
        n_items += 1
    raise UnreadableDataSet(
        f"PixelData is cut off: {max(offset, len(data)) + 8} bytes expected, {len(data)} found"
    )


def data_set_start(path: Path) -> int:
    """Return where the data set of a file of the inbox begins: behind its file meta information.

    Raises OSError, and ValueError for a file that is not of the inbox.
    """
    with path.open("rb") as stream:
        start = stream.read(_META_START)
    if len(start) < _META_START or start[128:132] != b"DICM":
        raise ValueError("no DICOM file")
    return _META_START + int(struct.unpack_from("<L", start, 140)[0])


def _file_start(received: ReceivedInstance) -> bytes:
    """Return preamble, prefix and file meta information (PS3.10 7.1).

    Built by hand: the same bytes as the library's, a hundred times faster, once per instance.
    """
    meta = b"".join(
        (
            _meta_element(0x0001, b"OB", b"\x00\x01"),
            _meta_element(0x0002, b"UI", received.affected_sop_class_uid.encode("ascii")),
            _meta_element(0x0003, b"UI", received.affected_sop_instance_uid.encode("ascii")),
            _meta_element(0x0010, b"UI", received.transfer_syntax_uid.encode("ascii")),
            _meta_element(0x0012, b"UI", IMPLEMENTATION_CLASS_UID.encode("ascii")),
            _meta_element(0x0016, b"AE", _ae_title(received.calling_ae_title)),
        )
    )
    length = struct.pack("<HH2sHL", 0x0002, 0x0000, b"UL", 4, len(meta))
    return b"".join((bytes(128), b"DICM", length, meta))


def _meta_element(element: int, vr: bytes, value: bytes) -> bytes:
    """Encode one element of group 0002, Explicit VR Little Endian; OB has a 32-bit length."""
    if len(value) % 2:
        value += b" " if vr == b"AE" else b"\0"
    if vr == b"OB":
        return struct.pack("<HH2sHL", 0x0002, element, vr, 0, len(value)) + value
    return struct.pack("<HH2sH", 0x0002, element, vr, len(value)) + value


def _ae_title(title: str) -> bytes:
    """Make the caller's name a value of AE, whatever it sent."""
    return title.encode("ascii", "replace")[:16].strip() or b"UNKNOWN"
