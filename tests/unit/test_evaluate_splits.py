"""Folds and batches: nobody judges themselves, shares are exact, and settings share their luck."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dicom_node.evaluate.splits import Member, Room, draw_batch, folds, n_of_share, room


def cohort(n_normal, n_lesioned, n_unknown=0, n_second=0):
    kinds = ["normal"] * n_normal + ["lesioned"] * n_lesioned + ["unknown"] * n_unknown
    members = [Member(f"m{k}", f"k{k:02d}", f"p{k}", kind) for k, kind in enumerate(kinds)]
    return members + [Member(f"s{k}", f"s{k:02d}", f"q{k}", "normal", 2) for k in range(n_second)]


sizes = st.integers(0, 12)


@given(sizes, sizes, st.integers(0, 3), st.integers(1, 6), st.integers(0, 9))
def test_everybody_with_a_label_is_tested_once_and_folds_are_even(
    n_normal, n_lesioned, n_unknown, n_folds, seed
):
    members = cohort(n_normal, n_lesioned, n_unknown)
    dealt = folds(members, n_folds, seed)
    tested = [member for fold in dealt for member in fold]
    assert sorted(m.key for m in tested) == sorted(m.key for m in members if m.kind != "unknown")
    for count in (len, lambda fold: sum(m.kind == "lesioned" for m in fold)):
        counts = [count(fold) for fold in dealt]
        assert not counts or max(counts) - min(counts) <= 1


@settings(max_examples=60)
@given(st.data())
def test_a_batch_has_its_exact_share_and_nobody_of_the_tested_patients(data):
    members = cohort(data.draw(sizes), data.draw(sizes), data.draw(st.integers(0, 3)), 4)
    first = [member for member in members if member.site == 1]
    dealt = folds(first, data.draw(st.integers(2, 5)), data.draw(st.integers(0, 5)))
    if not dealt:
        return
    left = room(members, dealt)
    n_lesioned = data.draw(st.integers(0, left.n_lesioned))
    n_second = data.draw(st.integers(0, left.n_second))
    size = n_lesioned + n_second + data.draw(st.integers(0, left.n_normal))
    assert left.allows(size, n_lesioned, n_second)
    for fold in dealt:
        batch = draw_batch(members, fold, size, n_lesioned, [0, 1], n_second)
        assert len({member.key for member in batch}) == size
        assert not {m.patient for m in batch} & {m.patient for m in fold}
        assert sum(member.kind == "lesioned" for member in batch) == n_lesioned
        assert sum(member.site == 2 for member in batch) == n_second


def test_another_scan_of_a_tested_patient_never_serves():
    members = [*cohort(5, 0), Member("again", "k99", "p0", "normal")]
    for fold in [members[:1], members[5:]]:
        batch = draw_batch(members, fold, 4, 0, [0])
        assert {member.patient for member in batch} == {"p1", "p2", "p3", "p4"}


def test_batches_of_one_draw_are_nested_and_another_draw_has_others():
    members, fold = cohort(30, 20), []
    small, large = (set(draw_batch(members, fold, n, 2, [0, 0])) for n in (6, 12))
    assert small < large
    clean, dirty = (set(draw_batch(members, fold, 10, n, [0, 0])) for n in (2, 5))
    assert len(clean & dirty) == 7  # three of ten change
    assert set(draw_batch(members, fold, 12, 2, [0, 1])) != large


def test_too_many_are_refused():
    members = cohort(4, 2)
    assert not Room(4, 2).allows(6, 3)
    assert not Room(4, 2).allows(5, 0)
    assert not Room(4, 2).allows(2, 3)
    with pytest.raises(ValueError, match="needs 3 of 2"):
        draw_batch(members, [], 5, 3, [0])


def test_what_every_fold_leaves_is_the_least():
    members = cohort(5, 3, 1, 2)
    dealt = folds([m for m in members if m.site == 1], 4, 0)
    assert room(members, dealt) == Room(5 + 1 - 2, 2, 2)


@pytest.mark.parametrize(
    ("size", "share", "n"), [(20, 0.1, 2), (8, 0.3, 2), (10, 0.25, 3), (20, 0.0, 0), (9, 0.5, 5)]
)
def test_a_share_of_a_batch_is_a_whole_number(size, share, n):
    assert n_of_share(size, share) == n
