"""Every result object is on disk under its own UID, and what is delivered was acknowledged.

References
----------
PS3.4 B.2.3 (C-STORE statuses), PS3.5 section 9 (a SOP Instance UID names one instance).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pydicom
from pydicom.errors import InvalidDicomError

from dicom_node.association.requestor import is_stored
from dicom_node.invariants.violation import Kind, Seen, Violation
from dicom_node.jobs import DeliveryState
from dicom_node.network_config import Destination
from dicom_node.store.inspection import Entry

_STATES = {state.value for state in DeliveryState}
_ACKNOWLEDGED = (DeliveryState.STORED.value, DeliveryState.DELIVERED.value)
#: of a Store Transaction (PS3.18 10.5.3)
_HTTP_STORED = (200, 202)


def check(seen: Seen) -> Iterator[Violation]:
    """Yield what is wrong with result objects and their deliveries."""
    for row in seen.rows.results:
        path = seen.folders.results / row.file_name
        wrong = _wrong_file(path, row.sop_instance_uid)
        if wrong is not None:
            kind, text = wrong
            yield Violation(kind, row.sop_instance_uid, f"results/{row.file_name}: {text}")
    yield from _twice(seen)
    for delivery in seen.rows.deliveries:
        yield from _wrong_delivery(seen, delivery)


def _wrong_file(path: Path, uid: str) -> tuple[Kind, str] | None:
    """Hold the file of a result object against its row."""
    try:
        found = _uid_of(path)
    except FileNotFoundError:
        return Kind.RESULT_LOST, "the file is not there"
    except OSError as error:
        return Kind.RESULT_LOST, f"the file cannot be read: {error.strerror}"
    except (InvalidDicomError, AttributeError, EOFError, ValueError):
        return Kind.RESULT_CHANGED, "no DICOM file with a SOP Instance UID"
    if found != uid:
        return Kind.RESULT_CHANGED, f"it holds {found}"
    return None


def _uid_of(path: Path) -> str:
    header = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=["SOPInstanceUID"])
    return str(header.SOPInstanceUID)


def _twice(seen: Seen) -> Iterator[Violation]:
    """Yield the UIDs under which something else lies beside what the ledger knows."""
    known = {row.file_name: row.sop_instance_uid for row in seen.rows.results}
    files = {uid: name for name, uid in known.items()}
    root = seen.folders.results
    for path in sorted(root.glob("*/*.dcm")):
        name = f"{path.parent.name}/{path.name}"
        if name in known:
            continue
        try:
            uid = _uid_of(path)
            first = files.get(uid)
            same = first is None or path.read_bytes() == (root / first).read_bytes()
        except (OSError, InvalidDicomError, AttributeError, EOFError, ValueError):
            continue  # half of a report that was never recorded, or told of above
        if not same:
            text = f"results/{name} holds it too, with other content than results/{first}"
            yield Violation(Kind.UID_TWICE, uid, text)


def _wrong_delivery(seen: Seen, row: Entry) -> Iterator[Violation]:
    """Yield what is wrong with the row of one object and destination."""
    uid, to = row.sop_instance_uid, row.destination
    if row.state not in _STATES:
        text = f"for {to}: {row.state!r} is no state of a delivery"
        yield Violation(Kind.NOT_ACKNOWLEDGED, uid, text)
    if row.state not in _ACKNOWLEDGED:
        return
    if row.status is None or not _is_stored(row.status):
        said = "no status" if row.status is None else f"status 0x{row.status:04X}"
        text = f"{row.state} at {to} with {said}"
        yield Violation(Kind.NOT_ACKNOWLEDGED, uid, text)
    if row.state == DeliveryState.DELIVERED.value and _must_commit(seen, row):
        text = f"delivered at {to}, which is asked to commit and did not"
        yield Violation(Kind.NOT_COMMITTED, uid, text)


def _is_stored(status: int) -> bool:
    """Return whether a status says that the object was taken, by DIMSE or by HTTP."""
    return is_stored(status) or status in _HTTP_STORED


def _must_commit(seen: Seen, row: Entry) -> bool:
    """Return whether a delivered object lacks its destination's word.

    Commitment may have been switched on later: what was settled before the destination was first
    asked owes nothing.
    """
    asks = any(
        isinstance(one, Destination) and one.commitment and one.name == row.destination
        for one in seen.destinations
    )
    first = seen.rows.first_asked.get(row.destination)
    return asks and row.committed is None and first is not None and row.updated > first
