"""Results that come back are known by creator, equipment or UID; nobody else's are taken."""

import pytest
from pydicom import uid
from pydicom.dataset import Dataset

from dicom_node import clock
from dicom_node.errors import OwnResult, UnreadableDataSet, UnsupportedSOPClass
from dicom_node.identity import (
    INSTANCE_CREATOR_UID,
    MANUFACTURER,
    MODEL_NAME,
    RESULT_SOP_CLASSES,
)
from dicom_node.inbox import Inbox
from dicom_node.line import Line
from dicom_node.store import result_table
from tests.make import ledgers
from tests.make.instances import received

CREATOR = {"InstanceCreatorUID": INSTANCE_CREATOR_UID}
EQUIPMENT = {"Manufacturer": MANUFACTURER, "ManufacturerModelName": MODEL_NAME}


def an_object(sop_class, **attributes):
    ds = Dataset()
    ds.SOPClassUID, ds.SOPInstanceUID = sop_class, "1.2.3.1"
    ds.StudyInstanceUID, ds.SeriesInstanceUID = "1.2.3.2", "1.2.3.3"
    ds.Modality = "OT"
    for keyword, value in attributes.items():
        setattr(ds, keyword, value)
    ds.ContentLabel = "A" * 16
    return ds


@pytest.mark.parametrize("marks", [CREATOR, EQUIPMENT, CREATOR | EQUIPMENT])
@pytest.mark.parametrize("sop_class", RESULT_SOP_CLASSES, ids=lambda one: one.name)
def test_what_says_that_a_node_made_it_is_filed(tmp_path, sop_class, marks):
    filed = Inbox(tmp_path / "inbox", 0).file_instance(received(an_object(sop_class, **marks)))
    assert filed.sop_class_uid == sop_class


@pytest.mark.parametrize("sop_class", RESULT_SOP_CLASSES, ids=lambda one: one.name)
def test_what_others_made_is_refused_and_leaves_no_file(tmp_path, sop_class):
    ds = an_object(sop_class, Manufacturer=MANUFACTURER, ManufacturerModelName="another")
    with pytest.raises(UnsupportedSOPClass, match=sop_class.name) as caught:
        Inbox(tmp_path / "inbox", 0).file_instance(received(ds))
    assert caught.value.status == 0x0122
    assert not list((tmp_path / "inbox").rglob("*.dcm"))


def test_what_has_lost_its_marks_is_known_by_its_uids(tmp_path):
    asked = []
    inbox = Inbox(tmp_path / "inbox", 0, lambda *uids: asked.append(uids) or True)
    inbox.file_instance(received(an_object(uid.SegmentationStorage)))
    assert asked == [("1.2.3.1", "1.2.3.3")]


def test_one_that_is_cut_off_is_refused(tmp_path):
    made = received(an_object(uid.Comprehensive3DSRStorage, **EQUIPMENT))
    for n_lost in (1, 20, 60):
        cut = received(
            an_object(uid.Comprehensive3DSRStorage, **EQUIPMENT), encoded=made.encoded[:-n_lost]
        )
        with pytest.raises(UnreadableDataSet):
            Inbox(tmp_path / "inbox", 0).file_instance(cut)


def test_the_ledger_knows_results_by_either_uid(tmp_path):
    with ledgers.ledger(tmp_path) as database:
        number = ledgers.record_score(database, ledgers.score())
        made = ledgers.result_object(1, number)
        with database.begin() as db:
            result_table.record_results(db, number, [], [made], (), clock.now())
        with database.read() as db:
            assert result_table.is_result(db, made.sop_instance_uid, "")
            assert result_table.is_result(db, "", made.series_instance_uid)
            assert not result_table.is_result(db, "1.2.3.4", "1.2.3.5")
        line = Line.__new__(Line)
        line.database = database
        with pytest.raises(OwnResult):
            line.refuse_own(made.series_instance_uid)
        line.refuse_own("1.2.3.5")
