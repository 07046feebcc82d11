"""What people decide about a reference batch, and how it is taken back."""

from dataclasses import replace

import pytest
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError

from dicom_node import clock
from dicom_node import reference_verbs as verbs
from dicom_node.errors import DecisionRefused, InsufficientReference
from dicom_node.jobs import Stage
from dicom_node.reference import ReferenceBatch
from dicom_node.store.reference_table import ADMITTED, CANDIDATE, EVICTED, EXCLUDED
from dicom_node.store.tables import job, member
from tests.make import ledgers
from tests.make.ledgers import after

WHO = ("Ada", "looked at it")


@pytest.fixture
def batch(database):
    return ReferenceBatch(database, ledgers.protocol(), "f")


def study(batch, name, percentile=50.0, patient=None):
    """Received, scored and judged; a patient of its own unless one is named."""
    n = len(verbs.list_members(batch)) + 1
    batch.add_candidate(name, f"1.2.{n}", patient or f"patient of {name}", after(n))
    if percentile is not None:
        batch.decide(name, percentile, at=after(n))


def studies(batch, names, percentile=50.0):
    for name in names:
        study(batch, name, percentile)


def states(batch):
    return {entry.subject: entry.state for entry in verbs.list_members(batch)}


def rows(batch):
    return verbs.list_members(batch)


# -- to look at ----------------------------------------------------------------------------------


def test_a_member_is_shown_with_all_that_was_decided_of_it(batch):
    studies(batch, "abcdef")
    verbs.include(batch, "a", "Ada", "rare and normal", after(50))
    shown = verbs.show(batch, "a")
    assert shown.member.state == ADMITTED
    assert [(e.decision.actor, e.decision.verb) for e in shown.events] == [
        ("Ada", "include"),
        ("rule", "admit"),  # of f, for which it left
        ("rule", "admit"),
    ]
    assert shown.member.decided_in == shown.events[0].id
    assert len(verbs.history(batch)) == 7
    assert [e.id for e in verbs.history(batch, limit=2)] == [7, 6]


def test_members_are_listed_by_state_oldest_first(batch):
    studies(batch, "bacdef")
    assert [m.subject for m in verbs.list_members(batch)] == list("bacdef")
    assert [m.subject for m in verbs.list_members(batch, (EVICTED,))] == ["b"]


def test_the_current_batch_is_the_one_that_the_newest_study_came_into(database):
    protocol = ledgers.protocol()
    with pytest.raises(DecisionRefused, match="no study of protocol 't1' has come yet"):
        verbs.current_batch(database, protocol)
    for n, fingerprint in enumerate(["old", "new", "newest"]):
        study(ReferenceBatch(database, protocol, fingerprint), "abc"[n])
        with database.begin() as db:
            moment = clock.stamp(after(n))
            where = member.c.fingerprint == fingerprint
            db.execute(member.update().where(where).values(added=moment))
        assert verbs.current_batch(database, protocol).fingerprint == fingerprint
    study(ReferenceBatch(database, ledgers.protocol("ct"), "of ct"), "d")
    assert verbs.current_batch(database, protocol).fingerprint == "newest"


@pytest.mark.parametrize("verb", ["include", "exclude", "pin", "unpin"])
def test_a_subject_that_is_not_known_is_named(batch, verb):
    with pytest.raises(DecisionRefused, match=r"no subject 'x' .* protocol 't1'; `reference list`"):
        getattr(verbs, verb)(batch, "x", *WHO)
    with pytest.raises(DecisionRefused, match="no subject 'x'"):
        verbs.show(batch, "x")


# -- include and exclude -------------------------------------------------------------------------


def test_what_a_person_includes_comes_in_whatever_its_score(batch):
    studies(batch, "abcde")
    study(batch, "f", 100.0)
    event = verbs.include(batch, "f", *WHO, after(50))
    assert states(batch) == {"a": EVICTED} | dict.fromkeys("bcdef", ADMITTED)
    (entry,) = [m for m in rows(batch) if m.subject == "f"]
    assert (entry.reason, entry.decided_by) == ("looked at it", "Ada")
    assert event.at == after(50)
    with pytest.raises(DecisionRefused, match="f is admitted already"):
        verbs.include(batch, "f", *WHO)


def test_what_a_person_includes_takes_the_place_of_the_patient_s_other_study(batch):
    study(batch, "old", 100.0, "one patient")
    study(batch, "new", 50.0, "one patient")
    verbs.include(batch, "old", *WHO)
    assert states(batch) == {"old": ADMITTED, "new": EVICTED}


def test_what_pinned_members_have_no_room_for_is_not_included(batch):
    studies(batch, "abcde")
    study(batch, "f", 100.0)
    study(batch, "a again", 100.0, "patient of a")
    verbs.pin(batch, "a", *WHO)
    before = rows(batch)
    with pytest.raises(DecisionRefused, match=r"pinned study of the patient .* unpin or exclude"):
        verbs.include(batch, "a again", *WHO)
    assert rows(batch) == before
    for name in "bcde":
        verbs.pin(batch, name, *WHO)
    with pytest.raises(DecisionRefused, match="all 5 places are pinned"):
        verbs.include(batch, "f", *WHO)


def test_a_quota_does_not_stand_against_a_person(database):
    batch = ReferenceBatch(database, ledgers.protocol(max_per_scanner=1), "f")
    for n, name in enumerate("abcd"):
        batch.add_candidate(name, f"1.2.{n}", f"patient of {name}", after(n), f"scanner {n % 3}")
    for name in "abc":
        batch.decide(name, 50.0)
    verbs.include(batch, "d", *WHO)
    assert states(batch) == dict.fromkeys("abcd", ADMITTED)


@pytest.mark.parametrize(("verb", "state"), [("include", ADMITTED), ("exclude", EXCLUDED)])
def test_a_score_that_comes_later_does_not_overrule_a_person(batch, verb, state):
    study(batch, "a", None)
    getattr(verbs, verb)(batch, "a", *WHO)
    before = rows(batch)
    opposite = 100.0 if state == ADMITTED else 10.0
    assert batch.decide("a", opposite) == f"{state}, as Ada decided: looked at it"
    assert rows(batch) == before


def test_what_a_person_excludes_serves_no_more(batch):
    studies(batch, "abcd")
    verbs.exclude(batch, "b", *WHO)
    assert batch.snapshot("new", "patient of new", after(50)).subjects == ("a", "c", "d")
    with pytest.raises(DecisionRefused, match="b is excluded already, by Ada"):
        verbs.exclude(batch, "b", "Ben", "me too")


def test_a_person_may_confirm_what_the_rule_excluded(batch):
    studies(batch, "abc")
    study(batch, "d", 100.0)
    verbs.exclude(batch, "d", *WHO)
    (entry,) = [m for m in rows(batch) if m.subject == "d"]
    assert (entry.state, entry.decided_by) == (EXCLUDED, "Ada")


# -- pin -----------------------------------------------------------------------------------------


def test_a_pinned_member_stays_until_it_is_unpinned(batch):
    studies(batch, "abcde")
    verbs.pin(batch, "a", *WHO)
    study(batch, "f")
    assert states(batch) == {"b": EVICTED} | dict.fromkeys("acdef", ADMITTED)
    with pytest.raises(DecisionRefused, match="a is pinned already"):
        verbs.pin(batch, "a", *WHO)
    verbs.unpin(batch, "a", *WHO)
    study(batch, "g")
    assert states(batch)["a"] == EVICTED
    with pytest.raises(DecisionRefused, match="a is not pinned"):
        verbs.unpin(batch, "a", *WHO)
    with pytest.raises(DecisionRefused, match="a is evicted: include it first"):
        verbs.pin(batch, "a", *WHO)


def test_a_pin_goes_with_its_member(batch):
    studies(batch, "a")
    verbs.pin(batch, "a", *WHO)
    verbs.exclude(batch, "a", *WHO)
    assert [(m.state, m.pinned) for m in rows(batch)] == [(EXCLUDED, False)]


# -- freeze --------------------------------------------------------------------------------------


def test_nobody_comes_or_leaves_by_rule_while_the_batch_is_frozen(batch):
    studies(batch, "abc")
    verbs.freeze(batch, *WHO)
    assert batch.frozen()
    study(batch, "d", 50.0)
    study(batch, "e", 100.0)
    study(batch, "a again", 50.0, "patient of a")
    batch.add_candidate("b, longer", "1.2.2", "patient of b", after(50))
    expected = dict.fromkeys("abc", ADMITTED) | {"d": CANDIDATE, "e": EXCLUDED}
    assert states(batch) == expected | {"a again": CANDIDATE, "b, longer": CANDIDATE}
    (entry,) = [m for m in rows(batch) if m.subject == "d"]
    assert entry.reason == "not admitted: percentile 50, limit 95; the batch is frozen"
    assert batch.decide("a", 100.0) == "stays admitted: the batch is frozen"
    verbs.include(batch, "d", *WHO)  # a person is no rule
    verbs.unfreeze(batch, *WHO)
    study(batch, "f")
    assert [m.subject for m in verbs.list_members(batch, (ADMITTED,))] == list("abcdf")


def test_candidates_never_serve_in_a_frozen_batch(batch):
    studies(batch, "abc")
    verbs.freeze(batch, *WHO)
    study(batch, "d")
    assert not batch.ready()
    verbs.exclude(batch, "a", *WHO)
    with pytest.raises(InsufficientReference, match="2 of 3"):
        batch.snapshot("new", "patient of new", after(50))
    verbs.unfreeze(batch, *WHO)
    assert batch.snapshot("new", "patient of new", after(50)).subjects == ("b", "c", "d")


def test_a_batch_that_is_being_founded_cannot_be_frozen(batch):
    studies(batch, "ab")
    with pytest.raises(DecisionRefused, match="being founded: 2 of 3 are admitted"):
        verbs.freeze(batch, *WHO)
    with pytest.raises(DecisionRefused, match="'t1' is not frozen"):
        verbs.unfreeze(batch, *WHO)
    study(batch, "c")
    verbs.freeze(batch, *WHO)
    with pytest.raises(DecisionRefused, match="'t1' is frozen"):
        verbs.freeze(batch, *WHO)


def test_a_freeze_is_of_one_token_space(database, batch):
    studies(batch, "abc")
    verbs.freeze(batch, *WHO)
    assert not ReferenceBatch(database, batch.protocol, "g").frozen()


def test_a_freeze_and_its_undo_are_undone_like_anything_else(batch):
    studies(batch, "abc")
    first = verbs.freeze(batch, *WHO)
    undone = verbs.undo(batch, first.id, *WHO)
    assert (batch.frozen(), undone.decision.verb) == (False, "unfreeze")
    with pytest.raises(DecisionRefused, match=f"decision {first.id} is undone already"):
        verbs.undo(batch, first.id, *WHO)
    again = verbs.undo(batch, undone.id, *WHO)
    assert batch.frozen()
    thawed = verbs.unfreeze(batch, *WHO)
    with pytest.raises(DecisionRefused, match="later one"):
        verbs.undo(batch, again.id, *WHO)
    verbs.undo(batch, thawed.id, *WHO)
    assert batch.frozen()
    verbs.undo(batch, first.id, *WHO)
    assert not batch.frozen()


# -- undo ----------------------------------------------------------------------------------------


def test_an_undone_admission_leaves_every_row_as_it_was(batch):
    studies(batch, "abcde")
    study(batch, "f", None)
    before = rows(batch)
    batch.decide("f", 50.0)
    assert rows(batch) != before
    event = verbs.undo(batch, verbs.history(batch)[0].id, *WHO, after(60))
    assert rows(batch) == before
    assert event.decision.verb == "undo"
    assert event.decision.reason == (
        "undoes admit (admitted: percentile 50, limit 95): looked at it"
    )


def test_a_later_decision_about_the_same_member_has_to_be_undone_first(batch):
    studies(batch, "abcdef")
    admitted_f, pinned_f = verbs.history(batch)[0], verbs.pin(batch, "f", *WHO)
    text = rf"decision {pinned_f.id} \(pin by Ada\) came after decision {admitted_f.id}"
    with pytest.raises(DecisionRefused, match=f"{text} and changed f too: undo that one first"):
        verbs.undo(batch, admitted_f.id, *WHO)
    verbs.undo(batch, pinned_f.id, *WHO)
    verbs.undo(batch, admitted_f.id, *WHO)
    assert states(batch) == dict.fromkeys("abcde", ADMITTED) | {"f": CANDIDATE}
    with pytest.raises(DecisionRefused, match=f"{admitted_f.id} is undone already, by decision 9"):
        verbs.undo(batch, admitted_f.id, *WHO)


def test_what_has_no_room_any_more_does_not_come_back(batch):
    studies(batch, "abcde")
    out = verbs.exclude(batch, "a", *WHO)
    study(batch, "a again", 50.0, "patient of a")
    before = rows(batch)
    with pytest.raises(DecisionRefused, match="would hold 6 of 5 subjects: exclude another first"):
        verbs.undo(batch, out.id, *WHO)
    verbs.exclude(batch, "b", *WHO)
    with pytest.raises(DecisionRefused, match="a and a again are studies of one patient"):
        verbs.undo(batch, out.id, *WHO)
    verbs.undo(batch, verbs.history(batch)[0].id, *WHO)
    assert [replace(m, decided_in=0) for m in rows(batch)] == [
        replace(m, decided_in=0) for m in before
    ]


def test_the_eviction_of_an_old_revision_is_a_decision_too(batch):
    study(batch, "rev 1")
    batch.add_candidate("rev 2", "1.2.1", "patient of rev 1", after(50))
    (event, _) = verbs.history(batch)
    assert (event.decision.verb, states(batch)["rev 1"]) == ("evict", EVICTED)
    verbs.undo(batch, event.id, *WHO)
    assert states(batch) == {"rev 1": ADMITTED, "rev 2": CANDIDATE}


def test_what_is_no_decision_about_this_batch_cannot_be_undone(database, batch):
    with pytest.raises(DecisionRefused, match=r"no decision 1 .*`reference history`"):
        verbs.undo(batch, 1, *WHO)
    studies(batch, "a")
    other = ReferenceBatch(database, ledgers.protocol("ct"), "f")
    with pytest.raises(DecisionRefused, match="decision 1 is about another batch, of 't1'"):
        verbs.undo(other, 1, *WHO)


# -- what all share ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["", " ", "rule", "Rule", "a\nb", " Ada", "x" * 65])
def test_a_decision_without_a_person_is_refused(batch, name):
    studies(batch, "a")
    before = rows(batch)
    for verb in (verbs.exclude, verbs.pin):
        with pytest.raises(DecisionRefused, match="is no name of a person"):
            verb(batch, "a", name, "why")
    with pytest.raises(DecisionRefused, match="is no name of a person"):
        verbs.undo(batch, 1, name, "why")
    with pytest.raises(DecisionRefused, match="is no name of a person"):
        verbs.freeze(batch, name, "why")
    with pytest.raises(DecisionRefused, match="a reason is needed to exclude"):
        verbs.exclude(batch, "a", "Ada", "  ")
    assert rows(batch) == before


def test_studies_that_waited_are_queued_when_a_person_makes_the_batch_large_enough(batch):
    studies(batch, "abc")
    study(batch, "d", 100.0)
    number = ledgers.enqueue(batch.database, "1.2.9", Stage.SCORE, protocol="t1")
    with batch.database.begin() as db:
        db.execute(job.update().values(state="waiting"))
    verbs.pin(batch, "a", *WHO)
    assert ledgers.states(batch.database) == {number: "waiting"}
    verbs.include(batch, "d", *WHO)
    assert ledgers.states(batch.database) == {number: "queued"}


@pytest.mark.parametrize("statement", ["UPDATE admission SET actor = 'x'", "DELETE FROM admission"])
def test_what_was_decided_cannot_be_rewritten(batch, statement):
    studies(batch, "a")
    with (
        pytest.raises(IntegrityError, match="append-only"),
        batch.database.begin() as db,
    ):
        db.execute(text(statement))
    assert len(verbs.history(batch)) == 1
