"""``dicom-node reference signature``: who claims a series and why, what to add, what is wrong."""

import json
import tomllib
from pathlib import Path

import pytest
from pydicom.uid import generate_uid

from dicom_node.config import NodeConfig
from dicom_node.explanation import explain
from dicom_node.protocol import match
from dicom_node.protocol_config import Match, Protocol
from tests.make import console, lines
from tests.make.instances import Geometry, make_enhanced, make_series, write

STACK = Geometry(rows=8, columns=8, n_slices=10, slice_spacing=2.0)
RULES = """
[[protocol]]
name = "chest"
[protocol.match]
modality = "CT"

[[protocol]]
name = "head"
[protocol.match]
modality = "MR"
body_part = "HEAD"
slice_spacing_mm = [1.0, 3.0]

[[protocol]]
name = "all-mr"
[protocol.match]
modality = "MR"
series_description = "secret"
"""


@pytest.fixture
def call(monkeypatch, capsys, tmp_path):
    """Run the verb as the console script does: (exit status, output, errors)."""
    return console.runner(monkeypatch, capsys, tmp_path, "reference", "signature")


@pytest.fixture
def answers(call):
    """The answers of ``--json``, whatever the exit status."""

    def run(*arguments):
        status, said, _ = call(*arguments, "--json")
        return status, json.loads(said)

    return run


def save(folder, datasets):
    for number, ds in enumerate(datasets):
        write(ds, folder / f"{number:03d}.dcm")
    return folder


@pytest.fixture
def head(tmp_path):
    return save(tmp_path / "head", make_series("MR", STACK, SeriesDescription="DOE secret"))


@pytest.fixture
def rules(tmp_path):
    path = tmp_path / "rules.toml"
    path.write_text(RULES, "utf-8")
    return path


# --- who claims it ------------------------------------------------------------------------------


def test_it_says_who_claims_the_series_and_what_speaks_against_the_others(call, head, rules):
    status, said, errors = call(head, "--config", rules)
    assert (status, errors) == (0, "")
    assert 'protocol: head, for modality = "MR", body_part = "HEAD", slice_spacing_mm' in said
    assert "not chest: modality is MR, not CT" in said
    assert "echo_time_ms: 10.0" in said
    assert "proposed" not in said


def test_the_first_rule_that_fits_claims_as_in_the_node(answers, head, rules):
    wide = RULES.replace('"secret"', '"."').replace('"HEAD"', '"KNEE"')
    rules.write_text(wide, "utf-8")
    _, (found,) = answers(head, "--config", rules)
    assert found["protocol"] == "all-mr"
    assert found["mismatches"]["head"] == ["body_part is HEAD, not KNEE"]


def test_without_a_rule_it_prints_one_that_claims_the_series(call, head, rules):
    rules.write_text(RULES.replace('"MR"', '"CT"'), "utf-8")
    status, said, _ = call(head, "--config", rules)
    assert status == 0
    assert "protocol: none" in said
    assert "proposed name: mr-head-t1-axial-2mm" in said
    text = said[said.index("[[protocol]]") :]
    added = NodeConfig.model_validate(tomllib.loads(rules.read_text("utf-8") + text))
    header = make_series("MR", STACK)[0]
    assert match(added.protocol, header, 2.0).name == "mr-head-t1-axial-2mm"


def test_no_configuration_is_needed(answers, head):
    status, (found,) = answers(head)
    assert (status, found["protocol"], found["mismatches"]) == (0, None, {})


def test_the_usual_configuration_is_taken_where_it_lies(answers, head, tmp_path):
    (tmp_path / "config.toml").write_text(RULES, "utf-8")
    _, (found,) = answers(head)
    assert found["protocol"] == "head"


def test_a_wrong_configuration_is_exit_status_2(call, head, tmp_path):
    status, _, errors = call(head, "--config", tmp_path / "none.toml")
    assert status == 2
    assert "none.toml: no such file" in errors


def test_an_inferred_value_is_said_to_be_one(call, tmp_path):
    datasets = make_series("MR", STACK, BodyPartExamined=None, StudyDescription="Knee left")
    _, said, _ = call(save(tmp_path / "knee", datasets))
    assert "body_part: KNEE (a guess from StudyDescription)" in said


def test_no_description_or_name_is_printed(call, head, rules):
    for flag in ([], ["--json"]):
        _, said, _ = call(head, "--config", rules, *flag)
        assert not [word for word in ("DOE", "Test^Subject", "P0") if word in said]


# --- several series -----------------------------------------------------------------------------


def test_series_that_are_alike_share_a_name_and_others_get_their_own(answers, call, tmp_path):
    for seed in (1, 2):
        save(tmp_path / "all" / f"head{seed}", make_series("MR", STACK, seed=seed))
    other = make_series("MR", STACK, seed=3, EchoTime=20)
    save(tmp_path / "all" / "other", other)
    status, found = answers(tmp_path / "all")
    assert status == 0
    names = [entry["proposed"]["name"] for entry in found]
    assert names[0] == names[1]
    assert set(names) == {"mr-head-t1-axial-2mm", "mr-head-t1-axial-2mm-2"}
    assert [entry["proposed"]["n_alike"] for entry in found] == [2, 2, 1]
    _, said, _ = call(tmp_path / "all")
    assert said.count("[[protocol]]") == 2


def test_one_rule_claims_all_that_are_alike_whatever_their_senders_write(answers, tmp_path):
    enhanced = make_enhanced("MR", STACK, seed=3)
    enhanced.ScanningSequence, enhanced.EchoPulseSequence = None, "SPIN"
    enhanced.ImageType = ["ORIGINAL", "PRIMARY", "OTHER", "NONE"]
    sources = [
        make_series("MR", STACK, seed=1),
        make_series("MR", STACK, seed=2, BodyPartExamined="BRAIN"),
        [enhanced],
    ]
    for number, datasets in enumerate(sources):
        save(tmp_path / "all" / str(number), datasets)
    _, found = answers(tmp_path / "all")
    assert [entry["proposed"]["n_alike"] for entry in found] == [3, 3, 3]
    (rule,) = NodeConfig.model_validate(tomllib.loads(found[0]["proposed"]["toml"])).protocol
    assert [match([rule], datasets[0], 2.0) for datasets in sources] == [rule] * 3


def test_a_proposed_name_is_none_of_the_configuration(answers, head, rules):
    rules.write_text(
        RULES.replace('"head"', '"mr-head-t1-axial-2mm"').replace('"HEAD"', '"X"'), "utf-8"
    )
    rules.write_text(rules.read_text("utf-8").replace('"secret"', '"other"'), "utf-8")
    _, (found,) = answers(head, "--config", rules)
    assert found["proposed"]["name"] == "mr-head-t1-axial-2mm-2"


def test_an_instance_that_lies_there_twice_counts_once(answers, head):
    write(make_series("MR", STACK)[0], head / "copy.dcm")
    status, (found,) = answers(head)
    assert (status, found["n_instances"]) == (0, 10)


def test_an_enhanced_image_is_a_series_of_its_own(answers, tmp_path):
    path = write(make_enhanced("MR", STACK), tmp_path / "enhanced.dcm")
    status, (found,) = answers(path)
    assert (status, found["notes"], found["signature"]["slice_spacing_mm"]) == (0, [], 2.0)


def test_one_instance_is_explained_by_what_its_header_says(answers, head):
    status, (found,) = answers(head / "003.dcm")
    assert status == 0
    assert found["signature"]["slice_spacing_mm"] == 2.0
    assert found["notes"][0].startswith("one instance: slice spacing is its header's")


# --- what is wrong ------------------------------------------------------------------------------


def test_a_file_that_is_no_dicom_is_named(call, tmp_path):
    path = tmp_path / "note.txt"
    path.write_text("not DICOM")
    status, said, errors = call(path)
    assert (status, said) == (1, "")
    assert f"{path} is no DICOM file; name a file or a folder" in errors


def test_a_folder_without_any_series_says_how_many_files_it_holds(call, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "note.txt").write_text("not DICOM")
    status, _, errors = call(tmp_path / "empty")
    assert status == 1
    assert "holds no CT or MR instance (1 other files)" in errors


def test_a_dicom_file_of_another_modality_is_named_with_it(call, tmp_path):
    path = write(make_series("MR", STACK, Modality="US")[0], tmp_path / "us.dcm")
    status, _, errors = call(path)
    assert status == 1
    assert "Modality is US; only CT and MR images are scored" in errors


def test_a_path_that_is_not_there_is_a_wrong_call(call, tmp_path):
    status, _, errors = call(tmp_path / "nothing")
    assert status == 2
    assert "does not exist" in errors


def test_a_localizer_is_called_one(call, tmp_path):
    datasets = make_series("CT", STACK, ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    status, said, errors = call(save(tmp_path / "scout", datasets))
    assert status == 1
    assert "a localizer, by its ImageType" in errors
    assert "proposed" not in said


def two_stacks(**second):
    """A stack, and another of another geometry, in one series."""
    other = Geometry(**({"rows": 8, "columns": 8, "n_slices": 10} | second))
    datasets = make_series("MR", STACK)
    for number, ds in enumerate(make_series("MR", other)):
        ds.SOPInstanceUID = generate_uid(entropy_srcs=["second", str(number)])
        datasets.append(ds)
    return datasets


def test_a_series_of_two_matrices_is_called_one_of_two_geometries(call, tmp_path):
    status, _, errors = call(save(tmp_path / "two", two_stacks(rows=6)))
    assert status == 1
    assert "2 geometries in one series" in errors


def test_two_stacks_that_are_not_parallel_are_two_volumes(call, tmp_path):
    sagittal = two_stacks(orientation=(0, 1, 0, 0, 0, -1))
    status, said, _ = call(save(tmp_path / "two", sagittal))
    assert status == 0
    assert "volume Plane axial, 10 instances" in said
    assert "volume Plane sagittal, 10 instances" in said


def test_a_series_that_is_too_thin_gets_a_name_and_no_rule(call, answers, tmp_path):
    folder = save(tmp_path / "thin", make_series("MR", STACK)[:3])
    status, said, errors = call(folder)
    assert status == 1
    assert "the series has 3 slices" in errors
    assert "proposed name: mr-head-t1-axial-2mm" in said
    assert "[[protocol]]" not in said
    assert answers(folder)[1][0]["proposed"]["toml"] == ""


def test_what_is_wrong_with_one_series_keeps_nothing_from_the_others(answers, head):
    save(head / "thin", make_series("MR", STACK, seed=5)[:3])
    status, found = answers(head)
    assert status == 1
    assert sorted(entry["fault"] is None for entry in found) == [False, True]


def test_a_series_without_any_spacing_says_what_is_missing(call, tmp_path):
    (ds,) = make_series("MR", Geometry(n_slices=1), SliceThickness=None)
    path = write(ds, tmp_path / "one.dcm")
    status, _, errors = call(path)
    assert status == 1
    assert "no instance says its slice spacing" in errors


def test_a_truncated_file_does_not_stop_the_others(answers, head):
    whole = (head / "000.dcm").read_bytes()
    (head / "cut.dcm").write_bytes(whole[:200])
    status, (found,) = answers(head)
    assert (status, found["n_instances"]) == (0, 10)


# --- real files ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("folder", "name", "fault"),
    [
        ("chest_ct_lungdx_A0001/dicom", "ct-chest-lung-5mm", None),
        ("dicom_variety/siemens_xa30_enhanced_t1", "mr-head-t1-sagittal-2mm", None),
        ("dicom_variety/dicom2nifti/philips_enhanced/anatomical",
         "mr-head-t1-sagittal-1_2mm", "FrameOfReferenceUID"),
        ("dicom_variety/dicom2nifti/hyperfine", "mr-head-flair-axial-5mm", "FrameOfReferenceUID"),
        ("dicom_variety/dicom2nifti/ge/dti", "mr-dwi-axial-2mm", "FrameOfReferenceUID"),
        ("dicom_variety/ct3slice_with_dicomseg", "ct-abdomen-soft-1mm", "3 slices"),
    ],
)  # fmt: skip
def test_real_series_get_sensible_names(answers, shared_data, folder, name, fault):
    import pydicom.config

    # as in the node: real headers are not all valid
    pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE
    _, (found,) = answers(Path(shared_data) / folder)
    assert found["proposed"]["name"] == name
    assert (fault or "") in (found["fault"] or "")
    assert (fault is None) == (found["fault"] is None)


def test_each_volume_of_a_series_is_explained_by_itself(tmp_path):
    for number, ds in enumerate(lines.echoes(1, (10, 80))):
        write(ds, tmp_path / f"{number:03d}.dcm")
    rule = Protocol(name="t2", match=Match(modality="MR", echo_time_ms=(60, 100)))
    one, two = explain(tmp_path, [rule])
    assert [(entry.part, entry.protocol, entry.n_instances) for entry in (one, two)] == [
        ("EchoTime 10", None, 16),
        ("EchoTime 80", "t2", 16),
    ]
    assert dict(one.mismatches)["t2"] == ("echo_time_ms is 10, not 60 to 100",)
    assert one.fault is None
