"""What a check is, and what it may say."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum


class Verdict(StrEnum):
    """How a check ended; the values stand in the JSON."""

    OK = "ok"
    #: nothing is wrong, and yet somebody should know
    NOTE = "note"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Said:
    """What a check saw, and what to do about it."""

    verdict: Verdict
    #: what was seen, with values; no patient data
    text: str
    #: one sentence; empty where nothing is to be done
    remedy: str = ""


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that is looked at."""

    #: "disk", "ports", "peers", ...
    part: str
    #: of all checks of one run no two have one name: "disk space", "destination pacs"
    name: str
    look: Callable[[], Said]
    #: after which it counts as failed; seconds
    limit_s: float = 20.0
    #: what to do when it raises something that is no error of ours, or does not end in time
    remedy: str = field(default="Run dicom-node doctor again; if it stays so, read the node's log.")


@dataclass(frozen=True, slots=True)
class Checked:
    """A check that was run."""

    part: str
    name: str
    said: Said
    seconds: float


def ok(text: str) -> Said:
    """Say that all is well."""
    return Said(Verdict.OK, text)


def note(text: str, remedy: str = "") -> Said:
    """Say what somebody should know."""
    return Said(Verdict.NOTE, text, remedy)


def failed(text: str, remedy: str) -> Said:
    """Say what is wrong and what to do, in one sentence each."""
    return Said(Verdict.FAILED, text, remedy)
