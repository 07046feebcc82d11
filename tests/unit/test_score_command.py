"""The verbs `score` and `cohort`: exit statuses, and what a person is told."""

import subprocess
import sys

import nibabel
import numpy as np
import pytest
from rich.console import Console

from dicom_node import score_command
from dicom_node.demo.cohort import Template
from dicom_node.demo.cohort_files import write_cohort
from tests.make import console, lines, scans

CONFIG = """
[encoder]
model = "vit_tiny_patch16_224"
weights = "file"
file = "{file}"
axes = ["axial"]
projection_dim = 8
[[protocol]]
name = "t1"
extent_mm = [32.0, 32.0, 32.0]
[protocol.match]
modality = "MR"
"""


@pytest.fixture(scope="module")
def config_text(tmp_path_factory):
    return CONFIG.format(file=lines.tiny_weights(tmp_path_factory.mktemp("weights")))


@pytest.fixture
def call(monkeypatch, capsys, tmp_path, config_text):
    """Run the command line as the console script does: (exit status, output, errors)."""
    (tmp_path / "config.toml").write_text(config_text, "utf-8")
    return console.runner(monkeypatch, capsys, tmp_path)


def test_score_says_what_it_does_and_what_came_of_it(call, tmp_path):
    scans.write_heads(tmp_path / "in", 4)
    blob = np.zeros((16, 32, 32))
    blob[4:8, 8:16, 8:16] = 1
    scans.write_scan(tmp_path / "in", "head2_label", blob)
    arguments = ("score", "in", "--config", "config.toml", "--protocol", "t1", "--out", "there")
    status, said, errors = call(*arguments)
    assert (status, errors) == (0, "")
    printed = [" ".join(line.split()) for line in said.splitlines()]
    assert printed[0] == "Encoded 0/4"
    assert printed[1].startswith("Encoded 1/4 head0_t1 (")
    assert "Scored 4/4 head3_t1 (0 s to go)" in printed
    assert "map voxel AP voxel AUROC" in printed
    assert {"0.1 to 1 ml 0 of 1", "0.1 to 1 ml 1 of 1"} & set(printed)
    assert "4 scored, 0 failed, 0 left out, by t1" in said
    assert "Maps, pictures, scores.csv and scores.json are in there" in said
    assert said.rstrip().endswith("RESEARCH USE ONLY - NOT FOR DIAGNOSIS")
    assert (tmp_path / "there" / "scores.csv").is_file()


def test_a_scan_that_fails_makes_the_exit_status_1(call, tmp_path):
    scans.write_heads(tmp_path / "in", 4)
    scans.write_scan(tmp_path / "in", "holes[bold]", np.full((16, 32, 32), np.nan))
    status, said, _ = call("score", "in", "--config", "config.toml", "--protocol", "t1")
    assert status == 1
    assert "holes-bold failed: 16384 of 16384 voxels are NaN or infinite" in said
    assert "4 scored, 1 failed" in said


def test_too_few_scans_are_2_and_the_message_says_what_to_do(call, tmp_path):
    scans.write_heads(tmp_path / "in", 2)
    status, _, errors = call("score", "in")
    assert status == 2
    assert "2 scans of 2 patients" in errors
    assert "Add scans" in errors


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("in", "--protocol", "t1"), "--config"),
        (("nowhere",), "nowhere does not exist"),
        (("in", "--config", "other.toml"), "other.toml: no such file"),
    ],
)
def test_a_wrong_call_is_2_and_says_why(call, tmp_path, arguments, said):
    scans.write_heads(tmp_path / "in", 4)
    status, _, errors = call("score", *arguments)
    assert status == 2
    assert said in errors


def test_on_a_terminal_there_are_bars_with_rate_and_time_left(tmp_path, config_text):
    scans.write_heads(tmp_path / "in", 4)
    (tmp_path / "config.toml").write_text(config_text, "utf-8")
    with (tmp_path / "screen").open("w", encoding="utf-8") as screen:
        console = Console(file=screen, force_terminal=True, width=200, color_system=None)
        arguments = score_command.ScoreArguments(
            [tmp_path / "in"],
            tmp_path / "out",
            config_path=tmp_path / "config.toml",
            protocol="t1",
        )
        assert score_command.run_score(arguments, console) == 0
    seen = (tmp_path / "screen").read_text("utf-8")
    assert "Encoded" in seen
    assert "Scored" in seen
    assert "4/4" in seen
    assert "/min" in seen
    assert "0:00:00" in seen


def test_the_command_line_starts_without_torch():
    """A second and more that every other verb would wait for."""
    code = "import sys, dicom_node.cli; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# -- cohort -----------------------------------------------------------------------------------


def small_template():
    """A ball of white matter with a grey rind."""
    axes = np.ogrid[:100, :120, :100]
    distance = np.sqrt(sum((a - n / 2) ** 2 for a, n in zip(axes, (100, 120, 100), strict=True)))
    voxels = np.where(distance < 38, 0.8, np.where(distance < 45, 0.55, 0.0)).astype(np.float32)
    affine = np.array([[0, 0, 1, -50], [0, 1, 0, -60], [1, 0, 0, -50], [0, 0, 0, 1]], dtype=float)
    return Template(voxels, affine)


def test_the_cohort_is_written_with_labels_that_are_its_lesions(tmp_path):
    heads = list(write_cohort(small_template(), tmp_path / "heads", 2, 1, seed=1))
    assert [bool(head.lesions) for head in heads] == [False, False, True] or sum(
        bool(head.lesions) for head in heads
    ) == 1
    for head in heads:
        image, label = (
            nibabel.load(tmp_path / "heads" / f"{head.name}_{kind}.nii.gz")
            for kind in ("t1", "label")
        )
        np.testing.assert_array_equal(image.affine, label.affine)
        assert image.get_data_dtype() == np.int16
        assert label.get_data_dtype() == np.uint8
        marked = sum(lesion.mask.sum() for lesion in head.lesions)
        assert np.asarray(label.dataobj).sum() == marked
        for lesion in head.lesions:  # the place in RAS is that of the lesion in LPS
            index = np.argwhere(np.asarray(label.dataobj) > 0)
            points = index @ image.affine[:3, :3].T + image.affine[:3, 3]
            nearest = np.abs(points - np.array(lesion.centre_mm) * [-1, -1, 1]).max(axis=1).min()
            assert nearest < 2


def test_the_verb_cohort_says_how_to_score_it(call, tmp_path, monkeypatch):
    monkeypatch.setattr("dicom_node.demo.cohort.load_template", lambda _cache: small_template())
    status, said, _ = call("cohort", "heads", "--normal", "2", "--lesioned", "1")
    assert status == 0
    assert "3/3" in said
    assert "dicom-node score heads" in said
    assert len(list((tmp_path / "heads").glob("*_t1.nii.gz"))) == 3
