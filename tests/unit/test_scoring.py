"""The scores of a subject against a batch, of two scales of tokens, against plain loops."""

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch
import torch.nn.functional as nnf
from hypothesis import given, settings
from hypothesis import strategies as st

from dicom_node import reference_files
from dicom_node.anomaly.spec import ScoringSpec, SearchSpec
from dicom_node.errors import NonFiniteScores
from dicom_node.reference_files import ReferenceFiles
from dicom_node.scoring import BatchScores, score_against, subject_scores
from tests.make.subjects import GRIDS, keep, subject
from tests.oracle import calibration as calibration_oracle
from tests.oracle import fusion as fusion_oracle
from tests.oracle import similarity as similarity_oracle

RAW = ScoringSpec(calibration="none")


class Loops:
    """What `score_against` should find, one place after the other."""

    def __init__(self, files, spec):
        self.files, self.spec = files, spec

    def grids(self, name, others):
        """Per scale and layer, the scores of `name` by place."""
        found = []
        for scale, shape in enumerate(GRIDS):
            loaded = [self.files.load_tokens(n)[scale] for n in (name, *others)]
            index = loaded[0].index.tolist()
            places = [tuple(map(int, np.unravel_index(flat, shape))) for flat in index]
            layers = [
                similarity_oracle.token_scores(
                    [tokens.values[layer].tolist() for tokens in loaded], 0, self.spec.nearest_share
                )
                for layer in range(loaded[0].values.shape[0])
            ]
            found.append([dict(zip(places, scores, strict=True)) for scores in layers])
        return found

    def usual(self, batch):
        """Per subject of the batch, its grids against the others of it."""
        return [self.grids(b, [other for other in batch if other != b]) for b in batch]

    def calibrated(self, own, usual):
        """The grids `own` judged by the grids of others, scale by scale and layer by layer."""
        found = []
        for scale, shape in enumerate(GRIDS):
            layers = []
            for layer, grid in enumerate(own[scale]):
                centred = [calibration_oracle.centred(one[scale][layer]) for one in usual]
                here = calibration_oracle.location_and_scale(centred, shape, self.spec)
                own_centred = calibration_oracle.centred(grid)
                layers.append(calibration_oracle.calibrated(own_centred, *here))
            found.append(layers)
        return found


def fused(grids):
    return fusion_oracle.fused(grids, GRIDS)


def assert_same(grid, expected):
    """A grid has values at the expected places alone, and those."""
    found = {
        place: float(grid[place])
        for place in product(*map(range, grid.shape))
        if bool(grid[place].isfinite())
    }
    assert found == pytest.approx(expected, abs=4e-3, rel=4e-3)


@settings(max_examples=12, deadline=None)
@given(
    st.integers(0, 10_000),
    st.integers(3, 5),
    st.builds(
        ScoringSpec,
        nearest_share=st.sampled_from([0.1, 0.5, 1.0]),
        scale_floor=st.sampled_from([0.5, 1.0]),
        prior_subjects=st.sampled_from([0.0, 5.0]),
    ),
)
def test_scores_of_two_scales_and_their_calibration_equal_the_loops(
    tmp_path_factory, seed, n, spec
):
    seeds = [seed * 10 + place for place in range(n + 1)]
    files, (own, *batch) = keep(tmp_path_factory.mktemp("files"), seeds, SearchSpec(chunk=5))
    found = score_against(files, own, batch, spec)
    loops = Loops(files, spec)
    raw, usual = loops.grids(own, batch), loops.usual(batch)
    assert_same(found.raw, fused(raw))
    assert_same(found.calibrated, fused(loops.calibrated(raw, usual)))
    assert len(found.reference) == n
    for place, grid in enumerate(found.reference):
        rest = usual[:place] + usual[place + 1 :]
        assert_same(grid, fused(loops.calibrated(usual[place], rest)))


def test_without_calibration_the_scores_are_the_raw_distances(tmp_path):
    files, (own, *batch) = keep(tmp_path, range(4))
    found = score_against(files, own, batch, RAW)
    loops = Loops(files, RAW)
    torch.testing.assert_close(found.calibrated, found.raw, equal_nan=True)
    assert_same(found.raw, fused(loops.grids(own, batch)))
    for grid, expected in zip(found.reference, loops.usual(batch), strict=True):
        assert_same(grid, fused(expected))


def test_the_scores_are_of_the_kept_tokens_which_are_rounded(tmp_path):
    """The same distances come of a study that was just encoded and of one that was kept for it."""
    files, (own, *batch) = keep(tmp_path, range(4))
    rounded = ReferenceFiles(tmp_path, "rounded", SearchSpec())
    for name in (own, *batch):
        rounded.save_subject(name, files.load_subject(name))
    one, other = (score_against(f, own, batch, ScoringSpec()) for f in (files, rounded))
    assert torch.equal(one.raw.nan_to_num(-1), other.raw.nan_to_num(-1))
    assert torch.equal(one.calibrated.nan_to_num(-1), other.calibrated.nan_to_num(-1))


# -- the two modes -------------------------------------------------------------------------------


@pytest.mark.parametrize("spec", [ScoringSpec(), RAW], ids=["calibrated", "raw"])
@pytest.mark.parametrize(
    "search", [SearchSpec(), SearchSpec(n_cells=1, window_cells=0)], ids=["all", "near"]
)
def test_a_study_has_the_score_against_a_frozen_batch_that_it_has_in_a_folder(
    tmp_path, spec, search
):
    """Reference mode founds the batch first; batch mode compares all subjects with all others."""
    node, (new, *batch) = keep(tmp_path / "node", range(6), search)
    for member in batch:
        others = [other for other in batch if other != member]
        if len(others) >= 3:
            score_against(node, member, others, spec)
    frozen = score_against(node, new, batch, spec)
    folder, names = keep(tmp_path / "folder", range(6), search)
    scored = {
        name: score_against(folder, name, [other for other in names if other != name], spec)
        for name in names[::-1]
    }
    for one, other in (
        (frozen.raw, scored[new].raw),
        (frozen.calibrated, scored[new].calibrated),
        (torch.stack(list(frozen.reference)), torch.stack(list(scored[new].reference))),
    ):
        torch.testing.assert_close(one, other, atol=1e-3, rtol=1e-3, equal_nan=True)


def test_a_members_own_raw_map_is_its_score_against_the_others(tmp_path):
    files, (own, *batch) = keep(tmp_path, range(5))
    found = score_against(files, own, batch, RAW)
    for place, member in enumerate(batch):
        others = [other for other in batch if other != member]
        alone = score_against(files, member, others, RAW)
        torch.testing.assert_close(found.reference[place], alone.raw, equal_nan=True)


def test_the_order_in_which_subjects_came_never_changes_a_score(tmp_path):
    """Distances are kept pair by pair, as subjects come: no order may leave a trace in them."""
    found = []
    for number, order in enumerate([(1, 2, 3, 4), (4, 3, 2, 1), (2, 4, 1, 3), (3, 1, 4, 2)]):
        files = ReferenceFiles(tmp_path / str(number), "f", SearchSpec(chunk=3))
        known = []
        for seed in order:
            name = f"s{seed}"
            files.save_subject(name, subject(seed))
            if known:
                files.distances(name, known)
            known.append(name)
        files.save_subject("new", subject(0))
        scores = score_against(files, "new", known, ScoringSpec())
        members = [scores.reference[known.index(name)] for name in sorted(known)]
        found.append(torch.stack([scores.raw, scores.calibrated, *members]))
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], atol=1e-3, rtol=1e-3, equal_nan=True)


@pytest.mark.parametrize("width", [2, 16])
def test_a_batch_that_rolls_gives_the_scores_of_one_that_is_founded_anew(
    tmp_path, monkeypatch, width
):
    """Averages are followed from batch to batch: here in small ones, as in large ones."""
    monkeypatch.setattr(reference_files, "_FOLLOWED_FROM", 3)
    monkeypatch.setattr(reference_files, "_WIDTH", width)
    rolling, names = keep(tmp_path / "rolling", range(12))
    for step in range(4):
        new, batch = names[step + 8], names[step : step + 8]
        shuffled = batch[::2] + batch[1::2]
        found = score_against(rolling, new, shuffled, ScoringSpec())
        afresh, _ = keep(tmp_path / f"afresh {step}", range(12))
        expected = score_against(afresh, new, batch, ScoringSpec())
        members = [found.reference[shuffled.index(name)] for name in batch]
        for one, other in (
            (found.raw, expected.raw),
            (found.calibrated, expected.calibrated),
            (torch.stack(members), torch.stack(list(expected.reference))),
        ):
            torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4, equal_nan=True)


# -- what calibration is for ---------------------------------------------------------------------


def moved(made, distance):
    """The subject with every token further away from everybody's."""
    tokens = tuple(
        replace(scale, values=nnf.pad(scale.values, (0, 1), value=distance))
        for scale in made.tokens
    )
    return replace(made, tokens=tokens)


def test_a_subject_further_from_everybody_everywhere_is_not_further_at_any_place(tmp_path):
    """As one that was scanned a little differently: it is the raw scores that rise."""
    found = {}
    for distance in (0.0, 40.0):
        files = ReferenceFiles(tmp_path / str(distance), "f", SearchSpec())
        for seed in range(6):
            files.save_subject(f"s{seed}", moved(subject(seed), distance if seed == 0 else 0.0))
        batch = [f"s{seed}" for seed in range(1, 6)]
        found[distance] = score_against(files, "s0", batch, ScoringSpec())
    near, far = found[0.0], found[40.0]
    assert far.raw.nanmean() > near.raw.nanmean() + 30
    assert far.calibrated.nanmedian().abs() < 1
    assert far.calibrated[far.calibrated.isfinite()].abs().max() < 10
    for one, other in zip(far.reference, near.reference, strict=True):
        torch.testing.assert_close(one, other, equal_nan=True)


def test_what_is_unusual_at_its_place_stands_out_among_the_scores(tmp_path):
    files, (own, *batch) = keep(tmp_path, range(8))
    made = subject(0)
    tokens = made.tokens[1]
    place = int(tokens.index[5])
    tokens.values[:, 5] += 30
    files.save_subject("lesioned", made)
    before = score_against(files, own, batch, ScoringSpec()).calibrated
    after = score_against(files, "lesioned", batch, ScoringSpec()).calibrated
    assert int(after.nan_to_num(-1e9).argmax()) == place
    assert after.flatten()[place] > before.flatten()[place] + 5


# -- the subject's own score ---------------------------------------------------------------------


def scores(own, reference):
    """Scores of one token each."""
    grids = torch.tensor([own, *reference])[:, None, None, None]
    return BatchScores(grids[0], grids[0], grids[1:])


@pytest.mark.parametrize(
    ("own", "expected"), [(0.5, 0.0), (1.5, 25.0), (2.0, 25.0), (3.5, 75.0), (9.0, 100.0)]
)
def test_the_percentile_is_the_share_of_the_reference_that_scores_lower(own, expected):
    assert subject_scores(scores(own, [1.0, 2.0, 3.0, 4.0]), 0.002) == (own, expected)


@pytest.mark.parametrize("values", [(torch.nan, 1.0), (1.0, torch.nan), (torch.inf, 1.0)])
def test_a_score_that_is_no_number_never_leaves_the_node(values):
    with pytest.raises(NonFiniteScores):
        subject_scores(scores(values[0], values[1:]), 0.002)


@pytest.mark.parametrize(("share", "expected"), [(0.0, 7.0), (0.25, 6.5), (1.0, 3.5)])
def test_the_subject_score_is_the_mean_of_the_highest_share_of_the_tokens(share, expected):
    grid = torch.arange(8.0).view(2, 2, 2)
    same = BatchScores(grid, grid, torch.stack([grid - 1, grid, grid + 1]))
    assert subject_scores(same, share) == (expected, pytest.approx(100 / 3))


# -- faults and progress -------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["s0", "s2"])
def test_a_subject_whose_tokens_are_no_numbers_is_not_passed_over(tmp_path, where):
    files, (own, *batch) = keep(tmp_path, range(4))
    made = subject(9)
    made.tokens[1].values[0, 0, 0] = torch.nan
    files.save_subject(where, made)
    with pytest.raises(NonFiniteScores, match="not finite"):
        score_against(files, own, batch, ScoringSpec())


def test_progress_is_told_once_per_reference_subject(tmp_path):
    files, (own, *batch) = keep(tmp_path, range(4))
    told = []
    score_against(files, own, batch, ScoringSpec(), told.append)
    assert told == pytest.approx([1 / 3, 2 / 3, 1.0])
