"""Time and memory of one more subject, against the number of those that are there already.

The batch grows by the subjects that are measured: each is compared with all before it and scored,
with every earlier one's average brought up to date by the last that came. Encoding is left out, for
it does not depend on the batch. The distances among the first subjects are drawn at random: they
are read, and what they are changes no time.
"""

import shutil
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from dicom_node.scoring import score_against
from tests.benchmark import heads
from tests.benchmark.measure import Peak, in_child, median, say, table, timed
from tests.benchmark.plot import draw

SIZES = (10, 30, 100, 300)
SMALL = (5, 10, 40)
PLOT = Path(__file__).with_name("growth.svg")


def run(setting):
    sizes = SMALL if setting.small else SIZES
    names = in_child(heads.cohort, setting, "growth", sizes[-1] + len(sizes) * (setting.rounds + 1))
    in_child(draw_distances, setting, names[: sizes[-1]])
    forget(setting, names, names[sizes[-1] :])
    rows, points = [], []
    for place, n in enumerate(sizes):
        new = names[sizes[-1] :][place :: len(sizes)]
        seconds, peak = in_child(grown, setting, names[:n], new)
        points += [(n + 1 + more, each) for more, each in enumerate(seconds)]
        rows.append((n, median(seconds), peak))
    slope, start = np.polyfit(*zip(*points, strict=True), 1)
    r_squared = np.corrcoef(*zip(*points, strict=True))[0, 1] ** 2
    table(
        ["subjects", "time", "peak memory"],
        *((n, f"{s:.2f} s", f"{m:.0f} MiB") for n, s, m in rows),
    )
    say(f"{start:.2f} s and {1000 * slope:.1f} ms per subject: R^2 {r_squared:.4f}.\n")
    plot = setting.folder / PLOT.name if setting.small else PLOT
    draw(plot, points, (slope, start), r_squared, [(n, m) for n, _, m in rows])
    say(f"Drawn: {plot}\n")


def draw_distances(setting, names):
    """Keep distances of every pair, as those that joined one after the other have left them."""
    files, generator = heads.files_of(setting, "growth"), torch.Generator().manual_seed(0)
    for name in names:
        tokens = files.load_tokens(name)
        for other in names:
            path = files.pair_file(name, other)
            if other == name or path.exists():
                continue
            path.parent.mkdir(parents=True, exist_ok=True)
            sizes = [scale.values.shape[:2] for scale in tokens]
            drawn = [torch.rand(*size, generator=generator) for size in sizes]
            save_file({str(scale): one for scale, one in enumerate(drawn)}, path)


def forget(setting, names, new):
    """Remove what an earlier run in the folder has measured of the new subjects."""
    files = heads.files_of(setting, "growth")
    for name in new:
        for other in names:
            files.pair_file(name, other).unlink(missing_ok=True)
            files.pair_file(other, name).unlink(missing_ok=True)
    shutil.rmtree(setting.folder / "growth" / "averages", ignore_errors=True)


def grown(setting, names, new):
    """Seconds of each of the new subjects but the first, and the peak MiB that they added."""
    files, spec = heads.files_of(setting, "growth"), heads.method(setting).scoring
    batch, seconds = list(names), []
    for name in batch:  # as the last score has left them
        files.averages(name, [other for other in batch if other != name], spec.nearest_share)
    with Peak() as peak:
        for name in new:
            seconds.append(timed(lambda name=name: score_against(files, name, batch, spec)))
            batch.append(name)
    return seconds[1:], peak.added
