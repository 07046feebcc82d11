"""The reference batch: who is in it, what is kept of whom, and what is scored with it."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dicom_node import clock
from dicom_node.anomaly.similarity import mutual_nearest
from dicom_node.anomaly.spec import ScoringSpec
from dicom_node.errors import InsufficientReference, NonFiniteScores
from dicom_node.reference import (
    ReferenceBatch,
    ReferenceFiles,
    _pack_bits,
    _unpack_bits,
    score_against,
)
from dicom_node.store import reference_table
from dicom_node.store.reference_table import ADMITTED, CANDIDATE, EVICTED, EXCLUDED
from dicom_node.store.tables import batch as batch_rows
from tests.make import ledgers
from tests.make.ledgers import after
from tests.make.subjects import GRID, subject
from tests.oracle import calibration as calibration_oracle
from tests.oracle import similarity as similarity_oracle

ALL = (CANDIDATE, ADMITTED, EXCLUDED, EVICTED)


class Batches:
    """The batch of one protocol, filled by hand."""

    def __init__(self, database, name="t1", fingerprint="f", **changes):
        self.database = database
        self.name, self.fingerprint = name, fingerprint
        self.protocol = ledgers.protocol(name, **changes)
        self.batch = ReferenceBatch(database, self.protocol, fingerprint)
        self.n = 0

    def add(self, subject, patient=None, state=CANDIDATE, uid=None):
        """Subjects are added a second apart; a patient is as good as its subject's name."""
        self.n += 1
        uid = uid or f"1.2.{self.name}.{subject}"
        self.batch.add_candidate(subject, uid, patient or f"patient of {subject}", after(self.n))
        if state != CANDIDATE:
            with self.database.begin() as db:
                where = (self.name, self.fingerprint)
                reference_table.set_state(db, *where, subject, state, "by hand")

    def subjects(self, subject="new", patient="patient of new"):
        return self.batch.snapshot(subject, patient, after(100)).subjects

    def states(self):
        with self.database.read() as db:
            found = reference_table.members(db, self.name, self.fingerprint, ALL)
        return {entry.subject: entry.state for entry in found}


@pytest.fixture
def database(tmp_path):
    with ledgers.ledger(tmp_path) as opened:
        yield opened


@pytest.fixture
def batches(database):
    return Batches(database)


# -- the snapshot --------------------------------------------------------------------------------


def test_a_study_is_never_scored_with_itself_or_with_its_own_patient(batches):
    for name in "abcd":
        batches.add(name, state=ADMITTED)
    batches.add("new", "patient of d", state=ADMITTED)
    assert batches.subjects("new", "patient of d") == ("a", "b", "c")


def test_each_patient_is_there_once_with_the_newest_study(batches):
    batches.add("old a", "patient a", ADMITTED)
    for name in "bc":
        batches.add(name, state=ADMITTED)
    batches.add("new a", "patient a", ADMITTED)
    assert batches.subjects() == ("b", "c", "new a")


def test_candidates_serve_only_until_enough_are_admitted(batches):
    for name, state in zip("abc", (ADMITTED, CANDIDATE, CANDIDATE), strict=True):
        batches.add(name, state=state)
    assert batches.subjects() == ("a", "b", "c")
    for name in "de":
        batches.add(name, state=ADMITTED)
    assert batches.subjects() == ("a", "d", "e")


@pytest.mark.parametrize("state", [EXCLUDED, EVICTED])
def test_who_was_kept_out_or_left_never_serves(batches, state):
    for name in "abc":
        batches.add(name, state=ADMITTED)
    batches.add("out", state=state)
    assert batches.subjects() == ("a", "b", "c")


def test_no_more_than_the_largest_batch_serves_the_newest_of_them(batches):
    for name in "abcdefg":
        batches.add(name)
    assert batches.subjects() == ("c", "d", "e", "f", "g")


def test_too_few_reference_subjects_are_said_with_what_happens_next(batches):
    batches.add("a", state=ADMITTED)
    batches.add("b")
    batches.add("new", "patient of new")
    with pytest.raises(
        InsufficientReference,
        match=r"2 of 3 reference subjects of protocol 't1'; the study is scored by itself when",
    ):
        batches.subjects()


def test_the_version_of_a_batch_is_its_content(database, batches):
    for name in "cab":
        batches.add(name, state=ADMITTED)
    first = batches.batch.snapshot("new", "patient of new", after(50))
    again = batches.batch.snapshot("other", "patient of other", after(60))
    assert first == again
    assert first.version.startswith("t1-")
    batches.add("d", state=ADMITTED)
    grown = batches.batch.snapshot("new", "patient of new", after(70))
    other_space = Batches(database, fingerprint="g")
    for name in "abc":
        other_space.add(name, state=ADMITTED)
    elsewhere = other_space.batch.snapshot("new", "patient of new", after(80))
    assert len({first.version, grown.version, elsewhere.version}) == 3
    with database.read() as db:
        kept = {row.version: row for row in db.execute(batch_rows.select())}
    assert set(kept) == {first.version, grown.version, elsewhere.version}
    assert kept[first.version].subjects == ["a", "b", "c"]
    assert kept[first.version].frozen == clock.stamp(after(50))


def test_batches_of_other_protocols_and_token_spaces_do_not_mix(database, batches):
    for name in "abc":
        batches.add(name, state=ADMITTED)
    for other in (Batches(database, "ct"), Batches(database, fingerprint="g")):
        with pytest.raises(InsufficientReference, match="0 of 3"):
            other.subjects()


def test_a_new_revision_of_a_series_takes_the_place_of_the_old_one(batches):
    batches.add("rev 1", uid="1.2.9", state=ADMITTED)
    batches.add("rev 2", uid="1.2.9")
    assert batches.states() == {"rev 1": EVICTED, "rev 2": CANDIDATE}
    batches.add("rev 2", uid="1.2.9")
    assert batches.states() == {"rev 1": EVICTED, "rev 2": CANDIDATE}


# -- admission -----------------------------------------------------------------------------------


def test_a_usual_study_is_admitted(batches):
    batches.add("a")
    assert batches.batch.decide("a", 95.0) == "admitted: percentile 95, limit 95"
    assert batches.states() == {"a": ADMITTED}


def test_an_unusual_study_goes_on_as_a_candidate_while_the_batch_is_founded(batches):
    for name in "ab":
        batches.add(name, state=ADMITTED)
    batches.add("c")
    assert "serves while the batch is founded" in batches.batch.decide("c", 100.0)
    assert batches.states()["c"] == CANDIDATE


def test_an_unusual_study_is_kept_out_of_a_founded_batch(batches):
    for name in "abc":
        batches.add(name, state=ADMITTED)
    batches.add("d")
    assert batches.batch.decide("d", 95.1) == "kept out: percentile 95, limit 95"
    assert batches.states()["d"] == EXCLUDED


def test_the_oldest_leaves_a_full_batch(batches):
    for name in "abcde":
        batches.add(name, state=ADMITTED)
    batches.add("f")
    batches.batch.decide("f", 10.0)
    assert batches.states() == {"a": EVICTED} | dict.fromkeys("bcdef", ADMITTED)


def test_a_patient_who_comes_often_does_not_drive_the_others_out(batches):
    for name in "abcd":
        batches.add(name, state=ADMITTED)
    for visit in range(4):
        batches.add(f"visit {visit}", "one patient")
        batches.batch.decide(f"visit {visit}", 50.0)
    assert batches.states() == dict.fromkeys([*"abcd", "visit 3"], ADMITTED) | dict.fromkeys(
        ["visit 0", "visit 1", "visit 2"], EVICTED
    )


def test_a_revision_that_left_is_not_admitted_by_the_score_that_came_late(batches):
    batches.add("rev 1", uid="1.2.9")
    batches.add("rev 2", uid="1.2.9")
    assert batches.batch.decide("rev 1", 10.0) == "not admitted: it has left the batch"
    assert batches.states() == {"rev 1": EVICTED, "rev 2": CANDIDATE}


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 6), st.sampled_from(ALL), st.integers(0, 9)),
        unique_by=lambda entry: entry[2],
        max_size=10,
    )
)
def test_ready_means_that_every_member_could_be_scored(tmp_path_factory, members):
    with ledgers.ledger(tmp_path_factory.mktemp("ledger")) as database:
        batches = Batches(database)
        for patient, state, name in members:
            batches.add(f"s{name}", f"patient {patient}", state)
        serving = [(f"s{n}", f"patient {p}") for p, s, n in members if s in (CANDIDATE, ADMITTED)]
        scored = [can_be_scored(batches, *member) for member in serving]
        assert batches.batch.ready() == (bool(scored) and all(scored))


def can_be_scored(batches, name, patient):
    try:
        return name not in batches.subjects(name, patient)
    except InsufficientReference:
        return False


# -- what is kept of a subject -------------------------------------------------------------------


@pytest.fixture
def files(tmp_path):
    return ReferenceFiles(tmp_path, "f")


def test_a_kept_subject_comes_back_with_its_tokens_rounded(files):
    made = subject(1)
    assert not files.has_subject("a")
    files.save_subject("a", made)
    assert files.has_subject("a")
    back = files.load_subject("a")
    rounded = made.tokens.values.to(torch.bfloat16).float()
    torch.testing.assert_close(back.tokens.values, rounded, atol=0, rtol=0)
    assert torch.equal(back.tokens.index, made.tokens.index)
    assert back.tokens.grid_shape == GRID
    assert torch.equal(back.foreground, made.foreground)
    assert torch.equal(back.affine, made.affine)
    index, shape = files.token_places("a")
    assert torch.equal(index, made.tokens.index)
    assert shape == GRID
    with pytest.raises(FileNotFoundError):
        files.load_subject("b")


def test_token_spaces_do_not_share_files(tmp_path, files):
    files.save_subject("a", subject(1))
    assert not ReferenceFiles(tmp_path, "g").has_subject("a")


@given(st.lists(st.booleans(), max_size=40))
def test_packed_bits_come_back(flags):
    packed = _pack_bits(torch.tensor(flags, dtype=torch.uint8))
    assert packed.numel() == (len(flags) + 7) // 8
    assert _unpack_bits(packed)[: len(flags)].bool().tolist() == flags


def test_kept_distances_are_those_measured_afresh_in_both_directions(files, monkeypatch):
    names = ["a", "b", "c"]
    for seed, name in enumerate(names):
        files.save_subject(name, subject(seed))
    first = files.distances("a", ["b", "c"], 3)
    values = {name: files.load_subject(name).tokens.values for name in names}
    for other, found in zip(["b", "c"], first, strict=True):
        for layer, queries in enumerate(values["a"]):
            expected = mutual_nearest(queries, values[other][layer], 2048)[0]
            torch.testing.assert_close(found[layer], expected, atol=1e-5, rtol=1e-5)
    measured = []
    monkeypatch.setattr(files, "load_subject", lambda name: measured.append(name))
    assert torch.equal(files.distances("a", ["c", "b"], 3), first.flip(0))
    back = files.distances("b", ["a"], 3)
    assert measured == []
    for layer, queries in enumerate(values["b"]):
        expected = mutual_nearest(queries, values["a"][layer], 2048)[0]
        torch.testing.assert_close(back[0, layer], expected, atol=1e-5, rtol=1e-5)


# -- scores --------------------------------------------------------------------------------------


def oracle_grid(files, name, others, share):
    """Mean over the layers of the loops' token scores, by place."""
    loaded = [files.load_subject(n).tokens for n in (name, *others)]
    index = loaded[0].index.tolist()
    per_layer = [
        similarity_oracle.token_scores([t.values[layer].tolist() for t in loaded], 0, share)
        for layer in range(loaded[0].values.shape[0])
    ]
    scores = [sum(column) / len(column) for column in zip(*per_layer, strict=True)]
    places = [tuple(map(int, np.unravel_index(flat, GRID))) for flat in index]
    return dict(zip(places, scores, strict=True))


def by_place(grid):
    return {
        tuple(place): float(grid[tuple(place)]) for place in torch.nonzero(grid.isfinite()).tolist()
    }


def assert_same(grid, expected):
    assert by_place(grid) == pytest.approx(expected, abs=2e-3, rel=2e-3)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10_000), st.integers(3, 5), st.sampled_from([0.1, 0.5, 1.0]))
def test_scores_and_their_calibration_equal_the_loops(tmp_path_factory, seed, n, share):
    files = ReferenceFiles(tmp_path_factory.mktemp("files"), "f")
    names = [f"s{place}" for place in range(n + 1)]
    for place, name in enumerate(names):
        files.save_subject(name, subject(seed * 10 + place))
    spec = ScoringSpec(nearest_share=share, chunk=5)
    own, *batch = names
    found = score_against(files, own, batch, spec)
    raw = oracle_grid(files, own, batch, share)
    usual = [oracle_grid(files, b, [o for o in batch if o != b], share) for b in batch]
    oracle = calibration_oracle.location_and_scale(usual, GRID, spec.scale_floor)
    assert_same(found.raw, raw)
    assert_same(found.calibrated, calibration_oracle.calibrated(raw, *oracle))
    for place, grid in enumerate(found.reference):
        rest = usual[:place] + usual[place + 1 :]
        oracle = calibration_oracle.location_and_scale(rest, GRID, spec.scale_floor)
        assert_same(grid, calibration_oracle.calibrated(usual[place], *oracle))


def test_without_calibration_the_scores_are_the_raw_distances(files):
    for place, name in enumerate("abcd"):
        files.save_subject(name, subject(place))
    found = score_against(files, "a", ["b", "c", "d"], ScoringSpec(calibration="none"))
    torch.testing.assert_close(found.calibrated, found.raw, equal_nan=True)
    assert_same(found.raw, oracle_grid(files, "a", ["b", "c", "d"], 0.3))
    assert_same(found.reference[0], oracle_grid(files, "b", ["c", "d"], 0.3))


def test_a_subject_whose_tokens_are_no_numbers_is_not_passed_over(files):
    for place, name in enumerate("abcd"):
        made = subject(place)
        if name == "c":
            made.tokens.values[0, 0, 0] = torch.nan
        files.save_subject(name, made)
    with pytest.raises(NonFiniteScores, match="not finite"):
        score_against(files, "a", ["b", "c", "d"], ScoringSpec())


def test_progress_is_told_once_per_reference_subject(files):
    for place, name in enumerate("abcd"):
        files.save_subject(name, subject(place))
    told = []
    score_against(files, "a", ["b", "c", "d"], ScoringSpec(), told.append)
    assert told == pytest.approx([1 / 3, 2 / 3, 1.0])


def test_the_order_in_which_subjects_came_never_changes_a_score(tmp_path):
    """Distances are kept pair by pair, as subjects come: no order may leave a trace in them."""
    found = []
    for number, order in enumerate(["bcde", "edcb", "cebd", "dbec"]):
        files = ReferenceFiles(tmp_path / str(number), "f")
        known = []
        for name in order:
            files.save_subject(name, subject(ord(name)))
            if known:
                files.distances(name, known, 2)
            known.append(name)
        files.save_subject("a", subject(ord("a")))
        found.append(score_against(files, "a", known, ScoringSpec(chunk=3)).calibrated)
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], atol=1e-4, rtol=1e-4, equal_nan=True)
