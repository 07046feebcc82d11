"""Studies, people and undo in any order: what a reference batch keeps whatever happens to it."""

from collections import Counter

import pytest
from hypothesis import event as note
from hypothesis import given, settings
from hypothesis import strategies as st

from dicom_node import reference_verbs as verbs
from dicom_node.errors import DecisionRefused
from dicom_node.reference import ReferenceBatch
from dicom_node.store import admission_table
from dicom_node.store.reference_table import ADMITTED, RULE
from tests.make import ledgers
from tests.make.ledgers import after

#: of the protocol of these tests
LEAST, MOST = 3, 5

PROTOCOLS = st.builds(
    ledgers.protocol,
    leaves=st.sampled_from(["oldest", "most_redundant"]),
    max_per_scanner=st.sampled_from([None, 1, 2, 0.5, 1.0]),
)
STUDIES = st.tuples(
    st.just("study"),
    st.integers(0, 6),  # patient
    st.sampled_from([0.0, 95.0, 95.1, 100.0]),
    st.sampled_from([(), (), (), ("too few slices",)]),
    st.sampled_from(["", "one #1", "two #2"]),
)
BY_PERSONS = st.one_of(
    st.tuples(st.sampled_from(["include", "exclude", "pin", "unpin"]), st.integers(0, 12)),
    st.tuples(st.sampled_from(["freeze", "unfreeze"])),
    st.tuples(st.just("undo"), st.integers(0, 40)),
)


def redundancy(names):
    """Any order will do, if it is always the same and not that of age."""
    return [int(name[1:]) * 7 % 5 for name in names]


class Rolling:
    """One batch and everything that was done to it."""

    def __init__(self, database, protocol):
        self.database = database
        self.batch = ReferenceBatch(database, protocol, "f", redundancy)
        self.n = 0

    def rows(self):
        """Every member's row and whether the batch is frozen: all that decisions are about."""
        return {m.subject: m for m in verbs.list_members(self.batch)}, self.batch.frozen()

    def admitted(self):
        return verbs.list_members(self.batch, (ADMITTED,))

    def events(self):
        return verbs.history(self.batch, limit=1000)

    def study(self, patient, percentile, quality, scanner):
        self.n += 1
        name, at = f"s{self.n}", after(self.n)
        self.batch.add_candidate(name, f"1.2.{self.n}", f"p{patient}", at, scanner)
        before = self.rows()
        self.batch.decide(name, percentile, quality, at)
        return before

    def by_person(self, verb, *which):
        """Do it where it is possible; refused, it must have changed nothing."""
        before = self.rows()
        argument = [f"s{which[0]}"] if which and verb != "undo" else list(which)
        try:
            getattr(verbs, verb)(self.batch, *argument, "Ada", "because", after(1000))
        except DecisionRefused:
            note(f"{verb} refused")
            assert self.rows() == before
        else:
            note(f"{verb} done")
        return before

    def step(self, kind, *arguments):
        """Returns the rows before the decision."""
        n = len(self.events())
        before = self.study(*arguments) if kind == "study" else self.by_person(kind, *arguments)
        assert len(self.events()) - n <= 1
        return before


def check_bounds(rolling):
    admitted = rolling.admitted()
    assert len(admitted) <= MOST
    assert max(Counter(entry.patient_key for entry in admitted).values(), default=1) == 1
    pinned = [entry for entry in verbs.list_members(rolling.batch) if entry.pinned]
    assert all(entry.state == ADMITTED for entry in pinned)


def check_rule(rolling, before):
    """What a rule may not do: move a pinned member, or anybody while the batch is frozen."""
    rows, frozen = before
    now, _ = rolling.rows()
    for name, entry in rows.items():
        if entry.pinned:
            assert now[name] == entry
        if entry.decided_by != RULE and entry.state != ADMITTED:
            assert now[name] == entry
        if frozen:
            assert (now[name].state == ADMITTED) == (entry.state == ADMITTED)


def check_undo(rolling, before):
    """The last decision can always be taken back, and the taking back too."""
    now, last = rolling.rows(), rolling.events()[0]
    undone = verbs.undo(rolling.batch, last.id, "Ada", "a mistake", after(1000))
    assert rolling.rows() == before
    verbs.undo(rolling.batch, undone.id, "Ada", "no mistake", after(1000))
    assert rolling.rows() == now


@settings(max_examples=50, deadline=None)
@given(PROTOCOLS, st.lists(st.one_of(STUDIES, STUDIES, BY_PERSONS), max_size=25), st.data())
def test_a_batch_keeps_its_bounds_and_any_decision_can_be_taken_back(
    tmp_path_factory, protocol, steps, data
):
    with ledgers.ledger(tmp_path_factory.mktemp("ledger")) as database:
        rolling = Rolling(database, protocol)
        for step in steps:
            n = len(rolling.events())
            before = rolling.step(*step)
            check_bounds(rolling)
            if step[0] == "study":
                check_rule(rolling, before)
            if len(rolling.events()) > n and data.draw(st.booleans()):
                check_undo(rolling, before)
        check_backwards(rolling)


def check_backwards(rolling):
    """From the rows as they are, the decisions lead back to the candidates that studies were."""
    rows, _ = rolling.rows()
    with rolling.database.read() as db:
        events = [admission_table.get_event(db, e.id) for e in rolling.events()]
    for decision in events:
        for change in decision.changes:
            assert rows[change.subject] == change.new
            rows[change.subject] = change.old
    assert {entry.state for entry in rows.values()} <= {"candidate"}
    assert {entry.decided_in for entry in rows.values()} <= {None}


@settings(max_examples=30, deadline=None)
@given(PROTOCOLS, st.lists(STUDIES, max_size=25))
def test_by_rule_alone_no_scanner_is_over_its_quota_in_a_batch_that_is_founded(
    tmp_path_factory, protocol, studies
):
    bound = protocol.max_per_scanner
    quota = MOST if bound is None else int(bound * MOST) if isinstance(bound, float) else bound
    with ledgers.ledger(tmp_path_factory.mktemp("ledger")) as database:
        rolling = Rolling(database, protocol)
        for study in studies:
            rolling.step(*study)
            admitted = rolling.admitted()
            scanners = Counter(entry.scanner for entry in admitted if entry.scanner)
            assert len(admitted) <= LEAST or max(scanners.values(), default=0) <= quota


@settings(max_examples=30, deadline=None)
@given(st.lists(STUDIES, min_size=1, max_size=15), st.data())
def test_all_decisions_undone_from_the_last_to_the_first_leave_candidates(
    tmp_path_factory, studies, data
):
    with ledgers.ledger(tmp_path_factory.mktemp("ledger")) as database:
        rolling = Rolling(database, ledgers.protocol())
        for study in studies:
            rolling.step(*study)
        events = rolling.events()
        early = data.draw(st.sampled_from(events))
        later = {c.subject for e in events if e.id > early.id for c in e.changes}
        before = rolling.rows()
        if later & {c.subject for c in early.changes}:
            with pytest.raises(DecisionRefused, match="undo that one first"):
                verbs.undo(rolling.batch, early.id, "Ada", "out of order", after(1000))
            assert rolling.rows() == before
        for decision in events:
            verbs.undo(rolling.batch, decision.id, "Ada", "all of it", after(1000))
        rows, _ = rolling.rows()
        assert {entry.state for entry in rows.values()} == {"candidate"}
        assert {entry.reason for entry in rows.values()} == {"tokenized, not yet scored"}
