"""One word per body region, whatever the sender calls it."""

import pytest
from pydicom.dataset import Dataset

from dicom_node.body_parts import guessed, normalised, of_header


@pytest.mark.parametrize(
    ("written", "region"),
    [
        *[(word, "HEAD") for word in ("HEAD", "brain", " Skull ", "CEREBRAL", "Schaedel")],
        *[(word, "CHEST") for word in ("CHEST", "Thorax", "LUNG", "LUNGS")],
        *[(word, "HEADNECK") for word in ("HEADNECK", "Head and Neck", "HEAD_NECK")],
        *[(word, "CSPINE") for word in ("CSPINE", "C SPINE", "C-SPINE", "Cervical spine")],
        ("LSPINE", "LSPINE"),
        ("TSPINE", "TSPINE"),
        ("CHESTABDPELVIS", "CHESTABDPELVIS"),
        ("CHEST_TO_PELVIS", "CHESTTOPELVIS"),
        ("PARTIALBODY", "PARTIALBODY"),
        ("", None),
        (" - ", None),
    ],
)
def test_words_of_one_region_are_one_word_and_unknown_ones_stay(written, region):
    assert normalised(written) == region


@pytest.mark.parametrize(
    ("description", "region"),
    [
        ("2 Chest C-/Thorax", "CHEST"),
        ("e+1 KNEE-RT.", "KNEE"),
        ("MR lumbar spine without", "LSPINE"),
        ("CT chest abd pelvis", "CHESTABDPELVIS"),
        ("CT Head^Routine", "HEAD"),
        ("head and neck CTA", "HEADNECK"),
        ("headache", None),
        ("6.9 Colonoscopy", "ABDOMEN"),
        ("t1_mprage_sag", None),
        ("", None),
    ],
)
def test_a_description_is_searched_for_whole_words(description, region):
    assert guessed(description) == region


def test_the_study_says_more_of_the_region_than_the_series():
    ds = Dataset()
    ds.SeriesDescription, ds.StudyDescription = "neck vessels", "Brain"
    assert of_header(ds) == ("HEAD", "a guess from StudyDescription")
    del ds.StudyDescription
    assert of_header(ds) == ("NECK", "a guess from SeriesDescription")
    del ds.SeriesDescription
    assert of_header(ds) == (None, None)
