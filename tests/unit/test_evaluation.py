"""Figures against masks: the ranking against its definition, the z-score and lesions by hand."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dicom_node.evaluation import Evaluation, Moments, Overlap, ScoreCounts, overlap
from dicom_node.findings import locate
from tests.oracle import ranking

#: numbers that a bin holds exactly, many of them equal
EXACT = st.integers(-12, 12).map(lambda number: number / 8)


def counted(*parts):
    counts = ScoreCounts()
    for scores, truth in parts:
        counts.add(np.array(scores, dtype=np.float32), np.array(truth, dtype=bool))
    return counts


# -- ranking ----------------------------------------------------------------------------------


@given(st.lists(st.tuples(EXACT, st.booleans()), min_size=1, max_size=40))
def test_the_figures_are_those_of_their_definitions(voxels):
    scores, truth = zip(*[*voxels, (0.25, True), (-0.5, False)], strict=True)
    found = counted((scores, truth)).metrics()
    assert found.average_precision == pytest.approx(ranking.average_precision(scores, truth))
    assert found.auroc == pytest.approx(ranking.area_under_roc(scores, truth))


@given(st.lists(st.floats(-(2.0**99), 2.0**99, width=32), min_size=2, max_size=30))
def test_bins_keep_the_order_of_scores_of_any_size(scores):
    """The lowest alone is outside: whatever is in the bin of another ranks no higher than it."""
    ordered = sorted(scores)
    truth = [False] + [True] * (len(ordered) - 1)
    found = counted((ordered, truth)).metrics()
    assert found.auroc >= 0.5
    if ordered[0] < 0 < ordered[-1]:
        assert found.auroc > 0.5


@pytest.mark.parametrize("size", [1e-20, 0.003, 1.0, -1.0, 4e7])
def test_scores_a_thousandth_apart_are_told_apart_at_any_size(size):
    low, high = sorted([size, size * 1.001])
    assert counted(([low, high], [False, True])).metrics().auroc == 1.0
    assert counted(([low, high], [True, False])).metrics().auroc == 0.0


def test_minus_zero_is_zero():
    assert counted(([-0.0, 0.0], [True, False])).metrics().auroc == 0.5


def test_counting_in_pieces_is_counting_at_once():
    random = np.random.default_rng(5)
    scores, truth = random.standard_normal(900), random.random(900) < 0.2
    pieces = counted(*zip(np.split(scores, 9), np.split(truth, 9), strict=True))
    whole = counted((scores, truth))
    assert pieces.metrics() == whole.metrics()
    assert pieces.n_voxels == 900
    assert pieces.n_inside == truth.sum()


def test_bins_cost_next_to_nothing_against_exact_ranks():
    random = np.random.default_rng(6)
    truth = random.random(400) < 0.3
    scores = np.round(random.standard_normal(400) + truth, 4)
    found = counted((scores, truth)).metrics()
    assert found.average_precision == pytest.approx(
        ranking.average_precision(scores.tolist(), truth.tolist()), abs=2e-3
    )


@pytest.mark.parametrize("truth", [[True, True], [False, False]])
def test_without_one_of_both_kinds_there_is_no_figure(truth):
    found = counted(([1.0, 2.0], truth)).metrics()
    assert math.isnan(found.auroc)
    assert math.isnan(found.average_precision) != any(truth)


# -- z-score ----------------------------------------------------------------------------------


def test_the_z_score_is_relative_to_the_others_alone():
    random = np.random.default_rng(1)
    volumes = random.random((5, 2, 3, 2)).astype(np.float32)
    moments = Moments(volumes[0].shape)
    for volume in volumes:
        moments.add(volume)
    for number, volume in enumerate(volumes):
        others = np.delete(volumes, number, axis=0).astype(np.float64)
        expected = (volume - others.mean(axis=0)) / (others.std(axis=0, ddof=1) + 0.05)
        np.testing.assert_allclose(moments.z_score(volume), expected, rtol=1e-4, atol=1e-6)


def test_where_all_others_agree_the_z_score_stays_finite():
    moments = Moments((1, 1, 2))
    for value in (0.3, 0.3, 0.3, 0.8):
        moments.add(np.full((1, 1, 2), value, dtype=np.float32))
    found = moments.z_score(np.full((1, 1, 2), 0.8, dtype=np.float32))
    np.testing.assert_allclose(found, 10.0, rtol=1e-4)


# -- lesions ----------------------------------------------------------------------------------


def grid(spacing, origin=(0.0, 0.0, 0.0)):
    affine = np.diag([spacing, spacing, spacing, 1.0])
    affine[:3, 3] = origin
    return affine


def found_in(scores, affine):
    return locate(scores, affine, threshold=1.0, min_volume_ml=0.0, max_findings=10)


def test_each_lesion_is_measured_and_known_to_be_found_or_not():
    mask = np.zeros((20, 20, 20), dtype=bool)
    mask[2:6, 2:6, 2:6] = True  # 4^3 voxels of 8 mm^3
    mask[12:14, 12:14, 12:14] = True
    mask[14, 14, 14] = True  # touches by a corner: one lesion
    scores = np.zeros(mask.shape, dtype=np.float32)
    scores[5:8, 5:8, 5:8] = 2.0  # overlaps the first by one voxel
    scores[17:19, 2:4, 2:4] = 3.0  # nothing there
    findings, labels = found_in(scores, grid(2.0))
    common = overlap(mask, grid(2.0), labels, grid(2.0), findings)
    sizes = {(round(volume, 6), found) for volume, found in common.lesions}
    assert sizes == {(0.512, True), (0.072, False)}
    assert common.n_false == 1


def test_mask_and_findings_are_compared_in_millimetres_not_by_index():
    mask = np.zeros((10, 10, 10), dtype=bool)
    mask[4:6, 4:6, 4:6] = True  # 12 to 18 mm from the origin of a grid that starts at 2 mm
    affine = grid(3.0, origin=(2.0, 2.0, 2.0))
    scores = np.zeros((40, 40, 40), dtype=np.float32)
    scores[14:18, 14:18, 14:18] = 2.0
    findings, labels = found_in(scores, grid(1.0))
    assert overlap(mask, affine, labels, grid(1.0), findings).lesions == ((0.216, True),)
    moved = grid(1.0, origin=(100.0, 0.0, 0.0))
    elsewhere = overlap(mask, affine, labels, moved, findings)
    assert elsewhere == Overlap(((0.216, False),), 1)


def test_a_mask_without_lesions_makes_every_finding_a_false_one():
    scores = np.zeros((8, 8, 8), dtype=np.float32)
    scores[1, 1, 1] = scores[5, 5, 5] = 2.0
    findings, labels = found_in(scores, grid(1.0))
    nothing = np.zeros(scores.shape, dtype=bool)
    assert overlap(nothing, grid(1.0), labels, grid(1.0), findings) == Overlap((), 2)


# -- all of it --------------------------------------------------------------------------------


def maps(calibrated, raw, z):
    values = {"calibrated": calibrated, "raw": raw, "z": z}
    return {name: np.array(value, dtype=np.float32) for name, value in values.items()}


def test_only_voxels_of_the_body_count_and_what_lies_outside_is_told():
    evaluation = Evaluation()
    truth, body = np.array([True, True, False, False]), np.array([True, False, True, False])
    evaluation.add(maps([2, -9, 1, 9], [1, 9, 2, -9], [0, 0, 0, 0]), truth, body)
    evaluation.add_subject(1.0, Overlap(((0.5, True),), 0))
    report = evaluation.report()
    assert (report.n_voxels, report.prevalence, report.unscored_share) == (2, 0.5, 0.5)
    assert report.calibrated.auroc == 1.0
    assert report.raw.auroc == 0.0


@pytest.mark.parametrize(
    ("z", "form"), [([-3, 4, 1, 1], "dark"), ([3, -4, 1, 1], "bright"), ([-3, 3, 1, 1], "both")]
)
def test_the_yardstick_is_read_in_the_form_that_serves_it_best(z, form):
    evaluation = Evaluation()
    truth = np.array([z[0] in (3, -3), z[1] == 3, False, False])
    evaluation.add(maps([0] * 4, [0] * 4, z), truth, np.ones(4, dtype=bool))
    report = evaluation.report()
    assert report.z_form == form
    assert report.z_score.average_precision == 1.0


def test_lesions_are_sorted_by_size_and_the_lower_bound_belongs_to_a_class():
    evaluation = Evaluation()
    evaluation.add(maps([1], [1], [1]), np.array([True]), np.array([True]))
    sizes = (0.01, 0.1, 0.999, 1.0, 5.0, 19.9, 20.0, 300.0)
    evaluation.add_subject(3.0, Overlap(tuple((size, size > 4) for size in sizes), 3))
    evaluation.add_subject(1.0, Overlap((), 0))
    report = evaluation.report()
    assert [(size.n_lesions, size.n_found) for size in report.lesions] == [
        *((1, 0), (2, 0), (1, 0), (2, 2), (2, 2)),
    ]
    assert report.false_findings == 1.5
    assert report.subject_auroc == 1.0


def test_healthy_subjects_alone_give_no_precision_and_no_fault():
    evaluation = Evaluation()
    evaluation.add(maps([1, 2], [1, 2], [1, 2]), np.zeros(2, dtype=bool), np.ones(2, dtype=bool))
    evaluation.add_subject(1.0, Overlap((), 0))
    report = evaluation.report()
    assert math.isnan(report.calibrated.average_precision)
    assert math.isnan(report.subject_auroc)
    assert report.unscored_share == 0.0


def test_without_a_mask_there_is_no_report():
    assert Evaluation().report() is None
