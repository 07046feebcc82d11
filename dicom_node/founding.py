"""Volume -> subject, in a space of its protocol; and the space that the first of a batch founds.

What the stages, and the rebuilding of a batch in another space, share.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from dicom_node import clock, quality, volume
from dicom_node.learning import landmarks_of
from dicom_node.line import Line, Methods
from dicom_node.protocol_config import OWN_HISTOGRAM, OWN_TEMPLATE, Protocol
from dicom_node.space import Space
from dicom_node.space_rules import settings_of
from dicom_node.store import space_table
from dicom_node.store.space_table import Chosen
from dicom_node.subject import Subject, make_canonical, make_subject
from dicom_node.volume import Volume

_log = logging.getLogger(__name__)

_FOUNDED = "founded by the first series of the protocol"


def subject_of(
    line: Line,
    of: Protocol,
    source: Volume,
    space: Space | None,
    progress: Callable[[float], None] | None = None,
) -> Subject:
    """Encode a volume as its protocol says, in a space, and measure it.

    Raises as `make_subject` does.
    """
    setting = line.setting(of, space)
    affine = torch.from_numpy(source.affine)
    voxels = without_padding(source)
    made = make_subject(voxels, affine, setting.method, line.encoder, progress, setting.placing)
    return replace(made, measures=quality.measures(voxels, made.tokens[-1].index.numel()))


def without_padding(source: Volume) -> Tensor:
    """(depth, height, width) voxels of the source; none of a CT is below air."""
    is_ct = source.headers[0].get("Modality") == "CT"
    return torch.from_numpy(volume.not_below_air(source.voxels) if is_ct else source.voxels)


# --- the first space ----------------------------------------------------------------------------


def found_space(
    line: Line,
    of: Protocol,
    name: str,
    source: Volume,
    progress: Callable[[float], None] | None = None,
) -> None:
    """Let a volume found the space of its protocol, which is entered, and keep it as a subject.

    Only a volume that can be scored founds one: it is encoded before the space is recorded. Where
    another worker was quicker, the other's space is entered. Killed in between, it leaves files
    that nothing names.

    Raises
    ------
    SeriesRejected
        No subject can be made of the volume: the next series founds the space.
    """
    space = space_of_one(line, of, without_padding(source), torch.from_numpy(source.affine))
    made = subject_of(line, of, source, space, progress)
    line.space_files.save(space)
    setting = line.setting(of, space)
    fingerprint = line.token_digest(setting.method, setting.placing)
    template = name if OWN_TEMPLATE in of.own else ""
    chosen = Chosen(space.name, fingerprint, template, (name,))
    with line.database.begin() as db:
        row = space_table.found(db, of.name, settings_of(of), chosen, _FOUNDED, clock.now())
    if line.look(of) is not None and row.chosen == chosen:
        line.files(of).save_subject(name, made)
        _log.info("protocol %s has its space %s", of.name, space.name)


def space_of_one(methods: Methods, of: Protocol, voxels: Tensor, affine: Tensor) -> Space:
    """Return the space that one volume founds; arguments and errors as of `make_canonical`."""
    template = None
    if OWN_TEMPLATE in of.own:
        template = methods.setting(of, None).placing.as_template(voxels, affine)
    if OWN_HISTOGRAM not in of.own:
        return Space(template)
    setting = methods.setting(of, Space(template))
    plain = make_canonical(voxels, affine, setting.method, setting.placing)
    return Space(template, landmarks_of(plain))
