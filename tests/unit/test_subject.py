"""Volume -> subject and back: the canonical grid, what cannot be scored, maps on the source."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as nnf

from dicom_node.anomaly.spec import (
    GridSpec,
    IntensitySpec,
    MethodSpec,
    ScaleSpec,
    ScoringSpec,
    TokenSpec,
)
from dicom_node.anomaly.tokens import Tokens
from dicom_node.errors import EmptyForeground, NonFiniteScores
from dicom_node.subject import Subject, make_canonical, make_subject, map_on_source
from tests.make.encoders import COARSE, FINE, tiny_encoder

METHOD = MethodSpec(
    GridSpec((32.0, 48.0, 32.0), 1.0), TokenSpec((COARSE, FINE), axes=(0,), projection_dim=4)
)


@pytest.fixture(scope="module")
def encoder():
    return tiny_encoder()


def axial(spacing=(1.0, 1.0, 1.0), origin=(0.0, 0.0, 0.0)):
    """Index (depth, height, width) -> LPS: depth runs along z, height along y, width along x."""
    affine = torch.zeros(4, 4, dtype=torch.float64)
    for axis, row in enumerate((2, 1, 0)):
        affine[row, axis] = spacing[axis]
    affine[:3, 3] = torch.tensor(origin)
    affine[3, 3] = 1.0
    return affine


def body(shape, seed=1):
    """A box of smooth texture in noise; an eighth of each side is air."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, 1, 3, 3, 3, generator=generator)
    texture = nnf.interpolate(coarse, shape, mode="trilinear")[0, 0]
    volume = torch.rand(shape, generator=generator) * 5
    inside = tuple(slice(side // 8, side - side // 8) for side in shape)
    volume[inside] += 300 + 400 * texture[inside]
    return volume


# -- the canonical grid --------------------------------------------------------------------------


@pytest.mark.parametrize("origin", [(0.0, 0.0, 0.0), (-80.0, 120.5, 2000.25)])
def test_the_grid_lies_along_the_patient_with_the_body_in_its_middle(origin):
    placed = make_canonical(body((32, 40, 32)), axial(origin=origin), METHOD)
    assert placed.voxels.shape == placed.foreground.shape == (32, 48, 32)
    assert torch.equal(placed.affine[:3, :3], axial()[:3, :3])
    where = placed.foreground.nonzero().double().mean(0)
    assert where.tolist() == pytest.approx([15.5, 23.5, 15.5], abs=1.5)
    centre = placed.affine @ torch.cat([where, torch.ones(1, dtype=torch.float64)])
    expected = torch.tensor([15.5, 19.5, 15.5]) + torch.tensor(origin)
    assert centre[:3].tolist() == pytest.approx(expected.tolist(), abs=1.5)


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0)])
@pytest.mark.parametrize("flipped", [(), (0,), (1, 2)])
def test_how_a_volume_was_stacked_leaves_no_trace(order, flipped):
    """The same voxels at the same places, sagittal, coronal or from the top."""
    volume, affine = body((32, 40, 24)), axial((1.0, 0.9, 1.2), (5.0, -7.0, 11.0))
    other = volume.permute(order)
    stacked = affine.clone()
    stacked[:3, :3] = affine[:3, list(order)]
    for axis in flipped:
        stacked[:3, 3] += stacked[:3, axis] * (other.shape[axis] - 1)
        stacked[:3, axis] *= -1
    one = make_canonical(volume, affine, METHOD)
    two = make_canonical(other.flip(flipped).contiguous(), stacked, METHOD)
    # the coarse subsample that finds the centre may begin at the other end
    shift = (one.affine - two.affine)[:3, 3].abs().max()
    assert float(shift) <= 1.5
    aligned = replace_grid(two, one)
    assert (aligned - one.foreground.float()).abs().mean() < 0.02


def replace_grid(moved, fixed):
    """The foreground of one canonical volume on the grid of another."""
    offset = torch.linalg.solve(moved.affine, fixed.affine)[:3, 3].round().int().tolist()
    return moved.foreground.float().roll([-step for step in offset], (0, 1, 2))


@pytest.mark.parametrize("dtype", [torch.int16, torch.uint8, torch.float64])
def test_voxels_of_any_type_are_placed_alike(dtype):
    volume = (body((32, 32, 32)) / 4).round()
    expected = make_canonical(volume, axial(), METHOD)
    found = make_canonical(volume.to(dtype), axial(), METHOD)
    assert found.voxels.dtype is torch.float32
    torch.testing.assert_close(found.voxels, expected.voxels)
    assert torch.equal(found.foreground, expected.foreground)


def test_normalised_voxels_are_between_nought_and_one_and_nought_outside():
    for how in (IntensitySpec(), IntensitySpec("hounsfield", (400.0, 300.0))):
        placed = make_canonical(body((32, 32, 32)), axial(), replace(METHOD, intensity=how))
        assert placed.voxels.min() == 0
        assert 0.5 < placed.voxels.max() <= 1
        assert (placed.voxels[~placed.foreground] == 0).all()


def test_a_window_is_of_hounsfield_units_and_percentiles_of_the_body():
    """Twice as bright a scan: the same MR, another CT."""
    volume = body((32, 32, 32))
    mr = [make_canonical(v, axial(), METHOD).voxels for v in (volume, 2 * volume)]
    torch.testing.assert_close(*mr, atol=1e-4, rtol=0)
    window = replace(METHOD, intensity=IntensitySpec("hounsfield", (500.0, 1000.0)))
    ct = [make_canonical(v, axial(), window) for v in (volume, 2 * volume)]
    inside = ct[0].foreground & ct[1].foreground & (ct[1].voxels < 1)
    torch.testing.assert_close(ct[1].voxels[inside], 2 * ct[0].voxels[inside], atol=1e-4, rtol=0)


# -- what cannot be scored -----------------------------------------------------------------------


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_a_voxel_that_is_no_number_is_said(encoder, bad):
    volume = body((32, 32, 32))
    volume[0, 0, 0] = bad
    with pytest.raises(EmptyForeground, match="the volume holds NaN or infinite voxels"):
        make_canonical(volume, axial(), METHOD)
    with pytest.raises(EmptyForeground, match="the volume holds NaN or infinite voxels"):
        make_subject(volume, axial(), METHOD, encoder)


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 32, 32), (32, 32, 32)])
@pytest.mark.parametrize("value", [0.0, 7.0, -1024.0])
def test_a_volume_of_one_value_has_no_foreground(shape, value):
    with pytest.raises(EmptyForeground, match="cannot be scored: all voxels have one value"):
        make_canonical(torch.full(shape, value), axial(), METHOD)


@pytest.mark.parametrize("shape", [(1, 1, 2), (2, 2, 2), (1, 3, 1), (1, 32, 32), (3, 3, 200)])
def test_a_volume_that_is_too_small_for_a_token_is_said(encoder, shape):
    volume = torch.zeros(shape)
    volume[..., 1:] = 100.0
    with pytest.raises(EmptyForeground, match="the volume cannot be scored"):
        make_subject(volume, axial(), METHOD, encoder)


def test_a_body_beyond_the_grid_is_scored_as_far_as_it_reaches(encoder):
    volume = body((60, 100, 70))
    made = make_subject(volume, axial(), METHOD, encoder)
    assert made.foreground.all()
    assert [len(tokens) for tokens in made.tokens] == [2 * 3 * 2, 4 * 6 * 4]


@pytest.mark.parametrize(
    ("shape", "spacing"),
    [((8, 64, 48), (4.0, 0.5, 0.5)), ((40, 10, 40), (0.7, 4.0, 0.7)), ((16, 16, 16), (2.0,) * 3)],
)
def test_volumes_that_are_no_cubes_and_voxels_that_are_none_are_scored(encoder, shape, spacing):
    made = make_subject(body(shape), axial(spacing), METHOD, encoder)
    coarse, fine = made.tokens
    assert (coarse.grid_shape, fine.grid_shape) == ((2, 3, 2), (4, 6, 4))
    assert 0 < len(coarse) <= 12
    assert 0 < len(fine) <= 96
    size = [a * b for a, b in zip(shape, spacing, strict=True)]
    reach = [int(side.sum()) for side in reached(made.foreground)]
    for found, side in zip(reach, size, strict=True):
        assert found == pytest.approx(side * 0.8, abs=0.2 * side + 3)


def reached(mask):
    """Per axis, in which slices there is foreground."""
    return [mask.movedim(axis, 0).flatten(1).any(1) for axis in range(3)]


def test_features_that_are_no_numbers_make_no_subject():
    broken = tiny_encoder()
    broken._std = torch.zeros(1, 3, 1, 1)
    with pytest.raises(NonFiniteScores, match="features are not finite"):
        make_subject(body((32, 32, 32)), axial(), METHOD, broken)


def test_the_same_volume_gives_the_same_subject(encoder):
    volume = body((32, 32, 32))
    one, two = (make_subject(volume, axial(), METHOD, encoder) for _ in range(2))
    for first, second in zip(one.tokens, two.tokens, strict=True):
        assert torch.equal(first.values, second.values)
        assert torch.equal(first.index, second.index)
    told = []
    make_subject(volume, axial(), METHOD, encoder, told.append)
    assert told == pytest.approx([0.5, 1.0])


# -- the map on the source -----------------------------------------------------------------------


def subject_of(foreground, affine):
    """A subject of which a map needs no more than where its grid lies."""
    return Subject((Tokens(torch.empty(1, 0, 1), torch.empty(0), (1, 1, 1)),), foreground, affine)


@pytest.mark.parametrize(
    ("spacing", "shape"), [((1.0, 1.0, 1.0), (40, 60, 40)), ((3.0, 0.8, 1.5), (14, 75, 27))]
)
def test_a_token_is_mapped_to_where_it_was_seen(spacing, shape):
    origin = (-12.0, 30.0, 7.0)
    source = axial(spacing, origin)
    canonical = axial((1.0, 1.0, 1.0), (-8.0, 36.0, 11.0))
    grid = torch.zeros(4, 6, 4)
    grid[1, 4, 2] = 5.0
    made = subject_of(torch.ones(32, 48, 32, dtype=torch.bool), canonical)
    mapped = map_on_source(grid, made, METHOD, shape, source)
    assert mapped.shape == shape
    where = mapped.nonzero().double()
    weights = mapped[mapped > 0].double()
    centre = (where * weights[:, None]).sum(0) / weights.sum()
    point = source[:3, :3] @ centre + source[:3, 3]
    # of a token of 8 mm: its middle lies 3.5 voxels from its first
    expected = canonical[:3, :3] @ torch.tensor([11.5, 35.5, 19.5]).double() + canonical[:3, 3]
    assert point.tolist() == pytest.approx(expected.tolist(), abs=0.3)


def test_where_there_is_no_token_no_foreground_and_no_grid_the_map_is_nought():
    foreground = torch.ones(32, 48, 32, dtype=torch.bool)
    foreground[:8] = False
    grid = torch.full((4, 6, 4), 2.0)
    grid[3] = torch.nan
    made = subject_of(foreground, axial())
    raw = replace(METHOD, scoring=ScoringSpec(smoothing_mm=0.0))
    mapped = map_on_source(grid, made, raw, (40, 48, 32), axial(origin=(0.0, 0.0, -4.0)))
    # source slice n lies at canonical slice n - 4
    assert mapped[:11].abs().max() == 0
    assert mapped[13:27].sub(2).abs().max() < 1e-5
    assert mapped[37:].abs().max() == 0


def test_smoothing_is_in_millimetres_whatever_the_voxel():
    """A step of the grid is blurred over as many millimetres on 1 mm voxels as on 2 mm ones."""
    widths = []
    for spacing in (1.0, 2.0):
        method = MethodSpec(
            GridSpec((32.0,) * 3, spacing),
            TokenSpec((ScaleSpec(1, 1, (0,)),)),
            scoring=ScoringSpec(smoothing_mm=4.0),
        )
        side = round(32 / spacing)
        made = subject_of(torch.ones(side, side, side, dtype=torch.bool), axial((spacing,) * 3))
        grid = torch.zeros(side, side, side)
        grid[:, :, side // 2 :] = 1.0
        mapped = map_on_source(grid, made, method, (side,) * 3, axial((spacing,) * 3))
        row = mapped[side // 2, side // 2]
        widths.append(float(((row > 0.16) & (row < 0.84)).sum()) * spacing)
    assert widths == pytest.approx([8.0, 8.0], abs=1.0)  # two sigma


def test_a_map_of_one_voxel_is_its_own_place():
    made = subject_of(torch.ones(16, 16, 16, dtype=torch.bool), axial())
    grid = torch.arange(8.0).view(2, 2, 2)
    raw = replace(METHOD, scoring=ScoringSpec(smoothing_mm=0.0))
    for place, expected in {(0, 0, 0): 0.0, (15, 15, 15): 7.0, (0, 15, 0): 2.0}.items():
        there = axial(origin=tuple(float(at) for at in place[::-1]))
        assert float(map_on_source(grid, made, raw, (1, 1, 1), there)) == expected
