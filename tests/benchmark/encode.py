"""Encoding one head, against the operations of its patches at the rate of plain products.

A ViT block of width D costs 24 D^2 per token (query, key, value and projection 4 D^2
multiply-adds, the two layers of the MLP 8 D^2) and 4 T^2 D per sequence of T tokens (the two
products of attention); a multiply-add is two operations. Only the blocks that are run are counted,
and nothing else: no patch embedding, norm, softmax or GELU, no enlarging, pooling or projection.
"""

import time

import torch

from dicom_node.anomaly.tokens import kept_tokens, tokenize
from dicom_node.subject import make_canonical
from tests.benchmark import heads
from tests.benchmark.measure import Gemm, in_child, median, say, table


def run(setting):
    dtype, rates, seconds, floors = in_child(measured, setting)
    speeds = ", ".join(f"{name} {rate / 1e9:.1f} GFLOP/s" for name, rate in rates.items())
    say(f"The encoder computes in {dtype}. Square products: {speeds}.\n")
    rows = [["time", *(f"{s:.2f} s" for s in seconds)]]
    for what, flops in floors.items():
        rows.append([f"operations of {what}", *(f"{f / 1e9:.0f} GFLOP" for f in flops)])
        for name, rate in rates.items():
            shares = [f / rate / s for f, s in zip(flops, seconds, strict=True)]
            rows.append([f"their time at the rate of {name} / time", *(f"{s:.0%}" for s in shares)])
    table(["one head", "coarse", "fine", "both scales"], *rows)


def measured(setting):
    """The encoder's dtype, rates by dtype, seconds and operations per scale and in all."""
    encoder, method = heads.load_encoder(), heads.method(setting)
    placed = make_canonical(*heads.volume(0), method)
    rates = {"float32": Gemm(), "bfloat16": Gemm(torch.bfloat16)}
    rounds = [tokenized(placed, encoder, method.tokens, rates) for _ in range(setting.rounds + 1)]
    seconds = [median(scale) for scale in zip(*rounds[1:], strict=True)]  # first: warm
    floors = {
        "kept patches": operations(placed.foreground, encoder, method.tokens, whole=False),
        "whole slices with foreground": operations(
            placed.foreground, encoder, method.tokens, whole=True
        ),
    }
    dtype = str(encoder.dtype).removeprefix("torch.")
    return dtype, {name: gemm.rate() for name, gemm in rates.items()}, with_sum(seconds), floors


def tokenized(placed, encoder, spec, rates):
    """Seconds of each scale; the yardsticks are measured after each axis, outside of them."""
    parts, started = [], time.perf_counter()

    def after_an_axis(_share):
        nonlocal started
        parts.append(time.perf_counter() - started)
        for gemm in rates.values():
            gemm.measure(0.3)
        started = time.perf_counter()

    tokenize(placed.voxels, placed.foreground, encoder, spec, after_an_axis)
    n_axes = len(spec.axes)
    return [sum(parts[at : at + n_axes]) for at in range(0, len(parts), n_axes)]


def operations(foreground, encoder, spec, *, whole):
    """Floating-point operations of each scale and in all: of the kept patches, or all of a slice.

    Slices are those that are encoded: some per token along an axis, where it has a token.
    """
    found = []
    pitches = spec.pitches(encoder.spec.patch_size)
    kept = kept_tokens(foreground, pitches, spec.min_foreground)
    for scale, here in zip(spec.scales, kept, strict=True):
        n_blocks, flops = max(scale.layers) + 1, 0
        for axis in spec.axes:
            stack = here.movedim(axis, 0).flatten(1)  # slices of tokens, patches
            for n_kept in stack.sum(1)[stack.any(1)].tolist():
                n_tokens = (stack.shape[1] if whole else n_kept) + 1  # the class token
                per_block = 24 * encoder.width**2 * n_tokens + 4 * n_tokens**2 * encoder.width
                flops += scale.slices_per_token * n_blocks * per_block
        found.append(flops)
    return with_sum(found)


def with_sum(values):
    return [*values, sum(values)]
