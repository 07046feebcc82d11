"""Processes: a part stops when it must and says why it cannot start; the supervisor keeps it up."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from dicom_node import config, node
from dicom_node.association.requestor import Peer, echo, send
from dicom_node.config import Node, NodeConfig
from dicom_node.delivery import Lane
from dicom_node.demo.pacs import free_ports
from dicom_node.errors import ConfigError, PartFailed
from dicom_node.folders import Folders
from dicom_node.network_config import Destination, Receiver
from dicom_node.node import Supervisor
from dicom_node.parts import process
from dicom_node.parts.control import control
from dicom_node.parts.dispatcher import dispatcher
from dicom_node.parts.receiver import receiver
from dicom_node.store import series_table
from dicom_node.store.tables import association
from tests.make.instances import make_instance, write
from tests.make.ledgers import ledger, open_association

#: a part of a few lines, run as the real ones are; WHAT is its body
STAND_IN = """
import logging
import threading
import warnings
from pathlib import Path

from dicom_node.errors import *
from dicom_node.parts.process import run

def part(settings, stop, name):
    def say(word):
        with Path({notes!r}).open("a") as notes:
            notes.write(word + "\\n")

{what}

run(part)
"""
WAITS = """
    say(f"{name} of {settings.node.ae_title} started")
    stop.wait()
    say("finished")
"""


def until(condition, what, timeout_s=30.0):
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not happen in time"
        time.sleep(0.05)


class StandIn:
    """A part in a file, and what it has noted."""

    def __init__(self, folder, what):
        self.folder = folder
        self.notes_path = folder / "notes"
        self.config = folder / "config.toml"
        self.config.write_text('[node]\nae_title = "NODE"\n')
        self.program = folder / "part.py"
        self.program.write_text(STAND_IN.format(notes=str(self.notes_path), what=what))

    @property
    def notes(self):
        return self.notes_path.read_text().splitlines() if self.notes_path.exists() else []

    def command(self, *more, name="part-1"):
        command = [sys.executable, str(self.program), "--config", str(self.config)]
        return [*command, "--name", name, *more]

    def run(self, *more):
        """Run it to its end: (exit status, events)."""
        done = subprocess.run(
            self.command(*more), capture_output=True, text=True, timeout=60, check=False
        )
        return done.returncode, [json.loads(line) for line in done.stderr.splitlines()]


# -- process.run ------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_part_stops_on_a_signal_after_what_it_has_in_hand(tmp_path, number):
    part = StandIn(tmp_path, WAITS)
    with subprocess.Popen(part.command()) as running:
        until(lambda: part.notes, "the start")
        running.send_signal(number)
        assert running.wait(timeout=30) == 0
    assert part.notes == ["part-1 of NODE started", "finished"]


def test_a_part_stops_when_its_supervisor_is_killed(tmp_path):
    """Killed -9, a supervisor can tell nobody; its successor must find the ports free."""
    part = StandIn(tmp_path, WAITS)
    launch = (
        "import os, subprocess, sys\n"
        f"part = subprocess.Popen({part.command()} + ['--parent', str(os.getpid())])\n"
        "print(part.pid, flush=True)\n"
        "part.wait()\n"
    )
    with subprocess.Popen([sys.executable, "-c", launch], stdout=subprocess.PIPE) as supervisor:
        pid = int(supervisor.stdout.readline())
        until(lambda: part.notes, "the start")
        time.sleep(1.5)
        assert part.notes == ["part-1 of NODE started"]
        supervisor.kill()
    until(lambda: part.notes[1:] == ["finished"], "the end of the part")
    until(lambda: not psutil.pid_exists(pid), "the end of the process")


def test_a_part_whose_supervisor_is_gone_before_it_starts_stops_at_once(tmp_path):
    part = StandIn(tmp_path, WAITS)
    with subprocess.Popen(["/bin/true"]) as gone:
        pass
    assert part.run("--parent", str(gone.pid))[0] == 0
    assert part.notes[-1] == "finished"


@pytest.mark.parametrize(
    ("error", "status"),
    [
        ("PartFailed('port 104 is in use; set receiver.port')", process.CANNOT_START),
        ("WeightsMissing('no weights; set encoder.file')", process.CANNOT_START),
        ("DatabaseUnavailable('the ledger is locked')", 1),
    ],
)
def test_why_a_part_cannot_run_is_logged_and_decides_its_status(tmp_path, error, status):
    """What may pass by itself must not stop the node for good."""
    found, [event] = StandIn(tmp_path, f"    raise {error}").run()
    assert found == status
    assert (event["level"], event["part"]) == ("CRITICAL", "part-1")
    assert event["message"] in error
    assert "traceback" not in event


def test_a_configuration_that_does_not_load_cannot_start(tmp_path):
    part = StandIn(tmp_path, WAITS)
    part.config.write_text("[receiver]\nprot = 1\n")
    status, [event] = part.run()
    assert status == process.CANNOT_START
    assert "receiver.prot" in event["message"]
    assert part.notes == []


def test_a_bug_is_one_event_with_its_traceback_and_status_1(tmp_path):
    status, [event] = StandIn(tmp_path, "    raise RuntimeError('odd')").run()
    assert status == 1
    assert (event["level"], event["part"]) == ("CRITICAL", "part-1")
    assert event["traceback"].endswith("RuntimeError: odd")


def test_threads_and_warnings_write_events_too_and_no_patients_value(tmp_path):
    what = """
    from pydicom.dataset import Dataset
    warnings.warn("mind the gap", UserWarning)
    Dataset().PatientBirthDate = "Doe^Jane"
    thread = threading.Thread(target=lambda: 1 / 0)
    thread.start()
    thread.join()
"""
    status, events = StandIn(tmp_path, what).run()
    assert status == 0
    assert [event["level"] for event in events] == ["WARNING", "CRITICAL"], events
    assert "mind the gap" in events[0]["message"]
    assert events[1]["traceback"].endswith("ZeroDivisionError: division by zero")
    assert "Doe" not in str(events)


# -- the parts themselves ---------------------------------------------------------------------


@contextlib.contextmanager
def in_thread(part, settings):
    """Run a part in a thread; stop it at the end and raise what it raised."""
    stop, raised = threading.Event(), []

    def run():
        try:
            part(settings, stop, "part-1")
        except BaseException as error:  # noqa: BLE001 - handed on below
            raised.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield thread
    finally:
        stop.set()
        thread.join(30)
        assert not thread.is_alive()
    if raised:
        raise raised[0]


@pytest.fixture
def settings(tmp_path):
    port, web_port = free_ports(2)
    made = NodeConfig(
        node=Node(ae_title="NODE", data_dir=tmp_path / "data"),
        receiver=Receiver(port=port),
        web=config.Web(port=web_port),
        storage=config.Storage(reserve="1 MiB"),
        destination=(
            Destination(name="one", ae_title="ONE", host="127.0.0.1", port=1),
            Destination(name="two", ae_title="TWO", host="127.0.0.1", port=1),
        ),
    )
    Folders(made.node.data_dir).create()
    return made


@pytest.fixture
def database(settings):
    with ledger(settings.node.data_dir) as made:
        yield made


def answers(settings):
    peer = Peer("node", "NODE", "127.0.0.1", settings.receiver.port)
    try:
        echo(peer, "TEST", 5)
    except Exception:  # noqa: BLE001 - asked again
        return False
    return True


@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")  # the library's, never connected
def test_the_receiver_closes_what_a_killed_one_left_open_and_files(settings, database, tmp_path):
    left = open_association(database)
    files = [write(make_instance(index=n), tmp_path / f"{n}.dcm") for n in (0, 1)]
    half = settings.node.data_dir / "inbox" / "ab.dcm.0.part"
    half.touch()
    os.utime(half, (1.0, 1.0))
    young = half.with_name("cd.dcm.1.part")  # `archive retrieve` may be writing it
    young.touch()
    with in_thread(receiver, settings):
        until(lambda: answers(settings), "the receiver")
        with database.read() as db:
            row = db.execute(association.select().where(association.c.id == left)).one()
        assert row.closed is not None
        assert not half.exists()
        assert young.exists()
        peer = Peer("node", "NODE", "127.0.0.1", settings.receiver.port)
        send(peer, "SCANNER", files, 10, on_refused=lambda _path, error: pytest.fail(str(error)))
    with database.read() as db:
        assert series_table.counts(db) == {"receiving": 1, "instances": 2}
        open_ones = db.execute(association.select().where(association.c.closed.is_(None))).all()
    assert open_ones == []
    assert len(list((settings.node.data_dir / "inbox").rglob("*.dcm"))) == 2


@pytest.mark.usefixtures("database")
def test_the_receiver_as_a_program_says_where_it_receives(settings, tmp_path):
    path, port = tmp_path / "config.toml", settings.receiver.port
    path.write_text(f'[node]\ndata_dir = "data"\n[receiver]\nport = {port}\n')
    command = node._Process("receiver", "receiver").command(path)
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as running:
        event = json.loads(running.stderr.readline())
        running.terminate()
        assert running.wait(30) == 0
    assert (event["level"], event["part"]) == ("INFO", "receiver")
    assert event["logger"] == "dicom_node.parts.receiver"
    assert event["message"] == f"receiving as DICOM_NODE on 127.0.0.1:{port}"


@pytest.mark.usefixtures("database")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize(
    ("part", "port_of", "key"),
    [
        (receiver, lambda s: s.receiver.port, "receiver.port"),
        (control, lambda s: s.web.port, "web.port"),
    ],
)
def test_a_part_whose_port_is_taken_names_the_key(settings, part, port_of, key):
    with socket.create_server(("127.0.0.1", port_of(settings))):
        with pytest.raises(PartFailed, match=key) as caught:
            part(settings, threading.Event(), "part-1")
        assert str(port_of(settings)) in str(caught.value)


@pytest.mark.usefixtures("database")
def test_lanes_run_until_the_dispatcher_is_told_to_stop(settings, monkeypatch):
    running = []

    def run(lane, stop):
        running.append(lane)
        stop.wait()

    monkeypatch.setattr(Lane, "run", run)
    with in_thread(dispatcher, settings) as thread:
        until(lambda: len(running) == 2, "both lanes")
        time.sleep(0.7)
        assert thread.is_alive()


@pytest.mark.usefixtures("database")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_lane_that_dies_ends_the_dispatcher_so_that_it_is_started_anew(settings, monkeypatch):
    """Otherwise one destination would get nothing for as long as the others work."""

    def run(lane, stop):
        if lane._destination.name == "one":
            raise OSError("a fault of ours")
        stop.wait()

    monkeypatch.setattr(Lane, "run", run)
    with pytest.raises(RuntimeError, match="lane has ended"):
        dispatcher(settings, threading.Event(), "dispatcher")


# -- the supervisor ---------------------------------------------------------------------------


def script(notes, body):
    """A process that is there at once: a shell rather than an interpreter."""
    return ["/bin/sh", "-c", f'note() {{ echo "$1 $$" >>{notes}; }}; note started; {body}']


STEADY = "trap 'note drained; exit 0' TERM; while :; do sleep 0.05; done"
STUBBORN = "trap '' TERM; while :; do sleep 0.05; done"


@pytest.fixture
def supervisor(settings):
    return Supervisor(settings, Path("config.toml"))


def stand_in(monkeypatch, commands):
    """Supervise these commands instead of the real parts, by their names."""
    monkeypatch.setattr(node._Process, "command", lambda process, _config: commands[process.module])


@pytest.fixture
def ended(supervisor):
    """Leave nothing running, whatever the test finds."""
    yield
    for one in supervisor._processes:
        if one.popen is not None and one.popen.poll() is None:
            one.popen.kill()
            one.popen.wait()


def test_the_parts_are_those_of_the_configuration(settings):
    two = settings.model_copy(update={"scoring": config.Scoring(workers=2)})
    names = [one.name for one in Supervisor(two, Path("config.toml"))._processes]
    assert names == ["receiver", "control", "dispatcher", "worker-1", "worker-2"]


def test_each_command_is_a_part_that_knows_its_supervisor(supervisor):
    for one in supervisor._processes:
        command = one.command(Path("some.toml"))
        assert command[:2] == [sys.executable, "-m"]
        path = Path(node.__file__).parents[1] / (command[2].replace(".", "/") + ".py")
        assert path.is_file()
        assert command[3:] == [
            *("--config", "some.toml", "--name", one.name, "--parent", str(os.getpid()))
        ]


def test_the_statuses_of_supervisor_and_part_are_one():
    assert node._CANNOT_START == process.CANNOT_START


@pytest.mark.usefixtures("ended")
def test_a_dead_part_is_started_again_later_each_time(supervisor, monkeypatch, tmp_path):
    now = [1000.0]
    monkeypatch.setattr(node, "time", SimpleNamespace(monotonic=lambda: now[0]))
    stand_in(monkeypatch, {"receiver": script(tmp_path / "notes", "exit 3")})
    one = supervisor._processes[0]
    delays = []
    for n_starts in range(1, 10):
        assert supervisor._keep_up(one)
        one.popen.wait()
        assert len(notes_in(tmp_path / "notes")) == n_starts
        assert supervisor._keep_up(one)
        delays.append(one.not_before - now[0])
        now[0] = one.not_before - 0.01
        assert supervisor._keep_up(one)
        assert one.popen is None, "started before its time"
        now[0] = one.not_before
    assert delays == [0.5, 1, 2, 4, 8, 16, 32, 60, 60]


@pytest.mark.usefixtures("ended")
def test_a_part_that_had_run_for_long_is_started_again_soon(supervisor, monkeypatch, tmp_path):
    now = [1000.0]
    monkeypatch.setattr(node, "time", SimpleNamespace(monotonic=lambda: now[0]))
    stand_in(monkeypatch, {"receiver": script(tmp_path / "notes", "exit 3")})
    one = supervisor._processes[0]
    one.failures = 6
    supervisor._keep_up(one)
    one.popen.wait()
    now[0] += 61
    supervisor._keep_up(one)
    assert one.not_before - now[0] == 0.5


@pytest.mark.usefixtures("ended")
def test_a_part_that_runs_is_left_alone(supervisor, monkeypatch, tmp_path):
    stand_in(monkeypatch, {"receiver": script(tmp_path / "notes", STEADY)})
    one = supervisor._processes[0]
    for _ in range(5):
        assert supervisor._keep_up(one)
    until(lambda: (tmp_path / "notes").exists(), "the start")
    assert len(notes_in(tmp_path / "notes")) == 1
    supervisor._drain()


RUN = """
import sys
from pathlib import Path

from dicom_node import config, logs, node

node._Process.command = lambda process, _config: {commands!r}[process.module]
node._DRAIN_S = {drain_s}
logs.configure("node", "INFO")
settings = config.load(Path({path!r}))
sys.exit(node.Supervisor(settings, Path({path!r})).run())
"""


@contextlib.contextmanager
def supervised(tmp_path, commands, drain_s=30.0):
    """A supervisor of stand-ins in a process of its own, under real signals."""
    path = tmp_path / "config.toml"
    path.write_text('[node]\ndata_dir = "data"\n')
    program = RUN.format(commands=commands, drain_s=drain_s, path=str(path))
    with (tmp_path / "node.log").open("ab") as log:
        running = subprocess.Popen([sys.executable, "-c", program], stderr=log)
    try:
        yield running
    finally:
        running.kill()
        running.wait()


def notes_in(path):
    return [line.split() for line in path.read_text().splitlines()] if path.exists() else []


def all_of(tmp_path, body):
    return dict.fromkeys(
        ["receiver", "control", "dispatcher", "scorer"], script(tmp_path / "notes", body)
    )


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_drains_every_part(tmp_path, number):
    with supervised(tmp_path, all_of(tmp_path, STEADY)) as running:
        until(lambda: len(notes_in(tmp_path / "notes")) == 4, "the start of four parts")
        running.send_signal(number)
        assert running.wait(timeout=30) == 0
    notes = notes_in(tmp_path / "notes")
    assert sorted(word for word, _ in notes) == ["drained"] * 4 + ["started"] * 4
    assert (tmp_path / "data" / "ledger.sqlite").exists()


def test_a_part_that_does_not_drain_is_killed(tmp_path):
    with supervised(tmp_path, all_of(tmp_path, STUBBORN), drain_s=0.5) as running:
        until(lambda: len(notes_in(tmp_path / "notes")) == 4, "the start of four parts")
        running.terminate()
        assert running.wait(timeout=30) == 0
    pids = [int(pid) for _, pid in notes_in(tmp_path / "notes")]
    assert not any(psutil.pid_exists(pid) for pid in pids)
    assert (tmp_path / "node.log").read_text().count("does not end; killed") == 4


def test_a_part_that_cannot_start_ends_the_node_with_1(tmp_path):
    commands = all_of(tmp_path, STEADY)
    commands["scorer"] = script(tmp_path / "notes", f"exit {process.CANNOT_START}")
    with supervised(tmp_path, commands) as running:
        assert running.wait(timeout=30) == 1
    words = [word for word, _ in notes_in(tmp_path / "notes")]
    assert words.count("drained") == 3
    events = [json.loads(line) for line in (tmp_path / "node.log").read_text().splitlines()]
    [event] = [event for event in events if event["level"] == "CRITICAL"]
    assert event["message"].startswith("worker-1 cannot start")


def test_a_killed_part_comes_back(tmp_path):
    with supervised(tmp_path, all_of(tmp_path, STEADY)) as running:
        until(lambda: len(notes_in(tmp_path / "notes")) == 4, "the start of four parts")
        os.kill(int(notes_in(tmp_path / "notes")[0][1]), signal.SIGKILL)
        until(lambda: len(notes_in(tmp_path / "notes")) == 5, "the new start")
        running.terminate()
        assert running.wait(timeout=30) == 0
    words = [word for word, _ in notes_in(tmp_path / "notes")]
    assert (words.count("started"), words.count("drained")) == (5, 4)


def test_a_second_node_on_the_same_data_touches_nothing(tmp_path):
    """It would sweep away what the first is writing, and close its associations."""
    with supervised(tmp_path, all_of(tmp_path, STEADY)) as running:
        until(lambda: len(notes_in(tmp_path / "notes")) == 4, "the start of four parts")
        half = tmp_path / "data" / "inbox" / "ab.dcm.0.part"
        half.touch()
        settings = config.load(tmp_path / "config.toml")
        with pytest.raises(ConfigError, match=r"node\.data_dir: a node runs on .* already"):
            Supervisor(settings, tmp_path / "config.toml").run()
        assert half.exists()
        assert running.poll() is None
        running.kill()
        running.wait()
    for _, pid in notes_in(tmp_path / "notes"):
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(pid), signal.SIGKILL)
    with node.alone(tmp_path / "data"):
        pass
