"""Structured events: a JSON object per line on standard error; UIDs, never patient data.

No file of its own: what runs the node (systemd, a container engine) keeps and rotates the events.
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
    """Send the events of this process, which is `part` of the node, to standard error.

    The level is that of our own events; libraries speak from WARNING on.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_JsonFormatter(part))
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.getLogger("dicom_node").setLevel(level)
