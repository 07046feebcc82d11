"""Slices -> patch features -> tokens: which place a token is of, what it sees, what is refused."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as nnf
from torch._dynamo.utils import counters

from dicom_node.anomaly import foreground, intensity, spec
from dicom_node.anomaly.encoder import Encoder
from dicom_node.anomaly.spec import ScaleSpec, TokenSpec
from dicom_node.anomaly.tokens import default_scales, projection_matrix, tokenize
from tests.make.encoders import COARSE, FINE, tiny_encoder, tiny_model

SPEC = TokenSpec((COARSE, FINE), projection_dim=16)
#: per scale: number of tokens, mean of their values, first values of the first one
EXPECTED = [
    (13, 0.014, [0.09, -0.26, -0.2, 0.1]),
    (37, 0.018, [0.03, -0.36, -0.3, -0.26]),
]


@pytest.fixture(scope="module")
def encoder():
    return tiny_encoder()


def cube(shape, centre, half, value=1.0):
    volume = torch.zeros(shape)
    low = [c - half for c in centre]
    volume[tuple(slice(a, a + 2 * half) for a in low)] = value
    return volume


# -- tokens --------------------------------------------------------------------------------------


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_bright_cube_stands_out_in_its_own_cell_on_each_axis_alone(encoder, axis):
    shape = (48, 64, 48)
    base = torch.rand(shape, generator=torch.Generator().manual_seed(1)) * 0.1
    changed = (base + cube(shape, (20, 44, 12), 4)).clamp(0, 1)  # cells (1, 2, 0) and (2, 5, 1)
    mask = torch.ones(shape, dtype=torch.bool)
    one = TokenSpec((COARSE, FINE), axes=(axis,), projection_dim=0)
    before, after = (tokenize(v, mask, encoder, one) for v in (base, changed))
    assert [tokens.grid_shape for tokens in before] == [(3, 4, 3), (6, 8, 6)]
    for without, within, expected in zip(before, after, [(1, 2, 0), (2, 5, 1)], strict=True):
        moved = (within.values - without.values).norm(dim=-1).mean(0)
        cell = np.unravel_index(int(within.index[moved.argmax()]), within.grid_shape)
        assert tuple(map(int, cell)) == expected


def test_tokens_are_made_of_foreground_alone_and_have_the_stated_shape(encoder):
    volume = torch.rand(32, 32, 48)
    mask = torch.zeros(32, 32, 48, dtype=torch.bool)
    mask[8:24, 8:16, 16:40] = True
    coarse, fine = tokenize(volume * mask, mask, encoder, SPEC)
    assert fine.values.shape == (2, 2 * 1 * 3, 3 * 16)
    assert fine.grid_shape == (4, 4, 6)
    assert fine.index.tolist() == [
        d * 24 + h * 6 + w for d in (1, 2) for h in (1,) for w in (2, 3, 4)
    ]
    # an eighth of the cells' voxels and less: they are kept for the fine tokens in them
    assert coarse.values.shape == (1, 4, 3 * 16)
    assert coarse.grid_shape == (2, 2, 3)
    assert coarse.index.tolist() == [1, 2, 7, 8]


def test_empty_slices_are_not_encoded(encoder, monkeypatch):
    seen = []
    original = encoder.encode
    monkeypatch.setattr(
        encoder, "encode", lambda s, *a, **k: seen.append(len(s)) or original(s, *a, **k)
    )
    mask = torch.zeros(48, 48, 48, dtype=torch.bool)
    mask[8:16, 16:40, 8:24] = True
    tokenize(torch.rand(48, 48, 48) * mask, mask, encoder, SPEC)
    # of each axis the cells with foreground: four slices for a coarse one, one for a fine one
    assert seen == [4, 8, 8, 1, 3, 2]


def test_a_grid_of_one_coarse_token_and_one_voxel_of_foreground_is_enough(encoder):
    mask = torch.zeros(16, 16, 16, dtype=torch.bool)
    mask[9, 2, 15] = True
    volume = mask.float()
    coarse, fine = tokenize(volume, mask, encoder, replace(SPEC, min_foreground=0.0))
    assert (coarse.index.tolist(), fine.index.tolist()) == ([0], [5])
    with pytest.raises(ValueError, match="no token holds enough foreground"):
        tokenize(volume, mask, encoder, SPEC)


@pytest.mark.parametrize(
    ("shape", "said"),
    [
        ((32, 32, 32), "no token holds enough foreground"),
        ((32, 33, 32), r"\(32, 33, 32\) is not a multiple of the token pitch 16"),
        ((32, 40, 32), r"\(32, 40, 32\) is not a multiple of the token pitch 16"),
        ((0, 32, 32), r"\(0, 32, 32\) is not a multiple of the token pitch 16"),
    ],
)
def test_no_foreground_or_a_grid_that_does_not_fit_is_an_error(encoder, shape, said):
    volume = torch.zeros(shape)
    with pytest.raises(ValueError, match=said):
        tokenize(volume, volume > 0, encoder, SPEC)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_a_voxel_that_is_no_number_is_refused_wherever_it_lies(encoder, bad):
    volume = torch.rand(16, 16, 32)
    mask = torch.ones(16, 16, 32, dtype=torch.bool)
    mask[:, :, 16:] = False
    volume[3, 4, 20] = bad
    with pytest.raises(ValueError, match="the volume holds NaN or infinite voxels"):
        tokenize(volume, mask, encoder, SPEC)


@pytest.mark.parametrize(
    ("upsamplings", "said"),
    [
        ((2, 1), r"token edges \(8, 16\) do not nest"),
        ((2, 2), r"token edges \(8, 8\) do not nest"),
        ((3,), "upsampling 3 must divide the patch size 16"),
    ],
)
def test_scales_that_do_not_fit_each_other_or_the_patch_are_refused(encoder, upsamplings, said):
    misfit = TokenSpec(tuple(ScaleSpec(upsampling, 1, (0,)) for upsampling in upsamplings))
    volume = torch.rand(16, 16, 16)
    with pytest.raises(ValueError, match=said):
        tokenize(volume, volume >= 0, encoder, misfit)


def test_edges_nest_where_each_is_a_multiple_of_the_next():
    scales = (ScaleSpec(2, 1, (0,)), ScaleSpec(3, 1, (0,)))
    with pytest.raises(ValueError, match=r"\(6, 4\) do not nest"):
        TokenSpec(scales).pitches(12)
    assert TokenSpec((COARSE, FINE, ScaleSpec(4, 1, (0,)))).pitches(16) == (16, 8, 4)


def test_progress_ends_with_the_last_stack_of_slices(encoder):
    told = []
    volume = torch.rand(16, 16, 16)
    tokenize(volume, volume >= 0, encoder, SPEC, told.append)
    assert told == pytest.approx([number / 6 for number in range(1, 7)])


def test_tokens_are_fp32_whatever_the_encoder_computes_in():
    half = Encoder(tiny_encoder().spec, tiny_model(), "cpu", torch.bfloat16)
    volume = torch.rand(16, 16, 16, generator=torch.Generator().manual_seed(1))
    rounded = tokenize(volume, volume >= 0, half, SPEC)
    exact = tokenize(volume, volume >= 0, tiny_encoder(), SPEC)
    for one, other in zip(rounded, exact, strict=True):
        assert one.values.dtype is torch.float32
        torch.testing.assert_close(one.values, other.values, atol=0.05, rtol=0)


@pytest.mark.parametrize(("whole", "same"), [(True, False), (False, True)])
def test_the_background_is_seen_in_whole_slices_alone(encoder, whole, same):
    shape = (16, 32, 32)
    mask = torch.zeros(shape, dtype=torch.bool)
    mask[:, :16, :16] = True
    volume = torch.rand(shape, generator=torch.Generator().manual_seed(4)) * mask
    elsewhere = volume + cube(shape, (8, 25, 25), 5)  # not beside the mask, which is interpolated
    one = replace(SPEC, axes=(0,), whole_slices=whole)
    before, after = (tokenize(v, mask, encoder, one) for v in (volume, elsewhere))
    for scale in range(2):
        assert torch.equal(before[scale].index, after[scale].index)
        close = torch.allclose(before[scale].values, after[scale].values, atol=1e-5)
        assert close is same


@pytest.mark.parametrize(
    ("layers", "early"), [((8,), 2), ((5, 8), 1), ((11,), 3), ((0,), 0), ((2,), 0)]
)
def test_by_default_an_early_block_sees_large_things_and_the_late_ones_small_ones(layers, early):
    coarse, fine = default_scales(layers)
    assert (coarse.upsampling, coarse.slices_per_token, coarse.layers) == (1, 4, (early,))
    assert (fine.upsampling, fine.slices_per_token, fine.layers) == (2, 1, layers)
    assert TokenSpec((coarse, fine)).pitches(14) == (14, 7)


def test_projection_keeps_distances_on_average_and_is_seeded():
    matrix = projection_matrix(384, 128, 0)
    assert torch.equal(matrix, projection_matrix(384, 128, 0))
    assert not torch.equal(matrix, projection_matrix(384, 128, 1))
    vectors = torch.nn.functional.normalize(torch.randn(200, 384), dim=1)
    assert (vectors @ matrix).norm(dim=1).mean() == pytest.approx(1.0, abs=0.05)


def test_all_axes_and_scales_are_projected_by_one_matrix(encoder):
    volume = torch.rand(16, 32, 16, generator=torch.Generator().manual_seed(9))
    plain = tokenize(volume, volume >= 0, encoder, replace(SPEC, projection_dim=0))
    matrix = projection_matrix(48, 16, SPEC.seed)
    for whole, projected in zip(plain, tokenize(volume, volume >= 0, encoder, SPEC), strict=True):
        expected = (whole.values.unflatten(-1, (3, 48)) @ matrix).flatten(-2)
        torch.testing.assert_close(projected.values, expected, atol=1e-5, rtol=1e-4)


def test_tokens_are_those_of_their_version(encoder):
    """Other numbers here mean that batches of older nodes do not fit: raise TOKEN_VERSION."""
    depth, height, width = torch.meshgrid(*[torch.arange(n) for n in (32, 48, 64)], indexing="ij")
    wave = torch.sin(depth / 5) + torch.cos(height / 7) + torch.sin(width / 3)
    inside = (depth - 16) ** 2 + (height - 20) ** 2 + (width - 24) ** 2 < 15**2
    volume = torch.where(inside, 300 + 100 * wave, torch.zeros(()))
    mask = foreground.body_mask(volume)
    made = tokenize(intensity.normalize_percentiles(volume, mask), mask, encoder, SPEC)
    found = []
    for tokens in made:
        first = [round(v, 2) for v in tokens.values[0, 0, :4].tolist()]
        found.append((len(tokens), round(float(tokens.values.mean()), 3), first))
    assert (spec.TOKEN_VERSION, found) == (2, EXPECTED)


# -- the encoder ---------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_patches_of_the_background_are_neither_encoded_nor_seen(encoder, batch):
    generator = torch.Generator().manual_seed(5)
    pictures = torch.rand(5, 32, 48, generator=generator)
    kept = torch.rand(5, 4, 6, generator=generator) > 0.5
    kept[3] = False
    one_by_one = [
        encoder.encode(p[None], k[None], FINE) for p, k in zip(pictures, kept, strict=True)
    ]
    encoded = encoder.encode(pictures, kept, FINE, batch=batch)
    assert encoded.shape == (2, 5, 4, 6, 48)
    torch.testing.assert_close(encoded, torch.cat(one_by_one, 1), atol=1e-5, rtol=1e-4)
    assert (encoded[:, ~kept] == 0).all()
    assert (encoded[:, kept].norm(dim=-1) > 0).all()
    background = (~kept).repeat_interleave(8, 1).repeat_interleave(8, 2)
    # away from the patches' edges, which the enlargement blurs
    inner = background & (nnf.avg_pool2d(background[:, None].float(), 3, 1, 1)[:, 0] == 1)
    changed = torch.where(inner, torch.zeros_like(pictures), pictures)
    torch.testing.assert_close(encoder.encode(changed, kept, FINE), encoded)


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
    found = encoder.encode(pictures, everything, ScaleSpec(1, 1, (0, 1))).flatten(2, 3)
    torch.testing.assert_close(found, torch.stack(list(expected)).detach(), atol=1e-5, rtol=1e-4)


def test_a_layer_is_the_same_whatever_else_is_asked_for(encoder):
    pictures = torch.rand(2, 32, 32, generator=torch.Generator().manual_seed(7))
    kept = torch.ones(2, 2, 2, dtype=torch.bool)
    both = encoder.encode(pictures, kept, ScaleSpec(1, 1, (0, 1)))
    for layer in (0, 1):
        alone = encoder.encode(pictures, kept, ScaleSpec(1, 1, (layer,)))
        torch.testing.assert_close(alone[0], both[layer])


def test_blocks_after_the_last_wanted_one_are_not_run(encoder, monkeypatch):
    """The coarse scale wants an early block: the late ones would cost three times as much."""

    def refuse(*_):
        raise AssertionError("run")

    monkeypatch.setattr(encoder._model.blocks[1], "forward", refuse)
    pictures, kept = torch.rand(1, 32, 32), torch.ones(1, 2, 2, dtype=torch.bool)
    assert encoder.encode(pictures, kept, ScaleSpec(1, 1, (0,))).shape == (1, 1, 2, 2, 48)
    with pytest.raises(AssertionError, match="run"):
        encoder.encode(pictures, kept, ScaleSpec(1, 1, (1,)))


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")  # of torch's own compiler
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_compiled_blocks_give_the_same_features_and_are_not_compiled_for_each_length():
    plain, compiled = tiny_encoder(), tiny_encoder()
    compiled.compile()
    pictures = torch.rand(6, 64, 48, generator=torch.Generator().manual_seed(8))
    kept = torch.ones(6, 8, 6, dtype=torch.bool)
    for at in range(6):
        kept[at, : at + 1, : 6 - at] = False
    before = counters["stats"]["unique_graphs"]
    for batch in (1, 2, 6):
        expected = plain.encode(pictures, kept, FINE, batch=batch)
        found = compiled.encode(pictures, kept, FINE, batch=batch)
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
    assert counters["stats"]["unique_graphs"] - before <= 2, "batches of 1 and of more"
