"""The restricted search against its oracle and against the exhaustive one, on random subjects."""

from dataclasses import dataclass
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dicom_node.anomaly.coarse_to_fine import (
    Blocks,
    Cells,
    _chunks,
    alike,
    close,
    mutual_nearest_among,
    work_share,
)
from dicom_node.anomaly.similarity import mutual_nearest
from tests.oracle import coarse_to_fine as oracle

#: (coarse grid, fine places per cell and axis): one cell, flat, long, with one child or up to 27
GRIDS = [
    ((1, 1, 1), (1, 1, 1)),
    ((1, 1, 1), (2, 2, 2)),
    ((2, 3, 1), (2, 2, 2)),
    ((1, 4, 3), (1, 2, 2)),
    ((2, 2, 3), (2, 1, 3)),
    ((2, 2, 2), (3, 3, 3)),
]
grids = st.sampled_from(GRIDS)
seeds = st.integers(0, 9999)
LAYERS, DIM = 2, 5
# derandomized below: where two distances are equal but for rounding, either cell is the nearest


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Products this small wait for each other longer than they take where others compute too."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@dataclass
class Subject:
    """Tokens of both scales with their places, in no order; some cells hold no fine token."""

    fine_places: list
    coarse_places: list
    fine: torch.Tensor
    coarse: torch.Tensor
    grid: tuple

    @property
    def shapes(self):
        coarse, ratio = self.grid
        return tuple(c * r for c, r in zip(coarse, ratio, strict=True)), coarse

    @property
    def indices(self):
        return [
            torch.tensor([(z * shape[1] + y) * shape[2] + x for z, y, x in places])
            for places, shape in zip(
                (self.fine_places, self.coarse_places), self.shapes, strict=True
            )
        ]

    @property
    def cells(self):
        (fine, coarse), (fine_shape, coarse_shape) = self.indices, self.shapes
        return Cells.of(fine, fine_shape, coarse, coarse_shape)

    @property
    def blocks(self):
        return Blocks.of(self.fine, self.cells)

    @property
    def parents(self):
        return oracle.parents(self.fine_places, self.coarse_places, self.grid[1])


def make_subject(seed, grid, *, share=None):
    """Return a subject that keeps `share` of the fine places (random, at least one)."""
    chance = np.random.default_rng(seed)
    coarse_shape, ratio = grid
    fine_shape = [c * r for c, r in zip(coarse_shape, ratio, strict=True)]
    fine = shuffled(product(*map(range, fine_shape)), chance)
    share = chance.random() if share is None else share
    fine = fine[: max(1, round(share * len(fine)))]
    held = {tuple(at // r for at, r in zip(place, ratio, strict=True)) for place in fine}
    coarse = shuffled(product(*map(range, coarse_shape)), chance)
    coarse = [place for place in coarse if place in held or chance.random() < 0.5]
    values = torch.from_numpy(chance.normal(size=(LAYERS, len(fine) + len(coarse), DIM))).float()
    return Subject(fine, coarse, values[:, : len(fine)], values[:, len(fine) :], grid)


def shuffled(places, chance):
    places = list(places)
    return [places[i] for i in chance.permutation(len(places))]


def pairs_of(near):
    return {tuple(pair) for pair in near.nonzero().tolist()}


def random_near(seed, queries, keys):
    generator = torch.Generator().manual_seed(seed)
    shape = len(queries.coarse_places), len(keys.coarse_places)
    return torch.rand(shape, generator=generator) < torch.rand(1, generator=generator)


def exhaustive(queries, keys):
    both = [mutual_nearest(q, k, 1000) for q, k in zip(queries.fine, keys.fine, strict=True)]
    return torch.stack([one for one, _ in both]), torch.stack([other for _, other in both])


def assert_same(found, expected):
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=2e-3, rtol=1e-4)


@settings(deadline=None, derandomize=True, max_examples=60)
@given(seeds, grids, st.integers(1, 14))
def test_alike_cells_are_those_of_the_loops(seed, grid, n_cells):
    queries, keys = make_subject(seed, grid), make_subject(seed + 1, grid)
    tokens = [s.coarse.movedim(0, 1).flatten(1).tolist() for s in (queries, keys)]
    found = alike(queries.coarse, keys.coarse, n_cells)
    assert pairs_of(found) == oracle.alike(*tokens, n_cells)
    assert bool((found.sum(1) >= min(n_cells, found.shape[1])).all())


@settings(deadline=None, max_examples=60)
@given(seeds, grids, st.integers(0, 4))
def test_close_cells_are_those_of_the_loops(seed, grid, radius):
    queries, keys = make_subject(seed, grid), make_subject(seed + 1, grid)
    found = close(queries.indices[1], keys.indices[1], grid[0], radius)
    assert pairs_of(found) == oracle.close(queries.coarse_places, keys.coarse_places, radius)


@settings(deadline=None, max_examples=80)
@given(seeds, grids, st.integers(1, 80))
def test_both_directions_equal_the_loops(seed, grid, chunk):
    queries, keys = make_subject(seed, grid), make_subject(seed + 1, grid)
    near = random_near(seed, queries, keys)  # with cells that have none, and only empty ones
    found = mutual_nearest_among(queries.blocks, keys.blocks, near, chunk)
    sides = [(queries, keys, pairs_of(near)), (keys, queries, pairs_of(near.T))]
    for distances, (own, other, pairs) in zip(found, sides, strict=True):
        for layer in range(LAYERS):
            tokens = own.fine[layer].tolist(), own.parents
            others = other.fine[layer].tolist(), other.parents
            expected = torch.tensor(oracle.nearest(*tokens, *others, pairs))
            torch.testing.assert_close(distances[layer], expected, atol=2e-3, rtol=1e-4)


@settings(deadline=None, max_examples=60)
@given(seeds, grids)
def test_the_nearest_cells_being_all_cells_is_the_exhaustive_search(seed, grid):
    queries, keys = make_subject(seed, grid), make_subject(seed + 1, grid)
    n_cells = max(len(queries.coarse_places), len(keys.coarse_places))
    near = alike(queries.coarse, keys.coarse, n_cells)
    found = mutual_nearest_among(queries.blocks, keys.blocks, near, 50)
    assert_same(found, exhaustive(queries, keys))


@settings(deadline=None, max_examples=40)
@given(seeds, grids, st.integers(1, 5))
def test_a_restricted_distance_is_finite_and_never_below_the_exhaustive_one(seed, grid, n_cells):
    queries, keys = make_subject(seed, grid), make_subject(seed + 1, grid)
    near = alike(queries.coarse, keys.coarse, n_cells)
    found = mutual_nearest_among(queries.blocks, keys.blocks, near, 30)
    for distances, least in zip(found, exhaustive(queries, keys), strict=True):
        assert bool(distances.isfinite().all())
        assert bool((distances >= least - 2e-3).all())


@settings(deadline=None, max_examples=25)
@given(seeds, grids, st.integers(1, 3), st.integers(0, 1))
def test_cells_close_in_space_beside_those_alike_never_make_a_distance_larger(
    seed, grid, n_cells, radius
):
    queries, keys = (make_subject(s, grid, share=1) for s in (seed, seed + 1))
    near = alike(queries.coarse, keys.coarse, n_cells)
    more = near | close(queries.indices[1], keys.indices[1], grid[0], radius)
    without = mutual_nearest_among(queries.blocks, keys.blocks, near, 30)
    found = mutual_nearest_among(queries.blocks, keys.blocks, more, 30)
    for distances, at_most in zip(found, without, strict=True):
        assert bool((distances <= at_most + 2e-3).all())


@settings(deadline=None, max_examples=40)
@given(seeds, grids, st.integers(1, 200))
def test_chunk_size_never_changes_a_distance(seed, grid, chunk):
    queries, keys = make_subject(seed, grid), make_subject(seed + 1, grid)
    near = random_near(seed, queries, keys)
    whole = mutual_nearest_among(queries.blocks, keys.blocks, near, 10**9)
    parts = mutual_nearest_among(queries.blocks, keys.blocks, near, chunk)
    for one, other in zip(whole, parts, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


@settings(deadline=None, max_examples=60)
@given(seeds, grids, st.integers(1, 20))
def test_chunks_hold_each_near_pair_once_and_no_more_blocks_than_allowed(seed, grid, n_blocks):
    near = random_near(seed, make_subject(seed, grid), make_subject(seed + 1, grid))
    held = []
    for rows, listed in _chunks(near, n_blocks):
        assert len(rows) == 1 or listed.numel() <= n_blocks
        for row, cells in zip(rows.tolist(), listed.tolist(), strict=True):
            held += [(row, cell) for cell in cells if cell < near.shape[1]]
    assert sorted(held) == sorted(pairs_of(near))


@settings(deadline=None, derandomize=True, max_examples=40)
@given(seeds, grids, st.integers(1, 3))
def test_who_is_the_query_never_changes_a_distance(seed, grid, n_cells):
    one, other = make_subject(seed, grid), make_subject(seed + 1, grid)
    near = alike(one.coarse, other.coarse, n_cells)
    assert torch.equal(alike(other.coarse, one.coarse, n_cells), near.T)
    there = mutual_nearest_among(one.blocks, other.blocks, near, 40)
    back = mutual_nearest_among(other.blocks, one.blocks, near.T, 40)
    assert_same(there, back[::-1])


@settings(deadline=None, max_examples=40)
@given(seeds, grids)
def test_the_order_of_tokens_and_cells_never_changes_a_distance(seed, grid):
    queries, keys = make_subject(seed, grid), make_subject(seed + 1, grid)
    generator = torch.Generator().manual_seed(seed)
    fine, coarse = (
        torch.randperm(len(places), generator=generator)
        for places in (keys.fine_places, keys.coarse_places)
    )
    mixed = Subject(
        [keys.fine_places[i] for i in fine.tolist()],
        [keys.coarse_places[i] for i in coarse.tolist()],
        keys.fine[:, fine],
        keys.coarse[:, coarse],
        grid,
    )
    near = random_near(seed, queries, keys)
    forward, backward = mutual_nearest_among(queries.blocks, keys.blocks, near, 20)
    found = mutual_nearest_among(queries.blocks, mixed.blocks, near[:, coarse], 20)
    assert_same(found, (forward, backward[:, fine]))


@settings(deadline=None, max_examples=20)
@given(seeds, grids)
def test_half_precision_is_added_up_in_full(seed, grid):
    queries, keys = make_subject(seed, grid), make_subject(seed + 1, grid)
    near = alike(queries.coarse.bfloat16(), keys.coarse.bfloat16(), 2)
    rounded = [s.coarse.bfloat16().float() for s in (queries, keys)]
    assert torch.equal(near, alike(*rounded, 2))
    blocks = [Blocks.of(s.fine.bfloat16(), s.cells) for s in (queries, keys)]
    floats = [Blocks.of(s.fine.bfloat16().float(), s.cells) for s in (queries, keys)]
    found = mutual_nearest_among(*blocks, near, 20)
    for one, other in zip(found, mutual_nearest_among(*floats, near, 20), strict=True):
        assert one.dtype == torch.float32
        assert torch.equal(one, other)


def test_a_subject_finds_itself_in_its_own_cells():
    subject = make_subject(3, ((2, 2, 3), (2, 2, 2)), share=0.7)
    near = alike(subject.coarse, subject.coarse, 1)
    assert torch.equal(near, torch.eye(len(near), dtype=torch.bool))
    for distances in mutual_nearest_among(subject.blocks, subject.blocks, near, 64):
        assert distances.max() < 5e-3


def test_the_share_of_work_counts_blocks_and_the_matching_of_cells():
    full = make_subject(1, ((3, 4, 5), (2, 2, 2)), share=1)
    every = torch.ones(60, 60, dtype=torch.bool)
    assert work_share(every, full.cells, full.cells) == pytest.approx(1 + 1 / 64)
    own = torch.eye(60, dtype=torch.bool)
    assert work_share(own, full.cells, full.cells) == pytest.approx(1 / 60 + 1 / 64)
    # of two cells one holds three tokens and one two: both are multiplied as three by three
    ragged = Cells.of(torch.tensor([0, 1, 2, 3, 8]), (2, 2, 4), torch.arange(2), (1, 1, 2))
    own = torch.eye(2, dtype=torch.bool)
    assert work_share(own, ragged, ragged) == pytest.approx((2 * 9 + 4) / 25)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf, 1e19])
def test_a_token_that_is_no_usable_number_is_refused(value):
    subject = make_subject(1, ((2, 2, 2), (2, 2, 2)), share=1)
    subject.fine[1, 3, 2] = value
    subject.coarse[0, 1, 2] = value
    with pytest.raises(ValueError, match="NaN, infinite or too large"):
        _ = subject.blocks
    sound = make_subject(2, ((2, 2, 2), (2, 2, 2)), share=1).coarse
    for pair in ((subject.coarse, sound), (sound, subject.coarse)):
        with pytest.raises(ValueError, match="NaN, infinite or too large"):
            alike(*pair, 2)


def test_the_largest_token_that_is_taken_still_has_a_finite_distance():
    cells = Cells.of(torch.arange(2), (1, 1, 2), torch.arange(2), (1, 1, 2))
    large = Blocks.of(torch.tensor([[[9.2e18], [-9.2e18]]]), cells)
    for distances in mutual_nearest_among(large, large, ~torch.eye(2, dtype=torch.bool), 8):
        torch.testing.assert_close(distances, torch.full((1, 2), 1.84e19))


def test_nothing_to_search_is_an_error():
    none, some = torch.empty(LAYERS, 0, 3), torch.ones(LAYERS, 2, 3)
    for pair in ((none, some), (some, none)):
        with pytest.raises(ValueError, match="both sides"):
            alike(*pair, 1)
    with pytest.raises(ValueError, match="none to search"):
        alike(some, some, 0)
    with pytest.raises(ValueError, match="no fine tokens"):
        Cells.of(torch.empty(0, dtype=torch.long), (2, 2, 2), torch.tensor([0]), (1, 1, 1))


def test_grids_and_tokens_that_do_not_fit_are_refused():
    first = torch.tensor([0])
    with pytest.raises(ValueError, match="no coarse token as its parent"):
        Cells.of(torch.tensor([0, 3]), (1, 1, 4), first, (1, 1, 2))
    with pytest.raises(ValueError, match="not a multiple"):
        Cells.of(first, (2, 3, 2), first, (1, 2, 1))
    cells = Cells.of(torch.arange(2), (1, 1, 4), first, (1, 1, 2))
    with pytest.raises(ValueError, match="3 tokens for 2 places"):
        Blocks.of(torch.ones(1, 3, 4), cells)
    blocks = Blocks.of(torch.ones(1, 2, 4), cells)
    with pytest.raises(ValueError, match="not those of the blocks"):
        mutual_nearest_among(blocks, blocks, torch.ones(1, 2, dtype=torch.bool), 8)
