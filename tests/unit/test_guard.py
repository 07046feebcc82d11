"""Batches that are not clean: an abnormal subject among the others, a lesion that some share."""

from dataclasses import replace

import pytest
import torch

from dicom_node.anomaly.spec import GuardSpec, ScoringSpec, SearchSpec
from dicom_node.anomaly.tokens import Tokens
from dicom_node.guard import GuardedFiles
from dicom_node.reference_files import ReferenceFiles
from dicom_node.scoring import score_against, without_outliers
from dicom_node.subject import Subject

SHAPE = (5, 5, 5)
N = 125
#: where a lesion lies: tokens of the grid
LESION = torch.tensor([31, 32, 36, 37, 56, 57, 61, 62])
PLAIN = ScoringSpec()
GUARDED = ScoringSpec(guard=GuardSpec())


def subject(seed, *, lesion=None, depth=1.0):
    """One scale: anatomy that differs a little from place to place, and from subject to subject."""
    anatomy = torch.randn(1, N, 16, generator=torch.Generator().manual_seed(0))
    own = torch.randn(1, N, 16, generator=torch.Generator().manual_seed(seed + 1))
    values = 3 * anatomy + 0.6 * own
    if lesion is not None:
        # a look of its own, which those who share it share
        look = torch.randn(16, generator=torch.Generator().manual_seed(900 + lesion))
        values[:, LESION] = 0.3 * own[:, LESION] + depth * 6 * look
    tokens = (Tokens(values, torch.arange(N), SHAPE),)
    return Subject(tokens, torch.ones(SHAPE, dtype=torch.bool), torch.eye(4, dtype=torch.float64))


def keep(folder, subjects):
    files = ReferenceFiles(folder, "f", SearchSpec())
    for name, made in subjects.items():
        files.save_subject(name, made)
    return files


def lesion_score(scores):
    return float(scores.calibrated.flatten()[LESION].mean())


def elsewhere(scores):
    kept = torch.ones(N, dtype=torch.bool)
    kept[LESION] = False
    return scores.calibrated.flatten()[kept]


@pytest.fixture
def shared(tmp_path):
    """Twelve subjects of whom four, and the study, have one lesion in common."""
    subjects = {f"s{n}": subject(n, lesion=1 if n < 4 else None) for n in range(12)}
    return keep(tmp_path, subjects | {"study": subject(50, lesion=1)}), list(subjects)


def test_a_lesion_that_many_share_hides_and_the_guard_finds_it(shared, tmp_path):
    files, batch = shared
    clean = keep(tmp_path / "clean", {n: files.load_subject(n) for n in (*batch[4:], "study")})
    alone = lesion_score(score_against(clean, "study", batch[4:], PLAIN))
    hidden = lesion_score(score_against(files, "study", batch, PLAIN))
    found = lesion_score(score_against(files, "study", batch, GUARDED))
    assert hidden < 0.25 * alone
    assert found > 0.5 * alone


def test_the_guard_names_those_who_share_it(shared):
    files, batch = shared
    guarded = GuardedFiles(files, ["study", *batch], GUARDED, GuardSpec())
    assert guarded.partners("study") == ["s0", "s1", "s2", "s3"]
    assert guarded.partners("s1") == ["study", "s0", "s2", "s3"]
    assert guarded.partners("s7") == []


def test_a_healthy_study_scores_the_same_under_guard(tmp_path):
    names = [f"s{n}" for n in range(12)]
    files = keep(tmp_path, {n: subject(int(n[1:])) for n in names} | {"study": subject(50)})
    plain, guarded = (score_against(files, "study", names, spec) for spec in (PLAIN, GUARDED))
    torch.testing.assert_close(guarded.calibrated, plain.calibrated, atol=1e-5, rtol=1e-5)


def test_the_guard_changes_nothing_where_nothing_is_shared(shared):
    files, batch = shared
    plain, guarded = (score_against(files, "study", batch, spec) for spec in (PLAIN, GUARDED))
    difference = (elsewhere(guarded) - elsewhere(plain)).abs()
    assert difference.quantile(0.9) < 0.5


def test_an_abnormal_subject_leaves_the_batch_before_it_judges(tmp_path):
    subjects = {f"s{n}": subject(n, lesion=2 if n == 3 else None) for n in range(10)}
    files = keep(tmp_path, subjects | {"study": subject(50)})
    spec = replace(PLAIN, outlier_limit=4.0)
    expected = tuple(name for name in subjects if name != "s3")
    assert without_outliers(files, list(subjects), spec) == expected
    scores = score_against(files, "study", list(subjects), spec)
    assert scores.used == expected
    assert len(scores.reference) == 9
    against = score_against(files, "study", expected, PLAIN)
    torch.testing.assert_close(scores.calibrated, against.calibrated, equal_nan=True)


def test_who_is_left_is_a_fixed_point_and_never_less_than_half(tmp_path):
    subjects = {f"s{n}": subject(n, lesion=n if n < 6 else None) for n in range(9)}
    files = keep(tmp_path, subjects)
    for limit in (0.5, 3.0):
        spec = replace(PLAIN, outlier_limit=limit)
        used = without_outliers(files, list(subjects), spec)
        assert len(used) >= 5
        if len(used) > 5:
            assert without_outliers(files, used, spec) == used


def test_the_order_of_the_batch_changes_no_guarded_score(shared):
    files, batch = shared
    one, other = (
        score_against(files, "study", order, replace(GUARDED, outlier_limit=6.0))
        for order in (batch, batch[::-1])
    )
    torch.testing.assert_close(one.calibrated, other.calibrated, atol=1e-5, rtol=1e-5)
    assert set(one.used) == set(other.used)
