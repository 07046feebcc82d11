"""Labelled folders -> the members of a cohort: encoded once, their masks on the canonical grid.

All that is kept lies below ``work/`` under the content of a scan: tokens where batch mode keeps
them too, truths, and smoothed volumes for the peers that need voxels. One scan is in memory at a
time.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dicom_node import durable, nifti
from dicom_node.batch import products
from dicom_node.batch.comparison import on_canonical, smoothed
from dicom_node.batch.inputs import Found, Scan
from dicom_node.batch.recipe import Recipe
from dicom_node.batch_mode import Listener
from dicom_node.config import digest
from dicom_node.errors import NodeError, NoMatchingProtocol
from dicom_node.evaluate.changes import Change, Seen
from dicom_node.evaluate.outcomes import Map, Truth
from dicom_node.evaluate.splits import Kind, Member
from dicom_node.reference_files import ReferenceFiles
from dicom_node.subject import make_subject
from dicom_node.wheel_files import sha256_of


class Work:
    """What is kept of the scans of one evaluation, and what makes it."""

    def __init__(self, recipe: Recipe, folder: Path, listener: Listener) -> None:
        """Keep everything below `folder`."""
        self.recipe, self.folder, self.listener = recipe, folder, listener
        self.files = ReferenceFiles(folder, recipe.token_fingerprint, recipe.method.search)
        self._scans: dict[str, tuple[Scan, Change | None]] = {}
        self._masks: dict[str, str] = {}

    def add(self, scan: Scan, number: int) -> str:
        """Encode a scan unless its tokens are kept; returns its key.

        Raises NodeError where it or its mask cannot be used.
        """
        return self._added(scan.content(), scan, number, None)

    def add_changed(self, key: str, number: int, change: Change) -> str:
        """Encode a changed copy of an added scan, unless it is kept; returns the copy's key."""
        made = digest(key, change.name, change.strength)
        return self._added(made, self._scans[key][0], number, change)

    def _added(self, key: str, scan: Scan, number: int, change: Change | None) -> str:
        self._scans[key] = scan, change
        if key not in self._masks:
            self._masks[key] = digest(sha256_of(scan.mask)) if scan.mask else "none"
        if not (self.files.has_subject(key) and self._truth_file(key).exists()):
            self._make(key, number)
        return key

    def _make(self, key: str, number: int) -> None:
        """Encode a scan, and bring its mask to its canonical grid."""
        scan, _ = self._scans[key]
        voxels, affine = self._load(key)
        if not self.files.has_subject(key):
            made = make_subject(
                voxels,
                affine,
                self.recipe.method,
                self.recipe.encoder,
                lambda share: self.listener.progress("encode", number, min(share, 0.99), scan.name),
                self.recipe.placing,
            )
            self.files.save_subject(key, made)
        self._keep_truth(key, scan)

    def _load(self, key: str) -> tuple[Tensor, Tensor]:
        """Read the voxels of a scan, changed where its key says so, and their affine."""
        scan, change = self._scans[key]
        source = scan.load()
        self.recipe.check_match(source)
        voxels = products.scored_voxels(self.recipe, scan, source)
        if change is not None:
            ct = products.is_ct(self.recipe, scan)
            edges = np.linalg.norm(source.affine[:3, :3], axis=0)
            spacing_mm = float(edges[0]), float(edges[1]), float(edges[2])
            seen = Seen(voxels.numpy(), spacing_mm, ct, int(key, 16))
            voxels = torch.from_numpy(change.apply(seen))
        return voxels, torch.from_numpy(source.affine)

    # --- truths ---------------------------------------------------------------------------------

    def truth_name(self, key: str) -> str:
        """Return a name that changes with a subject, and with what is marked in it."""
        return f"{key}-{self._masks[key]}"

    def _truth_file(self, key: str) -> Path:
        name = f"{self.truth_name(key)}.npz"
        return self.folder / "truth" / self.files.fingerprint / name

    def _keep_truth(self, key: str, scan: Scan) -> None:
        """Bring a mask to the canonical grid; without one nothing is marked."""
        subject = self.files.load_subject(key)
        shape = self.recipe.method.grid.shape
        marked, lesioned = np.zeros(shape, dtype=bool), False
        if scan.mask is not None:
            mask = nifti.read(scan.mask)
            inside = mask.voxels > 0.5
            lesioned = bool(inside.any())
            marked = on_canonical(inside, mask, subject, self.recipe.method)
        path = self._truth_file(key)
        durable.make_folder(path.parent)
        with durable.replacing(path) as partial, partial.open("wb") as stream:
            np.savez_compressed(
                stream,
                body=np.packbits(subject.foreground.numpy()),
                inside=np.packbits(marked),
                lesioned=np.array(lesioned),
            )

    def truth(self, key: str) -> Truth:
        """Return what is marked in a kept subject, on its canonical grid."""
        shape = self.recipe.method.grid.shape
        with np.load(self._truth_file(key), allow_pickle=False) as kept:
            body, inside = (
                np.unpackbits(kept[name], count=shape[0] * shape[1] * shape[2])
                .reshape(shape)
                .astype(bool)
                for name in ("body", "inside")
            )
            return Truth(body, inside, bool(kept["lesioned"]))

    # --- voxels ---------------------------------------------------------------------------------

    def smoothed(self, key: str) -> Map:
        """Return the canonical volume as batch mode has it for the z-score.

        Kept as fp16: the fourth digit of a value between 0 and 1 is lost, and the deviation among
        subjects is taken to be 0.05 at the least.
        """
        path = self.folder / "voxels" / self.files.fingerprint / f"{key}.npy"
        if not path.exists():
            made = smoothed(self.recipe, *self._load(key), self.files.load_subject(key))
            durable.make_folder(path.parent)
            with durable.replacing(path) as partial, partial.open("wb") as stream:
                np.save(stream, made.astype(np.float16))
        kept: NDArray[np.float16] = np.load(path, allow_pickle=False)
        return kept.astype(np.float32)


@dataclass(frozen=True, slots=True)
class Cohort:
    """Who can be drawn from."""

    members: tuple[Member, ...]
    #: name and reason: these could not be encoded
    failed: tuple[tuple[str, str], ...]

    def of_kind(self, kind: Kind, site: int = 1) -> list[Member]:
        """Return the members of a kind and a site."""
        return [m for m in self.members if m.kind == kind and m.site == site]


def gather(work: Work, found: Found, second: Found | None) -> Cohort:
    """Encode all scans of both sites; of each patient the newest that can be scored.

    A scan with an empty mask is normal; without any mask it is of unknown kind, at the second site
    normal. One that cannot be scored is named to the listener and among the failed, and stops
    nobody.
    """
    scans = [(scan, 1) for scan in found.scans] + [(s, 2) for s in (second.scans if second else ())]
    work.listener.start("encode", len(scans))
    members: dict[str, Member] = {}
    failed = []
    for number, (scan, site) in enumerate(sorted(scans, key=lambda one: one[0].scanned)):
        try:
            member = _member(work, scan, site, number)
            if member.patient in members:
                work.listener.note(f"{scan.name}: an older scan of its patient is left out")
            members[member.patient] = member
        except (NodeError, OSError) as error:
            failed.append((scan.name, str(error)))
            work.listener.note(f"{scan.name} failed: {error}")
        work.listener.progress("encode", number, 1.0, scan.name)
    return Cohort(tuple(members.values()), tuple(failed))


def _member(work: Work, scan: Scan, site: int, number: int) -> Member:
    """Encode one scan and say what it is."""
    key = work.add(scan, number)
    kind: Kind = "lesioned" if work.truth(key).lesioned else "normal"
    if scan.mask is None and site == 1:
        kind = "unknown"
    if site == 2 and kind == "lesioned":
        raise NoMatchingProtocol(
            "the second site must be of normal scans, and its mask is not empty"
        )
    return Member(scan.name, key, f"{site}-{scan.patient or key}", kind, site)


def changed(work: Work, members: Sequence[Member], change: Change) -> list[Member]:
    """Encode changed copies of members; returns them under the keys of the copies, in order.

    One that cannot be scored once changed is named and left as it is: the batch keeps its size.
    """
    made = []
    for number, member in enumerate(members):
        try:
            key = work.add_changed(member.key, number, change)
            made.append(dataclasses.replace(member, key=key))
        except (NodeError, OSError) as error:
            work.listener.note(f"{member.name} with {change.name} failed: {error}")
            made.append(member)
    return made
