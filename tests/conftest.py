"""What every test gets: pydicom's validation raises, none of the user's DICOM_NODE_*."""

import logging
import os
import threading
import time
from pathlib import Path

import hypothesis
import pydicom.config
import pytest

import dicom_node.anomaly  # noqa: F401 - its guard must run before any test imports timm

# how fast a machine is, and what else it does, fails no test
hypothesis.settings.register_profile("node", deadline=None)
hypothesis.settings.load_profile("node")

#: a test or fixture that takes longer says so, again and again
_PULSE_S = 15.0


class _Pulse:
    """Shows that something moves: some tests wait for whole nodes for minutes.

    It writes to the descriptor that deploy/test keeps open for it: pytest captures the others.
    """

    def __init__(self, descriptor):
        self._descriptor = descriptor
        #: when each running test started, and said last that it is at work
        self._running = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._pulse, daemon=True)
        self._thread.start()

    def _pulse(self):
        while not self._stop.wait(1.0):
            for name, (started, said) in list(self._running.items()):
                seconds = time.monotonic() - started
                if seconds - said >= _PULSE_S and name in self._running:
                    self._running[name] = (started, seconds)
                    os.write(self._descriptor, f"\n    {name}: {seconds:.0f} s ...".encode())

    def pytest_runtest_logstart(self, nodeid):
        self._running[nodeid] = (time.monotonic(), 0.0)

    def pytest_runtest_logfinish(self, nodeid):
        self._running.pop(nodeid, None)

    def pytest_unconfigure(self):
        self._stop.set()
        self._thread.join()


def pytest_configure(config):
    descriptor = os.environ.get("DICOM_NODE_PROGRESS_FD")
    # the process that hands out the tests knows of all of them; the others have no such descriptor
    if descriptor and not hasattr(config, "workerinput"):
        config.pluginmanager.register(_Pulse(int(descriptor)), "pulse")


@pytest.fixture(autouse=True)
def _strict_pydicom():
    before = (
        pydicom.config.settings.reading_validation_mode,
        pydicom.config.settings.writing_validation_mode,
    )
    pydicom.config.settings.reading_validation_mode = pydicom.config.RAISE
    pydicom.config.settings.writing_validation_mode = pydicom.config.RAISE
    yield
    pydicom.config.settings.reading_validation_mode = before[0]
    pydicom.config.settings.writing_validation_mode = before[1]


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch):
    for name in list(os.environ):
        if name.startswith("DICOM_NODE_") and name not in {"DICOM_NODE_CACHE", "DICOM_NODE_SHARED"}:
            monkeypatch.delenv(name)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real images beside the clone; a run without it must say so, not pass."""
    folder = (
        Path(os.environ.get("DICOM_NODE_SHARED", Path(__file__).parents[2] / "shared")) / "data"
    )
    if not folder.is_dir():
        pytest.skip(f"{folder} is not there: real images are not part of the repository")
    return folder


@pytest.fixture(autouse=True)
def _own_logging():
    """What a verb logs to ends with its test: the next one would find a closed stream."""
    root = logging.getLogger()
    before = list(root.handlers)
    yield
    for handler in [one for one in root.handlers if one not in before]:
        root.removeHandler(handler)
