"""Whether a volume is fit to be a reference: what is measured, and who is kept out by it."""

import numpy as np
import pytest
import torch
from scipy import ndimage

from dicom_node import pipeline, quality
from dicom_node.demo.cohort import load_template, make_head
from dicom_node.folders import cache_folder
from dicom_node.reference_verbs import list_members
from dicom_node.store import result_table
from tests.make import ledgers, lines

LIMIT = 5.0
#: tokens of a whole head here; of a cut one in proportion
WHOLE = 12_000


def measured(voxels, n_tokens=WHOLE):
    return quality.measures(torch.from_numpy(np.ascontiguousarray(voxels)), n_tokens)


@pytest.fixture(scope="module")
def heads():
    """Ordinary heads of the built-in cohort, one in four with lesions."""
    template = load_template(cache_folder())
    return [make_head(template, 7000 + k, with_lesions=k % 4 == 0).voxels for k in range(10)]


@pytest.fixture(scope="module")
def members(heads):
    # heads differ in size by some per cent
    return [measured(head, WHOLE + 150 * k) for k, head in enumerate(heads)]


def noisy(head):
    draw = np.random.default_rng(3).normal(0, 60, (2, *head.shape))
    return (np.hypot(head + draw[0], draw[1]) * (head > 0)).astype(np.float32)


def striped(head):
    """Every second slice brighter, as of an interleaved scan."""
    gain = np.where(np.arange(head.shape[0]) % 2, 1.12, 1.0)
    return (head * gain[:, None, None]).astype(np.float32)


def moved(head):
    """Every second slice of a patient who has moved meanwhile."""
    other = np.roll(head, 3, axis=2)
    return np.where((np.arange(head.shape[0]) % 2)[:, None, None], other, head)


def clipped(head):
    return np.minimum(head, np.quantile(head[head > 0], 0.95)).astype(np.float32)


FAULTY = {
    "noise": noisy,
    "sharpness": lambda head: ndimage.uniform_filter1d(head, 5, axis=2),
    "change to the next slice": striped,
    "change to the next": moved,
    "highest value": clipped,
}


def test_ordinary_heads_with_and_without_lesions_pass(members):
    for at, own in enumerate(members):
        others = members[:at] + members[at + 1 :]
        assert quality.faults(own, others, LIMIT) == []


@pytest.mark.parametrize("said", FAULTY)
def test_a_fault_of_the_picture_is_found_and_named(heads, members, said):
    own = measured(FAULTY[said](heads[1]))
    (fault,) = quality.faults(own, members[2:], LIMIT)
    assert said in fault


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_half_a_head_is_said_to_be_cut_and_to_have_too_few_tokens(heads, members, axis):
    half = np.split(heads[1], [heads[1].shape[axis] // 2], axis)[1]
    few, cut = quality.faults(measured(half, WHOLE // 2), members[2:], LIMIT)
    assert few.startswith(f"tokens in the foreground: {WHOLE // 2:.3g}, below the limit")
    assert cut.startswith("sides of the volume that cut the body")


def test_a_side_that_cuts_every_body_is_no_fault(heads):
    cut = [head[20:] for head in heads]
    found = [measured(head) for head in cut]
    assert found[0]["cut_sides"] > 0.5
    assert quality.faults(found[0], found[1:], LIMIT) == []


def test_fewer_than_eight_members_judge_nobody(heads, members):
    own = measured(noisy(heads[1]))
    assert quality.faults(own, members[:7], LIMIT) == []
    assert quality.faults(own, members[:8], LIMIT)


def test_members_and_studies_without_measures_are_left_out(heads, members):
    own = measured(noisy(heads[1]))
    assert quality.faults(own, [*members[:7], {}, {}], LIMIT) == []
    assert quality.faults({}, members, LIMIT) == []
    assert quality.faults(own, members, 0.0) == []


def test_a_lower_limit_keeps_out_what_a_higher_one_lets_in(members):
    own = dict(members[0], noise=members[0]["noise"] * 1.4)
    assert quality.faults(own, members[1:], 5.0) == []
    assert "limit" in quality.faults(own, members[1:], 3.0)[0]


@pytest.mark.parametrize("sigma", [5.0, 20.0])
def test_the_noise_is_that_which_was_added(sigma):
    random = np.random.default_rng(0)
    smooth = np.broadcast_to(np.linspace(200, 1200, 64, dtype=np.float32), (8, 64, 64))
    planes = torch.from_numpy(smooth + random.normal(0, sigma, smooth.shape)).float()
    assert quality.noise(planes, -1e9) == pytest.approx(sigma / 960, rel=0.06)


def test_a_volume_of_one_slice_has_no_jumps_and_is_measured_all_the_same():
    one = np.random.default_rng(0).random((1, 40, 40)).astype(np.float32)
    found = measured(one)
    assert "jumps" not in found
    assert {"noise", "sharpness", "clipped", "tokens"} <= set(found)


@pytest.mark.parametrize("text", ["", "[1]", "{", '{"noise": "much"}', "null"])
def test_measures_that_are_none_are_not_known(text):
    assert quality.from_text(text) == {}


def test_measures_are_kept_as_they_are():
    kept = {"noise": 0.1, "tokens": 12.0}
    assert quality.from_text(quality.as_text(kept)) == kept


# -- in the node ---------------------------------------------------------------------------------


def quiet(_share):
    """Progress that nobody looks at."""


def scored_last(tmp_path, make_last, **protocol):
    """Score nine ordinary series, then one with other voxels; its row in the batch, its score."""
    weights = lines.tiny_weights(tmp_path)
    with ledgers.ledger(tmp_path) as database:
        bounds = {"min_reference": 8, "max_reference": 20, "admission_percentile": 100.0}
        line = lines.make_line(database, tmp_path, weights, protocol=bounds | protocol)
        uids = [lines.receive_series(line, seed) for seed in range(10)]
        ordinary, lines.head = lines.head, make_last
        try:
            uids.append(lines.receive_series(line, 10))
        finally:
            lines.head = ordinary
        for uid in uids:
            pipeline.tokenize(line, uid, quiet)
        for uid in uids:
            pipeline.score(line, uid, quiet)
        (row,) = (
            m
            for m in list_members(line.batch(line.config.protocol[0]))
            if m.series_instance_uid == uids[-1]
        )
        with line.database.read() as db:
            result_table.get_score(db, uids[-1], 1)
        return row


ORDINARY = lines.head


def saturated(seed):
    return np.minimum(ORDINARY(seed), 400.0)


def test_a_study_of_bad_quality_is_scored_and_kept_out_with_its_reason(tmp_path):
    row = scored_last(tmp_path, saturated)
    assert row.state == "excluded"
    assert "share of the foreground at the highest value" in row.reason
    assert row.percentile is not None


def test_without_a_limit_quality_keeps_nobody_out(tmp_path):
    assert scored_last(tmp_path, saturated, quality_limit=0.0).state == "admitted"


def test_tokens_that_are_used_again_bring_their_measures(tmp_path):
    weights = lines.tiny_weights(tmp_path)
    with ledgers.ledger(tmp_path) as database:
        line = lines.make_line(database, tmp_path, weights)
        uid = lines.receive_series(line, 1)
        files, name = line.files(line.config.protocol[0]), line.series(uid)[1]
        pipeline.tokenize(line, uid, quiet)
        first = files.load_measures(name)
        pipeline.tokenize(line, uid, quiet)
    assert first["tokens"] > 0
    assert files.load_measures(name) == first == files.load_subject(name).measures
