"""The statistics of the drift watch, on seeded draws: what is said, and what is not."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from dicom_node import drift
from dicom_node.config import Watch
from dicom_node.drift import ABNORMAL_SHARE, SCORE_SHIFT, SMALL_BATCH, TOKEN_SHIFT
from dicom_node.store.warning_table import Key
from tests.make.drifts import NEW, OLD, PRISMA, SKYRA, draw, in_time, observed, rolled
from tests.make.ledgers import protocol

RULE = Watch()
RUNS = 200
seeded = np.random.default_rng
SHIFTS = {SCORE_SHIFT, TOKEN_SHIFT}


def judged(*parts, rule=RULE, standing=(), **changes):
    """(kind, scanner, software) -> text of what is said of one protocol."""
    found = drift.judge([observed(*parts, **changes)], rule, standing)
    keys = [(n.key.kind, n.key.scanner, n.key.software) for n in found]
    assert len(set(keys)) == len(keys)
    return dict(zip(keys, (n.text for n in found), strict=True))


def shifts_of(found):
    return {kind for kind, *_ in found} & SHIFTS


def updated(seed, **changes):
    """A scanner's 20 newest studies after an update, beside 60 of its own and 20 of another's."""
    rng = seeded(seed)
    usual = draw(rng, 60), draw(rng, 20, scanner=PRISMA)
    return judged(*usual, draw(rng, 20, software=NEW, **changes))


# -- how often it is wrong, and how often right ------------------------------------------------


@pytest.mark.parametrize("stream", ["independent", "rolling"])
def test_without_drift_at_most_alpha_of_the_looks_give_a_false_alarm(stream):
    """Up to what a chance of alpha gives in 200 looks but once in a thousand such tests.

    A rolling batch is shared by the studies, and narrows as it never takes in its own tail.
    """
    looks = {"independent": updated, "rolling": lambda seed: judged(rolled(seeded(seed), 200))}
    alarms = sum(bool(shifts_of(looks[stream](seed))) for seed in range(RUNS))
    assert alarms <= stats.binom.ppf(0.999, RUNS, RULE.alpha)


def test_a_shift_of_one_standard_deviation_is_found_with_twenty_studies():
    found = [updated(seed, shift=1.0, raw_shift=1.0) for seed in range(50)]
    assert sum(bool(shifts_of(one)) for one in found) >= 40
    for kind in SHIFTS:
        assert sum((kind, SKYRA, NEW) in one for one in found) >= 30
    # who changed nothing is named at most by chance
    assert sum((kind, PRISMA, OLD) in one for one in found for kind in SHIFTS) <= 3


@pytest.mark.parametrize("sign", [1, -1])
def test_a_fall_is_a_shift_as_a_rise_is(sign):
    assert (TOKEN_SHIFT, SKYRA, NEW) in updated(3, raw_shift=3.0 * sign)


def test_a_rise_of_all_distances_is_seen_where_scores_hide_it():
    """Calibrated scores are centred per subject: an update that raises all alike moves no score."""
    assert shifts_of(updated(1, raw_shift=3.0)) == {TOKEN_SHIFT}
    assert shifts_of(updated(1, shift=2.0)) == {SCORE_SHIFT}


def test_all_comparisons_of_a_look_are_corrected_together():
    """What is said of one protocol alone may be chance among a dozen of them."""
    rng = seeded(0)
    calm = [
        replace(observed(draw(rng, 60), draw(rng, 60, scanner=PRISMA)), protocol=protocol(f"p{n}"))
        for n in range(12)
    ]
    assert drift.judge(calm, RULE) == []
    n_said = {"alone": 0, "among others": 0}
    for _ in range(20):
        one = observed(draw(rng, 60), draw(rng, 20, software=NEW, raw_shift=1.0))
        n_said["alone"] += bool(drift.judge([one], RULE))
        n_said["among others"] += bool(drift.judge([one, *calm], RULE))
    assert n_said["alone"] > n_said["among others"] > 0


# -- what a warning says, and when it ends -----------------------------------------------------


def test_the_warning_names_scanner_versions_date_size_and_what_to_do():
    (text,) = updated(1, raw_shift=3.0).values()
    assert text.startswith(f"20 studies of {SKYRA} with software {NEW} (before: {OLD}) since 2026-")
    assert "their median distance to the batch is 0.3" in text
    assert "1.2 times the 0.3" in text
    assert "dicom-node reference exclude" in text


def test_too_few_studies_say_nothing():
    rng = seeded(0)
    usual = draw(rng, 60)
    assert judged(usual, draw(rng, RULE.least - 1, software=NEW, raw_shift=9.0)) == {}
    found = judged(usual, draw(rng, RULE.least, software=NEW, raw_shift=9.0))
    assert set(found) == {(TOKEN_SHIFT, SKYRA, NEW)}


def test_a_patient_counts_once():
    rng = seeded(0)
    studies = observed(draw(rng, 60), draw(rng, 20, software=NEW, raw_shift=9.0)).studies
    of_one = [replace(s, patient_key="one") if s.software == NEW else s for s in studies]
    assert drift.judge([replace(observed([]), studies=of_one)], RULE) == []
    unknown = [replace(s, patient_key="") for s in studies]
    assert drift.judge([replace(observed([]), studies=unknown)], RULE)


def test_an_open_warning_ends_when_studies_are_clearly_usual_again():
    """On the verge it would open and close with every study."""
    for seed in range(200):
        rng = seeded(seed)
        parts = draw(rng, 60), draw(rng, 20, software=NEW, raw_shift=0.75)
        key = Key("t1", TOKEN_SHIFT, SKYRA, NEW)
        if not judged(*parts) and judged(*parts, standing={key}):
            break
    else:
        pytest.fail("no draw lies between the two thresholds")
    assert updated(1) == {}
    assert judged(draw(rng, 60), draw(rng, 20), standing={Key("t1", TOKEN_SHIFT, SKYRA, OLD)}) == {}


def test_an_update_is_forgotten_when_the_new_version_is_all_that_came_for_long():
    rng = seeded(5)
    parts = draw(rng, 60), draw(rng, 160, software=NEW, raw_shift=3.0)
    assert shifts_of(judged(*parts)) == set()


def test_a_scanner_that_has_fallen_silent_is_not_compared_with_what_others_do_since():
    rng = seeded(6)
    silent = draw(rng, 60)
    busy = draw(rng, 30, scanner=PRISMA), draw(rng, 30, scanner=PRISMA, raw_shift=4.0, software=NEW)
    found = judged(silent, *busy)
    assert set(found) == {(TOKEN_SHIFT, PRISMA, NEW)}


def test_studies_without_distance_of_an_older_version_are_compared_by_score_alone():
    rng = seeded(1)
    old = [replace(s, raw_distance=None) for s in draw(rng, 60)]
    found = judged(old, draw(rng, 20, software=NEW, shift=2.0, raw_shift=5.0))
    assert set(found) - {(ABNORMAL_SHARE, SKYRA, NEW)} == {(SCORE_SHIFT, SKYRA, NEW)}


@given(
    st.lists(st.sampled_from([0.0, 1.0, 2.5]), max_size=60),
    st.sampled_from(["", SKYRA]),
    st.booleans(),
)
def test_whatever_the_scores_are_the_look_ends_without_a_warning_of_the_interpreter(
    scores, scanner, admitted
):
    (one,) = draw(seeded(0), 1)
    given_ = [
        replace(one, subject_score=s, percentile=s, scanner=scanner, admitted=admitted)
        for s in scores
    ]
    found = drift.judge([observed(given_)], RULE)
    assert all(notice.key.protocol == "t1" for notice in found)


# -- shares and sizes --------------------------------------------------------------------------


def with_share(n_above, n=20, **changes):
    (one,) = draw(seeded(0), 1)
    values = [96.0] * n_above + [50.0] * (n - n_above)
    return [replace(one, percentile=value, **changes) for value in values]


def test_more_abnormal_studies_than_the_limit_are_said():
    assert judged(with_share(6)) == {}
    (key, text), *_ = judged(with_share(7)).items()
    assert key == (ABNORMAL_SHARE, SKYRA, OLD)
    assert "7 are above percentile 95 of the batch, which is 35%" in text
    assert "admission_percentile" in text
    assert judged(with_share(7), rule=Watch(abnormal_share=0.35)) == {}
    assert judged(with_share(7), protocol=protocol(admission_percentile=96.0)) == {}


def test_scanners_with_few_studies_each_are_taken_together():
    parts = [with_share(3, 5, scanner=f"scanner {n}") for n in range(4)]
    ((key, text),) = judged(*parts).items()
    assert key == (ABNORMAL_SHARE, "", "")
    assert text.startswith("20 studies since 2026-")


def test_a_scanner_that_does_not_say_what_it_is_is_a_group_too():
    found = judged(with_share(9, scanner="", software=""))
    assert list(found) == [(ABNORMAL_SHARE, "unknown scanner", "")]


def test_a_small_batch_is_said_while_studies_wait_for_it():
    counts = {"n_admitted": 2, "n_candidates": 1}
    ((key, text),) = judged(n_waiting=4, **counts).items()
    assert key == (SMALL_BATCH, "", "")
    assert "4 studies wait" in text
    assert "2 patients are admitted, 1 more could serve, and 3 are needed" in text
    assert "dicom-node reference import" in text
    assert judged(n_waiting=0, **counts) == {}
    assert judged(n_waiting=4, n_admitted=3) == {}
    assert judged(n_waiting=4, discovered=True, **counts) == {}  # it may be rare
    (frozen,) = judged(n_waiting=4, frozen=True, **counts).values()
    assert "dicom-node reference unfreeze --protocol t1" in frozen


def test_nothing_is_said_of_nothing():
    assert drift.judge([], RULE) == []
    assert judged() == {}
    assert in_time() == []
