"""The matching kernel against its oracle, on random input."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dicom_node.anomaly.similarity import interval_average, mutual_nearest, n_nearest
from tests.oracle import similarity as oracle


def tokens(seed: int, n: int, dim: int) -> torch.Tensor:
    return torch.randn(n, dim, generator=torch.Generator().manual_seed(seed))


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 999), st.integers(1, 20), st.integers(1, 20), st.integers(1, 8))
def test_both_directions_equal_the_loops(seed, n, m, dim):
    queries, keys = tokens(seed, n, dim), tokens(seed + 1, m, dim)
    forward, backward = mutual_nearest(queries, keys, 7)
    expected = torch.tensor(oracle.nearest(queries.tolist(), keys.tolist()))
    torch.testing.assert_close(forward, expected, atol=2e-3, rtol=1e-4)
    expected = torch.tensor(oracle.nearest(keys.tolist(), queries.tolist()))
    torch.testing.assert_close(backward, expected, atol=2e-3, rtol=1e-4)


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 999), st.integers(1, 40), st.integers(1, 50))
def test_chunk_size_never_changes_a_distance(seed, n, chunk):
    queries, keys = tokens(seed, n, 5), tokens(seed + 1, 13, 5)
    whole = mutual_nearest(queries, keys, 1000)
    parts = mutual_nearest(queries, keys, chunk)
    for one, other in zip(whole, parts, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 999), st.integers(2, 7), st.sampled_from([0.1, 0.3, 0.5, 1.0]))
def test_token_scores_equal_the_loops_and_ignore_the_order_of_the_reference(
    seed, n_subjects, share
):
    subjects = [tokens(seed * 10 + i, 6, 4) for i in range(n_subjects)]
    distances = torch.stack([mutual_nearest(subjects[0], s, 4)[0] for s in subjects[1:]])
    scores = interval_average(distances, share)
    expected = oracle.token_scores([s.tolist() for s in subjects], 0, share)
    torch.testing.assert_close(scores, torch.tensor(expected), atol=2e-3, rtol=1e-4)
    torch.testing.assert_close(interval_average(distances.flip(0), share), scores)


def test_a_duplicate_subject_has_distance_zero():
    subject = tokens(1, 50, 16)
    forward, backward = mutual_nearest(subject, subject.clone(), 16)
    assert forward.max() < 5e-3
    assert backward.max() < 5e-3


def test_a_token_that_is_no_number_is_seen_in_every_distance_to_it():
    """As `ReferenceFiles` relies on: it would pass for a place without a token otherwise."""
    queries, keys = tokens(1, 9, 4), tokens(2, 6, 4)
    keys[3, 2] = torch.nan
    forward, backward = mutual_nearest(queries, keys, 2)
    assert forward.isnan().all()
    assert backward.isnan().tolist() == [False] * 3 + [True] + [False] * 2


@pytest.mark.parametrize(
    ("others", "share", "expected"),
    [(1, 0.1, 1), (9, 0.1, 1), (10, 0.3, 3), (11, 0.3, 4), (12, 0.1, 2), (100, 0.07, 7), (5, 1, 5)],
)
def test_the_number_of_neighbours_is_never_zero(others, share, expected):
    assert n_nearest(others, share) == expected


def test_nothing_to_compare_is_an_error():
    with pytest.raises(ValueError, match="at least one other subject"):
        n_nearest(0, 0.3)
    with pytest.raises(ValueError, match="both sides"):
        mutual_nearest(torch.empty(0, 3), torch.ones(2, 3), 8)
