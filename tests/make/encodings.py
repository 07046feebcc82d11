"""Series in every encoding, and sources that differ in all that a scanner may choose."""

import subprocess
import tempfile
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

import gdcm
import numpy as np
import pydicom
from pydicom import uid

from tests.make.instances import Geometry, make_enhanced, make_series, part10

#: encoded by GDCM, for which pydicom has no encoder
_BY_GDCM = {
    uid.JPEGBaseline8Bit: gdcm.TransferSyntax.JPEGBaselineProcess1,
    uid.JPEGLossless: gdcm.TransferSyntax.JPEGLosslessProcess14,
    uid.JPEGLosslessSV1: gdcm.TransferSyntax.JPEGLosslessProcess14_1,
}
_LOSSY_OPTIONS = {
    uid.JPEGLSNearLossless: {"jls_error": 2},
    uid.JPEG2000: {"j2k_psnr": [70]},
}
PLANES = {
    "axial": (1.0, 0.0, 0.0, 0.0, 1.0, 0.0),
    "sagittal": (0.0, 1.0, 0.0, 0.0, 0.0, -1.0),
    "oblique": (0.96, 0.28, 0.0, -0.2688, 0.9216, -0.28),
}


@dataclass(frozen=True)
class Encoding:
    """One row of the matrix: a series and how it is stored."""

    syntax: uid.UID
    kind: str = "classic"
    plane: str = "axial"
    modality: str = "MR"
    allocated: int = 16
    stored: int = 16
    signed: bool = False
    #: the greatest error of a value, 0 for lossless
    tolerance: int = 0
    #: the bits beside the stored ones hold something
    dirty: bool = False
    monochrome1: bool = False
    legacy: bool = False

    @property
    def geometry(self):
        """Not square, and no number that is a round one."""
        return Geometry(
            rows=32,
            columns=40,
            n_slices=8,
            pixel_spacing=(0.8, 1.3),
            slice_spacing=2.5,
            orientation=PLANES[self.plane],
        )

    def __str__(self):
        sign = "signed" if self.signed else "unsigned"
        extra = "".join(
            f" {name}" for name in ("dirty", "monochrome1", "legacy") if vars(self)[name]
        )
        name = self.syntax.name.split(" (Process")[0].replace(" Image Compression", "")
        return (
            f"{name}-{self.kind}-{self.modality} {self.plane} "
            f"{self.stored} of {self.allocated} {sign}{extra}"
        )

    def values(self):
        """(n_slices, rows, columns) stored values: smooth, and from end to end of their range."""
        depth, row, column = np.mgrid[:8, :32, :40]
        wave = np.sin(column / 6 + depth) + np.cos(row / 5)  # -2 to 2
        top = (1 << self.stored) - 1
        values = np.round((wave / 4.2 + 0.5) * top).astype(int)
        if self.tolerance == 0:  # the ends too; a lossy codec would ring about them
            values[:, 0, 0], values[:, -1, -1] = 0, top
        else:  # DCMTK's encoder moves the least value of an image to 0
            values -= values.min(axis=(1, 2), keepdims=True)
        return values - (1 << (self.stored - 1)) * self.signed

    def rescale(self, index):
        """Slope and intercept of a slice; MR has one of its own for each."""
        return (1.0, -1024.0) if self.modality == "CT" else (1.0 + index / 4, 3.0)

    def datasets(self):
        """The instances as they would be stored, one by one or as one enhanced image."""
        slices = make_series(self.modality, self.geometry, self.values())
        for index, ds in enumerate(slices):
            self._describe(ds, index)
        if self.kind == "classic":
            return slices
        return [self._enhanced(slices)]

    def _describe(self, ds, index):
        values = self.values()[index]
        ds.RescaleSlope, ds.RescaleIntercept = self.rescale(index)
        ds.RescaleType = "HU" if self.modality == "CT" else "US"
        ds.BitsAllocated, ds.BitsStored, ds.HighBit = self.allocated, self.stored, self.stored - 1
        ds.PixelRepresentation = int(self.signed)
        if self.monochrome1:
            ds.PhotometricInterpretation = "MONOCHROME1"
        if self.modality == "CT":
            ds.PixelPaddingValue = int(values.min())
        if self.dirty:  # the sign is cut off, and an overlay stands above
            values = values & ((1 << self.stored) - 1) | 1 << (self.allocated - 1)
        kind = "<u" if self.dirty or not self.signed else "<i"
        ds.PixelData = values.astype(f"{kind}{self.allocated // 8}").tobytes()
        ds["PixelData"].VR = "OB" if self.allocated == 8 else "OW"

    def _enhanced(self, slices):
        """The slices as frames: `make_enhanced` makes the groups, of slices of its own."""
        ds = make_enhanced(self.modality, self.geometry)
        for keyword in (
            *("BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation"),
            *("PhotometricInterpretation", "PixelPaddingValue"),
        ):
            if keyword in slices[0]:
                ds[keyword] = deepcopy(slices[0][keyword])
        for frame, one in zip(ds.PerFrameFunctionalGroupsSequence, slices, strict=True):
            item = pydicom.Dataset()
            for keyword in ("RescaleIntercept", "RescaleSlope", "RescaleType"):
                item[keyword] = deepcopy(one[keyword])
            frame.PixelValueTransformationSequence = [item]
        if self.legacy:
            ds.SOPClassUID = {
                "MR": uid.LegacyConvertedEnhancedMRImageStorage,
                "CT": uid.LegacyConvertedEnhancedCTImageStorage,
            }[self.modality]
        ds.PixelData = b"".join(one.PixelData for one in slices)
        ds["PixelData"].VR = slices[0]["PixelData"].VR
        return ds

    def write(self, folder: Path, seed=0):
        """The files of the series, in an order of their own."""
        folder.mkdir(parents=True, exist_ok=True)
        files = []
        for index, ds in enumerate(self.datasets()):
            files.append(folder / f"{index}.dcm")
            files[-1].write_bytes(file_of(ds, self.syntax))
        order = np.random.default_rng(seed).permutation(len(files))
        return [files[index] for index in order]


def file_of(ds, syntax) -> bytes:
    """The instance as a file in any transfer syntax that an encoder is at hand for."""
    if syntax in _BY_GDCM:
        return _by_gdcm(ds, _BY_GDCM[syntax], syntax)
    if syntax in _LOSSY_OPTIONS:
        return _lossy(ds, syntax)
    if syntax == uid.JPEGExtended12Bit:
        return _by_dcmtk(ds, syntax)
    if syntax == uid.ExplicitVRBigEndian and ds.BitsAllocated == 8:
        raise NotImplementedError("part10 swaps words")
    return part10(ds, syntax)


def _lossy(ds, syntax):
    out = deepcopy(ds)
    out.file_meta = pydicom.dataset.FileMetaDataset()
    out.file_meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
    out.compress(syntax, generate_instance_uid=False, **_LOSSY_OPTIONS[syntax])
    return _rewritten(out, out.PixelData, syntax)


def _by_gdcm(ds, kind, syntax):
    """GDCM takes and makes files; of what it makes the pixels alone are kept."""
    with tempfile.TemporaryDirectory() as folder:
        source, target = f"{folder}/source", f"{folder}/target"
        Path(source).write_bytes(part10(ds))
        reader, change, writer = (
            gdcm.ImageReader(),
            gdcm.ImageChangeTransferSyntax(),
            gdcm.ImageWriter(),
        )
        reader.SetFileName(source)
        assert reader.Read()
        change.SetTransferSyntax(gdcm.TransferSyntax(kind))
        change.SetInput(reader.GetImage())
        assert change.Change(), f"GDCM cannot encode {syntax.name}"
        writer.SetFile(reader.GetFile())
        writer.SetImage(change.GetOutput())
        writer.SetFileName(target)
        assert writer.Write()
        return _rewritten(ds, pydicom.dcmread(target).PixelData, syntax)


def _by_dcmtk(ds, syntax):
    """GDCM's encoder writes 16 bits where the process has 12; DCMTK applies what rescales."""
    plain = deepcopy(ds)
    for keyword in ("RescaleSlope", "RescaleIntercept", "RescaleType"):
        if keyword in plain:
            delattr(plain, keyword)
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "source", Path(folder) / "target"
        source.write_bytes(part10(plain))
        command = ["/usr/bin/dcmcjpeg", "--encode-extended", "--quality", "98", source, target]
        subprocess.run(command, check=True, capture_output=True)
        return _rewritten(ds, pydicom.dcmread(target).PixelData, syntax)


def _rewritten(ds, pixels, syntax):
    """The instance with encapsulated pixels."""
    out = deepcopy(ds)
    out.file_meta = pydicom.dataset.FileMetaDataset()
    out.file_meta.TransferSyntaxUID = syntax
    out.PixelData = pixels
    out["PixelData"].VR = "OB"
    out["PixelData"].is_undefined_length = True
    buffer = pydicom.filebase.DicomBytesIO()
    out.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


#: pairs and not the full product (it has some 600 rows): each syntax stored as single slices and as
#: frames, each plane, sign and depth with several syntaxes
MATRIX = [
    Encoding(uid.ExplicitVRLittleEndian, stored=12),
    Encoding(uid.ExplicitVRLittleEndian, "enhanced", "sagittal", stored=12),
    Encoding(
        uid.ExplicitVRLittleEndian,
        plane="oblique",
        modality="CT",
        stored=12,
        signed=True,
        dirty=True,
    ),
    Encoding(
        uid.ExplicitVRLittleEndian, "enhanced", modality="CT", stored=12, signed=True, dirty=True
    ),
    Encoding(uid.ExplicitVRLittleEndian, plane="sagittal", allocated=8, stored=8, monochrome1=True),
    Encoding(uid.ExplicitVRLittleEndian, "enhanced", "oblique", allocated=8, stored=8),
    Encoding(
        uid.ExplicitVRLittleEndian, "enhanced", "oblique", "CT", stored=16, signed=True, legacy=True
    ),
    Encoding(uid.ExplicitVRLittleEndian, "enhanced", "sagittal", legacy=True, monochrome1=True),
    Encoding(uid.ImplicitVRLittleEndian, plane="oblique", modality="CT", signed=True),
    Encoding(uid.ImplicitVRLittleEndian, "enhanced", "axial", "CT", stored=13, signed=True),
    Encoding(uid.ExplicitVRBigEndian, plane="sagittal", stored=15),
    Encoding(uid.ExplicitVRBigEndian, "enhanced", "axial", "CT", signed=True),
    Encoding(uid.DeflatedExplicitVRLittleEndian, modality="CT", stored=12, signed=True),
    Encoding(uid.DeflatedExplicitVRLittleEndian, "enhanced", "oblique", stored=10),
    Encoding(uid.RLELossless, plane="oblique", modality="CT", stored=12, signed=True, dirty=True),
    Encoding(uid.RLELossless, "enhanced", "sagittal", "CT", stored=12, signed=True, dirty=True),
    Encoding(uid.JPEGBaseline8Bit, allocated=8, stored=8, tolerance=4),
    Encoding(uid.JPEGBaseline8Bit, "enhanced", "oblique", allocated=8, stored=8, tolerance=4),
    Encoding(uid.JPEGExtended12Bit, plane="sagittal", stored=12, tolerance=16),
    Encoding(uid.JPEGExtended12Bit, "enhanced", "axial", "CT", stored=12, tolerance=16),
    Encoding(uid.JPEGLossless, modality="CT", signed=True),
    Encoding(uid.JPEGLossless, "enhanced", "sagittal", stored=12),
    Encoding(uid.JPEGLosslessSV1, plane="oblique", stored=12),
    Encoding(uid.JPEGLosslessSV1, "enhanced", "oblique", "CT", stored=12, signed=True),
    Encoding(uid.JPEGLSLossless, plane="sagittal", modality="CT", signed=True),
    Encoding(uid.JPEGLSLossless, "enhanced", "axial", stored=12),
    Encoding(uid.JPEGLSNearLossless, plane="axial", stored=12, tolerance=2),
    Encoding(uid.JPEGLSNearLossless, "enhanced", "oblique", tolerance=2),
    Encoding(uid.JPEG2000Lossless, plane="oblique", modality="CT", stored=12, signed=True),
    Encoding(uid.JPEG2000Lossless, "enhanced", "sagittal", "CT", signed=True),
    Encoding(uid.JPEG2000, plane="axial", stored=12, tolerance=16),
    Encoding(uid.JPEG2000, "enhanced", "sagittal", "CT", stored=12, signed=True, tolerance=16),
]
