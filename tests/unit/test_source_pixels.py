"""Pixels as the scanner meant them: other bits masked, missing descriptions derived or refused."""

import subprocess

import numpy as np
import pydicom
import pytest
from pydicom import uid
from pydicom.pixels import pixel_array

from dicom_node import source_pixels, volume
from dicom_node.errors import IrregularGeometry, UnsupportedPixels
from tests.make.encodings import Encoding, file_of
from tests.make.instances import Geometry, make_enhanced, make_series, write

SMALL = Geometry(rows=6, columns=5, n_slices=8)


def built(folder, datasets):
    return volume.build([write(ds, folder / f"{at}.dcm") for at, ds in enumerate(datasets)])


def stored(datasets):
    return np.stack([np.frombuffer(ds.PixelData, "<u2").reshape(6, 5) for ds in datasets])


@pytest.mark.parametrize("high_bit", [11, 13, 15])
def test_values_are_those_below_the_high_bit(tmp_path, high_bit):
    """Old scanners left-justified them, and put overlays into the bits beside."""
    slices = make_series("MR", SMALL)
    values = stored(slices)
    beside = np.random.default_rng(3).integers(0, 1 << 16, values.shape)
    mask = 0xFFF << (high_bit - 11)
    for ds, value, other in zip(slices, values, beside, strict=True):
        word = (value.astype(int) << (high_bit - 11)) | (other & ~mask)
        ds.PixelData = word.astype("<u2").tobytes()
        ds.BitsStored, ds.HighBit = 12, high_bit
    found = built(tmp_path, slices)
    np.testing.assert_array_equal(found.voxels, by_depth(found, values))


def by_depth(found, values):
    return values[[header.InstanceNumber - 1 for header in found.headers]]


@pytest.mark.parametrize(
    "missing",
    [
        ["SamplesPerPixel"],
        ["PhotometricInterpretation"],
        ["BitsStored"],
        ["HighBit"],
        ["PixelRepresentation"],
        [
            *("SamplesPerPixel", "PhotometricInterpretation", "BitsStored", "HighBit"),
            "PixelRepresentation",
        ],
    ],
    ids=lambda names: names[0] if len(names) == 1 else "all of them",
)
@pytest.mark.parametrize("kind", ["classic", "enhanced"])
def test_what_follows_from_the_rest_may_be_missing(tmp_path, missing, kind):
    made = make_series("MR", SMALL) if kind == "classic" else [make_enhanced("MR", SMALL)]
    values = stored(make_series("MR", SMALL))
    for ds in made:
        for keyword in missing:
            delattr(ds, keyword)
    found = built(tmp_path, made)
    expected = by_depth(found, values) if kind == "classic" else values
    np.testing.assert_array_equal(found.voxels, expected)


def test_pixels_that_could_be_signed_or_not_are_refused_by_name(tmp_path):
    slices = make_series("MR", SMALL)
    del slices[4].PixelRepresentation
    slices[4].PixelData = np.full(30, 40_000, "<u2").tobytes()
    expected = f"instance {slices[4].SOPInstanceUID} has no PixelRepresentation"
    with pytest.raises(UnsupportedPixels, match=expected):
        built(tmp_path, slices)


@pytest.mark.parametrize("keyword", ["Rows", "Columns", "BitsAllocated"])
def test_a_description_that_cannot_be_derived_is_refused_by_name(tmp_path, keyword):
    slices = make_series("MR", SMALL)
    for ds in slices:
        ds["PixelData"].VR = "OW"  # the writer would look at BitsAllocated for it
        delattr(ds, keyword)
    with pytest.raises(UnsupportedPixels, match=f"has no {keyword}"):
        built(tmp_path, slices)


def test_a_ct_that_says_nothing_of_its_unit_is_refused_unless_it_has_values_below_zero(tmp_path):
    missing = {"RescaleIntercept": None, "RescaleSlope": None}
    values = np.random.default_rng(2).integers(0, 3000, (8, 6, 5))
    with pytest.raises(UnsupportedPixels, match="not in HU"):
        built(tmp_path, make_series("CT", SMALL, values, **missing))
    found = built(tmp_path, make_series("CT", SMALL, values - 1000, **missing))
    np.testing.assert_array_equal(found.voxels, by_depth(found, values - 1000))


@pytest.mark.parametrize(
    ("missing", "slope", "intercept"),
    [("RescaleSlope", 1, -1024), ("RescaleType", 2, -1024)],
)
def test_the_half_of_a_rescale_that_is_there_is_applied(tmp_path, missing, slope, intercept):
    values = np.random.default_rng(2).integers(0, 3000, (8, 6, 5))
    slices = make_series("CT", SMALL, values, **{"RescaleSlope": 2, missing: None})
    found = built(tmp_path, slices)
    np.testing.assert_array_equal(found.voxels, by_depth(found, values) * slope + intercept)


def test_a_single_frame_that_counts_itself_is_a_single_frame(tmp_path):
    """Results must not name a frame of it by its place in the series."""
    found = built(tmp_path, make_series("MR", SMALL, NumberOfFrames=1))
    assert all("NumberOfFrames" not in header for header in found.headers)


def test_several_frames_in_a_single_frame_class_are_refused_by_name(tmp_path):
    slices = make_series("MR", SMALL)
    slices[2].NumberOfFrames = 2
    slices[2].PixelData = slices[2].PixelData * 2
    with pytest.raises(IrregularGeometry, match="has 2 frames; its SOP Class has one"):
        built(tmp_path, slices)


def test_padding_values_stay_what_they_are(tmp_path):
    values = np.random.default_rng(2).integers(-1000, 3000, (8, 6, 5))
    values[:, :2] = -2000
    found = built(tmp_path, make_series("CT", SMALL, values, PixelPaddingValue=-2000))
    np.testing.assert_array_equal(found.voxels, by_depth(found, values) - 1024)
    assert volume.not_below_air(found.voxels).min() == -1000


@pytest.mark.parametrize(
    ("syntax", "lossy"),
    [(uid.JPEGLSNearLossless, "01"), (uid.JPEG2000, "01"), (uid.JPEG2000Lossless, None)],
    ids=lambda value: getattr(value, "name", ""),
)
def test_a_lossy_transfer_syntax_is_named_where_the_sender_did_not(tmp_path, syntax, lossy):
    encoding = Encoding(syntax, tolerance=2)
    found = volume.build(encoding.write(tmp_path))
    assert found.headers[0].get("LossyImageCompression") == lossy


@pytest.mark.parametrize("syntax", [uid.JPEG2000, uid.JPEGLSNearLossless], ids=lambda s: s.name)
def test_what_overshoots_after_lossy_compression_does_not_turn_black(tmp_path, syntax):
    """White of 12 bits in a codestream of 16, as some archives compress it."""
    values = np.full((8, 32, 40), 4095)
    values[:, ::2, ::3] = 0
    slices = make_series("MR", Geometry(rows=32, columns=40, n_slices=8), values)
    files = []
    for at, ds in enumerate(slices):
        path = tmp_path / f"{at}.dcm"
        path.write_bytes(file_of(ds, syntax))
        compressed = pydicom.dcmread(path)
        compressed.BitsStored, compressed.HighBit = 12, 11
        compressed.save_as(path)
        files.append(path)
    found = volume.build(files)
    assert np.abs(found.voxels - values).max() < 60


def test_twelve_bit_jpeg_decodes_as_dcmtk_decodes_it(tmp_path):
    encoding = Encoding(uid.JPEGExtended12Bit, stored=12)
    source, target = tmp_path / "source.dcm", tmp_path / "target.dcm"
    source.write_bytes(file_of(encoding.datasets()[0], encoding.syntax))
    subprocess.run(["/usr/bin/dcmdjpeg", source, target], check=True, capture_output=True)
    ds = pydicom.dcmread(source)
    source_pixels.prepare(ds)
    np.testing.assert_array_equal(pixel_array(ds), pixel_array(target))


# --- real images --------------------------------------------------------------------------------


@pytest.mark.parametrize("image", ["CT1", "CT2", "MR1", "MR3", "MR4"])
def test_a_real_image_is_the_same_in_each_lossless_encoding(shared_data, image):
    folder = shared_data / "dicom_variety" / "nema_wg04"
    decoded = []
    for encoding in ("RLE", "J2KR", "JLSL", "JPLL"):
        ds = pydicom.dcmread(folder / encoding / f"{image}_{encoding}")
        source_pixels.prepare(ds)
        decoded.append(ds.pixel_array)
    assert np.ptp(decoded[0]) > 500
    for other in decoded[1:]:
        np.testing.assert_array_equal(decoded[0], other)


def test_high_throughput_jpeg_2000_decodes(shared_data):
    """No encoder is at hand; what there is are two colour images, one lossy."""
    folder = shared_data / "dicom_variety" / "pydicom_data"
    lossless, lossy = (
        pixel_array(pydicom.dcmread(folder / f"{name}_08_RGB.dcm")).astype(int)
        for name in ("HTJ2KLossless", "HTJ2K")
    )
    assert np.ptp(lossless) > 200
    assert lossless.shape == lossy.shape
    assert np.abs(lossless - lossy).mean() < 10


def test_a_signed_image_whose_sign_is_cut_off_is_signed(shared_data):
    path = shared_data / "dicom_variety" / "siemens_12bit_mosaic" / "12bitSigned_0x0F0F.dcm"
    ds = pydicom.dcmread(path)
    words = np.frombuffer(ds.PixelData, "<u2").reshape(ds.Rows, ds.Columns) & 0xFFF
    source_pixels.prepare(ds)
    expected = np.where(words >= 0x800, words.astype(int) - 0x1000, words)
    np.testing.assert_array_equal(ds.pixel_array, expected)
