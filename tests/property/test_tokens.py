"""Tokens of two scales on random masks and grids that are no cubes."""

import functools
from itertools import product

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dicom_node.anomaly.spec import TokenSpec
from dicom_node.anomaly.tokens import axis_features, kept_tokens, tokenize
from tests.make.encoders import COARSE, FINE, tiny_encoder

encoder = functools.cache(tiny_encoder)
seeds = st.integers(0, 99_999)
#: sides in coarse tokens
sides = st.tuples(*[st.integers(1, 3)] * 3)


def blobs(seed, shape):
    """Smooth random foreground: about half of the voxels, at least the first one."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, 1, 4, 4, 4, generator=generator)
    mask = torch.nn.functional.interpolate(coarse, shape, mode="trilinear")[0, 0] > 0.5
    mask[0, 0, 0] = True
    return mask


def shares(mask, pitch):
    """Share of foreground in each cube, one cube after the other."""
    found = {}
    for place in product(*(range(side // pitch) for side in mask.shape)):
        cube = mask[tuple(slice(at * pitch, (at + 1) * pitch) for at in place)]
        found[place] = int(cube.sum()) / pitch**3
    return found


@settings(deadline=None, max_examples=60)
@given(
    seeds, sides, st.sampled_from([(8, 4), (6, 2), (4,), (8, 4, 2)]), st.sampled_from([0.0, 0.4, 1])
)
def test_the_kept_are_those_with_enough_foreground_and_the_cells_around_them(
    seed, shape, pitches, least
):
    mask = blobs(seed, [side * pitches[0] for side in shape])
    finer, edge = set(), 1
    for pitch, grid in reversed(list(zip(pitches, kept_tokens(mask, pitches, least), strict=True))):
        expected = {cube for cube, share in shares(mask, pitch).items() if share >= (least or 1e-9)}
        expected |= {tuple(at * edge // pitch for at in place) for place in finer}
        finer, edge = set(map(tuple, grid.nonzero().tolist())), pitch
        assert finer == expected


@settings(deadline=None, max_examples=15)
@given(seeds, st.tuples(*[st.integers(1, 2)] * 3), st.sampled_from([0.0, 0.25]))
def test_every_fine_token_lies_in_a_coarse_one(seed, shape, least):
    mask = blobs(seed, [side * 16 for side in shape])
    volume = torch.rand(mask.shape, generator=torch.Generator().manual_seed(seed))
    spec = TokenSpec((COARSE, FINE), projection_dim=3, min_foreground=least)
    coarse, fine = tokenize(volume * mask, mask, encoder(), spec)
    assert coarse.grid_shape == shape
    assert fine.grid_shape == tuple(2 * side for side in shape)
    assert coarse.values.shape == (1, len(coarse), 9)
    assert fine.values.shape == (2, len(fine), 9)
    cells = set(coarse.index.tolist())
    for flat in fine.index.tolist():
        depth, height, width = (int(at) for at in np.unravel_index(flat, fine.grid_shape))
        parent = ((depth // 2) * shape[1] + height // 2) * shape[2] + width // 2
        assert parent in cells
    assert all(tokens.values.isfinite().all() for tokens in (coarse, fine))


@settings(deadline=None, max_examples=10)
@given(seeds, st.sampled_from([0, 1, 2]), st.sampled_from([COARSE, FINE]))
def test_whole_slices_are_encoded_with_their_background(seed, axis, scale):
    """Slice by slice, the features are those of the full picture, whatever is foreground."""
    shape, pitch = (32, 48, 16), 16 // scale.upsampling
    mask = blobs(seed, shape)
    volume = torch.rand(shape, generator=torch.Generator().manual_seed(seed))
    (kept,) = kept_tokens(mask, [pitch], 0.25)
    found = axis_features(volume, kept, axis, encoder(), scale, whole_slices=True).movedim(
        axis + 1, 1
    )
    for token in kept.movedim(axis, 0).flatten(1).any(1).nonzero()[:, 0].tolist():
        within = [
            (number + 0.5) / scale.slices_per_token * pitch - 0.5
            for number in range(scale.slices_per_token)
        ]
        pictures = [between(volume.movedim(axis, 0), token * pitch + at) for at in within]
        everything = torch.ones(1, *kept.movedim(axis, 0).shape[1:], dtype=torch.bool)
        features = [encoder().encode(p[None], everything, scale)[:, 0] for p in pictures]
        mean = torch.stack(features).mean(0)
        expected = mean / mean.norm(dim=-1, keepdim=True)
        torch.testing.assert_close(found[:, token], expected, atol=1e-4, rtol=1e-3)


def between(slices, at):
    """The picture at a depth between two slices."""
    below = int(at)
    above = min(below + 1, len(slices) - 1)
    return slices[below] + (slices[above] - slices[below]) * (at - below)
