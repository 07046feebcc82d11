"""The clock: nobody but this machine dates what is received, and leases and retries live by it."""

from __future__ import annotations

import os
import subprocess
import zoneinfo
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from dicom_node import clock, dicomweb
from dicom_node.config import NodeConfig
from dicom_node.doctor.checks import Check, Said, failed, note, ok
from dicom_node.errors import DeliveryError
from dicom_node.folders import Folders
from dicom_node.network_config import WebDestination
from dicom_node.store import ledger_age
from dicom_node.store.database import Database

#: what two machines' clocks may differ by without harm here
_TOLERANCE = timedelta(seconds=60)
_LOCALTIME = Path("/etc/localtime")
_SET_CLOCK = "Set this machine's clock and keep it by NTP (chrony or systemd-timesyncd)."


def checks(settings: NodeConfig, config_path: Path) -> list[Check]:
    """Return what is looked at of the clock."""
    folders = Folders(settings.node.data_dir)
    files = [config_path, folders.root, folders.database, Path(__file__)]
    return [
        Check("clocks", "clock against files", lambda: against_files(files)),
        Check("clocks", "clock against ledger", lambda: against_ledger(folders.database)),
        Check("clocks", "time zone", time_zone),
        Check(
            "clocks",
            "clock synchronised",
            lambda: synchronised(settings.web_destination),
            limit_s=60.0,
        ),
    ]


def against_files(files: Sequence[Path]) -> Said:
    """Compare the clock with the files that were written last: it cannot be before them."""
    times = [(path.stat().st_mtime, path) for path in files if path.exists()]
    newest, path = max(times)
    written = datetime.fromtimestamp(newest, UTC)
    if written - clock.now() > _TOLERANCE:
        return failed(
            f"it is {clock.now():%Y-%m-%d %H:%M} UTC here, and {path} was written on "
            f"{written:%Y-%m-%d %H:%M}",
            _SET_CLOCK,
        )
    return ok(f"it is {clock.now():%Y-%m-%d %H:%M} UTC, after all files of the node")


def against_ledger(path: Path) -> Said:
    """Compare the clock with the ledger's newest row: what is due later waits for it."""
    if not path.exists():
        return note("there is no ledger yet")
    database = Database(path, 5.0)
    try:
        with database.read() as db:
            newest = ledger_age.newest_moment(db)
    finally:
        database.close()
    if newest is not None and newest - clock.now() > _TOLERANCE:
        return failed(
            f"it is {clock.now():%Y-%m-%d %H:%M} UTC here, and the ledger's newest row is of "
            f"{newest:%Y-%m-%d %H:%M}",
            _SET_CLOCK + " What is due by the ledger's time waits until then.",
        )
    return ok(f"the ledger's newest row is of {newest:%Y-%m-%d %H:%M} UTC" if newest else "no row")


def time_zone() -> Said:
    """Look whether local times mean anything; the ledger and the log have UTC."""
    named = os.environ.get("TZ", "").removeprefix(":")
    if named and named not in zoneinfo.available_timezones() and not Path(named).is_file():
        return failed(f"TZ={named} is no time zone", "Set TZ to a name such as Europe/Vienna.")
    if not named and not _LOCALTIME.exists():
        return note("no time zone is set: local times are UTC", "Run: timedatectl set-timezone")
    local = clock.now().astimezone()
    return ok(f"{named or _LOCALTIME.resolve()} ({local:%Z, UTC%z})")


def synchronised(servers: Sequence[WebDestination]) -> Said:
    """Ask chrony, then systemd, then the DICOMweb servers what time it is."""
    for command, wanted, unwanted in (
        (["chronyc", "-n", "tracking"], "Leap status     : Normal", "Not synchronised"),
        (["timedatectl", "show", "--property=NTPSynchronized", "--value"], "yes", "no"),
    ):
        answer = _answer(command)
        if wanted in answer:
            return ok(f"{command[0]} says that it is synchronised")
        if unwanted in answer:
            return failed(f"{command[0]} says that it is not synchronised", _SET_CLOCK)
    return _against_servers(servers)


def _answer(command: list[str]) -> str:
    """Return what a program prints; empty where it is not there, fails, or takes too long."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=5, check=True)  # noqa: S603 - ours
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout


def _against_servers(servers: Sequence[WebDestination]) -> Said:
    told = []
    for of in servers:
        try:
            there = dicomweb.server_time(dicomweb.peer_of(of), 5.0)
        except DeliveryError:  # a check of its own says so
            continue
        if there is not None and abs(there - clock.now()) > _TOLERANCE:
            return failed(
                f"{of.name} has {there:%Y-%m-%d %H:%M:%S} UTC, and this machine "
                f"{clock.now():%Y-%m-%d %H:%M:%S}",
                _SET_CLOCK,
            )
        told += [of.name] if there is not None else []
    if told:
        return ok(f"the clock agrees with {', '.join(told)}")
    return note(
        "neither chrony nor timedatectl answers, and no DICOMweb server tells the time",
        "Have chrony or systemd-timesyncd keep the clock.",
    )
