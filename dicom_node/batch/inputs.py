"""Folders -> the scans that are to be scored, and the masks that belong to them.

A scan is a NIfTI file, a DICOM series, or one volume of a series that holds several. Only headers
are read here; whether a scan is a volume is found when it is loaded. A mask says what a reader has
marked: it is never scored, and a score that knew of it would be worth nothing.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatch
from pathlib import Path

import pydicom
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError

from dicom_node import nifti, splitting, volume
from dicom_node.config import digest
from dicom_node.errors import ConfigError, UnsupportedPixels
from dicom_node.protocol import patient_key
from dicom_node.volume import Volume
from dicom_node.wheel_files import sha256_of

#: names of masks, where none are given
MASKS = ("*_label", "*_seg", "*_mask", "*-seg")
#: what pydicom raises on what is no DICOM file, or a damaged one: nobody has checked these
_UNREADABLE = (InvalidDicomError, OSError, EOFError, ValueError, LookupError, NotImplementedError)
#: all that is read of an instance here
_TAGS = [
    *("Modality", "SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID"),
    *("PatientID", "IssuerOfPatientID", "SeriesNumber", "SeriesDescription"),
    *("StudyDate", "StudyTime", "SeriesTime"),
]


@dataclass(frozen=True, slots=True)
class Scan:
    """One scan that may be scored."""

    #: safe as a file name, and no other scan's
    name: str
    #: the NIfTI file, or the instances of one series
    files: tuple[Path, ...] = field(repr=False)
    #: "CT" or "MR"; of a NIfTI file empty
    modality: str = ""
    #: scans of one patient share it; of a NIfTI file empty, for it does not say
    patient: str = ""
    #: of a series, that of its study
    study: str = ""
    #: sorts the scans of one patient by time
    scanned: str = ""
    #: what a reader has marked
    mask: Path | None = None
    #: which volume of its series, in words ("EchoTime 80"); empty: the only one
    volume: str = ""
    #: numbers, from 1, of its frames in the one file; empty: all
    frames: tuple[int, ...] = ()

    def load(self) -> Volume:
        """Read the voxels; raises SeriesRejected with the reason."""
        if nifti.is_nifti(self.files[0]):
            return nifti.read(self.files[0])
        try:
            return volume.build(self.files, self.frames)
        except _UNREADABLE as error:
            raise UnsupportedPixels(f"an instance cannot be read: {error}") from error

    def content(self) -> str:
        """Return the name of what the files hold: it changes with any byte, not with their place.

        All of them are read for it. What is kept under it can never be of another scan.
        """
        sums = sorted(sha256_of(path) for path in self.files)
        return digest(sums, self.frames) if self.frames else digest(sums)


@dataclass(frozen=True, slots=True)
class Found:
    """What lies in the folders."""

    scans: tuple[Scan, ...]
    #: masks that belong to no scan: most often a name that does not fit
    stray_masks: tuple[Path, ...]


def find(
    places: Sequence[Path],
    images: str | None,
    masks: str | None,
    leave_out: Path | None = None,
    most_volumes: int = 1,
) -> Found:
    """Find scans and masks in folders, searched recursively, and among single files.

    Parameters
    ----------
    images
        Pattern of the NIfTI files by name, and of the series by Series Description; None takes all.
    masks
        Pattern of the masks' paths, matched from the end as far as it goes (``"*_label.nii.gz"``,
        ``"labels/*"``); None takes the stems that end as in `MASKS`.
    leave_out
        A folder that is passed over: one's own results are no scans.
    most_volumes
        Of one series that are scans of their own; a series of more stays one, which is no volume.

    Raises
    ------
    ConfigError
        A place does not exist, or several masks fit one image equally well.
    """
    files = _files(places, leave_out)
    volumes = [path for path in files if nifti.is_nifti(path)]
    marked = {path: base for path in volumes if (base := _mask_base(path, masks)) is not None}
    pictures = [path for path in volumes if path not in marked and _wanted(path.name, images)]
    series = [one for whole in _series(files, images) for one in _volumes(whole, most_volumes)]
    scans = [*_nifti_scans(pictures), *series]
    paired = [replace(scan, mask=_mask_of(scan, marked)) for scan in scans]
    used = {scan.mask for scan in paired}
    stray = tuple(path for path in marked if path not in used)
    return Found(tuple(_uniquely_named(paired)), stray)


def _files(places: Sequence[Path], leave_out: Path | None) -> list[Path]:
    """Return every file once, in order."""
    found: set[Path] = set()
    for place in places:
        if not place.exists():
            raise ConfigError(f"{place} does not exist; name folders or files")
        inside = place.rglob("*") if place.is_dir() else [place]
        found.update(path.resolve() for path in inside if path.is_file())
    own = leave_out.resolve() if leave_out else None
    return sorted(path for path in found if own is None or own not in path.parents)


def _wanted(text: str, pattern: str | None) -> bool:
    """Return whether a pattern, if there is one, fits; upper and lower case are one."""
    return pattern is None or fnmatch(text.lower(), pattern.lower())


def _nifti_scans(files: Sequence[Path]) -> list[Scan]:
    """Name each file by its stem, and by its folder too where several have that stem."""
    alike = Counter(nifti.stem(path) for path in files)
    scans = []
    for path in files:
        stem = nifti.stem(path)
        name = stem if alike[stem] == 1 else f"{path.parent.name}_{stem}"
        scans.append(Scan(name, (path,), scanned=str(path)))
    return scans


def _series(files: Iterable[Path], images: str | None) -> list[Scan]:
    """Group the CT and MR instances by series; what is no DICOM file is passed over."""
    headers: dict[str, Dataset] = {}
    instances: dict[str, dict[str, Path]] = {}
    for path in files:
        ds = None if nifti.is_nifti(path) else _header(path)
        if ds is None or not _wanted(str(ds.get("SeriesDescription", "")), images):
            continue
        uid = str(ds.SeriesInstanceUID)
        headers.setdefault(uid, ds)
        # an export may hold an instance twice; a stack takes it once
        instances.setdefault(uid, {}).setdefault(str(ds.get("SOPInstanceUID", path)), path)
    return [_scan_of(headers[uid], tuple(instances[uid].values())) for uid in headers]


def _volumes(series: Scan, most: int) -> list[Scan]:
    """Part a series that holds several volumes, at most so many."""
    parts = splitting.parts_of(series.files) if most > 1 else ()
    if not 1 < len(parts) <= most:
        return [series]
    return [
        replace(
            series,
            name=f"{series.name}_{part.name}",
            files=splitting.files_of(part, series.files),
            volume=part.name,
            frames=part.frames,
        )
        for part in parts
    ]


def _header(path: Path) -> Dataset | None:
    """Read what names a CT or MR instance; None for everything else that lies in an export."""
    try:
        ds = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=list(_TAGS))
    except _UNREADABLE:
        return None
    whole = ds.get("SeriesInstanceUID") and ds.get("StudyInstanceUID")
    return ds if whole and ds.get("Modality") in {"CT", "MR"} else None


def _scan_of(ds: Dataset, files: tuple[Path, ...]) -> Scan:
    """Name a series by patient and number."""
    name = f"{ds.get('PatientID') or 'unknown'}_{ds.get('SeriesNumber') or 0}"
    when = [str(ds.get(key) or "") for key in ("StudyDate", "StudyTime", "SeriesTime")]
    study = str(ds.StudyInstanceUID)
    return Scan(name, files, str(ds.Modality), patient_key(ds), study, " ".join(when))


def _uniquely_named(scans: Sequence[Scan]) -> list[Scan]:
    """Make every name safe as a file name, and different from the others."""
    taken: set[str] = set()
    named = []
    for scan in scans:
        # what comes from a header may hold anything, "../" too
        safe = re.sub(r"[^A-Za-z0-9._-]+", "-", scan.name).strip("-._")[:80] or "scan"
        name, number = safe, 2
        while name.lower() in taken:  # some file systems take upper and lower case for one
            name, number = f"{safe}-{number}", number + 1
        taken.add(name.lower())
        named.append(replace(scan, name=name))
    return named


def _mask_base(path: Path, pattern: str | None) -> str | None:
    """Return what a mask's name says of its image; None when the file is no mask.

    That is what the first star of the pattern stands for, ``"*_label"`` and ``"truth-*"`` alike; an
    empty base fits every image beside the mask.
    """
    if pattern is not None:
        n_parts = len(Path(pattern).parts)
        return _first_star("/".join(path.parts[-n_parts:]), pattern)
    bases = (_first_star(nifti.stem(path), default) for default in MASKS)
    return next((base for base in bases if base is not None), None)


def _first_star(text: str, pattern: str) -> str | None:
    """Return what the first star stands for, without suffix; None where the pattern fails."""
    expression = "(.*)".join(re.escape(part).replace(r"\?", ".") for part in pattern.split("*"))
    found = re.fullmatch(expression, text, re.IGNORECASE)
    if found is None:
        return None
    return nifti.stem(Path(found.group(1))).rstrip("_-.") if found.groups() else ""


def _mask_of(scan: Scan, marked: dict[Path, str]) -> Path | None:
    """Return the mask of a scan: in its own folder rather than elsewhere, the longest base first.

    Raises ConfigError where two fit equally well: a wrong one would measure nonsense.
    """
    beside = scan.files[0].parent
    own_stem = nifti.stem(scan.files[0]) if nifti.is_nifti(scan.files[0]) else scan.name
    fitting = [
        ((path.parent == beside, len(base)), path)
        for path, base in marked.items()
        if (not base and path.parent == beside) or _shares(own_stem, base)
    ]
    best = max((rank for rank, _ in fitting), default=None)
    chosen = [path for rank, path in fitting if rank == best]
    if len(chosen) > 1:
        names = " and ".join(str(path) for path in chosen[:2])
        raise ConfigError(f"{names} both fit {scan.name}; choose with --masks")
    return chosen[0] if chosen else None


def _shares(stem: str, base: str) -> bool:
    """Return whether an image's stem is the base, or goes on after it with a new word."""
    rest = stem[len(base) :]
    return bool(base) and stem.startswith(base) and (not rest or rest[0] in "_-.")
