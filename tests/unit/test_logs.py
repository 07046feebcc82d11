"""Log events: a JSON object per line, whatever is logged, by every part under its own name."""

import json
import subprocess
import sys
from datetime import UTC, datetime, timedelta

import pytest

#: in a process of its own: configuring replaces all handlers, pytest's too
START = "import logging\nfrom dicom_node import logs\n"


def events_of(code, part="worker-1", level="INFO"):
    """Run `code` with the log configured; what it wrote to standard error, line by line."""
    done = subprocess.run(
        [sys.executable, "-c", f"{START}logs.configure({part!r}, {level!r})\n{code}"],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert done.stdout == ""
    return [json.loads(line) for line in done.stderr.split("\n")[:-1]]


def test_an_event_says_when_how_grave_who_and_what():
    [event] = events_of(
        'logging.getLogger("dicom_node.worker").warning("%s of %d", "one", 2)', "worker-7"
    )
    moment = datetime.fromisoformat(event.pop("time"))
    assert moment.utcoffset() == timedelta(0)
    assert timedelta(0) <= datetime.now(UTC) - moment < timedelta(minutes=1)
    assert event == {
        "level": "WARNING",
        "part": "worker-7",
        "logger": "dicom_node.worker",
        "message": "one of 2",
    }


def test_each_event_is_one_line_whatever_it_holds():
    said = 'Müller\\nsaid: "no"\\t\\u2028\\x00\\x1b[31m'
    events = events_of(f"for _ in range(3): logging.getLogger('dicom_node.x').info('{said}')")
    assert [event["message"] for event in events] == [
        'Müller\nsaid: "no"\t\u2028\x00\x1b[31m'  # the same characters come back
    ] * 3


def test_an_exception_is_part_of_its_event():
    code = """
def lose():
    raise OSError(28, "No space left on device")

try:
    lose()
except OSError:
    logging.getLogger("dicom_node.inbox").exception("filing failed")
"""
    [event] = events_of(code)
    assert (event["level"], event["message"]) == ("ERROR", "filing failed")
    lines = event["traceback"].splitlines()
    assert lines[0] == "Traceback (most recent call last):"
    assert any("in lose" in line for line in lines)
    assert lines[-1] == "OSError: [Errno 28] No space left on device"


def test_an_event_without_exception_has_no_traceback():
    [event] = events_of("logging.getLogger('dicom_node.x').error('plain')")
    assert "traceback" not in event


@pytest.mark.parametrize(
    ("level", "levels"),
    [
        ("DEBUG", ["DEBUG", "INFO", "WARNING", "ERROR"]),
        ("INFO", ["INFO", "WARNING", "ERROR"]),
        ("WARNING", ["WARNING", "ERROR"]),
        ("ERROR", ["ERROR"]),
    ],
)
def test_the_level_is_the_nodes_own_and_libraries_stay_at_warning(level, levels):
    code = """
for name in ("dicom_node.x", "library"):
    for level in ("debug", "info", "warning", "error"):
        getattr(logging.getLogger(name), level)(level)
"""
    events = events_of(code, level=level)
    assert [e["level"] for e in events if e["logger"] == "dicom_node.x"] == levels
    assert [e["level"] for e in events if e["logger"] == "library"] == ["WARNING", "ERROR"]


def test_configuring_again_replaces_the_name_and_doubles_nothing():
    code = "logs.configure('second', 'INFO')\nlogging.getLogger('dicom_node').info('once')"
    [event] = events_of(code)
    assert event["part"] == "second"
