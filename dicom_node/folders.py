"""Where the node keeps what, under its data folder.

Everything there is patient data or made from it: the folders are for the node's user alone.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from dicom_node.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Folders:
    """The folders of one node."""

    #: absolute; ``node.data_dir``
    root: Path

    @property
    def database(self) -> Path:
        """The ledger."""
        return self.root / "ledger.sqlite"

    @property
    def inbox(self) -> Path:
        """Received instances, named by content."""
        return self.root / "inbox"

    @property
    def results(self) -> Path:
        """Result objects and maps, one folder per score."""
        return self.root / "results"

    @property
    def backups(self) -> Path:
        """Copies of the ledger; made when the first one is."""
        return self.root / "backups"

    def create(self) -> None:
        """Make the folders, for the node's user alone; raises ConfigError that names one."""
        # the rights of a folder that was there before are its owner's to choose
        for folder in (self.root, self.inbox, self.results):
            try:
                folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            except OSError as error:
                raise ConfigError(
                    f"node.data_dir: cannot make {folder}: {error.strerror}; name a folder "
                    "that this user may write"
                ) from error


def cache_folder() -> Path:
    """Return where downloaded files lie: DICOM_NODE_CACHE, else ~/.cache/dicom_node.

    Outside the data folder, for no patient is in it: nodes may share it, and machines copy it.
    """
    return Path(os.environ.get("DICOM_NODE_CACHE") or Path.home() / ".cache" / "dicom_node")
