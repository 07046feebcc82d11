"""A protocol's space: its file, its rows, when another is due, and what is typical."""

import dataclasses

import numpy as np
import pytest
import torch
from sqlalchemy.exc import IntegrityError

from dicom_node.alignment import Template
from dicom_node.anomaly.harmonisation import SHARES
from dicom_node.config import NodeConfig
from dicom_node.errors import SpaceMissing
from dicom_node.learning import landmarks_of, most_typical, picture
from dicom_node.schedule import Duties
from dicom_node.space import Space, SpaceFiles
from dicom_node.space_rules import due, moved_far, settings_of
from dicom_node.store import reference_table, space_table
from dicom_node.store.reference_table import ADMITTED, Member
from dicom_node.store.space_table import BEHIND, THERE, TRYING, Chosen, Moved, SpaceRow
from dicom_node.subject import Canonical
from tests.make import ledgers
from tests.make.ledgers import NOON, after

OWN = {"template": "medoid", "alignment": "rigid", "harmonise": True}
CHOSEN = Chosen("abc", "fp", "s1", ("s1",))
OTHER = Chosen("def", "fp2", "s2", ("s1", "s2"))


# --- files --------------------------------------------------------------------------------------


def template(seed=0):
    rng = np.random.default_rng(seed)
    voxels = rng.random((4, 5, 6)).astype(np.float32)
    return Template(voxels, np.diag([1.0, 2.0, 3.0, 1.0]), voxels > 0.5)


@pytest.mark.parametrize(
    "space",
    [
        Space(template()),
        Space(None, tuple(k / 10 for k in range(11))),
        Space(template(), tuple(k / 10 for k in range(11))),
    ],
)
def test_a_space_comes_back_as_it_was(tmp_path, space):
    files = SpaceFiles(tmp_path)
    found = files.load(files.save(space))
    assert found.name == space.name
    assert found.landmarks == space.landmarks
    assert (found.template is None) == (space.template is None)
    if found.template is not None:
        np.testing.assert_array_equal(found.template.voxels, space.template.voxels)
        np.testing.assert_array_equal(found.template.affine, space.template.affine)
        np.testing.assert_array_equal(found.template.foreground, space.template.foreground)
    (path,) = (tmp_path / "spaces").iterdir()
    assert path.stat().st_mode & 0o077 == 0  # a patient's volume


def test_every_part_of_a_space_names_it():
    one = template()
    others = [
        Space(one),
        Space(template(1)),
        Space(dataclasses.replace(one, foreground=~one.foreground)),
        Space(one, (0.0,) * 11),
        Space(None, (0.0,) * 11),
        Space(),
    ]
    assert len({space.name for space in others}) == len(others)


def test_another_content_under_the_name_is_refused(tmp_path):
    files = SpaceFiles(tmp_path)
    name, other = files.save(Space(template())), files.save(Space(template(1)))
    (tmp_path / "spaces" / f"{other}.safetensors").replace(
        tmp_path / "spaces" / f"{name}.safetensors"
    )
    with pytest.raises(SpaceMissing, match="is not what was written"):
        files.load(name)


# --- rows ---------------------------------------------------------------------------------------


def test_one_space_serves_and_one_is_under_way_whoever_asks(database):
    with database.begin() as db:
        first = space_table.found(db, "t1", "s", CHOSEN, "first", NOON)
        assert space_table.found(db, "t1", "s", OTHER, "second", NOON) == first
        assert space_table.found(db, "t1", "other settings", OTHER, "", NOON).chosen == OTHER
        wanted = space_table.want(db, "t1", "s", 15, "Ada", "why", after(1))
        assert space_table.want(db, "t1", "s", 15, "rule", "why", after(2)) is None
        assert space_table.under_way(db, "t1", "s") == wanted
        assert space_table.serving(db, "t1", "s") == first
    row = {"protocol": "t1", "settings": "s", "state": "serving", "actor": "rule"}
    with pytest.raises(IntegrityError), database.begin() as db:
        db.execute(space_table.space.insert().values(**row, reason="", n_members=1, asked=""))


def test_a_space_changes_over_once_and_the_old_one_is_remembered(database):
    with database.begin() as db:
        first = space_table.found(db, "t1", "s", CHOSEN, "first", NOON)
        number = space_table.want(db, "t1", "s", 15, "rule", "grown", after(1)).id
        assert not space_table.serve(db, number, "too early", after(2))
        assert space_table.build(db, number, OTHER, "better")
        assert not space_table.build(db, number, CHOSEN, "late")
        assert space_table.serve(db, number, "moved", after(3))
        assert not space_table.serve(db, number, "again", after(4))
        assert not space_table.end(db, number, space_table.KEPT, "late", after(4))
        serving = space_table.serving(db, "t1", "s")
        assert (serving.id, serving.chosen, serving.reason) == (number, OTHER, "moved")
        assert space_table.get(db, first.id).state == "left"
        assert [row.id for row in space_table.history(db, "t1")] == [number, first.id]
        assert space_table.of_fingerprint(db, "t1", "fp").id == first.id
        assert space_table.of_fingerprint(db, "t1", "fp3") is None
        assert space_table.under_way(db, "t1", "s") is None


def test_attempts_are_counted_before_they_end(database):
    with database.begin() as db:
        number = space_table.found(db, "t1", "s", CHOSEN, "first", NOON).id
        assert [space_table.attempt(db, number, "s1") for _ in range(3)] == [1, 2, 3]
        assert space_table.moves(db, number)["s1"] == Moved("s1", TRYING, "", 3)
        space_table.attempt(db, number, "s2")
        space_table.settle(db, number, "s1", BEHIND, "gone")
        space_table.settle(db, number, "s2", THERE, "")
        assert [move.state for move in space_table.moves(db, number).values()] == [BEHIND, THERE]


# --- rules --------------------------------------------------------------------------------------


def look(n_members, state="serving"):
    stamp = "2026-01-02"
    return SpaceRow(1, "t1", "s", state, "rule", "", n_members, stamp, stamp, CHOSEN)


@pytest.mark.parametrize(
    ("looks", "n", "changes", "expected"),
    [
        ([look(1)], 14, {}, False),
        ([look(1)], 15, {}, True),
        ([look(15), look(1)], 29, {}, False),
        ([look(15), look(1)], 30, {}, True),
        ([look(30, "kept"), look(15)], 31, {}, False),
        ([look(1)], 60, {"rechoose_growth": 0.0}, False),
        ([look(20)], 30, {"rechoose_growth": 1.5}, True),
        ([], 60, {}, False),
    ],
)
def test_a_look_is_due_when_the_batch_has_grown(looks, n, changes, expected):
    usual = {"min_reference": 15, "max_reference": 60}
    assert due(ledgers.protocol(**(OWN | usual | changes)), looks, n) is expected


@pytest.mark.parametrize(
    "changes",
    [
        {"harmonise": False},
        {"alignment": "affine"},
        {"foreground": "brain"},
        {"spacing_mm": 2.0},
        {"extent_mm": (196.0, 196.0, 196.0)},
    ],
)
def test_what_is_learnt_under_other_settings_is_another_space(changes):
    assert settings_of(ledgers.protocol(**(OWN | changes))) != settings_of(ledgers.protocol(**OWN))


def test_other_settings_leave_the_space():
    for changes in ({"finding_threshold": 4.0}, {"min_reference": 4}, {"rechoose_growth": 0.0}):
        assert settings_of(ledgers.protocol(**(OWN | changes))) == settings_of(
            ledgers.protocol(**OWN)
        )


def test_landmarks_that_hardly_move_are_no_reason():
    one = tuple(k / 20 for k in range(11))
    assert not moved_far(one, tuple(value + 0.009 for value in one))
    assert moved_far(one, (*one[:5], one[5] + 0.011, *one[6:]))
    assert moved_far((), one)


@pytest.mark.parametrize(("growth", "expected"), [(2.0, ["wanted"]), (0.0, [])])
def test_the_duty_asks_once_and_not_of_a_batch_that_is_too_small(database, growth, expected):
    of = ledgers.protocol(**(OWN | {"rechoose_growth": growth}))
    duties = Duties(NodeConfig(protocol=(of,)), database)
    duties.rechoose()
    with database.begin() as db:
        space_table.found(db, "t1", settings_of(of), CHOSEN, "first", NOON)
    for n in range(1, 4):
        duties.rechoose()
        with database.begin() as db:
            states = [row.state for row in space_table.history(db, "t1")]
            assert states == ["serving"]
            entry = Member(f"s{n}", f"1.{n}", f"p{n}", ADMITTED, "", f"2026-01-0{n}")
            reference_table.add(db, "t1", "fp", entry)
    duties.rechoose()
    duties.rechoose()
    with database.read() as db:
        assert [row.state for row in space_table.history(db, "t1")] == [*expected, "serving"]


# --- learning -----------------------------------------------------------------------------------


def canonical(seed, odd=0.0):
    generator = torch.Generator().manual_seed(seed)
    voxels = torch.zeros(16, 16, 16)
    voxels[4:12, 4:12, 4:12] = 0.4 + odd * torch.rand(8, 8, 8, generator=generator)
    return Canonical(voxels, voxels > 0, torch.eye(4))


def test_the_odd_one_is_never_typical():
    pictures = [
        picture(canonical(seed, odd), 1.0) for seed, odd in ((1, 0.5), (2, 0.02), (3, 0.02))
    ]
    assert pictures[0].shape == (64,)
    assert most_typical(pictures) in {1, 2}
    assert most_typical(pictures[:1]) == 0
    with pytest.raises(ValueError, match="no subject"):
        most_typical([])


def test_a_picture_of_large_voxels_is_not_made_smaller():
    assert picture(canonical(1), 4.0).shape == (16**3,)


def test_landmarks_are_those_of_the_foreground_alone():
    found = landmarks_of(canonical(1, 0.1))
    assert len(found) == len(SHARES)
    assert min(found) >= 0.4
