"""What the stages share in one worker, and the names under which their products are kept.

A *fingerprint* is the digest of everything that shapes a product: two products of one fingerprint
may be compared, and a changed setting can never meet the files of the old one. The configuration's
models become the frozen specs of :mod:`dicom_node.anomaly` here and nowhere else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from pathlib import Path

import torch

from dicom_node import weights
from dicom_node.alignment import Template, template_from_nifti
from dicom_node.anomaly.encoder import Encoder, build_encoder
from dicom_node.anomaly.spec import (
    ALIGNED_SEARCH,
    ANALOGUE_SEARCH,
    FREE_SEARCH,
    TOKEN_VERSION,
    EncoderSpec,
    GridSpec,
    GuardSpec,
    IntensitySpec,
    MethodSpec,
    ScaleSpec,
    ScoringSpec,
    SearchSpec,
    TokenSpec,
)
from dicom_node.anomaly.tokens import check_grid, default_scales
from dicom_node.config import NodeConfig, digest
from dicom_node.config_types import Scale
from dicom_node.errors import ConfigError, NodeError, OwnResult
from dicom_node.folders import Folders
from dicom_node.grouping import Protocols
from dicom_node.placement import Placing
from dicom_node.protocol_config import Protocol
from dicom_node.redundancy import nearest_distances
from dicom_node.reference import ReferenceBatch
from dicom_node.reference_files import ReferenceFiles
from dicom_node.series import Series, subject_name
from dicom_node.space import Space, SpaceFiles
from dicom_node.space_rules import settings_of
from dicom_node.store import part_table, result_table, series_table, space_table
from dicom_node.store.database import Database
from dicom_node.weight_files import WeightsCard

#: settings that are kept made: more than a node has protocols, and few, since a template is large
_SETTINGS_KEPT = 24
_AXES = {"axial": 0, "coronal": 1, "sagittal": 2}


@dataclass(frozen=True, slots=True)
class Setting:
    """How the volumes of a protocol become subjects, in one space."""

    method: MethodSpec
    placing: Placing


class Methods:
    """What scores are made with: the encoder, and the method of each protocol; no ledger, no files.

    Raises
    ------
    WeightsMissing, WeightsMismatch, ConfigError
        What ``[encoder]`` names is not there, or is something else: said when the worker starts,
        not when its first study comes.
    """

    def __init__(self, config: NodeConfig, cache: Path) -> None:
        self.config = config
        self._weights = weights.locate(config.encoder, cache)
        self._cache = cache
        self._templates: dict[str, Template | None] = {}
        self._spaces: dict[str, Space | None] = {}
        self._settings: dict[tuple[str, str], Setting] = {}
        for protocol in config.protocol:
            self.setting(protocol, None)

    def _check_extent(self, protocol: Protocol) -> None:
        """Refuse a grid into which the tokens do not fit, before the first series fails of it."""
        grid, edge_voxels = (
            GridSpec(protocol.extent_mm, protocol.spacing_mm),
            self.token_edge(protocol),
        )
        try:
            check_grid(grid.shape, edge_voxels)
        except ValueError as error:
            edge = edge_voxels * grid.spacing_mm
            fitting = [max(1, round(side / edge)) * edge for side in grid.extent_mm]
            raise ConfigError(
                f"[[protocol]] {protocol.name}: {error}; the coarsest token's edge is {edge:g} mm: "
                f"extent_mm could be {fitting} (or change spacing_mm or encoder.scales)"
            ) from error

    def token_edge(self, of: Protocol | None = None) -> int:
        """Return the edge of the coarsest token in voxels, of a protocol or as [encoder] has it.

        Raises ConfigError where the scales do not fit.
        """
        try:
            return self.token_spec(of).pitches(self.encoder_spec.patch_size)[0]
        except ValueError as error:
            own = of is not None and of.scales is not None
            where = f"[[protocol]] {of.name}: " if of is not None and own else "encoder."
            raise ConfigError(f"{where}scales: {error}") from error

    @property
    def card(self) -> WeightsCard:
        """The card of the weights that were found, with their digest."""
        return self._weights.card

    @cached_property
    def encoder_spec(self) -> EncoderSpec:
        """The encoder as the weights' card says."""
        card = self._weights.card
        return EncoderSpec(
            timm_name=self.config.encoder.model,
            patch_size=card.patch_size,
            mean=card.mean,
            std=card.std,
        )

    @cached_property
    def encoder(self) -> Encoder:
        """The encoder on its device, loaded at the first use and kept.

        Raises ConfigError where the weights do not fit the model, or there is no such device.
        """
        settings = self.config.encoder
        # for the whole process: the matching shares these threads
        torch.set_num_threads(self.config.scoring.threads or torch.get_num_threads())
        try:
            state = self._weights.state()
            return build_encoder(
                self.encoder_spec, state, settings.device, compiled=settings.compile
            )
        except (RuntimeError, AssertionError) as error:  # the latter of a torch without CUDA
            why = " ".join(str(error).split())[:300]  # torch lists every tensor, one a line
            compiled = " and encoder.compile = true" if settings.compile else ""
            raise ConfigError(
                f"encoder.model {settings.model} cannot be loaded with the weights "
                f"{self._weights.card.name} on encoder.device {settings.device}{compiled}: {why}"
            ) from error

    def token_spec(self, of: Protocol | None = None) -> TokenSpec:
        """Return how the tokens of a protocol are made, or of one without scales of its own."""
        encoder = self.config.encoder
        own = None if of is None else of.scales
        return TokenSpec(
            scales=self._scales(encoder.scales if own is None else own),
            axes=tuple(_AXES[axis] for axis in encoder.axes),
            projection_dim=encoder.projection_dim,
            seed=encoder.seed,
        )

    def _scales(self, given: Sequence[Scale] | None) -> tuple[ScaleSpec, ...]:
        """Return the configured scales; by default those of `default_scales`."""
        layers = self._weights.card.layers
        if given is None:
            return default_scales(layers)
        return tuple(
            ScaleSpec(scale.upsampling, scale.slices_per_token, scale.layers or layers)
            for scale in given
        )

    # --- the space of a protocol ----------------------------------------------------------------

    def space(self, of: Protocol) -> Space | None:
        """Return the space that was entered; None: the protocol takes nothing from its batch.

        None too where its batch is not founded yet.
        """
        return self._spaces.get(of.name)

    def enter(self, of: Protocol, space: Space | None) -> None:
        """Make a protocol's subjects in a space of its own batch from now on."""
        self._spaces[of.name] = space

    def setting(self, of: Protocol, space: Space | None) -> Setting:
        """Return how a protocol's volumes become subjects in a space, entered or not.

        Raises ConfigError where its template or its grid is of no use.
        """
        key = of.name, space.name if space else ""
        if key not in self._settings:
            if of.name not in self._templates:
                self._check_extent(of)
                self._templates[of.name] = _template(of)
            template = self._templates[of.name] or (space.template if space else None)
            kind = of.alignment if template else "none"
            placing = Placing(of.foreground, kind, template, self._cache)
            for old in list(self._settings)[:-_SETTINGS_KEPT]:
                del self._settings[old]
            self._settings[key] = Setting(self._method(of, space), placing)
        return self._settings[key]

    def method(self, of: Protocol) -> MethodSpec:
        """Return the whole method as a protocol's series are scored by it."""
        return self.setting(of, self.space(of)).method

    def placing(self, of: Protocol) -> Placing:
        """Return how the volumes of a protocol are placed; its template is read once."""
        return self.setting(of, self.space(of)).placing

    def _method(self, of: Protocol, space: Space | None) -> MethodSpec:
        scoring = self.config.scoring
        return MethodSpec(
            grid=GridSpec(of.extent_mm, of.spacing_mm),
            intensity=IntensitySpec(of.intensity, of.window_hu, space.landmarks if space else ()),
            tokens=self.token_spec(of),
            search=_search(of),
            scoring=ScoringSpec(
                nearest_share=scoring.nearest_share,
                calibration=of.calibration,
                smoothing_mm=scoring.smoothing_mm,
                outlier_limit=of.outlier_limit,
                guard=GuardSpec() if of.guard_shared else None,
            ),
        )

    def token_fingerprint(self, of: Protocol) -> str:
        """Return the hash of everything that shapes a token: it keys the reference batch.

        Tokens of two fingerprints are never compared. A new version of the node keeps it, and with
        it the batches, unless its code makes other tokens.
        """
        return self.token_digest(self.method(of), self.placing(of))

    def token_digest(self, method: MethodSpec, placing: Placing) -> str:
        """Return the hash of everything that shapes a token of this encoder by `method`."""
        return digest(
            asdict(self.encoder_spec),
            self._weights.card.sha256,
            asdict(method.tokens),
            asdict(method.grid),
            # the landmarks only where there are some: batches of before have none
            [
                method.intensity.kind,
                method.intensity.window_hu,
                *_given(method.intensity.landmarks),
            ],
            list(placing.space),
            TOKEN_VERSION,
        )

    def fingerprint(self, of: Protocol) -> str:
        """Return the hash of everything that shapes a token, a score or a finding.

        It names a score's products and goes into the results, and through their UIDs makes a result
        of other settings another instance.
        """
        shape = [
            of.finding_threshold,
            of.findings_per_normal,
            of.finding_min_volume_ml,
            of.max_findings,
        ]
        return digest(
            self.token_fingerprint(of),
            asdict(self.method(of).search),
            asdict(self.method(of).scoring),
            shape,
        )


def _given(landmarks: tuple[float, ...]) -> list[tuple[float, ...]]:
    return [landmarks] if landmarks else []


def _template(of: Protocol) -> Template | None:
    """Read the template that a protocol names; raises ConfigError for one that is none."""
    if not isinstance(of.template, Path) or of.alignment == "none":
        return None
    try:
        return template_from_nifti(of.template)
    except (NodeError, OSError) as error:
        raise ConfigError(f"[[protocol]] {of.name}: template: {error}") from error


class Line(Methods):
    """What the stages share in one worker: protocols, ledger, files, the encoder."""

    def __init__(self, config: NodeConfig, database: Database, cache: Path) -> None:
        """Find the weights; raises as `Methods` does."""
        super().__init__(config, cache)
        self.database = database
        self.folders = Folders(config.node.data_dir)
        self.protocols = Protocols(config, database, self.token_edge())
        self.space_files = SpaceFiles(self.folders.root)

    def look(self, of: Protocol) -> Space | None:
        """Enter the space that serves a protocol now, as the ledger says; returns it.

        Each stage looks once, when it begins: within a stage the space stays what it is, and a
        space that another process built is learnt of without a restart. Raises SpaceMissing.
        """
        if not of.own:
            return None
        with self.database.read() as db:
            row = space_table.serving(db, of.name, settings_of(of))
        before = self._spaces.get(of.name)
        if row is None or row.chosen is None:
            self.enter(of, None)
        elif before is None or before.name != row.chosen.digest:
            self.enter(of, self.space_files.load(row.chosen.digest))
        return self._spaces[of.name]

    def space(self, of: Protocol) -> Space | None:
        """Return the space that was looked up last; looks where nobody did yet."""
        return self._spaces[of.name] if of.name in self._spaces else self.look(of)

    def files(self, of: Protocol, fingerprint: str | None = None) -> ReferenceFiles:
        """Return the files of a protocol's token space, or of another: tokens and distances."""
        search, device = self.method(of).search, self.config.encoder.device
        named = fingerprint or self.token_fingerprint(of)
        return ReferenceFiles(self.folders.root, named, search, device)

    def batch(self, of: Protocol) -> ReferenceBatch:
        """Return the batch of a protocol's token space: who is in it."""
        redundancy = partial(nearest_distances, self.files(of))
        return ReferenceBatch(self.database, of, self.token_fingerprint(of), redundancy)

    def series(self, uid: str, part: str = "") -> tuple[Series, str]:
        """Return a series, or a part of it, as it is now and the name of its content as a subject.

        Both of one moment: an instance that comes later makes another subject, of each part. Raises
        LookupError for a series or a part that the ledger does not know.
        """
        with self.database.read() as db:
            found = series_table.load(db, uid, self.folders.inbox, part)
            content = series_table.instances_digest_source(db, uid)
        return found, subject_name(uid, content, part)

    def subjects(self, series: Series) -> list[str]:
        """Return the names of all subjects of a series' revision: one, or one per part."""
        uid = series.series_instance_uid
        with self.database.read() as db:
            content = series_table.instances_digest_source(db, uid)
            keys = part_table.keys(db, uid, series.revision)
        return [subject_name(uid, content, key) for key in keys or [""]]

    def refuse_own(self, uid: str) -> None:
        """Raise OwnResult for a series that was made here, whatever it says of itself."""
        with self.database.read() as db:
            if result_table.is_result(db, "", uid):
                raise OwnResult


def _search(of: Protocol) -> SearchSpec:
    """Return where a protocol's tokens are compared, by default as its calibration allows."""
    if of.calibration == "analogue":
        return ANALOGUE_SEARCH
    usual = ALIGNED_SEARCH if of.calibration == "position" else FREE_SEARCH
    return replace(
        usual,
        n_cells=usual.n_cells if of.coarse_cells is None else of.coarse_cells,
        window_cells=usual.window_cells if of.window_cells is None else of.window_cells,
    )
