"""Anomaly map -> findings, against a flood fill by hand."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from dicom_node.findings import locate
from tests.oracle.components import flood_fill

#: oblique enough to catch a swapped axis: depth, height, width -> LPS
AFFINE = np.array(
    [[0.0, 0.1, 0.8, -10.0], [0.2, 0.9, 0.0, 20.0], [2.5, 0.0, -0.1, -30.0], [0, 0, 0, 1.0]]
)
VOXEL_ML = abs(np.linalg.det(AFFINE[:3, :3])) / 1000.0


def find(anomaly_map, *, threshold=3.0, min_volume_ml=0.0, max_findings=10, affine=AFFINE):
    return locate(
        anomaly_map,
        affine,
        threshold=threshold,
        min_volume_ml=min_volume_ml,
        max_findings=max_findings,
    )


def slow_regions(anomaly_map, threshold):
    """Every component as (highest score, voxels), ranked."""
    parts = flood_fill(anomaly_map >= threshold)
    ranked = sorted(parts, key=lambda part: (-max(anomaly_map[v] for v in part), -len(part), part))
    return [(max(anomaly_map[v] for v in part), part) for part in ranked]


MAPS = hnp.arrays(
    np.float32,
    hnp.array_shapes(min_dims=3, max_dims=3, min_side=1, max_side=6),
    elements=st.sampled_from([0.0, 1.0, 2.9, 3.0, 3.5, 7.0]),
)


@settings(max_examples=150, deadline=None)
@given(anomaly_map=MAPS, min_voxels=st.integers(0, 4), max_findings=st.integers(0, 5))
def test_agrees_with_flood_fill(anomaly_map, min_voxels, max_findings):
    found, labels = find(
        anomaly_map, min_volume_ml=min_voxels * VOXEL_ML, max_findings=max_findings
    )
    expected = [r for r in slow_regions(anomaly_map, 3.0) if len(r[1]) >= min_voxels]
    expected = expected[:max_findings]
    assert len(found) == len(expected)
    for finding, (highest, part) in zip(found, expected, strict=True):
        points = np.array([(AFFINE @ [*voxel, 1.0])[:3] for voxel in part])
        assert sorted(map(tuple, np.argwhere(labels == finding.rank).tolist())) == part
        assert finding.max_score == pytest.approx(highest)
        assert finding.mean_score == pytest.approx(np.mean([anomaly_map[v] for v in part]))
        assert finding.volume_ml == pytest.approx(len(part) * VOXEL_ML)
        assert finding.centroid_mm == pytest.approx(points.mean(axis=0))
        peak = next(p for p, v in zip(points, part, strict=True) if anomaly_map[v] == highest)
        assert finding.peak_mm == pytest.approx(peak)
    assert np.count_nonzero(labels) == sum(len(part) for _, part in expected)
    assert labels.dtype == np.uint8


def test_corner_neighbours_are_one_region():
    anomaly_map = np.zeros((3, 3, 3), np.float32)
    anomaly_map[0, 0, 0] = anomaly_map[1, 1, 1] = 5.0
    found, _ = find(anomaly_map)
    assert len(found) == 1


def test_diameter_of_a_bar_is_its_length_with_both_end_voxels():
    anomaly_map = np.zeros((4, 5, 12), np.float32)
    anomaly_map[1, 2, 1:11] = 4.0
    affine = np.diag([3.0, 1.0, 0.5, 1.0])[[2, 1, 0, 3]]
    (finding,), _ = find(anomaly_map, affine=affine)
    assert finding.diameter_mm == pytest.approx(5.0)


def test_equal_scores_are_ranked_by_volume():
    anomaly_map = np.zeros((1, 1, 9), np.float32)
    anomaly_map[0, 0, 0] = 4.0
    anomaly_map[0, 0, 5:8] = 4.0
    found, labels = find(anomaly_map)
    assert [round(f.volume_ml / VOXEL_ML) for f in found] == [3, 1]
    assert labels[0, 0].tolist() == [2, 0, 0, 0, 0, 1, 1, 1, 0]


def test_nothing_above_the_threshold():
    found, labels = find(np.full((2, 3, 4), 2.99, np.float32))
    assert found == ()
    assert not labels.any()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_score_that_is_no_number_is_refused(value):
    anomaly_map = np.zeros((2, 2, 2), np.float32)
    anomaly_map[1, 0, 1] = value
    with pytest.raises(ValueError, match="NaN or infinite"):
        find(anomaly_map)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"threshold": float("nan")}, "threshold"),
        ({"max_findings": 256}, "max_findings"),
        ({"max_findings": -1}, "max_findings"),
        ({"affine": np.eye(3)}, "affine"),
        ({"affine": np.full((4, 4), np.nan)}, "affine"),
    ],
)
def test_arguments_out_of_range_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        find(np.zeros((2, 2, 2), np.float32), **arguments)


def test_a_flat_array_is_refused():
    with pytest.raises(ValueError, match="2 axes"):
        find(np.zeros((2, 2), np.float32))


def test_a_speckled_volume_yields_the_255_highest():
    rng = np.random.default_rng(3)
    anomaly_map = np.zeros((20, 40, 40), np.float32)
    anomaly_map[::2, ::2, ::2] = rng.uniform(3.0, 9.0, (10, 20, 20))
    found, labels = find(anomaly_map, max_findings=255)
    assert [f.max_score for f in found] == sorted(
        np.sort(anomaly_map.ravel())[-255:].tolist(), reverse=True
    )
    assert labels.max() == 255
