"""The numerics: geometry of slices and tokens, calibration, maps."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as nnf

from dicom_node.anomaly import (
    anomaly_map,
    calibration,
    foreground,
    intensity,
    resample,
    slices,
    spec,
)
from dicom_node.anomaly.spec import GridSpec, TokenSpec
from dicom_node.anomaly.tokens import projection_matrix, tokenize
from tests.make.encoders import tiny_encoder, tiny_model

EXPECTED = (37, 0.018, [0.03, -0.36, -0.3, -0.27])
SPEC = TokenSpec(upsampling=2, projection_dim=16)  # patch 16: tokens of 8 voxels


@pytest.fixture(scope="module")
def encoder():
    return tiny_encoder()


def cube(shape, centre, half, value=1.0):
    volume = torch.zeros(shape)
    low = [c - half for c in centre]
    volume[tuple(slice(a, a + 2 * half) for a in low)] = value
    return volume


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_bright_cube_stands_out_in_its_own_cell_on_each_axis_alone(encoder, axis):
    shape = (48, 64, 40)
    base = torch.rand(shape, generator=torch.Generator().manual_seed(1)) * 0.1
    changed = (base + cube(shape, (20, 44, 12), 4)).clamp(0, 1)  # cell (2, 5, 1)
    mask = torch.ones(shape, dtype=torch.bool)
    spec = TokenSpec(axes=(axis,), upsampling=2, projection_dim=0)
    before, after = (tokenize(v, mask, encoder, spec) for v in (base, changed))
    moved = (after.values - before.values).norm(dim=-1).mean(0)
    assert before.grid_shape == (6, 8, 5)
    cell = np.unravel_index(int(after.index[moved.argmax()]), after.grid_shape)
    assert tuple(map(int, cell)) == (2, 5, 1)


def test_tokens_are_made_of_foreground_alone_and_have_the_stated_shape(encoder):
    volume = torch.rand(32, 32, 48)
    mask = torch.zeros(32, 32, 48, dtype=torch.bool)
    mask[8:24, 8:16, 16:40] = True
    made = tokenize(volume * mask, mask, encoder, SPEC)
    assert made.values.shape == (2, 2 * 1 * 3, 3 * 16)
    assert made.grid_shape == (4, 4, 6)
    assert made.index.tolist() == [
        d * 24 + h * 6 + w for d in (1, 2) for h in (1,) for w in (2, 3, 4)
    ]


def test_empty_slices_are_not_encoded(encoder, monkeypatch):
    seen = []
    original = encoder.encode
    monkeypatch.setattr(
        encoder, "encode", lambda s, *a, **k: seen.append(len(s)) or original(s, *a, **k)
    )
    mask = torch.zeros(48, 48, 48, dtype=torch.bool)
    mask[8:16, 16:40, 8:24] = True
    tokenize(torch.rand(48, 48, 48) * mask, mask, encoder, SPEC)
    assert seen == [1, 3, 2]


@pytest.mark.parametrize("bad", [torch.zeros(32, 32, 32), torch.zeros(32, 33, 32)])
def test_no_foreground_or_a_grid_that_does_not_fit_is_an_error(encoder, bad):
    with pytest.raises(ValueError, match=r"foreground|multiple"):
        tokenize(bad, bad > 0, encoder, SPEC)


def test_depth_pooling_takes_slices_evenly_inside_each_token():
    assert slices.slice_positions(2, 7, 1).tolist() == [[3.0], [10.0]]
    assert slices.slice_positions(1, 8, 2).tolist() == [[1.5, 5.5]]
    ramp = torch.arange(10.0)[:, None, None].expand(10, 2, 2)
    assert slices.take_slices(ramp, 0, torch.tensor([1.5, 9.4]))[:, 0, 0].tolist() == [1.5, 9.0]


def test_projection_keeps_distances_on_average_and_is_seeded():
    matrix = projection_matrix(384, 128, 0)
    assert torch.equal(matrix, projection_matrix(384, 128, 0))
    assert not torch.equal(matrix, projection_matrix(384, 128, 1))
    vectors = torch.nn.functional.normalize(torch.randn(200, 384), dim=1)
    assert (vectors @ matrix).norm(dim=1).mean() == pytest.approx(1.0, abs=0.05)


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
    location, scale = calibration.location_and_scale(grids, 0.5)
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


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_patches_of_the_background_are_neither_encoded_nor_seen(encoder, batch):
    generator = torch.Generator().manual_seed(5)
    pictures = torch.rand(5, 32, 48, generator=generator)
    kept = torch.rand(5, 4, 6, generator=generator) > 0.5
    kept[3] = False
    one_by_one = [encoder.encode(p[None], k[None], 2) for p, k in zip(pictures, kept, strict=True)]
    encoded = encoder.encode(pictures, kept, 2, batch=batch)
    assert encoded.shape == (2, 5, 4, 6, 48)
    torch.testing.assert_close(encoded, torch.cat(one_by_one, 1), atol=1e-5, rtol=1e-4)
    assert (encoded[:, ~kept] == 0).all()
    assert (encoded[:, kept].norm(dim=-1) > 0).all()
    background = (~kept).repeat_interleave(8, 1).repeat_interleave(8, 2)
    # away from the patches' edges, which the enlargement blurs
    inner = background & (nnf.avg_pool2d(background[:, None].float(), 3, 1, 1)[:, 0] == 1)
    changed = torch.where(inner, torch.zeros_like(pictures), pictures)
    torch.testing.assert_close(encoder.encode(changed, kept, 2), encoded)


def test_with_all_patches_kept_the_features_are_timms_own(encoder):
    pictures = torch.rand(2, 64, 48, generator=torch.Generator().manual_seed(6))
    everything = torch.ones(2, 4, 3, dtype=torch.bool)
    expected = (
        tiny_model()
        .eval()
        .forward_intermediates(
            (pictures[:, None].expand(-1, 3, -1, -1) - 0.5) / 0.5,
            indices=[0, 1],
            norm=True,
            output_fmt="NLC",
            intermediates_only=True,
        )
    )
    found = encoder.encode(pictures, everything, 1).flatten(2, 3)
    torch.testing.assert_close(found, torch.stack(list(expected)).detach(), atol=1e-5, rtol=1e-4)


def test_tokens_are_those_of_their_version(encoder):
    """Other numbers here mean that batches of older nodes do not fit: raise TOKEN_VERSION."""
    depth, height, width = torch.meshgrid(*[torch.arange(n) for n in (32, 40, 48)], indexing="ij")
    wave = torch.sin(depth / 5) + torch.cos(height / 7) + torch.sin(width / 3)
    inside = (depth - 16) ** 2 + (height - 20) ** 2 + (width - 24) ** 2 < 15**2
    volume = torch.where(inside, 300 + 100 * wave, torch.zeros(()))
    mask = foreground.body_mask(volume)
    made = tokenize(intensity.normalize_percentiles(volume, mask), mask, encoder, SPEC)
    first = made.values[0, 0, :4].tolist()
    found = (len(made), round(float(made.values.mean()), 3), [round(v, 2) for v in first])
    assert (spec.TOKEN_VERSION, found) == (1, EXPECTED)
