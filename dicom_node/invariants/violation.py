"""A violation and its kinds, and what the checks look at."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from dicom_node.folders import Folders
from dicom_node.network_config import AnyDestination
from dicom_node.store.inspection import Snapshot


class Kind(StrEnum):
    """What is not as it must be; the values stand in the output of ``--json``."""

    LEDGER_DAMAGED = "ledger damaged"
    INSTANCE_LOST = "instance lost"
    INSTANCE_CHANGED = "instance changed"
    JOB_ILLEGAL = "job illegal"
    JOB_MISSING = "job missing"
    PRODUCT_LOST = "product lost"
    RESULT_LOST = "result lost"
    RESULT_CHANGED = "result changed"
    UID_TWICE = "uid twice"
    NOT_ACKNOWLEDGED = "not acknowledged"
    NOT_COMMITTED = "not committed"
    MEMBER_LOST = "member lost"
    SUBJECT_UNKNOWN = "subject unknown"


@dataclass(frozen=True, slots=True)
class Violation:
    """One thing that is not as it must be."""

    kind: Kind
    #: a UID, a job ("score of series 1.2 revision 1"), a subject or a batch
    subject: str
    #: what was expected and what was found; no patient data
    text: str


@dataclass(frozen=True, slots=True)
class Seen:
    """What the checks look at: rows of one moment, and the disk beneath."""

    rows: Snapshot
    folders: Folders
    destinations: tuple[AnyDestination, ...]
    #: sizes alone, without reading what the files hold
    quick: bool = False

    def token_file(self, fingerprint: str, subject: str) -> Path:
        """Return where a subject's tokens lie (:mod:`dicom_node.reference_files`)."""
        return self.folders.root / "tokens" / fingerprint / f"{subject}.safetensors"
