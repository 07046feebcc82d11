"""Matching of two scales: the restricted search inside the exhaustive one, on random subjects."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dicom_node.anomaly import coarse_to_fine
from dicom_node.anomaly.matching import blocks_of, match, near_cells
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


def test_places_of_different_grids_are_not_near():
    values = torch.rand(1, 4, 2)
    queries, keys = (Tokens(values, torch.arange(4), shape) for shape in ((4, 1, 1), (2, 2, 1)))
    with pytest.raises(ValueError, match=r"\(4, 1, 1\), \(2, 2, 1\)"):
        near_cells(queries, keys, SearchSpec(n_cells=1, window_cells=0))
    assert near_cells(queries, keys, SearchSpec(n_cells=1)).shape == (4, 4)


def on(device, tokens):
    """Their values alone: the places stay on the CPU."""
    return tuple(replace(scale, values=scale.values.to(device)) for scale in tokens)


def test_the_kernels_work_where_their_tokens_lie(monkeypatch):
    """The meta device computes nothing, and refuses a tensor that lies on the CPU."""
    queries, keys = both(3)
    near = near_cells(queries[0], keys[0], SearchSpec(n_cells=2))
    monkeypatch.setattr(coarse_to_fine, "_finite_norms", lambda tokens: tokens.square().sum(-1))
    monkeypatch.setattr(coarse_to_fine, "_with_tokens", lambda *_blocks_and_near: near.to("meta"))
    chunks = coarse_to_fine._chunks(near, 3)
    moved = [(rows.to("meta"), listed.to("meta")) for rows, listed in chunks]
    monkeypatch.setattr(coarse_to_fine, "_chunks", lambda *_near_and_size: moved)
    one, other = (
        coarse_to_fine.Blocks.of(fine.values, blocks_of(fine, coarse).cells)
        for coarse, fine in (on("meta", queries), on("meta", keys))
    )
    found = coarse_to_fine.mutual_nearest_among(one, other, near.to("meta"), 30)
    found += mutual_nearest(*(t[1].values[0] for t in (on("meta", queries), on("meta", keys))), 7)
    assert [distances.device.type for distances in found] == ["meta"] * 4
    sizes = [tuple(scale.values.shape[:2]) for scale in (queries[1], keys[1])]
    assert [tuple(distances.shape) for distances in found] == [*sizes, *(s[1:] for s in sizes)]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
@pytest.mark.parametrize("search", [SearchSpec(), SearchSpec(n_cells=2, window_cells=1)])
def test_a_gpu_finds_the_distances_of_the_cpu(search):
    queries, keys = both(4)
    expected = match(queries, keys, search)
    found = match(on("cuda", queries), on("cuda", keys), search)
    for one, other in zip(found, expected, strict=True):
        close([distances.cpu() for distances in one], other)


@pytest.mark.parametrize("search", [SearchSpec(), SearchSpec(n_cells=1)])
def test_nothing_to_compare_is_an_error(search):
    coarse, fine = subject(1).tokens
    empty = Tokens(fine.values[:, :0], fine.index[:0], fine.grid_shape)
    with pytest.raises(ValueError, match=r"both sides|no fine tokens"):
        match((coarse, fine), (coarse, empty), search)
    with pytest.raises(ValueError, match="argument 2"):
        match((coarse, fine), (coarse,), search)
