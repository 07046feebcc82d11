"""Damaged associations: what a whole one sends, recorded once, then damaged and sent again."""

import socket
import threading
import time
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from dicom_node.association.acceptor import Acceptor, AcceptorSettings
from dicom_node.association.requestor import Peer, echo, send
from dicom_node.errors import InstanceRejected, StoreError
from dicom_node.inbox import Inbox
from tests.fuzz.instances import LIMIT_S, Found, memory_mib, outside_of_inbox
from tests.fuzz.mutate import damaged
from tests.make.instances import Geometry, make_series, write

_STALL_S = 1.0


class Events:
    """The node behind the acceptor; what its inbox raises and no sender is at fault for."""

    def __init__(self, inbox):
        self.inbox, self.faults, self.outcomes = inbox, [], Counter()
        self.n_open = 0
        self._lock = threading.Lock()

    def association_opened(self, _calling, _host):
        with self._lock:
            self.n_open += 1
            self.outcomes["opened"] += 1
            return self.outcomes["opened"]

    def association_closed(self, _number):
        with self._lock:
            self.n_open -= 1

    def instance_received(self, received):
        try:
            self.inbox.file_instance(received)
        except InstanceRejected:
            self.outcomes["instance refused"] += 1
            raise
        except StoreError:
            raise
        except Exception as error:
            self.faults.append(repr(error))
            raise
        self.outcomes["instance filed"] += 1

    def refused(self, _calling, _host, _reason):
        self.outcomes["refused"] += 1


@contextmanager
def _acceptor(folder: Path):
    events = Events(Inbox(folder / "inbox", 0))
    settings = AcceptorSettings(
        ae_title="NODE",
        bind="127.0.0.1",
        port=0,
        max_associations=20,
        network_timeout_s=_STALL_S,
        allowed_calling_ae_titles=(),
        require_called_ae_title=False,
    )
    acceptor = Acceptor(settings, events)
    acceptor.start()
    try:
        yield acceptor, events
    finally:
        acceptor.stop()


def recorded(port, files):
    """What a sender of files sends, cut where it waited for an answer."""
    listener = socket.create_server(("127.0.0.1", 0))
    parts, last = [], [None]

    def pump(source, target, who):
        while chunk := source.recv(65536):
            if who == "sender":
                if last[0] == who:
                    parts[-1] += chunk
                else:
                    parts.append(chunk)
            last[0] = who
            target.sendall(chunk)
        target.shutdown(socket.SHUT_WR)

    def serve():
        sender, _ = listener.accept()
        with sender, socket.create_connection(("127.0.0.1", port)) as node:
            back = threading.Thread(target=pump, args=(node, sender, "node"))
            back.start()
            pump(sender, node, "sender")
            back.join(5)

    thread = threading.Thread(target=serve)
    thread.start()
    refused = []
    send(
        Peer("node", "NODE", *listener.getsockname()),
        "SENDER",
        files,
        LIMIT_S,
        on_refused=lambda path, error: refused.append((path, error)),
    )
    assert not refused
    thread.join(10)
    listener.close()
    return parts


def run(n, folder: Path, first_seed=0, look_every=25):
    """Send `n` damaged associations; in between, an honest C-ECHO has to be answered in time."""
    found = Found()
    with _acceptor(folder) as (acceptor, events), _dying_threads(found):
        series = make_series("MR", Geometry(rows=16, columns=12, n_slices=3))
        files = [write(ds, folder / "inbox" / f"sent{i}.dcm") for i, ds in enumerate(series)]
        parts = recorded(acceptor.port, files)
        n_threads = threading.active_count()
        for number in range(first_seed, first_seed + n):
            start = time.perf_counter()
            _send(parts, number, acceptor.port)
            taken = time.perf_counter() - start
            found.slowest_s = max(found.slowest_s, taken)
            if (number + 1) % look_every == 0:
                _look(acceptor, number, found)
            if number - first_seed == n // 4:
                found.before_mib = memory_mib()
        deadline = time.monotonic() + 2 * LIMIT_S + _STALL_S
        while events.n_open and time.monotonic() < deadline:
            time.sleep(0.05)
        if events.n_open:
            found.faults.append((None, f"{events.n_open} associations never ended"))
        _wait_for_threads(n_threads, found)
        found.after_mib = memory_mib()
        found.faults += [(None, text) for text in events.faults]
        found.outcomes.update(events.outcomes)
    found.faults += outside_of_inbox(folder)
    return found


@contextmanager
def _dying_threads(found):
    """Count what threads of the library die of: the association's own, and with it its line."""
    usual = threading.excepthook
    threading.excepthook = lambda args: found.outcomes.update(
        [f"ended its thread: {args.exc_type.__name__}"]
    )
    try:
        yield
    finally:
        threading.excepthook = usual


def _send(parts, number, port):
    """Play the recording with damage in one or two of its parts; a dead line ends it."""
    rng = np.random.default_rng(number)
    hurt = set(rng.integers(0, len(parts), int(rng.integers(1, 3))).tolist())
    with socket.create_connection(("127.0.0.1", port), timeout=LIMIT_S) as line:
        line.settimeout(0.3)
        for at, part in enumerate(parts):
            try:
                line.sendall(damaged(part, rng, parts) if at in hurt else part)
                if not line.recv(65536):
                    return
            except TimeoutError:
                continue  # it waits for more, as it should
            except OSError:
                return


def _look(acceptor, number, found):
    """An honest peer is served meanwhile."""
    start = time.perf_counter()
    try:
        echo(Peer("node", "NODE", "127.0.0.1", acceptor.port), "HONEST", LIMIT_S)
    except Exception as error:  # noqa: BLE001 - whatever it is, it is a fault
        found.faults.append((number, f"C-ECHO: {error!r}"))
    taken = time.perf_counter() - start
    if taken > LIMIT_S:
        found.faults.append((number, f"C-ECHO took {taken:.1f} s"))


def _wait_for_threads(n_before, found):
    deadline = time.monotonic() + 2 * LIMIT_S
    while threading.active_count() > n_before and time.monotonic() < deadline:
        time.sleep(0.1)
    more = threading.active_count() - n_before
    if more > 0:
        found.faults.append((None, f"{more} threads are left"))
