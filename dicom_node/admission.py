"""Who comes into a reference batch and who leaves it: the rules, on rows alone.

A study is admitted after it was scored: its quality checks passed, its score is no higher than the
batch's own scores up to a percentile, it is its patient's newest study, and there is room, for its
scanner and at all. Nothing here reads or writes; :mod:`dicom_node.reference` and
:mod:`dicom_node.reference_verbs` make decisions of it.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from dicom_node.protocol_config import Protocol
from dicom_node.store.admission_table import FREEZE, Event
from dicom_node.store.reference_table import ADMITTED, CANDIDATE, EXCLUDED, Member

#: subjects -> of each the mean distance to the nearest other one of them: what it adds to the batch
Redundancy = Callable[[Sequence[str]], Sequence[float]]


def judged(
    protocol: Protocol, percentile: float, quality: Sequence[str], n_admitted: int
) -> tuple[str, str]:
    """Return the state that a scored study earns by itself, and why.

    While the batch is being founded (fewer than ``min_reference`` admitted) a high score turns
    nobody away: the study goes on serving as a candidate until enough others are admitted, or a
    small site would never get its first batch. What failed a quality check serves in no batch.

    Parameters
    ----------
    percentile
        0..100, of the study's score among the batch's own.
    quality
        Reasons why the study fails a check; empty: it passed.
    """
    if quality:
        return EXCLUDED, f"kept out: {'; '.join(quality)}"
    limit = f"percentile {percentile:.0f}, limit {protocol.admission_percentile:g}"
    if percentile <= protocol.admission_percentile:
        return ADMITTED, f"admitted: {limit}"
    if n_admitted < protocol.min_reference:
        return CANDIDATE, f"not admitted ({limit}); serves while the batch is founded"
    return EXCLUDED, f"kept out: {limit}"


def one_per_patient(found: Sequence[Member]) -> list[Member]:
    """Keep of each patient the pinned study, or else the last one; the order stays."""
    serving: dict[str, Member] = {}
    for entry in found:
        before = serving.get(entry.patient_key)
        if before is None or not before.pinned:
            serving[entry.patient_key] = entry
    return [entry for entry in found if serving[entry.patient_key] is entry]


def most(found: Sequence[Member], n: int) -> list[Member]:
    """Keep `n` members: the pinned ones, then the last ones; the order stays."""
    ranked = sorted(enumerate(found), key=lambda item: (item[1].pinned, item[0]))
    return [entry for _, entry in sorted(ranked[-n:], key=lambda item: item[0])]


def quota(protocol: Protocol) -> int | None:
    """Return how many members one scanner may have, None without a bound; at least 1."""
    bound = protocol.max_per_scanner
    if isinstance(bound, float):
        return max(1, math.floor(bound * protocol.max_reference))
    return bound


def leaving(
    admitted: Sequence[Member], protocol: Protocol, nearest: Mapping[str, float]
) -> dict[str, str]:
    """Return who of the admitted leaves, and why; a pinned member never does.

    One study per patient stays, for the others would take the places of other patients: a ward that
    scans one patient daily would empty the batch. Then no scanner has more than its quota, but for
    as many as ``min_reference`` needs, and last there are no more than ``max_reference``.

    Parameters
    ----------
    admitted
        Oldest first, the newcomer among them: it may be the one that leaves.
    nearest
        Mean distance of each to the nearest other one where the most redundant leaves: the least
        goes first. Empty, or between equal ones: the oldest goes.
    """
    serving = one_per_patient(admitted)
    found = {entry.subject: _other_study(entry, serving) for entry in admitted}
    found = {subject: why for subject, why in found.items() if why}
    who = "most redundant" if nearest else "oldest"
    over = _over_quota(serving, protocol, nearest)
    found |= dict.fromkeys(over, f"the scanner's quota is full: its {who} leaves")
    rest = [entry for entry in serving if entry.subject not in over]
    full = _surplus(rest, len(rest) - protocol.max_reference, nearest)
    return found | dict.fromkeys(full, f"the batch is full: the {who} leaves")


def _other_study(entry: Member, serving: Sequence[Member]) -> str:
    """Return why a member gives way to another study of its patient; empty when it does not."""
    other = next(one for one in serving if one.patient_key == entry.patient_key)
    if other is entry or entry.pinned:
        return ""
    return f"a {'pinned' if other.pinned else 'newer'} study of the patient is in the batch"


def _over_quota(
    serving: Sequence[Member], protocol: Protocol, nearest: Mapping[str, float]
) -> list[str]:
    """Return who leaves for the quota; scanners that are not known have none."""
    bound = quota(protocol)
    if bound is None:
        return []
    by_scanner = defaultdict(list)
    for entry in serving:
        by_scanner[entry.scanner].append(entry)
    by_scanner.pop("", None)
    spare = len(serving) - protocol.min_reference
    found: list[str] = []
    for group in by_scanner.values():
        n = min(len(group) - bound, spare - len(found))
        found += _surplus(group, n, nearest)
    return found


def _surplus(group: Sequence[Member], n: int, nearest: Mapping[str, float]) -> list[str]:
    """Return the `n` members of a group, oldest first, that leave before the others."""
    free = [entry.subject for entry in group if not entry.pinned]
    free.sort(key=lambda subject: nearest.get(subject, math.inf))  # stable: the oldest of equals
    return free[: max(0, n)]


@dataclass(frozen=True, slots=True)
class Freezes:
    """What a batch's freeze and unfreeze decisions amount to, each by its number.

    The number of the decision in force after it and before it; 0 is none. Undoing one brings back
    what was in force before.
    """

    before: dict[int, int]
    after: dict[int, int]
    in_force: int
    #: automatic changes are stopped
    frozen: bool

    @classmethod
    def of(cls, events: Sequence[Event]) -> Freezes:
        """Follow the decisions, oldest first."""
        verbs = {event.id: event.decision.verb for event in events}
        before: dict[int, int] = {}
        after: dict[int, int] = {}
        now = 0
        for event in events:
            before[event.id] = now
            undone = event.decision.undoes
            now = event.id if undone is None else before[undone]
            after[event.id] = now
        return cls(before, after, now, verbs.get(now) == FREEZE)
