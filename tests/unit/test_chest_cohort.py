"""The chests made from a real one: they differ, and their lesions are what they say."""

import csv

import nibabel
import numpy as np
import pytest
from scipy import ndimage

from dicom_node.demo import chest_healing, chest_lesions, chest_scan, chest_template, fields
from dicom_node.demo.chest_cohort import load_chest, make_chest, make_chests, write_chests
from dicom_node.demo.chest_lesions import Plan
from dicom_node.demo.chest_scan import Posed, Scan
from dicom_node.demo.chest_template import GRID_MM
from dicom_node.errors import ConfigError, IrregularGeometry, NodeError, NotScorable
from dicom_node.volume import build
from tests.make import chest_series, console
from tests.make.scans import write_series

VOXEL_ML = 4.5 / 1000


@pytest.fixture(scope="module")
def chest():
    return chest_series.small_chest()


@pytest.fixture(scope="module")
def normal(chest):
    return make_chest(chest, 7, with_lesions=False)


@pytest.fixture(scope="module")
def lesioned(chest):
    return make_chest(chest, 7, with_lesions=True)


@pytest.fixture
def posed(chest):
    return Posed(chest.voxels.copy(), chest.lungs, chest.parenchyma, chest.affine)


def _planted(posed, kind, diameter, seed=0):
    (lesion,) = chest_lesions.plant(posed, [Plan(kind, diameter)], np.random.default_rng(seed))
    return lesion


# --- subjects ---------------------------------------------------------------------------------


def test_the_same_seed_makes_the_same_chest(chest, lesioned):
    again = make_chest(chest, 7, with_lesions=True)
    np.testing.assert_array_equal(again.voxels, lesioned.voxels)
    np.testing.assert_array_equal(again.affine, lesioned.affine)
    for one, other in zip(again.lesions, lesioned.lesions, strict=True):
        np.testing.assert_array_equal(one.mask, other.mask)


def test_another_seed_makes_another_chest(chest, normal):
    other = make_chest(chest, 8, with_lesions=False)
    n = min(len(other.lungs), len(normal.lungs))
    a, b = other.lungs[:n], normal.lungs[:n]
    assert 0.6 < 2 * (a & b).sum() / (a.sum() + b.sum()) < 0.97
    assert other.scan != normal.scan


def test_a_chest_changes_only_in_and_around_its_lesions(normal, lesioned):
    assert lesioned.lesions
    changed = np.abs(lesioned.voxels - normal.voxels)
    marked = np.any([lesion.mask for lesion in lesioned.lesions], axis=0)
    away = ndimage.distance_transform_edt(~marked, sampling=GRID_MM)
    # soft edges, and the reach of the softest kernel
    assert changed[away > 12].max() == 0
    for lesion in lesioned.lesions:
        assert np.median(changed[lesion.mask]) > 100


def test_hounsfield_units_fit_what_a_ct_stores(normal, lesioned):
    for made in (normal, lesioned):
        assert made.voxels.dtype == np.float32
        assert made.voxels.min() >= -1024
        assert made.voxels.max() <= 3071


def test_the_grid_stays_the_templates_but_for_slices_that_the_source_lacks(chest, normal):
    np.testing.assert_array_equal(normal.affine[:3, :3], chest.affine[:3, :3])
    np.testing.assert_array_equal(normal.affine[:2, 3], chest.affine[:2, 3])
    first = (normal.affine[2, 3] - chest.affine[2, 3]) / GRID_MM[0]
    assert first == round(first)
    assert 0 <= first < 15
    assert len(chest.voxels) - 30 < len(normal.voxels) + first <= len(chest.voxels)


@pytest.mark.parametrize(("n_normal", "n_lesioned"), [(12, 4), (0, 5), (3, 1), (5, 0), (2, 7)])
def test_a_cohort_has_as_many_of_each_as_asked(monkeypatch, n_normal, n_lesioned):
    made = []

    def remember(_chest, seed, *, with_lesions):
        made.append((seed, with_lesions))

    monkeypatch.setattr("dicom_node.demo.chest_cohort.make_chest", remember)
    list(make_chests(None, n_normal, n_lesioned, 3))
    assert [seed for seed, _ in made] == list(range(3000, 3000 + n_normal + n_lesioned))
    assert sum(with_lesions for _, with_lesions in made) == n_lesioned


# --- breath, dose and kernel ------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_no_deformation_folds_tissue_over(chest, seed):
    at = chest_scan._shape(chest.voxels.shape, np.random.default_rng(seed))
    rows = [
        np.stack(np.gradient(part, axis=(0, 1, 2)), axis=-1) * mm / GRID_MM
        for part, mm in zip(at, GRID_MM, strict=True)
    ]
    volume = np.linalg.det(np.stack(rows, axis=-2)[::2, ::2, ::2])
    assert volume.min() > 0.05
    assert volume.std() > 0.1


def _pose(chest, breath_mm):
    return chest_scan.pose(chest, breath_mm, np.random.default_rng(3))


def test_exhaled_lungs_are_smaller_and_denser_and_keep_their_mass(chest):
    def lungs(posed):
        return posed.lungs.sum() * VOXEL_ML, float((posed.voxels[posed.parenchyma] + 1000).sum())

    deep, still, out = (lungs(_pose(chest, breath_mm)) for breath_mm in (-8.0, 0.0, 20.0))
    assert deep[0] > still[0] > out[0]
    assert out[0] < 0.93 * still[0]
    assert out[1] == pytest.approx(still[1], rel=0.04)
    assert deep[1] == pytest.approx(still[1], rel=0.04)


@pytest.mark.parametrize("breath_mm", [-8.0, 16.0])
def test_the_diaphragm_rises_by_the_breath_and_the_apex_stays(chest, breath_mm):
    at = np.indices(chest.voxels.shape, dtype=np.float32)
    before = at.copy()
    density = chest_scan._breathe(at, chest.lungs, breath_mm)
    rise = (before[0] - at[0])[:, 50, 80] * GRID_MM[0]
    assert rise[0] == pytest.approx(breath_mm, abs=0.01)
    assert rise[-1] == 0
    assert (np.diff(np.abs(rise)) <= 1e-4).all()
    # tissue of a voxel that was larger is in it now
    volume = np.gradient(at[0], axis=0) * np.gradient(at[1], axis=1)
    np.testing.assert_allclose(density, volume, atol=0.01)
    assert not np.any(at[2] - before[2])


def test_noise_has_the_planned_size_and_less_of_it_below_and_above_the_kernels_band():
    noise = chest_scan._noise((20, 96, 90), 0.0, np.random.default_rng(0))
    assert noise.std() == pytest.approx(1, abs=1e-3)
    power = (np.abs(np.fft.rfft2(noise)) ** 2).mean(axis=0)
    f = np.hypot(np.fft.fftfreq(96, 1.5)[:, None], np.fft.rfftfreq(90, 1.5))
    rings = [power[(f >= low) & (f < low + 0.05)].mean() for low in (0.0, 0.15, 0.4)]
    assert rings[1] > 2 * rings[0]
    assert rings[1] > 2 * rings[2]


@pytest.mark.parametrize("sharpness", [-1.0, 0.0, 1.0])
def test_water_is_as_noisy_as_the_scan_says_and_keeps_its_mean(sharpness):
    water = np.zeros((10, 80, 80), dtype=np.float32)
    seen = chest_scan.scan_voxels(water, Scan(0, 17.0, sharpness), np.random.default_rng(0))
    assert seen.std() == pytest.approx(17, rel=0.01)
    assert abs(seen.mean()) < 0.5


def test_a_sharper_kernel_shows_a_steeper_edge():
    edge = np.zeros((4, 40, 40), dtype=np.float32)
    edge[:, :, 20:] = 100
    steps = [
        np.abs(np.diff(chest_scan._through_kernel(edge, sharpness)[2, 20])).max()
        for sharpness in (-1.0, -0.5, 0.0, 0.5, 1.0)
    ]
    assert steps == sorted(steps)
    assert steps[2] == pytest.approx(100)
    assert steps[0] < 60


def test_draws_stay_within_what_protocols_are_set_to():
    scans = [chest_scan.draw_scan(np.random.default_rng(seed)) for seed in range(300)]
    noise = [scan.noise_hu for scan in scans]
    assert 8 <= min(noise) < 10
    assert 25 < max(noise) <= 30
    assert np.corrcoef(noise, [scan.sharpness for scan in scans])[0, 1] > 0.3
    assert -8 <= min(scan.breath_mm for scan in scans) < -6


@pytest.mark.parametrize("sigma", [3.0, 15.0])
def test_a_smooth_field_has_unit_variance_and_its_scale(sigma):
    field = fields.smooth_field((94, 160, 150), (2.0, 1.0, 1.5), sigma, np.random.default_rng(0))
    assert field.shape == (94, 160, 150)
    assert field.std() == pytest.approx(1, abs=0.001)
    # a field smoothed by a Gaussian of s has autocorrelation exp(-d^2 / 4 s^2)
    step = int(sigma)
    near = np.corrcoef(field[:, :-step].ravel(), field[:, step:].ravel())[0, 1]
    assert near == pytest.approx(np.exp(-1 / 4), abs=0.1)


# --- lesions ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["solid", "part-solid", "consolidation"])
@pytest.mark.parametrize("diameter", [8.0, 11.0, 15.0])
def test_a_lesion_has_the_planned_diameter(posed, kind, diameter):
    lesion = _planted(posed, kind, diameter)
    assert lesion.kind == kind
    assert lesion.diameter_mm == pytest.approx(diameter, abs=0.05)
    assert lesion.volume_ml == pytest.approx(lesion.mask.sum() * VOXEL_ML)
    assert lesion.volume_ml == pytest.approx(np.pi / 6 * lesion.diameter_mm**3 / 1000)


@pytest.mark.parametrize("diameter", [3.0, 4.0, 5.5])
def test_a_small_nodule_is_as_large_as_whole_voxels_allow(posed, diameter):
    lesion = _planted(posed, "solid", diameter)
    planned_ml = np.pi / 6 * diameter**3 / 1000
    assert abs(lesion.volume_ml - planned_ml) <= VOXEL_ML / 2


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("kind", "diameter"), [("solid", 14.0), ("consolidation", 36.0)])
def test_a_lesion_is_one_piece_of_lung_around_its_centre(posed, kind, diameter, seed):
    lesion = _planted(posed, kind, diameter, seed)
    assert not (lesion.mask & ~posed.lungs).any()
    sizes = np.bincount(ndimage.label(lesion.mask, np.ones((3, 3, 3)))[0].ravel())[1:]
    assert sizes.max() > 0.98 * lesion.mask.sum()
    x, y, z = np.linalg.solve(posed.affine, [*lesion.centre_mm, 1])[[2, 1, 0]]
    np.testing.assert_allclose((z, y, x), np.argwhere(lesion.mask).mean(axis=0), atol=1e-6)


@pytest.mark.parametrize("seed", range(4))
def test_a_nodule_keeps_off_large_vessels_and_out_of_the_wall(posed, seed):
    tissue = posed.voxels > -100
    wide = ndimage.binary_opening(tissue, np.ones((1, 5, 5)))
    lesion = _planted(posed, "solid", 10.0, seed)
    assert not (lesion.mask & wide).any()


def test_a_solid_nodule_is_tissue_and_a_part_solid_one_glass_about_a_core(posed):
    solid, partly = _planted(posed, "solid", 14.0, 1), _planted(posed, "part-solid", 14.0, 2)
    inside = ndimage.binary_erosion(solid.mask, iterations=2)
    assert -30 < np.median(posed.voxels[inside]) < 90
    levels = posed.voxels[partly.mask]
    assert np.percentile(levels, 97) > -100
    assert -720 < np.median(levels) < -350


def test_open_bronchi_run_through_a_consolidation(posed):
    lesion = _planted(posed, "consolidation", 34.0, 1)
    inside = posed.voxels[ndimage.binary_erosion(lesion.mask, iterations=2)]
    assert -80 < np.median(inside) < 80
    assert 0.01 < (inside < -400).mean() < 0.3


def test_lesions_lie_apart(posed):
    plans = [Plan("consolidation", 25.0), Plan("solid", 12.0), Plan("solid", 12.0)]
    lesions = chest_lesions.plant(posed, plans, np.random.default_rng(5))
    for number, lesion in enumerate(lesions):
        away = ndimage.distance_transform_edt(~lesion.mask, sampling=GRID_MM)
        for other in lesions[number + 1 :]:
            assert away[other.mask].min() > 8


def test_plans_are_within_bounds_and_of_every_kind():
    plans = [chest_lesions.draw_plans(np.random.default_rng(seed)) for seed in range(200)]
    nodules = [[plan for plan in drawn if plan.kind != "consolidation"] for drawn in plans]
    assert {len(drawn) for drawn in nodules} == {1, 2, 3}
    assert all(3 <= plan.diameter_mm <= 15 for drawn in nodules for plan in drawn)
    assert 20 < sum(plan.kind == "part-solid" for drawn in nodules for plan in drawn) < 150
    large = [plan.diameter_mm for drawn in plans for plan in drawn if plan.kind == "consolidation"]
    assert 40 < len(large) < 95
    assert 10 <= min(large) < max(large) <= 40


def test_lungs_without_room_for_a_lesion_say_so(posed):
    narrow = np.zeros_like(posed.lungs)
    narrow[:, 50:53, 50:53] = True
    small = Posed(posed.voxels, narrow, narrow, posed.affine)
    with pytest.raises(NodeError, match=r"no place .* solid lesion of 5\.0 mm"):
        _planted(small, "solid", 10.0)


# --- the template -----------------------------------------------------------------------------

#: (depth, height, width) of the made tumour's box, in voxels of the series; in the lung towards L
TUMOUR = (slice(22, 30), slice(36, 54), slice(88, 104))


def _boxes(folder, datasets):
    """A reader's boxes around the made tumour, as PASCAL VOC has them."""
    folder.mkdir()
    for number in range(TUMOUR[0].start, TUMOUR[0].stop):
        x, y = TUMOUR[2], TUMOUR[1]
        text = f"<xmin>{x.start}</xmin><ymin>{y.start}</ymin><xmax>{x.stop}</xmax><ymax>{y.stop}"
        (folder / f"{datasets[number].SOPInstanceUID}.xml").write_text(f"<b>{text}</ymax></b>")


@pytest.fixture
def with_tumour(tmp_path):
    """A folder of a CT series with a tumour in one lung, and boxes around it."""
    hu = chest_series.chest_hu((56, 90, 130), (4.0, 2.0, 2.0))
    hu[TUMOUR] = 40
    datasets = chest_series.write_chest(tmp_path / "series" / "dicom", hu)
    _boxes(tmp_path / "series" / "annotation_boxes", datasets)
    return tmp_path / "series"


def _at(chest, z, y, x):
    """The template's voxel where the series has index (z, y, x)."""
    origin = np.array(chest_series.SERIES.origin)
    point = origin + np.array([x * 2.0, y * 2.0, z * 4.0])
    index = np.rint(np.linalg.solve(chest.affine, [*point, 1])[:3]).astype(int)
    return tuple(index)


def test_the_template_lies_where_the_series_does(tmp_path):
    hu = chest_series.chest_hu((56, 90, 130), (4.0, 2.0, 2.0))
    hu[40:44, 4:12, 60:64] = 1500
    chest_series.write_chest(tmp_path / "dicom", hu)
    chest = load_chest(tmp_path)
    np.testing.assert_allclose(np.linalg.norm(chest.affine[:3, :3], axis=0), GRID_MM)
    bone = np.argwhere(chest.voxels > 800).mean(axis=0)
    np.testing.assert_allclose(bone, _at(chest, 41.5, 7.5, 61.5), atol=1)
    assert 1.2 < chest.lungs.sum() * VOXEL_ML / 1000 < 2.2
    assert not (chest.parenchyma & ~chest.lungs).any()


def test_a_series_from_the_head_down_makes_the_same_template(tmp_path):
    chest_series.write_chest(tmp_path / "up")
    volume = build(sorted((tmp_path / "up").glob("*.dcm")))
    turned = type(volume)(
        volume.voxels[::-1], volume.affine @ _flip(len(volume.voxels)), volume.headers[::-1]
    )
    none = np.zeros((0, 2, 3))
    one, other = (chest_template.make_template(v, none) for v in (volume, turned))
    np.testing.assert_allclose(one.voxels, other.voxels, atol=0.01)
    np.testing.assert_allclose(one.affine, other.affine, atol=1e-6)


def _flip(n):
    matrix = np.diag([-1.0, 1, 1, 1])
    matrix[0, 3] = n - 1
    return matrix


def test_noise_of_the_source_is_reduced_and_its_edges_stay():
    hu = chest_series.chest_hu((56, 90, 130), (4.0, 2.0, 2.0))
    noisy = (hu + np.random.default_rng(0).normal(0, 30, hu.shape)).astype(np.float32)
    reduced = chest_template._reduce_noise(noisy)
    flat = ndimage.uniform_filter(np.abs(hu - 40) < 1, 9) == 1
    assert (reduced - hu)[flat].std() < 15
    edge = np.abs(np.diff(hu, axis=2)) > 800
    assert np.abs(np.diff(reduced, axis=2))[edge].mean() > 780


def test_a_marked_tumour_becomes_lung(with_tumour, tmp_path):
    chest = load_chest(with_tumour)
    chest_series.write_chest(tmp_path / "healthy")
    healthy = load_chest(tmp_path / "healthy")
    place = _at(chest, 26, 45, 96)
    around = tuple(slice(at - 4, at + 5) for at in place)
    assert np.median(chest.voxels[around]) < -700
    assert chest.lungs.sum() > 0.98 * healthy.lungs.sum()


def test_an_unmarked_tumour_stays_and_the_other_lung_is_never_changed(with_tumour, tmp_path):
    (with_tumour / "annotation_boxes").rename(tmp_path / "elsewhere")
    left = load_chest(with_tumour)
    (tmp_path / "elsewhere").rename(with_tumour / "annotation_boxes")
    healed = load_chest(with_tumour / "dicom")  # boxes beside the series' own folder count too
    assert np.median(left.voxels[_at(left, 26, 45, 96)]) > 0
    middle = left.voxels.shape[2] // 2
    np.testing.assert_array_equal(left.voxels[..., :middle], healed.voxels[..., :middle])


def test_a_mirrored_lung_is_sampled_at_the_other_side_of_the_plane():
    values = np.arange(3 * 4 * 9, dtype=np.float32).reshape(3, 4, 9)
    mirror = chest_healing._Mirror(np.full(3, 4.0), 1.5, 1.0, (0.0, 0.0))
    np.testing.assert_array_equal(mirror.sample(values, np.s_[0:3, 0:4, 0:9], 1), values[..., ::-1])


# --- what is no chest -------------------------------------------------------------------------


def test_a_folder_that_is_not_there_says_so(tmp_path):
    with pytest.raises(ConfigError, match="nowhere does not exist"):
        load_chest(tmp_path / "nowhere")


def test_a_folder_without_ct_says_so(tmp_path):
    write_series(tmp_path / "mr", 1)
    with pytest.raises(ConfigError, match=r"holds no CT series; name the folder of one chest CT"):
        load_chest(tmp_path)


def test_a_folder_of_several_series_says_so(tmp_path):
    for seed in (1, 2):
        write_series(tmp_path / str(seed), seed, "CT")
    with pytest.raises(ConfigError, match=r"holds 2 CT series"):
        load_chest(tmp_path)


def test_a_ct_without_lungs_says_so(tmp_path):
    hu = chest_series.chest_hu((56, 90, 130), (4.0, 2.0, 2.0))
    hu[20:60, 20:70, 20:110] = 40
    hu[:20, 20:70, 20:110] = 40
    chest_series.write_chest(tmp_path / "dicom", hu)
    with pytest.raises(NotScorable, match=r"no lungs: .* name a CT of a whole chest"):
        load_chest(tmp_path)


def test_slices_that_are_not_axial_are_refused(tmp_path):
    chest_series.write_chest(tmp_path / "dicom")
    volume = build(sorted((tmp_path / "dicom").glob("*.dcm")))
    coronal = volume.affine[:, [1, 0, 2, 3]]
    with pytest.raises(IrregularGeometry, match="not axial"):
        chest_template.make_template(type(volume)(volume.voxels, coronal, ()), np.zeros((0, 2, 3)))


# --- files ------------------------------------------------------------------------------------


@pytest.fixture
def call(monkeypatch, capsys, tmp_path):
    """Run the command line as the console script does: (exit status, output, errors)."""
    return console.runner(monkeypatch, capsys, tmp_path)


def test_files_and_list_agree_with_the_lesions(chest, tmp_path):
    made = list(write_chests(chest, tmp_path / "out", 1, 1, seed=1))
    assert [bool(one.lesions) for one in made].count(True) == 1
    with (tmp_path / "out" / "lesions.csv").open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == sum(len(one.lesions) for one in made)
    for one in made:
        image, label = (
            nibabel.load(tmp_path / "out" / f"{one.name}_{kind}.nii.gz") for kind in ("ct", "label")
        )
        assert image.get_data_dtype() == np.int16
        np.testing.assert_array_equal(image.affine, label.affine)
        back = np.asarray(image.dataobj).transpose(2, 1, 0)
        np.testing.assert_array_equal(back, np.rint(one.voxels))
        marks = np.asarray(label.dataobj)
        assert marks.max() == len(one.lesions)
        for row in (row for row in rows if row["name"] == one.name):
            index = np.argwhere(marks == int(row["lesion"])).mean(axis=0)
            point = (image.affine @ [*index, 1])[:3] * [-1, -1, 1]  # RAS -> LPS
            listed = [float(row[axis]) for axis in "xyz"]
            np.testing.assert_allclose(point, listed, atol=0.06)
            assert float(row["volume_ml"]) == pytest.approx(
                (marks == int(row["lesion"])).sum() * VOXEL_ML, abs=1e-4
            )


def test_the_verb_cohort_makes_chests_of_a_series(call, tmp_path):
    chest_series.write_chest(tmp_path / "series")
    status, said, _ = call(
        "cohort", "out", "--chest", "series", "--normal", 1, "--lesioned", 1, "--seed", 4
    )
    assert status == 0
    assert "2/2" in said
    assert "dicom-node score out --preset ct" in said
    assert len(list((tmp_path / "out").glob("*_ct.nii.gz"))) == 2
    assert len(list((tmp_path / "out").glob("*_label.nii.gz"))) == 2


def test_the_verb_cohort_names_a_folder_that_holds_no_chest(call, tmp_path):
    (tmp_path / "empty").mkdir()
    status, _, said = call("cohort", "out", "--chest", "empty")
    assert status == 2
    assert "empty holds no CT series" in said


# --- the real one -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def real(shared_data):
    return load_chest(shared_data / "chest_ct_lungdx_A0001")


def test_the_real_chest_is_lung_where_its_tumour_was(real):
    """The boxes' middle, read off the annotations of the source by hand."""
    index = np.linalg.solve(real.affine, [40.0, 202.0, -209.0, 1])[:3]
    around = tuple(slice(at - 6, at + 7) for at in np.rint(index).astype(int))
    assert real.lungs[around].mean() > 0.95
    assert -920 < np.median(real.voxels[around]) < -780


def test_the_lungs_of_the_real_chest_are_alike(real):
    columns = np.arange(real.lungs.shape[2])
    middle = (real.lungs.sum(axis=(0, 1)) * columns).sum() / real.lungs.sum()
    sides = [real.lungs[..., columns < middle].sum(), real.lungs[..., columns > middle].sum()]
    assert 0.7 < sides[1] / sides[0] < 1.4
    assert 4500 < real.lungs.sum() * VOXEL_ML < 6500


def test_a_real_chest_takes_lesions(real):
    made = make_chest(real, 1000, with_lesions=True)
    assert made.lesions
    assert all(not (lesion.mask & ~made.lungs).any() for lesion in made.lesions)
    assert -900 < np.median(made.voxels[made.lungs]) < -780
