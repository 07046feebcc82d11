"""``dicom-node reference`` as a person calls it: who is in a batch, and what is decided of it."""

import json
import subprocess
import sys

import pytest

from dicom_node import config
from dicom_node.line import Line
from dicom_node.reference import ReferenceBatch
from dicom_node.space_rules import settings_of
from dicom_node.store import space_table
from dicom_node.store.database import Database, migrate
from dicom_node.store.space_table import Chosen
from tests.make import console, ledgers
from tests.make.encoders import TINY
from tests.make.ledgers import after
from tests.make.lines import tiny_weights
from tests.make.subjects import subject

CONFIG = """
[node]
data_dir = "data"
[encoder]
model = "{model}"
weights = "file"
file = "tiny.safetensors"
[[protocol]]
name = "t1"
min_reference = 3
max_reference = 5
extent_mm = [32.0, 32.0, 32.0]
[protocol.match]
modality = "MR"
"""
OTHER = '[[protocol]]\nname = "ct"\n[protocol.match]\nmodality = "CT"\n'
WHY = ("--reason", "looked at it", "--by", "Ada")


@pytest.fixture
def call(monkeypatch, capsys, tmp_path):
    """Run a verb as the console script does: (exit status, output, errors)."""
    (tmp_path / "config.toml").write_text(CONFIG.format(model=TINY))
    return console.runner(monkeypatch, capsys, tmp_path, "reference", columns=60)


@pytest.fixture
def batch(tmp_path):
    """A ledger in which a, b, c, d and e are admitted and f is kept out."""
    migrate(tmp_path / "data" / "ledger.sqlite")
    database = Database(tmp_path / "data" / "ledger.sqlite")
    found = ReferenceBatch(database, ledgers.protocol(), "f")
    for n, name in enumerate("abcdef"):
        found.add_candidate(name, f"1.2.{n}", f"KEY-{name}", after(n), "Make Model #1")
        found.decide(name, 100.0 if name == "f" else 42.0, at=after(n))
    yield found
    database.close()


@pytest.mark.usefixtures("batch")
def test_the_list_says_of_each_subject_where_it_is_and_why(call):
    status, said, _ = call("list")
    lines = [line.split() for line in said.splitlines()]
    assert status == 0
    assert lines[1][:6] == ["a", "admitted", "42", "Make", "Model", "#1"]
    assert "kept out: percentile 100, limit 95" in said
    assert "KEY-" not in said
    status, said, _ = call("list", "--json")
    found = json.loads(said)
    assert [(m["subject"], m["state"]) for m in found][-1] == ("f", "excluded")
    assert "patient_key" not in found[0]


@pytest.mark.usefixtures("batch")
def test_each_verb_decides_and_is_taken_back(call):
    before = json.loads(call("list", "--json")[1])
    for verb, name, said in [
        ("include", "f", "include: f excluded -> admitted, a admitted -> evicted"),
        ("exclude", "b", "exclude: b admitted -> excluded"),
        ("pin", "b", "pin: b admitted -> admitted, pinned"),
    ]:
        status, out, _ = call(verb, name, *WHY)
        assert status == 0
        assert said in out
        number = out.split()[1].rstrip(",")
        assert f"dicom-node reference undo {number} takes it back" in out
        assert call("undo", number, *WHY)[0] == 0
        assert json.loads(call("list", "--json")[1]) == before
    call("pin", "b", *WHY)
    assert "unpin: b admitted -> admitted" in call("unpin", "b", *WHY)[1]


@pytest.mark.usefixtures("batch")
def test_a_frozen_batch_says_so_until_it_rolls_again(call):
    assert call("freeze", *WHY)[0] == 0
    assert "The batch is frozen" in call("list")[1]
    assert call("unfreeze", *WHY)[0] == 0
    assert "frozen" not in call("list")[1]


@pytest.mark.usefixtures("batch")
def test_the_history_names_who_decided_what(call):
    call("exclude", "b", "--reason", "[bold]cavity[/bold]", "--by", "Ada")
    _, said, _ = call("history", "--limit", "1")
    (_, row) = said.splitlines()
    assert [row.split()[n] for n in (0, 2, 3)] == ["7", "Ada", "exclude"]
    assert "[bold]cavity[/bold]" in row
    _, said, _ = call("show", "b")
    assert "state: excluded" in said
    assert "[bold]cavity[/bold]" in said
    found = json.loads(call("show", "b", "--json")[1])
    assert [entry["verb"] for entry in found["decisions"]] == ["exclude", "admit"]
    assert found["decisions"][0]["subjects"] == ["b"]


@pytest.mark.usefixtures("batch")
def test_who_does_not_say_who_decides_is_the_user_of_the_machine(call, monkeypatch):
    monkeypatch.setenv("LOGNAME", "grace")
    call("exclude", "b", "--reason", "motion")
    assert json.loads(call("show", "b", "--json")[1])["decided_by"] == "grace"


@pytest.mark.usefixtures("batch")
def test_what_cannot_be_decided_is_one_line_and_exit_status_1(call):
    for arguments, said in [
        (("include", "a", *WHY), "a is admitted already"),
        (("show", "nobody"), "no subject 'nobody'"),
        (("undo", 99, *WHY), "no decision 99"),
        (("exclude", "a", "--reason", "x", "--by", "rule"), "is no name of a person"),
    ]:
        status, out, err = call(*arguments)
        assert (status, out) == (1, "")
        assert err.startswith("Error: ")
        assert said in err
    assert call("exclude", "a")[0] == 2  # without a reason


@pytest.mark.usefixtures("batch")
def test_the_protocol_has_to_be_named_where_there_are_several(call, tmp_path):
    with (tmp_path / "config.toml").open("a") as written:
        written.write(OTHER)
    assert call("list")[::2] == (2, "Configuration: --protocol names one of: t1, ct\n")
    assert call("list", "--protocol", "t1")[0] == 0
    status, _, err = call("list", "-p", "ct")
    assert (status, err) == (1, "Error: no study of protocol 'ct' has come yet\n")
    assert call("list", "-p", "pet")[0] == 2


def test_a_question_makes_no_ledger(call, tmp_path):
    status, _, err = call("list")
    assert status == 2
    assert "this node has never been started" in err
    assert not (tmp_path / "data").exists()


def test_a_batch_goes_from_node_to_node_by_a_file(call, tmp_path):
    """With the fingerprint of the configured encoder, which is not loaded for it."""
    tiny_weights(tmp_path)
    migrate(tmp_path / "data" / "ledger.sqlite")
    settings = config.load(tmp_path / "config.toml")
    line = Line(settings, Database(tmp_path / "data" / "ledger.sqlite"), tmp_path)
    t1 = settings.protocol[0]
    for seed in range(4):
        line.files(t1).save_subject(f"s{seed}", subject(seed))
        line.batch(t1).add_candidate(f"s{seed}", f"1.2.{seed}", f"KEY-{seed}", after(seed))
        line.batch(t1).decide(f"s{seed}", 50.0)
    line.database.close()
    status, said, _ = call("export", "batch.zip")
    assert (status, said.startswith("batch.zip: batch t1-")) == (0, True)
    assert f"4 subjects, fingerprint {line.token_fingerprint(t1)}" in said
    migrate(tmp_path / "there" / "ledger.sqlite")
    elsewhere = CONFIG.format(model=TINY).replace('"data"', '"there"')
    (tmp_path / "config.toml").write_text(elsewhere)
    status, said, _ = call("import", "batch.zip", "--by", "Ada")
    assert status == 0
    assert said.count("new -> admitted") == 4
    assert "All 4 subjects of batch.zip are known here" in call("import", "batch.zip")[1]
    found = json.loads(call("list", "--json")[1])
    assert {(m["state"], m["decided_by"]) for m in found} == {("admitted", "import Ada")}


def test_a_batch_in_a_space_of_its_own_says_which_and_is_rebuilt_on_demand(call, batch, tmp_path):
    text = CONFIG.format(model=TINY)
    assert "neither template" in call("rebuild", *WHY)[2]
    own = text.replace("[protocol.match]", "harmonise = true\n[protocol.match]")
    (tmp_path / "config.toml").write_text(own)
    (of,) = config.load(tmp_path / "config.toml").protocol
    assert json.loads(call("space", "--json")[1]) == []
    assert json.loads(call("show", "a", "--json")[1])["space"] == "none of the batch's own"
    with batch.database.begin() as db:
        chosen = Chosen("5f3a0c1b9d2e", "f", "", ("a",))
        space_table.found(db, "t1", settings_of(of), chosen, "founded", after(0))
    assert "space: 5f3a0c1b9d2e, since 2026" in call("show", "a")[1]
    assert "space: 5f3a0c1b9d2e" in call("list")[1]
    status, said, _ = call("rebuild", *WHY)
    assert status == 0
    assert said.startswith("Number 2: the node looks among 5 patients")
    assert "sought or built already" in call("rebuild", *WHY)[2]
    with batch.database.begin() as db:
        space_table.build(db, 2, Chosen("abc", "f2", "", ("a", "b")), "better")
        for name, state, why in (("a", "there", ""), ("b", "left behind", "not kept any more")):
            space_table.attempt(db, 2, name)
            space_table.settle(db, 2, name, state, why)
    status, said, _ = call("space")
    assert status == 0
    assert "1 there, 1 left behind" in said
    assert "2: b was left behind: not kept any more" in said
    found = json.loads(call("space", "--json")[1])
    assert [(one["state"], one["by"]) for one in found] == [
        ("building", "Ada"),
        ("serving", "rule"),
    ]


def test_what_cannot_be_exported_or_imported_is_said_in_one_line(call, tmp_path):
    tiny_weights(tmp_path)
    migrate(tmp_path / "data" / "ledger.sqlite")
    (tmp_path / "text.zip").write_text("no zip")
    for arguments, said in [
        (("export", "batch.zip"), "0 of 3 reference subjects"),
        (("export", "batch.zip", "--batch", "t1-x"), "no reference batch is named 't1-x'"),
        (("import", "text.zip"), "text.zip cannot be read as an exported batch: File is not a zip"),
    ]:
        status, out, err = call(*arguments)
        assert (status, out) == (1, "")
        assert said in err


def test_to_look_and_to_decide_load_no_torch(tmp_path):
    code = "import sys; from dicom_node import reference_command; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=False).returncode == 0
