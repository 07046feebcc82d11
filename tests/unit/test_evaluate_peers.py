"""The peers against plain loops over tokens and voxels."""

import math

import numpy as np
import pytest
import torch

from dicom_node.anomaly.tokens import Tokens
from dicom_node.batch import inputs, recipe
from dicom_node.batch_mode import Listener
from dicom_node.evaluate import peers
from dicom_node.evaluate.cohort import Work
from dicom_node.evaluate.peers import coreset, slice_distances
from tests.make import cohorts, lines, scans
from tests.make.subjects import subject


def by_slice(tokens, layer):
    """Depth -> the tokens there, as lists."""
    area = tokens.grid_shape[1] * tokens.grid_shape[2]
    found = {}
    for place, values in zip(tokens.index.tolist(), tokens.values[layer].tolist(), strict=True):
        found.setdefault(place // area, []).append(values)
    return found


@pytest.mark.parametrize("seed", range(4))
def test_slice_wise_distances_are_those_of_loops_over_the_same_slice(seed):
    own, other = (subject(k).tokens[1] for k in (seed, seed + 10))
    found = slice_distances(own, other)
    for layer in range(2):
        queries, keys = by_slice(own, layer), by_slice(other, layer)
        assert queries.keys() == keys.keys()  # then relative positions are positions
        expected = [min(math.dist(q, k) for k in keys[d]) for d in queries for q in queries[d]]
        assert found[layer].tolist() == pytest.approx(expected, abs=4e-3)


def test_a_slice_meets_the_one_at_its_relative_position():
    """Five slices against three: the ends meet the ends, the middle the middle."""
    own = Tokens(torch.zeros(1, 5, 1), torch.arange(5), (5, 1, 1))
    other = Tokens(torch.tensor([[[1.0], [2.0], [3.0]]]), torch.tensor([1, 2, 3]), (5, 1, 1))
    found = slice_distances(own, other)[0].tolist()
    assert [found[0], found[2], found[4]] == pytest.approx([1, 2, 3])


def test_a_coreset_takes_the_farthest_from_those_it_has():
    tokens = torch.randn(40, 3, generator=torch.Generator().manual_seed(2))
    chosen = [0]
    rows = tokens.tolist()
    while len(chosen) < 8:
        far = [min(math.dist(row, rows[c]) for c in chosen) for row in rows]
        chosen.append(far.index(max(far)))
    assert coreset(tokens, 8).tolist() == chosen


def test_a_coreset_of_equal_tokens_takes_none_twice():
    assert sorted(coreset(torch.ones(6, 2), 6).tolist()) == list(range(6))


# -- on scans ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """Four normal heads and one with a dark cube, encoded; the keys, the ill one last."""
    folder = tmp_path_factory.mktemp("peers")
    cohorts.write_cohort(folder / "in", 4, 1)
    by = recipe.of_protocol(scans.config(lines.tiny_weights(folder)), "t1", folder)
    work = Work(by, folder / "work", Listener())
    found = inputs.find([folder / "in"], None, None)
    named = {scan.name: work.add(scan, 0) for scan in found.scans}
    return work, sorted(named.values(), key=lambda key: key == named["ill4_t1"])


def test_the_memory_bank_measures_to_the_nearest_token_that_it_holds(work, monkeypatch):
    work, keys = work
    monkeypatch.setattr(peers, "CORESET_SHARE", 1.0)
    bank = peers.peer("memory bank", work, keys[:4])
    own = work.files.load_tokens(keys[4])[-1]
    every = [row for key in keys[:4] for row in work.files.load_tokens(key)[-1].values[0].tolist()]
    nearest = [min(math.dist(q, k) for k in every) for q in own.values[0].tolist()]
    expected = peers.judged_tokens(work, own, torch.tensor(nearest), keys[4])
    found = bank.judge(keys[4])
    np.testing.assert_allclose(found.scores, expected.scores, atol=5e-3)
    assert found.subject_score == pytest.approx(expected.subject_score, abs=5e-3)


def test_the_bank_is_a_tenth_of_the_tokens(work):
    work, keys = work
    n = sum(len(work.files.load_tokens(key)[-1]) for key in keys[:4])
    bank = peers.MemoryBank(work, keys[:4])
    assert [len(layer) for layer in bank._banks] == [round(n / 10)]


@pytest.mark.parametrize(("name", "sign"), [("z bright", 1), ("z dark", -1), ("z both", 0)])
def test_a_z_score_is_relative_to_the_batch_alone(work, name, sign):
    work, keys = work
    batch = np.stack([work.smoothed(key) for key in keys[:4]]).astype(np.float64)
    own = work.smoothed(keys[4])
    z = (own - batch.mean(0)) / (batch.std(0, ddof=1) + 0.05)
    expected = np.abs(z) if sign == 0 else sign * z
    found = peers.peer(name, work, keys[:4]).judge(keys[4])
    body = work.truth(keys[4]).body
    np.testing.assert_allclose(found.scores[body], expected[body], atol=1e-4)
    top = np.sort(expected[body])[::-1][: math.ceil(0.002 * body.sum())]
    assert found.subject_score == pytest.approx(top.mean(), abs=1e-4)


def test_the_mean_difference_is_that(work):
    work, keys = work
    batch = np.stack([work.smoothed(key) for key in keys[:4]])
    found = peers.peer("mean difference", work, keys[:4]).judge(keys[4])
    body = work.truth(keys[4]).body
    expected = np.abs(work.smoothed(keys[4]) - batch.mean(0))
    np.testing.assert_allclose(found.scores[body], expected[body], atol=1e-5)


@pytest.mark.parametrize("name", peers.PEERS)
def test_every_peer_scores_a_lesion_and_has_no_threshold_of_its_own(work, name):
    work, keys = work
    peer, truth = peers.peer(name, work, keys[:4]), work.truth(keys[4])
    ill = peer.judge(keys[4])
    assert ill.scores.shape == truth.body.shape
    assert math.isnan(ill.threshold)
    assert np.isfinite(ill.scores).all()
    assert not ill.scores[~truth.body].any()
    higher = ill.scores[truth.inside & truth.body].mean() > ill.scores[truth.body].mean()
    assert higher == (name != "z bright")  # the cube is dark
