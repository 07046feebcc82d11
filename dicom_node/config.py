"""``config.toml`` -> frozen, validated :class:`NodeConfig`. Read once; a change is a restart.

What is wrong is found here, before a process starts: every refusal names the file, the key and what
to write. Every key stands with a comment in ``config.example.toml``, which a test compares with the
models below. A key that is not known is an error: a typing slip must not leave a default in force.

No other module reads the file, and none changes a value; secrets do not belong into it.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import Field, model_validator
from pydantic import ValidationError as _ValidationError

from dicom_node.config_types import AETitle, Bytes, Port, Scale, Seconds, Section, Share
from dicom_node.errors import ConfigError
from dicom_node.network_config import (
    AnyDestination,
    Archive,
    Destination,
    KnownPeer,
    Receiver,
    WebDestination,
)
from dicom_node.protocol_config import Protocol

_Tls = TypeVar("_Tls", Receiver, Destination, Archive, KnownPeer)


class Node(Section):
    """``[node]``: who this node is."""

    ae_title: AETitle = "DICOM_NODE"
    #: goes into Device Serial Number of every result
    node_id: str = "dicom-node-1"
    #: inbox, ledger, tokens, results: patient data
    data_dir: Path = Path("./dicom-node-data")


class Storage(Section):
    """``[storage]``: the disk."""

    #: C-STORE is refused with 0xA700 below this much free space
    reserve: Bytes = 2 * 2**30
    #: between two copies of the ledger: what a damaged one may cost, beside what the inbox holds
    backup_every: Annotated[Seconds, Field(ge=60)] = 3600.0
    #: copies of the ledger that are kept, the newest
    backups_kept: Annotated[int, Field(ge=1, le=1000)] = 24


class Completion(Section):
    """``[completion]``: when a series is complete.

    DICOM has no end of a series: a scanner may pause, and a PACS may send in any order.
    """

    #: nothing came for this long, and no association that carried it is open
    quiet: Seconds = 30.0
    #: the same of a series in which slices are missing between others
    gap_quiet: Seconds = 900.0
    #: so long after its first instance whatever else: a peer may never close
    cap: Seconds = 5400.0

    @model_validator(mode="after")
    def _cap_beyond_quiet(self) -> Completion:
        if self.cap < self.quiet:
            raise ValueError("completion.cap must not be shorter than completion.quiet")
        return self


class Grouping(Section):
    """``[grouping]``: series that no ``[[protocol]]`` claims found groups of their own, in shadow.

    What is no volume, a localizer and a derived image found none.
    """

    #: false: no new group is founded, and what no protocol claims is rejected; groups that are
    #: there go on
    discover: bool = True
    #: groups in force, at most: a site has dozens of protocols, and each group takes disk and time
    max_discovered: Annotated[int, Field(ge=1, le=1000)] = 50
    #: of a group that is founded: as of a [[protocol]]
    min_reference: Annotated[int, Field(ge=3, le=60)] = 15


class Encoder(Section):
    """``[encoder]``: the frozen vision transformer; a change of it founds new reference batches."""

    #: any timm vision transformer
    model: str = "vit_small_patch14_dinov2"
    weights: Literal["packaged", "file", "hub"] = "packaged"
    file: Path | None = None
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = None
    device: Annotated[str, Field(pattern=r"^(cpu|cuda(:\d+)?)$")] = "cpu"
    #: torch.compile: a minute when a worker starts, and a C++ compiler (or Triton) on the machine
    compile: bool = False
    axes: tuple[Literal["axial", "coronal", "sagittal"], ...] = ("axial", "coronal", "sagittal")
    #: coarse to fine; what is not given follows the weights' card
    scales: tuple[Scale, ...] | None = None
    projection_dim: Annotated[int, Field(ge=0, le=1024)] = 128
    seed: int = 0

    @model_validator(mode="after")
    def _file_named(self) -> Encoder:
        if self.weights == "file" and self.file is None:
            raise ValueError('encoder.weights = "file" needs encoder.file, a safetensors file')
        if not self.axes or len(set(self.axes)) != len(self.axes):
            raise ValueError("encoder.axes names each axis at most once, and at least one")
        if self.scales == ():  # by a length of the field, one wrong scale would be told as none too
            raise ValueError("encoder.scales lists at least one size of token")
        return self


class Scoring(Section):
    """``[scoring]``: mutual similarity and the map."""

    nearest_share: Share = 0.3
    smoothing_mm: Annotated[float, Field(ge=0, le=20)] = 3.0
    workers: Annotated[int, Field(ge=1, le=16)] = 1
    #: CPU threads of each worker; 0 takes all cores
    threads: Annotated[int, Field(ge=0)] = 0
    max_attempts: Annotated[int, Field(ge=1)] = 3
    #: a stage that takes longer hangs, and costs its worker
    stage_limit: Seconds = 3600.0
    #: of one series that are scored, each by itself: what holds more (fMRI, perfusion) is rejected
    max_volumes: Annotated[int, Field(ge=1, le=200)] = 12


class Results(Section):
    """``[results]``: what is made of a score and sent."""

    segmentation: bool = True
    secondary_capture: bool = True
    #: scores and measurements as a structured report
    measurement_report: bool = True
    #: the scores of all voxels; as large as two of its source
    parametric_map: bool = False
    #: the segments as one label map; archives older than its storage class refuse it
    labelmap_segmentation: bool = False
    #: the segments as the share of each voxel that lies above the threshold
    occupancy_segmentation: bool = False
    #: outlines over the source, for viewers without segmentations
    presentation_state: bool = False
    #: a bookmark of the summary, each finding's highest slice and the segmentation
    key_objects: bool = False
    #: overlays of every source slice, or of slices with findings and a margin
    secondary_capture_slices: Literal["all", "findings"] = "findings"
    series_number_segmentation: Annotated[int, Field(ge=1)] = 9001
    series_number_labelmap_segmentation: Annotated[int, Field(ge=1)] = 9002
    series_number_occupancy_segmentation: Annotated[int, Field(ge=1)] = 9003
    series_number_secondary_capture: Annotated[int, Field(ge=1)] = 9100
    series_number_measurement_report: Annotated[int, Field(ge=1)] = 9007
    series_number_parametric_map: Annotated[int, Field(ge=1)] = 9005
    series_number_presentation_state: Annotated[int, Field(ge=1)] = 9008
    series_number_key_objects: Annotated[int, Field(ge=1)] = 9009


class Watch(Section):
    """``[watch]``: when the recent studies of a scanner are said to differ from before."""

    #: studies that count as recent: the newest of one scanner and software version
    recent: Annotated[int, Field(ge=5, le=200)] = 20
    #: nothing is said of fewer
    least: Annotated[int, Field(ge=5)] = 8
    #: chance of a false warning at one look, over all its comparisons
    alpha: Annotated[float, Field(gt=0, le=0.1)] = 0.01
    #: greatest share of recent studies above the protocol's admission_percentile
    abnormal_share: Share = 0.3

    @model_validator(mode="after")
    def _recent_holds_least(self) -> Watch:
        if self.recent < self.least:
            raise ValueError("watch.recent must not be below watch.least")
        return self


class Web(Section):
    """``[web]``: the node's page."""

    #: loopback only: the page has no login
    bind: Literal["127.0.0.1", "::1"] = "127.0.0.1"
    port: Port = 8042


class Log(Section):
    """``[log]``: structured events on standard error; never patient data."""

    level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"


class NodeConfig(Section):
    """The whole file."""

    node: Node = Node()
    storage: Storage = Storage()
    receiver: Receiver = Receiver()
    completion: Completion = Completion()
    grouping: Grouping = Grouping()
    encoder: Encoder = Encoder()
    scoring: Scoring = Scoring()
    results: Results = Results()
    watch: Watch = Watch()
    web: Web = Web()
    log: Log = Log()
    protocol: tuple[Protocol, ...] = ()
    destination: tuple[Destination, ...] = ()
    web_destination: tuple[WebDestination, ...] = ()
    archive: tuple[Archive, ...] = ()
    peer: tuple[KnownPeer, ...] = ()

    @model_validator(mode="after")
    def _names_unique(self) -> NodeConfig:
        for kind, parts in (
            ("protocol", self.protocol),
            ("destination", self.destinations),
            ("archive", self.archive),
        ):
            names = [part.name for part in parts]
            if len(set(names)) != len(names):
                raise ValueError(f"two [[{kind}]] have one name: {names}")
        return self

    @property
    def destinations(self) -> tuple[AnyDestination, ...]:
        """Whoever results are sent to, by DIMSE and by DICOMweb."""
        return (*self.destination, *self.web_destination)

    def protocol_named(self, name: str) -> Protocol:
        """Return the protocol called `name`.

        Raises
        ------
        ConfigError
            There is none, as when it was renamed or removed while a study of it was waiting.
        """
        for protocol in self.protocol:
            if protocol.name == name:
                return protocol
        raise ConfigError(f"no [[protocol]] is named {name!r}")

    def archive_named(self, name: str) -> Archive:
        """Return the archive called `name`; raises ConfigError that lists those there are."""
        for archive in self.archive:
            if archive.name == name:
                return archive
        raise ConfigError(
            f"no [[archive]] is named {name!r}; there are {[one.name for one in self.archive]}"
        )


def load(path: Path) -> NodeConfig:
    """Read and validate `path`.

    Returns
    -------
    The configuration, its paths absolute: relative ones are relative to the folder of `path`, so
    that it does not matter where the node is started.

    Raises
    ------
    ConfigError
        The file is not there or no TOML, or a value is wrong: one line per fault, all at once, each
        with file, key, and what to write instead.
    """
    try:
        # editors on Windows write a byte order mark, which TOML does not know
        data = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError as error:
        raise ConfigError(
            f"{path}: no such file; copy config.example.toml there or name another with --config"
        ) from error
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{path}: {error}") from error
    try:
        config = NodeConfig.model_validate(data)
    except _ValidationError as error:
        raise ConfigError("\n".join(_explain(path, error))) from error
    return _anchored(config, path.resolve().parent)


def _anchored(config: NodeConfig, folder: Path) -> NodeConfig:
    """Resolve the file's relative paths against its own folder."""
    # joining keeps an absolute path as it is
    node = config.node.model_copy(update={"data_dir": folder / config.node.data_dir})
    encoder = config.encoder
    if encoder.file is not None:
        encoder = encoder.model_copy(update={"file": folder / encoder.file})
    protocols = tuple(
        p.model_copy(update={"template": folder / p.template})
        if isinstance(p.template, Path)
        else p
        for p in config.protocol
    )
    return config.model_copy(
        update={
            "node": node,
            "encoder": encoder,
            "protocol": protocols,
            "receiver": _with_tls(config.receiver, folder),
            "archive": tuple(_with_tls(entry, folder) for entry in config.archive),
            "peer": tuple(_with_tls(entry, folder) for entry in config.peer),
            "destination": tuple(_with_tls(entry, folder) for entry in config.destination),
            "web_destination": tuple(
                _anchored_files(entry, folder) for entry in config.web_destination
            ),
        }
    )


def _anchored_files(section: WebDestination, folder: Path) -> WebDestination:
    """Resolve the files that a section names."""
    files = {key: folder / value for key, value in section if isinstance(value, Path)}
    return section.model_copy(update=files)


def _with_tls(section: _Tls, folder: Path) -> _Tls:
    """Resolve the certificate files of a section that may hold a ``tls`` one."""
    if section.tls is None:
        return section
    files = {key: folder / value for key, value in section.tls if isinstance(value, Path)}
    return section.model_copy(update={"tls": section.tls.model_copy(update=files)})


def _explain(path: Path, error: _ValidationError) -> list[str]:
    """Return a line per fault: file, key, what is wrong, the nearest known key."""
    lines = []
    for fault in error.errors():
        key = ".".join(str(part) for part in fault["loc"])
        text = fault["msg"].removeprefix("Value error, ")
        if fault["type"] == "extra_forbidden":
            text = "unknown key" + _nearest(fault["loc"])
        lines.append(f"{path}: {key or 'file'}: {text}")
    return lines


def _nearest(location: tuple[int | str, ...]) -> str:
    """Suggest the known key that looks most like the last part of `location`."""
    # down the models along the path; numbers in it are places in a list of tables
    model: Any = NodeConfig
    for part in location[:-1]:
        if isinstance(part, str):
            model = model.model_fields[part].annotation
            while not hasattr(model, "model_fields"):  # optional, or a tuple of them
                model = model.__args__[0]
    known = list(model.model_fields)
    close = difflib.get_close_matches(str(location[-1]), known, n=1, cutoff=0.4)
    return f"; did you mean {close[0]!r}?" if close else f"; known here: {', '.join(known)}"


def digest(*parts: object) -> str:
    """Return 12 hex digits of SHA-256 over the JSON of `parts`, in order.

    Tuples and lists are one, floats enter with all their digits, and what JSON does not have as its
    text. 48 bits tell apart the names of one node (among a million, a clash has a chance of one in
    500); they are no seal against tampering.
    """
    text = json.dumps(parts, sort_keys=True, default=str, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:12]
