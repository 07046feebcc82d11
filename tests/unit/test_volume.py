"""Series -> volume: every voxel where PS3.3 says it is, every fault refused by its name."""

import errno
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom import uid
from pydicom.dataset import Dataset

from dicom_node import volume
from dicom_node.errors import (
    InconsistentSeries,
    IrregularGeometry,
    NotScorable,
    OwnResult,
    SeriesRejected,
    UnsupportedPixels,
)
from dicom_node.identity import INSTANCE_CREATOR_UID, MANUFACTURER, MODEL_NAME
from tests.make.instances import (
    Geometry,
    make_enhanced,
    make_instance,
    make_series,
    numbers,
    with_value,
    write,
)
from tests.oracle.geometry import pixel_position

SMALL = Geometry(rows=6, columns=5, n_slices=9, pixel_spacing=(0.8, 1.3), slice_spacing=2.5)
ORIENTATIONS = {
    "axial": (1.0, 0.0, 0.0, 0.0, 1.0, 0.0),
    "axial upside down": (-1.0, 0.0, 0.0, 0.0, 1.0, 0.0),
    "coronal": (1.0, 0.0, 0.0, 0.0, 0.0, -1.0),
    "sagittal": (0.0, 1.0, 0.0, 0.0, 0.0, -1.0),
    "oblique": (0.96, 0.28, 0.0, -0.2688, 0.9216, -0.28),
}
SYNTAXES = [
    uid.ExplicitVRLittleEndian,
    uid.ImplicitVRLittleEndian,
    uid.DeflatedExplicitVRLittleEndian,
    uid.ExplicitVRBigEndian,
    uid.RLELossless,
    uid.JPEGLSLossless,
    uid.JPEG2000Lossless,
]
PLANE = ["ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"]


def built(folder, datasets, syntax=uid.ExplicitVRLittleEndian):
    """The volume of these instances, read from files in this order."""
    return volume.build(
        [write(ds, Path(folder) / f"{place}.dcm", syntax) for place, ds in enumerate(datasets)]
    )


def stored(ds):
    """(rows, columns) pixels as they were made, before any rescale."""
    kind = "<i2" if ds.PixelRepresentation else "<u2"
    return np.frombuffer(ds.PixelData, kind).reshape(ds.Rows, ds.Columns)


def by_uid(datasets):
    return {ds.SOPInstanceUID: ds for ds in datasets}


def assert_every_voxel_lies_where_its_pixel_does(found, datasets):
    """Values and places of all voxels against the instances, by the oracle."""
    source = by_uid(datasets)
    assert found.voxels.shape == (len(datasets), datasets[0].Rows, datasets[0].Columns)
    assert {header.SOPInstanceUID for header in found.headers} == set(source)
    for depth, header in enumerate(found.headers):
        ds = source[header.SOPInstanceUID]
        np.testing.assert_array_equal(found.voxels[depth], stored(ds))
        for row in (0, 1, ds.Rows - 1):
            for column in (0, 1, ds.Columns - 1):
                place = (found.affine @ [depth, row, column, 1.0])[:3]
                plane = (ds.ImagePositionPatient, ds.ImageOrientationPatient, ds.PixelSpacing)
                assert place == pytest.approx(pixel_position(*plane, row, column), abs=1e-6)


# --- what loads ---------------------------------------------------------------------------------


@st.composite
def orientations(draw):
    """Any pair of perpendicular directions."""
    component = st.floats(-1, 1, allow_nan=False).map(lambda value: round(value, 3))
    row = np.array(draw(st.tuples(component, component, component)))
    other = np.array(draw(st.tuples(component, component, component)))
    normal = np.cross(row, other)
    if min(np.linalg.norm(row), np.linalg.norm(normal)) < 0.1:
        return ORIENTATIONS["oblique"]
    row = row / np.linalg.norm(row)
    column = np.cross(normal / np.linalg.norm(normal), row)
    return (*row, *column)


@settings(max_examples=40, deadline=None)
@given(
    orientation=orientations(),
    spacing=st.tuples(st.floats(0.2, 5), st.floats(0.2, 5), st.floats(0.5, 8)),
    origin=st.tuples(*[st.floats(-500, 500)] * 3),
    order=st.permutations(range(9)),
    backwards=st.booleans(),
)
def test_the_affine_maps_every_index_as_the_standard_says(
    orientation, spacing, origin, order, backwards
):
    geometry = replace(
        SMALL,
        orientation=orientation,
        pixel_spacing=spacing[:2],
        slice_spacing=-spacing[2] if backwards else spacing[2],
        origin=origin,
    )
    slices = make_series("MR", geometry)
    with tempfile.TemporaryDirectory() as folder:
        found = built(folder, [slices[index] for index in order])
    assert_every_voxel_lies_where_its_pixel_does(found, slices)
    assert found.spacing_mm == pytest.approx((spacing[2], *spacing[:2]), rel=1e-6)


@pytest.mark.parametrize("step", [2.5, -2.5], ids=["forwards", "backwards"])
@pytest.mark.parametrize("plane", sorted(ORIENTATIONS))
def test_each_plane_loads_in_either_direction(tmp_path, plane, step):
    geometry = replace(SMALL, orientation=ORIENTATIONS[plane], slice_spacing=step)
    slices = make_series("MR", geometry)
    assert_every_voxel_lies_where_its_pixel_does(built(tmp_path, slices), slices)


def test_headers_lie_along_axis_0_and_hold_no_pixels(tmp_path):
    slices = make_series("MR", SMALL)
    found = built(tmp_path, slices[::2] + slices[1::2])
    inverse = np.linalg.inv(found.affine)
    for depth, header in enumerate(found.headers):
        index = inverse @ [*map(float, header.ImagePositionPatient), 1.0]
        assert index[:3] == pytest.approx([depth, 0, 0], abs=1e-6)
        assert "PixelData" not in header
        assert header.PatientID == "P0"


@pytest.mark.parametrize("syntax", SYNTAXES, ids=lambda s: s.name)
@pytest.mark.parametrize("modality", ["MR", "CT"])
def test_each_lossless_syntax_yields_the_same_voxels(tmp_path, modality, syntax):
    slices = make_series(modality, replace(SMALL, rows=32, columns=40), RescaleIntercept=0)
    assert_every_voxel_lies_where_its_pixel_does(built(tmp_path, slices, syntax), slices)


@pytest.mark.parametrize("signed", [True, False], ids=["signed", "unsigned"])
@pytest.mark.parametrize("modality", ["MR", "CT"])
def test_rescale_is_applied_to_signed_and_unsigned_pixels(tmp_path, modality, signed):
    low = -1000 if signed else 0
    values = np.random.default_rng(2).integers(low, 3000, (9, 6, 5))
    slices = make_series(modality, SMALL, values, PixelRepresentation=int(signed))
    for number, ds in enumerate(slices):  # a slope of its own per slice, as PET and some MR have
        ds.RescaleSlope, ds.RescaleIntercept, ds.RescaleType = 1.5 + number, -1024, "US"
    found = built(tmp_path, slices)
    for depth, header in enumerate(found.headers):
        number = header.InstanceNumber - 1
        expected = values[number] * (1.5 + number) - 1024
        np.testing.assert_array_equal(found.voxels[depth], expected.astype(np.float32))
    assert found.voxels.dtype == np.float32


def test_voxels_are_rescaled_values_even_where_a_real_world_map_or_monochrome1_stands(tmp_path):
    """HU stay HU: the map has its own unit and range, MONOCHROME1 concerns the screen alone."""
    mapping = Dataset()
    mapping.RealWorldValueFirstValueMapped, mapping.RealWorldValueLastValueMapped = 0, 10
    mapping.RealWorldValueSlope, mapping.RealWorldValueIntercept = 7.0, 3.0
    slices = make_series("CT", SMALL, PhotometricInterpretation="MONOCHROME1")
    for ds in slices:
        ds.RealWorldValueMappingSequence = [mapping]
    found = built(tmp_path, slices)
    first = by_uid(slices)[found.headers[0].SOPInstanceUID]
    np.testing.assert_array_equal(found.voxels[0], stored(first) - 1024.0)


# --- enhanced multi-frame -----------------------------------------------------------------------


def frame_positions(header):
    return [
        [float(value) for value in frame.PlanePositionSequence[0].ImagePositionPatient]
        for frame in header.PerFrameFunctionalGroupsSequence
    ]


@pytest.mark.parametrize("shared", [True, False], ids=["shared", "per frame"])
@pytest.mark.parametrize("order", [range(9), range(8, -1, -1)], ids=["forwards", "backwards"])
@pytest.mark.parametrize("modality", ["MR", "CT"])
def test_axis_0_of_an_enhanced_image_runs_as_its_frames(tmp_path, modality, order, shared):
    """Segments and overlays name a source frame by its number."""
    geometry = replace(SMALL, orientation=ORIENTATIONS["oblique"])
    slices = make_series(modality, geometry)
    offset = -1024.0 if modality == "CT" else 0.0
    found = built(tmp_path, [make_enhanced(modality, geometry, order, shared=shared)])
    (header,) = found.headers
    assert "PixelData" not in header
    for frame, (index, position) in enumerate(zip(order, frame_positions(header), strict=True)):
        np.testing.assert_array_equal(found.voxels[frame], stored(slices[index]) + offset)
        plane = (position, geometry.orientation, geometry.pixel_spacing)
        for row, column in ((0, 0), (5, 0), (2, 4)):
            place = (found.affine @ [frame, row, column, 1.0])[:3]
            assert place == pytest.approx(pixel_position(*plane, row, column), abs=1e-6)


def test_an_enhanced_image_without_shared_groups_loads(tmp_path):
    ds = make_enhanced("MR", SMALL, shared=False)
    del ds.SharedFunctionalGroupsSequence
    assert built(tmp_path, [ds]).voxels.shape == (9, 6, 5)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: [make_enhanced("MR", replace(SMALL, n_slices=7))], "7 slices"),
        (lambda: [make_enhanced("MR", SMALL)] * 2, "2 multi-frame images"),
        (lambda: [make_enhanced("MR", SMALL, [*range(9), 4])], "1 of 10 slices"),
        (lambda: [make_enhanced("MR", SMALL, [0, 1, 2, 3, 5, 6, 7, 8])], "slices are missing"),
        (lambda: [make_enhanced("MR", SMALL, [1, 0, *range(2, 9)])], "order of their positions"),
    ],
    ids=["few frames", "two images", "doubled", "missing", "interleaved"],
)
def test_an_enhanced_image_that_is_no_volume_is_refused_by_name(tmp_path, make, reason):
    with pytest.raises(SeriesRejected, match=reason):
        built(tmp_path, make())


@pytest.mark.parametrize(
    ("macro", "keyword"),
    [
        ("PlanePositionSequence", "ImagePositionPatient"),
        ("PlaneOrientationSequence", "ImageOrientationPatient"),
        ("PixelMeasuresSequence", "PixelSpacing"),
    ],
)
def test_a_functional_group_that_is_missing_is_named(tmp_path, macro, keyword):
    with pytest.raises(IrregularGeometry, match=f"has no {keyword}"):
        built(tmp_path, [make_enhanced("MR", SMALL, without=[macro])])


def test_an_enhanced_image_without_frame_of_reference_is_refused_by_name(tmp_path):
    with pytest.raises(IrregularGeometry, match="has no FrameOfReferenceUID"):
        built(tmp_path, [make_enhanced("MR", SMALL, FrameOfReferenceUID=None)])


# --- what is refused ----------------------------------------------------------------------------


def with_doubled_position():
    slices = make_series("MR", SMALL)
    slices[4].ImagePositionPatient = slices[5].ImagePositionPatient
    return slices


def with_tilt(shift_mm):
    """Slices that shift against each other along a column: a gantry that leans."""
    slices = make_series("CT", SMALL)
    for index, ds in enumerate(slices):
        x, y, z = (float(value) for value in ds.ImagePositionPatient)
        ds.ImagePositionPatient = numbers((x, y + index * shift_mm, z))
    return slices


def with_one(**attributes):
    """One slice unlike the others."""
    slices = make_series("MR", SMALL)
    slices[3] = make_instance("MR", SMALL, 3, **attributes)
    return slices


@pytest.mark.parametrize(
    ("make", "kind", "reason"),
    [
        (list, InconsistentSeries, "no instance on disk"),
        (
            lambda: make_series("MR", SMALL)[:7],
            IrregularGeometry,
            "7 slices.*at least 8.*localizer",
        ),
        (
            lambda: [s for i, s in enumerate(make_series("MR", SMALL)) if i != 4],
            IrregularGeometry,
            r"slices are missing: neighbours lie up to 5\.00 mm apart, most of them 2\.50 mm",
        ),
        (with_doubled_position, IrregularGeometry, "1 of 9 slices lie at the position of another"),
        (
            lambda: with_tilt(0.7),
            IrregularGeometry,
            r"up to 5\.6 mm.*gantry tilt of 15\.6 degrees",
        ),
        (
            lambda: with_tilt(0.07),
            IrregularGeometry,
            r"up to 0\.6 mm.*gantry tilt of 1\.6 degrees",
        ),
        (
            lambda: with_one(ImageOrientationPatient=[0, 1, 0, 0, 0, -1]),
            IrregularGeometry,
            "not parallel: ImageOrientationPatient differs",
        ),
        (
            lambda: [*make_series("MR", SMALL)[:-1], make_instance("CT", SMALL, 8)],
            InconsistentSeries,
            "mixes SOP Classes: CT Image Storage, MR Image Storage",
        ),
        (
            lambda: with_one(pixels=np.zeros((7, 5), int)),
            InconsistentSeries,
            r"Rows differs inside the series: \['6', '7'\]",
        ),
        (
            lambda: with_one(pixels=np.zeros((6, 9), int)),
            InconsistentSeries,
            r"Columns differs inside the series: \['5', '9'\]",
        ),
        (
            lambda: make_series(
                "MR",
                SMALL,
                SamplesPerPixel=3,
                PhotometricInterpretation="RGB",
                PlanarConfiguration=0,
                BitsAllocated=8,
                BitsStored=8,
                HighBit=7,
                PixelData=bytes(90),
            ),
            NotScorable,
            "colour",
        ),
        (
            lambda: make_series("MR", SMALL, PixelData=None),
            NotScorable,
            "MR Image Storage instances of the series hold no pixel data",
        ),
        (
            lambda: make_series("MR", SMALL, InstanceCreatorUID=INSTANCE_CREATOR_UID),
            OwnResult,
            "a result of dicom_node that came back",
        ),
        (
            lambda: make_series(
                "MR", SMALL, Manufacturer=MANUFACTURER, ManufacturerModelName=MODEL_NAME
            ),
            OwnResult,
            "a result of dicom_node that came back",
        ),
        (
            lambda: make_series("MR", SMALL, SOPClassUID=uid.SecondaryCaptureImageStorage),
            NotScorable,
            "Secondary Capture Image Storage: only CT and MR images are scored",
        ),
        (
            lambda: with_one(FrameOfReferenceUID="1.2.3"),
            IrregularGeometry,
            "do not share a frame of reference",
        ),
        (
            lambda: with_one(SeriesInstanceUID="1.2.3"),
            IrregularGeometry,
            "do not belong to the same series",
        ),
        (lambda: with_one(PixelSpacing=[0.8, 1.4]), IrregularGeometry, "the same spacing"),
    ],
)
def test_a_series_that_is_no_volume_is_refused_by_name(tmp_path, make, kind, reason):
    with pytest.raises(kind, match=reason):
        built(tmp_path, make())


@pytest.mark.parametrize("keyword", [*PLANE, "FrameOfReferenceUID"])
def test_a_missing_attribute_of_one_slice_is_named_with_the_instance(tmp_path, keyword):
    slices = with_one(**{keyword: None})
    expected = f"instance {slices[3].SOPInstanceUID} has no {keyword}"
    with pytest.raises(IrregularGeometry, match=expected):
        built(tmp_path, slices)


def test_pixels_that_do_not_decode_are_refused_as_pixels(tmp_path):
    files = [
        write(ds, tmp_path / f"{place}.dcm", uid.JPEG2000Lossless)
        for place, ds in enumerate(make_series("MR", replace(SMALL, rows=32, columns=32)))
    ]
    content = bytearray(files[4].read_bytes())
    start = content.index(b"\xff\x4f\xff\x51")  # JPEG 2000 start of codestream
    content[start : start + 40] = bytes(40)
    files[4].write_bytes(content)
    with pytest.raises(UnsupportedPixels, match="cannot be decoded"):
        volume.build(files)


NONSENSE = [
    *(b"", b"x", b"0", b"1\\2\\3\\4\\5\\6\\7", b"0\\0\\0\\0\\0\\0"),
    *(b"nan", b"nan\\nan", b"nan\\nan\\nan", b"1e999\\0\\0", b"-1\\0", b"0\\1"),
]
#: highdicom takes an empty or a zero slope for 1
HARMLESS_SLOPES = [b"", b"0"]


@pytest.mark.filterwarnings("ignore")  # nonsense is warned of on the way to its refusal
@pytest.mark.parametrize("mode", [pydicom.config.WARN, pydicom.config.RAISE], ids=["warn", "raise"])
@pytest.mark.parametrize("keyword", [*PLANE, "RescaleSlope", "SOPClassUID"])
def test_nonsense_in_an_attribute_rejects_the_series_and_nothing_else(
    tmp_path, monkeypatch, keyword, mode
):
    """Whatever the library raises on it: the data is at fault, and no retry would help."""
    monkeypatch.setattr(pydicom.config.settings, "reading_validation_mode", mode)
    files = [
        write(ds, tmp_path / f"{place}.dcm") for place, ds in enumerate(make_series("CT", SMALL))
    ]
    whole = [path.read_bytes() for path in files]
    for value in NONSENSE:
        for path, content in zip(files, whole, strict=True):
            path.write_bytes(with_value(content, keyword, value))
        if keyword == "RescaleSlope" and value in HARMLESS_SLOPES:
            assert np.isfinite(volume.build(files).voxels).all()
            continue
        try:
            volume.build(files)
        except SeriesRejected:
            continue
        pytest.fail(f"{value} was taken for a {keyword}")


# --- real images --------------------------------------------------------------------------------

MISSING_FRAME = (IrregularGeometry, "has no FrameOfReferenceUID")
DOUBLED = "lie at the position of another"
#: folder or file -> what becomes of it as it is
AS_IT_IS = {
    "siemens_xa30_enhanced_t1": (96, 128, 128),
    "siemens_xa10_enhanced/6_1.dcm": (IrregularGeometry, "6 slices"),
    "siemens_xa10_enhanced": (InconsistentSeries, "4 multi-frame images"),
    "ct3slice_with_dicomseg/ct-3slice": (IrregularGeometry, "3 slices"),
    "ct3slice_with_dicomseg/liver.dcm": (NotScorable, "Segmentation Storage"),
    "siemens_12bit_mosaic": (IrregularGeometry, "Siemens mosaics, 35 slices as tiles"),
    "siemens_ct_j2k_series": (NotScorable, "no SOP Class UID"),
    "pydicom_data/parametric_map_float.dcm": (NotScorable, "Parametric Map Storage"),
    "dicom2nifti/generic/rgb": (NotScorable, "Secondary Capture Image Storage"),
    "dicom2nifti/ge/dti": MISSING_FRAME,
    "dicom2nifti/hyperfine/anatomical": MISSING_FRAME,
    "dicom2nifti/philips_enhanced/anatomical": MISSING_FRAME,
    "dicom2nifti/siemens_multiframe/anatomical": MISSING_FRAME,
}
#: the same with what the publisher removed put back (frame of reference, SOP Class), and stacks of
#: few slices allowed
RESTORED = {
    "siemens_ct_j2k_series": (20, 512, 512),
    "siemens_xa10_enhanced/6_1.dcm": (6, 64, 64),
    "ct3slice_with_dicomseg/ct-3slice": (3, 512, 512),
    "siemens_mosaic": (IrregularGeometry, "Siemens mosaics, 36 slices as tiles"),
    "dicom2nifti/anatomical": (4, 256, 256),
    "dicom2nifti/generic/anatomical/002_non_isotropic": (4, 28, 64),
    "dicom2nifti/generic/compressed_j2k": (4, 256, 256),
    "dicom2nifti/generic/compressed_jpeg": (4, 256, 256),
    "dicom2nifti/generic/compressed_jpegls": (4, 256, 256),
    "dicom2nifti/generic/compressed_rle": (4, 256, 256),
    "dicom2nifti/hitachi/anatomical": (4, 64, 64),
    "dicom2nifti/hyperfine/anatomical": (8, 138, 112),
    "dicom2nifti/philips/anatomical": (4, 240, 240),
    "dicom2nifti/philips_enhanced/anatomical": (8, 256, 256),
    "dicom2nifti/siemens/anatomical": (4, 256, 256),
    "dicom2nifti/siemens_multiframe/anatomical": (8, 256, 256),
    "dicom2nifti/ge/dti": (
        IrregularGeometry,
        rf"4 of 8 slices {DOUBLED}.*DiffusionBValue \(0, 1000\)",
    ),
    "dicom2nifti/ge/fmri": (IrregularGeometry, f"4 of 8 slices {DOUBLED}.*no attribute says"),
    "dicom2nifti/philips_enhanced/fmri": (
        IrregularGeometry,
        rf"24 of 32 slices {DOUBLED}.*TemporalPosition \(1, 2, 3, 4\)",
    ),
    "dicom2nifti/siemens/fmri": (IrregularGeometry, "Siemens mosaics, all slices as tiles"),
    "dicom2nifti/failing/notavolume": (
        IrregularGeometry,
        rf"3 of 4 slices {DOUBLED}.*AcquisitionNumber \(12, 13, 14, 15\)",
    ),
    "dicom2nifti/failing/gantrytilting": (
        IrregularGeometry,
        r"up to 3\.6 mm.*gantry tilt of \d+\.\d degrees",
    ),
    "dicom2nifti/failing/sliceincrement": (IrregularGeometry, r"missing.*10\.00 mm.*5\.00 mm"),
    "dicom2nifti/failing/sliceorientation": (IrregularGeometry, "not parallel"),
}


def real_files(shared_data, name):
    place = shared_data / "dicom_variety" / name
    return [place] if place.is_file() else sorted(p for p in place.rglob("*") if p.is_file())


def assert_becomes(files, expected):
    if isinstance(expected[0], int):
        found = volume.build(files)
        assert found.voxels.shape == expected
        assert found.voxels.std() > 0
        return
    kind, reason = expected
    with pytest.raises(kind, match=reason):
        volume.build(files)


@pytest.mark.parametrize("name", AS_IT_IS)
def test_a_real_series_loads_or_is_refused_with_its_reason(shared_data, name):
    assert_becomes(real_files(shared_data, name), AS_IT_IS[name])


@pytest.mark.parametrize("name", RESTORED)
def test_a_restored_real_series_loads_or_is_refused_with_its_reason(
    shared_data, tmp_path, monkeypatch, name
):
    monkeypatch.setattr(volume, "MIN_SLICES", 2)
    monkeypatch.setattr(pydicom.config.settings, "writing_validation_mode", pydicom.config.IGNORE)
    files = []
    for place, path in enumerate(real_files(shared_data, name)):
        ds = pydicom.dcmread(path)
        ds.FrameOfReferenceUID = ds.get("FrameOfReferenceUID") or "1.2.3"
        ds.SOPClassUID = ds.SOPClassUID or ds.file_meta.MediaStorageSOPClassUID
        files.append(tmp_path / f"{place}.dcm")
        ds.save_as(files[-1])
    assert_becomes(files, RESTORED[name])


def test_a_sequence_that_cannot_be_parsed_is_a_refusal_and_a_disk_that_fails_is_not(
    tmp_path, monkeypatch
):
    """pydicom parses a sequence when it is asked for, and then says OSError as a disk would."""
    series = make_series("MR", SMALL)
    paths = [write(ds, tmp_path / f"{i}.dcm") for i, ds in enumerate(series)]
    for error, expected in (
        (OSError("No tag to read at file position 4C"), IrregularGeometry),
        (OSError(errno.EIO, "Input/output error"), OSError),
    ):

        def fail(_ds, error=error):
            raise error

        monkeypatch.setattr(volume.source_pixels, "prepare", fail)
        with pytest.raises(expected):
            volume.build(paths)
