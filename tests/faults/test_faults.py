"""A few of the seeded runs, and that their judge sees what it is there to see.

They run in a process of their own: it forks, and must have no thread by then.
"""

import os
import shutil
import subprocess
import sys
from dataclasses import replace

import pytest
from sqlalchemy import delete, select, update

from dicom_node.folders import Folders
from dicom_node.store.database import Database
from dicom_node.store.tables import delivery, instance, job
from tests.faults.judge import violations
from tests.faults.runs import witness_of
from tests.faults.world import World
from tests.make.lines import tiny_weights

_ONE_LIFE = """
import sys, pathlib, torch, dicom_node.anomaly
torch.set_num_threads(1)
from tests.faults import inject, life, world
folder = pathlib.Path(sys.argv[1])
lived = world.World(folder, folder / "tiny.safetensors", 0)
sys.exit(life.live(lived, 0, inject.Effects()) != "done")
"""


def python(*arguments, timeout):
    return subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        timeout=timeout,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
    )


@pytest.mark.parametrize(
    ("kind", "n"), [("kill", 8), ("memory", 3), ("disk full", 3), ("locked", 3)]
)
def test_whatever_strikes_the_work_is_done_in_the_end(kind, n):
    command = ["-m", "tests.faults", "--n", str(n), "--kinds", kind, "--seed", "1000"]
    done = python(*command, timeout=580)
    assert done.returncode == 0, done.stdout + done.stderr
    assert " 0 violations" in done.stdout
    # it did strike
    assert f"lives ended by or after {kind}: " in done.stdout
    assert kind != "kill" or "kill: killed" in done.stdout


@pytest.mark.timeout(900)
def test_a_node_whose_processes_are_killed_at_random_loses_nothing():
    done = python("-m", "tests.faults.soak", "--seconds", "40", "--kill-every", "6", timeout=850)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "\n0 violations" in done.stdout


@pytest.fixture(scope="module")
def lived(tmp_path_factory):
    folder = tmp_path_factory.mktemp("life")
    tiny_weights(folder)
    done = python("-c", _ONE_LIFE, str(folder), timeout=300)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def world(lived, tmp_path):
    shutil.copytree(lived, tmp_path / "copy")
    return World(tmp_path / "copy", lived / "tiny.safetensors", 0)


def found(world, **changes):
    """What the judge says after a change of what sender and archive remember."""
    return violations(world.config, replace(witness_of(world), **changes))


def execute(world, statement):
    database = Database(Folders(world.config.node.data_dir).database)
    with database.begin() as db:
        db.execute(statement)
    database.close()


def test_the_judge_is_content_with_an_undisturbed_life(world):
    assert found(world) == []


def test_the_judge_sees_what_was_lost(world):
    file = next(Folders(world.config.node.data_dir).inbox.rglob("*.dcm"))
    file.write_bytes(file.read_bytes()[:-2])
    assert [text.split(":")[0] for text in found(world)] == [
        "lost from the disk",
        "instance changed",
    ]
    execute(world, delete(instance).where(instance.c.file_name.endswith(file.name)))
    assert "lost from the ledger" in [text.split(":")[0] for text in found(world)]


def test_the_judge_sees_what_was_sent_twice_or_not_at_all(world):
    archived = witness_of(world).archived
    assert "2 contents" in found(world, archived=[*archived, (archived[0][0], "other")])[0]
    assert "not in the ledger" in found(world, archived=[*archived, ("2.25.1", "x")])[0]
    missing = [item for item in archived if item[0] != archived[0][0]]
    assert "not in the archive" in found(world, archived=missing)[0]


def test_the_judge_sees_work_that_is_not_done(world):
    one = select(job.c.id).where(job.c.stage == "report").limit(1).scalar_subquery()
    execute(world, update(job).where(job.c.id == one).values(state="failed", reason="x"))
    sent = select(delivery.c.sop_instance_uid).limit(1).scalar_subquery()
    execute(world, update(delivery).where(delivery.c.sop_instance_uid == sent).values(state="dead"))
    said = found(world)
    assert len(said) == 2
    assert "report of revision" in said[0]
    assert "is dead" in said[1]
    assert any("4 series of 5" in text for text in found(world, n_series=5))
