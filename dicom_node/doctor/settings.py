"""The configuration beyond its syntax: what is hardly meant, and files that protocols name."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from dicom_node import nifti
from dicom_node.config import NodeConfig
from dicom_node.doctor.checks import Check, Said, failed, note, ok
from dicom_node.errors import NodeError


def notes(settings: NodeConfig) -> list[str]:
    """Return what is valid and yet hardly meant."""
    found = []
    if not settings.protocol and settings.grouping.discover:
        found.append("there is no [[protocol]]: alike series are scored in shadow, nothing is sent")
    elif not settings.protocol:
        found.append("there is no [[protocol]]: every series will be filed and none scored")
    if not settings.destinations:
        found.append("there is no [[destination]]: results stay on this machine")
    if not settings.receiver.allowed_calling_ae_titles:
        found.append("receiver.allowed_calling_ae_titles is empty: any caller may store")
    return found + [
        f"archive {one.name} sends by C-MOVE, and {one.ae_title} is not in "
        "receiver.allowed_calling_ae_titles"
        for one in settings.archive
        if one.retrieve == "move"
        and settings.receiver.allowed_calling_ae_titles
        and one.ae_title not in settings.receiver.allowed_calling_ae_titles
    ]


def checks(settings: NodeConfig, config_path: Path) -> list[Check]:
    """Return what is looked at of the configuration, which is valid."""
    found = [Check("configuration", "configuration", lambda: configuration(settings, config_path))]
    found += [
        Check(
            "configuration",
            f"template {of.name}",
            partial(template, of.name, of.template),
            limit_s=60.0,
        )
        for of in settings.protocol
        if isinstance(of.template, Path)
    ]
    return found


def configuration(settings: NodeConfig, path: Path) -> Said:
    """Say what is valid and yet hardly meant."""
    found = notes(settings)
    if found:
        return note("; ".join(found), f"Change it in {path} if it is not meant.")
    return ok(f"{path} is valid")


def template(protocol: str, path: Path) -> Said:
    """Read a protocol's template as a worker does."""
    remedy = f"Put a NIfTI file there that the node may read, or correct template of {protocol}."
    if not path.is_file():
        return failed(f"{path}, the template of {protocol}, does not exist", remedy)
    try:
        shape = nifti.read(path).voxels.shape
    except (NodeError, OSError) as error:
        return failed(f"{path}, the template of {protocol}: {error}", remedy)
    return ok(f"{path} has {' x '.join(map(str, shape))} voxels")
