"""Scoring a batch of 30 against a plain transcription of MuSc's formulas, on the same tokens.

Each way is its own process and reads the kept tokens: the plain one all of them, as its formulas
ask. It takes every subject by itself, so a third of the subjects is timed and counted three times.
Ours measures every pair of subjects, keeps the distances on disk and averages them, as the node
does. All of it is at two scales.
"""

import shutil

from dicom_node.anomaly.spec import ScoringSpec, SearchSpec
from tests.benchmark import heads
from tests.benchmark.measure import Peak, in_child, median, ratio, say, table, timed
from tests.oracle import musc

SHARE = ScoringSpec().nearest_share
#: of the subjects, in the plain way
TIMED = 3


def run(setting):
    names = in_child(heads.cohort, setting, "batch", 6 if setting.small else 30)
    ways = {
        "plain": (plain, None),
        "ours, exhaustive": (ours, SearchSpec()),
        "ours, coarse-to-fine": (ours, heads.method(setting).search),
    }
    found = {name: [] for name in ways}
    for _ in range(setting.rounds):
        for name, (way, search) in ways.items():
            found[name].append(in_child(way, setting, names, search))
    say(f"{len(names)} subjects.\n")
    rows = []
    for name, measured in found.items():
        seconds, peaks = zip(*measured, strict=True)
        slower, larger = zip(*found["plain"], strict=True)
        times = f"{median(seconds):.1f} s", f"{ratio(slower, seconds):.1f}"
        rows.append((name, *times, f"{median(peaks):.0f} MiB", f"1/{ratio(larger, peaks):.1f}"))
    table(["way", "time", "times faster", "peak memory", "of the plain way's"], *rows)


def plain(setting, names, _search):
    """Seconds and peak MiB of the formulas as published."""
    files = heads.files_of(setting, "batch")
    timed_ones = range(len(names) // TIMED)

    def work():
        scales = zip(*(files.load_tokens(name) for name in names), strict=True)
        for subjects in [[tokens.values for tokens in scale] for scale in scales]:
            for layer in range(subjects[0].shape[0]):
                of_layer = [values[layer] for values in subjects]
                for own in timed_ones:
                    musc.token_scores(of_layer, own, SHARE)

    with Peak() as peak:
        seconds = timed(work)
    return seconds * len(names) / len(timed_ones), peak.added


def ours(setting, names, search):
    """Seconds and peak MiB of the node's way, with nothing kept but the tokens."""
    files = heads.files_of(setting, "batch", search)
    shutil.rmtree(setting.folder / "batch" / "distances", ignore_errors=True)

    def work():
        for name in names:
            files.averages(name, [other for other in names if other != name], SHARE)

    with Peak() as peak:
        seconds = timed(work)
    return seconds, peak.added
