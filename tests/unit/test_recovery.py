"""A ledger that is damaged in any way comes back: nothing acknowledged is lost, same UIDs again."""

import os
import shutil
import stat
from datetime import timedelta

import pytest

from dicom_node import clock, recovery
from dicom_node.config import NodeConfig
from dicom_node.errors import DatabaseUnavailable
from dicom_node.folders import Folders
from dicom_node.invariants import check
from dicom_node.line import Line
from dicom_node.schedule import Duties
from dicom_node.store import backup, series_table
from dicom_node.store.database import Database, migrate
from dicom_node.store.tables import instance, result, score
from dicom_node.worker import Worker
from tests.make import ledgers, lines
from tests.make.ledgers import NOON, after

N_SERIES = 4


@pytest.fixture(scope="session")
def node(tmp_path_factory):
    """A node that was copied after two series, then received two more, and scored all."""
    folder = tmp_path_factory.mktemp("node")
    weights = lines.tiny_weights(folder)
    (folder / "data").mkdir()
    path = folder / "data" / "ledger.sqlite"
    migrate(path)
    database = Database(path)
    line = lines.make_line(database, folder, weights)
    for seed in range(N_SERIES):
        if seed == 2:
            backup.make(path, line.folders.backups, 3, NOON)
        lines.receive_series(line, seed)
    run_all(line)
    uids = results(database)
    database.close()
    return folder, line.config, uids


@pytest.fixture
def broken(node, tmp_path):
    """A copy of that node, its configuration, and the UIDs that it has sent."""
    folder, config, uids = node
    shutil.copytree(folder / "data", tmp_path / "data")
    own = config.node.model_copy(update={"data_dir": tmp_path / "data"})
    return config.model_copy(update={"node": own}), Folders(tmp_path / "data"), uids


def run_all(line):
    worker = Worker(line, "one")
    while worker.run_one():
        pass


def results(database):
    with database.read() as db:
        return {row.sop_instance_uid for row in db.execute(result.select())}


def truncated(path):
    os.truncate(path, path.stat().st_size // 2)


def emptied(path):
    os.truncate(path, 0)


def header_overwritten(path):
    with path.open("r+b") as stream:
        stream.write(b"\xff" * 100)


def garbage_in_the_middle(path):
    with path.open("r+b") as stream:
        stream.seek(4096)
        stream.write(os.urandom(path.stat().st_size - 4096))


def removed(path):
    path.unlink()


DAMAGES = [truncated, emptied, header_overwritten, garbage_in_the_middle, removed]


@pytest.mark.parametrize("copies", ["with a copy", "without"])
@pytest.mark.parametrize("damage", DAMAGES, ids=lambda one: one.__name__)
def test_a_damaged_ledger_comes_back_with_every_instance(broken, damage, copies):
    config, folders, _ = broken
    if copies == "without":
        shutil.rmtree(folders.backups)
    damage(folders.database)
    found = recovery.recover(folders)
    assert found is not None
    slices = lines.GEOMETRY.n_slices
    if copies == "without":
        assert (found.copy, found.n_filed) == ("", N_SERIES * slices)
    else:
        assert (found.copy != "", found.n_filed) == (True, (N_SERIES - 2) * slices)
    assert bool(found.set_aside) == (damage is not removed)
    assert not found.set_aside or (folders.root / found.set_aside).exists()
    database = Database(folders.database)
    verified = check.verify(config, database)
    assert (verified.violations, verified.strays) == ((), ())
    assert verified.n_instances == N_SERIES * slices
    database.close()
    assert recovery.last(folders)["reason"] == found.reason
    # sound now: nothing more to do
    assert recovery.recover(folders) is None


@pytest.mark.parametrize("copies", ["with a copy", "without"])
def test_the_same_series_are_scored_again_and_sent_under_the_same_uids(broken, copies, tmp_path):
    config, folders, uids = broken
    if copies == "without":
        shutil.rmtree(folders.backups)
    header_overwritten(folders.database)
    recovery.recover(folders)
    database = Database(folders.database)
    with database.begin() as db:
        series_table.complete_due(db, series_table.Rule(0.0, 3600.0), clock.now())
    run_all(Line(config, database, tmp_path / "cache"))
    with database.read() as db:
        assert len(db.execute(score.select()).all()) == N_SERIES
    assert results(database) == uids
    assert check.verify(config, database).violations == ()
    database.close()


def test_a_recovery_that_was_killed_is_done_again(broken, monkeypatch):
    _, folders, _ = broken
    truncated(folders.database)

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        # between the old ledger's new name and the new one's
        patched.setattr(recovery.durable, "sync_folder", killed)
        patched.setattr(backup.durable, "sync_folder", killed)
        with pytest.raises(KeyboardInterrupt):
            recovery.recover(folders)
    recovery.recover(folders)
    assert backup.damage(folders.database) == ""
    database = Database(folders.database)
    with database.read() as db:
        n = len(db.execute(instance.select()).all())
    assert n == N_SERIES * lines.GEOMETRY.n_slices
    database.close()


def test_a_sound_ledger_is_left_alone_and_a_new_node_has_none(broken, tmp_path):
    _, folders, _ = broken
    before = folders.database.read_bytes()
    assert recovery.recover(folders) is None
    assert folders.database.read_bytes() == before
    new = Folders(tmp_path / "new")
    new.create()
    assert recovery.recover(new) is None
    assert recovery.last(new) is None


def test_a_damaged_file_of_the_inbox_is_left_out_and_counted(broken):
    _, folders, _ = broken
    shutil.rmtree(folders.backups)
    path = next(folders.inbox.glob("*/*.dcm"))
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)
    before = len(list(folders.inbox.glob("*/*")))
    removed(folders.database)
    found = recovery.recover(folders)
    assert (found.n_unreadable, found.n_filed) == (1, N_SERIES * lines.GEOMETRY.n_slices - 1)
    assert len(list(folders.inbox.glob("*/*"))) == before


def test_a_damaged_copy_is_passed_over_for_the_one_before(broken):
    _, folders, _ = broken
    good = backup.copies(folders.backups)[0]
    bad = backup.make(folders.database, folders.backups, 3, clock.now())
    truncated(bad)
    truncated(folders.database)
    assert recovery.recover(folders).copy == good.name


# -- copies --------------------------------------------------------------------------------------


def test_a_copy_is_of_one_moment_while_a_writer_goes_on(database, tmp_path):
    with database.begin():
        copy = backup.make(tmp_path / "ledger.sqlite", tmp_path / "backups", 3, NOON)
    assert backup.damage(copy) == ""
    assert stat.S_IMODE(copy.stat().st_mode) == 0o600
    assert sorted(tmp_path.glob("backups/*")) == [copy]


@pytest.mark.usefixtures("database")
def test_the_newest_are_kept(tmp_path):
    made = [
        backup.make(tmp_path / "ledger.sqlite", tmp_path / "backups", 2, after(s)) for s in range(4)
    ]
    assert backup.copies(tmp_path / "backups") == made[:1:-1]


def test_a_damaged_ledger_is_not_copied_and_costs_no_older_copy(broken):
    _, folders, _ = broken
    before = backup.copies(folders.backups)
    garbage_in_the_middle(folders.database)
    with pytest.raises(DatabaseUnavailable):
        backup.make(folders.database, folders.backups, 1, clock.now())
    assert backup.copies(folders.backups) == before
    assert sorted(folders.backups.iterdir()) == before


def test_the_duty_copies_at_its_time_and_not_at_every_start(tmp_path, monkeypatch):
    config = NodeConfig.model_validate({"node": {"data_dir": tmp_path}})
    folders = Folders(tmp_path)
    with ledgers.ledger(tmp_path) as database:
        duties = Duties(config, database)
        duties.backup()
        duties.backup()
        assert len(backup.copies(folders.backups)) == 1
        later = clock.now() + timedelta(seconds=config.storage.backup_every)
        monkeypatch.setattr(clock, "now", lambda: later)
        duties.backup()
        assert len(backup.copies(folders.backups)) == 2
