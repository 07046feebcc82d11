"""Findings that an earlier revision had already."""

import numpy as np

from dicom_node.findings import locate
from dicom_node.tracking import seen_again

AFFINE = np.diag([2.0, 1.0, 1.0, 1.0])


def found(*boxes, shape=(12, 20, 20), affine=AFFINE):
    """Findings and labels of boxes of one score each, given as (slice, row, column, score)."""
    scores = np.zeros(shape, np.float32)
    for k, i, j, score in boxes:
        scores[k : k + 3, i : i + 3, j : j + 3] = score
    return locate(scores, affine, threshold=1.0, min_volume_ml=0.0, max_findings=9)


def test_a_finding_that_changed_its_rank_is_the_same():
    before, _ = found((1, 2, 2, 9.0), (6, 10, 10, 5.0))
    _, labels = found((1, 2, 2, 4.0), (6, 10, 10, 5.0))
    assert seen_again(before, labels, AFFINE) == {1: 2, 2: 1}


def test_a_new_one_is_nobodys_and_one_that_went_is_not_there():
    before, _ = found((1, 2, 2, 9.0), (6, 10, 10, 5.0))
    _, labels = found((6, 10, 10, 5.0), (1, 15, 15, 3.0))
    assert seen_again(before, labels, AFFINE) == {1: 2}


def test_two_that_grew_together_are_the_higher():
    before, _ = found((1, 2, 2, 5.0), (1, 2, 8, 9.0))
    _, labels = found((1, 2, 2, 4.0), (1, 2, 5, 4.0), (1, 2, 8, 4.0))
    assert seen_again(before, labels, AFFINE) == {1: 1}


def test_the_place_counts_in_millimetres_and_may_lie_outside_now():
    moved = AFFINE.copy()
    moved[:3, 3] = (4.0, 0.0, 0.0)  # two slices fewer at the start
    before, _ = found((0, 2, 2, 5.0), (6, 10, 10, 9.0))
    _, labels = found((4, 10, 10, 9.0), shape=(10, 20, 20), affine=moved)
    assert seen_again(before, labels, moved) == {1: 1}
