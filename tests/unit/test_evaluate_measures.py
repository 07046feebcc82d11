"""Outcomes and figures against plain loops, and intervals against resampling by hand."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats

from dicom_node.evaluate.measures import Pool, measured, resamples
from dicom_node.evaluate.outcomes import N_BITS, Judged, Truth, bin_edge, load, outcome_of, save
from dicom_node.evaluation import ordered_bins
from tests.oracle import bootstrap, ranking

#: no two of these share a bin
SCORES = np.linspace(-2, 3, 41).astype(np.float32)


def outcome(seed, *, lesioned=True, key=None, threshold=math.nan, score=None):
    """A subject of 8 x 8 x 8 voxels with a lesion of 8 voxels, or none."""
    rng = np.random.default_rng(seed)
    scores = rng.choice(SCORES, (8, 8, 8))
    inside = np.zeros(scores.shape, dtype=bool)
    if lesioned:
        inside[2:4, 2:4, 2:4] = True
        scores = np.where(inside & (rng.random(scores.shape) < 0.5), np.float32(3), scores)
    body = np.ones(scores.shape, dtype=bool)
    body[0] = False
    own = float(rng.normal() + 2 * lesioned) if score is None else score
    made = outcome_of(
        key or f"s{seed}", Judged(scores, own, threshold), Truth(body, inside, lesioned), 1.0, 0.003
    )
    return made, (scores[body].tolist(), inside[body].tolist())


def cohort(n_lesioned=3, n_normal=3):
    both = [outcome(k, lesioned=k < n_lesioned) for k in range(n_lesioned + n_normal)]
    return [one for one, _ in both], [voxels for _, voxels in both]


# -- counts --------------------------------------------------------------------------------------

numbers = st.floats(-1e6, 1e6, width=32)


@given(st.lists(numbers, min_size=2, max_size=20))
def test_bins_are_in_the_order_of_the_scores_and_their_edge_is_below_them(values):
    values = np.sort(np.array(values, dtype=np.float32))
    bins = ordered_bins(values, N_BITS)
    assert (np.diff(bins) >= 0).all()
    for value, number in zip(values.tolist(), bins.tolist(), strict=True):
        edge = bin_edge(number)
        assert edge <= value
        if abs(value) > 1e-30:
            assert value - edge <= abs(value) / 100
        assert ordered_bins(np.array([edge]), N_BITS)[0] == number


@settings(max_examples=15, deadline=None)
@given(st.lists(st.integers(0, 3), min_size=6, max_size=6))
def test_figures_of_any_resample_are_those_of_the_voxels_written_out(weights):
    outcomes, voxels = cohort()
    if not any(weights[:3]):
        return
    found = Pool(outcomes).figures(np.array(weights))
    expected = bootstrap.figures(voxels, weights)
    assert {name: found[name] for name in expected} == pytest.approx(expected)
    drawn = [one for one, n in zip(outcomes, weights, strict=True) for _ in range(n)]
    if any(weights[3:]):
        area = ranking.area_under_roc(
            [one.subject_score for one in drawn], [one.lesioned for one in drawn]
        )
        assert found["subject_auroc"] == pytest.approx(area)
    else:
        assert math.isnan(found["subject_auroc"])


def test_marked_voxels_outside_of_the_body_are_told_and_not_counted():
    body, inside = np.ones((8, 8, 8), dtype=bool), np.zeros((8, 8, 8), dtype=bool)
    body[:2], inside[1:4, :2, :2] = False, True
    scores = np.random.default_rng(0).random((8, 8, 8)).astype(np.float32)
    made = outcome_of("a", Judged(scores, 1.0, math.nan), Truth(body, inside, True), 1.0, 0.2)
    assert made.n_unscored == 4
    assert made.inside.sum() == 8
    assert made.inside.sum() + made.outside.sum() == body.sum()
    assert Pool([made]).figures(np.array([1]))["unscored_share"] == pytest.approx(4 / 12)
    assert made.lesions_ml.tolist() == [pytest.approx(0.012)]
    assert made.lesion_scores[0] == scores[2:4, :2, :2].max()


# -- lesions and false findings ------------------------------------------------------------------


def blobs(*places):
    """A map of cubes of 4 voxels a side with a height each, on 1 mm voxels: 0.064 ml."""
    made = np.zeros((24, 24, 24), dtype=np.float32)
    for at, height in places:
        made[at : at + 4, at : at + 4, at : at + 4] = height
    return made


def blob_outcome(key, false, lesion=None, threshold=math.nan):
    places = [(4, false)] if false else []
    inside = np.zeros((24, 24, 24), dtype=bool)
    if lesion is not None:
        inside[14:18, 14:18, 14:18] = True
        places.append((14, lesion))
    truth = Truth(np.ones(inside.shape, dtype=bool), inside, lesion is not None)
    return outcome_of(key, Judged(blobs(*places), 0.0, threshold), truth, 1.0, 0.05)


def test_the_threshold_is_the_lowest_with_one_false_finding_a_study():
    pool = Pool(
        [
            blob_outcome("a", 8.0, 3.0),
            blob_outcome("b", 4.0, 5.0),
            blob_outcome("c", 2.0, 0.5),
        ]
    )
    every = np.ones(3, dtype=int)
    found = pool.figures(every)
    assert found["threshold"] < 0.6  # three false findings in three studies: never too many
    assert found["lesion_sensitivity"] == 1.0
    assert found["lesion_sensitivity < 0.1 ml"] == 1.0
    assert math.isnan(found["lesion_sensitivity 1 to 5 ml"])
    assert pool.n_lesions()["< 0.1 ml"] == 3


def two_false(key, high, low, lesion):
    inside = np.zeros((24, 24, 24), dtype=bool)
    inside[16:20, 16:20, 16:20] = True
    scores = blobs((1, high), (8, low), (16, lesion))
    truth = Truth(np.ones(inside.shape, dtype=bool), inside, True)
    return outcome_of(key, Judged(scores, 0.0, math.nan), truth, 1.0, 0.05)


def test_a_lesion_below_a_second_false_finding_is_missed():
    pool = Pool([two_false("a", 8.0, 4.0, 5.0), two_false("b", 8.0, 4.0, 3.0)])
    found = pool.figures(np.array([1, 1]))
    assert 4.0 < found["threshold"] < 4.2
    assert found["lesion_sensitivity"] == 0.5
    only_b = pool.figures(np.array([0, 2]))
    assert only_b["lesion_sensitivity"] == 0.0


def test_a_region_below_the_least_volume_is_no_finding():
    scores = blobs((4, 5.0))
    truth = Truth(np.ones(scores.shape, dtype=bool), np.zeros(scores.shape, dtype=bool), False)
    for least, n in ((0.05, 1), (0.1, 0)):
        made = outcome_of("a", Judged(scores, 0.0, 3.0), truth, 1.0, least)
        assert made.n_false == n
    assert Pool([made]).figures(np.array([1]))["false_findings_per_normal"] == 0.0


def test_false_findings_of_normal_studies_leave_the_lesioned_out_and_need_a_threshold():
    outcomes = [blob_outcome("a", 8.0, 3.0, 4.0), blob_outcome("b", 8.0, None, 4.0)]
    outcomes.append(blob_outcome("c", 2.0, None, 4.0))
    pool = Pool(outcomes)
    assert pool.figures(np.array([1, 1, 1]))["false_findings_per_normal"] == 0.5
    assert pool.figures(np.array([5, 2, 0]))["false_findings_per_normal"] == 1.0
    unknown = Pool([blob_outcome("b", 8.0)])
    assert math.isnan(unknown.figures(np.array([1]))["false_findings_per_normal"])


# -- intervals -----------------------------------------------------------------------------------


def test_intervals_are_the_percentiles_of_resampled_subjects():
    pool = Pool(cohort(4, 4)[0])
    found = measured([pool], 1, 200)
    for name in ("voxel_ap", "subject_auroc"):
        values = [pool.figures(weights)[name] for weights in resamples(8, 1, 200)]
        known = [value for value in values if not math.isnan(value)]
        one, of_all = found[name]
        assert (one.low, one.high) == pytest.approx(tuple(np.percentile(known, (2.5, 97.5))))
        assert of_all == one


def test_intervals_agree_with_those_of_scipy():
    """Of the mean number of false findings, where the figure is a plain mean."""
    rng = np.random.default_rng(5)
    numbers_false = rng.integers(0, 4, 40)
    outcomes = [outcome(k, lesioned=False, threshold=9.0)[0] for k in range(40)]
    made = [
        type(one)(**{f: getattr(one, f) for f in one.__slots__} | {"n_false": int(n)})
        for one, n in zip(outcomes, numbers_false, strict=True)
    ]
    found = measured([Pool(made)], 0, 2000)["false_findings_per_normal"][-1]
    peer = stats.bootstrap(
        (numbers_false,), np.mean, n_resamples=2000, method="percentile", rng=rng
    ).confidence_interval
    assert found.value == pytest.approx(numbers_false.mean())
    assert (found.low, found.high) == pytest.approx((peer.low, peer.high), abs=0.08)


def test_draws_are_averaged_with_the_same_subjects_in_each():
    first, second = (
        [outcome(k + shift, lesioned=k < 3, key=f"s{k}")[0] for k in range(6)] for shift in (0, 50)
    )
    pools = [Pool(first), Pool(second)]
    one, two, of_all = measured(pools, 3, 50)["voxel_ap"]
    assert of_all.value == pytest.approx((one.value + two.value) / 2)
    means = [
        np.mean([pool.figures(weights)["voxel_ap"] for pool in pools])
        for weights in resamples(6, 3, 50)
    ]
    known = [mean for mean in means if not math.isnan(mean)]
    assert of_all.high == pytest.approx(np.percentile(known, 97.5))
    with pytest.raises(ValueError, match="same subjects"):
        measured([Pool(first), Pool(second[1:])], 0, 1)


def test_a_subject_drawn_is_drawn_whole_and_all_draws_are_of_one_size():
    drawn = resamples(7, 0, 300)
    assert (drawn.sum(axis=1) == 7).all()
    assert drawn.mean() == pytest.approx(1.0)
    assert drawn.max() > 1


# -- files ---------------------------------------------------------------------------------------


@settings(max_examples=10, deadline=None)
@given(arrays(np.float32, (4, 4, 4), elements=st.floats(-9, 9, width=32)), st.booleans())
def test_a_kept_outcome_comes_back_as_it_was(tmp_path_factory, scores, lesioned):
    path = tmp_path_factory.mktemp("runs") / "run.npz"
    inside = np.zeros((4, 4, 4), dtype=bool)
    inside[1, 1, 1] = lesioned
    truth = Truth(np.ones((4, 4, 4), dtype=bool), inside, lesioned)
    made = [outcome_of("a", Judged(scores, 0.25, 1.0), truth, 1.0, 0.2), outcome(3)[0]]
    save(path, made)
    for one, other in zip(load(path), made, strict=True):
        for name in other.__slots__:
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
            assert type(getattr(one, name)) is type(getattr(other, name))
