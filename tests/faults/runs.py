"""Seeded runs: a few lives with a fault each, then one that may end; and what came of them."""

import tempfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from tests.faults.inject import KINDS, Effects
from tests.faults.judge import Witness, violations
from tests.faults.life import live
from tests.faults.world import N_SERIES, World

#: lives with a fault in one run: the later ones meet what the earlier ones left
_MOST_FAULTS = 3
#: an undisturbed life after the last fault may find jobs that wait for their next attempt
_MOST_LIVES = 6


@dataclass
class Found:
    """What all runs of a kind came to."""

    injected: Counter = field(default_factory=Counter)
    acknowledged: int = 0
    sent_again: int = 0
    faults: list[str] = field(default_factory=list)


def witness_of(world: World) -> Witness:
    """Return what the sender and the archive of a world remember."""
    sent = {one.uid: one.request.encoded for one in (*world.first, *world.late)}
    known = {uid: sent[uid] for uid in world.acknowledged()}
    return Witness(known, world.archived(), N_SERIES)


def wrongs(world: World) -> list[str]:
    """Return what is not as it must be at the end."""
    witness = witness_of(world)
    sent = {one.uid for one in (*world.first, *world.late)}
    missing = [f"never acknowledged: {uid}" for uid in sent - witness.acknowledged.keys()]
    return missing + violations(world.config, witness)


def extent(kind: str, weights: Path) -> int:
    """Return how many effects of a kind an undisturbed life has."""
    with tempfile.TemporaryDirectory() as folder:
        world = World(Path(folder), weights, seed=0)
        assert live(world, 0, KINDS[kind]()) == "done", world.notes()
        assert wrongs(world) == []
        return int(world.notes()[-1].split()[1])


def run(kind: str, seed: int, n_effects: int, folder: Path, weights: Path, found: Found) -> None:
    """One run of one seed; adds to `found`."""
    draw = np.random.default_rng([*kind.encode(), seed])
    world = World(folder, weights, seed)
    for number in range(draw.integers(1, _MOST_FAULTS + 1)):
        # a later life has less left to do
        ended = live(world, number, KINDS[kind](int(draw.integers(1, n_effects >> number))))
        found.injected[f"{kind}: {ended}"] += 1
    for later in range(number + 1, number + 1 + _MOST_LIVES):
        done = live(world, later, Effects()) == "done"
        wrong = wrongs(world) if done else ["the node does not run"]
        if not wrong:
            break
    found.faults += [f"{kind} seed {seed}: {text}" for text in wrong]
    found.acknowledged += len(world.acknowledged())
    archived = world.archived()
    found.sent_again += len(archived) - len(set(archived))
