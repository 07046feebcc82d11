"""Instances and the series they make up, as they pass from the wire to the ledger to the line.

Plain records without behaviour: what an instance must be is the inbox's to check, when a series is
complete is the ledger's to say, whether it is a volume is `volume`'s.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from dicom_node.arrival import Slice
from dicom_node.config import digest


@dataclass(frozen=True, slots=True)
class ReceivedInstance:
    """One C-STORE request (PS3.7 9.1.1.1) as it came off the wire, nothing of it checked yet."""

    #: ledger number of the association that carried it
    association_id: int
    calling_ae_title: str
    #: from the C-STORE-RQ command set
    affected_sop_class_uid: str
    affected_sop_instance_uid: str
    transfer_syntax_uid: str
    #: the data set as encoded by the sender, without preamble and file meta information
    encoded: bytes


@dataclass(frozen=True, slots=True)
class FiledInstance:
    """One instance in the inbox: the durable file and the identifiers the ledger keeps.

    The file is synced before the record is made. SOP Class and SOP Instance UID stood alike in the
    request and in the data set; the other UIDs are the data set's word alone.
    """

    sop_instance_uid: str
    sop_class_uid: str
    series_instance_uid: str
    study_instance_uid: str
    modality: str
    transfer_syntax_uid: str
    #: relative to the inbox folder, named by content, never by a UID as it came
    file_name: str
    size_bytes: int
    sha256: str
    association_id: int
    calling_ae_title: str
    #: where its slice lies, None where it does not say
    slice: Slice | None = None
    #: Images in Acquisition (0020,1002), None where it does not say
    n_expected: int | None = None


@dataclass(frozen=True, slots=True)
class Part:
    """One volume of a series that holds several: which, and what of the series it is."""

    #: digest of what tells it from the others; the same in every revision of the series
    key: str
    #: its place among the parts of its series, from 1
    number: int
    #: what tells it from the others, in words: "EchoTime 80"
    name: str
    #: their SOP Instance UIDs
    instances: tuple[str, ...]
    #: numbers, from 1, of its frames where it is not the whole of its one instance; else empty
    frames: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Series:
    """What the ledger knows of one series, at one moment: late instances may reopen it any time.

    Or of one part of it: then the files and the protocol are those of the part.
    """

    series_instance_uid: str
    study_instance_uid: str
    modality: str
    #: raised by one each time late instances reopen the series
    revision: int
    state: str
    protocol: str | None
    n_instances: int
    first_received: datetime
    last_received: datetime
    #: absolute paths, one per SOP Instance UID and in its order, which is no spatial order
    files: tuple[Path, ...] = field(default=())
    #: which volume of the series it is; None: all of it
    part: Part | None = None


def subject_name(uid: str, content: Sequence[tuple[str, str]], part: str) -> str:
    """Return the name of a series' content, or of a part of it, as a subject."""
    # without a part as it was before there were any: batches are full of such names
    return digest(uid, content, part) if part else digest(uid, content)
