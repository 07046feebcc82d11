"""Several volumes in one series: copies dropped, differences named, parts told apart."""

from copy import deepcopy
from dataclasses import replace

import numpy as np
import pydicom
import pytest
from pydicom import uid

from dicom_node import volume
from dicom_node.errors import InconsistentSeries, IrregularGeometry
from dicom_node.splitting import split
from tests.make.instances import (
    Geometry,
    make_enhanced,
    make_series,
    write,
)

SMALL = Geometry(rows=6, columns=5, n_slices=8, pixel_spacing=(0.8, 1.3), slice_spacing=2.5)
#: what a scanner may put into one series: name -> attributes of each volume, what tells them apart
KINDS = {
    "echoes": ([{"EchoTime": 10}, {"EchoTime": 90}], "EchoTime"),
    "inversions": ([{"InversionTime": 150}, {"InversionTime": 900}], "InversionTime"),
    "b-values": (
        [{"DiffusionBValue": 0}, {"DiffusionBValue": 500}, {"DiffusionBValue": 1000}],
        "DiffusionBValue",
    ),
    "time points": (
        [{"TemporalPositionIdentifier": number} for number in (1, 2, 3)],
        "TemporalPosition",
    ),
    "acquisitions": ([{"AcquisitionNumber": 1}, {"AcquisitionNumber": 2}], "AcquisitionNumber"),
    "components": (
        [{"ImageType": ["ORIGINAL", "PRIMARY", kind]} for kind in ("M", "P")],
        "ImageType",
    ),
    "flip angles": ([{"FlipAngle": 5}, {"FlipAngle": 20}], "FlipAngle"),
    "kernels": (
        [{"ConvolutionKernel": "B30f"}, {"ConvolutionKernel": "B70f"}],
        "ConvolutionKernel",
    ),
}


def volumes(*several, geometry=SMALL):
    """One series with a volume for each set of attributes, all their slices."""
    made = []
    for number, attributes in enumerate(several):
        slices = make_series("MR", geometry, seed=0, **attributes)
        for index, ds in enumerate(slices):
            rng = np.random.default_rng((number, index))
            ds.PixelData = rng.integers(0, 1000, (ds.Rows, ds.Columns)).astype("<u2").tobytes()
            ds.SOPInstanceUID = uid.generate_uid(entropy_srcs=[str(number), str(index)])
        made += slices
    return made


def written(folder, datasets, name="f"):
    return [write(ds, folder / f"{name}{at:03d}.dcm") for at, ds in enumerate(datasets)]


# --- copies -------------------------------------------------------------------------------------


def copy_of(ds, number=0, **changes):
    """The slice again, under a UID of its own that sorts behind all others."""
    again = deepcopy(ds)
    again.SOPInstanceUID = f"9.{number}"
    for keyword, value in changes.items():
        setattr(again, keyword, value)
    return again


@pytest.mark.parametrize("first", [True, False], ids=["before", "behind"])
def test_a_copy_of_a_slice_under_another_uid_is_left_out_with_a_note(tmp_path, caplog, first):
    slices = make_series("MR", SMALL)
    copies = [copy_of(slices[2], 1), copy_of(slices[2], 2), copy_of(slices[5], 3)]
    files = written(tmp_path, [*copies, *slices] if first else [*slices, *copies])
    found = volume.build(files)
    alone = volume.build(written(tmp_path, slices, "alone"))
    np.testing.assert_array_equal(found.voxels, alone.voxels)
    assert [h.SOPInstanceUID for h in found.headers] == [h.SOPInstanceUID for h in alone.headers]
    (note,) = found.notes
    assert note.startswith("3 of 11 instances of series ")
    assert "copy" in note
    assert note in caplog.text
    assert alone.notes == ()


def test_a_copy_in_another_transfer_syntax_is_a_copy(tmp_path):
    slices = make_series("MR", replace(SMALL, rows=32, columns=32))
    files = written(tmp_path, slices)
    files.append(write(copy_of(slices[2]), tmp_path / "again.dcm", uid.JPEG2000Lossless))
    assert volume.build(files).notes


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"EchoTime": 90}, r"EchoTime \(10, 90\) differs"),
        ({"AcquisitionNumber": 2}, r"AcquisitionNumber \(2, MISSING\) differs"),
        ({"RescaleSlope": 2, "RescaleIntercept": 0}, "no attribute says what differs"),
        ({"PixelData": bytes(60)}, "no attribute says what differs"),
        (
            {"AcquisitionTime": "101500", "PixelData": bytes(60)},
            r"AcquisitionTime \(101500, MISSING\) differs",
        ),
    ],
    ids=["echo", "acquisition", "rescale", "pixels", "time"],
)
def test_what_is_no_copy_is_refused_with_what_differs(tmp_path, changes, reason):
    slices = make_series("MR", SMALL)
    files = written(tmp_path, [*slices, copy_of(slices[3], **changes)])
    with pytest.raises(
        IrregularGeometry, match=f"1 of 9 slices lie at the position.*(?i:{reason})"
    ):
        volume.build(files)


def test_what_is_left_without_the_copies_must_still_be_a_volume(tmp_path):
    slices = make_series("MR", replace(SMALL, n_slices=7))
    with pytest.raises(IrregularGeometry, match="7 slices"):
        volume.build(written(tmp_path, [*slices, copy_of(slices[3])]))


# --- what differs -------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_several_volumes_in_a_series_are_refused_with_what_differs(tmp_path, kind):
    several, name = KINDS[kind]
    (keyword,) = several[0]
    made = volumes(*several)
    with pytest.raises(IrregularGeometry, match="lie at the position of another") as refused:
        volume.build(written(tmp_path, made))
    text = str(refused.value)
    assert f"{name} (" in text
    for attributes in several:
        value = attributes[keyword]
        assert (value[-1] if isinstance(value, list) else f"{value}".upper()) in text.upper()


def with_private(ds, creator, group, element, vr, value):
    ds.private_block(group, creator, create=True).add_new(element, vr, value)


@pytest.mark.parametrize(
    ("place", "values"),
    [
        (("SIEMENS MR HEADER", 0x0019, 0x0C, "IS"), ("0", "1000")),
        (("SIEMENS MR HEADER", 0x0019, 0x0C, "UN"), (b"0 ", b"1000")),
        (("GEMS_PARM_01", 0x0043, 0x39, "IS"), (["0", "8", "0"], ["1000001000", "8", "0"])),
        (("GEMS_PARM_01", 0x0043, 0x39, "UN"), (b"0\\8 ", b"1000001000\\8 ")),
        (("Philips Imaging DD 001", 0x2001, 0x03, "FL"), (0.0, 1000.0)),
        (("Philips Imaging DD 001", 0x2001, 0x03, "UN"), (bytes(4), b"\0\0zD")),
    ],
    ids=lambda value: "-".join(map(str, value[::3])) if len(value) == 4 else "",
)
def test_a_b_value_in_the_vendors_own_element_is_known(tmp_path, place, values):
    made = volumes({}, {})
    for at, ds in enumerate(made):
        with_private(ds, *place, values[at // 8])
    files = written(tmp_path, made)
    with pytest.raises(IrregularGeometry, match=r"DiffusionBValue \(0, 1000\) differs"):
        volume.build(files)
    assert [group.traits for group in split(files)] == [
        {"DiffusionBValue": "0"},
        {"DiffusionBValue": "1000"},
    ]


def test_frames_of_several_volumes_are_refused_with_what_differs(tmp_path):
    ds = make_enhanced("MR", SMALL, [0, 0, 1, 1, 2, 2, 3, 3, 4, 4])
    for at, frame in enumerate(ds.PerFrameFunctionalGroupsSequence):
        content = pydicom.Dataset()
        content.TemporalPositionIndex = at % 2 + 1
        frame.FrameContentSequence = [content]
    with pytest.raises(IrregularGeometry, match=r"5 of 10.*TemporalPosition \(1, 2\) differs"):
        volume.build(written(tmp_path, [ds]))


def test_several_enhanced_images_are_refused_with_what_differs(tmp_path):
    made = [make_enhanced("MR", SMALL, EchoTime=echo) for echo in (10, 90)]
    with pytest.raises(InconsistentSeries, match=r"2 multi-frame images.*EchoTime \(10, 90\)"):
        volume.build(written(tmp_path, made))


# --- the parts ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_each_part_of_a_series_is_one_volume(tmp_path, kind):
    several, name = KINDS[kind]
    made = volumes(*several)
    files = written(tmp_path, made)
    order = np.random.default_rng(1).permutation(len(files))
    groups = split([files[at] for at in order])
    assert len(groups) == len(several)
    for number, group in enumerate(groups):
        assert list(group.traits) == [name]
        assert sorted(group.files) == files[number * 8 : number * 8 + 8]
        assert volume.build(group.files).voxels.shape == (8, 6, 5)


def test_two_attributes_part_a_series_one_after_the_other(tmp_path):
    several = [
        {"EchoTime": echo, "TemporalPositionIdentifier": time}
        for echo in (10, 90)
        for time in (1, 2)
    ]
    groups = split(written(tmp_path, volumes(*several)))
    assert [dict(group.traits) for group in groups] == [
        {
            "EchoTime": str(one["EchoTime"]),
            "TemporalPosition": str(one["TemporalPositionIdentifier"]),
        }
        for one in several
    ]


def test_time_points_without_a_number_are_told_apart_by_their_times(tmp_path):
    """Every slice has a time of its own: their order at each place makes the volumes."""
    made = volumes({}, {}, {})
    for at, ds in enumerate(made):
        ds.AcquisitionTime = f"10{at // 8:02d}{at % 8:02d}.5"
    files = written(tmp_path, made)
    groups = split(files[::-1])
    assert [dict(group.traits) for group in groups] == [
        {"AcquisitionTime": str(number)} for number in (1, 2, 3)
    ]
    assert [sorted(group.files) for group in groups] == [files[:8], files[8:16], files[16:]]


def test_an_attribute_that_differs_from_slice_to_slice_parts_nothing(tmp_path):
    made = volumes({"EchoTime": 10}, {"EchoTime": 90})
    for at, ds in enumerate(made):
        ds.RepetitionTime = 500 + at % 8
        ds.AcquisitionNumber = at
    groups = split(written(tmp_path, made))
    assert [dict(group.traits) for group in groups] == [{"EchoTime": "10"}, {"EchoTime": "90"}]


def test_planes_that_are_not_parallel_are_parts_of_their_own(tmp_path):
    sagittal = replace(SMALL, orientation=(0.0, 1.0, 0.0, 0.0, 0.0, -1.0))
    files = written(tmp_path, [*volumes({}), *volumes({}, geometry=sagittal)])
    assert sorted(sorted(group.files) for group in split(files)) == [files[:8], files[8:]]


def test_a_single_volume_is_one_part_without_traits(tmp_path):
    files = written(tmp_path, volumes({"EchoTime": 10}))
    (group,) = split(files)
    assert (dict(group.traits), sorted(group.files)) == ({}, files)


def test_what_nothing_tells_apart_stays_together(tmp_path):
    files = written(tmp_path, volumes({}, {}))
    (group,) = split(files)
    assert len(group.files) == 16
    with pytest.raises(IrregularGeometry, match=r"8 of 16.*no attribute says what differs"):
        volume.build(group.files)


def test_each_enhanced_image_is_a_part_of_its_own(tmp_path):
    files = written(tmp_path, [make_enhanced("MR", SMALL, EchoTime=echo) for echo in (90, 10)])
    groups = split(files)
    assert [(dict(group.traits), group.files) for group in groups] == [
        ({"EchoTime": "10"}, (files[1],)),
        ({"EchoTime": "90"}, (files[0],)),
    ]


def test_a_real_diffusion_series_is_parted_by_its_b_values(shared_data):
    folder = shared_data / "dicom_variety" / "dicom2nifti" / "ge" / "dti"
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    groups = split(files)
    assert [dict(group.traits) for group in groups] == [
        {"DiffusionBValue": "0"},
        {"DiffusionBValue": "1000"},
    ]
    assert [list(group.files) for group in groups] == [files[:4], files[4:]]
