"""Run checks side by side, each by itself: one that raises or hangs costs the others nothing.

One of the places at which an exception becomes an answer: what a check raises is a failed check
with its reason. A check that does not end is left behind in its thread, which does not keep the
process alive.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from dicom_node.doctor.checks import Check, Checked, Said, failed
from dicom_node.errors import NodeError


@dataclass(slots=True)
class _Run:
    """One check under way."""

    check: Check
    started: float = field(default_factory=time.monotonic)
    said: Said | None = None
    seconds: float = 0.0
    thread: threading.Thread | None = None

    def look(self) -> None:
        """Look, and keep what came of it."""
        said = _looked(self.check)
        self.seconds = time.monotonic() - self.started
        self.said = said

    def finished(self) -> Checked:
        """Wait as long as the check may take, from its own start on."""
        check, thread = self.check, self.thread
        if thread is not None:
            thread.join(max(0.0, self.started + check.limit_s - time.monotonic()))
        said = self.said
        if said is None:
            text = f"no answer within {check.limit_s:g} s"
            return Checked(check.part, check.name, failed(text, check.remedy), check.limit_s)
        return Checked(check.part, check.name, said, self.seconds)


def run_checks(checks: Sequence[Check]) -> list[Checked]:
    """Run all checks at once; returns what they said, in their order.

    It takes as long as the longest, at most the longest `limit_s`; what waits is mostly the
    network.
    """
    runs = [_Run(check) for check in checks]
    for run in runs:
        # a daemon: what hangs in a system call cannot be ended, and must not hold up the exit
        run.thread = threading.Thread(target=run.look, name=run.check.name, daemon=True)
        run.started = time.monotonic()
        run.thread.start()
    return [run.finished() for run in runs]


def _looked(check: Check) -> Said:
    """Turn whatever a check raises into what it says."""
    try:
        return check.look()
    except NodeError as error:
        # our own messages name the thing and mostly the remedy too
        text = str(error)
        return failed(text, check.remedy)
    except Exception as error:  # noqa: BLE001 - boundary: a check that raises is a failed check
        return failed(f"the check itself failed: {type(error).__name__}: {error}", check.remedy)
