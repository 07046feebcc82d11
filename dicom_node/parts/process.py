"""What every part does alike: read the configuration, stop on a signal, say why it cannot start."""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path

from dicom_node import config, logs
from dicom_node.config import NodeConfig
from dicom_node.errors import NodeError

_log = logging.getLogger(__name__)

#: exit status of a part that cannot start as configured: starting it again is of no use
#: (sysexits.h)
CANNOT_START = 78

#: a part gets the configuration, the event that ends it, and a name that is its own
Part = Callable[[NodeConfig, threading.Event, str], None]


def run(part: Part) -> None:
    """Run one part until SIGTERM, SIGINT, or the end of the supervisor."""
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
        part(settings, stop, arguments.name)
    except NodeError as error:
        logs.configure(arguments.name, "INFO")
        _log.critical("%s", error)
        sys.exit(CANNOT_START)


def _watch_parent(parent: int, stop: threading.Event) -> None:
    """Stop when the supervisor is gone (killed -9), so that its successor finds the ports free."""
    while not stop.wait(1.0):
        if os.getppid() != parent:
            stop.set()
