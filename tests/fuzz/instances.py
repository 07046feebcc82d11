"""Damaged instances through the inbox, and what it takes through the volume builder."""

import gc
import time
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import psutil
from pydicom import uid

from dicom_node import volume
from dicom_node.errors import InstanceRejected, NodeError, StoreError
from dicom_node.inbox import Inbox
from tests.fuzz.mutate import damaged
from tests.make.instances import Geometry, encode, make_enhanced, make_instance, received, write

LIMIT_S = 5.0
SYNTAXES = (
    uid.ExplicitVRLittleEndian,
    uid.ImplicitVRLittleEndian,
    uid.ExplicitVRBigEndian,
    uid.DeflatedExplicitVRLittleEndian,
    uid.RLELossless,
    uid.JPEGLSLossless,
    uid.JPEG2000Lossless,
)
MODALITIES = ("CT", "MR")
_SMALL = Geometry(rows=32, columns=32, n_slices=9)


@dataclass
class Found:
    """What came of a run."""

    outcomes: Counter = field(default_factory=Counter)
    #: (number of the seed, what it was) of each fault
    faults: list = field(default_factory=list)
    #: of the processor, where a machine has other work: an instance waits for nothing else
    slowest_s: float = 0.0
    #: once caches have filled, and at the end
    before_mib: float = 0.0
    after_mib: float = 0.0

    @property
    def grown_mib(self):
        return self.after_mib - self.before_mib


def memory_mib():
    """Resident memory of this process."""
    gc.collect()
    return psutil.Process().memory_info().rss / 2**20


def outside_of_inbox(folder):
    """A fault for each file below `folder` that is not in its inbox."""
    inbox = folder / "inbox"
    outside = [p for p in folder.rglob("*") if p.is_file() and inbox not in p.parents]
    return [(None, f"a file outside of the inbox: {path}") for path in outside]


def corpus():
    """Whole instances: (transfer syntax, instance, its bytes)."""
    made = [make_instance(modality, _SMALL) for modality in MODALITIES]
    made.append(make_enhanced("MR", _SMALL))
    return [(syntax, ds, encode(ds, syntax)) for syntax in SYNTAXES for ds in made]


def run(n, folder: Path, first_seed=0, build_every=10):
    """Damage and file `n` instances; every so many of those taken are built and decoded."""
    inbox, sources = Inbox(folder / "inbox", 0), corpus()
    rest = _rest_of_series(folder / "inbox" / "rest")
    others = [data for _, _, data in sources]
    found = Found()
    for number in range(first_seed, first_seed + n):
        rng = np.random.default_rng(number)
        syntax, ds, data = sources[int(rng.integers(len(sources)))]
        made = received(ds, syntax, damaged(data, rng, others))
        if rng.random() < 0.05:  # the request may lie as well
            made = replace(made, affected_sop_instance_uid=str(ds.SOPInstanceUID)[:-1] + "9")
        _one(number, inbox, made, folder, found, rest if number % build_every == 0 else None)
        if number - first_seed == n // 4:  # caches have filled by then
            found.before_mib = memory_mib()
    found.after_mib = memory_mib()
    found.faults += outside_of_inbox(folder)
    return found


def _rest_of_series(folder):
    """The other slices of the classic series, so that a damaged one has a volume to spoil."""
    return {
        modality: [
            write(make_instance(modality, _SMALL, index), folder / f"{modality}{index}.dcm")
            for index in range(1, _SMALL.n_slices)
        ]
        for modality in MODALITIES
    }


def _one(number, inbox, made, folder, found, rest):
    start = time.process_time()
    try:
        filed = inbox.file_instance(made)
        found.outcomes["filed"] += 1
        path = folder / "inbox" / filed.file_name
        if rest is not None:
            of_class = {uid.CTImageStorage: "CT", uid.MRImageStorage: "MR"}
            modality = of_class.get(filed.sop_class_uid)
            _build([path, *(rest[modality] if modality else [])], found)
        path.unlink()
    except InstanceRejected as error:
        found.outcomes[f"{type(error).__name__} 0x{error.status:04X}"] += 1
    except StoreError as error:
        found.faults.append((number, repr(error)))
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # noqa: BLE001 - a decoder's panic is no Exception
        found.faults.append((number, repr(error)))
    taken = time.process_time() - start
    found.slowest_s = max(found.slowest_s, taken)
    if taken > LIMIT_S:
        found.faults.append((number, f"took {taken:.1f} s"))


def _build(paths, found):
    """What the worker does with it: a volume, or a refusal by name."""
    try:
        volume.build(paths)
        found.outcomes["built"] += 1
    except NodeError as error:
        found.outcomes[f"built: {type(error).__name__}"] += 1
