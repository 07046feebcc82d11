"""Alignment: where a displaced body is found, and which registrations are refused."""

import dataclasses
import re

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813

from dicom_node import alignment, nifti, registration, volume
from dicom_node.alignment import LIMITS, Alignment, Limits, align, make_template
from dicom_node.errors import (
    EmptyForeground,
    IrregularGeometry,
    RegistrationFailed,
    UnsupportedPixels,
)
from tests.make.bodies import AFFINE, SHAPE, body, error_mm, pose_of, random_pose
from tests.oracle import registration as oracle

#: what was not asked for is not judged
ANYTHING = Limits(0.0, 0.0, (0.0, 1e9), 1e9, 180.0, 1e9)
#: how alike is not judged
LOOSE = dataclasses.replace(LIMITS["affine"], metric=0.0)


@pytest.fixture(scope="module")
def template():
    return make_template(body(seed=1), AFFINE)


def misplaced_mm(found, pose, template):
    return error_mm(found.to_source, pose, template.foreground, template.affine)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("kind", ["rigid", "affine"])
def test_a_displaced_body_is_found(template, kind, seed):
    pose = random_pose(np.random.default_rng(seed), affine=kind == "affine")
    found = align(body(pose, (72, 72, 72), cube(4.0)), cube(4.0), template, kind)
    assert misplaced_mm(found, pose, template).max() < 1.0
    assert found.determinant == pytest.approx(np.linalg.det(pose[:3, :3]), rel=0.01)
    assert found.overlap > 0.95
    assert found.metric > 0.3


def cube(edge_mm, n=72):
    """Affine of a cube of `n` voxels a side, centred on the origin, axes S, P, L."""
    affine = np.diag([edge_mm, edge_mm, edge_mm, 1.0])[[2, 1, 0, 3]]
    affine[:3, 3] = -edge_mm * (n - 1) / 2
    return affine


def test_an_atlas_is_affine(template):
    pose = pose_of((5, -8, 3), (6, 0, -10), (1.08, 0.95, 1.0))
    source = body(pose)
    atlas, affine = (align(source, AFFINE, template, kind) for kind in ("atlas", "affine"))
    np.testing.assert_array_equal(atlas.to_source, affine.to_source)
    assert misplaced_mm(atlas, pose, template).max() < 1.0


def test_rigid_never_scales(template):
    found = align(body(pose_of(scale=(1.1, 0.95, 1.05))), AFFINE, template, "rigid", ANYTHING)
    linear = found.to_source[:3, :3]
    np.testing.assert_allclose(linear @ linear.T, np.eye(3), atol=1e-6)
    assert found.determinant == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (1, 2, 0)])
def test_how_the_voxels_are_stored_does_not_matter(template, order):
    """Sagittal and coronal slices, and axes that run the other way: the place is the same."""
    pose = pose_of((10, 5, -12), (12, -8, 15))
    voxels, affine = body(pose).transpose(order)[::-1], AFFINE[:, [*order, 3]].copy()
    affine[:3, 3] += affine[:3, 0] * (voxels.shape[0] - 1)
    affine[:3, 0] *= -1
    found = align(voxels, affine, template, "rigid")
    assert misplaced_mm(found, pose, template).max() < 0.5


def test_a_sheared_grid_of_uneven_voxels_is_placed_as_its_affine_says(template):
    affine = np.array([[0, 0.3, 3, -110], [0.5, 3, 0, -130], [5, 0, 0, -118], [0, 0, 0, 1.0]])
    pose = pose_of((8, 0, -10), (10, 5, 0))
    found = align(body(pose, (48, 76, 68), affine), affine, template, "affine")
    assert misplaced_mm(found, pose, template).max() < 1.0


def test_the_number_of_threads_and_repetition_change_nothing(template):
    source, before = body(pose_of((12, 3, -7), (5, 5, 5))), global_threads()
    found = []
    try:
        for threads in (1, 1, 3):
            sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(threads)
            found.append(align(source, AFFINE, template, "affine").to_source)
    finally:
        sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(before)
    np.testing.assert_array_equal(found[0], found[1])
    np.testing.assert_array_equal(found[0], found[2])


def global_threads():
    return sitk.ProcessObject.GetGlobalDefaultNumberOfThreads()


def halved(axis, *, upper, crop):
    """Half of the body: the rest is air, or beyond the grid."""
    voxels, affine, half = body(), AFFINE.copy(), SHAPE[axis] // 2
    keep = [slice(None)] * 3
    keep[axis] = slice(half, None) if upper else slice(0, half)
    if not crop:
        blank = np.zeros_like(voxels)
        blank[tuple(keep)] = voxels[tuple(keep)]
        return blank, affine
    affine[:3, 3] += affine[:3, axis] * half * upper
    return voxels[tuple(keep)], affine


def two_legs():
    """Another part of the body."""
    points = np.indices(SHAPE).reshape(3, -1).T @ AFFINE[:3, :3].T + AFFINE[:3, 3]
    inside = [np.hypot(points[:, 0] - x, points[:, 1]) for x in (-48, 48)]
    values = sum(300.0 * (r < 42) - 200.0 * (r < 12) for r in inside)
    noise = np.random.default_rng(0).normal(0, 8, len(values))
    return np.abs(values + noise).reshape(SHAPE).astype(np.float32), AFFINE


FAILURES = {
    "left and right exchanged": (body()[:, :, ::-1], AFFINE),
    "upside down": (body()[::-1], AFFINE),
    "upside down and front to back": (body()[::-1, ::-1], AFFINE),
    "other part": two_legs(),
} | {
    f"{'upper' if upper else 'lower'} half of axis {axis} {'cropped' if crop else 'blanked'}": (
        halved(axis, upper=upper, crop=crop)
    )
    for axis, upper, crop in [(0, True, True), (0, False, False), (1, True, False), (2, True, True)]
}


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        *(("affine", name) for name in FAILURES),
        # 6 degrees of freedom pull nothing out of shape: what affine refuses, this does
        ("rigid", "left and right exchanged"),
        ("rigid", "upside down"),
        ("rigid", "other part"),
    ],
)
def test_a_planted_failure_is_refused(template, kind, name):
    voxels, affine = FAILURES[name]
    with pytest.raises(RegistrationFailed) as caught:
        align(voxels, affine, template, kind)
    error = caught.value
    assert re.search(rf"\({error.criterion} -?\d+\.\d{{3}}, limit {error.limit:.3f}\)", str(error))
    assert 'alignment = "none"' in str(error)
    if name == "left and right exchanged":
        assert error.criterion == "mirror"


def test_a_symmetric_template_tells_no_sides_and_refuses_neither():
    voxels = body(seed=1)
    symmetric = make_template(voxels + voxels[:, :, ::-1], AFFINE)
    for source in (body(), body()[:, :, ::-1]):
        found = align(source, AFFINE, symmetric, "affine", LOOSE)
        assert found.overlap > 0.95


GOOD = Alignment(np.eye(4), metric=0.9, determinant=1.0, overlap=0.99)


def test_a_good_alignment_keeps_all_limits():
    for limits in LIMITS.values():
        alignment._judge(GOOD, -0.1, limits)


@pytest.mark.parametrize(
    ("criterion", "changes", "lead"),
    [
        ("determinant", {"determinant": 0.3}, -0.1),
        ("determinant", {"determinant": 2.6}, -0.1),
        ("overlap", {"overlap": 0.3}, -0.1),
        ("metric", {"metric": 0.01}, -0.1),
        ("stretch", {"to_source": pose_of(scale=(1.7, 1, 1))}, -0.1),
        ("stretch", {"to_source": pose_of(scale=(1, 0.6, 1))}, -0.1),
        ("rotation_deg", {"to_source": pose_of((0, 100, 0))}, -0.1),
        ("mirror", {}, 0.1),
    ],
)
def test_each_limit_is_judged(criterion, changes, lead):
    found = dataclasses.replace(GOOD, **changes)
    with pytest.raises(RegistrationFailed) as caught:
        alignment._judge(found, lead, LIMITS["affine"])
    error = caught.value
    assert error.criterion == criterion
    low, high = LIMITS["affine"].determinant
    assert error.limit in {low, high, *dataclasses.astuple(LIMITS["affine"])[:2], 1.5, 70.0, 0.005}


def test_what_shares_no_place_with_the_template_is_found_all_the_same(template):
    """The start is centre upon centre, however far the scanner's origin lies."""
    pose = pose_of(shift_mm=(0, 900, -2000))
    affine = pose @ AFFINE
    found = align(body(), affine, template, "rigid")
    assert misplaced_mm(found, pose, template).max() < 0.5


@pytest.mark.parametrize("value", [0.0, np.nan, np.inf])
def test_a_volume_of_nothing_is_refused(template, value):
    voxels = np.full(SHAPE, value, np.float32)
    for call in (
        lambda: align(voxels, AFFINE, template, "rigid"),
        lambda: make_template(voxels, AFFINE),
    ):
        with pytest.raises(EmptyForeground, match=r"NaN or infinite|one value"):
            call()


def test_a_template_without_foreground_is_refused(template):
    empty = dataclasses.replace(template, foreground=np.zeros(SHAPE, bool))
    with pytest.raises(EmptyForeground, match="no foreground"):
        align(body(), AFFINE, empty, "rigid")


def test_the_foreground_is_the_body(template):
    points = np.indices(SHAPE).reshape(3, -1).T @ AFFINE[:3, :3].T + AFFINE[:3, 3]
    scalp = (np.linalg.norm(points / [72, 92, 84], axis=1) < 1).reshape(SHAPE)
    assert template.foreground[scalp].mean() > 0.99
    assert template.foreground[:, :3].mean() < 0.01


def test_similarity_and_dice_are_those_of_the_oracle():
    one, other = (
        registration.pyramid(voxels, AFFINE, registration.foreground_mask(voxels, AFFINE))[0]
        for voxels in (body(), body(pose_of((0, 0, 20), (8, 0, 0)), seed=2))
    )
    levels = [np.rint(picture.levels).astype(int)[one.near].tolist() for picture in (one, other)]
    assert registration._similarity(one, other, np.eye(4)) == pytest.approx(
        oracle.similarity(zip(*levels, strict=True)), rel=1e-9
    )
    masks = [picture.mask.ravel().tolist() for picture in (one, other)]
    assert registration._dice(one, other, np.eye(4)) == pytest.approx(
        oracle.dice(zip(*masks, strict=True)), rel=1e-9
    )


def test_a_volume_is_wholly_like_itself(template):
    found = align(template.voxels, AFFINE, template, "affine")
    assert misplaced_mm(found, np.eye(4), template).max() < 0.3
    assert found.metric > 0.9
    assert found.overlap > 0.99


def test_a_template_file_is_read(tmp_path):
    nifti.write(tmp_path / "t.nii.gz", body(), AFFINE, "made for a test")
    read = alignment.template_from_nifti(tmp_path / "t.nii.gz")
    np.testing.assert_array_equal(read.voxels, body())
    np.testing.assert_allclose(read.affine, AFFINE, atol=1e-4)
    assert read.voxels.dtype == np.float32
    np.testing.assert_array_equal(read.foreground, registration.foreground_mask(body(), AFFINE))


@pytest.mark.parametrize(
    ("content", "error"),
    [
        (None, UnsupportedPixels),
        (np.zeros(SHAPE, np.float32), EmptyForeground),
        (np.zeros((2, 30, 30), np.float32), IrregularGeometry),
    ],
    ids=["no file", "one value", "too thin"],
)
def test_a_template_file_that_will_not_do_is_named(tmp_path, content, error):
    path = tmp_path / "atlas.nii.gz"
    if content is not None:
        nifti.write(path, content, AFFINE, "made for a test")
    with pytest.raises(error, match=r"template .*atlas\.nii\.gz: "):
        alignment.template_from_nifti(path)


def head(shared_data, number):
    """A real head, 2 mm; its slices are sagittal."""
    files = sorted((shared_data / "brain_t1w_normal_ixi_2mm").glob("*.nii.gz"))
    return nifti.read(files[number])


@pytest.mark.parametrize("kind", ["rigid", "affine"])
def test_a_real_head_is_found_wherever_it_lies(shared_data, kind):
    """Displaced, it must come to where it comes undisplaced, on another subject's head."""
    template = make_template(*voxels_and_affine(head(shared_data, 0)))
    source = head(shared_data, 3)
    pose = random_pose(np.random.default_rng(5), affine=kind == "affine")
    still, moved = (
        align(source.voxels, affine, template, kind)
        for affine in (source.affine, pose @ source.affine)
    )
    errors = error_mm(moved.to_source, pose @ still.to_source, template.foreground, template.affine)
    assert np.median(errors) < 1.0


def voxels_and_affine(source):
    return source.voxels, source.affine


@pytest.mark.parametrize("axis", ["x", "y", "z"])
def test_a_real_head_that_is_flipped_is_refused(shared_data, axis):
    """Right to left, front to back, upside down: voxels that do not lie as the affine says."""
    template = make_template(*voxels_and_affine(head(shared_data, 0)))
    source = head(shared_data, 3)
    flip = np.diag([-1.0 if name == axis else 1.0 for name in "xyz"] + [1.0])
    with pytest.raises(RegistrationFailed) as caught:
        align(source.voxels, flip @ source.affine, template, "affine")
    assert caught.value.criterion == "mirror" or axis != "x"


def test_a_real_chest_is_no_head(shared_data):
    template = make_template(*voxels_and_affine(head(shared_data, 0)))
    files = sorted((shared_data / "chest_ct_lungdx_A0001" / "dicom").iterdir())
    chest = volume.build(files)
    with pytest.raises(RegistrationFailed):
        align(volume.not_below_air(chest.voxels), chest.affine, template, "affine")
