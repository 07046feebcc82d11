"""A frozen reference batch from one node to another: export and import.

A small site may begin with the batch of a large one, and a score may be made again elsewhere: both
need the same tokens in the same token space. :mod:`dicom_node.reference_archive` has the file.

The pseudonym of a patient is an HMAC under a key that never leaves the node: the same in all its
exports, so that a patient counts once, and nothing to anybody without the key. Subjects are
numbered in the order of their names, which is that of sums over the batch: scores come out the
same, to the bit.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from itertools import permutations
from pathlib import Path

from dicom_node import __version__, admission, clock, durable, reference_archive
from dicom_node.config import digest
from dicom_node.errors import DecisionRefused, TokenSpaceMismatch
from dicom_node.protocol_config import Protocol
from dicom_node.reference import ReferenceBatch
from dicom_node.reference_archive import Archive, ExportedSubject, Manifest, pair_path, token_path
from dicom_node.reference_files import ReferenceFiles
from dicom_node.reference_verbs import check_author, release_waiting
from dicom_node.store import admission_table, reference_table
from dicom_node.store.admission_table import Change, Decision, Event
from dicom_node.store.database import Database
from dicom_node.store.reference_table import ADMITTED, EVICTED, EXCLUDED, FrozenBatch, Member

# --- export -------------------------------------------------------------------------------------


def export_batch(files: ReferenceFiles, database: Database, version: str, path: Path) -> Manifest:
    """Write a frozen batch to `path`, a zip archive that is whole or absent; returns its manifest.

    An old file of that name is replaced. The same batch makes the same bytes. `ReferenceBatch.
    snapshot` freezes the batch as it is now, if that is what is wanted.

    Raises
    ------
    DecisionRefused
        No batch has that name, a subject of it is no longer kept, or `path` cannot be written.
    TokenSpaceMismatch
        `files` are of another fingerprint than the batch.
    """
    found, members = _to_export(files, database, version)
    names = {entry.subject: f"{number:04d}" for number, entry in enumerate(members, 1)}
    subjects = _described(members, _pseudonym_key(files.root))

    def manifest_of(digests: dict[str, str]) -> Manifest:
        return Manifest(
            protocol=found.protocol,
            fingerprint=found.fingerprint,
            batch=version,
            search=files.search_key,
            software=__version__,
            subjects=subjects,
            files=digests,
        )

    try:
        return reference_archive.write(path, _contents(files, names), manifest_of)
    except OSError as error:
        raise DecisionRefused(f"{path} cannot be written: {error.strerror}") from error


def _to_export(
    files: ReferenceFiles, database: Database, version: str
) -> tuple[FrozenBatch, list[Member]]:
    """Return a frozen batch and the rows of its subjects by name; raises as `export_batch` does."""
    with database.read() as db:
        try:
            found = reference_table.get_batch(db, version)
        except LookupError as error:
            raise DecisionRefused(str(error)) from error
        rows = reference_table.members(db, found.protocol, found.fingerprint)
    _check_space(f"batch {version}", found.fingerprint, files.fingerprint)
    members = {entry.subject: entry for entry in rows}
    for subject in found.subjects:
        if subject not in members or not files.has_subject(subject):
            raise DecisionRefused(f"subject {subject} of batch {version} is no longer kept")
    return found, [members[subject] for subject in sorted(found.subjects)]


def _check_space(what: str, theirs: str, ours: str) -> None:
    """Raise TokenSpaceMismatch where two fingerprints differ."""
    if theirs != ours:
        raise TokenSpaceMismatch(
            f"{what} has fingerprint {theirs}, and the protocol here has {ours}: encoder, weights, "
            "tokens, grid, intensity, and the batch's own template and histogram must be the same "
            "for both"
        )


def _described(members: Sequence[Member], key: bytes) -> tuple[ExportedSubject, ...]:
    """Return what the manifest says of each subject."""
    scanners = list(dict.fromkeys(entry.scanner for entry in members if entry.scanner))
    return tuple(
        ExportedSubject(
            name=f"{number:04d}",
            patient=_pseudonym(key, entry.patient_key),
            scanner=f"scanner-{scanners.index(entry.scanner) + 1}" if entry.scanner else "",
            month=entry.added[: len("2026-01")],
        )
        for number, entry in enumerate(members, 1)
    )


def _contents(files: ReferenceFiles, names: dict[str, str]) -> Iterator[tuple[str, bytes]]:
    """Yield (path in the archive, content), one file in memory at a time."""
    for subject, name in names.items():
        yield token_path(name), reference_archive.tokens_alone(files.token_file(subject))
    for subject, name in names.items():
        others = [other for other in names if other != subject]
        missing = [other for other in others if not files.pair_file(subject, other).exists()]
        if missing:  # measured and kept, as by the next score
            files.distances(subject, missing)
        for other in others:
            yield pair_path(name, names[other]), files.pair_file(subject, other).read_bytes()


def _pseudonym_key(root: Path) -> bytes:
    """Return the node's key for pseudonyms of patients, made at the first use."""
    path = root / "exchange.key"
    if not path.exists():
        durable.write(path, secrets.token_bytes(32))
    return path.read_bytes()


def _pseudonym(key: bytes, patient_key: str) -> str:
    return hmac.new(key, patient_key.encode(), hashlib.sha256).hexdigest()[:16]


# --- import -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Imported:
    """What an import did."""

    manifest: Manifest
    #: names under which the subjects are known here, in the order of the archive
    subjects: tuple[str, ...]
    #: None where all of them were known already
    event: Event | None


def import_batch(
    files: ReferenceFiles, batch: ReferenceBatch, path: Path, by: str, at: datetime | None = None
) -> Imported:
    """Admit the subjects of an exported batch, as one decision, which can be undone.

    Nothing is written before the whole archive was checked. A second import changes nothing, also
    where somebody excluded a subject meanwhile. A patient of this node's own comes home under its
    own key. Of two studies of one patient the newer one serves, by month, or the one that is
    pinned.

    Raises
    ------
    ExportInvalid
        It is no archive of `export_batch`, or not as it was written.
    TokenSpaceMismatch
        It was made with another fingerprint; the message names both.
    DecisionRefused
        It is of another protocol, the batch has no room for it, or `by` is no name.
    """
    where = (batch.protocol.name, batch.fingerprint)
    with reference_archive.reading(path) as archive:
        manifest = archive.manifest
        decision = _decision(batch, manifest, by)
        _check_space(str(path), manifest.fingerprint, batch.fingerprint)
        archive.check()
        with batch.database.read() as db:
            known = reference_table.members(db, *where)
        entries = _as_members(manifest, known, _pseudonym_key(files.root), at or clock.now())
        _changes(batch.protocol, entries, known)  # refused, it must leave no files behind
        _keep(files, archive, [entry.subject for entry in entries])
    event = None
    with batch.database.begin() as db:
        changes = _changes(batch.protocol, entries, reference_table.members(db, *where))
        if changes:
            event = admission_table.record(db, decision, changes, at or clock.now())
    release_waiting(batch, at)
    return Imported(manifest, tuple(entry.subject for entry in entries), event)


def _decision(batch: ReferenceBatch, manifest: Manifest, by: str) -> Decision:
    """Return the decision to import; raises DecisionRefused: no person, or another protocol."""
    ours, theirs = batch.protocol.name, manifest.protocol
    said = f"batch {manifest.batch} of {len(manifest.subjects)} subjects"
    reason = f"{said}, written by dicom_node {manifest.software}"
    check_author(Decision(ours, batch.fingerprint, by, "import", reason))
    if theirs != ours:
        raise DecisionRefused(
            f"{said} is of protocol {theirs!r}, not {ours!r}: other acquisitions; where they are "
            f"the same, name this node's [[protocol]] {theirs!r}"
        )
    return Decision(ours, batch.fingerprint, f"import {by}", "import", reason)


def _as_members(
    manifest: Manifest, known: Sequence[Member], key: bytes, at: datetime
) -> list[Member]:
    """Return the rows of the archive's subjects, under names that are made of its content."""
    sums = [manifest.files[token_path(subject.name)] for subject in manifest.subjects]
    content = digest(manifest.fingerprint, sums)
    own = {_pseudonym(key, entry.patient_key): entry.patient_key for entry in known}
    return [
        Member(
            subject=f"import-{content}-{subject.name}",
            series_instance_uid="",
            patient_key=own.get(subject.patient) or digest("import", subject.patient),
            state=ADMITTED,
            reason=f"imported with batch {manifest.batch}",
            # a month that is yet to come would keep it for ever
            added=clock.stamp(min(at, _first_day(subject.month))),
            scanner=f"{content} {subject.scanner}" if subject.scanner else "",
        )
        for subject in manifest.subjects
    ]


def _first_day(month: str) -> datetime:
    """Return the beginning of a month "2026-01"."""
    year, number = month.split("-")
    return datetime(int(year), int(number), 1, tzinfo=UTC)


def _changes(
    protocol: Protocol, entries: Sequence[Member], known: Sequence[Member]
) -> list[Change]:
    """Return how the batch changes by the entries that are not known; raises DecisionRefused."""
    names = {entry.subject for entry in known}
    new = [entry for entry in entries if entry.subject not in names]
    admitted = [entry for entry in known if entry.state == ADMITTED]
    pool = sorted([*admitted, *new], key=lambda entry: (entry.added, entry.subject))
    bounds = {"max_per_scanner": None, "max_reference": len(pool)}
    leaves = admission.leaving(pool, protocol.model_copy(update=bounds), {})
    most = max(protocol.max_reference, len(admitted))
    if new and len(pool) - len(leaves) > most:
        raise DecisionRefused(
            f"the batch would hold {len(pool) - len(leaves)} subjects, of at most "
            f"{protocol.max_reference}: raise max_reference, or exclude some of it first"
        )
    return [Change(None, _kept_out(entry, leaves.get(entry.subject))) for entry in new] + [
        Change(entry, replace(entry, state=EVICTED, reason=leaves[entry.subject]))
        for entry in admitted
        if new and entry.subject in leaves
    ]


def _kept_out(entry: Member, why: str | None) -> Member:
    """Return the row of an imported subject whose patient is there with a newer study."""
    return replace(entry, state=EXCLUDED, reason=f"kept out: {why}") if why else entry


def _keep(files: ReferenceFiles, archive: Archive, names: Sequence[str]) -> None:
    """Write tokens, and distances where they are those of this node's search.

    What is there already is the same: the names are made of the content.
    """
    here = dict(zip((s.name for s in archive.manifest.subjects), names, strict=True))
    wanted = {token_path(name): files.token_file(here[name]) for name in here}
    if archive.manifest.search == files.search_key:
        wanted |= {
            pair_path(*pair): files.pair_file(*(here[name] for name in pair))
            for pair in permutations(here, 2)
        }
    for inside, target in wanted.items():
        if not target.exists():
            durable.make_folder(target.parent)
            durable.write(target, archive.read(inside))
