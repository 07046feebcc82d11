"""Which scans lie in a folder, what they are called, and which mask is whose."""

import numpy as np
import pydicom
import pytest

from dicom_node.batch.inputs import find
from dicom_node.errors import ConfigError, UnsupportedPixels
from tests.make import scans

TINY = np.zeros((8, 8, 8))


def files(folder, *names):
    for name in names:
        scans.write_scan(folder, name, TINY)


def names_in(folder, images=None, masks=None):
    return [scan.name for scan in find([folder], images, masks).scans]


def masks_in(folder, masks=None):
    found = find([folder], None, masks)
    return {scan.name: scan.mask and scan.mask.name for scan in found.scans}


# -- scans ------------------------------------------------------------------------------------


def test_folders_are_searched_to_the_bottom_and_other_files_passed_over(tmp_path):
    files(tmp_path / "a" / "b", "one")
    files(tmp_path, "two")
    (tmp_path / "notes.txt").write_text("nothing", "utf-8")
    (tmp_path / "DICOMDIR").write_bytes(b"\0" * 200)
    assert sorted(names_in(tmp_path)) == ["one", "two"]


def test_a_file_may_be_named_and_counts_once(tmp_path):
    files(tmp_path, "one")
    found = find([tmp_path, tmp_path / "one.nii.gz", tmp_path / "."], None, None)
    assert [scan.name for scan in found.scans] == ["one"]


def test_a_place_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ConfigError, match="nowhere does not exist"):
        find([tmp_path / "nowhere"], None, None)


def test_own_results_are_no_scans(tmp_path):
    files(tmp_path, "one")
    files(tmp_path / "scores" / "maps", "one")
    found = find([tmp_path], None, None, leave_out=tmp_path / "scores")
    assert [scan.files[0].parent for scan in found.scans] == [tmp_path]


def test_stems_that_several_folders_have_are_told_apart_by_the_folder(tmp_path):
    for patient in ("p1", "p2"):
        files(tmp_path / patient, "T1")
    files(tmp_path / "p3", "T1_other")
    assert sorted(names_in(tmp_path)) == ["T1_other", "p1_T1", "p2_T1"]


def test_names_are_safe_and_unique_whatever_the_header_holds(tmp_path):
    for seed, patient in enumerate(("../../evil", "A B", "A/B", "", "a b")):
        scans.write_series(tmp_path / str(seed), seed, PatientID=patient)
    names = names_in(tmp_path)
    assert sorted(names) == ["A-B_3", "A-B_3-2", "a-b_3-3", "evil_3", "unknown_3"]
    assert not any("/" in name for name in names)


def test_series_are_grouped_by_uid_and_an_instance_counts_once(tmp_path):
    scans.write_series(tmp_path / "all", 1)
    scans.write_series(tmp_path / "all" / "copy", 1)
    scans.write_series(tmp_path / "two", 2)
    found = find([tmp_path], None, None).scans
    assert sorted((scan.name, len(scan.files), scan.modality) for scan in found) == [
        ("P1_3", 16, "MR"),
        ("P2_3", 16, "MR"),
    ]
    assert found[0].load().voxels.shape == (16, 32, 32)


def test_series_of_one_patient_share_the_patient_and_sort_by_date(tmp_path):
    scans.write_series(tmp_path / "a", 1, StudyDate="20260301")
    scans.write_series(tmp_path / "b", 2, PatientID="P1", StudyDate="20250301")
    scans.write_series(tmp_path / "c", 3)
    by_name = {scan.scanned[:8]: scan.patient for scan in find([tmp_path], None, None).scans}
    assert by_name["20260301"] == by_name["20250301"] != by_name["20260101"]
    assert min(by_name) == "20250301"


def test_images_choose_files_by_name_and_series_by_description(tmp_path):
    files(tmp_path, "p1_flair", "p1_t1", "p2_FLAIR")
    scans.write_series(tmp_path / "a", 1, SeriesDescription="Ax FLAIR fs")
    scans.write_series(tmp_path / "b", 2, SeriesDescription="Ax T1")
    assert sorted(names_in(tmp_path, images="*flair*")) == ["P1_3", "p1_flair", "p2_FLAIR"]


def test_other_objects_of_an_export_are_no_scans(tmp_path):
    scans.write_series(tmp_path / "a", 1)
    path = sorted((tmp_path / "a").iterdir())[0]
    ds = pydicom.dcmread(path)
    ds.Modality, ds.SeriesInstanceUID = "SR", "1.2.3"
    ds.save_as(tmp_path / "report.dcm")
    assert names_in(tmp_path) == ["P1_3"]


def test_an_instance_that_is_damaged_after_its_header_refuses_the_series(tmp_path):
    scans.write_series(tmp_path / "a", 1)
    path = sorted((tmp_path / "a").iterdir())[4]
    path.write_bytes(path.read_bytes()[:-700])
    [scan] = find([tmp_path], None, None).scans
    with pytest.raises(UnsupportedPixels):
        scan.load()


def test_the_content_changes_with_a_byte_and_not_with_the_place(tmp_path):
    scans.write_series(tmp_path / "a", 1)
    [before] = find([tmp_path], None, None).scans
    content = before.content()
    (tmp_path / "a").rename(tmp_path / "b")
    [moved] = find([tmp_path], None, None).scans
    assert moved.content() == content
    scans.write_series(tmp_path / "b", 1, EchoTime=11)
    assert moved.content() != content


# -- masks ------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["_label", "_seg", "_mask", "-seg", "_LABEL"])
def test_a_mask_belongs_to_the_image_whose_name_it_shares(tmp_path, suffix):
    files(tmp_path, "BRATS_460_flair", f"BRATS_460{suffix}", "BRATS_461_flair")
    assert masks_in(tmp_path) == {
        "BRATS_460_flair": f"BRATS_460{suffix}.nii.gz",
        "BRATS_461_flair": None,
    }


def test_the_name_is_shared_word_by_word_and_the_longest_wins(tmp_path):
    files(tmp_path, "sub-1_t1", "sub-12_t1", "sub-1_2_t1", "sub-1_label", "sub-1_2_label")
    assert masks_in(tmp_path) == {
        "sub-1_t1": "sub-1_label.nii.gz",
        "sub-12_t1": None,
        "sub-1_2_t1": "sub-1_2_label.nii.gz",
    }


def test_masks_may_be_named_by_any_pattern_and_lie_elsewhere(tmp_path):
    files(tmp_path / "images", "a_0000", "b_0000")
    files(tmp_path / "labels", "a", "b", "c")
    assert masks_in(tmp_path, "labels/*") == {"a_0000": "a.nii.gz", "b_0000": "b.nii.gz"}
    stray = find([tmp_path], None, "labels/*").stray_masks
    assert [path.name for path in stray] == ["c.nii.gz"]


def test_a_pattern_may_begin_with_the_suffix(tmp_path):
    files(tmp_path, "truth-a", "a_t1")
    assert masks_in(tmp_path, "truth-*") == {"a_t1": "truth-a.nii.gz"}


def test_a_mask_without_a_base_belongs_to_the_images_beside_it(tmp_path):
    for patient in ("p1", "p2"):
        files(tmp_path / patient, "FLAIR", "GOLD")
    found = find([tmp_path], None, "GOLD.nii.gz").scans
    assert [(s.files[0].parent, s.mask.parent) for s in found] == [
        (tmp_path / patient, tmp_path / patient) for patient in ("p1", "p2")
    ]


def test_of_masks_of_one_name_that_in_the_own_folder_counts(tmp_path):
    for site in ("a", "b"):
        files(tmp_path / site, "001_t1", "001_label")
    found = find([tmp_path], None, None).scans
    assert all(scan.mask.parent == scan.files[0].parent for scan in found)


def test_two_masks_that_fit_alike_are_an_error_that_names_both(tmp_path):
    files(tmp_path, "001_t1", "001_label", "001_seg")
    with pytest.raises(ConfigError, match=r"001_label.*001_seg.*--masks"):
        find([tmp_path], None, None)


def test_a_mask_is_never_scored_even_without_its_image(tmp_path):
    files(tmp_path, "a_label", "b_t1")
    found = find([tmp_path], "*", None)
    assert [scan.name for scan in found.scans] == ["b_t1"]
    assert [path.name for path in found.stray_masks] == ["a_label.nii.gz"]
