"""The reference batch: who is in it, and the frozen batch of one score."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dicom_node import clock
from dicom_node.errors import InsufficientReference
from dicom_node.reference import ReferenceBatch
from dicom_node.store import reference_table
from dicom_node.store.reference_table import ADMITTED, CANDIDATE, EVICTED, EXCLUDED
from dicom_node.store.tables import batch as batch_rows
from tests.make import ledgers
from tests.make.ledgers import after

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
