"""The whole evaluation on tiny heads: tables, resuming, what a cohort cannot offer, refusals."""

import csv
import json
import re
import sys
from dataclasses import replace

import numpy as np
import pytest

from dicom_node import cli
from dicom_node.anomaly.presets import preset
from dicom_node.batch import inputs
from dicom_node.batch_mode import Listener
from dicom_node.errors import ConfigError
from dicom_node.evaluate import plan, splits
from dicom_node.evaluate.changes import CHANGES, Seen
from dicom_node.evaluate.cohort import Work, gather
from dicom_node.evaluate.experiment import Options, evaluate
from dicom_node.evaluate.running import Run, Runner
from dicom_node.evaluate.splits import Room
from tests.make import cohorts, lines, scans

QUICK = {"quick": True, "resamples": 20}


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return lines.tiny_weights(tmp_path_factory.mktemp("weights"))


class Heard(Listener):
    def __init__(self):
        self.notes, self.done = [], []

    def progress(self, stage, _number, share, name):
        if share == 1:
            self.done.append((stage, name))

    def note(self, text):
        self.notes.append(text)


def run(folder, weights, experiments, second=None, **options):
    """Evaluate `folder/in` into `folder/out`; returns the result, the rows and what was said."""
    heard = Heard()
    result = evaluate(
        [folder / "in"],
        folder / "out",
        folder / "cache",
        second_site=second,
        config=scans.config(weights),
        protocol_name="t1",
        options=Options(experiments, **(QUICK | options)),
        listener=heard,
    )
    with (folder / "out" / "measures.csv").open(newline="") as opened:
        return result, list(csv.DictReader(opened)), heard


def files_below(folder):
    """Every kept file and when it was written."""
    return {p: p.stat().st_mtime_ns for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture(scope="module")
def whole(tmp_path_factory, weights):
    """All experiments on eight normal and three lesioned heads, and four of a second site."""
    folder = tmp_path_factory.mktemp("whole")
    cohorts.write_cohort(folder / "in", 8, 3)
    scans.write_heads(folder / "second", 4, first=40)
    return folder, *run(folder, weights, "abcde", folder / "second")


def value(rows, setting, metric, draw="all"):
    """The figure of a setting; two experiments may have it, and then it is one."""
    wanted = setting, metric, draw
    found = {r["value"] for r in rows if (r["setting"], r["metric"], r["draw"]) == wanted}
    assert len(found) == 1, (wanted, found)
    return float(found.pop())


# -- what is written -----------------------------------------------------------------------------


def test_every_experiment_has_rows_of_all_its_test_subjects(whole):
    _, result, rows, _ = whole
    assert not result.cohort.failed
    assert {row["experiment"] for row in rows} == set("abcde")
    assert {row["n_test"] for row in rows if "tested there" not in row["setting"]} == {"11"}
    for row in rows:
        if row["metric"] not in {"threshold", "prevalence", "unscored_share"} and row["low"]:
            assert float(row["low"]) <= float(row["high"])
    shares = {row["setting"]: row["share_abnormal"] for row in rows if row["experiment"] == "a"}
    assert shares == {
        "0% abnormal": "0",
        "10% abnormal": "0.1667",
        "30% abnormal": "0.3333",
        "30% abnormal, other guard": "0.3333",
    }


def test_the_cube_is_found_and_the_figures_say_so(whole):
    _, _, rows, _ = whole
    assert value(rows, "0% abnormal", "voxel_auroc") > 0.8
    assert value(rows, "0% abnormal", "voxel_ap") > 3 * value(rows, "0% abnormal", "prevalence")
    assert value(rows, "0% abnormal", "lesion_sensitivity") == 1.0
    assert value(rows, "voxel z-score", "voxel_auroc") > 0.9
    named = {row["strength"] for row in rows if row["setting"] == "voxel z-score"}
    assert [text for text in named if text.startswith("z dark; best of three")] == list(named)


def test_settings_that_are_the_same_share_their_runs_and_figures(whole):
    folder, result, rows, _ = whole
    for metric in ("voxel_ap", "subject_auroc", "false_findings_per_normal"):
        same = {
            row["value"]
            for row in rows
            if row["setting"] in {"none", "this method", "second site 0% of the batch"}
            and row["metric"] == metric
        }
        assert len(same) == 1
    asked = sum(len(one.setting.ways) for one in result.measured) * 5
    assert len(list((folder / "out" / "runs").iterdir())) < asked


def test_parts_of_the_method_and_acquisitions_change_what_is_measured(whole):
    _, result, rows, _ = whole
    values = {
        one.setting.name: value(rows, one.setting.name, "voxel_ap")
        for one in result.measured
        if one.setting.experiment in "bd" and "tested there" not in one.setting.name
    }
    assert len(values) >= 12
    for name in ("no calibration", "no smoothing", "fine tokens alone", "noise, half of the batch"):
        assert values[name] != values["this method"]


def test_the_second_site_is_mixed_in_and_tested(whole):
    _, _, rows, _ = whole
    tested = [row for row in rows if row["setting"] == "second site 50% of the batch, tested there"]
    assert {row["metric"] for row in tested} >= {"false_findings_per_normal"}
    assert "voxel_ap" not in {row["metric"] for row in tested}  # nothing is marked there
    assert {row["n_test"] for row in tested} == {"4"}


def test_the_summary_says_how_it_was_made_and_names_no_scan(whole):
    folder, result, _, _ = whole
    text = (folder / "out" / "summary.json").read_text("utf-8")
    summary = json.loads(text)
    assert summary["fingerprint"] == result.recipe.fingerprint
    assert summary["folders"] == ["in"]
    assert summary["second_site"] == ["second"]
    assert summary["subjects"] == {"normal": 8, "lesioned": 3, "normal of the second site": 4}
    assert "oracle" in summary["metrics"]["dice_oracle"]
    assert summary["notice"].startswith("RESEARCH USE ONLY")
    assert not re.search(r"normal\d|ill\d|head\d", text)
    assert str(folder) not in text
    described = {one["setting"]: one for one in summary["settings"]}
    assert described["0% abnormal"]["n_lesions"] == {
        **dict.fromkeys(["< 0.1 ml", "0.1 to 1 ml", "5 to 20 ml", "> 20 ml"], 0),
        "1 to 5 ml": 3,
    }


def test_what_a_cohort_cannot_offer_is_left_out_by_name(whole):
    folder, result, _, heard = whole
    assert any(text.startswith("c, 15 subjects") for text in result.left_out)
    assert any(text.startswith("a, 50% abnormal: a batch of 6") for text in result.left_out)
    assert f"left out: {result.left_out[0]}" in heard.notes
    summary = json.loads((folder / "out" / "summary.json").read_text("utf-8"))
    assert "50% abnormal" in summary["left_out"]["a"]


def test_the_changed_half_is_the_same_in_every_batch(whole, tmp_path):
    folder, result, _, _ = whole
    other = splits.every_second(result.cohort.members)
    assert len(other) == 4 + 2 + 2  # of 8 normal, 3 lesioned, 4 of the second site
    noise = next(change for change in CHANGES if change.name == "noise")
    work = Work(result.recipe, folder / "out" / "work", Heard())
    again = gather(work, inputs.find([folder / "in"], None, None, tmp_path), None)
    folds = {1: splits.folds(again.members, 5, 0)}
    runner = Runner(work, again, folds, folder / "out" / "runs", 0)
    settings = [one.setting for one in result.measured]
    (setting,) = [s for s in settings if s.change is noise and s.changed == "batch"]
    plain = replace(setting, change=None, changed="")
    tested = replace(setting, changed="test")
    for fold in range(len(folds[1])):
        before = runner.members(Run(plain, plain.ways[0], 0, fold))
        batch, tests = runner.members(Run(setting, setting.ways[0], 0, fold))
        kept = {m.key for m in batch} & {m.key for m in before[0]}
        assert kept == {m.key for m in before[0]} - other
        assert tests == before[1]
        batch, tests = runner.members(Run(tested, tested.ways[0], 0, fold))
        assert {m.key for m in batch} == {m.key for m in before[0]}
        assert not {m.key for m in tests} & {m.key for m in before[1]}
        assert [m.name for m in tests] == [m.name for m in before[1]]


# -- resuming ------------------------------------------------------------------------------------


def test_a_second_call_computes_nothing_and_says_the_same(whole, weights):
    folder, _, rows, _ = whole
    before = files_below(folder / "out" / "runs") | files_below(folder / "out" / "work")
    _, again, heard = run(folder, weights, "abcde", folder / "second")
    assert again == rows
    after = files_below(folder / "out" / "runs") | files_below(folder / "out" / "work")
    assert after == before
    assert ("run", "a 0% abnormal") in heard.done


class Stopped(Listener):
    """Ctrl-C after some runs."""

    def __init__(self, after):
        self.left = after

    def progress(self, stage, _number, share, _name):
        self.left -= stage == "run" and share == 1
        if not self.left:
            raise KeyboardInterrupt


def test_a_run_that_was_stopped_goes_on_where_it_was(tmp_path, weights):
    cohorts.write_cohort(tmp_path / "in", 6, 2)
    with pytest.raises(KeyboardInterrupt):
        evaluate(
            [tmp_path / "in"],
            tmp_path / "out",
            tmp_path / "cache",
            config=scans.config(weights),
            protocol_name="t1",
            options=Options("e", **QUICK),
            listener=Stopped(7),
        )
    done = files_below(tmp_path / "out" / "runs")
    assert len(done) == 7
    assert not (tmp_path / "out" / "measures.csv").exists()
    _, rows, _ = run(tmp_path, weights, "e")
    after = files_below(tmp_path / "out" / "runs")
    assert {path: after[path] for path in done} == done
    assert len(after) == 7 * 5  # the z-score is read in three ways; five folds
    assert {row["setting"] for row in rows} >= {"this method", "mean-image difference"}


def test_another_mask_is_another_outcome(tmp_path, weights):
    cohorts.write_cohort(tmp_path / "in", 6, 2)
    _, rows, _ = run(tmp_path, weights, "d")
    before = len(list((tmp_path / "out" / "runs").iterdir()))
    voxels = np.zeros((16, 32, 32))
    voxels[5:8, 12:18, 12:18] = 1
    scans.write_scan(tmp_path / "in", "ill7_label", voxels)
    _, again, _ = run(tmp_path, weights, "d")
    assert value(again, "this method", "prevalence") < value(rows, "this method", "prevalence")
    after = len(list((tmp_path / "out" / "runs").iterdir()))
    assert before < after < 2 * before  # the folds without that subject are as they were


# -- refusals ------------------------------------------------------------------------------------


def test_without_masks_there_is_nothing_to_measure(tmp_path, weights):
    scans.write_heads(tmp_path / "in", 6)
    with pytest.raises(ConfigError, match=r"no scan has a mask.*--masks"):
        run(tmp_path, weights, "a")
    assert not (tmp_path / "out").exists()


def test_without_a_lesion_there_is_nothing_to_measure(tmp_path, weights):
    cohorts.write_cohort(tmp_path / "in", 6, 0)
    with pytest.raises(ConfigError, match="none of the 6 scans has a lesion"):
        run(tmp_path, weights, "a")


def test_too_few_scans_for_a_batch_are_refused(tmp_path, weights):
    cohorts.write_cohort(tmp_path / "in", 2, 2)
    with pytest.raises(ConfigError, match="4 scans leave fewer than 4 for a batch"):
        run(tmp_path, weights, "a")


@pytest.mark.parametrize("letters", ["", "f", "ax"])
def test_an_unknown_experiment_is_refused(tmp_path, weights, letters):
    cohorts.write_cohort(tmp_path / "in", 1, 1)
    with pytest.raises(ConfigError, match="--experiments takes letters of 'abcde'"):
        run(tmp_path, weights, letters)


def test_an_unknown_change_is_refused_before_anything_is_encoded(tmp_path, weights):
    cohorts.write_cohort(tmp_path / "in", 1, 1)
    with pytest.raises(ConfigError, match="knows no 'fog' for these scans: choose of noise, bias"):
        run(tmp_path, weights, "b", changes=("blur", "fog"))
    assert not (tmp_path / "out" / "work").exists()


def test_scans_without_mask_serve_and_are_not_tested(tmp_path, weights):
    cohorts.write_cohort(tmp_path / "in", 3, 3)
    scans.write_heads(tmp_path / "in", 4, first=20)
    result, rows, _ = run(tmp_path, weights, "a")
    assert {row["n_test"] for row in rows} == {"6"}
    assert {row["n_reference"] for row in rows} == {"6"}
    assert len(result.cohort.of_kind("unknown")) == 4


# -- plans ---------------------------------------------------------------------------------------


def test_a_cohort_of_patients_alone_is_scored_against_patients():
    method = preset("mr", (8,), 12)
    made = plan.make("ac", method, Room(0, 10), ct=False, quick=False)
    names = {s.name: (s.size, s.n_lesioned) for s in made.settings}
    assert names["100% abnormal"] == (10, 10)
    assert names["5 subjects"] == (5, 5)
    assert not [name for name in names if name.startswith("0%")]
    assert len([text for text in made.left_out if text.startswith("a,")]) == 6


def test_a_large_cohort_has_every_share_and_size():
    made = plan.make("ac", preset("mr", (8,), 12), Room(60, 20), ct=False, quick=False)
    assert made.left_out == ()
    shares = [s.n_lesioned / s.size for s in made.settings if s.experiment == "a"]
    assert sorted(set(shares)) == [0.0, 0.1, 0.2, 0.3, 0.4, 0.5]
    sizes = [s.size for s in made.settings if s.experiment == "c"]
    assert sizes == [5, 10, 15, 20, 30, 40, 50]


def test_a_bias_field_is_no_change_of_a_ct():
    for ct, n in ((False, 6), (True, 5)):
        made = plan.make("b", preset("mr", (8,), 12), Room(30, 9), ct=ct, quick=False)
        assert len({s.change.name for s in made.settings if s.change}) == n


def test_changes_can_be_chosen():
    given = {"ct": False, "quick": True, "changes": ("blur", "bias field")}
    made = plan.make("b", preset("mr", (8,), 12), Room(30, 9), **given)
    assert {s.change.name for s in made.settings if s.change} == {"blur", "bias field"}


def test_test_subjects_are_changed_too_unless_quick():
    for quick, expected in ((True, {"batch"}), (False, {"batch", "test"})):
        made = plan.make("b", preset("mr", (8,), 12), Room(30, 9), ct=False, quick=quick)
        assert {s.changed for s in made.settings if s.change} == expected


def test_a_quick_run_tries_the_guard_at_one_share():
    made = plan.make("a", preset("mr", (8,), 12), Room(60, 20), ct=False, quick=True)
    guarded = [s.name for s in made.settings if s.ways[0].scoring.guard]
    assert guarded == ["30% abnormal, other guard"]


# -- changes -------------------------------------------------------------------------------------


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.name)
@pytest.mark.parametrize("ct", [False, True])
def test_a_change_is_small_the_same_again_and_moves_nothing(change, ct):
    voxels = lines.head(3) * (2.0 if ct else 1.0) - (1000.0 if ct else 0.0)
    seen = Seen(voxels.astype(np.float32), (2.0, 1.0, 1.0), ct, 7)
    made = change.apply(seen)
    assert made.shape == voxels.shape
    assert made.dtype == np.float32
    assert np.isfinite(made).all()
    np.testing.assert_array_equal(made, change.apply(seen))
    assert 0.005 < np.abs(made - voxels).mean() / seen.span < 0.25
    assert np.corrcoef(made.ravel(), voxels.ravel())[0, 1] > 0.7


def test_slices_are_averaged_to_five_millimetres_and_a_ramp_stays_one():
    """The mean of a ramp's blocks, interpolated, is the ramp between the outer middles."""
    ramp = np.broadcast_to(np.arange(20.0)[:, None, None], (20, 4, 4)).astype(np.float32)
    thick = next(change for change in CHANGES if change.name == "slice thickness")
    made = thick.apply(Seen(ramp, (1.0, 1.0, 1.0), False, 0))
    np.testing.assert_allclose(made[2:18], ramp[2:18], atol=1e-5)
    assert made[0, 0, 0] == 2.0  # the middle of the first five


def test_noise_of_a_ct_has_forty_hounsfield_units_and_that_of_an_mr_is_never_negative():
    noise = next(change for change in CHANGES if change.name == "noise")
    flat = np.zeros((20, 20, 20), dtype=np.float32)
    ct = noise.apply(Seen(flat, (1.0, 1.0, 1.0), True, 0))
    assert ct.std() == pytest.approx(40, rel=0.05)
    flat[10:] = 100
    mr = noise.apply(Seen(flat, (1.0, 1.0, 1.0), False, 0))
    assert mr.min() >= 0
    assert mr[:10].mean() == pytest.approx(4 * np.sqrt(np.pi / 2), rel=0.05)  # Rayleigh
    assert mr[10:].std() == pytest.approx(4, rel=0.05)


# -- the verb ------------------------------------------------------------------------------------

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


def test_the_verb_shows_progress_and_a_table(tmp_path, weights, monkeypatch, capsys):
    cohorts.write_cohort(tmp_path / "in", 6, 2)
    (tmp_path / "config.toml").write_text(CONFIG.format(file=weights), "utf-8")
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.chdir(tmp_path)
    call = "dicom-node evaluate in --config config.toml --protocol t1 --experiments c --quick"
    monkeypatch.setattr(sys, "argv", call.split())
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code in (0, None)
    said = capsys.readouterr().out
    assert "Encoded 8/8" in said
    assert "Runs 5/5 c 5 subjects" in said or "left out: c, 5 subjects" in said
    assert "oracle's Dice" in said
    assert (tmp_path / "evaluation" / "measures.csv").exists()
