"""The threshold of findings that the batch's own subjects choose, on made score maps."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from dicom_node import pipeline
from dicom_node.anomaly.spec import GridSpec, MethodSpec, ScaleSpec, ScoringSpec, TokenSpec
from dicom_node.store import result_table
from dicom_node.threshold import HIGHEST, Rule, batch_threshold
from tests.make import ledgers, lines

#: 12 tokens of 7 mm along each axis
METHOD = MethodSpec(
    GridSpec((84.0, 84.0, 84.0), 1.0),
    TokenSpec((ScaleSpec(2, 1, (8,)),)),
    scoring=ScoringSpec(smoothing_mm=3.0),
)
RULE = Rule(threshold=3.0, min_volume_ml=0.2, per_normal=0.5)
#: corners of blobs of 3 x 3 x 3 tokens that do not touch: smoothed, their middle stays
PLACES = [(d, h, w) for d in (1, 5, 9) for h in (1, 5, 9) for w in (1, 5, 9)]


def score_map(*peaks, at=0):
    """A quiet map with a rim that has no token, and a blob for each peak."""
    grid = torch.zeros(12, 12, 12)
    grid[0] = torch.nan
    for number, peak in enumerate(peaks):
        d, h, w = PLACES[(at + number) % len(PLACES)]
        grid[d : d + 3, h : h + 3, w : w + 3] = peak
    return grid


def test_a_quiet_batch_leaves_the_threshold_as_it_is():
    assert batch_threshold([score_map() for _ in range(8)], RULE, METHOD) == 3.0


def test_the_threshold_is_above_what_usual_subjects_have():
    """Two blobs in each: they are no findings any more, what is higher is."""
    found = batch_threshold([score_map(4.0, 4.2) for _ in range(12)], RULE, METHOD)
    assert 3.9 < found < 4.4
    lower = batch_threshold([score_map(3.5, 3.5) for _ in range(12)], RULE, METHOD)
    assert 3.3 < lower < 3.7


def test_usual_subjects_have_about_as_many_findings_as_are_allowed():
    """Blobs come as a Poisson number of any height; those above the threshold are counted."""
    rng = np.random.default_rng(1)
    peaks = [rng.uniform(3.2, 6.0, min(rng.poisson(3.0), 20)) for _ in range(200)]
    maps = [score_map(*map(float, one), at=n) for n, one in enumerate(peaks)]
    for allowed in (0.3, 1.0):
        found = batch_threshold(maps, replace(RULE, per_normal=allowed), METHOD)
        assert np.mean([(one >= found + 0.15).sum() for one in peaks]) <= allowed * 1.3
        assert np.mean([(one >= found - 0.6).sum() for one in peaks]) > allowed


@pytest.mark.parametrize("n_abnormal", [1, 3])
def test_a_few_abnormal_subjects_do_not_raise_it(n_abnormal):
    usual = [score_map(3.4) if n % 6 == 0 else score_map() for n in range(12 - n_abnormal)]
    ill = [score_map(15.0, 12.0, 9.0) for _ in range(n_abnormal)]
    assert batch_threshold(usual + ill, RULE, METHOD) < 3.6


def test_a_batch_that_is_abnormal_throughout_raises_it_no_more_than_twofold():
    ill = [score_map(15.0, 12.0, 9.0) for _ in range(12)]
    assert batch_threshold(ill, RULE, METHOD) == HIGHEST * 3.0


def test_regions_below_the_least_volume_do_not_count():
    maps = [score_map(5.0, 5.0) for _ in range(8)]
    large = replace(RULE, min_volume_ml=12.0)  # a blob has 9.3 ml
    assert batch_threshold(maps, RULE, METHOD) > 3.0
    assert batch_threshold(maps, large, METHOD) == 3.0


@pytest.mark.parametrize("rule", [replace(RULE, per_normal=0.0), replace(RULE, threshold=-1.0)])
def test_a_fixed_threshold_stays(rule):
    maps = [score_map(5.0, 5.0) for _ in range(8)]
    assert batch_threshold(maps, rule, METHOD) == rule.threshold


def test_the_batch_s_threshold_is_never_lower_where_less_is_allowed():
    rng = np.random.default_rng(2)
    maps = [score_map(*map(float, rng.uniform(3, 6, rng.poisson(2)))) for _ in range(30)]
    found = [batch_threshold(maps, replace(RULE, per_normal=n), METHOD) for n in (3, 1, 0.5, 0.1)]
    assert found == sorted(found)


# -- in the node ---------------------------------------------------------------------------------


def quiet(_share):
    """Progress that nobody looks at."""


def reported(tmp_path, **protocol):
    """The score of one of four series, and its findings."""
    weights = lines.tiny_weights(tmp_path)
    with ledgers.ledger(tmp_path) as database:
        line = lines.make_line(database, tmp_path, weights, protocol=protocol)
        uids = [lines.receive_series(line, seed) for seed in range(4)]
        for uid in uids:
            pipeline.tokenize(line, uid, quiet)
        pipeline.score(line, uids[0], quiet)
        pipeline.report(line, uids[0], quiet)
        with line.database.read() as db:
            score_id, entry = result_table.get_score(db, uids[0], 1)
            return entry, result_table.findings_of(db, score_id)


def test_the_threshold_is_kept_with_the_score_and_its_findings_are_above_it(tmp_path):
    low = {"finding_threshold": 0.2, "finding_min_volume_ml": 0.0}
    (tmp_path / "fixed").mkdir()
    fixed, many = reported(tmp_path / "fixed", findings_per_normal=0.0, **low)
    raised, few = reported(tmp_path, findings_per_normal=0.1, **low)
    assert fixed.finding_threshold == 0.2
    assert 0.2 < raised.finding_threshold <= 0.2 * HIGHEST
    assert many
    assert all(finding.max_score >= raised.finding_threshold for finding in few)
    assert raised.fingerprint != fixed.fingerprint
