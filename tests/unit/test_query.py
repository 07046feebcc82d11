"""What is asked of an archive, and what is made of its answers."""

from datetime import date
from io import BytesIO

import pydicom.config
import pytest
from pydicom.uid import ExplicitVRLittleEndian
from pynetdicom.dsutils import decode, encode

from dicom_node.association.query import SeriesQuery, StudyQuery
from dicom_node.errors import ConfigError
from tests.make.archives import answer


def sent(ds):
    """An answer as it comes off the wire, nothing of it decoded yet."""

    return decode(BytesIO(encode(ds, False, True)), False, True)


@pytest.mark.parametrize(
    ("first", "last", "written"),
    [
        (date(2024, 1, 2), date(2024, 12, 31), "20240102-20241231"),
        (date(2024, 1, 2), None, "20240102-"),
        (None, date(2024, 1, 2), "-20240102"),
        (date(2024, 1, 2), date(2024, 1, 2), "20240102"),
        (None, None, ""),
    ],
)
def test_dates_are_sent_as_a_range(first, last, written):
    assert StudyQuery(first, last).identifier().StudyDate == written


def test_a_pattern_with_other_letters_goes_out_in_a_character_set_that_has_them():
    ds = StudyQuery(description="*Schädel 頭*").identifier()
    back = sent(ds)
    assert back.SpecificCharacterSet == "ISO_IR 192"
    assert back.StudyDescription == "*Schädel 頭*"
    assert "SpecificCharacterSet" not in StudyQuery(description="*head*").identifier()


def test_a_series_is_asked_for_in_its_study_and_all_keys_are_asked_for():
    ds = SeriesQuery("MR", series_instance_uids=("1.2", "1.3")).identifier("1")
    assert (ds.QueryRetrieveLevel, ds.StudyInstanceUID, ds.Modality) == ("SERIES", "1", "MR")
    assert list(ds.SeriesInstanceUID) == ["1.2", "1.3"]
    assert {"SeriesDescription", "BodyPartExamined", "NumberOfSeriesRelatedInstances"} <= {
        element.keyword for element in ds
    }
    encode(ds, False, ExplicitVRLittleEndian.is_little_endian)


STUDY = {
    "StudyInstanceUID": "1.2",
    "StudyDate": "20240102",
    "ModalitiesInStudy": ["SR", "MR"],
    "StudyDescription": "Head T1",
    "PatientID": "P1",
    "NumberOfStudyRelatedInstances": 5,
}


@pytest.mark.parametrize(
    ("query", "kept"),
    [
        (StudyQuery(), True),
        (StudyQuery(date_from=date(2024, 1, 2)), True),
        (StudyQuery(date_from=date(2024, 1, 3)), False),
        (StudyQuery(date_to=date(2024, 1, 1)), False),
        (StudyQuery(modality="mr"), True),
        (StudyQuery(modality="CT"), False),
        (StudyQuery(description="head*"), True),
        (StudyQuery(description="head"), False),
        (StudyQuery(description="H??d T[1]"), False),
        (StudyQuery(description="H??d T?"), True),
        (StudyQuery(patient_id="P2"), False),
        (StudyQuery(study_instance_uids=("1.3",)), False),
    ],
)
def test_what_a_peer_that_ignores_keys_answers_is_checked_again(query, kept):
    record = query.record_of(sent(answer(**STUDY)))
    assert (record is not None) == kept
    if kept:
        assert (record.n_instances, record.modalities, record.unchecked) == (5, ("SR", "MR"), ())
        assert "P1" not in repr(record)


def test_what_a_peer_does_not_say_is_kept_and_named():
    query = StudyQuery(date_from=date(2024, 1, 1), modality="MR", description="*t1*")
    record = query.record_of(sent(answer(StudyInstanceUID="1.2", StudyDate="")))
    assert record.unchecked == ("StudyDate", "ModalitiesInStudy", "StudyDescription")
    assert (record.n_series, record.date) == (None, None)


def test_an_answer_in_a_character_set_without_the_letters_says_neither_yes_nor_no():
    query = SeriesQuery(description="*頭*")
    lossy = answer(
        SeriesInstanceUID="1.3", SeriesDescription="T1", SpecificCharacterSet="ISO_IR 100"
    )
    assert query.record_of(sent(lossy), "1").unchecked == ("SeriesDescription",)
    lossy.SpecificCharacterSet = "ISO_IR 192"
    assert query.record_of(sent(lossy), "1") is None


def test_a_brain_is_a_head_and_numbers_are_held_against_their_range():
    ds = sent(
        answer(SeriesInstanceUID="1.3", BodyPartExamined="BRAIN", NumberOfSeriesRelatedInstances=9)
    )
    assert SeriesQuery(body_part="head").record_of(ds, "1").body_part == "BRAIN"
    assert SeriesQuery(body_part="chest").record_of(ds, "1") is None
    assert SeriesQuery(least_instances=9, most_instances=9).record_of(ds, "1") is not None
    assert SeriesQuery(least_instances=10).record_of(ds, "1") is None
    assert SeriesQuery(most_instances=8).record_of(ds, "1") is None


@pytest.mark.parametrize("uid", ["", "../evil", "1.2\n3", "9" * 65])
def test_an_answer_without_a_uid_is_none(uid):

    settings = pydicom.config.settings
    settings.reading_validation_mode = settings.writing_validation_mode = pydicom.config.IGNORE
    ds = answer(StudyInstanceUID=uid, SeriesInstanceUID=uid)
    assert StudyQuery().record_of(ds) is None
    assert SeriesQuery().record_of(ds, "1") is None


def test_a_series_of_another_study_is_none():
    ds = answer(StudyInstanceUID="2", SeriesInstanceUID="2.1")
    assert SeriesQuery().record_of(ds, "1") is None
    assert SeriesQuery().record_of(ds, "2").series_instance_uid == "2.1"


@pytest.mark.parametrize(
    "values",
    [
        {"description": "a\\b"},
        {"description": "x" * 65},
        {"patient_id": "a\nb"},
        {"study_instance_uids": ("1.2*",)},
        {"date_from": date(2024, 1, 2), "date_to": date(2024, 1, 1)},
    ],
)
def test_what_no_key_can_hold_is_refused(values):
    with pytest.raises(ConfigError):
        StudyQuery(**values)
