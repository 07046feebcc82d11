"""By what a score is judged: recent studies, outliers of the batch; and what becomes of it."""

from dataclasses import replace

import numpy as np
import pytest

from dicom_node import admission, pipeline
from dicom_node.admission import Standing, judged, recent_scores, standing
from dicom_node.reference_verbs import list_members
from dicom_node.store.reference_table import ADMITTED, CANDIDATE, EXCLUDED
from tests.make import drifts, ledgers, lines

LEAST, MOST = 15, 60
PROTOCOL = ledgers.protocol(min_reference=LEAST, max_reference=MOST)


def usual_scores(rng, n):
    """Highest of many token scores each: their tail is long upwards."""
    return rng.gumbel(3.0, 0.3, n)


def rolled(scores, *, by_recent=True):
    """Admit studies one after the other as the node does; the state of each."""
    batch, states = [], []
    for at, score in enumerate(scores):
        serving = batch if len(batch) >= LEAST else scores[:at]
        if len(serving) < 3:
            serving = scores[:3]
        recent = list(scores[max(0, at - admission.RECENT) : at]) if by_recent else []
        found = standing(score, list(serving), recent)
        if not by_recent:
            found = Standing(found.percentile)
        states.append(judged(PROTOCOL, found, (), len(batch))[0])
        if states[-1] == ADMITTED:
            batch = [*batch, score][-MOST:]
    return np.array(states)


@pytest.mark.parametrize("seed", range(5))
def test_of_many_usual_studies_few_are_kept_out_however_long_it_goes_on(seed):
    scores = usual_scores(np.random.default_rng(seed), 600)
    kept_out = rolled(scores) == EXCLUDED
    assert kept_out[:400].mean() < 0.08
    assert kept_out[400:].mean() < 0.09


@pytest.mark.parametrize("seed", range(3))
def test_a_batch_judged_by_its_own_scores_alone_narrows(seed):
    """Why recent studies judge: without them this is what comes."""
    scores = usual_scores(np.random.default_rng(seed), 400)
    assert (rolled(scores, by_recent=False)[-100:] == EXCLUDED).mean() > 0.2


@pytest.mark.parametrize("seed", range(5))
def test_among_many_abnormal_studies_few_are_admitted(seed):
    rng = np.random.default_rng(seed)
    scores, abnormal = usual_scores(rng, 400), rng.random(400) < 0.15
    scores[abnormal] += rng.uniform(1.5, 8.0, abnormal.sum())
    states = rolled(scores)
    assert (states[abnormal] == ADMITTED).mean() < 0.1
    assert (states[~abnormal] == EXCLUDED).mean() < 0.05


def test_the_reason_says_whose_scores_were_the_limit():
    own = [1.0, 2.0, 3.0]
    few = standing(2.5, own, [0.0] * (admission.LEAST_RECENT - 1))
    assert judged(PROTOCOL, few, (), 20) == (ADMITTED, "admitted: percentile 67, limit 95")
    many = standing(2.5, own, [0.0] * 19 + [9.0])
    assert judged(PROTOCOL, many, (), 20) == (
        ADMITTED,
        "admitted: percentile 95 of 20 recent studies, limit 95",
    )
    above = standing(2.5, own, [0.0] * 20)
    assert judged(PROTOCOL, above, (), 20) == (
        EXCLUDED,
        "kept out: percentile 100 of 20 recent studies, limit 95",
    )


def test_an_outlier_of_the_batch_is_never_admitted_however_many_like_it_came():
    own = [1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 1.7]
    found = standing(9.0, own, [20.0] * 50)
    assert found.percentile == 0.0
    state, reason = judged(PROTOCOL, found, (), 20)
    assert state == EXCLUDED
    assert reason.startswith("kept out: score 9.00, beyond the batch's own: an outlier from ")
    assert judged(PROTOCOL, found, (), LEAST - 1)[0] == CANDIDATE
    assert standing(9.0, own[:7], [20.0] * 50).beyond == ""


def study(**changes):
    (one,) = drifts.draw(np.random.default_rng(0), 1)
    return replace(one, **changes)


def test_recent_scores_are_one_per_other_patient_by_a_batch_of_like_size():
    studies = [
        study(patient_key="a", subject_score=1.0, n_reference=20),
        study(patient_key="b", subject_score=2.0, n_reference=20),
        study(patient_key="a", subject_score=3.0, n_reference=20),
        study(patient_key="own", subject_score=4.0, n_reference=20),
        study(patient_key="c", subject_score=5.0, n_reference=9),
        study(patient_key="d", subject_score=6.0, n_reference=10),
        study(patient_key="", subject_score=7.0, n_reference=20),
        study(patient_key="", subject_score=8.0, n_reference=20),
    ]
    assert recent_scores(studies, "own", 20) == [1.0, 2.0, 6.0, 7.0, 8.0]


def test_no_more_recent_scores_judge_than_the_newest_two_hundred():
    studies = [study(patient_key=str(n), subject_score=float(n)) for n in range(300)]
    assert recent_scores(studies, "own", 15) == [float(n) for n in range(200)]


def test_in_the_node_the_recent_studies_are_the_limit_once_there_are_enough(tmp_path, monkeypatch):
    monkeypatch.setattr(admission, "LEAST_RECENT", 3)
    weights = lines.tiny_weights(tmp_path)
    with ledgers.ledger(tmp_path) as database:
        line = lines.make_line(database, tmp_path, weights)
        uids = [lines.receive_series(line, seed) for seed in range(5)]
        for uid in uids:
            pipeline.tokenize(line, uid, lambda _share: None)
        for uid in uids:
            pipeline.score(line, uid, lambda _share: None)
        members = list_members(line.batch(line.config.protocol[0]))
    reasons = {entry.series_instance_uid: entry.reason for entry in members}
    assert "recent studies" not in reasons[uids[2]]
    assert "of 4 recent studies, limit 95" in reasons[uids[4]]
