"""One life of a node, from its start to its end or to the fault, in a process of its own.

Receiver, duties, worker and lane run one after the other instead of side by side: the order is
then that of the seed. What each of them does at a fault is what its process does: the sender has no
Success, the worker records the job, what ends a part ends this life, and the next one starts.
"""

import os
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

from dicom_node import clock, durable
from dicom_node import delivery as deliveries
from dicom_node.delivery import Lane
from dicom_node.errors import NodeError
from dicom_node.folders import Folders
from dicom_node.inbox import Inbox
from dicom_node.line import Line
from dicom_node.parts.receiver import Reception
from dicom_node.schedule import Duties
from dicom_node.store import series_table
from dicom_node.store.database import Database, migrate
from dicom_node.worker import Worker
from tests.faults.inject import Effects
from tests.faults.world import Sent, World

#: a life takes seconds on a quiet machine; one that takes longer than this hangs
LIMIT_S = 400.0
_ENDED, _CRASHED = 0, 3


def live(world: World, number: int, fault: Effects) -> str:
    """Run one life in a child process; returns "done", "crashed", "killed" or "hung"."""
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        os._exit(_life(world, number, fault))
    deadline = time.monotonic() + LIMIT_S
    while time.monotonic() < deadline:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            code = os.waitstatus_to_exitcode(status)
            return {_ENDED: "done", _CRASHED: "crashed"}.get(code, "killed")
        time.sleep(0.005)
    os.kill(child, 9)
    os.waitpid(child, 0)
    return "hung"


def _life(world: World, number: int, fault: Effects) -> int:
    """Returns an exit status and never raises: above is the other process's code."""
    # an hour later: leases of the dead are over, and every wait is
    clock.now = lambda: datetime.now(UTC) + timedelta(hours=number)
    deliveries.send = lambda _peer, _calling, files, _timeout, **told: _send(world, files, told)
    deliveries._PER_ASSOCIATION = 3  # several rounds of a few objects
    try:
        fault.start()
        _work(world, number)
        fault.stop()
    except BaseException as error:  # noqa: BLE001 - the part has ended; the supervisor starts it again
        fault.stop()
        world.note(f"crashed: {type(error).__name__}: {error}")
        return _CRASHED
    world.note(f"effects {fault.n}")
    return _ENDED


def _send(world: World, files: list[Path], told: dict) -> None:
    """The archive keeps an object before it acknowledges it."""
    for path in files:
        world.archive(path)
        told["on_stored"](path, 0x0000)


def _work(world: World, number: int) -> None:
    config = world.config
    folders = Folders(config.node.data_dir)
    folders.create()
    durable.sweep(folders.root)
    migrate(folders.database)
    database = Database(folders.database, 2.0)
    with database.begin() as db:
        series_table.close_all_associations(db, clock.now())
    reception = Reception(database, Inbox(folders.inbox, 0))
    line = Line(config, database, world.folder / "cache")
    parts = reception, Duties(config, database), Worker(line, f"worker-{number}")
    lane = Lane(database, folders.results, config.destination[0], "NODE")
    for requests in (world.first, world.late):
        _round(world, requests, *parts, lane)
    database.close()


def _round(world: World, requests: list[Sent], reception, duties, worker, lane) -> None:
    _receive(world, requests, reception)
    before = clock.now
    clock.now = lambda: before() + timedelta(seconds=30)  # it has been quiet
    try:
        duties.complete()
        duties.requeue()
        while worker.run_one():
            pass
        while lane.send_due():
            pass
    finally:
        clock.now = before


def _receive(world: World, requests: list[Sent], reception: Reception) -> None:
    """Send what is not acknowledged, and some of the rest again, as a nervous sender does."""
    known = world.acknowledged()
    number = reception.association_opened("SCANNER", "127.0.0.1")
    for index, sent in enumerate(requests):
        if sent.uid in known and index % 5:
            continue
        try:
            reception.instance_received(sent.request)
        except (NodeError, OSError, MemoryError) as error:
            # the acceptor answers with a failure: the sender comes again
            world.note(f"refused: {type(error).__name__}")
            continue
        world.acknowledge(sent.uid)
    reception.association_closed(number)
