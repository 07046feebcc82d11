"""The reference batch: who is in it, and the frozen batch of one score."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dicom_node import clock
from dicom_node.errors import InsufficientReference
from dicom_node.reference import ReferenceBatch
from dicom_node.store import admission_table, reference_table
from dicom_node.store.reference_table import ADMITTED, CANDIDATE, EVICTED, EXCLUDED
from dicom_node.store.tables import batch as batch_rows
from tests.make import ledgers
from tests.make.ledgers import after

ALL = (CANDIDATE, ADMITTED, EXCLUDED, EVICTED)


class Batches:
    """The batch of one protocol, filled by hand."""

    def __init__(self, database, name="t1", fingerprint="f", redundancy=None, **changes):
        self.database = database
        self.name, self.fingerprint = name, fingerprint
        self.protocol = ledgers.protocol(name, **changes)
        self.batch = ReferenceBatch(database, self.protocol, fingerprint, redundancy)
        self.n = 0

    def add(self, subject, patient=None, state=CANDIDATE, uid=None, scanner="", **changes):
        """Subjects are added a second apart; a patient is as good as its subject's name."""
        self.n += 1
        uid = uid or f"1.2.{self.name}.{subject}"
        patient = patient or f"patient of {subject}"
        self.batch.add_candidate(subject, uid, patient, after(self.n), scanner)
        if state != CANDIDATE:
            where = (self.name, self.fingerprint)
            with self.database.begin() as db:
                entry = reference_table.get_member(db, *where, subject)
                put = replace(entry, state=state, reason="by hand", **changes)
                reference_table.replace_row(db, *where, subject, put)

    def subjects(self, subject="new", patient="patient of new"):
        return self.batch.snapshot(subject, patient, after(100)).subjects

    def members(self):
        with self.database.read() as db:
            found = reference_table.members(db, self.name, self.fingerprint, ALL)
        return {entry.subject: entry for entry in found}

    def states(self):
        return {subject: entry.state for subject, entry in self.members().items()}

    def events(self):
        with self.database.read() as db:
            return admission_table.history(db, self.name, self.fingerprint)


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


def test_each_decision_is_a_row_with_its_reason_and_its_rows_of_before(batches):
    for name in "abcde":
        batches.add(name, state=ADMITTED)
    batches.add("f", scanner="Make Model #1")
    old = batches.members()
    reason = batches.batch.decide("f", 12.5, at=after(50))
    (event,) = batches.events()
    assert (event.decision.actor, event.decision.verb) == ("rule", "admit")
    assert event.decision.reason == reason == "admitted: percentile 12, limit 95"
    assert event.at == after(50)
    assert {change.subject: change.old for change in event.changes} == {s: old[s] for s in "fa"}
    now = batches.members()
    assert {change.subject: change.new for change in event.changes} == {s: now[s] for s in "fa"}
    assert now["f"].percentile == 12.5
    assert now["f"].scanner == "Make Model #1"
    assert (now["f"].decided_by, now["f"].decided_in) == ("rule", event.id)
    assert now["a"].reason == "the batch is full: the oldest leaves"


def test_a_study_that_fails_a_quality_check_serves_in_no_batch(batches):
    batches.add("a")
    found = batches.batch.decide("a", 10.0, ["12 of 30 slices", "motion"])
    assert found == "kept out: 12 of 30 slices; motion"
    assert batches.states() == {"a": EXCLUDED}


def test_the_limit_is_the_protocol_s_own(database):
    batches = Batches(database, admission_percentile=80.5)
    for name in "abc":
        batches.add(name, state=ADMITTED)
    for name, percentile in (("d", 80.5), ("e", 80.6)):
        batches.add(name)
        assert batches.batch.decide(name, percentile).endswith("limit 80.5")
    assert batches.states() == dict.fromkeys("abcd", ADMITTED) | {"e": EXCLUDED}


def test_a_subject_that_nobody_made_known_cannot_be_judged(batches):
    with pytest.raises(LookupError, match="'t1'"):
        batches.batch.decide("nobody", 10.0)


def test_pinned_members_never_leave_by_rule(batches):
    for name in "abcde":
        batches.add(name, state=ADMITTED, pinned=name in "ab")
    for name in "fg":
        batches.add(name)
        batches.batch.decide(name, 10.0)
    assert batches.states() == dict.fromkeys("cd", EVICTED) | dict.fromkeys("abefg", ADMITTED)


def test_nobody_comes_into_a_batch_whose_members_are_all_pinned(batches):
    for name in "abcde":
        batches.add(name, state=ADMITTED, pinned=True)
    batches.add("f")
    found = batches.batch.decide("f", 10.0)
    assert found == "kept out: the batch is full: the oldest leaves"
    assert batches.states() == dict.fromkeys("abcde", ADMITTED) | {"f": EXCLUDED}


def test_a_newer_study_of_a_patient_whose_study_is_pinned_is_kept_out(batches):
    batches.add("old", "one patient", ADMITTED, pinned=True)
    batches.add("new", "one patient")
    found = batches.batch.decide("new", 10.0)
    assert found == "kept out: a pinned study of the patient is in the batch"
    assert batches.states() == {"old": ADMITTED, "new": EXCLUDED}


def test_a_study_that_is_scored_after_a_newer_one_of_its_patient_is_kept_out(batches):
    batches.add("old", "one patient")
    batches.add("new", "one patient")
    batches.batch.decide("new", 10.0)
    found = batches.batch.decide("old", 10.0)
    assert found == "kept out: a newer study of the patient is in the batch"
    assert batches.states() == {"old": EXCLUDED, "new": ADMITTED}


@pytest.mark.parametrize("bound", [2, 0.5])
def test_the_oldest_of_a_scanner_beyond_its_quota_leaves(database, bound):
    """Half of five are two."""
    batches = Batches(database, max_per_scanner=bound)
    for name, scanner in zip("abcd", ["one", "two", "one", "two"], strict=True):
        batches.add(name, state=ADMITTED, scanner=scanner)
    batches.add("e", scanner="one")
    batches.batch.decide("e", 10.0)
    assert batches.states() == {"a": EVICTED} | dict.fromkeys("bcde", ADMITTED)
    assert batches.members()["a"].reason == "the scanner's quota is full: its oldest leaves"


def test_a_scanner_s_quota_never_keeps_a_batch_from_being_founded(database):
    """Nor does it hold for series that do not say who made them."""
    batches = Batches(database, max_per_scanner=1)
    for name in "abc":
        batches.add(name, scanner="one")
        batches.batch.decide(name, 10.0)
    assert batches.states() == dict.fromkeys("abc", ADMITTED)
    for name in "de":
        batches.add(name)
        batches.batch.decide(name, 10.0)
    assert batches.states() == dict.fromkeys("ab", EVICTED) | dict.fromkeys("cde", ADMITTED)


def test_the_most_redundant_leaves_where_the_protocol_says_so(database):
    asked = []

    def redundancy(names):
        asked.append(names)
        return [0.1 if name in "ce" else 0.5 for name in names]

    batches = Batches(database, redundancy=redundancy, leaves="most_redundant")
    for name in "abcdef":
        batches.add(name)
        batches.batch.decide(name, 10.0)
    assert asked == [list("abcdef")]  # nobody has to leave before that
    assert batches.states() == {"c": EVICTED} | dict.fromkeys("abdef", ADMITTED)
    assert batches.members()["c"].reason == "the batch is full: the most redundant leaves"
    batches.add("g")
    batches.batch.decide("g", 10.0)
    assert batches.states()["e"] == EVICTED


def test_a_study_that_adds_nothing_to_a_full_batch_is_kept_out(database):
    def redundancy(names):
        return [0.1 if name == "f" else 0.5 for name in names]

    batches = Batches(database, redundancy=redundancy, leaves="most_redundant")
    for name in "abcdef":
        batches.add(name)
        batches.batch.decide(name, 10.0)
    assert batches.states() == dict.fromkeys("abcde", ADMITTED) | {"f": EXCLUDED}


def test_a_pinned_revision_stays_when_late_instances_make_a_new_one(batches):
    batches.add("rev 1", uid="1.2.9", state=ADMITTED, pinned=True)
    batches.add("rev 2", uid="1.2.9")
    assert batches.states() == {"rev 1": ADMITTED, "rev 2": CANDIDATE}


def test_a_pinned_member_serves_in_a_batch_that_became_too_long(database):
    batches = Batches(database)
    for name in "abcdefg":
        batches.add(name, state=ADMITTED, pinned=name == "b")
    assert batches.subjects() == ("b", "d", "e", "f", "g")


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
