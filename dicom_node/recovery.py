"""A damaged or missing ledger -> a sound one: the newest good copy, and what the inbox holds more.

Run before any part: nobody else may have the ledger open. The new ledger is made whole under
another name before it takes the old one's place, so that a kill at any moment leaves it all to be
done again. Nothing is deleted: the damaged file is set aside by name.

What was scored since the copy is scored again; the same content and the same batch give the same
UIDs. Decisions of persons since the copy, and reports owed since, are lost with the ledger.
"""

from __future__ import annotations

import json
import logging
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

import pydicom.filereader
from pydicom.errors import InvalidDicomError

from dicom_node import clock, durable
from dicom_node.errors import InstanceRejected
from dicom_node.folders import Folders
from dicom_node.inbox import Inbox, data_set_start
from dicom_node.series import FiledInstance, ReceivedInstance
from dicom_node.store import backup, inspection, series_table
from dicom_node.store.database import Database, migrate

_log = logging.getLogger(__name__)

#: who carried what was filed again from the inbox, as `association` has it
_CARRIER = "(recovery)"


@dataclass(frozen=True, slots=True)
class Recovered:
    """One recovery, as `status` shows it."""

    at: str
    #: what was wrong with the ledger
    reason: str
    #: name of the damaged file; empty: there was none
    set_aside: str
    #: name of the copy that was restored; empty: none was sound
    copy: str
    #: instances that the copy did not know
    n_filed: int
    #: files of the inbox that are not what was received
    n_unreadable: int


def recover(folders: Folders, *, wanted: bool = False) -> Recovered | None:
    """Put a sound ledger in the place of a damaged or missing one; None where it is sound.

    Parameters
    ----------
    wanted
        Whatever its state: an administrator asked.

    Raises
    ------
    StoreError
        The copy is of a newer version, or the ledger is locked.
    OSError
        The disk is full, or files may not be read or renamed.
    """
    reason = "asked for by hand" if wanted else _reason(folders)
    if not reason:
        return None
    at = clock.now()
    _log.error("the ledger is restored: %s", reason)
    copy = next((one for one in backup.copies(folders.backups) if not backup.damage(one)), None)
    made = folders.database.with_name(f"{folders.database.name}.restoring")
    backup.remove(made)
    if copy is not None:
        backup.put_back(copy, made)
    n_filed, n_unreadable = _file_again(made, folders.inbox, at)
    backup.fold(made)
    aside = backup.set_aside(folders.database, at)
    made.replace(folders.database)
    durable.sync_folder(folders.root)
    names = (aside.name if aside else "", copy.name if copy else "")
    found = Recovered(clock.stamp(at), reason, *names, n_filed, n_unreadable)
    durable.write(_note(folders), json.dumps(asdict(found)).encode())
    _log.warning("%s", described(asdict(found)))
    return found


def last(folders: Folders) -> dict[str, str | int] | None:
    """Return the last recovery as `Recovered` has it, None where there was none."""
    try:
        found: dict[str, str | int] = json.loads(_note(folders).read_text("utf-8"))
    except FileNotFoundError:
        return None
    return found


def described(found: dict[str, str | int]) -> str:
    """Say in one sentence what a recovery did."""
    origin = f"from {found['copy']}" if found["copy"] else "from the inbox alone, there was no copy"
    aside = f"; the old one is {found['set_aside']}" if found["set_aside"] else ""
    lost = f"; {found['n_unreadable']} files cannot be read" if found["n_unreadable"] else ""
    return (
        f"ledger restored at {found['at']} {origin} ({found['reason']}); "
        f"{found['n_filed']} instances filed again from the inbox{lost}{aside}"
    )


def _note(folders: Folders) -> Path:
    return folders.root / "recovery.json"


def _reason(folders: Folders) -> str:
    """Return why the ledger cannot be used, empty where it can, or where there was never one."""
    if folders.database.exists():
        return backup.damage(folders.database)
    # a ledger that is gone, or a recovery that was killed before its last step
    received = next(folders.inbox.glob("*/*.dcm"), None)
    return "it is missing" if received or backup.copies(folders.backups) else ""


# --- what the inbox holds -----------------------------------------------------------------------


def _file_again(ledger: Path, inbox: Path, at: datetime) -> tuple[int, int]:
    """Record what the ledger does not know of the inbox; returns how many, and how many it cannot.

    In the order in which the files came: of two contents of one SOP Instance UID the first counts.
    """
    migrate(ledger)
    database, n_new, n_unreadable = Database(ledger), 0, 0
    try:
        with database.begin() as db:
            known = inspection.known_instances(db)
            files = {f"{one.parent.name}/{one.name}": one for one in inbox.glob("*/*.dcm")}
            paths = [path for name, path in files.items() if name not in known]
            number = series_table.open_association(db, _CARRIER, "", at)
            for path in sorted(paths, key=lambda one: one.stat().st_mtime):
                filed = _filed(path, inbox, number)
                if filed is None:
                    n_unreadable += 1
                    continue
                came = min(at, datetime.fromtimestamp(path.stat().st_mtime, UTC))
                n_new += series_table.record_instance(db, filed, came)
            series_table.close_association(db, number, at)
    finally:
        database.close()
    return n_new, n_unreadable


def _filed(path: Path, inbox: Path, association_id: int) -> FiledInstance | None:
    """Read an instance of the inbox as at reception; None, and logged, where it is damaged."""
    try:
        received = _received(path, association_id)
        whole = Inbox.name_of(received) == f"{path.parent.name}/{path.name}"
        # it is there already: nothing is written
        filed = Inbox(inbox, 0).file_instance(received) if whole else None
    except (OSError, ValueError, AttributeError, InvalidDicomError, InstanceRejected) as error:
        _log.error("inbox/%s/%s is left out: %s", path.parent.name, path.name, error)
        return None
    if filed is None:
        _log.error("inbox/%s/%s is left out: it has changed", path.parent.name, path.name)
    return filed


def _received(path: Path, association_id: int) -> ReceivedInstance:
    """Return the request that a file of the inbox was received by: its file meta information."""
    meta = pydicom.filereader.read_file_meta_info(path)
    encoded = path.read_bytes()[data_set_start(path) :]
    return ReceivedInstance(
        association_id=association_id,
        calling_ae_title=str(meta.get("SourceApplicationEntityTitle", "")),
        affected_sop_class_uid=str(meta.MediaStorageSOPClassUID),
        affected_sop_instance_uid=str(meta.MediaStorageSOPInstanceUID),
        transfer_syntax_uid=str(meta.TransferSyntaxUID),
        encoded=encoded,
    )
