"""What is usual at a place, and how scales are fused, against loops on random grids."""

from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dicom_node.anomaly import anomaly_map, calibration
from dicom_node.anomaly.spec import ScoringSpec
from tests.make.subjects import enlarged
from tests.oracle import calibration as oracle
from tests.oracle import fusion as fusion_oracle

SHAPES = [(1, 1, 1), (1, 3, 2), (2, 3, 2), (4, 1, 3), (3, 3, 3)]
shapes = st.sampled_from(SHAPES)
seeds = st.integers(0, 99_999)
specs = st.builds(
    ScoringSpec,
    scale_floor=st.sampled_from([0.0, 0.5, 1.0]),
    prior_subjects=st.sampled_from([0.0, 1.0, 5.0, 1e9]),
)


def random_grids(seed, n, shape, *, ties, missing):
    """(n, D, H, W) scores; with ties, of four values alone; NaN in a share of the places."""
    generator = torch.Generator().manual_seed(seed)
    grids = torch.rand(n, *shape, generator=generator) * 4
    if ties:
        grids = grids.floor()
    grids[torch.rand(n, *shape, generator=generator) < missing] = torch.nan
    grids[:, 0, 0, 0] = torch.arange(float(n)) % 3  # a place that all cover
    return grids


grids_of_a_batch = st.builds(
    random_grids,
    seeds,
    st.integers(3, 9),
    shapes,
    ties=st.booleans(),
    missing=st.sampled_from([0.0, 0.3, 0.6, 0.9]),
)


def by_place(grid):
    """A grid as the loops have it: no entry where there is no token."""
    return {
        place: float(grid[place])
        for place in product(*map(range, grid.shape))
        if bool(grid[place].isfinite())
    }


def location_and_scale(grids, spec):
    """Of a batch of all these subjects."""
    return calibration.UsualScores.of(grids).of_all(spec)


def leave_one_out(grids, spec):
    """Location and scale by the others of each, stacked."""
    usual = calibration.UsualScores.of(grids)
    found = [usual.of_others(grid, spec) for grid in grids]
    return tuple(torch.stack(each) for each in zip(*found, strict=True))


def as_grid(values, shape):
    return torch.tensor([values[place] for place in product(*map(range, shape))]).view(shape)


@settings(deadline=None, max_examples=80)
@given(grids_of_a_batch, specs)
def test_location_and_scale_equal_the_loops(grids, spec):
    shape = tuple(grids.shape[1:])
    expected = oracle.location_and_scale([by_place(grid) for grid in grids], shape, spec)
    for found, values in zip(location_and_scale(grids, spec), expected, strict=True):
        torch.testing.assert_close(found, as_grid(values, shape), atol=1e-5, rtol=1e-5)


@settings(deadline=None, max_examples=150)
@given(grids_of_a_batch, specs)
def test_leave_one_out_is_location_and_scale_of_the_others(grids, spec):
    location, scale = leave_one_out(grids, spec)
    for own in range(len(grids)):
        others = torch.cat([grids[:own], grids[own + 1 :]])
        expected = location_and_scale(others, spec)
        torch.testing.assert_close(location[own], expected[0], atol=1e-6, rtol=1e-6)
        torch.testing.assert_close(scale[own], expected[1], atol=1e-6, rtol=1e-6)


@settings(deadline=None, max_examples=40)
@given(seeds, st.integers(3, 7), shapes, st.integers(1, 3), specs)
def test_layers_are_judged_each_for_itself(seed, n, shape, n_layers, spec):
    layers = [
        random_grids(seed + layer, n, shape, ties=True, missing=0.3) for layer in range(n_layers)
    ]
    usual = calibration.UsualScores.of(torch.stack(layers, 1))
    together = usual.of_others(torch.stack([grids[0] for grids in layers]), spec)
    for layer, grids in enumerate(layers):
        alone = calibration.UsualScores.of(grids).of_others(grids[0], spec)
        for one, other in zip(together, alone, strict=True):
            torch.testing.assert_close(one[layer], other)


@settings(deadline=None, max_examples=40)
@given(grids_of_a_batch, specs, seeds)
def test_the_order_of_the_subjects_changes_neither(grids, spec, seed):
    order = torch.randperm(len(grids), generator=torch.Generator().manual_seed(seed))
    for one, other in zip(
        location_and_scale(grids, spec),
        location_and_scale(grids[order], spec),
        strict=True,
    ):
        torch.testing.assert_close(one, other)
    for one, other in zip(
        leave_one_out(grids, spec),
        leave_one_out(grids[order], spec),
        strict=True,
    ):
        torch.testing.assert_close(one[order], other)


@settings(deadline=None, max_examples=40)
@given(grids_of_a_batch)
def test_both_are_finite_everywhere_and_the_scale_is_above_zero(grids):
    location, scale = location_and_scale(grids, ScoringSpec())
    assert location.isfinite().all()
    assert scale.isfinite().all()
    assert (scale > 0).all()


@settings(deadline=None, max_examples=40)
@given(grids_of_a_batch)
def test_centring_equals_the_loops_and_keeps_what_is_missing(grids):
    found = calibration.centred(grids)
    assert torch.equal(found.isnan(), grids.isnan())
    for grid, own in zip(found, grids, strict=True):
        assert by_place(grid) == pytest.approx(oracle.centred(by_place(own)), abs=1e-6)


def test_a_subject_that_is_further_from_everybody_everywhere_is_centred_onto_the_others():
    grids = random_grids(3, 2, (3, 3, 3), ties=False, missing=0.2)
    grids[1] = grids[0] + 7
    one, other = calibration.centred(grids)
    torch.testing.assert_close(one, other, atol=1e-5, rtol=0, equal_nan=True)


def test_what_is_usual_at_a_place_counts_for_more_the_more_subjects_have_shown_it():
    """Between the place alone (prior 0) and the median place alone (an endless prior)."""
    place = torch.linspace(0, 26, 27).view(3, 3, 3)
    location_of = {}
    for n in (5, 50):
        grids = place + torch.zeros(n, 1, 1, 1)
        location_of[n] = location_and_scale(grids, ScoringSpec(prior_subjects=5.0))[0]
    alone = location_and_scale(grids, ScoringSpec(prior_subjects=0.0))[0]
    usual = location_and_scale(grids, ScoringSpec(prior_subjects=1e12))[0]
    torch.testing.assert_close(usual, torch.full((3, 3, 3), float(alone.median())))
    torch.testing.assert_close(location_of[5], alone.lerp(usual, 1 / 2))
    torch.testing.assert_close(location_of[50], alone.lerp(usual, 1 / 11))


def test_a_place_at_which_all_subjects_agree_has_the_least_scale():
    grids = random_grids(5, 9, (9, 9, 9), ties=False, missing=0.0)
    grids[:, 3:6, 3:6, 3:6] = 1.0  # the middle and all its neighbours
    for floor in (0.25, 0.5):
        spec = ScoringSpec(scale_floor=floor, prior_subjects=0.0)
        scale = location_and_scale(grids, spec)[1]
        assert scale[4, 4, 4] == scale.min()
        assert scale.min() == pytest.approx(floor * float(scale.median()))


def test_scores_without_any_spread_are_calibrated_to_numbers():
    grids = torch.full((4, 2, 2, 2), 3.0)
    location, scale = location_and_scale(grids, ScoringSpec())
    assert calibration.calibrate(grids[0], location, scale).eq(0).all()
    assert (scale > 0).all()


# -- fusion --------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=60)
@given(
    seeds,
    st.sampled_from([(1, 1, 1), (2, 1, 3), (2, 2, 2)]),
    st.sampled_from([1, 2, 3]),
    st.lists(st.integers(1, 3), min_size=2, max_size=2),
)
def test_fusion_equals_the_loops(seed, coarse, ratio, n_layers):
    generator = torch.Generator().manual_seed(seed)
    fine = tuple(ratio * side for side in coarse)
    cells = torch.rand(coarse, generator=generator) < 0.6
    cells[0, 0, 0] = True
    kept = (torch.rand(fine, generator=generator) < 0.5) & enlarged(cells, ratio)
    # as of tokens: a coarse cell is there for each fine one, and some without one
    parents = torch.nn.functional.max_pool3d(kept.float()[None, None], ratio)[0, 0] > 0
    parents |= torch.rand(coarse, generator=generator) < 0.1
    scales = []
    for layers, known in zip(n_layers, (parents, kept), strict=True):
        drawn = torch.randn(layers, *known.shape, generator=generator)
        scales.append(torch.where(known, drawn, torch.nan))
    found = anomaly_map.fuse(scales)
    assert found.shape == fine
    expected = fusion_oracle.fused(
        [[by_place(grid) for grid in scale] for scale in scales], [coarse, fine]
    )
    assert by_place(found) == pytest.approx(expected, abs=1e-5)


def test_many_subjects_are_fused_as_one_by_one():
    generator = torch.Generator().manual_seed(2)
    scales = [torch.randn(5, 2, 2, 3, 1, generator=generator)]
    scales.append(torch.randn(5, 1, 4, 6, 2, generator=generator))
    together = anomaly_map.fuse(scales)
    assert together.shape == (5, 4, 6, 2)
    for subject in range(5):
        alone = anomaly_map.fuse([scale[subject] for scale in scales])
        torch.testing.assert_close(together[subject], alone)


def test_one_scale_of_one_layer_is_its_own_mean():
    grid = random_grids(1, 1, (3, 2, 4), ties=False, missing=0.4)
    torch.testing.assert_close(anomaly_map.fuse([grid]), grid[0], equal_nan=True)
