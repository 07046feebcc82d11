"""The built-in cohort: heads that differ, lesions that are where and what they claim, valid MR."""

import subprocess

import highdicom
import numpy as np
import pydicom
import pytest
from scipy import ndimage

from dicom_node.demo import cohort
from dicom_node.demo.cohort import load_template, make_cohort, make_head
from dicom_node.demo.mr_series import Acquisition, volume_from_nifti, write_mr_series
from dicom_node.errors import NodeError
from dicom_node.folders import cache_folder

GRID_MM = (2.0, 1.0, 1.0)
#: one whose second lesion once fell into the surroundings of its first
TWO_LESIONS = 1015
ACQUISITION = Acquisition(patient_id="DEMO-1", patient_name="Demo^One")


@pytest.fixture(scope="module")
def template():
    return load_template(cache_folder())


@pytest.fixture(scope="module")
def normal(template):
    return make_head(template, 1000, with_lesions=False)


@pytest.fixture(scope="module")
def lesioned(template):
    return make_head(template, TWO_LESIONS, with_lesions=True)


def _dice(a, b):
    return 2 * (a & b).sum() / (a.sum() + b.sum())


def test_the_same_seed_makes_the_same_head(template, lesioned):
    again = make_head(template, TWO_LESIONS, with_lesions=True)
    np.testing.assert_array_equal(again.voxels, lesioned.voxels)
    for one, other in zip(again.lesions, lesioned.lesions, strict=True):
        np.testing.assert_array_equal(one.mask, other.mask)


def test_another_seed_makes_another_head(template, normal):
    other = make_head(template, 1001, with_lesions=False)
    assert 0.85 < _dice(normal.voxels > 50, other.voxels > 50) < 0.975


def test_a_head_fits_16_bit_and_is_not_clipped(normal, lesioned):
    for head in (normal, lesioned):
        assert head.voxels.shape == (94, 233, 197)
        assert np.isfinite(head.voxels).all()
        assert head.voxels.min() == 0
        assert head.voxels.max() < 4095


def test_the_affine_is_the_heads_own(normal):
    """LPS: the cerebellum, low in the head, is at its back; the brain is centred left to right."""
    np.testing.assert_allclose(np.linalg.norm(normal.affine[:3, :3], axis=0), GRID_MM)
    index = np.argwhere(normal.voxels > 50)
    points = index @ normal.affine[:3, :3].T + normal.affine[:3, 3]
    assert abs(points[:, 0].mean()) < 10
    lowest = points[points[:, 2] < np.percentile(points[:, 2], 8)]
    assert lowest[:, 1].mean() > points[:, 1].mean() + 10


def test_smooth_field_has_unit_variance_and_its_scale():
    random = np.random.default_rng(0)
    field = cohort._smooth_field((94, 233, 197), 20.0, random)
    assert field.std() == pytest.approx(1, abs=0.1)
    # a field smoothed by a Gaussian of s has autocorrelation exp(-d^2 / 4 s^2)
    near = np.corrcoef(field[:, :, :-20].ravel(), field[:, :, 20:].ravel())[0, 1]
    assert near == pytest.approx(np.exp(-1 / 4), abs=0.12)


@pytest.mark.parametrize(("n", "n_coarse"), [(94, 16), (7, 5), (10, 10)])
def test_interpolation_is_that_of_ndimage(n, n_coarse):
    coarse = np.random.default_rng(1).standard_normal(n_coarse)
    slow = ndimage.zoom(coarse, n / n_coarse, order=1, grid_mode=True, mode="nearest")
    np.testing.assert_allclose(cohort._interpolation(n, n_coarse) @ coarse, slow, atol=1e-5)


def test_lesions_are_of_both_kinds_and_large_enough(lesioned):
    assert [lesion.contrast for lesion in lesioned.lesions] == [1.7, 0.5]
    for lesion in lesioned.lesions:
        assert lesion.volume_ml == pytest.approx(lesion.mask.sum() * 2 / 1000)
        assert 0.5 <= lesion.volume_ml < 8
        assert ndimage.label(lesion.mask)[1] == 1


def test_lesions_have_the_contrast_they_claim(lesioned):
    brain = lesioned.voxels > 50
    for lesion in lesioned.lesions:
        outside = ndimage.distance_transform_edt(~lesion.mask, sampling=GRID_MM)
        inside = ndimage.distance_transform_edt(lesion.mask, sampling=GRID_MM)
        shell = lesioned.voxels[(outside > 3) & (outside < 7) & brain].mean()
        measured = lesioned.voxels[inside > 1.5].mean() / shell
        assert measured == pytest.approx(lesion.contrast, rel=0.15)


def test_a_bright_lesion_is_above_all_usual_tissue(lesioned):
    bright = lesioned.lesions[0].mask
    usual = lesioned.voxels[(lesioned.voxels > 50) & ~ndimage.binary_dilation(bright, iterations=3)]
    assert np.median(lesioned.voxels[bright]) > np.percentile(usual, 99.5)


def test_lesions_lie_inside_and_apart(lesioned):
    first, second = lesioned.lesions
    depth = ndimage.distance_transform_edt(lesioned.voxels > 50, sampling=GRID_MM)
    assert min(depth[first.mask].max(), depth[second.mask].max()) > 6
    gap = ndimage.distance_transform_edt(~first.mask, sampling=GRID_MM)[second.mask].min()
    assert gap > 6


def test_the_centre_is_in_the_lesion(lesioned):
    for lesion in lesioned.lesions:
        index = np.linalg.solve(lesioned.affine, [*lesion.centre_mm, 1])[:3]
        assert lesion.mask[tuple(np.rint(index).astype(int))]


def test_lesions_have_the_radius_that_is_asked_for(template):
    head = make_head(template, TWO_LESIONS, with_lesions=True, radius_mm=(3.0, 4.0))
    assert len(head.lesions) == 2
    for lesion in head.lesions:
        # of a ball; the edge is irregular
        assert 2.0 < (lesion.volume_ml * 1000 * 3 / 4 / np.pi) ** (1 / 3) < 5.0


def test_heads_that_share_a_lesion_have_it_at_the_same_place_and_of_the_same_size(template):
    heads = [make_head(template, seed, with_lesions=True, shared=True) for seed in (1, 2)]
    (one,), (other,) = (head.lesions for head in heads)
    assert one.contrast == other.contrast
    assert np.linalg.norm(np.subtract(one.centre_mm, other.centre_mm)) < 12
    assert 0.7 < one.volume_ml / other.volume_ml < 1.4
    assert _dice(heads[0].voxels > 50, heads[1].voxels > 50) < 0.99
    again = make_head(template, 1, with_lesions=True)
    assert again.lesions[0].centre_mm != one.centre_mm


def test_a_head_without_room_for_a_lesion_says_so():
    grey = np.full((10, 20, 20), 0.8, dtype=np.float32)
    brain = np.zeros(grey.shape, dtype=bool)
    brain[3:7, 5:15, 5:15] = True
    with pytest.raises(NodeError, match="no place"):
        cohort._choose_centre(grey, brain, 7.0, [], np.random.default_rng(0))


@pytest.mark.parametrize(
    ("n_normal", "n_lesioned"), [(12, 4), (0, 4), (0, 5), (3, 1), (5, 0), (2, 7)]
)
def test_a_cohort_has_as_many_of_each_as_asked(monkeypatch, n_normal, n_lesioned):
    made = []

    def remember(_template, seed, *, with_lesions, radius_mm, shared):
        assert (radius_mm, shared) == (cohort.RADIUS_MM, False)
        made.append((seed, with_lesions))

    monkeypatch.setattr(cohort, "make_head", remember)
    list(make_cohort(None, n_normal, n_lesioned, 3))
    assert [seed for seed, _ in made] == list(range(3000, 3000 + n_normal + n_lesioned))
    assert sum(with_lesions for _, with_lesions in made) == n_lesioned


# --- the series -------------------------------------------------------------------------------


def _turn(axis, degrees):
    x, y, z = np.array(axis) / np.linalg.norm(axis)
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    angle = np.radians(degrees)
    return np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross


AXIAL = np.array([[0, 0, 1], [0, 1, 0], [1, 0, 0]], dtype=float)
SAGITTAL = np.array([[1, 0, 0], [0, 0, 1], [0, -1, 0]], dtype=float)
ORIENTATIONS = {
    "axial": AXIAL * [2, 1, 1],
    "axial from the top": AXIAL * [-2, 1, 1],
    "sagittal": SAGITTAL * [1.2, 0.9, 1],
    "oblique": _turn((1, 2, 3), 40) @ AXIAL * [2.123456, 0.9375, 0.8],
}


@pytest.fixture(params=ORIENTATIONS.values(), ids=ORIENTATIONS.keys())
def affine(request):
    result = np.eye(4)
    result[:3, :3] = request.param
    result[:3, 3] = -98.123456789, -97.7, -70.000123
    return result


@pytest.fixture
def voxels():
    return np.random.default_rng(0).integers(0, 4000, (90, 12, 17)).astype(np.float32)


def test_geometry_and_voxels_survive(voxels, affine, tmp_path):
    files = write_mr_series(voxels, affine, tmp_path, ACQUISITION)
    back = highdicom.get_volume_from_series([pydicom.dcmread(path) for path in files])
    slices = np.arange(len(voxels))
    if np.linalg.det(affine) < 0:  # highdicom counts slices so that its axes are right-handed
        slices = slices[::-1]
    np.testing.assert_array_equal(back.array, voxels[slices])
    for row, column in ((0, 0), (11, 16)):
        for number in (0, 89):
            wanted = affine @ [slices[number], row, column, 1]
            np.testing.assert_allclose(back.affine @ [number, row, column, 1], wanted, atol=0.01)


@pytest.mark.parametrize("sequence", ["GR", "IR"])
def test_instances_are_valid(voxels, affine, tmp_path, sequence):
    acquisition = Acquisition("DEMO-1", "Demo^One", scanning_sequence=sequence)
    files = write_mr_series(voxels[:2], affine, tmp_path, acquisition)
    done = subprocess.run(
        ["/usr/bin/dciodvfy", str(files[1])], capture_output=True, text=True, check=False
    )
    report = done.stdout + done.stderr
    assert "MRImage" in report
    assert "Error" not in report, report


def test_uids_are_derived_and_another_visit_is_another_study(voxels, tmp_path):
    affine = np.diag([1.0, 1, 1, 1])
    later = Acquisition("DEMO-1", "Demo^One", date="20260601")
    written = [
        write_mr_series(voxels[:2], affine, tmp_path / str(number), acquisition)
        for number, acquisition in enumerate((ACQUISITION, ACQUISITION, later))
    ]
    first, again, other = ([pydicom.dcmread(path) for path in files] for files in written)
    for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID"):
        assert first[0][keyword].value == again[0][keyword].value
        assert first[0][keyword].value != other[0][keyword].value
    assert first[0].SOPInstanceUID != first[1].SOPInstanceUID
    assert first[0].SeriesInstanceUID == first[1].SeriesInstanceUID


def test_values_beyond_16_bit_are_clipped_not_wrapped(tmp_path):
    values = np.array([[[-5.0, 0.4, 70000.0]]])
    path = write_mr_series(values, np.eye(4), tmp_path, ACQUISITION)[0]
    assert pydicom.dcmread(path).pixel_array.tolist() == [[0, 0, 65535]]


def test_a_real_head_becomes_a_series(shared_data, tmp_path):
    source = sorted((shared_data / "brain_t1w_normal_ixi_2mm").glob("*.nii.gz"))[0]
    voxels, affine = volume_from_nifti(source)
    image = cohort.nibabel.load(source)
    where = np.array([40, 50, 60])
    ras = image.affine @ [*where, 1]
    index = np.rint(np.linalg.solve(affine, [-ras[0], -ras[1], ras[2], 1])[:3]).astype(int)
    assert voxels[tuple(index)] == pytest.approx(float(image.dataobj[tuple(where)]))
    files = write_mr_series(voxels, affine, tmp_path, ACQUISITION)
    back = highdicom.get_volume_from_series([pydicom.dcmread(path) for path in files])
    assert back.array.shape == voxels.shape
    assert back.array.max() == round(float(voxels.max()))
