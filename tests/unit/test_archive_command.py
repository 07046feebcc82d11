"""The verbs of archives, against peers that answer as each test says."""

import json

import pytest

from dicom_node.config import load
from dicom_node.folders import Folders
from dicom_node.store import owed_table
from dicom_node.store.database import Database, migrate
from tests.make.archives import answer, archive, sendable
from tests.make.console import runner
from tests.make.instances import make_instance


@pytest.fixture
def call(monkeypatch, capsys, tmp_path):
    return runner(monkeypatch, capsys, tmp_path, "archive", columns=300)


def configure(folder, peer, retrieve="get"):
    """A node whose ledger is there; its receiver does not run."""
    (folder / "config.toml").write_text(
        '[node]\ndata_dir = "data"\n[receiver]\nport = 9\n[storage]\nreserve = "0 B"\n'
        f'[[archive]]\nname = "pacs"\nae_title = "{peer.ae_title}"\nhost = "{peer.host}"\n'
        f'port = {peer.port}\ntimeout = "20 s"\nretrieve = "{retrieve}"\n'
    )
    Folders(folder / "data").create()
    migrate(Folders(folder / "data").database)


def held(*instances):
    """C-FIND of an archive that holds these, and ignores all keys but the UIDs above a level."""

    def find(event):
        level = event.identifier.QueryRetrieveLevel
        keys = {"STUDY": 1, "SERIES": 2, "IMAGE": 3}[level]
        names = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")[:keys]
        for ds in instances:
            found = {name: ds[name].value for name in (*names, "Modality", "StudyDate")}
            if level == "STUDY":
                found |= {"ModalitiesInStudy": ds.Modality, "PatientID": ds.PatientID}
            above = names[:-1]
            if all(event.identifier[name].value == ds[name].value for name in above):
                yield 0xFF00, answer(**found)

    return find


#: connections that failed are forgotten by the library, not closed
pytestmark = pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
MR, CT = make_instance("MR"), make_instance("CT", seed=1)


def test_series_are_listed_without_patient_data(call, tmp_path):
    with archive(find=held(MR, CT)) as peer:
        configure(tmp_path, peer)
        status, out, _ = call(
            "find", "pacs", "--modality", "MR", "--date", "2024-01-01..", "--json"
        )
        found = json.loads(out)
        assert status == 0
        assert [one["series_instance_uid"] for one in found["found"]] == [MR.SeriesInstanceUID]
        status, out, errors = call("find", "pacs", "--body-part", "HEAD")
        assert (status, MR.SeriesInstanceUID in out) == (0, True)
        assert "does not say BodyPartExamined" in errors
        status, out, _ = call("find", "pacs", "--level", "study", "--json")
        assert {one["study_instance_uid"] for one in json.loads(out)["found"]} == {
            MR.StudyInstanceUID,
            CT.StudyInstanceUID,
        }
        assert "P0" not in out
        assert "patient" not in out


def test_the_series_of_a_study_are_fetched_and_held_against_the_ledger(call, tmp_path):
    def sends(_event):
        yield 1
        yield 0xFF00, sendable(MR)

    report = make_instance("MR", SeriesInstanceUID="1.2.3", Modality="SR")
    with archive(find=held(MR, report), get=sends) as peer:
        configure(tmp_path, peer)
        status, out, errors = call("retrieve", "pacs", "--study", MR.StudyInstanceUID)
    assert status == 0, out + errors
    assert "1 of 1 instances are here" in out
    assert "1 series are neither CT nor MR" in errors
    database = Database(Folders(load(tmp_path / "config.toml").node.data_dir).database)
    with database.read() as db:
        [(_, name, _)] = owed_table.received(db, [str(MR.SOPInstanceUID)]).values()
    database.close()
    assert (tmp_path / "data" / "inbox" / name).exists()


def test_what_an_archive_claims_and_does_not_send_is_missed(call, tmp_path):
    def claims(_event):
        yield 0

    with archive(find=held(MR), get=claims) as peer:
        configure(tmp_path, peer)
        uids = ("--study", MR.StudyInstanceUID, "--series", MR.SeriesInstanceUID)
        status, out, _ = call("retrieve", "pacs", *uids)
    assert status == 1
    assert "0 of 1 instances are here" in out


def test_c_move_needs_the_running_node(call, tmp_path):
    with archive(find=held(MR)) as peer:
        configure(tmp_path, peer, "move")
        status, _, errors = call("retrieve", "pacs", "--study", MR.StudyInstanceUID)
    assert status == 2
    assert "start it with dicom-node serve, or use --by get" in errors
    assert "AE title DICOM_NODE, this machine's host name, port 9" in errors


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("find", "other"), "no [[archive]] is named 'other'; there are ['pacs']"),
        (("find", "pacs", "--date", "01.02.2024"), 'write "2024-01-31" or a range'),
        (("find", "pacs", "--level", "patient"), '"series" or "study"'),
        (("retrieve", "pacs", "--study", "1.2*"), "is no UID"),
        (("retrieve", "pacs", "--study", "1.2", "--by", "post"), '"move" or "get"'),
    ],
)
def test_a_wrong_call_is_named(call, tmp_path, arguments, said):
    with archive() as peer:
        configure(tmp_path, peer)
        status, _, errors = call(*arguments)
    assert status == 2
    assert said in errors


def test_an_archive_that_is_not_there_is_named(call, tmp_path):
    with archive() as peer:
        configure(tmp_path, peer)
    status, _, errors = call("find", "pacs")
    assert status == 1
    assert "pacs (ARCHIVE at 127.0.0.1" in errors


def test_check_config_and_echo_know_archives(call, monkeypatch, capsys, tmp_path):
    call = runner(monkeypatch, capsys, tmp_path, columns=300)
    with archive(models=["1.2.840.10008.1.1"]) as peer:
        configure(tmp_path, peer, "move")
        text = (tmp_path / "config.toml").read_text()
        text = text.replace("port = 9\n", 'port = 9\nallowed_calling_ae_titles = ["MR1"]\n')
        (tmp_path / "config.toml").write_text(text)
        status, out, _ = call("check-config")
        assert status == 0
        assert f"fetches from pacs ARCHIVE at 127.0.0.1:{peer.port}, by move" in " ".join(
            out.split()
        )
        assert "ARCHIVE is not in receiver.allowed_calling_ae_titles" in " ".join(out.split())
        status, out, _ = call("echo", "pacs")
        assert (status, "pacs: answered" in out) == (0, True)
