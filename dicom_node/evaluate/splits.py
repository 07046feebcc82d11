"""Who is tested and who serves as the reference: folds over patients, batches of exact shares.

A test subject is never in its own batch, nor is its patient. Batches of one draw and fold are
nested: the larger one holds the smaller, and another share of abnormal subjects changes only those
that it must. What differs between two settings is then the setting, and less the luck of the draw.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

#: "unknown" is a scan without a mask: never tested, taken for normal in a batch
Kind = Literal["normal", "lesioned", "unknown"]


@dataclass(frozen=True, slots=True)
class Member:
    """One encoded scan of the cohort."""

    name: str
    #: of its files
    key: str
    patient: str
    kind: Kind
    #: 2 for a scan of the second site
    site: int = 1


@dataclass(frozen=True, slots=True)
class Room:
    """How many subjects of each kind are outside of any fold, at the least."""

    n_normal: int
    n_lesioned: int
    #: normal subjects of the second site, outside of any fold of it
    n_second: int = 0

    def allows(self, size: int, n_lesioned: int, n_second: int = 0) -> bool:
        """Return whether every fold leaves a batch of so many."""
        n_normal = size - n_lesioned - n_second
        return (
            0 <= n_normal <= self.n_normal
            and n_lesioned <= self.n_lesioned
            and n_second <= self.n_second
        )


Folds = tuple[tuple[Member, ...], ...]


def folds(members: Sequence[Member], n_folds: int, seed: int) -> Folds:
    """Deal those with a label into folds at random, each kind as evenly as can be.

    Every one of them is in one fold. There are fewer folds where there are fewer subjects.
    """
    rng = np.random.default_rng(seed)
    labelled = sorted((m for m in members if m.kind != "unknown"), key=lambda m: m.key)
    n = max(1, min(n_folds, len(labelled)))
    dealt: list[list[Member]] = [[] for _ in range(n)]
    at = 0
    for kind in ("lesioned", "normal"):
        of_kind = [member for member in labelled if member.kind == kind]
        for place in rng.permutation(len(of_kind)):
            dealt[at % n].append(of_kind[place])
            at += 1  # the next kind goes on where this one ends: folds stay of one size
    return tuple(tuple(fold) for fold in dealt if fold)


def room(members: Sequence[Member], tested: Folds) -> Room:
    """Return what every fold leaves at the least."""
    left = [_outside(members, fold) for fold in tested]

    def least(site: int, *kinds: Kind) -> int:
        return min(sum(m.kind in kinds and m.site == site for m in rest) for rest in left)

    return Room(least(1, "normal", "unknown"), least(1, "lesioned"), least(2, "normal", "unknown"))


def draw_batch(
    members: Sequence[Member],
    fold: Sequence[Member],
    size: int,
    n_lesioned: int,
    seed: Sequence[int],
    n_second: int = 0,
) -> tuple[Member, ...]:
    """Draw a batch for a fold at random.

    Parameters
    ----------
    members
        To draw from; nobody of a patient of `fold` is drawn.
    size, n_lesioned, n_second
        So many in all, lesioned ones of the first site, and normal ones of the second. Those
        without a mask are taken for normal.
    seed
        Names the draw: the same one gives nested batches.

    Raises
    ------
    ValueError
        There are not enough: `Room.allows` tells before.
    """
    rest = _outside(members, fold)
    pools = (
        ([m for m in rest if m.kind == "lesioned" and m.site == 1], n_lesioned),
        ([m for m in rest if m.kind != "lesioned" and m.site == 2], n_second),
        ([m for m in rest if m.kind != "lesioned" and m.site == 1], size - n_lesioned - n_second),
    )
    chosen: list[Member] = []
    for number, (pool, n) in enumerate(pools):
        if not 0 <= n <= len(pool):
            raise ValueError(f"a batch of {size} needs {n} of {len(pool)} subjects")
        # a stream of its own for each kind: more of one kind changes nobody of another
        order = np.random.default_rng([*seed, number]).permutation(len(pool))
        chosen += [pool[place] for place in order[:n]]
    return tuple(chosen)


def every_second(members: Sequence[Member]) -> frozenset[str]:
    """Return the keys of half of each kind at each site: those that another scanner has made.

    The same ones in every batch, as a patient has been to one scanner; about half of a batch.
    """
    chosen: set[str] = set()
    for of_kind in sorted({(m.kind, m.site) for m in members}):
        alike = sorted(m.key for m in members if (m.kind, m.site) == of_kind)
        chosen.update(alike[::2])
    return frozenset(chosen)


def n_of_share(size: int, share: float) -> int:
    """Return the whole number nearest to a share (0..1) of a batch; a half is rounded up."""
    return math.floor(size * share + 0.5 + 1e-9)


def _outside(members: Sequence[Member], fold: Sequence[Member]) -> list[Member]:
    """Return who is of no patient of a fold, in a fixed order."""
    patients = {member.patient for member in fold}
    return sorted((m for m in members if m.patient not in patients), key=lambda m: m.key)
