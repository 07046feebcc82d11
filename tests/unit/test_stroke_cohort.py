"""Real heads with lesions of real shapes: they lie where they should, and nothing else differs."""

import csv
import sys

import numpy as np
import pytest
from scipy import ndimage

from dicom_node import cli, nifti
from dicom_node.batch import inputs
from dicom_node.demo import stroke_heads, subject_files
from dicom_node.demo.stroke_cohort import StrokePlan, make_strokes, write_strokes
from dicom_node.demo.stroke_lesions import Levels, darken, tissue_levels, weight_on
from dicom_node.errors import ConfigError, NodeError
from dicom_node.volume import Volume
from tests.make.strokes import (
    CORTICAL,
    LEFT,
    MASK_AFFINE,
    MASK_SHAPE,
    POSES,
    RIGHT,
    SPECK,
    Sources,
    points,
)

LEVELS = Levels(csf=100.0, grey=300.0, white=500.0)


# --- one lesion -------------------------------------------------------------------------------


def cube(edge_mm, n):
    """Affine of n voxels a side, centred on the origin, axes S, P, L."""
    affine = np.diag([edge_mm, edge_mm, edge_mm, 1.0])[[2, 1, 0, 3]]
    affine[:3, 3] = -edge_mm * (n - 1) / 2
    return affine


def ball(centre, radius):
    inside = np.linalg.norm(points(MASK_SHAPE, MASK_AFFINE) - centre, axis=1) < radius
    return Volume(inside.reshape(MASK_SHAPE).astype(np.float32), MASK_AFFINE, ())


def tissue(n=40, level=400.0, noise=20.0, seed=0):
    random = np.random.default_rng(seed)
    voxels = np.full((n, n, n), level) + noise * random.standard_normal((n, n, n))
    voxels = np.rint(voxels).astype(np.float32)
    # far from all lesions: the head has darker values too
    voxels.ravel()[:400] = np.arange(400)
    return voxels


def whole(voxels):
    return np.ones(voxels.shape, dtype=bool)


@pytest.fixture
def weight():
    """A ball of 10 voxels radius with an edge about a voxel wide."""
    away = np.linalg.norm(np.indices((40, 40, 40)) - 19.5, axis=0)
    weight = np.clip(10.5 - away, 0, 1).astype(np.float32)
    weight[weight < 0.02] = 0
    return weight


def test_the_levels_are_those_of_three_tissues():
    random = np.random.default_rng(3)
    means = np.repeat([120.0, 300.0, 450.0], [3000, 10000, 14000])
    voxels = (means + 15 * random.standard_normal(27000)).reshape(30, 30, 30).astype(np.float32)
    found = tissue_levels(voxels, whole(voxels))
    assert (found.csf, found.grey, found.white) == pytest.approx((120, 300, 450), abs=4)
    assert found.csf < found.target < found.grey


def test_a_brain_of_one_value_has_no_levels():
    voxels = np.ones((8, 8, 8), dtype=np.float32)
    with pytest.raises(ValueError, match="cannot be told apart"):
        tissue_levels(voxels, whole(voxels))


@pytest.mark.parametrize("scale", [1.0, 1.2])
def test_a_mask_comes_to_where_the_registration_says(scale):
    centre, radius = RIGHT
    to_head = np.diag([scale, scale, scale, 1.0])
    to_head[:3, 3] = (10.0, -6.0, 3.0)
    affine = cube(2.0, 90)
    mask = ball(centre, radius)
    weight = weight_on(mask, (90, 90, 90), affine, to_head)
    label = weight >= 0.5
    found = affine @ np.append(np.argwhere(label).mean(axis=0), 1)
    np.testing.assert_allclose(found, to_head @ [*centre, 1.0], atol=0.5)
    assert weight.sum() == pytest.approx(mask.voxels.sum() * scale**3, rel=0.02)
    # which voxels of a ball's edge are half inside depends on the grid
    assert label.sum() == pytest.approx(mask.voxels.sum() * scale**3, rel=0.15)


def test_the_edge_is_about_a_voxel_of_the_head_wide():
    affine = cube(2.0, 90)
    weight = weight_on(ball((0, 0, 0), 20.0), (90, 90, 90), affine, np.eye(4))
    away = np.linalg.norm(points(weight.shape, affine), axis=1).reshape(weight.shape)
    assert weight[away < 17.5].min() > 0.98
    assert weight[away > 22.5].max() < 0.02
    assert weight.max() <= 1


@pytest.mark.parametrize("contrast", [0.3, 0.5, 0.9])
def test_the_level_moves_by_the_contrast_and_the_texture_stays(weight, contrast):
    voxels = tissue()
    made = darken(voxels, whole(voxels), weight, contrast, LEVELS)
    core = weight == 1
    wanted = 400 + contrast * (LEVELS.target - 400)
    assert made[core].mean() == pytest.approx(wanted, abs=2)
    assert made[core].std() == pytest.approx(voxels[core].std(), rel=0.15)
    np.testing.assert_array_equal(made[weight == 0], voxels[weight == 0])


def test_what_is_darker_than_the_target_stays(weight):
    voxels = tissue(level=110.0, noise=3.0)
    made = darken(voxels, whole(voxels), weight, 0.9, LEVELS)
    np.testing.assert_array_equal(made, voxels)


def test_no_tissue_becomes_darker_than_fluid(weight):
    voxels = tissue(level=400.0, noise=120.0)
    made = darken(voxels, whole(voxels), weight, 1.0, LEVELS)
    changed = made < voxels
    assert changed.sum() > 3000
    assert made[changed].min() >= LEVELS.csf - 0.5


def test_a_lesion_has_only_values_that_the_head_has(weight):
    voxels = np.rint(tissue() / 16) * 16
    made = darken(voxels, whole(voxels), weight, 0.5, LEVELS)
    assert np.isin(made, np.unique(voxels)).all()


def test_what_lies_outside_the_brain_does_not_make_the_level(weight):
    """Background beside the lesion must not look like fluid in it."""
    voxels, brain = tissue(noise=0.0), np.zeros((40, 40, 40), dtype=bool)
    brain[:, :, :20] = True
    voxels[~brain] = 0
    made = darken(voxels, brain, np.where(brain, weight, 0), 1.0, LEVELS)
    core = brain & (weight == 1)
    np.testing.assert_array_equal(np.unique(made[core]), [LEVELS.target])


# --- cohorts ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    made = Sources(tmp_path_factory.mktemp("strokes"))
    made.contents = {
        name: made.add_head(f"{name}_T1", pose, seed)
        for seed, (name, pose) in enumerate(zip(("anna", "bert", "cleo"), POSES, strict=True))
    }
    # no brain is found in it
    broken = (np.arange(9 * 10 * 11) % 200).astype(np.uint8).reshape(9, 10, 11)
    nifti.write(made.heads / "dora_T1.nii.gz", broken, np.eye(4), "noise")
    for name, shape in {"right": RIGHT, "left": LEFT, "speck": SPECK}.items():
        made.add_mask(name, shape)
    return made


@pytest.fixture(scope="module", autouse=True)
def _brain(sources):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stroke_heads, "brain_mask", sources.brain_mask)
        yield


def plan_of(sources, n_normal=1, n_lesioned=2, **changes):
    folders = {"heads": sources.heads, "lesion_masks": sources.masks, "mni": sources.mni}
    rest = {"cache": sources.root, "seed": 4} | changes
    return StrokePlan(**(folders | {"n_normal": n_normal, "n_lesioned": n_lesioned} | rest))


@pytest.fixture(scope="module")
def cohort(sources):
    """Three heads in a folder, and what was said."""
    notes = []
    folder = sources.root / "out"
    made = list(write_strokes(plan_of(sources), folder, notes.append))
    return folder, made, notes


def table_of(folder):
    with (folder / "lesions.csv").open(newline="") as stream:
        return list(csv.DictReader(stream))


def pose_and_head(sources, made):
    name = made.name.split("-", 1)[1]
    return POSES[("anna", "bert", "cleo").index(name)], sources.contents[name]


def test_as_many_are_made_as_were_asked(cohort):
    _, made, notes = cohort
    assert sorted(one.name.split("-")[0] for one in made) == ["LESION", "LESION", "NORMAL"]
    assert {one.name.split("-")[1] for one in made} == {"anna", "bert", "cleo"}
    assert [len(one.lesions) for one in made if one.name.startswith("NORMAL")] == [0]
    assert all("dora" in note and "no brain" in note for note in notes)


def test_each_lesion_lies_where_its_mask_lay_in_the_brain(sources, cohort):
    for made in cohort[1]:
        pose, _ = pose_and_head(sources, made)
        for lesion in made.lesions:
            centre, radius = {"right.nii.gz": RIGHT, "left.nii.gz": LEFT}[lesion.mask_file]
            there = (pose @ [*centre, 1.0])[:3]
            assert np.linalg.norm(np.array(lesion.centre_mm) - there) < 2.5
            ml = 4 / 3 * np.pi * radius**3 / 1000 * np.linalg.det(pose[:3, :3])
            # voxels of 4 mm round a ball of 18 mm
            assert lesion.volume_ml == pytest.approx(ml, rel=0.25)
            assert lesion.share_in_brain == 1


def test_masks_are_used_once_and_only_those_of_the_asked_volume(cohort):
    used = [lesion.mask_file for made in cohort[1] for lesion in made.lesions]
    assert sorted(used) == ["left.nii.gz", "right.nii.gz"]


def test_the_contrasts_are_taken_in_turn_and_more_changes_more(cohort):
    lesions = [lesion for made in cohort[1] for lesion in made.lesions]
    assert [lesion.contrast for lesion in lesions] == [0.3, 0.5]
    assert 0.02 < lesions[0].achieved < lesions[1].achieved < 0.5


def test_only_the_voxels_of_a_lesion_differ_from_the_source(sources, cohort):
    """And all heads are scaled alike: the lesion must be all that tells them apart."""
    for made in cohort[1]:
        _, source = pose_and_head(sources, made)
        same = np.rint(source * (4095 / source.max())).astype(np.int16)
        near = np.zeros(source.shape, dtype=bool)
        for lesion in made.lesions:
            near |= ndimage.binary_dilation(lesion.mask, np.ones((3, 3, 3)))
            assert (made.voxels[lesion.mask] < same[lesion.mask]).mean() > 0.9
        np.testing.assert_array_equal(made.voxels[~near], same[~near])
        assert np.isin(made.voxels, same).all()


def test_the_files_are_what_was_made(cohort):
    folder, made, _ = cohort
    for one in made:
        scan = nifti.read(folder / f"{one.name}_t1.nii.gz")
        label = nifti.read(folder / f"{one.name}_label.nii.gz")
        np.testing.assert_array_equal(scan.voxels, one.voxels)
        np.testing.assert_array_equal(scan.affine, one.affine)
        np.testing.assert_array_equal(label.affine, one.affine)
        masks = [lesion.mask for lesion in one.lesions]
        np.testing.assert_array_equal(label.voxels > 0.5, np.any(masks, axis=0))


def test_scores_find_each_scan_with_its_mask(cohort):
    folder, made, _ = cohort
    found = inputs.find([folder], None, None)
    assert {scan.name for scan in found.scans} == {f"{one.name}_t1" for one in made}
    assert {scan.mask.name for scan in found.scans} == {f"{one.name}_label.nii.gz" for one in made}
    assert not found.stray_masks


def test_the_table_says_what_was_planted(cohort):
    folder, made, _ = cohort
    rows = table_of(folder)
    lesions = [(one.name, lesion) for one in made for lesion in one.lesions]
    assert [row["name"] for row in rows] == [name for name, _ in lesions]
    for row, (_, lesion) in zip(rows, lesions, strict=True):
        assert row["mask_file"] == lesion.mask_file
        assert float(row["volume_ml"]) == pytest.approx(lesion.volume_ml, abs=1e-3)
        assert float(row["contrast"]) == lesion.contrast
        assert float(row["achieved_contrast"]) == pytest.approx(lesion.achieved, abs=1e-4)
        where = [float(row[axis]) for axis in "xyz"]
        np.testing.assert_allclose(where, lesion.centre_mm, atol=0.06)


def run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["dicom-node", "cohort", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return ended.value.code


def test_the_verb_makes_the_same_files_from_the_same_seed(
    sources, cohort, tmp_path, monkeypatch, capsys
):
    folders = ("--heads", sources.heads, "--lesion-masks", sources.masks, "--mni", sources.mni)
    sizes = ("--normal", 1, "--lesioned", 2, "--seed", 4)
    assert run(monkeypatch, tmp_path, *folders, *sizes) == 0
    said = capsys.readouterr().out
    made = cohort[1]
    for n, one in enumerate(made, 1):
        assert f"{n}/3 {one.name}, lesions: {len(one.lesions)}\n" in said
    names = sorted(path.name for path in cohort[0].iterdir())
    assert names == sorted(path.name for path in tmp_path.iterdir())
    for name in names:
        assert (tmp_path / name).read_bytes() == (cohort[0] / name).read_bytes()


def test_what_is_outside_the_brain_is_cut_off(sources, tmp_path):
    other = Sources(tmp_path)
    sources.brains |= other.brains
    name = "anna"
    (other.heads / "anna.nii.gz").write_bytes((sources.heads / "anna_T1.nii.gz").read_bytes())
    other.add_mask("cortical", CORTICAL)
    (made,) = make_strokes(plan_of(other, 0, 1, contrasts=(0.9,)), [].append)
    (lesion,) = made.lesions
    brain = sources.brain_mask(sources.contents[name].astype(np.float32), None, None)
    assert not (lesion.mask & ~brain).any()
    assert 0.3 < lesion.share_in_brain < 0.8
    source = np.rint(sources.contents[name] * (4095 / sources.contents[name].max()))
    np.testing.assert_array_equal(made.voxels[~brain], source[~brain])


def test_heads_that_were_refused_are_missed_at_the_end(sources, tmp_path):
    """What could be made is there, with its list."""
    heads = tmp_path / "heads"
    heads.mkdir()
    for name in ("bert_T1", "dora_T1"):
        (heads / f"{name}.nii.gz").write_bytes((sources.heads / f"{name}.nii.gz").read_bytes())
    notes, folder = [], tmp_path / "out"
    plan = plan_of(sources, 0, 2, heads=heads)
    with pytest.raises(NodeError, match=r"only 1 of 2 subjects.*ask for fewer"):
        list(write_strokes(plan, folder, notes.append))
    assert notes == ["dora_T1.nii.gz is left out: no brain was found"]
    assert [row["name"] for row in table_of(folder)] == ["LESION-bert"]
    assert (folder / "LESION-bert_t1.nii.gz").exists()


def test_no_mask_of_the_asked_volume_is_said(sources):
    plan = plan_of(sources, 0, 1, volume_ml=(50.0, 60.0))
    with pytest.raises(NodeError, match=r"no lesion mask is left.*50 to 60 ml"):
        list(make_strokes(plan, [].append))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"heads": "nowhere"}, r"nowhere is no folder; name that of the heads"),
        ({"lesion_masks": "nowhere"}, r"nowhere is no folder; name that of the lesion masks"),
        ({"heads": "empty"}, r"empty holds 0 heads"),
        ({"lesion_masks": "empty"}, r"empty holds 0 lesion masks"),
        ({"n_lesioned": 4, "n_normal": 0}, r"holds 3 lesion masks.*4 are needed"),
        ({"n_normal": 9}, r"holds 4 heads.*11 are needed"),
        ({"volume_ml": (5.0, 1.0)}, r"least volume.*exchange"),
        ({"mni": "nowhere"}, r"nowhere.*name a skull-stripped T1"),
    ],
)
def test_what_cannot_be_followed_is_refused_before_anything_is_made(
    sources, tmp_path, changes, reason
):
    (tmp_path / "empty").mkdir()
    places = {key: tmp_path / value for key, value in changes.items() if isinstance(value, str)}
    plan = plan_of(sources, **(changes | places))
    with pytest.raises(ConfigError, match=reason):
        next(write_strokes(plan, tmp_path / "out", [].append))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--heads", "a"], "--heads and --lesion-masks need one another"),
        (["--lesion-masks", "a"], "--heads and --lesion-masks need one another"),
        (["--mni", "a"], "--heads and --lesion-masks need one another"),
        (["--heads", "a", "--lesion-masks", "b", "--chest", "c"], "--chest makes chests"),
        (["--heads", "nowhere", "--lesion-masks", "b"], "nowhere is no folder"),
    ],
)
def test_the_verb_names_what_is_missing(tmp_path, monkeypatch, capsys, arguments, reason):
    assert run(monkeypatch, tmp_path / "out", *arguments) == 2
    assert reason in capsys.readouterr().err


# --- what the cohorts share -------------------------------------------------------------------


@pytest.mark.parametrize(("n_normal", "n_lesioned"), [(22, 12), (0, 3), (4, 0), (2, 7), (0, 0)])
def test_lesioned_subjects_are_spread_evenly(n_normal, n_lesioned):
    found = subject_files.spread(n_normal, n_lesioned)
    assert (len(found), sum(found)) == (n_normal + n_lesioned, n_lesioned)
    for number in range(len(found) + 1):
        assert abs(sum(found[:number]) - number * n_lesioned / max(1, len(found))) < 1


def test_the_target_of_a_lesion_lies_between_fluid_and_grey_matter():
    assert LEVELS.csf < LEVELS.target < LEVELS.grey
    assert Levels(0.0, 1.0, 1.0).target == pytest.approx(0.25)
