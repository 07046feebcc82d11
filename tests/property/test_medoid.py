"""The medoid of any matrix of dissimilarities."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from dicom_node.alignment import medoid
from tests.oracle import registration as oracle


@st.composite
def dissimilarities(draw):
    n = draw(st.integers(1, 9))
    # whole numbers: ties are common, and symmetric to the bit
    values = draw(hnp.arrays(np.float64, (n, n), elements=st.integers(0, 6).map(float)))
    return values + values.T


@given(dissimilarities())
def test_the_medoid_is_that_of_the_oracle(matrix):
    assert medoid(matrix) == (oracle.medoid(matrix.tolist()) if len(matrix) > 1 else 0)


@given(dissimilarities(), st.integers(0, 1000))
def test_what_a_subject_is_to_itself_does_not_matter(matrix, own):
    changed = matrix.copy()
    np.fill_diagonal(changed, own)
    assert medoid(changed) == medoid(matrix)


def test_one_odd_subject_does_not_decide():
    """A mean would shun subject 0, which alone lies far from the odd one."""
    matrix = np.array([[0, 1, 1, 90], [1, 0, 3, 2], [1, 3, 0, 2], [90, 2, 2, 0.0]])
    assert medoid(matrix) == 0


@pytest.mark.parametrize(
    "matrix",
    [
        np.zeros((0, 0)),
        np.zeros(3),
        np.zeros((2, 3)),
        np.array([[0, 1], [2, 0.0]]),
        np.array([[0, np.nan], [np.nan, 0]]),
    ],
)
def test_what_is_no_matrix_of_dissimilarities_is_refused(matrix):
    with pytest.raises(ValueError, match="dissimilarities"):
        medoid(matrix)
