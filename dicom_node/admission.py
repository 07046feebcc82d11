"""Who comes into a reference batch and who leaves it: the rules, on rows alone.

A study is admitted after it was scored: its quality checks passed, its score is no higher than
those of the protocol's recent studies up to a percentile, it is no outlier of the batch, it is its
patient's newest study, and there is room, for its scanner and at all. Nothing here reads or writes;
:mod:`dicom_node.reference` and :mod:`dicom_node.reference_verbs` make decisions of it.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from dicom_node.protocol_config import Protocol
from dicom_node.store.admission_table import FREEZE, Event
from dicom_node.store.history import ScoredStudy
from dicom_node.store.reference_table import ADMITTED, CANDIDATE, EXCLUDED, Member

#: subjects -> of each the mean distance to the nearest other one of them: what it adds to the batch
Redundancy = Callable[[Sequence[str]], Sequence[float]]


#: recent studies that a score is ranked among: at most, and at least
RECENT, LEAST_RECENT = 200, 20
#: robust standard deviations above the median of the batch's own scores, beyond which nobody is
#: admitted: the limit of Iglewicz and Hoaglin, How to Detect and Handle Outliers (1993). Usual
#: scores have a long tail upwards, and a hundredth of them lies there
_BEYOND = 3.5
#: a spread of fewer scores says nothing
_LEAST_OWN = 8
#: sigma of a normal distribution over its median absolute deviation
_MAD_TO_SIGMA = 1.4826


@dataclass(frozen=True, slots=True)
class Standing:
    """Where the score of a study lies, as the rule judges it."""

    #: 0..100, the share of lower scores
    percentile: float
    #: of whom; empty: of the batch
    among: str = ""
    #: why it is not admitted at any percentile; empty: it may be
    beyond: str = ""


def standing(score: float, own: Sequence[float], recent: Sequence[float]) -> Standing:
    """Return where a score lies among the recent ones, or else among the batch's own.

    Among the batch's own alone the limit would fall with each study that it keeps out, since the
    batch never takes in its own tail: after some hundreds it would turn away 40 % of the usual
    studies instead of 5 %. Recent scores hold those that were kept out, and the abnormal ones too,
    which is why an outlier of the batch is turned away whatever its rank.

    Parameters
    ----------
    own
        Leave-one-out scores of the batch's subjects, one at least.
    recent
        As `recent_scores` returns them; fewer than `LEAST_RECENT` are not used.
    """
    enough = len(recent) >= LEAST_RECENT
    among = recent if enough else own
    percentile = 100.0 * sum(other < score for other in among) / len(among)
    named = f" of {len(recent)} recent studies" if enough else ""
    return Standing(percentile, named, _beyond(score, own))


def _beyond(score: float, own: Sequence[float]) -> str:
    """Return why a score is an outlier of the batch's own; empty: it is none."""
    if len(own) < _LEAST_OWN:
        return ""
    middle = median(own)
    mad = median(abs(value - middle) for value in own)
    # scores that all but agree have no outlier
    edge = middle + _BEYOND * max(_MAD_TO_SIGMA * mad, 0.05 * abs(middle))
    if score <= edge:
        return ""
    return f"score {score:.2f}, beyond the batch's own: an outlier from {edge:.2f}"


def recent_scores(
    studies: Sequence[ScoredStudy], patient_key: str, n_reference: int
) -> list[float]:
    """Return the scores that a study is ranked among: the last of each other patient.

    Parameters
    ----------
    studies
        Of one fingerprint, newest first; admitted or not.
    patient_key
        Whose study is judged.
    n_reference
        Subjects it was scored with. Scores by less than half of them are left out: against few
        subjects everything is more unusual.
    """
    found: dict[str, float] = {}
    for number, study in enumerate(studies):
        key = study.patient_key or f"unknown {number}"
        if study.patient_key != patient_key and 2 * study.n_reference >= n_reference:
            found.setdefault(key, study.subject_score)
    return list(found.values())[:RECENT]


def judged(
    protocol: Protocol, found: Standing, quality: Sequence[str], n_admitted: int
) -> tuple[str, str]:
    """Return the state that a scored study earns by itself, and why.

    While the batch is being founded (fewer than ``min_reference`` admitted) a high score turns
    nobody away: the study goes on serving as a candidate until enough others are admitted, or a
    small site would never get its first batch. What failed a quality check serves in no batch.

    Parameters
    ----------
    found
        Where the study's score lies.
    quality
        Reasons why the study fails a check; empty: it passed.
    """
    if quality:
        return EXCLUDED, f"kept out: {'; '.join(quality)}"
    limit = f"limit {protocol.admission_percentile:g}"
    limit = found.beyond or f"percentile {found.percentile:.0f}{found.among}, {limit}"
    if not found.beyond and found.percentile <= protocol.admission_percentile:
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
