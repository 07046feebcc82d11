"""Matching of two scales: the restricted search inside the exhaustive one, on random subjects."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dicom_node.anomaly.matching import match, near_cells
from dicom_node.anomaly.similarity import mutual_nearest
from dicom_node.anomaly.spec import SearchSpec
from dicom_node.anomaly.tokens import Tokens
from tests.make.subjects import GRIDS, subject

seeds = st.integers(0, 9999)
#: more coarse cells than there are
ALL_CELLS = GRIDS[0][0] * GRIDS[0][1] * GRIDS[0][2]
restricted = st.builds(
    SearchSpec,
    n_cells=st.integers(1, ALL_CELLS),
    window_cells=st.integers(-1, 2),
    chunk=st.sampled_from([1, 7, 2048]),
)


def both(seed):
    return subject(seed).tokens, subject(seed + 1).tokens


def close(one, other):
    for found, expected in zip(one, other, strict=True):
        torch.testing.assert_close(found, expected, atol=2e-3, rtol=1e-4)


@settings(deadline=None, max_examples=25)
@given(seeds, st.sampled_from([1, 7, 2048]))
def test_without_a_restriction_every_layer_of_every_scale_is_matched_for_itself(seed, chunk):
    queries, keys = both(seed)
    forward, backward = match(queries, keys, SearchSpec(chunk=chunk))
    for scale in range(len(GRIDS)):
        for layer, (own, other) in enumerate(
            zip(queries[scale].values, keys[scale].values, strict=True)
        ):
            expected = mutual_nearest(own, other, 2048)
            close((forward[scale][layer], backward[scale][layer]), expected)


@settings(deadline=None, max_examples=25)
@given(seeds, restricted)
def test_the_other_direction_is_that_of_the_subjects_exchanged(seed, search):
    queries, keys = both(seed)
    forward, backward = match(queries, keys, search)
    back_again, forward_again = match(keys, queries, search)
    close(forward, forward_again)
    close(backward, back_again)


@settings(deadline=None, max_examples=40)
@given(seeds, restricted)
def test_a_restricted_distance_is_never_below_the_exhaustive_one(seed, search):
    queries, keys = both(seed)
    for found, least in zip(
        match(queries, keys, search), match(queries, keys, SearchSpec()), strict=True
    ):
        close(found[:1], least[:1])  # coarse tokens are compared with all
        assert (found[1] >= least[1] - 2e-3).all()


@settings(deadline=None, max_examples=25)
@given(seeds, st.sampled_from([(ALL_CELLS, -1), (1, 2), (ALL_CELLS + 5, 0)]))
def test_with_all_cells_near_it_is_the_exhaustive_one(seed, how):
    queries, keys = both(seed)
    search = SearchSpec(n_cells=how[0], window_cells=how[1])
    for found, expected in zip(
        match(queries, keys, search), match(queries, keys, SearchSpec()), strict=True
    ):
        close(found, expected)


def test_the_window_holds_the_same_place_of_the_other_however_little_alike():
    """A token whose analogue lies at its own place finds it, though its cell looks different."""
    shape = (4, 1, 1)
    index = torch.arange(4)
    like = torch.tensor([[[0.0], [10.0], [20.0], [30.0]]])
    queries, keys = (Tokens(values, index, shape) for values in (like, like.flip(1)))
    free = near_cells(queries, keys, SearchSpec(n_cells=1))
    assert torch.equal(free, torch.eye(4, dtype=torch.bool).flip(0))
    at_place = near_cells(queries, keys, SearchSpec(n_cells=1, window_cells=0))
    assert torch.equal(at_place, free | torch.eye(4, dtype=torch.bool))


def test_a_subject_finds_itself_at_distance_nought():
    tokens = subject(5).tokens
    for search in (SearchSpec(), SearchSpec(n_cells=1)):
        for distances in match(tokens, tokens, search):
            assert all(scale.max() < 5e-3 for scale in distances)


@pytest.mark.parametrize("search", [SearchSpec(), SearchSpec(n_cells=1)])
def test_nothing_to_compare_is_an_error(search):
    coarse, fine = subject(1).tokens
    empty = Tokens(fine.values[:, :0], fine.index[:0], fine.grid_shape)
    with pytest.raises(ValueError, match=r"both sides|no fine tokens"):
        match((coarse, fine), (coarse, empty), search)
    with pytest.raises(ValueError, match="argument 2"):
        match((coarse, fine), (coarse,), search)
