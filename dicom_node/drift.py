"""Do the recent studies of a scanner look as those before? Statistics alone: no ledger, no clock.

Per scanner and software version, the newest studies are compared with the reference batch and with
what the same scanner sent before. Two measures are watched. The *score* says whether a study is
unusual at some place. The *raw distance*, the median over a study's tokens of the distance to the
batch, says whether it is a little unusual everywhere, as after an update of the scanner's software:
calibrated scores are centred on each subject's own median and would hide it.

All comparisons of one look are corrected together. A false warning at one look has the chance
``watch.alpha``; looks at other studies come later, each with its own.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np
from scipy import stats

from dicom_node.config import Watch
from dicom_node.protocol_config import Protocol
from dicom_node.store.history import ScoredStudy
from dicom_node.store.warning_table import Key, Notice

SCORE_SHIFT, TOKEN_SHIFT = "score shift", "token shift"
SMALL_BATCH, ABNORMAL_SHARE = "small batch", "abnormal share"

#: sizes of the samples that recent studies are compared with, in multiples of `Watch.recent` and of
#: the protocol's `max_reference`: large enough to be known well, and small enough to forget
_EARLIER, _PEERS = 3, 2
#: an open warning is closed above so many times alpha: on the verge it would come and go
_STAYS = 5.0

_SHIFT_ADVICE = (
    "Look at some of them. If the pictures are from now on as they should be, let them found a "
    "[[protocol]] of their own (another name, and a match that only they meet), or take the "
    "studies of before out of the batch with `dicom-node reference exclude`; if not, have the "
    "scanner looked at. Until then trust no percentile of these studies"
)
_SHARE_ADVICE = (
    "Look at some of them. If they are abnormal, ask what the senders route here. If they are "
    "usual, the batch has become too narrow: take some in with `dicom-node reference include`, or "
    "raise admission_percentile"
)
_BATCH_ADVICE = (
    "Send or import more of its studies (`dicom-node reference import`), take in usual ones that "
    "were kept out (`dicom-node reference include`), or lower min_reference"
)


@dataclass(frozen=True, slots=True)
class Observed:
    """What the ledger knows of one protocol at one moment."""

    protocol: Protocol
    #: newest first, of one fingerprint
    studies: Sequence[ScoredStudy]
    #: studies that wait for the batch
    n_waiting: int = 0
    #: patients in the batch, and patients that would serve while it is founded
    n_admitted: int = 0
    n_candidates: int = 0
    #: a person stopped the automatic changes
    frozen: bool = False
    #: the node found the protocol by itself
    discovered: bool = False


@dataclass(frozen=True, slots=True)
class Group:
    """The recent studies of one scanner with one software version; empty names: of all."""

    scanner: str
    software: str
    #: newest first, one per patient
    recent: tuple[ScoredStudy, ...]
    #: of the same scanner and any software, all before the recent ones
    earlier: tuple[ScoredStudy, ...] = ()
    #: of any scanner, scored since the batch's oldest member was, and not among the recent ones.
    #: Kept out or not: the members alone lack their tail by rule, and beside them all look high
    peers: tuple[ScoredStudy, ...] = ()

    @property
    def software_before(self) -> str:
        """The software that the scanner had last before; empty where it had this one, or none."""
        before = next((s.software for s in self.earlier if s.software), self.software)
        return before if before != self.software else ""

    def named(self) -> str:
        """Name the studies: how many, of what, since when."""
        of = f" of {self.scanner}" if self.scanner else ""
        with_ = f" with software {self.software}" if self.software else ""
        was = f" (before: {self.software_before})" if self.software_before else ""
        since = self.recent[-1].scored.date().isoformat()
        return f"{len(self.recent)} studies{of}{with_}{was} since {since}"


@dataclass(frozen=True, slots=True)
class Comparison:
    """One two-sample test; p is not yet corrected."""

    key: Key
    group: Group
    p: float
    #: what was found, as a clause
    said: str


def judge(
    observed: Sequence[Observed], rule: Watch, standing: Collection[Key] = ()
) -> list[Notice]:
    """Return what is to be warned of now, of all protocols; no two notices have one key.

    Parameters
    ----------
    standing
        What is warned of already: it takes a clearer return to what is usual to end it.
    """
    tests = [test for one in observed for test in comparisons(one, rule)]
    found = list(shifts(tests, rule.alpha, standing))
    for one in observed:
        found += [*abnormal(one, rule), *small_batch(one)]
    return found


# --- groups -------------------------------------------------------------------------------------


def groups(observed: Observed, rule: Watch) -> list[Group]:
    """Return a group per scanner, with its present software, that has enough recent studies."""
    studies, found = observed.studies, []
    for scanner, software in _present(studies):
        own = [s for s in studies if (s.scanner, s.software) == (scanner, software)]
        recent = _one_per_patient(own)[: rule.recent]
        if len(recent) < rule.least:
            continue
        # of other patients: two studies of one are not independent
        rest = _one_per_patient(studies, but=recent)
        before = [s for s in rest if s.scanner == scanner and s.scored < recent[-1].scored]
        earlier = tuple(before[: _EARLIER * rule.recent])
        # a scanner that has fallen silent is not compared with what others do since
        peers = tuple(_peers(observed, [s for s in rest if s.scored <= recent[0].scored]))
        found.append(Group(scanner or "unknown scanner", software, tuple(recent), earlier, peers))
    return found


def _present(studies: Sequence[ScoredStudy]) -> Iterator[tuple[str, str]]:
    """Yield (scanner, software): what a scanner had before its last update is past, not recent."""
    seen: set[str] = set()
    for scanner, software in dict.fromkeys((s.scanner, s.software) for s in studies):
        # scanners that do not say who they are may be several
        if scanner not in seen or not scanner:
            yield scanner, software
        seen.add(scanner)


def _peers(observed: Observed, rest: Sequence[ScoredStudy]) -> list[ScoredStudy]:
    """Return what was scored in the time of the batch, newest first; nothing without a batch."""
    members = [s.scored for s in observed.studies if s.admitted]
    if not members:
        return []
    found = [s for s in rest if s.scored >= min(members)]
    return found[: _PEERS * observed.protocol.max_reference]


def _one_per_patient(
    studies: Iterable[ScoredStudy], but: Iterable[ScoredStudy] = ()
) -> list[ScoredStudy]:
    """Return the first study of each patient; those of patients that are not known all stay."""
    seen, found = {s.patient_key for s in but if s.patient_key}, []
    unknown = {id(s) for s in but}
    for study in studies:
        if id(study) not in unknown and study.patient_key not in seen:
            found.append(study)
            seen |= {study.patient_key} - {""}
    return found


# --- shifts -------------------------------------------------------------------------------------


def comparisons(observed: Observed, rule: Watch) -> Iterator[Comparison]:
    """Yield the tests of a protocol: per group scores and distances, with batch and with before.

    A sample below ``rule.least`` makes no test. With those of the batch's time, scores are compared
    as percentiles, which mean the same in every batch.
    """
    for group in groups(observed, rule):
        name = observed.protocol.name
        score = Key(name, SCORE_SHIFT, group.scanner, group.software)
        token = Key(name, TOKEN_SHIFT, group.scanner, group.software)
        for key, what, of, measure, sample in (
            (score, "percentile", "of the batch's time", _percentile, group.peers),
            (score, "score", "before", _score, group.earlier),
            (token, "distance to the batch", "of the batch's time", _distance, group.peers),
            (token, "distance to the batch", "before", _distance, group.earlier),
        ):
            own, usual = _measured(group.recent, measure), _measured(sample, measure)
            if min(len(own), len(usual)) >= rule.least:
                said = _said(median(own), median(usual), what, of)
                yield Comparison(key, group, _p_value(own, usual), said)


_Measure = Callable[[ScoredStudy], float | None]


def _percentile(study: ScoredStudy) -> float:
    return study.percentile


def _score(study: ScoredStudy) -> float:
    return study.subject_score


def _distance(study: ScoredStudy) -> float | None:
    return study.raw_distance


def _measured(studies: Iterable[ScoredStudy], measure: _Measure) -> list[float]:
    """Return what is known of a measure."""
    return [value for value in map(measure, studies) if value is not None]


def _said(now: float, then: float, what: str, of: str) -> str:
    """Say what was found as a clause, as a ratio where there is one."""
    if what == "percentile" or min(now, then) <= 0:
        return f"their median {what} is {now:.3g}, where it is {then:.3g} {of}"
    return f"their median {what} is {now:.3g}, {now / then:.2g} times the {then:.3g} {of}"


def _p_value(own: Sequence[float], usual: Sequence[float]) -> float:
    """Return the two-sided p of the Mann-Whitney test, by the normal approximation.

    A rank test: of scores only the order means the same in every batch. It sees a change of the
    level best, which is what a scanner's change makes; a longer tail is the abnormal share's.
    """
    if len({*own, *usual}) == 1:
        return 1.0
    return float(stats.mannwhitneyu(own, usual, method="asymptotic").pvalue)


def shifts(
    tests: Sequence[Comparison], alpha: float, standing: Collection[Key] = ()
) -> Iterator[Notice]:
    """Yield a notice per key that a comparison speaks for, after correction for all of them.

    References
    ----------
    Benjamini and Hochberg, J R Stat Soc B 57:289 (1995): among all notices, a share of alpha is
    false; where nothing has changed, alpha is the chance of any.
    """
    if not tests:
        return
    corrected = stats.false_discovery_control([test.p for test in tests])
    found: dict[Key, list[Comparison]] = {}
    for test, p in zip(tests, np.asarray(corrected), strict=True):
        if p <= alpha * (_STAYS if test.key in standing else 1.0):
            found.setdefault(test.key, []).append(test)
    for key, speaking in found.items():
        said = "; ".join(test.said for test in sorted(speaking, key=lambda test: test.p))
        yield Notice(key, f"{speaking[0].group.named()}: {said}. {_SHIFT_ADVICE}.")


# --- shares and sizes ---------------------------------------------------------------------------


def abnormal(observed: Observed, rule: Watch) -> list[Notice]:
    """Return where more than ``rule.abnormal_share`` of the recent studies are above the batch.

    Per scanner and software, or else of all scanners together: each may have too few studies.
    """
    all_recent = tuple(_one_per_patient(observed.studies)[: rule.recent])
    whole = [Group("", "", all_recent)] if len(all_recent) >= rule.least else []
    single = [_too_many(observed.protocol, group, rule) for group in groups(observed, rule)]
    found = [notice for notice in single if notice]
    return found or [n for n in (_too_many(observed.protocol, g, rule) for g in whole) if n]


def _too_many(protocol: Protocol, group: Group, rule: Watch) -> Notice | None:
    limit = protocol.admission_percentile
    n = sum(s.percentile > limit for s in group.recent)
    if n <= rule.abnormal_share * len(group.recent):
        return None
    said = f"{n} are above percentile {limit:g} of the batch, which is {n / len(group.recent):.0%}"
    key = Key(protocol.name, ABNORMAL_SHARE, group.scanner, group.software)
    text = f"{group.named()}: {said} (watch.abnormal_share is {rule.abnormal_share:.0%})"
    return Notice(key, f"{text}. {_SHARE_ADVICE}.")


def small_batch(observed: Observed) -> list[Notice]:
    """Return whether studies wait for a batch with fewer patients than it needs."""
    needed = observed.protocol.min_reference
    # what the node discovered may be rare: nobody has to mend that
    if observed.discovered or not observed.n_waiting or observed.n_admitted >= needed:
        return []
    said = (
        f"{observed.n_waiting} studies wait for the reference batch: {observed.n_admitted} "
        f"patients are admitted, {observed.n_candidates} more could serve, and {needed} are needed"
    )
    advice = (
        f"The batch is frozen: `dicom-node reference unfreeze --protocol {observed.protocol.name}` "
        "lets it grow"
        if observed.frozen
        else _BATCH_ADVICE
    )
    return [Notice(Key(observed.protocol.name, SMALL_BATCH), f"{said}. {advice}.")]
