"""The numerics: geometry of slices and grids, intensity, calibration, maps."""

import math

import pytest
import torch

from dicom_node.anomaly import (
    anomaly_map,
    calibration,
    foreground,
    intensity,
    resample,
    slices,
)
from dicom_node.anomaly.spec import GridSpec, ScoringSpec


def test_depth_pooling_takes_slices_evenly_inside_each_token():
    assert slices.slice_positions(2, 7, 1).tolist() == [[3.0], [10.0]]
    assert slices.slice_positions(1, 8, 2).tolist() == [[1.5, 5.5]]
    ramp = torch.arange(10.0)[:, None, None].expand(10, 2, 2)
    assert slices.take_slices(ramp, 0, torch.tensor([1.5, 9.4]))[:, 0, 0].tolist() == [1.5, 9.0]


def test_resampling_puts_a_point_where_the_affines_say():
    source = torch.zeros(20, 24, 28)
    source[5, 10, 15] = 100.0
    affine = torch.eye(4, dtype=torch.float64)
    affine[:3, :3] = torch.tensor([[0, 0, -1.5], [0, 2.0, 0], [3.0, 0, 0]])  # sagittal-like flip
    affine[:3, 3] = torch.tensor([30.0, -40.0, -20.0])
    point = affine @ torch.tensor([5.0, 10.0, 15.0, 1.0], dtype=torch.float64)
    grid = GridSpec((60.0, 60.0, 60.0), 1.0)
    target = resample.canonical_affine(grid, point[:3])
    out = resample.sample(source, resample.index_map(target, affine), grid.shape, 0.0)
    where = (out > 0).nonzero().double()
    weights = out[out > 0].double()
    centre = (where * weights[:, None]).sum(0) / weights.sum()
    assert centre.tolist() == pytest.approx([29.5, 29.5, 29.5], abs=0.05)


def test_intensity_is_robust_to_a_hot_voxel_and_refuses_a_flat_volume():
    volume = torch.linspace(100, 200, 1000).view(10, 10, 10)
    mask = torch.ones_like(volume, dtype=torch.bool)
    hot = volume.clone()
    hot[0, 0, 0] = 1e6
    difference = intensity.normalize_percentiles(hot, mask) - intensity.normalize_percentiles(
        volume, mask
    )
    assert difference.flatten()[1:].abs().max() < 0.01
    with pytest.raises(ValueError, match="one value"):
        intensity.normalize_percentiles(torch.ones(4, 4, 4), mask[:4, :4, :4])
    with pytest.raises(ValueError, match="empty"):
        intensity.normalize_percentiles(volume, torch.zeros_like(mask))


def test_the_window_is_linear_between_its_ends():
    hu = torch.tensor([-1350.0, -600.0, 150.0, 3000.0])
    assert intensity.window_hounsfield(hu, -600, 1500).tolist() == [0.0, 0.5, 1.0, 1.0]


def test_the_body_holds_its_cavities_and_not_the_air():
    volume = torch.rand(20, 40, 40) * 5
    volume[:, 8:32, 8:32] = 100.0
    volume[5:15, 14:26, 14:26] = 2.0  # a cavity
    mask = foreground.body_mask(volume)
    assert mask[10, 20, 20]
    assert mask[10, 9, 9]
    assert not mask[:, :4].any()
    affine = torch.eye(4, dtype=torch.float64)
    assert foreground.centroid_mm(mask, affine).tolist() == pytest.approx(
        [9.5, 19.5, 19.5], abs=0.6
    )


def test_calibration_finds_what_is_unusual_at_its_place():
    generator = torch.Generator().manual_seed(3)
    usual = torch.linspace(1, 10, 6 * 6 * 6).view(6, 6, 6)
    grids = usual + 0.1 * torch.randn(12, 6, 6, 6, generator=generator)
    grids[:, 0] = torch.nan
    location, scale = calibration.UsualScores.of(grids).of_all(ScoringSpec())
    study = usual.clone()
    study[3, 3, 3] += 2.0
    scored = calibration.calibrate(study, location, scale)
    assert scored.argmax() == 3 * 36 + 3 * 6 + 3
    assert study.argmax() != scored.argmax()
    assert location.isfinite().all()
    assert scale.min() > 0


def test_maps_interpolate_between_tokens_and_are_not_pulled_down_at_the_rim():
    grid = torch.full((4, 4, 4), torch.nan)
    grid[1:3, 1:3, 1:3] = 5.0
    up = anomaly_map.upsample(grid, 4)
    assert up.shape == (16, 16, 16)
    assert up[4:12, 4:12, 4:12].min() == pytest.approx(5.0)
    assert up[0, 0, 0] == 0.0
    mask = torch.zeros(16, 16, 16, dtype=torch.bool)
    mask[4:12, 4:12, 4:12] = True
    smooth = anomaly_map.smooth(up, mask, 1.5)
    assert smooth[mask].min() == pytest.approx(5.0, abs=1e-4)
    assert smooth[~mask].abs().max() == 0.0


def test_the_subject_score_is_the_mean_of_the_few_highest():
    grid = torch.arange(1000.0).view(10, 10, 10)
    grid[0] = torch.nan
    assert anomaly_map.subject_score(grid, 0.002) == pytest.approx(998.5)
    with pytest.raises(ValueError, match="no token score"):
        anomaly_map.subject_score(torch.full((2, 2, 2), math.nan))
