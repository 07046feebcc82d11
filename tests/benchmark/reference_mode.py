"""One new 1 mm brain volume against 30 reference subjects: from voxels to the calibrated map.

As in a running node: the encoder is loaded, and the distances among the reference subjects and
their averages are kept. The first volume warms up and is not counted.
"""

import time
from itertools import pairwise
from uuid import uuid4

from dicom_node.scoring import score_against
from dicom_node.subject import make_subject, map_on_source
from tests.benchmark import heads
from tests.benchmark.measure import MIB, Peak, in_child, median, say, table

STAGES = ("encode", "keep", "score", "map")


def run(setting):
    names = in_child(heads.cohort, setting, "batch", 6 if setting.small else 30)
    in_child(keep_distances, setting, names)
    weights, shape, seconds, peaks = in_child(measured, setting, names)
    say(f"{' x '.join(map(str, shape))} voxels of 1 mm against {len(names)} subjects.\n")
    stages = [median(stage) for stage in zip(*seconds, strict=True)]
    whole = median(sum(one) for one in seconds)
    table([*STAGES, "all"], [f"{s:.1f} s" for s in (*stages, whole)])
    before, added, total = (max(sizes) for sizes in zip(*peaks, strict=True))
    header = ["weights", "held before the volume", "added by it", "whole process beside weights"]
    table(header, [f"{size:.0f} MiB" for size in (weights, before, added, total - weights)])


def keep_distances(setting, names):
    """What earlier studies have left on disk."""
    files, share = heads.files_of(setting, "batch"), heads.method(setting).scoring.nearest_share
    for name in names:
        files.averages(name, [other for other in names if other != name], share)


def measured(setting, names):
    """MiB of the weights, shape, and of each volume the seconds of its stages and MiB held."""
    encoder, method = heads.load_encoder(), heads.method(setting)
    weights = sum(p.nbytes for p in encoder._model.parameters()) / MIB
    seconds, peaks = [], []
    for number in range(setting.rounds + 1):
        voxels, affine = heads.volume(100 + number)
        with Peak() as peak:
            seconds.append(timed_stages(setting, voxels, affine, method, encoder, names))
        peaks.append((peak.before, peak.added, peak.total))
    return weights, tuple(voxels.shape), seconds[1:], peaks[1:]


def timed_stages(setting, voxels, affine, method, encoder, names):
    """Seconds of each stage of one new volume."""
    files, name, at = heads.files_of(setting, "batch"), uuid4().hex, [time.perf_counter()]
    subject = make_subject(voxels, affine, method, encoder)
    at.append(time.perf_counter())
    files.save_subject(name, subject)
    at.append(time.perf_counter())
    scores = score_against(files, name, names, method.scoring)
    at.append(time.perf_counter())
    map_on_source(scores.calibrated, subject, method, tuple(voxels.shape), affine)
    at.append(time.perf_counter())
    return [end - start for start, end in pairwise(at)]
