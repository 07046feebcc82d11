"""Calibration by analogues: its kernels against plain loops, and the scores that they make."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dicom_node.analogue_scores import AnalogueScores
from dicom_node.anomaly.analogues import location_and_scale, log_excess, scores_of_analogues
from dicom_node.anomaly.similarity import mutual_analogues, mutual_nearest
from dicom_node.anomaly.spec import ANALOGUE_SEARCH, GuardSpec, ScoringSpec, SearchSpec
from dicom_node.reference_files import ReferenceFiles
from dicom_node.scoring import score_against, subject_scores
from tests.make.subjects import subject
from tests.oracle import analogues as oracle

seeds = st.integers(0, 9999)
SPEC = ScoringSpec(calibration="analogue")


def drawn(seed, n, dim=4):
    return torch.randn(n, dim, generator=torch.Generator().manual_seed(seed))


@settings(deadline=None, max_examples=40)
@given(seeds, st.integers(1, 9), st.integers(1, 9), st.sampled_from([1, 3, 512]))
def test_the_nearest_tokens_are_named_and_their_distances_are_those_of_the_search(
    seed, n, m, chunk
):
    queries, keys = drawn(seed, n), drawn(seed + 1, m)
    both = mutual_analogues(queries, keys, chunk)
    for found, distances in zip(both, mutual_nearest(queries, keys, chunk), strict=True):
        torch.testing.assert_close(found.distances, distances)
    for found, own, other in zip(both, (queries, keys), (keys, queries), strict=True):
        there = (own - other[found.places.long()]).norm(dim=1)
        torch.testing.assert_close(there, found.distances, atol=2e-3, rtol=1e-4)


def test_without_tokens_nothing_is_nearest():
    with pytest.raises(ValueError, match="both sides"):
        mutual_analogues(drawn(0, 3), drawn(1, 0), 512)


def compared(seed, n_others):
    """Tokens of a subject, of others, raw scores of these, and what the search makes of them."""
    own, others = drawn(seed, 7), [drawn(seed + at, 5 + at) for at in range(1, n_others + 1)]
    raw = [drawn(seed + 50, len(other), 1).abs()[:, 0] + 0.1 for other in others]
    found = [mutual_analogues(own, other, 512)[0] for other in others]
    distances = torch.stack([each.distances[None] for each in found])  # others 1 n
    places = torch.stack([each.places[None] for each in found])
    return own, others, raw, distances, scores_of_analogues([one[None] for one in raw], places)


@settings(deadline=None, max_examples=40)
@given(seeds, st.integers(1, 7), st.floats(0.01, 1.0))
def test_the_excess_is_that_of_plain_loops(seed, n_others, share):
    own, others, raw, distances, usual = compared(seed, n_others)
    expected = oracle.log_excess(
        own.tolist(), [other.tolist() for other in others], [one.tolist() for one in raw], share
    )
    found = log_excess(distances, usual, share)
    torch.testing.assert_close(found, torch.tensor([expected]), atol=5e-3, rtol=1e-3)


@settings(deadline=None, max_examples=30)
@given(seeds, st.floats(0.01, 100.0))
def test_the_unit_of_distances_and_the_order_of_subjects_do_not_matter(seed, unit):
    _, _, _, distances, usual = compared(seed, 6)
    plain = log_excess(distances, usual, 0.3)
    torch.testing.assert_close(log_excess(unit * distances, unit * usual, 0.3), plain)
    order = torch.randperm(6, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(log_excess(distances[order], usual[order], 0.3), plain)


def test_a_copy_of_a_subject_has_finite_scores_below_all_others():
    _, _, _, distances, usual = compared(3, 4)
    distances[:, :, 0] = 0
    found = log_excess(distances, usual, 0.3)
    assert found.isfinite().all()
    assert found[0].argmin() == 0
    assert log_excess(torch.zeros_like(distances), usual, 0.3).isfinite().all()


def test_scores_that_are_all_alike_have_a_scale_to_be_divided_by():
    location, scale = location_and_scale([torch.ones(2, 5), torch.ones(2, 3)])
    assert location.tolist() == [[1.0], [1.0]]
    assert (scale > 0).all()


# --- scores of subjects -------------------------------------------------------------------------


def kept(folder, seeds, search=ANALOGUE_SEARCH):
    files = ReferenceFiles(folder, "f", search)
    for seed in seeds:
        files.save_subject(f"s{seed}", subject(seed))
    return files, [f"s{seed}" for seed in seeds]


def test_a_study_is_scored_against_its_batch_whatever_the_order(tmp_path):
    files, (own, *batch) = kept(tmp_path, range(7))
    scores = score_against(files, own, batch, SPEC)
    assert scores.calibrated.shape == scores.raw.shape
    assert torch.equal(scores.calibrated.isfinite(), scores.raw.isfinite())
    again = score_against(files, own, batch[::-1], SPEC)
    torch.testing.assert_close(again.calibrated, scores.calibrated, equal_nan=True)
    score, percentile = subject_scores(scores, SPEC.subject_share)
    assert score == pytest.approx(subject_scores(again, SPEC.subject_share)[0], abs=1e-5)
    assert 0 <= percentile <= 100


def test_a_reference_subject_is_scored_as_a_study_against_the_others_would_be(tmp_path):
    """But for the unit, which all tokens of the batch say, and itself among its analogues' own."""
    files, batch = kept(tmp_path, range(9))
    own = AnalogueScores(files, batch, SPEC)[0]
    study = score_against(files, batch[0], batch[1:], SPEC).calibrated
    both = torch.stack([own[own.isfinite()], study[study.isfinite()]])
    assert torch.corrcoef(both)[0, 1] > 0.9


def test_what_is_unlike_all_others_is_told_by_its_place_among_the_tokens(tmp_path):
    files, batch = kept(tmp_path, range(8))
    made = subject(100)
    fine = made.tokens[-1]
    odd = fine.values.clone()
    odd[:, 3] += 20
    files.save_subject("odd", replace(made, tokens=(*made.tokens[:-1], replace(fine, values=odd))))
    grid = score_against(files, "odd", batch, SPEC).calibrated.flatten()
    assert grid.nan_to_num(-torch.inf).argmax() == fine.index[3]


def test_it_needs_a_search_that_keeps_analogues_and_goes_without_the_guard(tmp_path):
    files, (own, *batch) = kept(tmp_path, range(5), SearchSpec())
    with pytest.raises(ValueError, match="does not keep"):
        score_against(files, own, batch, SPEC)
    files, _ = kept(tmp_path, range(5))
    with pytest.raises(ValueError, match="guard"):
        score_against(files, own, batch, replace(SPEC, guard=GuardSpec()))


def test_distances_of_the_two_searches_lie_apart_and_agree(tmp_path):
    plain, (own, *batch) = kept(tmp_path, range(4), SearchSpec())
    distances = plain.distances(own, batch)
    with_places, _ = kept(tmp_path, range(4))
    assert with_places.search_key != plain.search_key
    for one, other in zip(with_places.distances(own, batch), distances, strict=True):
        torch.testing.assert_close(one, other)
