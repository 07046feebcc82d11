"""What every part does alike: read the configuration, stop on a signal, say why it cannot start.

A part is told to stop by an event and not by an exception, so that it always ends between two
pieces of work.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

from dicom_node import config, logs
from dicom_node.config import NodeConfig
from dicom_node.errors import Disposition, NodeError

_log = logging.getLogger(__name__)

#: exit status of a part that cannot start as configured: starting it again is of no use
#: (sysexits.h)
CANNOT_START = 78

#: a part gets the configuration, the event that ends it, and a name that is its own
Part = Callable[[NodeConfig, threading.Event, str], None]


def run(part: Part) -> None:
    """Run one part until SIGTERM, SIGINT, or the end of the supervisor.

    Parameters
    ----------
    part
        Called once, in the main thread; it must return soon after its event is set.

    Raises
    ------
    SystemExit
        78 (`CANNOT_START`) for a NodeError that a new start would meet again, 1 for one that may
        pass, such as a locked ledger: the supervisor then starts the part anew after a while. The
        reason is logged.
    """
    parser = argparse.ArgumentParser()
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--name", required=True)
    # named by the supervisor: by the time a part could ask, a killed one is nobody's parent
    parser.add_argument("--parent", type=int, default=os.getppid())
    arguments = parser.parse_args()
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    threading.Thread(target=_watch_parent, args=(arguments.parent, stop), daemon=True).start()
    try:
        settings = config.load(arguments.config)
        logs.configure(arguments.name, settings.log.level)
        _log_all()
        part(settings, stop, arguments.name)
    except NodeError as error:
        # the configuration, and with it the log, may be what failed
        logs.configure(arguments.name, "INFO")
        _log.critical("%s", error)
        sys.exit(1 if error.disposition is Disposition.RETRY else CANNOT_START)


def _log_all() -> None:
    """Let warnings and uncaught exceptions be events too: whoever collects the log reads JSON.

    pydicom's warnings are left out: they quote the odd values that they warn of, which may be a
    patient's.
    """
    # it gives each of them twice, by both ways, and sets its logger's level when it is imported
    warnings.filterwarnings("ignore", module="pydicom")
    logging.getLogger("pydicom").addFilter(lambda event: event.levelno >= logging.ERROR)
    logging.captureWarnings(capture=True)

    def uncaught(
        kind: type[BaseException], error: BaseException, trace: TracebackType | None
    ) -> None:
        _log.critical("%s", kind.__name__, exc_info=(kind, error, trace))

    def uncaught_in_thread(event: threading.ExceptHookArgs) -> None:
        # what a thread ends itself with is no fault (the server's, when its port is taken)
        if not issubclass(event.exc_type, SystemExit):
            uncaught(event.exc_type, event.exc_value or event.exc_type(), event.exc_traceback)

    sys.excepthook, threading.excepthook = uncaught, uncaught_in_thread


def _watch_parent(parent: int, stop: threading.Event) -> None:
    """Stop when the supervisor is gone (killed -9), so that its successor finds the ports free."""
    while not stop.wait(1.0):
        if os.getppid() != parent:
            stop.set()
