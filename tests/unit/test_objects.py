"""Result objects: valid, in the right place, the same bytes twice, silent about nothing found."""

import highdicom as hd
import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian

from dicom_node import volume
from dicom_node.errors import ObjectError
from dicom_node.findings import ScoreSummary
from dicom_node.identity import IMPLEMENTATION_CLASS_UID, INSTANCE_CREATOR_UID, derived_uid
from dicom_node.objects import drawing, overlay, provenance
from dicom_node.objects.segmentation import algorithm_identification
from tests.make.instances import Geometry, make_enhanced, write
from tests.make.results import (
    OBLIQUE,
    PATIENT,
    SCORE,
    SOURCES,
    EnhancedSource,
    Source,
    errors_of,
    reread,
    to_bytes,
)


@pytest.fixture(scope="module", params=sorted(SOURCES))
def source(request):
    return Source(request.param)


def test_segmentation_has_no_error(source, tmp_path):
    assert errors_of(source.segmentation(), tmp_path) == []


def test_captures_have_no_error(source, tmp_path):
    captures = source.captures(margin=0)
    assert len(captures) >= 3
    for ds in (captures[0], captures[1], captures[-1]):
        assert errors_of(ds, tmp_path) == []


def test_the_validator_finds_a_planted_error(tmp_path):
    ds = Source().segmentation()
    del ds.SegmentSequence[0].SegmentLabel
    assert errors_of(ds, tmp_path)


def test_segmentation_lies_where_the_anomaly_was_planted(source):
    seg = hd.seg.Segmentation.from_dataset(reread(source.segmentation()))
    volume = seg.get_volume(combine_segments=True)
    world = volume.map_indices_to_reference(np.argwhere(volume.array == 1))
    k, i, j = source.planted
    expected = (source.affine @ [k, i, j, 1.0])[:3]
    assert np.abs(world.mean(axis=0) - expected).max() < 0.01
    assert len(world) == 75
    assert np.count_nonzero(volume.array == 2) == 9
    assert source.findings[0].peak_mm == pytest.approx(expected)


def test_segmentation_names_the_source_slice_of_each_frame(source):
    seg = source.segmentation()
    for item in seg.PerFrameFunctionalGroupsSequence:
        (reference,) = item.DerivationImageSequence[0].SourceImageSequence
        header = source.headers[int(reference.ReferencedSOPInstanceUID.split(".")[-1]) - 1]
        position = item.PlanePositionSequence[0].ImagePositionPatient
        assert [float(v) for v in position] == pytest.approx(
            [float(v) for v in header.ImagePositionPatient], abs=1e-4
        )
    assert seg.NumberOfFrames == 4


def test_segmentation_describes_the_algorithm():
    seg = Source().segmentation()
    first, second = seg.SegmentSequence
    assert [first.SegmentLabel, second.SegmentLabel] == [
        "Suspected anomaly 1",
        "Suspected anomaly 2",
    ]
    assert first.SegmentedPropertyCategoryCodeSequence[0].CodeValue == "49755003"
    assert first.SegmentedPropertyTypeCodeSequence[0].CodeValue == "52988006"
    assert first.TrackingUID != second.TrackingUID
    assert first.RecommendedDisplayCIELabValue != second.RecommendedDisplayCIELabValue
    algorithm = first.SegmentationAlgorithmIdentificationSequence[0]
    assert algorithm.AlgorithmVersion == SCORE.fingerprint
    assert "reference_batch=brain-2026-01" in algorithm.AlgorithmParameters
    assert "threshold=3" in algorithm.AlgorithmParameters


def test_the_picture_area_keeps_the_place_of_its_slice(source):
    ds = source.captures(margin=0)[-1]
    index = ds.InstanceNumber - 2
    rows, columns = overlay.picture_shape(
        source.shape[1:], tuple(np.linalg.norm(source.affine[:3, 1:3], axis=0))
    )
    right, down = np.reshape([float(v) for v in ds.ImageOrientationPatient], (2, 3))
    row_mm, column_mm = (float(v) for v in ds.PixelSpacing)

    def place(row, column):
        return (
            np.array(ds.ImagePositionPatient, float)
            + down * row_mm * row
            + right * column_mm * column
        )

    def source_place(i, j):
        return (source.affine @ [index, i, j, 1.0])[:3]

    # the outer corners of the pixels at the corners of both images are the same points
    height, width = source.shape[1:]
    assert place(-0.5, -0.5) == pytest.approx(source_place(-0.5, -0.5), abs=1e-3)
    assert place(rows - 0.5, columns - 0.5) == pytest.approx(
        source_place(height - 0.5, width - 0.5), abs=1e-3
    )
    assert min(rows, columns) >= 384
    assert row_mm == pytest.approx(column_mm, rel=0.01)
    assert ds.Rows > rows
    assert ds.Columns == columns
    assert ds.FrameOfReferenceUID == "1.2.3.3"
    assert ds.SourceImageSequence[0].ReferencedSOPInstanceUID == f"1.2.3.4.{index + 1}"


def test_the_picture_shows_heat_where_the_anomaly_was_planted(source):
    k, i, j = source.planted
    ds = next(ds for ds in source.captures() if ds.InstanceNumber == k + 2)
    rows, columns = overlay.picture_shape(
        source.shape[1:], tuple(np.linalg.norm(source.affine[:3, 1:3], axis=0))
    )
    pixels = ds.pixel_array.astype(int)
    row = int((i + 0.5) * rows / source.shape[1])
    column = int((j + 0.5) * columns / source.shape[2])
    red, _, blue = pixels[row, column]
    assert red > blue + 50
    red, green, blue = pixels[rows * 3 // 4, columns * 2 // 3]
    assert red == green == blue


def test_objects_are_the_same_bytes_when_made_again():
    first, second = Source(), Source()
    assert to_bytes(first.segmentation()) == to_bytes(second.segmentation())
    for one, other in zip(first.captures("all"), second.captures("all"), strict=True):
        assert to_bytes(one) == to_bytes(other)


@pytest.mark.parametrize(
    "changed",
    [{"threshold": 3.5}, {"fingerprint": "f"}, {"batch_version": "brain-2026-02"}],
)
def test_another_score_makes_another_series(changed):
    other = ScoreSummary(**{n: getattr(SCORE, n) for n in SCORE.__slots__} | changed)
    source = Source()
    before, after = source.segmentation(), source.segmentation(other)
    assert before.SeriesInstanceUID != after.SeriesInstanceUID
    assert before.SOPInstanceUID != after.SOPInstanceUID


def test_every_instance_has_its_own_uid():
    source = Source()
    made = [source.segmentation(), *source.captures("all")]
    assert len({ds.SOPInstanceUID for ds in made}) == len(made)
    assert len({ds.SeriesInstanceUID for ds in made}) == 2
    assert len({ds.InstanceNumber for ds in made[1:]}) == source.shape[0] + 1


def test_objects_say_which_space_of_the_batch_was_used():
    values = {name: getattr(SCORE, name) for name in SCORE.__slots__}
    in_space = ScoreSummary(**values | {"space": "5f3a0c1b9d2e"})
    assert provenance.equipment(in_space, "node-1").software_versions[3:] == ["space 5f3a0c1b9d2e"]
    assert len(provenance.equipment(SCORE, "node-1").software_versions) == 3
    (algorithm,) = algorithm_identification(in_space)
    assert "space=5f3a0c1b9d2e" in algorithm.AlgorithmParameters
    (algorithm,) = algorithm_identification(SCORE)
    assert "space=" not in algorithm.AlgorithmParameters


def test_objects_say_whose_and_what_they_are():
    source = Source()
    for ds in (source.segmentation(), *source.captures()):
        for keyword in set(PATIENT) - {
            "BodyPartExamined",
            "Manufacturer",
            "SliceThickness",
            "PositionReferenceIndicator",
        }:
            assert str(ds[keyword].value) == PATIENT[keyword]
        assert ds.StudyInstanceUID == "1.2.3.1"
        assert ds.ContentQualification == "RESEARCH"
        assert ds.Manufacturer == "dicom_node"
        assert ds.DeviceSerialNumber == "node-1"
        assert list(ds.SoftwareVersions)[1:] == [SCORE.fingerprint, SCORE.batch_version]
        assert ds.InstanceCreatorUID == INSTANCE_CREATOR_UID
        assert ds.file_meta.ImplementationClassUID == IMPLEMENTATION_CLASS_UID
        # 20:30 UTC is the next morning at +0900
        assert ds.ContentDate == ds.InstanceCreationDate == "20260201"
        assert str(ds.ContentTime) == "053015.250000"


@pytest.mark.parametrize(
    "changed",
    [
        dict.fromkeys(PATIENT) | {"BodyPartExamined": "HEAD"},
        {"PatientSex": ""},
        {"PatientName": "", "PatientID": ""},
        {"SliceThickness": None, "Manufacturer": None, "TimezoneOffsetFromUTC": None},
        {"BodyPartExamined": "CHEST", "LossyImageCompression": "01"},
    ],
)
def test_missing_attributes_are_no_obstacle(changed, tmp_path):
    source = Source(**changed)
    assert errors_of(source.segmentation(), tmp_path) == []
    for ds in source.captures()[:2]:
        assert errors_of(ds, tmp_path) == []
        if changed.get("LossyImageCompression"):
            assert ds.LossyImageCompression == "01"


#: keyword, what the sender wrote, what the objects say
FAULTS = [
    ("PatientBirthDate", "1960", ""),
    ("PatientSex", "X", ""),
    ("StudyTime", "101112.1234567", ""),
    ("PatientName", "Single", "Single"),
    ("PatientID", "P" * 70, "P" * 70),
    ("AccessionNumber", "A" * 20, "A" * 20),
    ("TimezoneOffsetFromUTC", "nonsense", None),
]


@pytest.mark.parametrize(("keyword", "written", "kept"), FAULTS)
def test_faulty_values_are_dropped_and_identity_is_kept(keyword, written, kept):
    source = Source()
    for ds in source.headers:
        element = pydicom.DataElement(
            ds[keyword].tag, ds[keyword].VR, written, validation_mode=pydicom.config.IGNORE
        )
        ds.add(element)
    for made in (source.segmentation(), source.captures()[1]):
        with pydicom.config.disable_value_validation():
            value = reread(made).get(keyword)
        assert (None if kept is None else str(value or "")) == kept
    assert str(source.headers[0][keyword].value) == written


def test_a_long_patient_id_survives_a_source_read_from_its_bytes():
    source = Source()
    tag = source.headers[0]["PatientID"].tag
    for number, ds in enumerate(source.headers):
        ds.add(pydicom.DataElement(tag, "LO", "P" * 70, validation_mode=pydicom.config.IGNORE))
        ds.file_meta = FileMetaDataset()
        ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        source.headers[number] = reread(ds)
    made = source.segmentation()
    assert made.PatientID == "P" * 70


def test_laterality_is_never_made_up(tmp_path):
    source = Source(BodyPartExamined=None)
    assert errors_of(source.segmentation(), tmp_path) == []
    ds = source.captures()[1]
    assert not {"Laterality", "ImageLaterality", "BodyPartExamined"} & set(ds.dir())
    # the one complaint about such a source, and about what is made of it
    assert all("Laterality" in line for line in errors_of(ds, tmp_path))
    knee = Source(BodyPartExamined="KNEE", Laterality="R").captures()[1]
    assert (knee.Laterality, errors_of(knee, tmp_path)) == ("R", [])


def test_a_japanese_name_survives(tmp_path):
    source = Source()
    name = "Yamada^Tarou=山田^太郎=やまだ^たろう"
    source.headers = [_encoded(ds, name) for ds in source.headers]
    for ds in (source.segmentation(), source.captures()[1]):
        assert str(reread(ds).PatientName) == name
        assert ds.SpecificCharacterSet == "ISO_IR 192"
        assert errors_of(ds, tmp_path) == []


def _encoded(ds, name):
    """The header as a Japanese modality would have sent it, read back."""
    ds.SpecificCharacterSet = ["", "ISO 2022 IR 87"]
    ds.PatientName = name
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    return reread(ds)


def test_an_enhanced_image_is_referenced_by_frame(tmp_path):
    source = Source()
    source.headers = [_enhanced(source)]
    seg = source.segmentation()
    assert errors_of(seg, tmp_path) == []
    volume = hd.seg.Segmentation.from_dataset(reread(seg)).get_volume(combine_segments=True)
    world = volume.map_indices_to_reference(np.argwhere(volume.array == 1)).mean(axis=0)
    assert np.abs(world - source.findings[0].peak_mm).max() < 0.01
    ds = source.captures()[1]
    assert errors_of(ds, tmp_path) == []
    assert ds.SourceImageSequence[0].ReferencedFrameNumber == ds.InstanceNumber - 1


def _enhanced(source):
    """One multi-frame header in place of the slices."""
    ds = Dataset()
    first = source.headers[0]
    moved = ("PixelSpacing", "SliceThickness", "ImageOrientationPatient", "ImagePositionPatient")
    for element in first:
        if element.keyword not in moved:
            ds.add(element)
    ds.SOPClassUID = "1.2.840.10008.5.1.4.1.1.4.1"
    ds.SOPInstanceUID = "1.2.3.4.100"
    ds.NumberOfFrames = len(source.headers)
    shared, measures, orientation = Dataset(), Dataset(), Dataset()
    measures.PixelSpacing, measures.SliceThickness = first.PixelSpacing, first.SliceThickness
    orientation.ImageOrientationPatient = first.ImageOrientationPatient
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = [measures], [orientation]
    ds.SharedFunctionalGroupsSequence = [shared]
    frames = []
    for header in source.headers:
        frame, position = Dataset(), Dataset()
        position.ImagePositionPatient = header.ImagePositionPatient
        frame.PlanePositionSequence = [position]
        frames.append(frame)
    ds.PerFrameFunctionalGroupsSequence = frames
    return ds


def assert_results_lie_in_the_second_frame(source, folder):
    (header,) = source.headers
    frame = header.PerFrameFunctionalGroupsSequence[1]
    position = [float(v) for v in frame.PlanePositionSequence[0].ImagePositionPatient]
    seg = source.segmentation()
    assert errors_of(seg, folder) == []
    (segmented,) = seg.PerFrameFunctionalGroupsSequence
    (item,) = segmented.DerivationImageSequence[0].SourceImageSequence
    assert item.ReferencedFrameNumber == 2
    placed = segmented.PlanePositionSequence[0].ImagePositionPatient
    assert [float(v) for v in placed] == pytest.approx(position, abs=1e-4)
    found = hd.seg.Segmentation.from_dataset(reread(seg)).get_volume(combine_segments=True)
    (world,) = found.map_indices_to_reference(np.argwhere(found.array == 1))
    assert world == pytest.approx(source.findings[0].peak_mm, abs=0.01)
    capture = next(ds for ds in source.captures(margin=0) if ds.InstanceNumber == 3)
    assert capture.SourceImageSequence[0].ReferencedFrameNumber == 2
    corner = [float(v) for v in capture.ImagePositionPatient]
    index = np.linalg.inv(source.affine) @ [*corner, 1.0]
    assert index[0] == pytest.approx(1.0, abs=1e-3)
    # the picture's pixels are smaller than the source's, and their outer corners coincide
    assert ((index[1:3] > -0.5) & (index[1:3] <= 0.0)).all()


@pytest.mark.parametrize("shared", [True, False], ids=["shared", "per frame"])
@pytest.mark.parametrize("order", [range(9), range(8, -1, -1)], ids=["forwards", "backwards"])
def test_results_of_an_enhanced_image_lie_in_the_frame_they_name(tmp_path, order, shared):
    geometry = Geometry(rows=24, columns=20, n_slices=9, orientation=(*OBLIQUE[0], *OBLIQUE[1]))
    ds = make_enhanced("MR", geometry, order, shared=shared)
    source = EnhancedSource(write(ds, tmp_path / "enhanced.dcm"))
    assert_results_lie_in_the_second_frame(source, tmp_path)


@pytest.mark.parametrize("name", ["siemens_xa30_enhanced_t1", "siemens_xa10_enhanced"])
def test_results_of_a_real_enhanced_image_lie_in_the_frame_they_name(
    shared_data, tmp_path, monkeypatch, name
):
    monkeypatch.setattr(volume, "MIN_SLICES", 6)
    path = min(p for p in (shared_data / "dicom_variety" / name).rglob("*") if p.is_file())
    assert_results_lie_in_the_second_frame(EnhancedSource(path), tmp_path)


def test_without_findings_only_the_summary_is_made():
    source = Source()
    source.map[:] = 0.0
    source.findings, source.labels = (), np.zeros_like(source.labels)
    assert source.segmentation() is None
    (summary,) = source.captures("findings")
    assert "ImagePositionPatient" not in summary
    assert len(source.captures("all")) == source.shape[0] + 1


def test_margin_widens_the_slices_shown():
    numbers = [ds.InstanceNumber - 2 for ds in Source().captures(margin=1)]
    # planted in slice 1 and in 5 to 7
    assert numbers == [-1, 0, 1, 2, 4, 5, 6, 7, 8]


def test_objects_that_do_not_belong_together_are_refused():
    source = Source()
    source.headers = source.headers[:-1]
    with pytest.raises(ObjectError, match="label map"):
        source.segmentation()
    with pytest.raises(ObjectError, match="headers"):
        source.captures()


def test_a_finding_without_voxels_is_refused():
    source = Source()
    source.labels[source.labels == 2] = 0
    with pytest.raises(ObjectError, match=r"holds \[1\]"):
        source.segmentation()


def test_a_series_without_frame_of_reference_is_refused():
    source = Source()
    del source.headers[3].FrameOfReferenceUID
    with pytest.raises(ObjectError, match="Frame of Reference"):
        source.segmentation()


def test_derived_uids_are_valid_and_keep_the_parts_apart():
    uid = derived_uid("ab", "c")
    assert uid == derived_uid("ab", "c")
    assert uid != derived_uid("a", "bc")
    assert pydicom.uid.UID(uid).is_valid
    assert len(uid) <= 64


def test_the_heat_table_rises_in_luminance():
    luminance = drawing.heat_table().astype(float) @ (0.2126, 0.7152, 0.0722)
    assert (np.diff(luminance) > -0.5).all()
    assert luminance[-1] - luminance[0] > 150


@pytest.mark.parametrize("size", [13, 16])
def test_wrapped_lines_fit_and_lose_nothing(size):
    line = "reference batch " + "x" * 90 + " slice 3/120"
    parts = overlay.wrap(line, 200, size)
    font = drawing.ImageFont.load_default(size)
    assert all(font.getlength(part) <= 200 for part in parts)
    assert "".join(parts).replace(" ", "") == line.replace(" ", "")


@pytest.mark.parametrize(
    ("kind", "letters"),
    [("axial", ("R", "L", "A", "P")), ("sagittal", ("A", "P", "S", "I"))],
)
def test_letters_name_the_edges(kind, letters):
    affine = Source(kind).affine
    assert drawing.edge_letters(affine[:3, 1], affine[:3, 2]) == letters


@pytest.mark.parametrize("kind", sorted(set(SOURCES) - {"ct"}))
def test_the_summary_stands_up_whatever_the_acquisition(kind):
    source = Source(kind)
    standing = overlay._stand(source.voxels, source.map, source.labels, source.affine)
    index = standing.index(source.findings[0].peak_mm)
    assert standing.scores[index] == 8.0
    axes = standing.affine[:3, :3]
    assert [drawing.direction_letter(axes[:, axis]) for axis in range(3)] == ["I", "P", "L"]
    assert (standing.affine @ [*index, 1.0])[:3] == pytest.approx(source.findings[0].peak_mm)


@pytest.mark.parametrize(
    ("tissues", "window"),
    [
        ({-1000: 60, -800: 15, 40: 25}, (-250.0, 1500.0)),
        ({-1000: 50, -100: 15, 50: 35}, (40.0, 400.0)),
        ({-1000: 50, 35: 45, 900: 5}, (40.0, 100.0)),
    ],
)
def test_ct_windows_follow_the_tissue(tissues, window):
    values = np.repeat(list(tissues), list(tissues.values())).astype(np.float32)
    assert overlay.default_window(values.reshape(4, 5, 5), "CT") == window


def test_mr_window_spans_the_body():
    voxels = np.concatenate([np.zeros(500), np.linspace(100, 600, 500)]).astype(np.float32)
    center, width = overlay.default_window(voxels.reshape(10, 10, 10), "MR")
    assert center - width / 2 <= 0.0
    assert 550.0 < center + width / 2 <= 600.0


def test_a_constant_image_draws_nothing_bright():
    center, width = overlay.default_window(np.zeros((3, 3, 3), np.float32), "MR")
    assert width > 0.0
    assert (
        overlay.grey_levels(np.full((2, 2), center), (center, width)).tolist() == [[128, 128]] * 2
    )
