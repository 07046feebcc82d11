"""Every check of a node, in the order in which a person reads them."""

from __future__ import annotations

from pathlib import Path

from dicom_node import config
from dicom_node.config import NodeConfig
from dicom_node.doctor import (
    certificates,
    clocks,
    disk,
    encoder,
    machine,
    peers,
    ports,
    settings,
    versions,
    work,
)
from dicom_node.doctor.checks import Check, Checked, failed
from dicom_node.doctor.running import run_checks
from dicom_node.errors import ConfigError


def examine(path: Path) -> list[Checked]:
    """Run every check of the node that the configuration at `path` describes.

    A configuration that is not valid is itself the one check that fails: nothing else is known
    without it.
    """
    try:
        found = config.load(path)
    except ConfigError as error:
        said = failed(
            str(error), f"Put it right in {path}; dicom-node check-config reads it again."
        )
        return [Checked("configuration", "configuration", said, 0.0)]
    return run_checks(list_checks(found, path))


def list_checks(of: NodeConfig, path: Path) -> list[Check]:
    """Return every check of this configuration."""
    return [
        *settings.checks(of, path),
        *disk.checks(of),
        *machine.checks(of),
        *versions.checks(of),
        *encoder.checks(of),
        *clocks.checks(of, path),
        *ports.checks(of),
        *certificates.checks(of),
        *peers.checks(of),
        *work.checks(of),
    ]
