"""MR and CT instances of any geometry, and the ways they are encoded."""

import struct
from copy import deepcopy
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
from pydicom import datadict, uid
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, generate_uid
from pydicom.valuerep import DSfloat

from dicom_node.series import ReceivedInstance

_CLASSES = {"MR": uid.MRImageStorage, "CT": uid.CTImageStorage}
_ENHANCED = {"MR": uid.EnhancedMRImageStorage, "CT": uid.EnhancedCTImageStorage}
_RESCALE = ("RescaleIntercept", "RescaleSlope", "RescaleType")
_META_START = 132


@dataclass(frozen=True)
class Geometry:
    """A stack of parallel slices; LPS, millimetres."""

    rows: int = 32
    columns: int = 32
    n_slices: int = 4
    #: between rows, between columns (PS3.3 10.7.1.3)
    pixel_spacing: tuple[float, float] = (1.0, 1.0)
    slice_spacing: float = 2.0
    #: direction of a row (increasing column), then of a column
    orientation: tuple[float, ...] = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
    #: centre of the first voxel of the first slice
    origin: tuple[float, float, float] = (-10.0, -20.0, 30.0)

    def position(self, index: int) -> list[float]:
        normal = np.cross(self.orientation[:3], self.orientation[3:])
        return numbers(np.array(self.origin) + index * self.slice_spacing * normal)


def numbers(values) -> list[DSfloat]:
    """Decimal strings of at most 16 characters."""
    return [DSfloat(float(value), auto_format=True) for value in values]


def make_instance(modality="MR", geometry=None, index=0, pixels=None, seed=0, **attributes):
    """One slice; `pixels` is (rows, columns), `attributes` overrides or, with None, removes."""
    geometry = geometry or Geometry()
    if pixels is None:
        shape = (geometry.rows, geometry.columns)
        pixels = np.random.default_rng((seed, index)).integers(0, 1000, shape)
    ds = Dataset()
    _identity(ds, modality, seed)
    ds.SOPInstanceUID = generate_uid(entropy_srcs=["instance", modality, str(seed), str(index)])
    ds.InstanceNumber = index + 1
    ds.ImagePositionPatient = geometry.position(index)
    ds.ImageOrientationPatient = numbers(geometry.orientation)
    ds.PixelSpacing = numbers(geometry.pixel_spacing)
    (ds.SliceThickness,) = numbers([abs(geometry.slice_spacing)])
    _pixels(ds, np.asarray(pixels), signed=modality == "CT")
    for keyword, value in attributes.items():
        if value is None:
            delattr(ds, keyword)
        else:
            setattr(ds, keyword, value)
    return ds


def make_series(modality="MR", geometry=None, volume=None, seed=0, **attributes):
    """All slices of one series in order; `volume` is (n_slices, rows, columns)."""
    geometry = geometry or Geometry()
    return [
        make_instance(
            modality, geometry, i, None if volume is None else volume[i], seed, **attributes
        )
        for i in range(geometry.n_slices)
    ]


def make_enhanced(modality="MR", geometry=None, order=None, *, shared=True, **changes):
    """The slices of `make_series` as the frames of one multi-frame instance, stored in `order`.

    `shared=False` repeats orientation and pixel measures per frame; a macro named in `without`
    stands nowhere.
    """
    geometry = geometry or Geometry()
    order = range(geometry.n_slices) if order is None else order
    without, volume = changes.pop("without", ()), changes.pop("volume", None)
    slices = make_series(modality, geometry, volume, **changes)
    ds = deepcopy(slices[0])
    for keyword in (
        *("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceThickness"),
        *_RESCALE,
    ):
        if keyword in ds:
            delattr(ds, keyword)
    ds.SOPClassUID = _ENHANCED[modality]
    ds.NumberOfFrames = len(order)
    groups = [_groups(slices[index], without) for index in order]
    common = ("PlaneOrientationSequence", "PixelMeasuresSequence") if shared else ()
    ds.SharedFunctionalGroupsSequence = [_chosen(groups[0], common)]
    ds.PerFrameFunctionalGroupsSequence = [
        _chosen(group, [e.keyword for e in group if e.keyword not in common]) for group in groups
    ]
    ds.PixelData = b"".join(slices[index].PixelData for index in order)
    return ds


def _groups(ds, without):
    """The functional groups of one slice."""
    macros = {
        "PixelMeasuresSequence": ("PixelSpacing", "SliceThickness"),
        "PlanePositionSequence": ("ImagePositionPatient",),
        "PlaneOrientationSequence": ("ImageOrientationPatient",),
        "PixelValueTransformationSequence": _RESCALE,
    }
    groups = Dataset()
    for name, keywords in macros.items():
        item = _chosen(ds, keywords)
        if len(item) and name not in without:
            setattr(groups, name, [item])
    return groups


def _chosen(ds, keywords):
    chosen = Dataset()
    for keyword in keywords:
        if keyword in ds:
            chosen[keyword] = deepcopy(ds[keyword])
    return chosen


def _identity(ds, modality, seed):
    ds.SpecificCharacterSet = "ISO_IR 192"
    ds.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL" if modality == "CT" else "OTHER"]
    ds.SOPClassUID = _CLASSES[modality]
    ds.StudyDate = ds.SeriesDate = ds.ContentDate = "20240102"
    ds.StudyTime = ds.SeriesTime = ds.ContentTime = "101112"
    ds.AccessionNumber = f"A{seed}"
    ds.Modality = modality
    ds.Manufacturer = "Scanner Works"
    ds.ReferringPhysicianName = ""
    ds.StudyDescription = "Head"
    ds.SeriesDescription = f"{modality} head"
    ds.PatientName = f"Test^Subject{seed}"
    ds.PatientID = f"P{seed}"
    ds.PatientBirthDate = "19700101"
    ds.PatientSex = "O"
    ds.BodyPartExamined = "HEAD"
    ds.StudyInstanceUID = generate_uid(entropy_srcs=["study", str(seed)])
    ds.SeriesInstanceUID = generate_uid(entropy_srcs=["series", modality, str(seed)])
    ds.FrameOfReferenceUID = generate_uid(entropy_srcs=["frame", str(seed)])
    ds.StudyID = "1"
    ds.SeriesNumber = 1
    ds.PatientPosition = "HFS"
    ds.PositionReferenceIndicator = ""
    _acquisition(ds, modality)


def _acquisition(ds, modality):
    if modality == "CT":
        ds.KVP = 120
        ds.AcquisitionNumber = 1
        ds.RescaleIntercept = -1024
        ds.RescaleSlope = 1
        ds.RescaleType = "HU"
        return
    ds.ScanningSequence = "SE"
    ds.SequenceVariant = "NONE"
    ds.ScanOptions = ""
    ds.MRAcquisitionType = "2D"
    ds.RepetitionTime = 500
    ds.EchoTime = 10
    ds.EchoTrainLength = 1


def _pixels(ds, pixels, signed):
    ds.SamplesPerPixel = 1
    ds.PhotometricInterpretation = "MONOCHROME2"
    ds.Rows, ds.Columns = pixels.shape
    ds.BitsAllocated = ds.BitsStored = 16
    ds.HighBit = 15
    ds.PixelRepresentation = int(signed)
    ds.PixelData = pixels.astype("<i2" if signed else "<u2").tobytes()


def part10(ds, transfer_syntax=uid.ExplicitVRLittleEndian) -> bytes:
    """The instance as a file; compressed when the transfer syntax is (RLE, JPEG-LS, JPEG 2000)."""
    syntax = UID(transfer_syntax)
    out = deepcopy(ds)  # compressing changes the elements
    out.file_meta = FileMetaDataset()
    out.file_meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
    if syntax.is_encapsulated:
        out.compress(syntax, generate_instance_uid=False)
    elif not syntax.is_little_endian:  # the library writes OW as it is
        out.PixelData = np.frombuffer(out.PixelData, "<u2").byteswap().tobytes()
    out.file_meta.TransferSyntaxUID = syntax
    stream = BytesIO()
    out.save_as(
        stream,
        enforce_file_format=True,
        implicit_vr=syntax.is_implicit_VR,
        little_endian=syntax.is_little_endian,
    )
    return stream.getvalue()


def with_value(content, keyword, value):
    """The file (explicit VR, little endian) with another value in one of its elements."""
    tag = datadict.tag_for_keyword(keyword)
    vr = datadict.dictionary_VR(tag).encode()
    head = struct.pack("<HH2s", tag >> 16, tag & 0xFFFF, vr)
    start = content.index(head) + len(head)
    (length,) = struct.unpack_from("<H", content, start)
    padded = value + (b"\0" if vr == b"UI" else b" ") * (len(value) % 2)
    rest = content[start + 2 + length :]
    return content[:start] + struct.pack("<H", len(padded)) + padded + rest


def encode(ds, transfer_syntax=uid.ExplicitVRLittleEndian) -> bytes:
    """The data set alone, as it travels."""
    file = part10(ds, transfer_syntax)
    meta_length = int.from_bytes(file[_META_START + 8 : _META_START + 12], "little")
    return file[_META_START + 12 + meta_length :]


def write(ds, path: Path, transfer_syntax=uid.ExplicitVRLittleEndian) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(part10(ds, transfer_syntax))
    return path


def received(ds, transfer_syntax=uid.ExplicitVRLittleEndian, encoded=None, **changes):
    """The instance as the acceptor hands it on."""
    values = {
        "association_id": 1,
        "calling_ae_title": "SCANNER",
        "affected_sop_class_uid": str(ds.SOPClassUID),
        "affected_sop_instance_uid": str(ds.SOPInstanceUID),
        "transfer_syntax_uid": str(transfer_syntax),
        "encoded": encode(ds, transfer_syntax) if encoded is None else encoded,
    }
    return ReceivedInstance(**(values | changes))


def interleaved(geometry, stacks, order, *, modality="MR", seed=0):
    """Several stacks as the frames of one multi-frame image.

    `stacks` has (macros, volume) of each: values by the name of a functional group, and (n, rows,
    columns) pixels; `order` has (stack, slice) of each frame.
    """
    ds = make_enhanced(modality, geometry, [index for _, index in order], seed=seed)
    for frame, (stack, _) in zip(ds.PerFrameFunctionalGroupsSequence, order, strict=True):
        for name, values in stacks[stack][0].items():
            item = Dataset()
            for keyword, value in values.items():
                setattr(item, keyword, value)
            setattr(frame, name, [item])
    slices = [make_series(modality, geometry, volume, seed) for _, volume in stacks]
    ds.PixelData = b"".join(slices[stack][index].PixelData for stack, index in order)
    return ds
