"""Matching two subjects: the exhaustive product against its yardstick, then what it can be spared.

The tokens are those of real heads. One head is compared with the others, as a new study is.
"""

import torch
from scipy.stats import spearmanr

from dicom_node.anomaly.coarse_to_fine import work_share
from dicom_node.anomaly.matching import blocks_of, match, near_cells
from dicom_node.anomaly.similarity import interval_average
from dicom_node.anomaly.spec import ALIGNED_SEARCH, FREE_SEARCH, ScoringSpec, SearchSpec
from tests.benchmark import heads
from tests.benchmark.measure import Gemm, in_child, interleaved, median, ratio, say, table

#: coarse cells searched, and radius of the window about the own place (-1: subjects in no space)
CELLS = (1, 4, 8, 16, 32)
WINDOWS = (-1, 0, 1, 2)
EXHAUSTIVE = SearchSpec()
NAMED = {ALIGNED_SEARCH: "mr", FREE_SEARCH: "ct"}


def run(setting):
    rate, exhaustive, curve = in_child(measured, setting)
    say(f"Square products of float32: {rate / 1e9:.1f} GFLOP/s.\n")
    table(["exhaustive", "tokens", "dimensions", "time", "share of that rate"], *exhaustive)
    say("Coarse-to-fine over exhaustive: one head against the others, fine tokens.\n")
    header = ["cells", "window", "preset", "multiply-adds", "Spearman of the scores"]
    table([*header, "nearest found", "time"], *curve)


def measured(setting):
    files, names = heads.encoded(setting)
    own, *others = (files.load_tokens(name) for name in names)
    gemm = Gemm()
    scales = zip(("coarse", "fine"), own, others[0], strict=True)
    exhaustive = [efficiency(*scale, gemm, setting.rounds) for scale in scales]
    whole = fine_distances(own, others, EXHAUSTIVE)
    curve = [
        restricted(own, others, SearchSpec(n_cells, window), whole, setting.rounds)
        for window in WINDOWS
        for n_cells in CELLS
    ]
    return gemm.rate(), exhaustive, curve


def efficiency(name, queries, keys, gemm, rounds):
    """Both directions come of one product: its operations over the time, against the rate."""
    one, other = queries.values[0], keys.values[0]
    flops = 2 * one.shape[0] * one.shape[1] * other.shape[0]
    n = max(1, round(4 * gemm.flops / flops))
    times = interleaved(
        5 * rounds,
        gemm=lambda: [gemm() for _ in range(4)],
        ours=lambda: [match((queries,), (keys,), EXHAUSTIVE) for _ in range(n)],
    )
    share = ratio(times["gemm"], times["ours"]) * n * flops / (4 * gemm.flops)
    size = f"{one.shape[0]} x {other.shape[0]}"
    return name, size, one.shape[1], f"{median(times['ours']) / n:.3f} s", f"{share:.0%}"


def fine_distances(own, others, search):
    return torch.stack([match(own, other, search)[0][-1] for other in others])


def restricted(own, others, search, whole, rounds):
    """What one setting spares, and what it costs: a row of the curve."""
    found = fine_distances(own, others, search)
    share = ScoringSpec().nearest_share
    scores = [interval_average(distances, share)[0] for distances in (whole, found)]
    times = interleaved(
        rounds,
        exhaustive=lambda: fine_distances(own, others[:2], EXHAUSTIVE),
        ours=lambda: fine_distances(own, others[:2], search),
    )
    return (
        search.n_cells,
        search.window_cells,
        NAMED.get(search, ""),
        f"{sum(work(own, other, search) for other in others) / len(others):.1%}",
        f"{spearmanr(*scores).statistic:.4f}",
        # to the rounding of the distances
        f"{(found <= whole + 1e-4).float().mean():.1%}",
        f"{ratio(times['ours'], times['exhaustive']):.1%}",
    )


def work(own, other, search):
    near = near_cells(own[-2], other[-2], search)
    cells = [blocks_of(side[-1], side[-2]).cells for side in (own, other)]
    return work_share(near, *cells)
