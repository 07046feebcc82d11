"""`verify`: a healthy node has no violation, and each planted one is seen, alone and by name."""

import json
import shutil
import threading
from dataclasses import dataclass

import pytest
from sqlalchemy import delete, update

from dicom_node import cli, clock
from dicom_node.config import NodeConfig
from dicom_node.folders import Folders
from dicom_node.invariants import check
from dicom_node.invariants.violation import Kind
from dicom_node.jobs import DeliveryState, Stage
from dicom_node.network_config import Destination
from dicom_node.store import commitment_table, result_table
from dicom_node.store.database import Database
from dicom_node.store.tables import (
    batch,
    delivery,
    instance,
    job,
    member,
    result,
    score,
)
from dicom_node.worker import Worker
from tests.make import ledgers, lines


@pytest.fixture(scope="session")
def weights(tmp_path_factory):
    return lines.tiny_weights(tmp_path_factory.mktemp("weights"))


@pytest.fixture(autouse=True)
def no_pause(monkeypatch):
    monkeypatch.setattr(check, "_PAUSE_S", 0.0)


@dataclass
class Finished:
    """What `verify` needs of a node, and its ledger."""

    config: NodeConfig
    database: Database
    folders: Folders


@pytest.fixture(scope="session")
def finished(weights, tmp_path_factory):
    """The folder of a node that has scored, reported and delivered four series; only copied."""
    folder = tmp_path_factory.mktemp("finished")
    with ledgers.ledger(folder) as database:
        made = lines.make_line(database, folder, weights)
        for seed in range(4):
            lines.receive_series(made, seed)
        worker = Worker(made, "one")
        while worker.run_one():
            pass
        settle(made)
    return folder, made.config


@pytest.fixture
def line(finished, tmp_path):
    folder, config = finished
    shutil.copytree(folder / "data", tmp_path / "data")
    shutil.copy(folder / "ledger.sqlite", tmp_path / "ledger.sqlite")
    node = config.node.model_copy(update={"data_dir": tmp_path / "data"})
    database = Database(tmp_path / "ledger.sqlite")
    config = config.model_copy(update={"node": node})
    yield Finished(config, database, Folders(tmp_path / "data"))
    database.close()


def settle(line):
    with line.database.begin() as db:
        due = result_table.due_deliveries(db, "pacs", clock.now(), 500)
        uids = [item.sop_instance_uid for item in due]
        state = DeliveryState.DELIVERED
        result_table.settle_delivery(db, "pacs", uids, state, clock.now(), status=0)
    assert uids


def kinds(line, config=None, **how):
    return [
        one.kind for one in check.verify(config or line.config, line.database, **how).violations
    ]


def change(line, statement):
    with line.database.begin() as db:
        db.exec_driver_sql("PRAGMA defer_foreign_keys=ON")
        assert db.execute(statement).rowcount


def first(line, table):
    with line.database.read() as db:
        return db.execute(table.select().limit(1)).one()


def inbox_file(line):
    return line.folders.inbox / first(line, instance).file_name


def job_of(line, stage):
    with line.database.read() as db:
        return db.execute(job.select().where(job.c.stage == stage.value).limit(1)).one()


def test_a_healthy_node_has_none(line):
    found = check.verify(line.config, line.database)
    assert found.violations == found.strays == ()
    assert (found.n_instances, found.n_jobs) == (4 * lines.GEOMETRY.n_slices, 12)
    assert found.n_deliveries == found.n_results > 0


def test_a_node_with_work_in_every_state_has_none(database, tmp_path, weights):
    line = lines.make_line(database, tmp_path, weights)
    for seed in range(3):
        lines.receive_series(line, seed)
    worker = Worker(line, "one")
    for _ in range(4):
        worker.run_one()
    lines.receive_late_slice(line, 0)
    assert check.verify(line.config, line.database).violations == ()
    while worker.run_one():
        assert check.verify(line.config, line.database).violations == ()


def test_a_node_that_was_never_used_has_none(database, tmp_path, weights):
    assert kinds(lines.make_line(database, tmp_path, weights)) == []


# -- what was received ---------------------------------------------------------------------------


def test_a_file_that_is_gone_is_a_lost_instance(line):
    inbox_file(line).unlink()
    assert kinds(line) == kinds(line, quick=True) == [Kind.INSTANCE_LOST]


def test_a_file_of_another_size_has_changed(line):
    with inbox_file(line).open("ab") as stream:
        stream.write(b"xx")
    assert kinds(line) == kinds(line, quick=True) == [Kind.INSTANCE_CHANGED]


def test_a_flipped_bit_is_seen_by_the_digest_alone(line):
    data = bytearray(inbox_file(line).read_bytes())
    data[-5] ^= 1
    inbox_file(line).write_bytes(data)
    assert kinds(line) == [Kind.INSTANCE_CHANGED]
    assert kinds(line, quick=True) == []


def test_a_file_without_a_row_is_a_stray_and_nothing_lost(line):
    path = line.folders.inbox / "ab" / f"ab{'0' * 62}.dcm"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"synced, then the power went")
    found = check.verify(line.config, line.database)
    assert found.violations == ()
    assert found.strays == (f"ab/{path.name}",)


# -- the work ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stage", "values"),
    [
        (Stage.REPORT, {"state": "running", "worker": None, "lease_until": None}),
        (Stage.REPORT, {"state": "running", "worker": "one", "lease_until": None}),
        (Stage.REPORT, {"state": "queued", "worker": "one"}),
        (Stage.REPORT, {"state": "lost"}),
        (Stage.REPORT, {"state": "failed", "reason": None}),
        (Stage.SCORE, {"state": "waiting", "protocol": None}),
        (Stage.REPORT, {"revision": 7}),
    ],
)
def test_a_job_in_a_state_without_what_it_needs_is_illegal(line, stage, values):
    number = job_of(line, stage).id
    change(line, update(job).where(job.c.id == number).values(**values))
    found = set(kinds(line))
    assert Kind.JOB_ILLEGAL in found
    # one of a revision that nobody knows has no product either, and is missing where it was
    elsewhere = {Kind.JOB_MISSING, Kind.PRODUCT_LOST} if "revision" in values else set()
    assert found - elsewhere == {Kind.JOB_ILLEGAL}


def test_a_series_without_a_job_is_forgotten_work(database, tmp_path, weights):
    line = lines.make_line(database, tmp_path, weights)
    lines.receive_series(line, 1)
    change(line, delete(job))
    assert kinds(line) == [Kind.JOB_MISSING]


def test_a_stage_that_was_never_queued_is_missing(line):
    number = job_of(line, Stage.REPORT).id
    change(line, delete(job).where(job.c.id == number))
    assert kinds(line) == [Kind.JOB_MISSING]


def test_products_that_are_gone_are_lost(line):
    row = first(line, score)
    folder = next(path for path in line.folders.results.iterdir() if path.is_dir())
    (folder / "tokens.safetensors").unlink()
    assert kinds(line) == [Kind.PRODUCT_LOST]
    (folder / "summary.png").unlink()
    assert kinds(line) == [Kind.PRODUCT_LOST] * 2
    with line.database.read() as db:
        assert result_table.get_score(db, row.series_instance_uid, 1)


def test_tokens_of_a_member_that_are_gone_are_told_of_it_and_its_stage(line):
    next((line.folders.root / "tokens").glob("*/*")).unlink()
    assert sorted(kinds(line)) == [Kind.MEMBER_LOST, Kind.PRODUCT_LOST]


def test_tokens_are_missed_before_there_is_a_score(database, tmp_path, weights):
    line = lines.make_line(database, tmp_path, weights)
    lines.receive_series(line, 1)
    Worker(line, "one").run_one()
    next((line.folders.root / "tokens").glob("*/*")).unlink()
    assert sorted(kinds(line)) == [Kind.MEMBER_LOST, Kind.PRODUCT_LOST]


# -- what was made and sent ----------------------------------------------------------------------


def result_file(line):
    return line.folders.results / first(line, result).file_name


def test_a_result_object_that_is_gone_is_lost(line):
    result_file(line).unlink()
    assert kinds(line) == [Kind.RESULT_LOST]


def test_a_result_object_under_another_uid_has_changed(line):
    with line.database.read() as db:
        names = [row.file_name for row in db.execute(result.select())]
    one, other = (line.folders.results / name for name in names[:2])
    one.write_bytes(other.read_bytes())
    assert kinds(line) == [Kind.RESULT_CHANGED]
    one.write_bytes(b"nothing")
    assert kinds(line) == [Kind.RESULT_CHANGED]


def test_two_objects_of_one_uid_with_other_content_are_seen_and_a_copy_is_not(line):
    path = result_file(line)
    copy = path.with_name("copy.dcm")
    copy.write_bytes(path.read_bytes())
    assert kinds(line) == []
    copy.write_bytes(path.read_bytes() + bytes(2))
    assert kinds(line) == [Kind.UID_TWICE]


@pytest.mark.parametrize(
    "values",
    [
        {"status": None},
        {"status": 0xC000},
        {"state": "sent"},
        {"state": "stored", "status": 0xA700},
    ],
)
def test_what_is_delivered_was_acknowledged(line, values):
    uid = first(line, delivery).sop_instance_uid
    change(line, update(delivery).where(delivery.c.sop_instance_uid == uid).values(**values))
    assert kinds(line) == [Kind.NOT_ACKNOWLEDGED]


@pytest.mark.parametrize("status", [0xB000, 0x0107, 200])
def test_a_warning_is_an_acknowledgement(line, status):
    change(line, update(delivery).values(status=status))
    assert kinds(line) == []


def test_a_destination_that_must_commit_has_committed(line):
    pacs = line.config.destination[0].model_copy(update={"commitment": True})
    config = line.config.model_copy(update={"destination": (Destination.model_validate(pacs),)})
    # switched on later: what was settled before it was first asked owes nothing
    assert kinds(line, config) == []
    change(
        line,
        commitment_table.commitment.insert().values(
            transaction_uid="1.2", destination="pacs", asked=clock.stamp(ledgers.NOON)
        ),
    )
    n = check.verify(line.config, line.database).n_deliveries
    assert kinds(line, config) == [Kind.NOT_COMMITTED] * n
    change(line, update(delivery).values(committed=clock.stamp(clock.now())))
    assert kinds(line, config) == []


# -- reference batches and the ledger itself -----------------------------------------------------


def test_a_batch_of_a_subject_that_nobody_knows_is_named(line):
    row = first(line, batch)
    subjects = [*row.subjects, "nobody"]
    change(line, update(batch).where(batch.c.version == row.version).values(subjects=subjects))
    assert kinds(line) == [Kind.SUBJECT_UNKNOWN]


def test_a_row_that_names_a_missing_one_damages_the_ledger(line):
    with line.database.begin() as db:
        raw = db.connection.driver_connection
    raw.execute("PRAGMA foreign_keys=OFF")
    raw.execute("INSERT INTO moved VALUES (99, 's', 'trying', '', 0)")
    raw.execute("PRAGMA foreign_keys=ON")
    found = check.verify(line.config, line.database).violations
    assert [one.kind for one in found] == [Kind.LEDGER_DAMAGED]
    assert "moved" in found[0].text


def test_members_are_known_by_decisions_once_they_are_undone(line):
    row = first(line, member)
    change(line, delete(member).where(member.c.subject == row.subject))
    # its tokens stand, and the decision that admitted it
    assert kinds(line) == []


# -- beside a working node -----------------------------------------------------------------------


def test_what_is_put_right_between_two_looks_is_no_violation(line, monkeypatch):
    path = inbox_file(line)
    data = path.read_bytes()
    path.unlink()
    monkeypatch.setattr(check.time, "sleep", lambda _s: path.write_bytes(data))
    assert kinds(line) == []


def test_a_node_that_works_meanwhile_has_none(database, tmp_path, weights):
    line = lines.make_line(database, tmp_path, weights)
    for seed in range(4):
        lines.receive_series(line, seed)
    stop, found = threading.Event(), []

    def look():
        while not stop.is_set():
            found.extend(check.verify(line.config, database).violations)

    thread = threading.Thread(target=look)
    thread.start()
    worker = Worker(line, "one")
    while worker.run_one():
        pass
    stop.set()
    thread.join()
    assert found == []


# -- the verb ------------------------------------------------------------------------------------


@pytest.fixture
def call(line, tmp_path, capsys):
    (tmp_path / "config.toml").write_text(f'[node]\ndata_dir = "{line.folders.root}"\n', "utf-8")
    (tmp_path / "ledger.sqlite").replace(line.folders.database)

    def run(*arguments):
        with pytest.raises(SystemExit) as ended:
            cli.app(["verify", "--config", str(tmp_path / "config.toml"), *arguments])
        return ended.value.code, capsys.readouterr().out

    return run


def test_the_verb_names_each_violation_and_ends_with_1(line, call):
    line.database.close()
    status, said = call()
    assert (status, "0 violations" in said) == (0, True)
    path = result_file_of(line)
    path.unlink()
    status, said = call("--quick")
    assert status == 1
    assert "result lost: " in said
    assert path.name in said
    status, said = call("--json")
    assert status == 1
    (violation,) = json.loads(said)["violations"]
    assert violation["kind"] == Kind.RESULT_LOST


def result_file_of(line):
    return next(line.folders.results.glob("*/*.dcm"))
