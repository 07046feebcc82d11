"""The file of an exported reference batch: a zip archive without patient data, checked when read.

- ``tokens/NNNN.safetensors``, the tokens of each subject by scale: rounded values, places, grid.
  The foreground of the volume is left out: at the volume's resolution it shows a face.
- ``distances/NNNN/MMMM.safetensors``, of each token of NNNN to subject MMMM, for each ordered pair.
- ``manifest.json``: protocol, fingerprint, batch, program version, SHA-256 of each file, and of
  each subject the month in which it came, a pseudonym of its patient and one of its scanner.

No UID, no key of a patient, no serial number is in it. The digests find damage and not malice: they
stand in the same file. Hence no path of an archive is ever written to, and what would make a score
that is no number is refused.
"""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import permutations
from pathlib import Path
from typing import Annotated, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save
from torch import Tensor

from dicom_node import durable
from dicom_node.errors import ExportInvalid

_MANIFEST = "manifest.json"
#: of one file of an archive: the tokens of a subject are some 10 MiB
_LARGEST_BYTES = 2**30
#: of what is kept of a subject; the rest is for maps of its own
_TOKEN_KEYS = ("values", "index", "grid_shape")
#: before the scale: which tokens of the other subject are the nearest, as `ReferenceFiles` has it
_ANALOGUE = "analogue."
#: the oldest moment that a zip archive can name: the same batch is the same file, whenever
_NO_DATE = (1980, 1, 1, 0, 0, 0)

_Name = Annotated[str, Field(pattern=r"^[0-9]{4}$")]
_Word = Annotated[str, Field(pattern=r"^[A-Za-z0-9._+-]{1,80}$")]
_Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]

#: per scale (layers, tokens)
Shapes = list[tuple[int, int]]


class _Part(BaseModel):
    """Part of a manifest: what is not known is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class ExportedSubject(_Part):
    """What the manifest says of a subject."""

    name: _Name
    #: pseudonym, the same in all exports of one node
    patient: Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")]
    #: number within this batch; empty where it was not known
    scanner: Annotated[str, Field(pattern=r"^(scanner-[0-9]{1,4})?$")]
    #: of its coming
    month: Annotated[str, Field(pattern=r"^20[0-9]{2}-(0[1-9]|1[0-2])$")]


class Manifest(_Part):
    """What an exported batch says of itself."""

    format: Literal[1] = 1
    protocol: _Word
    fingerprint: _Word
    #: version of the batch on the node that exported it
    batch: _Word
    #: `ReferenceFiles.search_key` of the distances
    search: _Word
    software: _Word
    subjects: tuple[ExportedSubject, ...]
    #: path in the archive -> SHA-256
    files: dict[str, _Sha256]

    @model_validator(mode="after")
    def _complete(self) -> Manifest:
        names = [subject.name for subject in self.subjects]
        if not names or names != sorted(set(names)):
            raise ValueError("the subjects are not numbered")
        if len({subject.patient for subject in self.subjects}) < len(names):
            raise ValueError("a patient is in it twice")
        if set(self.files) != set(paths(names)):
            raise ValueError("the files are not those of its subjects")
        return self


def token_path(name: str) -> str:
    """Return where the tokens of a subject lie in an archive."""
    return f"tokens/{name}.safetensors"


def pair_path(name: str, other: str) -> str:
    """Return where the distances of one subject to another lie in an archive."""
    return f"distances/{name}/{other}.safetensors"


def paths(names: Sequence[str]) -> list[str]:
    """Return the files of a batch of these subjects, but for the manifest."""
    pairs = permutations(names, 2)
    return [token_path(name) for name in names] + [pair_path(*pair) for pair in pairs]


# --- to write -----------------------------------------------------------------------------------


def tokens_alone(path: Path) -> bytes:
    """Return a file of kept tokens without the foreground and the place of its volume."""
    with safe_open(path, framework="pt") as opened:
        keys = [key for key in opened.keys() if key.split(".")[0] in _TOKEN_KEYS]  # noqa: SIM118
        return save({key: opened.get_tensor(key) for key in keys})


def write(
    path: Path,
    contents: Iterable[tuple[str, bytes]],
    manifest_of: Callable[[dict[str, str]], Manifest],
) -> Manifest:
    """Write an archive that is whole or absent; the same contents make the same bytes.

    Parameters
    ----------
    contents
        (path in the archive, content), taken one at a time.
    manifest_of
        SHA-256 by path -> the manifest.
    """
    digests: dict[str, str] = {}
    with durable.replacing(path) as partial, zipfile.ZipFile(partial, "x") as archive:
        for inside, content in contents:
            digests[inside] = hashlib.sha256(content).hexdigest()
            archive.writestr(zipfile.ZipInfo(inside, _NO_DATE), content)
        manifest = manifest_of(digests)
        archive.writestr(zipfile.ZipInfo(_MANIFEST, _NO_DATE), manifest.model_dump_json(indent=1))
    return manifest


# --- to read ------------------------------------------------------------------------------------


class Archive:
    """An archive that is open for reading."""

    def __init__(self, path: Path, opened: zipfile.ZipFile) -> None:
        """Read the manifest and compare it with what is there; raises as `reading` does."""
        self._path, self._opened = path, opened
        names = [entry.filename for entry in opened.infolist()]
        for entry in opened.infolist():
            as_written = entry.compress_type == zipfile.ZIP_STORED and not entry.flag_bits & 1
            if not as_written or entry.file_size > _LARGEST_BYTES:
                raise self._invalid(f"{entry.filename} is compressed, encrypted or too large")
        if _MANIFEST not in names or len(set(names)) < len(names):
            raise self._invalid(f"it has no {_MANIFEST}, or a file twice")
        try:
            self.manifest = Manifest.model_validate_json(opened.read(_MANIFEST))
        except ValidationError as error:
            fault = error.errors()[0]
            where = ".".join(str(part) for part in fault["loc"])
            raise self._invalid(f"{_MANIFEST}: {where or 'as a whole'}: {fault['msg']}") from error
        unknown = set(names) ^ {_MANIFEST, *self.manifest.files}
        if unknown:
            raise self._invalid(f"{min(unknown)} is missing, or no part of an export")

    def read(self, inside: str) -> bytes:
        """Return a file; raises ExportInvalid where its content is not what the manifest says."""
        content = self._opened.read(inside)
        if hashlib.sha256(content).hexdigest() != self.manifest.files[inside]:
            raise self._invalid(f"{inside} has another SHA-256 than its manifest says")
        return content

    def check(self) -> None:
        """Read every file once: its digest, its shape, and that all of it are numbers."""
        names = [subject.name for subject in self.manifest.subjects]
        try:
            shapes = {name: _token_shapes(load(self.read(token_path(name)))) for name in names}
            _check_alike(shapes)
            for name, other in permutations(names, 2):
                inside = pair_path(name, other)
                _check_pair(load(self.read(inside)), shapes[name], shapes[other])
        except (SafetensorError, ValueError, KeyError, RuntimeError) as error:
            raise self._invalid(f"it holds no tokens and distances: {error}") from error

    def _invalid(self, why: str) -> ExportInvalid:
        return ExportInvalid(
            f"{self._path} cannot be imported: {why}; export the batch again and copy it unchanged"
        )


@contextmanager
def reading(path: Path) -> Iterator[Archive]:
    """Open an archive; it is closed at the end of the block.

    Raises
    ------
    ExportInvalid
        It is not there, no archive, damaged, or holds something that no export holds.
    """
    try:
        opened = zipfile.ZipFile(path)
    except (zipfile.BadZipFile, OSError) as error:
        raise ExportInvalid(f"{path} cannot be read as an exported batch: {error}") from error
    with opened:
        try:
            yield Archive(path, opened)
        except (zipfile.BadZipFile, NotImplementedError, EOFError) as error:
            raise ExportInvalid(f"{path} is damaged: {error}") from error


def _token_shapes(tensors: dict[str, Tensor]) -> Shapes:
    """Return (layers, n) per scale; raises ValueError where they are no tokens."""
    n_scales = len(tensors) // len(_TOKEN_KEYS)
    if set(tensors) != {f"{key}.{scale}" for key in _TOKEN_KEYS for scale in range(n_scales)}:
        raise ValueError(f"tensors are called {sorted(tensors)[:4]}")
    found = []
    for scale in range(n_scales):
        values, index, shape = (tensors[f"{key}.{scale}"] for key in _TOKEN_KEYS)
        layers, n, _ = values.shape
        places = int(shape.prod())
        fits = index.shape == (n,) and shape.shape == (3,) and bool((shape > 0).all())
        if not fits or n == 0 or not 0 <= int(index.min()) <= int(index.max()) < places:
            raise ValueError("a token lies outside its grid")
        if values.dtype != torch.bfloat16 or not bool(values.isfinite().all()):
            raise ValueError("tokens are not finite numbers in bf16")
        found.append((layers, n))
    return found


def _check_alike(shapes: dict[str, Shapes]) -> None:
    """Refuse subjects that cannot be compared; raises ValueError."""
    if len({tuple(layers for layers, _ in found) for found in shapes.values()}) > 1:
        raise ValueError("subjects differ in their scales or layers")


def _check_pair(tensors: dict[str, Tensor], own: Shapes, other: Shapes) -> None:
    """Refuse what is not kept of a pair of subjects of these shapes; raises ValueError.

    Distances of each scale; and which token is the nearest, of all scales or none.
    """
    expected = {str(scale): shape for scale, shape in enumerate(own)}
    places = {f"{_ANALOGUE}{scale}": shape for scale, shape in enumerate(own)}
    found = {key: tuple(tensor.shape) for key, tensor in tensors.items()}
    if found not in (expected, expected | places):
        raise ValueError("distances are not those of the tokens")
    if not all(bool(tensor.isfinite().all()) for tensor in tensors.values()):
        raise ValueError("distances are not finite numbers")
    for name, (_, n) in zip(places, other, strict=True):
        at = tensors.get(name)
        if at is not None and not 0 <= int(at.min()) <= int(at.max()) < n:
            raise ValueError("the nearest token is none of the other subject's")
