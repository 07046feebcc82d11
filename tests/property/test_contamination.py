"""Outliers and shared anomalies: the kernels against loops, on random batches."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dicom_node.anomaly.contamination import (
    average_of_known,
    linked,
    outliers,
    suspicious_links,
    without_shared,
)
from dicom_node.anomaly.similarity import interval_average
from dicom_node.anomaly.spec import GuardSpec
from tests.oracle import contamination as oracle

seeds = st.integers(0, 99_999)
specs = st.builds(
    GuardSpec,
    endurance=st.sampled_from([0.3, 0.7, 1.0]),
    unusual_share=st.sampled_from([0.0, 0.1, 0.5, 1.0]),
    significance=st.sampled_from([1e-3, 0.5]),
    min_links=st.sampled_from([1, 4]),
)


def drawn(seed, *shape):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


@settings(max_examples=60)
@given(seeds, st.integers(2, 6), st.integers(1, 3), st.integers(1, 9), specs)
def test_suspicious_links_equal_the_loops(seed, others, layers, n, spec):
    distances, unusual = drawn(seed, others, layers, n) + 0.01, drawn(seed + 1, layers, n)
    found = suspicious_links(distances, unusual, spec)
    for layer in range(layers):
        expected = oracle.suspicious_links(
            distances[:, layer].tolist(), unusual[layer].tolist(), spec
        )
        assert {tuple(pair) for pair in found[:, layer].nonzero().tolist()} == expected


@settings(max_examples=60)
@given(seeds, st.integers(2, 7), st.sampled_from([1, 10, 60]), specs)
def test_who_is_linked_equals_the_loops_and_both_know_it(seed, n, most, spec):
    counts = (drawn(seed, n, n).square() * most).floor()
    found = linked(counts, spec)
    assert {tuple(pair) for pair in found.nonzero().tolist()} == oracle.linked(
        counts.tolist(), spec
    )
    assert torch.equal(found, found.T)


def test_links_spread_over_all_subjects_are_chance_and_those_of_a_few_are_not():
    n = 12
    counts = torch.poisson(torch.full((n, n), 6.0), generator=torch.Generator().manual_seed(1))
    assert not linked(counts, GuardSpec()).any()
    for one in range(4):
        for other in range(4):
            counts[one, other] += 20
    expected = torch.zeros(n, n, dtype=torch.bool)
    expected[:4, :4] = True
    assert torch.equal(linked(counts, GuardSpec()), expected & ~torch.eye(n, dtype=torch.bool))


@settings(max_examples=40)
@given(seeds, st.integers(1, 6), st.sampled_from([0.1, 0.5, 1.0]))
def test_without_shared_analogues_the_average_is_the_plain_one(seed, others, share):
    distances = drawn(seed, others, 2, 5)
    links = drawn(seed + 1, others, 2, 5) < 0.5
    nobody = torch.zeros(others, dtype=torch.bool)
    kept = without_shared(distances, links, nobody)
    assert torch.equal(kept, distances)
    k = max(1, round(share * others))
    torch.testing.assert_close(
        average_of_known(kept, k), interval_average(distances, k / others), atol=1e-6, rtol=1e-6
    )


@settings(max_examples=60)
@given(seeds, st.integers(1, 6), st.integers(1, 6))
def test_what_is_left_out_leaves_the_smallest_of_the_rest_and_none_without_a_number(
    seed, others, k
):
    distances = drawn(seed, others, 2, 5)
    links = drawn(seed + 1, others, 2, 5) < 0.7
    partner = drawn(seed + 2, others) < 0.7
    kept = without_shared(distances, links, partner)
    for token in range(5):
        dropped = {o for o in range(others) if bool(links[o, 0, token]) and bool(partner[o])}
        expected = set() if len(dropped) == others else dropped
        assert {o for o in range(others) if not bool(kept[o, 0, token].isfinite())} == expected
    k = min(k, others)
    found = average_of_known(kept, k)
    assert found.isfinite().all()
    for token in range(5):
        rest = sorted(value for value in kept[:, 0, token].tolist() if value < float("inf"))[:k]
        assert float(found[0, token]) == pytest.approx(sum(rest) / len(rest), abs=1e-6)


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        ([1.0, 1.1, 0.9, 1.2, 5.0], [4]),
        ([1.0, 1.0, 1.0, 1.0, 1.04], []),
        ([1.0, 1.1, 0.9, 1.2, -5.0], []),
        ([2.0], []),
        ([1.0, 1.1, 0.9, 6.0, 7.0], [3, 4]),
    ],
)
def test_only_a_score_far_above_the_others_is_an_outlier(scores, expected):
    assert outliers(torch.tensor(scores), 3.0).nonzero().flatten().tolist() == expected


@given(st.lists(st.floats(-100, 100), min_size=1, max_size=12), st.sampled_from([0.0, 1.0, 3.0]))
def test_outliers_are_never_more_than_half(scores, limit):
    assert int(outliers(torch.tensor(scores), limit).sum()) * 2 <= len(scores)
