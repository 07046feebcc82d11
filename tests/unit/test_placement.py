"""Where a volume's canonical grid lies: by itself, by a template, and with which foreground."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from dicom_node import placement
from dicom_node.alignment import make_template
from dicom_node.anomaly import resample
from dicom_node.anomaly.spec import GridSpec, MethodSpec, ScaleSpec, TokenSpec
from dicom_node.errors import EmptyForeground, RegistrationFailed
from dicom_node.placement import Placing
from dicom_node.subject import Subject, canonical_again, make_canonical, map_on_source
from tests.make.bodies import AFFINE, body, pose_of

GRID = GridSpec((240.0, 240.0, 240.0), 4.0)
METHOD = MethodSpec(GRID, TokenSpec((ScaleSpec(1, 1, (0,)),)))
POSE = pose_of((12, -6, 9), (10, -14, 8))


def tensors(voxels, affine=AFFINE):
    return torch.from_numpy(np.ascontiguousarray(voxels)).float(), torch.from_numpy(affine)


@pytest.fixture(scope="module")
def template():
    return make_template(body(seed=1), AFFINE)


def apart(one, other):
    """Mean difference of two canonical volumes inside either body."""
    inside = one.foreground | other.foreground
    return float((one.voxels - other.voxels).abs()[inside].mean())


def test_without_a_template_the_grid_lies_along_the_patients_axes_about_the_body():
    voxels, affine = tensors(body(pose_of(shift_mm=(20, 0, -10))))
    placed = Placing()(voxels, affine, GRID)
    centre = placement.foreground_centre(voxels, affine)
    assert torch.equal(placed.affine, resample.canonical_affine(GRID, centre))
    assert placed.mask is None


def test_what_lies_crooked_is_straight_on_the_templates_grid(template):
    turned = pose_of((25, -20, 22), (10, -14, 8))
    straight, crooked = tensors(body(seed=1)), tensors(body(turned, seed=1))
    aligned = Placing(kind="rigid", template=template)
    expected = make_canonical(*straight, METHOD, aligned)
    found, by_itself = (
        apart(make_canonical(*crooked, METHOD, how), expected) for how in (aligned, Placing())
    )
    assert found < 0.07
    assert by_itself > 2 * found


@pytest.mark.parametrize("kind", ["rigid", "affine"])
def test_a_map_comes_back_to_the_place_from_which_it_was_taken(template, kind):
    """Also through an affine registration, whose grid is sheared against the source."""
    pose = POSE if kind == "rigid" else POSE @ np.diag([1.06, 0.95, 1.02, 1.0])
    voxels, affine = tensors(body(pose, seed=1))
    placed = make_canonical(voxels, affine, METHOD, Placing(kind=kind, template=template))
    grid = torch.zeros(GRID.shape)
    at = (31, 27, 33)
    grid[at] = 1.0
    subject = Subject((), torch.ones(GRID.shape, dtype=torch.bool), placed.affine)
    back = map_on_source(grid, subject, METHOD, tuple(voxels.shape), affine)
    expected = torch.linalg.solve(
        affine, placed.affine @ torch.tensor([*at, 1.0], dtype=torch.float64)
    )[:3]
    weights = back / back.sum()
    index = torch.stack(torch.meshgrid(*map(torch.arange, back.shape), indexing="ij")).double()
    centroid = (index * weights).flatten(1).sum(1)
    torch.testing.assert_close(centroid, expected, atol=0.3, rtol=0)


@pytest.mark.parametrize("foreground", ["body", "template"])
def test_a_kept_subject_is_placed_again_as_it_was(template, foreground):
    voxels, affine = tensors(body(POSE, seed=1))
    made = make_canonical(voxels, affine, METHOD, Placing(foreground, "affine", template))
    again = canonical_again(Subject((), made.foreground, made.affine), voxels, affine, METHOD)
    assert torch.equal(again.voxels, made.voxels)
    assert torch.equal(again.foreground, made.foreground)
    assert torch.equal(again.affine, made.affine)


def test_the_templates_foreground_is_that_of_every_subject(template):
    placing = Placing("template", "rigid", template)
    masks = [
        make_canonical(*tensors(body(pose, seed=1)), METHOD, placing).foreground
        for pose in (None, POSE)
    ]
    assert torch.equal(*masks)
    volume = float(masks[0].sum()) * GRID.spacing_mm**3
    assert volume == pytest.approx(
        template.foreground.sum() * abs(np.linalg.det(AFFINE[:3, :3])), rel=0.1
    )


def test_an_organs_mask_is_brought_to_the_grid_and_places_it(monkeypatch):
    """A stand-in for the networks: the upper half of the body."""
    voxels, affine = tensors(body(seed=1))
    upper = np.zeros(voxels.shape, dtype=bool)
    upper[voxels.shape[0] // 2 :] = voxels[voxels.shape[0] // 2 :].numpy() > 0.2 * float(
        voxels.max()
    )
    monkeypatch.setattr(placement, "lung_mask", lambda _voxels, _affine: upper)
    made = make_canonical(voxels, affine, METHOD, Placing("lung"))
    back = resample.sample(
        made.foreground.float(),
        resample.index_map(affine, made.affine),
        tuple(voxels.shape),
        0.0,
    ).numpy()
    both = (back >= 0.5) & upper
    assert 2 * both.sum() / ((back >= 0.5).sum() + upper.sum()) > 0.85
    assert made.voxels[~made.foreground].eq(0).all()
    centre = made.affine @ torch.tensor([*(np.array(GRID.shape) - 1) / 2, 1.0])
    expected = placement.foreground_centre(voxels, affine, torch.from_numpy(upper))
    torch.testing.assert_close(centre[:3], expected, atol=1e-6, rtol=0)


def test_a_volume_without_the_organ_says_so():
    voxels, affine = tensors(body(seed=1))
    with pytest.raises(EmptyForeground, match="the lung was not found"):
        make_canonical(voxels, affine, METHOD, Placing("lung"))


def test_a_mask_beside_the_grid_is_no_foreground(monkeypatch):
    voxels, affine = tensors(body(seed=1))
    corner = np.zeros(voxels.shape, dtype=bool)
    corner[0, 0, 0] = corner[-1, -1, -1] = True
    monkeypatch.setattr(placement, "brain_mask", lambda _voxels, _affine, _cache: corner)
    small = replace(METHOD, grid=GridSpec((64.0, 64.0, 64.0), 4.0))
    with pytest.raises(EmptyForeground, match="no brain lies within"):
        make_canonical(voxels, affine, small, Placing("brain"))


def test_what_does_not_get_to_the_template_is_refused(template):
    half = body(seed=1)
    half[: half.shape[0] // 2] = 0
    with pytest.raises(RegistrationFailed, match="limit"):
        make_canonical(*tensors(half), METHOD, Placing(kind="rigid", template=template))


def test_a_template_of_another_place_or_look_is_another_space(template):
    moved, changed = AFFINE.copy(), template.voxels.copy()
    moved[0, 3] += 1
    changed[0, 0, 0] += 1
    digests = {
        template.digest(),
        replace(template, affine=moved).digest(),
        replace(template, voxels=changed).digest(),
    }
    assert len(digests) == 3
    assert make_template(body(seed=1), AFFINE).digest() == template.digest()
