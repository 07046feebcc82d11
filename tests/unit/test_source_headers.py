"""Headers as senders write them: names in any alphabet, what is missing, what breaks its VR."""

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset

from dicom_node import findings, volume
from dicom_node.objects.secondary_capture import make_secondary_captures
from dicom_node.objects.segmentation import make_segmentation
from tests.make.instances import Geometry, make_series, part10, with_value, write
from tests.make.iod import faults
from tests.make.results import SCORE

SMALL = Geometry(rows=6, columns=5, n_slices=8)
#: character set, a name that it can write
NAMES = {
    "default": ("", "Doe^Jane"),
    "Latin 1": ("ISO_IR 100", "Müller^Jürgen"),
    "Latin 2": ("ISO_IR 101", "Dvořák^Antonín"),
    "Cyrillic": ("ISO_IR 144", "Пётр^Жданов"),
    "Greek": ("ISO_IR 126", "Διονυσιος^Αλέξης"),
    "Greek, extended": (["", "ISO 2022 IR 126"], "Διονυσιος^Αλέξης"),
    "Arabic": ("ISO_IR 127", "قباني^لنزار"),
    "Hebrew": ("ISO_IR 138", "שרון^דבורה"),
    "Thai": ("ISO_IR 166", "สมชาย^ใจดี"),
    "Japanese": (["", "ISO 2022 IR 87"], "Yamada^Tarou=山田^太郎=やまだ^たろう"),
    "Japanese, katakana": (
        ["ISO 2022 IR 13", "ISO 2022 IR 87"],
        "ﾔﾏﾀﾞ^ﾀﾛｳ=山田^太郎=やまだ^たろう",
    ),
    "Korean": (["", "ISO 2022 IR 149"], "Hong^Gildong=洪^吉洞=홍^길동"),
    "Chinese, GB2312": (["", "ISO 2022 IR 58"], "Zhang^XiaoDong=张^小东="),
    "Chinese, GB18030": ("GB18030", "Wang^XiaoDong=王^小东="),
    "Chinese, GBK": ("GBK", "Wang^XiaoDong=王^小东="),
    "Unicode": ("ISO_IR 192", "Wang^XiaoDong=王^小東="),
}


def results(found):
    """The SEG and the capture of the one slice with a finding."""
    scores = np.zeros(found.voxels.shape, np.float32)
    scores[3, 2, 2:4] = 8.0
    regions, labels = findings.locate(
        scores, found.affine, threshold=3.0, min_volume_ml=0.0, max_findings=5
    )
    naming = {"node_id": "n", "series_number": 9001, "series_description": "anomaly"}
    seg = make_segmentation(found.headers, labels, regions, SCORE, **naming)
    page = np.zeros((8, 8, 3), np.uint8)
    layers = (found.voxels, scores, labels, found.affine)
    captures = make_secondary_captures(
        found.headers, *layers, page, SCORE, slices="findings", margin=0, **naming
    )
    return seg, list(captures)[1]


def reread(ds, path):
    ds.save_as(path, enforce_file_format=True)
    return pydicom.dcmread(path)


def built(folder, datasets):
    return volume.build([write(ds, folder / f"{at}.dcm") for at, ds in enumerate(datasets)])


@pytest.mark.parametrize("script", NAMES)
def test_a_name_in_any_character_set_comes_out_the_same(tmp_path, script):
    charset, name = NAMES[script]
    # the parts that are no name: one group of it, which any script has
    text = name.split("=")[-2 if name.endswith("=") else -1].replace("^", " ")
    # the library writes no escapes for GB 2312: the file gets those of the name and the texts below
    bare = "IR 58" in str(charset)
    inner, physician = ("Zhang", "Zhang^X") if bare else (text, name)
    other, code = Dataset(), Dataset()
    other.PatientID, other.IssuerOfPatientID, other.TypeOfPatientID = "P-2", inner, "TEXT"
    code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = "1", "99X", inner
    slices = make_series("MR", SMALL, SpecificCharacterSet=charset)
    for ds in slices:
        ds.PatientName = name
        ds.StudyDescription = ds.PatientComments = text
        ds.OtherPatientIDsSequence, ds.ProcedureCodeSequence = [other], [code]
        ds.PhysiciansOfRecord = [physician, "Roe^Richard"]
    files = [write(ds, tmp_path / f"{at}.dcm") for at, ds in enumerate(slices)]
    if bare:
        for path in files:
            path.write_bytes(with_escapes(path.read_bytes()))
    for number, made in enumerate(results(volume.build(files))):
        read = reread(made, tmp_path / f"result{number}.dcm")
        assert read.SpecificCharacterSet == "ISO_IR 192"
        assert str(read.PatientName) == name.rstrip("=")
        assert str(read.StudyDescription) == text
        assert str(read.PatientComments) == text
        assert [str(one) for one in read.PhysiciansOfRecord] == [
            physician.rstrip("="),
            "Roe^Richard",
        ]
        assert read.OtherPatientIDsSequence[0].IssuerOfPatientID == inner
        assert read.ProcedureCodeSequence[0].CodeMeaning == inner
        assert faults(tmp_path / f"result{number}.dcm") == []


def with_escapes(content):
    """The file with its name in GB 2312 as PS3.5 K.2 writes it."""
    for keyword, value in (
        ("PatientName", b"Zhang^XiaoDong=\x1b$)A\xd5\xc5^\x1b$)A\xd0\xa1\xb6\xab="),
        ("StudyDescription", b"\x1b$)A\xd5\xc5 \xd0\xa1\xb6\xab"),
        ("PatientComments", b"\x1b$)A\xd5\xc5 \xd0\xa1\xb6\xab"),
    ):
        content = with_value(content, keyword, value)
    return content


#: a volume has a place and pixels; the inbox wants the identity (PS3.3 C.12.1, C.7.2.1, C.7.3.1)
NEEDED = {
    *("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID"),
    *("FrameOfReferenceUID", "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"),
    *("Rows", "Columns", "BitsAllocated", "PixelData"),
    # refused where values of a CT could be anything, in test_source_pixels
    "RescaleIntercept",
}


def optional(ds):
    return [element.keyword for element in ds if element.keyword not in NEEDED]


@pytest.mark.parametrize("modality", ["MR", "CT"])
def test_no_attribute_but_place_pixels_and_identity_is_needed(tmp_path, modality):
    expected = built(tmp_path, make_series(modality, SMALL))
    for keyword in optional(make_series(modality, SMALL)[0]):
        slices = make_series(modality, SMALL, **{keyword: None})
        if keyword == "PixelRepresentation" and modality == "CT":
            continue  # signed or not: refused, in test_source_pixels
        found = built(tmp_path, slices)
        np.testing.assert_array_equal(found.voxels, expected.voxels, err_msg=keyword)
        np.testing.assert_array_equal(found.affine, expected.affine, err_msg=keyword)


def test_results_need_no_attribute_but_those_of_a_volume(tmp_path):
    slices = make_series("MR", SMALL)
    for ds in slices:
        for keyword in optional(ds):
            delattr(ds, keyword)
    for number, made in enumerate(results(built(tmp_path, slices))):
        reread(made, tmp_path / f"result{number}.dcm")
        # the one complaint about such a source: nobody may make up a side
        found = faults(tmp_path / f"result{number}.dcm")
        assert all("Laterality" in line for line in found), found


#: what senders write; none of it may cost more than itself
BROKEN = {
    "ImageType": b"original\\primary\\other!",
    "StudyDate": b"2024-01-02",
    "SeriesDate": b"yesterday",
    "ContentDate": b"00000000",
    "StudyTime": b"25:99",
    "SeriesTime": b"101112.1234567",
    "ContentTime": b"noon",
    "AccessionNumber": b"A" * 40,
    "StudyDescription": b"D" * 90,
    "SeriesDescription": b"\xff\xfe\x00",
    "PatientName": b"No Caret, Doctor",
    "PatientID": b"P" * 70,
    "PatientBirthDate": b"1960",
    "PatientSex": b"female",
    "PatientAge": b"66",
    "PatientWeight": b"heavy",
    "BodyPartExamined": b"head & neck",
    "SliceThickness": b"3mm",
    "EchoTime": b"ten",
    "RepetitionTime": b"nan",
    "ScanningSequence": b"spin-echo, fast and long",
    "StudyID": b"S" * 30,
    "SeriesNumber": b"one",
    "InstanceNumber": b"1.5",
    "PatientPosition": b"head first",
    "TimezoneOffsetFromUTC": b"CET",
    "Manufacturer": b"M" * 80,
    "SoftwareVersions": b"V" * 80,
    # 17 and more characters, as programs print them
    "PixelSpacing": b"1.00000000000000000\\1.000000000000000000",
    "ImageOrientationPatient": b"1.00000000000000000\\0\\0\\0\\1.00000000000000000\\0",
    "Laterality": b"left",
}
FILLED = {
    "PatientAge": "066Y",
    "PatientWeight": 70,
    "TimezoneOffsetFromUTC": "+0100",
    "SoftwareVersions": "1",
    "Laterality": "L",
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("mode", [pydicom.config.WARN, pydicom.config.RAISE], ids=["warn", "raise"])
def test_a_value_that_breaks_its_vr_costs_nothing_but_itself(tmp_path, monkeypatch, mode):
    expected = built(tmp_path, make_series("MR", SMALL))
    slices = [part10(ds) for ds in make_series("MR", SMALL, **FILLED)]
    monkeypatch.setattr(pydicom.config.settings, "reading_validation_mode", mode)
    every = slices
    for keyword, value in BROKEN.items():
        every = [with_value(content, keyword, value) for content in every]
        assert_same_volume(tmp_path, [with_value(one, keyword, value) for one in slices], expected)
    found = assert_same_volume(tmp_path, every, expected)
    for number, made in enumerate(results(found)):
        read = reread(made, tmp_path / f"result{number}.dcm")
        assert read.PatientBirthDate == ""
        with pydicom.config.disable_value_validation():
            assert read.PatientID == "P" * 70
        # identity longer than its VR is kept; nobody may make up a side that the sender misspelt
        complaints = faults(tmp_path / f"result{number}.dcm")
        known = ("Value invalid for this VR", "Laterality")
        assert all(any(word in line for word in known) for line in complaints), complaints


def assert_same_volume(folder, contents, expected):
    files = [folder / f"broken{at}.dcm" for at in range(len(contents))]
    for path, content in zip(files, contents, strict=True):
        path.write_bytes(content)
    found = volume.build(files)
    np.testing.assert_array_equal(found.voxels, expected.voxels)
    np.testing.assert_array_equal(found.affine, expected.affine)
    return found
