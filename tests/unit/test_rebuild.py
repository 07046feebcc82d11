"""A batch that takes its histogram and template from itself: founded, chosen again, rebuilt."""

import threading

import numpy as np
import pytest
import torch

from dicom_node import clock, founding, pipeline, rebuild, reference_verbs
from dicom_node.errors import (
    DecisionRefused,
    EmptyForeground,
    InboxFull,
    InsufficientReference,
    SpaceMissing,
)
from dicom_node.inbox import Inbox
from dicom_node.schedule import Duties
from dicom_node.space_rules import settings_of
from dicom_node.store import (
    admission_table,
    reference_table,
    result_table,
    series_table,
    space_table,
)
from dicom_node.store.reference_table import ADMITTED
from dicom_node.worker import Worker
from tests.make import ledgers, lines
from tests.make.bodies import body, pose_of
from tests.make.instances import Geometry, make_series, received


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return lines.tiny_weights(tmp_path_factory.mktemp("weights"))


@pytest.fixture
def make(tmp_path, weights):
    """A line whose protocol harmonises, and admits whoever is scored."""
    with ledgers.ledger(tmp_path) as database:

        def made(**changes):
            usual = {"harmonise": True, "admission_percentile": 100.0, "max_reference": 9}
            return lines.make_line(database, tmp_path, weights, protocol=usual | changes)

        yield made


def t1(line):
    return line.config.protocol[0]


def work(line):
    """Run all jobs that are due, as a worker does; returns it."""
    working = Worker(line, "one")
    while working.run_one():
        pass
    return working


def grown(line, n=5):
    """Receive, score and admit `n` studies."""
    uids = [lines.receive_series(line, seed) for seed in range(n)]
    work(line)
    assert len(members(line)) == n
    return uids


def members(line, fingerprint=None):
    named = fingerprint or line.token_fingerprint(t1(line))
    with line.database.read() as db:
        return reference_table.members(db, "t1", named, (ADMITTED,))


def spaces(line):
    with line.database.read() as db:
        return space_table.history(db, "t1")


def serving(line):
    with line.database.read() as db:
        return space_table.serving(db, "t1", settings_of(t1(line)))


def ask(line, by="Ada", reason="looked at it"):
    batch = reference_verbs.current_batch(line.database, t1(line))
    return reference_verbs.rebuild(batch, by, reason)


def rebuilt(line):
    """Do all steps; returns how many."""
    n = 0
    while rebuild.step(line, t1(line)):
        n += 1
    return n


# --- founding -----------------------------------------------------------------------------------


def test_the_first_series_founds_the_space_and_all_others_are_made_in_it(make):
    line = make()
    plain = line.token_fingerprint(t1(line))
    first = lines.receive_series(line, 1)
    pipeline.tokenize(line, first, lambda _share: None)
    row = serving(line)
    assert row.chosen.subjects == (line.series(first)[1],)
    assert line.space(t1(line)).landmarks == line.method(t1(line)).intensity.landmarks
    assert line.token_fingerprint(t1(line)) == row.chosen.fingerprint != plain
    pipeline.tokenize(line, lines.receive_series(line, 2), lambda _share: None)
    assert [r.id for r in spaces(line)] == [row.id]
    names = {path.parent.name for path in line.folders.root.glob("tokens/*/*")}
    assert names == {row.chosen.fingerprint}
    assert len(list(line.folders.root.glob("tokens/*/*"))) == 2


def test_what_no_subject_can_be_made_of_founds_nothing(make):
    line = make()
    flat = np.full((16, 32, 32), 7.0)
    number = ledgers.open_association(line.database)
    inbox = Inbox(line.folders.inbox, 0)
    ds_all = make_series("MR", lines.GEOMETRY, flat, 1)
    ledgers.record(
        line.database,
        *[inbox.file_instance(received(ds, association_id=number)) for ds in ds_all],
    )
    with pytest.raises(EmptyForeground):
        pipeline.tokenize(line, str(ds_all[0].SeriesInstanceUID), lambda _share: None)
    assert spaces(line) == []
    assert not (line.folders.root / "spaces").exists()


def test_where_two_workers_found_at_once_both_use_the_space_of_the_quicker(make, monkeypatch):
    one, two = make(), make()
    uids = [lines.receive_series(one, seed) for seed in (1, 2)]
    ended = threading.Event()
    learnt = founding.space_of_one

    def slow(methods, *arguments):
        if methods is two and not ended.is_set():
            ended.set()
            pipeline.tokenize(one, uids[0], lambda _share: None)
        return learnt(methods, *arguments)

    monkeypatch.setattr(founding, "space_of_one", slow)
    pipeline.tokenize(two, uids[1], lambda _share: None)
    assert one.space(t1(one)).name == two.space(t1(two)).name
    assert serving(one).chosen.subjects == (one.series(uids[0])[1],)
    assert all(
        line.files(t1(line)).has_subject(line.series(uid)[1])
        for line, uid in zip((one, two), uids, strict=True)
    )


def test_what_was_tokenized_before_the_batch_had_a_space_founds_it_when_it_is_scored(make):
    """As after `harmonise = true` was written into the configuration: plain tokens are no use."""
    plain = make(harmonise=False)
    uids = [lines.receive_series(plain, seed) for seed in range(4)]
    for uid in uids:
        pipeline.tokenize(plain, uid, lambda _share: None)
    line = make()
    with pytest.raises(InsufficientReference):
        pipeline.score(line, uids[0], lambda _share: None)
    assert serving(line).chosen.subjects == (line.series(uids[0])[1],)
    assert line.token_fingerprint(t1(line)) != plain.token_fingerprint(t1(plain))


def test_a_space_that_is_damaged_is_named_and_not_used(make):
    line = make()
    pipeline.tokenize(line, lines.receive_series(line, 1), lambda _share: None)
    (path,) = (line.folders.root / "spaces").iterdir()
    fresh = make()
    path.write_bytes(path.read_bytes()[:-1] + b"\x7f")
    with pytest.raises(SpaceMissing, match="from a backup"):
        fresh.space(t1(fresh))
    path.unlink()
    with pytest.raises(SpaceMissing, match="cannot be read"):
        fresh.space(t1(fresh))


# --- rebuilding ---------------------------------------------------------------------------------


def test_the_duty_has_the_histogram_learnt_again_and_the_batch_moves_with_its_decisions(make):
    line = make()
    uids = grown(line)
    founded, old = serving(line), members(line)
    batch = line.batch(t1(line))
    pinned = reference_verbs.pin(batch, old[2].subject, "Ada", "a good example").changes[0].new
    old = members(line)
    Duties(line.config, line.database).rechoose()
    Duties(line.config, line.database).rechoose()  # one look is enough
    assert [row.state for row in spaces(line)] == ["wanted", "serving"]
    assert rebuilt(line) == 1 + 5 + 1
    row = serving(line)
    assert row.id != founded.id
    assert [r.state for r in spaces(line)] == ["serving", "left"]
    assert set(row.chosen.subjects) == {member.subject for member in old}
    assert members(line, founded.chosen.fingerprint) == old
    new = members(line)
    assert line.token_fingerprint(t1(line)) == row.chosen.fingerprint
    kept = ("subject", "state", "reason", "added", "pinned", "decided_by", "percentile")
    for name in kept:
        assert [getattr(m, name) for m in new] == [getattr(m, name) for m in old]
    assert next(m for m in new if m.pinned).decided_by == pinned.decided_by == "Ada"
    with line.database.read() as db:
        (event,) = admission_table.history(db, "t1", row.chosen.fingerprint)
        assert reference_table.fingerprints(db, "t1")[0] == row.chosen.fingerprint
    assert event.decision.verb == "rebuild"
    assert f"rebuilt in space {row.chosen.digest}" in event.decision.reason
    with pytest.raises(DecisionRefused, match="another space"):
        reference_verbs.undo(line.batch(t1(line)), event.id, "Ada", "no")
    # a new study is scored in the new space, and one that waited for its report is reported
    later = lines.receive_series(line, 17)
    work(line)
    with line.database.read() as db:
        _, score = result_table.get_score(db, later, 1)
        found = reference_table.get_batch(db, score.batch_version)
    assert found.fingerprint == row.chosen.fingerprint
    assert len(found.subjects) == 5
    assert "findings" in pipeline.report(line, uids[0], lambda _share: None)


def test_the_landmarks_of_the_members_lie_at_the_mean_afterwards(make):
    line = make()
    grown(line)
    ask(line)
    rebuilt(line)
    standard = torch.tensor(line.space(t1(line)).landmarks)
    assert standard[0] == 0
    assert bool((standard.diff() >= 0).all())
    with line.database.read() as db:
        rows = space_table.history(db, "t1")
    assert rows[0].actor == "Ada"
    assert "the histogram has moved" in rows[0].reason


def test_another_worker_learns_of_the_new_space_with_its_next_job(make):
    line, other = make(), make()
    grown(line)
    old = other.token_fingerprint(t1(other))
    ask(line)
    rebuilt(line)
    uid = lines.receive_series(other, 21)
    assert other.token_fingerprint(t1(other)) == old  # between two jobs it has not asked
    pipeline.tokenize(other, uid, lambda _share: None)
    assert other.token_fingerprint(t1(other)) == serving(line).chosen.fingerprint


def test_it_goes_on_where_a_killed_worker_left_off(make):
    line = make()
    grown(line)
    ask(line)
    for _ in range(3):
        assert rebuild.step(line, t1(line))
    fresh = make()
    assert rebuilt(fresh) == 3 + 1
    assert [row.state for row in spaces(fresh)] == ["serving", "left"]
    assert len(members(fresh)) == 5


def test_who_joins_meanwhile_moves_too(make):
    line = make()
    grown(line)
    ask(line)
    for _ in range(1 + 5):
        assert rebuild.step(line, t1(line))
    lines.receive_series(line, 17)
    work(line)
    assert len(members(line)) == 6
    assert rebuilt(line) == 1 + 1
    assert len(members(line)) == 6
    assert spaces(line)[0].state == "serving"


def test_members_whose_files_are_gone_are_left_behind_with_the_reason(make):
    line = make()
    uids = grown(line)
    ask(line)
    assert rebuild.step(line, t1(line))
    series, name = line.series(uids[3])
    series.files[0].unlink()
    rebuilt(line)
    assert {m.subject for m in members(line)} == {line.series(uid)[1] for uid in uids} - {name}
    with line.database.read() as db:
        moves = space_table.moves(db, serving(line).id)
    assert (moves[name].state, moves[name].reason) == (
        "left behind",
        "its series is not kept any more",
    )
    assert "4 of 5 members" in serving(line).reason


def test_where_too_few_can_be_moved_the_old_space_stays(make):
    line = make()
    uids = grown(line)
    founded = serving(line)
    ask(line)
    assert rebuild.step(line, t1(line))
    for uid in uids[:3]:
        line.series(uid)[0].files[0].unlink()
    rebuilt(line)
    assert serving(line) == founded
    assert spaces(line)[0].state == "abandoned"
    assert "only 2 of 5 members" in spaces(line)[0].reason
    assert len(members(line)) == 5
    assert ask(line).n_members == 5
    rebuilt(line)
    assert spaces(line)[0].state == "kept"


def test_a_member_that_kills_its_worker_is_left_behind_in_the_end(make, monkeypatch):
    line = make()
    grown(line)
    ask(line)
    rebuild.step(line, t1(line))
    tried = rebuild._encode
    victim = members(line)[0].subject

    def killed(line_, of, chosen, member):
        if member.subject == victim:
            raise KeyboardInterrupt
        tried(line_, of, chosen, member)

    monkeypatch.setattr(rebuild, "_encode", killed)
    n_killed = 0
    for _ in range(30):
        try:
            if not rebuild.step(line, t1(line)):
                break
        except KeyboardInterrupt:
            n_killed += 1
    assert n_killed == line.config.scoring.max_attempts
    assert victim not in {m.subject for m in members(line)}
    assert spaces(line)[0].state == "serving"


def test_what_may_pass_is_tried_again_and_does_not_end_the_worker(make, monkeypatch, caplog):
    line = make()
    grown(line)
    ask(line)
    rebuild.step(line, t1(line))
    tried, faults = rebuild._encode, [InboxFull()]

    def full(*arguments):
        if faults:
            raise faults.pop()
        tried(*arguments)

    monkeypatch.setattr(rebuild, "_encode", full)
    working = Worker(line, "one")
    assert not working.rebuild_one()
    assert "cannot be rebuilt now" in caplog.text
    assert not working.rebuild_one()  # not at once
    assert spaces(line)[0].state == "building"
    working = Worker(line, "two")
    while working.rebuild_one():
        pass
    assert len(members(line)) == 5
    assert spaces(line)[0].state == "serving"


def test_nothing_moves_while_the_batch_is_frozen(make):
    line = make()
    grown(line)
    ask(line)
    reference_verbs.freeze(line.batch(t1(line)), "Ada", "a reader study")
    assert rebuilt(line) == 0
    with pytest.raises(DecisionRefused, match="frozen"):
        ask(line)
    Duties(line.config, line.database).rechoose()
    reference_verbs.unfreeze(line.batch(t1(line)), "Ada", "it is over")
    assert rebuilt(line) == 7


def test_a_change_of_the_encoder_ends_what_is_being_built(tmp_path, weights):
    with ledgers.ledger(tmp_path) as database:
        usual = {"harmonise": True, "admission_percentile": 100.0, "max_reference": 9}
        line = lines.make_line(database, tmp_path, weights, protocol=usual)
        grown(line)
        ask(line)
        rebuild.step(line, t1(line))
        other = lines.make_line(database, tmp_path, weights, protocol=usual, encoder={"seed": 5})
        assert rebuilt(other) == 1
        assert spaces(other)[0].state == "abandoned"
        assert other.space(t1(other)).name == line.space(t1(line)).name


@pytest.mark.parametrize(
    ("changes", "n", "said"),
    [
        ({"harmonise": False}, 5, "neither template"),
        ({"min_reference": 6}, 5, "being founded: 0 of 6"),
    ],
)
def test_a_rebuild_is_refused_where_there_is_nothing_to_rebuild(make, changes, n, said):
    line = make(**changes)
    for seed in range(n):
        lines.receive_series(line, seed)
    work(line)
    with pytest.raises(DecisionRefused, match=said):
        ask(line)


# --- the template -------------------------------------------------------------------------------


#: 60 x 60 x 50 voxels of 4 mm, axial slices
WHOLE = Geometry(rows=60, columns=50, n_slices=60, pixel_spacing=(4.0, 4.0), slice_spacing=4.0)


def receive_body(line, seed):
    """File a whole series of a body, elsewhere for each seed; that of 0 is small."""
    rng = np.random.default_rng(seed)
    scale = (0.92, 0.92, 0.92) if seed == 0 else (1, 1, 1)
    moved = body(pose_of(rng.uniform(-6, 6, 3), rng.uniform(-8, 8, 3), scale), seed=seed)
    number = ledgers.open_association(line.database)
    inbox = Inbox(line.folders.inbox, 0)
    made = make_series("MR", WHOLE, moved, seed)
    filed = [inbox.file_instance(received(ds, association_id=number)) for ds in made]
    ledgers.record(line.database, *filed)
    with line.database.begin() as db:
        series_table.close_association(db, number, clock.now())
        assert series_table.complete_due(db, series_table.Rule(0.0, 3600.0), clock.now())
    return str(made[0].SeriesInstanceUID)


def test_a_batch_founds_its_template_chooses_another_and_scores_in_its_space(tmp_path, weights):
    """The whole life of `template = "medoid"`, with real registrations."""
    changes = {
        "template": "medoid",
        "alignment": "rigid",
        "admission_percentile": 100.0,
        "extent_mm": [256.0, 256.0, 256.0],
        "spacing_mm": 4.0,
    }
    with ledgers.ledger(tmp_path) as database:
        line = lines.make_line(database, tmp_path, weights, protocol=changes)
        uids = [receive_body(line, seed) for seed in range(4)]
        working = work(line)
        founded = serving(line)
        assert founded.chosen.template == line.series(uids[0])[1]
        assert len(members(line)) == 4
        Duties(line.config, line.database).rechoose()
        while working.rebuild_one():
            pass
        assert [row.state for row in spaces(line)] == ["serving", "left"]
        chosen = serving(line).chosen
        assert chosen.template in {line.series(uid)[1] for uid in uids[1:]}
        assert "more typical" in serving(line).reason
        assert len(members(line)) == 4
        last = receive_body(line, 9)
        work(line)
        with line.database.read() as db:
            _, score = result_table.get_score(db, last, 1)
            found = reference_table.get_batch(db, score.batch_version)
        assert found.fingerprint == serving(line).chosen.fingerprint
        assert len(found.subjects) == 4
