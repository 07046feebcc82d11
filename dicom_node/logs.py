"""Structured events: a JSON object per line on standard error; UIDs, never patient data.

Standard error and no file of its own: what runs the node keeps the events (systemd, a container
engine), with its own rotation and rights.
"""

from __future__ import annotations

import json
import logging
import sys

from dicom_node import clock


class _JsonFormatter(logging.Formatter):
    """One event per line: time, level, part, message, and the traceback where there is one."""

    def __init__(self, part: str) -> None:
        super().__init__()
        self._part = part

    def format(self, record: logging.LogRecord) -> str:
        """Return one line; JSON escapes line ends, so that no peer's text can forge an event."""
        event = {
            "time": clock.stamp(clock.now()),
            "level": record.levelname,
            "part": self._part,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            event["traceback"] = self.formatException(record.exc_info)
        return json.dumps(event, ensure_ascii=False)


def configure(part: str, level: str) -> None:
    """Send the events of this process to standard error, in place of what was set up before.

    Parameters
    ----------
    part
        Of the node, such as "receiver": it stands in every event.
    level
        Of our own events. Libraries speak from WARNING on: at INFO pynetdicom and highdicom tell of
        every association and every object.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_JsonFormatter(part))
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.getLogger("dicom_node").setLevel(level)
