"""Python, the packages and the ledger, against the versions that this program was made for."""

from __future__ import annotations

import sys
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from dicom_node.config import NodeConfig
from dicom_node.doctor.checks import Check, Said, failed, note, ok
from dicom_node.folders import Folders
from dicom_node.store import database

_PACKAGE = "dicom_node"
_REINSTALL = "Install the program anew: pip install -c deploy/constraints.txt -e ."
#: told with their versions; of the others only what is wrong is told
_NAMED = ("torch", "pydicom", "pynetdicom", "highdicom")


def checks(settings: NodeConfig) -> list[Check]:
    """Return what is looked at of the installation."""
    path = Folders(settings.node.data_dir).database
    return [
        Check("versions", "python version", python),
        Check("versions", "package versions", packages),
        Check("versions", "ledger revision", lambda: ledger(path)),
    ]


def python() -> Said:
    """Compare the interpreter with what the package asks for."""
    wanted = SpecifierSet(str(metadata.metadata(_PACKAGE)["Requires-Python"] or ""))
    found = ".".join(map(str, sys.version_info[:3]))
    if found not in wanted:
        return failed(
            f"Python {found} runs, and {wanted} is needed",
            "Make the virtual environment anew with such a Python.",
        )
    return ok(f"Python {found} ({wanted})")


def packages() -> Said:
    """Compare every installed package with what this one asks for."""
    wanted = [Requirement(text) for text in metadata.requires(_PACKAGE) or []]
    faults = [fault for one in wanted if (fault := _fault(one))]
    if faults:
        return failed("; ".join(faults), _REINSTALL)
    named = ", ".join(f"{name} {_version(name)}" for name in _NAMED)
    return ok(f"{named}; all {len(wanted)} as asked for")


def _fault(wanted: Requirement) -> str | None:
    """Return what is wrong with one package; those of extras are not asked for."""
    if wanted.marker is not None and not wanted.marker.evaluate({"extra": ""}):
        return None
    found = _version(wanted.name)
    if found is None:
        return f"{wanted.name} is not installed"
    if not wanted.specifier.contains(found, prereleases=True):
        return f"{wanted.name} {found} is installed, and {wanted.specifier} is needed"
    return None


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def ledger(path: Path) -> Said:
    """Compare the ledger's revision with the newest that this version has migrations for."""
    if not path.exists():
        return note(f"there is no ledger at {path} yet; the node makes it when it starts")
    found, head = database.revisions(path)
    if found == head:
        return ok(f"the ledger is of revision {head}, as the program")
    if found is not None and found > head:
        return failed(
            f"the ledger is of revision {found}, and this program knows {head} at most",
            "Install the version again that the ledger was used with, or a newer one.",
        )
    return failed(
        f"the ledger is of revision {found}, and this program needs {head}",
        "Restart the node: it brings the ledger up to date when it starts.",
    )
