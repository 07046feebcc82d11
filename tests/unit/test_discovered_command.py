"""``dicom-node reference`` about protocols that the node discovered: shown, adopted, forgotten."""

import json
import tomllib

import pytest

from dicom_node import config
from dicom_node.grouping import of_node
from dicom_node.line import Line
from dicom_node.reference import ReferenceBatch
from dicom_node.store import series_table
from dicom_node.store.database import Database, migrate
from tests.make import console
from tests.make.encoders import TINY
from tests.make.instances import Geometry, make_instance, make_series, write
from tests.make.ledgers import after, complete_series
from tests.make.lines import tiny_weights

CONFIG = f"""
[node]
data_dir = "data"
[encoder]
model = "{TINY}"
weights = "file"
file = "tiny.safetensors"
[[protocol]]
name = "knees"
extent_mm = [160.0, 192.0, 160.0]
[protocol.match]
modality = "MR"
body_part = "KNEE"
"""
NAME = "mr-head-t1-axial-2mm"
WHY = ("--reason", "not wanted", "--by", "Ada")
SPACING_MM = (2.0, 1.0, 1.0)


@pytest.fixture
def call(monkeypatch, capsys, tmp_path):
    """Run a verb as the console script does: (exit status, output, errors)."""
    (tmp_path / "config.toml").write_text(CONFIG)
    return console.runner(monkeypatch, capsys, tmp_path, "reference", columns=60)


@pytest.fixture
def line(tmp_path):
    """A node that has discovered one protocol, with one series and one member."""
    tiny_weights(tmp_path)
    (tmp_path / "config.toml").write_text(CONFIG)
    migrate(tmp_path / "data" / "ledger.sqlite")
    database = Database(tmp_path / "data" / "ledger.sqlite")
    made = Line(config.load(tmp_path / "config.toml"), database, tmp_path)
    assert made.protocols.claim(make_instance("MR"), SPACING_MM).name == NAME
    complete_series(database, "1.2.1")
    with database.begin() as db:
        series_table.set_protocol(db, "1.2.1", NAME)
        db.exec_driver_sql("UPDATE job SET state = 'done'")
    made.batch(made.protocols.named(NAME)).add_candidate("s1", "1.2.1", "KEY-1", after(0))
    yield made
    database.close()


@pytest.mark.usefixtures("line")
def test_the_list_marks_what_was_discovered(call):
    status, said, _ = call("list")
    assert status == 0
    assert [row.split()[0] for row in said.splitlines()] == ["protocol", NAME, "--protocol"]
    assert call("list", "--protocol", "knees")[0] == 1  # no study of it has come
    status, said, _ = call("list", "--protocol", NAME)
    assert status == 0
    assert said.splitlines()[1].split()[:2] == ["s1", "candidate"]
    assert f"{NAME} is discovered, shadow: nothing is sent." in said


def test_beside_the_configured_batch_the_list_has_the_discovered_protocols(call, line):
    ReferenceBatch(line.database, line.config.protocol[0], "f").add_candidate(
        "k1", "1.2.7", "KEY-7", after(0)
    )
    status, said, _ = call("list")
    assert status == 0
    (row,) = [row for row in said.splitlines() if row.lstrip().startswith(NAME)]
    assert "discovered, shadow" in row
    assert "2026-01-02T12:00" in row
    assert row.endswith("MR HEAD, SE, ORIGINAL, axial, TE 10 ms, TR 500 ms, slices every 2 mm") or (
        "MR HEAD, SE, ORIGINAL/OTHER, axial, TE 10 ms, TR 500 ms, slices every 2 mm" in row
    )
    assert [m["subject"] for m in json.loads(call("list", "--json")[1])] == ["k1"]


@pytest.mark.usefixtures("line")
def test_without_a_usual_protocol_the_list_names_those_that_there_are(call, tmp_path):
    with (tmp_path / "config.toml").open("a") as written:
        written.write('[[protocol]]\nname = "ct"\n[protocol.match]\nmodality = "CT"\n')
    status, said, _ = call("list")
    assert status == 0
    assert f"--protocol names one of them to list who is in its batch: knees, ct, {NAME}" in said


@pytest.mark.usefixtures("line")
def test_one_is_shown_with_all_that_is_known_of_it(call):
    status, said, _ = call("show", NAME)
    assert status == 0
    for words in ("what: discovered, shadow", "n series: 1", "members: {'candidate': 1}"):
        assert words in said
    assert f'name = "{NAME}"' in said
    found = json.loads(call("show", NAME, "--json")[1])
    assert found["signature"]["echo_time_ms"] == 10.0
    assert tomllib.loads(found["rule"])["protocol"][0]["name"] == NAME


def test_what_is_adopted_can_be_pasted_and_keeps_the_batch(call, line, tmp_path):
    status, said, errors = call("adopt", NAME)
    assert (status, errors) == (0, "")
    for word in ("# Review", "# - the name", "# - mode", "finding_threshold"):
        assert word in said
    with (tmp_path / "config.toml").open("a") as written:
        written.write(said)
    settings = config.load(tmp_path / "config.toml")
    adopted = settings.protocol_named(NAME)
    before = line.protocols.named(NAME)
    assert adopted == before
    later = Line(settings, line.database, tmp_path)
    assert later.token_fingerprint(adopted) == line.token_fingerprint(before)
    assert later.fingerprint(adopted) == line.fingerprint(before)
    assert later.protocols.claim(make_instance("MR", seed=3), SPACING_MM) is adopted
    assert later.protocols.discovered() == ()
    _, said, _ = call("list", "--protocol", NAME)
    assert said.splitlines()[1].split()[:2] == ["s1", "candidate"]
    assert "discovered" not in said
    assert call("adopt", NAME)[0] == 2


def test_a_forgotten_one_says_what_becomes_of_its_series(call, line, tmp_path):
    status, said, _ = call("forget", NAME, *WHY)
    assert status == 0
    assert "1 members have left, and 0 studies that waited are rejected" in said
    assert "unclaimed from now on: the next one founds a protocol of another name" in said
    assert line.protocols.discovered() == ()
    assert call("forget", NAME, *WHY)[0] == 1
    (tmp_path / "config.toml").write_text("[grouping]\ndiscover = false\n" + CONFIG)
    line.protocols.claim(make_instance("MR"), SPACING_MM)
    _, said, _ = call("forget", f"{NAME}-2", *WHY)
    assert "rejected until a [[protocol]] claims them" in said


@pytest.mark.usefixtures("line")
def test_an_unknown_name_is_answered_with_those_that_there_are(call):
    status, _, errors = call("adopt", "pet")
    assert (status, errors) == (
        2,
        f"Configuration: no discovered protocol is named 'pet'; there are: {NAME}\n",
    )
    status, _, errors = call("forget", "knees", *WHY)
    assert status == 1
    assert f"there are: {NAME}" in errors
    assert call("forget", NAME)[0] == 2  # without a reason


def test_a_question_makes_no_ledger(call, tmp_path):
    assert call("adopt", NAME)[0] == 2
    assert not (tmp_path / "data").exists()
    assert of_node(config.load(tmp_path / "config.toml")).discovered() == ()
    assert not (tmp_path / "data").exists()


# --- reference signature ------------------------------------------------------------------------


@pytest.fixture
def save(tmp_path):
    """Write a series of ten slices, and return its folder."""
    stack = Geometry(rows=8, columns=8, n_slices=10, slice_spacing=2.0)

    def write_series(**attributes):
        for number, ds in enumerate(make_series("MR", stack, **attributes)):
            write(ds, tmp_path / "series" / f"{number:03d}.dcm")
        return tmp_path / "series"

    return write_series


@pytest.mark.usefixtures("line")
def test_the_signature_says_what_a_series_joins(call, save):
    status, said, _ = call("signature", save())
    assert status == 0
    assert f"protocol: none; joins discovered {NAME}, in shadow" in said
    assert "not knees: body_part is HEAD, not KNEE" in said
    assert "[[protocol]]" not in said
    (found,) = json.loads(call("signature", save(), "--json")[1])
    assert (found["protocol"], found["joins"], found["proposed"]) == (None, NAME, None)


@pytest.mark.usefixtures("line")
def test_another_series_joins_none_and_gets_a_name_of_its_own(call, save):
    (found,) = json.loads(call("signature", save(EchoTime=30), "--json")[1])
    assert (found["joins"], found["proposed"]["name"]) == (None, f"{NAME}-2")


@pytest.mark.usefixtures("line")
def test_a_derived_image_is_noted_to_found_nothing(call, save):
    _, said, _ = call("signature", save(ImageType=["DERIVED", "SECONDARY", "M"]))
    assert "Note: a derived image" in said
    assert "joins" not in said
